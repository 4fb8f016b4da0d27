"""A whole model's gradient beside that of jax.grad."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..layer import Layer
from ..losses import Loss
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

    def mean_loss(params, x, y):
        return jnp.mean(loss.apply((), (model.apply(params, x), y)))

    return compare(
        lambda params, x, y: sweep(params, x, y)[1],
        jax.grad(mean_loss),
        params,
        x,
        y,
        names=("by hand", "jax.grad"),
        title=title,
    )
