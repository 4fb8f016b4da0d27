"""Planted faults: hand-written gradients that are wrong in a known way, and innocent ones.

Each fault is a small named change to a rule that is correct, in its backward pass alone, with the
leaves that it hits and the names under which it may be reported.  Those by hand are of every family
and of mistakes that people make; the generated ones change an equation of the backward pass, see
``tests/mutations.py``.  ``tests/fault_checks.py`` has the check of one, and the proof.

    python -m tests.faults [pattern ...]      proves that every fault is one, against jax.vjp
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import inspect
import itertools
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import funcprop as fp
import funcprop.statistics as st
from funcprop.cases.case import entries, labels, normal
from funcprop.checking import CASES, Case
from funcprop.core.checks import floats_of, is_inexact
from tests import mutations, plain_functions, programs
from tests.fault_checks import (
    LIMIT,
    Fault,
    cast,
    gaps_of,
    generator_of,
    params_of,
    proof,
)
from tests.plain_functions import (
    FUNCTIONS,
    arrays,
    cosine_similarity,
    cross_entropy,
    distances,
    dot_attention,
    filtered,
    gaussian,
    kernel_sum,
    log_determinant,
    log_sum_exp,
    network,
    normalised_dot,
    quadratic,
    recurrence,
    robust_regression,
)

Tree = Any
CASE: dict[str, Case] = {case.name: case for case in CASES}


# ---------------------------------------------------------------------------- faults by hand


def paths(text: str) -> tuple[str, ...]:
    """``"w 0.b x x.1"`` as paths: ['params']['w'], ['params'][0]['b'], ['x'], ['x'][1]."""

    def path(word: str) -> str:
        steps = word.split(".")
        own = steps[0] == "x" and all(step.isdecimal() for step in steps[1:])
        keys = [f"[{step}]" if step.isdecimal() else f"['{step}']" for step in steps]
        return "".join(keys if own else ["['params']", *keys])

    return tuple(map(path, text.split()))


def family_of(layer: Any) -> str:
    """The module of the public constructor that its name is of, without the packages."""
    public = getattr(fp, layer.name.split(" ")[0], layer)
    f = public.backward if isinstance(public, fp.Layer) or hasattr(public, "backward") else public
    return inspect.unwrap(f).__module__.rpartition(".")[2]


def same(tree: Tree) -> Tree:
    return tree


def swept(layer: Any, params: Tree, x: Tree, delta: Tree, carriers: Tree = None) -> tuple:
    """``(delta_x, grads)`` of a layer."""
    _, residuals = layer.forward(params, x)
    return layer.backward(params if carriers is None else carriers, residuals, delta)


def planted(
    layer: Any,
    *,
    weights: Callable[[Tree], Tree] = same,
    delta: Callable[[Tree], Tree] = same,
    x: Callable[[Tree], Tree] = same,
    params: Callable[[Tree], Tree] = same,
    back: Callable[..., tuple] | None = None,
) -> Any:
    """The layer with a change to its gradient; other statistics see the right pass.

    Args:
        layer: a layer or a loss.
        weights, delta: change what goes into its backward pass.
        x, params: change what comes out, delta_x and the gradient.
        back: ``back(right, params, x, delta) -> (delta_x, grads)`` with the right pair.

    A combinator that is made anew from other parts has the change too, as its source would.
    """

    def forward(own, given, key=None):
        y, residuals = layer.forward(own, given, key)
        return y, (given, residuals)

    def backward(carriers, kept, came, statistic=fp.gradient):
        given, residuals = kept
        if statistic is not fp.gradient:
            return layer.backward(carriers, residuals, came, statistic)
        found = layer.backward(weights(carriers), residuals, delta(came), statistic)
        if back is not None:
            found = back(found, carriers, given, came)
        return x(found[0]), params(found[1])

    changed = layer._replace(forward=forward, backward=backward)
    if layer.rebuild is None:
        return changed

    def rebuild(parts):
        again = layer.rebuild(parts)
        return planted(again, weights=weights, delta=delta, x=x, params=params, back=back)

    return changed._replace(rebuild=rebuild)


def around(
    name: str,
    case: str,
    wrong: str,
    *kinds: str,
    layer: Callable[[], Any] | None = None,
    draw: Any = None,
    **changes: Any,
) -> Fault:
    """A layer of the catalogue, or another one like it, with a change to its gradient."""
    own = CASE[case]

    def correct():
        return own.layer if layer is None else layer()

    return Fault(
        name,
        "layer",
        family_of(correct()),
        lambda: planted(correct(), **changes),
        own.draw if draw is None else draw,
        paths(wrong),
        kinds,
        own.analytic and layer is None and draw is None,
        correct=correct,
    )


def rounded(a: jax.Array, dtype: Any = jnp.bfloat16) -> jax.Array:
    return a.astype(dtype).astype(a.dtype)


_calls = itertools.count(1)


def restless(a: jax.Array) -> jax.Array:
    """``a`` times a number that is another at every call."""
    count = jax.pure_callback(
        lambda: np.float32(1 + 0.1 * (next(_calls) % 7)), jax.ShapeDtypeStruct((), np.float32)
    )
    return a * count.astype(a.dtype)


def diced(a: jax.Array) -> jax.Array:
    """``a`` times numbers that NumPy draws while tracing."""
    return a * np.random.default_rng().uniform(0.5, 1.5, a.shape).astype(a.dtype)


def zero(tree: Tree) -> Tree:
    return jax.tree.map(jnp.zeros_like, tree)


def rolled(tree: Tree, by: int = 1, axis: int = 0) -> Tree:
    return jax.tree.map(lambda a: jnp.roll(a, by, axis), tree)


def shifted(a: jax.Array, axis: int = 1) -> jax.Array:
    """Each entry one place later, the first one zero."""
    return jnp.moveaxis(jnp.moveaxis(jnp.roll(a, 1, axis), axis, 0).at[0].set(0), 0, axis)


def first(f: Callable[[Any], Any]) -> Callable[[tuple], tuple]:
    """``f`` of a tuple's first entry."""
    return lambda entries: (f(entries[0]), *entries[1:])


def at(name: str, f: Callable[[Any], Any]) -> Callable[[dict], dict]:
    """``f`` of a dict's entry."""
    return lambda tree: tree | {name: f(tree[name])}


def slope(f: Callable[[jax.Array], jax.Array]) -> Callable[..., tuple]:
    """A derivative of an activation at its input."""
    return lambda right, p, x, d: (d * f(x), ())


ACTIVATIONS = (
    around("relu: the slope of leaky relu", "relu", "x", "wrong function",
           back=slope(lambda z: jnp.where(z > 0, 1, 0.01).astype(z.dtype))),
    around("relu6: not flat above 6", "relu6", "x", "wrong function", "mask ignored",
           draw=normal(4, 9, scale=6.0), back=slope(lambda z: (z > 0).astype(z.dtype))),
    around("gelu: the slope of its tanh form", "gelu", "x", "wrong function",
           back=lambda right, p, x, d: swept(fp.gelu_tanh, p, x, d)),
    around("gelu: the density's term missing", "gelu", "x", "missing term",
           back=slope(jax.scipy.stats.norm.cdf)),
    around("silu: sigmoid of z for that of -z", "silu", "x", "wrong function", "sign",
           back=slope(lambda z: jax.nn.sigmoid(z) * (1 + z * jax.nn.sigmoid(z)))),
    around("softplus: exponentials overflow", "softplus", "x", "not finite",
           draw=normal(4, 9, scale=2000.0), back=slope(lambda z: jnp.exp(z) / (1 + jnp.exp(z)))),
    around("tanh: derivative at the pre-activation", "tanh", "x", "wrong place",
           back=slope(lambda z: 1 - z * z)),
    around("softmax: the sum missing", "softmax", "x", "missing term",
           back=slope(jax.nn.softmax)),
    around("softmax: the sum counted twice", "softmax", "x", "counted twice", "factor",
           back=lambda right, p, x, d: (2 * right[0] - jax.nn.softmax(x) * d, ())),
    around("identity: sign", "identity", "x", "sign", x=lambda d: -d),
    around("elementwise: delta clipped", "elementwise", "x", "not linear",
           delta=lambda d: jnp.clip(d, -1, 1)),
    around("silu: half precision kept", "silu", "x", "dtype", x=lambda d: d.astype(jnp.float16)),
)  # fmt: skip

