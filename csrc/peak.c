/* peak.c: the most multiply-adds and bytes read in a second that the calling thread reaches, for the benchmark reports.
 * (For several threads, several threads call.) */
#include "internal.h"

#include <stdlib.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/* Twelve chains of multiply-adds, all in registers: two a cycle with a latency of up to five need ten. */
#define FOR_CHAINS(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
enum { CHAINS = 12, STREAMS = 8 };

#define BEGIN_CHAIN(i) VEC a##i = (VEC){0} + start * (float)(i);
#define EXTEND_CHAIN(i) a##i = MUL_ADD(a##i, half, half); /* goes to 1: never a special number */
#define END_CHAIN(i) sum += a##i;

/* An instruction set's two functions, over its vector type VEC and fused multiply-add MUL_ADD. Their result is not used;
 * with it the compiler cannot drop the work. */
#define MEASURED(ISA)                                                                                                  \
    static NOINLINE float fma_##ISA(ptrdiff_t rounds, float start) { /* CHAINS vectors a round */                      \
        const VEC half = (VEC){0} + 0.5f;                                                                              \
        VEC sum = {0};                                                                                                 \
        FOR_CHAINS(BEGIN_CHAIN)                                                                                        \
        for (ptrdiff_t i = 0; i < rounds; i++) {                                                                       \
            FOR_CHAINS(EXTEND_CHAIN)                                                                                   \
        }                                                                                                              \
        FOR_CHAINS(END_CHAIN)                                                                                          \
        float first;                                                                                                   \
        memcpy(&first, &sum, sizeof first);                                                                            \
        return first;                                                                                                  \
    }                                                                                                                  \
    static NOINLINE float read_##ISA(const char *p, const char *end) { /* whole STREAMS vectors */                     \
        VEC sums[STREAMS] = {0};                                                                                       \
        for (; p < end; p += sizeof sums)                                                                              \
            EACH(i, STREAMS) {                                                                                         \
                VEC v;                                                                                                 \
                memcpy(&v, p + (size_t)i * sizeof v, sizeof v);                                                        \
                sums[i] += v;                                                                                          \
            }                                                                                                          \
        VEC sum = {0};                                                                                                 \
        for (int i = 0; i < STREAMS; i++)                                                                              \
            sum += sums[i];                                                                                            \
        float first;                                                                                                   \
        memcpy(&first, &sum, sizeof first);                                                                            \
        return first;                                                                                                  \
    }

#if defined(__x86_64__)
TARGET_BEGIN("avx512f")
#define VEC __m512
#define MUL_ADD _mm512_fmadd_ps
MEASURED(avx512)
#undef VEC
#undef MUL_ADD
TARGET_END
TARGET_BEGIN("avx2,fma")
#define VEC __m256
#define MUL_ADD _mm256_fmadd_ps
MEASURED(avx2)
#undef VEC
#undef MUL_ADD
TARGET_END
#elif defined(__aarch64__)
#define VEC float32x4_t
#define MUL_ADD(a, b, c) vfmaq_f32(c, a, b)
MEASURED(neon)
#undef VEC
#undef MUL_ADD
#endif
#define VEC float
#define MUL_ADD(a, b, c) ((a) * (b) + (c))
MEASURED(scalar)

static const struct peak {
    const char *isa; /* its name in isa.c's list */
    ptrdiff_t vl;    /* floats of a vector */
    float (*fma)(ptrdiff_t rounds, float start);
    float (*read)(const char *p, const char *end);
} peaks[] = {
#if defined(__x86_64__)
    {"avx512", 16, fma_avx512, read_avx512},
    {"avx2", 8, fma_avx2, read_avx2},
#elif defined(__aarch64__)
    {"neon", 4, fma_neon, read_neon},
#endif
    {"scalar", 1, fma_scalar, read_scalar}, /* the last one serves every other name */
};

static const struct peak *peak_of(int isa) {
    const char *name = fl_isa_name(isa);
    const struct peak *one = peaks, *last = &peaks[sizeof peaks / sizeof *peaks - 1];
    while (one < last && !(name && strcmp(name, one->isa) == 0))
        one++;
    return one;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

enum { ROUNDS = 20000 }; /* some 50 us, so that the clock costs nothing */

double fl_measure_fma(int isa, double seconds) {
    const struct peak *one = peak_of(isa);
    volatile float unread = 0;
    double best = 0, begin = now(), before = begin, after;
    do {
        unread = one->fma(ROUNDS, unread);
        after = now();
        const double rate = 2.0 * (double)(CHAINS * one->vl * ROUNDS) / (after - before);
        best = rate > best ? rate : best;
        before = after;
    } while (after - begin < seconds);
    return best;
}

double fl_measure_dots(int isa, int storage, double seconds) {
    if (!fl_isa_usable(isa) || !fl_quantises(storage))
        return 0;
    double best = 0, begin = now(), before = begin, after;
    do {
        const double operations = 2.0 * (double)fl_isa_at(isa)->dots_peak(storage, ROUNDS);
        after = now();
        const double rate = operations / (after - before);
        best = rate > best ? rate : best;
        before = after;
    } while (after - begin < seconds);
    return best;
}

double fl_measure_read(int isa, ptrdiff_t bytes, double seconds) {
    const struct peak *one = peak_of(isa);
    const ptrdiff_t block = STREAMS * one->vl * (ptrdiff_t)sizeof(float);
    const ptrdiff_t size = fl_max(1, bytes / block) * block;
    const ptrdiff_t passes = fl_max(1, (1 << 20) / size); /* 1 MB between two looks at the clock */
    void *allocated = NULL;
    if (posix_memalign(&allocated, 64, (size_t)size))
        return 0;
    char *const memory = memset(allocated, 0, (size_t)size);
    volatile float unread = 0;
    double best = 0, begin = now(), before = begin, after;
    do {
        for (ptrdiff_t i = 0; i < passes; i++)
            unread = one->read(memory, memory + size);
        after = now();
        const double rate = (double)(size * passes) / (after - before);
        best = rate > best ? rate : best;
        before = after;
    } while (after - begin < seconds);
    (void)unread;
    free(allocated);
    return best;
}

#if defined(__clang__)
const char *fl_compiler(void) { return "Clang " __clang_version__; }
#elif defined(__GNUC__)
const char *fl_compiler(void) { return "GCC " __VERSION__; }
#else
const char *fl_compiler(void) { return "not known"; }
#endif
