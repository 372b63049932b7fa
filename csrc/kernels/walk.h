/* walk.h: forward through time: the tasks of a plan (plan.h). Part of kernels.h. */

/* -------------------------------------------------------------------------------------------------------- rows and steps */

/* The step that a direction walks as its i-th; and of the steps that it walks as i0..i1, the first in time. */
static ptrdiff_t step_at(const fl_pass *pass, ptrdiff_t T, ptrdiff_t i) { return pass->block->reverse ? T - 1 - i : i; }
static ptrdiff_t first_of(const fl_pass *pass, ptrdiff_t T, ptrdiff_t i0, ptrdiff_t i1) {
    return pass->block->reverse ? T - i1 : i0;
}

/* A chunk's rows in a step of `size` rows. */
static ptrdiff_t alive(const fl_chunk *chunk, int64_t size) { return fl_max(0, fl_min(chunk->b1, size) - chunk->b0); }

/* From the first packed row of step t to that of the step that is walked next. */
static ptrdiff_t to_next(const fl_rows *rows, ptrdiff_t t, int reverse) {
    const int64_t *const size = rows->batch_sizes + t;
    return !reverse ? size[0] : t > 0 ? -size[-1] : 0;
}

/* The input of step t from packed row `row` on. */
static Input input_at(const fl_rows *rows, ptrdiff_t I, ptrdiff_t row, ptrdiff_t t, int reverse) {
    if (rows->x)
        return (Input){.x = rows->x + row * I};
    const int64_t *const size = rows->batch_sizes + t, *const ids = rows->ids + row;
    const int next_is_as_large = reverse || (t + 1 < rows->T && size[1] == size[0]);
    return (Input){.ids = ids, .next_ids = ids + (next_is_as_large ? to_next(rows, t, reverse) : 0)};
}

/* What all steps of a chunk have in common. at: see place_integers. */
static void begin_steps(Step *s, const fl_forward_job *job, const fl_chunk *chunk, int at) {
    const fl_pass *pass = &job->passes[chunk->direction];
    *s = (Step){.k = pass->block,
                .h = chunk->h,
                .c = chunk->c,
                .h_new = chunk->h_new,
                .m = chunk->m,
                .z = chunk->z,
                .y = job->y ? job->y + chunk->direction * pass->block->spec.R : NULL,
                .ldy = job->ldy,
                .gates = pass->gates,
                .tape_c = pass->tape_c,
                .tape_h = pass->tape_h,
                .tape_m = pass->tape_m,
                .y_rows = job->row_map ? job->row_map->sequences + chunk->b0 : NULL};
    place_integers(pass->block, chunk, at, &s->of_x, &s->of_h);
}

/* Step t, in which the chunk's first sequence is packed row `row`. */
INLINE void begin_step(Step *s, const fl_forward_job *job, ptrdiff_t t, ptrdiff_t row) {
    s->tape_row0 = row, s->y_row0 = job->row_map ? t * job->row_map->step : row;
}

/* What a step has written is what the next one reads. */
INLINE void swap_states(Step *s) {
    float *const h = s->h_new;
    s->h_new = s->h, s->h = h;
}

/* Zeros to the rows of y, by the row map, of the chunk's sequences that have ended at step t: all but the first n. */
static void give_zeros(const fl_forward_job *job, const fl_chunk *chunk, ptrdiff_t t, ptrdiff_t n) {
    const ptrdiff_t R = job->passes[chunk->direction].block->spec.R;
    for (ptrdiff_t b = chunk->b0 + n; b < chunk->b1; b++)
        memset(job->y + (t * job->row_map->step + job->row_map->sequences[b]) * job->ldy + chunk->direction * R, 0,
               (size_t)R * sizeof(float));
}

/* -------------------------------------------------------------------------------------------------- a walk through time */

typedef struct {
    const fl_forward_job *job;
    const fl_chunk *chunk;
    int hoisted, phases;
    int dense;      /* the chunk's sequences all have T steps */
    int prefetches; /* the next step's start values, which another thread has written */
    Phase phase[2];
    Step s;
    ptrdiff_t first; /* first packed row of the next step */
} Walk;

