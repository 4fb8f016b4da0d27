"""Feedback alignment: fixed random matrices carry the error."""

from __future__ import annotations

from collections.abc import Callable

import jax

from ..core.layer import Layer
from ..core.loss import Loss
from ..core.rule import Rule
from ..core.sweep import value_and_backprop
from .backpropagation import rule_of
from .feedback import as_large, carriers, drawn, matrices
from .state import check_state


def feedback_alignment(
    model: Layer,
    loss: Loss,
    *,
    feedback: Callable[[jax.Array, jax.Array], jax.Array] = as_large,
) -> Rule:
    """Feedback alignment: backprop's sweep, its error carried by fixed random matrices B.

        backprop    δₗ = δₗ₊₁ W ⊙ φ′(aₗ)
        here        δₗ = δₗ₊₁ B ⊙ φ′(aₗ)      ΔW = Σ δᵀ h as ever

    B stands in W's shape and place, for each matrix of every layer.  The forward weights come to
    align with B, and the error it carries with the gradient (Lillicrap 2016, arXiv 1411.0247).

    Args:
        model: any layer.
        loss: any loss.
        feedback: ``feedback(key, w) -> b`` in the shape and dtype of w; by default normal numbers
            as large as those of w.

    Returns:
        A :class:`~funcprop.Rule`; its state is the tree of B, with ``None`` where the true
        parameters carry the error.

    Raises:
        LayerError: in ``init``, when the model has no matrices, or ``feedback`` gives zeros or
            another shape; and as :func:`~funcprop.value_and_backprop`.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import feedback_alignment, mean_squared_error, mlp
    >>> model = mlp((2, 3, 1))
    >>> rule = feedback_alignment(model, mean_squared_error)
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> state = rule.init(jax.random.key(1), params)
    >>> state[1]["w"].shape, state[1]["b"]
    ((1, 3), None)
    >>> _, tree, _ = rule.estimate(params, state, jnp.ones((4, 2)), jnp.ones((4, 1)), None)
    >>> tree[0]["w"].shape
    (3, 2)
    """
    sweep = value_and_backprop(model, loss)

    def init(key, params):
        return drawn("feedback_alignment", model, feedback, key, params)

    def estimate(params, state, x, y, key, sample_weight=None):
        check_state("feedback_alignment", state, matrices(params))
        value, tree = sweep(
            params, x, y, sample_weight=sample_weight, weights=carriers(params, state), key=key
        )
        return value, tree, state

    return rule_of(model, loss, init, estimate)
