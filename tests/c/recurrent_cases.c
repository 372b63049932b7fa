/* recurrent_cases.c: LSTM, GRU and RNN, forward and backward, in one call and in pieces.
 *
 * Case n takes the n-th entry, modulo its length, of every list below. The lengths have no common factors: after some
 * hundred cases every two entries have met. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "host.h"
#include "quantised.h"

#include "api.h"

/* ------------------------------------------------------------------------------------------------------------- lists */

typedef struct {
    const char *name;
    int kind, projected, peepholes, reset_after, bias, input_forget;
    float clip;
} Form;
static const Form forms[] = {
    {"lstm", FL_LSTM, 0, 0, 0, 1, 0, 0},
    {"lstm without bias", FL_LSTM, 0, 0, 0, 0, 0, 0},
    {"lstm projected", FL_LSTM, 1, 0, 0, 1, 0, 0},
    {"lstm with peepholes", FL_LSTM, 0, 1, 0, 1, 0, 0},
    {"lstm projected with peepholes", FL_LSTM, 1, 1, 0, 0, 0, 0},
    {"gru", FL_GRU, 0, 0, 1, 1, 0, 0},
    {"gru without bias", FL_GRU, 0, 0, 1, 0, 0, 0},
    {"gru reset before", FL_GRU, 0, 0, 0, 1, 0, 0},
    {"gru reset before, without bias", FL_GRU, 0, 0, 0, 0, 0, 0},
    {"rnn", FL_RNN, 0, 0, 0, 1, 0, 0},
    {"rnn without bias", FL_RNN, 0, 0, 0, 0, 0, 0},
    {"lstm clipped", FL_LSTM, 0, 0, 0, 1, 0, 0.4f},
    {"lstm with input_forget", FL_LSTM, 0, 0, 0, 1, 1, 0},
    {"lstm projected with peepholes and input_forget, clipped", FL_LSTM, 1, 1, 0, 1, 1, 0.5f},
    {"gru clipped", FL_GRU, 0, 0, 1, 1, 0, 0.4f},
    {"gru reset before, clipped", FL_GRU, 0, 0, 0, 1, 0, 0.4f},
    {"rnn clipped", FL_RNN, 0, 0, 0, 1, 0, 0.4f},
};

static const ptrdiff_t hidden_sizes[] = {129, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100};
static const ptrdiff_t input_sizes[] = {17, 1, 3, 7, 9, 16, 33};

static const struct {
    ptrdiff_t T, B;
} shapes[] = {{5, 3}, {1, 1},  {2, 1},  {5, 1},  {33, 1}, {3, 2},  {4, 4},  {7, 5},   {3, 6}, {5, 7},
              {2, 9}, {9, 12}, {5, 13}, {3, 17}, {2, 33}, {1, 33}, {17, 6}, {12, 33}, {40, 9}};

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
_Static_assert(LENGTH(forms) == 17 && LENGTH(hidden_sizes) == 13 && LENGTH(input_sizes) == 7 && LENGTH(shapes) == 19 &&
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
    int in_grid, give_dy;
    int storage;  /* enum fl_storage */
    int x_planes; /* integers */
    ptrdiff_t T, B, N;
    int64_t *sizes, *ids;           /* (T), (N) */
    float *x, *dy;                  /* (N, I), (N, D*R) */
    float *h[MOST_D], *c[MOST_D];   /* (B, R), (B, H) initial */
    float *dh[MOST_D], *dc[MOST_D]; /* of the final state */
    float *params[MOST_D][PARAMS];
} Case;

static Case current;

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
    k->in_grid = extra < 0;
    k->give_dy = n % 5 != 4;
    fl_spec *s = &k->spec;
    s->kind = k->form->kind;
    s->projected = k->form->projected;
    s->peepholes = k->form->peepholes;
    s->reset_after = k->form->reset_after;
    s->input_forget = k->form->input_forget;
    s->clip = k->form->clip;
    s->H = extra < 0 ? hidden_sizes[n % LENGTH(hidden_sizes)] : 17;
    s->R = s->projected ? (2 * s->H + 2) / 3 : s->H;
    s->I = n % 5 == 2 ? s->R : input_sizes[n % LENGTH(input_sizes)]; /* I == R: can be stacked */
    s->act[0] = s->kind == FL_RNN ? activations[FL_TANH] : activations[FL_SIGMOID];
    s->act[1] = s->act[2] = activations[FL_TANH];
    if (extra >= 0)
        s->act[roles[role].role] = activations[extra / LENGTH(roles)];
}

