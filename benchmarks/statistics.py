"""Statistics of the backward sweep beside vmap(grad), and beside the plain gradient.

    python -m benchmarks.statistics [--rounds 9] [--only mlp ...]

All sides are jitted, run in one process and take turns; times are medians with quartiles, memory
is what the compiler reports.  The plain gradient is ``jax.grad`` of the mean loss: what it costs to
train at all.  :mod:`benchmarks.libraries` says which other libraries get a row, where they are
installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

import funcprop as fp
from benchmarks import libraries
from benchmarks.layers.attention import block, over_layers
from benchmarks.layers.dense import plain as dense
from benchmarks.layers.pooling import reduced
from benchmarks.layers.recurrent import lstm_cell, scanned
from benchmarks.layers.row import HEADER, Row, lines
from benchmarks.timing import heading, table
from funcprop import statistics

Tree = Any
MAX_NORM = 1.0


def squared_error(prediction: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((prediction - y) ** 2)


def cross_entropy(prediction: jax.Array, y: jax.Array) -> jax.Array:
    log_p = jax.nn.log_softmax(prediction)
    return -jnp.mean(jnp.take_along_axis(log_p, y[:, None], axis=-1))


def squared(each: Tree) -> jax.Array:
    """Squared norms (B,) of gradients that are formed."""
    return sum(jnp.sum(g * g, tuple(range(1, g.ndim))) for g in jax.tree.leaves(each))


class Sides:
    """What autodiff makes of a plain ``apply(params, x)`` and ``loss(prediction, y)``."""

    def __init__(self, apply: Callable[..., Tree], loss: Callable[..., jax.Array]):
        def mean_loss(params, x, y):
            return loss(apply(params, x), y)

        def one(params, x, y):
            return jax.grad(mean_loss)(params, x[None], y[None])

        self.gradient = jax.grad(mean_loss)
        self.each = jax.vmap(one, (None, 0, 0))

    def norms(self, params, x, y):
        return squared(self.each(params, x, y))

    def norms_and_gradient(self, params, x, y):
        each = self.each(params, x, y)
        return squared(each), jax.tree.map(lambda g: g.mean(0), each)

    def clipped(self, params, x, y):
        each = self.each(params, x, y)
        c = jnp.minimum(1, MAX_NORM / jnp.sqrt(squared(each)))
        return jax.tree.map(lambda g: jnp.tensordot(c, g, 1) / len(c), each)

    def second_moments(self, params, x, y):
        return jax.tree.map(lambda g: jnp.sum(g * g, axis=0), self.each(params, x, y))

    def inner_products(self, params, x, y):
        each = jax.tree.leaves(self.each(params, x, y))
        return sum(g.reshape(len(g), -1) @ g.reshape(len(g), -1).T for g in each)

    def raveled_norms(self, params, x, y):
        """The norms of vectors, as ``jnp.linalg.norm`` takes them; XLA holds all of them."""
        each = self.each(params, x, y)
        return jax.vmap(lambda tree: jnp.linalg.norm(ravel_pytree(tree)[0]))(each) ** 2

    def beside(self, name: str) -> dict[str, Callable[..., Tree]]:
        named = {"vmap(grad)": getattr(self, name, None)}
        if name == "norms":
            named["vmap(grad), raveled"] = self.raveled_norms
        named["plain gradient"] = self.gradient
        return {label: f for label, f in named.items() if f is not None}


def forms(model: fp.Layer, loss: fp.Loss) -> dict[str, Callable[..., Tree]]:
    """Our side of each, by the name of its other side."""
    norms = statistics.squared_norms(model, loss)
    both = statistics.combine(norms=statistics.squared_norms, mean=statistics.mean_gradient)
    clipped = statistics.clipped_gradient(MAX_NORM)(model, loss)
    moments = statistics.moments(model, loss)
    inner = statistics.inner_products(model, loss)
    sweep = fp.value_and_backprop(model, loss)
    factors = statistics.kfac_factors(model, loss, statistics.sampled())

    def norms_and_gradient(params, x, y):
        found = both(model, loss)(params, x, y)
        return found["norms"].total, found["mean"]

    def kfac(params, x, y):
        return sweep(params, x, y)[1], factors(params, x, y, key=jax.random.key(0))

    return {
        "K-FAC_factors_and_gradient": kfac,
        "each": statistics.per_example_gradients(model, loss),
        "norms": lambda *args: norms(*args).total,
        "norms_and_gradient": norms_and_gradient,
        "clipped": lambda *args: clipped(*args).gradient,
        "second_moments": lambda *args: moments(*args).sum_of_squares,
        "inner_products": lambda *args: inner(*args).total,
    }


def rows_of(
    title: str, model: fp.Layer, loss: fp.Loss, sides: Sides, x: Any, y: Any, aims: dict[str, str]
) -> list[Row]:
    params, _ = model.init(jax.random.key(0), x.shape[1:])
    ours = forms(model, loss)
    return [
        Row(
            f"{title}, {name.replace('_', ' ')}",
            ours[name],
            sides.beside(name),
            (params, x, y),
            aim,
        )
        for name, aim in aims.items()
    ]


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(len(shape)), shape)


def labels(batch: int) -> jax.Array:
    return jax.random.randint(jax.random.key(2), (batch,), 0, 10)


def mlp(scale: float) -> list[Row]:
    batch, hidden = max(2, round(128 * scale)), max(2, round(512 * scale))
    model = fp.serial(fp.dense(hidden, fp.relu), fp.dense(hidden, fp.relu), fp.dense(10))

    def apply(params, x):
        for layer in params[:-1]:
            x = dense(jax.nn.relu)(layer, x)
        return dense(lambda z: z)(params[-1], x)

    aims = {
        "norms": "50 times vmap(grad), 1/100 of its memory",
        "norms_and_gradient": "",
        "clipped": "at most 1.3 of the plain gradient's time",
        "each": "",
        "second_moments": "",
        "inner_products": "",
        "K-FAC_factors_and_gradient": "at most 2.2 of the plain gradient's time",
    }
    sides = Sides(apply, cross_entropy)
    x, y = normal(batch, 784), labels(batch)
    rows = rows_of("MLP", model, fp.softmax_cross_entropy(), sides, x, y, aims)
    norms, *others, kfac = rows
    peers = {**libraries.factors_in_jax(kfac.args[0]), **kfac.peers}
    return [
        norms._replace(torch=libraries.norms()),
        *others,
        kfac._replace(peers=peers, torch=libraries.factors()),
    ]


def blocks(scale: float) -> list[Row]:
    batch = max(2, round(8 * scale))
    model = fp.repeat(fp.transformer_block(4, causal=True, activation=fp.gelu_tanh), 6)
    aims = {
        "norms": "1.15 of the plain gradient's time, 2.5 times vmap(grad), 1/5 of its memory",
        "norms_and_gradient": "1.35 of the plain gradient's time",
        "clipped": "",
    }
    sides = Sides(over_layers(block), squared_error)
    x, y = normal(batch, 64, 128), jnp.zeros((batch, 64, 128))
    return rows_of("six blocks", model, fp.mean_squared_error, sides, x, y, aims)


def cnn(scale: float) -> list[Row]:
    return [row for pixels in (8, 28) for row in cnn_of(pixels, max(2, round(64 * scale)))]


def cnn_of(pixels: int, batch: int) -> list[Row]:
    stages = [(fp.conv(features, 3), fp.relu, fp.max_pool(2)) for features in (16, 32)]
    model = fp.serial(*stages[0], *stages[1], fp.flatten, fp.dense(10))
    pool = reduced(2, 2, "VALID")

    def apply(params, x):
        for layer in (params[0], params[3]):
            x = lax.conv_general_dilated(
                x, layer["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = pool((), jax.nn.relu(x + layer["b"]))
        return x.reshape(len(x), -1) @ params[7]["w"].T + params[7]["b"]

    aims = {"each": "2.5 times vmap(grad)", "norms": "", "clipped": ""}
    sides = Sides(apply, cross_entropy)
    x, y = normal(batch, pixels, pixels, 1), labels(batch)
    title, loss = f"digits CNN {pixels}×{pixels}", fp.softmax_cross_entropy()
    return rows_of(title, model, loss, sides, x, y, aims)


def lstm(scale: float) -> list[Row]:
    time, batch, width, hidden = (max(2, round(n * scale)) for n in (100, 32, 64, 128))
    sides = Sides(scanned(lstm_cell, hidden, 2), squared_error)
    x, y = normal(batch, time, width), jnp.zeros((batch, time, hidden))
    aims = {"norms": "3 times vmap(grad)", "each": "", "clipped": ""}
    return rows_of("LSTM", fp.lstm(hidden), fp.mean_squared_error, sides, x, y, aims)


MODELS = {"mlp": mlp, "blocks": blocks, "cnn": cnn, "lstm": lstm}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.statistics", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="how often each row is timed")
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--scale", type=float, default=1.0, help="smaller sizes, for a trial")
    options = parser.parse_args(arguments)
    print(heading(options.rounds))
    for name in options.only:
        found = MODELS[name](options.scale)
        print(flush=True)
        print(table(HEADER, [line for row in found for line in lines(row, options.rounds)]))


if __name__ == "__main__":
    main()
