/* optimisers.c: entry points of the optimisers, and plain gradient descent on some columns of a matrix. */
#include "internal.h"

ptrdiff_t fl_blocks(const fl_span *spans, int count) {
    ptrdiff_t blocks = 0;
    for (int i = 0; i < count; i++)
        blocks += fl_ceil_div(spans[i].n, FL_SPAN_BLOCK);
    return blocks;
}

static void run_blocks(fl_piece_fn fn, fl_spans_job *job, int count, int threads) {
    const ptrdiff_t blocks = fl_blocks(job->spans, count);
    fl_run(fn, job, 1, (int)blocks, blocks < FL_LEAST_BLOCKS ? 1 : threads);
}

void fl_update(const fl_rule *rule, const fl_span *spans, int count, int threads) {
    fl_spans_job job = {.spans = spans, .rule = rule};
    run_blocks(fl_isa_at(fl_isa_chosen())->span_update, &job, count, threads);
}

double fl_square_sum(const fl_span *spans, int count, double *sums, int threads) {
    fl_spans_job job = {.spans = spans, .sums = sums};
    run_blocks(fl_isa_at(fl_isa_chosen())->span_squares, &job, count, threads);
    double sum = 0;
    for (ptrdiff_t i = 0, blocks = fl_blocks(spans, count); i < blocks; i++)
        sum += sums[i];
    return sum;
}

void fl_scale(const fl_span *spans, int count, float factor, int threads) {
    fl_spans_job job = {.spans = spans, .factor = factor};
    run_blocks(fl_isa_at(fl_isa_chosen())->span_scale, &job, count, threads);
}

/* ----------------------------------------------------------------------------------------------------------- columns */

typedef struct {
    float *p;           /* (J, V) */
    const float *rows;  /* (n, J) */
    const int64_t *ids; /* (n) */
    ptrdiff_t J, V, n;
    float lr;
} columns_job;

/* Rows of p, FL_COLUMN_PIECE of them. The gradient is read along its rows, through a tile: its columns share a few sets
 * of the cache. */
static void update_columns(void *arg, int step, int piece, int worker) {
    (void)step, (void)worker;
    const columns_job *job = arg;
    const ptrdiff_t J = job->J, j0 = piece * (ptrdiff_t)FL_COLUMN_PIECE, count = fl_min(FL_COLUMN_PIECE, J - j0);
    float tile[FL_COLUMN_PIECE][FL_COLUMN_IDS];
    for (ptrdiff_t k0 = 0; k0 < job->n; k0 += FL_COLUMN_IDS) {
        const ptrdiff_t n = fl_min(FL_COLUMN_IDS, job->n - k0);
        const int64_t *const ids = job->ids + k0;
        for (ptrdiff_t k = 0; k < n; k++)
            for (ptrdiff_t j = 0; j < count; j++)
                tile[j][k] = job->lr * job->rows[(k0 + k) * J + j0 + j];
        for (ptrdiff_t j = 0; j < count; j++)
            for (ptrdiff_t k = 0; k < n; k++)
                job->p[(j0 + j) * job->V + ids[k]] -= tile[j][k];
    }
}

void fl_update_columns(float *p, ptrdiff_t J, ptrdiff_t V, const int64_t *ids, ptrdiff_t n, const float *rows, float lr,
                       int threads) {
    columns_job job = {.p = p, .rows = rows, .ids = ids, .J = J, .V = V, .n = n, .lr = lr};
    const int pieces = (int)fl_ceil_div(J, FL_COLUMN_PIECE);
    fl_run(update_columns, &job, 1, pieces, J * n < FL_LEAST_BLOCKS * FL_SPAN_BLOCK ? 1 : threads);
}
