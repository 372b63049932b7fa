/* pool.c: threads that do the pieces of a call.
 *
 * One parallel region per call, however many steps it has; a step ends with a barrier. The machine may be shared, so
 * nobody ever waits for a thread to *arrive*: pieces are claimed one by one, and who is there takes what nobody has
 * claimed. The only thing ever waited for is a piece that another thread has claimed and is working on.
 *
 *   word   what is going on, in one atomic number, so that its parts always belong together:
 *             tick << 24 | units << 12 | threads
 *          `tick` grows by one with every step and is never used twice, from one call to the next either. `threads` is
 *          how many may take part; 0 says that no call is under way.
 *   claim  [u] == tick: unit u of the present step is free; tick + 1: somebody has it.
 *          Whoever changes it from tick to tick + 1 by compare-and-swap owns the unit. As ticks are unique, success
 *          also proves that the word it was read from is still the present one: the step cannot end without this unit.
 *          A thread that slept through steps, or through whole calls, therefore does no harm and delays nobody.
 *   left   units of this step not yet finished. Who takes it to zero opens the next step by storing the next word.
 *
 * A unit is a piece, or, where there are more than MAX_UNITS of them, every MAX_UNITS-th piece from there on.
 * Unit u belongs by preference to participant u % threads: in the next step it then finds its data in its own cache.
 *
 * Who finds every unit claimed spins for at most FL_SPIN_NS and then sleeps until the word changes. A longer spin pays
 * only on idle cores: beside a busy neighbour it keeps away the very thread that it waits for. The caller of a step may
 * spin for longer where workers keep off its processor, since it keeps nobody away there.
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
    CACHE_LINE = 64,
#if defined(__linux__)
    CALLER_SPIN_NS = 50000, /* about what a worker on an idle processor needs to come; see make_room */
#else
    CALLER_SPIN_NS = FL_SPIN_NS,
#endif
    SLACK_NS = 200000, /* what a call may lose to late threads before it goes on alone: some wake-ups' worth */
    MAX_STRIKES = 5,
    MAX_REST_NS = 100000000
};

/* ---- the pool: the only state of this library that outlives a call, beside the chosen instruction set ---- */

typedef struct {
    _Alignas(CACHE_LINE) atomic_uint asleep; /* 1: sleeping, or about to look once more and then sleep */
    atomic_int id;                           /* the system's number of the thread; 0 until it runs */
    int avoided;                             /* the processor that it keeps off; the owner's own */
#if !FUTEX
    pthread_mutex_t lock;
    pthread_cond_t wake;
#endif
} slot_t;

typedef struct {
    _Alignas(CACHE_LINE) atomic_uint_least64_t tick;
} claim_t;

static struct {
    _Alignas(CACHE_LINE) atomic_uint_least64_t word;
    _Alignas(CACHE_LINE) atomic_int left;
    _Alignas(CACHE_LINE) atomic_bool owned; /* a call is using the pool */
    atomic_bool alone;                      /* the caller's wish: from the next step on, no other threads */

    /* Of the present call. Written by the owner between calls, read by holders of a claimed unit. */
    fl_piece_fn fn;
    void *arg;
    int pieces;
    uint64_t first, end; /* tick of step 0, and of the step that is no more */

    /* The owner's own. */
    int made;    /* threads that exist: they have the slots 1..made */
    bool atfork; /* the fork handler is registered (a child inherits it) */
    /* After a call that lost time to a busy neighbour, the pool rests for as long as was lost, doubled with each further
     * such call, up to 2^MAX_STRIKES times and MAX_REST_NS. So a single hiccup costs little, a lasting neighbour costs
     * little too, and soon after it has gone all threads are back. */
    uint64_t retry_at; /* nanoseconds */
    int strikes;       /* each call that went well takes one back */

    slot_t slot[MAX_THREADS]; /* slot 0: the caller */
    claim_t claim[MAX_UNITS];
} pool;

static inline uint64_t word_of(uint64_t tick, int units, int threads) {
    return tick << 24 | (uint64_t)units << 12 | (uint64_t)threads;
}

static inline uint64_t tick_of(uint64_t word) { return word >> 24; }
static inline int units_of(uint64_t word) { return (int)(word >> 12 & 0xfff); }
static inline int threads_of(uint64_t word) { return (int)(word & 0xfff); }

