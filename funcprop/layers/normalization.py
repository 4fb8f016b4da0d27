"""Normalisation within each example: layer, root mean square, groups of channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..core.checks import LayerError, check_count, check_float, check_number
from ..core.contraction import Varying, accumulated, by_example, matched, total, weighted
from ..core.layer import Layer, float_shape
from ..core.site import Site, gradient

# Means are taken after subtracting one of the elements: with a mean of 1e4 and a spread of 1e-2
# nothing is left of the spread in float32 otherwise.


def layer_norm(*, epsilon: float = 1e-5, bias: bool = True) -> Layer:
    """Normalisation of the last axis to mean 0 and variance 1 (Ba 2016, arXiv 1607.06450).

        forward     x̂  = (x - μ)/σ      σ² = mean (x - μ)² + ε      y  = γ ⊙ x̂ + b
        transport   g  = δ ⊙ γ          δx = (g - mean g - x̂ mean (g ⊙ x̂))/σ
        gradient    δγ = Σ δ ⊙ x̂        δb = Σ δ

    x, y, δ (B, ..., n), γ ("scale") and b (n,); means run over the last axis, Σ over all others.

    Args:
        epsilon: ε, above 0.
        bias: whether there is a b.

    Raises:
        LayerError: while tracing, when x and the parameters do not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import layer_norm
    >>> layer = layer_norm()
    >>> params, _ = layer.init(jax.random.key(0), (2,))
    >>> layer.apply(params, jnp.array([[1e4, 1e4 + 4.0]])).round(4).tolist()
    [[-1.0, 1.0]]
    """

    epsilon = check_epsilon("layer_norm", epsilon)

    def normalised(x):
        mean = _mean(x.shape[-1])
        x = x - x[..., :1]
        x = x - mean(x)
        inverse = lax.rsqrt(mean(x * x) + epsilon)
        return x * inverse, inverse

    def transported(g, scale, x, inverse, delta):
        n = scale.shape[0]
        along = weighted(g * x, jnp.full(n, 1 / n, g.dtype))
        return inverse * (g - weighted(delta, scale / n) - x * along)

    return _norm("layer_norm", bias, normalised, transported)


def rms_norm(*, epsilon: float = 1e-5) -> Layer:
    """Normalisation of the last axis to mean square 1 (Zhang & Sennrich 2019, arXiv 1910.07467).

        forward     x̂  = x/σ            σ² = mean x² + ε            y  = γ ⊙ x̂
        transport   g  = δ ⊙ γ          δx = (g - x̂ mean (g ⊙ x̂))/σ
        gradient    δγ = Σ δ ⊙ x̂

    x, y, δ (B, ..., n), γ ("scale") (n,); means run over the last axis, Σ over all others.

    Args:
        epsilon: ε, above 0.

    Raises:
        LayerError: while tracing, when x and the parameters do not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import rms_norm
    >>> params, _ = rms_norm().init(jax.random.key(0), (2,))
    >>> rms_norm().apply(params, jnp.array([[2.0, -2.0]])).round(3).tolist()
    [[1.0, -1.0]]
    """

    epsilon = check_epsilon("rms_norm", epsilon)

    def normalised(x):
        inverse = lax.rsqrt(_mean(x.shape[-1])(x * x) + epsilon)
        return x * inverse, inverse

    def transported(g, scale, x, inverse, delta):
        return inverse * (g - x * weighted(delta * x, scale / scale.shape[0]))

    return _norm("rms_norm", False, normalised, transported)


def group_norm(groups: int, *, epsilon: float = 1e-5, bias: bool = True) -> Layer:
    """Normalisation of groups of channels over all places (Wu & He 2018, arXiv 1803.08494).

        forward     x̂  = (x - μ)/σ      σ² = mean (x - μ)² + ε      y  = γ ⊙ x̂ + b
        transport   g  = δ ⊙ γ          δx = (g - mean g - x̂ mean (g ⊙ x̂))/σ
        gradient    δγ = Σ δ ⊙ x̂        δb = Σ δ

    x, y, δ (B, *sizes, C), γ ("scale") and b (C,); means run over the places and the C/groups
    channels of a group, one for each example, Σ over batch and places.

    Args:
        groups: how many groups the channels fall into, a divisor of C; 1 normalises whole examples
            and C each channel alone (instance norm).
        epsilon: ε, above 0.
        bias: whether there is a b.

    Raises:
        LayerError: while tracing, when x, groups and the parameters do not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import group_norm
    >>> params, _ = group_norm(2).init(jax.random.key(0), (2, 2))
    >>> group_norm(2).apply(params, jnp.array([[[1.0, 5.0], [3.0, 5.0]]])).round(3).tolist()
    [[[-1.0, 0.0], [1.0, 0.0]]]
    """
    check_count("group_norm", "groups", groups)
    epsilon = check_epsilon("group_norm", epsilon)

    def split(x):
        return x.reshape(len(x), -1, groups, x.shape[-1] // groups)

    def mean(x):
        # Over the places first, whose sums run along the memory.
        return jnp.mean(jnp.mean(x, axis=1, keepdims=True), axis=3, keepdims=True)

    def normalised(x):
        def run(x):
            parts = split(x)
            parts = parts - parts[:, :1, :, :1]
            parts = parts - mean(parts)
            inverse = lax.rsqrt(mean(parts * parts) + epsilon)
            return (parts * inverse).reshape(x.shape), inverse

        return by_example(run, x)

    def transported(g, scale, x, inverse, delta):
        def run(g, x, inverse):
            shape, g, x = g.shape, split(g), split(x)
            return (inverse * (g - mean(g) - x * mean(g * x))).reshape(shape)

        return by_example(run, g, x, inverse)

    layer = _norm("group_norm", bias, normalised, transported)

    def divided(shape):
        if not shape or shape[-1] % groups:
            raise LayerError(
                "group_norm",
                f"groups is {groups}, a divisor of the channels is due; one example is {shape}",
            )

    def init(key, shape):
        divided(float_shape("group_norm", shape))
        return layer.init(key, shape)

    def forward(params, x, key=None):
        divided(jnp.shape(x)[1:])
        return layer.forward(params, x, key)

    return layer._replace(init=init, forward=forward)


def _mean(n: int) -> Callable[[jax.Array], jax.Array]:
    return lambda x: weighted(x, jnp.full(n, 1 / n, x.dtype))


def _norm(name: str, bias: bool, normalised: Any, transported: Any) -> Layer:
    """y = γ ⊙ x̂ + b around ``normalised(x) -> x̂, 1/σ`` and the transport through it."""
    site = scale_site(name, bias)

    def forward(params, x, key=None):
        check_norm(name, params, x, bias)
        normal, inverse = normalised(accumulated(x))
        y = normal * accumulated(params["scale"])
        y = y + accumulated(params["b"]) if bias else y
        return y.astype(x.dtype), (normal.astype(x.dtype), inverse)

    def backward(weights, residuals, delta, statistic=gradient):
        normal, inverse = residuals
        wide, scale, x = accumulated((delta, weights["scale"], normal))
        delta_x = transported(wide * scale, scale, x, inverse, wide)
        delta_x = matched(delta_x.astype(delta.dtype), Varying.of(normal))
        return delta_x, statistic(site, normal, delta)

    return Layer(norm_init(name, bias), forward, backward, name)


# --------------------------------------------------------------- shared with batch_norm


def scale_site(name: str, bias: bool, mixes: bool = False) -> Site:
    """The site of γ and b, its inputs x̂."""

    def gradients(normal, delta):
        product = total(accumulated(normal) * accumulated(delta))
        grads = {"scale": product.astype(delta.dtype)}
        return grads | {"b": total(delta)} if bias else grads

    return Site(name, gradients, mixes=mixes)


def norm_init(name: str, bias: bool) -> Callable[..., Any]:
    def init(key, shape):
        due = "one example's shape (..., n > 0)"
        shape = float_shape(name, shape, due)
        if not shape:
            raise LayerError(name, f"shape is {shape}, {due} is due")
        params = {"scale": jnp.ones(shape[-1])}
        return params | {"b": jnp.zeros(shape[-1])} if bias else params, shape

    return init


def check_epsilon(name: str, epsilon: Any) -> float:
    return check_number(name, "epsilon", epsilon, above=0)


def check_norm(name: str, params: Any, x: Any, bias: bool) -> None:
    names = {"scale"} | ({"b"} if bias else set())
    if not isinstance(params, dict) or set(params) != names:
        came = sorted(params) if isinstance(params, dict) else f"a {type(params).__name__}"
        raise LayerError(name, f"params is {came}, a dict of {sorted(names)} is due")
    check_float(name, x)
    if x.ndim < 2:
        raise LayerError(
            name, f"x has shape {x.shape}, a batch (B, ..., n) is due; for one example use x[None]"
        )
    for label, leaf in sorted(params.items()):
        if leaf.shape != x.shape[-1:]:
            raise LayerError(
                name,
                f"x has {x.shape[-1]} features, {label} is {leaf.shape}; check the shape "
                "given to init",
            )
        if leaf.dtype != x.dtype:
            raise LayerError(
                name, f"x is {x.dtype}, {label} is {leaf.dtype}; cast one of them to the other"
            )
