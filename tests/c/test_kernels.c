/* test_kernels.c: every compiled instruction set against the scalar one, through api.h alone.
 *
 * Each case runs forward and backward on each instruction set, in buffers of exactly the promised size between
 * inaccessible pages, outputs and scratch memory full of NaN beforehand. Its results are held against the scalar ones,
 * and its bits against those of other placements, thread counts, batches, stretches of time and steps.
 *
 * Case n takes the n-th entry, modulo its length, of every list below. The lengths have no common factors: after some
 * hundred cases every two entries have met. Compile with -DFL_LEAST=0, or small calls do not split among threads. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "api.h"
#include "host.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#endif

#define LENGTH(list) ((int)(sizeof(list) / sizeof *(list)))

/* As shares of the largest entry. */
static const double VALUES_WITHIN = 2e-6, GRADIENTS_WITHIN = 2e-5;

/* ------------------------------------------------------------------------------------------------------------- lists */

typedef struct {
    const char *name;
    int kind, projected, peepholes, reset_after, bias;
} Form;
static const Form forms[] = {
    {"lstm", FL_LSTM, 0, 0, 0, 1},
    {"lstm without bias", FL_LSTM, 0, 0, 0, 0},
    {"lstm projected", FL_LSTM, 1, 0, 0, 1},
    {"lstm with peepholes", FL_LSTM, 0, 1, 0, 1},
    {"lstm projected with peepholes", FL_LSTM, 1, 1, 0, 0},
    {"gru", FL_GRU, 0, 0, 1, 1},
    {"gru without bias", FL_GRU, 0, 0, 1, 0},
    {"gru reset before", FL_GRU, 0, 0, 0, 1},
    {"gru reset before, without bias", FL_GRU, 0, 0, 0, 0},
    {"rnn", FL_RNN, 0, 0, 0, 1},
    {"rnn without bias", FL_RNN, 0, 0, 0, 0},
};

static const ptrdiff_t hidden_sizes[] = {129, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100};
static const ptrdiff_t input_sizes[] = {17, 1, 3, 7, 9, 16, 33};

static const struct {
    ptrdiff_t T, B;
} shapes[] = {{5, 3}, {1, 1}, {2, 1},  {5, 1},  {33, 1}, {3, 2},  {4, 4},  {7, 5}, {3, 6},
              {5, 7}, {2, 9}, {9, 12}, {5, 13}, {3, 17}, {2, 33}, {1, 33}, {17, 6}};

typedef struct {
    const char *name;
    int D, reverse, ragged, ids;
} Manner;
static const Manner manners[] = {
    {"", 1, 0, 0, 0},
    {", ragged", 1, 0, 1, 0},
    {", reverse", 1, 1, 0, 0},
    {", reverse ragged", 1, 1, 1, 0},
    {", both directions", 2, 0, 0, 0},
    {", both directions, ragged", 2, 0, 1, 0},
    {", ids", 1, 0, 0, 1},
    {", ids, reverse ragged", 1, 1, 1, 1},
};
_Static_assert(LENGTH(forms) == 11 && LENGTH(hidden_sizes) == 13 && LENGTH(input_sizes) == 7 && LENGTH(shapes) == 17 &&
                   LENGTH(manners) == 8,
               "no two lengths may have a common factor");

/* After the grid: every activation in every role, with parameters that differ from the defaults. */
static const fl_act activations[] = {
    {FL_SIGMOID, 0, 0},
    {FL_TANH, 0, 0},
    {FL_RELU, 0, 0},
    {FL_IDENTITY, 0, 0},
    {FL_HARD_SIGMOID, 0.17f, 0.5f},
    {FL_HARD_SIGMOID_KERAS2, 0.2f, 0.5f},
    {FL_AFFINE, 0.7f, 0.1f},
    {FL_LEAKY_RELU, 0.2f, 0},
    {FL_THRESHOLDED_RELU, 0.25f, 0},
    {FL_SCALED_TANH, 1.7f, 0.6f},
    {FL_ELU, 0.5f, 0},
    {FL_SOFTSIGN, 0, 0},
    {FL_SOFTPLUS, 0, 0},
};
static const struct {
    int form, role;
} roles[] = {{0, 0}, {2, 1}, {3, 2}, {5, 0}, {7, 1}, {9, 0}};

