/* pack.h: matrices as panels; see kernels.h for their layout. Part of kernels.h. */

/* A matrix as packing reads it: outputs are by_output floats apart, depths by_depth; one of them is 1. */
typedef struct {
    const float *w;
    ptrdiff_t by_output, by_depth;
} Matrix;

/* A panel is `pieces` pieces of `width` lanes for each depth; piece v holds the outputs from from[v] on, count[v] of them
 * at most, then zeros. */
typedef struct {
    int pieces, width;
    const float *from[4];
    ptrdiff_t count[4];
} Panel;

/* Writes one panel of depth K; returns its end. Output by output over FL_PACK_STRETCH depths, so that reading runs along
 * the matrix's rows and what is written meanwhile stays in the first-level cache. */
static float *pack_panel(float *to, const Panel *panel, ptrdiff_t K, ptrdiff_t by_output, ptrdiff_t by_depth) {
    const ptrdiff_t width = panel->width, row = panel->pieces * width;
    for (ptrdiff_t k0 = 0; k0 < K; k0 += FL_PACK_STRETCH) {
        const ptrdiff_t k1 = fl_min(K, k0 + FL_PACK_STRETCH);
        for (int v = 0; v < panel->pieces; v++) {
            const ptrdiff_t lanes = fl_min(width, panel->count[v]);
            if (by_output == 1 && width == VL) {
                for (ptrdiff_t k = k0; k < k1; k++)
                    V_STORE(to + k * row + v * VL, V_LOADN(panel->from[v] + k * by_depth, (int)lanes));
                continue;
            }
            for (ptrdiff_t lane = 0; lane < width; lane++) {
                const float *const source = panel->from[v] + lane * by_output;
                float *const target = to + v * width + lane;
                for (ptrdiff_t k = k0; k < k1; k++)
                    target[k * row] = lane < lanes ? source[k] : 0.0f; /* by_depth is 1 here */
            }
        }
    }
    return to + K * row;
}

/* Lanes of each gate in a panel of `units` units. For few units an LSTM's four gates share two vectors, or one. */
static int gate_lanes(int gates, ptrdiff_t units) {
    int lanes = VL;
    while (gates == 4 && lanes % 2 == 0 && 2 * lanes >= VL && lanes / 2 >= units)
        lanes /= 2;
    return lanes;
}

/* Gate panels of w (G*H, K): C gates from `first` on, of `blocks` vectors of units, side by side. */
static float *pack_gates(float *to, const float *w, ptrdiff_t H, ptrdiff_t K, int first, int C, int blocks) {
    for (ptrdiff_t u = 0; u < H; u += blocks * VL) {
        Panel panel = {.pieces = C * (int)fl_min(blocks, fl_ceil_div(H - u, VL)), .width = gate_lanes(C, H - u)};
        for (int v = 0; v < panel.pieces; v++) {
            const ptrdiff_t unit = u + v / C * VL;
            panel.from[v] = w + ((first + v % C) * H + unit) * K;
            panel.count[v] = H - unit;
        }
        to = pack_panel(to, &panel, K, K, 1);
    }
    return to;
}

/* Plain panels of depth K. */
static float *pack_plain(float *to, Matrix m, ptrdiff_t outputs, ptrdiff_t K) {
    for (ptrdiff_t first = 0; first < outputs; first += 4 * VL) {
        Panel panel = {.pieces = (int)fl_min(4, fl_ceil_div(outputs - first, VL)), .width = VL};
        for (int v = 0; v < panel.pieces; v++) {
            panel.from[v] = m.w + (first + v * VL) * m.by_output;
            panel.count[v] = outputs - first - v * VL;
        }
        to = pack_panel(to, &panel, K, m.by_output, m.by_depth);
    }
    return to;
}

/* A row-major matrix (outputs, K), or (K, outputs) with K rows. */
static float *pack_rows(float *to, const float *w, ptrdiff_t outputs, ptrdiff_t K) {
    return pack_plain(to, (Matrix){w, K, 1}, outputs, K);
}
static float *pack_columns_of(float *to, const float *w, ptrdiff_t outputs, ptrdiff_t K) {
    return pack_plain(to, (Matrix){w, 1, outputs}, outputs, K);
}

static ptrdiff_t padded(ptrdiff_t n) { return fl_ceil_div(n, VL) * VL; }

/* Bytes: forward panels in their storage, and the biases and peepholes beside them; backward panels are float32. */
static ptrdiff_t pack_size(const fl_block *k, int panels) {
    const fl_spec *s = &k->spec;
    const ptrdiff_t G = fl_gate_count(s), Hp = padded(s->H), weight = fl_storage_bytes(k->storage);
    const ptrdiff_t number = (ptrdiff_t)sizeof(float);
    if (panels == FL_FORWARD)
        return (G * (s->I + s->R) * Hp + (s->projected ? s->H * padded(s->R) : 0)) * weight + (4 + 3) * Hp * number;
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

/* The transposed matrices. Without the input's for token ids; what is packed already, and perhaps in use, stays. */
static void pack_backward(fl_block *k, const fl_params *w, int panels, float *to) {
    const fl_spec *s = &k->spec;
    const ptrdiff_t I = s->I, H = s->H, R = s->R;
    const int G = fl_gate_count(s);
    if (panels == FL_BACKWARD)
        k->v_x = to, to = pack_columns_of(to, w->weight_ih, I, G * H);
    if (k->v_h)
        return;
    k->v_h = to, to = pack_columns_of(to, w->weight_hh, R, (s->kind == FL_GRU ? 2 : G) * H);
    if (s->kind == FL_GRU) /* the candidate apart: its operand lies in another column of the gates */
        k->v_n = to, to = pack_columns_of(to, w->weight_hh + 2 * H * R, R, H);
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

static void pack(fl_block *k, const fl_params *w, int panels, void *memory) {
    const fl_spec *s = &k->spec;
    const ptrdiff_t I = s->I, H = s->H, R = s->R;
    const int two_phases = fl_two_phases(s), plain = s->kind == FL_RNN;
    const int C = two_phases ? 2 : fl_gate_count(s), blocks = two_phases ? 2 : 1; /* of the first phase's panels */
    float *to = memory;
    if (panels != FL_FORWARD) {
        pack_backward(k, w, panels, to);
        return;
    }
    if (s->clip > 0)
        set_ends(k);
    k->w_x = to, to = plain ? pack_rows(to, w->weight_ih, H, I) : pack_gates(to, w->weight_ih, H, I, 0, C, blocks);
    k->w_h = to, to = plain ? pack_rows(to, w->weight_hh, H, R) : pack_gates(to, w->weight_hh, H, R, 0, C, blocks);
    k->bias = to, to = pack_bias(to, s, w, 0, C);
    if (two_phases) {
        k->x_n = to, to = pack_rows(to, w->weight_ih + 2 * H * I, H, I);
        k->w_n = to, to = pack_rows(to, w->weight_hh + 2 * H * R, H, R);
        k->bias_n = to, to = pack_bias(to, s, w, 2, 1);
    }
    if (s->projected)
        k->w_r = to, to = pack_rows(to, w->weight_hr, R, H);
    if (s->peepholes)
        k->peep = memcpy(to, w->weight_peep, (size_t)(3 * H) * sizeof *to);
}
