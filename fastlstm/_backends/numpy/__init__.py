"""The reference: what every backend computes, written to be read beside the equations in `spec`.

Float32 and float64. Gates are stacked, so a step is one matrix product and element-wise operations; the input's
product is taken for a stretch of steps at once. "Activations =, parameters +=": forward and backward overwrite states
and tape, and add to the caller's gradients of parameters and input.

`products` multiplies with matrices in any storage, `activations` has the gates and their derivatives (with the rule
for clipped gates), `recurrent` has `pack`, `forward` and `bind`, `gradients` has `backward`, `dense` the dense layer,
`embedding` the gradient of a table of vectors.
"""

from __future__ import annotations

from ...spec import Spec
from ...storage import problem
from .activations import DERIVATIVES, FUNCTIONS, act, dact
from .dense import cross_entropy, dense_backward, dense_cross_entropy, dense_forward, dense_pack
from .embedding import add_rows
from .gradients import backward
from .recurrent import Block, bind, forward, pack

__all__ = [
    "DERIVATIVES",
    "DTYPES",
    "EXTRAS",
    "FUNCTIONS",
    "STORAGES",
    "Block",
    "act",
    "add_rows",
    "backward",
    "bind",
    "cross_entropy",
    "dact",
    "dense_backward",
    "dense_cross_entropy",
    "dense_forward",
    "dense_pack",
    "forward",
    "pack",
    "supports",
    "unusable",
]

DTYPES = ("float32", "float64")
STORAGES = ("float32", "float64", "float16", "int8", "int16")
EXTRAS = ("dense", "embedding")


def unusable() -> str | None:
    """Why this backend cannot be used here: never."""
    return None


def supports(spec: Spec, storage: str, dtype: str) -> str | None:
    """Why this backend cannot compute such a direction of a layer, with the cure; None where it can.

    Parameters
    ----------
    spec : Spec
    storage : str
        A name of `fastlstm.storage`.
    dtype : {"float32", "float64"}
        One of the backend's ``DTYPES``.

    Returns
    -------
    why : str or None
        A clause whose subject is the backend: "does not ...: ...".
    """
    return problem(storage, dtype, STORAGES)