static void begin_walk(Walk *w, const fl_forward_job *job, const fl_chunk *chunk, int at) {
    const fl_pass *pass = &job->passes[chunk->direction];
    const ptrdiff_t B = chunk->b1 - chunk->b0, T = job->rows->T;
    const int64_t *sizes = job->rows->batch_sizes;
    w->job = job, w->chunk = chunk;
    w->hoisted = chunk->hoisted_rows > 0, w->phases = job->plan->phases;
    w->dense = alive(chunk, sizes[T - 1]) == B, w->prefetches = 0;
    w->first = pass->block->reverse ? job->N - sizes[T - 1] : 0;
    const Starts starts = w->hoisted ? starts_of(pass->block, 0, 1) : (Starts){0};
    for (int p = 0; p < w->phases; p++)
        make_phase(&w->phase[p], pass->block, p, w->hoisted ? &starts : NULL, 0, 1);
    begin_steps(&w->s, job, chunk, at);
}

/* Steps i0..i1. If the input's product is hoisted, the steps' start values lie row by row from `start` on, `by` floats
 * apart. */
static void walk(Walk *w, ptrdiff_t i0, ptrdiff_t i1, const float *start, ptrdiff_t by) {
    const fl_forward_job *job = w->job;
    const fl_rows *rows = job->rows;
    const fl_chunk *chunk = w->chunk;
    const fl_pass *pass = &job->passes[chunk->direction];
    const int reverse = pass->block->reverse;
    const fl_spec *e = &pass->block->spec;
    Step *const s = &w->s;
    for (ptrdiff_t i = i0; i < i1; i++) {
        const ptrdiff_t t = step_at(pass, rows->T, i), n = alive(chunk, rows->batch_sizes[t]);
        if (n > 0) {
            const ptrdiff_t row = w->first + chunk->b0;
            const Input in = w->hoisted ? (Input){.start = start} : input_at(rows, e->I, row, t, reverse);
            begin_step(s, job, t, row);
            for (ptrdiff_t j = 0; w->prefetches && j < n * fl_max(by, -by); j += 16)
                __builtin_prefetch(start + n * by + j);
            for (int p = 0; p < w->phases; p++)
                run_phase(&w->phase[p], s, n, &in, job, i);
            if (w->dense)
                swap_states(s);
            else /* ragged: rows that are not alive keep their h in place, so it is copied */
                memcpy(s->h, s->h_new, (size_t)(n * e->R) * sizeof(float));
            start += w->hoisted ? n * by : 0;
        }
        if (job->row_map)
            give_zeros(job, chunk, t, n);
        w->first += to_next(rows, t, reverse);
    }
}

static void end_walk(Walk *w) {
    const fl_chunk *chunk = w->chunk;
    if (w->s.h != chunk->h)
        memcpy(chunk->h, w->s.h, (size_t)((chunk->b1 - chunk->b0) * w->s.k->spec.R) * sizeof(float));
}

/* ---------------------------------------------------------------------------------------------------- tasks: by rows */

/* Start values for a chunk's steps from the i-th on, in walking order, as many as there is room for. `first` is the i-th
 * step's first packed row. Returns the step after them. */
static ptrdiff_t hoist_stretch(const fl_forward_job *job, const fl_chunk *chunk, ptrdiff_t i, ptrdiff_t first,
                               const Integers *of_x) {
    const fl_pass *pass = &job->passes[chunk->direction];
    const int reverse = pass->block->reverse;
    const fl_rows *rows = job->rows;
    const int64_t *sizes = rows->batch_sizes;
    const ptrdiff_t I = pass->block->spec.I;
    const int contiguous = !reverse && chunk->b0 == 0 && chunk->b1 == sizes[0];
    ptrdiff_t count = 0, row = first + chunk->b0, next = i;
    for (; next < rows->T; next++) {
        const ptrdiff_t t = step_at(pass, rows->T, next), n = alive(chunk, sizes[t]);
        if (count > 0 && count + n > chunk->hoisted_rows)
            break;
        if (!contiguous)
            memcpy(chunk->gathered + count * I, rows->x + row * I, (size_t)(n * I) * sizeof(float));
        count += n;
        row += to_next(rows, t, reverse);
    }
    const Starts starts = starts_of(pass->block, 0, 1);
    const float *x = contiguous ? rows->x + first * I : chunk->gathered;
    hoisted_product(pass->block, x, count, chunk->start, &starts, 0, 1, of_x);
    return next;
}

