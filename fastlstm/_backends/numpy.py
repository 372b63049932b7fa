"""The reference: what every backend computes, written to be read beside the equations in `spec`.

Float32 and float64. Gates are stacked, so a step is one matrix product and the element-wise rest; the input's
product is taken for a stretch of steps at once. "Activations =, parameters +=": forward and backward overwrite states
and tape, and add to the gradients of parameters and input that the caller hands in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..layout import Array, RowMap, Rows, begin_tape, parts_of_tape
from ..spec import Activation, Spec

DTYPES = ("float32", "float64")
STORAGES = ("float32", "float64", "float16")

# Rows whose input product is taken at once: as quick as all of them, and no buffer as long as the sequences.
STRETCH = 512


def unusable() -> str | None:
    """Why this backend cannot be used here: never."""
    return None


# --------------------------------------------------------------------------------------------------------- activations
def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow: the exponent is never positive."""
    e = np.exp(-np.abs(x))
    y: Array = np.where(x >= 0, 1, e) / (1 + e)
    return y


# name -> function of (x, alpha, beta)
FUNCTIONS: dict[str, Callable[[Array, float, float], Array]] = {
    "sigmoid": lambda x, a, b: sigmoid(x),
    "tanh": lambda x, a, b: np.tanh(x),
    "relu": lambda x, a, b: np.maximum(x, 0),
    "identity": lambda x, a, b: x,
    "hard_sigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "hard_sigmoid_keras2": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "affine": lambda x, a, b: a * x + b,
    "leaky_relu": lambda x, a, b: np.where(x > 0, x, a * x),
    "thresholded_relu": lambda x, a, b: np.where(x < a, 0, x),
    "scaled_tanh": lambda x, a, b: a * np.tanh(b * x),
    "elu": lambda x, a, b: np.where(x > 0, x, a * np.expm1(np.minimum(x, 0))),
    "softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "softplus": lambda x, a, b: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
}

# name -> derivative by x, as a function of the output (y, alpha, beta)
DERIVATIVES: dict[str, Callable[[Array, float, float], Array]] = {
    "sigmoid": lambda y, a, b: y * (1 - y),
    "tanh": lambda y, a, b: 1 - y * y,
    "relu": lambda y, a, b: (y > 0) * y.dtype.type(1),
    "identity": lambda y, a, b: np.ones_like(y),
    "hard_sigmoid": lambda y, a, b: ((y > 0) & (y < 1)) * y.dtype.type(a),
    "hard_sigmoid_keras2": lambda y, a, b: ((y > 0) & (y < 1)) * y.dtype.type(a),
    "affine": lambda y, a, b: np.full_like(y, a),
    "leaky_relu": lambda y, a, b: np.where(y > 0, y.dtype.type(1), y.dtype.type(a)),
    "thresholded_relu": lambda y, a, b: (y != 0) * y.dtype.type(1),
    "scaled_tanh": lambda y, a, b: b * (a - y * y / a),
    "elu": lambda y, a, b: np.where(y > 0, y.dtype.type(1), y + y.dtype.type(a)),
    "softsign": lambda y, a, b: (1 - np.abs(y)) ** 2,
    "softplus": lambda y, a, b: -np.expm1(-y),
}


def act(f: Activation, x: Array) -> Array:
    return FUNCTIONS[f.name](x, f.alpha, f.beta)


def dact(f: Activation, y: Array) -> Array:
    """Derivative of the activation where its output is y."""
    return DERIVATIVES[f.name](y, f.alpha, f.beta)


# ------------------------------------------------------------------------------------------------------------- packing
@dataclass(frozen=True)
class Block:
    """Weights of one direction of one layer as this backend reads them (copies: a later update cannot change them)."""

    spec: Spec
    storage: str
    reverse: bool
    W_x: Array  # (I, GH)   so that a token's row is one read
    W_h: Array  # (R, GH)
    b_x: Array  # (GH,)     every bias that the input's product may carry
    b_hn: Array  # (H,)      GRU with reset_after: the bias inside r * (...); else zeros
    W_r: Array  # (H, R)    projection, or empty
    peep: Array  # (3, H)    peepholes of i, f, o, or zeros


