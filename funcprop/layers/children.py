"""Trees as arrays of children, and the walk over their nodes, up and down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..layer import LayerError, check_float, is_concrete, is_shape

Tree = Any
Buffers = tuple[jax.Array, ...]


def shape_of_nodes(name: str, shape: Any) -> tuple[Any, Any]:
    """The structs of one example's nodes (N, d) and children (N, C)."""
    pair = not is_shape(shape) and isinstance(shape, (tuple, list)) and len(shape) == 2
    if not pair or len(shape[0].shape) != 2 or shape[1].shape[:-1] != shape[0].shape[:1]:
        raise LayerError(
            name, f"shape is {shape}, that of (x, children), (N, d) and (N, C), is due"
        )
    return tuple(shape)


def check_nodes(name: str, x: Any) -> None:
    """Raises unless x is a pair of nodes (B, N, d) and children (B, N, C), each < its own index."""
    if not isinstance(x, (tuple, list)) or len(x) != 2:
        came = f"a tuple of {len(x)}" if isinstance(x, (tuple, list)) else f"a {type(x).__name__}"
        raise LayerError(name, f"x is {came}, the pair (x, children) is due")
    x, children = x
    check_float(name, x)
    if x.ndim != 3 or not x.shape[1]:
        raise LayerError(name, f"x is {x.shape}, nodes (B, N > 0, d) are due")
    signed = hasattr(children, "dtype") and jnp.issubdtype(children.dtype, jnp.signedinteger)
    if not signed or children.ndim != 3 or children.shape[:2] != x.shape[:2]:
        typed = hasattr(children, "dtype")
        came = f"{children.dtype}{list(children.shape)}" if typed else type(children).__name__
        due = f"signed integers [{x.shape[0]}, {x.shape[1]}, C]"
        raise LayerError(name, f"children is {came}, {due} are due, -1 where there is no child")
    if is_concrete(children):
        values = np.asarray(children)
        bad = np.argwhere((values < -1) | (values >= np.arange(values.shape[1])[:, None]))
        if bad.size:
            b, n, k = bad[0]
            raise LayerError(
                name,
                f"children[{b}, {n}] has {values[b, n, k]}, a node from 0 to {n - 1} or -1 for "
                "none is due; put the children before their parents",
            )


def places(children: jax.Array) -> jax.Array:
    """The children with N where there is none: behind the last node, not counted from the end."""
    children = _wide(children)
    return jnp.where(children < 0, children.shape[1], children)


def valid(children: jax.Array) -> jax.Array:
    """1 for an example whose children all come before their parents, else NaN: (B, 1, 1)."""
    children = _wide(children)
    before = children < jnp.arange(children.shape[1], dtype=children.dtype)[:, None]
    good = jnp.all((children >= -1) & before, axis=(1, 2), keepdims=True)
    return jnp.where(good, jnp.ones((), jnp.float32), jnp.full((), jnp.nan, jnp.float32))


def zeros(x: jax.Array, *sizes: int) -> jax.Array:
    """(B, N, *sizes), made of x so that it varies over the axes of a mesh over which x does."""
    start = jnp.zeros_like(x[:, :, :1]).reshape(*x.shape[:2], *[1] * len(sizes))
    return jnp.broadcast_to(start, (*x.shape[:2], *sizes))


def below(buffer: jax.Array, children: jax.Array) -> jax.Array:
    """What the buffer (B, N, H) holds at the children (B, ..., C), 0 for none: (B, ..., C, H)."""
    examples = jnp.arange(len(buffer), dtype=children.dtype)
    examples = examples.reshape(-1, *[1] * (children.ndim - 1))
    return buffer.at[examples, children].get(mode="fill", fill_value=0)


def add_below(buffer: jax.Array, children: jax.Array, rows: jax.Array) -> jax.Array:
    """The buffer (B, N, H) with rows (B, C, H) added at the children (B, C)."""
    examples = jnp.arange(len(buffer), dtype=children.dtype)[:, None]
    return buffer.at[examples, children].add(rows.astype(buffer.dtype), mode="drop")


def at(buffers: Tree, n: Any) -> Tree:
    """What buffers (B, N, ...) hold at node n."""
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, n, 1, keepdims=False), buffers)


def put(buffer: jax.Array, row: jax.Array, n: Any) -> jax.Array:
    """The buffer (B, N, ...) with a row (B, ...) in the place of node n."""
    return lax.dynamic_update_index_in_dim(buffer, row.astype(buffer.dtype), n, 1)


def upwards(step: Callable[..., Buffers], buffers: Buffers) -> Buffers:
    """``step(n, buffers) -> rows`` for every node from the first on, the rows put at n."""

    def body(buffers, n):
        rows = step(n, buffers)
        return tuple(put(*pair, n) for pair in zip(buffers, rows, strict=True)), None

    return lax.scan(body, buffers, _numbers(buffers))[0]


def downwards(step: Callable[..., Buffers], buffers: Buffers) -> Buffers:
    """``step(n, buffers, here) -> buffers`` for every node from the last on.

    ``here`` is what the buffers hold at n.  It is read behind the step before: were a buffer both
    read and written in one step, XLA would copy all of it, at every node.
    """

    def body(carry, n):
        buffers = step(n, *carry)
        return (buffers, at(buffers, jnp.maximum(n - 1, 0))), None

    numbers = _numbers(buffers)
    start = buffers, at(buffers, len(numbers) - 1)
    return lax.scan(body, start, numbers, reverse=True)[0][0]


def _numbers(buffers: Buffers) -> jax.Array:
    return jnp.arange(buffers[0].shape[1], dtype=jnp.int32)


def _wide(children: jax.Array) -> jax.Array:
    """In a dtype that N fits in."""
    return children.astype(jnp.int32) if children.dtype.itemsize < 4 else children
