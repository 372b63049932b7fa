/* forward.h: the cells' equations as epilogues of their products, and the three ways through time: by chunk, pair and
 * team. Part of kernels.h. */

/* Start values of a stretch, at most; multiply-adds of a pair's stretch. */
enum { START_FLOATS = 131072, PAIR_WORK = 400000 };

/* ----------------------------------------------------------------------------------------------------- forward, a step */

/* The rows of one step of one chunk. */
typedef struct {
    const fl_block *k;
    float *h, *c;         /* (n, R), (n, H) in and out */
    float *h_new, *m, *z; /* (n, R), (n, H), (n, H) scratch: h is still read while h_new is written */
    float *y;             /* rows of ldy, or NULL */
    ptrdiff_t ldy;
    float *gates, *tape_c, *tape_h, *tape_m; /* rows of the tape, or NULL */
    ptrdiff_t first, first_y;                /* which of the tape's rows, and of y's, are theirs: from here on, */
    const int64_t *y_rows;                   /* (n) or, of y's, those so far on */
} Step;

/* h' of some units of one row, to wherever it is wanted. */
INLINE void give_h(const Step *s, ptrdiff_t row, ptrdiff_t u, V h, int count) {
    const ptrdiff_t R = s->k->spec.R;
    V_STOREN(s->h_new + row * R + u, h, count);
    if (s->y)
        V_STOREN(s->y + (s->first_y + (s->y_rows ? s->y_rows[row] : row)) * s->ldy + u, h, count);
    if (s->tape_h)
        V_STOREN(s->tape_h + (s->first + row) * R + u, h, count);
}

INLINE void give_gate(const Step *s, ptrdiff_t row, ptrdiff_t gate, ptrdiff_t u, V v, int count) {
    const ptrdiff_t H = s->k->spec.H;
    if (s->gates)
        V_STOREN(s->gates + (s->first + row) * 4 * H + gate * H + u, v, count);
}

/* h' = o h(c') of an LSTM cell. */
INLINE void lstm_h(const Step *s, ptrdiff_t row, ptrdiff_t u, V o, V c, fl_act output, int count) {
    const ptrdiff_t H = s->k->spec.H;
    const V h = V_MUL(o, v_act(output, c));
    if (!s->k->spec.projected) {
        give_h(s, row, u, h, count);
        return;
    }
    V_STOREN(s->m + row * H + u, h, count);
    if (s->tape_m)
        V_STOREN(s->tape_m + (s->first + row) * H + u, h, count);
}

/* An LSTM cell of `count` units from u on, `lanes` to a gate, row by row; a row's h' is made while the next one's gates
 * are. (Lanes beyond `count` hold anything.) `standard`, a constant wherever this is inlined: sigmoid, tanh and tanh
 * without peepholes, so that nothing is asked in the loop. */
INLINE void lstm_rows(const Step *s, const float *tile, ptrdiff_t u, int lanes, int count, ptrdiff_t row, int rows,
                      const int standard) {
    const fl_spec *e = &s->k->spec;
    const ptrdiff_t H = e->H;
    const float *const peep = s->k->peep;
    const fl_act gate = e->act[0], output = standard ? (fl_act){.id = FL_TANH} : e->act[2];
    V c = V_SET1(0.0f), o = c;
    for (int r = 0; r < rows; r++, row++, tile += 4 * lanes) {
        const V c_before = c, o_before = o;
        V i = V_LOAD(tile), f = V_LOAD(tile + lanes), g = V_LOAD(tile + 2 * lanes);
        o = V_LOAD(tile + 3 * lanes);
        float *const at_c = s->c + row * H + u;
        c = V_LOADN(at_c, count);
        if (standard) {
            v_gates(&i, &f, &g, &o);
        } else {
            if (peep) {
                i = V_FMA(V_LOADN(peep + u, count), c, i);
                f = V_FMA(V_LOADN(peep + H + u, count), c, f);
            }
            i = v_act(gate, i);
            f = v_act(gate, f);
            g = v_act(e->act[1], g);
        }
        c = V_FMA(f, c, V_MUL(i, g)); /* c' = f c + i g */
        if (!standard) {
            if (peep)
                o = V_FMA(V_LOADN(peep + 2 * H + u, count), c, o);
            o = v_act(gate, o);
        }
        V_STOREN(at_c, c, count);
        if (s->gates) {
            give_gate(s, row, 0, u, i, count);
            give_gate(s, row, 1, u, f, count);
            give_gate(s, row, 2, u, g, count);
            give_gate(s, row, 3, u, o, count);
            V_STOREN(s->tape_c + (s->first + row) * H + u, c, count);
        }
        if (r)
            lstm_h(s, row - 1, u, o_before, c_before, output, count);
    }
    lstm_h(s, row - 1, u, o, c, output, count);
}