def pack(spec: Spec, params: dict[str, Array], storage: str = "float32", reverse: bool = False) -> Block:
    """One direction of one layer: its weights, in the form that `forward`, `backward` and `bind` take.

    Parameters
    ----------
    spec : Spec
    params : dict of arrays
        Canonical shapes (``spec.parameters``). Every float32 entry of a matrix is rounded to `storage`.
    storage : {"float32", "float64", "float16"}
        float16 rounds the matrices to nearest even; biases and arithmetic stay as wide as the parameters.
    reverse : bool
        Walk the rows from the last step to the first; a sequence joins, with its initial state, at its last step.
    """

    def matrix(name: str, shape: tuple[int, ...]) -> Array:
        w = params.get(name)
        if w is None:
            return np.zeros(shape, dtype)
        return np.ascontiguousarray(w.astype(np.float16).astype(dtype).T if storage == "float16" else w.T.copy())

    dtype = params["weight_hh"].dtype
    H, GH = spec.H, spec.G * spec.H
    b_ih, b_hh = (params.get(name, np.zeros(GH, dtype)) for name in ("bias_ih", "bias_hh"))
    b_hn = np.zeros(H, dtype)
    if spec.kind == "gru" and spec.reset_after:  # b_hn stays inside r * (...)
        b_hn, b_hh = b_hh[2 * H :].copy(), np.concatenate((b_hh[: 2 * H], b_hn))
    peep = params.get("weight_peep", np.zeros((3, H), dtype)).copy()
    return Block(
        spec,
        storage,
        reverse,
        matrix("weight_ih", (spec.I, GH)),
        matrix("weight_hh", (spec.R, GH)),
        b_ih + b_hh,
        b_hn,
        matrix("weight_hr", (H, 0)),
        peep,
    )


# ---------------------------------------------------------------------------------------------------- one step, forward
def lstm_step(k: Block, a: Array, h: Array, c: Array) -> tuple[Array, Array, dict[str, Array]]:
    """(h', c', what goes on the tape) from a = W_x x + b: a (B, 4H), h (B, R), c (B, H)."""
    H = k.spec.H
    f_gate, f_cand, f_out = k.spec.activations
    a = a + h @ k.W_h
    p_i, p_f, p_o = k.peep
    peepholes = k.spec.peepholes
    i = act(f_gate, a[:, :H] + p_i * c if peepholes else a[:, :H])
    f = act(f_gate, a[:, H : 2 * H] + p_f * c if peepholes else a[:, H : 2 * H])
    g = act(f_cand, a[:, 2 * H : 3 * H])
    c = f * c + i * g
    o = act(f_gate, a[:, 3 * H :] + p_o * c if peepholes else a[:, 3 * H :])
    m = o * act(f_out, c)
    h = m @ k.W_r if k.spec.proj_size else m
    return h, c, {"gates": np.concatenate((i, f, g, o), axis=1), "c": c, "h": h, "m": m}


def gru_step(k: Block, a: Array, h: Array) -> tuple[Array, dict[str, Array]]:
    """(h', tape) from a = W_x x + b: a (B, 3H), h (B, H)."""
    H = k.spec.H
    f_gate, f_cand = k.spec.activations
    if k.spec.reset_after:
        u = h @ k.W_h  # (B, 3H)
        rz = act(f_gate, a[:, : 2 * H] + u[:, : 2 * H])
        r, z = rz[:, :H], rz[:, H:]
        m = u[:, 2 * H :] + k.b_hn  # n_h, kept apart from the input's part
        n = act(f_cand, a[:, 2 * H :] + r * m)
    else:
        rz = act(f_gate, a[:, : 2 * H] + h @ k.W_h[:, : 2 * H])
        r, z = rz[:, :H], rz[:, H:]
        m = r * h
        n = act(f_cand, a[:, 2 * H :] + m @ k.W_h[:, 2 * H :])
    h = (1 - z) * n + z * h
    return h, {"gates": np.concatenate((r, z, n, m), axis=1), "h": h}


def rnn_step(k: Block, a: Array, h: Array) -> tuple[Array, dict[str, Array]]:
    """(h', tape) from a = W_x x + b: a (B, H), h (B, H)."""
    h = act(k.spec.activations[0], a + h @ k.W_h)
    return h, {"h": h}


