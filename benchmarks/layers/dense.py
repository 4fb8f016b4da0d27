"""Dense layers, and a deep stack of them."""

from __future__ import annotations

import jax

import funcprop as fp
from benchmarks.layers.row import Row, by_torch, layer_row


def rows(scale: float = 1.0) -> list[Row]:
    batch, width = max(2, round(1024 * scale)), 128

    def plain(params, x):
        return jax.nn.gelu(x @ params["w"].T + params["b"], approximate=False)

    def scanned(params, x):
        return jax.lax.scan(lambda h, layer: (plain(layer, h), None), x, params)[0]

    def checkpointed(params, x):
        step = jax.checkpoint(lambda h, layer: (plain(layer, h), None))
        return jax.lax.scan(step, x, params)[0]

    def in_torch(params, x):
        import torch

        return torch.nn.functional.gelu(torch.nn.functional.linear(x, params["w"], params["b"]))

    return [
        layer_row(
            "dense, gelu",
            fp.dense(width, fp.gelu),
            plain,
            (batch, width),
            calls=20,
            torch=by_torch(in_torch),
        ),
        layer_row(
            "repeat of 32 dense, gelu",
            fp.repeat(fp.remat(fp.dense(width, fp.gelu)), 32),
            {"jax.vjp of the scan": scanned, "jax.checkpoint": checkpointed},
            (batch, width),
            aim="2 times, at most 0.2 of the memory",
        ),
    ]
