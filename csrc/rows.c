/* rows.c: one step of some of many streams, whose states lie in slabs. */
#include "internal.h"

/* ---------------------------------------------------------------------------------------------------------- handles */

static uint64_t slot_of(int64_t handle) { return (uint64_t)handle & ((UINT64_C(1) << FL_SLOT_BITS) - 1); }
static fl_slot *slot_at(const fl_streams *s, uint64_t slot) { return &s->slots[slot / FL_SLAB][slot % FL_SLAB]; }

/* Finds the records of n streams; returns 0 where a handle is refused. A negative handle has a generation that no slot
 * reaches. */
static int find_rows(fl_streams *s, const int64_t *handles, ptrdiff_t n, float **records) {
    const uint64_t slots = (uint64_t)s->slabs * FL_SLAB, stamp = ++s->counted[2];
    for (ptrdiff_t i = 0; i < n; i++) {
        if (i + FL_SLOTS_AHEAD < n) {
            const uint64_t later = slot_of(handles[i + FL_SLOTS_AHEAD]);
            if (later < slots)
                __builtin_prefetch(slot_at(s, later), 1);
        }
        const uint64_t handle = (uint64_t)handles[i], generation = handle >> FL_SLOT_BITS;
        const uint64_t slot = slot_of(handles[i]);
        if (slot >= slots || !(generation & 1))
            return 0;
        fl_slot *const found = slot_at(s, slot);
        if ((uint64_t)found->generation != generation || found->stamp == stamp)
            return 0;
        found->stamp = stamp;
        records[i] = s->records[slot / FL_SLAB] + (ptrdiff_t)(slot % FL_SLAB) * s->stride;
    }
    return 1;
}

static void count_step(fl_streams *s, const int64_t *handles, ptrdiff_t n, double now) {
    for (ptrdiff_t i = 0; i < n; i++) {
        fl_slot *const slot = slot_at(s, slot_of(handles[i]));
        slot->steps++;
        slot->used = now;
    }
    s->counted[0]++;
    s->counted[1] += (uint64_t)n;
}

/* ----------------------------------------------------------------------------------------------------------- blocks */

/* How a step is cut. */
typedef struct {
    ptrdiff_t piece, block; /* rows */
    int pieces, threads;
    ptrdiff_t pointers;  /* floats that the records' pointers take */
    ptrdiff_t workspace; /* floats of a worker */
} cut;

/* n rounded up to a multiple of `of`. */
static ptrdiff_t whole(ptrdiff_t n, ptrdiff_t of) { return fl_ceil_div(n, of) * of; }

/* Rows of a block at most: their input, state and output fit half of the second-level cache. Weights that do not fit it
 * are read anew for each block, and so for more rows. */
static ptrdiff_t most_rows(const fl_streams *s) {
    const int tile = fl_isa_at(s->blocks[0]->isa)->rows;
    ptrdiff_t row = 0, weights = 0; /* most bytes of a layer */
    for (int l = 0; l < s->L; l++) {
        const fl_spec *e = &s->blocks[l]->spec;
        const int storage = s->blocks[l]->storage;
        const ptrdiff_t of_number = storage == FL_INT8 ? 1 : storage == FL_FLOAT32 ? 4 : 2;
        row = fl_max(row, (e->I + 3 * e->R + (e->kind == FL_LSTM ? e->H : 0)) * (ptrdiff_t)sizeof(float));
        weights = fl_max(weights, fl_gate_count(e) * e->H * (e->I + e->R) * of_number);
    }
    const ptrdiff_t fits = FL_BLOCK_BYTES / row;
    return whole(weights > FL_BLOCK_WEIGHTS ? fl_max(fits, FL_BLOCK_LEAST) : fl_min(fits, FL_BLOCK_MOST), tile);
}

/* A larger n never needs less scratch memory. */
static cut cut_step(const fl_streams *s, int of_ids, ptrdiff_t n) {
    const int tile = fl_isa_at(s->blocks[0]->isa)->rows;
    const ptrdiff_t most = most_rows(s);
    cut c = {.threads = fl_worthwhile(s->blocks[0], of_ids, n, 1, s->threads),
             .pointers = fl_round16(fl_ceil_div(n * (ptrdiff_t)sizeof(float *), (ptrdiff_t)sizeof(float)))};
    const ptrdiff_t pieces = c.threads == 1 ? 1 : fl_max(c.threads, fl_min(4 * c.threads, n / most));
    c.piece = whole(fl_ceil_div(n, pieces), tile);
    c.pieces = (int)fl_ceil_div(n, c.piece);
    c.block = whole(fl_ceil_div(c.piece, fl_ceil_div(c.piece, most)), tile); /* blocks of about equal height */
    const ptrdiff_t rows = fl_min(most, whole(n, tile));
    ptrdiff_t width = 0;
    for (int l = 0; l < s->L; l++) {
        const fl_block *k = s->blocks[l];
        const fl_chunk of_integers = {.b1 = rows};
        width = fl_max(width, 3 * fl_round16(rows * k->spec.R) + 2 * fl_round16(rows * k->spec.H) +
                                  (fl_quantises(k->storage) ? fl_quantised_floats(k, &of_integers) : 0));
    }
    c.workspace = width + FL_APART;
    return c;
}

ptrdiff_t fl_rows_scratch(const fl_streams *streams, ptrdiff_t n) {
    const cut c = cut_step(streams, 0, n);
    return c.pointers + streams->threads * c.workspace;
}

/* ------------------------------------------------------------------------------------------------------------- steps */

int fl_step_rows(fl_streams *s, const int64_t *handles, ptrdiff_t n, const float *x, const int64_t *ids, float *y,
                 double now) {
    float **const records = (float **)s->scratch;
    if (!find_rows(s, handles, n, records))
        return 0;
    count_step(s, handles, n, now);
    const cut c = cut_step(s, ids != NULL, n);
    fl_rows_job job = {.blocks = s->blocks,
                       .L = s->L,
                       .n = n,
                       .piece = c.piece,
                       .block = c.block,
                       .records = records,
                       .x = x,
                       .ids = ids,
                       .y = y,
                       .workspace = s->scratch + c.pointers,
                       .workspace_size = c.workspace,
                       .reversed_panels = s->counted[2] & 1};
    fl_run(fl_isa_at(s->blocks[0]->isa)->step_rows, &job, 1, c.pieces, c.threads);
    return 1;
}

int flq_step_rows(fl_streams *streams, const int64_t *handles, ptrdiff_t n, const float *x, const int64_t *ids,
                  float *y, double now) {
    return fl_step_rows(streams, handles, n, x, ids, y, now);
}

int flq_step_row(fl_streams *streams, int64_t handle, const float *x, float *y, double now) {
    return fl_step_rows(streams, &handle, 1, x, NULL, y, now);
}
