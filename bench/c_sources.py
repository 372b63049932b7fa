"""A step of an LSTM in C: the source of `to_c` beside those of emx-onnx-cgen and keras2c, by the same compiler.

    python bench/c_sources.py [--keras2c FOLDER] [--cc gcc] [--flags "-O2"]

emx-onnx-cgen and onnx come from PyPI. keras2c's functions are in the folder `include` of its repository, which the
option names; its wheel has no C. Values are compared first. The contenders take turns in one process; the figures are
medians over the turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import fastlstm as fl

SHAPES = ((40, 128), (64, 64), (16, 32))
STEPS, ROUNDS = 2000, 15
MAIN = """\
#include <stdio.h>
#include <time.h>
#include "own.h"
#include "own_int8.h"
#define I {I}
#define H {H}
static float x[{T}][I] = {{{x}}};
static double now(void) {{ struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec; }}
static own_state own; static own_int8_state own_int8;
static float y[H];
{contenders}
static void step_own(int t) {{ own_step(&own, x[t % {T}], y); }}
static void step_again(int t) {{ own_step(&own, x[t % {T}], y); }}
static void step_int8(int t) {{ own_int8_step(&own_int8, x[t % {T}], y); }}
static void (*const steps[])(int) = {{step_own, step_again, step_int8{names}}};
int main(void) {{
    const int count = (int)(sizeof steps / sizeof *steps);
    for (int c = 0; c < count; c++) {{
        own_reset(&own);
        own_int8_reset(&own_int8);
        for (int t = 0; t < {T}; t++) steps[c](t);
        for (int j = 0; j < H; j++) printf("%.9g ", y[j]);
        printf("\\n");
    }}
    for (int r = 0; r < {rounds}; r++) {{
        for (int c = 0; c < count; c++) {{
            const double begin = now();
            for (int t = 0; t < {steps}; t++) steps[c](t);
            printf("%.6g ", (now() - begin) / {steps});
        }}
        printf("\\n");
    }}
    return 0;
}}
"""
EMX = """\
void model(const float x[restrict 1][1][I], const float h_0[restrict 1][1][H], const float c_0[restrict 1][1][H],
           float y[restrict 1][1][H], float h_n[restrict 1][1][H], float c_n[restrict 1][1][H]);
static float emx_h[2][1][1][H], emx_c[2][1][1][H], emx_y[1][1][H];
static void step_emx(int t) {{
    const int from = t % 2;
    if (t == 0) for (int j = 0; j < H; j++) emx_h[0][0][0][j] = emx_c[0][0][0][j] = 0;
    model((const float (*)[1][I])x[t % {T}], (const float (*)[1][H])emx_h[from], (const float (*)[1][H])emx_c[from],
          emx_y, emx_h[1 - from], emx_c[1 - from]);
    for (int j = 0; j < H; j++) y[j] = emx_y[0][0][j];
}}
"""
K2C = """\
#include "k2c_include.h"
static float k2c_W[] = {{{W}}}, k2c_U[] = {{{U}}}, k2c_b[] = {{{b}}};
static const k2c_tensor W = {{k2c_W, 2, 4 * I * H, {{4 * I, H}}}}, U = {{k2c_U, 2, 4 * H * H, {{4 * H, H}}}};
static const k2c_tensor b = {{k2c_b, 1, 4 * H, {{4 * H}}}};
static float k2c_state[2 * H], k2c_work[8 * H];
static void step_k2c(int t) {{
    if (t == 0) for (int j = 0; j < 2 * H; j++) k2c_state[j] = 0;
    k2c_lstmcell(k2c_state, x[t % {T}], &W, &U, &b, k2c_work, k2c_sigmoid, k2c_tanh);
    for (int j = 0; j < H; j++) y[j] = k2c_state[j];
}}
"""
T = 20


def numbers(values: Any) -> str:
    return ", ".join(f"{v!r}f" for v in np.asarray(values, np.float64).ravel().tolist())


def emx_source(layer: Any, folder: Path) -> None:
    """model.c of emx-onnx-cgen, for one step of one sequence."""
    import onnx

    layer.to_onnx(folder / "model.onnx", stateful=True)
    model = onnx.load(folder / "model.onnx")
    for value in [*model.graph.input, *model.graph.output]:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_value = 1
    onnx.save(model, folder / "model.onnx")
    command = [Path(sys.executable).parent / "emx-onnx-cgen", "compile", "--large-weight-threshold", "100000000"]
    command += ["--large-temp-threshold", "0", "model.onnx", "model.c"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def keras_weights(layer: Any, H: int) -> dict[str, str]:
    """The weights as keras2c wants them: a matrix (K, H) for each gate, in the order i f g o."""
    params = layer.state_dict()
    return {
        "W": numbers([params["weight_ih_l0"][g * H : (g + 1) * H].T for g in range(4)]),
        "U": numbers([params["weight_hh_l0"][g * H : (g + 1) * H].T for g in range(4)]),
        "b": numbers(params["bias_ih_l0"] + params["bias_hh_l0"]),
    }


def compare(I: int, H: int, options: argparse.Namespace, folder: Path) -> None:  # noqa: E741
    layer = fl.LSTM(I, H, seed=0)
    x = np.random.default_rng(0).uniform(-1, 1, (T, I)).astype(np.float32)
    layer.to_c(folder / "own.c")
    layer.to_c(folder / "own_int8.c", weights="int8")
    emx_source(layer, folder)
    contenders, names, sources = EMX.format(T=T), ", step_emx", ["own.c", "own_int8.c", "model.c", "main.c"]
    labels = ["to_c", "to_c again", "to_c int8", "emx-onnx-cgen"]
    include = ["-I", "."]
    if options.keras2c:
        contenders += K2C.format(T=T, **keras_weights(layer, H))
        names, labels = f"{names}, step_k2c", [*labels, "keras2c"]
        own = Path(options.keras2c).resolve()
        sources += [str(own / f"k2c_{part}.c") for part in ("recurrent_layers", "activations", "helper_functions")]
        include += ["-I", str(own)]
    text = MAIN.format(I=I, H=H, T=T, x=numbers(x), contenders=contenders, names=names, rounds=ROUNDS, steps=STEPS)
    (folder / "main.c").write_text(text)
    subprocess.run(
        [options.cc, *options.flags.split(), "-w", *include, "-o", "main", *sources, "-lm"], cwd=folder, check=True
    )
    lines = subprocess.run([folder / "main"], capture_output=True, text=True, check=True).stdout.splitlines()
    right = layer(x[:, None])[0][-1, 0]
    for label, line in zip(labels, lines[: len(labels)], strict=True):
        error = np.abs(np.array(line.split(), np.float64) - right).max()
        assert error < (3e-2 if label == "to_c int8" else 1e-5), f"{label} is wrong by {error}"
    times = np.array([line.split() for line in lines[len(labels) :]], np.float64).T / 1e3
    own_time = median(times[0])
    for label, of_label in zip(labels, times, strict=True):
        print(f"I={I} H={H}: {label:14} {median(of_label):8.2f} us, {median(of_label) / own_time:6.2f} times to_c's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keras2c", metavar="FOLDER")
    parser.add_argument("--cc", default="gcc")
    parser.add_argument("--flags", default="-O2")
    options = parser.parse_args()
    for I, H in SHAPES:  # noqa: E741
        with tempfile.TemporaryDirectory() as folder:
            compare(I, H, options, Path(folder))


if __name__ == "__main__":
    main()
