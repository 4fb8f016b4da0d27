"""What a learning rule is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from .checks import LayerError

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
    model: Any = None
    loss: Any = None
    private: bool = False


def no_state(key: jax.Array, params: Tree) -> tuple[()]:
    """``init`` of a rule without state."""
    return ()


def no_weights(rule: str, sample_weight: Any, reason: str) -> None:
    """Raises where a rule that cannot use sample weights is given some."""
    if sample_weight is not None:
        raise LayerError(rule, f"it takes no sample_weight, {reason}")
