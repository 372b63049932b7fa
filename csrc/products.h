/* products.h: tiles, products and packing: all multiplication but that of weight gradients. Part of kernels.h, whose
 * contract, panels and bits are meant here. */

/* ------------------------------------------------------------------------------------------------------------- tiles */

/* out = start + a wa + b wb for the rows of one tile and one panel. */
typedef struct {
    const float *start; /* (rows, C VL); row stride 0 where all rows start alike */
    ptrdiff_t ld_start;
    const float *a, *wa; /* (rows, ka), (ka, C, VL) */
    ptrdiff_t lda, ka;
    const float *b, *wb; /* (rows, kb), (kb, C, VL) */
    ptrdiff_t ldb, kb;
    float *out; /* (rows, C VL) */
    ptrdiff_t ld_out;
} Tile;

/* Acc (M rows, CA vectors) += a w, w having C vectors of which the third goes to accumulator `third`. M, C, CA and
 * third are constants wherever this is inlined, so the accumulators stay in registers. */
INLINE void multiply(V *acc, const int M, const int CA, const int C, const int third, const float *a, ptrdiff_t lda,
                     const float *w, ptrdiff_t K) {
    for (ptrdiff_t k = 0; k < K; k++, w += C * VL) {
        UNROLL
        for (int v = 0; v < C; v++) {
            const V wv = V_LOAD(w + v * VL);
            UNROLL
            for (int m = 0; m < M; m++) {
                V *const s = &acc[m * CA + (v == 2 ? third : v)];
                *s = V_FMA(V_SET1(a[m * lda + k]), wv, *s);
            }
        }
    }
}

INLINE void tile_rows(const Tile *t, const int M, const int CA, const int C, const int third) {
    V acc[ROWS * 4];
    UNROLL
    for (int m = 0; m < M; m++)
        UNROLL
    for (int v = 0; v < CA; v++)
        acc[m * CA + v] = V_LOAD(t->start + m * t->ld_start + v * VL);
    multiply(acc, M, CA, C, 2, t->a, t->lda, t->wa, t->ka);
    multiply(acc, M, CA, C, third, t->b, t->ldb, t->wb, t->kb);
    UNROLL
    for (int m = 0; m < M; m++)
        UNROLL
    for (int v = 0; v < CA; v++)
        V_STORE(t->out + m * t->ld_out + v * VL, acc[m * CA + v]);
}

/* The shapes of panels: C vectors for 1 to 4, and GRU's, whose n_x and n_h are kept apart in four accumulators. */
enum { SHAPE_GRU = 0, SHAPES = 5 };
static const int accumulators[SHAPES] = {4, 1, 2, 3, 4}, vectors[SHAPES] = {3, 1, 2, 3, 4};

typedef void tile_fn(const Tile *t);

#define TILE(M, NAME, CA, C, THIRD)                                                                                    \
    static void tile_##NAME##_##M(const Tile *t) { tile_rows(t, M, CA, C, THIRD); }
#define TILES_OF_ROWS(M)                                                                                               \
    TILE(M, gru, 4, 3, 3) TILE(M, c1, 1, 1, 2) TILE(M, c2, 2, 2, 2) TILE(M, c3, 3, 3, 2) TILE(M, c4, 4, 4, 2)
/* clang-format off */ /* it knows no macro that stands for a whole definition */
TILES_OF_ROWS(1) TILES_OF_ROWS(2) TILES_OF_ROWS(3)
#define ENTRY(M) {tile_gru_##M, tile_c1_##M, tile_c2_##M, tile_c3_##M, tile_c4_##M}
#if ROWS == 6
TILES_OF_ROWS(4) TILES_OF_ROWS(5) TILES_OF_ROWS(6)
static tile_fn *const tiles[ROWS + 1][SHAPES] = {{0}, ENTRY(1), ENTRY(2), ENTRY(3), ENTRY(4), ENTRY(5), ENTRY(6)};
#else
static tile_fn *const tiles[ROWS + 1][SHAPES] = {{0}, ENTRY(1), ENTRY(2), ENTRY(3)};
#endif
/* clang-format on */

