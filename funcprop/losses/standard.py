"""Losses: layers on (prediction, target) that give each example's own loss.

    forward     ℓ = (ℓ₁, ..., ℓ_B)      one number an example, never a mean over the batch
    transport   δ_prediction = δ ∂ℓ/∂prediction      δ_target likewise, where targets are floats

The mean over the batch is taken in one place, :func:`~funcprop.value_and_backprop`.  An example of
many tokens (prediction (B, T, C)) has as its loss the mean over them; with the pair
(target, mask) in place of the target, mask (B, T) boolean, the mean over those where mask is True.

Two optional functions speak of each example's own loss as a function of its prediction, with H its
Hessian (of a convex loss; at a kink 0):

    root(residuals)          S (K, *prediction.shape) with H = Σₖ Sₖ Sₖᵀ
    sample(key, residuals)   s (*prediction.shape,) random with E[s sᵀ] = H

A loss that is a mean is ℓ = Σₖ sₖ ℓₖ over independent terms (tokens, outputs), and if each ℓₖ is a
negative log-likelihood, then over targets drawn from the model, with Hₖ the Hessian of ℓₖ,

    H = Σₖ sₖ Hₖ      E[∂ℓ ∂ℓᵀ] = Σₖ sₖ² Hₖ

so that a column of the Fisher information is √sₖ times one of the Hessian; both are equal for one
term alone.  Everything is computed in float32 or wider and rounded once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import LayerError, check_number, is_concrete, is_inexact
from ..core.contraction import accumulated
from ..core.loss import Loss, no_parameters
from ..core.site import gradient
from .targets import (
    as_floats,
    as_labels,
    check_alike,
    check_classes,
    is_distribution,
    kept,
    share_of,
    share_where,
    slack_of,
    unpack,
)

Tree = Any
Array = jax.Array


def _elementwise(
    name: str,
    loss: Callable[[Array, Array], Array],
    slope: Callable[[Array, Array], Array],
    target_slope: Callable[[Array, Array], Array],
    curvature: Callable[[Array, Array], Array],
    noise: Callable[[Array, Array], Array] | None = None,
    check: Callable[[str, Any], None] | None = None,
    valid: Callable[[Array, float], Array] | None = None,
    integers: bool = False,
    likelihood: bool = False,
) -> Loss:
    """A loss that is the mean of ``loss(prediction, target)`` over an example's outputs.

    ``curvature`` is the second derivative by the prediction and ``noise(key, p)`` a random
    number an output with that variance; by default a normal one.  ``check`` raises for concrete
    targets that are not valid, ``valid(target, slack)`` says which are, under a trace;
    ``integers`` allows integer targets.
    """

    def forward(params, x, key=None):
        prediction, target, mask = unpack(name, x)
        check_alike(name, prediction, target, integers)
        if check is not None and is_concrete(target):
            check(name, np.asarray(target, np.float64)[kept(mask, target)])
        kinds = Kinds(is_inexact(target), mask is not None, prediction.dtype)
        target = as_floats(target, prediction.dtype)
        wide = accumulated((prediction, target))
        share = share_of(name, wide[0], mask) / (prediction.shape[-1] if prediction.ndim > 1 else 1)
        if valid is not None:
            share = share_where(valid(wide[1], slack_of(prediction.dtype)), share)
        losses = example_sum(share, loss(*wide)).astype(prediction.dtype)
        return losses, (prediction, target, share, kinds)

    def backward(weights, residuals, delta, statistic=gradient):
        prediction, target, share, kinds = residuals
        p, t, delta = accumulated((prediction, target, delta))
        delta_prediction = spread(share, slope(p, t), delta)
        return kinds.deltas(delta_prediction, spread(share, target_slope(p, t), delta)), ()

    def root(residuals):
        prediction, target, share, _ = residuals
        bent = jnp.sqrt(share * curvature(*accumulated((prediction, target))))
        return diagonal(bent.astype(prediction.dtype))

    def sample(key, residuals):
        prediction, target, share, _ = residuals
        p, t = accumulated((prediction, target))
        if noise is not None:
            drawn = jnp.sqrt(share) * noise(key, p)
        else:
            drawn = jnp.sqrt(share * curvature(p, t)) * jax.random.normal(key, p.shape, p.dtype)
        return drawn.astype(prediction.dtype)

    return Loss(
        no_parameters,
        forward,
        backward,
        root,
        sample,
        name,
        likelihood=likelihood,
        terms=lambda residuals: residuals[2],
    )


mean_squared_error = _elementwise(
    "mean_squared_error",
    lambda p, t: (p - t) ** 2,
    lambda p, t: 2 * (p - t),
    lambda p, t: 2 * (t - p),
    lambda p, t: jnp.full_like(p, 2),
    likelihood=True,  # normal
)

mean_absolute_error = _elementwise(  # 1 at p = t, as jax.grad of abs has it
    "mean_absolute_error",
    lambda p, t: jnp.abs(p - t),
    lambda p, t: jnp.where(p >= t, 1, -1).astype(p.dtype),
    lambda p, t: jnp.where(p >= t, -1, 1).astype(p.dtype),
    lambda p, t: jnp.zeros_like(p),
)


def huber(threshold: float = 1.0) -> Loss:
    """Huber loss: ½ r² for |r| ≤ threshold, threshold·(|r| - ½ threshold) beyond.

        forward     ℓ = mean over outputs of huber(r), r = prediction - target
        transport   δ_prediction = δ clip(r, ±threshold)/n

    prediction and target (B, ..., n), floats.  Huber 1964, Ann. Math. Statist. 35, eq. 2.6.

    Args:
        threshold: where the parabola ends, above 0.

    >>> import jax.numpy as jnp
    >>> from funcprop import huber
    >>> huber().apply((), (jnp.array([[3.0]]), jnp.array([[0.0]]))).tolist()
    [2.5]
    """
    threshold = check_number("huber", "threshold", threshold, above=0)

    def loss(p, t):
        r = jnp.abs(p - t)
        near = jnp.minimum(r, threshold)
        return near * (r - near / 2)

    def clipped(r):
        return jnp.clip(r, -threshold, threshold)

    return _elementwise(
        "huber",
        loss,
        lambda p, t: clipped(p - t),
        lambda p, t: clipped(t - p),
        lambda p, t: (jnp.abs(p - t) <= threshold).astype(p.dtype),
    )


def _bernoulli_noise(key, p):
    return jax.nn.sigmoid(p) - jax.random.bernoulli(key, jax.nn.sigmoid(p)).astype(p.dtype)


def _check_probability(name, target):
    if target.size and not (target.min() >= 0 and target.max() <= 1):
        raise LayerError(name, f"targets lie in [{target.min()}, {target.max()}], [0, 1] is due")


sigmoid_cross_entropy = _elementwise(
    "sigmoid_cross_entropy",
    lambda p, t: jnp.logaddexp(p, jnp.zeros_like(p)) - p * t,
    lambda p, t: jax.nn.sigmoid(p) - t,
    lambda p, t: -p,
    lambda p, t: jax.nn.sigmoid(p) * jax.nn.sigmoid(-p),
    _bernoulli_noise,
    _check_probability,
    lambda t, slack: (t >= -slack) & (t <= 1 + slack),
    likelihood=True,
)


def _check_sign(name, target):
    if not np.isin(target, (-1, 1)).all():
        bad = target[~np.isin(target, (-1, 1))][0]
        raise LayerError(name, f"a target is {bad}, each must be -1 or 1")


hinge = _elementwise(  # max(0, 1 - t p); 0 at the kink
    "hinge",
    lambda p, t: jax.nn.relu(1 - t * p),
    lambda p, t: jnp.where(t * p < 1, -t, 0),
    lambda p, t: jnp.where(t * p < 1, -p, 0),
    lambda p, t: jnp.zeros_like(p),
    check=_check_sign,
    valid=lambda t, slack: jnp.abs(jnp.abs(t) - 1) <= slack,
    integers=True,
)

# ------------------------------------------------------------------------- categorical


def softmax_cross_entropy(label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy of softmax(prediction) with labels or distributions.

        forward     ℓ = -Σ_c q_c log p_c,  p = softmax(prediction)
                    q = (1 - ε) onehot(label) + ε/C, or (1 - ε) target + ε/C
        transport   δ_prediction = δ (p Σ_c q_c - q)

    prediction (B, C) with labels (B,) of integers in [0, C) or distributions (B, C); for tokens
    (B, ..., C) with (B, ...) or (B, ..., C), their mean, or with (target, mask), the mean over
    mask.  A label under a mask of False is not looked at.

    Args:
        label_smoothing: ε in [0, 1) (Szegedy 2016, arXiv 1512.00567, sec. 7).

    Raises:
        LayerError: for shapes and dtypes that do not fit, while tracing; for labels out of
            [0, C), and distributions that are negative or do not sum to 1, where their values are
            concrete.  Under a trace those give NaN.

    >>> import jax.numpy as jnp
    >>> from funcprop import softmax_cross_entropy
    >>> loss = softmax_cross_entropy()
    >>> [f"{ell:.4f}" for ell in loss.apply((), (jnp.zeros((2, 4)), jnp.array([0, 3])))]
    ['1.3863', '1.3863']
    """
    name = "softmax_cross_entropy"
    return _categorical(
        name, check_number(name, "label_smoothing", label_smoothing, at_least=0, below=1)
    )


