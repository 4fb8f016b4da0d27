"""Normalisation over the batch, and its form for inference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from ..contraction import Varying, accumulated, by_example, matched, total
from ..layer import Layer, Site, gradient
from .normalization import check_epsilon, check_norm, norm_init, scale_site


def batch_norm(*, epsilon: float = 1e-5, bias: bool = True) -> Layer:
    """Normalisation of every channel over the batch (Ioffe & Szegedy 2015, arXiv 1502.03167).

        forward     x̂  = (x - μ)/σ      σ² = mean (x - μ)² + ε      y  = γ ⊙ x̂ + b
        transport   g  = δ ⊙ γ          δx = (g - mean g - x̂ mean (g ⊙ x̂))/σ
        gradient    δγ = Σ δ ⊙ x̂        δb = Σ δ

    x, y, δ (B, ..., C), γ ("scale") and b (C,); means and Σ run over all axes but the last.

    One example's y depends on the others, so the site has ``mixes`` set, and the layer keeps no
    running averages: :func:`~funcprop.calibrate` makes the form for inference out of a trained
    model and data, :func:`frozen_norm`.  On a mesh with Auto or Explicit axes the batch is the
    whole one, under ``shard_map`` the device's own.

    Args:
        epsilon: ε, above 0.
        bias: whether there is a b.

    Raises:
        LayerError: while tracing, when x and the parameters do not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import batch_norm
    >>> params, _ = batch_norm().init(jax.random.key(0), (1,))
    >>> batch_norm().apply(params, jnp.array([[1e4], [1e4 + 2]])).round(3).tolist()
    [[-1.0], [1.0]]
    """
    check_epsilon("batch_norm", epsilon)
    site = scale_site("batch_norm", bias, mixes=True)

    def forward(params, x, key=None):
        check_norm("batch_norm", params, x, bias)
        wide = accumulated(x)
        mean, variance = moments(wide)
        inverse = lax.rsqrt(variance + epsilon)
        normal = (wide - mean[0] - mean[1]) * inverse
        y = normal * accumulated(params["scale"])
        y = y + accumulated(params["b"]) if bias else y
        return y.astype(x.dtype), (normal.astype(x.dtype), inverse)

    def backward(weights, residuals, delta, statistic=gradient):
        normal, inverse = residuals
        g, x = accumulated(delta) * accumulated(weights["scale"]), accumulated(normal)
        delta_x = inverse * (g - _mean(g) - x * _mean(g * x))
        delta_x = matched(delta_x.astype(delta.dtype), Varying.of(normal))
        return delta_x, statistic(site, normal, delta)

    frozen = frozen_norm(epsilon=epsilon, bias=bias)
    init = norm_init("batch_norm", bias)
    return Layer(init, forward, backward, "batch_norm", inference=frozen)


def frozen_norm(*, epsilon: float = 1e-5, bias: bool = True) -> Layer:
    """Normalisation by given means and variances, batch norm's form for inference.

        forward     x̂  = (x - μ)/σ      σ² = v + ε       y  = γ ⊙ x̂ + b
        transport   δx = δ ⊙ γ/σ
        gradient    δγ = Σ δ ⊙ x̂        δb = Σ δ         δμ = -Σ δ ⊙ γ/σ   δv = -½ Σ δ ⊙ γ x̂/σ²

    x, y, δ (B, ..., C), all parameters (C,): γ ("scale"), b, μ ("mean"), v ("variance"); Σ runs
    over all axes but the last.  To train γ and b alone, give the others no update, as
    ``optax.multi_transform`` does.

    Args:
        epsilon: ε, above 0.
        bias: whether there is a b.

    Raises:
        LayerError: while tracing, when x and the parameters do not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import frozen_norm
    >>> params, _ = frozen_norm().init(jax.random.key(0), (1,))
    >>> params = params | {"mean": jnp.array([5.0]), "variance": jnp.array([4.0])}
    >>> frozen_norm().apply(params, jnp.array([[7.0]])).round(3).tolist()
    [[1.0]]
    """
    check_epsilon("frozen_norm", epsilon)

    def gradients(inputs, delta):
        normal, slope, inverse = accumulated(inputs)
        wide = accumulated(delta)
        along = total(wide * normal)
        # The two are the same for all examples, and there once for each of them.
        slope, inverse = (
            by_example(lambda a: a[0], leaf, summed=True) for leaf in (slope, inverse)
        )
        grads = {
            "scale": along,
            "mean": -total(wide) * slope,
            "variance": -0.5 * along * slope * inverse,
        }
        grads |= {"b": total(wide)} if bias else {}
        return jax.tree.map(lambda leaf: leaf.astype(delta.dtype), grads)

    site = Site("frozen_norm", gradients)
    start = norm_init("frozen_norm", bias)

    def init(key, shape):
        params, shape = start(key, shape)
        return params | {"mean": jnp.zeros(shape[-1]), "variance": jnp.ones(shape[-1])}, shape

    def forward(params, x, key=None):
        check_norm("frozen_norm", params, x, bias, ("mean", "variance"))
        wide, p = accumulated((x, params))
        inverse = lax.rsqrt(p["variance"] + epsilon)
        normal = (wide - p["mean"]) * inverse
        y = normal * p["scale"] + p["b"] if bias else normal * p["scale"]
        return y.astype(x.dtype), (normal.astype(x.dtype), p["scale"] * inverse, inverse)

    def backward(weights, residuals, delta, statistic=gradient):
        normal, slope, inverse = residuals
        w = accumulated(weights)
        delta_x = accumulated(delta) * (w["scale"] * lax.rsqrt(w["variance"] + epsilon))
        delta_x = matched(delta_x.astype(delta.dtype), Varying.of(normal))
        one = jnp.ones_like(delta.reshape(len(delta), -1)[:, :1], dtype=slope.dtype)
        return delta_x, statistic(site, (normal, one * slope, one * inverse), delta)

    return Layer(init, forward, backward, "frozen_norm")


def moments(x: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Mean and variance over all axes but the last, the mean in two parts.

    The first part is an element of x, which leaves nothing of a large mean to be cancelled.
    """
    first = by_example(lambda x: x[(0,) * (x.ndim - 1)], x, summed=True)
    rest = _mean(x - first)
    return (first, rest), _mean((x - first - rest) ** 2)


def _mean(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=tuple(range(x.ndim - 1)))
