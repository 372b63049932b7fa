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

#include "pool_part.h"

/* ---- workers ---- */

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

/* Waits for such a call; returns its word, or any other one where workers are to end. */
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
    } while (fl_now() < until && !atomic_load_explicit(&pool.ending, memory_order_relaxed));

    while (!atomic_load(&pool.ending)) {
        atomic_store(&slot->asleep, 1);
        store_before_load();
        word = atomic_load(&pool.word);
        if (concerns(word, seen, me) || atomic_load(&pool.ending)) {
            atomic_store(&slot->asleep, 0);
            return word;
        }
        slot_sleep(slot, 0);
    }
    return seen;
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
    while (is_under_way(&p) && take_part(&p))
        ;
    return !is_over(&p);
}

static void *worker_main(void *slot) {
    int me = (int)((slot_t *)slot - pool.slot);
    atomic_store_explicit(&pool.slot[me].id, thread_id(), memory_order_relaxed);
    uint64_t seen = 0; /* no word is 0: ticks begin at 1 */
    fp_enter();        /* for good: the thread runs nothing else */
    while (!atomic_load_explicit(&pool.ending, memory_order_relaxed)) {
        const uint64_t word = await(seen, me);
        if (concerns(word, seen, me) && join(word, me))
            seen = word;
    }
    return NULL;
}

/* ---- calls ---- */

/* In a forked child only the forking thread exists. The child begins with an empty pool without an owner, even if another
 * thread of the parent had a call under way. */
static void forget_threads(void) {
    pool.made = 0;
    pool.forked = true;
    atomic_store(&pool.join_from, 0);
    pool.strikes = 0;
    pool.ready = 0;
    atomic_store(&pool.ending, false);
    atomic_store(&pool.word, idle_word());
    atomic_store(&pool.owned, false);
}

/* Lets the pool survive a fork; returns whether it will. Called by the owner only. */
static bool mind_forks(void) {
    if (!pool.atfork)
        pool.atfork = pthread_atfork(NULL, NULL, forget_threads) == 0;
    return pool.atfork;
}

/* Makes workers until there are `threads` participants, or as many as the system grants; returns their number. Called by
 * the owner only. */
static int grow(int threads) {
    if (!mind_forks())
        return 1;
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
            slot_t *slot = &pool.slot[pool.made + 1];
            slot_init(slot);
            if (pthread_create(&slot->thread, NULL, worker_main, slot) != 0)
                break;
            pool.made++;
        }
        pthread_sigmask(SIG_SETMASK, &old, NULL);
    }
    return pool.made + 1 < threads ? pool.made + 1 : threads;
}

/* A worker that is about to sleep has said so before it looks whether it is to end: it is woken, or it sees it. */
void fl_end_threads(void) {
    if (atomic_exchange(&pool.owned, true))
        return;
    atomic_store(&pool.ending, true);
    store_before_load();
    for (int w = 1; w <= pool.made; w++)
        slot_wake(&pool.slot[w]);
    for (int w = 1; w <= pool.made; w++)
        pthread_join(pool.slot[w].thread, NULL);
    pool.made = 0;
    atomic_store(&pool.ending, false);
    atomic_store(&pool.owned, false);
}

static void run_alone(fl_piece_fn fn, void *arg, int steps, int pieces) {
    for (int step = 0; step < steps; step++)
        for (int piece = 0; piece < pieces; piece++)
            fn(arg, step, piece, 0);
}