TOKEN = normal(4, 6, 5)
DENSE = (
    around("affine: transport by W transposed", "affine", "x", "transpose",
           layer=lambda: fp.affine(5), weights=at("w", jnp.transpose)),
    around("affine: mean over the batch", "affine without bias", "w", "factor",
           params=at("w", lambda w: w / 4)),
    around("affine: w in half precision", "affine", "w", "dtype",
           params=at("w", lambda w: w.astype(jnp.bfloat16))),
    around("affine: w rounded to half precision", "affine", "w", "low precision",
           params=at("w", rounded)),
    around("affine: no bias in the tree", "affine", "b", "structure",
           params=lambda g: {"w": g["w"]}),
    around("dense: derivative of the activation missing", "dense", "w b x",
           "wrong function", "missing term",
           back=lambda right, p, x, d: swept(fp.affine(3), p, x, d)),
    around("dense: delta of the output transported", "dense", "x", "wrong place", "wrong function",
           back=lambda right, p, x, d: (d @ p["w"], right[1])),
    around("dense on tokens: bias of the last token", "dense on tokens", "b", "missing term",
           layer=lambda: fp.affine(3), back=lambda right, p, x, d: (
               right[0], right[1] | {"b": d[:, -1].sum(0)})),
    around("dense: an offset", "dense", "x", "not linear", x=lambda d: d + 1e-3),
    around("dense: one row of w doubled", "dense", "w", "factor",
           params=at("w", lambda w: w.at[1].multiply(2))),
    around("dense: all of x by 0.1 %", "dense", "x", "factor", x=lambda d: d * 1.001),
    around("dense on tokens: random numbers", "dense on tokens", "x", "not deterministic", x=diced),
    around("serial: one element of w by 30 %", "serial", "2.w", "factor",
           params=lambda g: (*g[:2], at("w", lambda w: w.at[1, 4].multiply(1.3))(g[2]))),
    around("function: a counter", "function", "x", "not deterministic", x=restless),
    around("cast: rounded on the way", "dense", "w b x", "low precision",
           layer=lambda: fp.cast(fp.dense(3, fp.tanh), "float32"), x=rounded,
           params=lambda g: jax.tree.map(rounded, g)),
    around("cast: the inputs in reverse order", "affine", "w", "transpose",
           layer=lambda: fp.cast(fp.affine(3), "float32"), back=lambda right, p, x, d: (
               right[0], right[1] | {"w": d.T @ x[::-1]})),
)  # fmt: skip


def _first_copy(right, params, x, delta):
    """Of a fork the delta of one copy."""
    part = CASE["fork, parallel"].layer.parts[1].parts[0]
    return swept(part, params[1][0], x, delta[0])[0], right[1]


def _unshared(right, params, x, delta):
    """Of parameters used twice the gradient of the first use."""
    model = CASE["share"].layer.parts[0]
    own = params["shared"]
    trees = swept(model, (own, own, params["model"][2]), x, delta)[1]
    return right[0], right[1] | {"shared": trees[0]}


COMBINATORS = (
    around("residual: the branch around it not added", "residual", "x", "missing term",
           back=lambda right, p, x, d: (right[0] - d, right[1])),
    around("fork: one of two copies", "fork, parallel", "x", "missing term", back=_first_copy),
    around("parallel: deltas reversed", "fork, parallel", "1.0.w 1.0.b 1.1.w 1.1.b x", "transpose",
           layer=lambda: fp.serial(fp.fork(2), fp.parallel(fp.dense(3), fp.dense(3, fp.tanh))),
           delta=lambda d: d[::-1]),
    around("serial: trees in the order of the sweep", "dense", "0.w 0.b 1.w 1.b", "transpose",
           layer=lambda: fp.serial(fp.dense(5, fp.tanh), fp.dense(5, fp.tanh)),
           params=lambda g: g[::-1]),
    around("remat: recomputed from a rounded input", "remat", "w b x", "low precision",
           back=lambda right, p, x, d: swept(fp.dense(3, fp.silu), p, rounded(x), d)),
    around("share: one of two uses", "share", "shared.w shared.b", "missing term", back=_unshared),
)  # fmt: skip


def _all_of_a_window(right, params, x, delta):
    """Of a pool over pairs the delta for every place."""
    spread = jnp.repeat(jnp.repeat(delta, 2, 1), 2, 2)
    gap = [(0, have - made) for have, made in zip(x.shape, spread.shape, strict=True)]
    return jnp.pad(spread, gap), ()


def _padding_counted(right, params, x, delta):
    """Of avg_pool((3, 2), (2, 1), "SAME") the mean over what is there, divided by 6."""
    ones = jnp.ones_like(x)
    count = jax.lax.reduce_window(
        ones, np.zeros((), x.dtype), jax.lax.add, (1, 3, 2, 1), (1, 2, 1, 1), "SAME"
    )
    return swept(CASE["avg_pool"].layer, (), x, delta * count / 6)[0], ()


CONVOLUTION = (
    around("conv: kernel not reversed", "conv", "x", "transpose",
           weights=at("w", lambda w: w[::-1, ::-1])),
    around("conv: window shifted by one", "conv", "x", "off by one", x=shifted),
    around("conv: the kernel's axes in another order", "conv", "w", "structure",
           params=at("w", lambda w: jnp.moveaxis(w, -1, 0))),
    around("conv, causal with groups: groups reversed", "conv, causal with groups", "w b",
           "transpose", back=lambda right, p, x, d: (right[0], swept(
               CASE["conv, causal with groups"].layer, p, x, jnp.roll(d, 2, -1))[1])),
    around("max_pool: the delta goes to all of a window", "max_pool", "x", "mask ignored",
           back=_all_of_a_window),
    around("avg_pool: padding counted", "avg_pool", "x", "factor", "mask ignored",
           back=_padding_counted),
    around("reshape: rows stopped", "reshape", "x", "stopped", "missing term",
           x=lambda d: d.at[0].set(0)),
    around("transpose: not inverted", "transpose", "x", "transpose", draw=normal(4, 3, 3, 3),
           back=lambda right, p, x, d: (CASE["transpose"].layer.apply((), d), ())),
    around("concatenate: entries in reverse order", "concatenate", "x.0 x.1", "transpose",
           draw=entries(normal(4, 3, 2), normal(4, 3, 2)), x=lambda d: d[::-1]),
)  # fmt: skip


def _standard(x, axes, epsilon=1e-5):
    """x normalised over ``axes``, and the reciprocal of its deviation."""
    x = x - x.mean(axes, keepdims=True)
    inverse = 1 / jnp.sqrt((x * x).mean(axes, keepdims=True) + epsilon)
    return x * inverse, inverse


def _without_mean(right, params, x, delta):
    normal, inverse = _standard(x, -1)
    g = delta * params["scale"]
    return inverse * (g - normal * (g * normal).mean(-1, keepdims=True)), right[1]


def _without_projection(right, params, x, delta):
    g = delta * params["scale"]
    return _standard(x, -1)[1] * (g - g.mean(-1, keepdims=True)), right[1]


def _statistics_constant(right, params, x, delta):
    axes = tuple(range(x.ndim - 1))
    return _standard(x, axes)[1] * delta * params["scale"], right[1]


