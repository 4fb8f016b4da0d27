"""The gated recurrent unit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import LayerError
from ..core.contraction import accumulated, affine_map, outer, total, transport
from ..core.layer import Layer
from ..core.site import Site
from .initializers import lecun_normal, orthogonal, zeros
from .recurrent import recurrent
from .recurrent_weights import by_chunks, check_weights, sigmoid, stacked
from .steps import Cell


def gru(
    hidden: int,
    *,
    state: bool = False,
    truncate: int | None = None,
    chunk: int | None = None,
    w_init: Any = lecun_normal,
    u_init: Any = orthogonal,
    b_init: Any = zeros,
) -> Layer:
    """Gated recurrent unit (Cho 2014, arXiv 1406.1078), in PyTorch's form.

        forward     (a_r, a_z, a_n) = x_t Wᵀ + b           (v_r, v_z, v_n) = h_{t-1} Uᵀ + c
                    r = σ(a_r + v_r)    z = σ(a_z + v_z)    n = tanh(a_n + r ⊙ v_n)
                    y_t = h_t = n + z ⊙ (h_{t-1} - n)
        transport   δh_t = δ_t + δh_{t+1} ⊙ z_{t+1} + δv_{t+1} U
                    δa_n = δh ⊙ (1 - z) ⊙ (1 - n²)         δv_n = δa_n ⊙ r
                    δa_z = δh ⊙ (h_{t-1} - n) ⊙ z (1 - z)  δv_z = δa_z
                    δa_r = δa_n ⊙ v_n ⊙ r (1 - r)          δv_r = δa_r
                    δx_t = δa_t W
        gradient    δW = Σ δaᵀ x      δb = Σ δa      δU = Σ δv_tᵀ h_{t-1}      δc = Σ δv

    x (B, T, d), W (3 H, d), U (3 H, H), b and c (3 H,), y and δ (B, T, H); Σ runs over all steps.
    The gates stand in PyTorch's order r, z, n.  The reset gate stands outside of the product with
    U, so a and v have deltas of their own, and W and U are two sites: params are
    ``{"x": {"w": W, "b": b}, "h": {"w": U, "b": c}}``.  Sequences with lengths, the state, and the
    options are those of :func:`lstm`, and the state is h (B, H).

    Args:
        hidden: H, the features of y.
        state, truncate, chunk: as of :func:`lstm`.
        w_init: ``w_init(key, (3 H, d)) -> W``, by default normal with variance 1/d.
        u_init: ``u_init(key, (H, H))``, of each gate; by default orthogonal.
        b_init: ``b_init(key, (3 H,))`` of b and of c, by default zeros.

    Raises:
        LayerError: as :func:`lstm`.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import gru
    >>> params, out_shape = gru(5).init(jax.random.key(0), (7, 3))
    >>> params["x"]["w"].shape, params["h"]["w"].shape, out_shape
    ((15, 3), (15, 5), (7, 5))
    """
    gradients = by_chunks(_gradients, chunk)
    site_x, site_h = (Site(f"gru {of}", gradients, _rows) for of in "xh")

    def init(key, features):
        w_key, b_key, u_key, c_key = jax.random.split(key, 4)
        w, u = w_init(w_key, (3 * hidden, features)), stacked(u_init, u_key, 3, (hidden, hidden))
        b, c = (b_init(k, (3 * hidden,)) for k in (b_key, c_key))
        return {"x": {"w": w, "b": b}, "h": {"w": u, "b": c}}

    def check(params, x):
        if not isinstance(params, dict) or set(params) != {"x", "h"}:
            raise LayerError("gru", "params is no dict of ['h', 'x'], each with w and b")
        for entry, size in (("x", x.shape[-1]), ("h", hidden)):
            due = {"w": (3 * hidden, size), "b": (3 * hidden,)}
            check_weights("gru", params[entry], x, due)

    def step(params, x, state):
        h, into = state[0], params["h"]
        a = affine_map(x, params["x"]["w"]) + params["x"]["b"]
        v = affine_map(h.astype(x.dtype), into["w"]) + into["b"]
        a_r, a_z, a_n = jnp.split(accumulated(a), 3, axis=-1)
        v_r, v_z, v_n = jnp.split(accumulated(v), 3, axis=-1)
        r, z = sigmoid(a_r + v_r), sigmoid(a_z + v_z)
        n = jnp.tanh(a_n + r * v_n)
        return (n + z * (h - n),), tuple(leaf.astype(x.dtype) for leaf in (r, z, n, v_n))

    def back(weights, kept, h, delta):
        delta_h, (r, z, n, v_n) = delta[0], accumulated(kept)
        delta_n = delta_h * (1 - z) * (1 - n * n)
        delta_z = delta_h * (h.astype(n.dtype) - n) * z * (1 - z)
        delta_r = delta_n * v_n * r * (1 - r)
        delta_v = jnp.concatenate([delta_r, delta_z, delta_n * r], axis=-1).astype(h.dtype)
        through = transport(delta_v, weights["h"]["w"], like=delta_v)
        return (delta_h * z + through.astype(z.dtype),), (delta_v, delta_n.astype(h.dtype))

    def sweep(weights, x, h, delta_z, statistic):
        delta_v, delta_n = delta_z
        delta_a = jnp.concatenate([delta_v[..., : 2 * hidden], delta_n], axis=-1)
        tree = {"x": statistic(site_x, x, delta_a), "h": statistic(site_h, h, delta_v)}
        return transport(delta_a, weights["x"]["w"], like=x), tree

    cell = Cell("gru", hidden, 1, (3 * hidden, hidden), init, check, step, back, sweep)
    return recurrent(cell, state, truncate, chunk)


def _gradients(x, delta):
    return {"w": outer(delta, x), "b": total(delta)}


def _rows(x, delta):
    return x, delta
