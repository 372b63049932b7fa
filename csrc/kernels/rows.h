/* rows.h: one step of a model for rows whose states lie anywhere: the records of streams. Part of kernels.h.
 *
 * All panels read the h of the step before, so h' cannot take its place while they do. h is copied to contiguous memory
 * first, and h' and c are written where they belong: one copy of h, as in a step of contiguous states, which makes it
 * afterwards. Records that are needed next are asked for tile by tile, while the tile after it is computed: many at once
 * would hold up the computation. */

/* What a later CELL, or the next block of rows, needs first: the h of each row and the first line of its c. */
typedef struct {
    float *const *records; /* (n) */
    ptrdiff_t n, at, floats;
    ptrdiff_t row, float_of_row; /* what is asked for next */
    ptrdiff_t lines;             /* to be asked for after each tile */
} Ahead;

static void ask_ahead(Ahead *a, ptrdiff_t lines) {
    for (; lines > 0 && a->row < a->n; lines--) {
        __builtin_prefetch(a->records[a->row] + a->at + a->float_of_row);
        a->float_of_row += 16;
        if (a->float_of_row >= a->floats)
            a->float_of_row = 0, a->row++;
    }
}

/* One layer's part of a block of rows. */
typedef struct {
    Step s;
    Epilogue inner; /* what completes a tile */
    Ahead *ahead;
    ptrdiff_t n;
    ptrdiff_t c_step; /* floats of c from one panel to the next one; 0 where there is no c */
} RowsOfLayer;

/* Completes a tile, and asks for what is needed later: the next panel's c of its rows, and a share of `ahead`. */
static void rows_tile(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    const RowsOfLayer *const all = context;
    all->inner.tile(&all->s, tile, panel, row, rows);
    const ptrdiff_t next = all->s.at_c + panel * VL + all->c_step;
    for (int r = 0; r < rows && all->c_step; r++)
        __builtin_prefetch(all->s.records[row + r] + next);
    ask_ahead(all->ahead, all->ahead->lines);
}

/* One phase of a block of rows. */
static void rows_phase(RowsOfLayer *all, int number, const Input *in, int reversed) {
    Phase phase;
    make_phase(&phase, all->s.k, number, NULL, 0, 1);
    Product *const q = &phase.product;
    take_operands(&phase, &all->s, all->n, in);
    q->reversed_panels = reversed;
    if (all->n == 1) {
        product(q, 1, phase.epilogue, &all->s);
        return;
    }
    all->inner = *phase.epilogue;
    all->c_step = number || all->s.k->spec.kind != FL_LSTM ? 0 : reversed ? -VL : VL;
    tile_product(q, q->first_panel, q->end_panel, all->n, rows_tile, all);
}

/* Tiles of the first phase of a layer, which share the asking for what comes after the layer. */
static ptrdiff_t tiles_of(const fl_block *k, ptrdiff_t n) {
    Product q;
    first_phase(k, &q);
    return q.panels * fl_ceil_div(n, ROWS);
}

/* The part of the state that the first CELL at or after a stage reads first: `at` counts floats from where the state of the
 * stage begins in a record; `floats` is 0 where no CELL follows. */
static Ahead next_state(const fl_model *m, int stage) {
    Ahead next = {0};
    for (; stage < m->S && m->stages[stage].kind != FL_STAGE_CELL; stage++)
        next.at += fl_part_of(&m->stages[stage]);
    if (stage < m->S) {
        const fl_spec *s = &m->stages[stage].block->spec;
        next.floats = s->R + (s->kind == FL_LSTM ? fl_min(s->H, VL) : 0);
    }
    return next;
}

/* One layer of a block of rows. `ahead` is what comes after it. */
static void rows_layer(RowsOfLayer *rows, const Input *in, Ahead *ahead, int reversed) {
    const fl_block *k = rows->s.k;
    const ptrdiff_t R = k->spec.R, lines = fl_ceil_div(ahead->floats, 16);
    ahead->lines = fl_ceil_div(ahead->n * lines, tiles_of(k, rows->n));
    rows->ahead = ahead;
    for (ptrdiff_t r = 0; r < rows->n; r++)
        memcpy(rows->s.h + r * R, rows->s.records[r] + rows->s.at_h, (size_t)R * sizeof(float));
    for (int p = 0; p < fl_phase_count(&k->spec); p++)
        rows_phase(rows, p, in, reversed);
}

