/* check.h: what the cases of test_kernels.c share: memory, results, and how they are compared. */
#ifndef FL_TEST_CHECK_H
#define FL_TEST_CHECK_H

#include <stddef.h>
#include <stdint.h>

#define LENGTH(list) ((int)(sizeof(list) / sizeof *(list)))

/* How a case is run. */
typedef struct {
    int isa, threads;
    int at_start; /* buffers begin at an inaccessible page; else they end at one */
    int train;    /* with a tape, and then backward */
    int broken;   /* one weight changed */
    int mapped;   /* outputs go by a row map: 1, sequence after sequence; 2, step after step */
    int no_dots;  /* without the processor's dot products of bytes */
} How;

/* What came of a run, by name. */
typedef struct {
    const char *name;
    int direction;
    const float *data;
    ptrdiff_t count;
    int is_gradient;
} Part;

typedef struct {
    Part parts[48];
    int count;
} Result;

/* Cases of one kind. */
typedef struct {
    int (*count)(int cases);        /* how many, where the grid is to have so many */
    void (*make)(int n, int cases); /* the n-th becomes the present one */
    void (*describe)(void);
    Result (*run)(How how);
    void (*check_bits)(How how, const Result *whole); /* the same bits, whatever the way */
    int exact;                                        /* every instruction set has the scalar one's bits */
    int inference;                                    /* without a tape and backward */
    /* Results against the scalar ones, and against a model; NULL: by expect_near */
    void (*compare)(How how, const Result *r, const Result *scalar);
} Family;
extern const Family recurrent, recurrent_float16, recurrent_int8, recurrent_int16, dense, optimisers;

/* Plain memory, one piece after another; going back to a mark gives back what was kept since. */
void *keep(const void *from, ptrdiff_t bytes);
ptrdiff_t keep_mark(void);
void keep_from(ptrdiff_t mark);

/* Kept numbers: random ones in +-scale, of a sequence that begin_random starts, or all the same. */
void begin_random(int seed);
double uniform(void); /* -1 to 1 */
float *random_floats(ptrdiff_t count, double scale);
float *constant_floats(ptrdiff_t count, float value);

/* Guarded memory, for one run: exactly so much, at an inaccessible page, a copy or (from NULL) full of NaN. */
void begin_guarded(int at_start);
void *guarded(const void *from, ptrdiff_t bytes, ptrdiff_t alignment);
float *floats(const float *from, ptrdiff_t count);
float *maybe_floats(const float *from, ptrdiff_t count); /* NULL for NULL */
float *aligned_floats(ptrdiff_t count);
void *aligned_bytes(ptrdiff_t bytes);
void end_guarded(void); /* frees it, and sees whether anything was written beside it */

/* Keep an array (or none, for NULL) as part of a result. NaN is a failure. */
void record(Result *r, const char *name, int direction, const float *data, ptrdiff_t count, int is_gradient);
const Part *find(const Result *r, const char *name, int direction);

void expect_bits(const char *what, const char *name, const float *got, const float *expected, ptrdiff_t count);
void expect_same(const char *what, const Result *got, const Result *whole); /* everything in got */
void expect_near(const Result *got, const Result *scalar);
void expect_values(const char *name, const float *got, const float *expected, ptrdiff_t count, double within);

/* Failures of the present case. failed() counts one more and says whether to tell about it, having begun the line. */
void begin_messages(int most); /* that are told about */
void begin_failures(const Family *family, const char *isa);
int failed(void);
int failure_count(void);
void describe(void);

#endif