/* --------------------------------------------------------------------------------------------------------- plain memory */

/* What belongs to a case lies one after another here; a new case begins from the start. */
static float store[6 << 20];
static ptrdiff_t store_used;

static void *keep(const void *from, ptrdiff_t bytes) {
    char *to = (char *)(store + store_used);
    store_used += (bytes + 63) / 64 * 16;
    if (store_used > LENGTH(store)) {
        host_say("test_kernels.c: the store is too small\n");
        __builtin_trap();
    }
    return from ? memcpy(to, from, (size_t)bytes) : to;
}

static uint64_t random_state;

static double uniform(void) { /* -1 to 1 */
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)random_state / 9223372036854775808.0;
}

static float *random_floats(ptrdiff_t count, double scale) {
    float *to = keep(NULL, count * (ptrdiff_t)sizeof *to);
    for (ptrdiff_t i = 0; i < count; i++)
        to[i] = (float)(scale * uniform());
    return to;
}

static float *constant_floats(ptrdiff_t count, float value) {
    float *to = keep(NULL, count * (ptrdiff_t)sizeof *to);
    for (ptrdiff_t i = 0; i < count; i++)
        to[i] = value;
    return to;
}

/* ------------------------------------------------------------------------------------------------------------- cases */

enum { MOST_D = 2, PARAMS = 6 };
static const char *const param_names[PARAMS] = {"weight_ih", "weight_hh", "bias_ih",
                                                "bias_hh",   "weight_hr", "weight_peep"};

/* One case, or some of its sequences, or a stretch of its time. */
typedef struct {
    int number;
    const Form *form;
    const Manner *manner;
    fl_spec spec;
    int give_dy;
    ptrdiff_t T, B, N;
    int64_t *sizes, *ids;           /* (T), (N) */
    float *x, *dy;                  /* (N, I), (N, D*R) */
    float *h[MOST_D], *c[MOST_D];   /* (B, R), (B, H) initial */
    float *dh[MOST_D], *dc[MOST_D]; /* of the final state */
    float *params[MOST_D][PARAMS];
} Case;

static Case current; /* what is running, for messages */
static const char *current_isa = "scalar";

static ptrdiff_t param_size(const Case *k, int p) {
    const fl_spec *s = &k->spec;
    const ptrdiff_t GH = (s->kind == FL_LSTM ? 4 : s->kind == FL_GRU ? 3 : 1) * s->H;
    const ptrdiff_t sizes[PARAMS] = {GH * s->I,
                                     GH * s->R,
                                     k->form->bias ? GH : 0,
                                     k->form->bias ? GH : 0,
                                     s->projected ? s->R * s->H : 0,
                                     s->peepholes ? 3 * s->H : 0};
    return sizes[p];
}

static ptrdiff_t first_row(const Case *k, ptrdiff_t t) {
    ptrdiff_t row = 0;
    for (ptrdiff_t i = 0; i < t; i++)
        row += k->sizes[i];
    return row;
}

/* A case's shape: its place in the grid, or behind it an activation in a role. */
static void shape_case(Case *k, int n, int grid) {
    const int extra = n - grid, role = extra % LENGTH(roles);
    k->number = n;
    k->manner = &manners[n % LENGTH(manners)];
    k->form = &forms[extra < 0 ? n % LENGTH(forms) : roles[role].form];
    k->T = extra < 0 ? shapes[n % LENGTH(shapes)].T : 3;
    k->B = extra < 0 ? shapes[n % LENGTH(shapes)].B : 3;
    k->give_dy = n % 5 != 4;
    fl_spec *s = &k->spec;
    s->kind = k->form->kind;
    s->projected = k->form->projected;
    s->peepholes = k->form->peepholes;
    s->reset_after = k->form->reset_after;
    s->H = extra < 0 ? hidden_sizes[n % LENGTH(hidden_sizes)] : 17;
    s->R = s->projected ? (2 * s->H + 2) / 3 : s->H;
    s->I = n % 5 == 2 ? s->R : input_sizes[n % LENGTH(input_sizes)]; /* I == R: can be stacked */
    s->act[0] = s->kind == FL_RNN ? activations[FL_TANH] : activations[FL_SIGMOID];
    s->act[1] = s->act[2] = activations[FL_TANH];
    if (extra >= 0)
        s->act[roles[role].role] = activations[extra / LENGTH(roles)];
}

