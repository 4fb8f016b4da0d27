"""The largest eigenvalues of a matrix that is known by its products only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from ..core.checks import LayerError, check_count
from ..core.contraction import accumulated

Tree = Any
Array = jax.Array
NAME = "eigenpairs"


class Eigenpairs(NamedTuple):
    """Eigenvalues and eigenvectors, the largest in absolute value first.

    Attributes:
        values: (count,).
        vectors: a tree like the parameters, with (count,) in front of each leaf; unit vectors.
        residuals: (count,) ‖A v - λ v‖, by which an eigenvalue is wrong at most, but for rounding:
            64 eps ‖A‖ in the dtype of the products.
    """

    values: Array
    vectors: Tree
    residuals: Array


def eigenpairs(
    product: Callable[[Tree], Tree], like: Tree, count: int, steps: int, key: Array
) -> Eigenpairs:
    """The ``count`` eigenpairs of largest |λ| of a symmetric matrix, by Lanczos.

        w = A qⱼ,  αⱼ = w·qⱼ,  w ← w - Q Qᵀ w,  βⱼ = ‖w‖,  qⱼ₊₁ = w/βⱼ

    With full orthogonalisation, twice a step, so no eigenvalue comes twice by rounding
    (Golub & Van Loan 2013, Matrix Computations, section 10.3); A is then Q T Qᵀ on the space that
    was built, T tridiagonal.  Where w is rounding alone, against the largest ‖A q‖ so far, the
    space holds all that A makes of its start: βⱼ is 0, and qⱼ₊₁ is drawn anew, orthogonal to Q.
    So more steps than the rank give more pairs of A, of eigenvalue 0 or of one that A has several
    times; with fewer steps than it takes to come so far such an eigenvalue is found once.

    Args:
        product: ``product(vector) -> A vector``, of trees like ``like``; say a
            :func:`gauss_newton_vector_product` with its other arguments filled in.
        like: a tree of arrays of floats, the parameters.  Of floats narrower than float32 only the
            products are in their dtype.
        count: how many, at most ``steps``.
        steps: how many products are taken, at most as many as there are parameters; with more of
            them the pairs are nearer.
        key: draws where to start.

    Returns:
        :class:`Eigenpairs`, all NaN when a product is not finite.

    Raises:
        LayerError: for a count and steps that do not fit, for parameters that are not floats, and
            for a product that is not like them.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop.statistics import eigenpairs
    >>> diagonal = jnp.array([1.0, -7.0, 3.0, 2.0])
    >>> found = eigenpairs(lambda v: diagonal * v, diagonal, 2, 4, jax.random.key(0))
    >>> [f"{value:.3f}" for value in found.values]
    ['-7.000', '3.000']
    """
    check_count(NAME, "count", count)
    check_count(NAME, "steps", steps)
    like = jax.tree.map(jnp.asarray, like)
    _check_floats(like)
    start, unravel = ravel_pytree(jax.tree.map(jnp.zeros_like, accumulated(like)))
    if not count <= steps <= start.size:
        raise LayerError(
            NAME,
            f"count is {count} and steps {steps}, count ≤ steps ≤ {start.size} parameters is due",
        )
    dtype, eps = start.dtype, jnp.finfo(start.dtype).eps

    def vector(flat):
        return jax.tree.map(lambda leaf, a: leaf.astype(a.dtype), unravel(flat), like)

    def times(q):
        found = product(vector(q))
        _check_like(found, like)
        return ravel_pytree(accumulated(found))[0].astype(dtype)

    def orthogonal(w, basis):
        for _ in range(2):
            w = w - _dot(_dot(basis, w), basis)
        return w

    def drawn(key):
        return jax.random.normal(key, start.shape, dtype)

    def step(carry, j):
        basis, q, unit, largest = carry
        basis = basis.at[j].set(q)
        w = times(q)
        # In units of the first product, whose square may be too large for a float, or too small.
        most = jnp.max(jnp.abs(w))
        unit = jnp.where(j == 0, jnp.where(most == 0, 1, most), unit)
        w = w / unit
        largest = jnp.maximum(largest, jnp.linalg.norm(w))
        alpha = _dot(w, q)
        w = orthogonal(w, basis)
        beta = jnp.linalg.norm(w)
        done = beta <= 8 * eps * largest
        w = lax.cond(done, lambda: drawn(jax.random.fold_in(key, j)), lambda: w / beta)
        # What is left of a few roundings is orthogonal only after it was made long again.
        w = orthogonal(w, basis)
        return (basis, w / jnp.linalg.norm(w), unit, largest), (alpha, jnp.where(done, 0, beta))

    first, zero = drawn(key), jnp.zeros((), dtype)
    begin = jnp.zeros((steps, start.size), dtype), first / jnp.linalg.norm(first), zero, zero
    (basis, _, unit, _), (alpha, beta) = lax.scan(step, begin, jnp.arange(steps))
    inner = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    values, rotations = jnp.linalg.eigh(inner)
    order = jnp.argsort(-jnp.abs(values))[:count]
    return Eigenpairs(
        unit * values[order],
        jax.vmap(vector)(_dot(rotations[:, order].T, basis)),
        unit * jnp.abs(beta[-1] * rotations[-1, order]),
    )


def _dot(a: Array, b: Array) -> Array:
    """a b, as exact on accelerators as on CPU."""
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST)


def _check_floats(like: Tree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(like):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise LayerError(
                NAME, f"like{jax.tree_util.keystr(path)} is {leaf.dtype}, it must be of real floats"
            )


def _check_like(found: Tree, like: Tree) -> None:
    came, due = (jax.tree.map(jnp.shape, tree) for tree in (found, like))
    if came != due:
        raise LayerError(
            NAME, f"product gave arrays of shapes {came}, they must be those of like, {due}"
        )
