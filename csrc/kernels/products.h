/* products.h: products of packed rows with packed matrices, tile by tile or, for one row, without tiles. Part of
 * kernels.h. */

/* start + a wa + b wb for n rows and a range of panels. Each finished tile is stored to `out` or given to an epilogue. */
struct Product {
    int shape;              /* of all panels but perhaps the last: SHAPE_GRU, or vectors of a panel */
    int storage;            /* enum fl_storage of wa and wb */
    const Storage *kernels; /* how it is computed with */
    ptrdiff_t last_vectors; /* vectors of the last panel; fewer than `shape` only if that is 4 */
    ptrdiff_t panels;
    const float *start; /* (n, panels, CA, VL); with ld_start 0 (panels, CA, VL) for every row; NULL: zeros */
    ptrdiff_t ld_start;
    const int64_t *ids; /* (n) token ids: a's rows are one-hot, and wa holds a row of vectors for each id; or NULL */
    const int64_t *next_ids; /* (n) token ids of the next step, to be prefetched; or ids again */
    const void *a, *wa;      /* (n, ka), panels; NULL: absent */
    ptrdiff_t lda, ka;
    const void *b, *wb; /* (n, kb), panels; NULL: absent */
    ptrdiff_t ldb, kb;
    const float *a_units, *b_units; /* integers: see Tile */
    int a_planes;
    float *out; /* (n, panels, CA, VL); NULL: there is an epilogue */
    ptrdiff_t ld_out;
    ptrdiff_t first_panel, end_panel; /* the panels that are wanted */
    int reversed_panels;              /* from the last to the first: the step before read the last one last */
    int prefetches;                   /* weights of a single row, where they lie in the third-level cache */
};

INLINE int panel_shape(const Product *q, ptrdiff_t p) {
    return p == q->panels - 1 && q->shape ? (int)q->last_vectors : q->shape;
}

/* Number of panels of full width. */
INLINE ptrdiff_t full_panels(const Product *q) { return q->panels - (panel_shape(q, q->panels - 1) != q->shape); }

/* Bytes of a full panel of depth K, and where panel p of an operand begins. */
INLINE ptrdiff_t panel_bytes(const Product *q, ptrdiff_t K) { return vectors[q->shape] * VL * q->kernels->bytes(K); }
INLINE const void *panel_at(const Product *q, const void *w, ptrdiff_t K, ptrdiff_t p) {
    return (const char *)w + p * panel_bytes(q, K);
}

/* --------------------------------------------------------------------------------------------------------- token ids */

/* Vector v of a token row's start values: bias + the id's row of wa, as the product with a one-hot row would give. */
INLINE V token_vector(const Product *q, const float *bias, const void *wa, const int C, ptrdiff_t id, const int v) {
    const V start = V_LOAD(bias + v * VL);
    return v < C ? add_stored(q->storage, start, wa, C, id, v) : start;
}
/* Start values of a tile of token rows. Panels that come once in a product are not worth a loop's copies. */
INLINE void token_rows(const Product *q, const int CA, const int C, const int unrolls, ptrdiff_t panel, ptrdiff_t row,
                       int rows, float *into) {
    const float *const bias = q->start + panel * accumulators[q->shape] * VL;
    const void *const wa = panel_at(q, q->wa, q->ka, panel);
    for (int m = 0; m < rows; m++, into += CA * VL)
        if (unrolls)
            EACH(v, CA)
                V_STORE(into + v * VL, token_vector(q, bias, wa, C, q->ids[row + m], v));
        else
            for (int v = 0; v < CA; v++)
                V_STORE(into + v * VL, token_vector(q, bias, wa, C, q->ids[row + m], v));
}
static const float *token_start(const Product *q, int shape, ptrdiff_t panel, ptrdiff_t row, int rows, float *into) {
    if (shape == 4)
        token_rows(q, 4, 4, 1, panel, row, rows, into);
    else if (shape == SHAPE_GRU)
        token_rows(q, 4, 3, 1, panel, row, rows, into);
    else
        token_rows(q, accumulators[shape], vectors[shape], 0, panel, row, rows, into);
    return into;
}

/* A token's row lies in pieces, one to a panel and far apart. Prefetches the pieces that a tile's rows read `step` panels
 * later, or in the first panel of the next step. Called between a product and its epilogue, where no weights wait behind
 * them. (INLINE: GCC drops a call of a function without effect.) */
