/* steps.c: that steps of the C library neither allocate memory nor call the system. `steps MODEL MODEL_OF_IDS`: allocations
 * are counted by functions in place of malloc and its like, and seccomp ends the process at any system call but write,
 * exit_group and those that return from a signal. A child that allocates and calls the system shows that both are noticed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/seccomp.h>

#include <fastlstm.h>

static unsigned long allocations;

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
void *malloc(size_t n) { return allocations++, __libc_malloc(n); }
void *calloc(size_t n, size_t of) { return allocations++, __libc_calloc(n, of); }
void *realloc(void *p, size_t n) { return allocations++, __libc_realloc(p, n); }

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "steps.c:%d: failed: %s\n", __LINE__, #what);                                              \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

enum { MOST = 300, WIDTH = 64 };
static float x[MOST * WIDTH], y[MOST * WIDTH];
static int64_t ids[MOST];
static unsigned char state[1 << 16];

typedef struct {
    fastlstm_info info;
    fastlstm_stream *stream, *other;
    fastlstm_batch *batch;
    fastlstm_handle handles[MOST];
} program;

static void load(program *p, const char *path) {
    fastlstm_model *model;
    fastlstm_error error;
    const fastlstm_info empty = FASTLSTM_INFO_INIT;
    if (fastlstm_model_load(path, NULL, &model, &error)) {
        fprintf(stderr, "%s\n", error.message);
        exit(1);
    }
    p->info = empty;
    CHECK(fastlstm_model_info(model, &p->info) == FASTLSTM_OK);
    CHECK(p->info.input_size <= WIDTH && p->info.output_size <= WIDTH && p->info.state_bytes <= sizeof state);
    CHECK(fastlstm_stream_new(model, &p->stream) == 0 && fastlstm_stream_new(model, &p->other) == 0);
    CHECK(fastlstm_batch_new(model, 0, 0, &p->batch) == 0);
    for (int i = 0; i < MOST; i++)
        CHECK(fastlstm_batch_open(p->batch, &p->handles[i]) == 0);
    fastlstm_model_release(model);
}

/* All that a program does between opening and closing. */
static int use(program *p) {
    const size_t bytes = p->info.state_bytes;
    int wrong = 0;
    for (size_t n = 1; n <= MOST; n += 23) {
        if (p->info.input_size) {
            wrong |= fastlstm_step(p->stream, x, y) | fastlstm_run(p->stream, x, n, y);
            wrong |= fastlstm_batch_step(p->batch, p->handles, n, x, y);
        } else {
            wrong |= fastlstm_step_id(p->stream, 1, y) | fastlstm_run_ids(p->stream, ids, n, y);
            wrong |= fastlstm_batch_step_ids(p->batch, p->handles, n, ids, y);
        }
        wrong |= fastlstm_state_export(p->stream, state, bytes, NULL);
        wrong |= fastlstm_state_import(p->other, state, bytes, 0, NULL) | fastlstm_copy(p->stream, p->other);
        wrong |= fastlstm_batch_import(p->batch, p->handles[3], state, bytes, 0, NULL);
        wrong |= fastlstm_batch_export(p->batch, p->handles[3], state, bytes, NULL) | fastlstm_reset(p->other);
        wrong |= fastlstm_batch_reset(p->batch, p->handles[4]);
        wrong |= fastlstm_batch_close(p->batch, p->handles[0]) | fastlstm_batch_open(p->batch, &p->handles[0]);
    }
    return wrong;
}

/* The exit status of a child: within the strict mode of seccomp it uses the programs or, with `asks`, calls the system. */
static int in_child(program *programs, int count, int asks) {
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        int wrong = 0;
        CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0);
        for (int i = 0; i < count; i++)
            wrong |= use(&programs[i]);
        if (asks)
            wrong |= getppid() == 0;
        __asm__ volatile("syscall" : : "a"(60L), "D"((long)wrong) : "rcx", "r11", "memory"); /* exit */
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 256;
}

int main(int argc, char **argv) {
    static program programs[2];
    CHECK(argc == 3);
    for (int i = 0; i < MOST * WIDTH; i++)
        x[i] = (float)(i % 17) / 8 - 1;
    for (int i = 0; i < MOST; i++)
        ids[i] = i % 40;
    for (int i = 0; i < 2; i++)
        load(&programs[i], argv[1 + i]);
    CHECK(allocations > 0);
    const unsigned long before = allocations;
    CHECK(use(&programs[0]) == 0 && use(&programs[1]) == 0);
    const unsigned long made = allocations - before;
#if defined(__x86_64__)
    CHECK(in_child(programs, 2, 0) == 0);
    CHECK(in_child(programs, 2, 1) == 256);
#endif
    for (int i = 0; i < 2; i++) {
        fastlstm_stream_free(programs[i].stream);
        fastlstm_stream_free(programs[i].other);
        fastlstm_batch_free(programs[i].batch);
    }
    printf("%lu allocations in steps\n", made);
    return made != 0;
}
