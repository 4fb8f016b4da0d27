"""Sign symmetry: matrices with the signs of the weights carry the error."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..core.layer import Layer
from ..core.loss import Loss
from ..core.rule import Rule
from ..core.sweep import value_and_backprop
from .backpropagation import rule_of
from .feedback import carriers, drawn, matrices
from .state import check_flag, check_state, own_key


def ones(key: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.ones_like(w)


def sign_symmetry(
    model: Layer,
    loss: Loss,
    *,
    magnitude: Callable[[jax.Array, jax.Array], jax.Array] = ones,
    redraw: bool = False,
) -> Rule:
    """Sign symmetry: the error is carried by the signs of the weights, with other magnitudes.

        δₗ = δₗ₊₁ (M ⊙ sign W) ⊙ φ′(aₗ)      sign 0 = 0

    With M = 1 the uniform form, with fixed random M the form frSF, with M drawn anew for each
    batch brSF (Liao 2016, arXiv 1510.05067).

    Args:
        model: any layer.
        loss: any loss.
        magnitude: ``magnitude(key, w) -> M`` in the shape and dtype of w, by default ones.
        redraw: whether M is drawn anew at every step.

    Returns:
        A :class:`~funcprop.Rule`; its state is the tree of M, with ``None`` where the true
        parameters carry the error.

    Raises:
        LayerError: as :func:`~funcprop.feedback_alignment`.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import mean_squared_error, mlp, sign_symmetry
    >>> model = mlp((2, 3, 1))
    >>> rule = sign_symmetry(model, mean_squared_error)
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> state = rule.init(jax.random.key(1), params)
    >>> _, tree, _ = rule.estimate(params, state, jnp.ones((4, 2)), jnp.ones((4, 1)), None)
    >>> tree[0]["w"].shape
    (3, 2)
    """
    check_flag("sign_symmetry", "redraw", redraw)
    sweep = value_and_backprop(model, loss)

    def init(key, params):
        return drawn("sign_symmetry", model, magnitude, key, params)

    def estimate(params, state, x, y, key, sample_weight=None):
        check_state("sign_symmetry", state, matrices(params))
        if redraw and key is not None:
            state = init(own_key(key), params)
        signed = jax.tree.map(lambda m, w: m * jnp.sign(w), state, matrices(params))
        value, tree = sweep(
            params, x, y, sample_weight=sample_weight, weights=carriers(params, signed), key=key
        )
        return value, tree, state

    return rule_of(model, loss, init, estimate)