/* Prepares a call, so that units can be claimed; returns the caller's part in it. */
static part begin_call(fl_piece_fn fn, void *arg, int steps, int pieces, int threads, bool lent) {
    const int units = pieces < MAX_UNITS ? pieces : MAX_UNITS;
    part p = {.word = word_of(pool.tick, units, threads),
              .join_from = atomic_load_explicit(&pool.join_from, memory_order_relaxed),
              .units = units,
              .threads = threads,
              .steps = steps,
              .lent = lent};
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

/* Lets the pool rest after a loss. */
static void rest(uint64_t now, double loss) {
    atomic_store(&pool.join_from, now + (uint64_t)fmin(loss * (1 << pool.strikes), FL_REST_NS));
    if (pool.strikes < FL_STRIKES)
        pool.strikes++;
}

static void take_strike_back(void) { pool.strikes -= pool.strikes > 0; }

/* Looks, after a step, whether a neighbour keeps the workers' processors busy. If so, the pool rests: workers leave the
 * call, and join it, or a later one, when the rest is over. */
static void judge(const part *p, watch_t *watch) {
    if (!watch->resting && pool.strikes == 0 && p->waited - watch->then.waited < FL_SLACK_NS)
        return;
    const uint64_t now = fl_now();
    if (watch->resting && now < atomic_load_explicit(&pool.join_from, memory_order_relaxed))
        return;
    const double loss = watch->resting ? 0 : lost(&watch->then, p, now - watch->begin);
    const bool resting = loss > FL_SLACK_NS, well = !watch->resting && now - watch->begin > FL_WELL_NS;
    if (resting)
        rest(now, loss);
    else if (well)
        take_strike_back();
    if (resting || well || watch->resting)
        *watch = (watch_t){.then = *p, .begin = now, .resting = resting};
}

/* The caller's share of a call that others take part in. With threads of the host program it ends when a rest is over:
 * these threads have left, and must be called again. */
static void lead(part *p, watch_t watch) {
    bool well = true, back = false;
    while (is_under_way(p) && !back) {
        const bool rested = watch.resting;
        take_part(p);
        judge(p, &watch);
        well &= !watch.resting;
        back = p->lent && rested && !watch.resting;
    }
    pool.alone = p->alone;
    if (well && p->mine < p->all)
        take_strike_back();
}

/* A call with workers. Returns the nanoseconds that the caller waited for units. */
static uint64_t run_together(fl_piece_fn fn, void *arg, int steps, int pieces, int threads) {
    const uint64_t begin = fl_now();
    const bool resting = begin < atomic_load_explicit(&pool.join_from, memory_order_relaxed);
    part p = begin_call(fn, arg, steps, pieces, threads, false);
    make_room(pool.slot, threads);
    p.alone = publish(p.word, resting) || pool.alone || resting;
    lead(&p, (watch_t){.begin = begin, .resting = resting});
    return p.waited;
}

/* ---- calls on threads of the host program ---- */

static _Thread_local struct {
    fl_parallel_fn parallel;
    int threads;
} host;

void flq_host(fl_parallel_fn parallel, int threads) {
    host.parallel = parallel;
    host.threads = threads;
}

typedef struct {
    part p, others; /* the caller's part, and how the others begin */
    uint64_t begin, end;
    pthread_t caller;
    atomic_int entered; /* threads beside the caller */
} lent_t;

/* What each thread of the host program does. */
static void take_lent_part(void *arg) {
    lent_t *call = arg;
    if (pthread_equal(pthread_self(), call->caller)) {
        lead(&call->p, (watch_t){.then = call->p, .begin = call->begin});
        call->end = fl_now();
        return;
    }
    part p = call->others;
    p.me = 1 + atomic_fetch_add(&call->entered, 1);
    if (p.me >= p.threads)
        return;
    fp_mode_t mode = fp_enter();
    while (is_under_way(&p) && take_part(&p))
        ;
    fp_leave(mode);
}

/* The host program's threads take part until the call, or a rest that begins meanwhile, is over. That ends when all of
 * them have returned; if this takes long, it counts as lost. Returns the moment. */
static uint64_t lend(lent_t *call) {
    atomic_store_explicit(&pool.cpu, this_cpu(), memory_order_relaxed);
    call->begin = fl_now();
    call->others = call->p;
    call->others.join_from = atomic_load_explicit(&pool.join_from, memory_order_relaxed);
    atomic_store(&call->entered, 0);
    host.parallel(take_lent_part, call, (unsigned)host.threads, 0);
    const uint64_t now = fl_now();
    if (now - call->end > FL_SLACK_NS)
        rest(now, (double)(now - call->end));
    return now;
}

/* As run_together, with threads of the host program, which are awake while its own operations surround the call. */
static uint64_t run_lent(fl_piece_fn fn, void *arg, int steps, int pieces, int threads) {
    for (; pool.lent + 1 < threads; pool.lent++)
        slot_init(&pool.lent_slot[pool.lent + 1]);
    if (pool.made == 0)
        slot_init(&pool.slot[0]);
    lent_t call = {.p = begin_call(fn, arg, steps, pieces, threads, true), .caller = pthread_self()};
    uint64_t now = fl_now();
    while (is_under_way(&call.p)) {
        const uint64_t from = atomic_load_explicit(&pool.join_from, memory_order_relaxed);
        if (now < from)
            take_all(&call.p, from);
        now = is_under_way(&call.p) ? lend(&call) : now;
    }
    return call.p.waited;
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
        const int lent = threads < host.threads ? threads : host.threads;
        if (host.parallel && lent > 1 && !pool.forked && mind_forks())
            waited = run_lent(fn, arg, steps, pieces, lent);
        else if ((threads = grow(threads)) > 1)
            waited = run_together(fn, arg, steps, pieces, threads);
        else
            run_alone(fn, arg, steps, pieces);
        atomic_store(&pool.owned, false);
    } else {
        run_alone(fn, arg, steps, pieces);
    }
    fp_leave(mode);
    return waited;
}
