"""What a learning rule is, and the first one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from ..layer import Layer
from ..losses import Loss
from ..sweep import value_and_backprop

Tree = Any


class Rule(NamedTuple):
    """A learning rule: how to get from a batch to a tree shaped like the gradient.

    Attributes:
        init: ``init(key, params) -> state``, what the rule keeps beside the parameters.
        estimate: ``estimate(params, state, x, y, key) -> value, tree, state``; ``key`` is ``None``
            for a value without random numbers (dropout off).
        predict: ``predict(params, x) -> prediction``.
    """

    init: Callable[[jax.Array, Tree], Tree]
    estimate: Callable[..., tuple[jax.Array, Tree, Tree]]
    predict: Callable[[Tree, Tree], Tree]


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

    def estimate(params, state, x, y, key):
        value, grads = sweep(params, x, y, key=key, microbatch=microbatch)
        return value, grads, state

    return Rule(lambda key, params: (), estimate, model.apply)
