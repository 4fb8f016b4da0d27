"""Mixture of experts: every token goes through a few of many feed-forward layers."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..contraction import Varying, accumulated, by_example, matched
from ..layer import (
    Layer,
    LayerError,
    Site,
    as_layer,
    check_count,
    check_float,
    gradient,
    is_shape,
    position,
)
from .activations import relu
from .dense import affine, he_normal
from .routing import gradients, mapped, one_hot, transported

zeros = jax.nn.initializers.zeros


def mixture_of_experts(
    experts: int,
    hidden: int,
    *,
    chosen: int = 2,
    activation: Layer = relu,
    gated: bool = False,
    w_init: Any = he_normal,
) -> Layer:
    """Mixture of experts, each token through the few that a router chooses (Shazeer 2017).

        forward     s  = x Rᵀ      e₁ ... e_k: the k largest of s      g = softmax of these k
                    z_j = W_e_j x + b_e_j      h_j = σ(z_j)      o_j = V_e_j h_j + c_e_j
                    y  = Σ_j g_j o_j           balance = E Σ_e f_e P_e
        transport   δo_j = g_j δ      δh_j = δo_j V_e_j      δz_j = δh_j ⊙ σ′(z_j)
                    δg_j = δ · o_j    δs by the gates of the chosen, and by P = softmax(s)
                    δx = δs R + Σ_j δz_j W_e_j
        gradient    δR = Σ δsᵀ x      δV_e = Σ δo_jᵀ h_j, δW_e = Σ δz_jᵀ x over the j with e_j = e

    x, y, δ (B, ..., n), R (E, n), W (E, m, n), V (E, n, m).  The output is (y, balance), the input
    x, or (x, balance) of layers before, to which this one's is added.  balance (B,) measures how
    unevenly an example's tokens are spread: P_e is the mean over them of softmax(s)_e, f_e the part
    of all their choices that fell on e, which has no derivative; 1 is even, E the worst (Fedus
    2021, arXiv 2101.03961, equations 4 to 6).  :func:`~funcprop.auxiliary` adds it to a loss.

    The gates are those of Jiang 2024, arXiv 2401.04088; at a tie the first expert is chosen, as
    by ``jax.lax.top_k``.  No token is dropped (Gale 2022, arXiv 2211.15841): the chosen pairs of
    token and expert are put in order of their experts, in blocks of one expert each, and only
    these are computed.

    Args:
        experts: E, how many there are.
        hidden: m, the width of each.
        chosen: k, how many each token goes through.
        activation: σ, a layer without parameters.
        gated: whether z has two halves and h = σ(first) ⊙ second, as in ``swiglu`` with ``silu``.
        w_init: ``w_init(key, (m, n)) -> W`` of one expert, and so for V and R.

    Raises:
        LayerError: for options that make no sense, and while tracing when the input does not fit.

    >>> import jax
    >>> from funcprop import mixture_of_experts
    >>> params, out_shape = mixture_of_experts(8, 16).init(jax.random.key(0), (10, 4))
    >>> params["router"]["w"].shape, params["up"]["w"].shape, params["down"]["w"].shape
    ((8, 4), (8, 16, 4), (8, 4, 16))
    >>> [leaf.shape for leaf in out_shape]
    [(10, 4), ()]
    """
    name = "mixture_of_experts"
    for label, value in (("experts", experts), ("hidden", hidden), ("chosen", chosen)):
        check_count(name, label, value)
    if chosen > experts:
        raise LayerError(name, f"chosen is {chosen}, at most the {experts} experts are due")
    activation = as_layer(activation, name)
    router = affine(experts, bias=False, w_init=w_init)
    by_expert = functools.partial(gradients, experts)
    up_site, down_site = Site(f"{name} up", by_expert), Site(f"{name} down", by_expert)
    wide = 2 * hidden if gated else hidden

    def init(key, shape):
        single = is_shape(shape)
        own = tuple(shape) if single else tuple(shape[0].shape)
        if not own or own[-1] < 1 or not (single or (len(shape) == 2 and shape[1].shape == ())):
            raise LayerError(
                name, f"shape is {shape}, (..., n > 0) is due, or that with a balance ()"
            )
        n = own[-1]
        if jax.tree.leaves(activation.init(key, (hidden,))[0]):
            raise LayerError(name, f"its activation {activation.name} has parameters, none is due")
        keys = jax.random.split(key, 3)

        def expert(key, shape):
            w = jax.vmap(lambda key: w_init(key, shape))(jax.random.split(key, experts))
            return {"w": w, "b": zeros(key, (experts, shape[0]))}

        params = {
            "router": router.init(keys[0], own)[0],
            "up": expert(keys[1], (wide, n)),
            "down": expert(keys[2], (n, hidden)),
        }
        dtype = params["up"]["w"].dtype if single else shape[0].dtype
        return params, (jax.ShapeDtypeStruct(own, dtype), jax.ShapeDtypeStruct((), dtype))

    def activated(z):
        if not gated:
            return activation.forward((), z)
        first, kept = activation.forward((), z[..., :hidden])
        return first * z[..., hidden:], (kept, first, z[..., hidden:])

    def before_activation(kept, delta):
        if not gated:
            return activation.backward((), kept, delta)[0]
        kept, first, second = kept
        delta_first, _ = activation.backward((), kept, delta * second)
        return jnp.concatenate([delta_first, delta * first], axis=-1)

    def forward(params, x, key=None):
        x, *balance = x if isinstance(x, tuple) else (x,)
        _check(name, params, x, balance, (experts, wide, hidden))
        tokens = x.reshape(len(x), -1, x.shape[-1])
        with position(name):
            s, _ = router.forward(params["router"], tokens)
        p = jax.nn.softmax(accumulated(s), axis=-1)
        top, ids = by_example(lambda s: lax.top_k(s, chosen), s)
        g = jax.nn.softmax(accumulated(top), axis=-1)
        z = by_example(mapped, tokens, ids, params["up"])
        h, kept = activated(z)
        o = by_example(mapped, h, ids, params["down"])
        y = jnp.sum(g[..., None] * accumulated(o), axis=-2).astype(x.dtype).reshape(x.shape)
        f = jnp.mean(one_hot(ids, experts, p.dtype), axis=(1, 2))
        uneven = experts * jnp.sum(f * jnp.mean(p, axis=1), axis=-1)
        uneven = sum(balance, start=uneven.astype(x.dtype))
        return (y, uneven), (tokens, p, ids, g, kept, h, o, f, _Input(x.shape, bool(balance)))

    def backward(weights, residuals, delta, statistic=gradient):
        x, p, ids, g, kept, h, o, f, given = residuals
        delta, delta_balance = delta
        wide = accumulated(delta.reshape(x.shape))[..., None, :]
        delta_o = (g[..., None] * wide).astype(x.dtype)
        delta_h = by_example(transported, delta_o, ids, weights["down"]["w"])
        delta_z = before_activation(kept, delta_h)
        delta_x = by_example(transported, delta_z, ids, weights["up"]["w"])
        delta_x = jnp.sum(accumulated(delta_x), axis=-2).astype(x.dtype)

        delta_g = jnp.sum(wide * accumulated(o), axis=-1)
        delta_s = jnp.sum(
            one_hot(ids, experts, p.dtype) * _through_softmax(g, delta_g)[..., None], axis=-2
        )
        delta_p = accumulated(delta_balance)[:, None, None] * f[:, None] * (experts / x.shape[1])
        delta_s = (delta_s + _through_softmax(p, delta_p)).astype(x.dtype)
        by_router, router_tree = router.backward(weights["router"], x, delta_s, statistic)

        tree = {
            "router": router_tree,
            "up": statistic(up_site, (x, ids), delta_z),
            "down": statistic(down_site, (h, ids), delta_o),
        }
        delta_x = by_router + matched(delta_x, Varying.of(x))
        delta_x = delta_x.reshape(given.shape)
        return (delta_x, delta_balance) if given.with_balance else delta_x, tree

    return Layer(init, forward, backward, name)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Input:
    """What came: a residual that takes no memory."""

    shape: tuple[int, ...]
    with_balance: bool


def _through_softmax(p: jax.Array, delta: jax.Array) -> jax.Array:
    return p * (delta - jnp.sum(p * delta, axis=-1, keepdims=True))


def _check(name: str, params: Any, x: Any, balance: Any, sizes: tuple[int, int, int]) -> None:
    if not isinstance(params, dict) or set(params) != {"router", "up", "down"}:
        raise LayerError(name, "params is not a dict of ['down', 'router', 'up']")
    check_float(name, x)
    if x.ndim < 2 or not x.size:
        raise LayerError(name, f"x is {x.shape}, a batch (B, ..., n) of one token or more is due")
    experts, wide, hidden = sizes
    n = x.shape[-1]
    for label, shape in (("up", (experts, wide, n)), ("down", (experts, n, hidden))):
        w, b = params[label]["w"], params[label]["b"]
        for leaf, due in ((w, shape), (b, shape[:2])):
            if leaf.shape != due or leaf.dtype != x.dtype:
                came = f"{label} holds {leaf.dtype}{list(leaf.shape)}"
                raise LayerError(name, f"{came}, {x.dtype}{list(due)} is due for x {x.shape}")
    if len(balance) > 1:
        raise LayerError(name, f"x is a tuple of {len(balance) + 1}, (x, balance) is due")
    for leaf in balance:
        if jnp.shape(leaf) != x.shape[:1] or jnp.result_type(leaf) != x.dtype:
            came = f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
            raise LayerError(name, f"balance is {came}, {x.dtype}{[len(x)]} is due")
