"""A whole model's gradient, and its training, beside those of jax.grad."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..layer import Layer
from ..learning.backpropagation import Rule
from ..losses import Loss, no_parameters
from ..sweep import value_and_backprop
from .compare import Report, compare

Tree = Any


def check_model(
    model: Layer, params: Tree, x: Tree, y: Tree, loss: Loss, *, title: str = "gradient"
) -> Report:
    """Whether a model's hand-written gradient by its parameters is that of ``jax.grad``.

    Compare before training: the gradient of a network that fits its data is a sum that cancels to
    nothing, and rounding is all that is left of it on both sides.

    Args:
        model: any layer.
        params: its parameters.
        x, y: a batch, with a leading axis of examples.
        loss: a loss without parameters.
        title: what the report is called.

    Returns:
        A :class:`~funcprop.Report`, a row for each leaf of the parameters.

    Raises:
        LayerError: when shapes, dtypes or values do not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import check_model, mean_squared_error, mlp
    >>> model = mlp((4, 3, 2))
    >>> params, _ = model.init(jax.random.key(0), (4,))
    >>> check_model(model, params, jnp.ones((5, 4)), jnp.ones((5, 2)), mean_squared_error).ok
    True
    """
    sweep = value_and_backprop(model, loss)
    reference = automatic(model, loss)
    return compare(
        lambda params, x, y: sweep(params, x, y)[1],
        lambda params, x, y: reference.estimate(params, (), x, y, None)[1],
        params,
        x,
        y,
        names=("by hand", "jax.grad"),
        title=title,
    )


def automatic(model: Layer, loss: Loss) -> Rule:
    """Backprop by ``jax.value_and_grad``: the rule to compare a whole training with.

    It draws the same random numbers from a key as :func:`~funcprop.backpropagation` does.

    Args:
        model: any layer.
        loss: a loss; of one with parameters params is the pair (model's, loss's).

    Returns:
        A :class:`~funcprop.Rule` without state.

    >>> import jax, jax.numpy as jnp, optax
    >>> from funcprop import backpropagation, fit, mean_squared_error, mlp
    >>> from funcprop.checking import automatic
    >>> model, data = mlp((1, 4, 1)), (jnp.ones((8, 1)), jnp.zeros((8, 1)))
    >>> params, _ = model.init(jax.random.key(0), (1,))
    >>> by_hand, by_jax = (
    ...     fit(rule(model, mean_squared_error), optax.sgd(0.1), params, data,
    ...         key=jax.random.key(1), steps=3)[1]["loss"] for rule in (backpropagation, automatic))
    >>> max(abs(a - b) for a, b in zip(by_hand, by_jax)) < 1e-6
    True
    """
    alone = loss.init is no_parameters

    def mean_loss(params, x, y, key):
        own, loss_own = (params, ()) if alone else params
        return jnp.mean(loss.apply(loss_own, (model.apply(own, x, key), y)))

    def estimate(params, state, x, y, key):
        value, grads = jax.value_and_grad(mean_loss)(params, x, y, key)
        return value, grads, state

    return Rule(lambda key, params: (), estimate, model.apply)
