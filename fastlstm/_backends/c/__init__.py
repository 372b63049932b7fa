"""The compiled backend: kernels in csrc/, one text for every instruction set; float32.

It passes pointers to C; the contract is in `_backends.numpy` and csrc/api.h.

`extension` has the state of the extension and its instruction sets, `calls` the pointers and structs of every call;
`recurrent`, `dense`, `embedding`, `optimisers` and `rows` have the functions of the contract.
"""

from .dense import dense_backward, dense_cross_entropy, dense_forward, dense_pack
from .embedding import add_rows
from .extension import active_isa, choose_isa, ffi, forced_isa_problem, isas, lib, unusable, use_isa
from .optimisers import scale, square_sum, update, update_columns
from .recurrent import STORAGES, Block, backward, bind, forward, pack, pack_for_backward, supports
from .rows import bind_records, bind_rows, pack_rows

__all__ = [
    "DTYPES",
    "EXTRAS",
    "STORAGES",
    "Block",
    "active_isa",
    "add_rows",
    "backward",
    "bind",
    "bind_records",
    "bind_rows",
    "choose_isa",
    "dense_backward",
    "dense_cross_entropy",
    "dense_forward",
    "dense_pack",
    "ffi",
    "forced_isa_problem",
    "forward",
    "isas",
    "lib",
    "pack",
    "pack_for_backward",
    "pack_rows",
    "scale",
    "square_sum",
    "supports",
    "unusable",
    "update",
    "update_columns",
    "use_isa",
]

DTYPES = ("float32",)
EXTRAS = ("dense", "embedding", "optimisers", "rows")
