"""Rotary positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import LayerError, check_float, check_number
from ..core.contraction import accumulated, by_example
from ..core.layer import Layer, float_shape
from ..core.site import gradient


def rotary(base: float = 10000.0) -> Layer:
    """Pairs of features turned by an angle that grows with the position (Su 2021,
    arXiv 2104.09864, equation 34).

        forward     (y₂ᵢ, y₂ᵢ₊₁) = R(t ω) (x₂ᵢ, x₂ᵢ₊₁)      ω = base^(-2i/d)
        transport   δx: the same with the angles -t ω

    x, y, δ (B, T, ..., d) with an even d; R(φ) turns by φ, t counts from 0.  Queries and keys
    turned so have products that depend on the distance of their positions alone.

    Args:
        base: the longest wavelength is 2π base.

    Raises:
        LayerError: when base is not above 0, or x is no sequence of an even number of features.

    >>> import jax.numpy as jnp
    >>> from funcprop import rotary
    >>> rotary().apply((), jnp.array([[[1.0, 0.0], [1.0, 0.0]]])).round(3).tolist()[0][0]
    [1.0, 0.0]
    """
    base = check_base("rotary", base)

    def init(key, shape):
        due = "(T, ..., d) with an even d"
        shape = float_shape("rotary", shape, due)
        if len(shape) < 2 or shape[-1] % 2:
            raise LayerError("rotary", f"shape is {shape}, {due} is due")
        return (), shape

    def forward(params, x, key=None):
        check_float("rotary", x)
        if x.ndim < 3 or x.shape[-1] % 2:
            raise LayerError("rotary", f"x is {x.shape}, (B, T, ..., d) with an even d is due")
        return turned(x, base), None

    def backward(weights, residuals, delta, statistic=gradient):
        return turned(delta, base, -1.0), ()

    return Layer(init, forward, backward, "rotary")


def turned(x: jax.Array, base: float, sign: float = 1.0) -> jax.Array:
    """x (B, T, ..., d) with its pairs turned by ``sign`` times their angles."""
    _, time, *between, features = x.shape
    angles = np.outer(np.arange(time), base ** (-np.arange(0, features, 2) / features))
    angles = angles.reshape(time, *[1] * len(between), features // 2)

    def run(x):
        pairs = accumulated(x).reshape(*x.shape[:-1], features // 2, 2)
        cos, sin = (jnp.asarray(f(angles), pairs.dtype) for f in (np.cos, np.sin))
        even, odd = pairs[..., 0], pairs[..., 1]
        pairs = [even * cos - sign * odd * sin, odd * cos + sign * even * sin]
        return jnp.stack(pairs, axis=-1).reshape(x.shape).astype(x.dtype)

    return by_example(run, x)


def check_base(layer: str, base: object) -> float:
    return check_number(layer, "base", base, above=0)
