"""What a learning rule is, and the first one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from ..core.layer import Layer, LayerError
from ..core.sweep import arrays_of, mixing_refused, models_own, value_and_backprop
from ..losses.standard import Loss

Tree = Any


class Rule(NamedTuple):
    """A learning rule: how to get from a batch to a tree shaped like the gradient.

    Attributes:
        init: ``init(key, params) -> state``, what the rule keeps next to the parameters.
        estimate: ``estimate(params, state, x, y, key, sample_weight=None) -> value, tree, state``;
            ``key`` is ``None`` for a value without random numbers (dropout off, no noise).
            ``sample_weight`` (B,) says what each example counts for in the mean; a rule that has no
            use for it raises, and one of your own may leave the argument out.
        predict: ``predict(params, x) -> prediction``.
        model: the model that the rule trains, where there is one.
        loss: the loss of what ``model.apply`` gives, where that is the prediction: ``evaluate``
            then takes model and loss alone, and not the estimate.
        private: whether the estimates are a private release of the data (:func:`~funcprop.dp_sgd`):
            :func:`~funcprop.fit` then gives the rule all examples at every step, and the optimizer
            nothing but the estimate.
    """

    init: Callable[[jax.Array, Tree], Tree]
    estimate: Callable[..., tuple[jax.Array, Tree, Tree]]
    predict: Callable[[Tree, Tree], Tree]
    model: Layer | None = None
    loss: Loss | None = None
    private: bool = False


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


def no_state(key: jax.Array, params: Tree) -> tuple[()]:
    """``init`` of a rule without state."""
    return ()


def no_weights(rule: str, sample_weight: Any, reason: str) -> None:
    """Raises where a rule that cannot use sample weights is given some."""
    if sample_weight is not None:
        raise LayerError(rule, f"it takes no sample_weight, {reason}")


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
