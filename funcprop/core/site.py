"""A place that holds weights, and the gradient as the first statistic."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

Tree = Any


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Site:
    """A place that holds weights, as a statistic sees it.

    A static leaf: it passes through ``jax.eval_shape``, ``scan`` and ``jit`` as it is.

    Attributes:
        name: the layer's name.
        gradient: ``gradient(inputs, delta) -> tree`` shaped like the site's parameters; it sums
            over axis 0, so that a per-example statistic is a vmap of it.
        rows: ``rows(inputs, delta) -> left (B, R, n), right (B, R, m)``, the two factors of the
            matrix form δW = Σ rightᵀ left, (m, n), of all parameters but the bias b: one beside
            the other in the order of their names; ``None`` where a site has no such form.
        mixes: whether one example's delta depends on the other examples (batch norm).
        inputs_first: whether the parameters are stored as Wᵀ, with the axes of the inputs in
            front, as the kernel of a convolution and the table of an embedding.
        summed_bias: whether δb = Σ right, as where b is added to the product with W; in a graph
            convolution it is added later.
        output_mixes: of a site that mixes, whether one example's prediction depends on the others
            too, so that a model in evaluation gives other results for other batches.
    """

    name: str
    gradient: Callable[[Tree, Tree], Tree]
    rows: Callable[[Tree, Tree], tuple[Any, jax.Array]] | None = None
    mixes: bool = False
    inputs_first: bool = False
    summed_bias: bool = True
    output_mixes: bool = True


def gradient(site: Site, inputs: Tree, delta: Tree) -> Tree:
    """The default statistic: the gradient of the loss by the site's parameters."""
    return site.gradient(inputs, delta)
