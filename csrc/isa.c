/* isa.c: the compiled instruction sets, and which one new weights are packed for. */
#include <stdatomic.h>

#include "internal.h"

#if defined(__x86_64__)
static int has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}
static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif
static int always(void) { return 1; }

/* Best first. The first one that runs here is chosen, so an instruction set is listed only after it has passed the tests
 * of tests/c. */
static const struct {
    const fl_isa *isa;
    int (*runs_here)(void);
} list[] = {
#if defined(__x86_64__)
    {&fl_isa_avx512, has_avx512},
    {&fl_isa_avx2, has_avx2},
#elif defined(__aarch64__)
    {&fl_isa_neon, always}, /* part of the base of 64-bit ARM */
#endif
    {&fl_isa_scalar, always},
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
