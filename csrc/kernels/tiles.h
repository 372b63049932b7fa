/* tiles.h: the innermost products, of a few rows with one panel. Part of kernels.h. */

/* out = start + a wa + b wb for the rows of one tile and one panel. What a and b hold, and what wa and wb, the storage of
 * the weights says (storage.h): floats, or integers. */
typedef struct {
    const float *start; /* (rows, CA VL); ld_start 0: all rows start alike */
    ptrdiff_t ld_start;
    const void *a; /* (rows, ka) */
    const void *wa;
    ptrdiff_t lda, ka;
    const void *b; /* (rows, kb) */
    const void *wb;
    ptrdiff_t ldb, kb;
    const float *a_units, *b_units; /* integers: (rows) what 1 stands for */
    int a_planes;                   /* integers: 1, or 2 */
    float *out;                     /* (rows, CA VL) */
    ptrdiff_t ld_out;
} Tile;

/* Vector v of the weights of one depth. `half` is a constant: the weights are float16. */
INLINE V weights(const void *w, ptrdiff_t v, const int half) {
    return half ? V_LOADH((const uint16_t *)w + v * VL) : V_LOAD((const float *)w + v * VL);
}

/* Whatever lies `vectors` vectors of weights behind w. */
INLINE const void *behind(const void *w, ptrdiff_t vectors, const int half) {
    return (const char *)w + vectors * VL * (half ? 2 : 4);
}

/* acc (M rows, CA vectors) += a w, w (K, C, VL) floats or float16. w has C vectors, of which the third is added to
 * accumulator third_acc. M, C, CA, third_acc and half are constants wherever this is inlined, so the accumulators stay in
 * registers. So does each vector of w: for 2 or 3 rows GCC would load it again for each, and processors load no more vectors
 * in a cycle than they multiply. */
INLINE void multiply(V *acc, const int M, const int CA, const int C, const int third_acc, const int half,
                     const float *a, ptrdiff_t lda, const void *w, ptrdiff_t K) {
    for (ptrdiff_t k = 0; k < K; k++, w = behind(w, C, half)) {
        EACH(v, C) {
            V wv = weights(w, v, half);
            if (M < 4)
                V_IN_REGISTER(wv);
            EACH(m, M) {
                V *const s = &acc[m * CA + (v == 2 ? third_acc : v)];
                *s = V_FMA(V_SET1(a[m * lda + k]), wv, *s);
            }
        }
    }
}

INLINE void tile_rows(const Tile *t, const int M, const int CA, const int C, const int third_acc, const int half) {
    V acc[ROWS * 4];
    EACH(m, M)
        EACH(v, CA)
            acc[m * CA + v] = V_LOAD(t->start + m * t->ld_start + v * VL);
    multiply(acc, M, CA, C, 2, half, t->a, t->lda, t->wa, t->ka);
    multiply(acc, M, CA, C, third_acc, half, t->b, t->ldb, t->wb, t->kb);
    EACH(m, M)
        EACH(v, CA)
            V_STORE(t->out + m * t->ld_out + v * VL, acc[m * CA + v]);
}

/* The shapes of panels: 1 to 4 vectors, each with its accumulator; and GRU's three, whose candidate keeps the input's
 * sum n_x and the recurrent sum n_h apart, in the third and the fourth accumulator. */
enum { SHAPE_GRU = 0, SHAPES = 5 };
static const int accumulators[SHAPES] = {4, 1, 2, 3, 4}, vectors[SHAPES] = {3, 1, 2, 3, 4};

typedef void tile_fn(const Tile *t);

/* A table of tile functions, by number of rows and shape, from an inline function NAME (tile, M, CA, C, third_acc): */
#define TILE(NAME, M, SHAPE, CA, C, THIRD_ACC)                                                                         \
    static void NAME##_##SHAPE##_##M(const Tile *t) { NAME(t, M, CA, C, THIRD_ACC); }
#define TILES_OF_ROWS(NAME, M)                                                                                         \
    TILE(NAME, M, gru, 4, 3, 3)                                                                                        \
    TILE(NAME, M, c1, 1, 1, 2) TILE(NAME, M, c2, 2, 2, 2) TILE(NAME, M, c3, 3, 3, 2) TILE(NAME, M, c4, 4, 4, 2)
#if FL_INFERENCE_ONLY
/* A tile of integers, row by row and three rows at a time: in a library whose size counts, for panels that come once in a
 * product, and for processors without dot products of bytes that have AVX-512. */
