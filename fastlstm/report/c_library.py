"""A program that steps streams and batches of the C library, compiled for a measurement."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .. import library
from ..layout import Array
from ..recurrent import LSTM
from .c_sources import SHARED, compiled
from .measure import Unsupported

PROGRAM = """
#include <fastlstm.h>
#define EXPORT __attribute__((visibility("default")))
static fastlstm_stream *streams[N];
static fastlstm_handle handles[N];
static fastlstm_batch *batch;

EXPORT int begin(const char *path) {
    fastlstm_model *model;
    int code = fastlstm_model_load(path, 0, &model, 0);
    if (code) return code;
    code = fastlstm_batch_new(model, N, 0, &batch);
    for (int i = 0; i < N && !code; i++) {
        code = fastlstm_stream_new(model, &streams[i]);
        if (!code) code = fastlstm_batch_open(batch, &handles[i]);
    }
    fastlstm_model_release(model);
    return code;
}
EXPORT void end(void) {
    for (int i = 0; i < N; i++) fastlstm_stream_free(streams[i]);
    fastlstm_batch_free(batch);
}
EXPORT void one(long count, const float *x, float *y) {
    for (long t = 0; t < count; t++) fastlstm_step(streams[0], x + t % N * I, y);
}
EXPORT void singles(long count, const float *x, float *y) {
    for (long t = 0; t < count; t++)
        for (int i = 0; i < N; i++) fastlstm_step(streams[i], x + i * I, y + i * U);
}
EXPORT void batched(long count, const float *x, float *y) {
    for (long t = 0; t < count; t++) fastlstm_batch_step(batch, handles, N, x, y);
}
"""


class InC:
    """n streams and a batch of n, in C.

    Parameters
    ----------
    layer : LSTM
    n : int
    folder : path
        For the model's file and the program.

    Raises
    ------
    Unsupported
        No compiler or no C library is here, or the program fails.
    """

    def __init__(self, layer: LSTM, n: int, folder: Path) -> None:
        try:
            library.get_library()
        except FileNotFoundError as error:
            raise Unsupported(str(error)) from error
        folder.mkdir(parents=True, exist_ok=True)
        layer.save(folder / "model.safetensors")
        sizes = f"#define N {n}\n#define I {layer.input_size}\n#define U {layer.hidden_size}\n"
        (folder / "program.c").write_text(sizes + PROGRAM)
        lib = Path(library.get_library()).parent
        link = [*SHARED, f"-I{library.get_include()}", f"-L{lib}", f"-Wl,-rpath,{lib}", "-lfastlstm"]
        self.program = ctypes.CDLL(str(compiled(folder / "program.so", ["program.c"], link)))
        code = self.program.begin(str(folder / "model.safetensors").encode())
        if code:
            raise Unsupported(f"the C library gives code {code} for {layer}")
        self.x = np.random.default_rng(n).standard_normal((n, layer.input_size)).astype(np.float32)
        self.y = np.zeros((n, layer.hidden_size), np.float32)

    def call(self, name: str, count: int = 1) -> Callable[[], object]:
        """`count` times: a step of a stream ("one"), of n streams one by one ("singles"), of the batch ("batched")."""
        x, y = (a.ctypes.data_as(ctypes.c_void_p) for a in (self.x, self.y))
        return functools.partial(self.program[name], ctypes.c_long(count), x, y)

    def outputs(self, name: str) -> Array:
        """What a call leaves in y."""
        self.y[:] = 0
        self.call(name)()
        return self.y.copy()

    def end(self) -> None:
        self.program.end()
