"""Exponentials that run in vectors, the activations made of them, and their derivatives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from ....spec import ACTIVATIONS
from .compiling import jit, jit_inner

IDS = {name: i for i, name in enumerate(ACTIVATIONS)}
SIGMOID, TANH, RELU, IDENTITY = IDS["sigmoid"], IDS["tanh"], IDS["relu"], IDS["identity"]
HARD_SIGMOID, HARD_SIGMOID_KERAS2, AFFINE = IDS["hard_sigmoid"], IDS["hard_sigmoid_keras2"], IDS["affine"]
LEAKY_RELU, THRESHOLDED_RELU, SCALED_TANH = IDS["leaky_relu"], IDS["thresholded_relu"], IDS["scaled_tanh"]
ELU, SOFTSIGN, SOFTPLUS = IDS["elu"], IDS["softsign"], IDS["softplus"]


def _exp_table(dtype: Any, fraction: int, exponent: int, ln2: tuple[float, float], terms: int) -> tuple[Any, ...]:
    """The constants of `exp_parts`, as scalars of one dtype (a Python float would widen the whole computation)."""
    to_integer = 1.5 * 2.0**fraction  # adding it rounds a number to an integer n, in the last bits of the sum
    least = (1 - 2 ** (exponent - 1)) * math.log(2)  # the argument at which 2**n becomes 0
    taylor = [1 / math.factorial(k) for k in range(terms, 0, -1)]  # coefficients of (exp(r) - 1) / r, last term first
    return tuple(dtype(v) for v in (to_integer, 1 / math.log(2), *ln2, least, *taylor))


# ln 2 in two parts; the first has so few bits that n times it is exact. With |r| <= ln(2) / 2, the first omitted Taylor
# term is less than half a unit in the last place.
EXP_FLOAT32 = _exp_table(np.float32, 23, 8, (0.693359375, -2.12194440054690583e-4), 7)
EXP_FLOAT64 = _exp_table(np.float64, 52, 11, (6.93147180369123816490e-01, 1.90821492927058770002e-10), 13)


def exp_table(x: Any) -> Any:
    """The table for x's dtype."""


@overload(exp_table)
def _(x):  # numba compares the two signatures, annotations included
    table = EXP_FLOAT32 if x == types.float32 else EXP_FLOAT64
    return lambda x: table


@intrinsic
def power_of_two(_context: Any, t: Any) -> Any:
    """2**n, where n is the integer in the last bits of t."""
    bits, fraction, bias = (32, 23, 127) if t == types.float32 else (64, 52, 1023)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        integer = ir.IntType(bits)
        n = builder.bitcast(arguments[0], integer)
        return builder.bitcast(builder.shl(builder.add(n, integer(bias)), integer(fraction)), arguments[0].type)

    return t(t), generate


@jit_inner
def exp_parts(z):
    """(s, q) with exp(z) = s + s q for z <= 0: s = 2**n, and q = exp(r) - 1 without cancellation."""
    table = exp_table(z)
    to_integer, log2_e, ln2_high, ln2_low, least = table[0], table[1], table[2], table[3], table[4]
    z = least if z < least else z  # written so that NaN stays
    t = z * log2_e + to_integer
    n = t - to_integer
    r = z - n * ln2_high - n * ln2_low
    q = table[5]
    for term in table[6:]:
        q = q * r + term
    return power_of_two(t), q * r


@jit_inner
def sigmoid(x):
    s, q = exp_parts(-abs(x))
    e = s + s * q
    one = type(x)(1)
    return (one if x >= 0 else e) / (one + e)


@jit_inner
def tanh(x):
    s, q = exp_parts(type(x)(-2) * abs(x))
    e = s * q + (s - type(x)(1))  # exp(-2 |x|) - 1
    return math.copysign(e / (type(x)(2) + e), x)


# -------------------------------------------------------------------------------------- values and derivatives
@jit_inner
def rare(f, alpha, beta, x):
    """f(x) of the activations without a loop of their own."""
    zero, one = type(x)(0), type(x)(1)
    if f in (HARD_SIGMOID, HARD_SIGMOID_KERAS2):
        v = alpha * x + beta
        v = zero if v < zero else v
        return one if v > one else v
    if f == AFFINE:
        return alpha * x + beta
    if f == LEAKY_RELU:
        return x if x > zero else alpha * x
    if f == THRESHOLDED_RELU:
        return zero if x < alpha else x
    if f == SCALED_TANH:
        return alpha * tanh(beta * x)
    if f == ELU:
        return x if x > zero else alpha * math.expm1(x)
    if f == SOFTSIGN:
        return x / (one + abs(x))
    if f == SOFTPLUS:
        return (zero if x < zero else x) + math.log1p(math.exp(-abs(x)))
    return x


@jit_inner
def rare_derivative(f, alpha, beta, y):
    """f'(x) from y = f(x), for the activations of `rare`."""
    zero, one = type(y)(0), type(y)(1)
    if f in (HARD_SIGMOID, HARD_SIGMOID_KERAS2):
        return alpha if zero < y < one else zero
    if f == AFFINE:
        return alpha
    if f == LEAKY_RELU:
        return one if y > zero else alpha
    if f == THRESHOLDED_RELU:
        return zero if y == zero else one
    if f == SCALED_TANH:
        return beta * (alpha - y * y / alpha)
    if f == ELU:
        return one if y > zero else y + alpha
    if f == SOFTSIGN:
        return (one - abs(y)) * (one - abs(y))
    if f == SOFTPLUS:
        return -math.expm1(-y)
    return one


@jit_inner
def value(f, alpha, beta, x):
    """f(x) of any activation."""
    if f == SIGMOID:
        return sigmoid(x)
    if f == TANH:
        return tanh(x)
    if f == RELU:
        return type(x)(0) if x < type(x)(0) else x
    return rare(f, alpha, beta, x)


@jit_inner
def activate_clipped(f, par, x):
    """x = f(x) along a row, x clipped to +-par[2]; where x is not between these, exactly par[3] or par[4]."""
    clip, low, high = par[2], par[3], par[4]
    for j in range(x.size):
        v = x[j]
        inside = clip if v > clip else -clip if v < -clip else v  # written so that NaN stays
        y = value(f, par[0], par[1], inside)
        x[j] = high if v >= clip else low if v <= -clip else y


@jit
def activate(f, par, x):
    """x = f(x) along a row: the reference's `gate`."""
    zero = x.dtype.type(0)
    if par[2] < np.inf:
        activate_clipped(f, par, x)
    elif f == SIGMOID:
        for j in range(x.size):
            x[j] = sigmoid(x[j])
    elif f == TANH:
        for j in range(x.size):
            x[j] = tanh(x[j])
    elif f == RELU:
        for j in range(x.size):
            x[j] = zero if x[j] < zero else x[j]
    else:
        for j in range(x.size):
            x[j] = rare(f, par[0], par[1], x[j])


@jit
def multiply_derivative(f, par, y, d):
    """d = d * f'(x) along a row, from y = f(x): the reference's `dgate`."""
    zero, one = d.dtype.type(0), d.dtype.type(1)
    if f == SIGMOID:
        for j in range(d.size):
            d[j] *= y[j] * (one - y[j])
    elif f == TANH:
        for j in range(d.size):
            d[j] *= one - y[j] * y[j]
    elif f == RELU:
        for j in range(d.size):
            d[j] *= one if y[j] > zero else zero
    else:
        for j in range(d.size):
            d[j] *= rare_derivative(f, par[0], par[1], y[j])
    if par[2] < np.inf:
        for j in range(d.size):
            d[j] = zero if y[j] == par[3] or y[j] == par[4] else d[j]
