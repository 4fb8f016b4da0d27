"""Dense layers, and deep stacks of them."""

from __future__ import annotations

import functools

import jax

import funcprop as fp
from benchmarks.layers.row import Row, by_torch, layer_row

DEPTH, WIDTH, STATED = 32, 128, "2 times, at most 0.2 of the memory"
exact = functools.partial(jax.nn.gelu, approximate=False)


def plain(activation):
    return lambda params, x: activation(x @ params["w"].T + params["b"])


def stack(name, layer, activation, batch, aim=STATED) -> Row:
    """A stack of DEPTH layers, whose parameters may have several axes of layers."""

    def scanned(wrapped):
        step = wrapped(lambda h, layer: (plain(activation)(layer, h), None))

        def run(params, x):
            w, b = params["w"], params["b"]
            flat = {"w": w.reshape(DEPTH, WIDTH, WIDTH), "b": b.reshape(DEPTH, WIDTH)}
            return jax.lax.scan(step, x, flat)[0]

        return run

    peers = {
        "jax.vjp of the scan": scanned(lambda step: step),
        "jax.checkpoint": scanned(jax.checkpoint),
    }
    return layer_row(name, layer, peers, (batch, WIDTH), aim=aim)


def rows(scale: float = 1.0) -> list[Row]:
    batch = max(2, round(1024 * scale))

    def in_torch(params, x):
        import torch

        return torch.nn.functional.gelu(torch.nn.functional.linear(x, params["w"], params["b"]))

    tanh_form, erf_form = fp.dense(WIDTH, fp.gelu_tanh), fp.dense(WIDTH, fp.gelu)
    blocks = fp.repeat(fp.remat(fp.repeat(fp.remat(erf_form), 4)), DEPTH // 4)
    return [
        layer_row("dense, relu", fp.dense(WIDTH, fp.relu), plain(jax.nn.relu), (batch, WIDTH)),
        layer_row(
            "dense, gelu",
            erf_form,
            plain(exact),
            (batch, WIDTH),
            calls=20,
            torch=by_torch(in_torch),
        ),
        stack(
            f"repeat of {DEPTH} dense, jax.nn.gelu",
            fp.repeat(fp.remat(tanh_form), DEPTH),
            jax.nn.gelu,
            batch,
        ),
        stack(
            f"repeat of {DEPTH} dense, gelu by erf",
            fp.repeat(fp.remat(erf_form), DEPTH),
            exact,
            batch,
        ),
        stack("the same in blocks of 4", blocks, exact, batch),
    ]
