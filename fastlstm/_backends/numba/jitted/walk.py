"""The walk through time: stretches, rows of outputs, values of the step before, and the number of parallel pieces."""

from __future__ import annotations

from .compiling import jit
from .rows import copy

# Rows times units from which the element-wise part of a step runs in a parallel region. A region costs 3 us (tbb, a
# free core), a unit of an LSTM 2 ns: from here on two threads save ten times the cost, so the region still pays if a
# busy neighbour on the other core makes it several times dearer. (B=512 H=64, forward and backward, two threads: 22.5
# to 20.5 ms. From H=256 on, BLAS takes all but a twentieth of the time, so the gain is small.)
PARALLEL = 32768
# Rows of the input's product taken at once: enough for BLAS, few enough to stay in the second-level cache until their
# steps read them.
STRETCH = 128


@jit
def steps_in_stretch(offsets):
    """Steps of a stretch: together they have about STRETCH rows."""
    return max(1, STRETCH // max(1, offsets[1] - offsets[0]))


@jit
def stretch(begin, steps, T, reverse):
    """(first step, step past the last) of the stretch that the walk reaches after `begin` steps."""
    end = min(begin + steps, T)
    return (T - end, T - begin) if reverse else (begin, end)


@jit
def put(rows, into, column):
    """Copy rows into the columns of `into` from `column` on; nothing where `into` is empty."""
    if into.size:
        for r in range(rows.shape[0]):
            copy(into[r, column : column + rows.shape[1]], rows[r])


@jit
def give(h, y, column, first, t, row_map):
    """Copy the outputs of step t to columns of y, if not empty: to rows from `first` on, or to the row map's rows."""
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
    """Pieces of a parallel region over b rows of H units; 1: no region."""
    return min(threads, b) if b * H >= PARALLEL else 1


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