INLINE void prefetch_token_rows(const Product *q, ptrdiff_t panel, int step, ptrdiff_t row, int rows) {
    const ptrdiff_t later = panel + (q->reversed_panels ? -step : step);
    const int last = later < q->first_panel || later >= q->end_panel;
    const int64_t *const ids = (last ? q->next_ids : q->ids) + row;
    const ptrdiff_t wanted = last ? panel : later, vectors_of = vectors[panel_shape(q, wanted)];
    const ptrdiff_t piece = vectors_of * VL * (q->storage == FL_FLOAT16 ? 2 : 4);
    const char *const wa = panel_at(q, q->wa, q->ka, wanted);
    for (int m = 0; m < rows; m++)
        for (ptrdiff_t j = 0; j < piece; j += 64)
            __builtin_prefetch(wa + row_of_depth(q->storage, ids[m]) * piece + j);
}

/* ------------------------------------------------------------------------------------------------------------- tiles */

/* Panels from..end, n rows in tiles; `epilogue` is NULL where q->out receives them. */
static void tile_product(const Product *q, ptrdiff_t from, ptrdiff_t end, ptrdiff_t n, epilogue_fn *epilogue,
                         const void *context) {
    float tile[ROWS * 4 * VL] __attribute__((aligned(64))), start[ROWS * 4 * VL] __attribute__((aligned(64)));
    const ptrdiff_t panel = accumulators[q->shape] * VL; /* floats of start values, and of results */
    /* An absent operand has depth 0; its rows still need an address. */
    const char *const a = q->a ? q->a : (const void *)zeros, *const b = q->b ? q->b : (const void *)zeros;
    const ptrdiff_t lda = q->a ? q->lda : 0, ldb = q->b ? q->ldb : 0, of_number = q->kernels->quantises ? 1 : 4;
    const ptrdiff_t by_a = q->a ? 1 : 0, by_b = q->b ? 1 : 0; /* rows have units of their own */
    for (ptrdiff_t i = from; i < end; i++) {
        const ptrdiff_t p = q->reversed_panels ? from + end - 1 - i : i;
        const int shape = panel_shape(q, p);
        Tile t = {.lda = lda,
                  .ka = q->ids ? 0 : q->ka,
                  .wa = q->wa ? panel_at(q, q->wa, q->ka, p) : zeros,
                  .a_planes = q->a_planes,
                  .ldb = ldb,
                  .kb = q->kb,
                  .wb = q->wb ? panel_at(q, q->wb, q->kb, p) : zeros,
                  .out = tile,
                  .ld_out = q->out ? q->ld_out : accumulators[shape] * VL};
        for (ptrdiff_t r = 0, left = fl_ceil_div(n, ROWS); r < n; left--) {
            const int rows =
                (int)fl_ceil_div(n - r, left); /* tiles of about equal height: a low one waits for weights */
            t.a = a + r * lda * of_number, t.b = b + r * ldb * of_number;
            t.a_units = q->a_units + r * by_a, t.b_units = q->b_units + r * by_b;
            if (q->out)
                t.out = q->out + r * q->ld_out + p * panel;
            t.start = q->start ? q->start + r * q->ld_start + p * panel : zeros, t.ld_start = q->ld_start;
            if (q->ids)
                t.start = token_start(q, shape, p, r, rows, start), t.ld_start = accumulators[shape] * VL;
            q->kernels->tiles[rows][shape](&t);
            if (q->ids)
                prefetch_token_rows(q, p, 1, r, rows);
            if (epilogue)
                epilogue(context, tile, p, r, rows);
            r += rows;
        }
    }
}

/* ----------------------------------------------------------------------------------------------------------- one row */

#if VL == 16
/* multiply_row for float16, in vectors of 8: on Zen 4 a conversion to 16 floats takes 1.5 times as long as two to 8. */
INLINE void multiply_row_f16(V *acc, const int P, const int CA, const int C, const int third_acc, const float *a,
                             const uint16_t *w, ptrdiff_t K) {
    const ptrdiff_t next = K * C * VL;
    __m256 sum[2 * 2 * 4];
    EACH(v, P * C) {
        const V from = acc[v / C * CA + (v % C == 2 ? third_acc : v % C)];
        sum[2 * v] = _mm512_castps512_ps256(from), sum[2 * v + 1] = _mm512_extractf32x8_ps(from, 1);
    }
    for (ptrdiff_t k = 0; k < K; k++, w += C * VL) {
        const __m256 av = _mm256_set1_ps(a[k]);
        EACH(i, 2 * P * C) {
            const uint16_t *const at = w + i / (2 * C) * next + i % (2 * C) * 8;
            sum[i] = _mm256_fmadd_ps(av, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)at)), sum[i]);
        }
    }
    EACH(v, P * C)
        acc[v / C * CA + (v % C == 2 ? third_acc : v % C)] =
            _mm512_insertf32x8(_mm512_castps256_ps512(sum[2 * v]), sum[2 * v + 1], 1);
}
#endif

