/* head.h: calls of a dense layer: forward, backward, and with softmax and cross-entropy. Part of kernels.h, whose contract
 * holds here too; U outputs, N rows.
 *
 * Reproducibility. Only the sizes decide in which order a logit, a loss or a gradient is summed: the same bits for every
 * number of threads. */

/* Rows n0..n1 of a call. */
static void dense_product(const fl_dense_call *call, ptrdiff_t n0, ptrdiff_t n1, int part, int parts) {
    const fl_dense *k = call->dense;
    dense_panels(k, call->x + n0 * k->I, n1 - n0, call->logits + n0 * k->U, part, parts);
}

/* Rows are shared out or, where they are few, panels. */
static void dense_forward(void *arg, int step, int piece, int worker) {
    (void)step, (void)worker;
    const fl_dense_job *job = arg;
    const ptrdiff_t N = job->call.N;
    if (N < ROWS * job->pieces) {
        dense_product(&job->call, 0, N, piece, job->pieces);
        return;
    }
    ptrdiff_t n0, n1;
    fl_share(N, ROWS, piece, job->pieces, &n0, &n1);
    for (; n0 < n1; n0 += FL_DENSE_ROWS)
        dense_product(&job->call, n0, fl_min(n1, n0 + FL_DENSE_ROWS), 0, 1);
}

/* Floats of a worker's workspace. */
static ptrdiff_t dense_scratch(const fl_dense *k) {
    const ptrdiff_t outputs = fl_ceil_div(fl_min(FL_DENSE_SUMS, k->U), FL_GRAD_PACK) * FL_GRAD_PACK;
    return FL_GRAD_BLOCK * (outputs + FL_GRAD_C * VL);
}

/* dweight += dy' x, dbias += column sums of dy, for outputs u0..u1. */
static void dense_sums(const fl_dense_call *call, ptrdiff_t u0, ptrdiff_t u1, float *work) {
    const ptrdiff_t I = call->dense->I, U = call->dense->U;
    for (; u0 < u1; u0 += FL_DENSE_SUMS) {
        const Sums s = {.d = call->dy,
                        .ld = U,
                        .j0 = u0,
                        .j1 = fl_min(u1, u0 + FL_DENSE_SUMS),
                        .count = 1,
                        .target = {{call->dweight, I, {call->x, I, NULL}}},
                        .bias = {call->dbias, NULL}};
        sum_rows(&s, 0, call->N, work);
    }
}

/* dx = dy weight for rows n0..n1: the sum over outputs goes by FL_DENSE_DEPTH of them. */
static void dense_dx(const fl_dense_call *call, ptrdiff_t n0, ptrdiff_t n1) {
    const ptrdiff_t I = call->dense->I, U = call->dense->U;
    for (; n0 < n1; n0 += FL_DENSE_ROWS)
        for (ptrdiff_t u = 0; u < U; u += FL_DENSE_DEPTH) {
            const Operand dy = {call->dy + n0 * U + u, U, call->dense->backward + u * padded(I),
                                fl_min(FL_DENSE_DEPTH, U - u)};
            plain_product(call->dx + n0 * I, I, fl_min(FL_DENSE_ROWS, n1 - n0), u > 0, &dy, &absent);
        }
}

static void dense_backward(void *arg, int step, int piece, int worker) {
    (void)step;
    const fl_dense_job *job = arg;
    ptrdiff_t from, to;
    fl_share(job->call.dense->U, FL_GRAD_PACK, piece, job->pieces, &from, &to);
    dense_sums(&job->call, from, to, job->workspace + worker * job->workspace_size);
    fl_share(job->call.N, ROWS, piece, job->pieces, &from, &to);
    dense_dx(&job->call, from, to);
}

/* ------------------------------------------------------------------------------------------------------- cross-entropy */

/* One row of logits becomes factor * (softmax - onehot(target)); returns -log softmax[target]. */
static double row_cross_entropy(float *row, ptrdiff_t n, ptrdiff_t target, double factor) {
    const float right = row[target];
    float max;
    const double total = row_softmax(row, n, factor, &max);
    row[target] -= (float)factor;
    return log(total) - (double)(right - max);
}

/* Step 0: logits, losses and the logits' gradients, shared out by rows; step 1: backward. */
static void dense_cross_entropy(void *arg, int step, int piece, int worker) {
    const fl_dense_job *job = arg;
    const fl_dense_call *call = &job->call;
    const ptrdiff_t U = call->dense->U;
    if (step == 1) {
        dense_backward(arg, 0, piece, worker);
        return;
    }
    ptrdiff_t n0, n1;
    fl_share(call->N, ROWS, piece, job->pieces, &n0, &n1);
    for (ptrdiff_t end; n0 < n1; n0 = end) {
        end = fl_min(n1, n0 + FL_DENSE_ROWS);
        dense_product(call, n0, end, 0, 1);
        for (ptrdiff_t n = n0; n < end; n++)
            call->losses[n] = row_cross_entropy(call->logits + n * U, U, call->targets[n], call->factor);
    }
}