static int of_integers(const Case *k) { return k->storage == FL_INT8 || k->storage == FL_INT16; }

static Case make_case(int n, int grid, int storage) {
    Case k = {.storage = storage, .x_planes = storage == FL_INT8 && n % 3 == 1 ? 2 : 1};
    shape_case(&k, n, grid);
    const fl_spec *s = &k.spec;
    begin_random(n);
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
        k.h[d] = random_floats(k.B * s->R, of_integers(&k) && n % 4 == 3 ? 3 : 1); /* also beyond the fixed scale */
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

/* ------------------------------------------------------------------------------------------------------------ running */

/* Rows of a parameter that is a matrix; 0 for other ones. */
static ptrdiff_t matrix_rows(const Case *k, int p) {
    const ptrdiff_t widths[PARAMS] = {k->spec.I, k->spec.R, 0, 0, k->spec.H, 0};
    return widths[p] ? param_size(k, p) / widths[p] : 0;
}

/* Integers: 1 where h, or with a projection m, stays within -1..1. */
static float h_least(const Case *k, int of_m) {
    const fl_act *act = k->spec.act;
    const int last = k->spec.kind == FL_LSTM ? 2 : k->spec.kind == FL_GRU ? 1 : 0;
    const int bounded = act[last].id == FL_TANH && (k->spec.kind == FL_RNN || act[0].id == FL_SIGMOID);
    return bounded && (of_m || !k->spec.projected) ? 1 : 0;
}

static void overwrite(void *memory, ptrdiff_t bytes) {
    if (memory)
        memset(memory, 0xff, (size_t)bytes);
}

/* A block of weights packed from a copy that afterwards is no more. */
static void pack_block(const Case *k, int d, How how, fl_block *block) {
    Stored copy[PARAMS] = {{0}};
    for (int p = 0; p < PARAMS; p++) {
        const ptrdiff_t rows = matrix_rows(k, p), mark = keep_mark(), size = param_size(k, p);
        float *w = k->params[d][p];
        if (w && how.broken && p == 1)
            w = keep(w, size * (ptrdiff_t)sizeof *w), w[size - 1] += 1e-2f;
        if (w)
            copy[p] = rows ? store(w, rows, size / rows, k->storage)
                           : (Stored){floats(w, size), NULL, size * (ptrdiff_t)sizeof *w};
        keep_from(mark);
    }
    const fl_params params = {copy[0].numbers, copy[1].numbers, copy[2].numbers, copy[3].numbers, copy[4].numbers,
                              copy[5].numbers, copy[0].scales,  copy[1].scales,  copy[4].scales};
    *block = (fl_block){.spec = k->spec,
                        .isa = how.isa,
                        .storage = k->storage,
                        .reverse = k->manner->reverse || d == 1,
                        .h_least = h_least(k, 0),
                        .m_least = h_least(k, 1),
                        .x_planes = k->x_planes};
    fl_pack(block, &params, FL_FORWARD, aligned_bytes(fl_pack_size(block, FL_FORWARD)));
    if (how.train)
        fl_pack(block, &params, FL_BACKWARD, aligned_bytes(fl_pack_size(block, FL_BACKWARD)));
    for (int p = 0; p < PARAMS; p++) {
        overwrite(copy[p].numbers, copy[p].bytes);
        overwrite(copy[p].scales, matrix_rows(k, p) * (ptrdiff_t)sizeof(float));
    }
}

/* A call's rows and states, each in memory of exactly its size. */
typedef struct {
    fl_rows rows;
    float *h, *c; /* (D, B, R), (D, B, H) */
} Given;

static fl_scratch scratch_of(ptrdiff_t size) { return (fl_scratch){aligned_floats(size), size}; }

/* The states of all directions, one after the other; NULL where there are none. */
static float *all_directions(const Case *k, float *const each[MOST_D], ptrdiff_t width) {
    if (!each[0])
        return NULL;
    const ptrdiff_t size = k->B * width;
    float *all = floats(NULL, k->manner->D * size);
    for (int d = 0; d < k->manner->D; d++)
        memcpy(all + d * size, each[d], (size_t)size * sizeof(float));
    return all;
}

static Given given(const Case *k) {
    const fl_rows rows = {.x = maybe_floats(k->x, k->N * k->spec.I),
                          .ids = k->ids ? guarded(k->ids, k->N * (ptrdiff_t)sizeof *k->ids, sizeof *k->ids) : NULL,
                          .batch_sizes = guarded(k->sizes, k->T * (ptrdiff_t)sizeof *k->sizes, sizeof *k->sizes),
                          .T = k->T};
    return (Given){.rows = rows, .h = all_directions(k, k->h, k->spec.R), .c = all_directions(k, k->c, k->spec.H)};
}

static ptrdiff_t tape_size(const Case *k) {
    const ptrdiff_t H = k->spec.H, R = k->spec.R, lstm = k->spec.kind == FL_LSTM;
    const ptrdiff_t of_row = (k->spec.kind == FL_RNN ? 0 : 4 * H) + lstm * H + R + k->spec.projected * H;
    return k->N * of_row + k->B * (R + lstm * H);
}

static void run_backward(const Case *k, int d, How how, const fl_block *block, float *tape, const Given *of, float *dx,
                         Result *r) {
    const ptrdiff_t H = k->spec.H, R = k->spec.R, ldy = k->manner->D * R;
    float *h = floats(k->dh[d], k->B * R), *c = of->c ? floats(k->dc[d], k->B * H) : NULL;
    float *g[PARAMS];
    for (int p = 0; p < PARAMS; p++) /* gradients are added to what is there */
        g[p] = param_size(k, p) ? floats(constant_floats(param_size(k, p), 0.5f), param_size(k, p)) : NULL;
    const fl_grads grads = {g[0], g[1], g[2], g[3], g[4], g[5]};
    const float *all_dy = maybe_floats(k->dy, k->N * ldy), *dy = all_dy ? all_dy + d * R : NULL;
    fl_backward_call call = {.block = block,
                             .rows = of->rows,
                             .h = h,
                             .c = c,
                             .tape = tape,
                             .dy = dy,
                             .ldy = ldy,
                             .dx = dx,
                             .grads = &grads,
                             .threads = how.threads};
    call.scratch = scratch_of(fl_backward(&call));
    fl_backward(&call);
    record(r, "h0", d, h, k->B * R, 1);
    record(r, "c0", d, c, k->B * H, 1);
    for (int p = 0; p < PARAMS; p++)
        record(r, param_names[p], d, g[p], param_size(k, p), 1);
}

/* A row map to (T, B) or (B, T) of sequences that the caller gave in another order; without one y is packed. */
static fl_row_map make_row_map(const Case *k, How how) {
    const int by_time = how.mapped == 2;
    if (!how.mapped)
        return (fl_row_map){0, NULL};
    int64_t *first = keep(NULL, k->B * (ptrdiff_t)sizeof *first);
    for (ptrdiff_t b = 0; b < k->B; b++)
        first[b] = (b + k->B / 2) % k->B * (by_time ? 1 : k->T);
    return (fl_row_map){by_time ? k->B : 1, guarded(first, k->B * (ptrdiff_t)sizeof *first, sizeof *first)};
}

/* The packed rows of a mapped y, all other rows of which must be zero. */
static const float *packed_rows(const Case *k, const fl_row_map *map, const float *y) {
    const ptrdiff_t width = k->manner->D * k->spec.R;
    float *packed = keep(NULL, k->N * width * (ptrdiff_t)sizeof *packed), *to = packed;
    const float *none = constant_floats(width, 0);
    for (ptrdiff_t t = 0; t < k->T; t++)
        for (ptrdiff_t b = 0; b < k->B; b++) {
            const float *row = y + (t * map->step + map->sequences[b]) * width;
            if (b < k->sizes[t])
                memcpy(to, row, (size_t)width * sizeof *to), to += width;
            else
                expect_bits("past a sequence's end", "y", row, none, width);
        }
    return packed;
}

static Result run(const Case *k, How how) {
    const ptrdiff_t H = k->spec.H, R = k->spec.R, N = k->N;
    const int D = k->manner->D;
    Result r = {.count = 0};
    fl_block blocks[MOST_D];
    fl_dots_allow(!how.no_dots);
    begin_guarded(how.at_start);
    const Given of = given(k);
    for (int d = 0; d < D; d++)
        pack_block(k, d, how, &blocks[d]);
    float *y = floats(NULL, (how.mapped ? k->T * k->B : N) * D * R);
    float *tapes = how.train ? floats(NULL, D * tape_size(k)) : NULL;
    fl_call call = {.first = &blocks[0],
                    .second = D > 1 ? &blocks[1] : NULL,
                    .rows = of.rows,
                    .h = of.h,
                    .c = of.c,
                    .tapes = tapes,
                    .y = y,
                    .row_map = make_row_map(k, how),
                    .threads = how.threads};
    call.scratch = scratch_of(fl_forward(&call));
    fl_forward(&call);
    record(&r, "y", 0, how.mapped ? packed_rows(k, &call.row_map, y) : y, N * D * R, 0);
    for (int d = 0; d < D; d++) {
        record(&r, "h", d, of.h + d * k->B * R, k->B * R, 0);
        record(&r, "c", d, of.c ? of.c + d * k->B * H : NULL, k->B * H, 0);
        record(&r, "tape", d, tapes ? tapes + d * tape_size(k) : NULL, tape_size(k), 0);
    }
    if (how.train) {
        float *dx = k->x && k->number % 3 != 2 ? floats(constant_floats(N * k->spec.I, 0.25f), N * k->spec.I) : NULL;
        for (int d = 0; d < D; d++)
            run_backward(k, d, how, &blocks[d], tapes + d * tape_size(k), &of, dx, &r);
        record(&r, "x", 0, dx, N * k->spec.I, 1);
    }
    end_guarded();
    return r;
}

/* ------------------------------------------------------------------------------------- the same bits, whatever the way */

static How inference(How how) { return (How){.isa = how.isa, .threads = how.threads, .at_start = how.at_start}; }

static void check_batches(const Case *k, How how, const Result *whole) {
    const ptrdiff_t H = k->spec.H, R = k->spec.R, width = k->manner->D * R;
    const ptrdiff_t picks[][2] = {
        {0, 1}, {k->B / 2, k->B / 2 + 1}, {k->B - 1, k->B}, {k->B / 3, k->B}, {0, (2 * k->B + 2) / 3}};
    for (int i = 0; i < LENGTH(picks); i++) {
        const ptrdiff_t b0 = picks[i][0], mark = keep_mark();
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
        keep_from(mark);
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
    const ptrdiff_t mark = keep_mark();
    Result r;
    Case layer = *k;
    for (int l = 0; l < L; l++) {
        r = run(&layer, how);
        layer.x = (float *)find(&r, "y", 0)->data;
        layer.ids = NULL;
    }
    const float *expected = layer.x, *h = find(&r, "h", 0)->data;
    const float *c = k->c[0] ? find(&r, "c", 0)->data : NULL;

    enum { MOST_L = 2 };
    fl_block block;
    begin_guarded(how.at_start);
    pack_block(k, 0, how, &block);
    const fl_block *const blocks[MOST_L] = {&block, &block};
    float *state_h = floats(NULL, L * k->B * R), *state_c = c ? floats(NULL, L * k->B * H) : NULL;
    for (int l = 0; l < L; l++) {
        memcpy(state_h + l * k->B * R, k->h[0], (size_t)(k->B * R) * sizeof(float));
        if (c)
            memcpy(state_c + l * k->B * H, k->c[0], (size_t)(k->B * H) * sizeof(float));
    }
    fl_stream stream = {.blocks = blocks, .L = L, .threads = how.threads, .B = k->B, .h = state_h, .c = state_c};
    const float *top_h = state_h + (L - 1) * k->B * R, *top_c = c ? state_c + (L - 1) * k->B * H : NULL;
    for (ptrdiff_t t = 0; t < k->T; t++) {
        stream.x = k->x ? floats(k->x + t * k->B * I, k->B * I) : NULL;
        stream.ids = k->ids ? guarded(k->ids + t * k->B, k->B * (ptrdiff_t)sizeof *k->ids, sizeof *k->ids) : NULL;
        if (!stream.scratch)
            stream.scratch = aligned_floats(fl_step_scratch(&stream));
        if (how.threads == 1 && t % 2)
            flq_step(&stream);
        else
            fl_step(&stream);
        expect_bits(what, "y", top_h, expected + t * k->B * R, k->B * R);
    }
    expect_bits(what, "h", top_h, h, k->B * R);
    if (c)
        expect_bits(what, "c", top_c, c, k->B * H);
    end_guarded();
    keep_from(mark);
}

/* Many streams in two slabs: the case's sequences, in slots far from one another, and others, which nothing may touch. */
typedef struct {
    fl_streams streams;
    float *records[2];
    fl_slot *slots[2];
    uint64_t counted[3];
    fl_stage stages[2];
    fl_model model;
    int64_t *handles; /* (B) of the case's sequences */
} Slabs;

static ptrdiff_t slot_of_sequence(ptrdiff_t b) { return (b * 7 + 250) % (2 * FL_SLAB); }

static void make_slabs(Slabs *s, const Case *k, How how, int L, const fl_block *block) {
    const ptrdiff_t R = k->spec.R, H = k->c[0] ? k->spec.H : 0, stride = L * (R + H) + 3;
    const fl_stage cell = {.kind = FL_STAGE_CELL, .I = k->spec.I, .U = R, .block = block};
    *s = (Slabs){.stages = {cell, cell}, .handles = keep(NULL, k->B * (ptrdiff_t)sizeof(int64_t))};
    s->model = (fl_model){.stages = s->stages, .S = L, .isa = block->isa};
    for (int i = 0; i < 2; i++) {
        s->records[i] = floats(NULL, FL_SLAB * stride);
        s->slots[i] = guarded(NULL, FL_SLAB * (ptrdiff_t)sizeof(fl_slot), 8);
        memset(s->slots[i], 0, FL_SLAB * sizeof(fl_slot));
    }
    for (ptrdiff_t b = 0; b < k->B; b++) {
        const ptrdiff_t slot = slot_of_sequence(b);
        float *record = s->records[slot / FL_SLAB] + slot % FL_SLAB * stride;
        for (int l = 0; l < L; l++, record += R + H) {
            memcpy(record, k->h[0] + b * R, (size_t)R * sizeof(float));
            if (H)
                memcpy(record + R, k->c[0] + b * H, (size_t)H * sizeof(float));
        }
        s->slots[slot / FL_SLAB][slot % FL_SLAB].generation = 2 * b + 1;
        s->handles[b] = (int64_t)(2 * b + 1) << FL_SLOT_BITS | slot;
    }
    s->streams = (fl_streams){.model = &s->model,
                              .threads = how.threads,
                              .slabs = 2,
                              .stride = stride,
                              .records = s->records,
                              .slots = s->slots,
                              .counted = s->counted};
    s->streams.scratch = aligned_floats(fl_rows_scratch(&s->streams, k->B));
}

/* A handle that is refused: the call changes nothing. */
static void check_refused(Slabs *s, const Case *k, int64_t handle) {
    const ptrdiff_t mark = keep_mark(), floats_of_slab = FL_SLAB * s->streams.stride;
    const float *before[2] = {keep(s->records[0], floats_of_slab * 4), keep(s->records[1], floats_of_slab * 4)};
    int64_t *handles = keep(s->handles, k->B * (ptrdiff_t)sizeof *handles);
    handles[k->B - 1] = handle;
    if (fl_step_rows(&s->streams, handles, k->B, k->x, k->ids, NULL, 1.0) != 0 && failed())
        host_say("handle %lld was taken\n", (long long)handle);
    for (int i = 0; i < 2; i++)
        expect_bits("with a handle that is refused", "records", s->records[i], before[i], floats_of_slab);
    keep_from(mark);
}

/* Steps of streams in slabs, in the order of the sequences and in the opposite one, against L calls. */
static void check_rows(const Case *k, How how, int L) {
    const ptrdiff_t I = k->spec.I, R = k->spec.R, B = k->B, mark = keep_mark();
    Result r;
    Case layer = *k;
    for (int l = 0; l < L; l++) {
        r = run(&layer, how);
        layer.x = (float *)find(&r, "y", 0)->data;
        layer.ids = NULL;
    }
    fl_block block;
    Slabs s;
    begin_guarded(how.at_start);
    pack_block(k, 0, how, &block);
    make_slabs(&s, k, how, L, &block);
    check_refused(&s, k, s.handles[B - 1] + (INT64_C(2) << FL_SLOT_BITS)); /* a later generation */
    check_refused(&s, k, s.handles[B - 1] - (INT64_C(1) << FL_SLOT_BITS)); /* one of a free slot */
    check_refused(&s, k, -1);
    check_refused(&s, k, s.handles[B - 1] + 2 * FL_SLAB); /* beyond the slabs */
    if (B > 1)
        check_refused(&s, k, s.handles[0]); /* twice */
    float *y = floats(NULL, B * R), *x = k->x ? floats(k->x, B * I) : NULL;
    int64_t *ids = k->ids ? guarded(k->ids, B * (ptrdiff_t)sizeof *ids, sizeof *ids) : NULL, *handles = s.handles;
    for (ptrdiff_t t = 0; t < k->T; t++) {
        const int back = t % 2; /* from the last sequence to the first */
        for (ptrdiff_t b = 0; b < B; b++) {
            const ptrdiff_t from = back ? B - 1 - b : b, slot = slot_of_sequence(from);
            if (x)
                memcpy(x + b * I, k->x + (t * B + from) * I, (size_t)I * sizeof *x);
            if (ids)
                ids[b] = k->ids[t * B + from];
            handles[b] = (int64_t)(2 * from + 1) << FL_SLOT_BITS | slot;
        }
        const int done = B == 1 && x       ? flq_step_row(&s.streams, handles[0], x, y, 0.5)
                         : how.threads > 1 ? fl_step_rows(&s.streams, handles, B, x, ids, y, 0.5)
                                           : flq_step_rows(&s.streams, handles, B, x, ids, y, 0.5);
        if (!done && failed())
            host_say("a step of streams in slabs refused their handles\n");
        for (ptrdiff_t b = 0; b < B; b++)
            expect_bits("in slabs", "y", y + b * R, layer.x + (t * B + (back ? B - 1 - b : b)) * R, R);
    }
    for (ptrdiff_t slot = 0; slot < 2 * FL_SLAB; slot++) {
        const fl_slot *info = &s.slots[slot / FL_SLAB][slot % FL_SLAB];
        const uint32_t *record = (const uint32_t *)(s.records[slot / FL_SLAB] + slot % FL_SLAB * s.streams.stride);
        const int taken = info->generation != 0;
        for (ptrdiff_t i = taken ? s.streams.stride - 3 : 0; i < s.streams.stride; i++)
            if (record[i] != UINT32_MAX && failed())
                host_say("wrote to the record of another stream, or beyond a state\n");
        if (taken && (info->steps != (uint64_t)k->T || info->used != 0.5) && failed())
            host_say("a stream has done %d steps, not %d\n", (int)info->steps, (int)k->T);
    }
    end_guarded();
    keep_from(mark);
}

static void check_row_maps(const Case *k, How how, const Result *whole) {
    for (how.mapped = 1; how.mapped <= 2; how.mapped++) {
        const ptrdiff_t mark = keep_mark();
        const Result r = run(k, how);
        expect_same(how.mapped == 1 ? "sequence after sequence" : "step after step", &r, whole);
        keep_from(mark);
    }
}

static void check_bits(const Case *k, How how, const Result *whole) {
    const ptrdiff_t mark = keep_mark();
    how.at_start = 1;
    Result r = run(k, how);
    expect_same("at another place", &r, whole);
    r = run(k, inference(how));
    expect_same("inference", &r, whole);
    if (of_integers(k)) {
        how.no_dots = 1;
        r = run(k, how);
        expect_same("without dot products", &r, whole);
        how.no_dots = 0;
    }
    if (k->ids && !of_integers(k)) { /* of integers, one-hot rows are rounded once more */
        const Case written_out = one_hot(k);
        r = run(&written_out, inference(how));
        expect_same("one-hot rows", &r, whole);
    }
    for (how.threads = 4; how.threads > 1; how.threads--) {
        keep_from(mark);
        how.at_start = !how.at_start;
        r = run(k, how);
        expect_same(how.threads == 4 ? "4 threads" : how.threads == 3 ? "3 threads" : "2 threads", &r, whole);
        r = run(k, inference(how));
        expect_same("inference by threads", &r, whole);
    }
    keep_from(mark);
    for (how.threads = 1; how.threads <= 3; how.threads += 2) {
        check_row_maps(k, inference(how), whole);
        check_batches(k, inference(how), whole);
        check_stretches(k, inference(how), whole);
        if (k->manner->D == 1 && !k->manner->reverse && !k->manner->ragged)
            for (int L = 1; L <= (k->spec.I == k->spec.R && k->x ? 2 : 1); L++)
                check_steps(k, inference(how), L), check_rows(k, inference(how), L);
        keep_from(mark);
    }
}

/* --------------------------------------------------------------------------------------- integers: results beside the scalar ones and a model */

/* The packed rows of the step that the direction walks first. */
static void first_step(const Case *k, ptrdiff_t *row, ptrdiff_t *n) {
    const ptrdiff_t t = k->manner->reverse ? k->T - 1 : 0;
    *row = first_row(k, t), *n = k->sizes[t];
}

/* An RNN whose activation is the identity shows the products themselves: its first step, of a case without ids. */
static void compare_with_model(const Case *k, const float *y) {
    const ptrdiff_t I = k->spec.I, H = k->spec.H;
    const ptrdiff_t mark = keep_mark();
    ptrdiff_t row, n;
    first_step(k, &row, &n);
    float *start = constant_floats(H, 0), *out = constant_floats(H, 0);
    begin_guarded(0);
    const Stored of_x = store(k->params[0][0], H, I, k->storage), of_h = store(k->params[0][1], H, H, k->storage);
    for (ptrdiff_t i = 0; i < n; i++) {
        for (ptrdiff_t u = 0; u < H; u++)
            start[u] = k->params[0][2] ? k->params[0][2][u] + k->params[0][3][u] : 0;
        model_product(start, start, &of_x, k->storage, H, I, k->x + (row + i) * I, k->x_planes);
        model_product(out, start, &of_h, k->storage, H, H, k->h[0] + i * H, 1);
        expect_bits("against the model", "y", y + (row + i) * H, out, H);
    }
    end_guarded();
    keep_from(mark);
}

/* Activations of different instruction sets differ in the last bit, so that a number of h may be rounded to another
 * integer: then everything after it differs by about a step of the integers. */
static void compare_integers(How how, const Result *r, const Result *scalar) {
    const Case *k = &current;
    const fl_spec *s = &k->spec;
    const Part *y = find(r, "y", 0), *of_scalar = find(scalar, "y", 0);
    const int plain = s->kind == FL_RNN && !(s->clip > 0) && k->manner->D == 1;
    if (plain && (s->act[0].id == FL_IDENTITY || s->act[0].id == FL_RELU))
        expect_same("against the scalar one", r, scalar);
    if (plain && s->act[0].id == FL_IDENTITY && k->x && !how.broken)
        compare_with_model(k, y->data);
    for (int i = 0; i < r->count; i++) {
        const Part *part = &r->parts[i], *expected = find(scalar, part->name, part->direction);
        expect_values(part->name, part->data, expected->data, part->count, k->storage == FL_INT8 ? 0.05 : 1e-3);
    }
    if (s->projected || (s->kind == FL_GRU && !s->reset_after) || k->manner->D > 1)
        return; /* the first step rounds a result of its own */
    ptrdiff_t row, n;
    first_step(k, &row, &n);
    expect_values("y of the first step", y->data + row * s->R, of_scalar->data + row * s->R, n * s->R, 4e-6);
}

/* --------------------------------------------------------------------------------------------------------- the family */

static int count_cases(int cases) { return cases + LENGTH(activations) * LENGTH(roles); }
static void make_current(int n, int cases) { current = make_case(n, cases, FL_FLOAT32); }
static int count_third(int cases) { return count_cases(cases / 3); }
static void make_float16(int n, int cases) { current = make_case(n, cases / 3, FL_FLOAT16); }
static void make_int8(int n, int cases) { current = make_case(n, cases / 3, FL_INT8); }
static void make_int16(int n, int cases) { current = make_case(n, cases / 3, FL_INT16); }
static Result run_current(How how) { return run(&current, how); }

/* Activations behind the grid differ in nothing that decides about order. */
static void check_current(How how, const Result *whole) {
    if (current.in_grid)
        check_bits(&current, how, whole);
}

static void describe_current(void) {
    const fl_spec *s = &current.spec;
    static const char *const storages[] = {"", "float16 ", "int8 ", "int16 "};
    host_say("case %d (%s%s%s, T=%d B=%d I=%d H=%d R=%d, activations %d %d %d)", current.number,
             storages[current.storage], current.form->name, current.manner->name, (int)current.T, (int)current.B,
             (int)s->I, (int)s->H, (int)s->R, s->act[0].id, s->act[1].id, s->act[2].id);
}

const Family recurrent = {count_cases, make_current, describe_current, run_current, check_current, 0, 0, NULL};
const Family recurrent_float16 = {count_third, make_float16, describe_current, run_current, check_current, 0, 1, NULL};
const Family recurrent_int8 = {count_third, make_int8, describe_current, run_current, check_current,
                               0,           1,         compare_integers};
const Family recurrent_int16 = {count_third, make_int16, describe_current, run_current, check_current,
                                0,           1,          compare_integers};
