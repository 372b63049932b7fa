/* ways.h: the ways in which an instruction set multiplies bytes, and the table of storages. Part of kernels.h.
 *
 * Every instruction set has a plain way. Some processors have instructions for four products at once besides; they are
 * used where fl_has_dots says that this processor has them and that they have passed a test (dots_agree). The way changes
 * no result: sums of integers are exact. The instructions are written in assembly: gcc 12 surrounds the intrinsic with
 * moves of registers, which halves the speed of a tile; and no function needs a target region for them. */

#define DOTS_TABLE_(NAME) NAME##_table
#define DOTS_TABLE(NAME) DOTS_TABLE_(NAME)
#define TILES_OF(NAME) TILES(NAME)

#define DOTS(name) name##_plain
#define BY_PROCESSOR 0
#if VL == 1
INLINE VI plain_dot(VI x, VI w) {
    VI sum = 0;
    for (int j = 0; j < 4; j++)
        sum += (uint8_t)(x >> 8 * j) * (int8_t)(w >> 8 * j);
    return sum;
}
#elif VL == 4
INLINE VI plain_dot(VI x, VI w) {
    const int8x16_t a = vreinterpretq_s8_s32(x), b = vreinterpretq_s8_s32(w);
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
    return vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
}
#elif VL == 8
INLINE VI plain_dot(VI x, VI w) { return _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)); }
#else
INLINE VI plain_dot(VI x, VI w) { return _mm512_madd_epi16(_mm512_maddubs_epi16(x, w), _mm512_set1_epi16(1)); }
#endif
#if VL == 1
#define DOT(sum, x, w) ((sum) += plain_dot(x, w))
#elif VL == 4
#define DOT(sum, x, w) ((sum) = vaddq_s32(sum, plain_dot(x, w)))
#elif VL == 8
#define DOT(sum, x, w) ((sum) = _mm256_add_epi32(sum, plain_dot(x, w)))
#else
#define DOT(sum, x, w) ((sum) = _mm512_add_epi32(sum, plain_dot(x, w)))
#endif
#include "dots.h"

/* VNNI (AVX-512), AVX-VNNI (AVX2) and the dot products of Armv8.2. Assemblers know {vex} as long as compilers know the
 * instruction set: GCC 11, clang 12. */
#if VL == 16
#define DOT(sum, x, w) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w))
#elif VL == 8 && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define DOT(sum, x, w) __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(x), "x"(w))
#elif VL == 4
#if defined(__ARM_FEATURE_DOTPROD)
#define KNOWN ""
#else
#define KNOWN ".arch armv8.2-a+dotprod\n\t" /* or the assembler does not know the instruction */
#endif
#define DOT(sum, x, w) __asm__(KNOWN "sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(x), "w"(w))
#endif
#ifdef DOT
#define HAS_DOTS 1
#define DOTS(name) name##_dots
#define BY_PROCESSOR 1
#include "dots.h"
#else
#define HAS_DOTS 0
#endif

/* EPILOGUE for what is inlined for FL_INT8 too. */
#if HAS_DOTS
#define EPILOGUE_OF_BYTES(NAME, ROW, CA, C, THIRD_ACC)                                                                 \
    EPILOGUE_FUNCTIONS(NAME, ROW, CA, C, THIRD_ACC)                                                                    \
    static void NAME##_row_bytes(const Product *q, ptrdiff_t from, ptrdiff_t end, const void *context) {               \
        row_panels_dots(q, CA, C, THIRD_ACC, from, end, ROW, context);                                                 \
    }                                                                                                                  \
    static const Epilogue NAME##_epilogue = {NAME##_tile, NAME##_row, NAME##_row_bytes};
#else
#define EPILOGUE_OF_BYTES EPILOGUE
#endif

/* How a storage is computed with on this processor. */
static const Storage *storage_of(int storage) {
    static const Storage f16 = {.bytes = bytes_f16, .tiles = tile_f16_table, .row = row_f16, .row_gru = row_f16_gru};
    switch (storage) {
    case FL_FLOAT16: return &f16;
#if HAS_DOTS
    case FL_INT8: return fl_has_dots(&JOIN(fl_isa_, ISA)) ? &storage_dots : &storage_plain;
#else
    case FL_INT8: return &storage_plain;
#endif
    default: return &storage_f32;
    }
}

/* Whether the instructions give the plain way's sums, for the largest, smallest and some other bytes. Only called where
 * the processor says that it has them. */
static int dots_agree(void) {
#if HAS_DOTS
    enum { GROUPS = 9, C = 4 }; /* weights of one block */
    uint8_t a[ROWS * 4 * GROUPS];
    char w[(2 + GROUPS) * C * VL * 4] __attribute__((aligned(64)));
    uint32_t random = 1;
    for (size_t i = 0; i < sizeof a; i++, random = random * 1664525 + 1013904223)
        a[i] = (uint8_t)(i % 5 == 0 ? 255 - BYTE_BIAS : i % 5 == 1 ? BYTE_BIAS - 127 : (int)(random >> 24));
    for (size_t i = 0; i < sizeof w; i++, random = random * 1664525 + 1013904223)
        w[i] = (char)((i & 1 ? 1 : -1) * (int)(random >> 26));
    for (ptrdiff_t i = 0; i < C * VL * 4; i += 3) { /* pairs of neighbours whose sum is the largest, or the least */
        char *const pair = w + 2 * C * VL * 4 + i / 2 * 2;
        pair[0] = (char)(i & 1 ? 127 : -127), pair[1] = (char)(i & 1 ? 1 : -1);
    }
    VI dots[ROWS * 4], plain[ROWS * 4];
    sums_dots(dots, ROWS, 1, C, 1, a, 4 * GROUPS, w, 0, 0, GROUPS);
    sums_plain(plain, ROWS, 1, C, 1, a, 4 * GROUPS, w, 0, 0, GROUPS);
    return memcmp(dots, plain, sizeof dots) == 0;
#else
    return 0;
#endif
}
