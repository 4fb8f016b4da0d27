"""The dense layer, y = σ(x Wᵀ + b)."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ..core import contraction
from ..core.checks import LayerError, as_layer, check_affine, check_features
from ..core.layer import Layer, float_shape, identity
from ..core.site import Site, gradient
from .initializers import he_normal, zeros


def affine(
    features: int, *, bias: bool = True, w_init: Any = he_normal, b_init: Any = zeros
) -> Layer:
    """Affine map of the last axis.

        forward     y  = x Wᵀ + b
        transport   δx = δ W
        gradient    δW = Σ δᵀ x      δb = Σ δ

    x (B, ..., n), W (m, n), b (m,), δ (B, ..., m); Σ runs over all leading axes.

    Args:
        features: m, the size of the last axis of y.
        bias: whether there is a b.
        w_init: ``w_init(key, (m, n)) -> W``; by default normal with variance 2/n (He 2015,
            arXiv 1502.01852).
        b_init: ``b_init(key, (m,)) -> b``; by default zeros.

    Raises:
        LayerError: while tracing, when x, W and b do not fit together in shape or dtype.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import affine
    >>> layer = affine(2, w_init=jax.nn.initializers.ones)
    >>> params, out_shape = layer.init(jax.random.key(0), (3,))
    >>> layer.apply(params, jnp.array([[1.0, 2.0, 3.0]])).tolist()
    [[6.0, 6.0]]
    """
    check_features("dense", features)

    def gradients(x, delta):
        grads = {"w": contraction.outer(delta, x)}
        return grads | {"b": contraction.total(delta)} if bias else grads

    def rows(x, delta):
        return x.reshape(len(x), -1, x.shape[-1]), delta.reshape(len(x), -1, features)

    site = Site("dense", gradients, rows)

    def init(key, shape):
        due = "one example's shape (..., n > 0)"
        shape = float_shape("dense", shape, due)
        if not shape:
            raise LayerError("dense", f"shape is {shape}, {due} is due")
        w_key, b_key = jax.random.split(key)
        params = {"w": w_init(w_key, (features, shape[-1]))}
        if bias:
            params["b"] = b_init(b_key, (features,))
        return params, (*shape[:-1], features)

    def forward(params, x, key=None):
        check_affine("dense", params, x, features, bias)
        z = contraction.affine_map(x, params["w"])
        return z + params["b"] if bias else z, x

    def backward(weights, x, delta, statistic=gradient):
        return contraction.transport(delta, weights["w"], like=x), statistic(site, x, delta)

    return Layer(init, forward, backward, "dense")


def dense(
    features: int,
    activation: Layer = identity,
    *,
    bias: bool = True,
    w_init: Any = he_normal,
    b_init: Any = zeros,
) -> Layer:
    """Dense layer: an affine map with an activation on top, h = σ(W h + b).

        forward     z  = x Wᵀ + b          y  = σ(z)
        transport   δz = δ ⊙ σ′(z)         δx = δz W
        gradient    δW = Σ δzᵀ x           δb = Σ δz

    x (B, ..., n), W (m, n), b (m,), y and δ (B, ..., m); Σ runs over all leading axes.  The value
    of σ′ at a kink is the activation's.

    Args:
        features: m, the size of the last axis of y.
        activation: any layer without parameters that keeps its input's shape.
        bias: whether there is a b.
        w_init: ``w_init(key, (m, n)) -> W``; by default normal with variance 2/n (He 2015).
        b_init: ``b_init(key, (m,)) -> b``; by default zeros.

    Raises:
        LayerError: when ``activation`` is no Layer, or x, W and b do not fit together.

    >>> import jax
    >>> from funcprop import dense, relu
    >>> params, out_shape = dense(3, relu).init(jax.random.key(0), (4,))
    >>> params["w"].shape, params["b"].shape, out_shape
    ((3, 4), (3,), (3,))
    """
    if isinstance(activation, (int, np.integer)):
        raise LayerError(
            "dense",
            f"two sizes are given, {features} and {activation}; write dense({activation}), the "
            "number of outputs alone: that of the inputs is given to init",
        )
    activation = as_layer(activation, "dense")
    linear = affine(features, bias=bias, w_init=w_init, b_init=b_init)

    def init(key, shape):
        params, out_shape = linear.init(key, shape)
        own, kept_shape = activation.init(key, out_shape)
        if jax.tree.leaves(own) or kept_shape != out_shape:
            raise LayerError(
                "dense",
                f"its activation {activation.name} has parameters or changes the shape; put it "
                f"behind the layer: serial(dense({features}), {activation.name})",
            )
        return params, out_shape

    def forward(params, x, key=None):
        z, x = linear.forward(params, x)
        y, residuals = activation.forward((), z, key)
        return y, (x, residuals)

    def backward(weights, residuals, delta, statistic=gradient):
        x, residuals = residuals
        delta_z, _ = activation.backward((), residuals, delta)
        return linear.backward(weights, x, delta_z, statistic)

    return Layer(init, forward, backward, "dense")
