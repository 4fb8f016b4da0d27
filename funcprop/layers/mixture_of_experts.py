"""Mixture of experts: every token goes through a few of many feed-forward layers."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

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
    gradients = functools.partial(_gradients, experts)
    up_site, down_site = Site(f"{name} up", gradients), Site(f"{name} down", gradients)
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
        z = by_example(_mapped, tokens, ids, params["up"])
        h, kept = activated(z)
        o = by_example(_mapped, h, ids, params["down"])
        y = jnp.sum(g[..., None] * accumulated(o), axis=-2).astype(x.dtype).reshape(x.shape)
        f = jnp.mean(_one_hot(ids, p), axis=(1, 2))
        uneven = experts * jnp.sum(f * jnp.mean(p, axis=1), axis=-1)
        uneven = sum(balance, start=uneven.astype(x.dtype))
        return (y, uneven), (tokens, p, ids, g, kept, h, o, f, _Input(x.shape, bool(balance)))

    def backward(weights, residuals, delta, statistic=gradient):
        x, p, ids, g, kept, h, o, f, given = residuals
        delta, delta_balance = delta
        wide = accumulated(delta.reshape(x.shape))[..., None, :]
        delta_o = (g[..., None] * wide).astype(x.dtype)
        delta_h = by_example(_transported, delta_o, ids, weights["down"]["w"])
        delta_z = before_activation(kept, delta_h)
        delta_x = by_example(_transported, delta_z, ids, weights["up"]["w"])
        delta_x = jnp.sum(accumulated(delta_x), axis=-2).astype(x.dtype)

        delta_g = jnp.sum(wide * accumulated(o), axis=-1)
        delta_s = jnp.sum(_one_hot(ids, p) * _through_softmax(g, delta_g)[..., None], axis=-2)
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


class _Blocks(NamedTuple):
    """The pairs of token and expert in blocks of one expert each.

    Attributes:
        expert: whose block each is, (G,).
        pair: which pairs stand in it, (G, size); where none does, their number N.
        place: where in the blocks each pair stands, (N,).
    """

    expert: jax.Array
    pair: jax.Array
    place: jax.Array


def _blocks(ids: jax.Array, experts: int) -> _Blocks:
    ids = ids.reshape(-1)
    n = len(ids)
    # A block is half of what an expert gets if all get the same: larger ones multiply more zeros.
    size = min(64, max(8, n // (2 * experts)))
    count = (n + experts * (size - 1)) // size  # so many are enough however the pairs fall
    rank = jnp.cumsum(_one_hot_of(ids, experts, jnp.int32), axis=0)
    filled = -(-rank[-1] // size)
    ends = jnp.cumsum(filled)
    own = jnp.take_along_axis(rank, ids[:, None], axis=1)[:, 0] - 1
    place = (ends - filled)[ids] * size + own
    numbers = jnp.arange(n, dtype=jnp.int32)
    pair = jnp.full_like(place, n, shape=count * size).at[place].set(numbers)
    block = jnp.arange(count, dtype=jnp.int32)
    expert = jnp.sum((block[:, None] >= ends).astype(jnp.int32), axis=1)
    return _Blocks(jnp.minimum(expert, experts - 1), pair.reshape(count, size), place)


def _rows(x: jax.Array, pair: jax.Array, ids: jax.Array) -> jax.Array:
    """The rows of the pairs, of one row a pair or one a token; 0 where there is no pair."""
    x = x.reshape(-1, x.shape[-1])
    return x.at[pair // (ids.size // len(x))].get(mode="fill", fill_value=0)


def _by_blocks(f: Any, ids: jax.Array, experts: int) -> jax.Array:
    """f(expert, pair) of every block, its rows put back in the order of the pairs: (*ids, m)."""
    blocks = _blocks(ids, experts)
    _, y = lax.scan(lambda _, block: (None, f(*block)), None, (blocks.expert, blocks.pair))
    return y.reshape(-1, y.shape[-1])[blocks.place].reshape(*ids.shape, -1)


def _mapped(x: jax.Array, ids: jax.Array, params: Any) -> jax.Array:
    """W_e x + b_e of each pair's own expert."""
    w, b = params["w"], params["b"]
    return _by_blocks(lambda e, pair: _rows(x, pair, ids) @ w[e].T + b[e], ids, len(w))


def _transported(delta: jax.Array, ids: jax.Array, w: jax.Array) -> jax.Array:
    """δ W_e of each pair's own expert."""
    return _by_blocks(lambda e, pair: _rows(delta, pair, ids) @ w[e], ids, len(w))


def _gradients(experts: int, inputs: Any, delta: jax.Array) -> dict[str, jax.Array]:
    """δW_e = Σ δᵀ x and δb_e = Σ δ over the pairs of each expert."""

    def run(x, ids, delta):
        def step(grads, block):
            e, pair = block
            rows, d = (accumulated(_rows(leaf, pair, ids)) for leaf in (x, delta))
            own = {"w": d.T @ rows, "b": jnp.sum(d, axis=0)}
            return jax.tree.map(lambda grad, part: grad.at[e].add(part), grads, own), None

        blocks = _blocks(ids, experts)
        wide = accumulated(delta)
        shapes = {"w": (delta.shape[-1], x.shape[-1]), "b": (delta.shape[-1],)}
        start = {key: jnp.zeros_like(wide, shape=(experts, *s)) for key, s in shapes.items()}
        grads, _ = lax.scan(step, start, (blocks.expert, blocks.pair))
        return jax.tree.map(lambda grad: grad.astype(delta.dtype), grads)

    return by_example(run, *inputs, delta, summed=True)


def _one_hot_of(ids: jax.Array, experts: int, dtype: Any) -> jax.Array:
    return (ids[..., None] == jnp.arange(experts, dtype=ids.dtype)).astype(dtype)


def _one_hot(ids: jax.Array, like: jax.Array) -> jax.Array:
    """(..., k) to (..., k, E), in the dtype of ``like`` (..., E)."""
    return _one_hot_of(ids, like.shape[-1], like.dtype)


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
