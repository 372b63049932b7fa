/* train.h: what training needs beside the recurrent layers: the dense layer with its fused softmax and cross-entropy,
 * and the optimisers. The end of kernels.h, whose contract and words hold here too; further U outputs, N rows.
 *
 * Bits. Every logit, loss and gradient is computed in an order that only the sizes decide: the same bits for every
 * number of threads. The optimisers go number by number, in plain C that the compiler turns into vectors; without fused
 * multiply-adds and with correctly rounded roots they have the same bits for every instruction set, NumPy's. */

/* --------------------------------------------------------------------------------------------------------- dense layer */

enum {
    DENSE_ROWS = 96,   /* rows that go through a product together: they then stay in the second-level cache, */
    DENSE_DEPTH = 512, /* as does what is multiplied with them: depth of a piece of dx's panels, */
    DENSE_SUMS = 512   /* outputs whose weights' gradients are summed together */
};

/* The panels of dx, one set for each stretch of outputs, one after another. */
static ptrdiff_t dense_size(const fl_dense *k, int backward) {
    return backward ? k->U * padded(k->I) : (k->I + 1) * padded(k->U);
}

static void dense_pack(fl_dense *k, const float *weight, const float *bias, int backward, float *to) {
    const ptrdiff_t I = k->I, U = k->U;
    if (backward) {
        k->backward = to;
        for (ptrdiff_t u = 0; u < U; u += DENSE_DEPTH)
            to = pack_plain(to, weight + u * I, I, fl_min(DENSE_DEPTH, U - u), 1, I);
        return;
    }
    k->forward = to;
    to = pack_plain(to, weight, U, I, I, 1);
    k->bias = bias ? to : NULL;
    for (ptrdiff_t u = 0; bias && u < padded(U); u++)
        to[u] = u < U ? bias[u] : 0.0f;
}

/* y = x weight' + bias for rows n0..n1 and the share `part` of the panels. */
static void dense_product(const fl_dense_job *job, ptrdiff_t n0, ptrdiff_t n1, int part, int parts) {
    const fl_dense *k = job->dense;
    Product q = {.start = k->bias, .a = job->x + n0 * k->I, .lda = k->I, .wa = k->forward, .ka = k->I};
    plain_shape(&q, k->U);
    share(q.panels, 1, part, parts, &q.first_panel, &q.end_panel);
    const Destination d = {job->y + n0 * k->U, k->U, k->U};
    product(&q, n1 - n0, &store_plain_epilogue, &d);
}

/* Rows are shared out or, where there are only a few, panels. */
static void dense_forward(void *arg, int step, int piece, int worker) {
    (void)step, (void)worker;
    const fl_dense_job *job = arg;
    if (job->N < ROWS * job->pieces) {
        dense_product(job, 0, job->N, piece, job->pieces);
        return;
    }
    ptrdiff_t n0, n1;
    share(job->N, ROWS, piece, job->pieces, &n0, &n1);
    for (; n0 < n1; n0 += DENSE_ROWS)
        dense_product(job, n0, fl_min(n1, n0 + DENSE_ROWS), 0, 1);
}

/* Floats of workspace of each worker. */
static ptrdiff_t dense_scratch(const fl_dense *k) {
    return GRAD_BLOCK * (ceil_div(fl_min(DENSE_SUMS, k->U), GRAD_PACK) * GRAD_PACK + GRAD_C * VL);
}

/* dweight += dy' x, dbias += column sums of dy, for outputs u0..u1. */
static void dense_sums(const fl_dense_job *job, ptrdiff_t u0, ptrdiff_t u1, float *work) {
    const ptrdiff_t I = job->dense->I, U = job->dense->U;
    for (; u0 < u1; u0 += DENSE_SUMS) {
        const Sums s = {.d = job->dy,
                        .ld = U,
                        .j0 = u0,
                        .j1 = fl_min(u1, u0 + DENSE_SUMS),
                        .count = 1,
                        .target = {{job->dweight, I, {job->x, I, NULL}}},
                        .bias = {job->dbias, NULL}};
        sum_rows(&s, 0, job->N, work);
    }
}

/* dx = dy weight for rows n0..n1: the sum over outputs goes stretch by stretch. */
static void dense_dx(const fl_dense_job *job, ptrdiff_t n0, ptrdiff_t n1) {
    const ptrdiff_t I = job->dense->I, U = job->dense->U;
    for (; n0 < n1; n0 += DENSE_ROWS)
        for (ptrdiff_t u = 0; u < U; u += DENSE_DEPTH)
            back_product(job->dx + n0 * I, I, fl_min(DENSE_ROWS, n1 - n0), u > 0, job->dy + n0 * U + u, U,
                         job->dense->backward + u * padded(I), fl_min(DENSE_DEPTH, U - u), NULL, 0, NULL, 0);
}

