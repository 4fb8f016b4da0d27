"""Attention, gated layers, and transformer blocks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import funcprop as fp
from benchmarks.layers.row import Row, by_hand, by_torch, by_vjp, layer_row


def affine(params, x):
    return x @ params["w"].T + params["b"]


def attend(q, k, v, causal):
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    if causal:
        seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        scores = jnp.where(seen, scores, -jnp.inf)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)


def heads(params, x, memory=None, causal=False, count=4):
    if memory is None:
        q, k, v = jnp.split(affine(params["qkv"], x), 3, -1)
    else:
        q, (k, v) = affine(params["q"], x), jnp.split(affine(params["kv"], memory), 2, -1)
    q, k, v = (leaf.reshape(*leaf.shape[:2], count, -1) for leaf in (q, k, v))
    return affine(params["out"], attend(q, k, v, causal).reshape(x.shape))


def norm(params, x):
    mean = x.mean(-1, keepdims=True)
    x = (x - mean) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * params["scale"] + params["b"]


def feed_forward(params, x):
    return affine(params[1], jax.nn.gelu(affine(params[0], x)))


def block(params, x):
    (first, attention), (second, feed) = params
    x = x + heads(attention, norm(first, x), causal=True)
    return x + feed_forward(feed, norm(second, x))


def decoder(params, x):
    (first, attention), (second, cross), (third, feed) = params
    x, memory = x
    x = x + heads(attention, norm(first, x), causal=True)
    x = x + heads(cross, norm(second, x), memory)
    return x + feed_forward(feed, norm(third, x)), memory


def gated(params, x):
    gate, up = jnp.split(affine(params["in"], x), 2, -1)
    return affine(params["out"], jax.nn.silu(gate) * up)


def turned(params, x):
    time, features = x.shape[1], x.shape[-1]
    angles = jnp.outer(jnp.arange(time), 10000.0 ** (-jnp.arange(0, features, 2) / features))
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    even, odd = x[..., ::2], x[..., 1::2]
    pairs = [even * cos - odd * sin, odd * cos + even * sin]
    return jnp.stack(pairs, axis=-1).reshape(x.shape)


def over_layers(f):
    return lambda params, x: jax.lax.scan(lambda h, layer: (f(layer, h), None), x, params)[0]


def in_torch(params, x):
    import torch

    return torch.nn.functional.scaled_dot_product_attention(*x)


def heads_first(params, x, delta):
    """(B, T, heads, d) as PyTorch's attention has it, (B, heads, T, d)."""
    *x, delta = (leaf.transpose(1, 2).contiguous() for leaf in (*x, delta))
    return params, x, delta


def on_tuple(name, layer, plain, shapes, aim, calls=1, torch=None) -> Row:
    """A row of a layer on several arrays."""
    keys = jax.random.split(jax.random.key(0), len(shapes) + 2)
    x = tuple(jax.random.normal(key, shape) for key, shape in zip(keys[2:], shapes, strict=True))
    structs = tuple(jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in x)
    params, _ = layer.init(keys[0], structs)
    y = jax.eval_shape(layer.apply, params, x)
    delta = jax.tree.map(lambda leaf: jax.random.normal(keys[1], leaf.shape), y)
    peers = {"jax.vjp": by_vjp(plain)}
    return Row(name, by_hand(layer), peers, (params, x, delta), aim, calls, torch)


def rows(scale: float = 1.0) -> list[Row]:
    aim = "0.97 times, its memory or an activation more"
    batch, long = max(1, round(8 * scale)), max(16, round(4096 * scale))
    tokens = (batch, 64, 128)
    return [
        on_tuple(
            f"causal attention, T {long}",
            fp.attention(causal=True),
            lambda p, x: attend(*x, causal=True),
            [(1, long, 4, 32)] * 3,
            "6 times, 1/100 of the memory",
        ),
        on_tuple(
            "attention, T 64",
            fp.attention(),
            lambda p, x: attend(*x, causal=False),
            [(batch, 64, 4, 32)] * 3,
            aim,
            10,
            by_torch(in_torch, heads_first),
        ),
        layer_row(
            "six transformer blocks",
            fp.repeat(fp.transformer_block(4, causal=True, activation=fp.gelu_tanh), 6),
            {
                "jax.vjp of the scan": over_layers(block),
                "jax.checkpoint": over_layers(jax.checkpoint(block)),
            },
            tokens,
            aim="1.5 times, at most 0.2 of the memory",
        ),
        layer_row("multi_head_attention", fp.multi_head_attention(4), heads, tokens, calls=4),
        on_tuple(
            "decoder_block, nothing recomputed",
            fp.decoder_block(4, activation=fp.gelu_tanh, recompute=False),
            decoder,
            [tokens, tokens],
            aim,
            4,
        ),
        layer_row("swiglu", fp.swiglu(512), gated, tokens, calls=4),
        layer_row("rotary", fp.rotary(), turned, (batch, 64, 4, 32), calls=20),
    ]