/* Whether all is sigmoid and tanh as usual, without peepholes. */
static int is_standard(const fl_block *k) {
    const fl_act *act = k->spec.act;
    switch (k->spec.kind) {
    case FL_LSTM: return !k->peep && act[0].id == FL_SIGMOID && act[1].id == FL_TANH && act[2].id == FL_TANH;
    case FL_GRU: return act[0].id == FL_SIGMOID && act[1].id == FL_TANH;
    default: return act[0].id == FL_TANH;
    }
}

INLINE void lstm_gates_of(const Step *s, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows,
                          const int standard) {
    const ptrdiff_t u = panel * VL;
    const int count = (int)fl_min(VL, s->k->spec.H - u);
    if (standard && count == VL)
        lstm_rows(s, tile, u, VL, VL, row, rows, 1);
    else
        lstm_rows(s, tile, u, gate_lanes(4, count), count, row, rows, standard);
}
INLINE void lstm_gates(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    lstm_gates_of(context, tile, panel, row, rows, 1);
}
/* The same of a panel whose gates share no vectors, so that one row's stay in registers. */
INLINE void lstm_full(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    const Step *s = context;
    const ptrdiff_t u = panel * VL, left = s->k->spec.H - u;
    if (left >= VL)
        lstm_rows(s, tile, u, VL, VL, row, rows, 1);
    else
        lstm_rows(s, tile, u, VL, (int)left, row, rows, 1);
}
INLINE void lstm_other_gates(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    lstm_gates_of(context, tile, panel, row, rows, 0);
}
EPILOGUE(lstm_gates, lstm_full, 4, 4, 2)
EPILOGUE(lstm_other_gates, lstm_other_gates, 4, 4, 2)

/* The activation of that number, which is `id`, sigmoid or tanh, where `standard`. */
INLINE V known_act(const fl_spec *e, int number, const int id, V x, const int standard) {
    return standard ? v_act((fl_act){.id = id}, x) : v_act(e->act[number], x);
}

/* reset_after: n = g(n_x + r n_h), h' = (1 - z) n + z h. `standard` as in lstm_rows. */
INLINE void gru_rows(const Step *s, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows, const int standard) {
    const fl_spec *e = &s->k->spec;
    const ptrdiff_t H = e->H, u = panel * VL;
    const int count = (int)fl_min(VL, H - u);
    for (const ptrdiff_t end = row + rows; row < end; row++, tile += 4 * VL) {
        const V r = known_act(e, 0, FL_SIGMOID, V_LOAD(tile), standard),
                z = known_act(e, 0, FL_SIGMOID, V_LOAD(tile + VL), standard);
        const V m = V_LOAD(tile + 3 * VL);
        const V n = known_act(e, 1, FL_TANH, V_FMA(r, m, V_LOAD(tile + 2 * VL)), standard);
        const V h = V_LOADN(s->h + row * H + u, count);
        give_gate(s, row, 0, u, r, count);
        give_gate(s, row, 1, u, z, count);
        give_gate(s, row, 2, u, n, count);
        give_gate(s, row, 3, u, m, count);
        give_h(s, row, u, V_FMA(z, h, V_MUL(V_SUB(V_SET1(1.0f), z), n)), count);
    }
}
INLINE void gru_gates(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    gru_rows(context, tile, panel, row, rows, 1);
}
INLINE void gru_other_gates(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    gru_rows(context, tile, panel, row, rows, 0);
}
EPILOGUE(gru_gates, gru_gates, 4, 3, 3)
EPILOGUE(gru_other_gates, gru_other_gates_tile, 4, 3, 3) /* called: sums that outlive a call are kept in memory */

