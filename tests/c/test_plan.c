/* test_plan.c: plans and their decoding (csrc/plan.h), without any kernel. `make test-c` runs it.
 *
 * Every plan is decoded piece by piece in the order in which the pool runs it. Every phase of every step of every row and
 * panel must come exactly once and in order, after the input's product of its step. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

enum { MOST_T = 100, MOST_PARTS = 16, PANELS = 37 };

static int failures;
static char subject[200];

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what) && failures++ < 20)                                                                                \
            printf("test_plan.c:%d: %s: failed: %s\n", __LINE__, subject, #what);                                      \
    } while (0)

/* What plan.c needs of the files that are not here: an instruction set's sizes, and the time. */
static ptrdiff_t start_width(const fl_block *block) { return fl_gate_count(&block->spec) * block->spec.H; }
static fl_isa isa = {.name = "none", .start_width = start_width};
const fl_isa *fl_isa_at(int index) {
    (void)index;
    return &isa;
}
static uint64_t now;
uint64_t fl_now(void) { return now; }

/* ------------------------------------------------------------------------------------------------------------- shares */

static void check_shares(void) {
    for (ptrdiff_t range = 1; range < 50; range++)
        for (int grain = 1; grain <= 6; grain++)
            for (int parts = 1; parts <= MOST_PARTS; parts++) {
                snprintf(subject, sizeof subject, "range %d, grain %d, %d parts", (int)range, grain, parts);
                ptrdiff_t next = 0, from, to;
                for (int part = 0; part < parts; part++, next = to) {
                    fl_share(range, grain, part, parts, &from, &to);
                    CHECK(from == next && to >= from && (from % grain == 0 || from == range));
                }
                CHECK(next == range);
            }
}

/* ------------------------------------------------------------------------------------------------------------ forward */

/* How far each panel of each direction has come: phases that are done, counted from the first step on. */
typedef struct {
    ptrdiff_t done[2][PANELS];
    ptrdiff_t hoisted[2][PANELS]; /* steps whose input's product is taken */
    ptrdiff_t overwritten[2][2];  /* pipelined: the first step whose start values a half no longer holds */
} progress;

static void take_panels(const fl_task *task, ptrdiff_t *counts, ptrdiff_t before, ptrdiff_t after) {
    ptrdiff_t from, to;
    fl_share(PANELS, 1, task->part, task->parts, &from, &to);
    for (ptrdiff_t p = from; p < to; p++) {
        CHECK(counts[p] == before);
        counts[p] = after;
    }
}

/* One task, after all pieces of the pool's steps before. `complete` is the progress at the last barrier. */
static void do_task(const fl_plan *plan, const fl_task *task, progress *now_done, const progress *complete) {
    const int d = task->chunk;
    CHECK(0 <= task->i0 && task->i0 <= task->i1 && task->i1 <= plan->T);
    CHECK(d < plan->chunk_count && task->part < task->parts);
    if (task->kind == FL_CHUNK) {
        CHECK(task->i0 == 0 && task->i1 == plan->T && task->parts == 1);
        take_panels(task, now_done->done[d], 0, plan->T * plan->phases);
    } else if (task->kind == FL_HOIST) {
        take_panels(task, now_done->hoisted[d], task->i0, task->i1);
        CHECK(task->i1 - task->i0 <= plan->stretch);
    } else if (task->kind == FL_WALK) {
        for (int p = 0; p < PANELS; p++)
            CHECK(complete->hoisted[d][p] >= task->i1);
        CHECK(task->half == (int)(task->i0 / plan->stretch % 2));
        take_panels(task, now_done->done[d], task->i0 * plan->phases, task->i1 * plan->phases);
    } else if (task->kind == FL_PHASE) {
        const ptrdiff_t before = task->i0 * plan->phases + task->phase;
        for (int p = 0; p < PANELS; p++)
            CHECK(complete->done[d][p] == before); /* all parts have met since */
        take_panels(task, now_done->done[d], before, before + 1);
        CHECK(task->begin <= task->i0 && task->i0 < task->end && task->begin % plan->stretch == 0);
        ptrdiff_t from, to;
        fl_share(PANELS, 1, task->part, task->parts, &from, &to);
        for (ptrdiff_t p = from; plan->hoists && p < to; p++)
            CHECK(complete->hoisted[d][p] == task->end);
    }
}

/* Pipelined: no task takes the half of the start values that another one of the same step reads. */
static void check_halves(const fl_plan *plan, int step) {
    const fl_task walks = fl_decode(plan, step, 0), hoists = fl_decode(plan, step, 1);
    if (walks.kind == FL_WALK && hoists.kind == FL_HOIST)
        CHECK(walks.half != hoists.half);
}