static Case make_case(int n, int grid) {
    Case k = {0};
    shape_case(&k, n, grid);
    const fl_spec *s = &k.spec;
    store_used = 0;
    random_state = (uint64_t)n * 77 + 1;
    k.sizes = keep(NULL, k.T * (ptrdiff_t)sizeof *k.sizes);
    for (ptrdiff_t t = 0; t < k.T; t++) /* ragged: down to 1, in uneven steps */
        k.sizes[t] = k.manner->ragged ? k.B - (k.B - 1) * (t * t) / ((k.T > 1 ? k.T - 1 : 1) * k.T) : k.B;
    k.N = first_row(&k, k.T);
    if (k.manner->ids) {
        k.ids = keep(NULL, k.N * (ptrdiff_t)sizeof *k.ids);
        for (ptrdiff_t i = 0; i < k.N; i++)
            k.ids[i] = (int64_t)((uniform() + 1) / 2 * (double)s->I) % s->I;
    } else {
        k.x = random_floats(k.N * s->I, 1);
    }
    k.dy = k.give_dy ? random_floats(k.N * k.manner->D * s->R, 1) : NULL;
    for (int d = 0; d < k.manner->D; d++) {
        k.h[d] = random_floats(k.B * s->R, 1);
        k.dh[d] = random_floats(k.B * s->R, 1);
        k.c[d] = s->kind == FL_LSTM ? random_floats(k.B * s->H, 1) : NULL;
        k.dc[d] = s->kind == FL_LSTM ? random_floats(k.B * s->H, 1) : NULL;
        for (int p = 0; p < PARAMS; p++)
            k.params[d][p] = param_size(&k, p) ? random_floats(param_size(&k, p), 1 / sqrt((double)s->H)) : NULL;
    }
    return k;
}

/* The sequences b0..b1 alone. */
static Case some_sequences(const Case *k, ptrdiff_t b0, ptrdiff_t b1) {
    const ptrdiff_t I = k->spec.I;
    Case part = *k;
    part.B = b1 - b0;
    part.sizes = keep(NULL, k->T * (ptrdiff_t)sizeof *part.sizes);
    part.x = k->x ? keep(NULL, k->N * I * (ptrdiff_t)sizeof *k->x) : NULL;
    part.ids = k->ids ? keep(NULL, k->N * (ptrdiff_t)sizeof *k->ids) : NULL;
    part.T = part.N = 0;
    for (ptrdiff_t t = 0, row = 0; t < k->T && k->sizes[t] > b0; row += k->sizes[t++]) {
        const ptrdiff_t n = (k->sizes[t] < b1 ? k->sizes[t] : b1) - b0;
        if (k->x)
            memcpy(part.x + part.N * I, k->x + (row + b0) * I, (size_t)(n * I) * sizeof *k->x);
        if (k->ids)
            memcpy(part.ids + part.N, k->ids + row + b0, (size_t)n * sizeof *k->ids);
        part.sizes[part.T++] = n;
        part.N += n;
    }
    for (int d = 0; d < k->manner->D; d++) {
        part.h[d] = k->h[d] + b0 * k->spec.R;
        part.c[d] = k->c[d] ? k->c[d] + b0 * k->spec.H : NULL;
    }
    return part;
}

/* The steps t0..t1 alone, from the case's initial state. */
static Case some_steps(const Case *k, ptrdiff_t t0, ptrdiff_t t1) {
    const ptrdiff_t row = first_row(k, t0);
    Case part = *k;
    part.T = t1 - t0;
    part.sizes = k->sizes + t0;
    part.N = first_row(&part, part.T);
    part.x = k->x ? k->x + row * k->spec.I : NULL;
    part.ids = k->ids ? k->ids + row : NULL;
    return part;
}

/* The same rows, written out: 1 where the id is. */
static Case one_hot(const Case *k) {
    const ptrdiff_t I = k->spec.I;
    Case same = *k;
    same.ids = NULL;
    same.x = constant_floats(k->N * I, 0);
    for (ptrdiff_t i = 0; i < k->N; i++)
        same.x[i * I + k->ids[i]] = 1;
    return same;
}

