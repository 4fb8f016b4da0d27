"""What a statistic is: a piece at each site, and what is made of the pieces.

Statistics speak of each example's own loss ℓᵢ, which the gradient is the mean of: the sweep sends
∂/∂ℓᵢ = 1 back for every example, where :func:`~funcprop.value_and_backprop` sends 1/B.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import LayerError, as_layer
from ..core.layer import Layer
from ..core.loss import Loss, as_loss
from ..core.site import Site
from ..core.sweep import checked_batch, forward_pass

Tree = Any


class Statistic(NamedTuple):
    """A statistic of the backward sweep of each example's own loss.

    Called with a model and a loss it gives ``f(params, x, y, *, weights=None, key=None)``, of the
    arguments of :func:`~funcprop.value_and_backprop`; what that returns is the statistic's own.

    Attributes:
        name: what errors call it.
        at_site: ``at_site(site, inputs, delta) -> tree``, the piece at one site; as the
            ``statistic`` of :func:`~funcprop.value_and_backprop` it sees δ divided by B.
        finish: ``finish(found, size) -> result``, of a tree with an :class:`AtSite` in the place
            of each site's parameters, and how many examples there are.
        by_example: whether it speaks of single examples, so that layers that mix them are refused.
    """

    name: str
    at_site: Callable[[Site, Tree, Tree], Tree]
    finish: Callable[[Tree, int], Any]
    by_example: bool = True

    def __call__(self, model: Layer, loss: Loss) -> Callable[..., Any]:
        model, loss = as_layer(model, "model"), as_loss(loss)

        def f(params, x, y, *, weights=None, key=None):
            x, size = checked_batch(x, y)
            losses, back = forward_pass(model, loss, params, x, y, weights=weights, key=key)
            _, found = back.from_losses(jnp.ones_like(losses), self.at)
            return self.finish(found, size)

        return f

    def at(self, site: Site, inputs: Tree, delta: Tree) -> AtSite:
        """The piece at a site, wrapped so that ``repeat`` tells how often it stacked it."""
        if self.by_example and site.mixes:
            raise LayerError(
                site.name,
                f"it mixes the examples of a batch, so that {self.name} have no meaning; train "
                "with group_norm or layer_norm, or take the inference form that calibrate gives",
            )
        return AtSite(self.at_site(site, inputs, delta), jnp.zeros(()))


class AtSite(NamedTuple):
    """A piece, behind as many axes of ``repeat`` as ``depth`` has."""

    piece: Tree
    depth: jax.Array


def combine(**statistics: Statistic) -> Statistic:
    """Several statistics in one sweep; the result is a dict of theirs.

    Args:
        **statistics: by name, all of the same error: each example's own loss.

    Raises:
        LayerError: when one is no :class:`Statistic`.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import dense, mean_squared_error
    >>> from funcprop.statistics import combine, mean_gradient, squared_norms
    >>> model = dense(1, w_init=jax.nn.initializers.ones)
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> both = combine(norms=squared_norms, gradient=mean_gradient)(model, mean_squared_error)
    >>> found = both(params, jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[1.0], [1.0]]))
    >>> found["norms"].total.tolist(), found["gradient"]["b"].tolist()
    ([96.0, 4.0], [1.0])
    """
    for name, statistic in statistics.items():
        if not isinstance(statistic, Statistic):
            came = f"a {type(statistic).__name__}"
            raise LayerError("combine", f"{name} is {came}, a Statistic is due")

    def at_site(site, inputs, delta):
        return {name: s.at_site(site, inputs, delta) for name, s in statistics.items()}

    def finish(found, size):
        def of(name):
            return map_sites(lambda at: AtSite(at.piece[name], at.depth), found)

        return {name: s.finish(of(name), size) for name, s in statistics.items()}

    by_example = any(s.by_example for s in statistics.values())
    return Statistic("statistics", at_site, finish, by_example)


# ------------------------------------------------------------------------- pieces of a tree


def map_sites(f: Callable[..., Tree], *found: Tree) -> Tree:
    """``f`` of every :class:`AtSite`."""
    return jax.tree.map(f, *found, is_leaf=_is_at_site)


def examples_first(found: Tree, axes: int = 1) -> Tree:
    """The pieces, (B, ...) whether inside ``repeat`` or not; with 2 axes (B, B′, ...)."""

    def moved(at):
        depth = jnp.ndim(at.depth)
        places = range(depth, depth + axes)
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, places, range(axes)), at.piece)

    return map_sites(moved, found)


def added(found: Tree, axes: int = 1) -> jax.Array:
    """The sum of all pieces over all sites, of ``repeat`` too; the last ``axes`` are kept."""
    leaves = jax.tree.leaves(map_sites(lambda at: at.piece, found))
    return functools.reduce(jnp.add, [jnp.sum(a, tuple(range(a.ndim - axes))) for a in leaves])


def _is_at_site(node: Any) -> bool:
    return isinstance(node, AtSite)
