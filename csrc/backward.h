/* backward.h: the cells' derivatives, the walk back through time, and the sums that are the parameters' gradients. Part of
 * kernels.h. */

/* Of a weight gradient: columns packed side by side, vectors of a tile, rows summed at once. */
enum { GRAD_PACK = 16, GRAD_C = 3, GRAD_BLOCK = FL_GRAD_BLOCK };

/* ---------------------------------------------------------------------------------------------------- backward, a step */

/* The rows of one step of one chunk going back; every pointer is at the first of them. */
typedef struct {
    const fl_block *k;
    float *dh, *dc;  /* (n, R), (n, H): of the step's result, then of what it began with */
    const float *dy; /* (n, ldy), or NULL */
    ptrdiff_t ldy;
    float *dh_all; /* (n, R) where a projection wants the sum dh + dy */
    float *gates;  /* (n, ld_gates): the gates, overwritten with their gradients */
    ptrdiff_t ld_gates;
    const float *c, *h;                         /* (n, H), (n, R) tape */
    const float *const *c_prev, *const *h_prev; /* (n) rows */
    float *m;                                   /* (n, H) scratch */
    int alone;                                  /* of one sequence, so that there is one row in every step, */
    int backwards;                              /* whose products then begin, in every second step, with the last k */
} Back;

/* dh + dy of some units of one row. */
INLINE V whole_dh(const Back *s, ptrdiff_t row, ptrdiff_t u, int count) {
    const V dh = V_LOADN(s->dh + row * s->k->spec.R + u, count);
    return s->dy ? V_ADD(dh, V_LOADN(s->dy + row * s->ldy + u, count)) : dh;
}

/* `standard` as in lstm_rows. */
INLINE void lstm_unit_back(const Back *s, ptrdiff_t row, ptrdiff_t u, const int count, const int standard) {
    const fl_spec *e = &s->k->spec;
    const ptrdiff_t H = e->H;
    const float *const peep = standard ? NULL : s->k->peep;
    const fl_act gate = standard ? (fl_act){.id = FL_SIGMOID} : e->act[0];
    const fl_act candidate = standard ? (fl_act){.id = FL_TANH} : e->act[1];
    const fl_act output = standard ? (fl_act){.id = FL_TANH} : e->act[2];
    float *const gates = s->gates + row * s->ld_gates + u, *const at_dc = s->dc + row * H + u;
    const V i = V_LOADN(gates, count), f = V_LOADN(gates + H, count);
    const V g = V_LOADN(gates + 2 * H, count), o = V_LOADN(gates + 3 * H, count);
    const V tc = v_act(output, V_LOADN(s->c + row * H + u, count));
    const V dm = e->projected ? V_LOADN(s->m + row * H + u, count) : whole_dh(s, row, u, count);
    const V d_o = V_MUL(V_MUL(dm, tc), v_dact(gate, o));
    V dc = V_FMA(V_MUL(dm, o), v_dact(output, tc), V_LOADN(at_dc, count));
    if (peep)
        dc = V_FMA(d_o, V_LOADN(peep + 2 * H + u, count), dc);
    const V di = V_MUL(V_MUL(dc, g), v_dact(gate, i));
    const V df = V_MUL(V_MUL(dc, V_LOADN(s->c_prev[row] + u, count)), v_dact(gate, f));
    const V dg = V_MUL(V_MUL(dc, i), v_dact(candidate, g));
    dc = V_MUL(dc, f);
    if (peep) {
        dc = V_FMA(di, V_LOADN(peep + u, count), dc);
        dc = V_FMA(df, V_LOADN(peep + H + u, count), dc);
    }
    V_STOREN(gates, di, count);
    V_STOREN(gates + H, df, count);
    V_STOREN(gates + 2 * H, dg, count);
    V_STOREN(gates + 3 * H, d_o, count);
    V_STOREN(at_dc, dc, count);
}

static void lstm_back(const Back *s, ptrdiff_t n) {
    const ptrdiff_t H = s->k->spec.H;
    const int standard = is_standard(s->k);
    for (ptrdiff_t row = 0; row < n; row++)
        for (ptrdiff_t u = 0; u < H; u += VL) {
            const int count = (int)fl_min(VL, H - u);
            if (!standard)
                lstm_unit_back(s, row, u, count, 0);
            else if (count == VL)
                lstm_unit_back(s, row, u, VL, 1);
            else
                lstm_unit_back(s, row, u, count, 1);
        }
}

