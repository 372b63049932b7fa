/* test_kernels.c: every compiled instruction set against the scalar one, through api.h alone.
 *
 * Each case runs forward and backward on each instruction set, in buffers of exactly the promised size between
 * inaccessible pages, outputs and scratch memory full of NaN beforehand. Its results are held against the scalar ones,
 * and its bits against those of other placements, thread counts, batches, stretches of time and steps.
 *
 * Compile with -DFL_LEAST=0, or small calls do not split among threads. */
#include <string.h>

#include "check.h"
#include "host.h"

#include "api.h"

static const Family *const families[] = {&recurrent, &recurrent_float16, &recurrent_int8, &recurrent_int16,
                                         &dense,     &optimisers};

/* Which instruction sets run: a list ended by -1, the scalar one first. */
static void find_isas(const char *only, int *isas) {
    int count = 1;
    for (int i = 0; fl_isa_name(i); i++) {
        const char *name = fl_isa_name(i);
        if (!strcmp(name, "scalar"))
            isas[0] = i;
        else if (only && strcmp(name, only) != 0)
            continue;
        else if (fl_isa_usable(i))
            isas[count++] = i;
        else
            host_say("%s: this processor does not have it\n", name);
    }
    isas[count] = -1;
}

void test_kernels_trapped(void) {
    describe();
    host_say("touched memory that is not its own\n");
}

/* One case on all of isas; counts[0] passed, counts[1] failed. */
static void run_case(const Family *family, const int *isas, Options options, int *counts) {
    Result scalar = {.count = 0};
    for (const int *isa = isas; *isa >= 0; isa++) {
        const ptrdiff_t mark = keep_mark();
        const int is_scalar = isa == isas, counted = !is_scalar || !(options.broken || options.only);
        const How how = {
            .isa = *isa, .threads = 1, .train = !family->inference, .broken = options.broken && !is_scalar};
        begin_failures(family, fl_isa_name(*isa));
        if (options.verbose) {
            describe();
            host_say("\n");
        }
        const Result r = family->run(how);
        if (is_scalar)
            scalar = r;
        else if (family->compare)
            family->compare(how, &r, &scalar);
        else
            expect_near(&r, &scalar);
        if (family->exact && !is_scalar && !options.broken)
            expect_same("against the scalar one", &r, &scalar);
        if (counted && !options.broken)
            family->check_bits(how, &r);
        counts[failure_count() > 0] += counted;
        if (!is_scalar)
            keep_from(mark);
    }
}

/* Returns how many of the pairs of a case and an instruction set failed. With options.broken they should, and nothing but
 * the comparison with the scalar one is done; that one does not count then, nor beside a single other one. */
int test_kernels(Options options) {
    int isas[16], counts[2] = {0, 0}, all = 0;
    find_isas(options.only, isas);
    if (options.only && isas[1] < 0) {
        host_say("%s: not here, so not tested\n0 passed, 1 failed\n", options.only);
        return 1;
    }
    begin_messages(options.broken ? 1 : 10);
    for (int f = 0; f < LENGTH(families); f++)
        for (int n = 0; n < families[f]->count(options.cases); n++, all++) {
            keep_from(0);
            families[f]->make(n, options.cases);
            run_case(families[f], isas, options, counts);
        }
    host_say("%d cases:", all);
    for (const int *isa = isas; *isa >= 0; isa++)
        host_say(" %s%s", fl_isa_name(*isa), fl_dots(*isa) ? " (and its dot products)" : "");
    host_say("\n%d passed, %d failed\n", counts[0], counts[1]);
    return counts[1];
}
