/* dense.h: the dense layer of some rows, and softmax of a row. Part of kernels.h, whose contract holds here too; U outputs,
 * N rows. */

/* --------------------------------------------------------------------------------------------------------- dense layer */

/* Bytes. The panels of dx are one set for each FL_DENSE_DEPTH outputs, one after another. */
static ptrdiff_t dense_size(const fl_dense *k, int backward) {
    const ptrdiff_t floats = backward ? k->U * padded(k->I) : (k->I + 1) * padded(k->U);
    return floats * (ptrdiff_t)sizeof(float);
}

static void dense_pack(fl_dense *k, const float *weight, const float *bias, int backward, void *memory) {
    const ptrdiff_t I = k->I, U = k->U;
    float *to = memory;
    if (backward) {
        k->backward = to;
        for (ptrdiff_t u = 0; u < U; u += FL_DENSE_DEPTH)
            to = pack_columns_of(to, weight + u * I, I, fl_min(FL_DENSE_DEPTH, U - u));
        return;
    }
    k->forward = to;
    to = pack_rows(to, weight, U, I);
    k->bias = bias ? to : NULL;
    for (ptrdiff_t u = 0; bias && u < padded(U); u++)
        to[u] = u < U ? bias[u] : 0.0f;
}

/* y (n, U) = x (n, I) weight' + bias for one part of the panels. */
static void dense_panels(const fl_dense *k, const float *x, ptrdiff_t n, float *y, int part, int parts) {
    Product q = {.kernels = &storage_f32, .start = k->bias, .a = x, .lda = k->I, .wa = k->forward, .ka = k->I};
    plain_shape(&q, k->U);
    fl_share(q.panels, 1, part, parts, &q.first_panel, &q.end_panel);
    const Destination d = {y, k->U, k->U};
    product(&q, n, &store_plain_epilogue, &d);
}

/* ------------------------------------------------------------------------------------------------------------ softmax */

/* In double, in eight partial sums whatever the vector's width. */
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

/* One row becomes factor * softmax. Returns the sum of exp(x - max). A NaN or an infinite
 * maximum makes all of the row NaN: the maximum may overlook a NaN, the sum does not. */
static double row_softmax(float *row, ptrdiff_t n, double factor, float *max) {
    *max = row_max(row, n);
    for (ptrdiff_t j = 0; j < n; j += VL) {
        const int count = (int)fl_min(VL, n - j);
        V_STOREN(row + j, v_exp(V_SUB(V_LOADN(row + j, count), V_SET1(*max))), count);
    }
    const double total = row_sum(row, n);
    const V scale = V_SET1((float)(factor / total));
    for (ptrdiff_t j = 0; j < n; j += VL) {
        const int count = (int)fl_min(VL, n - j);
        V_STOREN(row + j, V_MUL(V_LOADN(row + j, count), scale), count);
    }
    return total;
}
