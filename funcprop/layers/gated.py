"""Gated feed-forward layers."""

from __future__ import annotations

import functools
from typing import Any

import jax

from ..core.checks import LayerError, check_count, position
from ..core.layer import Layer, float_shape
from ..core.site import gradient
from .activations import gelu, sigmoid, silu
from .dense import affine
from .initializers import he_normal


def glu(hidden: int, *, bias: bool = True, w_init: Any = he_normal) -> Layer:
    """Gated feed-forward layer with a sigmoid gate (Dauphin 2017; Shazeer 2020, arXiv 2002.05202).

        forward     (g, u) = x Wᵀ + b      h  = σ(g) ⊙ u       y  = h Vᵀ + c
        transport   δh = δ V               δu = δh ⊙ σ(g)      δg = δh ⊙ u ⊙ σ′(g)
                    δx = (δg, δu) W
        gradient    δW = Σ (δg, δu)ᵀ x     δV = Σ δᵀ h         δb = Σ (δg, δu)      δc = Σ δ

    x, y, δ (B, ..., n), W (2 hidden, n) with the gate's rows first ("in"), V (n, hidden) ("out").

    Args:
        hidden: how many gated features.
        bias: whether there are b and c.
        w_init: initialises W and V, as of :func:`affine`.

    Raises:
        LayerError: when x and the parameters do not fit together.

    >>> import jax
    >>> from funcprop import glu
    >>> params, out_shape = glu(8).init(jax.random.key(0), (3,))
    >>> params["in"]["w"].shape, params["out"]["w"].shape, out_shape
    ((16, 3), (3, 8), (3,))
    """
    return _gated("glu", sigmoid, hidden, bias, w_init)


def swiglu(hidden: int, *, bias: bool = True, w_init: Any = he_normal) -> Layer:
    """:func:`glu` with σ(g) = g sigmoid(g) (Shazeer 2020, arXiv 2002.05202, equation 6).

    >>> import jax
    >>> from funcprop import swiglu
    >>> swiglu(8).init(jax.random.key(0), (3,))[1]
    (3,)
    """
    return _gated("swiglu", silu, hidden, bias, w_init)


def geglu(hidden: int, *, bias: bool = True, w_init: Any = he_normal) -> Layer:
    """:func:`glu` with σ = gelu (Shazeer 2020, arXiv 2002.05202, equation 6).

    >>> import jax
    >>> from funcprop import geglu
    >>> geglu(8).init(jax.random.key(0), (3,))[1]
    (3,)
    """
    return _gated("geglu", gelu, hidden, bias, w_init)


def _gated(name: str, activation: Layer, hidden: int, bias: bool, w_init: Any) -> Layer:
    check_count(name, "hidden", hidden)
    widen = affine(2 * hidden, bias=bias, w_init=w_init)

    @functools.cache
    def narrow(features):
        return affine(features, bias=bias, w_init=w_init)

    def init(key, shape):
        due = "one example's shape (..., n > 0)"
        shape = float_shape(name, shape, due)
        if not shape:
            raise LayerError(name, f"shape is {shape}, {due} is due")
        first, second = jax.random.split(key)
        with position(name):
            params, wide = widen.init(first, shape)
            out, out_shape = narrow(shape[-1]).init(second, (*wide[:-1], hidden))
        return {"in": params, "out": out}, out_shape

    def forward(params, x, key=None):
        if not isinstance(params, dict) or set(params) != {"in", "out"}:
            raise LayerError(name, "params is not a dict of ['in', 'out']")
        with position(name):
            both, kept = widen.forward(params["in"], x)
            gate, up = both[..., :hidden], both[..., hidden:]
            gate, kept_gate = activation.forward((), gate)
            y, h = narrow(x.shape[-1]).forward(params["out"], gate * up)
        return y, (kept, kept_gate, gate, up, h)

    def backward(weights, residuals, delta, statistic=gradient):
        kept, kept_gate, gate, up, h = residuals
        delta_h, out = narrow(delta.shape[-1]).backward(weights["out"], h, delta, statistic)
        delta_gate, _ = activation.backward((), kept_gate, delta_h * up)
        both = jax.numpy.concatenate([delta_gate, delta_h * gate], axis=-1)
        delta_x, tree = widen.backward(weights["in"], kept, both, statistic)
        return delta_x, {"in": tree, "out": out}

    return Layer(init, forward, backward, name)