/* As known_act, the derivative. */
INLINE V known_dact(const fl_spec *e, int number, const int id, V y, const int standard) {
    return standard ? v_dact((fl_act){.id = id}, y) : v_dact(e->act[number], y);
}

/* dz, dn, the part of dh that passes by the gates; with reset_after also dr and the gradient of n_h in m's place. */
INLINE void gru_rows_back(const Back *s, ptrdiff_t n, const int standard) {
    const fl_spec *e = &s->k->spec;
    const ptrdiff_t H = e->H;
    for (ptrdiff_t row = 0; row < n; row++) {
        float *const gates = s->gates + row * s->ld_gates;
        const float *const h_prev = s->h_prev[row];
        for (ptrdiff_t u = 0; u < H; u += VL) {
            const int count = (int)fl_min(VL, H - u);
            const V r = V_LOADN(gates + u, count), z = V_LOADN(gates + H + u, count);
            const V cand = V_LOADN(gates + 2 * H + u, count), dh = whole_dh(s, row, u, count);
            const V dz =
                V_MUL(V_MUL(dh, V_SUB(V_LOADN(h_prev + u, count), cand)), known_dact(e, 0, FL_SIGMOID, z, standard));
            const V dn = V_MUL(V_MUL(dh, V_SUB(V_SET1(1.0f), z)), known_dact(e, 1, FL_TANH, cand, standard));
            if (e->reset_after) {
                const V m = V_LOADN(gates + 3 * H + u, count);
                V_STOREN(gates + u, V_MUL(V_MUL(dn, m), known_dact(e, 0, FL_SIGMOID, r, standard)), count);
                V_STOREN(gates + 3 * H + u, V_MUL(dn, r), count);
            }
            V_STOREN(gates + H + u, dz, count);
            V_STOREN(gates + 2 * H + u, dn, count);
            V_STOREN(s->dh + row * H + u, V_MUL(dh, z), count);
        }
    }
}

static void gru_back(const Back *s, ptrdiff_t n) {
    if (is_standard(s->k))
        gru_rows_back(s, n, 1);
    else
        gru_rows_back(s, n, 0);
}

/* reset_after = 0: from the gradient of r * h (s->m) to dr, and dh's part that came through it. */
static void gru_reset_back(const Back *s, ptrdiff_t n) {
    const fl_spec *e = &s->k->spec;
    const ptrdiff_t H = e->H;
    for (ptrdiff_t row = 0; row < n; row++) {
        float *const gates = s->gates + row * s->ld_gates;
        for (ptrdiff_t u = 0; u < H; u += VL) {
            const int count = (int)fl_min(VL, H - u);
            const V r = V_LOADN(gates + u, count), drh = V_LOADN(s->m + row * H + u, count);
            const V dr = V_MUL(V_MUL(drh, V_LOADN(s->h_prev[row] + u, count)), v_dact(e->act[0], r));
            float *const dh = s->dh + row * H + u;
            V_STOREN(dh, V_FMA(drh, r, V_LOADN(dh, count)), count);
            V_STOREN(gates + u, dr, count);
        }
    }
}

INLINE void rnn_rows_back(const Back *s, ptrdiff_t n, const int standard) {
    const fl_spec *e = &s->k->spec;
    const ptrdiff_t H = e->H;
    for (ptrdiff_t row = 0; row < n; row++)
        for (ptrdiff_t u = 0; u < H; u += VL) {
            const int count = (int)fl_min(VL, H - u);
            const V h = V_LOADN(s->h + row * H + u, count);
            const V d = V_MUL(whole_dh(s, row, u, count), known_dact(e, 0, FL_TANH, h, standard));
            V_STOREN(s->gates + row * s->ld_gates + u, d, count);
        }
}

static void rnn_back(const Back *s, ptrdiff_t n) {
    if (is_standard(s->k))
        rnn_rows_back(s, n, 1);
    else
        rnn_rows_back(s, n, 0);
}

