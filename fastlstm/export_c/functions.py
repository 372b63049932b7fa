"""The C functions that a written source may need: each a text with the names of those it calls.

They use no library: the exponential function and tanh are their own, with errors of some 3e-7.
"""

from __future__ import annotations

from typing import NamedTuple


class Function(NamedTuple):
    """A C function or macro.

    Parameters
    ----------
    text : str
    needs : tuple of str
        Names in `FUNCTIONS` of what it calls.
    """

    text: str
    needs: tuple[str, ...] = ()


FUNCTIONS: dict[str, Function] = {
    "ADD_PRODUCT": Function(
        """\
/* sum[m] += w[k][m] x[k], summed over k < K, for every m < M; K is a multiple of 8. Eight k at a time: sum is read and
   written once for them. */
#define ADD_PRODUCT(sum, w, x, K, M)                                                                      \\
    do {                                                                                                  \\
        int k_, m_;                                                                                       \\
        for (k_ = 0; k_ < (K); k_ += 8) {                                                                 \\
            const float *w_ = (w) + k_ * (M);                                                             \\
            const float x0_ = (x)[k_], x1_ = (x)[k_ + 1], x2_ = (x)[k_ + 2], x3_ = (x)[k_ + 3];           \\
            const float x4_ = (x)[k_ + 4], x5_ = (x)[k_ + 5], x6_ = (x)[k_ + 6], x7_ = (x)[k_ + 7];       \\
            for (m_ = 0; m_ < (M); m_++)                                                                  \\
                (sum)[m_] += ((w_[m_] * x0_ + w_[(M) + m_] * x1_)                                         \\
                              + (w_[2 * (M) + m_] * x2_ + w_[3 * (M) + m_] * x3_))                        \\
                             + ((w_[4 * (M) + m_] * x4_ + w_[5 * (M) + m_] * x5_)                         \\
                                + (w_[6 * (M) + m_] * x6_ + w_[7 * (M) + m_] * x7_));                     \\
        }                                                                                                 \\
    } while (0)"""
    ),
    "ADD_REST": Function(
        """\
/* The same for the last k, from `first`, which is a multiple of 8. */
#define ADD_REST(sum, w, x, first, K, M)                                                                  \\
    do {                                                                                                  \\
        int k_, m_;                                                                                       \\
        for (k_ = (first); k_ < (K); k_++)                                                                \\
            for (m_ = 0; m_ < (M); m_++) (sum)[m_] += (w)[k_ * (M) + m_] * (x)[k_];                       \\
    } while (0)"""
    ),
    "ADD_PRODUCT_INT8": Function(
        """\
/* sum[m] += factor scale[m] w[m][k] q[k], summed over k < K, for every m < M; the sum over k is exact. */
#define ADD_PRODUCT_INT8(sum, w, scale, q, factor, K, M)                                                  \\
    do {                                                                                                  \\
        int k_, m_;                                                                                       \\
        for (m_ = 0; m_ < (M); m_++) {                                                                    \\
            const int8_t *w_ = (w) + m_ * (K);                                                            \\
            int32_t sum_ = 0;                                                                             \\
            for (k_ = 0; k_ < (K); k_++) sum_ += w_[k_] * (q)[k_];                                        \\
            (sum)[m_] += ((scale)[m_] * (factor)) * (float)sum_;                                          \\
        }                                                                                                 \\
    } while (0)"""
    ),
    "fl_round": Function(
        """\
/* q[k] = x[k] * (127 / m), rounded to the nearest integer, ties to even, for every k < n, with m the largest of `least`
   and all |x[k]|. Returns m / 127, or NaN where an x[k] is NaN or infinite: q is zero then. */
static float fl_round(const float *x, int8_t *q, float least, int n)
{
    const float big = 12582912.0f; /* 1.5 * 2^23: a sum with it has no bits for a fraction */
    float largest = least, bad = 0.0f, inverse;
    int k;
    for (k = 0; k < n; k++) {
        const float size = x[k] < 0.0f ? -x[k] : x[k];
        largest = size > largest ? size : largest;
        bad += x[k] * 0.0f;
    }
    inverse = 127.0f / largest;
    for (k = 0; k < n; k++) {
        volatile float sum = (bad == 0.0f ? x[k] * inverse : 0.0f) + big;
        q[k] = (int8_t)(sum - big);
    }
    return largest / 127.0f + bad;
}"""
    ),
    "fl_tanh": Function(
        """\
static float fl_tanh(float x)
{
    float u, p, q;
    x = x > 7.9f ? 7.9f : x;
    x = x < -7.9f ? -7.9f : x;
    u = x * x;
    p = x * (1.0f + u * (1.337967286e-1f + u * (3.493980256e-3f + u * (2.058257232e-5f + u * 1.331780988e-8f))));
    q = 1.0f + u * (4.671298817e-1f + u * (2.587086840e-2f + u * (3.283003181e-4f + u * 7.761502178e-7f)));
    return p / q;
}"""
    ),
    "fl_sigmoid": Function(
        """\
static float fl_sigmoid(float x)
{
    return 0.5f + 0.5f * fl_tanh(0.5f * x);
}""",
        ("fl_tanh",),
    ),
    "fl_exp": Function(
        """\
/* 2^n * exp(r) with |r| <= log(2) / 2. */
static float fl_exp(float x)
{
    union {
        float number;
        int32_t bits;
    } power;
    float n, r;
    if (!(x > -87.0f)) return x <= -87.0f ? 0.0f : x; /* the second x is NaN */
    if (x > 88.0f) x = 88.0f;
    n = (float)(int32_t)(x * 1.442695041f + (x < 0.0f ? -0.5f : 0.5f));
    r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    power.bits = ((int32_t)n + 127) << 23;
    return power.number * (1.0f + r * (1.0f + r * (0.5f + r * (0.166666667f + r * (4.16666667e-2f
           + r * (8.33333333e-3f + r * 1.38888889e-3f))))));
}"""
    ),
    "fl_log1p": Function(
        """\
/* log(1 + u) for 0 <= u <= 1: the series of 2 atanh(s). */
static float fl_log1p(float u)
{
    const float s = u / (2.0f + u), t = s * s;
    return 2.0f * s * (1.0f + t * (0.333333333f + t * (0.2f + t * (0.142857143f + t * (0.111111111f
           + t * (0.0909090909f + t * 0.0769230769f))))));
}"""
    ),
    "fl_softplus": Function(
        """\
static float fl_softplus(float x)
{
    return (x > 0.0f ? x : 0.0f) + fl_log1p(fl_exp(x > 0.0f ? -x : x));
}""",
        ("fl_exp", "fl_log1p"),
    ),
    "fl_elu": Function(
        """\
static float fl_elu(float x, float alpha)
{
    return x > 0.0f ? x : x > -0.3f ? alpha * x * (1.0f + x * (0.5f + x * (0.166666667f + x * (4.16666667e-2f
           + x * (8.33333333e-3f + x * 1.38888889e-3f))))) : alpha * (fl_exp(x) - 1.0f);
}""",
        ("fl_exp",),
    ),
    "fl_clip": Function(
        """\
static float fl_clip(float x, float low, float high)
{
    x = x < low ? low : x;
    return x > high ? high : x;
}"""
    ),
    "fl_softsign": Function(
        """\
static float fl_softsign(float x)
{
    return x / (1.0f + (x < 0.0f ? -x : x));
}"""
    ),
    "fl_softmax": Function(
        """\
static void fl_softmax(float *y, int n)
{
    float largest = y[0], sum = 0.0f;
    int j;
    for (j = 1; j < n; j++) largest = y[j] > largest ? y[j] : largest;
    for (j = 0; j < n; j++) sum += y[j] = fl_exp(y[j] - largest);
    for (j = 0; j < n; j++) y[j] /= sum;
}""",
        ("fl_exp",),
    ),
}


def text_of(used: set[str]) -> str:
    """The functions in `used` and what these call, each before its callers."""
    wanted: dict[str, None] = {}

    def want(name: str) -> None:
        for inner in FUNCTIONS[name].needs:
            want(inner)
        wanted[name] = None

    for name in FUNCTIONS:
        if name in used:
            want(name)
    return "\n\n".join(FUNCTIONS[name].text for name in wanted)
