/* cell_lstm.h: the LSTM cell and its derivative, as lstm_step and lstm_step_backward in _backends/numpy. Part of
 * kernels.h.
 *
 *   i, f, g, o = the four gates of x W_ih' + h W_hh' + b      i, f see peepholes of c, o of c'; input_forget: f = 1 - i
 *   c' = f c + i g
 *   m  = o tanh(c')
 *   h' = m, or with a projection m W_hr' */

/* ----------------------------------------------------------------------------------------------------------- forward */

/* m = o tanh(c') of `count` units of a row. It is h', or goes to the second product. */
INLINE void lstm_h(const Step *s, ptrdiff_t row, ptrdiff_t u, V o, V c, fl_act output, int count) {
    const ptrdiff_t H = s->k->spec.H;
    const V m = V_MUL(o, v_act(output, c));
    if (!s->k->spec.projected) {
        give_h(s, row, u, m, count);
        return;
    }
    V_STOREN(s->m + row * H + u, m, count);
    if (s->tape_m)
        V_STOREN(s->tape_m + (s->tape_row0 + row) * H + u, m, count);
}

/* `count` units from u on, `lanes` to a gate, of rows row.., whose sums are in the tile. A row's h' is made while the next
 * row's gates are. Lanes beyond `count` hold anything. */
INLINE void lstm_rows(const Step *s, const float *tile, ptrdiff_t u, int lanes, int count, ptrdiff_t row, int rows,
                      const int standard) {
    const fl_spec *e = &s->k->spec;
    const ptrdiff_t H = e->H;
    const float *const peep = s->k->peep;
    const fl_act output = standard ? (fl_act){.id = FL_TANH} : e->act[2];
    V c = V_SET1(0.0f), o = c;
    for (int r = 0; r < rows; r++, row++, tile += 4 * lanes) {
        const V c_before = c, o_before = o; /* of the row before */
        V i = V_LOAD(tile), f = V_LOAD(tile + lanes), g = V_LOAD(tile + 2 * lanes);
        o = V_LOAD(tile + 3 * lanes);
        float *const at_c = row_of_c(s, row) + u;
        c = V_LOADN(at_c, count);
        if (standard) {
            v_gates(&i, &f, &g, &o);
        } else {
            if (peep) {
                i = V_FMA(V_LOADN(peep + u, count), c, i);
                f = V_FMA(V_LOADN(peep + H + u, count), c, f);
            }
            i = v_gate(e, 0, i);
            f = e->input_forget ? V_SUB(V_SET1(1.0f), i) : v_gate(e, 0, f);
            g = v_gate(e, 1, g);
        }
        c = V_FMA(f, c, V_MUL(i, g)); /* c' = f c + i g */
        if (!standard) {
            if (peep)
                o = V_FMA(V_LOADN(peep + 2 * H + u, count), c, o);
            o = v_gate(e, 0, o);
        }
        V_STOREN(at_c, c, count);
        if (s->gates) {
            give_gate(s, row, 0, u, i, count);
            give_gate(s, row, 1, u, f, count);
            give_gate(s, row, 2, u, g, count);
            give_gate(s, row, 3, u, o, count);
            V_STOREN(s->tape_c + (s->tape_row0 + row) * H + u, c, count);
        }
        if (r)
            lstm_h(s, row - 1, u, o_before, c_before, output, count);
    }
    lstm_h(s, row - 1, u, o, c, output, count);
}

INLINE void lstm_gates_of(const Step *s, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows,
                          const int standard) {
    const ptrdiff_t u = panel * VL;
    const int count = (int)fl_min(VL, s->k->spec.H - u);
    if (standard && count == VL)
        lstm_rows(s, tile, u, VL, VL, row, rows, 1);
    else
        lstm_rows(s, tile, u, gate_lanes(4, count), count, row, rows, standard);
}
INLINE void lstm_gates(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    lstm_gates_of(context, tile, panel, row, rows, 1);
}
/* A panel whose gates share no vectors, so that a single row's gates stay in registers. */
INLINE void lstm_full(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    const Step *s = context;
    const ptrdiff_t u = panel * VL, left = s->k->spec.H - u;
    if (left >= VL)
        lstm_rows(s, tile, u, VL, VL, row, rows, 1);
    else
        lstm_rows(s, tile, u, VL, (int)left, row, rows, 1);
}
INLINE void lstm_gates_generic(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    lstm_gates_of(context, tile, panel, row, rows, 0);
}
EPILOGUE_OF_BYTES(lstm_gates, lstm_full, 4, 4, 2)
EPILOGUE(lstm_gates_generic, lstm_gates_generic, 4, 4, 2)

