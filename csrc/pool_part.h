/* pool_part.h: the call under way and one participant's part in it, which pool.c explains. Part of pool.c. */
#include "pool_system.h"

#include <stddef.h>

#include "api.h"
#include "pool.h"

enum {
    MAX_THREADS = 256,
    MAX_UNITS = 1024 /* both need at most 11 of the 12 bits that a word has for them */
};

/* ---- the pool; its state outlives a call ---- */

typedef struct {
    _Alignas(FL_LINES) atomic_uint_least64_t tick;
} claim_t;

static struct {
    /* The call under way, in one cache line: a worker gets all of it at once. The owner writes it between calls. fn, arg
     * and pieces are read by a participant that has claimed a unit; base and steps count only for a participant that
     * finds the same word before and after it has read them. */
    _Alignas(FL_LINES) atomic_uint_least64_t word;
    atomic_uint_least64_t base; /* the sum of `finished` before it */
    /* Workers join no call before this moment, and leave a call when it changes: after a call has lost time to a busy
     * neighbour, the pool rests for as long as was lost, doubled with each further such loss, up to 2^FL_STRIKES times
     * and FL_REST_NS. A single delay then costs little, a lasting neighbour costs little, and all threads are back soon
     * after the neighbour has gone, in the call that is under way then. */
    atomic_uint_least64_t join_from; /* fl_now */
    atomic_int cpu; /* the caller's processor, while threads of the host program take part: they leave it */
    atomic_int steps;
    int pieces;
    fl_piece_fn fn;
    void *arg;

    _Alignas(FL_LINES) atomic_bool owned; /* a call is using the pool */

    /* Used by the owner only: the thread that set `owned`. */
    uint64_t tick; /* of the next call's first step */
    int ready;     /* claims 0..ready-1 are at that tick already */
    bool alone;    /* no worker took part in the last step of the last call */
    int made;      /* workers that exist, in slots 1..made */
    bool atfork;   /* the fork handler is registered (a child inherits it) */
    bool forked;   /* this process is a forked child: the host program's threads may not have survived */
    int lent;      /* slots of threads of the host program that are set up */
    int strikes;   /* losses; FL_WELL_NS without one, or a call without one, take one back */

    atomic_bool ending; /* workers end; set while the pool is owned */

    slot_t slot[MAX_THREADS];      /* slot 0: the caller */
    slot_t lent_slot[MAX_THREADS]; /* of threads of the host program, from 1 on */
    claim_t claim[MAX_UNITS];
} pool = {.tick = 1};

static inline uint64_t word_of(uint64_t tick, int units, int threads) {
    return tick << 24 | (uint64_t)units << 12 | (uint64_t)threads;
}

static inline uint64_t tick_of(uint64_t word) { return word >> 24; }
static inline int units_of(uint64_t word) { return (int)(word >> 12 & 0xfff); }
static inline int threads_of(uint64_t word) { return (int)(word & 0xfff); }

/* Ticks have the 40 bits that a word has for them. (At 1 us a step they come round after 12 days; only equality counts,
 * so that is harmless.) */
static inline uint64_t tick_add(uint64_t tick, uint64_t n) { return (tick + n) & 0xffffffffffu; }

/* A word without participants: no call. */
static inline uint64_t idle_word(void) { return word_of(pool.tick, 0, 0); }

/* ---- working ---- */

/* A call as one participant knows it. */
typedef struct {
    uint64_t word, base, join_from;
    int units, threads, steps, me;
    bool lent;       /* the other participants are threads of the host program */
    bool alone;      /* no other participant took part in the step before, or they had to be woken */
    int64_t all;     /* units finished, as this participant saw last */
    int64_t mine;    /* units that this participant has finished */
    uint64_t waited; /* nanoseconds, for units that other participants had claimed */
} part;

/* The slot of a participant. */
static inline slot_t *slot_of(const part *p, int w) { return p->lent && w > 0 ? &pool.lent_slot[w] : &pool.slot[w]; }

/* Units finished in this call, by all participants. */
static int64_t finished(const part *p) {
    uint64_t sum = 0;
    for (int w = 0; w < p->threads; w++)
        sum += atomic_load_explicit(&slot_of(p, w)->finished, memory_order_acquire);
    return (int64_t)(sum - p->base);
}

