/* pool.c: threads that do the pieces of a call.
 *
 * One parallel region per call, however many steps it has; a step ends with a barrier. The machine may be shared, so
 * nobody ever waits for a thread to *arrive*: pieces are claimed one by one, and who is there takes what nobody has
 * claimed. The only thing ever waited for is a piece that another thread has claimed and is working on.
 *
 *   word      the call under way, in one atomic number, so that its parts always belong together:
 *                tick << 24 | units << 12 | threads
 *             Step s of it has the tick `tick` + s; ticks are never used twice, from one call to the next either.
 *             `threads` is how many may take part.
 *   claim     [u] == the tick of a step: unit u of it is free; one more: somebody has it (or, once all units of the step
 *             are finished, it is free in the next). Whoever adds the one by compare-and-swap owns the unit.
 *   finished  of each participant: units that it has finished, ever. Their sum, less what it was when the call began,
 *             tells the step: a step is over when all its units are finished, and nobody begins another before.
 *
 * A thread that slept through steps, or through whole calls, does no harm and delays nobody: it tries no ticks but those
 * of the call that it knows, and as ticks are unique, a successful swap proves that this call still waits for the unit.
 *
 * What is written in every step lies in cache lines of its own, which are read by others only where they wait for it:
 * between cores that share no cache, a line takes 250 ns to come, and a step waits for one only, beside its data. So
 * others' claims are looked at only after a while, or where they were not there in the step before.
 *
 * A unit is a piece, or, where there are more than MAX_UNITS of them, every MAX_UNITS-th piece from there on.
 * Unit u belongs by preference to participant u % threads: in the next step it then finds its data in its own cache.
 *
 * Who finds every unit claimed spins for at most FL_SPIN_NS and then sleeps. A longer spin pays only on idle cores:
 * beside a busy neighbour it keeps away the very thread that it waits for. The caller of a step may spin for longer where
 * workers keep off its processor, since it keeps nobody away there.
 */
#if defined(_WIN32)
#error "fastlstm's C backend needs POSIX threads (Linux or macOS); elsewhere use the numba or numpy backend"
#endif

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* syscall(), processor sets */
#endif

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__linux__) && !defined(FL_POOL_NO_FUTEX)
#define FUTEX 1
#include <linux/futex.h>
#else
#define FUTEX 0
#endif

#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#endif

#include "pool.h"

enum {
    MAX_THREADS = 256,
    MAX_UNITS = 1024, /* 12 bits of the word each are more than enough for both */
    APART = 128,      /* bytes: hardware fetches cache lines in pairs */
#if defined(__linux__)
    CALLER_SPIN_NS = 50000, /* about what a worker on an idle processor needs to come; see make_room */
#else
    CALLER_SPIN_NS = FL_SPIN_NS,
#endif
    LOOK_NS = 2000,    /* waiting for others' units, after which one looks whether they have begun them */
    DOZE_NS = 100000,  /* a sleep within a call; see doze */
    POLLS = 8,         /* looks at what is waited for between two at the clock, which takes as long as some of them */
    SLACK_NS = 200000, /* what a call may lose to late threads before it goes on alone: some wake-ups' worth */
    MAX_STRIKES = 5,
    MAX_REST_NS = 100000000
};

/* ---- the pool: the only state of this library that outlives a call, beside what dispatch.c remembers ---- */

typedef struct {
    _Alignas(APART) atomic_uint_least64_t finished; /* written by the participant only, at every step */
    _Alignas(APART) atomic_uint asleep;             /* 1: sleeping, or about to look once more and then sleep */
    atomic_int id;                                  /* the system's number of the thread; 0 until it runs */
    int avoided;                                    /* the processor that it keeps off; the owner's own */
#if !FUTEX
    pthread_mutex_t lock;
    pthread_cond_t wake;
#endif
} slot_t;

typedef struct {
    _Alignas(APART) atomic_uint_least64_t tick;
} claim_t;

static struct {
    /* The call under way, in one line: a worker gets all of it at once. Written by the owner between calls; fn, arg and
     * pieces are read by holders of a claimed unit, the others by whoever then finds the same word again. */
    _Alignas(APART) atomic_uint_least64_t word;
    atomic_uint_least64_t base; /* the sum of `finished` before it */
    atomic_int steps;
    int pieces;
    fl_piece_fn fn;
    void *arg;

    _Alignas(APART) atomic_bool owned; /* a call is using the pool */

