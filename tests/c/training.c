/* training.c: the dense layer with its softmax and cross-entropy, and the optimisers. */
#include <string.h>

#include "check.h"
#include "host.h"

#include "api.h"

/* ---------------------------------------------------------------------------------------------------- the dense layer */

static const ptrdiff_t output_sizes[] = {17, 1, 3, 8, 65, 130, 530}, input_sizes[] = {16, 1, 7, 33, 100};
static const ptrdiff_t row_counts[] = {5, 1, 2, 7, 13, 97, 33, 270};
_Static_assert(LENGTH(output_sizes) == 7 && LENGTH(input_sizes) == 5 && LENGTH(row_counts) == 8,
               "no two lengths may have a common factor");

static struct {
    int number;
    ptrdiff_t N, I, U;
    float *x, *dy, *weight, *bias; /* (N, I), (N, U), (U, I), (U) or NULL */
    int64_t *targets;              /* (N) */
} head;

static int count_heads(int cases) { return cases / 8 + 1; }

static void make_head(int n, int cases) {
    (void)cases;
    begin_random(n);
    head.number = n;
    head.N = row_counts[n % LENGTH(row_counts)];
    head.I = input_sizes[n % LENGTH(input_sizes)];
    head.U = output_sizes[n % LENGTH(output_sizes)];
    head.x = random_floats(head.N * head.I, 1);
    head.dy = random_floats(head.N * head.U, 1);
    head.weight = random_floats(head.U * head.I, 1);
    head.bias = n % 3 != 2 ? random_floats(head.U, 1) : NULL;
    head.targets = keep(NULL, head.N * (ptrdiff_t)sizeof *head.targets);
    for (ptrdiff_t i = 0; i < head.N; i++)
        head.targets[i] = (int64_t)((uniform() + 1) / 2 * (double)head.U) % head.U;
}

static void describe_head(void) {
    host_say("head %d (N=%d I=%d U=%d%s)", head.number, (int)head.N, (int)head.I, (int)head.U,
             head.bias ? "" : ", without bias");
}

static fl_dense pack_head(How how) {
    const ptrdiff_t I = head.I, U = head.U;
    fl_dense k = {.I = I, .U = U, .isa = how.isa};
    float *weight = floats(head.weight, U * I), *bias = maybe_floats(head.bias, U);
    weight[U * I - 1] += how.broken ? 1e-2f : 0;
    fl_dense_pack(&k, weight, bias, 0, aligned_bytes(fl_dense_size(&k, 0)));
    fl_dense_pack(&k, weight, bias, 1, aligned_bytes(fl_dense_size(&k, 1)));
    memset(weight, 0xff, (size_t)(U * I) * sizeof *weight);
    return k;
}

static fl_scratch scratch_of(ptrdiff_t size) { return (fl_scratch){aligned_floats(size), size}; }

/* Backward from dy or, where that is NULL, from the cross-entropy. */
static void head_backward(const fl_dense *k, How how, const float *dy, Result *r) {
    const ptrdiff_t N = head.N, I = head.I, U = head.U;
    const int entropy = !dy; /* in the place of a direction */
    fl_dense_call call = {.dense = k,
                          .x = floats(head.x, N * I),
                          .N = N,
                          .dx = floats(NULL, N * I),
                          .dweight = floats(constant_floats(U * I, 0.5f), U * I),
                          .dbias = head.bias ? floats(constant_floats(U, 0.5f), U) : NULL,
                          .threads = how.threads};
    if (dy) {
        call.dy = floats(dy, N * U);
        call.scratch = scratch_of(fl_dense_backward(&call));
        fl_dense_backward(&call);
    } else {
        float *losses = keep(NULL, N * (ptrdiff_t)sizeof *losses);
        double *exact = call.losses = guarded(NULL, N * (ptrdiff_t)sizeof *exact, sizeof *exact);
        call.targets = guarded(head.targets, N * (ptrdiff_t)sizeof *call.targets, sizeof *call.targets);
        call.logits = floats(NULL, N * U);
        call.factor = 1.0 / (double)N;
        call.scratch = scratch_of(fl_dense_cross_entropy(&call));
        fl_dense_cross_entropy(&call);
        for (ptrdiff_t i = 0; i < N; i++)
            losses[i] = (float)exact[i];
        record(r, "logits", 1, call.logits, N * U, 1);
        record(r, "losses", 1, losses, N, 0);
    }
    record(r, "x", entropy, call.dx, N * I, 1);
    record(r, "weight", entropy, call.dweight, U * I, 1);
    record(r, "bias", entropy, call.dbias, U, 1);
}

static Result run_head(How how) {
    Result r = {.count = 0};
    begin_guarded(how.at_start);
    const fl_dense k = pack_head(how);
    float *y = floats(NULL, head.N * head.U);
    fl_dense_forward(&k, floats(head.x, head.N * head.I), head.N, y, how.threads);
    record(&r, "y", 0, y, head.N * head.U, 0);
    head_backward(&k, how, head.dy, &r);
    head_backward(&k, how, NULL, &r);
    end_guarded();
    return r;
}

static void check_rows(How how, const Result *whole) {
    const ptrdiff_t U = head.U, picks[][2] = {{0, 1}, {head.N / 2, head.N / 2 + 1}, {head.N / 3, head.N}};
    begin_guarded(how.at_start);
    const fl_dense k = pack_head(how);
    for (int i = 0; i < LENGTH(picks); i++) {
        const ptrdiff_t first = picks[i][0], n = picks[i][1] - first;
        float *y = floats(NULL, n * U);
        fl_dense_forward(&k, floats(head.x + first * head.I, n * head.I), n, y, how.threads);
        expect_bits("some rows", "y", y, find(whole, "y", 0)->data + first * U, n * U);
    }
    end_guarded();
}

