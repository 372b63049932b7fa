"""One direction of one layer backwards: each cell's step beside its forward one in `recurrent`, then the gradients."""

from __future__ import annotations

import numpy as np

from ...layout import Array, Rows, parts_of_tape
from ...spec import Spec
from .activations import act, dact, dgate
from .products import times_transposed
from .recurrent import Block


def previous(rows: Rows, reverse: bool, t: int, kept: Array, initial: Array) -> Array:
    """The rows of `kept` (N, width) one step before t in walking order, for the sequences of step t: (b, width)."""
    b = int(rows.batch_sizes[t])
    before = t + 1 if reverse else t - 1
    alive = min(b, int(rows.batch_sizes[before])) if 0 <= before < rows.T else 0
    at = rows.offsets[before] if alive else 0
    return np.concatenate((kept[at : at + alive], initial[alive:b]))


def differentiated(k: Block, role: int, y: Array) -> Array:
    """Derivatives of the gates of a role from their values; see `dgate`."""
    return dgate(k.spec.activations[role], y, k.end(role))


def lstm_step_backward(
    k: Block, tape: dict[str, Array], at: slice, c_prev: Array, dh: Array, dc: Array
) -> tuple[Array, Array, Array]:
    """(dgates before activation (b, 4H), dh of the step before, dc of the step before).

    With input_forget, f = 1 - i: the gradient of f is subtracted from that of i, and the column of f is 0.
    """
    f_out = k.spec.activations[2]
    p_i, p_f, p_o = k.peep
    i, f, g, o = np.split(tape["gates"][at], 4, axis=1)
    s = act(f_out, tape["c"][at])
    dm = times_transposed(dh, k.W_r) if k.W_r is not None else dh
    do = dm * s * differentiated(k, 0, o)
    dc = dc + dm * o * dact(f_out, s) + do * p_o
    if k.spec.input_forget:
        di = dc * (g - c_prev) * differentiated(k, 0, i)
        df = np.zeros_like(di)
    else:
        di = dc * g * differentiated(k, 0, i)
        df = dc * c_prev * differentiated(k, 0, f)
    dg = dc * i * differentiated(k, 1, g)
    dgates = np.concatenate((di, df, dg, do), axis=1)
    return dgates, times_transposed(dgates, k.W_h), dc * f + di * p_i + df * p_f


def gru_step_backward(k: Block, tape: dict[str, Array], at: slice, h_prev: Array, dh: Array) -> tuple[Array, Array]:
    """((b, 4H) gradients in the place of r z n m, dh of the step before).

    The fourth part is the gradient of W_hn's product: dn * r with reset_after; else dn, and m stays on the tape.
    """
    H = k.spec.H
    r, z, n, m = np.split(tape["gates"][at], 4, axis=1)
    dz = dh * (h_prev - n) * differentiated(k, 0, z)
    dn = dh * (1 - z) * differentiated(k, 1, n)
    W_rz, W_n = k.W_h.columns(0, 2 * H), k.W_h.columns(2 * H, 3 * H)
    if k.spec.reset_after:
        dr = dn * m * differentiated(k, 0, r)
        dm = dn * r
        dh_prev = dh * z + times_transposed(np.concatenate((dr, dz), axis=1), W_rz) + times_transposed(dm, W_n)
        return np.concatenate((dr, dz, dn, dm), axis=1), dh_prev
    drh = times_transposed(dn, W_n)  # gradient of r * h
    dr = drh * h_prev * differentiated(k, 0, r)
    dh_prev = dh * z + drh * r + times_transposed(np.concatenate((dr, dz), axis=1), W_rz)
    return np.concatenate((dr, dz, dn, m), axis=1), dh_prev


