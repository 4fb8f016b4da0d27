"""Kolen-Pollack: feedback weights that learn as the forward weights do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from ..core.layer import Layer
from ..core.loss import Loss
from ..core.rule import Rule
from ..core.sweep import value_and_backprop
from .backpropagation import rule_of
from .feedback import as_large, carriers, drawn, matrices
from .state import check_optimizer, check_state, descended


class KolenPollackState(NamedTuple):
    """What :func:`kolen_pollack` keeps.

    Attributes:
        feedback: the tree of B, with ``None`` where the true parameters carry the error.
        opt_state: the optimiser's state for B.
    """

    feedback: Any
    opt_state: Any


def kolen_pollack(
    model: Layer,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    feedback: Callable[[jax.Array, jax.Array], jax.Array] = as_large,
) -> Rule:
    """Kolen-Pollack: the feedback matrices take the same updates as the weights, and both decay.

        δₗ = δₗ₊₁ B ⊙ φ′(aₗ)
        ΔW = -η Σ δᵀ h - λ W      ΔB = -η Σ δᵀ h - λ B

    so that W - B = (1 - λ)ᵗ (W₀ - B₀) after t steps, whatever the data (Kolen & Pollack 1994;
    Akrout 2019, arXiv 1904.05391, section 4).  Give the same optimiser here and to the training,
    with a decay in it:

        optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.3))
        fit(kolen_pollack(model, loss, optimizer), optimizer, params, ...)

    The law holds for every optimiser whose updates depend on the gradients alone but for the
    decay: SGD, Adam with the decay behind it (``optax.adamw``), and momentum with the decay between
    it and the rate (``optax.chain(optax.trace(0.9), optax.add_decayed_weights(1e-4),
    optax.scale(-0.1))``).

    Args:
        model: any layer.
        loss: any loss.
        optimizer: any optax transformation, for B.
        feedback: ``feedback(key, w) -> b``, as of :func:`~funcprop.feedback_alignment`.

    Returns:
        A :class:`~funcprop.Rule` with a :class:`KolenPollackState`.

    Raises:
        LayerError: for an ``optimizer`` that is none, or needs more than a gradient; and as
            :func:`~funcprop.feedback_alignment`.

    >>> import jax, jax.numpy as jnp, optax
    >>> from funcprop import kolen_pollack, mean_squared_error, mlp
    >>> model = mlp((2, 3, 1))
    >>> rule = kolen_pollack(model, mean_squared_error, optax.adamw(1e-3))
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> state = rule.init(jax.random.key(1), params)
    >>> x, y = jnp.ones((4, 2)), jnp.ones((4, 1))
    >>> _, tree, after = rule.estimate(params, state, x, y, jax.random.key(2))
    >>> tree[0]["w"].shape, bool((after.feedback[1]["w"] != state.feedback[1]["w"]).any())
    ((3, 2), True)
    """
    check_optimizer("kolen_pollack", optimizer)
    sweep = value_and_backprop(model, loss)

    def init(key, params):
        b = drawn("kolen_pollack", model, feedback, key, params)
        return KolenPollackState(b, optimizer.init(b))

    def estimate(params, state, x, y, key, sample_weight=None):
        like = matrices(params)
        due = KolenPollackState(like, jax.eval_shape(optimizer.init, like))
        check_state("kolen_pollack", state, due)
        b, opt_state = state
        value, tree = sweep(
            params, x, y, sample_weight=sample_weight, weights=carriers(params, b), key=key
        )
        new = descended("kolen_pollack", optimizer, matrices(tree), opt_state, b)
        return value, tree, KolenPollackState(*new)

    return rule_of(model, loss, init, estimate)
