/* kernels.h: the arithmetic, once for every instruction set. An isa_*.c file sets
 *
 *   ISA      its name, as in fl_isa_<name>
 *   VL       floats in a vector (vec.h)
 *   ROWS     rows of a tile: as many as keep ROWS x 4 accumulators in registers
 *   GRAD_ROWS  rows of a weight gradient's tile, which is GRAD_C vectors wide
 *
 * opens a target region and includes this file. Contract: pointers are valid and do not overlap; sizes are positive;
 * nothing outside the shapes given is read or written; no allocation.
 *
 * Panels. A weight matrix is packed so that a tile reads it front to back: for each panel, for each k, its C vectors
 * side by side, padded with zeros: (panels, K, C, VL). A gate panel holds all gates of VL units (C = 4 for LSTM, 3 for
 * GRU; with reset_after = 0 the two gates of 2 VL units), so that a tile's accumulators hold complete gates. The last of
 * an LSTM, of a few units only, may have two gates or four to a vector. A plain panel holds 4 VL outputs; the last one is
 * as narrow as fits.
 *
 * Bits. Every element is start, then the terms of a in order of k, then those of b: one fused multiply-add each. No
 * tile's shape, batch size, thread count or stretch of time changes that order.
 */

#include "vec.h"

#include "vmath.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

enum { GRAD_PACK = 16, GRAD_C = 3, GRAD_BLOCK = FL_GRAD_BLOCK, START_FLOATS = 131072, PAIR_WORK = 400000 };

static inline ptrdiff_t ceil_div(ptrdiff_t a, ptrdiff_t b) { return (a + b - 1) / b; }

/* The share of a range that one of `pieces` works on. */
static void share(ptrdiff_t range, ptrdiff_t grain, int piece, int pieces, ptrdiff_t *from, ptrdiff_t *to) {
    const ptrdiff_t units = ceil_div(range, grain);
    *from = fl_min(range, units * piece / pieces * grain);
    *to = fl_min(range, units * (piece + 1) / pieces * grain);
}

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