def _categorical(name: str, smoothing: float = 0.0, *, divergence: bool = False) -> Loss:
    """-Σ q log softmax(prediction), and with ``divergence`` Σ t log t more."""

    def distribution(target, like):
        """q."""
        q = accumulated(target)
        if not is_inexact(target):
            classes = jnp.arange(like.shape[-1], dtype=target.dtype)
            q = (target[..., None] == classes).astype(like.dtype)
        return (1 - smoothing) * q + smoothing / like.shape[-1] if smoothing else q

    def forward(params, x, key=None):
        prediction, target, mask = unpack(name, x)
        check_classes(name, prediction, target, mask, labels=not divergence)
        if is_inexact(target):
            target = jnp.asarray(target)
            good = is_distribution(target)
        else:
            target = as_labels(target, prediction.shape[-1])
            good = (target >= 0)[..., None]
        log_p = jax.nn.log_softmax(accumulated(prediction), axis=-1)
        share = share_where(good, share_of(name, log_p, mask))
        q = distribution(target, log_p)
        losses = -_times(q, log_p)
        if divergence:
            losses += jax.scipy.special.xlogy(q, q)
        losses = jnp.sum(losses, axis=-1, keepdims=True)
        kinds = Kinds(is_inexact(target), mask is not None, prediction.dtype)
        losses = example_sum(share, losses).astype(prediction.dtype)
        return losses, (log_p, target, share, kinds)

    def backward(weights, residuals, delta, statistic=gradient):
        log_p, target, share, kinds = residuals
        delta = accumulated(delta)
        q = distribution(target, log_p)
        slopes = jnp.exp(log_p) * jnp.sum(q, axis=-1, keepdims=True) - q
        delta_prediction = spread(share, slopes, delta)
        by_q = jnp.log(q) + 1 - log_p if divergence else -log_p
        delta_target = spread(share, (1 - smoothing) * by_q, delta)
        return kinds.deltas(delta_prediction, delta_target), ()

    def scale(residuals):
        log_p, target, share, _ = residuals
        return jnp.sqrt(share * jnp.sum(distribution(target, log_p), axis=-1, keepdims=True))

    def root(residuals):
        p = jnp.exp(residuals[0])
        columns = diagonal(jnp.sqrt(p))  # S = diag(√p) - p √pᵀ, so that S Sᵀ = diag(p) - p pᵀ
        own = jnp.sum(columns, axis=-1, keepdims=True)
        return ((columns - own * p) * scale(residuals)).astype(residuals[3].dtype)

    def sample(key, residuals):
        log_p = residuals[0]
        label = jax.random.categorical(key, log_p)
        drawn = jax.nn.one_hot(label, log_p.shape[-1], dtype=log_p.dtype)
        return ((jnp.exp(log_p) - drawn) * scale(residuals)).astype(residuals[3].dtype)

    return Loss(
        no_parameters,
        forward,
        backward,
        root,
        sample,
        name,
        likelihood=not smoothing,
        terms=lambda residuals: residuals[2],
    )