NORMALIZATION = (
    around("layer_norm: mean term missing", "layer_norm", "x", "missing term", back=_without_mean),
    around("layer_norm: projection missing", "layer_norm", "x", "missing term",
           back=_without_projection),
    around("layer_norm: scale's gradient at what is not normalised", "layer_norm", "scale",
           "wrong place", "factor", back=lambda right, p, x, d: (right[0], right[1] | {
               "scale": (d * (x - x.mean(-1, keepdims=True))).sum((0, 1))})),
    around("rms_norm: half the delta's projection", "rms_norm", "x", "factor", "missing term",
           back=lambda right, p, x, d: (
               (right[0] + d * p["scale"] / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)) / 2,
               right[1])),
    around("group_norm: bias of the first place alone", "group_norm", "b", "missing term",
           back=lambda right, p, x, d: (right[0], right[1] | {"b": d[:, :1].sum((0, 1, 2))})),
    around("batch_norm: mean and variance taken for constants", "batch_norm", "x", "missing term",
           back=_statistics_constant),
    around("batch_norm: the factor of an unbiased variance", "batch_norm", "x", "factor",
           x=lambda d: d * (1 - 1 / 12)),
    around("dropout: the mask ignored", "dropout with a key", "x", "mask ignored",
           back=lambda right, p, x, d: (d / 0.6, ())),
    around("dropout: another mask is drawn", "dropout with a key", "x", "not deterministic",
           back=lambda right, p, x, d: (
               d * (np.random.random(d.shape) > 0.4).astype(d.dtype) / 0.6, ())),
)  # fmt: skip

EMBEDDING = (
    around("embedding: repeated ids counted once", "embedding", "w", "missing term",
           back=lambda right, p, x, d: (None, {"w": jnp.zeros_like(p["w"]).at[x].set(d)})),
    around("embedding: ids from 1", "embedding", "w", "off by one",
           params=at("w", lambda w: shifted(w, 0))),
    around("embedding: delta in half precision", "embedding", "w", "low precision", delta=rounded),
    around("positional: shifted by one step", "positional", "p", "off by one",
           params=at("p", rolled)),
)  # fmt: skip


def _without_sum(right, params, x, delta):
    """The softmax of attention without the sum in its derivative."""
    q, k, v = x
    root = np.sqrt(q.shape[-1]).astype(q.dtype)
    p = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / root)
    ds = p * jnp.einsum("bthd,bshd->bhts", delta, v) / root
    by_q, by_k = jnp.einsum("bhts,bshd->bthd", ds, k), jnp.einsum("bhts,bthd->bshd", ds, q)
    return (by_q, by_k, right[0][2]), ()


def _gates(halves):
    """A gated layer's backward pass from ``halves(gate, up, delta of h)``."""

    def back(right, params, x, delta):
        z = fp.affine(6, bias="b" in params["in"]).apply(params["in"], x)
        gate, up = jnp.split(z, 2, axis=-1)
        delta_z = jnp.concatenate(halves(gate, up, delta @ params["out"]["w"]), axis=-1)
        delta_x, own = swept(fp.affine(6, bias="b" in params["in"]), params["in"], x, delta_z)
        return delta_x, right[1] | {"in": own}

    return back


def _sigmoid_slope(z):
    return jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)


def _values_first(leaf):
    """Rows of queries, keys and values with the last two exchanged."""
    q, k, v = jnp.split(leaf, 3)
    return jnp.concatenate([q, v, k])


QUERIES = entries(normal(4, 3, 2, 2), normal(4, 5, 2, 2), normal(4, 5, 2, 2))
GROUPED = (normal(4, 3, 4, 2), normal(4, 5, 2, 2), normal(4, 5, 2, 2))
KEYS = np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [1, 0, 0, 0, 0]], bool)
MASKED = entries(*GROUPED, lambda draw: KEYS)

ATTENTION = (
    around("attention: the softmax's sum missing", "attention, grouped, with a mask", "x.0 x.1",
           "missing term", draw=QUERIES, back=_without_sum),
    around("attention: not divided by the root of d", "attention, grouped, with a mask", "x.0 x.1",
           "factor", draw=MASKED, x=lambda d: (d[0] * 2**0.5, d[1] * 2**0.5, *d[2:])),
    around("attention: the mask ignored", "attention, grouped, with a mask", "x.0 x.1 x.2",
           "mask ignored", draw=MASKED, back=lambda right, p, x, d: (
               (*swept(fp.attention(), p, x[:3], d)[0], None), ())),
    around("attention, in blocks: what is ahead is seen", "attention, causal, in blocks",
           "x.0 x.1 x.2", "mask ignored",
           back=lambda right, p, x, d: swept(fp.attention(), p, x, d)),
    around("attention: one head of the keys by 10 %", "attention, grouped, with a mask", "x.1",
           "factor", draw=MASKED, x=lambda d: (d[0], d[1].at[:, :, 1].multiply(1.1), *d[2:])),
    around("rotary: turned the same way", "rotary", "x", "transpose", "sign",
           back=lambda right, p, x, d: (fp.rotary().apply((), d), ())),
    around("multi_head_attention: keys and values swapped", "multi_head_attention",
           "qkv.w qkv.b", "transpose",
           params=at("qkv", lambda qkv: jax.tree.map(_values_first, qkv))),
    around("decoder_block: the memory's other uses dropped", "decoder_block", "x.1",
           "missing term", back=lambda right, p, x, d: (
               (right[0][0], right[0][1] - d[1]), right[1])),
    around("glu: halves swapped", "glu", "in.w in.b x", "transpose",
           back=_gates(lambda g, u, d: [d * jax.nn.sigmoid(g), d * u * _sigmoid_slope(g)])),
    around("swiglu: the gate before its activation", "swiglu", "in.w x", "wrong place",
           back=_gates(lambda g, u, d: [swept(fp.silu, (), g, d * u)[0], d * g])),
    around("geglu: sigmoid's slope for gelu's", "geglu", "in.w in.b x", "wrong function",
           back=_gates(lambda g, u, d: [d * u * _sigmoid_slope(g), swept(fp.gelu, (), g, d)[0]
                                        * 0 + d * fp.gelu.apply((), g)])),
)  # fmt: skip

SHORT = entries(normal(4, 3, 2), lambda draw: np.array([1, 3, 2, 2], np.int32))


def _of_one_direction(right, params, x, delta):
    """Of two directions the delta of x through the first."""
    y, none, (one, other) = delta
    own = (y.at[..., 3:].set(0), none, (one, zero(other)))
    delta_x = swept(CASE["bidirectional"].layer, params, x, own)[0]
    return (delta_x[0], *right[0][1:]), right[1]


def _empty_too(right, params, x, delta):
    """The first step of an empty sequence for its last one."""
    empty = (x[1] == 0)[:, None]
    return (right[0][0].at[:, 0].add(jnp.where(empty, delta, 0)), None), ()


RECURRENT = (
    around("rnn: no delta through the recurrence", "rnn", "w u b x", "missing term",
           weights=at("u", zero)),
    around("rnn: recurrent weights transposed", "rnn", "w u b x", "transpose",
           weights=at("u", jnp.transpose)),
    around("rnn, chunks: the last state's delta dropped", "rnn, chunks", "w u b x.0 x.2",
           "missing term", delta=lambda d: (*d[:2], zero(d[2]))),
    around("lstm: no delta through the gates of the next step", "lstm", "w u b x", "missing term",
           weights=at("u", zero)),
    around("lstm: gates in another order", "lstm", "w u b", "transpose",
           params=lambda g: rolled(g, 3)),
    around("lstm: numbers from NumPy", "lstm", "u", "not deterministic", params=at("u", diced)),
    around("lstm, chunks: recurrent weights get the mean over the batch", "lstm, chunks", "u",
           "factor", params=at("u", lambda u: u / 4)),
    around("gru: deltas of the padding", "gru", "x.w x.b h.w h.b x.0", "mask ignored", draw=SHORT,
           back=lambda right, p, x, d: swept(fp.gru(3), p, (x[0], jnp.full_like(x[1], 3)), d)),
    around("gru: delta of x summed over the batch", "gru", "x.0", "structure",
           x=first(lambda d: d.sum(0))),
    around("reverse: not turned back", "reverse", "x", "transpose", draw=normal(4, 3, 2),
           x=lambda d: jnp.flip(d, 1)),
    around("bidirectional: one of two directions", "bidirectional", "x.0", "missing term",
           back=_of_one_direction),
    around("last_step: one step later", "last_step", "x.0", "off by one", draw=SHORT,
           x=first(shifted)),
    around("last_step: empty sequences", "last_step", "x.0", "mask ignored", back=_empty_too),
)  # fmt: skip