static const float zeros[2 * 4 * VL] __attribute__((aligned(64))) = {0}; /* start values of a pair of panels */

/* ---------------------------------------------------------------------------------------------------------- products */

/* start + a wa + b wb for n rows and all panels; tile by tile it is stored, or received by an epilogue. */
typedef struct {
    int shape;              /* SHAPE_GRU, or vectors to a panel; with 4 the last panel may be narrower: */
    ptrdiff_t last_vectors; /* its vectors; elsewhere `shape` */
    ptrdiff_t panels;
    const float *start; /* NULL: zeros; (n, panels, CA, VL), or (panels, CA, VL) where ld_start is 0 */
    ptrdiff_t ld_start;
    const int64_t *ids;      /* (n) token ids: a's rows are one-hot; start is the bias and wa holds a row per id */
    const int64_t *next_ids; /* (n) the next step's, which begins with the panel where this one ends; or the same */
    const float *a, *wa;
    ptrdiff_t lda, ka;
    const float *b, *wb;
    ptrdiff_t ldb, kb;
    float *out; /* (n, panels, CA, VL), or NULL where there is an epilogue */
    ptrdiff_t ld_out;
    ptrdiff_t first_panel, end_panel; /* of `panels`, those wanted */
    int backwards;                    /* walk them from the last: what the step before read last is still near */
} Product;

/* The shape of panel p. */
INLINE int panel_shape(const Product *q, ptrdiff_t p) {
    return p == q->panels - 1 && q->shape ? (int)q->last_vectors : q->shape;
}

/* Panels of full width. */
INLINE ptrdiff_t full_panels(const Product *q) { return q->panels - (panel_shape(q, q->panels - 1) != q->shape); }

typedef void epilogue_fn(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows);

/* Start values of a tile of token rows: bias + the stored row, as one-hot rows would give. */
INLINE void token_rows(const Product *q, const int CA, const int C, ptrdiff_t panel, ptrdiff_t row, int rows,
                       float *into) {
    const float *const bias = q->start + panel * accumulators[q->shape] * VL;
    const float *const wa = q->wa + panel * q->ka * vectors[q->shape] * VL;
    for (int m = 0; m < rows; m++, into += CA * VL)
        UNROLL
    for (int v = 0; v < CA; v++) {
        const V start = V_LOAD(bias + v * VL);
        V_STORE(into + v * VL, v < C ? V_ADD(start, V_LOAD(wa + (q->ids[row + m] * C + v) * VL)) : start);
    }
}
static const float *token_start(const Product *q, int shape, ptrdiff_t panel, ptrdiff_t row, int rows, float *into) {
    if (shape == 4)
        token_rows(q, 4, 4, panel, row, rows, into);
    else
        token_rows(q, accumulators[shape], vectors[shape], panel, row, rows, into);
    return into;
}

/* A token's row lies in pieces, one to a panel and far apart. Asks for those that the same rows of a tile want `step`
 * panels on, be it in the next step. Between a product and its epilogue: the weights need not wait behind them there.
 * (A function that is not inlined would be dropped by gcc, as one without effect.) */
INLINE void fetch_token_rows(const Product *q, ptrdiff_t panel, int step, ptrdiff_t row, int rows) {
    const ptrdiff_t on = panel + (q->backwards ? -step : step);
    const int last = on < q->first_panel || on >= q->end_panel;
    const int64_t *const ids = (last ? q->next_ids : q->ids) + row;
    const ptrdiff_t wanted = last ? panel : on, piece = vectors[panel_shape(q, wanted)] * VL;
    const float *const wa = q->wa + wanted * q->ka * vectors[q->shape] * VL;
    for (int m = 0; m < rows; m++)
        for (ptrdiff_t j = 0; j < piece; j += 16)
            __builtin_prefetch(wa + ids[m] * piece + j);
}

