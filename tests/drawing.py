"""What many tests draw: parameters without running init, and a few of the product of options."""

import itertools

import jax
import numpy as np
import pytest

whole_or_pairs = pytest.mark.parametrize(
    "choose",
    [
        pytest.param(lambda *given: pairs(*given), id="pairs"),
        pytest.param(lambda *given: product(*given), id="whole", marks=pytest.mark.slow),
    ],
)
"""A test over the product of options: by default of each pair of values, with slow of all."""


def product(options, allowed=lambda **chosen: True):
    """Every choice of one value of each option: ``{"a": [1, 2]}`` gives ``{"a": 1}, {"a": 2}``."""
    rows = itertools.product(*options.values())
    found = [dict(zip(options, row, strict=True)) for row in rows]
    return [chosen for chosen in found if allowed(**chosen)]


def pairs(options, allowed=lambda **chosen: True):
    """A few of the product, with each two values of two options together in one of them."""
    places = {name: range(len(values)) for name, values in options.items()}

    def values_at(row):
        return {name: options[name][i] for name, i in row.items()}

    def pairs_of(row):
        return set(itertools.combinations(row.items(), 2))

    rows = [row for row in product(places) if allowed(**values_at(row))]
    np.random.default_rng(0).shuffle(rows)
    missing, chosen = set().union(*map(pairs_of, rows)), []
    while missing:
        chosen.append(max(rows, key=lambda row: len(pairs_of(row) & missing)))
        missing -= pairs_of(chosen[-1])
    return list(map(values_at, chosen))


def params_of(layer, shape, seed=0, dtype=None):
    """Normal numbers over 2 in the shapes that init gives, without the work of running it."""
    draw = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), shape)[0])
    return jax.tree.map(
        lambda leaf: (draw.normal(size=leaf.shape) / 2).astype(dtype or leaf.dtype), shapes
    )