def _shrinking_constant(right, params, x, delta):
    """The recurrence's gradient by nu without the term of γ, by which its input is scaled."""
    rate = jnp.exp(params["nu"])
    radius = jnp.exp(-2 * rate)
    by_log = (x * right[0]).sum((0, 1)).reshape(2, -1).sum(0)
    return right[0], at("nu", lambda nu: nu - by_log * rate * radius / (1 - radius))(right[1])


STATE_SPACE = (
    around("diagonal_recurrence: gamma taken for a constant", "diagonal_recurrence, step by step",
           "nu", "missing term", back=_shrinking_constant),
    around("diagonal_recurrence with a state: the last state's delta dropped",
           "diagonal_recurrence with a state", "nu theta x.0 x.1", "missing term",
           delta=lambda d: (d[0], zero(d[1]))),
    around("diagonal_recurrence: sign of theta", "diagonal_recurrence", "theta", "sign",
           params=at("theta", jnp.negative)),
    around("ssm: the skip's branch not added", "ssm", "x", "missing term",
           back=lambda right, p, x, d: (right[0] - p["skip"]["d"] * d, right[1])),
)  # fmt: skip

TREE = (
    around("tree_rnn: nothing sent to the children", "tree_rnn", "w u b x.0", "missing term",
           weights=at("u", zero)),
    around("tree_lstm: the forget gates send nothing", "tree_lstm",
           "gates.w gates.u gates.b forget.w forget.u forget.b x.0", "missing term",
           weights=at("forget", at("u", zero))),
    around("tree_lstm: gates in another order", "tree_lstm", "gates.w gates.u gates.b", "transpose",
           params=at("gates", lambda g: rolled(g, 4))),
)  # fmt: skip


def _edges_not_turned(right, params, x, delta):
    """Of a graph convolution: as if its edges went the other way."""
    nodes, edges = x
    delta_x, grads = swept(fp.graph_conv(2), params, (nodes, edges[..., ::-1]), delta)
    return delta_x, grads | {"b": right[1]["b"]}


def _count(mask, delta):
    return jnp.maximum(mask.sum(1), 1).astype(delta.dtype)[:, None]


MESSAGE = fp.serial(fp.concatenate, fp.dense(2, fp.tanh))
GRAPH = (
    around("graph_conv: edges not turned", "graph_conv", "w x.0", "transpose",
           back=_edges_not_turned),
    around("graph_attention: another slope below 0", "graph_attention", "in.w out.a x.0",
           "wrong function", "factor", back=lambda right, p, x, d: (lambda found: (
               found[0], at("out", lambda own: own | {"b": right[1]["out"]["b"]})(found[1])))(
                   swept(fp.graph_attention(2, heads=2, slope=0.9), p, x, d))),
    around("graph_attention, mean of heads: not divided by their number",
           "graph_attention, mean of heads, with a mask", "in.w out.a x.0", "factor",
           back=lambda right, p, x, d: (first(lambda d: 2 * d)(right[0]), {
               "in": {"w": 2 * right[1]["in"]["w"]},
               "out": at("a", lambda a: 2 * a)(right[1]["out"])})),
    around("message_passing, mean: not divided by the degree", "message_passing",
           "0.1.w 0.1.b x.0", "factor",
           layer=lambda: fp.message_passing(MESSAGE, reduce="mean"),
           back=lambda right, p, x, d: swept(fp.message_passing(MESSAGE), p, x, d)),
    around("message_passing: the features' delta dropped",
           "message_passing, maximum, of edge features", "x.2", "missing term",
           back=lambda right, p, x, d: ((*right[0][:2], right[0][2] - d[2], right[0][3]),
                                        right[1])),
    around("graph_pool: masked nodes counted", "graph_pool", "x.0", "mask ignored", "factor",
           back=lambda right, p, x, d: (first(
               lambda dx: dx * _count(x[2], d)[..., None] / 5)(right[0]), ())),
    around("graph_pool: masked nodes get a delta", "graph_pool", "x.0", "mask ignored",
           back=lambda right, p, x, d: ((jnp.broadcast_to(
               (d / _count(x[2], d))[:, None], x[0].shape), *right[0][1:]), ())),
)  # fmt: skip


def _own_balance(right, params, x, delta):
    """The balance of a batch of tokens, of which each carries its own delta back alone."""
    layer = CASE[BALANCED].layer
    none = swept(layer, params, x, (delta[0], None, 0 * delta[2]))[0][0]
    share = (delta[2] / delta[2].sum())[:, None]
    return (none + share * (right[0][0] - none), *right[0][1:]), right[1]


def _all_tokens_counted(right, params, x, delta):
    """The balance of six tokens of seven, divided by seven."""
    delta_x, grads = swept(CASE[BALANCED].layer, params, x, (delta[0], None, delta[2] * 6 / 7))
    return (*delta_x[:2], right[0][2]), grads


SEVEN = entries(normal(7, 3), lambda draw: np.arange(7) != 2, normal(7))
BALANCED = "mixture_of_experts, examples of one token with a mask and a balance"
EXPERTS = (
    around("mixture_of_experts: the balance's delta of a token alone", BALANCED, "x.0",
           "missing term", "wrong place", draw=SEVEN, back=_own_balance),
    around("mixture_of_experts: masked tokens counted in the balance", BALANCED, "router.w x.0",
           "factor", "mask ignored", draw=SEVEN, back=_all_tokens_counted),
    around("mixture_of_experts: the balance's delta dropped", "mixture_of_experts", "router.w x",
           "missing term", delta=lambda d: (d[0], zero(d[1]))),
    around("mixture_of_experts: the router's road to x missing", "mixture_of_experts", "x",
           "missing term", weights=at("router", zero)),
    around("mixture_of_experts: one expert's gradient for another's", "mixture_of_experts",
           "up.w up.b", "transpose", "off by one", params=at("up", rolled)),
    around("mixture_of_experts, with a mask: the mask ignored", "mixture_of_experts, with a mask",
           "router.w x.0", "mask ignored",
           back=lambda right, p, x, d: (lambda found: ((found[0], None), found[1]))(
               swept(CASE["mixture_of_experts"].layer, p, x[0], (d[0], d[2])))),
)  # fmt: skip


def _from(loss: Any, target: Callable[[Any], Any]) -> Callable[..., tuple]:
    """The delta of the prediction of a loss with another target."""
    return lambda right, p, x, d: (
        (swept(loss, p, (x[0], target(x[1])), d)[0][0], *right[0][1:]),
        right[1],
    )


