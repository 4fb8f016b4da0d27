"""Normalisation over the batch, and its form for inference."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.checks import LayerError, check_float, described, is_concrete
from ..core.contraction import Varying, accumulated, matched, mean_of_rows, moments
from ..core.layer import Layer
from ..core.site import gradient
from .normalization import check_epsilon, check_norm, norm_init, scale_site


def batch_norm(*, epsilon: float = 1e-5, bias: bool = True) -> Layer:
    """Normalisation of every channel over the batch (Ioffe & Szegedy 2015, arXiv 1502.03167).

        forward     x̂  = (x - μ)/σ      σ² = mean (x - μ)² + ε      y  = γ ⊙ x̂ + b
        transport   g  = δ ⊙ γ          δx = (g - mean g - x̂ mean (g ⊙ x̂))/σ
        gradient    δγ = Σ δ ⊙ x̂        δb = Σ δ

    x, y, δ (B, ..., C), γ ("scale") and b (C,); means and Σ run over all axes but the last.

    One example's y depends on the others, so the site has ``mixes`` set, and the layer keeps no
    running averages: :func:`~funcprop.calibrate` makes the form for inference out of a trained
    model and data, with :func:`frozen_norm`.  On a mesh with Auto or Explicit axes the batch is the
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
    epsilon = check_epsilon("batch_norm", epsilon)
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
        delta_x = inverse * (g - mean_of_rows(g) - x * mean_of_rows(g * x))
        delta_x = matched(delta_x.astype(delta.dtype), Varying.of(normal))
        return delta_x, statistic(site, normal, delta)

    def inference(statistics):
        return _frozen(statistics, epsilon, bias)

    init = norm_init("batch_norm", bias)
    return Layer(init, forward, backward, "batch_norm", inference=inference)


def frozen_norm(mean: Any, variance: Any, *, epsilon: float = 1e-5, bias: bool = True) -> Layer:
    """Normalisation by a given mean and variance, batch norm's form for inference.

        forward     x̂  = (x - μ)/σ      σ² = v + ε       y  = γ ⊙ x̂ + b
        transport   δx = δ ⊙ γ/σ
        gradient    δγ = Σ δ ⊙ x̂        δb = Σ δ

    x, y, δ (B, ..., C), γ ("scale") and b (C,); Σ runs over all axes but the last.  μ and v (C,)
    are constants: no parameters, so that nothing that trains moves them.  All is computed in x's
    dtype, at least float32.

    With PyTorch's ``running_mean`` and ``running_var`` it gives what ``torch.nn.BatchNorm`` gives
    in ``eval()``.  That variance is a moving average of sums over n - 1, the one of
    :func:`~funcprop.calibrate` is a sum over n; n/(n - 1) lies between them.

    Args:
        mean: μ, an array (C,).
        variance: v, an array (C,), not negative.
        epsilon: ε, above 0.
        bias: whether there is a b.

    Raises:
        LayerError: when a constant is not (C,), not finite or a variance negative, and while
            tracing, when x, the constants and the parameters do not fit together.  A variance that
            is traced and has such a value gives NaN.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import frozen_norm
    >>> norm = frozen_norm(jnp.array([5.0]), jnp.array([4.0]))
    >>> params, _ = norm.init(jax.random.key(0), (1,))
    >>> norm.apply(params, jnp.array([[7.0]])).round(3).tolist()
    [[1.0]]
    """
    for argument, value in (("mean", mean), ("variance", variance)):
        if np.ndim(value) != 1:
            raise LayerError(
                "frozen_norm", f"{argument} has shape {np.shape(value)}, (C,) is expected"
            )
    return _frozen({"mean": mean, "variance": variance}, epsilon, bias)


def _frozen(statistics: dict[str, Any], epsilon: float, bias: bool) -> Layer:
    """:func:`frozen_norm`; as a part of ``repeat`` its constants have that's axis in front."""
    name = "frozen_norm"
    epsilon = check_epsilon(name, epsilon)
    if not isinstance(statistics, dict) or set(statistics) != {"mean", "variance"}:
        raise LayerError(
            name, f"{described(statistics)} came, a dict of ['mean', 'variance'] is expected"
        )
    mean, variance = (_constant(name, key, statistics[key]) for key in ("mean", "variance"))
    if mean.shape != variance.shape:
        raise LayerError(
            name, f"mean has shape {mean.shape}, variance {variance.shape}; one shape is expected"
        )
    site, start = scale_site(name, bias), norm_init(name, bias)

    def check(shape):
        if mean.shape[-1:] != tuple(shape[-1:]):
            raise LayerError(
                name, f"its mean has {mean.shape[-1]} channels, x has {shape[-1]}; calibrate again"
            )

    def inverse_of(dtype):
        # NaN, as a plausible number would hide a bad value that came traced.
        good = (variance >= 0) & (variance < np.inf)
        return lax.rsqrt(jnp.where(good, variance, np.nan).astype(dtype) + epsilon)

    def init(key, shape):
        params, shape = start(key, shape)
        check(shape)
        return params, shape

    def forward(params, x, key=None):
        check_norm(name, params, x, bias)
        check(x.shape)
        if mean.ndim != 1:
            raise LayerError(
                name,
                f"its mean has shape {mean.shape}, one for each repetition: it is a part of repeat "
                "and can't be used outside of it",
            )
        wide, p = accumulated((x, params))
        normal = (wide - mean.astype(wide.dtype)) * inverse_of(wide.dtype)
        y = normal * p["scale"] + p["b"] if bias else normal * p["scale"]
        return y.astype(x.dtype), normal.astype(x.dtype)

    def backward(weights, normal, delta, statistic=gradient):
        wide, scale = accumulated((delta, weights["scale"]))
        delta_x = wide * (scale * inverse_of(wide.dtype))
        delta_x = matched(delta_x.astype(delta.dtype), Varying.of(normal))
        return delta_x, statistic(site, normal, delta)

    return Layer(
        init,
        forward,
        backward,
        name,
        inference=lambda statistics: _frozen(statistics, epsilon, bias),
        statistics=lambda: {"mean": mean, "variance": variance},
    )


def _constant(name: str, argument: str, value: Any) -> Any:
    check_float(name, value, argument)
    if not jnp.issubdtype(value.dtype, jnp.floating) or not np.ndim(value):
        raise LayerError(
            name, f"{argument} is {value.dtype}{list(value.shape)}, floats (C,) are expected"
        )
    if is_concrete(value):
        bad = ~np.isfinite(value) | (np.asarray(value) < 0 if argument == "variance" else False)
        if bad.any():
            expected = "finite and not negative" if argument == "variance" else "finite"
            raise LayerError(
                name, f"{bad.sum()} of {bad.size} values of {argument} are not {expected}"
            )
    return accumulated(value)
