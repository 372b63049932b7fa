/* storage.h: how a block's matrices are kept, and what they are multiplied with. Part of kernels.h.
 *
 * FL_FLOAT32, FL_FLOAT16: a panel is (K, C, VL) numbers; the arithmetic is float32, in the same order.
 *
 * FL_INT8: a weight is q s, with an integer q in -127..127 and a scale s for each output (row of the matrix). The other
 * operand is quantised too, row by row (quantise): its number is j u, with an integer j and a unit u. A sum of q j is
 * exact in int32, whatever the order, and is dequantised by one fused multiply-add:
 *
 *     out = start + float(sum) * (s * u)          s * u and float(sum) are rounded to float32 first
 *
 * j is in -127..127 (8 bits), or in -8191..8191 (16 bits: x of a first layer, on request). A sum has at most 65536 or 2048
 * depths, so that it fits int32; a larger K takes several, one multiply-add each, in order. A row of 16 bits is two planes
 * of bytes: j = low + 256 high with low and high in -128..127, so that all products are of bytes.
 *
 * Integers of FL_INT8's other operand are stored with BYTE_BIAS added, as unsigned bytes; an output's correction is -BYTE_BIAS
 * times the sum of its q. Two neighbouring weights (k even, k + 1) never sum to more than 128 (fastlstm/storage.py chooses
 * the scales so), so that the sum of their products with unsigned bytes fits 16 bits: 255 * 128 < 2^15, and no instruction
 * saturates.
 *
 * A panel is (rows, C, VL) words of 4 bytes: a row of scales; then for each block of 2048 depths a row of corrections and
 * up to 512 rows of weights, four depths to a word.
 *
 * FL_INT16: the same with q and j in -8191..8191 and sums of 32 depths: each is dequantised and added in order. A panel is
 * a row of scales, then rows of weights, two depths to a word.
 *
 * A row of token ids adds q s of its column, by one fused multiply-add. */

typedef struct Product Product;

/* Receives the sums of `rows` rows from `row` on with one panel. */
typedef void epilogue_fn(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows);

/* Takes a single row through whole panels from..end; `epilogue` completes each. */
typedef void single_row_fn(const Product *q, ptrdiff_t from, ptrdiff_t end, epilogue_fn *epilogue, const void *context);

/* How one storage is computed with. */
typedef struct {
    ptrdiff_t (*bytes)(ptrdiff_t K); /* of an output's weights, its scale and correction included */
    int quantises;                   /* the other operand is Integers (below); else floats */
    int has_dots;                    /* by the processor's dot products */
    tile_fn *const (*tiles)[SHAPES]; /* by number of rows and shape */
    single_row_fn *row, *row_gru;    /* panels of 4 vectors, and of SHAPE_GRU; NULL: the epilogue's own function */
    int (*peak)(ptrdiff_t rounds);   /* products alone (dots_peak); NULL: of floats, see peak.c */
} Storage;

static ptrdiff_t bytes_f32(ptrdiff_t K) { return 4 * K; }
static ptrdiff_t bytes_f16(ptrdiff_t K) { return 2 * K; }

/* Rows of weights of a block of a panel of integers: FL_INT16's is a sum. FL_INT8's block has BLOCK_DEPTHS depths, and a sum
 * 32 blocks, or one of an operand of 16 bits. */
enum { BLOCK_DEPTHS = 2048 };
INLINE ptrdiff_t block_rows(int storage) { return storage == FL_INT8 ? BLOCK_DEPTHS / 4 : 16; }
INLINE ptrdiff_t blocks_of_sum(int storage, int planes) { return storage == FL_INT8 && planes == 1 ? 32 : 1; }

/* Where a block begins, with FL_INT8 with its corrections; and the row of a panel in which the weights of depth k are. */
INLINE ptrdiff_t row_of_block(int storage, ptrdiff_t block) {
    return 1 + block * ((storage == FL_INT8) + block_rows(storage));
}
INLINE ptrdiff_t row_of_depth(int storage, ptrdiff_t k) {
    switch (storage) {
    case FL_INT8: return 2 + k / 4 + k / BLOCK_DEPTHS;
    case FL_INT16: return 1 + k / 2;
    default: return k;
    }
}
static ptrdiff_t bytes_int8(ptrdiff_t K) { return 4 * (row_of_depth(FL_INT8, K - 1) + 1); }
static ptrdiff_t bytes_int16(ptrdiff_t K) { return 4 * (row_of_depth(FL_INT16, K - 1) + 1); }

