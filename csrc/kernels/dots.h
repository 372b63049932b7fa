/* dots.h: products of rows of integers with panels of integers (storage.h). Included by ways.h once for each storage and
 * each way in which the instruction set can do it, with
 *
 *   STORED           FL_INT8 or FL_INT16
 *   DOT(sum, x, w)   sum += the products of the four bytes, or two int16_t, of x and of w, lane by lane
 *   DOTS(name)       a name of this way's own
 *   BY_PROCESSOR     whether DOT is one instruction */

/* sum (M rows, P panels of C vectors) += the products of `groups` rows of weights w with as many words of each row a.
 * Panels are `next` bytes apart. */
INLINE void DOTS(add_block)(VI *sum, const int M, const int P, const int C, const uint8_t *a, ptrdiff_t lda,
                            const char *w, ptrdiff_t next, ptrdiff_t groups) {
    enum { VECTOR = 4 * VL };
    for (ptrdiff_t g = 0; g < groups; g++, w += C * VECTOR) {
#if VL == 16 || VL == 4 /* registers enough for the weights of all rows */
        VI wv[2 * 4];
        EACH(v, P * C)
            wv[v] = VI_LOAD(w + v / C * next + v % C * VECTOR);
        EACH(m, M) {
            const VI x = VI_WORD(a + m * lda + 4 * g);
            EACH(v, P * C)
                DOT(sum[m * P * C + v], x, wv[v]);
        }
#else
        EACH(v, P * C) {
            const VI wv = VI_LOAD(w + v / C * next + v % C * VECTOR);
            EACH(m, M)
                DOT(sum[m * P * C + v], VI_WORD(a + m * lda + 4 * g), wv);
        }
#endif
    }
}

/* sum (M rows, P panels of C vectors) = the integers' products over the blocks from `block` on that a sum has, of `groups`
 * rows of weights in all. The high plane comes first, and is then multiplied by 256. */
INLINE void DOTS(sums)(VI *sum, const int M, const int P, const int C, const int planes, const uint8_t *a,
                       ptrdiff_t lda, const char *panel, ptrdiff_t next, ptrdiff_t block, ptrdiff_t groups) {
    enum { VECTOR = 4 * VL };
    EACH(i, M * P * C)
        sum[i] = VI_ZERO;
    for (int plane = planes - 1; plane >= 0; plane--) {
        const ptrdiff_t end = fl_min(block + blocks_of_sum(STORED, planes), fl_ceil_div(groups, block_rows(STORED)));
        for (ptrdiff_t b = block; b < end; b++) {
            const char *w = panel + row_of_block(STORED, b) * C * VECTOR;
            const ptrdiff_t first = b * block_rows(STORED);
            if (STORED == FL_INT8) {
                EACH(i, M * P * C)
                    sum[i] = VI_ADD(sum[i], VI_LOAD(w + i % (P * C) / C * next + i % C * VECTOR));
                w += C * VECTOR;
            }
            DOTS(add_block)(sum, M, P, C, a + plane * (lda / planes) + 4 * first, lda, w, next,
                            fl_min(block_rows(STORED), groups - first));
        }
        if (plane)
            EACH(i, M * P * C)
                sum[i] = VI_256(sum[i]);
    }
}

/* out = start + the product with an operand, of M rows. Accumulators that the weights do not reach are copied from start. */
INLINE void DOTS(tile_add)(const int M, const int CA, const int C, const int third_acc, const int planes,
                           const float *start, ptrdiff_t ld_start, const uint8_t *a, ptrdiff_t lda, const float *units,
                           const char *w, ptrdiff_t K, float *out, ptrdiff_t ld_out) {
    const ptrdiff_t groups = fl_ceil_div(K, STORED == FL_INT8 ? 4 : 2);
    for (ptrdiff_t block = 0; block * block_rows(STORED) < groups; block += blocks_of_sum(STORED, planes)) {
        VI sum[ROWS * 4];
        DOTS(sums)(sum, M, 1, C, planes, a, lda, w, 0, block, groups);
        EACH(m, M) {
            const V unit = V_SET1(units[m]);
            EACH(v, CA) {
                const int of_w = v == 3 && C == 3 ? 2 : v; /* the vector of w that is added to this accumulator */
                const int reached = of_w < C && (of_w != 2 || v == third_acc);
                const V scale = V_LOAD((const float *)(const void *)w + of_w % C * VL);
                V sum_of = V_LOAD(start + m * ld_start + v * VL);
                if (reached)
                    sum_of = V_DEQUANTISE(sum[m * C + of_w], V_MUL(unit, scale), sum_of);
                V_STORE(out + m * ld_out + v * VL, sum_of);
            }
        }
        start = out, ld_start = ld_out;
    }
}

INLINE void DOTS(tile)(const Tile *t, const int M, const int CA, const int C, const int third_acc) {
    const float *start = t->start;
    ptrdiff_t ld = t->ld_start;
    if (t->ka > 0) {
        if (FL_INFERENCE_ONLY) /* the planes are a loop, and the function is once as large */
            DOTS(tile_add)(M, CA, C, 2, t->a_planes, start, ld, t->a, t->lda, t->a_units, t->wa, t->ka, t->out,
                           t->ld_out);
        else if (STORED == FL_INT8 && t->a_planes == 2)
            DOTS(tile_add)(M, CA, C, 2, 2, start, ld, t->a, t->lda, t->a_units, t->wa, t->ka, t->out, t->ld_out);
        else
            DOTS(tile_add)(M, CA, C, 2, 1, start, ld, t->a, t->lda, t->a_units, t->wa, t->ka, t->out, t->ld_out);
        start = t->out, ld = t->ld_out;
    }
    if (t->kb > 0)
        DOTS(tile_add)(M, CA, C, third_acc, 1, start, ld, t->b, t->ldb, t->b_units, t->wb, t->kb, t->out, t->ld_out);
}
/* clang-format off */ /* it knows no macro that stands for whole definitions */
#if VL == 16 && !BY_PROCESSOR
TILES_OF(DOTS(tile), TILE_IN_PARTS)
#else
TILES_OF(DOTS(tile), TILE)
#endif
/* clang-format on */

