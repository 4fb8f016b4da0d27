"""The largest eigenvalues of a matrix that is known by its products only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ..layer import LayerError, check_count

Tree = Any
Array = jax.Array


class Eigenpairs(NamedTuple):
    """Eigenvalues and eigenvectors, the largest in absolute value first.

    Attributes:
        values: (count,).
        vectors: a tree like the parameters, with (count,) in front of each leaf; unit vectors.
        residuals: (count,) ‖A v - λ v‖, by which an eigenvalue is wrong at most.
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
    was built, T tridiagonal.  An eigenvalue that A has several times is found once.

    Args:
        product: ``product(vector) -> A vector``, of trees like ``like``; say a
            :func:`gauss_newton_vector_product` with its other arguments filled in.
        like: a tree of arrays, the parameters.
        count: how many, at most ``steps``.
        steps: how many products are taken, at most as many as there are parameters; with more of
            them the pairs are nearer.
        key: draws where to start.

    Raises:
        LayerError: for a count and steps that do not fit.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop.statistics import eigenpairs
    >>> diagonal = jnp.array([1.0, -7.0, 3.0, 2.0])
    >>> found = eigenpairs(lambda v: diagonal * v, diagonal, 2, 4, jax.random.key(0))
    >>> [f"{value:.3f}" for value in found.values]
    ['-7.000', '3.000']
    """
    check_count("eigenpairs", "count", count)
    check_count("eigenpairs", "steps", steps)
    start, unravel = ravel_pytree(jax.tree.map(jnp.zeros_like, like))
    if not count <= steps <= start.size:
        raise LayerError(
            "eigenpairs",
            f"count is {count} and steps {steps}, count ≤ steps ≤ {start.size} parameters is due",
        )

    def step(carry, j):
        basis, q = carry
        basis = basis.at[j].set(q)
        w = ravel_pytree(product(unravel(q)))[0]
        alpha = w @ q
        for _ in range(2):
            w = w - basis.T @ (basis @ w)
        beta = jnp.linalg.norm(w)
        # Where the space is exhausted the rest stays 0, and its eigenvalues are 0.
        done = beta <= jnp.finfo(w.dtype).eps * jnp.abs(alpha)
        return (basis, jnp.where(done, 0, w / jnp.where(done, 1, beta))), (
            alpha,
            jnp.where(done, 0, beta),
        )

    first = jax.random.normal(key, start.shape, start.dtype)
    zero = jnp.zeros((steps, start.size), start.dtype)
    (basis, _), (alpha, beta) = jax.lax.scan(
        step, (zero, first / jnp.linalg.norm(first)), jnp.arange(steps)
    )
    inner = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    values, rotations = jnp.linalg.eigh(inner)
    order = jnp.argsort(-jnp.abs(values))[:count]
    vectors = rotations[:, order].T @ basis
    return Eigenpairs(
        values[order],
        jax.vmap(unravel)(vectors),
        jnp.abs(beta[-1] * rotations[-1, order]),
    )