static int is_standard(const fl_block *k) {
    const fl_act *act = k->spec.act;
    return !k->peep && act[0].id == FL_SIGMOID && act[1].id == FL_TANH && act[2].id == FL_TANH;
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

/* reset_after: n = g(n_x + r n_h), h' = (1 - z) n + z h */
INLINE void gru_gates(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    const Step *s = context;
    const fl_spec *e = &s->k->spec;
    const ptrdiff_t H = e->H, u = panel * VL;
    const int count = (int)fl_min(VL, H - u);
    for (const ptrdiff_t end = row + rows; row < end; row++, tile += 4 * VL) {
        const V r = v_act(e->act[0], V_LOAD(tile)), z = v_act(e->act[0], V_LOAD(tile + VL));
        const V m = V_LOAD(tile + 3 * VL);
        const V n = v_act(e->act[1], V_FMA(r, m, V_LOAD(tile + 2 * VL)));
        const V h = V_LOADN(s->h + row * H + u, count);
        give_gate(s, row, 0, u, r, count);
        give_gate(s, row, 1, u, z, count);
        give_gate(s, row, 2, u, n, count);
        give_gate(s, row, 3, u, m, count);
        give_h(s, row, u, V_FMA(z, h, V_MUL(V_SUB(V_SET1(1.0f), z), n)), count);
    }
}
EPILOGUE(gru_gates, gru_gates, 4, 3, 3)

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

/* Epilogues over plain panels: GRU's second phase, the projection (identity) and RNN. */
INLINE void plain_h(const Step *s, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows, const int gru,
                    const int rnn) {
    const fl_spec *e = &s->k->spec;
    const ptrdiff_t first = panel * 4 * VL, R = e->R, width = fl_min(4 * VL, padded(R - first));
    for (const ptrdiff_t end = row + rows; row < end; row++, tile += width)
        for (ptrdiff_t v = 0; v < width; v += VL) {
            const ptrdiff_t u = first + v;
            const int count = (int)fl_min(VL, R - u);
            V h = V_LOAD(tile + v);
            if (rnn)
                h = v_act(e->act[0], h);
            if (gru) {
                const V n = v_act(e->act[1], h), z = V_LOADN(s->z + row * R + u, count);
                give_gate(s, row, 2, u, n, count);
                h = V_FMA(z, V_LOADN(s->h + row * R + u, count), V_MUL(V_SUB(V_SET1(1.0f), z), n));
            }
            give_h(s, row, u, h, count);
        }
}
INLINE void gru_candidate(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    plain_h(context, tile, panel, row, rows, 1, 0);
}
INLINE void projection(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    plain_h(context, tile, panel, row, rows, 0, 0);
}
INLINE void rnn_output(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    plain_h(context, tile, panel, row, rows, 0, 1);
}
EPILOGUE(gru_candidate, gru_candidate, 4, 4, 2)
EPILOGUE(projection, projection, 4, 4, 2)
EPILOGUE(rnn_output, rnn_output, 4, 4, 2)

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
    if (phase)
        return k->spec.projected ? &projection_epilogue : &gru_candidate_epilogue;
    switch (k->spec.kind) {
    case FL_LSTM: return is_standard(k) ? &lstm_gates_epilogue : &lstm_other_gates_epilogue;
    case FL_GRU: return has_two_phases(&k->spec) ? &gru_reset_epilogue : &gru_gates_epilogue;
    default: return &rnn_output_epilogue;
    }
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

static void forward_team(void *arg, int index, int piece, int worker) {
    (void)worker;
    const fl_forward_job *job = arg;
    const fl_chunk *chunk = &job->chunks[piece / job->parts];
    const fl_pass *pass = &job->passes[chunk->direction];
    const fl_block *k = pass->block;
    const fl_spec *e = &k->spec;
    const ptrdiff_t T = job->rows->T, B = chunk->b1, stretch = team_stretch(k, job->rows);
    const int part = piece % job->parts, hoist = team_hoists(job), phases = phase_count(e);
    const Starts starts = hoist ? starts_of(k, part, job->parts) : (Starts){0}; /* each member's apart */
    float *const start = scratch_start(chunk, e) + (hoist ? stretch * B * starts.before + part * FL_APART : 0);

    const ptrdiff_t per_stretch = hoist + stretch * phases;
    const ptrdiff_t i0 = index / per_stretch * stretch, i1 = fl_min(T, i0 + stretch); /* the stretch's steps */
    const ptrdiff_t t0 = earliest(pass, T, i0, i1);
    ptrdiff_t within = index % per_stretch;
    if (hoist && within-- == 0) {
        hoisted_product(k, job->rows->x + t0 * B * e->I, (i1 - i0) * B, start, &starts, part, job->parts);
        return;
    }
    const ptrdiff_t i = i0 + within / phases, t = walked(pass, T, i);
    Step s;
    begin_steps(&s, job, chunk);
    begin_step(&s, job, t, t * B);
    if (i & 1)
        swap_states(&s);
    const int copied = s.c != pass->c;
    s.c += copied ? part * fl_copy_of_c(B, e->H) : 0;
    const Input in = hoist ? (Input){.start = start + (t - t0) * B * starts.width}
                           : input_at(job->rows, e->I, t * B, t, pass->reverse);
    for (ptrdiff_t j = 0; j < fl_min(B * e->R, 2048); j += 16)
        __builtin_prefetch(s.h + j); /* the others' part is in their caches: all its lines at once, not one by one */
    Phase phase;
    make_phase(&phase, k, (int)(within % phases), hoist ? &starts : NULL, part, job->parts);
    const ptrdiff_t units = e->kind == FL_RNN || phases > 1 ? 4 * VL : VL; /* of a panel of the phase that gives h' */
    const ptrdiff_t end = within % phases == phases - 1 ? fl_min(e->R, phase.product.end_panel * units) : 0;
    for (ptrdiff_t u = phase.product.first_panel * units; u < end; u += 16)
        __builtin_prefetch(s.h_new + u, 1); /* others have read the first row: they give it up while there is time */
    const int of_c = copied && within % phases == 0;
    if (of_c && i == 0)
        memcpy(s.c, pass->c, (size_t)(B * e->H) * sizeof *s.c);
    run_phase(&phase, &s, B, &in, (i + job->turn) & 1);
    if (of_c && i == T - 1)
        copy_columns(pass->c, s.c, B, e->H, phase.product.first_panel * VL, phase.product.end_panel * VL);
}

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
    const ptrdiff_t H = s->k->spec.H, whole = is_standard(s->k) ? H - H % VL : 0;
    for (ptrdiff_t row = 0; row < n; row++) {
        for (ptrdiff_t u = 0; u < whole; u += VL)
            lstm_unit_back(s, row, u, VL, 1);
        for (ptrdiff_t u = whole; u < H; u += VL)
            lstm_unit_back(s, row, u, (int)fl_min(VL, H - u), 0);
    }
}

