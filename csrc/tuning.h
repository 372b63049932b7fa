/* tuning.h: every number that was chosen by measurement on a machine.
 *
 * Machine and date, unless a comment names others: 2-core virtual machine, AMD EPYC (Zen 5: AVX-512 in full, 240 to
 * 285 GF/s a core, 48 KiB + 1 MiB + shared L3 caches), 2026-11-21 and 2026-11-22; docs/performance.md has the figures.
 * A new machine is tried by changing numbers here: no number changes a result. Tile sizes (ROWS, GRAD_ROWS) follow from
 * the number of vector registers and stand in isa_*.c. */
#ifndef FL_TUNING_H
#define FL_TUNING_H

/* The C tests set FL_LEAST to 0: then the smallest call is split among threads. */
#ifndef FL_LEAST
#define FL_LEAST 1
#endif

/* ---- how a call is cut (plan.h); work is counted in multiply-adds ---- */

/* Work of a call below which a second thread costs more than it brings: about 10 us of one core. */
#define FL_LEAST_WORK (FL_LEAST * 4e5)

/* Work of a batch's step below which the workers of a split by units mostly wait at barriers: about 2 us of one core. */
#define FL_LEAST_STEP (FL_LEAST * 1e5)

/* Work of a single sequence's step above which a split by units always pays, and above which it pays only if a barrier
 * is cheap: about 100 ns where cores share a cache, 300 to 600 ns where they do not. A virtual machine may change from
 * one to the other within seconds. */
#define FL_LEAST_STEP_OF_ONE (FL_LEAST * 6.6e4)
#define FL_CHEAP_STEP_OF_ONE (FL_LEAST * 3e4)

/* Work of one sequence's input that is worth preparing on another thread, and of one stretch of it. (Measured again on
 * 2026-11-29, on a 2-core virtual machine with AMD EPYC, Zen 4.) */
#define FL_LEAST_INPUT (FL_LEAST * 1e6)
#define FL_PIPELINE_WORK 400000

/* Multiply-adds of integers, as so many of floats, for each start value below which the start values come more slowly from
 * the other thread than one thread computes: with int8 at I=H=128 two threads took 1.2 times as long as one. (2026-11-29,
 * AMD EPYC, Zen 4, 2-core virtual machine.) */
#define FL_INTEGERS_DEPTH (FL_LEAST * 60)

/* Work of a row, so numbers of a direction's weights, above which the weights stay in no cache from step to step, so
 * that not every thread should read all of them; and up to which a core's own cache holds the recurrent half. */
#define FL_LARGE_ROW 6e6
#define FL_SMALL_ROW 6e5

/* Work of a backward call of one sequence below which one thread does all: other threads would sum gradients of rows
 * that lie in the walking thread's cache. */
#define FL_LEAST_SUMS (FL_LEAST * 5e6)

/* How much quicker products of integers are than those of floats. (2026-11-29, AMD EPYC, Zen 4, with VNNI, calls of 1 to 64
 * rows, H from 128 to 1024: int8 3.0 to 4.4.) */
#define FL_INT8_SPEED 3
#define FL_INT16_SPEED 1.5

enum {
    FL_CHEAP_BARRIER_NS = 350,  /* a barrier that takes longer is not cheap */
    FL_SLOW_CALLS = 3,          /* calls with slow barriers, in a row, after which cheap steps are not split */
    FL_SLOW_REST_NS = 20000000, /* how long cheap steps are then not split */

    FL_START_FLOATS = 131072, /* start values of a stretch, at most: 512 KiB */
    FL_LEAST_STEPS = 4,       /* with fewer steps, copies of the state cost more than false sharing */
    FL_GRAD_BLOCK = 128,      /* rows that a weight gradient sums at once: the operands fit the first-level cache */
    FL_STRETCH_ROWS = 2 * FL_GRAD_BLOCK, /* rows of a backward stretch: they stay in cache between walk and sums */
    FL_SPAN_BLOCK = 16384, /* numbers of an optimiser's piece: worth a piece, and within the second-level cache */
    FL_LEAST_BLOCKS = 4,   /* fewer blocks are done before a second thread is awake */

    /* Floats between what two threads write again and again (4 KiB): the hardware prefetcher reads some lines beyond
     * the lines that a thread reads, and would take them from the other thread in every step. */
    FL_APART = 1024
};

/* Work of a call that takes some 50 us on one core, and what each row counts for beside it (0.1 us): see api.h. Getting
 * Python's lock back from a busy Python thread may take 5 ms. */
#define FL_LOCKED_WORK 1000000
#define FL_ROW_WORK 2000

/* ---- Python's lock (lock.c) ---- */
enum {
    FL_LOCK_NS = 1000000,       /* a thread of short calls lets go of the lock after so long */
    FL_LOCK_MOST_NS = 16000000, /* the longest such time, where no other thread has wanted the lock for a while */
    FL_LOCK_RAN_NS = 2000,      /* a thread that takes the lock computes for so long at least */
    FL_LOCK_CALL_NS = 200000,   /* a short call and what Python does before it take less */
    FL_LOCK_CALLS = 200,        /* a thread does so many calls before it lets go, even if they take longer: p99 */
    FL_LOCK_WAKE_NS = 50000     /* a thread that waits for the lock is awake after so long */
};

