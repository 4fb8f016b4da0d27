"""Pooling and shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

import funcprop as fp
from benchmarks.layers.row import Row, layer_row


def reduced(size: int, stride: int, padding: str):
    def run(params, x):
        window, step = (1, size, size, 1), (1, stride, stride, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, window, step, padding)

    return run


def averaged(params, x):
    window, step = (1, 2, 2, 1), (1, 2, 2, 1)
    return lax.reduce_window(x, 0.0, lax.add, window, step, "VALID") / 4


def reshaped(params, x):
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


def backward_alone(shape: tuple[int, ...]) -> Row:
    """δx of a 2×2 maximum, with what each side needs of the forward pass."""
    layer = fp.max_pool(2)
    x = jax.random.normal(jax.random.key(0), shape)
    delta = jax.random.normal(jax.random.key(1), layer.apply((), x).shape)

    def ours(x, delta):
        return layer.backward((), layer.forward((), x)[1], delta)[0]

    def by_vjp(f):
        return lambda x, delta: jax.vjp(lambda x: f((), x), x)[1](delta)[0]

    peers = {
        "jax.vjp of reduce_window": by_vjp(reduced(2, 2, "VALID")),
        "jax.vjp of reshape, max": by_vjp(reshaped),
    }
    return Row("max_pool 2×2, δx alone", ours, peers, (x, delta), "8 times", 10)


def rows(scale: float = 1.0) -> list[Row]:
    shape = (max(2, round(64 * scale)), 28, 28, 16)
    return [
        backward_alone(shape),
        layer_row(
            "max_pool 2×2",
            fp.max_pool(2),
            {"jax.vjp of reduce_window": reduced(2, 2, "VALID"), "of reshape, max": reshaped},
            shape,
            calls=10,
        ),
        layer_row(
            "max_pool 3×3, stride 2", fp.max_pool(3, 2, "SAME"), reduced(3, 2, "SAME"), shape
        ),
        layer_row(
            "max_pool 3×3, stride 1", fp.max_pool(3, 1, "SAME"), reduced(3, 1, "SAME"), shape
        ),
        layer_row("avg_pool 2×2", fp.avg_pool(2), averaged, shape, calls=10),
        layer_row(
            "global_avg_pool", fp.global_avg_pool, lambda p, x: x.mean((1, 2)), shape, calls=10
        ),
        layer_row(
            "transpose, flatten",
            fp.serial(fp.transpose(2, 0, 1), fp.flatten),
            lambda p, x: x.transpose(0, 3, 1, 2).reshape(len(x), -1),
            shape,
            calls=10,
        ),
    ]
