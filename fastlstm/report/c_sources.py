"""A step of an LSTM as C source: that of `to_c`, and those of emx-onnx-cgen and keras2c, compiled alike.

Each becomes a shared object with two functions: ``reset()``, and ``steps(count, x, y)``, which makes `count` steps with
the rows of x (T, I), again and again, and leaves the last output in y.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..layout import Array
from ..recurrent import LSTM
from .measure import Unsupported

T = 20  # rows of x
FLAGS = ("-O2", "-w", "-fvisibility=hidden")
SHARED = ("-fPIC", "-shared")
CORTEX = ("arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb")
LARGE = "100000000"  # bytes up to which emx-onnx-cgen keeps weights in the source, not in a file that is read

DRIVER = """
#define T {T}
#define I {I}
#define H {H}
#define EXPORT __attribute__((visibility("default")))
{contender}
EXPORT void steps(long count, const float *x, float *y) {{
    for (long t = 0; t < count; t++) step(x + t % T * I, y);
}}
"""
OWN = """
#include "own.h"
static own_state state;
EXPORT void reset(void) { own_reset(&state); }
static void step(const float *x, float *y) { own_step(&state, x, y); }
"""
EMX = """
void model(const float x[restrict 1][1][I], const float h_0[restrict 1][1][H], const float c_0[restrict 1][1][H],
           float y[restrict 1][1][H], float h_n[restrict 1][1][H], float c_n[restrict 1][1][H]);
static float h[2][1][1][H], c[2][1][1][H], out[1][1][H];
static int from;
EXPORT void reset(void) { for (int j = 0; j < H; j++) h[from][0][0][j] = c[from][0][0][j] = 0; }
static void step(const float *x, float *y) {
    const int to = 1 - from;
    model((const float (*)[1][I])x, (const float (*)[1][H])h[from], (const float (*)[1][H])c[from], out, h[to], c[to]);
    for (int j = 0; j < H; j++) y[j] = out[0][0][j];
    from = to;
}
"""
KERAS2C = """
#include "k2c_include.h"
static float W_[] = {%(W)s}, U_[] = {%(U)s}, b_[] = {%(b)s};
static const k2c_tensor W = {W_, 2, 4 * I * H, {4 * I, H}}, U = {U_, 2, 4 * H * H, {4 * H, H}};
static const k2c_tensor b = {b_, 1, 4 * H, {4 * H}};
static float state[2 * H], work[8 * H];
EXPORT void reset(void) { for (int j = 0; j < 2 * H; j++) state[j] = 0; }
static void step(const float *x, float *y) {
    k2c_lstmcell(state, (float *)x, &W, &U, &b, work, k2c_sigmoid, k2c_tanh);
    for (int j = 0; j < H; j++) y[j] = state[j];
}
"""


# ------------------------------------------------------------------------------------------------------------ compiling
def compiler() -> list[str]:
    """The command of the C compiler: CC of the environment, or the first that is found."""
    given = shlex.split(os.environ.get("CC", ""))
    found = given or [name for name in ("gcc", "clang", "cc") if shutil.which(name)][:1]
    if not found or shutil.which(found[0]) is None:
        raise Unsupported(f"there is no C compiler ({given[0] if given else 'gcc, clang or cc'})")
    return found


def compiled(
    made: Path, sources: Sequence[Path | str], options: Sequence[str] = (), by: Sequence[str] | None = None
) -> Path:
    """A file that the compiler, or the one of the command `by`, makes of sources.

    Raises
    ------
    Unsupported
        There is no compiler, or it fails; with its last words.
    """
    command = [*(by or compiler()), *FLAGS, "-o", str(made), *map(str, sources), *options]
    done = subprocess.run(command, cwd=made.parent, capture_output=True, text=True)
    if done.returncode:
        raise Unsupported(f"{command[0]} fails: {' '.join(done.stderr.split())[-300:]}")
    return made


def compiler_version() -> str:
    """The compiler and its version, as it tells them."""
    done = subprocess.run([*compiler(), "--version"], capture_output=True, text=True)
    return f"{done.stdout.splitlines()[0] if done.stdout else compiler()[0]}, {' '.join(FLAGS)}"


def flash(source: Path) -> tuple[int, str]:
    """Bytes of a source's code and constants, and the command: of a Cortex-M4's compiler where there is one."""
    cortex = [*CORTEX] if shutil.which(CORTEX[0]) else []
    made = source.with_suffix(".o")
    command = cortex or compiler()
    compiled(made, [source], ["-c", "-Os", "-fno-asynchronous-unwind-tables"], command)
    return text_bytes(made), " ".join([*command, "-Os"])


def text_bytes(path: str | Path) -> int:
    """Bytes of code and constants in an object file or library."""
    if shutil.which("size") is None:
        raise Unsupported("the program size of binutils cannot be found")
    done = subprocess.run(["size", "--format=berkeley", str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[1].split()[0])


class Program:
    """A compiled step."""

    def __init__(self, path: Path, layer: LSTM) -> None:
        self.path, self.library = path, ctypes.CDLL(str(path))
        self.layer, self.y = layer, np.zeros(layer.hidden_size, np.float32)
        self.x = np.random.default_rng(0).uniform(-1, 1, (T, layer.input_size)).astype(np.float32)

    def steps(self, count: int) -> Callable[[], object]:
        """A call of so many steps."""
        return functools.partial(
            self.library.steps,
            ctypes.c_long(count),
            self.x.ctypes.data_as(ctypes.c_void_p),
            self.y.ctypes.data_as(ctypes.c_void_p),
        )

    def error(self) -> float:
        """Largest error of the outputs of T steps."""
        self.library.reset()
        self.steps(T)()
        right: Array = self.layer(self.x[:, None])[0][-1, 0]
        return float(np.abs(self.y - right).max())


def program(folder: Path, layer: LSTM, contender: str, sources: Sequence[str], options: Sequence[str] = ()) -> Program:
    """A contender's driver, compiled with its sources."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"T": T, "I": layer.input_size, "H": layer.hidden_size}
    (folder / "driver.c").write_text(DRIVER.format(contender=contender, **sizes))
    return Program(compiled(folder / "steps.so", ["driver.c", *sources], [*SHARED, "-I", ".", *options, "-lm"]), layer)