/* ---------------------------------------------------------------------------------------------------------- reporting */

static int failures; /* of the present case and instruction set */
static int said;
enum { MOST_SAID = 10 };

static void describe(void) {
    const fl_spec *s = &current.spec;
    host_say("case %d (%s%s, T=%d B=%d I=%d H=%d R=%d, activations %d %d %d), %s: ", current.number, current.form->name,
             current.manner->name, (int)current.T, (int)current.B, (int)s->I, (int)s->H, (int)s->R, s->act[0].id,
             s->act[1].id, s->act[2].id, current_isa);
}

/* Whether to tell about one more failure. */
static int failed(void) {
    failures++;
    if (++said <= MOST_SAID)
        describe();
    return said <= MOST_SAID;
}

void test_kernels_trapped(void) {
    describe();
    host_say("touched memory that is not its own\n");
}

/* ------------------------------------------------------------------------------------------------------ guarded memory */

enum { MOST_BUFFERS = 128, CANARY = 0xA5 };

static struct {
    char *pages, *at;
    ptrdiff_t size, bytes;
} buffers[MOST_BUFFERS];
static int buffer_count;
static int at_start; /* buffers begin at an inaccessible page; else they end at one */

/* Exactly so many bytes, directly at an inaccessible page: a copy, or full of NaN. What lies between the end of an
 * aligned buffer and the page is looked at afterwards. */
static void *guarded(const void *from, ptrdiff_t bytes, ptrdiff_t alignment) {
    ptrdiff_t size;
    char *pages = host_pages(bytes + alignment, &size),
         *at = at_start ? pages : pages + (size - bytes) / alignment * alignment;
    memset(pages, CANARY, (size_t)size);
    memset(at, 0xff, (size_t)bytes); /* NaN, or -1 */
    if (from)
        memcpy(at, from, (size_t)bytes);
    buffers[buffer_count].pages = pages;
    buffers[buffer_count].at = at;
    buffers[buffer_count].size = size;
    buffers[buffer_count++].bytes = bytes;
    ASAN_POISON_MEMORY_REGION(pages, (size_t)(at - pages));
    ASAN_POISON_MEMORY_REGION(at + bytes, (size_t)(pages + size - at - bytes));
    return at;
}

static float *floats(const float *from, ptrdiff_t count) {
    return guarded(from, count * (ptrdiff_t)sizeof(float), sizeof(float));
}
static float *maybe_floats(const float *from, ptrdiff_t count) { return from ? floats(from, count) : NULL; }
static float *aligned_floats(ptrdiff_t count) { return guarded(NULL, count * (ptrdiff_t)sizeof(float), 64); }

static int intact(const char *from, const char *to) {
    while (from < to && (unsigned char)*from == CANARY)
        from++;
    return from == to;
}

static void release_buffers(void) {
    for (int i = 0; i < buffer_count; i++) {
        const char *pages = buffers[i].pages, *end = pages + buffers[i].size, *at = buffers[i].at;
        ASAN_UNPOISON_MEMORY_REGION(pages, (size_t)buffers[i].size);
        if (!(intact(pages, at) && intact(at + buffers[i].bytes, end)) && failed())
            host_say("wrote beside a buffer of %d bytes\n", (int)buffers[i].bytes);
    }
    buffer_count = 0;
    host_release();
}

/* ------------------------------------------------------------------------------------------------------------ results */

typedef struct {
    const char *name;
    int direction;
    const float *data;
    ptrdiff_t count;
    int is_gradient;
} Part;

typedef struct {
    Part parts[40];
    int count;
} Result;

static void record(Result *r, const char *name, int direction, const float *data, ptrdiff_t count, int is_gradient) {
    if (!data)
        return;
    r->parts[r->count++] = (Part){name, direction, keep(data, count * (ptrdiff_t)sizeof *data), count, is_gradient};
    for (ptrdiff_t i = 0; i < count; i++)
        if (data[i] != data[i]) {
            if (failed())
                host_say("%s (direction %d) [%d] is NaN: not written, or made from something uninitialised\n", name,
                         direction, (int)i);
            return;
        }
}

