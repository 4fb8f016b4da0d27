"""What statistics take from a layer beside its gradient: the rows of its sites, a loss's curvature.

A gradient may be right where these are wrong, and then the norms of single examples, a clipped
gradient or a Kronecker factor suffer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..layer import Site
from ..losses import Loss
from ..rows import dense, matrix_of
from .compare import difference
from .judging import bounded
from .report import Difference

Tree = Any
DRAWS = 4_096
MOST = 2_000_000  # numbers that a Hessian, or all draws, may have


class Law(NamedTuple):
    """Attributes: path, found, due: as of a pair; against: the oracle; room: of a mean of draws,
    how far off chance may bring it, as a share of the largest value.
    """

    path: str
    found: Any
    due: Any
    against: str
    room: float = 0.0


class _Rows(NamedTuple):
    site: Site
    found: dict[str, jax.Array]
    due: dict[str, jax.Array]


def by_laws(
    layer: Any, params: Tree, x: Tree, delta: Tree, key: Any
) -> tuple[tuple[Difference, ...], list[tuple[str, np.ndarray, np.ndarray]]]:
    """Rows of a report, in float64, and the arrays behind them."""
    found = [*_rows(layer, params, x, delta, key)]
    if isinstance(layer, Loss) and hasattr(x[0], "shape"):  # not several predictions
        found += _curvature(layer, params, x, key)
    leaves = [
        difference(*law[:3], against=law.against, bound=1, eps=law.room)
        if law.room
        else bounded([law[:3]], law.against, 1e-9)[0][0]
        for law in found
    ]
    arrays = [(law.path, np.asarray(law.found), np.asarray(law.due)) for law in found]
    return tuple(leaves), arrays


def _rows(layer, params, x, delta, key) -> Iterator[Law]:
    """rightᵀ left of each example, and Σ right, against the site's gradient of that example."""

    def statistic(site, inputs, delta):
        if site.rows is None:
            return ()
        left, right = map(dense, site.rows(inputs, delta))
        found = {"matrix": jnp.einsum("brm,brn->bmn", right, left)}

        def one(*given):
            return site.gradient(*jax.tree.map(lambda leaf: leaf[None], given))

        grads = jax.vmap(one)(inputs, delta)
        due = {"matrix": jax.vmap(lambda tree: matrix_of(site, tree))(grads)}
        if site.summed_bias and "b" in grads:
            found["bias"], due["bias"] = right.sum(1), grads["b"]
        return _Rows(site, found, due)

    def sweep(params, x, delta):
        _, residuals = layer.forward(params, x, key)
        return layer.backward(params, residuals, delta, statistic)[1]

    trees = jax.tree.leaves(
        jax.jit(sweep)(params, x, delta), is_leaf=lambda leaf: isinstance(leaf, _Rows)
    )
    for n, (site, found, due) in enumerate(trees):
        for name in found:
            path = f"sites[{n}] {site.name}, rows of the {name}"
            yield Law(path, found[name], due[name], "the gradients of single examples")


def _curvature(loss, params, x, key) -> Iterator[Law]:
    """Σ S Sᵀ of the root, and the mean of s sᵀ over draws, against the Hessian by predictions."""
    prediction, target = x
    size, count = len(prediction), prediction.size // len(prediction)
    if size * count * max(count, DRAWS) > MOST:
        return

    def one(params, p, t):
        given = p.reshape(1, *prediction.shape[1:]), jax.tree.map(lambda leaf: leaf[None], t)
        return loss.apply(params, given, key)[0]

    def both(params, prediction, target):
        _, residuals = loss.forward(params, (prediction, target), key)
        columns = loss.root(residuals)
        columns = columns.reshape(len(columns), size, count)
        keys = jax.random.split(jax.random.key(0), DRAWS)
        drawn = jax.vmap(lambda k: loss.sample(k, residuals))(keys).reshape(DRAWS, size, count)
        hessian = jax.vmap(jax.hessian(one, 1), (None, 0, 0))
        due = hessian(params, prediction.reshape(size, count), target)
        squares, mean = (jnp.einsum("kbi,kbj->bij", a, a) for a in (columns, drawn))
        spread = jnp.einsum("kbi,kbj->bij", drawn**2, drawn**2)
        return due, squares, mean / DRAWS, jnp.sqrt(spread) / DRAWS

    due, squares, mean, error = jax.device_get(jax.jit(both)(params, prediction, target))
    yield Law("root, squared", squares, due, "the Hessian")
    largest = float(np.abs(due).max(initial=0))
    if largest:  # rare draws may be missing from the error that is estimated
        room = 8 * float(error.max()) / largest + 12 / np.sqrt(DRAWS)
        yield Law("sample, mean square", mean, due, f"the Hessian, {DRAWS} draws, in bounds", room)