/* A CELL: its input is a block of n rows, its output y (n, R). `at` is where its state begins in a record, `memory` its own,
 * `next` the number of rows of the block after this one. */
static void rows_cell(const fl_rows_job *job, int stage, const Input *in, float *const *records, ptrdiff_t at,
                      ptrdiff_t n, ptrdiff_t next, float *y, fl_supply memory, int reversed) {
    const fl_block *k = job->step.model->stages[stage].block;
    const ptrdiff_t H = k->spec.H, R = k->spec.R;
    RowsOfLayer rows = {.s = {.k = k,
                              .h = fl_take(&memory, n * R),
                              .m = fl_take(&memory, n * H),
                              .z = fl_take(&memory, n * H),
                              .y = y,
                              .ldy = R,
                              .records = records,
                              .at_h = at,
                              .at_c = at + R},
                        .n = n};
    const fl_chunk of_integers = {.b1 = n, .quantised = fl_quantises(k->storage) ? memory.memory + memory.used : NULL};
    place_integers(k, &of_integers, 0, &rows.s.of_x, &rows.s.of_h);
    Ahead ahead = next_state(job->step.model, stage + 1);
    ahead.at += at + fl_part_of(&job->step.model->stages[stage]), ahead.records = records, ahead.n = n;
    if (!ahead.floats)
        ahead = next_state(job->step.model, 0), ahead.records = records + n, ahead.n = next;
    rows_layer(&rows, in, &ahead, reversed);
}

/* The activation of y (n, U), in place. */
static void rows_activation(fl_act act, float *y, ptrdiff_t n, ptrdiff_t U) {
    if (act.id == FL_IDENTITY)
        return;
    if (act.id == FL_SOFTMAX) {
        float max;
        for (ptrdiff_t r = 0; r < n; r++)
            row_softmax(y + r * U, U, 1.0, &max);
        return;
    }
    for (ptrdiff_t i = 0; i < n * U; i += VL) {
        const int count = (int)fl_min(VL, n * U - i);
        V_STOREN(y + i, v_act(act, V_LOADN(y + i, count)), count);
    }
}

/* A CONTEXT: y (n, U) of x (n, I). Each record keeps the last numbers of y. */
static void rows_context(const fl_stage *stage, const float *x, float *const *records, ptrdiff_t at, ptrdiff_t n,
                         float *y) {
    const ptrdiff_t I = stage->I, U = stage->U;
    const size_t kept = (size_t)(U - I) * sizeof(float);
    for (ptrdiff_t r = 0; r < n; r++, x += I, y += U) {
        memcpy(y, records[r] + at, kept);
        memcpy(y + (U - I), x, (size_t)I * sizeof(float));
        memcpy(records[r] + at, y + I, kept);
    }
}

/* A GATHER: y (n, U) of x (n, I). */
static void rows_gather(const fl_stage *stage, const float *x, ptrdiff_t n, float *y) {
    for (ptrdiff_t r = 0; r < n; r++, x += stage->I)
        for (ptrdiff_t i = 0; i < stage->count; i++) {
            const ptrdiff_t from = stage->runs[2 * i], length = stage->runs[2 * i + 1];
            if (length == 1)
                *y = from < 0 ? 0.0f : x[from];
            else if (from < 0)
                memset(y, 0, (size_t)length * sizeof(float));
            else
                memcpy(y, x + from, (size_t)length * sizeof(float));
            y += length;
        }
}

/* A MAGNITUDE: y (n, U) of x (n, 2 U). */
static void rows_magnitude(const fl_stage *stage, const float *x, ptrdiff_t n, float *y) {
    const ptrdiff_t frames = fl_max(1, stage->frames), U = stage->U / frames;
    for (ptrdiff_t r = 0; r < n * frames; r++, x += 2 * U, y += U)
        for (ptrdiff_t u = 0; u < U; u++)
            y[u] = sqrtf(x[u] * x[u] + x[U + u] * x[U + u]);
}

