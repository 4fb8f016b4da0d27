"""The matrix form of a site: δW = Σ rightᵀ left over the rows of all examples.

A site's ``rows(inputs, delta)`` gives ``left`` (B, R, n), made of its inputs, and ``right``
(B, R, m), made of its delta.  The matrix (m, n) holds all of the site's parameters but the bias
``b``, one beside the other in the order of their names, each with m rows; those of a site with
``inputs_first`` are stored the other way round, (n, m), and are transposed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .site import Site

Tree = Any


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["ids", "like"], meta_fields=["size"]
)
@dataclasses.dataclass(frozen=True)
class OneHot:
    """Rows (B, R, size) that are 0 but for a 1 at ``ids`` (B, R); NaN for an id out of range.

    ``like`` is a number of the rows' dtype.
    """

    ids: jax.Array
    size: int
    like: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.ids.shape, self.size)

    def dense(self) -> jax.Array:
        found = self.ids[..., None] == jnp.arange(self.size, dtype=self.ids.dtype)
        return jnp.where(_good(self)[..., None], found.astype(self.like.dtype), jnp.nan)


class Beside(NamedTuple):
    """Rows (B, R, n) in parts, one beside the other: nothing need be copied to multiply them."""

    parts: tuple[jax.Array, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.parts[0].shape[:-1], sum(part.shape[-1] for part in self.parts))

    def dense(self) -> jax.Array:
        return jnp.concatenate(self.parts, axis=-1)


Rows = jax.Array | OneHot | Beside


def dense(rows: Rows) -> jax.Array:
    """The rows as an array."""
    return rows.dense() if isinstance(rows, OneHot | Beside) else rows


def products(a: Rows, b: Rows) -> jax.Array:
    """a bᵀ of every example: (B, R, n) and (B, S, n) give (B, R, S)."""
    if isinstance(a, Beside) and isinstance(b, Beside):
        pairs = zip(a.parts, b.parts, strict=True)
        return functools.reduce(jnp.add, (products(*pair) for pair in pairs))
    if isinstance(a, OneHot) and isinstance(b, OneHot):
        same = a.ids[:, :, None] == b.ids[:, None, :]
        good = _good(a)[:, :, None] & _good(b)[:, None, :]
        return jnp.where(good, same.astype(a.like.dtype), jnp.nan)
    return jnp.einsum("brn,bsn->brs", dense(a), dense(b))


def _good(rows: OneHot) -> jax.Array:
    return (rows.ids >= 0) & (rows.ids < rows.size)


def matrix_of(site: Site, tree: Tree) -> jax.Array:
    """The leaves of a site's tree but ``b`` as the matrix (m, n)."""
    parts = [tree[name].reshape(-1, tree[name].shape[-1]) for name in matrix_names(tree)]
    return jnp.concatenate([part.T if site.inputs_first else part for part in parts], axis=1)


def of_matrix(site: Site, matrix: jax.Array, like: Tree) -> dict[str, jax.Array]:
    """The leaves of ``like`` but ``b``, taken from a matrix (..., m, n)."""
    found, start = {}, 0
    for name in matrix_names(like):
        shape = like[name].shape
        size = math.prod(shape) // matrix.shape[-2]
        part = matrix[..., start : start + size]
        part = jnp.swapaxes(part, -1, -2) if site.inputs_first else part
        found[name] = part.reshape(*matrix.shape[:-2], *shape)
        start += size
    return found


def matrix_names(tree: Tree) -> list[str]:
    return [name for name in sorted(tree) if name != "b"]