static const Part *find(const Result *r, const char *name, int direction) {
    for (int i = 0; i < r->count; i++)
        if (!strcmp(r->parts[i].name, name) && r->parts[i].direction == direction)
            return &r->parts[i];
    return NULL;
}

/* Some floats against those that they must equal. */
static void expect_bits(const char *what, const char *name, const float *got, const float *expected, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++)
        if (memcmp(got + i, expected + i, sizeof *got) != 0) {
            if (failed())
                host_say("%s: %s[%d] is %g, not %g bit for bit\n", what, name, (int)i, (double)got[i],
                         (double)expected[i]);
            return;
        }
}

/* Everything in `got` has the bits that it has in `whole`. */
static void expect_same(const char *what, const Result *got, const Result *whole) {
    for (int i = 0; i < got->count; i++) {
        const Part *p = &got->parts[i];
        expect_bits(what, p->name, p->data, find(whole, p->name, p->direction)->data, p->count);
    }
}

static double larger(double a, double b) { return a > b ? a : b; }

static double largest(const Part *p) {
    double most = 0;
    for (ptrdiff_t i = 0; i < p->count; i++)
        most = larger(most, fabs((double)p->data[i]));
    return most;
}

/* What a part's error is a share of: its largest entry. All of a few entries may be small by chance, from large terms
 * that cancel; these count for a twentieth of the largest entry in any array of their sort, at least. */
static double scale_of(const Result *r, const Part *p) {
    double scale = largest(p);
    if (p->count < 32)
        for (int i = 0; i < r->count; i++)
            if (r->parts[i].is_gradient == p->is_gradient)
                scale = larger(scale, largest(&r->parts[i]) / 20);
    return scale;
}

static void expect_near(const Result *got, const Result *scalar) {
    for (int i = 0; i < got->count; i++) {
        const Part *p = &got->parts[i], *e = find(scalar, p->name, p->direction);
        const double scale = scale_of(scalar, e), within = p->is_gradient ? GRADIENTS_WITHIN : VALUES_WITHIN;
        for (ptrdiff_t j = 0; j < e->count; j++) {
            const double off = fabs((double)p->data[j] - (double)e->data[j]);
            if (off <= within * scale) /* never so for NaN */
                continue;
            if (failed())
                host_say("%s%s (direction %d) [%d] is %g, scalar %g: off by %g of the largest entry\n",
                         p->is_gradient ? "gradient of " : "", p->name, p->direction, (int)j, (double)p->data[j],
                         (double)e->data[j], off / scale);
            break;
        }
    }
}

/* ------------------------------------------------------------------------------------------------------------ running */

/* How a case is run. */
typedef struct {
    int isa, threads, at_start;
    int train;  /* with a tape, and then backward */
    int broken; /* one weight changed */
} How;

static fl_params c_params(float *const *p) { return (fl_params){p[0], p[1], p[2], p[3], p[4], p[5]}; }

/* A block of weights packed from a copy that afterwards is no more. */
static void pack_block(const Case *k, int d, How how, fl_block *block) {
    float *copy[PARAMS];
    for (int p = 0; p < PARAMS; p++)
        copy[p] = maybe_floats(k->params[d][p], param_size(k, p));
    if (how.broken)
        copy[1][param_size(k, 1) - 1] += 1e-2f;
    const fl_params params = c_params(copy);
    *block = (fl_block){.spec = k->spec, .isa = how.isa};
    fl_pack(block, &params, 0, aligned_floats(fl_pack_size(block, 0)));
    if (how.train)
        fl_pack(block, &params, 1, aligned_floats(fl_pack_size(block, 1)));
    for (int p = 0; p < PARAMS; p++)
        if (copy[p])
            memset(copy[p], 0xff, (size_t)param_size(k, p) * sizeof(float));
}

static fl_rows guarded_rows(const Case *k) {
    return (fl_rows){.x = maybe_floats(k->x, k->N * k->spec.I),
                     .ids = k->ids ? guarded(k->ids, k->N * (ptrdiff_t)sizeof *k->ids, sizeof *k->ids) : NULL,
                     .batch_sizes = guarded(k->sizes, k->T * (ptrdiff_t)sizeof *k->sizes, sizeof *k->sizes),
                     .T = k->T};
}

