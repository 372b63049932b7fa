/* phases.h: the products that a step consists of: their operands, their start values and what completes them. Part of
 * kernels.h. */

/* The first phase's product of a block, without its operands. */
static void first_phase(const fl_block *k, Product *q) {
    const fl_spec *s = &k->spec;
    *q = (Product){.storage = k->storage,
                   .kernels = storage_of(k->storage),
                   .start = k->bias,
                   .wa = k->w_x,
                   .lda = s->I,
                   .ka = s->I,
                   .wb = k->w_h,
                   .ldb = s->R,
                   .kb = s->R};
    if (s->kind == FL_RNN || fl_two_phases(s)) {
        plain_shape(q, s->kind == FL_RNN ? s->H : 2 * padded(s->H)); /* r and z of two vectors of units to a panel */
        return;
    }
    q->shape = s->kind == FL_LSTM ? 4 : SHAPE_GRU;
    q->panels = q->end_panel = fl_ceil_div(s->H, VL);
    q->last_vectors = s->kind == FL_LSTM ? 4 * gate_lanes(4, s->H - (q->panels - 1) * VL) / VL : q->shape;
}

/* The second product of a GRU with reset_after = 0: of the candidate. */
static void candidate_phase(const fl_block *k, Product *q) {
    const ptrdiff_t I = k->spec.I, H = k->spec.H;
    *q = (Product){.storage = k->storage,
                   .kernels = storage_of(k->storage),
                   .start = k->bias_n,
                   .wa = k->x_n,
                   .lda = I,
                   .ka = I,
                   .wb = k->w_n,
                   .ldb = H,
                   .kb = H};
    plain_shape(q, H);
}

/* The second product of a projected LSTM. */
static void projection_phase(const fl_block *k, Product *q) {
    const fl_spec *s = &k->spec;
    *q = (Product){.storage = k->storage, .kernels = storage_of(k->storage), .ldb = s->H, .wb = k->w_r, .kb = s->H};
    plain_shape(q, s->R);
}

/* ------------------------------------------------------------------------------------------------------- start values */

/* Products that have the input as an operand. */
static int input_phases(const fl_block *k) { return 1 + fl_two_phases(&k->spec); }

static void input_phase(const fl_block *k, int phase, Product *q) {
    if (phase)
        candidate_phase(k, q);
    else
        first_phase(k, q);
}

/* Floats of a row of start values of panels from..end of a product. */
static ptrdiff_t panels_width(const Product *q, ptrdiff_t from, ptrdiff_t end) {
    const ptrdiff_t narrower = q->shape && from < end && end == q->panels ? q->shape - q->last_vectors : 0;
    return ((end - from) * accumulators[q->shape] - narrower) * VL;
}

/* Floats of a row of start values of all panels: of the first phase, then of a candidate. */
static ptrdiff_t start_width(const fl_block *k) {
    Product q;
    first_phase(k, &q);
    return panels_width(&q, 0, q.panels) + (fl_two_phases(&k->spec) ? padded(k->spec.H) : 0);
}

/* Where the start values of one part of the panels lie, row by row. */
typedef struct {
    ptrdiff_t width;  /* floats of a row */
    ptrdiff_t before; /* floats of a row of all parts before this one */
    ptrdiff_t at[2];  /* offset in a row at which a phase's panel 0 would begin */
} Starts;

static Starts starts_of(const fl_block *k, int part, int parts) {
    Starts s = {0};
    for (int phase = 0; phase < input_phases(k); phase++) {
        Product q;
        ptrdiff_t from, end;
        input_phase(k, phase, &q);
        fl_share(q.panels, 1, part, parts, &from, &end);
        const ptrdiff_t before = panels_width(&q, 0, from);
        s.at[phase] = s.width - before;
        s.before += before;
        s.width += panels_width(&q, from, end);
    }
    return s;
}

/* Makes quantised rows of x a product's first operand. */
INLINE void take_x(Product *q, const Integers *x) {
    q->a = x->bytes, q->lda = x->ld, q->a_units = x->units, q->a_planes = x->planes;
}

/* The input's product of n rows x, of every phase that has the input as an operand, for one part of the panels. of_x:
 * memory for n quantised rows. */
static void hoisted_product(const fl_block *k, const float *x, ptrdiff_t n, float *start, const Starts *starts,
                            int part, int parts, const Integers *of_x) {
    if (fl_quantises(k->storage))
        quantise(of_x, x, n, k->spec.I, k->x_least);
    for (int phase = 0; phase < input_phases(k); phase++) {
        Product q;
        input_phase(k, phase, &q);
        q.a = x, q.kb = 0, q.out = start + starts->at[phase], q.ld_out = starts->width;
        if (fl_quantises(k->storage))
            take_x(&q, of_x);
        fl_share(q.panels, 1, part, parts, &q.first_panel, &q.end_panel);
        tile_product(&q, q.first_panel, q.end_panel, n, NULL, NULL);
    }
}