/* A DENSE: y (n, U) of x (n, I), frame by frame. */
static void rows_dense(const fl_stage *stage, const float *x, ptrdiff_t n, float *y) {
    const fl_dense *const k = stage->dense;
    const ptrdiff_t frames = n * (stage->I / k->I);
    for (ptrdiff_t r = 0; r < frames; r += FL_DENSE_ROWS)
        dense_panels(k, x + r * k->I, fl_min(frames - r, FL_DENSE_ROWS), y + r * k->U, 0, 1);
    rows_activation(stage->act, y, frames, k->U);
}

/* A stage: y (n, U) of the input of n rows. `at` is where its state begins in a record. */
static void rows_stage(const fl_stage *stage, const Input *in, float *const *records, ptrdiff_t at, ptrdiff_t n,
                       float *y) {
    const ptrdiff_t U = stage->U, frames = fl_max(1, stage->frames);
    switch (stage->kind) {
    case FL_STAGE_LOOKUP:
        for (ptrdiff_t r = 0; r < n; r++)
            memcpy(y + r * U, stage->table + in->ids[r] * U, (size_t)U * sizeof(float));
        break;
    case FL_STAGE_DENSE: rows_dense(stage, in->x, n, y); break;
    case FL_STAGE_CONTEXT: rows_context(stage, in->x, records, at, n, y); break;
    case FL_STAGE_GATHER: rows_gather(stage, in->x, n, y); break;
    case FL_STAGE_MAGNITUDE: rows_magnitude(stage, in->x, n, y); break;
    default: memcpy(y, in->x, (size_t)(n * U) * sizeof(float)); rows_activation(stage->act, y, n * frames, U / frames);
    }
}

/* y (n, U) += x (n, U). */
static void rows_skip(const float *x, float *y, ptrdiff_t n, ptrdiff_t U) {
    for (ptrdiff_t i = 0; i < n * U; i += VL) {
        const int count = (int)fl_min(VL, n * U - i);
        V_STOREN(y + i, V_ADD(V_LOADN(x + i, count), V_LOADN(y + i, count)), count);
    }
}

/* A block of rows through all stages; `next` is the number of rows of the block after it. */
static void rows_block(const fl_rows_job *job, ptrdiff_t r0, ptrdiff_t n, ptrdiff_t next, float *memory, int reversed) {
    const fl_model *const m = job->step.model;
    float *const *const records = job->step.records ? job->step.records + r0 : NULL;
    Input in = {.x = job->step.x, .ids = job->step.ids ? job->step.ids + r0 : NULL};
    in.next_ids = in.ids;
    if (in.x)
        in.x += r0 * m->stages[0].I;
    fl_supply from = {memory, 0};
    float *const between[2] = {fl_take(&from, n * job->width), fl_take(&from, n * job->width)};
    ptrdiff_t at = 0;
    for (int i = 0; i < m->S; i++) {
        const fl_stage *const stage = &m->stages[i];
        float *const y = i == m->S - 1 ? job->step.y + r0 * stage->U : between[i % 2];
        if (stage->kind == FL_STAGE_CELL)
            rows_cell(job, i, &in, records, at, n, next, y, from, reversed);
        else
            rows_stage(stage, &in, records, at, n, y);
        if (stage->skip && in.x)
            rows_skip(in.x, y, n, stage->U);
        at += fl_part_of(stage);
        in = (Input){.x = y};
    }
}

/* A piece: some blocks of rows. */
static void step_rows(void *arg, int step, int piece, int worker) {
    (void)step;
    const fl_rows_job *job = arg;
    const ptrdiff_t first = piece * job->piece, end = fl_min(job->step.n, first + job->piece);
    float *const memory = job->workspace + worker * job->workspace_size;
    Ahead begin = next_state(job->step.model, 0);
    begin.n = fl_min(job->block, end - first);
    if (begin.n > 1 && begin.floats) {
        begin.records = job->step.records + first;
        ask_ahead(&begin, begin.n * fl_ceil_div(begin.floats, 16));
    }
    int reversed = job->step.reversed_panels;
    for (ptrdiff_t r = first, next; r < end; r = next) {
        next = fl_min(end, r + job->block);
        rows_block(job, r, next - r, fl_min(job->block, end - next), memory, reversed);
        reversed ^= 1;
    }
}
