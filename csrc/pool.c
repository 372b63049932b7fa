/* pool.c: threads that run the pieces of a call.
 *
 * One parallel region for each call, however many steps it has; a step ends with a barrier. The machine may be shared
 * with other programs, so no thread waits for another one to *arrive*: pieces are claimed one by one, and every thread
 * that is there takes pieces that are still free. A thread waits only for a piece that another thread has claimed and is
 * working on.
 *
 *   word      the call under way, in one atomic number, so that its parts always belong together:
 *                tick << 24 | units << 12 | threads
 *             Step s of it has the tick `tick` + s; a tick is used once, in all calls. `threads` is the number of
 *             participants, the caller included.
 *   claim     [u] == the tick of a step: unit u of the step is free; one more: it is claimed (or, once all units of the
 *             step are finished, free in the next step). The participant that adds one by compare-and-swap owns the unit.
 *   finished  of each participant: the number of units that it has finished, ever. Their sum, less the sum when the call
 *             began, tells the step: a step is over when all its units are finished, and no unit of the next one is begun
 *             before.
 *
 * A thread that slept through steps, or through whole calls, does no harm and delays no other thread: it tries ticks of
 * the call that it knows only, and as ticks are unique, a successful swap proves that this call still waits for the unit.
 *
 * Each variable that is written in every step has cache lines of its own (no false sharing), which other threads read
 * only where they wait for it: between cores that share no cache a line takes 250 ns to come, and a step waits for one
 * line beside its data. So a participant looks at other participants' claims only after a while, or where they took no
 * part in the step before.
 *
 * A unit is a piece or, where there are more than MAX_UNITS pieces, every MAX_UNITS-th piece from a first one on. Unit u
 * belongs by preference to participant u % threads, which in the next step finds its data in its own cache.
 *
 * A participant that finds every unit claimed spins for at most FL_SPIN_NS and then sleeps. A longer spin pays only on
 * idle cores: beside a busy neighbour it keeps the very thread that it waits for off the processor. The caller may spin
 * for longer where workers keep off its processor.
 */
#if defined(_WIN32)
#error "fastlstm's C backend needs POSIX threads (Linux or macOS); elsewhere use the numba or numpy backend"
#endif

#include "pool_system.h"

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
    int strikes;   /* losses; FL_WELL_NS without one, or a call without one, take one back */

    slot_t slot[MAX_THREADS]; /* slot 0: the caller */
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

/* Begins a call and, unless the pool rests, wakes its sleeping workers; returns whether there were any. Caller and worker
 * each write their own variable first and then read the other's, in sequentially consistent order: one of the two sees the
 * other's value, so no wake-up is lost. */
static bool publish(uint64_t word, bool resting) {
    bool woken = false;
    atomic_store(&pool.word, word);
    store_before_load();
    for (int w = 1; w < threads_of(word) && !resting; w++)
        woken |= slot_wake(&pool.slot[w]);
    return woken;
}

/* Whether `word` is a call that worker `me` takes part in; `seen` is the last word it has dealt with. */
static inline bool concerns(uint64_t word, uint64_t seen, int me) { return word != seen && me < threads_of(word); }

/* Waits for such a call; returns its word. */
static uint64_t await(uint64_t seen, int me) {
    slot_t *slot = &pool.slot[me];
    uint64_t word, until = fl_now() + FL_SPIN_NS;
    do {
        for (int i = 0; i < FL_POLLS; i++) {
            word = atomic_load_explicit(&pool.word, memory_order_acquire);
            if (concerns(word, seen, me))
                return word;
            spin_pause();
        }
    } while (fl_now() < until);

    for (;;) {
        atomic_store(&slot->asleep, 1);
        store_before_load();
        word = atomic_load(&pool.word);
        if (concerns(word, seen, me)) {
            atomic_store(&slot->asleep, 0);
            return word;
        }
        slot_sleep(slot, 0);
    }
}

/* ---- working ---- */

/* A call as one participant knows it. */
typedef struct {
    uint64_t word, base, join_from;
    int units, threads, steps, me;
    bool alone;      /* no other participant took part in the step before, or they had to be woken */
    int64_t all;     /* units finished, as this participant saw last */
    int64_t mine;    /* units that this participant has finished */
    uint64_t waited; /* nanoseconds, for units that other participants had claimed */
} part;