static fl_pass make_pass(const Case *k, int d, How how, const fl_block *block) {
    const ptrdiff_t H = k->spec.H, R = k->spec.R, N = k->N;
    const int lstm = k->spec.kind == FL_LSTM;
    fl_pass pass = {.block = block,
                    .reverse = k->manner->reverse || d == 1,
                    .h = floats(k->h[d], k->B * R),
                    .c = maybe_floats(k->c[d], k->B * H)};
    if (!how.train)
        return pass;
    pass.gates = k->spec.kind == FL_RNN ? NULL : floats(NULL, N * 4 * H);
    pass.tape_c = lstm ? floats(NULL, N * H) : NULL;
    pass.tape_h = floats(NULL, N * R);
    pass.tape_m = k->spec.projected ? floats(NULL, N * H) : NULL;
    pass.h0 = floats(k->h[d], k->B * R);
    pass.c0 = maybe_floats(k->c[d], k->B * H);
    return pass;
}

static void run_backward(const Case *k, int d, How how, fl_pass *pass, const fl_rows *rows, float *dx, Result *r) {
    const ptrdiff_t H = k->spec.H, R = k->spec.R, ldy = k->manner->D * R;
    memcpy(pass->h, k->dh[d], (size_t)(k->B * R) * sizeof(float));
    if (pass->c)
        memcpy(pass->c, k->dc[d], (size_t)(k->B * H) * sizeof(float));
    float *g[PARAMS];
    for (int p = 0; p < PARAMS; p++) /* gradients are added to what is there */
        g[p] = param_size(k, p) ? floats(constant_floats(param_size(k, p), 0.5f), param_size(k, p)) : NULL;
    const fl_grads grads = {g[0], g[1], g[2], g[3], g[4], g[5]};
    const float *dy = maybe_floats(k->dy, k->N * ldy);
    float *scratch = aligned_floats(fl_backward_scratch(pass, rows, how.threads));
    fl_backward(pass, rows, dy ? dy + d * R : NULL, ldy, dx, &grads, scratch, how.threads);
    record(r, "h0", d, pass->h, k->B * R, 1);
    record(r, "c0", d, pass->c, k->B * H, 1);
    for (int p = 0; p < PARAMS; p++)
        record(r, param_names[p], d, g[p], param_size(k, p), 1);
}

static Result run(const Case *k, How how) {
    const ptrdiff_t H = k->spec.H, R = k->spec.R, N = k->N;
    const int D = k->manner->D;
    Result r = {.count = 0};
    fl_block blocks[MOST_D];
    fl_pass passes[MOST_D];
    at_start = how.at_start;
    const fl_rows rows = guarded_rows(k);
    for (int d = 0; d < D; d++) {
        pack_block(k, d, how, &blocks[d]);
        passes[d] = make_pass(k, d, how, &blocks[d]);
    }
    float *y = floats(NULL, N * D * R);
    fl_forward(passes, D, &rows, y, aligned_floats(fl_forward_scratch(passes, D, &rows, how.threads)), how.threads);
    record(&r, "y", 0, y, N * D * R, 0);
    for (int d = 0; d < D; d++) {
        record(&r, "h", d, passes[d].h, k->B * R, 0);
        record(&r, "c", d, passes[d].c, k->B * H, 0);
        record(&r, "tape's gates", d, passes[d].gates, N * 4 * H, 0);
        record(&r, "tape's c", d, passes[d].tape_c, N * H, 0);
        record(&r, "tape's h", d, passes[d].tape_h, N * R, 0);
        record(&r, "tape's m", d, passes[d].tape_m, N * H, 0);
    }
    if (how.train) {
        float *dx = k->x && k->number % 3 != 2 ? floats(constant_floats(N * k->spec.I, 0.25f), N * k->spec.I) : NULL;
        for (int d = 0; d < D; d++)
            run_backward(k, d, how, &passes[d], &rows, dx, &r);
        record(&r, "x", 0, dx, N * k->spec.I, 1);
    }
    release_buffers();
    return r;
}

/* ------------------------------------------------------------------------------------- the same bits, whatever the way */

