"""What a learning rule is, and the first one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core.layer import Layer
from ..core.loss import Loss
from ..core.rule import Rule, no_state
from ..core.sweep import arrays_of, mixing_refused, models_own, value_and_backprop

Tree = Any


def backpropagation(model: Layer, loss: Loss, *, microbatch: int | None = None) -> Rule:
    """Backprop: the gradient, from a sweep whose error is carried by the parameters themselves.

    Args:
        model: any layer.
        loss: any loss.
        microbatch: how many examples are swept at a time, a divisor of the batch's size.

    Returns:
        A :class:`Rule` without state (Rumelhart 1986, Nature 323).

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import backpropagation, mean_squared_error, mlp
    >>> model = mlp((2, 3, 1))
    >>> rule = backpropagation(model, mean_squared_error)
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> value, grads, _ = rule.estimate(params, (), jnp.ones((4, 2)), jnp.ones((4, 1)), None)
    >>> value.shape, grads[0]["w"].shape
    ((), (3, 2))
    """
    sweep = value_and_backprop(model, loss)

    def estimate(params, state, x, y, key, sample_weight=None):
        value, grads = sweep(
            params, x, y, sample_weight=sample_weight, key=key, microbatch=microbatch
        )
        return value, grads, state

    return rule_of(model, loss, no_state, estimate)


def rule_of(
    model: Layer, loss: Loss | None, init: Callable[..., Any], estimate: Callable[..., Any]
) -> Rule:
    """A rule whose prediction is the model's, where no layer mixes the examples of a batch."""
    check = mixing_refused("predict", model)

    def predict(params, x):
        own, x = models_own(loss, params), arrays_of("predict", x)
        check(own, x)
        return model.apply(own, x)

    return Rule(init, estimate, predict, model, loss)
