/* pack.h: matrices as panels; see kernels.h for their layout. Part of kernels.h. */

/* A matrix as packing reads it, in its storage: outputs are by_output numbers apart, depths by_depth; one of them is 1,
 * and for any storage but FL_FLOAT32 by_depth. */
typedef struct {
    int storage;
    const void *w;
    const float *scales; /* integers: of each output; else NULL */
    ptrdiff_t by_output, by_depth;
} Matrix;

/* A panel is `pieces` pieces of `width` lanes for each depth; piece v holds the outputs from from[v] on, count[v] of them
 * at most, then zeros. */
typedef struct {
    int pieces, width;
    ptrdiff_t from[4], count[4];
} Panel;

/* Writes one panel of depth K. Output by output over FL_PACK_STRETCH depths, so that reading runs along the matrix's rows
 * and what is written meanwhile stays in the first-level cache. */
static void pack_floats(float *to, const Panel *panel, ptrdiff_t K, const Matrix *of) {
    const ptrdiff_t width = panel->width, row = panel->pieces * width;
    for (ptrdiff_t k0 = 0; k0 < K; k0 += FL_PACK_STRETCH) {
        const ptrdiff_t k1 = fl_min(K, k0 + FL_PACK_STRETCH);
        for (int v = 0; v < panel->pieces; v++) {
            const float *const from = (const float *)of->w + panel->from[v] * of->by_output;
            const ptrdiff_t lanes = fl_min(width, panel->count[v]);
            if (of->by_output == 1 && width == VL) {
                for (ptrdiff_t k = k0; k < k1; k++)
                    V_STORE(to + k * row + v * VL, V_LOADN(from + k * of->by_depth, (int)lanes));
                continue;
            }
            for (ptrdiff_t lane = 0; lane < width; lane++) {
                const float *const source = from + lane * of->by_output;
                float *const target = to + v * width + lane;
                for (ptrdiff_t k = k0; k < k1; k++)
                    target[k * row] = lane < lanes ? source[k] : 0.0f; /* by_depth is 1 here */
            }
        }
    }
}

static void pack_halves(uint16_t *to, const Panel *panel, ptrdiff_t K, const Matrix *of) {
    const ptrdiff_t width = panel->width, row = panel->pieces * width;
    for (ptrdiff_t k0 = 0; k0 < K; k0 += FL_PACK_STRETCH)
        for (ptrdiff_t i = 0; i < row; i++) {
            const ptrdiff_t v = i / width, lane = i % width;
            const uint16_t *const from = (const uint16_t *)of->w + (panel->from[v] + lane) * of->by_output;
            for (ptrdiff_t k = k0; k < fl_min(K, k0 + FL_PACK_STRETCH); k++)
                to[k * row + i] = lane < panel->count[v] ? from[k] : 0;
        }
}

/* Scales, corrections of FL_INT8, and four or two depths to a word; see storage.h. */
static void pack_integers(char *to, const Panel *panel, ptrdiff_t K, const Matrix *of) {
    const ptrdiff_t width = panel->width, row = panel->pieces * width, bytes = of->storage == FL_INT8 ? 1 : 2;
    memset(to, 0, (size_t)(row * storage_of(of->storage)->bytes(K)));
    for (ptrdiff_t k0 = 0; k0 < K; k0 += FL_PACK_STRETCH)
        for (ptrdiff_t i = 0; i < row; i++) {
            const ptrdiff_t v = i / width, lane = i % width, output = panel->from[v] + lane;
            if (lane >= panel->count[v])
                continue;
            const char *const from = (const char *)of->w + output * of->by_output * bytes;
            int32_t sum = 0;
            for (ptrdiff_t k = k0; k < fl_min(K, k0 + FL_PACK_STRETCH); k++) {
                char *const at = to + (row_of_depth(of->storage, k) * row + i) * 4 + k * bytes % 4;
                memcpy(at, from + k * bytes, (size_t)bytes);
                sum += *(const int8_t *)at;
            }
            ((float *)(void *)to)[i] = of->scales[output];
            if (of->storage == FL_INT8)
                ((int32_t *)(void *)to)[row_of_block(FL_INT8, k0 / BLOCK_DEPTHS) * row + i] -= BYTE_BIAS * sum;
        }
}