/* ---- many streams (rows.c) ---- */
enum {
    FL_BLOCK_BYTES = 512 * 1024, /* input, states and outputs of a block of rows: half of the second-level cache */
    FL_BLOCK_WEIGHTS = 1 << 20,  /* weights of more bytes come from beyond that cache for each block anew ... */
    FL_BLOCK_LEAST = 240,        /* ... so that a block then has so many rows at least; else ... */
    FL_BLOCK_MOST = 48,          /* ... it has so many at most: records come from memory while a block is computed */
    FL_SLOTS_AHEAD = 8           /* slots that are prefetched before their turn */
};

/* ---- a stream's short steps (stream.c) ---- */
enum {
    FL_WAKING_STEPS = 16,    /* first steps of a round, with all threads: the first of them wake the threads */
    FL_TRIED_WITH_ALL = 20,  /* steps up to this one are timed with all threads */
    FL_TRIED_STEPS = 24,     /* further steps up to this one are timed with one thread */
    FL_LEAST_ROUND = 256,    /* steps of a round after threads have not helped for the first time; doubled each time */
    FL_LONGEST_ROUND = 4096, /* steps of a round otherwise, and at most; and from one try of prefetching to the next */

    /* Multiples of 4, so that the ways of take_step share them evenly. */
    FL_PREFETCH_FIRST_STEPS = 4, /* do not count: the first of all fetches its weights from main memory */
    FL_PREFETCH_TRIED_STEPS = 68 /* further steps up to this one are timed, without and with prefetching */
};

/* ---- the thread pool (pool.c) ---- */
enum {
    FL_SPIN_NS = 5000, /* a worker spins so long before it sleeps: a futex sleep and wake-up on a quiet machine */
#if defined(__linux__)
    FL_CALLER_SPIN_NS = 50000, /* the caller does: a worker on an idle processor needs so long to come; see make_room */
#else
    FL_CALLER_SPIN_NS = FL_SPIN_NS,
#endif
    FL_LOOK_NS = 2000,      /* after such a wait, a participant looks whether others have begun their units */
    FL_DOZE_NS = 100000,    /* a sleep within a call; see doze */
    FL_POLLS = 8,           /* looks at a counter between two looks at the clock, which takes as long as some of them */
    FL_SLACK_NS = 200000,   /* a call may lose so much to busy neighbours before the pool rests: some wake-ups */
    FL_WELL_NS = 5000000,   /* more than a thread runs at a time where others want its processor */
    FL_STRIKES = 5,         /* the pool's rest doubles at most so often */
    FL_REST_NS = 100000000, /* the pool's rest is at most so long */
    FL_LINES = 128          /* bytes between variables of different threads: hardware fetches cache lines in pairs */
};

/* ---- products of a single row (kernels/products.h) ---- */

/* Bytes of a panel for which one panel at a time is quicker than a pair, with vectors of 64 bytes: the accumulators of
 * one panel take what the second-level cache gives, and one stream comes quicker than two. */
enum { FL_ALONE_FROM = 24 * 1024, FL_ALONE_TO = 96 * 1024 };

/* A stream tries whether to prefetch a step's weights of so many bytes: they lie in the third-level cache. On Zen 4
 * prefetching makes a step a tenth (H=256) to a quarter (H=512) slower, on Zen 5 up to a fifth quicker. Weights in main
 * memory come a fifth slower by it. */
enum { FL_PREFETCH_FROM = 1 << 20, FL_PREFETCH_TO = 14 << 20 };
enum { FL_PREFETCH_AHEAD = 256 }; /* floats ahead of the multiply-adds: 1 KiB */

/* Floats of h that a worker prefetches after a barrier, at most: 8 KiB. */
enum { FL_PREFETCH_H = 2048 };

/* ---- sizes that keep operands in a cache ---- */
enum {
    FL_PACK_STRETCH = 64, /* depth of a panel that is packed at once: what is written meanwhile is at most 16 KiB */
    FL_GRAD_PACK = 16,    /* columns of a weight gradient's operand that are packed side by side */
    FL_GRAD_C = 3,        /* vectors of a weight gradient's tile */
    FL_DENSE_ROWS = 96,   /* rows of a dense layer that go through a product together: second-level cache */
    FL_DENSE_DEPTH = 512, /* depth of the panels of dx that go with them */
    FL_DENSE_SUMS = 512,  /* outputs whose weights' gradients are summed together */
    FL_COLUMN_PIECE = 16, /* fl_update_columns: rows of p in a piece: a cache line of each gradient row */
    FL_COLUMN_IDS = 128   /* fl_update_columns: gradient rows of a tile, which stays in the first-level cache */
};

#endif