/* reset_after = 0, first phase: r, z, and r * h for the second. */
INLINE void gru_reset(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    const Step *s = context;
    const fl_spec *e = &s->k->spec;
    const ptrdiff_t H = e->H, first = panel * 2 * VL, end_unit = fl_min(H, first + 2 * VL);
    for (const ptrdiff_t end = row + rows; row < end; row++)
        for (ptrdiff_t u = first; u < end_unit; u += VL, tile += 2 * VL) {
            const int count = (int)fl_min(VL, H - u);
            const V r = v_act(e->act[0], V_LOAD(tile)), z = v_act(e->act[0], V_LOAD(tile + VL));
            const V m = V_MUL(r, V_LOADN(s->h + row * H + u, count));
            V_STOREN(s->m + row * H + u, m, count);
            V_STOREN(s->z + row * H + u, z, count);
            give_gate(s, row, 0, u, r, count);
            give_gate(s, row, 1, u, z, count);
            give_gate(s, row, 3, u, m, count);
        }
}
EPILOGUE(gru_reset, gru_reset, 4, 4, 2)

/* Epilogues over plain panels: the projection, GRU's second phase, and RNN with tanh or another activation. */
enum { PROJECTION, CANDIDATE, TANH, ACTIVATION };
INLINE void plain_h(const Step *s, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows, const int what) {
    const fl_spec *e = &s->k->spec;
    const ptrdiff_t first = panel * 4 * VL, R = e->R, width = fl_min(4 * VL, padded(R - first));
    for (const ptrdiff_t end = row + rows; row < end; row++, tile += width)
        for (ptrdiff_t v = 0; v < width; v += VL) {
            const ptrdiff_t u = first + v;
            const int count = (int)fl_min(VL, R - u);
            V h = V_LOAD(tile + v);
            if (what == TANH)
                h = v_tanh(h);
            if (what == ACTIVATION)
                h = v_act(e->act[0], h);
            if (what == CANDIDATE) {
                const V n = v_act(e->act[1], h), z = V_LOADN(s->z + row * R + u, count);
                give_gate(s, row, 2, u, n, count);
                h = V_FMA(z, V_LOADN(s->h + row * R + u, count), V_MUL(V_SUB(V_SET1(1.0f), z), n));
            }
            give_h(s, row, u, h, count);
        }
}
INLINE void gru_candidate(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    plain_h(context, tile, panel, row, rows, CANDIDATE);
}
INLINE void projection(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    plain_h(context, tile, panel, row, rows, PROJECTION);
}
INLINE void rnn_output(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    plain_h(context, tile, panel, row, rows, TANH);
}
INLINE void rnn_other_output(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    plain_h(context, tile, panel, row, rows, ACTIVATION);
}
EPILOGUE(gru_candidate, gru_candidate, 4, 4, 2)
EPILOGUE(projection, projection, 4, 4, 2)
EPILOGUE(rnn_output, rnn_output, 4, 4, 2)
EPILOGUE(rnn_other_output, rnn_other_output_tile, 4, 4, 2)

/* The first phase's product of a block, without its operands. */
static void first_phase(const fl_block *k, Product *q) {
    const fl_spec *s = &k->spec;
    *q = (Product){.start = k->bias, .wa = k->w_x, .lda = s->I, .ka = s->I, .wb = k->w_h, .ldb = s->R, .kb = s->R};
    if (s->kind == FL_RNN || has_two_phases(s)) {
        plain_shape(q, s->kind == FL_RNN ? s->H : 2 * padded(s->H)); /* r and z of two vectors of units to a panel */
        return;
    }
    q->shape = s->kind == FL_LSTM ? 4 : SHAPE_GRU;
    q->panels = q->end_panel = ceil_div(s->H, VL);
    q->last_vectors = s->kind == FL_LSTM ? 4 * gate_lanes(4, s->H - (q->panels - 1) * VL) / VL : q->shape;
}

/* The same of a two-phase GRU's candidate. */
static void candidate_phase(const fl_block *k, Product *q) {
    const ptrdiff_t I = k->spec.I, H = k->spec.H;
    *q = (Product){.start = k->bias_n, .wa = k->x_n, .lda = I, .ka = I, .wb = k->w_n, .ldb = H, .kb = H};
    plain_shape(q, H);
}

/* Floats of a row of start values of panels from..end, and of all: of the first phase, then of a candidate that has its
 * own. */
static ptrdiff_t panels_width(const Product *q, ptrdiff_t from, ptrdiff_t end) {
    const ptrdiff_t narrower = q->shape && from < end && end == q->panels ? q->shape - q->last_vectors : 0;
    return ((end - from) * accumulators[q->shape] - narrower) * VL;
}

