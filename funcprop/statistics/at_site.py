"""What single examples contribute at one site."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..core.contraction import accumulated, by_example, few_in_cache
from ..core.rows import Beside, OneHot, Rows, dense, of_matrix, products
from ..core.site import Site

Tree = Any
Array = jax.Array


def each_gradient(site: Site, inputs: Tree, delta: Tree) -> Tree:
    """gᵢ: the site's parameters with (B,) in front."""
    return by_example(functools.partial(_in_cache, _each_gradient, site), inputs, delta)


def squared_norm(site: Site, inputs: Tree, delta: Tree) -> Array:
    """‖gᵢ‖² (B,)."""
    return by_example(functools.partial(_in_cache, _squared_norm, site), inputs, delta)


def norm(site: Site, inputs: Tree, delta: Tree) -> Array:
    """‖gᵢ‖ (B,), where its square is too large for a float, or too small."""
    return by_example(functools.partial(_in_cache, _norm, site), inputs, delta)


def weighted(site: Site, inputs: Tree, delta: Tree, *factors: Array | float) -> Tree:
    """Σᵢ cᵢ gᵢ, shaped like the site's parameters, added in at least float32 and rounded once.

    cᵢ is the product of the factors, (B,) or of all examples, which are applied one by one.
    """
    like = jax.eval_shape(site.gradient, inputs, delta)
    inputs, delta = accumulated((inputs, delta))
    for c in map(jnp.asarray, factors):
        delta = jax.tree.map(
            lambda d, c=c: d * c.astype(d.dtype).reshape(-1, *[1] * (d.ndim - 1)), delta
        )
    return jax.tree.map(lambda g, a: g.astype(a.dtype), site.gradient(inputs, delta), like)


def length(arrays: list[Array]) -> Array:
    """The norm of several arrays (..., B) over all axes but the last, whatever their scale."""
    most = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(a), _but_last(a)) for a in arrays])
    unit = _unit(most)
    squares = [jnp.sum(jnp.square(a / unit), _but_last(a)) for a in arrays]
    return unit * jnp.sqrt(functools.reduce(jnp.add, squares))


def _unit(most: Array) -> Array:
    """In which numbers up to ``most`` have squares that are none too large or too small.

    XLA may divide by it as a product with 1/unit, which has to be a number too.
    """
    tiny = jnp.finfo(most.dtype).tiny
    return jnp.clip(most, tiny, 1 / tiny)


def _but_last(a: Array) -> tuple[int, ...]:
    return tuple(range(a.ndim - 1))


def _each_gradient(site: Site, inputs: Tree, delta: Tree) -> Tree:
    grads = _vmapped(site, inputs, delta)
    if site.rows is None:
        return grads
    left, right = site.rows(inputs, delta)
    if isinstance(left, OneHot):
        return grads
    like = jax.tree.map(lambda leaf: leaf[0], grads)
    # Of the vmapped gradient only b is used; the rest is never computed under jit.
    return {**grads, **of_matrix(site, _matrices(left, right), like)}


def _squared_norm(site: Site, inputs: Tree, delta: Tree) -> Array:
    inputs, delta = accumulated((inputs, delta))
    rows = _rows(site, inputs, delta)
    if rows is None:
        return _norms(_vmapped(site, inputs, delta))
    return _squares(*rows) + _norms(bias(site, inputs, delta))


def _norm(site: Site, inputs: Tree, delta: Tree) -> Array:
    inputs, delta = accumulated((inputs, delta))
    rows = _rows(site, inputs, delta)
    if rows is None:
        return length(_flat_last(_vmapped(site, inputs, delta)))
    left, right, unit = _in_units(*rows)
    own = unit * jnp.sqrt(_squares(left, right))
    return length([own, *_flat_last(bias(site, inputs, delta))])


def _rows(site: Site, inputs: Tree, delta: Tree) -> tuple[Rows, Array] | None:
    """The site's rows, where gᵢ is not cheaper by its gradient."""
    if site.rows is None:
        return None
    left, right = site.rows(inputs, delta)
    formed = isinstance(left, OneHot) and not _gram_is_cheaper(left, right)
    return None if formed else (left, right)


def _squares(left: Rows, right: Array) -> Array:
    """‖Mᵢ‖² (B,)."""
    if _gram_is_cheaper(left, right):
        squares = products(left, left) * products(right, right)
    else:
        squares = jnp.square(_matrices(left, right))
    return jnp.sum(squares, axis=(1, 2))


def _in_units(left: Rows, right: Array) -> tuple[Rows, Array, Array]:
    """Rows of numbers up to 1 and the unit (B,) that Mᵢ = unit Σᵣ rightᵀ left then has.

    Each row has a unit of its own, as one of a large input may have a small delta.
    """
    most = _largest(right)
    right, both = right / _unit(most), _unit(most)
    if not isinstance(left, OneHot):
        parts = left.parts if isinstance(left, Beside) else (left,)
        largest = functools.reduce(jnp.maximum, map(_largest, parts))
        parts = tuple(part / _unit(largest) for part in parts)
        left = Beside(parts) if isinstance(left, Beside) else parts[0]
        most, both = most * largest, both * _unit(largest)
    both = jnp.where(most == 0, 0, both)
    unit = _unit(jnp.max(both, axis=1, keepdims=True))
    return left, right * (both / unit), unit[:, 0, 0]


