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

from ..core.loss import Loss
from ..core.rows import dense, matrix_of
from ..core.site import Site
from .differences import EPS64, bounded, difference
from .report import Difference

Tree = Any
Pair = tuple[str, Any, Any]
DRAWS = 4_096
MOST_GRADIENTS = 10_000_000  # numbers that the gradients of all examples may have
MOST_DRAWN = 2_000_000  # and a Hessian, or all draws


class _Rows(NamedTuple):
    site: Site
    found: dict[str, jax.Array]
    due: dict[str, jax.Array]


def by_laws(
    layer: Any, params: Tree, x: Tree, delta: Tree, key: Any
) -> tuple[tuple[Difference, ...], list[Pair]]:
    """Rows of a report, in float64, and the arrays behind them.

    Rows of more numbers than MOST_GRADIENTS are left out, and so are draws of many predictions.
    """
    found: list[Pair] = []
    leaves: tuple[Difference, ...] = ()
    size = len(jax.tree.leaves(x)[0]) * sum(leaf.size for leaf in jax.tree.leaves(params))
    if size <= MOST_GRADIENTS:
        found = [*_rows(layer, params, x, delta, key)]
        leaves = bounded(found, "the gradients of single examples", 1e-9)[0]
    if isinstance(layer, Loss) and hasattr(x[0], "shape"):  # not several predictions
        for pair, against, room in _curvature(layer, params, x, key):
            bound, eps = (1.0, room) if room else (1e-9 / EPS64, EPS64)
            leaves += (difference(*pair, against=against, bound=bound, eps=eps),)
            found.append(pair)
    return leaves, [(path, np.asarray(a), np.asarray(b)) for path, a, b in found]


def _rows(layer, params, x, delta, key) -> Iterator[Pair]:
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
    if not all(isinstance(leaf, _Rows) for leaf in trees):
        raise TypeError("backward does not hand on what a statistic returns as it is")
    for n, (site, found, due) in enumerate(trees):
        for name in found:
            yield f"sites[{n}] {site.name}, rows of the {name}", found[name], due[name]


def _curvature(loss, params, x, key) -> Iterator[tuple[Pair, str, float]]:
    """Σ S Sᵀ of the root, and the mean of s sᵀ over draws, against the Hessian by predictions.

    The last value is how far off chance may bring a mean, as a share of the largest value.  The
    predictions are scaled down to 1, so that what is drawn is not rare.
    """
    prediction, target = x
    prediction = prediction / max(1.0, float(np.abs(prediction).max(initial=0)))
    size, count = len(prediction), prediction.size // len(prediction)
    if loss.root is None and loss.sample is None:
        return
    if size * count * max(count, DRAWS) > MOST_DRAWN:
        return

    def one(params, p, t):
        given = p.reshape(1, *prediction.shape[1:]), jax.tree.map(lambda leaf: leaf[None], t)
        return loss.apply(params, given, key)[0]

    def both(params, prediction, target):
        _, residuals = loss.forward(params, (prediction, target), key)
        hessian = jax.vmap(jax.hessian(one, 1), (None, 0, 0))
        found = {"due": hessian(params, prediction.reshape(size, count), target)}
        if loss.root is not None:
            columns = loss.root(residuals)
            columns = columns.reshape(len(columns), size, count)
            found["squares"] = jnp.einsum("kbi,kbj->bij", columns, columns)
        if loss.sample is not None:
            keys = jax.random.split(jax.random.key(0), DRAWS)
            drawn = jax.vmap(lambda k: loss.sample(k, residuals))(keys)
            drawn = drawn.reshape(DRAWS, size, count)
            spread = jnp.einsum("kbi,kbj->bij", drawn**2, drawn**2)
            found["error"] = jnp.sqrt(spread) / DRAWS
            found["mean"] = jnp.einsum("kbi,kbj->bij", drawn, drawn) / DRAWS
        return found

    found = jax.device_get(jax.jit(both)(params, prediction, target))
    due = found["due"]
    if "squares" in found:
        yield ("root, squared", found["squares"], due), "the Hessian", 0.0
    largest = float(np.abs(due).max(initial=0))
    if largest and "mean" in found:  # rare draws may be missing from the error that is estimated
        room = 8 * float(found["error"].max()) / largest + 12 / np.sqrt(DRAWS)
        pair = "sample, mean square", found["mean"], due
        yield pair, f"the Hessian, {DRAWS} draws, in bounds", room