/* Claims unit u of a step and runs it, unless it is claimed already. */
static bool try_unit(const part *p, int step, int u) {
    uint64_t tick = tick_add(tick_of(p->word), (uint64_t)step), expected = tick;
    if (atomic_load_explicit(&pool.claim[u].tick, memory_order_relaxed) != tick)
        return false; /* a look costs less than a failed swap */
    if (!atomic_compare_exchange_strong(&pool.claim[u].tick, &expected, tick_add(tick, 1)))
        return false;
    for (int piece = u; piece < pool.pieces; piece += p->units)
        pool.fn(pool.arg, step, piece, p->me);
    return true;
}

/* Counts units that this participant has finished. */
static void count(part *p, int done) {
    p->mine += done;
    atomic_uint_least64_t *of_me = &slot_of(p, p->me)->finished;
    atomic_store_explicit(of_me, atomic_load_explicit(of_me, memory_order_relaxed) + (uint64_t)done,
                          memory_order_release);
}

/* Runs the units of a step that belong to participant `owner` by preference and are free. */
static void take_units(part *p, int step, int owner) {
    int done = 0;
    for (int u = owner; u < p->units; u += p->threads)
        done += try_unit(p, step, u);
    if (done > 0)
        count(p, done);
}

static void take_others(part *p, int step) {
    for (int i = 1; i < p->threads; i++)
        take_units(p, step, (p->me + i) % p->threads);
}

/* Whether a worker leaves the call: the caller has ended it, or has let the pool rest. */
static bool is_over(const part *p) {
    return p->me > 0 && ((!p->lent && atomic_load_explicit(&pool.word, memory_order_relaxed) != p->word) ||
                         atomic_load_explicit(&pool.join_from, memory_order_relaxed) != p->join_from);
}

/* Sleeps until another participant finds `enough` units finished. A participant that has finished a unit looks for
 * sleepers without waiting until its count is visible (between distant cores that would cost every step a quarter of a
 * microsecond), so it may miss one that is just falling asleep. Hence the sleep is short. */
static void doze(const part *p, int64_t enough) {
    slot_t *slot = slot_of(p, p->me);
    atomic_store(&slot->asleep, 1);
    store_before_load();
    if (finished(p) < enough && !is_over(p))
        slot_sleep(slot, FL_DOZE_NS);
    atomic_store(&slot->asleep, 0);
    if (p->me == 0) /* it may have been woken on another one */
        atomic_store_explicit(&pool.cpu, this_cpu(), memory_order_relaxed);
}

/* Waits until `enough` units are finished, that is all of `step`, and runs units that are still free. Returns whether they
 * are finished; a worker leaves earlier if nothing is left for it to do. */
static bool finish(part *p, int step, int64_t enough) {
    bool looked = p->alone;
    if (looked)
        take_others(p, step);
    if ((p->all = finished(p)) >= enough)
        return true;
    if (p->me > 0 && step == p->steps - 1 && (looked || p->units <= p->threads))
        return false;
    const uint64_t begin = fl_now(), awake = p->me == 0 ? FL_CALLER_SPIN_NS : FL_SPIN_NS;
    uint64_t now = begin, worked = 0;
    while (p->all < enough) {
        if (is_over(p))
            return false;
        if (!looked && now - begin > FL_LOOK_NS) {
            take_others(p, step);
            looked = true;
            worked = fl_now() - now;
        } else if (now - begin - worked > awake) {
            doze(p, enough);
        }
        for (int i = 0; i < FL_POLLS && (p->all = finished(p)) < enough; i++)
            spin_pause();
        now = fl_now();
    }
    p->waited += now - begin - worked;
    return true;
}

/* Takes part in the step that is under way. Returns false if nothing is left for a worker to do. */
static bool take_part(part *p) {
    if (is_over(p))
        return false;
    if (p->lent && p->me > 0)
        leave_cpu(atomic_load_explicit(&pool.cpu, memory_order_relaxed));
    const int step = (int)(p->all / p->units);
    const int64_t before = p->mine;
    take_units(p, step, p->me);
    if (!finish(p, step, (int64_t)(step + 1) * p->units))
        return false;
    p->alone = p->mine - before == p->units;
    for (int w = 0; w < p->threads; w++)
        slot_wake(slot_of(p, w));
    return true;
}

/* Whether units of the call are left. */
static inline bool is_under_way(const part *p) { return p->all < (int64_t)p->steps * p->units; }

/* Runs unit after unit until a moment; no other participant is there. */
static void take_all(part *p, uint64_t until) {
    while (is_under_way(p) && fl_now() < until) {
        for (int u = 0; u < p->units && fl_now() < until; u++)
            count(p, try_unit(p, (int)(p->all / p->units), u));
        p->all = finished(p);
    }
}
