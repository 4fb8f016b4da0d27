"""Each layer's gradient, by hand and by jax.grad of the plain forward pass as a user writes it.

    python -m benchmarks.layers [--rounds 9] [--only dense ...]

Both sides are jitted, run in one process and take turns; times are medians with quartiles, memory
is what the compiler reports.  Further lines compare with a better-written forward, or with
``jax.checkpoint``, where that is faster or leaner than the plain one.
"""

from __future__ import annotations

import argparse

from benchmarks.layers import (
    activations,
    attention,
    convolution,
    dense,
    embedding,
    graph,
    mixture_of_experts,
    models,
    normalization,
    pooling,
    recurrent,
    ssm,
    tree,
)
from benchmarks.layers.row import HEADER, Row, lines
from benchmarks.timing import heading, table

FAMILIES = {
    "activations": activations.rows,
    "dense": dense.rows,
    "convolution": convolution.rows,
    "pooling": pooling.rows,
    "normalization": normalization.rows,
    "embedding": embedding.rows,
    "attention": attention.rows,
    "tree": tree.rows,
    "graph": graph.rows,
    "ssm": ssm.rows,
    "mixture_of_experts": mixture_of_experts.rows,
    "recurrent": recurrent.rows,
    "models": models.rows,
}
"""Functions that make a family's rows: ``rows(scale) -> [Row]``, sizes times ``scale`` or less."""


def family(rows: list[Row], rounds: int) -> str:
    return table(HEADER, [line for row in rows for line in lines(row, rounds)])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="how often each row is timed")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--scale", type=float, default=1.0, help="smaller sizes, for a trial")
    options = parser.parse_args(arguments)
    print(heading(options.rounds))
    for name in options.only:
        rows = FAMILIES[name](options.scale)
        print(f"\n## {name}\n\n{family(rows, options.rounds)}", flush=True)


if __name__ == "__main__":
    main()
