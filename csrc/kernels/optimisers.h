/* optimisers.h: one step of an optimiser over contiguous numbers, sums of squares and scaling. Part of kernels.h.
 *
 * Plain loops that the compiler turns into vectors: memory bounds them. Operations and their order are those of optim.py.
 * Without fused multiply-adds and with correctly rounded roots, every instruction set gives NumPy's bits. */

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

/* A piece is a block of a span: which span, where the block begins in it, and how many numbers it has. */
static const fl_span *find_block(const fl_spans_job *job, ptrdiff_t piece, ptrdiff_t *from, ptrdiff_t *count) {
    const fl_span *s = job->spans;
    for (ptrdiff_t blocks; piece >= (blocks = fl_ceil_div(s->n, FL_SPAN_BLOCK)); s++)
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