def step(k: Block, a: Array, h: Array, c: Array | None) -> tuple[Array, Array | None, dict[str, Array]]:
    if k.spec.kind == "lstm":
        assert c is not None
        return lstm_step(k, a, h, c)
    h, tape = (gru_step if k.spec.kind == "gru" else rnn_step)(k, a, h)
    return h, None, tape


def input_product(k: Block, x: Array) -> Array:
    """b + W_x x for rows (N, I), or the stored rows of token ids (N,): (N, GH)."""
    return (k.W_x[x] if x.ndim == 1 else x @ k.W_x) + k.b_x


def input_products(k: Block, x: Array, rows: Rows) -> Iterator[tuple[int, slice, Array]]:
    """(step, its rows, their `input_product`) in walking order; taken for a stretch of steps at once."""
    steps, every = rows.steps(k.reverse), max(1, STRETCH // max(1, rows.B))
    for i in range(0, rows.T, every):
        stretch = steps[i : i + every]
        begin, end = rows.offsets[min(stretch)], rows.offsets[max(stretch) + 1]
        a = input_product(k, x[begin:end])
        for t in stretch:
            at = slice(rows.offsets[t], rows.offsets[t + 1])
            yield t, at, a[at.start - begin : at.stop - begin]


# ------------------------------------------------------------------------------------------------------------- forward
def put(h: Array, y: Array, now: slice, t: int, row_map: RowMap | None) -> None:
    """h (b, R), the outputs of step t, into the rows of y that are the packed rows `now`, or at their places."""
    if row_map is None:
        y[now] = h
        return
    at = t * row_map.step + row_map.sequences
    y[at[: len(h)]] = h
    y[at[len(h) :]] = 0


def forward(
    blocks: list[Block],
    x: Array,
    rows: Rows,
    h: Array,
    c: Array | None,
    y: Array | None,
    tapes: Array | None = None,
    at: int = 0,
    row_map: RowMap | None = None,
) -> None:
    """Run the directions of one layer over packed rows.

    Parameters
    ----------
    blocks : list of D blocks, one for each direction
    x : (N, I) array or, as it lies the same, (T, B, I); or (N,) integer token ids
    rows : Rows
    h, c : (L*D, B, R) and (L*D, B, H) arrays, c None but for LSTM
        The initial states, overwritten in place with the final ones. Those of this layer are `at` and the following.
    y : (N, D*R) or (T, B, D*R) array, contiguous, optional
        Overwritten with the outputs, the directions side by side. With `row_map` of any shape (..., D*R).
    tapes : (D, ``spec.tape_size(N, B)``) array, optional
        Overwritten with what backward needs: of each direction the parts that `parts_of_tape` names.
    at : int
    row_map : RowMap, optional
        The rows of y where the outputs go, instead of packed: steps after a sequence's last, up to the longest one's,
        become zeros; other rows stay as they are.
    """
    x = x if x.ndim == 1 else x.reshape(rows.N, -1)
    y = None if y is None else y.reshape(-1, y.shape[-1])
    for d, k in enumerate(blocks):
        h_d, c_d, R = h[at + d], None if c is None else c[at + d], k.spec.R
        tape = None if tapes is None else begin_tape(k.spec, tapes[d], rows, h_d, c_d)
        for t, now, a in input_products(k, x, rows):
            b = rows.batch_sizes[t]
            h_t, c_t, kept = step(k, a, h_d[:b], None if c_d is None else c_d[:b])
            h_d[:b] = h_t
            if c_d is not None:
                c_d[:b] = c_t
            if y is not None:
                put(h_t, y[:, d * R : (d + 1) * R], now, t, row_map)
            if tape is not None:
                for name in k.spec.tape:
                    tape[name][now] = kept[name]


# ------------------------------------------------------------------------------------------------------------ backward
def previous(rows: Rows, reverse: bool, t: int, kept: Array, initial: Array) -> Array:
    """What `kept` (N, width) held one step before t in walking order, for the rows of step t: (b, width)."""
    b = int(rows.batch_sizes[t])
    before = t + 1 if reverse else t - 1
    alive = min(b, int(rows.batch_sizes[before])) if 0 <= before < rows.T else 0
    at = rows.offsets[before] if alive else 0
    return np.concatenate((kept[at : at + alive], initial[alive:b]))


def lstm_step_backward(
    k: Block, tape: dict[str, Array], at: slice, c_prev: Array, dh: Array, dc: Array
) -> tuple[Array, Array, Array]:
    """(dgates before activation (b, 4H), dh of the step before, dc of the step before)."""
    f_gate, f_cand, f_out = k.spec.activations
    p_i, p_f, p_o = k.peep
    i, f, g, o = np.split(tape["gates"][at], 4, axis=1)
    s = act(f_out, tape["c"][at])
    dm = dh @ k.W_r.T if k.spec.proj_size else dh
    do = dm * s * dact(f_gate, o)
    dc = dc + dm * o * dact(f_out, s) + do * p_o
    di = dc * g * dact(f_gate, i)
    df = dc * c_prev * dact(f_gate, f)
    dg = dc * i * dact(f_cand, g)
    dgates = np.concatenate((di, df, dg, do), axis=1)
    return dgates, dgates @ k.W_h.T, dc * f + di * p_i + df * p_f


def gru_step_backward(k: Block, tape: dict[str, Array], at: slice, h_prev: Array, dh: Array) -> tuple[Array, Array]:
    """(gradients in the place of r z n m: (b, 4H), dh of the step before).

    The fourth column is the gradient of W_hn's product: dn * r where reset_after; else dn, and m stays on the tape.
    """
    H = k.spec.H
    f_gate, f_cand = k.spec.activations
    r, z, n, m = np.split(tape["gates"][at], 4, axis=1)
    dz = dh * (h_prev - n) * dact(f_gate, z)
    dn = dh * (1 - z) * dact(f_cand, n)
    W_rz, W_n = k.W_h[:, : 2 * H], k.W_h[:, 2 * H :]
    if k.spec.reset_after:
        dr = dn * m * dact(f_gate, r)
        dm = dn * r
        dh_prev = dh * z + np.concatenate((dr, dz), axis=1) @ W_rz.T + dm @ W_n.T
        return np.concatenate((dr, dz, dn, dm), axis=1), dh_prev
    drh = dn @ W_n.T  # gradient of r * h
    dr = drh * h_prev * dact(f_gate, r)
    dh_prev = dh * z + drh * r + np.concatenate((dr, dz), axis=1) @ W_rz.T
    return np.concatenate((dr, dz, dn, m), axis=1), dh_prev


def backward(
    block: Block,
    x: Array,
    rows: Rows,
    h: Array,
    c: Array | None,
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
    h, c : (B, R) and (B, H) arrays, c None but for LSTM
        The final state's gradient, overwritten in place with the initial one's.
    tape : (``spec.tape_size(N, B)``,) array
        What forward wrote of this direction.
    dy : (N, R) array, optional
        Gradient of this direction's columns of the output.
    dx : (N, I) array, optional
        Added to.
    grads : dict of arrays
        Added to: ``spec.parameters``' names and shapes, but for token ids ``weight_ih`` is (rows, G*H).
    """
    k, spec, H = block, block.spec, block.spec.H
    kept = parts_of_tape(spec, tape, rows)
    h_prev = np.empty_like(kept["h"])  # (N, R)
    c_prev = np.empty_like(kept["c"]) if spec.kind == "lstm" else None
    dgates = kept["gates"] if "gates" in kept else np.empty_like(kept["h"])
    dh_all = np.empty_like(kept["h"])  # (N, R) the gradient of every h

    for t in reversed(rows.steps(k.reverse)):
        b, at = rows.batch_sizes[t], slice(rows.offsets[t], rows.offsets[t + 1])
        h_prev[at] = previous(rows, k.reverse, t, kept["h"], kept["h0"])
        dh = h[:b] if dy is None else h[:b] + dy[at]
        dh_all[at] = dh
        if spec.kind == "lstm":
            assert c_prev is not None and c is not None
            c_prev[at] = previous(rows, k.reverse, t, kept["c"], kept["c0"])
            dgates[at], h[:b], c[:b] = lstm_step_backward(k, kept, at, c_prev[at], dh, c[:b])
        elif spec.kind == "gru":
            dgates[at], h[:b] = gru_step_backward(k, kept, at, h_prev[at], dh)
        else:
            dgates[at] = dh * dact(spec.activations[0], kept["h"][at])
            h[:b] = dgates[at] @ k.W_h.T

    # Parameters: sums over all rows at once. d_x and d_h belong to the input's and the recurrent product.
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
    if spec.bias:
        grads["bias_ih"] += d_x.sum(axis=0)
        grads["bias_hh"] += d_h.sum(axis=0)
    if spec.proj_size:
        grads["weight_hr"] += dh_all.T @ kept["m"]
    if spec.peepholes:
        for row, gate, c in ((0, 0, c_prev), (1, 1, c_prev), (2, 3, kept["c"])):
            grads["weight_peep"][row] += (d_x[:, gate * H : (gate + 1) * H] * c).sum(axis=0)
    if dx is not None:
        dx += d_x @ k.W_x.T


# ----------------------------------------------------------------------------------------------------------- streaming
def bind(blocks: list[Block], x: Array, h: Array, c: Array | None) -> Callable[[], None]:
    """One step of all layers, with weights, input and state bound.

    Parameters
    ----------
    blocks : list of L blocks, one direction each
    x : (B, I) array, or (B,) int64 token ids
        Read by every step.
    h, c : (L, B, R) and (L, B, H) arrays, c None but for LSTM
        The state, updated in place by every step.

    Returns
    -------
    step : callable without arguments
        The result is the last layer's h.
    """

    def one_step() -> None:
        below = x
        for layer, k in enumerate(blocks):
            below, c_new, _ = step(k, input_product(k, below), h[layer], None if c is None else c[layer])
            h[layer] = below
            if c is not None:
                c[layer] = c_new

    return one_step


# --------------------------------------------------------------------------------------------------------- dense layer
# Not of the contract: a backend without these leaves the dense layer to the reference.
def dense_pack(params: dict[str, Array]) -> dict[str, Array]:
    """A dense layer's weights as the functions below take them.

    Parameters
    ----------
    params : dict of arrays
        ``weight`` (U, I) and, where there is one, ``bias`` (U,).
    """
    return params


def dense_forward(block: dict[str, Array], x: Array) -> Array:
    """x @ weight.T + bias: (N, U) for rows (N, I)."""
    y: Array = x @ block["weight"].T
    if "bias" in block:
        y += block["bias"]
    return y


def dense_backward(block: dict[str, Array], x: Array, dy: Array) -> tuple[Array, dict[str, Array]]:
    """Gradients for x (N, I) and dy (N, U): (dx, by name those of the parameters)."""
    grads = {"weight": dy.T @ x} | ({"bias": dy.sum(axis=0)} if "bias" in block else {})
    return dy @ block["weight"], grads


def dense_cross_entropy(
    block: dict[str, Array], x: Array, targets: Array, factor: float
) -> tuple[Array, Array, dict[str, Array]]:
    """A head in one: (losses (N,), dx, gradients by name), the gradients times `factor`; see `cross_entropy`."""
    logits = dense_forward(block, x)
    losses = cross_entropy(logits, targets, factor)
    return losses, *dense_backward(block, x, logits)


def cross_entropy(rows: Array, targets: Array, factor: float) -> Array:
    """-log softmax of the target of every row of logits (N, U): (N,) float64. The rows become their gradients.

    Parameters
    ----------
    rows : (N, U) array
        Overwritten with factor * (softmax - onehot(target)).
    targets : (N,) integer array, each from 0 to U - 1
    factor : float
    """
    each = np.arange(len(rows))
    with np.errstate(invalid="ignore"):  # NaN and infinity pass, as everywhere
        rows -= rows.max(axis=1, keepdims=True)
        right = rows[each, targets].astype(np.float64)
        np.exp(rows, out=rows)
        total = rows.sum(axis=1, dtype=np.float64)
        losses: Array = np.log(total) - right
        rows *= (factor / total).astype(rows.dtype)[:, None]
    rows[each, targets] -= rows.dtype.type(factor)
    return losses