/* The same bits at another place and for every number of threads. */
static void check_threads(const Family *family, How how, const Result *whole) {
    for (how.threads = 1; how.threads <= 4; how.threads++) {
        const ptrdiff_t mark = keep_mark();
        how.at_start = how.threads % 2;
        const Result r = family->run(how);
        expect_same(how.threads == 1 ? "at another place" : "by threads", &r, whole);
        keep_from(mark);
    }
}

static void check_head(How how, const Result *whole) {
    check_threads(&dense, how, whole);
    check_rows(how, whole);
    how.threads = 3;
    check_rows(how, whole);
}

const Family dense = {count_heads, make_head, describe_head, run_head, check_head, 0, 0, NULL};

/* ----------------------------------------------------------------------------------------------------- the optimisers */

/* Which of the three kept arrays a rule has; see fl_span. */
static const struct {
    const char *name;
    fl_rule rule;
    int kept[3];
} rules[] = {
    {"SGD", {.kind = FL_SGD, .lr = 0.1f, .decay = 0.01f}, {0, 0, 0}},
    {"SGD with momentum", {.kind = FL_SGD, .lr = 0.1f, .momentum = 0.9f}, {1, 0, 0}},
    {"SGD, Nesterov", {.kind = FL_SGD, .nesterov = 1, .lr = 0.1f, .decay = 0.01f, .momentum = 0.9f}, {1, 0, 0}},
    {"Adam",
     {.kind = FL_ADAM,
      .lr = 0.01f,
      .rate1 = 0.1f,
      .beta2 = 0.999f,
      .rate2 = 0.001f,
      .root = 0.03f,
      .keep = 1,
      .eps = 1e-8f},
     {1, 1, 0}},
    {"AdamW",
     {.kind = FL_ADAM,
      .lr = 0.01f,
      .rate1 = 0.1f,
      .beta2 = 0.99f,
      .rate2 = 0.01f,
      .root = 0.1f,
      .keep = 0.999f,
      .eps = 1e-8f},
     {1, 1, 0}},
    {"RMSprop", {.kind = FL_RMSPROP, .lr = 0.01f, .beta2 = 0.9f, .rate2 = 0.1f, .eps = 1e-8f}, {1, 0, 0}},
    {"RMSprop, centred, with momentum",
     {.kind = FL_RMSPROP, .lr = 0.01f, .decay = 0.01f, .momentum = 0.9f, .beta2 = 0.9f, .rate2 = 0.1f, .eps = 1e-2f},
     {1, 1, 1}},
    {"Adagrad", {.kind = FL_ADAGRAD, .lr = 0.1f, .eps = 1e-8f}, {1, 0, 0}},
};

enum { SPANS = 4 };
static const ptrdiff_t span_sizes[SPANS] = {1, 7, 33, 66001}; /* the last is split among threads */

static struct {
    int number;
    float *p[SPANS], *g[SPANS], *kept[SPANS][3];
} update;

static int count_updates(int cases) {
    (void)cases;
    return LENGTH(rules);
}

static void make_update(int n, int cases) {
    (void)cases;
    begin_random(n);
    update.number = n;
    for (int s = 0; s < SPANS; s++) {
        update.p[s] = random_floats(span_sizes[s], 1);
        update.g[s] = random_floats(span_sizes[s], 1);
        for (int i = 0; i < 3;
             i++) { /* the first two may be sums of squares; the third, a mean, is less than their root */
            float *kept = update.kept[s][i] = rules[n].kept[i] ? random_floats(span_sizes[s], 0.5) : NULL;
            for (ptrdiff_t j = 0; kept && i < 2 && j < span_sizes[s]; j++)
                kept[j] += 1;
        }
    }
}

static void describe_update(void) { host_say("%s", rules[update.number].name); }

static Result run_update(How how) {
    static const char *const names[] = {"first kept", "second kept", "third kept"};
    const int before = fl_isa_chosen();
    Result r = {.count = 0};
    fl_span spans[SPANS];
    begin_guarded(how.at_start);
    fl_isa_choose(how.isa);
    for (int s = 0; s < SPANS; s++) {
        const ptrdiff_t n = span_sizes[s];
        spans[s] = (fl_span){.p = floats(update.p[s], n), .g = floats(update.g[s], n), .n = n};
        for (int i = 0; i < 3; i++)
            spans[s].kept[i] = maybe_floats(update.kept[s][i], n);
        spans[s].p[0] += how.broken ? 1e-2f : 0;
    }
    double *sums = guarded(NULL, fl_blocks(spans, SPANS) * (ptrdiff_t)sizeof *sums, sizeof *sums);
    fl_update(&rules[update.number].rule, spans, SPANS, how.threads);
    const float sum = (float)fl_square_sum(spans, SPANS, sums, how.threads);
    fl_scale(spans, SPANS, 0.7f, how.threads);
    record(&r, "sum of squares", 0, &sum, 1, 0);
    for (int s = 0; s < SPANS; s++) {
        record(&r, "p", s, spans[s].p, span_sizes[s], 0);
        for (int i = 0; i < 3; i++)
            record(&r, names[i], s, spans[s].kept[i], span_sizes[s], 0);
    }
    fl_isa_choose(before);
    end_guarded();
    return r;
}

static void check_update(How how, const Result *whole) { check_threads(&optimisers, how, whole); }

const Family optimisers = {count_updates, make_update, describe_update, run_update, check_update, 1, 0, NULL};
