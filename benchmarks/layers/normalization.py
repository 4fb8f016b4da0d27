"""Norms and dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import funcprop as fp
from benchmarks.layers.row import Row, by_torch, layer_row


def standard(x, axes):
    mean = x.mean(axes, keepdims=True)
    return (x - mean) / jnp.sqrt(x.var(axes, keepdims=True) + 1e-5)


def scaled(normalised):
    return lambda params, x: normalised(x) * params["scale"] + params["b"]


def grouped(x):
    parts = x.reshape(len(x), -1, 8, x.shape[-1] // 8)
    return standard(parts, (1, 3)).reshape(x.shape)


def root_mean_square(params, x):
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * params["scale"]


def dropped(params, x):
    mask = jax.random.bernoulli(jax.random.key(0), 0.9, x.shape)
    return jnp.where(mask, x / 0.9, 0)


def in_torch(params, x):
    import torch

    return torch.nn.functional.layer_norm(x, x.shape[-1:], params["scale"], params["b"], 1e-5)


def rows(scale: float = 1.0) -> list[Row]:
    batch = max(2, round(8 * scale))
    tokens, images = (batch, 128, 768), (4 * batch, 28, 28, 16)
    dropout = fp.dropout(0.1)
    keyed = dropout._replace(
        forward=lambda params, x, key=None: dropout.forward(params, x, jax.random.key(0))
    )
    small, wide = {"shape": (batch, 64, 128), "calls": 20}, {"shape": tokens, "calls": 4}
    layer_norm, rms_norm = fp.layer_norm(), fp.rms_norm()
    plain, torch = scaled(lambda x: standard(x, -1)), by_torch(in_torch)
    return [
        layer_row("layer_norm, 64 × 128", layer_norm, plain, **small, torch=torch),
        layer_row("layer_norm, 128 × 768", layer_norm, plain, **wide, torch=torch),
        layer_row("rms_norm, 64 × 128", rms_norm, root_mean_square, **small),
        layer_row("rms_norm, 128 × 768", rms_norm, root_mean_square, **wide),
        layer_row("group_norm, 28² × 16", fp.group_norm(8), scaled(grouped), images, calls=4),
        layer_row(
            "batch_norm, 28² × 16",
            fp.batch_norm(),
            scaled(lambda x: standard(x, (0, 1, 2))),
            images,
            calls=4,
        ),
        layer_row("dropout, 128 × 768", keyed, dropped, **wide),
    ]
