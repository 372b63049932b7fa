"""A list of steps as one C99 source and its header."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import __version__
from ..layout import Array
from ..steps import Affine, Lookup, Recurrence, Step
from ..storage import STORAGES, bounded
from .activations import expression, number
from .cells import function, loop, product, recurrent_function
from .functions import text_of

MARGIN = 256  # bytes of stack for saved registers and the calls


@dataclass
class Source:
    """What is collected while the steps are written.

    Parameters
    ----------
    name : str
        The beginning of every public name, a C identifier.
    int8 : bool
        Whether the weights are int8 with a scale for each row.
    """

    name: str
    int8: bool
    used: set[str] = field(default_factory=set)  # names of `functions.FUNCTIONS`
    data: list[str] = field(default_factory=list)  # constant arrays
    functions: list[str] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)  # of the state's struct
    buffers: list[str] = field(default_factory=list)  # arrays of the step function
    body: list[str] = field(default_factory=list)  # its lines
    state: int = 0  # bytes of the state
    flash: int = 0  # bytes of the constants
    stack: int = 0  # bytes of the deepest function's arrays

    def constant(self, name: str, values: Array, kind: str = "float") -> None:
        """Add a constant array."""
        self.data.append(constant(name, values, kind))
        self.flash += values.size * (4 if kind == "float" else 1)

    def state_arrays(self) -> list[tuple[str, int]]:
        """(name, size) of every array of the state."""
        found = [line.removeprefix("float ").removesuffix("];").split("[") for line in self.fields]
        return [(part, int(size)) for part, size in found]

    def matrix(self, name: str, w: Array) -> None:
        """Add a matrix (M, K) of a product: k-major floats, or rows of int8 with their scales."""
        if not self.int8:
            self.constant(name, w.T)
            return
        kept = STORAGES["int8"].keep(w, name)
        assert kept.scales is not None
        self.constant(name, kept.values, "int8_t")
        self.constant(f"scale_{name}", kept.scales)


def constant(name: str, values: Array, kind: str) -> str:
    """A constant array in C."""
    flat = values.ravel()
    texts = [number(v) for v in flat] if kind == "float" else [str(int(v)) for v in flat]
    return f"static const {kind} {name}[{flat.size}] = {{\n{wrapped(texts)}\n}};"


def wrapped(texts: list[str]) -> str:
    """Constants separated by commas, in lines of up to 110 characters."""
    lines, line = [], "   "
    for text in texts:
        if len(line) + len(text) + 2 > 110:
            lines.append(line)
            line = "   "
        line += f" {text},"
    return "\n".join([*lines, line])


def bounded_h(step: Recurrence) -> bool:
    """Whether the h of a recurrent layer stays within [-1, 1]."""
    return bounded(step.spec) and not step.spec.proj_size


def bounded_output(step: Step) -> bool:
    """Whether the output of a step is known to stay within [-1, 1], so that int8 rounds it by a fixed scale."""
    return isinstance(step, Recurrence) and bounded_h(step) and not step.skip


def add_recurrence(out: Source, at: int, step: Recurrence, x_bounded: bool) -> None:
    """The constants and the function of a recurrent layer."""
    spec, params, H = step.spec, step.params, step.spec.H
    GH = spec.G * H
    zeros = np.zeros(GH, np.float32)
    b_ih, b_hh = params.get("bias_ih", zeros), params.get("bias_hh", zeros)
    w_h = params["weight_hh"]
    out.matrix(f"w_x{at}", params["weight_ih"])
    if spec.kind == "gru" and not spec.reset_after:
        out.matrix(f"w_h{at}", w_h[: 2 * H])
        out.matrix(f"w_n{at}", w_h[2 * H :])
    else:
        out.matrix(f"w_h{at}", w_h)
    if spec.proj_size:
        out.matrix(f"w_r{at}", params["weight_hr"])
    if spec.peepholes:
        out.constant(f"peep{at}", params["weight_peep"])
    if spec.biases and spec.kind == "gru" and spec.reset_after:
        out.constant(f"bias{at}", b_ih + np.concatenate((b_hh[: 2 * H], zeros[:H])))
        out.constant(f"bias_n{at}", b_hh[2 * H :])
    elif spec.biases:
        out.constant(f"bias{at}", b_ih + b_hh)
    text, size = recurrent_function(spec, at, out, x_bounded, bounded_h(step))
    out.functions.append(f"/* {step} */\n{text}")
    out.stack = max(out.stack, size)


def add_affine(out: Source, at: int, step: Affine, x_bounded: bool) -> None:
    """The constants and the function of a dense layer."""
    I, U = step.sizes  # noqa: E741
    out.matrix(f"w_x{at}", step.weight)
    if step.bias is not None:
        out.constant(f"bias{at}", step.bias)
    lines = [f"int8_t q[{I}];", "float factor;"] if out.int8 else []
    lines += ["int j;", *loop(U, [f"y[j] = bias{at}[j];" if step.bias is not None else "y[j] = 0.0f;"])]
    lines += product(out, at, "w_x", "x", I, U, "y", x_bounded)
    lines += activation_lines(step.activation, "y", U, out.used)
    out.functions.append(f"/* {step} */\n" + function(f"static void step{at}(const float *x, float *y)", lines))
    out.stack = max(out.stack, I if out.int8 else 0)


def activation_lines(given: Any, y: str, size: int, used: set[str]) -> list[str]:
    """Lines that apply an activation to the array y (size)."""
    if given in ("linear", "identity"):
        return []
    if given == "softmax":
        used.add("fl_softmax")
        return [f"fl_softmax({y}, {size});"]
    return loop(size, [f"{y}[j] = {expression(given, f'{y}[j]', used)};"])


@dataclass
class Program:
    """The source and the header of a model."""

    source: str
    header: str
    state_bytes: int
    stack_bytes: int
    flash_bytes: int


def write(steps: list[Step], name: str, int8: bool, note: str, include: str, samples: tuple[Array, Array]) -> Program:
    """The C program of a list of steps.

    Parameters
    ----------
    steps : list of Step
        With a recurrent one among them.
    name : str
        A C identifier.
    int8 : bool
    note : str
        Lines for the header's first comment.
    include : str
        The header's name.
    samples : inputs (T, I) or token ids (T,), and outputs (T, U)
        What the self-test feeds and expects.
    """
    out = Source(name, int8)
    x, x_bounded, scratch = "x", False, 0
    for at, step in enumerate(steps):
        last, width = at == len(steps) - 1, step.sizes[1]
        state = [f"{part.rstrip('0')}{at}" for part in step.spec.initial] if isinstance(step, Recurrence) else []
        y = "y" if last else f"y{at}"
        if isinstance(step, Recurrence) and not last and not step.skip:
            y = f"state->h{at}"
        elif not last:
            out.buffers.append(f"float {y}[{width}];")
            scratch += 4 * width
        if isinstance(step, Lookup):
            out.body += add_lookup(out, at, step, y)
        elif isinstance(step, Recurrence):
            add_recurrence(out, at, step, x_bounded)
            sizes = step.spec.initial.values()
            out.fields += [f"float {part}[{size}];" for part, size in zip(state, sizes, strict=True)]
            out.state += 4 * sum(sizes)
            out.body.append(f"step{at}({x}, {', '.join(f'state->{part}' for part in state)});")
            if last or step.skip:
                out.body += loop(width, [f"{y}[j] = state->h{at}[j]{f' + {x}[j]' if step.skip else ''};"])
        elif isinstance(step, Affine):
            add_affine(out, at, step, x_bounded)
            out.body.append(f"step{at}({x}, {y});")
            out.body += loop(width, [f"{y}[j] += {x}[j];"]) if step.skip else []
        else:
            out.body += loop(width, [f"{y}[j] = {x}[j];"])
            out.body += activation_lines(step.activation, y, width, out.used)
        x, x_bounded = y, bounded_output(step)
    out.stack += scratch + MARGIN
    return assembled(out, steps, note, include, samples)


def add_lookup(out: Source, at: int, step: Lookup, y: str) -> list[str]:
    """The table of an embedding, and the lines that read one row of it."""
    V, E = step.weight.shape
    if out.int8:
        kept = STORAGES["int8"].keep(step.weight, "the embedding")
        assert kept.scales is not None
        out.constant(f"table{at}", kept.values, "int8_t")
        out.constant(f"scale_table{at}", kept.scales)
        value = f"scale_table{at}[token] * (float)table{at}[token * {E} + j]"
    else:
        out.constant(f"table{at}", step.weight)
        value = f"table{at}[token * {E} + j]"
    return [f"if (token < 0 || token >= {V}) return -1;", *loop(E, [f"{y}[j] = {value};"])]


# -------------------------------------------------------------------------------------------------------- the two files
def assembled(out: Source, steps: list[Step], note: str, include: str, samples: tuple[Array, Array]) -> Program:
    """Source and header from what was collected."""
    name, inputs, outputs = out.name, steps[0].sizes[0], steps[-1].sizes[1]
    argument = "int32_t token" if isinstance(steps[0], Lookup) else "const float *x"
    head = f"int {name}_step({name}_state *state, {argument}, float *y)"
    what = ", ".join(map(str, steps)) + (", weights in int8" if out.int8 else "")
    guard = f"{name.upper()}_H"
    sizes = {
        "INPUTS": inputs,
        "OUTPUTS": outputs,
        "STATE_BYTES": out.state,
        "STACK_BYTES": out.stack,
        "FLASH_BYTES": out.flash,
    }
    header = HEADER.format(
        name=name,
        NAME=name.upper(),
        guard=guard,
        version=__version__,
        what=what,
        note=note,
        sizes="\n".join(f"#define {name.upper()}_{key} {value}" for key, value in sizes.items()),
        fields="\n".join(f"    {line}" for line in out.fields),
        head=head,
        fed=fed(steps[0], outputs),
    )
    reset = [f"for (j = 0; j < {size}; j++) state->{part}[j] = 0.0f;" for part, size in out.state_arrays()]
    parts = [
        f'/* {what}. Written by fastlstm {__version__}. */\n#include "{include}"',
        text_of(out.used),
        *out.data,
        *out.functions,
        function(f"void {name}_reset({name}_state *state)", ["int j;", *reset]),
        function(
            head,
            [*out.buffers, "int j;", *out.body, "return 0;"] if uses_j(out) else [*out.buffers, *out.body, "return 0;"],
        ),
        self_test(out, steps, samples),
    ]
    return Program("\n\n".join(parts) + "\n", header, out.state, out.stack, out.flash)


def uses_j(out: Source) -> bool:
    """Whether the body of the step has a loop."""
    return any(line.startswith("for (j") for line in out.body)


def fed(first: Step, U: int) -> str:
    """What a step takes, gives and returns, in words."""
    if isinstance(first, Lookup):
        V = first.weight.shape[0]
        return (
            f"One step: a token id from 0 to {V - 1}, {U} outputs. Returns 0, or -1 for another id: nothing\n"
            "   has changed then."
        )
    return f"One step: {first.sizes[0]} inputs, {U} outputs; x and y do not overlap. Returns 0."


HEADER = """\
/* {what}.
   Written by fastlstm {version}.{note}

   Every stream has a state of its own, in memory of the caller: {name}_reset before its first step. The weights are
   constants, shared by all streams. Nothing is allocated, and no library is called. */
