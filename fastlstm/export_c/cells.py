"""The C function of one recurrent step: the equations of `fastlstm.spec`, a gate a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..spec import Spec
from ..storage import LEAST, bounded
from .activations import expression, number

if TYPE_CHECKING:
    from .source import Source


def gate(spec: Spec, role: int, x: str, used: set[str]) -> str:
    """The activation of a pre-activation, within +-clip; x is a C variable."""
    if spec.clip is not None:
        used.add("fl_clip")
        bound = number(spec.clip)
        x = f"fl_clip({x}, -{bound}, {bound})"
    return expression(spec.activations[role], x, used)


def lstm(spec: Spec, at: int, out: Source) -> list[str]:
    """The gates of an LSTM from their sums a (4H), and the new h and c."""
    H, used = spec.H, out.used

    def peep(k: int, c: str) -> str:
        return f" + peep{at}[{k * H} + j] * {c}" if spec.peepholes else ""

    lines = [f"const float a_i = a[j]{peep(0, 'c[j]')};"]
    if not spec.input_forget:
        lines.append(f"const float a_f = a[{H} + j]{peep(1, 'c[j]')};")
    lines += [
        f"const float a_g = a[{2 * H} + j];",
        f"const float i = {gate(spec, 0, 'a_i', used)};",
        f"const float f = {'1.0f - i' if spec.input_forget else gate(spec, 0, 'a_f', used)};",
        f"const float g = {gate(spec, 1, 'a_g', used)};",
        "const float cell = f * c[j] + i * g;",
        f"const float a_o = a[{3 * H} + j]{peep(2, 'cell')};",
        f"const float o = {gate(spec, 0, 'a_o', used)};",
        "c[j] = cell;",
        f"{'m' if spec.proj_size else 'h'}[j] = o * {expression(spec.activations[2], 'cell', used)};",
    ]
    return lines


def gru_after(spec: Spec, at: int, out: Source) -> list[str]:
    """The gates of a GRU with reset_after from W_x x + b (a, 3H) and W_h h (u, 3H), and the new h."""
    H, used = spec.H, out.used
    return [
        f"const float a_r = a[j] + u[j], a_z = a[{H} + j] + u[{H} + j];",
        f"const float r = {gate(spec, 0, 'a_r', used)};",
        f"const float z = {gate(spec, 0, 'a_z', used)};",
        f"const float a_n = a[{2 * H} + j] + r * u[{2 * H} + j];",
        f"const float n = {gate(spec, 1, 'a_n', used)};",
        "h[j] = (1.0f - z) * n + z * h[j];",
    ]


def product(out: Source, at: int, name: str, operand: str, K: int, M: int, sums: str, bounded: bool) -> list[str]:
    """Lines that add weights times operand (K) to the sums (M)."""
    if not out.int8:
        first, lines = K // 8 * 8, []
        if first:
            out.used.add("ADD_PRODUCT")
            lines.append(f"ADD_PRODUCT({sums}, {name}{at}, {operand}, {first}, {M});")
        if first < K:
            out.used.add("ADD_REST")
            lines.append(f"ADD_REST({sums}, {name}{at}, {operand}, {first}, {K}, {M});")
        return lines
    least = 1 if bounded else LEAST  # a row within [-1, 1] has a fixed scale
    out.used |= {"ADD_PRODUCT_INT8", "fl_round"}
    return [
        f"factor = fl_round({operand}, q, {number(least)}, {K});",
        f"ADD_PRODUCT_INT8({sums}, {name}{at}, scale_{name}{at}, q, factor, {K}, {M});",
    ]


def recurrent_function(spec: Spec, at: int, out: Source, x_bounded: bool, h_bounded: bool) -> tuple[str, int]:
    """(the C function ``step<at>``, bytes of its local arrays)."""
    H, R, GH = spec.H, spec.R, spec.G * spec.H
    state = ["float *h"] + (["float *c"] if spec.kind == "lstm" else [])
    arrays = {"a": GH}
    body = loop(GH, [f"a[j] = bias{at}[j];"] if spec.biases else ["a[j] = 0.0f;"])
    body += product(out, at, "w_x", "x", spec.I, GH, "a", x_bounded)
    after: list[str] = []
    if spec.kind == "gru" and spec.reset_after:
        arrays["u"] = GH
        b_n = f"j < {2 * H} ? 0.0f : bias_n{at}[j - {2 * H}]" if spec.biases else "0.0f"
        body += loop(GH, [f"u[j] = {b_n};"]) + product(out, at, "w_h", "h", R, GH, "u", h_bounded)
        gates = gru_after(spec, at, out)
    elif spec.kind == "gru":
        body, gates = before_product(spec, at, out, body, arrays, h_bounded)
    else:
        body += product(out, at, "w_h", "h", R, GH, "a", h_bounded)
        if spec.kind == "lstm":
            gates = lstm(spec, at, out)
        else:
            gates = ["const float a_h = a[j];", f"h[j] = {gate(spec, 0, 'a_h', out.used)};"]
    if spec.proj_size:
        arrays["m"] = H
        after = loop(R, ["h[j] = 0.0f;"]) + product(out, at, "w_r", "m", H, R, "h", bounded(spec))
    declared = [f"float {', '.join(f'{name}[{size}]' for name, size in arrays.items())};"]
    size = 4 * sum(arrays.values())
    if out.int8:
        widest = max(spec.I, R, H)
        declared += [f"int8_t q[{widest}];", "float factor;"]
        size += widest
    declared.append("int j;")
    text = function(
        f"static void step{at}(const float *x, {', '.join(state)})", [*declared, *body, *loop(H, gates), *after]
    )
    return text, size


def before_product(
    spec: Spec, at: int, out: Source, body: list[str], arrays: dict[str, int], h_bounded: bool
) -> tuple[list[str], list[str]]:
    """(body, gates) of a GRU without reset_after: r and z first, then the product with r * h."""
    H, used = spec.H, out.used
    arrays["m"] = H
    body = body + product(out, at, "w_h", "h", H, 2 * H, "a", h_bounded)
    body += loop(
        H,
        [
            f"const float a_r = a[j], a_z = a[{H} + j];",
            f"const float r = {gate(spec, 0, 'a_r', used)};",
            f"a[{H} + j] = {gate(spec, 0, 'a_z', used)};",
            "m[j] = r * h[j];",
        ],
    )
    body += product(out, at, "w_n", "m", H, H, f"(a + {2 * H})", h_bounded)
    gates = [
        f"const float a_n = a[{2 * H} + j], z = a[{H} + j];",
        f"const float n = {gate(spec, 1, 'a_n', used)};",
        "h[j] = (1.0f - z) * n + z * h[j];",
    ]
    return body, gates


def loop(n: int, lines: list[str]) -> list[str]:
    """A loop over j < n."""
    if len(lines) == 1:
        return [f"for (j = 0; j < {n}; j++) {lines[0]}"]
    return [f"for (j = 0; j < {n}; j++) {{", *(f"    {line}" for line in lines), "}"]


def function(head: str, lines: list[str]) -> str:
    """A C function."""
    return "\n".join([head, "{", *(f"    {line}" for line in lines), "}"])