static void dense_backward(void *arg, int step, int piece, int worker) {
    (void)step;
    const fl_dense_job *job = arg;
    ptrdiff_t from, to;
    share(job->dense->U, GRAD_PACK, piece, job->pieces, &from, &to);
    dense_sums(job, from, to, job->workspace + worker * job->workspace_size);
    share(job->N, ROWS, piece, job->pieces, &from, &to);
    dense_dx(job, from, to);
}

/* ----------------------------------------------------------------------------------------------- softmax, cross-entropy */

/* In double, in eight sums whatever the vectors' width. */
static double row_sum(const float *x, ptrdiff_t n) {
    double sum[8] = {0};
    ptrdiff_t j = 0;
    for (; j + 8 <= n; j += 8)
        for (int i = 0; i < 8; i++)
            sum[i] += (double)x[j + i];
    for (int i = 0; j < n; i++, j++)
        sum[i] += (double)x[j];
    return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
}

static float row_max(const float *x, ptrdiff_t n) {
    float most[VL];
    V m = V_SET1(x[0]);
    for (ptrdiff_t j = 0; j + VL <= n; j += VL)
        m = V_MAX(m, V_LOAD(x + j));
    V_STORE(most, m);
    float max = most[0];
    for (int i = 1; i < VL; i++)
        max = most[i] > max ? most[i] : max;
    for (ptrdiff_t j = n / VL * VL; j < n; j++)
        max = x[j] > max ? x[j] : max;
    return max;
}

/* One row of logits becomes share * (softmax - onehot(target)); returns -log softmax[target]. A NaN or an infinite
 * maximum makes all of the row NaN: the maximum may overlook a NaN, the sum does not. */
static double row_cross_entropy(float *row, ptrdiff_t n, ptrdiff_t target, double factor) {
    const float max = row_max(row, n), right = row[target] - max;
    for (ptrdiff_t j = 0; j < n; j += VL) {
        const int count = (int)fl_min(VL, n - j);
        V_STOREN(row + j, v_exp(V_SUB(V_LOADN(row + j, count), V_SET1(max))), count);
    }
    const double total = row_sum(row, n);
    const V scale = V_SET1((float)(factor / total));
    for (ptrdiff_t j = 0; j < n; j += VL) {
        const int count = (int)fl_min(VL, n - j);
        V_STOREN(row + j, V_MUL(V_LOADN(row + j, count), scale), count);
    }
    row[target] -= (float)factor;
    return log(total) - (double)right;
}

/* Step 0: logits, losses and the logits' gradient, rows shared out; step 1: backward. */
static void dense_cross_entropy(void *arg, int step, int piece, int worker) {
    const fl_dense_job *job = arg;
    const ptrdiff_t U = job->dense->U;
    if (step == 1) {
        dense_backward(arg, 0, piece, worker);
        return;
    }
    ptrdiff_t n0, n1;
    share(job->N, ROWS, piece, job->pieces, &n0, &n1);
    for (ptrdiff_t end; n0 < n1; n0 = end) {
        end = fl_min(n1, n0 + DENSE_ROWS);
        dense_product(job, n0, end, 0, 1);
        for (ptrdiff_t n = n0; n < end; n++)
            job->losses[n] = row_cross_entropy(job->y + n * U, U, job->targets[n], job->factor);
    }
}

/* ---------------------------------------------------------------------------------------------------------- optimisers */

/* Plain loops over numbers: the memory is what they wait for. Operations and their order are those of optim.py. */
#define RESTRICT __restrict__

static void update_sgd(const fl_rule *r, float *RESTRICT p, const float *RESTRICT g, float *RESTRICT m, ptrdiff_t n) {
    const float lr = r->lr, decay = r->decay, momentum = r->momentum;
    if (!m) {
        for (ptrdiff_t i = 0; i < n; i++)
            p[i] -= lr * (g[i] + decay * p[i]);
        return;
    }
    const int nesterov = r->nesterov;
    for (ptrdiff_t i = 0; i < n; i++) {
        const float d = g[i] + decay * p[i], v = momentum * m[i] + d;
        m[i] = v;
        p[i] -= lr * (nesterov ? d + momentum * v : v);
    }
}

