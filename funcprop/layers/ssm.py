"""The linear recurrent unit, a state-space layer."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from ..core.checks import LayerError, check_count, position
from ..core.contraction import Varying, accumulated, matched, total
from ..core.layer import Layer
from ..core.site import Site, gradient
from .dense import affine
from .diagonal import diagonal_recurrence, entries_with_state, shape_with_state

lecun_normal = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
normal = jax.nn.initializers.normal(1.0)


def ssm(
    states: int,
    *,
    radius: tuple[float, float] = (0.9, 0.999),
    phase: float = 2 * math.pi,
    state: bool = False,
    parallel: bool = True,
) -> Layer:
    """State-space layer, the linear recurrent unit (Orvieto 2023, arXiv 2303.06349, equation 5).

        forward     u  = B x        h = recurrence(u)           y  = Re(C h) + D ⊙ x
        transport   δh = C̄ᵀ δ       δu through the recurrence   δx = Re(B̄ᵀ δu) + D ⊙ δ
        gradient    δC, δB: δW = Σ δᵀ input of a real matrix    δD = Σ δ ⊙ x

    x, y, δ (B, T, n), u and h N complex numbers a step, see :func:`diagonal_recurrence`; D (n,).
    B and C are real matrices of :func:`affine`: "in" (2 N, n) holds Re B above Im B, "out"
    (n, 2 N) Re C beside -Im C.  The diagonal form goes back to Gu 2022, arXiv 2206.11893.

    Args:
        states: N, how many complex numbers h has.
        radius, phase, state, parallel: as of :func:`diagonal_recurrence`.

    Raises:
        LayerError: as there, and for ``states`` that are no number above 0.

    >>> import jax
    >>> from funcprop import ssm
    >>> params, out_shape = ssm(8).init(jax.random.key(0), (100, 3))
    >>> params["in"]["w"].shape, params["recurrence"]["nu"].shape, params["out"]["w"].shape
    ((16, 3), (8,), (3, 16))
    """
    name = "ssm"
    check_count(name, "states", states)
    widen = affine(2 * states, bias=False, w_init=lecun_normal)
    recurrence = diagonal_recurrence(radius=radius, phase=phase, state=state, parallel=parallel)
    skip = Site(name, lambda x, delta: {"d": _product(x, delta)})

    @functools.cache
    def narrow(features):
        return affine(features, bias=False, w_init=lecun_normal)

    def init(key, shape):
        own = shape_with_state(name, shape, state)
        keys = jax.random.split(key, 4)
        params = {"in": widen.init(keys[0], own)[0]}
        wide = (own[0], 2 * states)
        given = (jax.ShapeDtypeStruct(wide, shape[0].dtype), shape[1]) if state else wide
        params["recurrence"] = recurrence.init(keys[1], given)[0]
        params["out"] = narrow(own[1]).init(keys[2], wide)[0]
        params["skip"] = {"d": normal(keys[3], (own[1],))}
        return params, tuple(shape) if state else own

    def forward(params, x, key=None):
        x, start = entries_with_state(name, x, state)
        names = ["in", "out", "recurrence", "skip"]
        if not isinstance(params, dict) or sorted(params) != names:
            raise LayerError(name, f"params is not a dict of {names}")
        if getattr(x, "ndim", 0) != 3 or not x.shape[1]:
            raise LayerError(name, f"x is {jnp.shape(x)}, sequences (B, T > 0, n) are due")
        d = params["skip"]["d"]
        if d.shape != x.shape[-1:] or d.dtype != jnp.result_type(x):
            due = f"{x.dtype}{list(x.shape[-1:])}"
            raise LayerError(name, f"d is {d.dtype}{list(d.shape)}, {due} is due, one a feature")
        with position(name):
            u, _ = widen.forward(params["in"], x)
            given = (u, start) if state else u
            h, kept = recurrence.forward(params["recurrence"], given)
            h, *last = h if state else (h,)
            y, _ = narrow(x.shape[-1]).forward(params["out"], h)
        y = y + d * x
        return (y, *last) if state else y, (x, h, kept)

    def backward(weights, residuals, delta, statistic=gradient):
        x, h, kept = residuals
        delta, *last = delta if state else (delta,)
        delta_h, out = narrow(x.shape[-1]).backward(weights["out"], h, delta, statistic)
        given = (delta_h, *last) if state else delta_h
        delta_u, tree = recurrence.backward(weights["recurrence"], kept, given, statistic)
        delta_u, *start = delta_u if state else (delta_u,)
        delta_x, into = widen.backward(weights["in"], x, delta_u, statistic)
        delta_x = delta_x + matched(weights["skip"]["d"] * delta, Varying.of(x))
        own = {"in": into, "recurrence": tree, "out": out, "skip": statistic(skip, x, delta)}
        return (delta_x, *start) if state else delta_x, own

    return Layer(init, forward, backward, name)


def _product(x: jax.Array, delta: jax.Array) -> jax.Array:
    return total(accumulated(x) * accumulated(delta)).astype(delta.dtype)
