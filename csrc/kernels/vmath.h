/* vmath.h: activations and their derivatives on vectors. NaN goes in and comes out; infinities saturate. */

/* exp(x) = 2^n exp(r) for -88 <= x <= 89; r = x - n ln 2, ln 2 in two parts, and Cephes' polynomial on |r| <= ln 2 / 2.
 * Relative error at most EXP_ERROR (tests/test_losses.py) above -126 ln 2; below -126.5 ln 2 exactly 0, above
 * 127.5 ln 2 infinity. */
INLINE V v_exp_inside(V x) {
    const V round = V_SET1(12582912.0f); /* 1.5 * 2^23: a sum with it has no fraction */
    const V n = V_SUB(V_FMA(x, V_SET1(1.44269504f), round), round);
    const V r = V_FMA(n, V_SET1(2.12194440e-4f), V_FMA(n, V_SET1(-0.693359375f), x));
    V p = V_SET1(1.9875691500e-4f);
    p = V_FMA(p, r, V_SET1(1.3981999507e-3f));
    p = V_FMA(p, r, V_SET1(8.3334519073e-3f));
    p = V_FMA(p, r, V_SET1(4.1665795894e-2f));
    p = V_FMA(p, r, V_SET1(1.6666665459e-1f));
    p = V_FMA(p, r, V_SET1(5.0000001201e-1f));
    p = V_ADD(V_FMA(p, V_MUL(r, r), r), V_SET1(1.0f));
    const V scale = V_SHIFT23(V_ADD(n, V_SET1(12583039.0f))); /* 2^n: n + 127 as an exponent */
    return V_MUL(p, scale);
}

/* exp(x) for x <= 0, as a softmax has it: where float32's numbers become denormal, and so at -infinity, exactly 0. */
INLINE V v_exp(V x) {
    const V least = V_SET1(-87.3365447f);
    return V_SELECT_GT(least, x, V_SET1(0.0f), v_exp_inside(V_MAX(least, x)));
}

#ifdef V_LOOKUP
#include "tanh_table.h"

/* tanh(size) for size >= 0, of n vectors, in place: a polynomial about the middle of each number's segment; half the work
 * of exp and a division. The n vectors go through each stage together, so that the processor, which looks only so far
 * ahead, always has a multiply-add whose operands are ready. */
INLINE void v_tanh_sizes(V *size, const int n) {
    VI segment[4];
    V t[4], p[4];
    EACH(j, n)
        size[j] = V_MIN(V_SET1(tanh_most), size[j]); /* the constant first: NaN stays */
    EACH(j, n)
        segment[j] = V_SEGMENT(size[j], TANH_BITS, TANH_FIRST);
    EACH(j, n)
        t[j] = V_SUB(size[j], V_LOOKUP(tanh_table[0], segment[j]));
    EACH(j, n)
        p[j] = V_LOOKUP(tanh_table[TANH_DEGREE + 1], segment[j]);
    EACH(k, TANH_DEGREE) {
        EACH(j, n) {
            p[j] = V_FMA(p[j], t[j], V_LOOKUP(tanh_table[TANH_DEGREE - k], segment[j]));
        }
    }
    EACH(j, n)
        size[j] = p[j];
}

INLINE V v_tanh_size(V size) {
    v_tanh_sizes(&size, 1);
    return size;
}

/* Within 3 units in the last place. */
INLINE V v_tanh(V x) { return V_COPYSIGN(v_tanh_size(V_ABS(x)), x); }

/* (1 + tanh(x / 2)) / 2: within 1e-7, inside [0, 1]. */
INLINE V v_half_size(V x) { return V_MUL(V_SET1(0.5f), V_ABS(x)); }
INLINE V v_sigmoid_of(V x, V tanh_of_half_size) {
    const V half = V_SET1(0.5f);
    return V_FMA(V_COPYSIGN(half, x), tanh_of_half_size, half);
}
INLINE V v_sigmoid(V x) { return v_sigmoid_of(x, v_tanh_size(v_half_size(x))); }

/* The activations of LSTM's gates together: sigmoid, and tanh of the candidate g. */
INLINE void v_gates(V *i, V *f, V *g, V *o) {
    V size[4] = {v_half_size(*i), v_half_size(*f), V_ABS(*g), v_half_size(*o)};
    v_tanh_sizes(size, 4);
    *i = v_sigmoid_of(*i, size[0]);
    *f = v_sigmoid_of(*f, size[1]);
    *g = V_COPYSIGN(size[2], *g);
    *o = v_sigmoid_of(*o, size[3]);
}
#else
/* 1 / (1 + exp(-x)): within 1e-7, inside [0, 1], exactly 0 and 1 beyond -89 and 88. */
INLINE V v_sigmoid(V x) {
    const V one = V_SET1(1.0f), most = V_SET1(89.0f), least = V_SET1(-88.0f);
    const V y = V_MAX(least, V_MIN(most, V_SUB(V_SET1(0.0f), x))); /* the constant first: NaN stays */
    return V_DIV(one, V_ADD(one, v_exp_inside(y)));
}

