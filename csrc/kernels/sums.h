/* sums.h: the gradients of the parameters, which are sums over packed rows. Part of kernels.h. */

/* The rows of an (N, width) matrix: contiguous from `base` on, `ld` apart, or each by its own pointer. */
typedef struct {
    const float *base;
    ptrdiff_t ld;
    const float *const *rows; /* (N) pointers, or NULL */
} Source;

INLINE const float *source_row(const Source *s, ptrdiff_t n) { return s->rows ? s->rows[n] : s->base + n * s->ld; }

/* out (GRAD_ROWS, C VL) += sum over n of GRAD_ROWS columns of a (n, FL_GRAD_PACK) times b (n, C VL). Of out, `rows` rows
 * and `columns` columns exist. out is prefetched while the sums are made. */
INLINE void gradient_tile(const int C, const float *a, const float *b, ptrdiff_t n, float *out, ptrdiff_t ld, int rows,
                          ptrdiff_t columns) {
    V acc[GRAD_ROWS * FL_GRAD_C];
    EACH(i, GRAD_ROWS * C)
        acc[i] = V_SET1(0.0f);
    for (int m = 0; m < rows; m++)
        for (ptrdiff_t j = 0; j < columns; j += 16)
            __builtin_prefetch(out + m * ld + j, 1);
    for (ptrdiff_t k = 0; k < n; k++, a += FL_GRAD_PACK, b += C * VL) {
        V bv[FL_GRAD_C];
        EACH(v, C)
            bv[v] = V_LOAD(b + v * VL);
        EACH(m, GRAD_ROWS) {
            const V am = V_SET1(a[m]);
            EACH(v, C)
                acc[m * C + v] = V_FMA(am, bv[v], acc[m * C + v]);
        }
    }
    EACH(m, GRAD_ROWS)
        EACH(v, C) {
            const int count = (int)fl_min(VL, columns - v * VL);
            float *const to = out + m * ld + v * VL;
            if (m < rows && count > 0)
                V_STOREN(to, V_ADD(V_LOADN(to, count), acc[m * C + v]), count);
        }
}

typedef void gradient_fn(const float *a, const float *b, ptrdiff_t n, float *out, ptrdiff_t ld, int rows,
                         ptrdiff_t columns);
#define GRADIENT(C)                                                                                                    \
    static void gradient_##C(const float *a, const float *b, ptrdiff_t n, float *out, ptrdiff_t ld, int rows,          \
                             ptrdiff_t columns) {                                                                      \
        gradient_tile(C, a, b, n, out, ld, rows, columns);                                                             \
    }
/* clang-format off */
GRADIENT(1) GRADIENT(2) GRADIENT(3)
    /* clang-format on */
    static gradient_fn *const gradients[FL_GRAD_C + 1] = {NULL, gradient_1, gradient_2, gradient_3};
_Static_assert(FL_GRAD_C == 3 && FL_GRAD_PACK % VL == 0 && FL_GRAD_PACK % GRAD_ROWS == 0,
               "a gradient function for each width; packed columns are whole vectors and whole tiles");

/* Sums over rows and over outputs j0..j1 of d (N, ld): out (outputs, width) += d' source for up to two sources, and
 * bias (outputs) += column sums for up to two biases. */
typedef struct {
    const float *d;
    ptrdiff_t ld, j0, j1;
    int count;
    struct {
        float *out;
        ptrdiff_t width;
        Source source;
    } target[2];
    float *bias[2];
} Sums;

/* Floats of workspace: the columns of d of a block of rows, and a tile's width of a source. */
static ptrdiff_t gradient_scratch(const fl_spec *s) {
    return FL_GRAD_BLOCK * (fl_ceil_div(fl_max(4 * s->H, s->R), FL_GRAD_PACK) * FL_GRAD_PACK + FL_GRAD_C * VL);
}

/* Packs columns j0..j1 of n rows of d from `row` on: (columns / FL_GRAD_PACK, n, FL_GRAD_PACK). Adds the columns' sums to
 * the biases. */
static void pack_columns(const Sums *s, ptrdiff_t row, ptrdiff_t n, float *to) {
    for (ptrdiff_t j = s->j0; j < s->j1; j += FL_GRAD_PACK) {
        V sums[FL_GRAD_PACK / VL];
        for (int v = 0; v < FL_GRAD_PACK / VL; v++)
            sums[v] = V_SET1(0.0f);
        const float *from = s->d + row * s->ld + j;
        for (ptrdiff_t i = 0; i < n; i++, from += s->ld, to += FL_GRAD_PACK)
            EACH(v, FL_GRAD_PACK / VL) {
                const ptrdiff_t left = s->j1 - j - v * VL;
                const V x = left >= VL ? V_LOAD(from + v * VL)
                            : left > 0 ? V_LOADN(from + v * VL, (int)left)
                                       : V_SET1(0.0f);
                sums[v] = V_ADD(sums[v], x);
                V_STORE(to + v * VL, x);
            }
        for (int b = 0; b < 2; b++)
            for (int v = 0; v < FL_GRAD_PACK / VL && s->bias[b]; v++) {
                const int count = (int)fl_min(VL, s->j1 - j - v * VL);
                float *const bias = s->bias[b] + j + v * VL;
                if (count > 0)
                    V_STOREN(bias, V_ADD(V_LOADN(bias, count), sums[v]), count);
            }
    }
}