/* All panels from `from` to `end`, n rows in tiles; no epilogue where q->out takes them. */
static void tile_product(const Product *q, ptrdiff_t from, ptrdiff_t end, ptrdiff_t n, epilogue_fn *epilogue,
                         const void *context) {
    float tile[ROWS * 4 * VL] __attribute__((aligned(64))), start[ROWS * 4 * VL] __attribute__((aligned(64)));
    const ptrdiff_t wa_panel = q->ka * vectors[q->shape] * VL, wb_panel = q->kb * vectors[q->shape] * VL;
    const ptrdiff_t panel = accumulators[q->shape] * VL; /* of start values and of results */
    /* An operand that a product does not have is of depth 0; its rows still need an address. */
    const float *const a = q->a ? q->a : zeros, *const b = q->b ? q->b : zeros;
    const ptrdiff_t lda = q->a ? q->lda : 0, ldb = q->b ? q->ldb : 0;
    for (ptrdiff_t i = from; i < end; i++) {
        const ptrdiff_t p = q->backwards ? from + end - 1 - i : i;
        const int shape = panel_shape(q, p);
        Tile t = {.lda = lda,
                  .ka = q->ids ? 0 : q->ka,
                  .wa = q->wa ? q->wa + p * wa_panel : zeros,
                  .ldb = ldb,
                  .kb = q->kb,
                  .wb = q->wb ? q->wb + p * wb_panel : zeros,
                  .out = tile,
                  .ld_out = q->out ? q->ld_out : accumulators[shape] * VL};
        for (ptrdiff_t r = 0, left = ceil_div(n, ROWS); r < n; left--) {
            const int rows = (int)ceil_div(n - r, left); /* about equally high tiles: low ones wait for the weights */
            t.a = a + r * lda, t.b = b + r * ldb;
            if (q->out)
                t.out = q->out + r * q->ld_out + p * panel;
            t.start = q->start ? q->start + r * q->ld_start + p * panel : zeros, t.ld_start = q->ld_start;
            if (q->ids)
                t.start = token_start(q, shape, p, r, rows, start), t.ld_start = accumulators[shape] * VL;
            tiles[rows][shape](&t);
            if (q->ids)
                fetch_token_rows(q, p, 1, r, rows);
            if (epilogue)
                epilogue(context, tile, p, r, rows);
            r += rows;
        }
    }
}

/* acc (P panels, CA vectors) += a w for one row; w (P, K, C, VL). With `ahead`, weights are asked for 1 KiB ahead. */
INLINE void multiply_row(V *acc, const int P, const int CA, const int C, const int third, const float *a,
                         const float *w, ptrdiff_t K, int ahead) {
    const ptrdiff_t next = K * C * VL;
    for (ptrdiff_t k = 0; k < K; k++, w += C * VL) {
        const V av = V_SET1(a[k]);
        if (ahead) {
            UNROLL
            for (int v = 0; v < P * C * VL; v += 16)
                __builtin_prefetch(w + 256 + v / (C * VL) * next + v % (C * VL));
        }
        UNROLL
        for (int v = 0; v < P * C; v++) {
            V *const s = &acc[v / C * CA + (v % C == 2 ? third : v % C)];
            *s = V_FMA(av, V_LOAD(w + v / C * next + v % C * VL), *s);
        }
    }
}

/* One row of panel p, or of the pair that begins with it. */
INLINE void row_tile(const Product *q, const int P, const int CA, const int C, const int third, ptrdiff_t p, int ahead,
                     epilogue_fn *epilogue, const void *context) {
    float out[2 * 4 * VL] __attribute__((aligned(64)));
    const float *start = q->start ? q->start + p * CA * VL : zeros;
    if (q->ids) {
        start = out;
        for (int i = 0; i < P; i++)
            token_start(q, q->shape, p + i, 0, 1, out + i * CA * VL);
    }
    V acc[2 * 4];
    UNROLL
    for (int v = 0; v < P * CA; v++)
        acc[v] = V_LOAD(start + v * VL);
    if (q->a)
        multiply_row(acc, P, CA, C, 2, q->a, q->wa + p * q->ka * C * VL, q->ka, ahead);
    if (q->b)
        multiply_row(acc, P, CA, C, third, q->b, q->wb + p * q->kb * C * VL, q->kb, ahead);
    UNROLL
    for (int v = 0; v < P * CA; v++)
        V_STORE(out + v * VL, acc[v]);
    for (int i = 0; i < P && q->ids; i++)
        fetch_token_rows(q, p + i, P, 0, 1);
    epilogue(context, out, p, 0, 1);
    if (P == 2)
        epilogue(context, out + CA * VL, p + 1, 0, 1);
}

