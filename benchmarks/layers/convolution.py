"""Convolutions; the weight gradient of many images in chunks of a few."""

from __future__ import annotations

from jax import lax

import funcprop as fp
from benchmarks.layers.row import Row, by_torch, layer_row


def plain(stride: int = 1, padding: str = "SAME", groups: int = 1):
    def run(params, x):
        axes = x.ndim - 2
        places = "DHW"[-axes:]
        letters = (f"N{places}C", f"{places}IO", f"N{places}C")
        y = lax.conv_general_dilated(
            x,
            params["w"],
            (stride,) * axes,
            padding,
            dimension_numbers=letters,
            feature_group_count=groups,
        )
        return y + params["b"]

    return run


def same(params, x):
    import torch

    return torch.nn.functional.conv2d(x, params["w"], params["b"], padding="same")


def channels_first(params, x, delta):
    """NHWC and HWIO as PyTorch has them by default, NCHW and OIHW."""
    x, delta = (leaf.permute(0, 3, 1, 2).contiguous() for leaf in (x, delta))
    return params | {"w": params["w"].permute(3, 2, 0, 1).contiguous()}, x, delta


def gradient_alone(row: Row) -> Row:
    """The row without y, as ``jax.grad`` gives it: nobody computes the forward convolution."""

    def second(f):
        return lambda *args: f(*args)[1]

    peers = {"jax.grad": second(row.peers["jax.vjp"])}
    name = f"{row.name}, gradient alone"
    return row._replace(name=name, ours=second(row.ours), peers=peers, torch=None)


def rows(scale: float = 1.0) -> list[Row]:
    def batch(size):
        return max(2, round(size * scale))

    def row(name, features, kernel, shape, aim="0.95 times", calls=1, torch=None, **options):
        layer = fp.conv(features, kernel, **options)
        return layer_row(name, layer, plain(**options), shape, aim=aim, calls=calls, torch=torch)

    stated = "1.6 times, half the memory"
    torch = by_torch(same, channels_first)
    wide = row("conv 3×3, 28², 16→32", 32, 3, (batch(64), 28, 28, 16), stated, torch=torch)
    deep = row("conv 3×3, 14², 32→64", 64, 3, (batch(64), 14, 14, 32), stated, torch=torch)
    return [
        gradient_alone(wide),
        wide,
        gradient_alone(deep),
        deep,
        row("conv 3×3, 8², 1→16", 16, 3, (batch(64), 8, 8, 1), calls=10, torch=torch),
        row("conv 3×3 stride 2, 28², 16→32", 32, 3, (batch(64), 28, 28, 16), stride=2),
        row(
            "conv 5×5 VALID stride 2, 12², 12→4",
            4,
            5,
            (batch(64), 12, 12, 12),
            stride=2,
            padding="VALID",
            calls=10,
        ),
        row("conv 5, 100, 64→64", 64, 5, (batch(32), 100, 64), calls=4),
        row("conv 3×3×3, 16³, 8→16", 16, 3, (batch(8), 16, 16, 16, 8)),
        row("conv 3×3, 28², 16→32, 4 groups", 32, 3, (batch(64), 28, 28, 16), groups=4),
        row("conv 3×3, 14², 128, 32 groups", 128, 3, (batch(16), 14, 14, 128), groups=32),
        row("conv 3×3, 28², 16, depthwise", 16, 3, (batch(64), 28, 28, 16), groups=16),
        row(
            "conv 3×3 stride 2, 14², 128, depthwise",
            128,
            3,
            (batch(16), 14, 14, 128),
            groups=128,
            stride=2,
        ),
        row("conv 5, 100, 64, depthwise", 64, 5, (batch(32), 100, 64), groups=64),
        layer_row(
            "conv_transpose 3×3 stride 2, 14², 32→16",
            fp.conv_transpose(16, 3, stride=2),
            lambda params, x: lax.conv_transpose(x, params["w"], (2, 2), "SAME") + params["b"],
            (batch(64), 14, 14, 32),
            aim="0.95 times",
        ),
    ]
