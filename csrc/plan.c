/* plan.c: how a recurrent call is cut. Decides, and computes nothing. */
#include <stdatomic.h>

#include "internal.h"

const ptrdiff_t fl_locked_work = FL_LOCKED_WORK, fl_row_work = FL_ROW_WORK;

double fl_integers_speed(int storage) {
    return storage == FL_INT8 ? FL_INT8_SPEED : storage == FL_INT16 ? FL_INT16_SPEED : 1;
}

/* -------------------------------------------------------------------------------------------------------------- work */

ptrdiff_t fl_row_count(const fl_rows *rows) {
    ptrdiff_t N = 0;
    for (ptrdiff_t t = 0; t < rows->T; t++)
        N += rows->batch_sizes[t];
    return N;
}

/* Multiply-adds of one row of one direction: of its input, and in all, as so many of floats. Token ids have no product with
 * the input matrix. */
static double of_matrix(const fl_block *k, ptrdiff_t K) {
    return fl_gate_count(&k->spec) * (double)k->spec.H * (double)K / fl_integers_speed(k->storage);
}
static double input_work(const fl_block *k) { return of_matrix(k, k->spec.I); }
double fl_work_of_row(const fl_block *k, int of_ids) { return of_matrix(k, k->spec.R) + (of_ids ? 0 : input_work(k)); }

int fl_worthwhile(const fl_block *block, int of_ids, ptrdiff_t N, int D, int threads) {
    return (double)N * D * fl_work_of_row(block, of_ids) < FL_LEAST_WORK ? 1 : threads;
}

/* ------------------------------------------------------------------------------------------------------------ chunks */

/* Cuts batch rows into at most `parts` chunks for each direction, with about equal numbers of packed rows. Returns the
 * number of chunks. */
static int cut_rows(fl_chunk *chunks, const fl_rows *rows, ptrdiff_t N, int D, ptrdiff_t parts) {
    const ptrdiff_t B = rows->batch_sizes[0];
    parts = fl_max(1, fl_min(fl_min(B, parts), FL_MAX_CHUNKS / D));
    ptrdiff_t steps = rows->T; /* of sequence b */
    ptrdiff_t done = 0, b = 0; /* packed rows of the sequences before b */
    int count = 0;
    for (ptrdiff_t part = 1; part <= parts; part++) {
        const ptrdiff_t b0 = b;
        for (; b < B - (parts - part) && (b == b0 || part == parts || done < N * part / parts); b++, done += steps)
            while (rows->batch_sizes[steps - 1] <= b)
                steps--;
        chunks[count++] = (fl_chunk){.b0 = b0, .b1 = b};
    }
    for (int d = 1; d < D; d++)
        for (int i = 0; i < parts; i++) {
            chunks[count] = chunks[i];
            chunks[count++].direction = d;
        }
    return count;
}

/* ------------------------------------------------------------------------------------------------ how quick barriers are */

/* Steps split by units although they are short are tried from this moment on (fl_now). One slow call says little: its
 * workers may have been held up by anything. */
static atomic_uint_least64_t cheap_steps_from;
static atomic_int slow_calls;

static int barriers_may_be_cheap(void) { return fl_now() >= cheap_steps_from; }

void fl_note_barriers(const fl_plan *plan, uint64_t waited_ns) {
    /* Waited 0: no other thread took part, so there is nothing to learn. */
    if (plan->split != FL_BY_UNITS || !plan->cheap_steps || waited_ns == 0)
        return;
    slow_calls = waited_ns > (uint64_t)plan->steps * FL_CHEAP_BARRIER_NS ? slow_calls + 1 : 0;
    if (slow_calls >= FL_SLOW_CALLS) {
        slow_calls = 0;
        cheap_steps_from = fl_now() + FL_SLOW_REST_NS;
    }
}

/* ----------------------------------------------------------------------------------------------------------- forward */

