"""Kronecker factors of the curvature, and the preconditioner made of them.

With the rows lᵢᵣ of a site's inputs and rᵢᵣₖ of its delta under the errors sᵢₖ (see
:mod:`~funcprop.statistics.curvature`), the block of the Gauss-Newton matrix that belongs to the
site's matrix M, δM = Σ rᵀ l, is approximated by a Kronecker product, vec(M)'s block ≈ A ⊗ D:

    expand      A = 1/(B R) Σᵢᵣ lᵢᵣᵀ lᵢᵣ         D = 1/B Σᵢᵣₖ rᵢᵣₖᵀ rᵢᵣₖ
    reduce      A = 1/B Σᵢ l̄ᵢᵀ l̄ᵢ, l̄ᵢ = 1/R Σᵣ lᵢᵣ      D = 1/B Σᵢₖ r̂ᵢₖᵀ r̂ᵢₖ, r̂ᵢₖ = Σᵣ rᵢᵣₖ

(Martens & Grosse 2015, arXiv 1503.05671; for sites of many rows Eschenhagen 2023,
arXiv 2311.00636, eq. 18 and 22.)  A bias is a column more of M whose input is 1.

With exact and sampled errors A ⊗ D is of the scale of G.  The Fisher information of a loss that is
the mean of n terms (tokens, outputs) is G/n, and with empirical errors D is of that scale.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..core.checks import LayerError, as_layer
from ..core.contraction import accumulated, by_example
from ..core.layer import Layer
from ..core.loss import Loss, as_loss
from ..core.rows import OneHot, dense, matrix_of, of_matrix
from ..core.site import Site
from ..core.sweep import checked_batch, forward_pass, shares
from .at_site import bias
from .errors import Errors, exact, summed
from .gradient_moments import squares
from .statistic import AtSite, Statistic, map_sites

Tree = Any
Array = jax.Array


class Factors(NamedTuple):
    """The curvature of one site.

    Attributes:
        site: the site.
        inputs: A (n, n), with a bias (n + 1, n + 1), its last row and column; of ids its diagonal
            (n,); ``None`` where the site has no matrix form.
        deltas: D (m, m), or ``None``.
        bias: the second moment (m, m) of the gradient by a bias that is added elsewhere, or
            ``None``.
        diagonal: of a site without a matrix form the Gauss-Newton diagonal of its parameters.

    Inside ``repeat`` all of them have its axes in front.
    """

    site: Site
    inputs: Array | None
    deltas: Array | None
    bias: Array | None
    diagonal: Tree


def kfac_factors(
    model: Layer, loss: Loss, errors: Errors = exact, *, reduce: bool = False
) -> Callable[..., Tree]:
    """The Kronecker factors of every site, of the mean loss's Gauss-Newton matrix.

    With :func:`empirical` errors, of the empirical Fisher information in its place; for a mean of n
    terms an example that is of a scale smaller by n.

    Args:
        model: the model, a layer.
        loss: the loss, convex in the prediction.
        errors: :func:`exact`, :func:`sampled` or :func:`empirical`.
        reduce: whether rows are summed before they are squared, where the loss sees what all rows
            of an example make together, rather than each by itself.

    Returns:
        ``f(params, x, y, *, weights=None, key=None, sample_weight=None) -> tree``, with
        :class:`Factors` in the place of each site's parameters; ``sample_weight`` as of
        :func:`~funcprop.value_and_backprop`.

    Raises:
        LayerError: for layers that mix examples, and as :func:`~funcprop.value_and_backprop`.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import dense, mean_squared_error
    >>> from funcprop.statistics import kfac_factors
    >>> params = {"w": jnp.array([[1.0, 2.0]]), "b": jnp.zeros(1)}
    >>> f = kfac_factors(dense(1), mean_squared_error)
    >>> found = f(params, jnp.array([[3.0, 1.0], [1.0, 1.0]]), jnp.zeros((2, 1)))
    >>> found.inputs.tolist(), found.deltas.round(3).tolist()
    ([[5.0, 2.0, 2.0], [2.0, 1.0, 1.0], [2.0, 1.0, 1.0]], [[2.0]])
    """
    model, loss = as_layer(model, "model"), as_loss(loss)

    def f(params, x, y, *, weights=None, key=None, sample_weight=None):
        x, size = checked_batch(x, y)
        share = shares(sample_weight, size)
        losses, back = forward_pass(model, loss, params, x, y, weights=weights, key=key)
        columns = errors(loss, back, losses, key)
        count = None if share is None else size * share
        return factors_of(back.from_prediction, columns, size, reduce, count)

    return f


def factors_of(
    backward: Callable[..., Any],
    columns: Tree,
    size: int,
    reduce: bool,
    count: Array | None = None,
) -> Tree:
    """The factors, from ``backward(delta, statistic) -> (delta_x, tree)`` and all errors.

    ``count`` (B,) is how often each example counts, by default once.
    """
    at_inputs, at_deltas = (
        Statistic("Kronecker factors", made, lambda found, size: found)
        for made in (_input_factor(reduce, count), _delta_factor(reduce))
    )
    if count is not None:
        columns = jax.tree.map(
            lambda c: c * jnp.sqrt(count).astype(c.dtype).reshape(-1, *(1,) * (c.ndim - 2)), columns
        )

    # The inputs are the same under every error.
    inputs = backward(jax.tree.map(lambda leaf: leaf[0], columns), at_inputs.at)[1]
    deltas = summed(lambda delta: backward(delta, at_deltas.at)[1], columns)
    return map_sites(lambda a, d: _joined(a, d, size), inputs, deltas)


def _input_factor(reduce: bool, count: Array | None) -> Callable[..., Any]:
    def of_examples(site: Site, inputs: Tree, delta: Tree, count: Array | None) -> Any:
        if site.rows is None:
            return site, None
        left, _ = site.rows(inputs, delta)
        rows = accumulated(dense(left))
        rows = jnp.mean(rows, axis=1, keepdims=True) if reduce else rows
        if site.summed_bias and "b" in jax.eval_shape(site.gradient, inputs, delta):
            rows = jnp.concatenate([rows, jnp.ones_like(rows[..., :1])], axis=-1)
        if count is not None:
            rows = rows * jnp.sqrt(count).astype(rows.dtype)[:, None, None]
        rows = rows.reshape(-1, rows.shape[-1])
        if isinstance(left, OneHot):
            return site, jnp.mean(rows * rows, axis=0)
        return site, rows.T @ rows / len(rows)

    return _summed(of_examples, count)


def _delta_factor(reduce: bool) -> Callable[..., Any]:
    def of_examples(site: Site, inputs: Tree, delta: Tree) -> Any:
        if site.rows is None:
            return None, None, squares(site, inputs, delta)
        _, right = site.rows(inputs, delta)
        rows = accumulated(right)
        rows = jnp.sum(rows, axis=1) if reduce else rows.reshape(-1, rows.shape[-1])
        own = None
        if not site.summed_bias:
            for each in jax.tree.leaves(bias(site, *accumulated((inputs, delta)))):
                own = each.T @ each
        return rows.T @ rows, own, None

    return _summed(of_examples)


def _summed(of_examples: Callable[..., Any], *more: Any) -> Callable[..., Any]:
    """A piece at a site that is summed over the examples, on meshes with Explicit axes too."""

    def at_site(site, inputs, delta):
        return by_example(functools.partial(of_examples, site), inputs, delta, *more, summed=True)

    return at_site


def _joined(inputs: AtSite, deltas: AtSite, size: int) -> Factors:
    site, a = inputs.piece
    d, own, diagonal = jax.tree.map(lambda leaf: leaf / size, deltas.piece)
    return Factors(site, a, d, own, diagonal)


# ---------------------------------------------------------------------- preconditioning


def precondition_by_kfac(damping: float) -> optax.GradientTransformationExtraArgs:
    """Multiplies the gradient by the inverse of the damped Kronecker factors.

        U = (D + √λ/π I)⁻¹ M (A + π √λ I)⁻¹      π² = (tr A/n)/(tr D/m)

    (Martens & Grosse 2015, section 6.3); diagonal curvature c divides by c + λ.  The factors come
    as ``update(..., rule_state=...)``, which :func:`~funcprop.update_step` and
    :func:`~funcprop.fit` hand on from the rule (:func:`kfac`).  It chains like any transformation:
    ``optax.chain(precondition_by_kfac(1e-3), optax.sgd(rate, momentum=0.9))``.

    Args:
        damping: λ, above 0, in units of the curvature.

    Raises:
        LayerError: for a damping that is not above 0, or an update without factors.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import dense, mean_squared_error, value_and_backprop
    >>> from funcprop.statistics import kfac_factors, precondition_by_kfac
    >>> model, loss = dense(1, bias=False), mean_squared_error
    >>> params, x, y = {"w": jnp.array([[0.0]])}, jnp.array([[2.0]]), jnp.array([[6.0]])
    >>> _, grads = value_and_backprop(model, loss)(params, x, y)
    >>> transformation = precondition_by_kfac(1e-9)
    >>> factors = kfac_factors(model, loss)(params, x, y)
    >>> step, _ = transformation.update(grads, transformation.init(params), rule_state=factors)
    >>> round(float(step["w"][0, 0]), 3)  # one step of -1 times this solves 2 w = 6
    -3.0
    """
    if not damping > 0:
        raise LayerError("precondition_by_kfac", f"damping is {damping}, a number above 0 is due")

    def update(updates, state, params=None, *, rule_state=None, **extra):
        factors = getattr(rule_state, "factors", rule_state)
        if not jax.tree.leaves(factors):
            raise LayerError(
                "precondition_by_kfac",
                "no factors came; train with the rule kfac(...), or give update(rule_state=...)",
            )

        def at_site(own, grads):
            solve = _solved
            # Once for each axis of ``repeat``.
            for _ in range(0 if own.deltas is None else own.deltas.ndim - 2):
                solve = jax.vmap(solve, in_axes=(0, 0, None))
            return solve(own, grads, damping)

        return jax.tree.map(at_site, factors, updates, is_leaf=_is_factors), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _is_factors(node: Any) -> bool:
    return isinstance(node, Factors)


def _solved(own: Factors, grads: Tree, damping: float) -> Tree:
    if own.deltas is None or own.inputs is None:
        return jax.tree.map(lambda g, c: g / (c + damping).astype(g.dtype), grads, own.diagonal)
    site, a, d = own.site, own.inputs, own.deltas
    wide = accumulated(grads)
    matrix = matrix_of(site, wide)
    has_bias = a.ndim == 2 and len(a) > matrix.shape[1]
    if has_bias:
        matrix = jnp.concatenate([matrix, wide["b"][:, None]], axis=1)
    mean_a = jnp.mean(a if a.ndim == 1 else jnp.diag(a))
    mean_d = jnp.mean(jnp.diag(d))
    # A factor of 0, of units that are all dead, is left to the damping alone.
    alive = (mean_a > 0) & (mean_d > 0)
    pi = jnp.sqrt(jnp.where(alive, mean_a, 1) / jnp.where(alive, mean_d, 1))
    root = jnp.sqrt(damping)
    solved = _divided(d, root / pi, matrix)
    solved = _divided(a, root * pi, solved.T).T
    found = of_matrix(site, solved[:, : solved.shape[1] - has_bias], grads)
    if has_bias:
        found["b"] = solved[:, -1]
    elif "b" in grads:
        found["b"] = (
            wide["b"] / damping
            if own.bias is None
            else _divided(own.bias, jnp.asarray(damping), wide["b"][:, None])[:, 0]
        )
    return {name: found[name].astype(grads[name].dtype) for name in grads}


def _divided(factor: Array, damping: Array, right: Array) -> Array:
    """(F + damping I)⁻¹ right, F a matrix or a diagonal."""
    damping = damping.astype(right.dtype)
    if factor.ndim == 1:
        return right / (factor + damping)[:, None]
    damped = factor + damping * jnp.eye(len(factor), dtype=factor.dtype)
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(damped), right)
