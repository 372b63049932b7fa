/* pool_system.h: what the thread pool needs of the system and the processor: sleeping, waking, processor affinity, the
 * clock, the floating-point mode. Part of pool.c. */
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

#include "tuning.h"

/* A participant's place in the pool; slot 0 is the caller's. */
typedef struct {
    _Alignas(FL_LINES) atomic_uint_least64_t finished; /* written by the participant only, at every step */
    _Alignas(FL_LINES) atomic_uint asleep;             /* 1: sleeping, or about to look once more and then sleep */
    atomic_int id;                                     /* the system's number of the thread; 0 until it runs */
    int avoided;      /* the processor that the thread keeps off; used by the owner only */
    pthread_t thread; /* used by the owner only */
#if !FUTEX
    pthread_mutex_t lock;
    pthread_cond_t wake;
#endif
} slot_t;

/* ---- the clock, and waiting in a loop ---- */

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

/* Between a store and a later load. Sequential consistency promises that order, but QEMU 7 does not keep it for ARM's stlr
 * and ldar, and lost a wake-up; a full memory barrier is kept everywhere. */
static inline void store_before_load(void) {
#if defined(__aarch64__)
    atomic_thread_fence(memory_order_seq_cst);
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

static void slot_init(slot_t *slot) { /* `finished` goes on: only differences count */
    atomic_store(&slot->asleep, 0);
    atomic_store(&slot->id, 0);
    slot->avoided = -1;
#if !FUTEX
    pthread_mutex_init(&slot->lock, NULL);
    pthread_cond_init(&slot->wake, NULL);
#endif
}

/* Sleeps for at most `ns` nanoseconds or, with 0, until woken. May return early: the caller looks again. */
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

/* Sleeps until a moment (fl_now), unless it has passed; returns whether it slept. Nothing wakes the thread earlier. */
static bool sleep_until(uint64_t moment) {
    const uint64_t now = fl_now();
    if (now >= moment)
        return false;
    const struct timespec time = {.tv_sec = (time_t)((moment - now) / 1000000000),
                                  .tv_nsec = (long)((moment - now) % 1000000000)};
    nanosleep(&time, NULL);
    return true;
}

/* Wakes a slot's thread; returns whether it slept. */
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

/* ---- processor affinity ---- */

/* Keeps workers off the caller's processor. Linux often wakes a thread on the processor of the thread that wakes it and,
 * after a pause, leaves it waiting there while another processor is idle: the caller then does everything alone, call
 * after call (1.1 ms instead of 0.45 at I=H=256, B=1, T=100). In virtual machines, where an idle processor looks taken,
 * that is the rule. The affinity is set only when the caller's processor changes. The caller does not sleep while a worker
 * may still come: woken by the worker, it would be put on the worker's processor. */
#if defined(__linux__)
static int thread_id(void) { return (int)syscall(SYS_gettid); }
static void make_room(slot_t *slots, int threads) {
    cpu_set_t allowed;
    const int cpu = sched_getcpu();
    bool known = false;
    for (int i = 1; i < threads; i++) {
        slot_t *slot = &slots[i];
        const int id = atomic_load_explicit(&slot->id, memory_order_relaxed);
        if (cpu < 0 || id == 0 || slot->avoided == cpu)
            continue;
        slot->avoided = cpu; /* tried once, even if the system refuses */
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

/* The processor on which the calling thread runs. */
static int this_cpu(void) { return sched_getcpu(); }

/* Moves the calling thread to another processor if it runs on this one; where it may run stays as it is. */
static void leave_cpu(int cpu) {
    cpu_set_t allowed, others;
    if (cpu < 0 || sched_getcpu() != cpu || sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return;
    others = allowed;
    CPU_CLR(cpu, &others);
    if (CPU_COUNT(&others) > 0 && sched_setaffinity(0, sizeof others, &others) == 0)
        sched_setaffinity(0, sizeof allowed, &allowed);
}
#else
static int thread_id(void) { return 0; }
static int this_cpu(void) { return -1; }
static void leave_cpu(int cpu) { (void)cpu; }
static void make_room(slot_t *slots, int threads) { (void)slots, (void)threads; }
#endif