def backward(
    block: Block,
    x: Array,
    rows: Rows,
    states: tuple[Array, ...],
    tape: Array,
    dy: Array | None,
    dx: Array | None,
    grads: dict[str, Array],
) -> None:
    """Back-propagate one direction of one layer through one stretch of time. Uses up the tape.

    Parameters
    ----------
    block : Block
    x : (N, I) array, or (N,) integers
        The input; for token ids, the row of ``grads["weight_ih"]`` that each packed row adds to.
    rows : Rows
    states : tuple of arrays, (B, width) each by the names and widths of ``spec.initial``
        The final state's gradient, overwritten in place with the initial one's.
    tape : (``spec.tape_size(N, B)``,) array
        This direction's tape, written by forward.
    dy : (N, R) array, optional
        Gradient of this direction's columns of the output.
    dx : (N, I) array, optional
        Added to.
    grads : dict of arrays
        Added to: ``spec.parameters``' names and shapes, but for token ids ``weight_ih`` is (rows, G*H).
    """
    k, spec = block, block.spec
    kept = parts_of_tape(spec, tape, rows)
    h_prev = np.empty_like(kept["h"])  # (N, R)
    c_prev = np.empty_like(kept["c"]) if spec.kind == "lstm" else None
    dgates = kept["gates"] if "gates" in kept else np.empty_like(kept["h"])
    dh_all = np.empty_like(kept["h"])  # (N, R) the gradient of every h

    for t in reversed(rows.steps(k.reverse)):
        b, at = rows.batch_sizes[t], slice(rows.offsets[t], rows.offsets[t + 1])
        h_prev[at] = previous(rows, k.reverse, t, kept["h"], kept["h0"])
        h = states[0]
        dh = h[:b] if dy is None else h[:b] + dy[at]
        dh_all[at] = dh
        if spec.kind == "lstm":
            assert c_prev is not None
            c = states[1]
            c_prev[at] = previous(rows, k.reverse, t, kept["c"], kept["c0"])
            dgates[at], h[:b], c[:b] = lstm_step_backward(k, kept, at, c_prev[at], dh, c[:b])
        elif spec.kind == "gru":
            dgates[at], h[:b] = gru_step_backward(k, kept, at, h_prev[at], dh)
        else:
            dgates[at] = dh * differentiated(k, 0, kept["h"][at])
            h[:b] = times_transposed(dgates[at], k.W_h)
    d_x = add_gradients(spec, x, kept, dgates, h_prev, c_prev, dh_all, grads)
    if dx is not None:
        dx += times_transposed(d_x, k.W_x)


def add_gradients(
    spec: Spec,
    x: Array,
    kept: dict[str, Array],
    dgates: Array,
    h_prev: Array,
    c_prev: Array | None,
    dh_all: Array,
    grads: dict[str, Array],
) -> Array:
    """Add the parameters' gradients, which are sums over all rows.

    Parameters
    ----------
    x, grads
        As in `backward`.
    kept : dict of arrays
        The parts of the tape.
    dgates : (N, GH), or (N, 4H) for GRU
        Gradients of the gates before activation, in the place of the tape's gates.
    h_prev, c_prev : (N, R) and (N, H)
        The state one step before.
    dh_all : (N, R)
        The gradient of every h.

    Returns
    -------
    d_x : (N, GH) array
        Gradient of the input's product.
    """
    H = spec.H
    d_x = dgates[:, : spec.G * H]
    if spec.kind == "gru" and spec.reset_after:
        d_h = np.concatenate((dgates[:, : 2 * H], dgates[:, 3 * H :]), axis=1)
        grads["weight_hh"] += d_h.T @ h_prev
    elif spec.kind == "gru":
        d_h, m = d_x, dgates[:, 3 * H :]
        grads["weight_hh"][: 2 * H] += d_x[:, : 2 * H].T @ h_prev
        grads["weight_hh"][2 * H :] += d_x[:, 2 * H :].T @ m
    else:
        d_h = d_x
        grads["weight_hh"] += d_x.T @ h_prev
    if x.ndim == 1:
        np.add.at(grads["weight_ih"], x, d_x)
    else:
        grads["weight_ih"] += d_x.T @ x
    for name, d in (("bias_ih", d_x), ("bias_hh", d_h))[: spec.biases]:
        grads[name] += d.sum(axis=0)
    if spec.proj_size:
        grads["weight_hr"] += dh_all.T @ kept["m"]
    if spec.peepholes:
        for row, gate, c in ((0, 0, c_prev), (1, 1, c_prev), (2, 3, kept["c"])):
            grads["weight_peep"][row] += (d_x[:, gate * H : (gate + 1) * H] * c).sum(axis=0)
    return d_x
