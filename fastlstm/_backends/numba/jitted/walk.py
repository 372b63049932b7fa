"""The walk through time: stretches, where outputs go, what a step before held, and when threads are worth it."""

from __future__ import annotations

from .compiling import jit
from .rows import copy

# Rows times units of a step from which its element-wise part is worth a parallel region. A region costs 3 us (tbb, a
# core free), a unit of an LSTM 2 ns: from here on two threads take off ten times the cost, so that a neighbour on the
# other core can make a region some times dearer before it loses. (B=512 H=64, forward and backward, two threads: 22.5
# to 20.5 ms; with H=256 and more, BLAS has all but a twentieth of the time, and it hardly shows.)
PARALLEL = 32768
# Rows of the input's product taken at once: enough for BLAS, few enough to be in the second-level cache still when
# their steps come.
STRETCH = 128


@jit
def steps_in_stretch(offsets):
    """How many steps have some STRETCH rows."""
    return max(1, STRETCH // max(1, offsets[1] - offsets[0]))


@jit
def stretch(begin, steps, T, reverse):
    """(first step, step past the last) of the stretch that the walk reaches after `begin` steps."""
    end = min(begin + steps, T)
    return (T - end, T - begin) if reverse else (begin, end)


@jit
def put(rows, into, column):
    """Copy rows into a stretch of columns, where there are any."""
    if into.size:
        for r in range(rows.shape[0]):
            copy(into[r, column : column + rows.shape[1]], rows[r])


@jit
def give(h, y, column, first, t, row_map):
    """The outputs of step t to columns of y, if there is a y: to rows from `first` on, or where layout.RowMap says."""
    step, sequences = row_map
    if not sequences.size:
        put(h, y[first : first + h.shape[0]], column)
    for b in range(sequences.size):
        into = y[t * step + sequences[b], column : column + h.shape[1]]
        if b < h.shape[0]:
            copy(into, h[b])
        else:
            into[:] = 0


@jit
def pieces_of(threads, b, H):
    """Into how many pieces a parallel region cuts b rows of H units; 1: no region."""
    return min(threads, b) if b * H >= PARALLEL else 1


@jit
def previous(offsets, reverse, kept, initial, out):
    """out = what `kept` held one step before, in walking order; `initial` where a sequence begins."""
    T = offsets.size - 1
    for t in range(T):
        lo, hi = offsets[t], offsets[t + 1]
        p = t + 1 if reverse else t - 1
        alive = min(hi - lo, offsets[p + 1] - offsets[p]) if 0 <= p < T else 0
        for r in range(hi - lo):
            copy(out[lo + r], kept[offsets[p] + r] if r < alive else initial[r])