static ptrdiff_t start_width(const fl_block *k) {
    Product q;
    first_phase(k, &q);
    return panels_width(&q, 0, q.panels) + (has_two_phases(&k->spec) ? padded(k->spec.H) : 0);
}

/* Where the start values of a share of the panels lie, row by row. */
typedef struct {
    ptrdiff_t width, before; /* of a row, and of a row of the shares before */
    ptrdiff_t at[2];         /* where in a row a phase's panel 0 would be */
} Starts;

static Starts starts_of(const fl_block *k, int part, int parts) {
    Starts s = {0};
    for (int phase = 0; phase < 1 + has_two_phases(&k->spec); phase++) {
        Product q;
        ptrdiff_t from, end;
        (phase ? candidate_phase : first_phase)(k, &q);
        share(q.panels, 1, part, parts, &from, &end);
        const ptrdiff_t before = panels_width(&q, 0, from);
        s.at[phase] = s.width - before;
        s.before += before;
        s.width += panels_width(&q, from, end);
    }
    return s;
}

/* Products of a step that wait for one another (Spec.phases). */
static int phase_count(const fl_spec *s) { return 1 + (has_two_phases(s) || s->projected); }

/* What a step reads: x (n, I), or ids (n) and perhaps soon next_ids (n), or start values. */
typedef struct {
    const float *x, *start;
    const int64_t *ids, *next_ids;
} Input;

/* One phase of every step: its product with all that stays, and what completes its tiles. */
typedef struct {
    Product product;
    const Epilogue *epilogue;
    ptrdiff_t start_at; /* see Starts */
    int hoisted;        /* the input's product is done: it begins with start values */
    int of_m;           /* its operand is m, not h */
    int of_x;           /* it has the input as an operand, or start values made of it */
} Phase;

static const Epilogue *epilogue_of(const fl_block *k, int phase) {
    const int standard = is_standard(k);
    if (phase)
        return k->spec.projected ? &projection_epilogue : &gru_candidate_epilogue;
    if (k->spec.kind == FL_LSTM)
        return standard ? &lstm_gates_epilogue : &lstm_other_gates_epilogue;
    if (k->spec.kind == FL_RNN)
        return standard ? &rnn_output_epilogue : &rnn_other_output_epilogue;
    if (has_two_phases(&k->spec))
        return &gru_reset_epilogue;
    return standard ? &gru_gates_epilogue : &gru_other_gates_epilogue;
}

/* In place: a copy would read vectors of what was just stored in pieces, which has to wait. */
static void make_phase(Phase *p, const fl_block *k, int phase, const Starts *starts, int part, int parts) {
    const fl_spec *e = &k->spec;
    const int candidate = phase && has_two_phases(e), projects = phase && e->projected;
    Product *const q = &p->product;
    if (projects) {
        *q = (Product){.ldb = e->H, .wb = k->w_r, .kb = e->H};
        plain_shape(q, e->R);
    } else {
        (candidate ? candidate_phase : first_phase)(k, q);
    }
    p->epilogue = epilogue_of(k, phase);
    p->hoisted = starts != NULL, p->of_m = phase > 0, p->of_x = !projects;
    if (p->hoisted && !projects)
        q->ka = 0, q->ld_start = starts->width, p->start_at = starts->at[phase];
    share(q->panels, 1, part, parts, &q->first_panel, &q->end_panel);
}

/* A phase of one step of n rows. */
INLINE void run_phase(Phase *p, const Step *s, ptrdiff_t n, const Input *in, int backwards) {
    Product *const q = &p->product;
    q->b = p->of_m ? s->m : s->h;
    if (p->hoisted && p->of_x)
        q->start = in->start + p->start_at;
    else if (p->of_x)
        q->a = in->x, q->ids = in->ids, q->next_ids = in->next_ids;
    q->backwards = backwards;
    product(q, n, p->epilogue, s);
}

/* ------------------------------------------------------------------------------------------------- forward, all time */

/* A small batch alone does not keep the multipliers busy, so the input's product is taken for a stretch of time at
 * once. Token ids have none. */
static int hoists(const fl_rows *rows, ptrdiff_t B) { return rows->T > 1 && rows->x && B <= 2 * ROWS; }

/* Rows whose input's product is taken at once, at least two steps': so many that neither their start values nor their
 * inputs, should these have to be gathered, take more than START_FLOATS. */
static ptrdiff_t hoisted_rows(const fl_block *k, ptrdiff_t B) {
    return fl_max(2 * B, START_FLOATS / fl_max(start_width(k), k->spec.I));
}