/* acc (P panels, CA vectors) += a w for one row; w (P, K, C, VL). */
INLINE void multiply_row(V *acc, const int P, const int CA, const int C, const int third_acc, const int half,
                         const float *a, const void *w, ptrdiff_t K, int prefetches) {
#if VL == 16
    if (half) {
        multiply_row_f16(acc, P, CA, C, third_acc, a, w, K);
        return;
    }
#endif
    const ptrdiff_t next = K * C; /* vectors of a panel */
    for (ptrdiff_t k = 0; k < K; k++, w = behind(w, C, half)) {
        const V av = V_SET1(a[k]);
        if (prefetches) {
            EACH(line, (P * C * VL + 15) / 16)
                __builtin_prefetch((const float *)w + FL_PREFETCH_AHEAD + 16 * line / (C * VL) * next * VL +
                                   16 * line % (C * VL));
        }
        EACH(v, P * C) {
            V *const s = &acc[v / C * CA + (v % C == 2 ? third_acc : v % C)];
            *s = V_FMA(av, weights(behind(w, v / C * next, half), v % C, half), *s);
        }
    }
}

/* The start values of a single row's P panels from p on; token rows are made in `into`. */
INLINE const float *row_start(const Product *q, const int P, const int CA, ptrdiff_t p, float *into) {
    if (!q->ids)
        return q->start ? q->start + p * CA * VL : zeros;
    for (int i = 0; i < P; i++)
        token_start(q, q->shape, p + i, 0, 1, into + i * CA * VL);
    return into;
}

/* Completes a single row's P panels from p on. */
INLINE void row_end(const Product *q, const int P, const int CA, ptrdiff_t p, const float *out, epilogue_fn *epilogue,
                    const void *context) {
    for (int i = 0; i < P && q->ids; i++)
        prefetch_token_rows(q, p + i, P, 0, 1);
    epilogue(context, out, p, 0, 1);
    if (P == 2)
        epilogue(context, out + CA * VL, p + 1, 0, 1);
}

/* One row of panel p (P = 1), or of panels p and p + 1 (P = 2). */
INLINE void row_tile(const Product *q, const int P, const int CA, const int C, const int third_acc, const int half,
                     ptrdiff_t p, int prefetches, epilogue_fn *epilogue, const void *context) {
    float out[2 * 4 * VL] __attribute__((aligned(64)));
    const float *const start = row_start(q, P, CA, p, out);
    V acc[2 * 4];
    EACH(v, P * CA)
        acc[v] = V_LOAD(start + v * VL);
    if (q->a)
        multiply_row(acc, P, CA, C, 2, half, q->a, behind(q->wa, p * q->ka * C, half), q->ka, prefetches);
    if (q->b)
        multiply_row(acc, P, CA, C, third_acc, half, q->b, behind(q->wb, p * q->kb * C, half), q->kb, prefetches);
    EACH(v, P * CA)
        V_STORE(out + v * VL, acc[v]);
    row_end(q, P, CA, p, out, epilogue, context);
}

/* Whether a single row takes two panels of so many bytes at once. The 4 accumulators of one panel wait for one another;
 * for the exception see FL_ALONE_FROM. */
static int in_pairs(ptrdiff_t bytes) { return VL < 16 || bytes < FL_ALONE_FROM || bytes > FL_ALONE_TO; }

/* Whether a single row prefetches its weights of so many bytes: only from the third-level cache. */
static int prefetches_weights(const Product *q, ptrdiff_t bytes) {
    return q->prefetches && bytes >= FL_PREFETCH_FROM && bytes <= FL_PREFETCH_TO;
}

/* Panels from..end, of full width, for one row. */
INLINE void row_product(const Product *q, const int CA, const int C, const int third_acc, const int half,
                        ptrdiff_t from, ptrdiff_t end, epilogue_fn *epilogue, const void *context) {
    const ptrdiff_t bytes = ((q->ids ? q->kb : q->ka + q->kb) * C * VL) * (half ? 2 : 4);
    const int pairs = in_pairs(bytes), prefetches = !half && prefetches_weights(q, (end - from) * bytes);
    while (from < end) {
        const int pair = pairs && end - from > 1;
        const ptrdiff_t p = q->reversed_panels ? end - 1 - pair : from;
        if (pair)
            row_tile(q, 2, CA, C, third_acc, half, p, prefetches, epilogue, context);
        else
            row_tile(q, 1, CA, C, third_acc, half, p, prefetches, epilogue, context);
        if (q->reversed_panels)
            end = p;
        else
            from = p + 1 + pair;
    }
}

