/* walk_back.h: back through time, and the gradient of the input. Part of kernels.h. */

/* ------------------------------------------------------------------------------------------------------- products of a step */

/* acc (2, C vectors) += a w of one row and one panel (K, C, VL), in two halves of k: the C sums alone would wait for one
 * another. */
INLINE void multiply_halves(V *acc, const int C, const float *a, const float *w, ptrdiff_t K, int reversed_k) {
    const ptrdiff_t half = K / 2, row = C * VL;
    for (ptrdiff_t i = 0; i < half; i++) {
        const ptrdiff_t k = reversed_k ? half - 1 - i : i;
        const V first = V_SET1(a[k]), second = V_SET1(a[half + k]);
        EACH(v, C) {
            acc[v] = V_FMA(first, V_LOAD(w + k * row + v * VL), acc[v]);
            acc[C + v] = V_FMA(second, V_LOAD(w + (half + k) * row + v * VL), acc[C + v]);
        }
    }
    for (int v = 0; v < C && K % 2; v++)
        acc[v] = V_FMA(V_SET1(a[K - 1]), V_LOAD(w + (K - 1) * row + v * VL), acc[v]);
}

/* out (C vectors) = the products of one row with its only panel. */
INLINE void only_panel(const Operand *a, const Operand *b, const int C, int reversed_k, float *out) {
    V acc[2 * 4];
    EACH(v, 2 * C)
        acc[v] = V_SET1(0.0f);
    multiply_halves(acc, C, a->rows, a->panels, a->k, reversed_k);
    multiply_halves(acc, C, b->rows, b->panels, b->k, reversed_k);
    EACH(v, C)
        V_STORE(out + v * VL, V_ADD(acc[v], acc[C + v]));
}

/* The recurrent product: dh stored, or added to. */
static void recurrent_back(const Back *s, ptrdiff_t n, int add, const Operand *a, const Operand *b) {
    const ptrdiff_t R = s->k->spec.R;
    if (!s->single_row || R > 4 * VL) {
        plain_product(s->dh, R, n, add, a, b);
        return;
    }
    float out[4 * VL] __attribute__((aligned(64)));
    switch (fl_ceil_div(R, VL)) {
    case 1: only_panel(a, b, 1, s->reversed_k, out); break;
    case 2: only_panel(a, b, 2, s->reversed_k, out); break;
    case 3: only_panel(a, b, 3, s->reversed_k, out); break;
    default: only_panel(a, b, 4, s->reversed_k, out);
    }
    const Destination d = {s->dh, R, R};
    for_plain(&d, out, 0, 0, 1, add);
}

/* One step of n rows: the gates' gradients in the gates' places, then the state's. */
static void step_back(const Back *s, ptrdiff_t n) {
    const fl_block *k = s->k;
    const fl_spec *e = &k->spec;
    const ptrdiff_t H = e->H, ld = s->ld_gates;
    switch (e->kind) {
    case FL_LSTM: {
        const Operand gates = {s->gates, ld, k->v_h, 4 * H};
        if (e->projected)
            lstm_projection_back(s, n);
        lstm_back(s, n);
        recurrent_back(s, n, 0, &gates, &absent);
        break;
    }
    case FL_GRU: {
        const Operand gates = {s->gates, ld, k->v_h, 2 * H};
        const Operand m = {s->gates + 3 * H, ld, k->v_n, e->reset_after ? H : 0};
        gru_back(s, n);
        if (!e->reset_after)
            gru_reset_back(s, n);
        recurrent_back(s, n, 1, &gates, &m);
        break;
    }
    default: {
        const Operand gate = {s->gates, ld, k->v_h, H};
        rnn_back(s, n);
        recurrent_back(s, n, 0, &gate, &absent);
    }
    }
}

/* dx of n packed rows, whose gate gradients are there. */
static void input_gradient(const fl_backward_job *job, ptrdiff_t row, ptrdiff_t n) {
    const fl_block *k = job->pass->block;
    const ptrdiff_t I = k->spec.I, ld = job->ld_gates;
    const Operand gates = {job->dgates + row * ld, ld, k->v_x, fl_gate_count(&k->spec) * k->spec.H};
    plain_product(job->dx + row * I, I, n, 1, &gates, &absent);
}

/* ------------------------------------------------------------------------------------------------------ tasks of a walk */

/* A step's rows of a chunk, from packed row `row` on. */
INLINE Back back_at(const fl_backward_job *job, const fl_chunk *chunk, ptrdiff_t row, int reversed_k) {
    const fl_pass *pass = job->pass;
    const ptrdiff_t H = pass->block->spec.H, R = pass->block->spec.R;
    return (Back){.k = pass->block,
                  .dh = chunk->h,
                  .dc = chunk->c,
                  .dy = job->dy ? job->dy + row * job->ldy : NULL,
                  .ldy = job->ldy,
                  .dh_all = job->dh_all ? job->dh_all + row * R : NULL,
                  .gates = job->dgates + row * job->ld_gates,
                  .ld_gates = job->ld_gates,
                  .c = pass->tape_c ? pass->tape_c + row * H : NULL,
                  .h = pass->tape_h + row * R,
                  .c_prev = job->c_prev ? job->c_prev + row : NULL,
                  .h_prev = job->h_prev + row,
                  .m = chunk->m,
                  .single_row = job->rows->batch_sizes[0] == 1,
                  .reversed_k = reversed_k};
}

/* FL_WALK_BACK: one chunk back through one stretch of time, against the direction's own order of steps. */
static void do_walk_back(const fl_backward_job *job, const fl_back_task *task) {
    const fl_chunk *chunk = &job->plan->chunks[task->chunk];
    const fl_stretch *stretch = &job->plan->stretches[task->stretch];
    const ptrdiff_t b0 = chunk->b0, B = chunk->b1 - b0;
    const int64_t *sizes = job->rows->batch_sizes;
    const int forwards = job->pass->block->reverse;
    ptrdiff_t first = forwards ? stretch->row0 : stretch->row1 - sizes[stretch->t1 - 1];
    for (ptrdiff_t i = stretch->t0; i < stretch->t1; i++) {
        const ptrdiff_t t = forwards ? i : stretch->t0 + stretch->t1 - 1 - i;
        const ptrdiff_t n = fl_min(B, sizes[t] - b0), row = first + b0;
        if (n > 0) {
            const Back s = back_at(job, chunk, row, i & 1);
            step_back(&s, n);
            if (job->plan->walks_with_dx)
                input_gradient(job, row, n);
        }
        first += to_next(job->rows, t, !forwards);
    }
}