/* out (outputs, width) += d' source for n rows from `row` on; packed_a holds d's columns. */
static void sum_target(const Sums *s, int target, ptrdiff_t row, ptrdiff_t n, const float *packed_a, float *packed_b) {
    const ptrdiff_t tile_width = FL_GRAD_C * VL, width = s->target[target].width;
    for (ptrdiff_t k = 0; k < width; k += tile_width) {
        const ptrdiff_t columns = fl_min(tile_width, width - k), C = fl_ceil_div(columns, VL);
        for (ptrdiff_t r = 0; r < n; r++) {
            const float *from = source_row(&s->target[target].source, row + r) + k;
            for (ptrdiff_t v = 0; v < columns; v += VL)
                V_STORE(packed_b + r * C * VL + v, V_LOADN(from + v, (int)fl_min(VL, columns - v)));
        }
        const float *a = packed_a;
        for (ptrdiff_t j = s->j0; j < s->j1; j += FL_GRAD_PACK, a += n * FL_GRAD_PACK)
            for (ptrdiff_t r = 0; r < FL_GRAD_PACK && j + r < s->j1; r += GRAD_ROWS)
                gradients[C](a + r, packed_b, n, s->target[target].out + (j + r) * width + k, width,
                             (int)fl_min(GRAD_ROWS, s->j1 - j - r), columns);
    }
}

/* Rows n0..n1, in blocks of FL_GRAD_BLOCK whatever the share of outputs: the same bits for every number of threads. */
static void sum_rows(const Sums *s, ptrdiff_t n0, ptrdiff_t n1, float *work) {
    float *const packed_b = work, *const packed_a = work + FL_GRAD_BLOCK * FL_GRAD_C * VL;
    for (ptrdiff_t row = n0; row < n1; row += FL_GRAD_BLOCK) {
        const ptrdiff_t n = fl_min(FL_GRAD_BLOCK, n1 - row);
        pack_columns(s, row, n, packed_a);
        for (int i = 0; i < s->count; i++)
            sum_target(s, i, row, n, packed_a, packed_b);
    }
}

/* -------------------------------------------------------------------------------------------- gradients of a direction */

/* One worker's share of the sums over packed rows n0..n1. */
typedef struct {
    const fl_backward_job *job;
    int part, parts;
    ptrdiff_t n0, n1;
    float *work;
} Share;

/* The outputs of `count` that a share has. */
static Sums sums_of(const Share *w, const float *d, ptrdiff_t ld, ptrdiff_t count) {
    Sums s = {.d = d, .ld = ld};
    fl_share(count, FL_GRAD_PACK, w->part, w->parts, &s.j0, &s.j1);
    return s;
}

static void add_target(Sums *s, float *out, ptrdiff_t width, Source source) {
    s->target[s->count].out = out, s->target[s->count].width = width;
    s->target[s->count++].source = source;
}

static void sum_share(const Share *w, const Sums *s) { sum_rows(s, w->n0, w->n1, w->work); }

/* Of the gates whose input and recurrent product have the same gradient: GRU's first two, else all. */
static void sum_gates(const Share *w, Source x, Source h_prev) {
    const fl_backward_job *job = w->job;
    const fl_spec *e = &job->pass->block->spec;
    const fl_grads *g = job->grads;
    Sums s = sums_of(w, job->dgates, job->ld_gates, (e->kind == FL_GRU ? 2 : fl_gate_count(e)) * e->H);
    s.bias[0] = g->bias_ih, s.bias[1] = g->bias_hh;
    add_target(&s, g->weight_hh, e->R, h_prev);
    if (x.base)
        add_target(&s, g->weight_ih, e->I, x);
    sum_share(w, &s);
}

/* Of a GRU's candidate: its recurrent product has a gradient of its own, that of m (reset_after), or an operand of its
 * own, r h, which is m. */
