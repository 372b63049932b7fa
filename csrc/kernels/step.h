/* step.h: what the cells' equations and derivatives share: the rows of one step, forward and backward. Part of
 * kernels.h. */

/* ----------------------------------------------------------------------------------------------------------- forward */

/* The rows of one step of one chunk. Pointers to state and scratch memory are at the chunk's first row; those to y and
 * the tape at the call's first row. */
typedef struct {
    const fl_block *k;
    float *h, *c; /* (n, R), (n, H) state; c is overwritten, h is still read while h_new is written */
    float *h_new; /* (n, R) h' */
    float *m, *z; /* (n, H), (n, H) what the step's second product needs of the first */
    float *y;     /* (rows, ldy), or NULL */
    ptrdiff_t ldy;
    float *gates, *tape_c, *tape_h, *tape_m; /* (N, 4H), (N, H), (N, R), (N, H), or NULL */
    ptrdiff_t tape_row0;                     /* first packed row of this step */
    ptrdiff_t y_row0;                        /* first row of y of this step */
    const int64_t *y_rows;                   /* (n) offsets from y_row0, or NULL: contiguous */
    Integers of_x, of_h;                     /* integers: memory for n quantised rows of x, and of h or m */
    float *const *records; /* (n) where each row's h' and c lie, from at_h and at_c on, in place of h_new, c; or NULL */
    ptrdiff_t at_h, at_c;
} Step;

/* A row's c, and where its h' goes. */
INLINE float *row_of_c(const Step *s, ptrdiff_t row) {
    return s->records ? s->records[row] + s->at_c : s->c + row * s->k->spec.H;
}
INLINE float *row_of_h_new(const Step *s, ptrdiff_t row) {
    return s->records ? s->records[row] + s->at_h : s->h_new + row * s->k->spec.R;
}

/* Writes `count` units of a row's h' from u on: to the state, to y and to the tape. */
INLINE void give_h(const Step *s, ptrdiff_t row, ptrdiff_t u, V h, int count) {
    const ptrdiff_t R = s->k->spec.R;
    V_STOREN(row_of_h_new(s, row) + u, h, count);
    if (s->y)
        V_STOREN(s->y + (s->y_row0 + (s->y_rows ? s->y_rows[row] : row)) * s->ldy + u, h, count);
    if (s->tape_h)
        V_STOREN(s->tape_h + (s->tape_row0 + row) * R + u, h, count);
}

/* Writes units of a gate to the tape. */
INLINE void give_gate(const Step *s, ptrdiff_t row, ptrdiff_t gate, ptrdiff_t u, V v, int count) {
    const ptrdiff_t H = s->k->spec.H;
    if (s->gates)
        V_STOREN(s->gates + (s->tape_row0 + row) * 4 * H + gate * H + u, v, count);
}

/* ---------------------------------------------------------------------------------------------------------- backward */

/* The rows of one step of one chunk going back; every pointer is at the first of them. */
typedef struct {
    const fl_block *k;
    float *dh, *dc;  /* (n, R), (n, H) gradient of the step's result, overwritten with that of the state before it */
    const float *dy; /* (n, ldy), or NULL */
    ptrdiff_t ldy;
    float *dh_all; /* (n, R) overwritten with dh + dy; projection only */
    float *gates;  /* (n, ld_gates) the gates, overwritten with their gradients */
    ptrdiff_t ld_gates;
    const float *c, *h;                         /* (n, H), (n, R) the step's result, on the tape */
    const float *const *c_prev, *const *h_prev; /* (n) rows of the state before the step */
    float *m;                                   /* (n, H) scratch memory */
    int single_row;                             /* B == 1 */
    int reversed_k; /* walk k from the end: what the step before read last is still in the first-level cache */
} Back;

/* dh + dy of `count` units of a row from u on. */
INLINE V whole_dh(const Back *s, ptrdiff_t row, ptrdiff_t u, int count) {
    const V dh = V_LOADN(s->dh + row * s->k->spec.R + u, count);
    return s->dy ? V_ADD(dh, V_LOADN(s->dy + row * s->ldy + u, count)) : dh;
}

/* ------------------------------------------------------------------------------------------------------- activations */

/* The gate of a role (0: gates, 1: candidate) from its pre-activation, which a clip bounds. */
INLINE V v_gate(const fl_spec *e, int role, V x) {
    if (e->clip > 0)
        x = V_MAX(V_SET1(-e->clip), V_MIN(V_SET1(e->clip), x)); /* the constant first: NaN stays */
    return v_act(e->act[role], x);
}

/* Its derivative from its value y: 0 where y is the value of a clipped gate. */
INLINE V v_dgate(const fl_block *k, int role, V y) {
    const V d = v_dact(k->spec.act[role], y);
    if (!(k->spec.clip > 0))
        return d;
    const V zero = V_SET1(0.0f), low = V_SET1(k->ends[role][0]), high = V_SET1(k->ends[role][1]);
    return V_SELECT_EQ(y, low, zero, V_SELECT_EQ(y, high, zero, d));
}

/* Whether the activations are the usual sigmoid and tanh, without peepholes, clip and input_forget. Where a function
 * below takes `standard`, it is a constant wherever the function is inlined, so that no loop asks for an activation. */
static int is_standard(const fl_block *k) {
    const fl_act *act = k->spec.act;
    if (k->spec.clip > 0 || k->spec.input_forget)
        return 0;
    switch (k->spec.kind) {
    case FL_LSTM: return !k->peep && act[0].id == FL_SIGMOID && act[1].id == FL_TANH && act[2].id == FL_TANH;
    case FL_GRU: return act[0].id == FL_SIGMOID && act[1].id == FL_TANH;
    default: return act[0].id == FL_TANH;
    }
}

/* The gate of a role, or its derivative from its value y; `id` is the role's usual activation. */
INLINE V known_gate(const fl_spec *e, int role, const int id, V x, const int standard) {
    return standard ? v_act((fl_act){.id = id}, x) : v_gate(e, role, x);
}
INLINE V known_dgate(const fl_block *k, int role, const int id, V y, const int standard) {
    return standard ? v_dact((fl_act){.id = id}, y) : v_dgate(k, role, y);
}
