"""The multilayer perceptron, and its backprop written out.

An MLP of sizes (d₀, d₁, ..., d_L) maps x = h⁽⁰⁾ to y = h⁽ᴸ⁾.  Forward, layer by layer:

    z⁽ˡ⁾ = W⁽ˡ⁾ h⁽ˡ⁻¹⁾ + b⁽ˡ⁾
    h⁽ˡ⁾ = σ(z⁽ˡ⁾)                                     the last layer has no σ

Backward, from the loss's derivative δ⁽ᴸ⁾ = ∂L/∂z⁽ᴸ⁾ down:

    ∂L/∂W⁽ˡ⁾ = δ⁽ˡ⁾ h⁽ˡ⁻¹⁾ᵀ
    ∂L/∂b⁽ˡ⁾ = δ⁽ˡ⁾
    δ⁽ˡ⁻¹⁾ = (W⁽ˡ⁾ᵀ δ⁽ˡ⁾) ⊙ σ′(z⁽ˡ⁻¹⁾)

In code a batch of row vectors stands for h, so that W h becomes x Wᵀ and Wᵀ δ becomes δ W, and
the outer product gets a sum over the batch.  The lines are in :mod:`funcprop.layers.dense`
(``affine``: its three equations) and :mod:`funcprop.layers.activations` (σ and σ′), the walk over
the layers in :func:`funcprop.serial`, the loss's derivative in :mod:`funcprop.losses`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

from .core.checks import LayerError, described
from .core.combinators import serial
from .core.layer import Layer, float_shape
from .core.loss import Loss
from .core.sweep import value_and_backprop
from .layers.activations import relu
from .layers.dense import dense
from .losses.standard import mean_squared_error

Params = tuple[dict[str, jax.Array], ...]
P = ParamSpec("P")
R = TypeVar("R")


def _sizes_as_one(place: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function that says so when its sizes, one tuple at ``place``, are given one by one."""

    def with_check(make: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(make)
        def made(*args: P.args, **options: P.kwargs) -> R:
            if isinstance(next(iter(args[place:]), None), (int, np.integer)):
                sizes = ", ".join(str(n) for n in args[place:] if isinstance(n, (int, np.integer)))
                raise LayerError(
                    "mlp", f"sizes are given one by one; write a tuple, ({sizes}, ...)"
                )
            return make(*args, **options)

        return made

    return with_check


@_sizes_as_one(0)
def mlp(sizes: Sequence[int], activation: Layer = relu) -> Layer:
    """The MLP as a layer: dense layers with an activation between them.

    Args:
        sizes: (d₀, d₁, ..., d_L), the number of inputs, of each hidden layer's units, of outputs.
        activation: σ, any activation layer.

    Returns:
        A layer that takes (B, d₀) to (B, d_L).

    Raises:
        LayerError: when there are fewer than two sizes, or one is not a positive integer.

    >>> from funcprop import mlp, tanh
    >>> model = mlp((10, 20, 5), tanh)
    >>> len(model.parts)
    2
    """
    sizes = _checked(sizes)
    hidden = [dense(size, activation) for size in sizes[1:-1]]
    first, *others = [*hidden, dense(sizes[-1])]

    # In the first layer, and so in all that is rebuilt from the parts.
    def init(key, shape):
        if float_shape("mlp", shape) != sizes[:1]:
            raise LayerError("mlp", f"shape is {shape}, its sizes {sizes} take ({sizes[0]},)")
        return first.init(key, shape)

    return serial(first._replace(init=init), *others)


@_sizes_as_one(1)
def init(key: jax.Array, sizes: Sequence[int]) -> Params:
    """Parameters of an MLP: W⁽ˡ⁾ normal with variance 2/d⁽ˡ⁻¹⁾ (He 2015), b⁽ˡ⁾ = 0.

    Args:
        key: a key of ``jax.random``.
        sizes: (d₀, d₁, ..., d_L).

    Returns:
        A tuple of ``{"w": (d_l, d_{l-1}), "b": (d_l,)}``, one for each layer l = 1 ... L.

    Raises:
        LayerError: when there are fewer than two sizes, or one is not a positive integer.

    >>> import jax, funcprop
    >>> [layer["w"].shape for layer in funcprop.init(jax.random.key(0), (10, 20, 5))]
    [(20, 10), (5, 20)]
    """
    sizes = _checked(sizes)
    return mlp(sizes).init(key, (sizes[0],))[0]


def apply(params: Params, x: jax.Array, activation: Layer = relu) -> jax.Array:
    """The MLP's output.

    Args:
        params: as :func:`init` made them.
        x: (B, d₀).
        activation: σ, any activation layer.

    Returns:
        (B, d_L).

    Raises:
        LayerError: while tracing, when x and params do not fit together.

    >>> import jax, jax.numpy as jnp, funcprop
    >>> params = funcprop.init(jax.random.key(0), (10, 20, 5))
    >>> funcprop.apply(params, jnp.ones((3, 10))).shape
    (3, 5)
    """
    return mlp(_sizes(params), activation).apply(params, jax.numpy.asarray(x))


def backprop(
    params: Params,
    x: jax.Array,
    y: Any,
    loss: Loss = mean_squared_error,
    activation: Layer = relu,
) -> tuple[jax.Array, Params]:
    """The mean loss of a batch and its gradient, by the equations at the top of this page.

    Args:
        params: as :func:`init` made them.
        x: inputs (B, d₀).
        y: targets, as the loss takes them; for ``mean_squared_error`` (B, d_L).
        loss: any loss.
        activation: σ, any activation layer.

    Returns:
        ``(value, grads)``, the gradient shaped like ``params``.

    Raises:
        LayerError: while tracing, when x, y and params do not fit together.

    >>> import jax, jax.numpy as jnp, funcprop
    >>> params = funcprop.init(jax.random.key(0), (10, 20, 5))
    >>> value, grads = funcprop.backprop(params, jnp.ones((3, 10)), jnp.zeros((3, 5)))
    >>> [layer["w"].shape for layer in grads]
    [(20, 10), (5, 20)]
    """
    return value_and_backprop(mlp(_sizes(params), activation), loss)(params, x, y)


def _sizes(params: Params) -> tuple[int, ...]:
    """(d₀, ..., d_L), read off the parameters."""
    if hasattr(params, "dtype") or isinstance(params, Layer):
        came = "a Layer" if isinstance(params, Layer) else described(params)
        raise LayerError("mlp", f"params is {came}; params are what init gives, and come first")
    layers = params if isinstance(params, (tuple, list)) else ()
    if not layers or not all(
        isinstance(p, dict) and getattr(p.get("w"), "ndim", 0) == 2 for p in layers
    ):
        raise LayerError(
            "mlp", 'params must be a tuple of {"w": (m, n), "b": (m,)}, as init makes it'
        )
    return (layers[0]["w"].shape[1], *(layer["w"].shape[0] for layer in layers))


def _checked(sizes: Sequence[int]) -> tuple[int, ...]:
    listed = isinstance(sizes, Sequence) or (isinstance(sizes, np.ndarray) and sizes.ndim == 1)
    if (
        not listed
        or len(sizes) < 2
        or any(isinstance(s, bool) or not isinstance(s, (int, np.integer)) for s in sizes)
        or min(sizes) < 1
    ):
        raise LayerError(
            "mlp",
            f"sizes is {described(sizes)}, it must be two or more positive integers, "
            "(inputs, ..., outputs)",
        )
    return tuple(map(int, sizes))