/* Writes one panel of depth K; returns its end. */
static char *pack_panel(char *to, const Panel *panel, ptrdiff_t K, const Matrix *of) {
    switch (of->storage) {
    case FL_FLOAT16: pack_halves((void *)to, panel, K, of); break;
    case FL_INT8:
    case FL_INT16: pack_integers(to, panel, K, of); break;
    default: pack_floats((void *)to, panel, K, of);
    }
    return to + panel->pieces * panel->width * storage_of(of->storage)->bytes(K);
}

/* Lanes of each gate in a panel of `units` units. For few units an LSTM's four gates share two vectors, or one. */
static int gate_lanes(int gates, ptrdiff_t units) {
    int lanes = VL;
    while (gates == 4 && lanes % 2 == 0 && 2 * lanes >= VL && lanes / 2 >= units)
        lanes /= 2;
    return lanes;
}

/* Gate panels of m (G*H, K): C gates from `first` on, of `blocks` vectors of units, side by side. */
static char *pack_gates(char *to, const Matrix *m, ptrdiff_t H, ptrdiff_t K, int first, int C, int blocks) {
    for (ptrdiff_t u = 0; u < H; u += blocks * VL) {
        Panel panel = {.pieces = C * (int)fl_min(blocks, fl_ceil_div(H - u, VL)), .width = gate_lanes(C, H - u)};
        for (int v = 0; v < panel.pieces; v++) {
            const ptrdiff_t unit = u + v / C * VL;
            panel.from[v] = (first + v % C) * H + unit;
            panel.count[v] = H - unit;
        }
        to = pack_panel(to, &panel, K, m);
    }
    return to;
}

/* Plain panels, of depth K, of the outputs from `begin` on. */
static char *pack_plain(char *to, const Matrix *m, ptrdiff_t begin, ptrdiff_t outputs, ptrdiff_t K) {
    for (ptrdiff_t first = 0; first < outputs; first += 4 * VL) {
        Panel panel = {.pieces = (int)fl_min(4, fl_ceil_div(outputs - first, VL)), .width = VL};
        for (int v = 0; v < panel.pieces; v++) {
            panel.from[v] = begin + first + v * VL;
            panel.count[v] = outputs - first - v * VL;
        }
        to = pack_panel(to, &panel, K, m);
    }
    return to;
}

/* A row-major float32 matrix (outputs, K), or (K, outputs) with K rows. */
static float *pack_rows(float *to, const float *w, ptrdiff_t outputs, ptrdiff_t K) {
    return (void *)pack_plain((char *)to, &(Matrix){FL_FLOAT32, w, NULL, K, 1}, 0, outputs, K);
}
static float *pack_columns_of(float *to, const float *w, ptrdiff_t outputs, ptrdiff_t K) {
    return (void *)pack_plain((char *)to, &(Matrix){FL_FLOAT32, w, NULL, 1, outputs}, 0, outputs, K);
}

static ptrdiff_t padded(ptrdiff_t n) { return fl_ceil_div(n, VL) * VL; }

/* Bytes of the panels of a matrix of so many padded outputs, in whole cache lines. */
static ptrdiff_t matrix_bytes(int storage, ptrdiff_t outputs, ptrdiff_t K) {
    return fl_ceil_div(outputs * storage_of(storage)->bytes(K), 64) * 64;
}

/* Bytes: forward panels in their storage, and the biases and peepholes beside them; backward panels are float32. */
static ptrdiff_t pack_size(const fl_block *k, int panels) {
    const fl_spec *s = &k->spec;
    const ptrdiff_t G = fl_gate_count(s), Hp = padded(s->H), number = (ptrdiff_t)sizeof(float);
    if (panels == FL_FORWARD) {
        const ptrdiff_t apart = fl_two_phases(s) ? Hp : 0; /* outputs in matrices of their own */
        ptrdiff_t bytes = (4 + 3) * Hp * number;
        for (int of_h = 0; of_h < 2; of_h++) {
            const ptrdiff_t K = of_h ? s->R : s->I;
            bytes += matrix_bytes(k->storage, G * Hp - apart, K) + matrix_bytes(k->storage, apart, K);
        }
        return bytes + (s->projected ? matrix_bytes(k->storage, padded(s->R), s->H) : 0);
    }
    const ptrdiff_t of_x = panels == FL_BACKWARD ? padded(s->I) : 0;
    return (G * s->H * (of_x + padded(s->R)) + (s->projected ? s->R * Hp : 0)) * number;
}

