/* pool.h: the one door to the thread pool. How it works is told in pool.c.
 */
#ifndef FL_POOL_H
#define FL_POOL_H

#include <stdint.h>

/* One piece of one step. `worker` is 0 (the caller) .. threads-1: the index of a scratch area that nobody else uses
 * meanwhile. A piece may be run by any worker, so its result must not depend on the number. */
typedef void (*fl_piece_fn)(void *arg, int step, int piece, int worker);

/* Run fn for every step 0..steps-1 and every piece 0..pieces-1. All pieces of a step are complete, and what they wrote
 * is visible, before any piece of the next step starts. Never fails: where no second thread can be had (threads <= 1,
 * one piece, a call from inside a piece, the pool in use by another caller, no thread to be made), the caller does it
 * all by itself, as worker 0.
 *
 * Every participant flushes denormals to zero meanwhile; the caller's floating-point mode is restored at the end.
 *
 * Returns for how many nanoseconds the caller waited for pieces that others had. */
uint64_t fl_run(fl_piece_fn fn, void *arg, int steps, int pieces, int threads);

/* Nanoseconds, from some point in time; and for how many of them a worker that has just worked stays awake. */
uint64_t fl_now(void);
enum { FL_SPIN_NS = 5000 }; /* about what a futex sleep and wake-up costs on a quiet machine */

#endif
