"""In which order other libraries stack the gates of one matrix: one table, and `reorder` between any two.

A matrix of G*H rows (or columns) holds G gates of H units each. The gates have the names of `spec.GATES`; in the
equations of PyTorch's documentation i f g o, r z n and h.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .layout import Array
from .spec import GATES, Kind


class Order(NamedTuple):
    """The gates of one kind of layer, in a library's order.

    Parameters
    ----------
    gates : str
        Our names, one letter each.
    names : str
        The library's own names of these gates.
    """

    gates: str
    names: str


# By library or hand-written form (`arrays.FORMS`), then by kind.
#   torch    torch.nn.LSTM, GRU, RNN: weight_ih_l0 and so on; also cuDNN's order
#   keras    keras.layers.LSTM, GRU, SimpleRNN: kernel, recurrent_kernel, bias
#   onnx     operators LSTM, GRU, RNN: W, R, B; the peepholes P are i o f, which is LSTM's order without the candidate
#   stacked, waa, d2l    an array for each gate, listed in the order in which these forms write them
ORDERS: dict[str, dict[str, Order]] = {
    "torch": {kind: Order("".join(gates), "".join(gates)) for kind, gates in GATES.items()},
    "keras": {"lstm": Order("ifgo", "ifco"), "gru": Order("zrn", "zrh"), "rnn": Order("h", "h")},
    "onnx": {"lstm": Order("iofg", "iofc"), "gru": Order("zrn", "zrh"), "rnn": Order("h", "i")},
    "stacked": {"lstm": Order("figo", "fico")},
    "waa": {"rnn": Order("h", "a")},
    "d2l": {"lstm": Order("ifog", "ifoc"), "gru": Order("zrn", "zrh"), "rnn": Order("h", "h")},
}


def order(library: str, kind: str) -> Order:
    """A library's order of the gates of a kind.

    Raises
    ------
    ValueError
        The table has no such library or kind.
    """
    if library not in ORDERS:
        raise ValueError(f"no order of gates is known by the name {library!r}; known: {', '.join(ORDERS)}")
    if kind not in ORDERS[library]:
        raise ValueError(f"{library} has no {kind!r}; it has {', '.join(ORDERS[library])}")
    return ORDERS[library][kind]


def places(gates: str, stacked: str, H: int) -> Array:
    """(len(gates) * H,) where these gates' units are in an array that stacks the gates `stacked`."""
    return np.concatenate([np.arange(H) + stacked.index(gate) * H for gate in gates])


def reorder(w: Array, kind: Kind, source: str, target: str, axis: int = 0) -> Array:
    """A contiguous copy of an array, its gates in another library's order.

    Parameters
    ----------
    w : array
        Its size along `axis` is G*H.
    kind : {"lstm", "gru", "rnn"}
    source, target : str
        Keys of `ORDERS`: the order that w has, and the one that is wanted.
    axis : int

    Returns
    -------
    w : array of the same shape and dtype

    Raises
    ------
    ValueError
        Unknown order, or a size that is no multiple of the number of gates.
    """
    have, want = order(source, kind).gates, order(target, kind).gates
    H, rest = divmod(w.shape[axis], len(have))
    if rest:
        raise ValueError(
            f"an array of shape {w.shape} does not hold the {len(have)} gates of {kind} along axis {axis}: "
            f"{w.shape[axis]} is no multiple of {len(have)}"
        )
    return np.ascontiguousarray(np.take(w, places(want, have, H), axis))