static void check_forward(const fl_plan *plan) {
    static progress done, complete;
    memset(&done, 0, sizeof done);
    for (int step = 0; step < plan->steps; step++) {
        complete = done;
        for (int piece = 0; piece < plan->pieces; piece++) {
            fl_task task = fl_decode(plan, step, piece);
            if (plan->split == FL_BY_ROWS) { /* chunks of rows share nothing: each is checked by itself */
                CHECK(task.chunk == piece);
                memset(&done, 0, sizeof done);
                task.chunk = 0;
            }
            if (task.kind != FL_IDLE)
                do_task(plan, &task, &done, &complete);
        }
        if (plan->split == FL_PIPELINED)
            check_halves(plan, step);
    }
    const int directions = plan->split == FL_BY_ROWS ? 1 : plan->chunk_count;
    for (int d = 0; d < directions; d++)
        for (int p = 0; p < PANELS; p++)
            CHECK(done.done[d][p] == plan->T * plan->phases);
}

/* Every way of decoding, whatever fl_plan_forward would choose. */
static void check_decoding(void) {
    for (ptrdiff_t T = 1; T <= 13; T++)
        for (ptrdiff_t stretch = 1; stretch <= T; stretch++) {
            fl_chunk chunks[2] = {{.b1 = 1}, {.direction = 1, .b1 = 1}};
            fl_plan pair = {.split = FL_PIPELINED, .pieces = 2, .hoists = 1, .phases = 1, .T = T, .stretch = stretch};
            pair.chunks = chunks, pair.chunk_count = 1, pair.steps = 1 + (int)fl_ceil_div(T, stretch);
            snprintf(subject, sizeof subject, "pipelined, T=%d, stretch %d", (int)T, (int)stretch);
            check_forward(&pair);
            for (int n = 0; n < 2 * 2 * 2 * 6; n++) {
                fl_plan plan = {.split = FL_BY_UNITS, .hoists = n % 2, .phases = 1 + n / 2 % 2, .T = T};
                plan.chunk_count = 1 + n / 4 % 2, plan.parts = 1 + n / 8, plan.chunks = chunks;
                plan.stretch = plan.hoists ? stretch : T;
                plan.pieces = plan.chunk_count * plan.parts;
                plan.steps = (int)(T * plan.phases + plan.hoists * fl_ceil_div(T, plan.stretch));
                snprintf(subject, sizeof subject, "by units, T=%d, stretch %d, D=%d, %d parts, %d phases, hoists %d",
                         (int)T, (int)stretch, plan.chunk_count, plan.parts, plan.phases, plan.hoists);
                check_forward(&plan);
            }
        }
}

/* -------------------------------------------------------------------------------------------------------------- plans */

static int64_t sizes[MOST_T];
static fl_rows rows = {.batch_sizes = sizes};

/* Batch sizes from B down to 1, or all B. */
static ptrdiff_t make_rows(ptrdiff_t T, ptrdiff_t B, int ragged, int of_ids) {
    static const float x[1];
    static const int64_t ids[1];
    rows.T = T, rows.x = of_ids ? NULL : x, rows.ids = of_ids ? ids : NULL;
    for (ptrdiff_t t = 0; t < T; t++)
        sizes[t] = ragged ? B - (B - 1) * t / T : B;
    return fl_row_count(&rows);
}

/* Every batch row of every direction is in exactly one chunk, if there are at least as many rows as chunks. */
static void check_chunks(const fl_chunk *chunks, int count, int D, ptrdiff_t B) {
    ptrdiff_t next = 0;
    for (int i = 0; i < count; i++) {
        CHECK(chunks[i].direction == i / (count / D) && chunks[i].b0 == next && chunks[i].b1 > next);
        next = chunks[i].b1 == B ? 0 : chunks[i].b1;
    }
    CHECK(next == 0 && count % D == 0 && count <= FL_MAX_CHUNKS);
}

