"""A loss of a prediction that comes with a number to be kept small."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from .layer import LayerError, gradient
from .losses import Loss, as_loss, no_parameters


def auxiliary(loss: Loss, coefficient: float) -> Loss:
    """A loss, and what came beside the prediction times a coefficient.

        forward     ℓ = loss(p, target) + c a
        transport   δp by the loss      δa = c δ

    The prediction is (p, a) with a (B,) a number for each example, say the balance of a
    :func:`~funcprop.mixture_of_experts` (Shazeer 2017, arXiv 1701.06538, section 4).  As ℓ is
    linear in a, its curvature is that of the loss by p: ``root`` and ``sample`` return the pair of
    the loss's own and 0 for a.

    Args:
        loss: any loss of p and the target; params are its own.
        coefficient: c, a finite number.

    Raises:
        LayerError: when ``loss`` is no loss, and while tracing when the prediction is no such pair.

    >>> import jax.numpy as jnp
    >>> from funcprop import auxiliary, mean_squared_error
    >>> loss = auxiliary(mean_squared_error, 0.5)
    >>> prediction = (jnp.array([[3.0], [1.0]]), jnp.array([2.0, 4.0]))
    >>> loss.apply((), (prediction, jnp.array([[1.0], [1.0]]))).tolist()
    [5.0, 2.0]
    """
    name = "auxiliary"
    loss = as_loss(loss)
    if isinstance(coefficient, bool) or not isinstance(coefficient, (int, float)):
        raise LayerError(name, f"coefficient is {coefficient!r}, a number is due")
    if not math.isfinite(coefficient):
        raise LayerError(name, f"coefficient is {coefficient}, a finite number is due")

    def init(key, shape):
        (prediction, _), target = shape
        return loss.init(key, (prediction, target))

    def forward(params, x, key=None):
        (prediction, beside), target = _pair(name, x)
        losses, residuals = loss.forward(params, (prediction, target), key)
        _check(name, beside, losses)
        return losses + coefficient * beside, (residuals, beside)

    def backward(weights, residuals, delta, statistic=gradient):
        residuals, _ = residuals
        (own, target), tree = loss.backward(weights, residuals, delta, statistic)
        return ((own, coefficient * delta), target), tree

    def root(residuals):
        residuals, beside = residuals
        own = loss.root(residuals)
        return own, jnp.zeros((len(own), *beside.shape), beside.dtype)

    def sample(key, residuals):
        residuals, beside = residuals
        return loss.sample(key, residuals), jnp.zeros_like(beside)

    init = no_parameters if loss.init is no_parameters else init
    return Loss(init, forward, backward, root, sample, name, likelihood=loss.likelihood)


def _pair(name: str, x: Any) -> Any:
    if not isinstance(x, (tuple, list)) or len(x) != 2:
        raise LayerError(name, "x must be the pair (prediction, target)")
    if not isinstance(x[0], (tuple, list)) or len(x[0]) != 2:
        came = f"a tuple of {len(x[0])}" if isinstance(x[0], (tuple, list)) else "one array"
        raise LayerError(
            name,
            f"prediction is {came}, a pair (prediction, number for each example) is due; "
            "end the model so, or use the loss alone",
        )
    return x


def _check(name: str, beside: Any, losses: jax.Array) -> None:
    if jnp.shape(beside) != losses.shape or jnp.result_type(beside) != losses.dtype:
        came = f"{jnp.result_type(beside)}{list(jnp.shape(beside))}"
        due = f"{losses.dtype}{list(losses.shape)}"
        raise LayerError(name, f"what is beside the prediction is {came}, {due} is due")
