/* tiles.h: the innermost products, of a few rows with one panel. Part of kernels.h. */

/* out = start + a wa + b wb for the rows of one tile and one panel. */
typedef struct {
    const float *start; /* (rows, CA VL); ld_start 0: all rows start alike */
    ptrdiff_t ld_start;
    const float *a, *wa; /* (rows, ka), (ka, C, VL) */
    ptrdiff_t lda, ka;
    const float *b, *wb; /* (rows, kb), (kb, C, VL) */
    ptrdiff_t ldb, kb;
    float *out; /* (rows, CA VL) */
    ptrdiff_t ld_out;
} Tile;

/* acc (M rows, CA vectors) += a w. w has C vectors, of which the third is added to accumulator third_acc. M, C, CA and
 * third_acc are constants wherever this is inlined, so the accumulators stay in registers. So does each vector of w: for
 * 2 or 3 rows GCC would load it again for each, and processors load no more vectors in a cycle than they multiply. */
INLINE void multiply(V *acc, const int M, const int CA, const int C, const int third_acc, const float *a, ptrdiff_t lda,
                     const float *w, ptrdiff_t K) {
    for (ptrdiff_t k = 0; k < K; k++, w += C * VL) {
        EACH(v, C) {
            V wv = V_LOAD(w + v * VL);
            if (M < 4)
                V_IN_REGISTER(wv);
            EACH(m, M) {
                V *const s = &acc[m * CA + (v == 2 ? third_acc : v)];
                *s = V_FMA(V_SET1(a[m * lda + k]), wv, *s);
            }
        }
    }
}

INLINE void tile_rows(const Tile *t, const int M, const int CA, const int C, const int third_acc) {
    V acc[ROWS * 4];
    EACH(m, M)
        EACH(v, CA)
            acc[m * CA + v] = V_LOAD(t->start + m * t->ld_start + v * VL);
    multiply(acc, M, CA, C, 2, t->a, t->lda, t->wa, t->ka);
    multiply(acc, M, CA, C, third_acc, t->b, t->ldb, t->wb, t->kb);
    EACH(m, M)
        EACH(v, CA)
            V_STORE(t->out + m * t->ld_out + v * VL, acc[m * CA + v]);
}

/* The shapes of panels: 1 to 4 vectors, each with its accumulator; and GRU's three, whose candidate keeps the input's
 * sum n_x and the recurrent sum n_h apart, in the third and the fourth accumulator. */
enum { SHAPE_GRU = 0, SHAPES = 5 };
static const int accumulators[SHAPES] = {4, 1, 2, 3, 4}, vectors[SHAPES] = {3, 1, 2, 3, 4};

typedef void tile_fn(const Tile *t);

/* One function for each number of rows and each shape. */
#define TILE(M, NAME, CA, C, THIRD_ACC)                                                                                \
    static void tile_##NAME##_##M(const Tile *t) { tile_rows(t, M, CA, C, THIRD_ACC); }
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

/* Start values, or an absent operand, of a pair of panels. */
static const float zeros[2 * 4 * VL] __attribute__((aligned(64))) = {0};