/* dz, dn, the part of dh that passes by the gates; with reset_after also dr and the gradient of n_h in m's place. */
static void gru_back(const Back *s, ptrdiff_t n) {
    const fl_spec *e = &s->k->spec;
    const ptrdiff_t H = e->H;
    for (ptrdiff_t row = 0; row < n; row++) {
        float *const gates = s->gates + row * s->ld_gates;
        const float *const h_prev = s->h_prev[row];
        for (ptrdiff_t u = 0; u < H; u += VL) {
            const int count = (int)fl_min(VL, H - u);
            const V r = V_LOADN(gates + u, count), z = V_LOADN(gates + H + u, count);
            const V cand = V_LOADN(gates + 2 * H + u, count), dh = whole_dh(s, row, u, count);
            const V dz = V_MUL(V_MUL(dh, V_SUB(V_LOADN(h_prev + u, count), cand)), v_dact(e->act[0], z));
            const V dn = V_MUL(V_MUL(dh, V_SUB(V_SET1(1.0f), z)), v_dact(e->act[1], cand));
            if (e->reset_after) {
                const V m = V_LOADN(gates + 3 * H + u, count);
                V_STOREN(gates + u, V_MUL(V_MUL(dn, m), v_dact(e->act[0], r)), count);
                V_STOREN(gates + 3 * H + u, V_MUL(dn, r), count);
            }
            V_STOREN(gates + H + u, dz, count);
            V_STOREN(gates + 2 * H + u, dn, count);
            V_STOREN(s->dh + row * H + u, V_MUL(dh, z), count);
        }
    }
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

static void rnn_back(const Back *s, ptrdiff_t n) {
    const fl_spec *e = &s->k->spec;
    const ptrdiff_t H = e->H;
    for (ptrdiff_t row = 0; row < n; row++)
        for (ptrdiff_t u = 0; u < H; u += VL) {
            const int count = (int)fl_min(VL, H - u);
            const V d = V_MUL(whole_dh(s, row, u, count), v_dact(e->act[0], V_LOADN(s->h + row * H + u, count)));
            V_STOREN(s->gates + row * s->ld_gates + u, d, count);
        }
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

#include "train.h"

const fl_isa JOIN(fl_isa_, ISA) = {
    .name = FL_STRING_OF(ISA),
    .vl = VL,
    .rows = ROWS,
    .pack_size = pack_size,
    .pack = pack,
    .forward_scratch = forward_scratch,
    .forward_chunk = forward_chunk,
    .forward_team = forward_team,
    .team_steps = team_steps,
    .forward_pair = forward_pair,
    .pair_steps = pair_steps,
    .backward_scratch = backward_scratch,
    .gradient_scratch = gradient_scratch,
    .backward = backward,
    .dense_size = dense_size,
    .dense_pack = dense_pack,
    .dense_scratch = dense_scratch,
    .dense_forward = dense_forward,
    .dense_backward = dense_backward,
    .dense_cross_entropy = dense_cross_entropy,
    .span_update = span_update,
    .span_squares = span_squares,
    .span_scale = span_scale,
};