/* What decides how a forward call is cut. */
typedef struct {
    const fl_block *block;
    const fl_isa *isa;
    const fl_rows *rows;
    ptrdiff_t N, B;
    int D, threads;
    double row_work; /* multiply-adds of a row */
} request;

/* Whether a chunk of so many rows reads all weights for much less work than they could serve: for fewer than two tiles,
 * unless a core's own cache holds the weights and the rows nearly fill a tile. */
static int too_few(const request *q, ptrdiff_t rows) {
    const int one_tile = rows >= 4 && rows <= q->isa->rows;
    return q->row_work > FL_LARGE_ROW || (rows < 2 * q->isa->rows && !(one_tile && q->row_work <= FL_SMALL_ROW));
}

/* Whether steps are long enough to be split by units. */
static int steps_are_long(const request *q, int hoists, fl_plan *plan) {
    if (q->B > 1)
        return (double)q->B * q->row_work >= FL_LEAST_STEP;
    const double step = q->row_work - (hoists ? input_work(q->block) : 0);
    plan->cheap_steps = step < FL_LEAST_STEP_OF_ONE;
    return !plan->cheap_steps || (step >= FL_CHEAP_STEP_OF_ONE && barriers_may_be_cheap());
}

/* Parts of a direction that still have some panels each: four or, of one sequence, which cannot be cut into rows, two. */
static ptrdiff_t most_parts(const request *q) {
    const ptrdiff_t H = q->block->spec.H, vl = q->isa->vl;
    return fl_max(H / (4 * vl), q->B == 1 && H >= 5 * vl ? 2 : 1);
}

static int by_units(const request *q, int hoists, fl_plan *plan) {
    const int dense = q->rows->batch_sizes[q->rows->T - 1] == q->B;
    const int rows = (int)q->B / ((q->threads + q->D - 1) / q->D);
    return dense && q->threads >= 2 * q->D && too_few(q, rows) && most_parts(q) >= 2 && steps_are_long(q, hoists, plan);
}

static int pipelined(const request *q) {
    const double speed = fl_integers_speed(q->block->storage), depth = (double)q->block->spec.I / speed;
    return q->threads > 1 && q->D == 1 && q->B == 1 && q->rows->T > 1 && q->rows->x &&
           (speed == 1 || depth >= FL_INTEGERS_DEPTH) && (double)q->N * input_work(q->block) >= FL_LEAST_INPUT;
}

static void plan_units(fl_plan *plan, const request *q, ptrdiff_t hoisted_rows) {
    plan->split = FL_BY_UNITS;
    plan->parts = (int)fl_min(q->threads / q->D, most_parts(q));
    plan->hoists = hoisted_rows > 0;
    plan->stretch = plan->hoists ? fl_min(plan->T, hoisted_rows / q->B) : plan->T;
    plan->chunk_count = cut_rows(plan->chunks, q->rows, q->N, q->D, 1);
    plan->threads = q->threads;
    plan->pieces = plan->chunk_count * plan->parts;
    plan->steps = (int)(plan->T * plan->phases + (plan->hoists ? fl_ceil_div(plan->T, plan->stretch) : 0));
}

static void plan_pipeline(fl_plan *plan, const request *q, ptrdiff_t hoisted_rows, ptrdiff_t start_width) {
    const fl_spec *s = &q->block->spec;
    const ptrdiff_t worth = fl_max(1, FL_PIPELINE_WORK / (start_width * (s->I + s->R)));
    plan->split = FL_PIPELINED;
    plan->hoists = 1;
    plan->stretch =
        fl_min(fl_min(plan->T, hoisted_rows / 2), worth); /* two stretches' start values are there at once */
    plan->chunk_count = cut_rows(plan->chunks, q->rows, q->N, 1, 1);
    plan->threads = plan->pieces = 2;
    plan->steps = 1 + (int)fl_ceil_div(plan->T, plan->stretch);
}

