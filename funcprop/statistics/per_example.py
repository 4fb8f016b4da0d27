"""Statistics of single examples: their gradients, norms and inner products.

With gᵢ = ∂ℓᵢ/∂θ the gradient of example i's own loss, and rows lᵢᵣ of its inputs and rᵢᵣ of its
delta at a site (see :class:`~funcprop.Site`), Mᵢ = Σᵣ rᵢᵣᵀ lᵢᵣ is gᵢ but for the bias, and

    ‖Mᵢ‖²   = Σᵣₛ (lᵢᵣ·lᵢₛ)(rᵢᵣ·rᵢₛ)        the Gram form: Mᵢ is never formed
    ⟨Mᵢ, Mⱼ⟩ = Σᵣₛ (lᵢᵣ·lⱼₛ)(rᵢᵣ·rⱼₛ)

(Goodfellow 2015, arXiv 1510.01799, for R = 1; Rochette 2019, arXiv 1912.06015, for more rows).
With many rows Mᵢ is the cheaper one: each site takes the form that its shape makes faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import LayerError
from ..core.layer import Layer
from ..core.loss import Loss
from ..core.site import Site
from .at_site import each_gradient, inner_product, squared_norm, weighted
from .statistic import Statistic, added, examples_first, map_sites

Tree = Any
Array = jax.Array


class SquaredNorms(NamedTuple):
    """‖gᵢ‖² of every example.

    Attributes:
        total: (B,), over all parameters.
        sites: a tree with (B,) for each site; (B, n) inside ``repeat``.
    """

    total: Array
    sites: Tree


class InnerProducts(NamedTuple):
    """⟨gᵢ, gⱼ⟩ of all pairs of examples.

    Attributes:
        total: (B, B′), over all parameters.
        sites: a tree with (B, B′) for each site; (B, B′, n) inside ``repeat``.
    """

    total: Array
    sites: Tree


def _squared_norms(found: Tree, size: int) -> SquaredNorms:
    return SquaredNorms(added(found), examples_first(found))


def _own_products(site: Site, inputs: Tree, delta: Tree) -> Array:
    return inner_product(site, (inputs, delta), (inputs, delta))


def _inner_products(found: Tree, size: int) -> InnerProducts:
    return InnerProducts(added(found, 2), examples_first(found, 2))


def _mean(site: Site, inputs: Tree, delta: Tree) -> Tree:
    return weighted(site, inputs, delta, 1 / len(jax.tree.leaves(delta)[0]))


def _pieces(found: Tree) -> Tree:
    return map_sites(lambda at: at.piece, found)


pairs = Statistic(
    "pairs",
    lambda site, inputs, delta: (inputs, delta),
    lambda found, size: examples_first(found),
    by_example=False,
)
"""The raw (inputs, delta) of every site, to look at; the inputs are what the layer's site takes."""

mean_gradient = Statistic("gradients", _mean, lambda found, size: _pieces(found), by_example=False)
"""The gradient of the mean loss, shaped like the parameters: for :func:`combine`."""

per_example_gradients = Statistic(
    "per-example gradients", each_gradient, lambda found, size: examples_first(found)
)
"""gᵢ of every example: the parameters with (B,) in front of each leaf, inside ``repeat`` too."""

squared_norms = Statistic("squared norms", squared_norm, _squared_norms)
"""‖gᵢ‖² of every example as :class:`SquaredNorms`, without forming gᵢ where that is cheaper."""

inner_products = Statistic("inner products", _own_products, _inner_products)
"""⟨gᵢ, gⱼ⟩ of a batch's examples as :class:`InnerProducts`: with the losses' own derivatives
left out it is the empirical neural tangent kernel (Jacot 2018, arXiv 1806.07572)."""


def inner_products_between(model: Layer, loss: Loss) -> Callable[..., InnerProducts]:
    """⟨gᵢ, gⱼ⟩ of each example of one batch with each of another.

    The influence of example i on the loss of example j under one step of gradient descent
    (Pruthi 2020, arXiv 2002.08484, eq. 1) is this times the rate.

    Args:
        model: the model, a layer.
        loss: the loss.

    Returns:
        ``f(params, batch, other, *, weights=None, key=None) -> InnerProducts``, each batch a pair
        (x, y); (B, B′) numbers for each site, and in total.

    Raises:
        LayerError: as :func:`~funcprop.value_and_backprop`, for layers that mix examples, and when
            the two batches are not alike.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import dense, mean_squared_error
    >>> from funcprop.statistics import inner_products_between
    >>> model = dense(1, w_init=jax.nn.initializers.ones)
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> batch = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[1.0], [1.0]])
    >>> other = jnp.array([[2.0, 0.0]]), jnp.array([[0.0]])
    >>> f = inner_products_between(model, mean_squared_error)
    >>> f(params, batch, other).total.tolist()
    [[48.0], [-8.0]]
    """

    def f(params, batch, other, *, weights=None, key=None):
        size = len(jax.tree.leaves(batch)[0])

        def at_site(site, inputs, delta):
            first, second = (
                jax.tree.map(lambda leaf, part=part: leaf[part], (inputs, delta))
                for part in (slice(size), slice(size, None))
            )
            return inner_product(site, first, second)

        x, y = _joined(batch, other)
        between = inner_products._replace(at_site=at_site)
        return between(model, loss)(params, x, y, weights=weights, key=key)

    return f


def _joined(batch: Tree, other: Tree) -> Tree:
    for name, pair in (("batch", batch), ("other", other)):
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(pair)]
        if len({shape[:1] for shape in shapes}) > 1:
            raise LayerError(
                "inner_products_between",
                f"{name} has x and y of shapes {shapes}, they must have the same number of "
                "examples",
            )
    try:
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch, other)
    except (TypeError, ValueError) as error:
        raise LayerError(
            "inner_products_between", f"batch and other are not alike, as they must be: {error}"
        ) from None