static const Storage storage_f32 = {.bytes = bytes_f32, .tiles = tile_f32_table};

/* start + vector v of C of the stored weights of depth k in a panel: what a token id adds to its start values. */
INLINE V add_stored(int storage, V start, const void *panel, const int C, ptrdiff_t k, const int v) {
    if (fl_quantises(storage)) {
        const char *const words = (const char *)panel + (row_of_depth(storage, k) * C + v) * VL * 4;
        const VI q = storage == FL_INT8 ? VI_BYTE(words, k % 4) : VI_SHORT(words, k % 2);
        return V_DEQUANTISE(q, V_LOAD((const float *)panel + v * VL), start);
    }
    return V_ADD(start, weights(behind(panel, k * C, storage == FL_FLOAT16), v, storage == FL_FLOAT16));
}

/* -------------------------------------------------------------------------------------------------- quantised operands */

/* Rows of integers, quantised from rows of floats. */
typedef struct {
    uint8_t *bytes; /* (n, ld) FL_INT8: biased bytes, of two planes first the low ones, then the high ones; int16_t */
    ptrdiff_t ld;   /* bytes of a row: fl_row_bytes */
    float *units;   /* (n) what an integer 1 stands for */
    int planes;     /* 2: integers of 16 bits in two planes of bytes; else 1 */
    int of_16_bits; /* FL_INT16: int16_t */
} Integers;

enum { MOST_OF_8_BITS = 127, MOST_OF_16_BITS = 8191 };

/* The row's numbers times `times`, rounded to integers, halves to even. What lies behind them, up to ld, is 0. */
INLINE void round_row(uint8_t *to, ptrdiff_t ld, const float *from, ptrdiff_t K, float times, const int planes,
                      const int of_16_bits) {
    for (ptrdiff_t k = 0; k < ld / (of_16_bits ? 2 : planes); k += VL) {
        const int count = (int)fl_max(0, fl_min(VL, K - k));
        const V v = count == VL ? V_LOAD(from + k) : count ? V_LOADN(from + k, count) : V_SET1(0.0f);
        const VI i = VI_ROUND(V_MUL(v, V_SET1(times)));
        if (of_16_bits) {
            VI_PUT_SHORT(to + 2 * k, i);
            continue;
        }
        VI_PUT(to + k, planes == 2 ? VI_LOW(i) : i);
        if (planes == 2)
            VI_PUT(to + ld / 2 + k, VI_HIGH(i));
    }
}

/* A row of K floats as integers: u = m / most and j = v * (most / m), rounded, where m is the row's largest size, or
 * `least` (at least 2^-100) if that is larger. A row with NaN or infinity has the unit NaN. */
INLINE void quantise_row(uint8_t *to, ptrdiff_t ld, float *unit, const float *from, ptrdiff_t K, float least,
                         const int planes, const int of_16_bits) {
    const float most = planes == 2 || of_16_bits ? MOST_OF_16_BITS : MOST_OF_8_BITS;
    VI sizes = VI_SIZE(V_SET1(least));
    ptrdiff_t k = 0;
    for (; k + VL <= K; k += VL)
        sizes = VI_MAX(sizes, VI_SIZE(V_LOAD(from + k)));
    if (k < K)
        sizes = VI_MAX(sizes, VI_SIZE(V_LOADN(from + k, (int)(K - k))));
    const int32_t bits = VI_LARGEST(sizes);
    float m;
    memcpy(&m, &bits, sizeof m);
    if (__builtin_expect(m == 1.0f, 1)) { /* no division to wait for */
        *unit = 1.0f / most;
        round_row(to, ld, from, K, most, planes, of_16_bits);
        return;
    }
    *unit = bits < 0x7f800000 ? m / most : NAN;
    round_row(to, ld, from, K, most / m, planes, of_16_bits);
}

/* n rows of K floats, one behind the other. */
static void quantise(const Integers *to, const float *rows, ptrdiff_t n, ptrdiff_t K, float least) {
    const float above_zero = least > 0x1p-100f ? least : 0x1p-100f; /* m is a divisor */
    uint8_t *bytes = to->bytes;
    for (ptrdiff_t i = 0; i < n; i++, bytes += to->ld, rows += K)
        if (to->of_16_bits)
            quantise_row(bytes, to->ld, to->units + i, rows, K, above_zero, 1, 1);
        else if (to->planes == 2)
            quantise_row(bytes, to->ld, to->units + i, rows, K, above_zero, 2, 0);
        else
            quantise_row(bytes, to->ld, to->units + i, rows, K, above_zero, 1, 0);
}