/* ----------------------------------------------------------------------------------------------------------- one row */

/* acc (P panels, CA vectors) += the product of one row with an operand. */
INLINE void DOTS(row_add)(V *acc, const int P, const int CA, const int C, const int third_acc, const int planes,
                          const uint8_t *a, ptrdiff_t lda, const float *unit, const char *w, ptrdiff_t K) {
    const ptrdiff_t groups = fl_ceil_div(K, STORED == FL_INT8 ? 4 : 2);
    const ptrdiff_t next = (STORED == FL_INT8 ? bytes_int8 : bytes_int16)(K)*C * VL;
    for (ptrdiff_t block = 0; block * block_rows(STORED) < groups; block += blocks_of_sum(STORED, planes)) {
        VI sum[2 * 4];
        DOTS(sums)(sum, 1, P, C, planes, a, lda, w, next, block, groups);
        EACH(v, P * C) {
            V *const s = &acc[v / C * CA + (v % C == 2 ? third_acc : v % C)];
            const V scale = V_LOAD((const float *)(const void *)(w + v / C * next) + v % C * VL);
            *s = V_DEQUANTISE(sum[v], V_MUL(V_SET1(*unit), scale), *s);
        }
    }
}

/* One row of panel p (P = 1), or of panels p and p + 1 (P = 2). */
INLINE void DOTS(row_tile)(const Product *q, const int P, const int CA, const int C, const int third_acc, ptrdiff_t p,
                           epilogue_fn *epilogue, const void *context) {
    float out[2 * 4 * VL] __attribute__((aligned(64)));
    const float *const start = row_start(q, P, CA, p, out);
    V acc[2 * 4];
    EACH(v, P * CA)
        acc[v] = V_LOAD(start + v * VL);
    if (STORED == FL_INT8 && q->a && q->a_planes == 2)
        DOTS(row_add)(acc, P, CA, C, 2, 2, q->a, q->lda, q->a_units, panel_at(q, q->wa, q->ka, p), q->ka);
    else if (q->a)
        DOTS(row_add)(acc, P, CA, C, 2, 1, q->a, q->lda, q->a_units, panel_at(q, q->wa, q->ka, p), q->ka);
    if (q->b)
        DOTS(row_add)(acc, P, CA, C, third_acc, 1, q->b, q->ldb, q->b_units, panel_at(q, q->wb, q->kb, p), q->kb);
    EACH(v, P * CA)
        V_STORE(out + v * VL, acc[v]);
    row_end(q, P, CA, p, out, epilogue, context);
}

/* Panels from..end, of full width, for one row. */
INLINE void DOTS(row_panels)(const Product *q, const int CA, const int C, const int third_acc, ptrdiff_t from,
                             ptrdiff_t end, epilogue_fn *epilogue, const void *context) {
    const int pairs = in_pairs((q->ids ? 0 : panel_bytes(q, q->ka)) + panel_bytes(q, q->kb));
    while (from < end) {
        const int pair = pairs && end - from > 1;
        const ptrdiff_t p = q->reversed_panels ? end - 1 - pair : from;
        if (pair)
            DOTS(row_tile)(q, 2, CA, C, third_acc, p, epilogue, context);
        else
            DOTS(row_tile)(q, 1, CA, C, third_acc, p, epilogue, context);
        if (q->reversed_panels)
            end = p;
        else
            from = p + 1 + pair;
    }
}
static void DOTS(row)(const Product *q, ptrdiff_t from, ptrdiff_t end, epilogue_fn *epilogue, const void *context) {
    DOTS(row_panels)(q, 4, 4, 2, from, end, epilogue, context);
}
static void DOTS(row_gru)(const Product *q, ptrdiff_t from, ptrdiff_t end, epilogue_fn *epilogue, const void *context) {
    DOTS(row_panels)(q, 4, 3, 3, from, end, epilogue, context);
}

/* For reports: `rounds` times PEAK_CHAINS vectors of products, all in registers. The sum is not used; with it, and with x
 * taken for another vector each time, the compiler cannot drop the work. */
static NOINLINE int DOTS(peak)(ptrdiff_t rounds) {
    static const int32_t of_ones = 0x00010001; /* so that no sum of integers overflows */
    VI sums[PEAK_CHAINS], x = VI_WORD(&of_ones);
    const VI w = x;
    EACH(i, PEAK_CHAINS)
        sums[i] = VI_ZERO;
    for (ptrdiff_t r = 0; r < rounds; r++)
        EACH(i, PEAK_CHAINS) {
            TAKEN_FOR_ANOTHER(x);
            DOT(sums[i], x, w);
        }
    VI sum = VI_ZERO;
    EACH(i, PEAK_CHAINS)
        sum = VI_ADD(sum, sums[i]);
    return VI_LARGEST(sum);
}

static const Storage DOTS(storage) = {.bytes = STORED == FL_INT8 ? bytes_int8 : bytes_int16,
                                      .quantises = 1,
                                      .has_dots = BY_PROCESSOR,
                                      .tiles = DOTS_TABLE(DOTS(tile)),
                                      .row = DOTS(row),
                                      .row_gru = DOTS(row_gru),
                                      .peak = DOTS(peak)};

#undef DOT
#undef DOTS
#undef BY_PROCESSOR
#undef STORED