/* Units finished in this call, by all participants. */
static int64_t finished(const part *p) {
    uint64_t sum = 0;
    for (int w = 0; w < p->threads; w++)
        sum += atomic_load_explicit(&pool.slot[w].finished, memory_order_acquire);
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

/* Runs the units of a step that belong to participant `owner` by preference and are free. */
static void take_units(part *p, int step, int owner) {
    int done = 0;
    for (int u = owner; u < p->units; u += p->threads)
        done += try_unit(p, step, u);
    if (done == 0)
        return;
    p->mine += done;
    atomic_uint_least64_t *of_me = &pool.slot[p->me].finished;
    atomic_store_explicit(of_me, atomic_load_explicit(of_me, memory_order_relaxed) + (uint64_t)done,
                          memory_order_release);
}

static void take_others(part *p, int step) {
    for (int i = 1; i < p->threads; i++)
        take_units(p, step, (p->me + i) % p->threads);
}

/* Whether a worker leaves the call: the caller has ended it, or has let the pool rest. */
static bool is_over(const part *p) {
    return p->me > 0 && (atomic_load_explicit(&pool.word, memory_order_relaxed) != p->word ||
                         atomic_load_explicit(&pool.join_from, memory_order_relaxed) != p->join_from);
}

/* Sleeps until another participant finds `enough` units finished. A participant that has finished a unit looks for
 * sleepers without waiting until its count is visible (between distant cores that would cost every step a quarter of a
 * microsecond), so it may miss one that is just falling asleep. Hence the sleep is short. */
static void doze(const part *p, int64_t enough) {
    slot_t *slot = &pool.slot[p->me];
    atomic_store(&slot->asleep, 1);
    store_before_load();
    if (finished(p) < enough && !is_over(p))
        slot_sleep(slot, FL_DOZE_NS);
    atomic_store(&slot->asleep, 0);
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
    const int step = (int)(p->all / p->units);
    const int64_t before = p->mine;
    take_units(p, step, p->me);
    if (!finish(p, step, (int64_t)(step + 1) * p->units))
        return false;
    p->alone = p->mine - before == p->units;
    for (int w = 0; w < p->threads; w++)
        slot_wake(&pool.slot[w]);
    return true;
}

/* A worker's part of a call. Returns whether it is done with the call: false where the pool rests meanwhile. */
static bool join(uint64_t word, int me) {
    part p = {.word = word, .units = units_of(word), .threads = threads_of(word), .me = me};
    p.join_from = atomic_load_explicit(&pool.join_from, memory_order_acquire);
    if (sleep_until(p.join_from))
        return false;
    p.base = atomic_load_explicit(&pool.base, memory_order_acquire);
    p.steps = atomic_load_explicit(&pool.steps, memory_order_acquire);
    if (is_over(&p))
        return false; /* base and steps may be the next call's */
    while (p.all < (int64_t)p.steps * p.units && take_part(&p))
        ;
    return !is_over(&p);
}

static void *worker_main(void *slot) {
    int me = (int)((slot_t *)slot - pool.slot);
    atomic_store_explicit(&pool.slot[me].id, thread_id(), memory_order_relaxed);
    uint64_t seen = 0; /* no word is 0: ticks begin at 1 */
    fp_enter();        /* for good: the thread runs nothing else */
    for (;;) {
        const uint64_t word = await(seen, me);
        if (join(word, me))
            seen = word;
    }
    return NULL;
}

/* ---- calls ---- */

/* In a forked child only the forking thread exists. The child begins with an empty pool without an owner, even if another
 * thread of the parent had a call under way. */
static void forget_threads(void) {
    pool.made = 0;
    atomic_store(&pool.join_from, 0);
    pool.strikes = 0;
    pool.ready = 0;
    atomic_store(&pool.word, idle_word());
    atomic_store(&pool.owned, false);
}

/* Makes workers until there are `threads` participants, or as many as the system grants; returns their number. Called by
 * the owner only. */
static int grow(int threads) {
    if (!pool.atfork) {
        if (pthread_atfork(NULL, NULL, forget_threads) != 0)
            return 1;
        pool.atfork = true;
    }
    if (pool.made == 0)
        slot_init(&pool.slot[0]);
    if (pool.made + 1 < threads) {
        /* Workers take no signals but the ones that a thread's own instructions raise. */
        sigset_t all, old;
        sigfillset(&all);
        sigdelset(&all, SIGSEGV);
        sigdelset(&all, SIGBUS);
        sigdelset(&all, SIGFPE);
        sigdelset(&all, SIGILL);
        sigdelset(&all, SIGTRAP);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        while (pool.made + 1 < threads) {
            pthread_t thread;
            slot_t *slot = &pool.slot[pool.made + 1];
            slot_init(slot);
            if (pthread_create(&thread, NULL, worker_main, slot) != 0)
                break;
            pthread_detach(thread);
            pool.made++;
        }
        pthread_sigmask(SIG_SETMASK, &old, NULL);
    }
    return pool.made + 1 < threads ? pool.made + 1 : threads;
}

static void run_alone(fl_piece_fn fn, void *arg, int steps, int pieces) {
    for (int step = 0; step < steps; step++)
        for (int piece = 0; piece < pieces; piece++)
            fn(arg, step, piece, 0);
}

/* Publishes a call; returns the caller's part in it. */
static part begin_call(fl_piece_fn fn, void *arg, int steps, int pieces, int threads, bool resting) {
    const int units = pieces < MAX_UNITS ? pieces : MAX_UNITS;
    part p = {.word = word_of(pool.tick, units, threads), .units = units, .threads = threads, .steps = steps};
    p.base = (uint64_t)finished(&p);
    for (int u = pool.ready; u < units; u++)
        atomic_store_explicit(&pool.claim[u].tick, pool.tick, memory_order_relaxed);
    pool.ready = units;
    pool.tick = tick_add(pool.tick, (uint64_t)steps);
    /* The idle word in between: a worker that finds the same word before and after these has read its own call's. */
    atomic_store_explicit(&pool.word, idle_word(), memory_order_relaxed);
    pool.fn = fn;
    pool.arg = arg;
    pool.pieces = pieces;
    atomic_store_explicit(&pool.base, p.base, memory_order_release);
    atomic_store_explicit(&pool.steps, steps, memory_order_release);
    make_room(pool.slot, threads);
    p.alone = publish(p.word, resting) || pool.alone || resting;
    return p;
}

/* A stretch of a call that is judged at once: what the caller had done when it began, and whether the pool rests. */
typedef struct {
    part then;
    uint64_t begin;
    bool resting;
} watch_t;

/* Nanoseconds by which the caller alone would have been quicker since then, judging by the time of its own units. */
static double lost(const part *then, const part *p, uint64_t took) {
    const int64_t mine = p->mine - then->mine;
    const uint64_t worked = took - (p->waited - then->waited);
    return mine > 0 ? (double)took - (double)worked * (double)(p->all - then->all) / (double)mine : 0;
}

/* Looks, after a step, whether a neighbour keeps the workers' processors busy. If so, the pool rests: workers leave the
 * call, and join it, or a later one, when the rest is over. */
static void judge(const part *p, watch_t *watch) {
    if (!watch->resting && pool.strikes == 0 && p->waited - watch->then.waited < FL_SLACK_NS)
        return;
    const uint64_t now = fl_now(), from = atomic_load_explicit(&pool.join_from, memory_order_relaxed);
    if (watch->resting && now < from)
        return;
    const double loss = watch->resting ? 0 : lost(&watch->then, p, now - watch->begin);
    const bool resting = loss > FL_SLACK_NS, well = !watch->resting && now - watch->begin > FL_WELL_NS;
    if (resting) {
        atomic_store(&pool.join_from, now + (uint64_t)fmin(loss * (1 << pool.strikes), FL_REST_NS));
        if (pool.strikes < FL_STRIKES)
            pool.strikes++;
    } else if (well && pool.strikes > 0) {
        pool.strikes--;
    }
    if (resting || well || watch->resting)
        *watch = (watch_t){.then = *p, .begin = now, .resting = resting};
}

/* The caller's part of a call with workers. Returns the nanoseconds that it waited. */
static uint64_t run_together(fl_piece_fn fn, void *arg, int steps, int pieces, int threads) {
    watch_t watch = {.begin = fl_now()};
    const bool resting = watch.resting = watch.begin < atomic_load_explicit(&pool.join_from, memory_order_relaxed);
    part p = begin_call(fn, arg, steps, pieces, threads, resting);
    bool well = true;
    while (p.all < (int64_t)steps * p.units) {
        take_part(&p);
        judge(&p, &watch);
        well &= !watch.resting;
    }
    pool.alone = p.alone;
    if (well && p.mine < p.all && pool.strikes > 0)
        pool.strikes--;
    return p.waited;
}

uint64_t fl_run(fl_piece_fn fn, void *arg, int steps, int pieces, int threads) {
    if (steps <= 0 || pieces <= 0)
        return 0;
    uint64_t waited = 0;
    fp_mode_t mode = fp_enter();
    if (threads > pieces)
        threads = pieces;
    if (threads > MAX_THREADS)
        threads = MAX_THREADS;
    if (threads > 1 && !atomic_exchange(&pool.owned, true)) {
        if ((threads = grow(threads)) <= 1)
            run_alone(fn, arg, steps, pieces);
        else
            waited = run_together(fn, arg, steps, pieces, threads);
        atomic_store(&pool.owned, false);
    } else {
        run_alone(fn, arg, steps, pieces);
    }
    fp_leave(mode);
    return waited;
}