# ----------------------------------------------------------------------------------------------------------- contenders
def own(layer: LSTM, folder: Path, weights: str = "float32") -> Program:
    folder.mkdir(parents=True, exist_ok=True)
    layer.to_c(folder / "own.c", weights=weights)
    return program(folder, layer, OWN, ["own.c"])


def emx_onnx_cgen(layer: LSTM, folder: Path) -> Program:
    """model.c of emx-onnx-cgen, for one step of one sequence."""
    for package in ("emx_onnx_cgen", "onnx"):
        if importlib.util.find_spec(package) is None:
            raise Unsupported(f"{package} is not installed")
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    layer.to_onnx(folder / "model.onnx", stateful=True)
    model = onnx.load(folder / "model.onnx")
    for value in [*model.graph.input, *model.graph.output]:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_value = 1
    onnx.save(model, folder / "model.onnx")
    command = [sys.executable, "-m", "emx_onnx_cgen", "compile", "--large-weight-threshold", LARGE]
    command += ["--large-temp-threshold", "0", "model.onnx", "model.c"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise Unsupported(f"emx_onnx_cgen fails: {' '.join(done.stderr.split())[-300:]}")
    return program(folder, layer, EMX, ["model.c"])


def keras2c(layer: LSTM, folder: Path, include: str | None) -> Program:
    """keras2c's function of an LSTM's step. Its wheel has no C, so `include` is that folder of its repository."""
    if include is None:
        raise Unsupported("its wheel has no C: give --keras2c the folder include of its repository")
    own = Path(include).resolve()
    sources = [str(own / f"k2c_{part}.c") for part in ("recurrent_layers", "activations", "helper_functions")]
    for path in sources:
        if not Path(path).is_file():
            raise Unsupported(f"there is no {path}")
    return program(folder, layer, KERAS2C % keras_weights(layer), sources, ["-I", str(own)])


def keras_weights(layer: LSTM) -> dict[str, str]:
    """The weights as keras2c wants them: a matrix (K, H) for each gate, in the order i f g o."""
    params, H = layer.state_dict(), layer.hidden_size
    return {
        "W": numbers([params["weight_ih_l0"][g * H : (g + 1) * H].T for g in range(4)]),
        "U": numbers([params["weight_hh_l0"][g * H : (g + 1) * H].T for g in range(4)]),
        "b": numbers(params["bias_ih_l0"] + params["bias_hh_l0"]),
    }


def numbers(values: Any) -> str:
    return ", ".join(f"{v!r}f" for v in np.asarray(values, np.float64).ravel().tolist())