    /* The owner's own. */
    uint64_t tick; /* of the next call's first step */
    int ready;     /* claims 0..ready-1 are at that tick already */
    bool alone;    /* the last call was so at its end */
    int made;      /* threads that exist: they have the slots 1..made */
    bool atfork;   /* the fork handler is registered (a child inherits it) */
    /* After a call that lost time to a busy neighbour, the pool rests for as long as was lost, doubled with each further
     * such call, up to 2^MAX_STRIKES times and MAX_REST_NS. So a single hiccup costs little, a lasting neighbour costs
     * little too, and soon after it has gone all threads are back. */
    uint64_t retry_at; /* nanoseconds */
    int strikes;       /* each call that went well takes one back */

    slot_t slot[MAX_THREADS]; /* slot 0: the caller */
    claim_t claim[MAX_UNITS];
} pool = {.tick = 1};

static inline uint64_t word_of(uint64_t tick, int units, int threads) {
    return tick << 24 | (uint64_t)units << 12 | (uint64_t)threads;
}

static inline uint64_t tick_of(uint64_t word) { return word >> 24; }
static inline int units_of(uint64_t word) { return (int)(word >> 12 & 0xfff); }
static inline int threads_of(uint64_t word) { return (int)(word & 0xfff); }

/* The ticks in claim[] are compared with those of words, which have 40 bits. (At 1 us a step they come round after 12
 * days. Only equality counts, so that is harmless.) */
static inline uint64_t tick_add(uint64_t tick, uint64_t n) { return (tick + n) & 0xffffffffffu; }

/* A word that is no call's. */
static inline uint64_t idle_word(void) { return word_of(pool.tick, 0, 0); }

uint64_t fl_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void spin_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* `yield` takes no time on most cores */
#endif
}

/* ---- floating-point mode: round to nearest, no traps, denormals are zero, in every participant alike ---- */

#if defined(__x86_64__) || defined(__i386__)
typedef unsigned fp_mode_t;
static fp_mode_t fp_enter(void) {
    fp_mode_t old = _mm_getcsr();
    _mm_setcsr(0x1f80 | 0x8000 | 0x0040); /* all exceptions masked | flush to zero | denormals are zero */
    return old;
}
static void fp_leave(fp_mode_t old) { _mm_setcsr(old); }
#elif defined(__aarch64__)
typedef uint64_t fp_mode_t;
static void fp_leave(fp_mode_t old) { __asm__ volatile("msr fpcr, %0" : : "r"(old)); }
static fp_mode_t fp_enter(void) {
    fp_mode_t old;
    __asm__ volatile("mrs %0, fpcr" : "=r"(old));
    fp_leave(UINT64_C(1) << 24); /* FZ: inputs and outputs */
    return old;
}
#else
typedef int fp_mode_t;
static fp_mode_t fp_enter(void) { return 0; }
static void fp_leave(fp_mode_t old) { (void)old; }
#endif

/* ---- sleeping and waking ---- */

/* For at most so many nanoseconds, or, with 0, until woken. May return early: the caller looks again. */
static void slot_sleep(slot_t *slot, long ns) {
#if FUTEX
    const struct timespec time = {.tv_nsec = ns};
    syscall(SYS_futex, &slot->asleep, FUTEX_WAIT_PRIVATE, 1, ns ? &time : NULL, NULL, 0);
#else
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += ns;
    if (until.tv_nsec >= 1000000000)
        until.tv_sec++, until.tv_nsec -= 1000000000;
    pthread_mutex_lock(&slot->lock);
    if (atomic_load(&slot->asleep) == 1) {
        if (ns)
            pthread_cond_timedwait(&slot->wake, &slot->lock, &until);
        else
            pthread_cond_wait(&slot->wake, &slot->lock);
    }
    pthread_mutex_unlock(&slot->lock);
#endif
}