kl_divergence = _categorical("kl_divergence", divergence=True)

# ----------------------------------------------------------------------------- helpers


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Kinds:
    """Whether the targets are floats, and came with a mask, and the prediction's dtype."""

    floats: bool
    masked: bool
    dtype: Any

    def deltas(self, delta_prediction: Array, delta_target: Array) -> tuple[Array, Tree]:
        """The pair of both, as the prediction and the target came."""
        delta = delta_target.astype(self.dtype) if self.floats else None
        return delta_prediction.astype(self.dtype), (delta, None) if self.masked else delta


def example_sum(share: Array, losses: Array) -> Array:
    """Σ share · loss over everything but the batch; what has no share may be NaN."""
    losses = jnp.where(share == 0, jnp.zeros_like(losses), losses) * share
    return jnp.sum(losses, axis=tuple(range(1, losses.ndim)))


def spread(share: Array, slopes: Array, delta: Array) -> Array:
    """δ · share · slope, with δ (B,) given an axis of size 1 for each axis behind the batch."""
    slopes = jnp.where(share == 0, jnp.zeros_like(slopes), slopes)
    return delta.reshape(delta.shape + (1,) * (slopes.ndim - 1)) * share * slopes


def _times(q: Array, log_p: Array) -> Array:
    """q log p with 0 · -inf = 0: a class ruled out by a score of -inf costs nothing."""
    return q * jnp.where((q == 0) & jnp.isneginf(log_p), jnp.zeros_like(log_p), log_p)


def diagonal(values: Array) -> Array:
    """(B, ...) to (K, B, ...), K the outputs of an example: column k holds output k only."""
    size = math.prod(values.shape[1:])
    eye = jnp.eye(size, dtype=values.dtype).reshape(size, 1, *values.shape[1:])
    return eye * values