#ifndef {guard}
#define {guard}

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

/* STATE_BYTES: sizeof({name}_state). STACK_BYTES: upper bound of what a step needs. FLASH_BYTES: the constants, without
   the code. */
{sizes}

typedef struct {{
{fields}
}} {name}_state;

/* The state at the beginning of a sequence: zeros. */
void {name}_reset({name}_state *state);

/* {fed} */
{head};

#ifdef {NAME}_SELFTEST
/* Runs a short sequence whose outputs are known. Returns 0, or the number of the first step with a wrong output. */
int {name}_selftest(void);
#endif

#ifdef __cplusplus
}}
#endif

#endif
"""


def self_test(out: Source, steps: list[Step], samples: tuple[Array, Array]) -> str:
    """The self-test, compiled where NAME_SELFTEST is defined."""
    name, (inputs, outputs) = out.name, samples
    T, U = outputs.shape
    texts = ["    " + line for line in (constant("selftest_y", outputs, "float"),)]
    if isinstance(steps[0], Lookup):
        texts.insert(0, constant("selftest_x", inputs, "int32_t"))
        fed_x = "selftest_x[t]"
    else:
        texts.insert(0, constant("selftest_x", inputs, "float"))
        fed_x = f"selftest_x + t * {inputs.shape[1]}"
    tolerance = "2e-2f" if out.int8 else "1e-5f"
    lines = [
        f"static {name}_state state;",
        f"float y[{U}];",
        "int t, j;",
        f"{name}_reset(&state);",
        f"for (t = 0; t < {T}; t++) {{",
        f"    if ({name}_step(&state, {fed_x}, y) != 0) return t + 1;",
        f"    for (j = 0; j < {U}; j++) {{",
        f"        const float right = selftest_y[t * {U} + j], error = y[j] > right ? y[j] - right : right - y[j];",
        f"        if (!(error <= {tolerance} * (1.0f + (right < 0.0f ? -right : right)))) return t + 1;",
        "    }",
        "}",
        "return 0;",
    ]
    body = "\n\n".join([*(t.strip() for t in texts), function(f"int {name}_selftest(void)", lines)])
    return f"#ifdef {name.upper()}_SELFTEST\n{body}\n#endif"