static How inference(How how) { return (How){.isa = how.isa, .threads = how.threads, .at_start = how.at_start}; }

static void check_batches(const Case *k, How how, const Result *whole) {
    const ptrdiff_t H = k->spec.H, R = k->spec.R, width = k->manner->D * R;
    const ptrdiff_t picks[][2] = {
        {0, 1}, {k->B / 2, k->B / 2 + 1}, {k->B - 1, k->B}, {k->B / 3, k->B}, {0, (2 * k->B + 2) / 3}};
    for (int i = 0; i < LENGTH(picks); i++) {
        const ptrdiff_t b0 = picks[i][0], mark = store_used;
        const Case part = some_sequences(k, b0, picks[i][1]);
        const Result r = run(&part, how);
        const float *y = find(&r, "y", 0)->data, *whole_y = find(whole, "y", 0)->data;
        for (ptrdiff_t t = 0; t < part.T; t++)
            expect_bits("some sequences", "y", y + first_row(&part, t) * width,
                        whole_y + (first_row(k, t) + b0) * width, part.sizes[t] * width);
        for (int d = 0; d < k->manner->D; d++) {
            expect_bits("some sequences", "h", find(&r, "h", d)->data, find(whole, "h", d)->data + b0 * R, part.B * R);
            if (k->c[d])
                expect_bits("some sequences", "c", find(&r, "c", d)->data, find(whole, "c", d)->data + b0 * H,
                            part.B * H);
        }
        store_used = mark;
    }
}

/* Two stretches of time, the state carried over: one after the other in the direction's own order. */
static void check_stretches(const Case *k, How how, const Result *whole) {
    const ptrdiff_t width = k->spec.R, cut = (k->T + 1) / 2;
    if (k->manner->D > 1 || k->T < 2)
        return;
    Case parts[2] = {some_steps(k, 0, cut), some_steps(k, cut, k->T)};
    const int first = k->manner->reverse ? 1 : 0;
    const Result begun = run(&parts[first], how);
    Case *rest = &parts[!first];
    rest->h[0] = (float *)find(&begun, "h", 0)->data;
    rest->c[0] = k->c[0] ? (float *)find(&begun, "c", 0)->data : NULL;
    const Result ended = run(rest, how);
    const Result *in_time[2] = {first ? &ended : &begun, first ? &begun : &ended};
    const float *y = find(whole, "y", 0)->data;
    for (int i = 0; i < 2; i++) {
        expect_bits("in two stretches", "y", find(in_time[i], "y", 0)->data, y, parts[i].N * width);
        y += parts[i].N * width;
    }
    expect_bits("in two stretches", "h", find(&ended, "h", 0)->data, find(whole, "h", 0)->data, k->B * k->spec.R);
    if (k->c[0])
        expect_bits("in two stretches", "c", find(&ended, "c", 0)->data, find(whole, "c", 0)->data, k->B * k->spec.H);
}

/* Step by step through L layers of the same weights, against L calls. */
static void check_steps(const Case *k, How how, int L) {
    const ptrdiff_t I = k->spec.I, R = k->spec.R, H = k->spec.H;
    const char *what = L > 1 ? "streamed, two layers" : "streamed";
    const ptrdiff_t mark = store_used;
    Result r;
    Case layer = *k;
    for (int l = 0; l < L; l++) {
        r = run(&layer, how);
        layer.x = (float *)find(&r, "y", 0)->data;
        layer.ids = NULL;
    }
    const float *expected = layer.x, *h = find(&r, "h", 0)->data;
    const float *c = k->c[0] ? find(&r, "c", 0)->data : NULL;

    fl_block block;
    fl_pass passes[2];
    at_start = how.at_start;
    pack_block(k, 0, how, &block);
    for (int l = 0; l < L; l++)
        passes[l] = make_pass(k, 0, how, &block);
    float *scratch = aligned_floats(fl_step_scratch(passes, L, k->B, how.threads));
    for (ptrdiff_t t = 0; t < k->T; t++) {
        const float *x = k->x ? floats(k->x + t * k->B * I, k->B * I) : NULL;
        const int64_t *ids =
            k->ids ? guarded(k->ids + t * k->B, k->B * (ptrdiff_t)sizeof *k->ids, sizeof *k->ids) : NULL;
        float *y = floats(NULL, k->B * R);
        if (how.threads == 1 && t % 2)
            flq_step(passes, L, k->B, x, ids, y, scratch);
        else
            fl_step(passes, L, k->B, x, ids, y, scratch, how.threads);
        expect_bits(what, "y", y, expected + t * k->B * R, k->B * R);
    }
    expect_bits(what, "h", passes[L - 1].h, h, k->B * R);
    if (c)
        expect_bits(what, "c", passes[L - 1].c, c, k->B * H);
    release_buffers();
    store_used = mark;
}

