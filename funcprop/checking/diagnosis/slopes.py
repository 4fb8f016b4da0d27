"""Slopes that are mistaken for one another: derivatives of known functions, at z and at y."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Slope = Callable[[Any, Any, Callable], Any]


def _of(f: Callable, at_output: bool = False) -> Slope:
    def slope(z, y, own):
        at = y if at_output else z
        return jax.jvp(f, (at,), (jnp.ones_like(at),))[1]

    return slope


FUNCTIONS: dict[str, Callable] = {
    "relu": lambda z: jnp.maximum(z, 0),
    "leaky relu of slope .01": lambda z: jnp.where(z > 0, z, 0.01 * z),
    "leaky relu of slope .1": lambda z: jnp.where(z > 0, z, 0.1 * z),
    "leaky relu of slope .2": lambda z: jnp.where(z > 0, z, 0.2 * z),
    "relu6": lambda z: jnp.clip(z, 0, 6),
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "gelu, exact": lambda z: jax.nn.gelu(z, approximate=False),
    "gelu by tanh": lambda z: jax.nn.gelu(z, approximate=True),
    "gelu by sigmoid": lambda z: z * jax.nn.sigmoid(1.702 * z),
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "hard tanh": lambda z: jnp.clip(z, -1, 1),
    "hard sigmoid": jax.nn.hard_sigmoid,
    "erf": jax.scipy.special.erf,
    "arctan": jnp.arctan,
    "sine": jnp.sin,
    "cosine": jnp.cos,
    "exp": jnp.exp,
    "log": jnp.log,
    "square": jnp.square,
    "cube": lambda z: z**3,
    "square root": jnp.sqrt,
    "reciprocal": lambda z: 1 / z,
    "reciprocal square root": jax.lax.rsqrt,
    "absolute value": jnp.abs,
}

SQUASHING = ("tanh", "sigmoid", "softplus", "relu")
OWN = 16  # so many of them are made of the function itself

# name of the mistake -> its slope, a function of z, y = f(z) and f′.
SLOPES: dict[str, Slope] = {
    "1, the derivative left out": lambda z, y, own: jnp.ones_like(z),
    "its own derivative, taken at the output": lambda z, y, own: own(y),
    "its own derivative, taken at its derivative": lambda z, y, own: own(own(z)),
    "its own derivative, squared": lambda z, y, own: own(z) ** 2,
    "its own derivative, reciprocal": lambda z, y, own: 1 / own(z),
    "its own derivative, under a root": lambda z, y, own: jnp.sqrt(own(z)),
    "the value in the place of the derivative": lambda z, y, own: y,
    "the input in the place of the derivative": lambda z, y, own: z,
    "the value plus 1": lambda z, y, own: y + 1,
    "1 - z², the tanh's formula with z for y": lambda z, y, own: 1 - z * z,
    "1 - y²": lambda z, y, own: 1 - y * y,
    "y²": lambda z, y, own: y * y,
    "1 - y": lambda z, y, own: 1 - y,
    "z (1 - z), the sigmoid's formula with z for y": lambda z, y, own: z * (1 - z),
    "y (1 - y)": lambda z, y, own: y * (1 - y),
    "the value below 0, and 1 above": lambda z, y, own: jnp.where(z > 0, 1.0, y),
    "tanh itself": lambda z, y, own: jnp.tanh(z),
    "sigmoid itself": lambda z, y, own: jax.nn.sigmoid(z),
    "sigmoid of -z": lambda z, y, own: jax.nn.sigmoid(-z),
    **{f"that of {name}": _of(f) for name, f in FUNCTIONS.items()},
    **{f"that of {n}, taken at the output": _of(FUNCTIONS[n], True) for n in SQUASHING},
}