/* Whether a single row takes two panels at once: its 4 accumulators wait for one another. With vectors of 64 bytes they
 * nevertheless take as much as the second-level cache gives, and from there one stream comes quicker than two; the step
 * after finds a panel in the first-level cache, but no pair. (Beyond that cache two streams are quicker again.) */
static int in_pairs(ptrdiff_t panel) { return VL < 16 || panel < 24 * 1024 || panel > 96 * 1024; }

/* Whether a single row asks for its weights, so many bytes, ahead: those of a step that comes alone (input and state at
 * once) and lie in the third-level cache. Hardware may fetch them as early, or, by what it has learnt, a fifth slower.
 * (From main memory they come later by it.) */
static int asks_ahead(const Product *q, ptrdiff_t bytes) {
    return q->a && q->b && bytes >= 1 << 20 && bytes <= 14 << 20;
}

/* Panels of full width from `from` to `end` for one row. */
INLINE void row_product(const Product *q, const int CA, const int C, const int third, ptrdiff_t from, ptrdiff_t end,
                        epilogue_fn *epilogue, const void *context) {
    const ptrdiff_t panel = (q->ids ? q->kb : q->ka + q->kb) * C * VL * (ptrdiff_t)sizeof(float);
    const int pairs = in_pairs(panel), ahead = asks_ahead(q, (end - from) * panel);
    while (from < end) {
        const int pair = pairs && end - from > 1;
        const ptrdiff_t p = q->backwards ? end - 1 - pair : from;
        if (pair)
            row_tile(q, 2, CA, C, third, p, ahead, epilogue, context);
        else
            row_tile(q, 1, CA, C, third, p, ahead, epilogue, context);
        if (q->backwards)
            end = p;
        else
            from = p + 1 + pair;
    }
}

/* What completes a product: tile by tile, or, for one row, within a walk of its own through the full panels, where it is
 * inlined and the sums stay in registers. */
typedef void row_fn(const Product *q, ptrdiff_t from, ptrdiff_t end, const void *context);
typedef struct {
    epilogue_fn *tile;
    row_fn *row;
} Epilogue;

#define EPILOGUE(NAME, ROW, CA, C, THIRD)                                                                              \
    static void NAME##_tile(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {        \
        NAME(context, tile, panel, row, rows);                                                                         \
    }                                                                                                                  \
    static void NAME##_row(const Product *q, ptrdiff_t from, ptrdiff_t end, const void *context) {                     \
        row_product(q, CA, C, THIRD, from, end, ROW, context);                                                         \
    }                                                                                                                  \
    static const Epilogue NAME##_epilogue = {NAME##_tile, NAME##_row};

INLINE void product(const Product *q, ptrdiff_t n, const Epilogue *epilogue, const void *context) {
    const ptrdiff_t from = q->first_panel, end = q->end_panel;
    if (n > 1 || (q->shape != 4 && q->shape != SHAPE_GRU)) {
        tile_product(q, from, end, n, epilogue->tile, context);
        return;
    }
    const ptrdiff_t full = fl_max(from, fl_min(end, full_panels(q))); /* a narrow last panel is a tile of its own */
    if (q->backwards)
        tile_product(q, full, end, 1, epilogue->tile, context);
    epilogue->row(q, from, full, context);
    if (!q->backwards)
        tile_product(q, full, end, 1, epilogue->tile, context);
}

static void plain_shape(Product *q, ptrdiff_t outputs) {
    const ptrdiff_t v = ceil_div(outputs, VL);
    q->panels = ceil_div(v, 4);
    q->last_vectors = v - 4 * (q->panels - 1);
    q->shape = q->panels == 1 ? (int)q->last_vectors : 4;
    q->end_panel = q->panels;
}

/* Rows of a plain product's result: stored, or added. */
typedef struct {
    float *rows; /* (n, width) */
    ptrdiff_t ld, width;
} Destination;