LOSSES = (
    around("mean_squared_error: 2 missing", "mean_squared_error", "x.0", "factor",
           x=first(lambda d: d / 2)),
    around("mean_squared_error: sign of the target's", "mean_squared_error", "x.1", "sign",
           x=lambda d: (d[0], -d[1])),
    around("mean_squared_error, masked tokens: the mask ignored",
           "mean_squared_error, masked tokens", "x.0", "mask ignored",
           back=_from(fp.mean_squared_error, lambda target: target[0])),
    around("mean_absolute_error: 0 for -1", "mean_absolute_error", "x.0", "wrong function",
           "missing term", x=first(lambda d: d), back=lambda right, p, x, d: (
               (jnp.where(x[0] >= x[1], right[0][0], 0), right[0][1]), ())),
    around("huber: not clipped", "huber", "x.0", "wrong function",
           back=lambda right, p, x, d: (
               (swept(fp.mean_squared_error, (), x, d)[0][0] / 2, right[0][1]), ())),
    around("sigmoid_cross_entropy: exponentials overflow", "sigmoid_cross_entropy", "x.0",
           "not finite",
           draw=entries(normal(4, 3, scale=2000.0), lambda draw: draw.uniform(size=(4, 3))),
           back=lambda right, p, x, d: (
               (d[:, None] / 3 * (jnp.exp(x[0]) / (1 + jnp.exp(x[0])) - x[1]), right[0][1]), ())),
    around("softmax_cross_entropy: the target's term missing", "softmax_cross_entropy", "x.0",
           "missing term", back=lambda right, p, x, d: (
               (d[:, None] * jax.nn.softmax(x[0]), right[0][1]), ())),
    around("softmax_cross_entropy, smoothed: labels from 1", "softmax_cross_entropy, smoothed",
           "x.0", "off by one",
           back=_from(fp.softmax_cross_entropy(0.1), lambda labels: (labels + 1) % 5)),
    around("kl_divergence: the 1 missing", "kl_divergence", "x.1", "missing term",
           back=lambda right, p, x, d: ((right[0][0], right[0][1] - d[:, None]), ())),
    around("hinge: the margin ignored", "hinge", "x.0", "mask ignored", "wrong function",
           draw=entries(normal(4, 3, scale=3.0), lambda draw: draw.choice(
               np.array([-1, 1], np.int32), (4, 3))),
           back=lambda right, p, x, d: ((d[:, None] * -x[1].astype(d.dtype) / 3, right[0][1]), ())),
    around("linear_cross_entropy: the last chunk alone", "linear_cross_entropy, masked tokens",
           "x.0", "missing term", weights=at("w", lambda w: w.at[:-1].set(0))),
    around("linear_cross_entropy, smoothed: twice the smoothing", "linear_cross_entropy, smoothed",
           "w x.0", "factor", "counted twice", back=lambda right, p, x, d: swept(
               fp.linear_cross_entropy(7, label_smoothing=0.2, chunk=3), p, x, d)),
    around("linear_cross_entropy, smoothed: h rounded", "linear_cross_entropy, smoothed", "w",
           "low precision", params=at("w", rounded)),
    around("auxiliary: the coefficient missing", "auxiliary", "x.0.1", "factor",
           x=first(lambda d: (d[0], 2 * d[1]))),
)  # fmt: skip

LAYER_FAULTS = (
    *ACTIVATIONS, *DENSE, *COMBINATORS, *CONVOLUTION, *NORMALIZATION, *EMBEDDING, *ATTENTION,
    *RECURRENT, *STATE_SPACE, *TREE, *GRAPH, *EXPERTS, *LOSSES,
)  # fmt: skip


# ------------------------------------------------------------------------- plain functions


def change(
    f: Callable[..., Any], name: str, old: str, new: str, wrong: str, *kinds: str, draw: Any = None
) -> Fault:
    """A change to the source of ``f``'s gradient; ``wrong`` has the numbers of its arguments."""
    gradient, arguments = FUNCTIONS[f]

    def made():
        source = inspect.getsource(gradient)
        assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {f.__name__}"
        own = vars(plain_functions) | {"rounded": rounded, "diced": diced, "restless": restless}
        exec(source.replace(old, new), own)
        return f, own[gradient.__name__]

    def path(word):
        start, *keys = word.split(".")
        return f"[{start}]" + "".join(f"['{key}']" for key in keys)

    return Fault(
        f"{f.__name__}: {name}",
        "function",
        f.__name__,
        made,
        arguments if draw is None else draw,
        tuple(map(path, wrong.split())),
        kinds,
        correct=lambda: (f, gradient),
    )


def _twice(draw: np.random.Generator) -> tuple:
    x, w = draw.normal(size=(4, 3)), draw.normal(size=(4, 4))
    return np.concatenate([x[:3], x[:1]]), w


FUNCTION_FAULTS = (
    change(log_sum_exp, "the largest not subtracted", "top = x.max(1, keepdims=True)",
           "top = jnp.zeros_like(x[:, :1])", "0 1", "not finite",
           draw=arrays("bn", "b", scale=2000.0)),
    change(cross_entropy, "the batch's size missing", "size = len(z)", "size = 1", "0 1", "factor"),
    change(cross_entropy, "labels from 1", "keepdims=True) - q)",
           "keepdims=True) - jnp.roll(q, 1, 1))", "0", "off by one"),
    change(quadratic, "A taken for symmetric", "(a @ x + a.T @ x) / 2", "a @ x", "1", "transpose",
           "counted twice"),
    change(log_determinant, "solved in half precision", "jnp.linalg.solve(s, a)",
           "rounded(jnp.linalg.solve(s, a), jnp.float16)", "0", "low precision"),
    change(cosine_similarity, "sign of the projection", "u / (a * b) - cosine * v / b**2",
           "u / (a * b) + cosine * v / b**2", "1", "sign"),
    change(kernel_sum, "2 missing", "pulls = 2 * gamma", "pulls = gamma", "0 1", "factor"),
    change(distances, "0/0 where two are the same",
           "pulls = (w / d)[..., None] * gaps",
           "pulls = (w / jnp.sqrt(jnp.sum(gaps**2, axis=-1)))[..., None] * gaps", "0",
           "not finite", draw=_twice),
    change(log_determinant, "one column stopped", "2 * jnp.linalg.solve(s, a)",
           "2 * jnp.linalg.solve(s, a).at[:, 1].set(0)", "0", "stopped", "missing term"),
    change(robust_regression, "bias stopped", "slope.sum()", "0 * slope.sum()", "1", "stopped"),
    change(network, "one hidden unit stopped", "(1 - h * h)", "(1 - h * h).at[:, 0].set(0)",
           "0.w1 0.b1 1", "stopped", "missing term"),
    change(network, "bias in half precision", '"b2": dy.sum(0)}',
           '"b2": dy.sum(0).astype(jnp.float16)}', "0.b2", "dtype"),
    change(recurrence, "the step's own loss missing", "dz = (h + carried) * (1 - h * h)",
           "dz = carried * (1 - h * h)", "0 1 2", "stopped", "missing term"),
    change(filtered, "the edge stopped", "return dx, taps", "return dx.at[0].set(0), taps", "0",
           "stopped", "missing term"),
    change(robust_regression, "not clipped", "jnp.clip(r, -1, 1)", "r", "0 1 2 3",
           "wrong function"),
    change(dot_attention, "the softmax's sum missing",
           "(dp - jnp.sum(dp * p, axis=1, keepdims=True))", "dp", "0 1", "missing term"),
    change(dot_attention, "weights transposed", "ds.T @ q, p.T @ c", "ds.T @ q, p @ c", "2",
           "transpose", draw=arrays("td", "td", "tm", "tm")),
    change(gaussian, "inverse not transposed", "jnp.linalg.inv(p).T", "jnp.linalg.inv(p)", "1",
           "transpose"),
    change(gaussian, "the determinant's term once for all examples",
           "len(x) * jnp.linalg.inv(p).T - r", "jnp.linalg.inv(p).T - r", "1", "factor"),
    change(network, "derivative at the pre-activation", "(1 - h * h)", "(1 - z * z)",
           "0.w1 0.b1 1", "wrong place"),
    change(network, "one leaf missing", '"b2": dy.sum(0)}', "}", "0.b2", "structure"),
    change(network, "numbers from NumPy", '"w1": dz.T @ x', '"w1": diced(dz.T @ x)', "0.w1",
           "not deterministic"),
    change(normalised_dot, "projection counted twice", "- n * (g * n)", "- 2 * n * (g * n)", "0",
           "counted twice", "factor"),
    change(normalised_dot, "another epsilon", "+ 1e-3)", "+ 1e-5)", "0 1 2", "wrong function"),
    change(recurrence, "the state of the same step", "return dz.T @ before, dz.T @ x",
           "return dz.T @ h, dz.T @ x", "0", "off by one"),
    change(recurrence, "A not transposed", "return a.T @ dz, dz", "return a @ dz, dz", "0 1 2",
           "transpose"),
    change(recurrence, "a counter", "dz @ u", "restless(dz @ u)", "2", "not deterministic"),
    change(filtered, "kernel reversed", "k[i] * c", "k[-1 - i] * c", "0", "transpose"),
)  # fmt: skip

# ------------------------------------------------------------------------------ statistics


def losses_of(model: Any, loss: Any) -> Callable[..., jax.Array]:
    return lambda params, x, y: loss.apply((), (model.apply(params, x), y))