/* Scratch of one chunk: h_new, m, z, then start values and gathered inputs where the input's product is hoisted. A team
 * has `parts` members, else 0. */
static ptrdiff_t forward_scratch(const fl_block *k, ptrdiff_t B, const fl_rows *of, int parts) {
    const ptrdiff_t state = fl_round16(B * k->spec.R) + 2 * fl_round16(B * k->spec.H), rows = hoisted_rows(k, B);
    const ptrdiff_t start = fl_round16(rows * start_width(k)) + parts * FL_APART;
    return hoists(of, B) ? state + start + fl_round16(rows * k->spec.I) : state;
}

/* Start values of n rows of input, of every phase that has some: the share `part` of the panels. */
static void hoisted_product(const fl_block *k, const float *x, ptrdiff_t n, float *start, const Starts *starts,
                            int part, int parts) {
    for (int phase = 0; phase < 1 + has_two_phases(&k->spec); phase++) {
        Product q;
        (phase ? candidate_phase : first_phase)(k, &q);
        q.a = x, q.kb = 0, q.out = start + starts->at[phase], q.ld_out = starts->width;
        share(q.panels, 1, part, parts, &q.first_panel, &q.end_panel);
        tile_product(&q, q.first_panel, q.end_panel, n, NULL, NULL);
    }
}

/* A chunk's scratch memory begins with h_new, m and z. */
static float *scratch_m(const fl_chunk *c, const fl_spec *s) { return c->scratch + fl_round16((c->b1 - c->b0) * s->R); }
static float *scratch_z(const fl_chunk *c, const fl_spec *s) {
    return scratch_m(c, s) + fl_round16((c->b1 - c->b0) * s->H);
}
static float *scratch_start(const fl_chunk *c, const fl_spec *s) {
    return scratch_z(c, s) + fl_round16((c->b1 - c->b0) * s->H);
}

/* What all steps of a chunk have in common. */
static void begin_steps(Step *s, const fl_forward_job *job, const fl_chunk *chunk) {
    const fl_pass *pass = &job->passes[chunk->direction];
    const fl_spec *e = &pass->block->spec;
    *s = (Step){.k = pass->block,
                .h = chunk->h,
                .c = chunk->c,
                .h_new = chunk->scratch,
                .m = scratch_m(chunk, e),
                .z = scratch_z(chunk, e),
                .y = job->y ? job->y + chunk->direction * e->R : NULL,
                .ldy = job->ldy,
                .gates = pass->gates,
                .tape_c = pass->tape_c,
                .tape_h = pass->tape_h,
                .tape_m = pass->tape_m,
                .y_rows = job->places ? job->places->sequences + chunk->b0 : NULL};
}

/* Step t, in which the chunk's first sequence is packed row `row`. */
INLINE void begin_step(Step *s, const fl_forward_job *job, ptrdiff_t t, ptrdiff_t row) {
    s->first = row, s->first_y = job->places ? t * job->places->step : row;
}

/* What a step gave is what the next one takes. */
INLINE void swap_states(Step *s) {
    float *const h = s->h_new;
    s->h_new = s->h, s->h = h;
}

/* The step that a direction walks as its i-th, the earliest that it walks as i0..i1, and a chunk's sequences alive at one
 * of so many. */
static ptrdiff_t walked(const fl_pass *pass, ptrdiff_t T, ptrdiff_t i) { return pass->reverse ? T - 1 - i : i; }
static ptrdiff_t earliest(const fl_pass *pass, ptrdiff_t T, ptrdiff_t i0, ptrdiff_t i1) {
    return pass->reverse ? T - i1 : i0;
}
static ptrdiff_t alive(const fl_chunk *chunk, int64_t size) { return fl_max(0, fl_min(chunk->b1, size) - chunk->b0); }

/* How many rows after those of step t, the next one's lie. */
static ptrdiff_t to_next(const fl_rows *rows, ptrdiff_t t, int reverse) {
    const int64_t *const size = rows->batch_sizes + t;
    return !reverse ? size[0] : t > 0 ? -size[-1] : 0;
}

