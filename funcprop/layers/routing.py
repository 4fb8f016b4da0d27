"""Affine maps of which each row goes through one of several, put in blocks of one map each."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..core.contraction import accumulated, by_example


class Blocks(NamedTuple):
    """The pairs of token and expert in blocks of one expert each.

    Attributes:
        expert: whose block each is, (G,).
        pair: which pairs stand in it, (G, size); where none does, their number N.
        place: where in the blocks each pair stands, (N,).
    """

    expert: jax.Array
    pair: jax.Array
    place: jax.Array


def blocks_of(ids: jax.Array, experts: int) -> Blocks:
    ids = ids.reshape(-1)
    n = len(ids)
    # A block is half of what an expert gets if all get the same: larger ones multiply more zeros.
    size = min(64, max(8, n // (2 * experts)))
    count = (n + experts * (size - 1)) // size  # so many are enough however the pairs fall
    rank = jnp.cumsum(one_hot(ids, experts, jnp.int32), axis=0)
    filled = -(-rank[-1] // size)
    ends = jnp.cumsum(filled)
    own = jnp.take_along_axis(rank, ids[:, None], axis=1)[:, 0] - 1
    place = (ends - filled)[ids] * size + own
    numbers = jnp.arange(n, dtype=jnp.int32)
    pair = jnp.full_like(place, n, shape=count * size).at[place].set(numbers)
    block = jnp.arange(count, dtype=jnp.int32)
    expert = jnp.sum((block[:, None] >= ends).astype(jnp.int32), axis=1)
    return Blocks(jnp.minimum(expert, experts - 1), pair.reshape(count, size), place)


def _rows(x: jax.Array, pair: jax.Array, ids: jax.Array) -> jax.Array:
    """The rows of the pairs, of one row a pair or one a token; 0 where there is no pair."""
    x = jnp.asarray(x).reshape(-1, x.shape[-1])
    return x.at[pair // (ids.size // len(x))].get(mode="fill", fill_value=0)


def _by_blocks(f: Any, ids: jax.Array, experts: int) -> jax.Array:
    """f(expert, pair) of every block, its rows put back in the order of the pairs: (*ids, m)."""
    blocks = blocks_of(ids, experts)
    _, y = lax.scan(lambda _, block: (None, f(*block)), None, (blocks.expert, blocks.pair))
    return y.reshape(-1, y.shape[-1])[blocks.place].reshape(*ids.shape, -1)


def mapped(x: jax.Array, ids: jax.Array, params: Any) -> jax.Array:
    """W_e x + b_e of each pair's own expert."""
    w, b = jnp.asarray(params["w"]), jnp.asarray(params["b"])
    return _by_blocks(lambda e, pair: _rows(x, pair, ids) @ w[e].T + b[e], ids, len(w))


def transported(delta: jax.Array, ids: jax.Array, w: jax.Array) -> jax.Array:
    """δ W_e of each pair's own expert."""
    w = jnp.asarray(w)
    return _by_blocks(lambda e, pair: _rows(delta, pair, ids) @ w[e], ids, len(w))


def gradients(experts: int, inputs: Any, delta: jax.Array) -> dict[str, jax.Array]:
    """δW_e = Σ δᵀ x and δb_e = Σ δ over the pairs of each expert."""

    def run(x, ids, delta):
        def step(grads, block):
            e, pair = block
            rows, d = (accumulated(_rows(leaf, pair, ids)) for leaf in (x, delta))
            own = {"w": d.T @ rows, "b": jnp.sum(d, axis=0)}
            return jax.tree.map(lambda grad, part: grad.at[e].add(part), grads, own), None

        blocks = blocks_of(ids, experts)
        wide = accumulated(delta)
        shapes = {"w": (delta.shape[-1], x.shape[-1]), "b": (delta.shape[-1],)}
        start = {key: jnp.zeros_like(wide, shape=(experts, *s)) for key, s in shapes.items()}
        grads, _ = lax.scan(step, start, (blocks.expert, blocks.pair))
        return jax.tree.map(lambda grad: grad.astype(delta.dtype), grads)

    return by_example(run, *inputs, delta, summed=True)


def one_hot(ids: jax.Array, experts: int, dtype: Any) -> jax.Array:
    return (ids[..., None] == jnp.arange(experts, dtype=ids.dtype)).astype(dtype)
