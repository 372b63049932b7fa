"""Makes tanh_table.h: its output, formatted by clang-format, is that file.

|x| is cut into 16 segments, two to an octave up to 12; on each, tanh is a polynomial about the segment's middle, fitted
to the least relative error (Lawson's iterated weights). The first segment begins at 0 and is odd, so that small results
keep their relative precision. Segments are numbered by the lowest four bits of what is left of |x|'s bits.
"""

from itertools import pairwise

import numpy as np

SEGMENTS, DEGREE = 16, 6
BITS = 22  # of a float's bits dropped: what stays is its exponent and one bit of its fraction
LAST = int(np.float32(8).view(np.int32)) >> BITS  # the segment from 8 on
MOST = 9.3125  # tanh is 1 in float32 from 9.02 on


def edge(segment: int) -> float:
    """Where a segment begins."""
    return float(np.int32((LAST - SEGMENTS + 1 + segment) << BITS).view(np.float32)) if segment else 0.0


def fit(low: float, high: float, middle: float) -> np.ndarray:
    """Coefficients (DEGREE + 1), lowest first, in x - middle."""
    half = (high - low) / 2
    x = low + half * (1 + np.cos(np.pi * (np.arange(400) + 0.5) / 400))
    y = np.tanh(x)
    powers = ((x - middle) / half)[:, None] ** np.arange(DEGREE + 1)
    if low == 0:  # x + a x^3 + b x^5
        a, b = np.linalg.lstsq(x[:, None] ** [2, 4], y / x - 1, rcond=None)[0]
        return np.array([0, 1, 0, a, 0, b, 0])
    weights = np.ones(x.size)
    for _ in range(60):
        root = np.sqrt(weights)
        c = np.linalg.lstsq(powers * (root / y)[:, None], root, rcond=None)[0]
        error = abs(powers @ c / y - 1)
        weights *= error / error.max() + 1e-3
    return c / half ** np.arange(DEGREE + 1)


def main() -> None:
    edges = [edge(segment) for segment in range(SEGMENTS)] + [MOST]
    middles = [(low + high) / 2 if low else 0.0 for low, high in pairwise(edges)]
    rows = np.array([fit(*pair, middle) for pair, middle in zip(pairwise(edges), middles, strict=True)]).T
    print("/* tanh_table.h: made by tanh_table.py. The segments' middles, then their coefficients, lowest first. */")
    first = LAST - SEGMENTS + 1
    print(f"enum {{ TANH_BITS = {BITS}, TANH_FIRST = {first}, TANH_DEGREE = {DEGREE} }};")
    print(f"static const float tanh_most = {MOST}f;")
    print(f"static const float tanh_table[{DEGREE + 2}][{SEGMENTS}] __attribute__((aligned(64))) = {{")
    for row in np.roll([middles, *rows], first % SEGMENTS, axis=1):
        print("{", ", ".join(f"{float(np.float32(v))!r}f" for v in row), "},")
    print("};")


if __name__ == "__main__":
    main()