INLINE void for_plain(const Destination *d, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows,
                      const int add) {
    const ptrdiff_t first = panel * 4 * VL, count = fl_min(4 * VL, d->width - first);
    const ptrdiff_t ld = ceil_div(count, VL) * VL;
    for (int m = 0; m < rows; m++) {
        float *to = d->rows + (row + m) * d->ld + first;
        for (ptrdiff_t u = 0; u < count; u += VL) {
            const int k = (int)fl_min(VL, count - u);
            V v = V_LOAD(tile + m * ld + u);
            if (add)
                v = V_ADD(V_LOADN(to + u, k), v);
            V_STOREN(to + u, v, k);
        }
    }
}
INLINE void store_plain(const void *d, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    for_plain(d, tile, panel, row, rows, 0);
}
INLINE void add_plain(const void *d, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    for_plain(d, tile, panel, row, rows, 1);
}
EPILOGUE(store_plain, store_plain, 4, 4, 2)
EPILOGUE(add_plain, add_plain, 4, 4, 2)

/* ----------------------------------------------------------------------------------------------------------- packing */

/* One panel of `pieces` pieces of `width` lanes, whose first outputs lie at from[v] (count[v] of them; the rest is zero),
 * outputs `by_output` apart, depth `by_depth` apart. Returns the end. Output by output over a stretch of depth, so that
 * reading runs along the rows and what is written meanwhile (at most 16 KiB) stays in the first-level cache. */
static float *pack_panel(float *to, int pieces, int width, ptrdiff_t K, const float *const *from,
                         const ptrdiff_t *count, ptrdiff_t by_output, ptrdiff_t by_depth) {
    enum { STRETCH = 64 };
    const ptrdiff_t row = pieces * width;
    for (ptrdiff_t k0 = 0; k0 < K; k0 += STRETCH) {
        const ptrdiff_t k1 = fl_min(K, k0 + STRETCH);
        for (int v = 0; v < pieces; v++) {
            const ptrdiff_t lanes = fl_min(width, count[v]);
            if (by_output == 1 && width == VL) {
                for (ptrdiff_t k = k0; k < k1; k++)
                    V_STORE(to + k * row + v * VL, V_LOADN(from[v] + k * by_depth, (int)lanes));
                continue;
            }
            for (ptrdiff_t lane = 0; lane < width; lane++) {
                const float *const source = from[v] + lane * by_output;
                float *const target = to + v * width + lane;
                for (ptrdiff_t k = k0; k < k1; k++)
                    target[k * row] = lane < lanes ? source[k] : 0.0f; /* by_depth is 1 here */
            }
        }
    }
    return to + K * row;
}

/* Lanes of each gate in a panel of `units` units: where these are few, an LSTM's four gates share two vectors, or one. */
static int gate_lanes(int gates, ptrdiff_t units) {
    int lanes = VL;
    while (gates == 4 && lanes % 2 == 0 && 2 * lanes >= VL && lanes / 2 >= units)
        lanes /= 2;
    return lanes;
}

/* Gate panels of w (G*H, K): gates first..first+C-1 of `blocks` vectors of units, side by side. */
static float *pack_gates(float *to, const float *w, ptrdiff_t H, ptrdiff_t K, int first, int C, int blocks) {
    for (ptrdiff_t u = 0; u < H; u += blocks * VL) {
        const float *from[4];
        ptrdiff_t count[4];
        const int pieces = C * (int)fl_min(blocks, ceil_div(H - u, VL));
        for (int v = 0; v < pieces; v++) {
            const ptrdiff_t unit = u + v / C * VL;
            from[v] = w + ((first + v % C) * H + unit) * K;
            count[v] = H - unit;
        }
        to = pack_panel(to, pieces, gate_lanes(C, H - u), K, from, count, K, 1);
    }
    return to;
}

