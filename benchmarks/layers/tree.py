"""Recursive layers over balanced binary trees."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import funcprop as fp
from benchmarks.layers.row import Row, by_hand


def balanced(nodes: int) -> np.ndarray:
    """Children (N, 2) of a balanced binary tree, level by level, its leaves first."""
    leaves = (nodes + 1) // 2
    parents = np.arange(2 * (nodes - leaves)).reshape(-1, 2)
    return np.concatenate([np.full((leaves, 2), -1), parents]).astype(np.int32)


def joint(params, x, h):
    return x @ params["w"].T + h @ params["u"].T + params["b"]


def rnn_node(params, x, h):
    return (jnp.tanh(joint(params, x, h.sum(1))),)


def lstm_node(params, x, h, c):
    i, o, u = jnp.split(joint(params["gates"], x, h.sum(1)), 3, axis=-1)
    f = jax.nn.sigmoid(joint(params["forget"], x[:, None], h))
    c = jax.nn.sigmoid(i) * jnp.tanh(u) + (f * c).sum(1)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def over_nodes(node, arrays, hidden):
    """A scan over the nodes that sets each node's state in the buffers of all."""

    def run(params, x, children):
        examples = jnp.arange(len(x))[:, None]

        def step(state, n):
            under = children[:, n]
            there = (under >= 0)[..., None]
            below = [jnp.where(there, leaf[examples, under], 0) for leaf in state]
            new = node(params, x[:, n], *below)
            return tuple(leaf.at[:, n].set(row) for leaf, row in zip(state, new, strict=True)), None

        start = (jnp.zeros((*x.shape[:2], hidden)),) * arrays
        return lax.scan(step, start, jnp.arange(x.shape[1]))[0][0]

    return run


def tree_row(name, layer, node, arrays, hidden, batch, nodes, features) -> Row:
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, nodes, features))
    children = jnp.asarray(np.broadcast_to(balanced(nodes), (batch, nodes, 2)))
    delta = jax.random.normal(keys[1], (batch, nodes, hidden))
    params, _ = layer.init(keys[2], jax.eval_shape(lambda: (x[0], children[0])))

    def ours(params, x, children, delta):
        (h, _), (grads, (delta_x, _)) = by_hand(layer)(params, (x, children), (delta, None))
        return h, (grads, delta_x)

    def by_vjp(f):
        def run(params, x, children, delta):
            h, pullback = jax.vjp(lambda params, x: f(params, x, children), params, x)
            return h, pullback(delta)

        return run

    peers = {
        "jax.vjp of the scan": by_vjp(over_nodes(node, arrays, hidden)),
        "jax.checkpoint": by_vjp(over_nodes(jax.checkpoint(node), arrays, hidden)),
    }
    aim = "1.5 times, 2/3 of the memory"
    return Row(name, ours, peers, (params, x, children, delta), aim, 3)


def rows(scale: float = 1.0) -> list[Row]:
    batch, nodes = max(2, round(32 * scale)), 63 if scale >= 1 else 7
    sizes = (64, batch, nodes, 32)
    return [
        tree_row("tree_rnn", fp.tree_rnn(64), rnn_node, 1, *sizes),
        tree_row("tree_lstm", fp.tree_lstm(64), lstm_node, 2, *sizes),
    ]
