"""Losses made of a loss: with a term added to it, and times a weight of any sign."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import LayerError, is_concrete
from ..core.loss import Loss, as_loss, has_parameters, no_parameters
from ..core.site import gradient


def auxiliary(loss: Loss, coefficient: float) -> Loss:
    """A loss, and what came beside the prediction times a coefficient.

        forward     ℓ = loss(p, target) + c a
        transport   δp by the loss      δa = c δ

    The prediction is (p, a) with a (B,) a number for each example, say the balance of a
    :func:`~funcprop.mixture_of_experts` (Shazeer 2017, arXiv 1701.06538, section 4).  As ℓ is
    linear in a, its curvature is that of the loss by p: ``root`` and ``sample`` return the pair of
    the loss's own and 0 for a.  It is no likelihood, as ∂a is in its gradient whatever the target:
    for the Fisher information end the model with ``pick(0)`` and take the loss alone.

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
    own_root: Any = loss.root
    own_sample: Any = loss.sample
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
        own = own_root(residuals)
        return own, jnp.zeros((len(own), *beside.shape), beside.dtype)

    def sample(key, residuals):
        residuals, beside = residuals
        return own_sample(key, residuals), jnp.zeros_like(beside)

    return Loss(
        init if has_parameters(loss) else no_parameters,
        forward,
        backward,
        own_root and root,
        own_sample and sample,
        name,
    )


def weighted(loss: Loss) -> Loss:
    """A loss times a weight of any sign that comes with each target.

        forward     ℓ = w loss(p, target)
        transport   δp by the loss, of w δ      δw = δ loss(p, target)

    The target is (w, target) with w (B,) floats, and target as the loss takes it, (target, mask)
    too.  The mean loss of a batch is 1/B Σᵢ wᵢ ℓᵢ: it is divided by the number of examples and not
    by Σ w, as with ``sample_weight``, which says how much of a mean an example is and so may not be
    negative.

    With ``softmax_cross_entropy()`` of the scores of actions, w the advantage of the action chosen
    and the target that action, its gradient is that of the policy: ∂/∂θ of -w log π(action), whose
    mean over what the policy does is minus that of the expected reward (REINFORCE: Williams 1992,
    Machine Learning 8, theorem 1).

    Args:
        loss: any loss; params are its own.

    Returns:
        A :class:`~funcprop.Loss` without root and sample, as w may turn its curvature around.

    Raises:
        LayerError: when ``loss`` is not a loss, while tracing when the target is not such a pair,
            and for weights that are not finite where their values are concrete.  Under a trace
            they give NaN.

    >>> import jax.numpy as jnp
    >>> from funcprop import identity, mean_squared_error, value_and_backprop, weighted
    >>> advantages, y = jnp.array([2.0, -1.0]), jnp.array([[0.0], [0.0]])
    >>> sweep = value_and_backprop(identity, weighted(mean_squared_error))
    >>> float(sweep((), jnp.array([[3.0], [4.0]]), (advantages, y))[0])  # (2 · 9 - 16)/2
    1.0
    """
    name = "weighted"
    loss = as_loss(loss)

    def init(key, shape):
        prediction, (_, target) = shape
        return loss.init(key, (prediction, target))

    def forward(params, x, key=None):
        prediction, target = x if isinstance(x, (tuple, list)) and len(x) == 2 else (None, None)
        if not isinstance(target, (tuple, list)) or len(target) != 2:
            raise LayerError(name, "x must be (prediction, (w, target)), w (B,) a weight each")
        w, target = target
        losses, residuals = loss.forward(params, (prediction, target), key)
        _check_weights(name, w, losses)
        w = jnp.asarray(w)
        finite = jnp.where(jnp.isfinite(w), jnp.ones_like(w), jnp.nan)
        return w * finite * losses, (residuals, losses, w, finite)

    def backward(weights, residuals, delta, statistic=gradient):
        residuals, losses, w, finite = residuals
        delta = delta * finite
        (own, target), tree = loss.backward(weights, residuals, delta * w, statistic)
        return (own, (delta * losses, target)), tree

    init = init if has_parameters(loss) else no_parameters
    return Loss(init, forward, backward, name=name)


def _check_weights(name: str, w: Any, losses: jax.Array) -> None:
    due = f"{losses.dtype}{list(losses.shape)}"
    if not hasattr(w, "dtype"):
        raise LayerError(name, f"w is a {type(w).__name__}, an array {due} is due")
    if w.shape != losses.shape or jax.dtypes.canonicalize_dtype(w.dtype) != losses.dtype:
        raise LayerError(
            name, f"w is {w.dtype}{list(w.shape)}, {due} is due; the target is (w, target)"
        )
    if is_concrete(w) and not np.isfinite(np.asarray(w, np.float64)).all():
        bad = np.asarray(w)[~np.isfinite(np.asarray(w, np.float64))][0]
        raise LayerError(name, f"a weight is {bad}, each must be finite")


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
