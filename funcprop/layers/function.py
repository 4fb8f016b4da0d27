"""Any JAX function as a layer, for prototypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import cotangent_of, delta_of
from ..core.layer import Layer, example_batch, stateless
from ..core.site import Site, gradient


def function(
    f: Callable[[Any, Any], Any],
    init: Callable[..., Any] = stateless,
    *,
    mixes: bool = False,
    name: str | None = None,
) -> Layer:
    """A layer made of a JAX function, its backward pass taken from ``jax.vjp``.

        forward     y  = f(θ, x)
        transport   δx = δ ∂f/∂x at (weights, x)
        gradient    δθ = δ ∂f/∂θ at (θ, x)

    x, y with a leading batch axis.  For prototypes: the backward pass is autodiff's, and runs
    ``f`` twice more.

    Args:
        f: ``f(params, x) -> y``, without random numbers.
        init: ``init(key, shape)`` as of any layer; by default there are no parameters and the
            shape is kept.
        mixes: whether f mixes the examples of a batch (as batch norm does).
        name: what errors and summaries call it; by default the name of ``f``.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import function
    >>> scale = function(lambda s, x: s * x, lambda key, shape: (jnp.array(2.0), shape))
    >>> params, _ = scale.init(jax.random.key(0), (3,))
    >>> y, residuals = scale.forward(params, jnp.ones((4, 3)))
    >>> delta_x, grad = scale.backward(params, residuals, jnp.ones((4, 3)))
    >>> delta_x[0].tolist(), float(grad)
    ([2.0, 2.0, 2.0], 12.0)
    """
    label = name or str(getattr(f, "__name__", "function"))

    def gradients(inputs, delta):
        copies, x = inputs
        params = jax.tree.map(lambda leaf: leaf[0], copies)
        y, pullback = jax.vjp(lambda p: f(p, x), params)
        return pullback(cotangent_of(y, delta))[0]

    site = Site(label, gradients, mixes=mixes)

    def whole_init(key, shape):
        params, out_shape = init(key, shape)
        if init is stateless:
            out = jax.eval_shape(lambda: f(params, example_batch(shape)))
            out_shape = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), out)
        return params, out_shape

    def forward(params, x, key=None):
        return f(params, x), (params, x)

    def backward(weights, residuals, delta, statistic=gradient):
        params, x = residuals
        y, pullback = jax.vjp(lambda x: f(weights, x), x)
        delta_x = delta_of(pullback(cotangent_of(y, delta))[0])
        if not jax.tree.leaves(params):
            return delta_x, params
        # The site's input needs a batch axis on every leaf, the parameters too: a statistic may
        # vmap over it.  XLA never forms the copies.
        size = len(jax.tree.leaves(x)[0])
        copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (size, *leaf.shape)), params)
        return delta_x, statistic(site, (copies, x), delta)

    return Layer(whole_init, forward, backward, label)
