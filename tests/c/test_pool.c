/* test_pool.c: a stress test of csrc/pool.c, of about five seconds. `make test-c` runs it plainly, `make test-sanitize`
 * under the sanitizers. `test_pool time` prints what a call and a step cost.
 */
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "api.h"
#include "pool.h"

enum { MAX_PIECES = 3000, CALLERS = 6, SECONDS = 4 };

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "test_pool.c:%d: failed: %s\n", __LINE__, #what);                                          \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static unsigned next_random(unsigned *seed) { return (*seed = *seed * 1664525u + 1013904223u) >> 8; }

/* Each piece reads what all pieces wrote in the step before: plain memory, so that a wrong order is a wrong result and
 * a data race under the thread sanitizer. Two buffers, as in a step loop over h. */
typedef struct {
    int pieces, threads, work;
    atomic_int entered[64];   /* by worker: never two at once with the same number */
    int value[2][MAX_PIECES]; /* step written last, plus 1 */
    _Atomic int runs;
    volatile float denormal;
} job_t;

static void piece_fn(void *arg, int step, int piece, int worker) {
    job_t *job = arg;
    CHECK(worker >= 0 && worker < (job->threads > 1 ? job->threads : 1));
    CHECK(atomic_fetch_add(&job->entered[worker], 1) == 0);
    CHECK(piece >= 0 && piece < job->pieces);
    CHECK(job->denormal * 0.5f == 0.0f);
    const int *before = job->value[step & 1];
    int *after = job->value[~step & 1];
    for (int p = 0; p < job->pieces; p++)
        CHECK(before[p] == step);
    for (volatile int i = 0; i < job->work; i++)
        ;
    after[piece] = step + 1;
    atomic_fetch_add_explicit(&job->runs, 1, memory_order_relaxed);
    CHECK(atomic_fetch_sub(&job->entered[worker], 1) == 1);
}

static void check_call(job_t *job, int steps, int pieces, int threads, int work) {
    memset(job, 0, sizeof *job);
    job->pieces = pieces;
    job->threads = threads;
    job->work = work;
    job->denormal = 1e-40f;
    CHECK(job->denormal * 0.5f != 0.0f); /* the caller's own mode: it keeps denormals */
    for (int p = 0; p < pieces; p++)
        job->value[1][p] = -1;
    fl_run(piece_fn, job, steps, pieces, threads);
    CHECK(job->denormal * 0.5f != 0.0f);
    CHECK(job->runs == steps * pieces);
    for (int p = 0; p < pieces; p++)
        CHECK(steps == 0 || job->value[steps & 1][p] == steps);
}

static void random_calls(unsigned seed, double until) {
    job_t *job = malloc(sizeof *job);
    CHECK(job != NULL);
    while (seconds() < until) {
        int steps = (int)(next_random(&seed) % 40), threads = (int)(next_random(&seed) % 10);
        int pieces = 1 + (int)(next_random(&seed) % (next_random(&seed) % 64 == 0 ? MAX_PIECES : 24));
        int work = next_random(&seed) % 8 == 0 ? (int)(next_random(&seed) % 20000) : 50;
        check_call(job, pieces > 200 ? steps % 3 : steps, pieces, threads, pieces > 200 ? 0 : work);
        if (next_random(&seed) % 16 == 0)
            usleep(next_random(&seed) % 300);
    }
    free(job);
}

/* What a host program's OpenMP does: runs fn(data) in `threads` threads, the calling one included. */
typedef struct {
    void (*fn)(void *);
    void *data;
} region_t;

static void *member_main(void *arg) {
    region_t *region = arg;
    region->fn(region->data);
    return NULL;
}

static atomic_int regions;

static void parallel(void (*fn)(void *), void *data, unsigned threads, unsigned flags) {
    region_t region = {fn, data};
    pthread_t member[16];
    CHECK(flags == 0 && threads <= 16);
    atomic_fetch_add(&regions, 1);
    for (unsigned i = 1; i < threads; i++)
        CHECK(pthread_create(&member[i], NULL, member_main, &region) == 0);
    fn(data);
    for (unsigned i = 1; i < threads; i++)
        CHECK(pthread_join(member[i], NULL) == 0);
}

typedef struct {
    unsigned seed;
    double until;
    bool hosted; /* by the host program's threads */
} caller_t;

