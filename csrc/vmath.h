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

/* tanh(size) for size >= 0: a polynomial about the middle of its segment. Half the work of exp and a division. */
INLINE V v_tanh_size(V size) {
    const V a = V_MIN(V_SET1(tanh_most), size); /* the constant first: NaN stays */
    const VI i = V_SEGMENT(a, TANH_BITS, TANH_FIRST);
    const V t = V_SUB(a, V_LOOKUP(tanh_table[0], i)), t2 = V_MUL(t, t);
    const V p12 = V_FMA(V_LOOKUP(tanh_table[3], i), t, V_LOOKUP(tanh_table[2], i)); /* c1 + c2 t */
    const V p34 = V_FMA(V_LOOKUP(tanh_table[5], i), t, V_LOOKUP(tanh_table[4], i));
    const V p56 = V_FMA(V_LOOKUP(tanh_table[7], i), t, V_LOOKUP(tanh_table[6], i));
    return V_FMA(V_FMA(V_FMA(p56, t2, p34), t2, p12), t, V_LOOKUP(tanh_table[1], i));
}

/* Within 3 units in the last place. */
INLINE V v_tanh(V x) { return V_COPYSIGN(v_tanh_size(V_ABS(x)), x); }

/* (1 + tanh(x / 2)) / 2: within 1e-7, inside [0, 1]. */
INLINE V v_sigmoid(V x) {
    const V half = V_SET1(0.5f);
    return V_FMA(V_COPYSIGN(half, x), v_tanh_size(V_MUL(half, V_ABS(x))), half);
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
#endif

/* The rest are rare: one lane at a time where a transcendental is needed. */
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

/* Derivative by the input where the output is y. */
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