/* tanh(x) = 1 - 2 / (1 + exp(2 |x|)) with x's sign; below 0.625, where that cancels, Cephes' polynomial
 * x + x^3 p(x^2). Within 3 units in the last place. */
INLINE V v_tanh(V x) {
    const V one = V_SET1(1.0f), size = V_ABS(x), s = V_MUL(x, x);
    const V e = v_exp_inside(V_MIN(V_SET1(40.0f), V_ADD(size, size)));
    const V large = V_SUB(one, V_DIV(V_SET1(2.0f), V_ADD(one, e)));
    V p = V_SET1(-5.70498872745e-3f);
    p = V_FMA(p, s, V_SET1(2.06390887954e-2f));
    p = V_FMA(p, s, V_SET1(-5.37397155531e-2f));
    p = V_FMA(p, s, V_SET1(1.33314422036e-1f));
    p = V_FMA(p, s, V_SET1(-3.33332819422e-1f));
    const V small = V_FMA(V_MUL(p, s), x, x);
    return V_SELECT_GT(V_SET1(0.625f), size, small, V_COPYSIGN(large, x));
}

INLINE void v_gates(V *i, V *f, V *g, V *o) {
    *i = v_sigmoid(*i), *f = v_sigmoid(*f), *g = v_tanh(*g), *o = v_sigmoid(*o);
}
#endif

/* Rare activations that need a transcendental function: one lane at a time. */
static float rare_scalar(fl_act f, float x) {
    switch (f.id) {
    case FL_THRESHOLDED_RELU: return x < f.alpha ? 0.0f : x;
    case FL_SCALED_TANH: return f.alpha * tanhf(f.beta * x);
    case FL_ELU: return x > 0 ? x : f.alpha * expm1f(x);
    case FL_SOFTSIGN: return x / (1 + fabsf(x));
    default: return (x < 0 ? 0.0f : x) + log1pf(expf(-fabsf(x))); /* softplus */
    }
}

static NOINLINE V v_act_rare(fl_act f, V x) {
    const V alpha = V_SET1(f.alpha), zero = V_SET1(0.0f), one = V_SET1(1.0f);
    switch (f.id) {
    case FL_RELU: return V_MAX(zero, x);
    case FL_IDENTITY: return x;
    case FL_AFFINE: return V_FMA(alpha, x, V_SET1(f.beta));
    case FL_HARD_SIGMOID:
    case FL_HARD_SIGMOID_KERAS2: return V_MAX(zero, V_MIN(one, V_FMA(alpha, x, V_SET1(f.beta))));
    case FL_LEAKY_RELU: return V_SELECT_GT(x, zero, x, V_MUL(alpha, x));
    default: break;
    }
    float lanes[VL];
    V_STORE(lanes, x);
    for (int i = 0; i < VL; i++)
        lanes[i] = rare_scalar(f, lanes[i]);
    return V_LOAD(lanes);
}

INLINE V v_act(fl_act f, V x) {
    if (f.id == FL_SIGMOID)
        return v_sigmoid(x);
    if (f.id == FL_TANH)
        return v_tanh(x);
    return v_act_rare(f, x);
}

/* Derivatives of the rare activations, from the output y. */
static NOINLINE V v_dact_rare(fl_act f, V y) {
    const V alpha = V_SET1(f.alpha), zero = V_SET1(0.0f), one = V_SET1(1.0f);
    switch (f.id) {
    case FL_RELU: return V_SELECT_GT(y, zero, one, zero);
    case FL_IDENTITY: return one;
    case FL_AFFINE: return alpha;
    case FL_HARD_SIGMOID:
    case FL_HARD_SIGMOID_KERAS2: return V_SELECT_GT(y, zero, V_SELECT_GT(one, y, alpha, zero), zero);
    case FL_LEAKY_RELU: return V_SELECT_GT(y, zero, one, alpha);
    case FL_THRESHOLDED_RELU: return V_SELECT_GT(V_ABS(y), zero, one, zero);
    case FL_SCALED_TANH: return V_MUL(V_SET1(f.beta), V_SUB(alpha, V_DIV(V_MUL(y, y), alpha)));
    case FL_ELU: return V_SELECT_GT(y, zero, one, V_ADD(y, alpha));
    case FL_SOFTSIGN: {
        const V d = V_SUB(one, V_ABS(y));
        return V_MUL(d, d);
    }
    default: break; /* softplus: 1 - exp(-y) */
    }
    float lanes[VL];
    V_STORE(lanes, y);
    for (int i = 0; i < VL; i++)
        lanes[i] = -expm1f(-lanes[i]);
    return V_LOAD(lanes);
}

INLINE V v_dact(fl_act f, V y) {
    const V one = V_SET1(1.0f);
    if (f.id == FL_SIGMOID)
        return V_MUL(y, V_SUB(one, y));
    if (f.id == FL_TANH)
        return V_SUB(one, V_MUL(y, y));
    return v_dact_rare(f, y);
}