static void update_adam(const fl_rule *r, float *RESTRICT p, const float *RESTRICT g, float *RESTRICT m,
                        float *RESTRICT v, ptrdiff_t n) {
    const float lr = r->lr, decay = r->decay, keep = r->keep, a = r->rate1, b = r->beta2, c = r->rate2;
    const float root = r->root, eps = r->eps;
    for (ptrdiff_t i = 0; i < n; i++) {
        const float q = p[i] * keep, d = g[i] + decay * q;
        m[i] += a * (d - m[i]);
        v[i] = v[i] * b + c * (d * d);
        p[i] = q - m[i] / (sqrtf(v[i]) / root + eps) * lr;
    }
}

static void update_rmsprop(const fl_rule *r, float *RESTRICT p, const float *RESTRICT g, float *RESTRICT v,
                           float *RESTRICT m, float *RESTRICT mean, ptrdiff_t n) {
    const float lr = r->lr, decay = r->decay, momentum = r->momentum, b = r->beta2, c = r->rate2, eps = r->eps;
    for (ptrdiff_t i = 0; i < n; i++) {
        const float d = g[i] + decay * p[i];
        float square = v[i] = v[i] * b + c * (d * d);
        if (mean) {
            mean[i] += c * (d - mean[i]);
            square -= mean[i] * mean[i];
        }
        float step = d / (sqrtf(square) + eps);
        if (m)
            step = m[i] = momentum * m[i] + step;
        p[i] -= lr * step;
    }
}

static void update_adagrad(const fl_rule *r, float *RESTRICT p, const float *RESTRICT g, float *RESTRICT sum,
                           ptrdiff_t n) {
    const float lr = r->lr, decay = r->decay, eps = r->eps;
    for (ptrdiff_t i = 0; i < n; i++) {
        const float d = g[i] + decay * p[i];
        sum[i] += d * d;
        p[i] -= lr * (d / (sqrtf(sum[i]) + eps));
    }
}

static double square_sum(const float *x, ptrdiff_t n) {
    double sum[8] = {0};
    ptrdiff_t j = 0;
    for (; j + 8 <= n; j += 8)
        for (int i = 0; i < 8; i++)
            sum[i] += (double)x[j + i] * (double)x[j + i];
    for (int i = 0; j < n; i++, j++)
        sum[i] += (double)x[j] * (double)x[j];
    return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
}

/* The block that a piece is: its span, and where it begins there. */
static const fl_span *find_block(const fl_spans_job *job, ptrdiff_t piece, ptrdiff_t *from, ptrdiff_t *count) {
    const fl_span *s = job->spans;
    for (ptrdiff_t blocks; piece >= (blocks = ceil_div(s->n, FL_SPAN_BLOCK)); s++)
        piece -= blocks;
    *from = piece * FL_SPAN_BLOCK;
    *count = fl_min(FL_SPAN_BLOCK, s->n - *from);
    return s;
}

static void span_update(void *arg, int step, int piece, int worker) {
    (void)step, (void)worker;
    const fl_spans_job *job = arg;
    const fl_rule *r = job->rule;
    ptrdiff_t at, n;
    const fl_span *s = find_block(job, piece, &at, &n);
    float *kept[3];
    for (int i = 0; i < 3; i++)
        kept[i] = s->kept[i] ? s->kept[i] + at : NULL;
    switch (r->kind) {
    case FL_SGD: update_sgd(r, s->p + at, s->g + at, kept[0], n); break;
    case FL_ADAM: update_adam(r, s->p + at, s->g + at, kept[0], kept[1], n); break;
    case FL_RMSPROP: update_rmsprop(r, s->p + at, s->g + at, kept[0], kept[1], kept[2], n); break;
    default: update_adagrad(r, s->p + at, s->g + at, kept[0], n);
    }
}

static void span_squares(void *arg, int step, int piece, int worker) {
    (void)step, (void)worker;
    const fl_spans_job *job = arg;
    ptrdiff_t at, n;
    const fl_span *s = find_block(job, piece, &at, &n);
    job->sums[piece] = square_sum(s->p + at, n);
}

static void span_scale(void *arg, int step, int piece, int worker) {
    (void)step, (void)worker;
    const fl_spans_job *job = arg;
    ptrdiff_t at, n;
    const fl_span *s = find_block(job, piece, &at, &n);
    for (ptrdiff_t i = 0; i < n; i++)
        s->p[at + i] *= job->factor;
}
