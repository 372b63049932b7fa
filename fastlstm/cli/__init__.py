"""The command ``fastlstm``: ``main`` runs one of its commands, each a module here."""

# ruff: noqa: E402

from __future__ import annotations

import os

# NumPy's BLAS is left one thread; to be said before NumPy is loaded. Backend C does without BLAS; beside the others,
# its threads spin when they have nothing to do and take the cores from the recurrent layers' own: a step that takes
# 16 ms with one took 25 ms with two on a quiet machine of two cores, and 112 ms beside another busy process.
for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(_name, "1")

from .entry import main as main