def each(model: Any, loss: Any) -> Callable[..., Tree]:
    """Per-example gradients by jax."""
    return jax.jacrev(losses_of(model, loss))


def flat(grads: Tree) -> jax.Array:
    """Per-example gradients as one matrix (B, parameters)."""
    return jnp.concatenate([g.reshape(len(g), -1) for g in jax.tree.leaves(grads)], axis=1)


def curvature(model: Any, loss: Any) -> Callable[..., Tree]:
    """Diagonal of the Gauss-Newton matrix of the mean loss, by jax."""

    def diagonal(params, x, y):
        def own(z, y):
            return loss.apply((), (z[None], y[None]))[0]

        bent = jax.vmap(jax.hessian(own))(model.apply(params, x), y)
        slopes = jax.jacrev(model.apply)(params, x)
        return jax.tree.map(
            lambda j: jnp.einsum("bi...,bij,bj...->...", j, bent, j) / len(j), slopes
        )

    return diagonal


def jacobians(model: Any, loss: Any) -> Callable[..., Tree]:
    def found(params, x, y):
        by_params, by_x = jax.jacrev(model.apply, (0, 1))(params, x)
        return by_params, jnp.moveaxis(jnp.diagonal(by_x, axis1=0, axis2=2), -1, 0)

    return found


def products(model: Any, loss: Any) -> Callable[..., Tree]:
    """The Hessian of the mean loss times the parameters."""

    def found(params, x, y):
        slope = jax.grad(lambda p: losses_of(model, loss)(p, x, y).mean())
        return jax.jvp(slope, (params,), (params,))[1]

    return found


def clipped(model: Any, loss: Any) -> Callable[..., Tree]:
    def found(params, x, y):
        grads = each(model, loss)(params, x, y)
        norms = jnp.linalg.norm(flat(grads), axis=1)
        share = jnp.minimum(1, 0.3 / norms) / len(norms)
        return jax.tree.map(lambda g: jnp.einsum("b,b...->...", share, g), grads)

    return found


def spread(model: Any, loss: Any) -> Callable[..., Tree]:
    return lambda *at: jax.tree.map(lambda g: jnp.var(g, axis=0, ddof=1), each(model, loss)(*at))


def of_each(f: Callable[[Tree], Tree]) -> Callable[[Any, Any], Callable[..., Tree]]:
    return lambda model, loss: lambda *at: f(each(model, loss)(*at))


def squares_of(grads: Tree) -> Tree:
    return jax.tree.map(lambda g: jnp.sum(g * g, axis=0), grads)


def means_of_squares(grads: Tree) -> Tree:
    return jax.tree.map(lambda g: jnp.mean(g * g, axis=0), grads)


def kronecker(model: Any, loss: Any) -> Callable[..., Tree]:
    """The factors of the last of two dense layers."""

    def found(params, x, y):
        h = model.parts[0].apply(params[0], x)
        rows = jnp.concatenate([h, jnp.ones_like(h[:, :1])], axis=1)

        def own(z, y):
            return loss.apply((), (z[None], y[None]))[0]

        bent = jax.vmap(jax.hessian(own))(model.apply(params, x), y)
        return {"inputs": rows.T @ rows / len(rows), "deltas": bent.mean(0)}

    return found


SMALL = (fp.serial(fp.dense(4, fp.tanh), fp.dense(3)), entries(normal(5, 4), labels(5, classes=3)))
TOKENS = (
    fp.serial(fp.dense(6, fp.tanh), fp.dense(3)),
    entries(normal(5, 2, 6), labels(5, 2, classes=3)),
)
ALL = "[0]['b'] [0]['w'] [1]['b'] [1]['w']"


def measured(
    name: str,
    reference: Callable[[Any, Any], Callable[..., Tree]],
    wrong: str,
    *kinds: str,
    change: Callable[[Tree], Tree] | None = None,
    instead: Callable[[Any, Any], Callable[..., Tree]] | None = None,
    make: Callable[[Any, Any], Callable[..., Tree]] | None = None,
    taken: Callable[[Any], Tree] = same,
    subject: Any = SMALL,
    family: str = "",
) -> Fault:
    """A statistic, of the function that the name begins with, and a change to what it finds.

    Args:
        name: of the fault.
        reference: the right one, by jax.
        wrong, kinds: as of :class:`Fault`.
        change: what becomes of its result.
        instead: ``instead(model, loss)`` takes its place.
        make: ``make(model, loss)`` makes it, by default the function itself.
        taken: what is compared of its result.
        subject: a model, and how to draw (x, y).
        family: by default the name of the function.
    """
    model, drawn = subject
    loss = fp.mean_squared_error if family else fp.softmax_cross_entropy()
    statistic = make or getattr(st, re.split("[:,]", name)[0])

    def correct():
        f = statistic(model, loss)
        return (lambda *at: taken(f(*at))), reference(model, loss)

    def made():
        f, due = correct()
        if instead is not None:
            return instead(model, loss), due
        return (lambda *at: change(f(*at))), due

    def draw(generator):
        x, y = drawn(generator)
        shape = x.shape[1:] if is_inexact(x) else jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        key = jax.random.key(int(generator.integers(2**31)))
        return model.init(key, shape)[0], x, y

    return Fault(
        name,
        "statistic",
        family or re.split("[:,]", name)[0],
        made,
        draw,
        tuple(wrong.split()),
        kinds,
        correct=correct,
    )


def total(found: Any) -> Tree:
    return found.total


def scaled(by: float) -> Callable[[Tree], Tree]:
    return lambda tree: jax.tree.map(lambda leaf: leaf * by, tree)


def of_layers(f: Callable[[Tree], Tree]) -> Callable[[Tree], Tree]:
    """``f`` of each layer's dict."""
    return lambda grads: tuple(map(f, grads))


def _without_biases(model, loss):
    """Squared norms of the matrices' gradients alone."""
    return of_each(lambda g: jnp.sum(flat([part["w"] for part in g]) ** 2, axis=1))(model, loss)


def _tokens_apart(model, loss):
    """Squared norms as if each of the two tokens were an example."""

    def found(params, x, y):
        g = flat(each(model, loss)(params, x.reshape(-1, x.shape[-1]), y.reshape(-1)))
        return jnp.sum((g / 2) ** 2, axis=1).reshape(y.shape).sum(1)

    return found


def _two_norms(model, loss):
    """Clipping by the square of the norm."""

    def found(params, x, y):
        grads = each(model, loss)(params, x, y)
        squares = jnp.sum(flat(grads) ** 2, axis=1)
        share = jnp.where(squares > 0.3**2, 0.3 / squares, 1) / len(squares)
        return jax.tree.map(lambda g: jnp.einsum("b,b...->...", share, g), grads)

    return found


def _slopes(model, loss):
    """The gradient of the mean loss."""
    return jax.grad(lambda p, x, y: losses_of(model, loss)(p, x, y).mean())


def _squared_slopes(model, loss):
    """Squares of the mean gradient for the means of squares."""
    return lambda *at: jax.tree.map(lambda g: g * g, _slopes(model, loss)(*at))


def with_rows(layer: Any, f: Callable[[Any, Any], tuple]) -> Any:
    """The layer, the rows of its site changed by ``f(left, right)``."""

    def backward(weights, residuals, delta, statistic=fp.gradient):
        def at_site(site, inputs, delta):
            rows = site.rows
            site = dataclasses.replace(site, rows=lambda x, delta: f(*rows(x, delta)))
            return statistic(site, inputs, delta)

        return layer.backward(weights, residuals, delta, at_site)

    return layer._replace(backward=backward)


def of_rows(name: str, layer: Any, drawn: Any, out: Any, wrong: str, *kinds: str, rows: Any):
    """Per-example gradients of a layer whose site has faulty rows."""
    broken = fp.serial(with_rows(layer, rows))
    return measured(
        name, each, wrong, *kinds,
        make=st.per_example_gradients, subject=(fp.serial(layer), entries(drawn, out)),
        instead=lambda model, loss: st.per_example_gradients(broken, loss),
        family=family_of(layer),
    )  # fmt: skip