static void sum_candidate(const Share *w, Source x, Source h_prev) {
    const fl_backward_job *job = w->job;
    const fl_spec *e = &job->pass->block->spec;
    const fl_grads *g = job->grads;
    const ptrdiff_t H = e->H, ld = job->ld_gates;
    const Source rh = {job->pass->gates + 3 * H, ld, NULL};
    Sums of_n = sums_of(w, job->dgates + 2 * H, ld, H), of_m = sums_of(w, job->dgates + 3 * H, ld, H);
    Sums *const recurrent = e->reset_after ? &of_m : &of_n;
    of_n.bias[0] = g->bias_ih ? g->bias_ih + 2 * H : NULL;
    if (x.base)
        add_target(&of_n, g->weight_ih + 2 * H * e->I, e->I, x);
    recurrent->bias[1] = g->bias_hh ? g->bias_hh + 2 * H : NULL;
    add_target(recurrent, g->weight_hh + 2 * H * e->R, e->R, e->reset_after ? h_prev : rh);
    sum_share(w, &of_n);
    if (e->reset_after)
        sum_share(w, &of_m);
}

/* out (count) += sum over the share's rows of d (N, ld) * factor (N, .), from column `at` of both on; row by row. */
static void product_sums(const Share *w, float *out, const float *d, const Source *factor) {
    const ptrdiff_t ld = w->job->ld_gates;
    ptrdiff_t j0, j1;
    fl_share(w->job->pass->block->spec.H, FL_GRAD_PACK, w->part, w->parts, &j0, &j1);
    for (ptrdiff_t j = j0; j < j1; j += VL) {
        const int c = (int)fl_min(VL, j1 - j);
        V sum = V_SET1(0.0f);
        for (ptrdiff_t n = w->n0; n < w->n1; n++)
            sum = V_FMA(V_LOADN(d + n * ld + j, c), V_LOADN(source_row(factor, n) + j, c), sum);
        V_STOREN(out + j, V_ADD(V_LOADN(out + j, c), sum), c);
    }
}

/* i and f see the peepholes' c of the step before, o that of its own step. */
static void sum_peepholes(const Share *w) {
    const fl_backward_job *job = w->job;
    const ptrdiff_t H = job->pass->block->spec.H;
    const Source c_prev = {NULL, 0, job->c_prev}, c = {job->pass->tape_c, H, NULL};
    float *const out = job->grads->weight_peep;
    product_sums(w, out, job->dgates, &c_prev);
    product_sums(w, out + H, job->dgates + H, &c_prev);
    product_sums(w, out + 2 * H, job->dgates + 3 * H, &c);
}

/* Token ids: every packed row's gate gradients are added to its row of weight_ih's gradient (rows, G*H). */
static void sum_tokens(const Share *w) {
    const fl_backward_job *job = w->job;
    const fl_spec *e = &job->pass->block->spec;
    const ptrdiff_t GH = fl_gate_count(e) * e->H, ld = job->ld_gates;
    ptrdiff_t j0, j1;
    fl_share(GH, FL_GRAD_PACK, w->part, w->parts, &j0, &j1);
    for (ptrdiff_t n = w->n0; n < w->n1; n++)
        for (ptrdiff_t j = j0; j < j1; j += VL) {
            const int c = (int)fl_min(VL, j1 - j);
            float *const to = job->grads->weight_ih + job->rows->ids[n] * GH + j;
            V_STOREN(to, V_ADD(V_LOADN(to, c), V_LOADN(job->dgates + n * ld + j, c)), c);
        }
}

/* FL_SUM: a share of every parameter's gradient (of its outputs) and of dx (of the rows), for a stretch's rows. */
static void do_sum(const fl_backward_job *job, const fl_back_task *task, float *work) {
    const fl_pass *pass = job->pass;
    const fl_spec *e = &pass->block->spec;
    const fl_stretch *stretch = &job->plan->stretches[task->stretch];
    const Source x = {job->rows->x, e->I, NULL}, h_prev = {NULL, 0, job->h_prev};
    const Share w = {job, task->part, task->parts, stretch->row0, stretch->row1, work};
    sum_gates(&w, x, h_prev);
    if (e->kind == FL_GRU)
        sum_candidate(&w, x, h_prev);
    if (job->rows->ids)
        sum_tokens(&w);
    if (e->projected) {
        Sums s = sums_of(&w, job->dh_all, e->R, e->R);
        add_target(&s, job->grads->weight_hr, e->H, (Source){pass->tape_m, e->H, NULL});
        sum_share(&w, &s);
    }
    if (e->peepholes)
        sum_peepholes(&w);
    if (job->dx && !job->plan->walks_with_dx) {
        ptrdiff_t n0, n1;
        fl_share(w.n1 - w.n0, ROWS, task->part, task->parts, &n0, &n1);
        if (n1 > n0)
            input_gradient(job, w.n0 + n0, n1 - n0);
    }
}

/* A piece of a backward call. */
static void backward(void *arg, int step, int piece, int worker) {
    const fl_backward_job *job = arg;
    const fl_back_task task = fl_decode_back(job->plan, step, piece);
    if (task.kind == FL_WALK_BACK)
        do_walk_back(job, &task);
    else if (task.kind == FL_SUM)
        do_sum(job, &task, job->workspace + worker * job->workspace_size);
}
