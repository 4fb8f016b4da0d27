"""Clipped gradients: no example counts for more than a norm allows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import LayerError, as_layer, check_sample_weight, is_concrete
from ..core.contraction import accumulated
from ..core.layer import Layer
from ..core.loss import Loss, as_loss
from ..core.site import Site
from ..core.sweep import checked_batch, forward_pass
from .at_site import length, norm, weighted
from .statistic import Statistic, map_sites

Tree = Any
Array = jax.Array


class Clipped(NamedTuple):
    """A mean of clipped gradients.

    Attributes:
        value: the mean loss; 0 where no example counts.
        gradient: 1/B Σᵢ wᵢ cᵢ gᵢ, shaped like the parameters.
        squared_norms: ‖gᵢ‖² (B,), before clipping; with ``per_layer`` in total.  Infinite where it
            is too large for a float, which ‖gᵢ‖ is not.
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
    sweeps back, and no gᵢ is ever formed: the first sweep gives the norms, and in the second one
    each site scales its delta by cᵢ/B, since a gradient is linear in delta.  With ``per_layer`` one
    sweep is enough: each site clips with its own norm.  Norms are right where their squares are too
    large for a float, or too small.

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
        LayerError: for a max_norm that is not above 0 (under a trace the gradient is NaN), for
            layers that mix examples, and as :func:`~funcprop.value_and_backprop`.

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

    def root(norms: Array) -> Array:
        """√c, as c itself may be too small for a float; NaN for an invalid max_norm or norm."""
        bound = jnp.asarray(max_norm).astype(norms.dtype)
        too_long = norms > bound
        c = jnp.where(too_long, jnp.sqrt(bound) / jnp.sqrt(jnp.where(too_long, norms, 1)), 1)
        return jnp.where((bound > 0) & jnp.isfinite(norms), c, jnp.nan)

    def clipped(model: Layer, loss: Loss) -> Callable[..., Clipped]:
        model, loss = as_layer(model, "model"), as_loss(loss)

        def f(params, x, y, *, sample_weight=None, weights=None, key=None):
            x, size = checked_batch(x, y)
            check_sample_weight(sample_weight, size, some=False)
            losses, back = forward_pass(model, loss, params, x, y, weights=weights, key=key)
            wide = accumulated(losses)
            counts = jnp.ones_like(wide)
            if sample_weight is not None:
                counts = jnp.asarray(sample_weight).astype(wide.dtype)

            def scaled(site: Site, inputs: Tree, delta: Tree, norms: Array) -> Tree:
                c = root(norms)
                return weighted(site, inputs, delta, c, c, counts / size)

            def at_site(site: Site, inputs: Tree, delta: Tree) -> Any:
                norms = norm(site, inputs, delta)
                return (norms, scaled(site, inputs, delta, norms)) if per_layer else (norms, ())

            statistic = Statistic("clipped gradients", at_site, lambda found, size: None)
            _, found = back.from_losses(jnp.ones_like(losses), statistic.at)
            norms = length(jax.tree.leaves(map_sites(lambda at: at.piece[0], found)))
            if per_layer:
                grads = map_sites(lambda at: at.piece[1], found)
            else:
                grads = back.from_losses(
                    jnp.ones_like(losses), functools.partial(scaled, norms=norms)
                )[1]
            total = jnp.sum(counts)
            value = jnp.sum(counts * wide) / jnp.where(total == 0, 1, total)
            return Clipped(value.astype(losses.dtype), grads, norms * norms)

        return f

    return clipped
