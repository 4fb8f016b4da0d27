"""A row of the table: the same gradient by hand and by autodiff."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import funcprop
from benchmarks.timing import interleaved, spread

Tree = Any


class Row(NamedTuple):
    """One layer or model at one size.

    Attributes:
        name: what the table calls it.
        ours: a function of ``args``: value or output, and gradient.
        peers: the same work by ``jax.grad`` and others; the first is the plain forward as a user
            writes it.
        args: arrays and trees, the arguments of all of them.
        aim: what is aimed at, as text: "1.25 times, half the memory".
        calls: how many calls are timed as one.
    """

    name: str
    ours: Callable[..., Any]
    peers: Mapping[str, Callable[..., Any]]
    args: tuple
    aim: str = ""
    calls: int = 1


def by_hand(layer: funcprop.Layer) -> Callable[..., Tree]:
    """``f(params, x, delta) -> y, (delta by the params, delta by x)``, by the layer's backward."""

    def run(params, x, delta):
        y, residuals = layer.forward(params, x)
        delta_x, grads = layer.backward(params, residuals, delta)
        return y, (grads, delta_x)

    return run


def by_vjp(f: Callable[..., Tree]) -> Callable[..., Tree]:
    """The same by ``jax.vjp`` of a plain function ``f(params, x) -> y``."""

    def run(params, x, delta):
        y, pullback = jax.vjp(f, params, x)
        return y, pullback(delta)

    return run


def layer_row(
    name: str,
    layer: funcprop.Layer,
    plain: Callable[..., Tree] | Mapping[str, Callable[..., Tree]],
    shape: tuple[int, ...],
    *,
    aim: str = "0.97 times, its memory or an activation more",
    calls: int = 1,
) -> Row:
    """A row of a layer on an array (batch, ...), its gradient by parameters and input.

    ``plain`` is ``f(params, x) -> y``, or several by name.
    """
    params, _ = layer.init(jax.random.key(0), shape[1:])
    x = jax.random.normal(jax.random.key(1), shape)
    y = jax.eval_shape(layer.apply, params, x)
    delta = jax.random.normal(jax.random.key(2), y.shape)
    forms = plain if isinstance(plain, Mapping) else {"jax.vjp": plain}
    peers = {label: by_vjp(f) for label, f in forms.items()}
    return Row(name, by_hand(layer), peers, (params, x, delta), aim, calls)


def lines(row: Row, rounds: int) -> list[tuple[str, ...]]:
    """The table's lines for a row: time, ratios of time and memory, and the gradient's norm."""
    functions = {"funcprop": row.ours, **row.peers}
    compiled = {name: jax.jit(f).lower(*row.args).compile() for name, f in functions.items()}
    memory = {name: c.memory_analysis().temp_size_in_bytes for name, c in compiled.items()}

    def repeated(f):
        def run():
            for _ in range(row.calls):
                jax.block_until_ready(f(*row.args))

        return run

    norms = {name: _norm(f(*row.args)) for name, f in compiled.items()}
    _, seconds = interleaved({n: repeated(f) for n, f in compiled.items()}, rounds)
    own = seconds["funcprop"]
    return [
        (
            row.name if name == "funcprop" else "",
            name,
            spread(seconds[name] / row.calls * 1e3),
            "" if name == "funcprop" else spread(seconds[name] / own),
            f"{memory[name] / 2**20:.3g}",
            "" if name == "funcprop" else f"{memory['funcprop'] / max(memory[name], 1):.3g}",
            f"{norms[name]:.6g}",
            row.aim if name == "funcprop" else "",
        )
        for name in functions
    ]


HEADER = ("", "by", "ms a call", "its time / ours", "temporary MiB", "ours / its", "norm", "aim")


def _norm(tree: Tree) -> float:
    """The l2 norm of all floats, to see that two sides do the same work."""
    floats = [
        leaf
        for leaf in jax.tree.leaves(tree)
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return float(np.sqrt(sum(float(jnp.vdot(leaf, leaf).real) for leaf in floats)))
