"""Whole steps of training: forward, backward and the update of all parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax import lax

import funcprop as fp
from benchmarks.layers.pooling import reduced, reshaped
from benchmarks.layers.row import Row


def rows(scale: float = 1.0) -> list[Row]:
    batch = max(2, round(64 * scale))
    return [cnn_step("digits CNN's step, 8²", batch, 8), cnn_step("the same, 28²", batch, 28)]


def cnn_step(name: str, batch: int, size: int) -> Row:
    """A step of Adam on conv, relu, max_pool, twice, and a dense layer."""
    stages = [(fp.conv(features, 3), fp.relu, fp.max_pool(2)) for features in (16, 32)]
    model = fp.serial(*stages[0], *stages[1], fp.flatten, fp.dense(10))
    params, _ = model.init(jax.random.key(0), (size, size, 1))
    x = jax.random.uniform(jax.random.key(1), (batch, size, size, 1))
    labels = jax.random.randint(jax.random.key(2), (batch,), 0, 10)
    optimizer = optax.adam(0.001)
    sweep = fp.value_and_backprop(model, fp.softmax_cross_entropy())

    def stepped(value_and_grad):
        def step(params, state, x, labels):
            value, grads = value_and_grad(params, x, labels)
            updates, state = optimizer.update(grads, state, params)
            return value, optax.apply_updates(params, updates), state

        return step

    def plain(pool):
        def mean_loss(params, x, labels):
            for layer in (params[0], params[3]):
                x = lax.conv_general_dilated(
                    x, layer["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
                x = pool((), jax.nn.relu(x + layer["b"]))
            x = x.reshape(len(x), -1) @ params[7]["w"].T + params[7]["b"]
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(x, labels))

        return stepped(jax.value_and_grad(mean_loss))

    return Row(
        name,
        stepped(sweep),
        {
            "jax.grad, reduce_window": plain(reduced(2, 2, "VALID")),
            "jax.grad, reshape and max": plain(reshaped),
        },
        (params, optimizer.init(params), x, labels),
        "2 times",
        10 if size == 8 else 1,
    )
