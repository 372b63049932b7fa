/* pool.h: the interface of the thread pool, which pool.c explains. */
#ifndef FL_POOL_H
#define FL_POOL_H

#include <stdint.h>

/* One piece of one step. `worker` is 0 (the caller) to threads-1; no two pieces run at the same time with the same number,
 * so it may index scratch memory. Any worker may run any piece: the result must not depend on the number. */
typedef void (*fl_piece_fn)(void *arg, int step, int piece, int worker);

/* Runs fn for every step 0..steps-1 and every piece 0..pieces-1. A step ends with a barrier: all its pieces are complete,
 * and what they wrote is visible, before any piece of the next step starts. Never fails: where there is no second thread
 * (threads <= 1, one piece, a call from inside a piece, the pool in use by another caller, no thread could be made), the
 * caller runs all pieces itself, as worker 0.
 *
 * Every participant flushes denormals to zero meanwhile; the caller's floating-point mode is restored at the end.
 *
 * Returns the nanoseconds that the caller waited for pieces that other workers had claimed. */
uint64_t fl_run(fl_piece_fn fn, void *arg, int steps, int pieces, int threads);

/* Ends and awaits the workers, if there are any and no call is under way; a later call makes new ones. */
void fl_end_threads(void);

/* Nanoseconds from a fixed moment on. */
uint64_t fl_now(void);

#endif