/* FL_CHUNK */
static void do_chunk(const fl_forward_job *job, const fl_task *task) {
    const fl_chunk *chunk = &job->plan->chunks[task->chunk];
    const ptrdiff_t width = start_width(job->passes[chunk->direction].block);
    Walk w;
    begin_walk(&w, job, chunk, 0);
    for (ptrdiff_t i = task->i0, next = task->i1; i < task->i1; i = next) {
        if (w.hoisted)
            next = hoist_stretch(job, chunk, i, w.first, &w.s.of_x);
        walk(&w, i, next, chunk->start, width);
    }
    end_walk(&w);
}

/* -------------------------------------------------------------------------- tasks: dense batches, pipelined or by units */

/* The layout of a task's start values. By units each part has rows of its own; in a pipeline parts fill the same rows. */
static Starts task_starts(const fl_forward_job *job, const fl_block *k, const fl_task *task) {
    return job->plan->split == FL_BY_UNITS ? starts_of(k, task->part, task->parts) : starts_of(k, 0, 1);
}

/* Where a task's start values begin. */
static float *start_of(const fl_forward_job *job, const fl_chunk *chunk, const fl_task *task, const Starts *starts) {
    const ptrdiff_t rows = job->plan->stretch * chunk->b1;
    if (job->plan->split == FL_BY_UNITS)
        return chunk->start + rows * starts->before + task->part * FL_APART;
    return chunk->start + task->half * rows * starts->width;
}

/* FL_HOIST */
static void do_hoist(const fl_forward_job *job, const fl_task *task) {
    const fl_chunk *chunk = &job->plan->chunks[task->chunk];
    const fl_pass *pass = &job->passes[chunk->direction];
    const fl_block *k = pass->block;
    const Starts starts = task_starts(job, k, task);
    const ptrdiff_t B = chunk->b1, t0 = first_of(pass, job->rows->T, task->i0, task->i1);
    Integers of_x, of_h;
    place_integers(k, chunk, task->part, &of_x, &of_h);
    hoisted_product(k, job->rows->x + t0 * B * k->spec.I, (task->i1 - task->i0) * B,
                    start_of(job, chunk, task, &starts), &starts, task->part, task->parts, &of_x);
}

/* FL_WALK: a stretch of one sequence. h alternates between two places from step to step. */
static void do_walk(const fl_forward_job *job, const fl_task *task) {
    const fl_chunk *chunk = &job->plan->chunks[task->chunk];
    const fl_pass *pass = &job->passes[chunk->direction];
    const Starts starts = starts_of(pass->block, 0, 1);
    const float *const start = start_of(job, chunk, task, &starts);
    Walk w;
    begin_walk(&w, job, chunk, FL_WALKER);
    w.prefetches = 1;
    w.first = step_at(pass, job->rows->T, task->i0);
    if (task->i0 & 1)
        swap_states(&w.s);
    if (pass->block->reverse)
        walk(&w, task->i0, task->i1, start + (task->i1 - task->i0 - 1) * starts.width, -starts.width);
    else
        walk(&w, task->i0, task->i1, start, starts.width);
    if (task->i1 == job->rows->T)
        end_walk(&w);
}

/* Columns u0..u1 of B rows of H. */
static void copy_columns(float *to, const float *from, ptrdiff_t B, ptrdiff_t H, ptrdiff_t u0, ptrdiff_t u1) {
    for (ptrdiff_t b = 0; b < B; b++)
        memcpy(to + b * H + u0, from + b * H + u0, (size_t)(fl_min(H, u1) - u0) * sizeof *to);
}