def _factors(found: Any) -> Tree:
    return {"inputs": found[1].inputs, "deltas": found[1].deltas}


STATISTIC_FAULTS = (
    measured("per_example_gradients: transposed", each, "[0]['w']", "transpose",
             change=first(at("w", lambda w: jnp.swapaxes(w, 1, 2)))),
    measured("per_example_gradients: rounded", each, "[0]['w'] [1]['w']", "low precision",
             change=of_layers(at("w", rounded))),
    measured("squared_norms: bias missing", of_each(lambda g: jnp.sum(flat(g) ** 2, axis=1)),
             "value", "missing term", taken=total, instead=_without_biases),
    measured("squared_norms: products of two tokens missing",
             of_each(lambda g: jnp.sum(flat(g) ** 2, axis=1)), "value", "missing term",
             subject=TOKENS, taken=total, instead=_tokens_apart),
    measured("clipped_gradient: divided by the squared norm", clipped, ALL, "wrong function",
             make=st.clipped_gradient(0.3), taken=lambda found: found.gradient,
             instead=_two_norms),
    measured("clipped_gradient: sum over the batch", clipped, ALL, "factor",
             make=st.clipped_gradient(0.3), taken=lambda found: found.gradient,
             change=lambda found: scaled(5)(found)),
    measured("moments: the variance divided by B", spread, ALL, "factor",
             taken=lambda found: found.variance, change=scaled(4 / 5)),
    measured("moments: the mean not taken off", spread, ALL, "missing term",
             taken=lambda found: found.variance,
             instead=of_each(lambda g: jax.tree.map(lambda a: (a * a).sum(0) / 4, g))),
    measured("jacobian: outputs reversed", jacobians,
             "[0][0]['b'] [0][0]['w'] [0][1]['b'] [0][1]['w'] [1]", "transpose",
             make=lambda model, loss: lambda params, x, y: st.jacobian(model)(params, x),
             taken=tuple, change=lambda found: jax.tree.map(lambda j: j[:, ::-1], found)),
    measured("saliency: mean over the batch",
             lambda model, loss: jax.grad(lambda p, x, y: losses_of(model, loss)(p, x, y).sum(), 1),
             "value", "factor", change=scaled(1 / 5)),
    measured("hessian_vector_product: the gradient", products, ALL, "wrong function",
             make=lambda model, loss: lambda p, x, y: st.hessian_vector_product(model, loss)(
                 p, x, y, p), instead=_slopes),
    measured("ggn_diagonal: sum over the batch", curvature, ALL, "factor", change=scaled(5)),
    measured("fisher_diagonal, empirical: squares of the mean", of_each(means_of_squares), ALL,
             "wrong function", "wrong place", "missing term",
             make=lambda model, loss: st.fisher_diagonal(model, loss, st.empirical),
             instead=_squared_slopes),
    measured("kfac_factors: inputs divided by B - 1", kronecker, "['inputs']", "factor",
             taken=_factors, change=at("inputs", lambda a: a * 5 / 4)),
    measured("kfac_factors: deltas' products of two outputs missing", kronecker, "['deltas']",
             "stopped", "missing term", taken=_factors,
             change=at("deltas", lambda a: a * jnp.eye(3, dtype=a.dtype))),
    of_rows("conv, rows: taps reversed", fp.conv(3, 3), normal(4, 5, 4, 2), normal(4, 5, 4, 3),
            "[0]['w']", "transpose", rows=lambda left, right: (jnp.concatenate(
                jnp.split(left, 9, axis=-1)[::-1], axis=-1), right)),
    of_rows("dense, rows: one token stopped", fp.dense(3), normal(4, 3, 4), normal(4, 3, 3),
            "[0]['w']", "missing term", rows=lambda left, right: (left, right.at[:, 1].set(0))),
)  # fmt: skip


# ------------------------------------------------------------------------ layers in a model


def inside(
    name: str,
    part: Any,
    model: Callable[[Any], Any],
    data: Any,
    position: str,
    wrong: str,
    *kinds: str,
    wrap: Callable[[Any], Any] = same,
    **changes: Any,
) -> Fault:
    """A layer with a change to its gradient, or ``wrap`` of it, as a part of ``model(layer)``."""

    def made(layer):
        if hasattr(layer, "root"):
            return model(layer), layer
        return model(wrap(layer)), fp.softmax_cross_entropy()

    return Fault(
        f"{name}, in a model",
        "model",
        family_of(part),
        lambda: made(planted(part, **changes)),
        data,
        tuple(f"{position} {path}" for path in paths(wrong)),
        kinds,
        position=position,
        correct=lambda: made(part),
    )


VECTORS = entries(normal(8, 4), labels(8, classes=3))
IMAGES = entries(normal(5, 6, 6, 2), labels(5, classes=3))
WORDS = entries(labels(5, 6, classes=7), labels(5, classes=3))
STEPS = entries(normal(5, 4, 3), labels(5, 4, classes=3))

MODEL_FAULTS = (
    inside("dense: sign of w", fp.dense(6, fp.tanh),
           lambda part: fp.serial(part, fp.dense(5, fp.silu), fp.dense(3)),
           VECTORS, "layers[0] dense", "w", "sign", params=at("w", jnp.negative)),
    inside("dense: transport by W transposed", fp.affine(6),
           lambda part: fp.serial(fp.dense(6, fp.silu), fp.dense(6, fp.tanh), part, fp.dense(3)),
           VECTORS, "layers[2] dense", "x", "transpose", weights=at("w", jnp.transpose)),
    inside("dense: w rounded", fp.dense(5, fp.tanh),
           lambda part: fp.serial(fp.dense(5, fp.silu), part, fp.dense(3)),
           VECTORS, "layers[1] dense", "w", "low precision", params=at("w", rounded)),
    inside("dense: one row by 0.1 %", fp.dense(5, fp.tanh),
           lambda part: fp.serial(fp.dense(5, fp.silu), fp.layer_norm(), part, fp.dense(3)),
           VECTORS, "layers[2] dense", "w", "factor",
           params=at("w", lambda w: w.at[2].multiply(1.001))),
    inside("layer_norm: mean term missing", fp.layer_norm(),
           lambda part: fp.serial(fp.dense(6), part, fp.gelu, fp.dense(3)),
           VECTORS, "layers[1] layer_norm", "x", "missing term", back=_without_mean),
    inside("batch_norm: mean and variance taken for constants", fp.batch_norm(),
           lambda part: fp.serial(fp.dense(6), part, fp.silu, fp.dense(3)),
           VECTORS, "layers[1] batch_norm", "x", "missing term", back=_statistics_constant),
    inside("max_pool: the delta goes to all of a window", fp.max_pool(2),
           lambda part: fp.serial(fp.conv(4, 3), fp.tanh, part, fp.flatten, fp.dense(3)),
           IMAGES, "layers[2] max_pool", "x", "mask ignored", back=_all_of_a_window),
    inside("lstm: no delta through the gates of the next step", fp.lstm(5),
           lambda part: fp.serial(fp.embedding(7, 4), part, fp.last_step, fp.dense(3)),
           WORDS, "layers[1] lstm", "w u b x", "missing term", weights=at("u", zero)),
    inside("embedding: repeated ids counted once", fp.embedding(7, 4),
           lambda part: fp.serial(part, fp.gru(5), fp.last_step, fp.dense(3)),
           WORDS, "layers[0] embedding", "w", "missing term",
           back=lambda right, p, x, d: (None, {"w": jnp.zeros_like(p["w"]).at[x].set(d)})),
    inside("gelu: the slope of its tanh form", fp.gelu,
           lambda part: fp.serial(fp.dense(6), part, fp.dense(3)),
           VECTORS, "layers[1] gelu", "x", "wrong function",
           back=lambda right, p, x, d: swept(fp.gelu_tanh, p, x, d)),
    inside("multi_head_attention: keys and values swapped", fp.multi_head_attention(2),
           lambda part: fp.serial(fp.dense(4), part, fp.dense(3)),
           STEPS, "layers[1] multi_head_attention", "qkv.w qkv.b", "transpose",
           params=at("qkv", lambda qkv: jax.tree.map(_values_first, qkv))),
    inside("residual: the branch around it not added", fp.residual(fp.dense(6, fp.tanh)),
           lambda part: fp.serial(fp.dense(6), part, fp.dense(3)),
           VECTORS, "layers[1] residual", "x", "missing term",
           back=lambda right, p, x, d: (right[0] - d, right[1]))._replace(
               wrong=("layers[1] residual, between its parts ['x']",), proven=paths("x")),
    inside("repeat: bias stopped", fp.dense(6, fp.tanh),
           lambda part: fp.serial(fp.dense(6), part, fp.dense(3)),
           VECTORS, "layers[1].repeat[", "b", "stopped", params=at("b", zero),
           wrap=lambda part: fp.repeat(part, 3))._replace(
               wrong=tuple(f"layers[1].repeat[{n}] dense ['params']['b']" for n in range(3)),
               proven=paths("b")),
    inside("softmax_cross_entropy: the target's term missing", fp.softmax_cross_entropy(),
           lambda part: fp.serial(fp.dense(6, fp.tanh), fp.dense(3)),
           VECTORS, "loss softmax_cross_entropy", "x.0", "missing term",
           back=lambda right, p, x, d: ((d[:, None] * jax.nn.softmax(x[0]), right[0][1]), ())),
)  # fmt: skip

