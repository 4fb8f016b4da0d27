"""What many tests draw: parameters without running init, and a few of the product of options."""

import itertools

import jax
import numpy as np
import pytest

covering = pytest.mark.parametrize(
    "choose",
    [
        pytest.param(lambda *given: covered(2, *given), id="pairs"),
        pytest.param(lambda *given: covered(3, *given), id="triples", marks=pytest.mark.slow),
    ],
)
"""A test over options: by default of each two values of two of them, with slow of each three."""


def covered(n, options, allowed=lambda **chosen: True):
    """A few choices of one value of each option, with each ``n`` values of as many in one of them.

    ``covered(1, {"a": [1, 2], "b": [3]})`` gives ``{"a": 1, "b": 3}`` and ``{"a": 2, "b": 3}``.
    """
    rows = [
        dict(zip(options, row, strict=True))
        for row in itertools.product(*(range(len(values)) for values in options.values()))
    ]

    def values_at(row):
        return {name: options[name][i] for name, i in row.items()}

    def met_by(row):
        return set(itertools.combinations(row.items(), n))

    rows = [row for row in rows if allowed(**values_at(row))]
    np.random.default_rng(0).shuffle(rows)
    met, chosen = list(map(met_by, rows)), []
    missing = set().union(*met)
    while missing:
        best = max(range(len(rows)), key=lambda i: len(met[i] & missing))
        chosen.append(values_at(rows[best]))
        missing -= met[best]
    return chosen


def params_of(layer, shape, seed=0, dtype=None):
    """Normal numbers over 2 in the shapes that init gives, without the work of running it."""
    draw = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), shape)[0])
    return jax.tree.map(
        lambda leaf: (draw.normal(size=leaf.shape) / 2).astype(dtype or leaf.dtype), shapes
    )