/* After a barrier: the lines of h that other workers have written, all at once and not one by one; and the lines of h_new
 * that this phase will write, which other workers hold because they have read them. */
static void prefetch_states(const fl_forward_job *job, const Step *s, ptrdiff_t B, const fl_task *task,
                            const Product *q) {
    const fl_spec *e = &s->k->spec;
    for (ptrdiff_t j = 0; j < fl_min(B * e->R, FL_PREFETCH_H); j += 16)
        __builtin_prefetch(s->h + j);
    const int gives_h = task->phase == job->plan->phases - 1;
    const ptrdiff_t units = e->kind == FL_RNN || job->plan->phases > 1 ? 4 * VL : VL; /* of a panel that gives h' */
    for (ptrdiff_t u = q->first_panel * units; gives_h && u < fl_min(e->R, q->end_panel * units); u += 16)
        __builtin_prefetch(s->h_new + u, 1);
}

/* A part's share of one phase of step i. h alternates between two places, so that no worker waits for a copy. Each part
 * has its own copy of c, if the chunk has copies: it takes it at the first step and gives its columns back at the last. */
static void run_part(const fl_forward_job *job, const fl_task *task, Phase *phase, const Input *in, ptrdiff_t t) {
    const fl_chunk *chunk = &job->plan->chunks[task->chunk];
    const fl_pass *pass = &job->passes[chunk->direction];
    const ptrdiff_t T = job->rows->T, B = chunk->b1, H = pass->block->spec.H, i = task->i0;
    const Product *q = &phase->product;
    Step s;
    begin_steps(&s, job, chunk, task->part);
    begin_step(&s, job, t, t * B);
    if (i & 1)
        swap_states(&s);
    prefetch_states(job, &s, B, task, q);
    const int copied = s.c != pass->c, of_c = copied && task->phase == 0;
    s.c += copied ? task->part * fl_copy_of_c(B, H) : 0;
    if (of_c && i == 0)
        memcpy(s.c, pass->c, (size_t)(B * H) * sizeof *s.c);
    run_phase(phase, &s, B, in, job, i);
    if (of_c && i == T - 1)
        copy_columns(pass->c, s.c, B, H, q->first_panel * VL, q->end_panel * VL);
}

/* FL_PHASE */
static void do_phase(const fl_forward_job *job, const fl_task *task) {
    const fl_chunk *chunk = &job->plan->chunks[task->chunk];
    const fl_pass *pass = &job->passes[chunk->direction];
    const fl_block *k = pass->block;
    const fl_rows *rows = job->rows;
    const ptrdiff_t B = chunk->b1, t = step_at(pass, rows->T, task->i0);
    const int hoists = job->plan->hoists;
    const Starts starts = hoists ? task_starts(job, k, task) : (Starts){0};
    Input in;
    if (hoists) {
        const ptrdiff_t row = (t - first_of(pass, rows->T, task->begin, task->end)) * B; /* within the stretch */
        in = (Input){.start = start_of(job, chunk, task, &starts) + row * starts.width};
    } else {
        in = input_at(rows, k->spec.I, t * B, t, k->reverse);
    }
    Phase phase;
    make_phase(&phase, k, task->phase, hoists ? &starts : NULL, task->part, task->parts);
    run_part(job, task, &phase, &in, t);
}

/* A piece of a forward call. */
static void forward(void *arg, int step, int piece, int worker) {
    (void)worker;
    const fl_forward_job *job = arg;
    const fl_task task = fl_decode(job->plan, step, piece);
    switch (task.kind) {
    case FL_IDLE: break;
    case FL_CHUNK: do_chunk(job, &task); break;
    case FL_HOIST: do_hoist(job, &task); break;
    case FL_WALK: do_walk(job, &task); break;
    case FL_PHASE: do_phase(job, &task); break;
    }
}
