"""The walk through time of some sequences of a batch, rows b0 to b1 of the state: its steps and their rows.

Step t has the packed rows offsets[t] to offsets[t + 1], one for each sequence that is long enough, longest first.
"""

from __future__ import annotations

from .compiling import jit, jit_inner
from .products import ROWS, add_product
from .rows import add, copy, put

# Numbers of the input's product that are taken at once: few enough to stay in the second-level cache until their steps
# read them.
STRETCH = 131072


@jit_inner
def steps_in_stretch(offsets, b0, b1, width):
    """Steps whose input's product, `width` numbers a row, is taken at once.

    One, unless there are so few sequences that the tiles of a step are low, and read all weights for little.
    """
    if b1 - b0 >= 2 * ROWS or b1 - b0 < offsets[1]:
        return 1
    return max(1, STRETCH // max(1, (b1 - b0) * width))


@jit_inner
def stretch(begin, steps, T, reverse):
    """(first step, step past the last) of the stretch that the walk reaches after `begin` steps."""
    end = min(begin + steps, T)
    return (T - end, T - begin) if reverse else (begin, end)


@jit_inner
def rows_of_step(offsets, t, b0, b1):
    """(first packed row, row past the last) of step t, of the sequences b0 to b1."""
    lo = offsets[t] + b0
    return lo, max(lo, min(offsets[t] + b1, offsets[t + 1]))


@jit_inner
def rows_of_stretch(offsets, first, last, b0, b1):
    """(first packed row, row past the last) of a stretch: of one step, or of all sequences."""
    lo, hi = rows_of_step(offsets, first, b0, b1)
    return (lo, hi) if last - first == 1 else (lo, offsets[last])


@jit_inner
def input_product(threads, x, ids, weights, a):
    """The columns of a that belong to the input's product = W_x x + b; of token ids, W_x's stored rows."""
    w_x, table, b_x = weights
    width = b_x.size
    for r in range(a.shape[0]):
        row = a[r, :width]
        copy(row, b_x)
        if ids.size:
            add(row, table[ids[r]])
    if not ids.size:
        add_product(threads, x, w_x, a, 0, width)


@jit_inner
def give(h, outputs, first, t, b0, b1):
    """Copy the outputs of step t, of the sequences b0 to b1, to columns of y, if not empty.

    They go to rows from `first` on or, with a row map, to its rows; those of the sequences that have ended become 0.
    """
    y, column, step, sequences = outputs
    if not sequences.size:
        put(h, y[first : first + h.shape[0]], column)
        return
    for b in range(b0, b1):
        into = y[t * step + sequences[b], column : column + h.shape[1]]
        if b - b0 < h.shape[0]:
            copy(into, h[b - b0])
        else:
            into[:] = 0


@jit
def previous(offsets, reverse, kept, initial, out):
    """out = the rows of `kept` one step before, in walking order; `initial` at a sequence's first step."""
    T = offsets.size - 1
    for t in range(T):
        lo, hi = offsets[t], offsets[t + 1]
        p = t + 1 if reverse else t - 1
        alive = min(hi - lo, offsets[p + 1] - offsets[p]) if 0 <= p < T else 0
        for r in range(hi - lo):
            copy(out[lo + r], kept[offsets[p] + r] if r < alive else initial[r])
