"""Trees as arrays of children, and the walk over their nodes, up and down.

A walk works on trees of buffers (B, N, ...), which hold something for every node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.checks import LayerError, check_float, is_concrete
from ..core.layer import shapes_of_arrays

Tree = Any


def shape_of_nodes(name: str, shape: Any) -> tuple[Any, Any]:
    """The structs of one example's nodes (N, d) and children (N, C)."""
    due = "that of (x, children), (N, d) and (N, C),"
    pair = shapes_of_arrays(name, shape, due)
    sizes = [struct.shape for struct in pair]
    if list(map(len, sizes)) != [2, 2] or sizes[0][0] != sizes[1][0]:
        raise LayerError(name, f"shape is {shape}, {due} is due")
    return pair[0], pair[1]


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
    """The children with N, behind the last node, for none and for what is out of range."""
    children = _wide(children)
    nodes = children.shape[1]
    return jnp.where((children < 0) | (children >= nodes), nodes, children)


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
    """What the buffer (B, N, H) holds at the children (B, C) of a node, 0 for none: (B, C, H)."""
    return buffer.at[_examples(children), children].get(mode="fill", fill_value=0)


def below_all(buffer: jax.Array, children: jax.Array) -> jax.Array:
    """The same for the children (B, N, C) of all nodes: (B, N, C, H)."""
    # A row of zeros for none takes less memory than zeros put in the place of what was found.
    padded = jnp.pad(buffer, ((0, 0), (0, 1), (0, 0)))
    return padded.at[_examples(children), children].get(mode="promise_in_bounds")


def add_below(buffer: jax.Array, children: jax.Array, rows: jax.Array) -> jax.Array:
    """The buffer (B, N, H) with rows (B, C, H) added at the children (B, C)."""
    return buffer.at[_examples(children), children].add(rows.astype(buffer.dtype), mode="drop")


def at(buffers: Tree, n: Any) -> Tree:
    """What buffers (B, N, ...) hold at node n."""
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, n, 1, keepdims=False), buffers)


def put(buffers: Tree, rows: Tree, n: Any) -> Tree:
    """The buffers with rows (B, ...) in the place of node n."""

    def one(buffer, row):
        return lax.dynamic_update_index_in_dim(buffer, row.astype(buffer.dtype), n, 1)

    return jax.tree.map(one, buffers, rows)


def upwards(step: Callable[..., Tree], buffers: Tree, nodes: int) -> Tree:
    """``step(n, buffers) -> rows`` for every node from the first on, the rows put at n."""

    def body(buffers, n):
        return put(buffers, step(n, buffers), n), None

    return lax.scan(body, buffers, jnp.arange(nodes, dtype=jnp.int32))[0]


def downwards(step: Callable[..., Tree], buffers: Tree, nodes: int) -> Tree:
    """``step(n, buffers, here) -> buffers`` for every node from the last on.

    ``here`` is what the buffers hold at n.  It is read behind the step before: were a buffer both
    read and written in one step, XLA would copy all of it, at every node.
    """

    def body(carry, n):
        buffers = step(n, *carry)
        return (buffers, at(buffers, jnp.maximum(n - 1, 0))), None

    start = buffers, at(buffers, nodes - 1)
    return lax.scan(body, start, jnp.arange(nodes, dtype=jnp.int32), reverse=True)[0][0]


def _examples(children: jax.Array) -> jax.Array:
    numbers = jnp.arange(len(children), dtype=children.dtype)
    return numbers.reshape(-1, *[1] * (children.ndim - 1))


def _wide(children: jax.Array) -> jax.Array:
    """In a dtype that N fits in."""
    return children.astype(jnp.int32) if children.dtype.itemsize < 4 else children
