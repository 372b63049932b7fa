/* cell_rnn.h: the simple RNN cell and its derivative, as rnn_step and backward in _backends/numpy. Part of
 * kernels.h.
 *
 *   h' = tanh(x W_ih' + h W_hh' + b) */

/* Over plain panels. */
INLINE void rnn_rows(const Step *s, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows, const int standard) {
    const fl_spec *e = &s->k->spec;
    const ptrdiff_t first = panel * 4 * VL, H = e->H, width = fl_min(4 * VL, padded(H - first));
    for (const ptrdiff_t end = row + rows; row < end; row++, tile += width)
        for (ptrdiff_t v = 0; v < width; v += VL) {
            const ptrdiff_t u = first + v;
            const V h = known_gate(e, 0, FL_TANH, V_LOAD(tile + v), standard);
            give_h(s, row, u, h, (int)fl_min(VL, H - u));
        }
}
INLINE void rnn_output(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    rnn_rows(context, tile, panel, row, rows, 1);
}
INLINE void rnn_output_generic(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    rnn_rows(context, tile, panel, row, rows, 0);
}
EPILOGUE(rnn_output, rnn_output, 4, 4, 2)
EPILOGUE(rnn_output_generic, rnn_output_generic_tile, 4, 4, 2) /* called, as GRU's */

/* The gradient of the pre-activation, to s->gates. */
INLINE void rnn_rows_back(const Back *s, ptrdiff_t n, const int standard) {
    const ptrdiff_t H = s->k->spec.H;
    for (ptrdiff_t row = 0; row < n; row++)
        for (ptrdiff_t u = 0; u < H; u += VL) {
            const int count = (int)fl_min(VL, H - u);
            const V h = V_LOADN(s->h + row * H + u, count);
            const V d = V_MUL(whole_dh(s, row, u, count), known_dgate(s->k, 0, FL_TANH, h, standard));
            V_STOREN(s->gates + row * s->ld_gates + u, d, count);
        }
}

static void rnn_back(const Back *s, ptrdiff_t n) {
    if (is_standard(s->k))
        rnn_rows_back(s, n, 1);
    else
        rnn_rows_back(s, n, 0);
}