/* Packed rows from `row` on, of step t. */
static Input input_at(const fl_rows *rows, ptrdiff_t I, ptrdiff_t row, ptrdiff_t t, int reverse) {
    if (rows->x)
        return (Input){.x = rows->x + row * I};
    const int64_t *const size = rows->batch_sizes + t, *const ids = rows->ids + row;
    const int as_many = reverse || (t + 1 < rows->T && size[1] == size[0]); /* in the next step */
    return (Input){.ids = ids, .next_ids = ids + (as_many ? to_next(rows, t, reverse) : 0)};
}

/* Start values for a chunk's steps from the i-th on, in walking order, as many as there is room for. `first` is the
 * i-th step's first row. Returns the step that is next. */
static ptrdiff_t hoist_stretch(const fl_forward_job *job, const fl_chunk *chunk, ptrdiff_t i, ptrdiff_t first,
                               float *start) {
    const fl_pass *pass = &job->passes[chunk->direction];
    const fl_spec *e = &pass->block->spec;
    const fl_rows *rows = job->rows;
    const int64_t *sizes = rows->batch_sizes;
    const ptrdiff_t I = e->I, room = hoisted_rows(pass->block, chunk->b1 - chunk->b0);
    /* Rows side by side, where they are not so already. */
    float *const x = start + fl_round16(room * start_width(pass->block));
    const int touch = !pass->reverse && chunk->b0 == 0 && chunk->b1 == sizes[0];
    ptrdiff_t count = 0, at = first + chunk->b0, next = i;
    for (; next < rows->T; next++) {
        const ptrdiff_t t = walked(pass, rows->T, next), n = alive(chunk, sizes[t]);
        if (count > 0 && count + n > room)
            break;
        if (!touch)
            memcpy(x + count * I, rows->x + at * I, (size_t)(n * I) * sizeof *x);
        count += n;
        at += to_next(rows, t, pass->reverse);
    }
    const Starts starts = starts_of(pass->block, 0, 1);
    hoisted_product(pass->block, touch ? rows->x + first * I : x, count, start, &starts, 0, 1);
    return next;
}

/* Zeros at the places of step t of those of a chunk's sequences that have ended: all but its first n. */
static void give_zeros(const fl_forward_job *job, const fl_chunk *chunk, ptrdiff_t t, ptrdiff_t n) {
    const ptrdiff_t R = job->passes[chunk->direction].block->spec.R;
    for (ptrdiff_t b = chunk->b0 + n; b < chunk->b1; b++)
        memset(job->y + (t * job->places->step + job->places->sequences[b]) * job->ldy + chunk->direction * R, 0,
               (size_t)R * sizeof(float));
}

/* A chunk's way through time. */
typedef struct {
    const fl_forward_job *job;
    const fl_chunk *chunk;
    int hoist, phases, dense;
    int fetches; /* the next step's start values, which another thread made */
    Phase phase[2];
    Step s;
    ptrdiff_t first; /* the first packed row of the step that is next */
} Walk;

static void begin_walk(Walk *w, const fl_forward_job *job, const fl_chunk *chunk) {
    const fl_pass *pass = &job->passes[chunk->direction];
    const ptrdiff_t B = chunk->b1 - chunk->b0, T = job->rows->T;
    const int64_t *sizes = job->rows->batch_sizes;
    w->job = job, w->chunk = chunk;
    w->hoist = hoists(job->rows, B), w->phases = phase_count(&pass->block->spec);
    w->dense = alive(chunk, sizes[T - 1]) == B, w->fetches = 0;
    w->first = pass->reverse ? job->N - sizes[T - 1] : 0;
    const Starts starts = w->hoist ? starts_of(pass->block, 0, 1) : (Starts){0};
    for (int p = 0; p < w->phases; p++)
        make_phase(&w->phase[p], pass->block, p, w->hoist ? &starts : NULL, 0, 1);
    begin_steps(&w->s, job, chunk);
}