static void check_backward(const fl_block *block, ptrdiff_t N, int threads) {
    fl_chunk chunks[FL_MAX_CHUNKS];
    fl_stretch stretches[MOST_T];
    fl_back_plan plan = {.chunks = chunks, .stretches = stretches};
    fl_plan_backward(&plan, block, &rows, N, 1, threads);
    check_chunks(chunks, plan.chunk_count, 1, sizes[0]);
    plan.stretch_count = fl_find_stretches(stretches, &rows, N, block->reverse);
    CHECK(plan.stretch_count <= fl_stretch_limit(&rows, N));
    ptrdiff_t t = block->reverse ? 0 : rows.T, row = block->reverse ? 0 : N;
    for (int i = 0; i < plan.stretch_count; i++) {
        const fl_stretch *s = &stretches[i];
        CHECK(block->reverse ? s->t0 == t && s->row0 == row : s->t1 == t && s->row1 == row);
        ptrdiff_t of_steps = 0;
        for (ptrdiff_t u = s->t0; u < s->t1; u++)
            of_steps += sizes[u];
        CHECK(s->t1 > s->t0 && s->row1 - s->row0 == of_steps);
        t = block->reverse ? s->t1 : s->t0, row = block->reverse ? s->row1 : s->row0;
    }
    CHECK(block->reverse ? t == rows.T && row == N : t == 0 && row == 0);
    CHECK(plan.pieces >= plan.chunk_count);
    for (int step = 0; step < 2 * plan.stretch_count; step++)
        for (int piece = 0; piece < plan.pieces; piece++) {
            const fl_back_task task = fl_decode_back(&plan, step, piece);
            CHECK(task.stretch == step / 2);
            if (step % 2)
                CHECK(task.kind == FL_SUM && task.part == piece && task.parts == plan.pieces);
            else
                CHECK(piece < plan.chunk_count ? task.kind == FL_WALK_BACK && task.chunk == piece
                                               : task.kind == FL_NO_WALK);
        }
}

static int splits[3]; /* plans of each way to split */

static void check_plan(const fl_block *block, ptrdiff_t N, int D, int threads) {
    fl_chunk chunks[FL_MAX_CHUNKS];
    fl_plan plan = {.chunks = chunks};
    fl_plan_forward(&plan, block, &rows, N, D, threads);
    splits[plan.split]++;
    CHECK(plan.threads <= threads && plan.pieces >= 1 && plan.steps >= 1 && plan.T == rows.T);
    check_chunks(chunks, plan.chunk_count, D, sizes[0]);
    check_forward(&plan);
}

static void check_plans(void) {
    static const ptrdiff_t hidden[] = {1, 17, 64, 128, 300, 2000}, batches[] = {1, 2, 5, 12, 40},
                           steps[] = {1, 2, 7, 100};
    for (int n = 0; n < 6 * 5 * 4 * 2 * 2 * 2 * 3; n++) {
        int rest = n;
        const ptrdiff_t H = hidden[rest % 6], B = batches[(rest /= 6) % 5], T = steps[(rest /= 5) % 4];
        const int ragged = (rest /= 4) % 2, of_ids = (rest /= 2) % 2, D = 1 + (rest /= 2) % 2, kind = rest / 2;
        fl_block block = {.spec = {.kind = kind, .I = H, .H = H, .R = H, .reset_after = B != 5}};
        isa.vl = n % 2 ? 16 : 8, isa.rows = n % 2 ? 6 : 3;
        for (int threads = 1; threads <= 9; threads++) {
            block.reverse = threads % 2;
            snprintf(subject, sizeof subject, "kind %d, H=%d, B=%d, T=%d, D=%d, ragged %d, ids %d, %d threads", kind,
                     (int)H, (int)B, (int)T, D, ragged, of_ids, threads);
            const ptrdiff_t N = make_rows(T, B, ragged, of_ids);
            check_plan(&block, N, D, threads);
            check_backward(&block, N, threads);
        }
    }
    snprintf(subject, sizeof subject, "all plans");
    CHECK(splits[FL_BY_ROWS] && splits[FL_PIPELINED] && splits[FL_BY_UNITS]);
}

/* Short steps are split by units until calls with slow barriers have come in a row, and again after a rest. */
static void check_cheap_steps(void) {
    fl_chunk chunks[FL_MAX_CHUNKS];
    fl_plan plan = {.chunks = chunks};
    fl_block block = {.spec = {.kind = FL_LSTM, .I = 100, .H = 100, .R = 100}};
    isa.vl = 16, isa.rows = 6;
    const ptrdiff_t N = make_rows(40, 1, 0, 0);
    snprintf(subject, sizeof subject, "cheap steps");
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < FL_SLOW_CALLS; i++) {
            fl_plan_forward(&plan, &block, &rows, N, 1, 2);
            CHECK(plan.split == FL_BY_UNITS && (plan.cheap_steps || FL_LEAST == 0));
            fl_note_barriers(&plan, (uint64_t)plan.steps * FL_CHEAP_BARRIER_NS + 1);
        }
        fl_plan_forward(&plan, &block, &rows, N, 1, 2);
        CHECK(plan.split == (FL_LEAST ? FL_PIPELINED : FL_BY_UNITS));
        now += FL_SLOW_REST_NS;
    }
}

int main(void) {
    check_shares();
    check_decoding();
    check_plans();
    check_cheap_steps();
    printf("plans: %d by rows, %d pipelined, %d by units: %d failed checks\n", splits[FL_BY_ROWS], splits[FL_PIPELINED],
           splits[FL_BY_UNITS], failures);
    return failures > 0;
}