/* to (n, width), stored or added to, from up to two products with plain panels. */
static void back_product(float *to, ptrdiff_t width, ptrdiff_t n, int add, const float *a, ptrdiff_t lda,
                         const float *wa, ptrdiff_t ka, const float *b, ptrdiff_t ldb, const float *wb, ptrdiff_t kb) {
    Product q = {.a = a, .lda = lda, .wa = wa, .ka = ka, .b = b, .ldb = ldb, .wb = wb, .kb = kb};
    plain_shape(&q, width);
    const Destination d = {to, width, width};
    product(&q, n, add ? &add_plain_epilogue : &store_plain_epilogue, &d);
}

/* acc (2, C vectors) += a w of one row and one panel (K, C, VL), in two halves of k: the C sums alone would wait for one
 * another. From their ends where `backwards`: what the step before read last is still in the first-level cache. */
INLINE void multiply_halves(V *acc, const int C, const float *a, const float *w, ptrdiff_t K, int backwards) {
    const ptrdiff_t half = K / 2, row = C * VL;
    for (ptrdiff_t i = 0; i < half; i++) {
        const ptrdiff_t k = backwards ? half - 1 - i : i;
        const V first = V_SET1(a[k]), second = V_SET1(a[half + k]);
        UNROLL
        for (int v = 0; v < C; v++) {
            acc[v] = V_FMA(first, V_LOAD(w + k * row + v * VL), acc[v]);
            acc[C + v] = V_FMA(second, V_LOAD(w + (half + k) * row + v * VL), acc[C + v]);
        }
    }
    for (int v = 0; v < C && K % 2; v++)
        acc[v] = V_FMA(V_SET1(a[K - 1]), V_LOAD(w + (K - 1) * row + v * VL), acc[v]);
}

/* out (C vectors) = the product of one row with its only panel, from zeros. */
INLINE void lone_panel(const Product *q, const int C, float *out) {
    V acc[2 * 4];
    UNROLL
    for (int v = 0; v < 2 * C; v++)
        acc[v] = V_SET1(0.0f);
    multiply_halves(acc, C, q->a, q->wa, q->ka, q->backwards);
    multiply_halves(acc, C, q->b, q->wb, q->kb, q->backwards);
    UNROLL
    for (int v = 0; v < C; v++)
        V_STORE(out + v * VL, V_ADD(acc[v], acc[C + v]));
}

/* The recurrent product: dh stored, or added to. */
static void recurrent_back(const Back *s, ptrdiff_t n, int add, ptrdiff_t ka, const float *b, const float *wb,
                           ptrdiff_t kb) {
    const fl_block *k = s->k;
    const ptrdiff_t R = k->spec.R, ld = s->ld_gates;
    if (!s->alone || R > 4 * VL) {
        back_product(s->dh, R, n, add, s->gates, ld, k->v_h, ka, b, ld, wb, kb);
        return;
    }
    float out[4 * VL] __attribute__((aligned(64)));
    Product q = {.a = s->gates, .wa = k->v_h, .ka = ka, .b = b, .wb = wb, .kb = kb, .backwards = s->backwards};
    plain_shape(&q, R);
    switch (q.shape) {
    case 1: lone_panel(&q, 1, out); break;
    case 2: lone_panel(&q, 2, out); break;
    case 3: lone_panel(&q, 3, out); break;
    default: lone_panel(&q, 4, out);
    }
    const Destination d = {s->dh, R, R};
    for_plain(&d, out, 0, 0, 1, add);
}

