/* dots.h: products of rows of bytes with panels of bytes (FL_INT8, see storage.h). Included by kernels.h once for each way
 * in which the instruction set can do it, with
 *
 *   DOT(sum, x, w)   sum += the products of the four bytes of x and of w, lane by lane
 *   DOTS(name)       a name of this way's own */

/* sum (M rows, P panels of C vectors) = the panels' corrections + the products of their weights with rows of bytes. w: a
 * panel behind its scales; panels are `next` bytes apart. */
INLINE void DOTS(sums)(VI *sum, const int M, const int P, const int C, const uint8_t *a, ptrdiff_t lda, const char *w,
                       ptrdiff_t next, ptrdiff_t groups) {
    enum { VECTOR = 4 * VL };
    EACH(m, M)
        EACH(v, P * C)
            sum[m * P * C + v] = VI_LOAD(w + v / C * next + v % C * VECTOR);
    w += C * VECTOR;
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

/* out = start + the product with one plane of an operand, of M rows. Accumulators that the weights do not reach are copied
 * from start. */
INLINE void DOTS(add_plane)(const int M, const int CA, const int C, const int third_acc, const float *start,
                            ptrdiff_t ld_start, const uint8_t *a, ptrdiff_t lda, const float *units, float factor,
                            const char *w, ptrdiff_t K, float *out, ptrdiff_t ld_out) {
    VI sum[ROWS * 4];
    DOTS(sums)(sum, M, 1, C, a, lda, w + 4 * C * VL, 0, fl_ceil_div(K, 4));
    EACH(m, M) {
        const V unit = V_SET1(units[m] * factor);
        EACH(v, CA) {
            const int of_w = v == 3 && C == 3 ? 2 : v; /* the vector of w that is added to this accumulator */
            const V from = V_LOAD(start + m * ld_start + v * VL);
            const int reached = of_w < C && (of_w != 2 || v == third_acc);
            V_STORE(out + m * ld_out + v * VL,
                    reached ? V_DEQUANTISE(sum[m * C + of_w], V_MUL(unit, V_LOAD((const float *)w + of_w * VL)), from)
                            : from);
        }
    }
}

INLINE void DOTS(tile)(const Tile *t, const int M, const int CA, const int C, const int third_acc) {
    const float *start = t->start;
    ptrdiff_t ld = t->ld_start;
    for (int p = 0; p < t->a_planes && t->ka > 0; p++, start = t->out, ld = t->ld_out)
        DOTS(add_plane)(M, CA, C, 2, start, ld, (const uint8_t *)t->a + plane_at(t->lda, t->a_planes, p), t->lda,
                        t->a_units, plane_factor(p), t->wa, t->ka, t->out, t->ld_out);
    if (t->kb > 0)
        DOTS(add_plane)(M, CA, C, third_acc, start, ld, t->b, t->ldb, t->b_units, 1.0f, t->wb, t->kb, t->out,
                        t->ld_out);
}
/* clang-format off */ /* it knows no macro that stands for whole definitions */
TILES_OF(DOTS(tile))
/* clang-format on */

/* ----------------------------------------------------------------------------------------------------------- one row */

/* acc (P panels, CA vectors) += the product with one plane of an operand. */
INLINE void DOTS(add_row)(V *acc, const int P, const int CA, const int C, const int third_acc, const uint8_t *a,
                          float unit, const char *w, ptrdiff_t K) {
    const ptrdiff_t groups = fl_ceil_div(K, 4), next = (2 + groups) * C * VL * 4;
    VI sum[2 * 4];
    DOTS(sums)(sum, 1, P, C, a, 0, w + 4 * C * VL, next, groups);
    EACH(v, P * C) {
        V *const s = &acc[v / C * CA + (v % C == 2 ? third_acc : v % C)];
        const V scale = V_LOAD((const float *)(const void *)(w + v / C * next) + v % C * VL);
        *s = V_DEQUANTISE(sum[v], V_MUL(V_SET1(unit), scale), *s);
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
    for (int plane = 0; q->a && plane < q->a_planes; plane++)
        DOTS(add_row)(acc, P, CA, C, 2, (const uint8_t *)q->a + plane_at(q->lda, q->a_planes, plane),
                      q->a_units[0] * plane_factor(plane), panel_at(q, q->wa, q->ka, p), q->ka);
    if (q->b)
        DOTS(add_row)(acc, P, CA, C, third_acc, q->b, q->b_units[0], panel_at(q, q->wb, q->kb, p), q->kb);
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

static const Storage DOTS(storage) = {.bytes = bytes_int8,
                                      .quantises = 1,
                                      .tiles = DOTS_TABLE(DOTS(tile)),
                                      .row = DOTS(row),
                                      .row_gru = DOTS(row_gru)};

#undef DOT
#undef DOTS
