/* rows.c: one step of a model for rows whose states lie anywhere, and of some of many streams in slabs. */
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
    ptrdiff_t width;     /* floats of a row between two stages */
    ptrdiff_t workspace; /* floats of a worker */
} cut;

/* n rounded up to a multiple of `of`. */
static ptrdiff_t whole(ptrdiff_t n, ptrdiff_t of) { return fl_ceil_div(n, of) * of; }

/* Floats of a row that a stage works on, and bytes of its weights. */
static void sizes_of(const fl_stage *stage, ptrdiff_t *row, ptrdiff_t *weights) {
    *row = stage->I + stage->U, *weights = 0;
    if (stage->kind == FL_STAGE_LOOKUP)
        *row = stage->U;
    if (stage->kind == FL_STAGE_CELL) {
        const fl_spec *e = &stage->block->spec;
        const int storage = stage->block->storage;
        const ptrdiff_t of_number = storage == FL_INT8 ? 1 : storage == FL_FLOAT32 ? 4 : 2;
        *row = e->I + 3 * e->R + (e->kind == FL_LSTM ? e->H : 0);
        *weights = fl_gate_count(e) * e->H * (e->I + e->R) * of_number;
    } else if (stage->kind == FL_STAGE_DENSE) {
        *weights = stage->dense->I * stage->dense->U * (ptrdiff_t)sizeof(float);
    }
}

/* Rows of a block at most: their input, state and output fit half of the second-level cache. Weights that do not fit it
 * are read anew for each block, and so for more rows. */
static ptrdiff_t most_rows(const fl_model *m) {
    ptrdiff_t row = 1, weights = 0; /* of the largest stage */
    for (int i = 0; i < m->S; i++) {
        ptrdiff_t of_row, of_weights;
        sizes_of(&m->stages[i], &of_row, &of_weights);
        row = fl_max(row, of_row), weights = fl_max(weights, of_weights);
    }
    const ptrdiff_t fits = FL_BLOCK_BYTES / (row * (ptrdiff_t)sizeof(float));
    const ptrdiff_t most =
        weights > FL_BLOCK_WEIGHTS ? fl_max(fits, FL_BLOCK_LEAST) : fl_max(1, fl_min(fits, FL_BLOCK_MOST));
    return whole(most, fl_isa_at(m->isa)->rows);
}

/* Threads worth waking for n rows. */
static int worthwhile(const fl_model *m, int of_ids, ptrdiff_t n, int threads) {
    double work = 0; /* multiply-adds */
    for (int i = 0; i < m->S; i++) {
        const fl_stage *stage = &m->stages[i];
        if (stage->kind == FL_STAGE_CELL)
            work += fl_work_of_row(stage->block, of_ids && i == 0);
        else if (stage->kind == FL_STAGE_DENSE)
            work += (double)stage->I * (double)stage->dense->U;
    }
    return (double)n * work < FL_LEAST_WORK ? 1 : threads;
}

/* Floats of memory that a stage's own work on `rows` rows takes. */
static ptrdiff_t memory_of(const fl_stage *stage, ptrdiff_t rows) {
    if (stage->kind != FL_STAGE_CELL)
        return 0;
    const fl_block *k = stage->block;
    const fl_chunk of_integers = {.b1 = rows};
    return fl_round16(rows * k->spec.R) + 2 * fl_round16(rows * k->spec.H) +
           (fl_quantises(k->storage) ? fl_quantised_floats(k, &of_integers) : 0);
}

/* A larger n never needs less scratch memory. */
static cut cut_step(const fl_model *m, int of_ids, ptrdiff_t n, int threads) {
    const int tile = fl_isa_at(m->isa)->rows;
    const ptrdiff_t most = most_rows(m);
    cut c = {.threads = worthwhile(m, of_ids, n, threads)};
    const ptrdiff_t pieces = c.threads == 1 ? 1 : fl_max(c.threads, fl_min(4 * c.threads, n / most));
    c.piece = fl_max(1, fl_ceil_div(n, pieces)); /* no rows: no pieces, instead of a division by 0 */
    if (c.piece > 4 * tile)                      /* of few rows, whole tiles would be uneven shares */
        c.piece = whole(c.piece, tile);
    c.pieces = (int)fl_ceil_div(n, c.piece);
    c.block = whole(fl_ceil_div(c.piece, fl_ceil_div(c.piece, most)), tile); /* blocks of about equal height */
    const ptrdiff_t rows = fl_min(most, whole(n, tile));
    ptrdiff_t memory = 0;
    for (int i = 0; i < m->S; i++) {
        c.width = fl_max(c.width, i < m->S - 1 ? m->stages[i].U : 0);
        memory = fl_max(memory, memory_of(&m->stages[i], rows));
    }
    c.workspace = 2 * fl_round16(rows * c.width) + memory + FL_APART;
    return c;
}

/* ------------------------------------------------------------------------------------------------------------- steps */

ptrdiff_t fl_record_width(const fl_model *model) {
    ptrdiff_t width = 0;
    for (int i = 0; i < model->S; i++)
        width += fl_part_of(&model->stages[i]);
    return width;
}

ptrdiff_t fl_records_scratch(const fl_model *model, ptrdiff_t n, int threads) {
    return threads * cut_step(model, 0, n, threads).workspace;
}

void fl_step_records(const fl_records *step) {
    const cut c = cut_step(step->model, step->ids != NULL, step->n, step->threads);
    fl_rows_job job = {.step = *step,
                       .piece = c.piece,
                       .block = c.block,
                       .width = c.width,
                       .workspace = step->scratch,
                       .workspace_size = c.workspace};
    fl_run(fl_isa_at(step->model->isa)->step_rows, &job, 1, c.pieces, c.threads);
}

void flq_step_records(const fl_records *step) { fl_step_records(step); }

/* Floats that the pointers to n records take. */
static ptrdiff_t pointers_of(ptrdiff_t n) {
    return fl_round16(fl_ceil_div(n * (ptrdiff_t)sizeof(float *), (ptrdiff_t)sizeof(float)));
}

ptrdiff_t fl_rows_scratch(const fl_streams *streams, ptrdiff_t n) {
    return pointers_of(n) + fl_records_scratch(streams->model, n, streams->threads);
}

int fl_step_rows(fl_streams *s, const int64_t *handles, ptrdiff_t n, const float *x, const int64_t *ids, float *y,
                 double now) {
    float **const records = (float **)s->scratch;
    if (!find_rows(s, handles, n, records))
        return 0;
    count_step(s, handles, n, now);
    fl_step_records(&(fl_records){.model = s->model,
                                  .n = n,
                                  .records = records,
                                  .x = x,
                                  .ids = ids,
                                  .y = y,
                                  .threads = s->threads,
                                  .reversed_panels = s->counted[2] & 1,
                                  .scratch = s->scratch + pointers_of(n)});
    return 1;
}

int flq_step_rows(fl_streams *streams, const int64_t *handles, ptrdiff_t n, const float *x, const int64_t *ids,
                  float *y, double now) {
    return fl_step_rows(streams, handles, n, x, ids, y, now);
}

int flq_step_row(fl_streams *streams, int64_t handle, const float *x, float *y, double now) {
    return fl_step_rows(streams, &handle, 1, x, NULL, y, now);
}