/* Returns whether it slept. */
static bool slot_wake(slot_t *slot) {
    if (atomic_load(&slot->asleep) == 0 || atomic_exchange(&slot->asleep, 0) == 0)
        return false;
#if FUTEX
    syscall(SYS_futex, &slot->asleep, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
#else
    pthread_mutex_lock(&slot->lock);
    pthread_cond_signal(&slot->wake);
    pthread_mutex_unlock(&slot->lock);
#endif
    return true;
}

/* A store, and only then a load: sequential consistency promises it, but QEMU 7 does not keep it for ARM's stlr and ldar,
 * and a wake-up was lost there. A full barrier is kept by all. */
static inline void store_before_load(void) {
#if defined(__aarch64__)
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

/* Begin a call and wake those of its workers that sleep; returns whether any did. Each side writes its own variable first
 * and then reads the other's, in sequentially consistent order: one of the two sees the other, so no wake-up is lost. */
static bool publish(uint64_t word) {
    bool woken = false;
    atomic_store(&pool.word, word);
    store_before_load();
    for (int w = 1; w < threads_of(word); w++)
        woken |= slot_wake(&pool.slot[w]);
    return woken;
}

/* Is `word` a call that worker `me`, who has dealt with `seen`, may take part in? */
static inline bool concerns(uint64_t word, uint64_t seen, int me) { return word != seen && me < threads_of(word); }

/* Wait for such a call, and return its word. */
static uint64_t await(uint64_t seen, int me) {
    slot_t *slot = &pool.slot[me];
    uint64_t word, until = fl_now() + FL_SPIN_NS;
    do {
        for (int i = 0; i < POLLS; i++) {
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
    uint64_t word, base;
    int units, threads, steps, me;
    bool alone;      /* the others are not there yet, or were not in the step before */
    int64_t all;     /* units finished, as it saw last */
    int64_t mine;    /* those that it has done */
    uint64_t waited; /* nanoseconds, for units that others had */
} part;

/* Units finished in this call, by everybody. */
static int64_t finished(const part *p) {
    uint64_t sum = 0;
    for (int w = 0; w < p->threads; w++)
        sum += atomic_load_explicit(&pool.slot[w].finished, memory_order_acquire);
    return (int64_t)(sum - p->base);
}

/* Claim unit u of a step and do it, unless somebody has it. */
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

/* Do the units of a step that are `owner`'s by preference, as far as they can be had. */
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

/* Has the owner ended this call, or gone on alone? */
static bool is_over(const part *p) {
    return p->me > 0 && atomic_load_explicit(&pool.word, memory_order_relaxed) != p->word;
}

/* Sleep until somebody finds `enough` units finished. Who has finished one does not wait until that is visible before it
 * looks who sleeps (between distant cores that would cost every step a quarter of a microsecond), so it may miss one who
 * is just falling asleep. Hence not for long. */
static void doze(const part *p, int64_t enough) {
    slot_t *slot = &pool.slot[p->me];
    atomic_store(&slot->asleep, 1);
    store_before_load();
    if (finished(p) < enough && !is_over(p))
        slot_sleep(slot, DOZE_NS);
    atomic_store(&slot->asleep, 0);
}

/* Wait until `enough` units are finished, that is all of `step`, and do what others have not begun. Returns whether
 * they are; a worker leaves before that where nothing is left for it to do. */
static bool finish(part *p, int step, int64_t enough) {
    bool looked = p->alone;
    if (looked)
        take_others(p, step);
    if ((p->all = finished(p)) >= enough)
        return true;
    if (p->me > 0 && step == p->steps - 1 && (looked || p->units <= p->threads))
        return false;
    const uint64_t begin = fl_now(), awake = p->me == 0 ? CALLER_SPIN_NS : FL_SPIN_NS;
    uint64_t now = begin, worked = 0;
    while (p->all < enough) {
        if (is_over(p))
            return false;
        if (!looked && now - begin > LOOK_NS) {
            take_others(p, step);
            looked = true;
            worked = fl_now() - now;
        } else if (now - begin - worked > awake) {
            doze(p, enough);
        }
        for (int i = 0; i < POLLS && (p->all = finished(p)) < enough; i++)
            spin_pause();
        now = fl_now();
    }
    p->waited += now - begin - worked;
    return true;
}

/* Take part in the step that is under way. Returns false where nothing is left for a worker to do. */
static bool take_part(part *p) {
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

/* What worker `me` does in a call. */
static void join(uint64_t word, int me) {
    part p = {.word = word, .units = units_of(word), .threads = threads_of(word), .me = me};
    p.base = atomic_load_explicit(&pool.base, memory_order_acquire);
    p.steps = atomic_load_explicit(&pool.steps, memory_order_acquire);
    if (is_over(&p))
        return; /* these may be the next call's numbers */
    while (p.all < (int64_t)p.steps * p.units && take_part(&p))
        ;
}

/* Linux likes to wake a thread on the processor of the one that wakes it and, after a pause, leaves it waiting there
 * while another processor is idle: the caller then does everything alone, call after call (1.1 ms instead of 0.45 at
 * I=H=256, B=1, T=100). In virtual machines that is the rule: there an idle processor looks taken. So workers may go
 * anywhere but where the caller is; that is told them only when it changes. And the caller does not sleep while a worker
 * may yet come: woken by it, it would find itself on the worker's processor. */
#if defined(__linux__)
static int thread_id(void) { return (int)syscall(SYS_gettid); }
static void make_room(int threads) {
    cpu_set_t allowed;
    const int cpu = sched_getcpu();
    bool known = false;
    for (int i = 1; i < threads; i++) {
        slot_t *slot = &pool.slot[i];
        const int id = atomic_load_explicit(&slot->id, memory_order_relaxed);
        if (cpu < 0 || id == 0 || slot->avoided == cpu)
            continue;
        slot->avoided = cpu; /* tried once, whatever comes of it */
        if (!known) {
            if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
                return;
            CPU_CLR(cpu, &allowed);
            known = true;
        }
        if (CPU_COUNT(&allowed) > 0)
            sched_setaffinity(id, sizeof allowed, &allowed);
    }
}
#else
static int thread_id(void) { return 0; }
static void make_room(int threads) { (void)threads; }
#endif

static void *worker_main(void *slot) {
    int me = (int)((slot_t *)slot - pool.slot);
    atomic_store_explicit(&pool.slot[me].id, thread_id(), memory_order_relaxed);
    uint64_t word = 0; /* no word is 0: ticks begin at 1 */
    fp_enter();        /* for good: this thread does nothing else */
    for (;;) {
        word = await(word, me);
        join(word, me);
    }
    return NULL;
}

/* ---- calls ---- */

static void slot_init(slot_t *slot) { /* `finished` goes on: its sum is compared only */
    atomic_store(&slot->asleep, 0);
    atomic_store(&slot->id, 0);
    slot->avoided = -1;
#if !FUTEX
    pthread_mutex_init(&slot->lock, NULL);
    pthread_cond_init(&slot->wake, NULL);
#endif
}

/* In a forked child only the forking thread exists. Whatever call was under way in another thread of the parent is
 * none of the child's business: it begins with an empty pool that belongs to nobody. */
static void forget_threads(void) {
    pool.made = 0;
    pool.retry_at = 0;
    pool.strikes = 0;
    pool.ready = 0;
    atomic_store(&pool.word, idle_word());
    atomic_store(&pool.owned, false);
}

/* Make threads until there are `threads` participants, or as many as the system grants. The owner's. */
static int grow(int threads) {
    if (!pool.atfork) {
        if (pthread_atfork(NULL, NULL, forget_threads) != 0)
            return 1;
        pool.atfork = true;
    }
    if (pool.made == 0)
        slot_init(&pool.slot[0]);
    if (pool.made + 1 < threads) {
        /* Signals are for the threads of the program, except those that a thread brings upon itself. */
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

/* Publishes a call; the owner's part in it. */
static part begin_call(fl_piece_fn fn, void *arg, int steps, int pieces, int threads) {
    const int units = pieces < MAX_UNITS ? pieces : MAX_UNITS;
    part p = {.word = word_of(pool.tick, units, threads), .units = units, .threads = threads, .steps = steps};
    p.base = (uint64_t)finished(&p);
    for (int u = pool.ready; u < units; u++)
        atomic_store_explicit(&pool.claim[u].tick, pool.tick, memory_order_relaxed);
    pool.ready = units;
    pool.tick = tick_add(pool.tick, (uint64_t)steps);
    /* In between a word that is no call's: a worker that finds the same word before and after these has read its own. */
    atomic_store_explicit(&pool.word, idle_word(), memory_order_relaxed);
    pool.fn = fn;
    pool.arg = arg;
    pool.pieces = pieces;
    atomic_store_explicit(&pool.base, p.base, memory_order_release);
    atomic_store_explicit(&pool.steps, steps, memory_order_release);
    make_room(threads);
    p.alone = publish(p.word) || pool.alone;
    return p;
}

/* Nanoseconds by which the caller alone would have been faster so far, judging by the time its own units took. */
static double lost(const part *p, uint64_t took) {
    const double alone = (double)(took - p->waited) * (double)p->all / (double)p->mine;
    return p->mine > 0 ? (double)took - alone : 0;
}

/* The owner's part of a call with other threads in it. Returns for how long it waited. */
static uint64_t run_together(fl_piece_fn fn, void *arg, int steps, int pieces, int threads) {
    const uint64_t begin = fl_now();
    part p = begin_call(fn, arg, steps, pieces, threads);
    bool late = false;
    while (p.all < (int64_t)steps * p.units) {
        take_part(&p);
        if (late || p.waited < SLACK_NS)
            continue;
        const uint64_t now = fl_now();
        const double loss = lost(&p, now - begin);
        if (loss > SLACK_NS) { /* a neighbour keeps the others' cores busy: without them, and for a while from now */
            late = true;
            atomic_store_explicit(&pool.word, word_of(tick_of(p.word), p.units, 1), memory_order_relaxed);
            pool.retry_at = now + (uint64_t)fmin(loss * (1 << pool.strikes), MAX_REST_NS);
            if (pool.strikes < MAX_STRIKES)
                pool.strikes++;
        }
    }
    pool.alone = p.alone;
    if (!late && p.mine < p.all && pool.strikes > 0)
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
        if (fl_now() < pool.retry_at || (threads = grow(threads)) <= 1)
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