/* The biases of C gates from `first` on, in the accumulators' order. GRU with reset_after keeps b_hn apart, as a fourth. */
static float *pack_bias(float *to, const fl_spec *s, const fl_params *w, int first, int C) {
    const int four = s->kind == FL_GRU && s->reset_after;
    const ptrdiff_t H = s->H;
    for (ptrdiff_t u = 0; u < H; u += VL)
        for (int g = first; g < first + C + four; g++)
            for (ptrdiff_t j = u; j < u + gate_lanes(C, H - u); j++, to++) {
                *to = 0.0f;
                if (!w->bias_ih || j >= H)
                    continue;
                if (four && g >= 2)
                    *to = g == 2 ? w->bias_ih[2 * H + j] : w->bias_hh[2 * H + j];
                else
                    *to = w->bias_ih[g * H + j] + w->bias_hh[g * H + j];
            }
    return to;
}

/* The transposed float32 matrices. Without the input's for token ids; what is packed already, and perhaps in use, stays. */
static void pack_backward(fl_block *k, const fl_params *w, int panels, float *to) {
    const fl_spec *s = &k->spec;
    const ptrdiff_t I = s->I, H = s->H, R = s->R;
    const float *const hh = w->weight_hh;
    const int G = fl_gate_count(s);
    if (panels == FL_BACKWARD)
        k->v_x = to, to = pack_columns_of(to, w->weight_ih, I, G * H);
    if (k->v_h)
        return;
    k->v_h = to, to = pack_columns_of(to, hh, R, (s->kind == FL_GRU ? 2 : G) * H);
    if (s->kind == FL_GRU) /* the candidate apart: its operand lies in another column of the gates */
        k->v_n = to, to = pack_columns_of(to, hh + 2 * H * R, R, H);
    if (s->projected)
        k->v_r = to, pack_columns_of(to, w->weight_hr, H, R);
}

/* What a clipped gate is, made by the function that makes the gates: equal to the last bit. */
static void set_ends(fl_block *k) {
    const float clip = k->spec.clip;
    for (int role = 0; role < 2; role++)
        for (int high = 0; high < 2; high++) {
            float lanes[VL];
            V_STORE(lanes, v_act(k->spec.act[role], V_SET1(high ? clip : -clip)));
            k->ends[role][high] = lanes[0];
        }
}

/* Writes the panels of m (G*H, K) of C gates from `first` on, or of as many plain outputs; returns where the next matrix
 * begins. */
static char *pack_matrix(char *to, const fl_spec *s, const Matrix *m, ptrdiff_t K, int first, int C) {
    const ptrdiff_t H = s->H;
    char *const end = s->kind == FL_RNN || first ? pack_plain(to, m, first * H, H, K)
                                                 : pack_gates(to, m, H, K, first, C, fl_two_phases(s) ? 2 : 1);
    return to + fl_ceil_div(end - to, 64) * 64;
}

static void pack(fl_block *k, const fl_params *w, int panels, void *memory) {
    const fl_spec *s = &k->spec;
    const ptrdiff_t I = s->I, H = s->H, R = s->R;
    const int two_phases = fl_two_phases(s);
    const int C = two_phases ? 2 : fl_gate_count(s); /* of the first phase's panels */
    const Matrix ih = {k->storage, w->weight_ih, w->scale_ih, I, 1}, hh = {k->storage, w->weight_hh, w->scale_hh, R, 1};
    if (panels != FL_FORWARD) {
        pack_backward(k, w, panels, memory);
        return;
    }
    if (s->clip > 0)
        set_ends(k);
    char *to = memory;
    k->w_x = to, to = pack_matrix(to, s, &ih, I, 0, C);
    k->w_h = to, to = pack_matrix(to, s, &hh, R, 0, C);
    if (two_phases) {
        k->x_n = to, to = pack_matrix(to, s, &ih, I, 2, 1);
        k->w_n = to, to = pack_matrix(to, s, &hh, R, 2, 1);
    }
    if (s->projected) {
        const Matrix hr = {k->storage, w->weight_hr, w->scale_hr, H, 1};
        k->w_r = to, to += fl_ceil_div(pack_plain(to, &hr, 0, R, H) - to, 64) * 64;
    }
    float *bias = (void *)to;
    k->bias = bias, bias = pack_bias(bias, s, w, 0, C);
    if (two_phases)
        k->bias_n = bias, bias = pack_bias(bias, s, w, 2, 1);
    if (s->peepholes)
        k->peep = memcpy(bias, w->weight_peep, (size_t)(3 * H) * sizeof *bias);
}