/* The ticks in claim[] are compared with those of words, which have 40 bits. (At 1 us a step they come round after 12
 * days. Only equality counts, so that is harmless.) */
static inline uint64_t tick_add(uint64_t tick, uint64_t n) { return (tick + n) & 0xffffffffffu; }

/* The word between calls, the last step having been `tick`. One tick is left out: no claim matches that of this word,
 * so nobody can start on what is over. */
static inline uint64_t word_after(uint64_t tick) { return word_of(tick_add(tick, 2), 0, 0); }

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

/* May return early: the caller looks again. */
static void slot_sleep(slot_t *slot) {
#if FUTEX
    syscall(SYS_futex, &slot->asleep, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
#else
    pthread_mutex_lock(&slot->lock);
    while (atomic_load(&slot->asleep) == 1)
        pthread_cond_wait(&slot->wake, &slot->lock);
    pthread_mutex_unlock(&slot->lock);
#endif
}

static void slot_wake(slot_t *slot) {
    if (atomic_load(&slot->asleep) == 0 || atomic_exchange(&slot->asleep, 0) == 0)
        return;
#if FUTEX
    syscall(SYS_futex, &slot->asleep, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
#else
    pthread_mutex_lock(&slot->lock);
    pthread_cond_signal(&slot->wake);
    pthread_mutex_unlock(&slot->lock);
#endif
}

/* A store, and only then a load: sequential consistency promises it, but QEMU 7 does not keep it for ARM's stlr and ldar,
 * and a wake-up was lost there. A full barrier is kept by all. */
static inline void store_before_load(void) {
#if defined(__aarch64__)
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

/* Store a new word and wake the participants 0..wake-1 that sleep. Each side writes its own variable first and then
 * reads the other's, in sequentially consistent order: one of the two sees the other, so no wake-up is lost. */
static void publish(uint64_t word, int wake) {
    atomic_store(&pool.word, word);
    store_before_load();
    for (int w = 0; w < wake; w++)
        slot_wake(&pool.slot[w]);
}

/* Is `word` something that participant `me`, who has dealt with `seen`, has to look at? */
static inline bool concerns(uint64_t word, uint64_t seen, int me) {
    return word != seen && (me == 0 || me < threads_of(word));
}

/* Wait for such a word, and return it. */
static uint64_t await(uint64_t seen, int me) {
    slot_t *slot = &pool.slot[me];
    uint64_t word = atomic_load_explicit(&pool.word, memory_order_acquire);
    if (concerns(word, seen, me))
        return word;

    uint64_t until = fl_now() + (me == 0 ? CALLER_SPIN_NS : FL_SPIN_NS);
    do {
        spin_pause();
        word = atomic_load_explicit(&pool.word, memory_order_acquire);
        if (concerns(word, seen, me))
            return word;
    } while (fl_now() < until);

    for (;;) {
        atomic_store(&slot->asleep, 1);
        store_before_load();
        word = atomic_load(&pool.word);
        if (concerns(word, seen, me)) {
            atomic_store(&slot->asleep, 0);
            return word;
        }
        slot_sleep(slot);
    }
}

/* ---- working ---- */

/* Claim unit u of the step that `word` stands for and do it, unless somebody has it. */
static bool try_unit(uint64_t word, int u, int me) {
    uint64_t tick = tick_of(word), expected = tick;
    if (atomic_load_explicit(&pool.claim[u].tick, memory_order_relaxed) != tick)
        return false; /* a look costs less than a failed swap */
    if (!atomic_compare_exchange_strong(&pool.claim[u].tick, &expected, tick_add(tick, 1)))
        return false;
    int step = (int)tick_add(tick, 0 - pool.first);
    for (int piece = u; piece < pool.pieces; piece += units_of(word))
        pool.fn(pool.arg, step, piece, me);
    return true;
}

/* The last unit of the step that `word` stands for is finished: the next step. */
static void open_next(uint64_t word) {
    uint64_t tick = tick_of(word);
    int units = units_of(word), threads = threads_of(word);
    if (tick_add(tick, 1) == pool.end) {
        publish(word_after(tick), 1);
        return;
    }
    if (atomic_load_explicit(&pool.alone, memory_order_relaxed))
        threads = 1;
    atomic_store_explicit(&pool.left, units, memory_order_relaxed);
    publish(word_of(tick_add(tick, 1), units, threads), threads);
}

/* Do what can be had of one step: first what is mine by preference, then what nobody claimed. Returns how many units it
 * was. What is done is reported before looking for more, since to look takes as long as a cache line takes to come from
 * another core: who has finished last need not. */
static int take_part(uint64_t word, int me) {
    int units = units_of(word), threads = threads_of(word), total = 0;
    for (int other = 0; other < threads; other++) {
        int done = 0;
        for (int u = (me + other) % threads; u < units; u += threads)
            done += try_unit(word, u, me);
        total += done;
        if (done > 0 && atomic_fetch_sub(&pool.left, done) == done) {
            open_next(word);
            break;
        }
    }
    return total;
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
        take_part(word, me);
    }
    return NULL;
}

/* ---- calls ---- */

static void slot_init(slot_t *slot) {
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
    atomic_store(&pool.alone, false);
    atomic_store(&pool.word, word_after(tick_of(atomic_load(&pool.word))));
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

static void run_alone(fl_piece_fn fn, void *arg, int first_step, int steps, int pieces) {
    for (int step = first_step; step < steps; step++)
        for (int piece = 0; piece < pieces; piece++)
            fn(arg, step, piece, 0);
}

/* The owner's part of a call with other threads in it. */
static void run_together(fl_piece_fn fn, void *arg, int steps, int pieces, int threads) {
    int units = pieces < MAX_UNITS ? pieces : MAX_UNITS;
    uint64_t first = tick_add(tick_of(atomic_load(&pool.word)), 1);
    pool.fn = fn;
    pool.arg = arg;
    pool.pieces = pieces;
    pool.first = first;
    pool.end = tick_add(first, (uint64_t)steps);
    atomic_store_explicit(&pool.alone, false, memory_order_relaxed);
    atomic_store_explicit(&pool.left, units, memory_order_relaxed);
    for (int u = 0; u < units; u++)
        atomic_store_explicit(&pool.claim[u].tick, first, memory_order_relaxed);

    uint64_t word = word_of(first, units, threads), begin = fl_now(), waited = 0;
    int64_t mine = 0, all = 0; /* units done by the caller, and by everybody */
    bool late = false;
    make_room(threads);
    publish(word, threads);
    while (threads_of(word) > 1) {
        mine += take_part(word, 0);
        uint64_t wait_from = fl_now();
        uint64_t next = await(word, 0);
        uint64_t t = fl_now();
        waited += t - wait_from;
        all = units_of(next) == 0 ? (int64_t)steps * units : (int64_t)tick_add(tick_of(next), 0 - first) * units;
        word = next;

        /* Would the caller alone have been faster so far, judging by the time its own units took? Then leave the others
         * out for the rest of the call, and for a while after it: a neighbour keeps their cores busy. */
        double took = (double)(t - begin);
        double alone = mine > 0 ? (took - (double)waited) * (double)all / (double)mine : took;
        if (!late && took > alone + SLACK_NS) {
            late = true;
            atomic_store_explicit(&pool.alone, true, memory_order_relaxed);
            pool.retry_at = t + (uint64_t)fmin((took - alone) * (1 << pool.strikes), MAX_REST_NS);
            if (pool.strikes < MAX_STRIKES)
                pool.strikes++;
        }
    }
    if (!late && mine < all && pool.strikes > 0)
        pool.strikes--;
    if (threads_of(word) == 1) {
        run_alone(fn, arg, (int)tick_add(tick_of(word), 0 - first), steps, pieces);
        publish(word_after(tick_add(pool.end, 0 - UINT64_C(1))), 0);
    }
}

void fl_run(fl_piece_fn fn, void *arg, int steps, int pieces, int threads) {
    if (steps <= 0 || pieces <= 0)
        return;
    fp_mode_t mode = fp_enter();
    if (threads > pieces)
        threads = pieces;
    if (threads > MAX_THREADS)
        threads = MAX_THREADS;
    if (threads > 1 && !atomic_exchange(&pool.owned, true)) {
        if (fl_now() < pool.retry_at || (threads = grow(threads)) <= 1)
            run_alone(fn, arg, 0, steps, pieces);
        else
            run_together(fn, arg, steps, pieces, threads);
        atomic_store(&pool.owned, false);
    } else {
        run_alone(fn, arg, 0, steps, pieces);
    }
    fp_leave(mode);
}