static void step_back(const Back *s, ptrdiff_t n) {
    const fl_block *k = s->k;
    const fl_spec *e = &k->spec;
    const ptrdiff_t H = e->H, R = e->R, ld = s->ld_gates;
    switch (e->kind) {
    case FL_LSTM:
        if (e->projected) {
            for (ptrdiff_t row = 0; row < n; row++)
                for (ptrdiff_t u = 0; u < R; u += VL) {
                    const int count = (int)fl_min(VL, R - u);
                    V_STOREN(s->dh_all + row * R + u, whole_dh(s, row, u, count), count);
                }
            back_product(s->m, H, n, 0, s->dh_all, R, k->v_r, R, NULL, 0, NULL, 0);
        }
        lstm_back(s, n);
        recurrent_back(s, n, 0, 4 * H, NULL, NULL, 0);
        break;
    case FL_GRU:
        gru_back(s, n);
        if (!e->reset_after) {
            back_product(s->m, H, n, 0, s->gates + 2 * H, ld, k->v_n, H, NULL, 0, NULL, 0);
            gru_reset_back(s, n);
        }
        recurrent_back(s, n, 1, 2 * H, s->gates + 3 * H, k->v_n, e->reset_after ? H : 0);
        break;
    default: rnn_back(s, n); recurrent_back(s, n, 0, H, NULL, NULL, 0);
    }
}

static ptrdiff_t backward_scratch(const fl_spec *s, ptrdiff_t B) { return fl_round16(B * s->H); }

/* dx of rows whose gate gradients are there. */
static void input_gradient(const fl_backward_job *job, ptrdiff_t row, ptrdiff_t n) {
    const fl_block *k = job->pass->block;
    const ptrdiff_t I = k->spec.I, ld = job->ld_gates;
    back_product(job->dx + row * I, I, n, 1, job->dgates + row * ld, ld, k->v_x, fl_gate_count(&k->spec) * k->spec.H,
                 NULL, 0, NULL, 0);
}

/* Whether chunks make dx of their own rows, step by step, while they walk: another thread would have to fetch the gate
 * gradients first. Not for so few rows that the input's panels would be read for little. */
static int walks_with_dx(const fl_backward_job *job) {
    return job->dx && job->chunk_count > 1 && job->rows->batch_sizes[0] >= 2 * ROWS * job->chunk_count;
}

/* One chunk back through one stretch of time. */
static void backward_chunk(const fl_backward_job *job, const fl_chunk *chunk, const fl_stretch *stretch) {
    const fl_pass *pass = job->pass;
    const fl_spec *e = &pass->block->spec;
    const ptrdiff_t b0 = chunk->b0, B = chunk->b1 - b0, H = e->H, R = e->R;
    const int64_t *sizes = job->rows->batch_sizes;
    const int forth = pass->reverse; /* the walk goes against the direction's own */
    ptrdiff_t first = forth ? stretch->row0 : stretch->row1 - sizes[stretch->t1 - 1];
    for (ptrdiff_t i = stretch->t0; i < stretch->t1; i++) {
        const ptrdiff_t t = forth ? i : stretch->t0 + stretch->t1 - 1 - i, n = fl_min(B, sizes[t] - b0),
                        row = first + b0;
        if (n > 0) {
            const Back s = {.k = pass->block,
                            .dh = chunk->h,
                            .dc = chunk->c,
                            .dy = job->dy ? job->dy + row * job->ldy : NULL,
                            .ldy = job->ldy,
                            .dh_all = job->dh_all ? job->dh_all + row * R : NULL,
                            .gates = job->dgates + row * job->ld_gates,
                            .ld_gates = job->ld_gates,
                            .c = pass->tape_c ? pass->tape_c + row * H : NULL,
                            .h = pass->tape_h + row * R,
                            .c_prev = job->c_prev ? job->c_prev + row : NULL,
                            .h_prev = job->h_prev + row,
                            .m = chunk->scratch,
                            .alone = sizes[0] == 1,
                            .backwards = i & 1};
            step_back(&s, n);
            if (walks_with_dx(job))
                input_gradient(job, row, n);
        }
        first += to_next(job->rows, t, !forth);
    }
}

/* ---------------------------------------------------------------------------------------- gradients of the parameters */

/* Rows of an (N, width) matrix: one after another, or wherever they lie. */
typedef struct {
    const float *base;
    ptrdiff_t ld;
    const float *const *rows; /* (N), or NULL */
} Source;

INLINE const float *source_row(const Source *s, ptrdiff_t n) { return s->rows ? s->rows[n] : s->base + n * s->ld; }

