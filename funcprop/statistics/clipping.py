"""Clipped gradients: no example counts for more than a norm allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..layer import Layer, LayerError, Site, as_layer, gradient, is_concrete
from ..losses import Loss, as_loss
from ..sweep import check_sample_weight, checked_batch, forward_pass
from .per_example import squared_norm
from .statistic import Statistic, added, map_sites

Tree = Any
Array = jax.Array


class Clipped(NamedTuple):
    """A mean of clipped gradients.

    Attributes:
        value: the mean loss; 0 where no example counts.
        gradient: 1/B Σᵢ wᵢ cᵢ gᵢ, shaped like the parameters.
        squared_norms: ‖gᵢ‖² (B,), before clipping; with ``per_layer`` in total.
    """

    value: Array
    gradient: Tree
    squared_norms: Array


def clipped_gradient(
    max_norm: float, *, per_layer: bool = False
) -> Callable[[Layer, Loss], Callable[..., Clipped]]:
    """The mean of the examples' gradients, each of them clipped to a norm.

        g̃ = 1/B Σᵢ cᵢ gᵢ      cᵢ = min(1, max_norm/‖gᵢ‖)

    (Abadi 2016, arXiv 1607.00133, algorithm 1, without its noise).  One forward pass and two
    sweeps back, and no gᵢ is ever formed: the first sweep gives the norms, the second one sends
    ∂/∂ℓᵢ = cᵢ/B, since a sweep is linear in what it sends.  With ``per_layer`` one sweep is
    enough: each site clips with its own norm.

    Args:
        max_norm: the bound of ‖gᵢ‖, above 0; with ``per_layer`` that of each site's part, so that
            the bound of the whole is max_norm √sites (each layer inside ``repeat`` is a site).
        per_layer: whether each site clips by itself (McMahan 2018, arXiv 1710.06963, section 4).

    Returns:
        ``clipped(model, loss) -> f``, ``f(params, x, y, *, sample_weight=None, weights=None,
        key=None) -> Clipped``.  An example counts ``sample_weight`` (B,) times after it was
        clipped, by default once; the sum is divided by B all the same, so that what one example
        can change is known beforehand.

    Raises:
        LayerError: for a max_norm that is not above 0, for layers that mix examples, and as
            :func:`~funcprop.value_and_backprop`.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import dense, mean_squared_error
    >>> from funcprop.statistics import clipped_gradient
    >>> model = dense(1, bias=False, w_init=jax.nn.initializers.ones)
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> f = clipped_gradient(1.0)(model, mean_squared_error)
    >>> found = f(params, jnp.array([[3.0, 4.0], [0.0, 0.5]]), jnp.zeros((2, 1)))
    >>> found.squared_norms.tolist(), [round(g, 2) for g in found.gradient["w"][0].tolist()]
    ([4900.0, 0.25], [0.3, 0.65])
    """
    if is_concrete(max_norm) and not max_norm > 0:
        raise LayerError("clipped_gradient", f"max_norm is {max_norm}, a number above 0 is due")

    def factors(squared: Array) -> Array:
        """c = min(1, max_norm/‖g‖), 1 for a gradient of 0."""
        too_long = squared > max_norm * max_norm
        root = jnp.sqrt(jnp.where(too_long, squared, 1))
        return jnp.where(too_long, max_norm / root, jnp.where(jnp.isnan(squared), squared, 1))

    def clipped(model: Layer, loss: Loss) -> Callable[..., Clipped]:
        model, loss = as_layer(model, "model"), as_loss(loss)

        def f(params, x, y, *, sample_weight=None, weights=None, key=None):
            x, size = checked_batch(x, y)
            check_sample_weight(sample_weight, size, some=False)
            losses, back = forward_pass(model, loss, params, x, y, weights=weights, key=key)
            counts = jnp.ones_like(losses)
            if sample_weight is not None:
                counts = jnp.asarray(sample_weight).astype(losses.dtype)

            def at_site(site: Site, inputs: Tree, delta: Tree) -> Any:
                squared = squared_norm(site, inputs, delta)
                if not per_layer:
                    return squared
                scaled = _scaled(delta, counts * factors(squared).astype(counts.dtype))
                return squared, gradient(site, inputs, scaled)

            norms = Statistic("clipped gradients", at_site, lambda found, size: None)
            _, found = back.from_losses(jnp.ones_like(losses), norms.at)
            total = jnp.sum(counts)
            value = jnp.sum(counts * losses) / jnp.where(total == 0, 1, total)
            if per_layer:
                squared = added(map_sites(lambda at: at._replace(piece=at.piece[0]), found))
                grads = map_sites(lambda at: jax.tree.map(lambda g: g / size, at.piece[1]), found)
                return Clipped(value, grads, squared)
            squared = added(found)
            share = counts * (factors(squared) / size).astype(losses.dtype)
            return Clipped(value, back.from_losses(share, gradient)[1], squared)

        return f

    return clipped


def _scaled(delta: Tree, c: Array) -> Tree:
    """cᵢ δᵢ."""
    return jax.tree.map(lambda d: d * c.astype(d.dtype).reshape(-1, *[1] * (d.ndim - 1)), delta)