/* h' = m W_hr', over plain panels. */
INLINE void lstm_projection(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    const Step *s = context;
    const ptrdiff_t first = panel * 4 * VL, R = s->k->spec.R, width = fl_min(4 * VL, padded(R - first));
    for (const ptrdiff_t end = row + rows; row < end; row++, tile += width)
        for (ptrdiff_t v = 0; v < width; v += VL)
            give_h(s, row, first + v, V_LOAD(tile + v), (int)fl_min(VL, R - first - v));
}
EPILOGUE(lstm_projection, lstm_projection, 4, 4, 2)

/* ---------------------------------------------------------------------------------------------------------- backward */

/* `count` units of a row from u on: the gates' gradients take the gates' places; dc becomes that of c. dm is dh + dy or,
 * with a projection, in s->m. */
INLINE void lstm_unit_back(const Back *s, ptrdiff_t row, ptrdiff_t u, const int count, const int standard) {
    const fl_spec *e = &s->k->spec;
    const ptrdiff_t H = e->H;
    const float *const peep = standard ? NULL : s->k->peep;
    const fl_act output = standard ? (fl_act){.id = FL_TANH} : e->act[2];
    float *const gates = s->gates + row * s->ld_gates + u, *const at_dc = s->dc + row * H + u;
    const V i = V_LOADN(gates, count), f = V_LOADN(gates + H, count);
    const V g = V_LOADN(gates + 2 * H, count), o = V_LOADN(gates + 3 * H, count);
    const V tc = v_act(output, V_LOADN(s->c + row * H + u, count)); /* tanh(c') */
    const V dm = e->projected ? V_LOADN(s->m + row * H + u, count) : whole_dh(s, row, u, count);
    const V d_o = V_MUL(V_MUL(dm, tc), known_dgate(s->k, 0, FL_SIGMOID, o, standard));
    V dc = V_FMA(V_MUL(dm, o), v_dact(output, tc), V_LOADN(at_dc, count)); /* of c' */
    if (peep)
        dc = V_FMA(d_o, V_LOADN(peep + 2 * H + u, count), dc);
    const V c_prev = V_LOADN(s->c_prev[row] + u, count);
    const int f_of_i = !standard && e->input_forget; /* f = 1 - i: what f would have goes to i, negated */
    const V for_i = f_of_i ? V_SUB(g, c_prev) : g;
    const V di = V_MUL(V_MUL(dc, for_i), known_dgate(s->k, 0, FL_SIGMOID, i, standard));
    const V df = f_of_i ? V_SET1(0.0f) : V_MUL(V_MUL(dc, c_prev), known_dgate(s->k, 0, FL_SIGMOID, f, standard));
    const V dg = V_MUL(V_MUL(dc, i), known_dgate(s->k, 1, FL_TANH, g, standard));
    dc = V_MUL(dc, f); /* of c */
    if (peep) {
        dc = V_FMA(di, V_LOADN(peep + u, count), dc);
        dc = V_FMA(df, V_LOADN(peep + H + u, count), dc);
    }
    V_STOREN(gates, di, count);
    V_STOREN(gates + H, df, count);
    V_STOREN(gates + 2 * H, dg, count);
    V_STOREN(gates + 3 * H, d_o, count);
    V_STOREN(at_dc, dc, count);
}

static void lstm_back(const Back *s, ptrdiff_t n) {
    const ptrdiff_t H = s->k->spec.H;
    const int standard = is_standard(s->k);
    for (ptrdiff_t row = 0; row < n; row++)
        for (ptrdiff_t u = 0; u < H; u += VL) {
            const int count = (int)fl_min(VL, H - u);
            if (!standard)
                lstm_unit_back(s, row, u, count, 0);
            else if (count == VL)
                lstm_unit_back(s, row, u, VL, 1);
            else
                lstm_unit_back(s, row, u, count, 1);
        }
}

/* With a projection: keeps dh + dy, which W_hr's gradient needs too, and makes dm = (dh + dy) W_hr of it. */
static void lstm_projection_back(const Back *s, ptrdiff_t n) {
    const ptrdiff_t H = s->k->spec.H, R = s->k->spec.R;
    for (ptrdiff_t row = 0; row < n; row++)
        for (ptrdiff_t u = 0; u < R; u += VL) {
            const int count = (int)fl_min(VL, R - u);
            V_STOREN(s->dh_all + row * R + u, whole_dh(s, row, u, count), count);
        }
    const Operand dh = {s->dh_all, R, s->k->v_r, R};
    plain_product(s->m, H, n, 0, &dh, &absent);
}
