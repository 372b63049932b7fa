/* ways.h: the ways in which an instruction set multiplies integers, and the table of storages. Part of kernels.h.
 *
 * Every instruction set has a plain way. Some processors have instructions for all products of a word at once; they are
 * used where fl_has_dots says that this processor has them and that they have passed a test (dots_agree). The way changes
 * no result: sums of integers are exact. The instructions are written in assembly: gcc 12 surrounds the intrinsic with
 * moves of registers, which halves the speed of a tile; and no function needs a target region for them. */

#define DOTS_TABLE_(NAME) NAME##_table
#define DOTS_TABLE(NAME) DOTS_TABLE_(NAME)
#define TILES_OF(NAME, MAIN) INTEGER_TILES(NAME, MAIN)

/* The products of the four bytes, or of the two int16_t, of each word. */
#if VL == 1
INLINE VI dot_bytes(VI x, VI w) {
    VI sum = 0;
    for (int j = 0; j < 4; j++)
        sum += (uint8_t)(x >> 8 * j) * (int8_t)(w >> 8 * j);
    return sum;
}
INLINE VI dot_shorts(VI x, VI w) { return (int16_t)x * (int16_t)w + (x >> 16) * (w >> 16); }
#elif VL == 4
INLINE VI dot_bytes(VI x, VI w) {
    const int8x16_t a = vreinterpretq_s8_s32(x), b = vreinterpretq_s8_s32(w);
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
    return vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
}
INLINE VI dot_shorts(VI x, VI w) {
    const int16x8_t a = vreinterpretq_s16_s32(x), b = vreinterpretq_s16_s32(w);
    return vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b));
}
#elif VL == 8
INLINE VI dot_bytes(VI x, VI w) { return _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)); }
INLINE VI dot_shorts(VI x, VI w) { return _mm256_madd_epi16(x, w); }
#else
INLINE VI dot_bytes(VI x, VI w) { return _mm512_madd_epi16(_mm512_maddubs_epi16(x, w), _mm512_set1_epi16(1)); }
INLINE VI dot_shorts(VI x, VI w) { return _mm512_madd_epi16(x, w); }
#endif

/* Chains of sums that hide the latency of one another's instructions: two a cycle with a latency of up to five need ten. */
enum { PEAK_CHAINS = 12 };
#define TAKEN_FOR_ANOTHER(x) __asm__("" : IN_REGISTER(x))
#if VL == 1
#define IN_REGISTER "+r"
#elif VL == 4
#define IN_REGISTER "+w"
#elif VL == 8
#define IN_REGISTER "+x"
#else
#define IN_REGISTER "+v"
#endif

#define STORED FL_INT8
#define DOTS(name) name##_int8
#define BY_PROCESSOR 0
#define DOT(sum, x, w) ((sum) = VI_ADD(sum, dot_bytes(x, w)))
#include "dots.h"

#define STORED FL_INT16
#define DOTS(name) name##_int16
#define BY_PROCESSOR 0
#define DOT(sum, x, w) ((sum) = VI_ADD(sum, dot_shorts(x, w)))
#include "dots.h"

/* VNNI (AVX-512), AVX-VNNI (AVX2), and the dot products of Armv8.2, which has none of int16_t. Assemblers know {vex} as long
 * as compilers know the instruction set: GCC 11, clang 12. The C tests replace the instructions of AVX-VNNI: with FL_EVEX by
 * AVX-512's encoding of the same ones, which more processors run, and with FL_WRONG_DOTS by one with its operands in each other's place. */
#ifdef FL_EVEX
#define ENCODED "%{evex%} "
#else
#define ENCODED "%{vex%} "
#endif
#ifdef FL_WRONG_DOTS
#define OF_BYTES "vpdpbusd %1, %2, %0" /* signed and unsigned bytes in each other's place */
#else
#define OF_BYTES "vpdpbusd %2, %1, %0"
#endif
#if VL == 16
#define DOT_BYTES(sum, x, w) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w))
#define DOT_SHORTS(sum, x, w) __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w))
#elif VL == 8 && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define DOT_BYTES(sum, x, w) __asm__(ENCODED OF_BYTES : "+x"(sum) : "x"(x), "x"(w))
#define DOT_SHORTS(sum, x, w) __asm__(ENCODED "vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(x), "x"(w))
#elif VL == 4
#if defined(__ARM_FEATURE_DOTPROD)
#define KNOWN ""
#else
#define KNOWN ".arch armv8.2-a+dotprod\n\t" /* or the assembler does not know the instruction */
#endif
#define DOT_BYTES(sum, x, w) __asm__(KNOWN "sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(x), "w"(w))
#endif

