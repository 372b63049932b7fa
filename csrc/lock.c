/* lock.c: when a thread that does one short call after another lets go of Python's lock.
 *
 * Short calls keep the lock (build.py). Between two of them Python gives it to a thread that has waited for a switch
 * interval, 5 ms; of several waiting threads it takes any, and one was seen to wait for 380 ms. So a thread that has kept
 * the lock for about a millisecond lets go of it. A waiting thread is woken then, which takes some time, and the thread
 * that let go must not take the lock again before: it would begin the other one's interval anew. So it waits a little.
 * Where no other thread computes meanwhile that wait is lost; then the next one comes later and later. A thread that
 * computes in Python keeps the lock for a whole interval: so at most one in FL_LOCK_CALLS calls waits for it. */
#include <sched.h>
#include <time.h>

#include "internal.h"
#include "lock.h"

/* Of the thread that did the last call; read and written by the owner of Python's lock only. */
static struct {
    const char *thread;
    uint64_t since;    /* when it began to keep the lock */
    uint64_t ended;    /* when its last call ended */
    uint64_t patience; /* nanoseconds for which it keeps the lock */
    int calls;         /* that it has done since */
} kept;
static _Thread_local char mine; /* its address names the thread */

int fl_lock_is_due(void) {
    const uint64_t now = fl_now(), between = now - kept.ended;
    if (kept.thread != &mine || between > FL_LOCK_NS) /* another thread may have had the lock */
        kept.patience = FL_LOCK_NS;
    if (kept.thread != &mine || between > FL_LOCK_CALL_NS)
        kept.since = now, kept.calls = 0;
    kept.thread = &mine;
    kept.ended = now;
    return ++kept.calls >= FL_LOCK_CALLS && now - kept.since >= kept.patience;
}

/* Nanoseconds that the process has computed in all other threads. */
static uint64_t of_others(void) {
    struct timespec all, own;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &all);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &own);
    return (uint64_t)((int64_t)(all.tv_sec - own.tv_sec) * 1000000000 + all.tv_nsec - own.tv_nsec);
}

fl_lock_paused fl_lock_pause(void) {
    const uint64_t before = of_others(), until = fl_now() + FL_LOCK_WAKE_NS;
    fl_lock_paused paused;
    do
        sched_yield();
    while ((paused.ended = fl_now()) < until);
    paused.others_ran = of_others() - before > FL_LOCK_RAN_NS;
    return paused;
}

void fl_lock_back(fl_lock_paused paused) {
    const uint64_t now = fl_now(), patience = kept.thread == &mine ? kept.patience : FL_LOCK_NS;
    const int wanted = paused.others_ran || now - paused.ended > FL_LOCK_WAKE_NS;
    kept.thread = &mine;
    kept.since = kept.ended = now, kept.calls = 0;
    kept.patience = wanted ? FL_LOCK_NS : 2 * patience < FL_LOCK_MOST_NS ? 2 * patience : FL_LOCK_MOST_NS;
}
