"""Indirect feedback alignment: the error enters at the first block and goes on forward."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import LayerError
from ..core.combinators import joined_blocks
from ..core.layer import Layer, Shape
from ..core.loss import Loss
from ..core.rule import Rule
from ..core.site import Site, gradient
from ..core.sweep import checked_batch
from ..statistics.statistic import AtSite, map_sites
from .backpropagation import rule_of
from .chain import activities, chain, check_example, check_shape, model_and_loss, several_blocks
from .direct import Feedback, along, flat, normal, output_error, roads, roads_due
from .feedback import matrices
from .state import check_state

NAME = "indirect_feedback_alignment"
Tree = Any


def indirect_feedback_alignment(
    model: Layer, loss: Loss, shape: Shape, *, feedback: Feedback = normal
) -> Rule:
    """Indirect feedback alignment: the error enters at the first layer, the weights carry it on.

        δ₁   = (e B) ⊙ φ′(a₁)      e = ∂L/∂prediction
        δₗ₊₁ = (δₗ Wₗ₊₁ᵀ) ⊙ φ′(aₗ₊₁)

    (Nøkland 2016, arXiv 1609.01596, section 3).  The last layer gets e itself.

    Args:
        model: a serial of two or more dense layers, with activations on top or behind them.
        loss: a loss without parameters.
        shape: of one example, as for ``init``.
        feedback: as of :func:`~funcprop.direct_feedback_alignment`, for the first layer.

    Returns:
        A :class:`~funcprop.Rule`; its state is B (K, n), n the size of the first layer's output.

    Raises:
        LayerError: as :func:`~funcprop.direct_feedback_alignment`, and for a layer with parameters
            that is not dense, by name.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import indirect_feedback_alignment, mean_squared_error, mlp
    >>> model = mlp((2, 5, 4, 3))
    >>> rule = indirect_feedback_alignment(model, mean_squared_error, (2,))
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> state = rule.init(jax.random.key(1), params)
    >>> _, tree, _ = rule.estimate(params, state, jnp.ones((4, 2)), jnp.ones((4, 3)), None)
    >>> state.shape, tree[1]["w"].shape
    ((3, 5), (4, 5))
    """
    model, loss = model_and_loss(NAME, model, loss)
    check_shape(NAME, shape)

    def init(key, params):
        _matrices(model, params)
        return roads(NAME, model, shape, feedback, key, params)[0]

    def estimate(params, state, x, y, key, sample_weight=None):
        x, _ = checked_batch(x, y)
        check_example(NAME, shape, x)
        weights = _matrices(model, params)
        outputs, backs = activities(chain(NAME, model, params, key), x)
        check_state(NAME, state, roads_due(outputs)[0])
        value, e, _ = output_error(loss, outputs[-1], y, sample_weight)
        trees, delta = [], None
        for back, w in zip(backs[:-1], weights[:-1], strict=True):
            sent = along(flat(e), state) if delta is None else delta @ w.T
            _, found = back(sent, _with_delta)
            (at,) = filter(_is_at_site, jax.tree.leaves(found, is_leaf=_is_at_site))
            delta = at.piece[0]
            trees.append(map_sites(lambda at: at.piece[1], found))
        trees.append(backs[-1](e)[1])
        return value, joined_blocks(model, trees), state

    return rule_of(model, loss, init, estimate)


def _matrices(model: Layer, params: Tree) -> list[jax.Array]:
    """W of each block, all of which must be dense."""
    found = several_blocks(NAME, model, params)
    for block in found:
        for i, (layer, part) in enumerate(zip(block.layer.parts, block.params, strict=True)):
            if layer.name != "dense" and jax.tree.leaves(part):
                raise LayerError(
                    layer.name,
                    f"{NAME} passes through dense layers alone; take direct_feedback_alignment",
                    f"layers[{(block.first or 0) + i}]",
                )
    return [jax.tree.leaves(matrices(block.params))[0] for block in found]


def _with_delta(site: Site, inputs: Tree, delta: Tree) -> AtSite:
    return AtSite((delta, gradient(site, inputs, delta)), jnp.zeros(()))


def _is_at_site(node: Any) -> bool:
    return isinstance(node, AtSite)