/* out (GRAD_ROWS, C VL) += sum over n of a (n, GRAD_PACK) x b (n, C VL), GRAD_ROWS columns of a. */
INLINE void gradient_tile(const int C, const float *a, const float *b, ptrdiff_t n, float *out, ptrdiff_t ld, int rows,
                          ptrdiff_t columns) {
    V acc[GRAD_ROWS * GRAD_C];
    UNROLL
    for (int i = 0; i < GRAD_ROWS * C; i++)
        acc[i] = V_SET1(0.0f);
    for (int m = 0; m < rows; m++) /* wanted at the end; it comes while the sums are made */
        for (ptrdiff_t j = 0; j < columns; j += 16)
            __builtin_prefetch(out + m * ld + j, 1);
    for (ptrdiff_t k = 0; k < n; k++, a += GRAD_PACK, b += C * VL) {
        V bv[GRAD_C];
        UNROLL
        for (int v = 0; v < C; v++)
            bv[v] = V_LOAD(b + v * VL);
        UNROLL
        for (int m = 0; m < GRAD_ROWS; m++) {
            const V am = V_SET1(a[m]);
            UNROLL
            for (int v = 0; v < C; v++)
                acc[m * C + v] = V_FMA(am, bv[v], acc[m * C + v]);
        }
    }
    UNROLL
    for (int m = 0; m < GRAD_ROWS; m++)
        UNROLL
    for (int v = 0; v < C; v++) {
        const int count = (int)fl_min(VL, columns - v * VL);
        float *const to = out + m * ld + v * VL;
        if (m < rows && count > 0)
            V_STOREN(to, V_ADD(V_LOADN(to, count), acc[m * C + v]), count);
    }
}

typedef void gradient_fn(const float *a, const float *b, ptrdiff_t n, float *out, ptrdiff_t ld, int rows,
                         ptrdiff_t columns);
#define GRADIENT(C)                                                                                                    \
    static void gradient_##C(const float *a, const float *b, ptrdiff_t n, float *out, ptrdiff_t ld, int rows,          \
                             ptrdiff_t columns) {                                                                      \
        gradient_tile(C, a, b, n, out, ld, rows, columns);                                                             \
    }
GRADIENT(1)
GRADIENT(2) GRADIENT(3) static gradient_fn *const gradients[GRAD_C + 1] = {NULL, gradient_1, gradient_2, gradient_3};

/* What is summed over rows n0..n1 and outputs j0..j1 of d (N, ld): out (outputs, width) += d' source for up to two
 * sources, bias (outputs) += column sums for up to two biases. Rows are summed in blocks of GRAD_BLOCK, whatever the
 * share: the same bits for every number of threads. */
typedef struct {
    const float *d;
    ptrdiff_t ld, j0, j1;
    int count;
    struct {
        float *out;
        ptrdiff_t width;
        Source source;
    } target[2];
    float *bias[2];
} Sums;

/* Floats of workspace: columns of d, block by block, and a tile's width of a source. */
static ptrdiff_t gradient_scratch(const fl_spec *s) {
    return GRAD_BLOCK * (ceil_div(fl_max(4 * s->H, s->R), GRAD_PACK) * GRAD_PACK + GRAD_C * VL);
}

/* n rows of d from `row`, GRAD_PACK columns after another: (columns / GRAD_PACK, n, GRAD_PACK); their sums to the
 * biases. */
static void pack_columns(const Sums *s, ptrdiff_t row, ptrdiff_t n, float *to) {
    for (ptrdiff_t j = s->j0; j < s->j1; j += GRAD_PACK) {
        V sums[GRAD_PACK / VL];
        for (int v = 0; v < GRAD_PACK / VL; v++)
            sums[v] = V_SET1(0.0f);
        const float *from = s->d + row * s->ld + j;
        for (ptrdiff_t i = 0; i < n; i++, from += s->ld, to += GRAD_PACK)
            UNROLL
        for (int v = 0; v < GRAD_PACK / VL; v++) {
            const ptrdiff_t left = s->j1 - j - v * VL;
            const V x = left >= VL ? V_LOAD(from + v * VL)
                        : left > 0 ? V_LOADN(from + v * VL, (int)left)
                                   : V_SET1(0.0f);
            sums[v] = V_ADD(sums[v], x);
            V_STORE(to + v * VL, x);
        }
        for (int b = 0; b < 2; b++)
            for (int v = 0; v < GRAD_PACK / VL && s->bias[b]; v++) {
                const int count = (int)fl_min(VL, s->j1 - j - v * VL);
                float *const bias = s->bias[b] + j + v * VL;
                if (count > 0)
                    V_STOREN(bias, V_ADD(V_LOADN(bias, count), sums[v]), count);
            }
    }
}