static void plan_rows(fl_plan *plan, const request *q) {
    plan->split = FL_BY_ROWS;
    plan->chunk_count = cut_rows(plan->chunks, q->rows, q->N, q->D, (q->threads + q->D - 1) / q->D);
    plan->threads = plan->chunk_count > 1 ? q->threads : 1;
    plan->pieces = plan->chunk_count;
    plan->steps = 1;
}

/* Directions first (no barriers), then batch rows (no barriers), then, for dense batches of too few rows, hidden units. */
void fl_plan_forward(fl_plan *plan, const fl_block *block, const fl_rows *rows, ptrdiff_t N, int D, int threads) {
    const fl_spec *s = &block->spec;
    const int of_ids = rows->ids != NULL;
    const request q = {.block = block,
                       .isa = fl_isa_at(block->isa),
                       .rows = rows,
                       .N = N,
                       .B = rows->batch_sizes[0],
                       .D = D,
                       .threads = fl_worthwhile(block, of_ids, N, D, threads),
                       .row_work = fl_work_of_row(block, of_ids)};
    plan->parts = 1, plan->cheap_steps = plan->hoists = 0;
    plan->phases = fl_phase_count(s);
    plan->T = plan->stretch = rows->T;
    if (q.threads == 1) {
        plan_rows(plan, &q);
        return;
    }
    const int hoists = fl_hoists(rows, q.B, q.isa->rows);
    const ptrdiff_t width = hoists ? q.isa->start_width(block) : 0;
    const ptrdiff_t hoisted_rows = hoists ? fl_hoisted_rows(q.B, width, s->I) : 0;
    if (by_units(&q, hoists, plan))
        plan_units(plan, &q, hoisted_rows);
    else if (pipelined(&q))
        plan_pipeline(plan, &q, hoisted_rows, width);
    else
        plan_rows(plan, &q);
}

/* ---------------------------------------------------------------------------------------------------------- backward */

void fl_plan_backward(fl_back_plan *plan, const fl_block *block, const fl_rows *rows, ptrdiff_t N, int has_dx,
                      int threads) {
    const int of_ids = rows->ids != NULL;
    const int walks_alone = rows->batch_sizes[0] == 1 && (double)N * fl_work_of_row(block, of_ids) < FL_LEAST_SUMS;
    plan->threads = threads;
    plan->pieces = walks_alone ? 1 : fl_worthwhile(block, of_ids, N, 2, threads);
    plan->chunk_count = cut_rows(plan->chunks, rows, N, 1, plan->pieces);
    /* Another thread would have to fetch the gate gradients first. Not for chunks of so few rows that the input's panels
     * would be read for little. */
    plan->walks_with_dx =
        has_dx && plan->chunk_count > 1 && rows->batch_sizes[0] >= 2 * fl_isa_at(block->isa)->rows * plan->chunk_count;
}

int fl_stretch_limit(const fl_rows *rows, ptrdiff_t N) { return (int)fl_min(rows->T, N / FL_STRETCH_ROWS + 1); }

int fl_find_stretches(fl_stretch *stretches, const fl_rows *rows, ptrdiff_t N, int reverse) {
    int count = 0;
    fl_stretch s = {rows->T, rows->T, N, N};
    if (reverse)
        s = (fl_stretch){0, 0, 0, 0};
    while (reverse ? s.t1 < rows->T : s.t0 > 0) {
        if (reverse)
            s.row1 += rows->batch_sizes[s.t1++];
        else
            s.row0 -= rows->batch_sizes[--s.t0];
        const int last = reverse ? s.t1 == rows->T : s.t0 == 0;
        if (s.row1 - s.row0 < FL_STRETCH_ROWS && !last)
            continue;
        stretches[count++] = s;
        s = reverse ? (fl_stretch){s.t1, s.t1, s.row1, s.row1} : (fl_stretch){s.t0, s.t0, s.row0, s.row0};
    }
    return count;
}
