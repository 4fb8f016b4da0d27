"""Recurrent layers; ``python -m benchmarks.layers.recurrent`` has them beside PyTorch's.

That needs PyTorch, which runs on 1 thread and on as many as there are CPUs.
"""

from __future__ import annotations

import argparse
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import funcprop as fp
from benchmarks.layers.row import Row, layer_row
from benchmarks.timing import heading, interleaved, spread, table

# The plain forms: the steps of a cell as they stand in a textbook, and a scan over them.


def rnn_cell(params, x, h):
    h = jnp.tanh(x + h @ params["u"].T)
    return h, h


def lstm_cell(params, x, state):
    h, c = state
    i, f, g, o = jnp.split(x + h @ params["u"].T, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def gru_cell(params, x, h):
    a_r, a_z, a_n = jnp.split(x, 3, axis=-1)
    v_r, v_z, v_n = jnp.split(h @ params["h"]["w"].T + params["h"]["b"], 3, axis=-1)
    r, z = jax.nn.sigmoid(a_r + v_r), jax.nn.sigmoid(a_z + v_z)
    n = jnp.tanh(a_n + r * v_n)
    h = (1 - z) * n + z * h
    return h, h


def projected(params, x):
    params = params.get("x", params)
    return x @ params["w"].T + params["b"]


def scanned(cell, hidden, arrays=1, hoisted=False, wrap=lambda step: step, reverse=False):
    """``f(params, x) -> y``; the projection of x inside the scan, or ``hoisted`` in front of it."""

    def run(params, x):
        x = jnp.swapaxes(x, 0, 1)
        x = projected(params, x) if hoisted else x

        def step(state, x):
            return cell(params, x if hoisted else projected(params, x), state)

        zeros = jnp.zeros((x.shape[1], hidden), x.dtype)
        start = zeros if arrays == 1 else (zeros,) * arrays
        return jnp.swapaxes(lax.scan(wrap(step), start, x, reverse=reverse)[1], 0, 1)

    return run


def forms(cell, hidden, arrays=1):
    form = functools.partial(scanned, cell, hidden, arrays)
    return {
        "jax.vjp": form(),
        "projection hoisted": form(hoisted=True),
        "jax.checkpoint": form(wrap=jax.checkpoint),
    }


def rows(scale: float = 1.0) -> list[Row]:
    time, batch, width, hidden = (max(2, round(n * scale)) for n in (100, 32, 64, 128))
    shape, faster = (batch, time, width), "1.25 times"
    lstm, gru, rnn = (
        forms(lstm_cell, hidden, 2),
        forms(gru_cell, hidden),
        forms(rnn_cell, hidden),
    )
    back = scanned(lstm_cell, hidden, 2, reverse=True)

    def both(params, x):
        return jnp.concatenate([lstm["jax.vjp"](params[0], x), back(params[1], x)], axis=-1)

    size = f"T {time}, B {batch}, d {width}, H {hidden}"
    return [
        layer_row(f"lstm, {size}", fp.lstm(hidden), lstm, shape, aim=faster),
        layer_row(f"gru, {size}", fp.gru(hidden), gru, shape, aim=faster),
        layer_row(f"rnn, {size}", fp.rnn(hidden), rnn, shape, aim="0.97 times"),
        layer_row("bidirectional lstm", fp.bidirectional(fp.lstm(hidden)), both, shape, aim=faster),
        layer_row(
            f"lstm, T {10 * time}, chunks of {time // 5}",
            fp.lstm(hidden, chunk=max(1, time // 5)),
            lstm,
            (batch, 10 * time, width),
            aim="half the memory",
        ),
    ]


def beside_pytorch(row: Row, name: str, rounds: int) -> list[tuple[str, ...]]:
    """The lines of a row and of PyTorch's layer: y, and the gradient by weights and input."""
    import torch

    params, x, delta = row.args
    ours = jax.jit(row.ours)
    theirs = getattr(torch.nn, name.upper())(x.shape[-1], delta.shape[-1], batch_first=True)
    given, cotangent = (torch.tensor(np.asarray(leaf)) for leaf in (x, delta))
    given.requires_grad_()

    def with_torch(threads):
        def run():
            torch.set_num_threads(threads)
            theirs.zero_grad(set_to_none=True)
            given.grad = None
            theirs(given)[0].backward(cotangent)

        return run

    runs = {"funcprop": lambda: jax.block_until_ready(ours(params, x, delta))}
    for threads in sorted({1, os.cpu_count() or 1}):
        runs[f"PyTorch {torch.__version__.split('+')[0]}, threads: {threads}"] = with_torch(threads)
    _, seconds = interleaved(runs, rounds, pause=0.1)
    own = seconds["funcprop"]
    return [
        (row.name if by == "funcprop" else "", by, spread(1e3 * times), spread(times / own))
        for by, times in seconds.items()
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers.recurrent")
    parser.add_argument("--rounds", type=int, default=21, help="how often each row is timed")
    parser.add_argument("--scale", type=float, default=1.0, help="smaller sizes, for a trial")
    options = parser.parse_args(arguments)
    lines = [
        line
        for row, name in zip(rows(options.scale)[:2], ("lstm", "gru"), strict=True)
        for line in beside_pytorch(row, name, options.rounds)
    ]
    print(heading(options.rounds))
    print(f"\n{table(('', 'by', 'ms a call', 'its time / ours'), lines)}")


if __name__ == "__main__":
    main()