static void check_bits(const Case *k, How how, const Result *whole) {
    const ptrdiff_t mark = store_used;
    how.at_start = 1;
    Result r = run(k, how);
    expect_same("at another place", &r, whole);
    r = run(k, inference(how));
    expect_same("inference", &r, whole);
    if (k->ids) {
        const Case written_out = one_hot(k);
        r = run(&written_out, inference(how));
        expect_same("one-hot rows", &r, whole);
    }
    for (how.threads = 4; how.threads > 1; how.threads--) {
        store_used = mark;
        how.at_start = !how.at_start;
        r = run(k, how);
        expect_same(how.threads == 4 ? "4 threads" : how.threads == 3 ? "3 threads" : "2 threads", &r, whole);
        r = run(k, inference(how));
        expect_same("inference by threads", &r, whole);
    }
    store_used = mark;
    for (how.threads = 1; how.threads <= 3; how.threads += 2) {
        check_batches(k, inference(how), whole);
        check_stretches(k, inference(how), whole);
        if (k->manner->D == 1 && !k->manner->reverse && !k->manner->ragged)
            for (int L = 1; L <= (k->spec.I == k->spec.R && k->x ? 2 : 1); L++)
                check_steps(k, inference(how), L);
        store_used = mark;
    }
}

/* ------------------------------------------------------------------------------------------------------------- driver */

/* Which instruction sets run: a list ended by -1, the scalar one first. */
static void find_isas(const char *only, int *isas) {
    int count = 1;
    for (int i = 0; fl_isa_name(i); i++) {
        const char *name = fl_isa_name(i);
        if (!strcmp(name, "scalar"))
            isas[0] = i;
        else if (only && strcmp(name, only) != 0)
            continue;
        else if (fl_isa_usable(i))
            isas[count++] = i;
        else
            host_say("%s: this processor does not have it\n", name);
    }
    isas[count] = -1;
}

/* Returns how many of the pairs of a case and an instruction set failed. With options.broken they should, and nothing but
 * the comparison with the scalar one is done; that one does not count then, nor beside a single other one. */
int test_kernels(Options options) {
    int isas[16], counts[2] = {0, 0}; /* passed, failed */
    find_isas(options.only, isas);
    if (options.only && isas[1] < 0) {
        host_say("%s: not here, so not tested\n0 passed, 1 failed\n", options.only);
        return 1;
    }
    said = 0;
    const int all = options.cases + LENGTH(activations) * LENGTH(roles);
    for (int n = 0; n < all; n++) {
        current = make_case(n, options.cases);
        Result scalar = {.count = 0};
        for (const int *isa = isas; *isa >= 0; isa++) {
            const ptrdiff_t mark = store_used;
            const int is_scalar = isa == isas;
            How how = {.isa = *isa, .threads = 1, .train = 1, .broken = options.broken && !is_scalar};
            failures = 0;
            current_isa = fl_isa_name(*isa);
            if (options.verbose) {
                describe();
                host_say("\n");
            }
            const Result r = run(&current, how);
            if (is_scalar)
                scalar = r;
            else
                expect_near(&r, &scalar);
            const int counts_here = !is_scalar || !(options.broken || options.only);
            if (counts_here && !options.broken && n < options.cases)
                check_bits(&current, how, &r);
            counts[failures > 0] += counts_here;
            if (!is_scalar)
                store_used = mark;
        }
    }
    host_say("%d cases:", all);
    for (const int *isa = isas; *isa >= 0; isa++)
        host_say(" %s", fl_isa_name(*isa));
    host_say("\n%d passed, %d failed\n", counts[0], counts[1]);
    return counts[1];
}
