"""The few contractions that the backward passes are made of.

The one place that knows about precision and sharding:

- **dtype**: operands of one contraction have one dtype and so has the result; XLA accumulates
  narrower floats than float32 in float32 and rounds once.  What is multiplied or counted before it
  is added is made wide first (:func:`accumulated`, :func:`divided`): 65,520 places, or the square
  of 256, are infinite in float16.
- **meshes with Explicit axes**: a contraction over a sharded axis leaves open how its result is
  laid out.  Here it keeps the layout of the axes that are not contracted; gathers, scatters and
  scans go through :func:`by_example`.
- **shard_map**: a parameter that is the same on every device enters the computation by a broadcast,
  whose transpose is a sum: what varies over a mesh axis where the primal does not is summed over
  that axis, as ``jax.vjp`` does (:func:`matched`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

Tree = Any


def affine_map(x: jax.Array, w: jax.Array) -> jax.Array:
    """x Wᵀ: (..., n) and (m, n) give (..., m)."""
    return _dot(x, w, [x.ndim - 1], [1])


def transport(delta: jax.Array, w: jax.Array, like: jax.Array) -> jax.Array:
    """δ W: (..., m) and (m, n) give (..., n), the delta of ``like``."""
    return matched(_dot(delta, w, [delta.ndim - 1], [0]), Varying.of(like))


def weighted(x: jax.Array, w: jax.Array) -> jax.Array:
    """Σ x w over the last axis, which stays with size 1: (..., n) and (n,) give (..., 1).

    As a product of matrices, which is faster than a sum; at full precision everywhere.
    """
    return _dot(x, w[None].astype(x.dtype), [x.ndim - 1], [1], lax.Precision.HIGHEST)


def outer(delta: jax.Array, x: jax.Array) -> jax.Array:
    """Σ δᵀ x over all leading axes: (..., m) and (..., n) give (m, n)."""
    leading = list(range(x.ndim - 1))
    return _dot(delta, x, leading, leading)


def total(delta: jax.Array) -> jax.Array:
    """Σ δ over all leading axes: (..., m) gives (m,)."""
    return jnp.sum(delta, axis=tuple(range(delta.ndim - 1)))


def accumulated(tree: Tree) -> Tree:
    """``tree``, its floats in a dtype wide enough to add many terms: at least float32."""

    def wide(leaf):
        narrow = leaf.dtype.itemsize < 4 and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(jnp.float32) if narrow else leaf

    return jax.tree.map(wide, tree)


def divided(tree: Tree, count: float) -> Tree:
    """``tree`` divided by a count, which a narrow float may not hold."""
    return jax.tree.map(lambda leaf: (accumulated(leaf) / count).astype(leaf.dtype), tree)


def taken(a: jax.Array, rows: Any) -> jax.Array:
    """a[rows]; on a mesh with Explicit axes the rows are spread as those of a, where they fit."""
    layout = _layout((a, []))
    if layout is None:
        return a[rows]
    mesh = jax.typeof(a).sharding.mesh
    names = layout[0] if isinstance(layout[0], tuple) else (layout[0],)
    parts = math.prod(mesh.shape[name] for name in names if name is not None)
    first = layout[0] if len(rows) % parts == 0 else None
    spec = PartitionSpec(first, *tuple(layout)[1:])
    return a.at[rows].get(out_sharding=jax.sharding.NamedSharding(mesh, spec))


def one_by_one(f: Callable[..., Tree], parts: Tree) -> Tree:
    """Σ f(part) over the leading axis of ``parts``, one after the other, added in a wide dtype."""
    # The first one stands outside of the scan: what it gives has the total's sharding and dtypes.
    first = f(jax.tree.map(lambda leaf: leaf[0], parts))
    rest = jax.tree.map(lambda leaf: leaf[1:], parts)
    if not len(jax.tree.leaves(rest)[0]):  # jax.disable_jit takes no scan of length 0
        return first

    def step(total, part):
        return jax.tree.map(jnp.add, total, accumulated(f(part))), None

    total, _ = lax.scan(step, accumulated(first), rest)
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), total, first)


def by_example(f: Callable[..., Tree], *args: Any, summed: bool = False) -> Tree:
    """``f(*args)`` for an f whose operations do not say how their results are laid out.

    On a mesh with Explicit axes a gather by sharded ids, a scatter, or a scan whose carry starts
    with zeros does not; there the axes become Auto inside ``f``, and what it returns is sharded
    over its leading axis as the arguments are, or with ``summed=True`` over no axis.
    """
    layouts = [_layout((leaf, [])) for leaf in jax.tree.leaves(args)]
    explicit = [layout for layout in layouts if layout is not None]
    if not explicit:
        return f(*args)
    batch = next((layout[0] for layout in explicit if len(layout)), None)
    out = PartitionSpec() if summed else PartitionSpec(batch)
    return jax.sharding.auto_axes(f, out_sharding=out)(*args)


def _dot(
    a: jax.Array, b: jax.Array, over_a: list[int], over_b: list[int], precision: Any = None
) -> jax.Array:
    over, layout = ((over_a, over_b), ((), ())), _layout((a, over_a), (b, over_b))
    return lax.dot_general(a, b, over, precision, out_sharding=layout)


def _layout(*operands: tuple[jax.Array, list[int]]) -> PartitionSpec | None:
    """The layout of the axes kept; ``None`` where nothing is sharded over an Explicit axis."""
    kept: list[Any] = []
    explicit = False
    for array, contracted in operands:
        sharding = getattr(jax.typeof(array), "sharding", None)
        spec = getattr(sharding, "spec", None)
        names = tuple(spec) if spec is not None else ()
        names += (None,) * (array.ndim - len(names))
        names = tuple(None if n is PartitionSpec.UNCONSTRAINED else n for n in names)
        explicit = explicit or any(name is not None for name in names)
        kept += [name for axis, name in enumerate(names) if axis not in contracted]
    return PartitionSpec(*kept) if explicit else None


# ------------------------------------------------------------------------------ shard_map


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Varying:
    """Over which axes of a manual mesh each leaf of a tree varies."""

    axes: tuple[frozenset[str], ...]

    @classmethod
    def of(cls, tree: Tree) -> Varying:
        return cls(tuple(_varying(leaf) for leaf in _leaves(tree)))


def matched(tree: Tree, primal: Varying) -> Tree:
    """``tree`` summed over the mesh axes over which it varies and its primal does not."""
    if not any(_varying(leaf) for leaf in _leaves(tree)):
        return tree
    leaves = _leaves(tree)
    structure = jax.tree.structure(tree, is_leaf=lambda leaf: leaf is None)
    return jax.tree.unflatten(
        structure,
        [
            lax.psum(leaf, tuple(sorted(_varying(leaf) - axes))) if _varying(leaf) - axes else leaf
            for leaf, axes in zip(leaves, primal.axes, strict=True)
        ],
    )


def mean_over_devices(a: jax.Array) -> jax.Array:
    """The mean of an array over the axes of a manual mesh over which it varies."""
    axes = tuple(sorted(_varying(a)))
    return lax.pmean(a, axes) if axes else a


def _leaves(tree: Tree) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=lambda leaf: leaf is None)


def _varying(leaf: Any) -> frozenset[str]:
    if not isinstance(leaf, jax.core.Tracer):
        return frozenset()
    aval = jax.typeof(leaf)
    manual = getattr(aval, "manual_axis_type", None)
    return frozenset(manual.varying if manual is not None else getattr(aval, "vma", ()))


CACHE = 2**20
"""Bytes that stay in the cache of a CPU's core between writing and reading."""


def few_in_cache(count: int, size: int) -> int:
    """How many of ``count`` things make a chunk that stays in the cache, of ``size`` bytes each.

    A divisor of their number where one is near.
    """
    most = min(count, max(2, CACHE // max(size, 1)))
    return max((n for n in range(most // 2 + 1, most + 1) if count % n == 0), default=most)


def moments(x: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Mean and variance over all axes but the last, the mean in two parts.

    The first part is an element of x, which leaves nothing of a large mean to be cancelled.
    """
    first = by_example(lambda x: x[(0,) * (x.ndim - 1)], x, summed=True)
    rest = mean_of_rows(x - first)
    return (first, rest), mean_of_rows((x - first - rest) ** 2)


def mean_of_rows(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=tuple(range(x.ndim - 1)))