/* Steps i0..i1. Their start values, if hoisted: row by row from `start` on, `by` floats apart. */
static void walk(Walk *w, ptrdiff_t i0, ptrdiff_t i1, const float *start, ptrdiff_t by) {
    const fl_forward_job *job = w->job;
    const fl_rows *rows = job->rows;
    const fl_chunk *chunk = w->chunk;
    const fl_pass *pass = &job->passes[chunk->direction];
    const fl_spec *e = &pass->block->spec;
    Step *const s = &w->s;
    for (ptrdiff_t i = i0; i < i1; i++) {
        const ptrdiff_t t = walked(pass, rows->T, i), n = alive(chunk, rows->batch_sizes[t]);
        if (n > 0) {
            const ptrdiff_t row = w->first + chunk->b0;
            const Input in = w->hoist ? (Input){.start = start} : input_at(rows, e->I, row, t, pass->reverse);
            begin_step(s, job, t, row);
            for (ptrdiff_t j = 0; w->fetches && j < n * fl_max(by, -by); j += 16)
                __builtin_prefetch(start + n * by + j);
            for (int p = 0; p < w->phases; p++)
                run_phase(&w->phase[p], s, n, &in, (i + job->turn) & 1);
            if (w->dense)
                swap_states(s);
            else /* who ends, or begins later, has one place */
                memcpy(s->h, s->h_new, (size_t)(n * e->R) * sizeof(float));
            start += w->hoist ? n * by : 0;
        }
        if (job->places)
            give_zeros(job, chunk, t, n);
        w->first += to_next(rows, t, pass->reverse);
    }
}

static void end_walk(Walk *w) {
    const fl_chunk *chunk = w->chunk;
    if (w->s.h != chunk->h)
        memcpy(chunk->h, w->s.h, (size_t)((chunk->b1 - chunk->b0) * w->s.k->spec.R) * sizeof(float));
}

/* One chunk through all time. */
static void forward_chunk(void *arg, int step_index, int piece, int worker) {
    (void)step_index, (void)worker;
    const fl_forward_job *job = arg;
    const fl_chunk *chunk = &job->chunks[piece];
    const fl_block *k = job->passes[chunk->direction].block;
    float *const start = scratch_start(chunk, &k->spec);
    Walk w;
    begin_walk(&w, job, chunk);
    for (ptrdiff_t i = 0, next = job->rows->T; i < job->rows->T; i = next) {
        if (w.hoist)
            next = hoist_stretch(job, chunk, i, w.first, start);
        walk(&w, i, next, start, start_width(k));
    }
    end_walk(&w);
}

/* A pair: one thread walks one sequence through a stretch of time, while another takes the input's product for the
 * stretch after it, of about PAIR_WORK multiply-adds. For steps too short for a team. */
static ptrdiff_t pair_stretch(const fl_block *k, ptrdiff_t T) {
    const ptrdiff_t width = start_width(k), most = hoisted_rows(k, 1) / 2;
    return fl_min(fl_min(T, most), fl_max(1, PAIR_WORK / (width * (k->spec.I + k->spec.R))));
}

static int pair_steps(const fl_forward_job *job) {
    const ptrdiff_t T = job->rows->T;
    return 1 + (int)ceil_div(T, pair_stretch(job->passes[0].block, T));
}

static void forward_pair(void *arg, int index, int piece, int worker) {
    (void)worker;
    const fl_forward_job *job = arg;
    const fl_pass *pass = &job->passes[0];
    const fl_chunk *chunk = &job->chunks[0];
    const fl_block *k = pass->block;
    const fl_spec *e = &k->spec;
    const ptrdiff_t T = job->rows->T, width = start_width(k), stretch = pair_stretch(k, T);
    const int walks = index > 0 && piece == 0;
    const ptrdiff_t at = index - walks, i0 = at * stretch, i1 = fl_min(T, i0 + stretch), count = i1 - i0;
    float *const start = scratch_start(chunk, e) + at % 2 * stretch * width;
    if (!walks) { /* the first stretch's by both */
        const Starts starts = starts_of(k, 0, 1);
        if (count > 0)
            hoisted_product(k, job->rows->x + earliest(pass, T, i0, i1) * e->I, count, start, &starts,
                            index ? 0 : piece, index ? 1 : 2);
        return;
    }
    Walk w;
    begin_walk(&w, job, chunk);
    w.fetches = 1;
    w.first = walked(pass, T, i0);
    if (i0 & 1)
        swap_states(&w.s);
    if (pass->reverse)
        walk(&w, i0, i1, start + (count - 1) * width, -width);
    else
        walk(&w, i0, i1, start, width);
    if (i1 == T)
        end_walk(&w);
}

/* A team: every direction's panels are shared out, and all members meet after each phase. For dense batches too small
 * to be cut into rows. Steps come in stretches; where the input's product is hoisted, each begins with it. h alternates
 * between the state and the scratch memory, so that no copy has to be waited for. */
static ptrdiff_t team_stretch(const fl_block *k, const fl_rows *rows) {
    const ptrdiff_t B = rows->batch_sizes[0];
    return fl_min(rows->T, hoisted_rows(k, B) / B);
}