/* float16: single_row_fn. */
static void row_f16(const Product *q, ptrdiff_t from, ptrdiff_t end, epilogue_fn *epilogue, const void *context) {
    row_product(q, 4, 4, 2, 1, from, end, epilogue, context);
}
static void row_f16_gru(const Product *q, ptrdiff_t from, ptrdiff_t end, epilogue_fn *epilogue, const void *context) {
    row_product(q, 4, 3, 3, 1, from, end, epilogue, context);
}

/* ---------------------------------------------------------------------------------------------------------- epilogues */

/* What completes a product: a function for tiles, and one that takes a single row through panels from..end with the
 * epilogue inlined, so that the sums stay in registers. */
typedef void row_fn(const Product *q, ptrdiff_t from, ptrdiff_t end, const void *context);
typedef struct {
    epilogue_fn *tile;
    row_fn *row;       /* FL_FLOAT32 */
    row_fn *row_bytes; /* FL_INT8 with the processor's dot products; NULL: by `tile` */
} Epilogue;

/* Defines NAME_epilogue from the inline function NAME, and ROW for single rows, over panels of a shape. For
 * EPILOGUE_OF_BYTES see ways.h. */
#define EPILOGUE(NAME, ROW, CA, C, THIRD_ACC)                                                                          \
    EPILOGUE_FUNCTIONS(NAME, ROW, CA, C, THIRD_ACC)                                                                    \
    static const Epilogue NAME##_epilogue = {NAME##_tile, NAME##_row, NULL};
#define EPILOGUE_FUNCTIONS(NAME, ROW, CA, C, THIRD_ACC)                                                                \
    static void NAME##_tile(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {        \
        NAME(context, tile, panel, row, rows);                                                                         \
    }                                                                                                                  \
    static void NAME##_row(const Product *q, ptrdiff_t from, ptrdiff_t end, const void *context) {                     \
        row_product(q, CA, C, THIRD_ACC, 0, from, end, ROW, context);                                                  \
    }

INLINE void product(const Product *q, ptrdiff_t n, const Epilogue *epilogue, const void *context) {
    const ptrdiff_t from = q->first_panel, end = q->end_panel;
    if (n > 1 || (q->shape != 4 && q->shape != SHAPE_GRU)) {
        tile_product(q, from, end, n, epilogue->tile, context);
        return;
    }
    const ptrdiff_t full = fl_max(from, fl_min(end, full_panels(q))); /* a narrow last panel is a tile of its own */
    if (q->reversed_panels)
        tile_product(q, full, end, 1, epilogue->tile, context);
    single_row_fn *const row = q->shape == SHAPE_GRU ? q->kernels->row_gru : q->kernels->row;
    if (q->storage == FL_INT8 && q->kernels->has_dots && epilogue->row_bytes)
        epilogue->row_bytes(q, from, full, context);
    else if (row)
        row(q, from, full, epilogue->tile, context);
    else
        epilogue->row(q, from, full, context);
    if (!q->reversed_panels)
        tile_product(q, full, end, 1, epilogue->tile, context);
}

/* ---------------------------------------------------------------------------------------------------- plain products */

/* Plain panels of so many outputs. */
static void plain_shape(Product *q, ptrdiff_t outputs) {
    const ptrdiff_t v = fl_ceil_div(outputs, VL);
    q->panels = fl_ceil_div(v, 4);
    q->last_vectors = v - 4 * (q->panels - 1);
    q->shape = q->panels == 1 ? (int)q->last_vectors : 4;
    q->end_panel = q->panels;
}

/* Where a plain product's results are stored or added. */
typedef struct {
    float *rows; /* (n, width) */
    ptrdiff_t ld, width;
} Destination;

INLINE void for_plain(const Destination *d, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows,
                      const int add) {
    const ptrdiff_t first = panel * 4 * VL, count = fl_min(4 * VL, d->width - first);
    const ptrdiff_t ld = fl_ceil_div(count, VL) * VL;
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

/* An operand of a product: rows (n, k), ld apart, and the panels they are multiplied with. */
typedef struct {
    const float *rows;
    ptrdiff_t ld;
    const float *panels;
    ptrdiff_t k;
} Operand;
static const Operand absent = {NULL, 0, NULL, 0};

/* to (n, width), stored or added to, from one or two operands with plain panels. */
static void plain_product(float *to, ptrdiff_t width, ptrdiff_t n, int add, const Operand *a, const Operand *b) {
    Product q = {.kernels = &storage_f32,
                 .a = a->rows,
                 .lda = a->ld,
                 .wa = a->panels,
                 .ka = a->k,
                 .b = b->rows,
                 .ldb = b->ld,
                 .wb = b->panels,
                 .kb = b->k};
    plain_shape(&q, width);
    const Destination d = {to, width, width};
    product(&q, n, add ? &add_plain_epilogue : &store_plain_epilogue, &d);
}