static void *caller_main(void *arg) {
    caller_t *caller = arg;
    if (caller->hosted)
        flq_host(parallel, 1 + (int)(caller->seed % 7));
    random_calls(caller->seed, caller->until);
    return NULL;
}

/* A child uses the pool, but none of the host program's threads, forks again, and its child does too. Returns how many
 * children the caller had: none under the thread sanitizer nor, with NO_FORK, under QEMU, which cannot follow a fork while
 * other threads run; nor under the address sanitizer, of whose allocator (gcc 12) one of these may have the lock, for which
 * the child then waits for ever. */
static int fork_and_use(unsigned seed, int depth) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__) || defined(NO_FORK)
    (void)seed, (void)depth;
    usleep(1000);
    return 0;
#endif
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(60);
        const int before = regions;
        random_calls(seed, seconds() + 0.02);
        CHECK(regions == before);
        if (depth > 0)
            fork_and_use(seed + 1, depth - 1);
        _exit(0);
    }
    int status;
    while (waitpid(child, &status, 0) < 0)
        CHECK(errno == EINTR);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return 1;
}

/* Calls within calls run in the piece that makes them. */
static void inner_fn(void *arg, int step, int piece, int worker) {
    int *count = arg;
    CHECK(worker == 0);
    CHECK(*count == step * 5 + piece);
    ++*count;
}

static void outer_fn(void *arg, int step, int piece, int worker) {
    (void)worker;
    int count = 0;
    fl_run(inner_fn, &count, 3, 5, 4);
    CHECK(count == 15);
    atomic_fetch_add((atomic_int *)arg, 1 + 0 * (step + piece));
}

static void check_nested(void) {
    atomic_int outer = 0;
    fl_run(outer_fn, &outer, 50, 7, 4);
    CHECK(outer == 350);
}

/* ---- a helper that comes late ---- */

/* The helper's first piece takes HELD_US, as if another program had its processor: the call loses time and lets the pool
 * rest. Pieces of steps from `from` on are counted by worker. */
enum { HELD_US = 5000, LATE_STEPS = 400 };

typedef struct {
    int piece_us, from;
    atomic_int held, of_helper;
} late_t;

static void late_fn(void *arg, int step, int piece, int worker) {
    late_t *late = arg;
    (void)piece;
    if (worker > 0 && !atomic_exchange(&late->held, 1))
        usleep(HELD_US);
    for (double until = seconds() + 1e-6 * late->piece_us; seconds() < until;)
        ;
    if (worker > 0 && step >= late->from)
        atomic_fetch_add(&late->of_helper, 1);
}

/* Pieces that the helper does after it was late: in the same call, and in one call that begins while the pool rests. */
static void late_helper(int *same_call, int *next_call) {
    usleep(200000); /* earlier rests are over */
    late_t late = {.piece_us = 100, .from = LATE_STEPS / 2};
    fl_run(late_fn, &late, LATE_STEPS, 2, 2);
    *same_call = late.held ? late.of_helper : -1;
    usleep(200000);
    late = (late_t){.piece_us = 100, .from = LATE_STEPS};
    fl_run(late_fn, &late, 60, 2, 2); /* 6 ms, of which the helper takes 5: the rest lasts beyond this call */
    late_t next = {.piece_us = 2000, .held = 1};
    fl_run(late_fn, &next, 1, 20, 2);
    *next_call = late.held ? next.of_helper : -1;
}

/* The machine may be busy: three good tries of many suffice; without the feature one in tens is good by chance. */
static void check_late_helper(bool hosted) {
    int good = 0;
    flq_host(hosted ? parallel : NULL, 2);
    if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
        return;
    for (int tries = 0; tries < 40 && good < 3; tries++) {
        int same_call, next_call;
        late_helper(&same_call, &next_call);
        good += same_call >= LATE_STEPS / 4 && next_call >= 3;
    }
    flq_host(NULL, 0);
    CHECK(good == 3);
}

/* A call takes threads of the host program only between flq_host(parallel, ...) and flq_host(NULL, 0), and a forked child
 * none, since they exist in its parent only. */
static void check_hosts(void) {
    usleep(200000); /* earlier rests are over */
    const int before = regions;
    random_calls(5, seconds() + 0.05);
    CHECK(regions == before);
    flq_host(parallel, 3);
    random_calls(6, seconds() + 0.3);
    const int hosted = regions;
    CHECK(hosted > before);
    fork_and_use(7, 0);
    flq_host(NULL, 0);
    random_calls(8, seconds() + 0.05);
    CHECK(regions == hosted);
}

