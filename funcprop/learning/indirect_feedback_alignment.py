"""Indirect feedback alignment: the error enters at the first block and goes on forward."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..combinators import joined_blocks
from ..layer import Layer, LayerError, Shape, Site, gradient
from ..losses import Loss
from ..statistics.statistic import AtSite, map_sites
from .backpropagation import Rule
from .direct import (
    Feedback,
    Passed,
    along,
    checked,
    flat,
    forward_blocks,
    normal,
    roads,
    value_and_error,
)
from .feedback import matrices

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
        LayerError: as :func:`~funcprop.direct_feedback_alignment`, and while tracing for a layer
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
    model, loss = checked("indirect_feedback_alignment", model, loss)

    def init(key, params):
        return roads("indirect_feedback_alignment", model, shape, feedback, key, params)[0]

    def estimate(params, state, x, y, key):
        passed = forward_blocks(model, params, x, key)
        value, e = value_and_error(loss, passed, x, y)
        trees, delta = [], None
        for each in passed[:-1]:
            sent = along(flat(e), state) if delta is None else delta @ _weights(each).T
            delta, tree = _sent_back(each, sent)
            trees.append(tree)
        trees.append(_sent_back(passed[-1], e)[1])
        return value, joined_blocks(model, trees), state

    return Rule(init, estimate, model.apply)


def _sent_back(block: Passed, sent: jax.Array) -> tuple[jax.Array, Tree]:
    """The delta at a block's one dense layer, and the block's tree."""
    if jnp.shape(sent) != jnp.shape(block.y):
        raise LayerError(
            "indirect_feedback_alignment",
            f"an error {jnp.shape(sent)} comes to a block whose output is {jnp.shape(block.y)}; "
            "behind a dense layer what keeps its shape is due",
        )
    _, found = block.layer.backward(block.params, block.residuals, sent, _with_delta)
    (at,) = jax.tree.leaves(found, is_leaf=lambda node: isinstance(node, AtSite))
    return at.piece[0], map_sites(lambda at: at.piece[1], found)


def _with_delta(site: Site, inputs: Tree, delta: Tree) -> AtSite:
    if site.name != "dense":
        raise LayerError(
            site.name,
            "indirect_feedback_alignment passes through dense layers alone; take "
            "direct_feedback_alignment",
        )
    return AtSite((delta, gradient(site, inputs, delta)), jnp.zeros(()))


def _weights(block: Passed) -> jax.Array:
    (w,) = jax.tree.leaves(matrices(block.params))
    return w
