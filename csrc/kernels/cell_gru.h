/* cell_gru.h: the GRU cell and its derivative, as gru_step and gru_step_backward in _backends/numpy. Part of kernels.h.
 *
 *   r, z = the two gates of x W_ih' + h W_hh' + b
 *   n  = tanh(x W_in' + b_in + r (h W_hn' + b_hn))            reset_after
 *   n  = tanh(x W_in' + b_in + b_hn + (r h) W_hn')            reset_after = 0: a second product
 *   h' = (1 - z) n + z h
 *
 * The tape's fourth gate m is h W_hn' + b_hn, or with reset_after = 0 r h. */

/* h' of `count` units of a row. */
INLINE V gru_h(V z, V n, V h) { return V_FMA(z, h, V_MUL(V_SUB(V_SET1(1.0f), z), n)); }

/* ----------------------------------------------------------------------------------------------- forward, reset_after */

INLINE void gru_rows(const Step *s, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows, const int standard) {
    const fl_spec *e = &s->k->spec;
    const ptrdiff_t H = e->H, u = panel * VL;
    const int count = (int)fl_min(VL, H - u);
    for (const ptrdiff_t end = row + rows; row < end; row++, tile += 4 * VL) {
        const V r = known_gate(e, 0, FL_SIGMOID, V_LOAD(tile), standard),
                z = known_gate(e, 0, FL_SIGMOID, V_LOAD(tile + VL), standard);
        const V m = V_LOAD(tile + 3 * VL);
        const V n = known_gate(e, 1, FL_TANH, V_FMA(r, m, V_LOAD(tile + 2 * VL)), standard);
        const V h = V_LOADN(s->h + row * H + u, count);
        give_gate(s, row, 0, u, r, count);
        give_gate(s, row, 1, u, z, count);
        give_gate(s, row, 2, u, n, count);
        give_gate(s, row, 3, u, m, count);
        give_h(s, row, u, gru_h(z, n, h), count);
    }
}
INLINE void gru_gates(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    gru_rows(context, tile, panel, row, rows, 1);
}
INLINE void gru_gates_generic(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    gru_rows(context, tile, panel, row, rows, 0);
}
EPILOGUE_OF_BYTES(gru_gates, gru_gates, 4, 3, 3)
/* A single row calls the generic epilogue: inlined, its calls of activations would keep the sums in memory. */
EPILOGUE(gru_gates_generic, gru_gates_generic_tile, 4, 3, 3)

/* ------------------------------------------------------------------------------------------- forward, reset_after = 0 */

/* First phase: r and z, and m = r h for the second product. A panel holds both gates of two vectors of units. */
INLINE void gru_reset(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    const Step *s = context;
    const fl_spec *e = &s->k->spec;
    const ptrdiff_t H = e->H, first = panel * 2 * VL, end_unit = fl_min(H, first + 2 * VL);
    for (const ptrdiff_t end = row + rows; row < end; row++)
        for (ptrdiff_t u = first; u < end_unit; u += VL, tile += 2 * VL) {
            const int count = (int)fl_min(VL, H - u);
            const V r = v_gate(e, 0, V_LOAD(tile)), z = v_gate(e, 0, V_LOAD(tile + VL));
            const V m = V_MUL(r, V_LOADN(s->h + row * H + u, count));
            V_STOREN(s->m + row * H + u, m, count);
            V_STOREN(s->z + row * H + u, z, count);
            give_gate(s, row, 0, u, r, count);
            give_gate(s, row, 1, u, z, count);
            give_gate(s, row, 3, u, m, count);
        }
}
EPILOGUE(gru_reset, gru_reset, 4, 4, 2)

/* Second phase, over plain panels: n and h'. */
INLINE void gru_candidate(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    const Step *s = context;
    const fl_spec *e = &s->k->spec;
    const ptrdiff_t first = panel * 4 * VL, H = e->H, width = fl_min(4 * VL, padded(H - first));
    for (const ptrdiff_t end = row + rows; row < end; row++, tile += width)
        for (ptrdiff_t v = 0; v < width; v += VL) {
            const ptrdiff_t u = first + v;
            const int count = (int)fl_min(VL, H - u);
            const V n = v_gate(e, 1, V_LOAD(tile + v)), z = V_LOADN(s->z + row * H + u, count);
            give_gate(s, row, 2, u, n, count);
            give_h(s, row, u, gru_h(z, n, V_LOADN(s->h + row * H + u, count)), count);
        }
}
EPILOGUE(gru_candidate, gru_candidate, 4, 4, 2)

/* ---------------------------------------------------------------------------------------------------------- backward */

/* dz and dn take the gates' places, and dh becomes the part of it that does not go through the gates. With reset_after
 * also dr, and the gradient of m in m's place. */
INLINE void gru_rows_back(const Back *s, ptrdiff_t n, const int standard) {
    const fl_spec *e = &s->k->spec;
    const ptrdiff_t H = e->H;
    for (ptrdiff_t row = 0; row < n; row++) {
        float *const gates = s->gates + row * s->ld_gates;
        const float *const h_prev = s->h_prev[row];
        for (ptrdiff_t u = 0; u < H; u += VL) {
            const int count = (int)fl_min(VL, H - u);
            const V r = V_LOADN(gates + u, count), z = V_LOADN(gates + H + u, count);
            const V cand = V_LOADN(gates + 2 * H + u, count), dh = whole_dh(s, row, u, count);
            const V dz = V_MUL(V_MUL(dh, V_SUB(V_LOADN(h_prev + u, count), cand)),
                               known_dgate(s->k, 0, FL_SIGMOID, z, standard));
            const V dn = V_MUL(V_MUL(dh, V_SUB(V_SET1(1.0f), z)), known_dgate(s->k, 1, FL_TANH, cand, standard));
            if (e->reset_after) {
                const V m = V_LOADN(gates + 3 * H + u, count);
                V_STOREN(gates + u, V_MUL(V_MUL(dn, m), known_dgate(s->k, 0, FL_SIGMOID, r, standard)), count);
                V_STOREN(gates + 3 * H + u, V_MUL(dn, r), count);
            }
            V_STOREN(gates + H + u, dz, count);
            V_STOREN(gates + 2 * H + u, dn, count);
            V_STOREN(s->dh + row * H + u, V_MUL(dh, z), count);
        }
    }
}

static void gru_back(const Back *s, ptrdiff_t n) {
    if (is_standard(s->k))
        gru_rows_back(s, n, 1);
    else
        gru_rows_back(s, n, 0);
}

/* reset_after = 0: from the gradient of r h, dn W_hn in s->m, to dr, and to the part of dh that comes through r h. */
static void gru_reset_back(const Back *s, ptrdiff_t n) {
    const fl_spec *e = &s->k->spec;
    const ptrdiff_t H = e->H;
    const Operand dn = {s->gates + 2 * H, s->ld_gates, s->k->v_n, H};
    plain_product(s->m, H, n, 0, &dn, &absent);
    for (ptrdiff_t row = 0; row < n; row++) {
        float *const gates = s->gates + row * s->ld_gates;
        for (ptrdiff_t u = 0; u < H; u += VL) {
            const int count = (int)fl_min(VL, H - u);
            const V r = V_LOADN(gates + u, count), drh = V_LOADN(s->m + row * H + u, count);
            const V dr = V_MUL(V_MUL(drh, V_LOADN(s->h_prev[row] + u, count)), v_dgate(s->k, 0, r));
            float *const dh = s->dh + row * H + u;
            V_STOREN(dh, V_FMA(drh, r, V_LOADN(dh, count)), count);
            V_STOREN(gates + u, dr, count);
        }
    }
}