/* ---- time ---- */

static void empty_fn(void *arg, int step, int piece, int worker) { (void)arg, (void)step, (void)piece, (void)worker; }

static void busy_fn(void *arg, int step, int piece, int worker) {
    (void)step, (void)piece, (void)worker;
    for (volatile int i = 0; i < *(int *)arg; i++)
        ;
}

static int by_size(const void *a, const void *b) {
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

static void time_call(const char *name, fl_piece_fn fn, int work, int steps, int pieces, int threads, int idle_us) {
    enum { RUNS = 1000 };
    static double took[RUNS];
    double began = seconds();
    int n = 0;
    while (n < RUNS && (n < 5 || seconds() - began < 2.0)) {
        if (idle_us)
            usleep((unsigned)idle_us);
        double t = seconds();
        fl_run(fn, &work, steps, pieces, threads);
        took[n++] = (seconds() - t) * 1e6;
    }
    qsort(took, (size_t)n, sizeof *took, by_size);
    printf("%-44s median %9.2f us   p90 %9.2f   p99 %9.2f\n", name, took[n / 2], took[n * 9 / 10], took[n * 99 / 100]);
}

static void print_times(void) {
    time_call("empty call, 1 thread", empty_fn, 0, 1, 2, 1, 0);
    time_call("empty call, 2 threads, back to back", empty_fn, 0, 1, 2, 2, 0);
    time_call("empty call, 2 threads, after 1 ms idle", empty_fn, 0, 1, 2, 2, 1000);
    time_call("100 empty steps, 2 threads", empty_fn, 0, 100, 2, 2, 0);
    for (int threads = 1; threads <= 2; threads++) {
        printf("%d thread%s\n", threads, threads > 1 ? "s" : "");
        time_call("  100 steps x 2 pieces of about 20 us", busy_fn, 20000, 100, 2, threads, 0);
        time_call("  100 steps x 8 pieces of about 5 us", busy_fn, 5000, 100, 8, threads, 0);
        time_call("  1 step x 2 pieces of about 1 ms", busy_fn, 1000000, 1, 2, threads, 0);
    }
}

/* The threads of this process; 0 where the system does not tell. */
static int count_threads(void) {
    int threads = 0;
    char line[200];
    FILE *const status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status))
        sscanf(line, "Threads: %d", &threads);
    if (status)
        fclose(status);
    return threads;
}

/* Whether there are soon so many threads: the system, and an emulator still more, counts an ended one for a moment. */
static bool are_soon(int threads) {
    const double until = seconds() + 5;
    while (count_threads() != threads && seconds() < until)
        usleep(100);
    return count_threads() == threads;
}

/* Workers end when they are told to, asleep or awake, and the next call makes new ones. */
static void check_ending(void) {
    job_t *job = malloc(sizeof *job);
    CHECK(job != NULL);
    fl_end_threads(); /* of earlier calls, and where there are none */
    usleep(100000);
    const int before = count_threads();
    for (int i = 0; i < 20; i++) {
        check_call(job, 10, 4, 4, 50);
        CHECK(before == 0 || count_threads() == before + 3);
        if (i % 2)
            usleep(2000); /* they fall asleep */
        fl_end_threads();
        CHECK(are_soon(before));
    }
    free(job);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "time") == 0) {
        print_times();
        return 0;
    }
    alarm(300); /* a hang is a failure */

    fork_and_use(1, 0); /* before the pool was ever used */
    check_nested();
    random_calls(2, seconds() + 0.5);
    fork_and_use(3, 2);
    check_late_helper(false);
    check_late_helper(true);
    check_hosts();
    check_ending();

    double until = seconds() + SECONDS;
    caller_t callers[CALLERS];
    pthread_t threads[CALLERS];
    for (int i = 0; i < CALLERS; i++) {
        callers[i] = (caller_t){100u + (unsigned)i, until, i % 2 == 1};
        CHECK(pthread_create(&threads[i], NULL, caller_main, &callers[i]) == 0);
    }
    int forks = 0;
    for (unsigned round = 0; seconds() < until; round++) {
        forks += fork_and_use(1000u + round, round % 8 == 0); /* others are inside fl_run meanwhile */
        if (round % 16 == 0)
            fl_end_threads();
    }
    for (int i = 0; i < CALLERS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    check_nested();
    printf("pool: ok (%d forks under load)\n", forks);
    return 0;
}
