"""Embedding, the loss of a large vocabulary, and mixed precision."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import funcprop as fp
from benchmarks.layers.row import Row, by_hand, by_vjp, layer_row


def rows(scale: float = 1.0) -> list[Row]:
    return [_embedding(scale), _cast(scale)]


def _embedding(scale: float) -> Row:
    batch, length, vocab, width = max(1, round(16 * scale)), 64, max(8, round(32768 * scale)), 256
    layer = fp.embedding(vocab, width)
    params, _ = layer.init(jax.random.key(0), (length,))
    ids = jax.random.randint(jax.random.key(1), (batch, length), 0, vocab)
    delta = jax.random.normal(jax.random.key(2), (batch, length, width))

    def ours(params, ids, delta):
        y, (grads, _) = by_hand(layer)(params, ids, delta)
        return y, grads

    def plain(params, ids, delta):
        return by_vjp(lambda params, _: params["w"][ids])(params, jnp.zeros(()), delta)

    return Row(
        f"embedding, {batch * length} ids of {vocab}",
        ours,
        {"jax.vjp": plain},
        (params, ids, delta),
        "0.97 times, its memory or an activation more",
        10,
    )


def _cast(scale: float) -> Row:
    batch, width = max(2, round(256 * scale)), max(8, round(512 * scale))

    def plain(params, x):
        h = x.astype(jnp.bfloat16)
        for i, layer in enumerate(params):
            layer = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), layer)
            h = h @ layer["w"].T + layer["b"]
            h = jax.nn.relu(h) if i < 2 else h
        return h.astype(jnp.float32)

    return layer_row(
        f"cast of an mlp of 3 layers, width {width}, to bfloat16",
        fp.cast(fp.mlp((width,) * 4, fp.relu), "bfloat16"),
        plain,
        (batch, width),
    )
