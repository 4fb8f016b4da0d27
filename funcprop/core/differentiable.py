"""The hand-written derivative for jax.grad."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from .checks import as_layer, delta_of
from .contraction import Varying, matched
from .layer import Layer
from .site import gradient

Tree = Any


def differentiable(layer: Layer) -> Callable[..., Tree]:
    """The layer as a function whose derivative under ``jax.grad`` is the hand-written one.

    Args:
        layer: any layer.

    Returns:
        ``f(params, x, key=None) -> y``, a ``jax.custom_vjp`` function.  It can be differentiated
        again, in both modes: ``jax.hessian`` and ``jax.jvp`` of ``jax.grad`` take the derivative
        of the hand-written backward pass.  As every such function it refuses forward mode by
        itself (``jax.jvp``, ``jax.jacfwd``, ``jax.linearize`` of f): use ``layer.apply`` there.

    Raises:
        LayerError: when ``layer`` is no Layer.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import dense, differentiable, tanh
    >>> layer = dense(3, tanh)
    >>> params, _ = layer.init(jax.random.key(0), (4,))
    >>> f = differentiable(layer)
    >>> jax.tree.map(jnp.shape, jax.grad(lambda p: f(p, jnp.ones((2, 4))).sum())(params))
    {'b': (3,), 'w': (3, 4)}
    """
    layer = as_layer(layer, "differentiable")

    @jax.custom_vjp
    def apply(params, x, key=None):
        return layer.apply(params, x, key)

    def forward(params, x, key=None):
        y, residuals = layer.forward(params, x, key)
        return y, (params, residuals, Varying.of(params), Varying.of(x))

    def backward(saved, cotangent):
        params, residuals, params_varying, x_varying = saved
        delta_x, grads = layer.backward(params, residuals, delta_of(cotangent), gradient)
        return matched(grads, params_varying), matched(delta_x, x_varying), None

    apply.defvjp(forward, backward)
    return apply
