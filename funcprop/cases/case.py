"""What a line of the table of cases is, and how its inputs are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Draw = Callable[[np.random.Generator], Any]


class Case(NamedTuple):
    """A layer or loss and how to draw an input for it.

    Attributes:
        name: what tables call it.
        layer: the layer or the loss.
        draw: ``draw(generator) -> x`` from a ``numpy.random.Generator``: NumPy arrays with a
            leading batch axis, floats in float64.
        analytic: whether its forward pass computes in complex numbers.
        still: names of parameters that do not carry delta back, as a bias does not.
        mixes: whether one example's output depends on the others.
    """

    name: str
    layer: Any
    draw: Draw
    analytic: bool = False
    still: tuple[str, ...] = ("b",)
    mixes: bool = False


def normal(*shape: int, scale: float = 1.0) -> Draw:
    return lambda draw: scale * draw.normal(size=shape)


def labels(*shape: int, classes: int) -> Draw:
    return lambda draw: draw.integers(0, classes, shape, dtype=np.int32)


def lengths(batch: int, longest: int) -> Draw:
    """The first sequence is empty, the second one whole, the others of any length."""

    def drawn(draw):
        found = draw.integers(0, longest + 1, batch, dtype=np.int32)
        found[:2] = 0, longest
        return found

    return drawn


def distribution(*shape: int) -> Draw:
    return lambda draw: draw.dirichlet(np.ones(shape[-1]), shape[:-1])


def signs(*shape: int) -> Draw:
    return lambda draw: draw.choice(np.array([-1, 1], np.int32), shape)


def probabilities(*shape: int) -> Draw:
    return lambda draw: draw.uniform(size=shape)


def mask(*shape: int) -> Draw:
    """The first example keeps nothing, the second one token, the others about half."""

    def drawn(draw):
        mask = draw.random(shape) < 0.5
        mask[0], mask[1] = False, np.arange(shape[1]) == 1
        return mask

    return drawn


def entries(*draws: Any) -> Draw:
    """A tuple, each entry drawn on its own; a tuple among them is one again."""
    return lambda draw: tuple(
        (entries(*entry) if isinstance(entry, tuple) else entry)(draw) for entry in draws
    )


def some_tokens(*shape: int) -> Draw:
    """A mask that leaves every example at least its first token."""
    return lambda draw: (draw.random(shape) < 0.6) | (np.arange(shape[1]) == 0)


def apart(*shape: int) -> Draw:
    """A shuffled grid of numbers: no two are nearer than the steps of finite differences."""
    return lambda draw: draw.permutation(np.linspace(-1, 1, int(np.prod(shape)))).reshape(shape)
