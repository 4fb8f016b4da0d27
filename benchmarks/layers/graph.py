"""Layers on graphs: plain functions of one graph mapped over the batch, and of their union."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import funcprop as fp
from benchmarks.layers.row import Row

Tree = Any


def rows(scale: float = 1.0) -> list[Row]:
    sizes = max(2, round(32 * scale)), max(4, round(64 * scale)), max(8, round(256 * scale))
    message = fp.serial(fp.concatenate, fp.dense(64, fp.relu))
    return [
        _row("graph_conv", fp.graph_conv(64), conv, sizes),
        _row("graph_attention, 4 heads of 16", fp.graph_attention(16, 4), attention, sizes),
        *[
            _row(
                f"message_passing, {how}",
                fp.message_passing(message, reduce=how),
                message_passing(how),
                sizes,
            )
            for how in ("sum", "mean", "max")
        ],
        *[
            _row(f"graph_pool, {how}", fp.graph_pool(how), pool(how), sizes, calls=20)
            for how in ("sum", "mean", "max")
        ],
    ]


# Each of these takes the nodes (N, d) and edges (E, 2) of one graph.


def conv(params, x, edges):
    source, target = edges.T
    h = x @ params["w"].T
    degree = jax.ops.segment_sum(jnp.ones(len(edges)), target, len(x)) + 1
    root = jax.lax.rsqrt(degree)
    messages = (root[source] * root[target])[:, None] * h[source]
    y = jax.ops.segment_sum(messages, target, len(x)) + h / degree[:, None]
    return y + params["b"]


def attention(params, x, edges):
    loops = jnp.arange(len(x))
    source, target = (jnp.concatenate([ends, loops]) for ends in edges.T)
    a = params["out"]["a"]
    h = (x @ params["in"]["w"].T).reshape(len(x), *a.shape[1:])
    s, t = (h * a[0]).sum(-1), (h * a[1]).sum(-1)
    e = jax.nn.leaky_relu(s[source] + t[target], 0.2)
    p = jnp.exp(e - jax.ops.segment_max(e, target, len(x))[target])
    alpha = p / jax.ops.segment_sum(p, target, len(x))[target]
    y = jax.ops.segment_sum(alpha[..., None] * h[source], target, len(x))
    return y.reshape(len(x), -1) + params["out"]["b"]


def message_passing(how):
    def run(params, x, edges):
        source, target = edges.T
        dense = params[0][1]
        m = jnp.concatenate([x[source], x[target]], axis=-1) @ dense["w"].T + dense["b"]
        m = jax.nn.relu(m)
        if how == "max":
            largest = jax.ops.segment_max(m, target, len(x))
            return jnp.where(jnp.isneginf(largest), 0.0, largest)
        y = jax.ops.segment_sum(m, target, len(x))
        if how == "sum":
            return y
        degree = jax.ops.segment_sum(jnp.ones(len(edges)), target, len(x))
        return y / jnp.maximum(degree, 1)[:, None]

    return run


def pool(how):
    return lambda params, x, edges: getattr(jnp, how)(x, axis=0)


def _mapped(f: Callable[..., jax.Array], params: Tree, x: jax.Array, edges: jax.Array) -> jax.Array:
    return jax.vmap(lambda x, edges: f(params, x, edges))(x, edges)


def _united(f: Callable[..., jax.Array], params: Tree, x: jax.Array, edges: jax.Array) -> jax.Array:
    batch, nodes, _ = x.shape
    union = edges + nodes * jnp.arange(batch)[:, None, None]
    y = f(params, x.reshape(batch * nodes, -1), union.reshape(-1, 2))
    return y.reshape(batch, nodes, -1)


def _row(name: str, layer: fp.Layer, plain: Callable[..., jax.Array], sizes, calls=4) -> Row:
    batch, nodes, count = sizes
    x_key, edges_key, key, delta_key = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(x_key, (batch, nodes, 64))
    edges = jax.random.randint(edges_key, (batch, count, 2), 0, nodes)
    structs = tuple(jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in (x, edges))
    params, _ = layer.init(key, structs)
    pooled = layer.name == "graph_pool"
    y = jax.eval_shape(layer.apply, params, (x, edges))
    delta = jax.random.normal(delta_key, (y if pooled else y[0]).shape)

    def ours(params, x, edges, delta):
        y, residuals = layer.forward(params, (x, edges))
        delta_x, grads = layer.backward(params, residuals, delta if pooled else (delta, None))
        return y if pooled else y[0], (grads, delta_x[0])

    def by_vjp(form):
        def run(params, x, edges, delta):
            y, pullback = jax.vjp(lambda params, x: form(plain, params, x, edges), params, x)
            return y, pullback(delta)

        return run

    peers = {"jax.vjp of vmap": by_vjp(_mapped)}
    peers |= {} if pooled else {"jax.vjp of the union": by_vjp(_united)}
    aim = "0.97 times, its memory or an activation more"
    return Row(name, ours, peers, (params, x, edges, delta), aim, calls)
