/* host.h: what test_kernels.c needs of its surroundings. host.c beside it gives it on an operating system,
 * ../emulator/host.c on bare hardware. */
#ifndef FL_TEST_HOST_H
#define FL_TEST_HOST_H

#include <stddef.h>

/* At least so many writable bytes, with inaccessible pages directly before and behind them; *size says how many. They
 * live until host_release. */
char *host_pages(ptrdiff_t bytes, ptrdiff_t *size);
void host_release(void);

/* Print text. Of printf's conversions only %s, %d and %g. */
void host_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* What the host's main program calls: see test_kernels.c. */
typedef struct {
    int cases;        /* how many of the grid */
    const char *only; /* hold only this instruction set against the scalar one, and that there is one; NULL: all */
    int broken;       /* compare with one weight changed, to see that the comparison can fail */
    int verbose;      /* name each case before it runs */
} Options;

int test_kernels(Options options); /* how many failed */
void test_kernels_trapped(void);   /* says which case touched an inaccessible page */

#endif