static void sum_rows(const Sums *s, ptrdiff_t n0, ptrdiff_t n1, float *work) {
    const ptrdiff_t tile_width = GRAD_C * VL;
    float *const packed_b = work, *const packed_a = work + GRAD_BLOCK * tile_width;
    for (ptrdiff_t row = n0; row < n1; row += GRAD_BLOCK) {
        const ptrdiff_t n = fl_min(GRAD_BLOCK, n1 - row);
        pack_columns(s, row, n, packed_a);
        for (int i = 0; i < s->count; i++) {
            const ptrdiff_t width = s->target[i].width;
            for (ptrdiff_t k = 0; k < width; k += tile_width) {
                const ptrdiff_t columns = fl_min(tile_width, width - k), C = ceil_div(columns, VL);
                for (ptrdiff_t r = 0; r < n; r++) {
                    const float *from = source_row(&s->target[i].source, row + r) + k;
                    for (ptrdiff_t v = 0; v < columns; v += VL)
                        V_STORE(packed_b + r * C * VL + v, V_LOADN(from + v, (int)fl_min(VL, columns - v)));
                }
                const float *a = packed_a;
                for (ptrdiff_t j = s->j0; j < s->j1; j += GRAD_PACK, a += n * GRAD_PACK)
                    for (ptrdiff_t r = 0; r < GRAD_PACK && j + r < s->j1; r += GRAD_ROWS)
                        gradients[C](a + r, packed_b, n, s->target[i].out + (j + r) * width + k, width,
                                     (int)fl_min(GRAD_ROWS, s->j1 - j - r), columns);
            }
        }
    }
}

/* out (count) += sum over rows of d (N, ld) * factor (N, .) from column `at` on; row by row. */
static void product_sums(float *out, const float *d, ptrdiff_t ld, ptrdiff_t count, const Source *factor, ptrdiff_t at,
                         ptrdiff_t n0, ptrdiff_t n1) {
    for (ptrdiff_t j = 0; j < count; j += VL) {
        const int c = (int)fl_min(VL, count - j);
        V sum = V_SET1(0.0f);
        for (ptrdiff_t n = n0; n < n1; n++)
            sum = V_FMA(V_LOADN(d + n * ld + j, c), V_LOADN(source_row(factor, n) + at + j, c), sum);
        V_STOREN(out + j, V_ADD(V_LOADN(out + j, c), sum), c);
    }
}

/* Rows of the input matrix's gradient, one per token seen: (rows, GH), columns j0..j1. */
static void token_gradient(float *out, ptrdiff_t GH, const float *d, ptrdiff_t ld, ptrdiff_t j0, ptrdiff_t j1,
                           const int64_t *ids, ptrdiff_t n0, ptrdiff_t n1) {
    for (ptrdiff_t n = n0; n < n1; n++)
        for (ptrdiff_t j = j0; j < j1; j += VL) {
            const int c = (int)fl_min(VL, j1 - j);
            float *const to = out + ids[n] * GH + j;
            V_STOREN(to, V_ADD(V_LOADN(to, c), V_LOADN(d + n * ld + j, c)), c);
        }
}