#ifdef DOT_BYTES
#define STORED FL_INT8
#define DOTS(name) name##_int8_dots
#define BY_PROCESSOR 1
#define DOT DOT_BYTES
#include "dots.h"
#endif
#ifdef DOT_SHORTS
#define STORED FL_INT16
#define DOTS(name) name##_int16_dots
#define BY_PROCESSOR 1
#define DOT DOT_SHORTS
#include "dots.h"
#endif

/* EPILOGUE for what is inlined for FL_INT8 too. */
#ifdef DOT_BYTES
#define EPILOGUE_OF_BYTES(NAME, ROW, CA, C, THIRD_ACC)                                                                 \
    EPILOGUE_FUNCTIONS(NAME, ROW, CA, C, THIRD_ACC)                                                                    \
    static void NAME##_row_bytes(const Product *q, ptrdiff_t from, ptrdiff_t end, const void *context) {               \
        row_panels_int8_dots(q, CA, C, THIRD_ACC, from, end, ROW, context);                                            \
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
#ifdef DOT_BYTES
    case FL_INT8: return fl_has_dots(&JOIN(fl_isa_, ISA)) ? &storage_int8_dots : &storage_int8;
#else
    case FL_INT8: return &storage_int8;
#endif
#ifdef DOT_SHORTS
    case FL_INT16: return fl_has_dots(&JOIN(fl_isa_, ISA)) ? &storage_int16_dots : &storage_int16;
#else
    case FL_INT16: return &storage_int16;
#endif
    default: return &storage_f32;
    }
}

static ptrdiff_t dots_peak(int storage, ptrdiff_t rounds) {
    volatile int unread = storage_of(storage)->peak(rounds);
    (void)unread;
    return rounds * PEAK_CHAINS * VL * (storage == FL_INT8 ? 4 : 2);
}

/* Whether the instructions give the plain way's sums, for the largest, smallest and some other numbers. Only called where
 * the processor says that it has them. */
#ifdef DOT_BYTES
enum { TESTED_GROUPS = 9, TESTED_C = 4, TESTED_VECTORS = (2 + TESTED_GROUPS) * TESTED_C };

/* Random bits; int8 pairs as quantising makes them, with the largest and the least sum among them; or int16_t in range. */
static void fill_words(int storage, uint8_t *a, char *w) {
    uint32_t random = 1;
    for (ptrdiff_t i = 0; i < ROWS * 4 * TESTED_GROUPS; i++, random = random * 1664525 + 1013904223)
        a[i] = storage == FL_INT16 && i % 2 ? (uint8_t)((random >> 27) - 16) : (uint8_t)(random >> 24);
    for (ptrdiff_t i = 0; i < TESTED_VECTORS * VL * 4; i += 2, random = random * 1664525 + 1013904223) {
        const int q = (int)(random >> 24) - 128, largest = i % 6 == 0;
        w[i] = (char)(largest ? (q < 0 ? -127 : 127) : q / 2);
        w[i + 1] = (char)(storage == FL_INT16 ? q / 8 : largest ? (q < 0 ? -1 : 1) : -q / 2);
    }
}

static int dots_agree(void) {
    uint8_t a[ROWS * 4 * TESTED_GROUPS];
    char w[TESTED_VECTORS * VL * 4] __attribute__((aligned(64)));
    VI sums[2][ROWS * 4];
    fill_words(FL_INT8, a, w);
    sums_int8(sums[0], ROWS, 1, TESTED_C, 1, a, 4 * TESTED_GROUPS, w, 0, 0, TESTED_GROUPS);
    sums_int8_dots(sums[1], ROWS, 1, TESTED_C, 1, a, 4 * TESTED_GROUPS, w, 0, 0, TESTED_GROUPS);
    int same = memcmp(sums[0], sums[1], sizeof sums[0]) == 0;
#ifdef DOT_SHORTS
    fill_words(FL_INT16, a, w);
    sums_int16(sums[0], ROWS, 1, TESTED_C, 1, a, 4 * TESTED_GROUPS, w, 0, 0, TESTED_GROUPS);
    sums_int16_dots(sums[1], ROWS, 1, TESTED_C, 1, a, 4 * TESTED_GROUPS, w, 0, 0, TESTED_GROUPS);
    same = same && memcmp(sums[0], sums[1], sizeof sums[0]) == 0;
#endif
    return same;
}
#else
static int dots_agree(void) { return 0; }
#endif