static int team_hoists(const fl_forward_job *job) { return hoists(job->rows, job->rows->batch_sizes[0]); }

static int team_steps(const fl_forward_job *job) {
    const fl_block *k = job->passes[0].block;
    const ptrdiff_t T = job->rows->T, stretch = team_stretch(k, job->rows);
    return (int)(T * phase_count(&k->spec) + (team_hoists(job) ? ceil_div(T, stretch) : 0));
}

/* Columns u0..u1 of B rows of H. */
static void copy_columns(float *to, const float *from, ptrdiff_t B, ptrdiff_t H, ptrdiff_t u0, ptrdiff_t u1) {
    for (ptrdiff_t b = 0; b < B; b++)
        memcpy(to + b * H + u0, from + b * H + u0, (size_t)(fl_min(H, u1) - u0) * sizeof *to);
}

/* A member's share of one phase of step i. */
static void team_phase(const fl_forward_job *job, const fl_chunk *chunk, int part, ptrdiff_t i, int number,
                       const Starts *starts, const Input *in) {
    const fl_pass *pass = &job->passes[chunk->direction];
    const fl_block *k = pass->block;
    const fl_spec *e = &k->spec;
    const ptrdiff_t T = job->rows->T, B = chunk->b1, t = walked(pass, T, i);
    const int phases = phase_count(e), gives_h = number == phases - 1;
    Step s;
    begin_steps(&s, job, chunk);
    begin_step(&s, job, t, t * B);
    if (i & 1)
        swap_states(&s);
    Phase phase;
    make_phase(&phase, k, number, starts, part, job->parts);
    const ptrdiff_t first = phase.product.first_panel, end = phase.product.end_panel;
    for (ptrdiff_t j = 0; j < fl_min(B * e->R, 2048); j += 16)
        __builtin_prefetch(s.h + j); /* the others' part is in their caches: all its lines at once, not one by one */
    const ptrdiff_t units = e->kind == FL_RNN || phases > 1 ? 4 * VL : VL; /* of a panel of the phase that gives h' */
    for (ptrdiff_t u = first * units; gives_h && u < fl_min(e->R, end * units); u += 16)
        __builtin_prefetch(s.h_new + u, 1); /* others have read the first row: they give it up while there is time */
    const int copied = s.c != pass->c, of_c = copied && number == 0;
    s.c += copied ? part * fl_copy_of_c(B, e->H) : 0;
    if (of_c && i == 0)
        memcpy(s.c, pass->c, (size_t)(B * e->H) * sizeof *s.c);
    run_phase(&phase, &s, B, in, (i + job->turn) & 1);
    if (of_c && i == T - 1)
        copy_columns(pass->c, s.c, B, e->H, first * VL, end * VL);
}

static void forward_team(void *arg, int index, int piece, int worker) {
    (void)worker;
    const fl_forward_job *job = arg;
    const fl_chunk *chunk = &job->chunks[piece / job->parts];
    const fl_pass *pass = &job->passes[chunk->direction];
    const fl_block *k = pass->block;
    const ptrdiff_t T = job->rows->T, B = chunk->b1, I = k->spec.I, stretch = team_stretch(k, job->rows);
    const int part = piece % job->parts, hoist = team_hoists(job), phases = phase_count(&k->spec);
    const Starts starts = hoist ? starts_of(k, part, job->parts) : (Starts){0}; /* each member's apart */
    float *const start = scratch_start(chunk, &k->spec) + (hoist ? stretch * B * starts.before + part * FL_APART : 0);

    const ptrdiff_t per_stretch = hoist + stretch * phases;
    const ptrdiff_t i0 = index / per_stretch * stretch, i1 = fl_min(T, i0 + stretch); /* the stretch's steps */
    const ptrdiff_t t0 = earliest(pass, T, i0, i1);
    ptrdiff_t within = index % per_stretch;
    if (hoist && within-- == 0) {
        hoisted_product(k, job->rows->x + t0 * B * I, (i1 - i0) * B, start, &starts, part, job->parts);
        return;
    }
    const ptrdiff_t i = i0 + within / phases, t = walked(pass, T, i);
    const Input in =
        hoist ? (Input){.start = start + (t - t0) * B * starts.width} : input_at(job->rows, I, t * B, t, pass->reverse);
    team_phase(job, chunk, part, i, (int)(within % phases), hoist ? &starts : NULL, &in);
}
