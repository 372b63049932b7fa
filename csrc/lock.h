/* lock.h: when a thread that does one short call after another lets go of Python's lock (lock.c). Part of the extension's
 * preamble (build.py). */
#ifndef FL_LOCK_H
#define FL_LOCK_H

#include <stdint.h>

/* Called at the end of each call that has kept the lock: whether the thread now has kept it for so long, from one such
 * call to the next, that it lets go. If so, the lock is let go, fl_lock_pause is called, the lock is taken again, and
 * fl_lock_back gets what fl_lock_pause returned. */
int fl_lock_is_due(void);
typedef struct {
    uint64_t ended; /* fl_now */
    int others_ran; /* whether another thread of the process computed meanwhile */
} fl_lock_paused;
fl_lock_paused fl_lock_pause(void);
void fl_lock_back(fl_lock_paused paused);

#endif