static void in_parts(const Tile *t, int rows, tile_fn *one, tile_fn *three) {
    Tile part = *t;
    for (int done, left = rows; left > 0; left -= done) {
        done = left >= 3 ? 3 : 1;
        (done == 3 ? three : one)(&part);
        part.start += done * t->ld_start, part.out += done * t->ld_out;
        part.a = (const char *)part.a + done * t->lda, part.b = (const char *)part.b + done * t->ldb;
        part.a_units += t->lda ? done : 0, part.b_units += t->ldb ? done : 0; /* not of an absent operand */
    }
}
#define TILE_IN_PARTS(NAME, M, SHAPE, CA, C, THIRD_ACC)                                                                \
    static void NAME##_##SHAPE##_##M(const Tile *t) { in_parts(t, M, NAME##_##SHAPE##_1, NAME##_##SHAPE##_3); }
#define INTEGER_TILES_OF_ROWS(NAME, M, MAIN)                                                                           \
    MAIN(NAME, M, gru, 4, 3, 3)                                                                                        \
    TILE_IN_PARTS(NAME, M, c1, 1, 1, 2)                                                                                \
    TILE_IN_PARTS(NAME, M, c2, 2, 2, 2) TILE_IN_PARTS(NAME, M, c3, 3, 3, 2) MAIN(NAME, M, c4, 4, 4, 2)
#else
#define INTEGER_TILES_OF_ROWS(NAME, M, MAIN) TILES_OF_ROWS(NAME, M)
#endif
#define TILE_ENTRY(NAME, M) {NAME##_gru_##M, NAME##_c1_##M, NAME##_c2_##M, NAME##_c3_##M, NAME##_c4_##M}
/* clang-format off */
#if ROWS == 6
#define TILES(NAME)                                                                                                    \
    TILES_OF_ROWS(NAME, 1) TILES_OF_ROWS(NAME, 2) TILES_OF_ROWS(NAME, 3)                                               \
    TILES_OF_ROWS(NAME, 4) TILES_OF_ROWS(NAME, 5) TILES_OF_ROWS(NAME, 6) TILE_TABLE(NAME)
#define INTEGER_TILES(NAME, MAIN)                                                                                      \
    TILES_OF_ROWS(NAME, 1) TILES_OF_ROWS(NAME, 3)                                                                      \
    INTEGER_TILES_OF_ROWS(NAME, 2, MAIN) INTEGER_TILES_OF_ROWS(NAME, 4, MAIN)                                          \
    INTEGER_TILES_OF_ROWS(NAME, 5, MAIN) INTEGER_TILES_OF_ROWS(NAME, 6, MAIN) TILE_TABLE(NAME)
#define TILE_TABLE(NAME)                                                                                               \
    static tile_fn *const NAME##_table[ROWS + 1][SHAPES] = {                                                           \
        {0}, TILE_ENTRY(NAME, 1), TILE_ENTRY(NAME, 2), TILE_ENTRY(NAME, 3),                                            \
        TILE_ENTRY(NAME, 4), TILE_ENTRY(NAME, 5), TILE_ENTRY(NAME, 6)};
#else
#define TILES(NAME)                                                                                                    \
    TILES_OF_ROWS(NAME, 1) TILES_OF_ROWS(NAME, 2) TILES_OF_ROWS(NAME, 3) TILE_TABLE(NAME)
#define INTEGER_TILES(NAME, MAIN)                                                                                      \
    TILES_OF_ROWS(NAME, 1) TILES_OF_ROWS(NAME, 3) INTEGER_TILES_OF_ROWS(NAME, 2, MAIN) TILE_TABLE(NAME)
#define TILE_TABLE(NAME)                                                                                               \
    static tile_fn *const NAME##_table[ROWS + 1][SHAPES] = {                                                           \
        {0}, TILE_ENTRY(NAME, 1), TILE_ENTRY(NAME, 2), TILE_ENTRY(NAME, 3)};
#endif
/* clang-format on */

INLINE void tile_f32(const Tile *t, const int M, const int CA, const int C, const int third_acc) {
    tile_rows(t, M, CA, C, third_acc, 0);
}
INLINE void tile_f16(const Tile *t, const int M, const int CA, const int C, const int third_acc) {
    tile_rows(t, M, CA, C, third_acc, 1);
}
/* clang-format off */ /* it knows no macro that stands for whole definitions */
TILES(tile_f32)
TILES(tile_f16)
/* clang-format on */

/* Start values, or an absent operand, of a pair of panels. */
static const float zeros[2 * 4 * VL] __attribute__((aligned(64))) = {0};