/* Share `piece` of every parameter's gradient (of its outputs) and of dx (of the rows), for packed rows n0..n1. */
static void gradients_of_rows(const fl_backward_job *job, int piece, float *work, ptrdiff_t n0, ptrdiff_t n1) {
    const fl_pass *pass = job->pass;
    const fl_spec *e = &pass->block->spec;
    const fl_grads *g = job->grads;
    const ptrdiff_t H = e->H, R = e->R, I = e->I, ld = job->ld_gates, GH = fl_gate_count(e) * H;
    const float *const d = job->dgates;
    const Source x = {job->rows->x, I, NULL}, h_prev = {NULL, 0, job->h_prev}, c_prev = {NULL, 0, job->c_prev};
    const Source rh = {pass->gates + 3 * H, ld, NULL}, m = {pass->tape_m, H, NULL}, c = {pass->tape_c, H, NULL};
    const int gru = e->kind == FL_GRU;
    const ptrdiff_t both = gru ? 2 * H : GH; /* gates whose input and recurrent product have the same gradient */
    ptrdiff_t j0, j1;

    share(both, GRAD_PACK, piece, job->pieces, &j0, &j1);
    Sums s = {.d = d, .ld = ld, .j0 = j0, .j1 = j1, .bias = {g->bias_ih, g->bias_hh}};
    s.target[s.count].out = g->weight_hh, s.target[s.count].width = R, s.target[s.count++].source = h_prev;
    if (x.base)
        s.target[s.count].out = g->weight_ih, s.target[s.count].width = I, s.target[s.count++].source = x;
    sum_rows(&s, n0, n1, work);

    if (gru) { /* the candidate: its recurrent product has a gradient (reset_after) or an operand of its own */
        float *const weight_hh = g->weight_hh + 2 * H * R, *const weight_ih = g->weight_ih + 2 * H * I;
        share(H, GRAD_PACK, piece, job->pieces, &j0, &j1);
        Sums of_x = {.d = d + 2 * H, .ld = ld, .j0 = j0, .j1 = j1};
        of_x.bias[0] = g->bias_ih ? g->bias_ih + 2 * H : NULL;
        if (x.base)
            of_x.target[of_x.count].out = weight_ih, of_x.target[of_x.count].width = I,
            of_x.target[of_x.count++].source = x;
        Sums of_h = {.d = d + 3 * H, .ld = ld, .j0 = j0, .j1 = j1};
        Sums *const recurrent = e->reset_after ? &of_h : &of_x;
        recurrent->bias[1] = g->bias_hh ? g->bias_hh + 2 * H : NULL;
        recurrent->target[recurrent->count].out = weight_hh;
        recurrent->target[recurrent->count].width = R;
        recurrent->target[recurrent->count++].source = e->reset_after ? h_prev : rh;
        sum_rows(&of_x, n0, n1, work);
        if (e->reset_after)
            sum_rows(&of_h, n0, n1, work);
    }
    if (job->rows->ids) {
        share(GH, GRAD_PACK, piece, job->pieces, &j0, &j1);
        token_gradient(g->weight_ih, GH, d, ld, j0, j1, job->rows->ids, n0, n1);
    }
    if (e->projected) {
        share(R, GRAD_PACK, piece, job->pieces, &j0, &j1);
        const Sums r = {.d = job->dh_all, .ld = R, .j0 = j0, .j1 = j1, .count = 1, .target = {{g->weight_hr, H, m}}};
        sum_rows(&r, n0, n1, work);
    }
    if (e->peepholes) {
        share(H, GRAD_PACK, piece, job->pieces, &j0, &j1);
        product_sums(g->weight_peep + j0, d + j0, ld, j1 - j0, &c_prev, j0, n0, n1);
        product_sums(g->weight_peep + H + j0, d + H + j0, ld, j1 - j0, &c_prev, j0, n0, n1);
        product_sums(g->weight_peep + 2 * H + j0, d + 3 * H + j0, ld, j1 - j0, &c, j0, n0, n1);
    }
    if (job->dx && !walks_with_dx(job)) {
        share(n1 - n0, ROWS, piece, job->pieces, &j0, &j1);
        if (j1 > j0)
            input_gradient(job, n0 + j0, j1 - j0);
    }
}

/* Backward goes stretch by stretch of time: first the chunks walk back through it, then the gradients of its rows are
 * summed while these are still in cache. Even steps of fl_run walk, odd ones sum. */
static void backward(void *arg, int index, int piece, int worker) {
    const fl_backward_job *job = arg;
    const fl_stretch *stretch = &job->stretches[index / 2];
    if (index % 2)
        gradients_of_rows(job, piece, job->workspace + worker * job->workspace_size, stretch->row0, stretch->row1);
    else if (piece < job->chunk_count)
        backward_chunk(job, &job->chunks[piece], stretch);
}