/* ------------------------------------------------------------------------------------------------------------- phases */

/* What a step reads: one of x (n, I), ids (n) with the next step's ids (n), or start values. */
typedef struct {
    const float *x, *start;
    const int64_t *ids, *next_ids;
} Input;

/* One phase of every step: its product with all that does not change from step to step, and its epilogue. */
typedef struct {
    Product product;
    const Epilogue *epilogue;
    ptrdiff_t start_at; /* see Starts */
    int hoisted;        /* the input's product is done: the product begins with start values */
    int of_m;           /* the second operand is m, not h */
    int of_x;           /* the product has the input as an operand, or start values made of it */
} Phase;

static const Epilogue *epilogue_of(const fl_block *k, int phase) {
    const int standard = is_standard(k);
    if (phase)
        return k->spec.projected ? &lstm_projection_epilogue : &gru_candidate_epilogue;
    if (k->spec.kind == FL_LSTM)
        return standard ? &lstm_gates_epilogue : &lstm_gates_generic_epilogue;
    if (k->spec.kind == FL_RNN)
        return standard ? &rnn_output_epilogue : &rnn_output_generic_epilogue;
    if (fl_two_phases(&k->spec))
        return &gru_reset_epilogue;
    return standard ? &gru_gates_epilogue : &gru_gates_generic_epilogue;
}

/* Fills *p in place: a copy would load whole vectors of what was just stored in pieces, which stalls. `starts` is NULL
 * where the input's product is taken inside the step. */
static void make_phase(Phase *p, const fl_block *k, int phase, const Starts *starts, int part, int parts) {
    const int projects = phase && k->spec.projected;
    Product *const q = &p->product;
    if (projects)
        projection_phase(k, q);
    else
        input_phase(k, phase, q);
    p->epilogue = epilogue_of(k, phase);
    p->hoisted = starts != NULL, p->of_m = phase > 0, p->of_x = !projects;
    if (p->hoisted && !projects)
        q->ka = 0, q->ld_start = starts->width, p->start_at = starts->at[phase];
    fl_share(q->panels, 1, part, parts, &q->first_panel, &q->end_panel);
}

/* Quantises a phase's operands and makes them the product's. x is quantised by the first phase, for the second too. */
static void quantise_operands(const Phase *p, Product *q, const Step *s, ptrdiff_t n, const float *x) {
    const fl_block *k = s->k;
    const Integers of_h = {s->of_h.bytes, fl_row_bytes(k, q->kb, 1), s->of_h.units, 1, s->of_h.of_16_bits};
    quantise(&of_h, p->of_m ? s->m : s->h, n, q->kb, p->of_m ? k->m_least : k->h_least);
    q->b = of_h.bytes, q->ldb = of_h.ld, q->b_units = of_h.units;
    if (!x)
        return;
    if (!p->of_m)
        quantise(&s->of_x, x, n, q->ka, k->x_least);
    take_x(q, &s->of_x);
}

/* Gives a phase's product its operands, of n rows. */
INLINE void take_operands(Phase *p, const Step *s, ptrdiff_t n, const Input *in) {
    Product *const q = &p->product;
    q->b = p->of_m ? s->m : s->h;
    if (p->hoisted && p->of_x)
        q->start = in->start + p->start_at;
    else if (p->of_x)
        q->a = in->x, q->ids = in->ids, q->next_ids = in->next_ids;
    if (q->kernels->quantises)
        quantise_operands(p, q, s, n, p->of_x && !p->hoisted ? in->x : NULL);
}

/* A phase of a job's step i, of n rows. */
INLINE void run_phase(Phase *p, const Step *s, ptrdiff_t n, const Input *in, const fl_forward_job *job, ptrdiff_t i) {
    Product *const q = &p->product;
    take_operands(p, s, n, in);
    q->reversed_panels = (i + job->reversed_panels) & 1;
    q->prefetches = job->prefetches;
    product(q, n, p->epilogue, s);
}

/* Memory number `at` of those in which a chunk's operands are quantised; see fl_quantised_floats. */
static void place_integers(const fl_block *k, const fl_chunk *chunk, int at, Integers *of_x, Integers *of_h) {
    if (!chunk->quantised)
        return;
    const ptrdiff_t n = chunk->b1 - chunk->b0, rows = fl_max(n, chunk->hoisted_rows);
    const ptrdiff_t ld = fl_row_bytes(k, k->spec.I, k->x_planes);
    const int wide = k->storage == FL_INT16;
    float *const units = chunk->quantised + at * fl_quantised_floats(k, chunk);
    uint8_t *const bytes = (uint8_t *)(units + fl_round16(rows) + fl_round16(n));
    *of_x = (Integers){bytes, ld, units, k->x_planes, wide};
    *of_h = (Integers){bytes + rows * ld, fl_row_bytes(k, k->spec.R, 1), units + fl_round16(rows), 1, wide};
}
