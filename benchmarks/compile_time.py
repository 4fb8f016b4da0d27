"""How long the gradient of many equal layers takes to compile.

    python -m benchmarks.compile_time [--rounds 5] [--depths 8 32 128 256]

Seconds from a Python function to a program that can run: traced, lowered and compiled anew in each
round, all ways in turn.  In brackets the lines of the lowered program, which say the same without
a clock.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcprop as fp
from benchmarks.timing import heading, interleaved, spread, table

WIDTH, BATCH = 64, 32


def plain(params, x):
    return jnp.tanh(x @ params["w"].T + params["b"])


def with_repeat(depth: int) -> Callable[..., Any]:
    model = fp.repeat(fp.dense(WIDTH, fp.tanh), depth)

    def gradient(params, x, delta):
        _, residuals = model.forward(params, x)
        return model.backward(params, residuals, delta)

    return gradient


def with_jax(forward: Callable[..., jax.Array]) -> Callable[..., Any]:
    return lambda params, x, delta: jax.vjp(forward, params, x)[1](delta)


def in_a_loop(depth: int) -> Callable[..., Any]:
    def forward(params, x):
        for i in range(depth):
            x = plain(jax.tree.map(lambda leaf, i=i: leaf[i], params), x)
        return x

    return with_jax(forward)


def in_a_scan(depth: int) -> Callable[..., Any]:
    def forward(params, x):
        return jax.lax.scan(lambda h, layer: (plain(layer, h), None), x, params)[0]

    return with_jax(forward)


WAYS = {
    "repeat": with_repeat,
    "jax.vjp of a loop": in_a_loop,
    "jax.vjp of lax.scan": in_a_scan,
}
"""Functions of the depth that make the gradient, a function of params, x and delta."""


def lowered(way: Callable[[int], Callable[..., Any]], depth: int) -> Any:
    """The gradient of that many layers, traced and lowered anew."""
    layer = {"w": (depth, WIDTH, WIDTH), "b": (depth, WIDTH)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in layer.items()}
    x = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32)
    return jax.jit(way(depth)).lower(params, x, x)


def lines(way: Callable[[int], Callable[..., Any]], depth: int) -> int:
    """How many lines the lowered program has."""
    return lowered(way, depth).as_text().count("\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_time", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each is compiled")
    parser.add_argument("--depths", type=int, nargs="+", default=[8, 32, 128, 256], metavar="N")
    options = parser.parse_args(arguments)
    runs = {
        f"{name}, {depth}": lambda way=way, depth=depth: lowered(way, depth).compile() and None
        for name, way in WAYS.items()
        for depth in options.depths
    }
    _, seconds = interleaved(runs, options.rounds)

    def median(name, depth):
        return np.median(seconds[f"{name}, {depth}"])

    rows = [
        (
            name,
            *(
                f"{spread(seconds[f'{name}, {depth}'])} ({lines(way, depth)})"
                for depth in options.depths
            ),
            f"{median(name, options.depths[-1]) / median(name, options.depths[0]):.3g}",
        )
        for name, way in WAYS.items()
    ]
    print(heading(options.rounds))
    title = f"\ndense layers of width {WIDTH} with tanh, batch {BATCH}: seconds to compile"
    print(f"{title} (lines of the program)\n")
    header = ("", *(f"{depth} layers" for depth in options.depths), "last / first")
    print(table(header, rows))


if __name__ == "__main__":
    main()
