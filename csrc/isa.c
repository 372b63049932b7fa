/* isa.c: the compiled instruction sets, and which one new weights are packed for. */
#include <stdatomic.h>

#include "internal.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* What GCC 10's __builtin_cpu_supports has no name for. */
static int has_f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}
static int has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && has_f16c();
}
static int has_vnni(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 11 & 1);
}
#ifdef FL_EVEX /* see kernels/ways.h */
static int has_avx_vnni(void) { return has_avx512() && has_vnni(); }
#else
static int has_avx_vnni(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#endif
static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
static int has_dotprod(void) { return getauxval(AT_HWCAP) >> 20 & 1; } /* HWCAP_ASIMDDP */
#elif defined(__aarch64__)
static int has_dotprod(void) { return 0; } /* not asked for on other systems */
#endif
static int always(void) { return 1; }
static int never(void) { return 0; }

/* Best first. The first one that runs here is chosen, so an instruction set is listed only after it has passed the tests
 * of tests/c. has_dots: whether the processor has its dot products of bytes too. */
static const struct {
    const fl_isa *isa;
    int (*runs_here)(void), (*has_dots)(void);
} list[] = {
#if defined(__x86_64__)
    {&fl_isa_avx512, has_avx512, has_vnni},
    {&fl_isa_avx2, has_avx2, has_avx_vnni},
#elif defined(__aarch64__)
    {&fl_isa_neon, always, has_dotprod}, /* NEON is part of the base of 64-bit ARM */
#endif
    {&fl_isa_scalar, always, never},
};
enum { ISA_COUNT = sizeof list / sizeof *list };

static int is_listed(int isa) { return isa >= 0 && isa < ISA_COUNT; }

const fl_isa *fl_isa_at(int isa) { return list[isa].isa; }
const char *fl_isa_name(int isa) { return is_listed(isa) ? list[isa].isa->name : NULL; }
int fl_isa_usable(int isa) { return is_listed(isa) && list[isa].runs_here(); }

static atomic_int chosen = -1; /* -1: none yet */

int fl_isa_chosen(void) {
    int now = atomic_load(&chosen);
    if (now >= 0)
        return now;
    int best = 0;
    while (!list[best].runs_here())
        best++;
    /* Another thread may have chosen meanwhile: its choice stands. */
    return atomic_compare_exchange_strong(&chosen, &now, best) ? best : now;
}

void fl_isa_choose(int isa) { atomic_store(&chosen, isa); }

/* ------------------------------------------------------------------------------------------------ dot products of bytes */

static atomic_int dots_are[ISA_COUNT]; /* by instruction set: 0, not known yet; 1, right; -1, absent or wrong */
static atomic_int dots_allowed = 1;

int fl_has_dots(const fl_isa *isa) {
    int i = 0;
    while (list[i].isa != isa)
        i++;
    if (atomic_load_explicit(&dots_are[i], memory_order_relaxed) == 0)
        atomic_store(&dots_are[i], list[i].has_dots() && isa->dots_agree() ? 1 : -1);
    return atomic_load_explicit(&dots_allowed, memory_order_relaxed) &&
           atomic_load_explicit(&dots_are[i], memory_order_relaxed) > 0;
}

int fl_dots(int isa) { return is_listed(isa) && list[isa].runs_here() && fl_has_dots(list[isa].isa); }
void fl_dots_allow(int allowed) { atomic_store(&dots_allowed, allowed); }