def _largest(rows: Array) -> Array:
    """(B, R, 1)."""
    return jnp.max(jnp.abs(rows), axis=-1, keepdims=True)


def _flat_last(grads: Tree) -> list[Array]:
    """Each leaf (B, ...) as (n, B)."""
    return [leaf.reshape(len(leaf), -1).T for leaf in jax.tree.leaves(grads)]


def _matrices(left: Rows, right: Array) -> Array:
    """Mᵢ (B, m, n).

    XLA's CPU compiler makes a product of single rows part of a loop over all of Mᵢ that computes
    the rows again for each of its numbers; a second row, of zeros, keeps them apart.  Of many
    numbers the writing takes longest, and that loop is written by all cores.
    """

    def whole(left, right):
        return jnp.einsum("brm,brn->bmn", right, left)

    def padded(left, right):
        return whole(*(jnp.pad(rows, ((0, 0), (0, 1), (0, 0))) for rows in (left, right)))

    left = dense(left)
    size, rows, n = left.shape
    if rows > 1 or size * n * right.shape[-1] > 2**22:
        return whole(left, right)
    return lax.platform_dependent(left, right, cpu=padded, default=whole)


def _in_cache(f: Callable[..., Tree], site: Site, inputs: Tree, delta: Tree) -> Tree:
    """``f(site, inputs, delta)``; on CPU a few examples at a time whose rows are larger than what
    they are made of, as a convolution's are.
    """
    size, given = len(jax.tree.leaves(delta)[0]), _bytes((inputs, delta))
    rows = 0 if site.rows is None else _bytes(jax.eval_shape(site.rows, inputs, delta))
    some = few_in_cache(size, rows // size)
    if rows <= 2 * given or some == size:
        return f(site, inputs, delta)

    def whole(inputs, delta):
        return f(site, inputs, delta)

    def one(given):
        found = f(site, *jax.tree.map(lambda leaf: leaf[None], given))
        return jax.tree.map(lambda leaf: leaf[0], found)

    def chunks(inputs, delta):
        return lax.map(one, (inputs, delta), batch_size=some)

    return lax.platform_dependent(inputs, delta, cpu=chunks, default=whole)


def _bytes(tree: Tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def inner_product(site: Site, first: tuple[Tree, Tree], second: tuple[Tree, Tree]) -> Array:
    """⟨gᵢ, gⱼ⟩ (B, B′) of two batches of (inputs, delta)."""
    return by_example(functools.partial(_inner_product, site), first, second)


def _inner_product(site: Site, first: tuple[Tree, Tree], second: tuple[Tree, Tree]) -> Array:
    first, second = accumulated((first, second))
    if site.rows is None or not _pairs_are_cheaper(site.rows(*first)):
        return _products(*(each_gradient(site, *given) for given in (first, second)))
    (left, right), (left_2, right_2) = site.rows(*first), site.rows(*second)
    # The rows of all examples at once, as if of one.
    gram = products(_flat(left), _flat(left_2)) * products(_flat(right), _flat(right_2))
    sizes = (*left.shape[:2], *left_2.shape[:2])
    inner = jnp.sum(gram[0].reshape(sizes), axis=(1, 3))
    return inner + _products(*(bias(site, *given) for given in (first, second)))


def _vmapped(site: Site, inputs: Tree, delta: Tree) -> Tree:
    def one(inputs, delta):
        return site.gradient(*jax.tree.map(lambda leaf: leaf[None], (inputs, delta)))

    return jax.vmap(one)(inputs, delta)


def bias(site: Site, inputs: Tree, delta: Tree) -> Tree:
    grads = _vmapped(site, inputs, delta)
    return {"b": grads["b"]} if "b" in grads else {}


def _norms(grads: Tree) -> Any:
    leaves = jax.tree.leaves(grads)
    return sum((jnp.sum(g * g, tuple(range(1, g.ndim))) for g in leaves), start=0.0)


def _products(a: Tree, b: Tree) -> Any:
    flat = (
        jnp.einsum("in,jn->ij", p.reshape(len(p), -1), q.reshape(len(q), -1))
        for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
    return sum(flat, start=0.0)


def _flat(rows: Rows) -> Any:
    if isinstance(rows, Beside):
        return Beside(tuple(map(_flat, rows.parts)))
    if isinstance(rows, OneHot):
        return OneHot(rows.ids.reshape(1, -1), rows.size, rows.like)
    return rows.reshape(1, -1, rows.shape[-1])


def _gram_is_cheaper(left: Rows, right: Array) -> bool:
    """Multiplications of one example, R² (n + m) against R n m; ids take none."""
    _, rows, n = left.shape
    m = right.shape[-1]
    if isinstance(left, OneHot):
        return rows * rows * m <= (rows + n) * m
    return rows * (n + m) < n * m


def _pairs_are_cheaper(rows: tuple[Rows, Array]) -> bool:
    """R² (n + m) a pair of examples against n m a pair and R n m an example."""
    left, right = rows
    size, count, n = left.shape
    m = right.shape[-1]
    row = m if isinstance(left, OneHot) else n + m
    return size * count * count * row <= n * m * (size + count)