BY_HAND: tuple[Fault, ...] = (*LAYER_FAULTS, *FUNCTION_FAULTS, *STATISTIC_FAULTS, *MODEL_FAULTS)
assert len({fault.name for fault in BY_HAND}) == len(BY_HAND), "two faults have one name"


# -------------------------------------------------------------------------- generated faults

EACH = 3  # so many of a case


class Generated(NamedTuple):
    """The generated faults of a case or of a function.

    Attributes:
        faults: those of which a leaf is off.
        equal: the names of those drawn that give the right gradient within rounding.
    """

    faults: tuple[Fault, ...]
    equal: tuple[str, ...]


@functools.cache
def generated(subject: Any, count: int = EACH) -> Generated:
    """The first ``count`` mutations drawn for a case's name, or a function, that are faults.

    Which leaves are off is computed in float64, equation by equation, against the right backward
    pass, which other tests hold against jax.
    """
    with jax.enable_x64(True):
        if isinstance(subject, Case):
            name, f, args = _gradient_of(subject)
            names, named = mutations.NAMES, _named
        else:
            name, (f, draw) = subject.__name__, FUNCTIONS[subject]
            args = jax.tree.map(jnp.asarray, cast(draw(generator_of(0)), np.float64))
            names, named = (), same
        program = programs.traced(f, args, names)
        right = named(programs.run(program, args))
        faults, equal = [], []
        drawn = mutations.drawn(mutations.mutations(program), zlib.crc32(name.encode()))
        for mutation in drawn[: 5 * count]:
            gaps = gaps_of(named(mutations.made(program, args, mutation)), right)
            wrong = tuple(path for path, gap in gaps.items() if gap > LIMIT)
            if not wrong:
                equal.append(f"{name}: {mutation.name}")
                continue
            faults.append(_mutant(subject, name, mutation, wrong))
            if len(faults) == count:
                break
    return Generated(tuple(faults), tuple(equal))


def _mutant(subject: Any, name: str, mutation: mutations.Mutation, wrong: Any) -> Fault:
    full, kinds = f"{name}: {mutation.name}", mutations.KINDS[mutation.kind].meanings
    if isinstance(subject, Case):
        layer, family = subject.layer, family_of(subject.layer)
        return Fault(
            full, "layer", family, lambda: mutations.mutated(layer, mutation), subject.draw, wrong,
            kinds, subject.analytic, correct=lambda: layer, mutation=mutation,
        )  # fmt: skip
    gradient, draw = FUNCTIONS[subject]
    return Fault(
        full, "function", name, lambda: (subject, mutations.changed(gradient, mutation)), draw,
        wrong, kinds, correct=lambda: (subject, gradient), mutation=mutation,
    )  # fmt: skip


def _gradient_of(case: Case) -> tuple[str, Callable[..., Tree], tuple]:
    """A case's backward pass and what it is called with."""
    x = cast(case.draw(generator_of(0)), np.float64)
    params, key = params_of(case.layer, x, np.float64, 0), jax.random.key(0)
    y, residuals = jax.jit(lambda p, x: case.layer.forward(p, x, key))(params, x)
    draw = np.random.default_rng(2)
    delta = jax.tree.map(lambda s: draw.normal(size=s.shape) if is_inexact(s) else None, y)
    return case.name, case.layer.backward, jax.tree.map(jnp.asarray, (params, residuals, delta))


def _named(found: tuple) -> dict[str, Tree]:
    return {"params": found[1], "x": floats_of(found[0])}


def subjects() -> list[Any]:
    """What faults are generated of: the cases and the plain functions."""
    return [*CASES, *FUNCTIONS]


def all_faults() -> tuple[Fault, ...]:
    """Those by hand and the generated ones."""
    made = (fault for subject in subjects() for fault in generated(subject).faults)
    return (*BY_HAND, *made)


# -------------------------------------------------------------------------------- innocents


def innocents(count: int, seed: int = 0) -> Iterator[tuple[Fault, str, int]]:
    """Correct subjects, each with a dtype and a seed for :func:`report`.

    All cases of the catalogue in four dtypes with batches of random sizes; in two the plain
    functions with random shapes, the statistics and the models.
    """
    layers = [
        (_innocent(case), dtype)
        for case in CASES
        for dtype in ("float64", "float32", "bfloat16", "float16")
    ]
    functions = [
        (
            Fault(f.__name__, "function", f.__name__, lambda f=f, g=g: (f, g), draw, (), ()),
            dtype,
        )
        for f, (g, draw) in FUNCTIONS.items()
        for dtype in ("float64", "float32")
    ]
    others = [
        (
            fault._replace(
                name=name, make=fault.correct, wrong=(), kinds=(), position="", proven=()
            ),
            dtype,
        )
        for fault in (*STATISTIC_FAULTS, *MODEL_FAULTS)
        for name in [fault.name.replace(":", " without:", 1)]
        for dtype in ("float64", "float32")
    ]
    subjects = layers + functions + others
    shuffled = np.random.default_rng(seed)
    numbers = itertools.chain.from_iterable(
        shuffled.permutation(len(subjects)) for _ in itertools.count()
    )
    for i, number in enumerate(itertools.islice(numbers, count)):
        yield *subjects[number], seed * 1_000_003 + i


def _innocent(case: Any) -> Fault:
    def draw(generator):
        x, more = case.draw(generator), case.draw(generator)
        both = jax.tree.map(lambda a, b: np.concatenate([a, b]), x, more)
        least = 2 if isinstance(x, tuple) else 1
        size = int(generator.integers(least, len(jax.tree.leaves(both)[0]) + 1))
        return jax.tree.map(lambda a: a[:size], both)

    return Fault(
        case.name, "layer", case.layer.name, lambda: case.layer, draw, (), (), case.analytic
    )


def main(patterns: list[str]) -> int:
    def chosen(faults):
        return [f for f in faults if any(fnmatch.fnmatchcase(f.name, p) for p in patterns or ["*"])]

    faults, equal = chosen(BY_HAND), []
    for subject in subjects():
        found = generated(subject)
        equal += found.equal
        if patterns:
            faults += chosen(found.faults)
        else:
            print("\n".join(fault.name for fault in found.faults), flush=True)
    bad = 0
    for fault in faults:
        found = proof(fault)
        bad += bool(found)
        if found:
            print(f"{fault.name}: {found}", flush=True)
    count = sum(len(generated(subject).faults) for subject in subjects())
    print(f"{bad} of {len(faults)} are not as claimed")
    print(f"{len(BY_HAND)} by hand, {count} generated, {len(equal)} left out as equal")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
