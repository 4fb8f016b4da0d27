"""Mixture of experts: every token goes through a few of many feed-forward layers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..core.checks import LayerError, as_layer, check_count, check_float, position
from ..core.contraction import Varying, accumulated, by_example, matched
from ..core.layer import Layer, is_shape
from ..core.site import Site, gradient
from .activations import relu
from .dense import affine
from .initializers import he_normal
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

    x, y, δ (B, ..., n), R (E, n), W (E, m, n), V (E, n, m).  The input is x, (x, mask),
    (x, balance) or (x, mask, balance), the output (y, balance) or (y, mask, balance): mask
    (B, ...) is of booleans, True at the real tokens, and balance (B,) of floats, the sum of those
    of layers before, to which this one's is added.

    balance measures how unevenly the real tokens of an example are spread: P_e is the mean over
    them of softmax(s)_e, f_e the part of all their choices that fell on e, which has no derivative;
    1 is even, E the worst (Fedus 2021, arXiv 2101.03961, equations 4 to 6), and 0 an example
    without a real token.  What is not real goes through its experts as the rest does, but counts
    in no balance.  :func:`~funcprop.auxiliary` adds the balance to a loss.

    Of x (B, n) an example is one token, which says nothing of how tokens are spread: there P and f
    are those of all B together, and each example is given that one balance.  So its sites have
    ``mixes`` set, and as for batch norm the batch is that of the device under ``shard_map``, and a
    micro-batch where there are some; y is each example's own.  As (B, 1, n) each token has a
    balance of its own.

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
    >>> x = jax.random.normal(jax.random.key(1), (2, 10, 4))
    >>> mask = jax.numpy.arange(10) < jax.numpy.array([[7], [10]])
    >>> apply = jax.jit(mixture_of_experts(8, 16).apply)
    >>> y, mask, balance = apply(params, (x, mask))
    >>> bool(jax.numpy.allclose(balance[:1], apply(params, x[:1, :7])[1]))
    True
    """
    name = "mixture_of_experts"
    for label, value in (("experts", experts), ("hidden", hidden), ("chosen", chosen)):
        check_count(name, label, value)
    if chosen > experts:
        raise LayerError(name, f"chosen is {chosen}, at most the {experts} experts are due")
    experts, hidden, chosen = int(experts), int(hidden), int(chosen)
    activation = as_layer(activation, name)
    router = affine(experts, bias=False, w_init=w_init)
    by_expert = functools.partial(gradients, experts)
    up_site, down_site = Site(f"{name} up", by_expert), Site(f"{name} down", by_expert)
    wide = 2 * hidden if gated else hidden

    def init(key, shape):
        single = is_shape(shape) or isinstance(shape, jax.ShapeDtypeStruct)
        x, *beside = (shape,) if single else shape
        own, mask, balance = tuple(getattr(x, "shape", x)), *_entries(name, beside)
        fits = [leaf is None or leaf.shape == s for leaf, s in ((mask, own[:-1]), (balance, ()))]
        if not own or own[-1] < 1 or not all(fits):
            raise LayerError(
                name,
                f"shape is {shape}, (..., n > 0) is due, or that with a mask (...), with a "
                "balance (), or with both",
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
        dtype = getattr(x, "dtype", params["up"]["w"].dtype)
        y, uneven = jax.ShapeDtypeStruct(own, dtype), jax.ShapeDtypeStruct((), dtype)
        return params, (y, uneven) if mask is None else (y, mask, uneven)

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
        x, *beside = x if isinstance(x, tuple) else (x,)
        mask, balance = _entries(name, beside)
        _check(name, params, x, mask, balance, (experts, wide, hidden))
        tokens = jnp.asarray(x).reshape(len(x), -1, x.shape[-1])
        with position(name):
            s, _ = router.forward(params["router"], tokens)
        p = jax.nn.softmax(accumulated(s), axis=-1)
        top, ids = by_example(lambda s: lax.top_k(s, chosen), s)
        g = jax.nn.softmax(accumulated(top), axis=-1)
        z = by_example(mapped, tokens, ids, params["up"])
        h, kept = activated(z)
        o = by_example(mapped, h, ids, params["down"])
        y = jnp.sum(g[..., None] * accumulated(o), axis=-2).astype(x.dtype).reshape(x.shape)
        # Over these axes tokens are counted; where p is 0 a token has no part in the balance.
        over, real = (0, 1) if x.ndim == 2 else (1,), jnp.ones((1, 1, 1), p.dtype)
        if mask is not None:
            is_real = jnp.asarray(mask).reshape(*tokens.shape[:2], 1)
            real, p = is_real.astype(p.dtype), jnp.where(is_real, p, jnp.zeros((), p.dtype))
        count = jnp.sum(jnp.broadcast_to(real, p[..., :1].shape), axis=over, keepdims=True)
        count = jnp.maximum(count, 1)
        choices = jnp.sum(one_hot(ids, experts, p.dtype), axis=-2) * real
        f = jnp.sum(choices, axis=over, keepdims=True) / (chosen * count)
        uneven = experts * jnp.sum(f * jnp.sum(p, axis=over, keepdims=True) / count, axis=(1, 2))
        uneven = jnp.zeros_like(x, shape=x.shape[:1]) + uneven.astype(x.dtype)
        uneven = uneven if balance is None else uneven + balance
        given = _Input(x.shape, mask is not None, balance is not None)
        beside = [] if mask is None else [mask]
        return (y, *beside, uneven), (tokens, p, ids, g, kept, h, o, f / count, given)

    def backward(weights, residuals, delta, statistic=gradient):
        x, p, ids, g, kept, h, o, slope, given = residuals
        delta, *_, delta_balance = delta
        together = len(given.shape) == 2

        def at(site, inputs, delta):
            site = dataclasses.replace(site, mixes=together, output_mixes=False)
            return statistic(site, inputs, delta)

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
        by_balance = accumulated(delta_balance)[:, None, None]
        by_balance = jnp.sum(by_balance, axis=0, keepdims=True) if together else by_balance
        delta_p = experts * by_balance * slope
        delta_s = (delta_s + _through_softmax(p, delta_p)).astype(x.dtype)
        by_router, router_tree = router.backward(weights["router"], x, delta_s, at)

        tree = {
            "router": router_tree,
            "up": at(up_site, (x, ids), delta_z),
            "down": at(down_site, (h, ids), delta_o),
        }
        delta_x = by_router + matched(delta_x, Varying.of(x))
        delta_x = delta_x.reshape(given.shape)
        beside = [*[None] * given.with_mask, *[delta_balance] * given.with_balance]
        return (delta_x, *beside) if beside else delta_x, tree

    return Layer(init, forward, backward, name)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Input:
    """What came: a residual that takes no memory."""

    shape: tuple[int, ...]
    with_mask: bool
    with_balance: bool


def _through_softmax(p: jax.Array, delta: jax.Array) -> jax.Array:
    return p * (delta - jnp.sum(p * delta, axis=-1, keepdims=True))


def _entries(name: str, beside: Sequence[Any]) -> tuple[Any, Any]:
    """The mask and the balance of what stands next to x, ``None`` for what is not there."""
    if len(beside) > 2:
        came = f"x is a tuple of {len(beside) + 1}"
        raise LayerError(name, f"{came}, (x, mask), (x, balance) or (x, mask, balance) is due")
    if len(beside) == 2:
        return tuple(beside)
    if not beside:
        return None, None
    masked = getattr(beside[0], "dtype", None) == jnp.bool_
    return (beside[0], None) if masked else (None, beside[0])


def _check(
    name: str, params: Any, x: Any, mask: Any, balance: Any, sizes: tuple[int, int, int]
) -> None:
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
    for label, leaf, dtype, shape in (
        ("mask", mask, jnp.dtype(bool), x.shape[:-1]),
        ("balance", balance, x.dtype, x.shape[:1]),
    ):
        if leaf is None:
            continue
        if not hasattr(leaf, "dtype"):
            came = f"a {type(leaf).__name__}"
        elif leaf.shape == shape and leaf.dtype == dtype:
            continue
        else:
            came = f"{leaf.dtype}{list(leaf.shape)}"
        raise LayerError(
            name,
            f"{label} is {came}, {dtype}{list(shape)} is due; a mask is of booleans, one for each "
            "token, a balance of floats, one for each example",
        )