/* Plain panels. */
static float *pack_plain(float *to, const float *w, ptrdiff_t outputs, ptrdiff_t K, ptrdiff_t by_output,
                         ptrdiff_t by_depth) {
    for (ptrdiff_t first = 0; first < outputs; first += 4 * VL) {
        const int C = (int)fl_min(4, ceil_div(outputs - first, VL));
        const float *from[4];
        ptrdiff_t count[4];
        for (int v = 0; v < C; v++) {
            from[v] = w + (first + v * VL) * by_output;
            count[v] = outputs - first - v * VL;
        }
        to = pack_panel(to, C, VL, K, from, count, by_output, by_depth);
    }
    return to;
}

static ptrdiff_t padded(ptrdiff_t n) { return ceil_div(n, VL) * VL; }

static int has_two_phases(const fl_spec *s) { return s->kind == FL_GRU && !s->reset_after; }

static ptrdiff_t pack_size(const fl_spec *s, int backward) {
    const ptrdiff_t G = fl_gate_count(s), Hp = padded(s->H), projection = s->projected ? s->H * padded(s->R) : 0;
    if (backward)
        return G * s->H * ((backward == FL_BACKWARD) * padded(s->I) + padded(s->R)) + (s->projected ? s->R * Hp : 0);
    return (G * (s->I + s->R) + 4) * Hp + projection + 3 * Hp;
}

/* The biases in the accumulators' order. GRU with reset_after keeps b_hn apart, as the fourth. */
static float *pack_bias(float *to, const fl_spec *s, const fl_params *w, int first, int C) {
    const int four = s->kind == FL_GRU && s->reset_after;
    const ptrdiff_t H = s->H;
    for (ptrdiff_t u = 0; u < H; u += VL)
        for (int g = first; g < first + C + four; g++)
            for (ptrdiff_t j = u; j < u + gate_lanes(C, H - u); j++, to++) {
                *to = 0.0f;
                if (!w->bias_ih || j >= H)
                    continue;
                if (four && g >= 2)
                    *to = g == 2 ? w->bias_ih[2 * H + j] : w->bias_hh[2 * H + j];
                else
                    *to = w->bias_ih[g * H + j] + w->bias_hh[g * H + j];
            }
    return to;
}

static void pack(fl_block *k, const fl_params *w, int backward, float *to) {
    const fl_spec *s = &k->spec;
    const int G = fl_gate_count(s), two_phases = has_two_phases(s), plain = s->kind == FL_RNN;
    const ptrdiff_t I = s->I, H = s->H, R = s->R;
    const int C = two_phases ? 2 : G, blocks = two_phases ? 2 : 1; /* gates of the first phase, blocks to a panel */
    if (backward) {
        if (backward == FL_BACKWARD)
            k->v_x = to, to = pack_plain(to, w->weight_ih, I, G * H, 1, I);
        if (k->v_h)
            return; /* packed for token ids, and perhaps in use */
        k->v_h = to, to = pack_plain(to, w->weight_hh, R, (s->kind == FL_GRU ? 2 : G) * H, 1, R);
        if (s->kind == FL_GRU) /* apart: its operand lies in another column of the gates */
            k->v_n = to, to = pack_plain(to, w->weight_hh + 2 * H * R, R, H, 1, R);
        if (s->projected)
            k->v_r = to, pack_plain(to, w->weight_hr, H, R, 1, H);
        return;
    }
    k->w_x = to,
    to = plain ? pack_plain(to, w->weight_ih, H, I, I, 1) : pack_gates(to, w->weight_ih, H, I, 0, C, blocks);
    k->w_h = to,
    to = plain ? pack_plain(to, w->weight_hh, H, R, R, 1) : pack_gates(to, w->weight_hh, H, R, 0, C, blocks);
    k->bias = to, to = pack_bias(to, s, w, 0, C);
    if (two_phases) {
        k->x_n = to, to = pack_plain(to, w->weight_ih + 2 * H * I, H, I, I, 1);
        k->w_n = to, to = pack_plain(to, w->weight_hh + 2 * H * R, H, R, R, 1);
        k->bias_n = to, to = pack_bias(to, s, w, 2, 1);
    }
    if (s->projected)
        k->w_r = to, to = pack_plain(to, w->weight_hr, R, H, H, 1);
    if (s->peepholes)
        k->peep = memcpy(to, w->weight_peep, (size_t)(3 * H) * sizeof *to);
}
