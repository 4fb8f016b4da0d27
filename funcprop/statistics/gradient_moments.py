"""How much the examples' gradients agree: moments, signal to noise, and the noise scale."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import LayerError
from ..core.contraction import accumulated, by_example
from ..core.rows import OneHot, dense, of_matrix
from ..core.site import Site, gradient
from .at_site import bias, each_gradient
from .statistic import Statistic, added, map_sites

Tree = Any
Array = jax.Array


class NoiseScale(NamedTuple):
    """The simple noise scale tr Σ/|G|² (McCandlish 2018, arXiv 1812.06162, eq. 2.9), in examples.

    Attributes:
        trace: tr Σ, the variance of gᵢ over all parameters, unbiased.
        squared_norm: |G|², of the gradient of all data, unbiased, and so below 0 at times.
        scale: their ratio.  Of many batches take the ratio of the means (appendix A.1).
    """

    trace: Array
    squared_norm: Array
    scale: Array


class Moments(NamedTuple):
    """Moments of the examples' gradients gᵢ, trees shaped like the parameters.

    Attributes:
        gradient: their mean ḡ.
        sum_of_squares: Σᵢ gᵢ².
        variance: Σᵢ (gᵢ - ḡ)²/(B - 1); rounding below 0 counts as 0.
        signal_to_noise: |ḡ| over the standard deviation of gᵢ, infinite where they are all equal.
        noise_scale: over all parameters.
        noise_scales: a tree with one for each site; with axes (n,) inside ``repeat``.
    """

    gradient: Tree
    sum_of_squares: Tree
    variance: Tree
    signal_to_noise: Tree
    noise_scale: NoiseScale
    noise_scales: Tree


def squares(site: Site, inputs: Tree, delta: Tree) -> Tree:
    """Σᵢ gᵢ² at a site; with one row an example (rᵀ l)² = (r²)ᵀ l² (BackPACK, arXiv 1912.10985)."""
    return by_example(functools.partial(_squares, site), inputs, delta, summed=True)


def _squares(site: Site, inputs: Tree, delta: Tree) -> Tree:
    inputs, delta = accumulated((inputs, delta))
    rows = None if site.rows is None else site.rows(inputs, delta)
    if rows is None or isinstance(rows[0], OneHot) or rows[0].shape[1] > 1:
        each = each_gradient(site, inputs, delta)
        return jax.tree.map(lambda g: jnp.sum(g * g, axis=0), each)
    left, right = dense(rows[0]), rows[1]
    like = jax.eval_shape(site.gradient, inputs, delta)
    found = of_matrix(site, jnp.einsum("brm,brn->mn", right * right, left * left), like)
    own = bias(site, inputs, delta)
    return found | jax.tree.map(lambda g: jnp.sum(g * g, axis=0), own)


def _at_site(site: Site, inputs: Tree, delta: Tree) -> tuple[Tree, Tree]:
    wide = accumulated((inputs, delta))
    return gradient(site, *wide), squares(site, *wide)


def _finish(found: Tree, size: int) -> Moments:
    if size < 2:
        raise LayerError("moments", "the batch has one example, two or more are due")

    def mapped(f):
        return map_sites(lambda at: jax.tree.map(f, *at.piece), found)

    def variance(total, square):
        return jnp.maximum(square - total * total / size, 0) / (size - 1)

    def kept(at):
        """‖ḡ‖² and the mean of ‖gᵢ‖², behind the axes of ``repeat``."""
        depth = jnp.ndim(at.depth)
        total, square = (
            sum(jnp.sum(leaf, tuple(range(depth, leaf.ndim))) for leaf in jax.tree.leaves(tree))
            for tree in (jax.tree.map(lambda g: g * g, at.piece[0]), at.piece[1])
        )
        return at._replace(piece=jnp.stack([total / size**2, square / size], axis=-1))

    norms = map_sites(kept, found)
    return Moments(
        mapped(lambda total, _: total / size),
        mapped(lambda _, square: square),
        mapped(variance),
        mapped(lambda total, square: jnp.abs(total) / size / jnp.sqrt(variance(total, square))),
        _noise_scale(added(norms), size),
        map_sites(lambda at: _noise_scale(at.piece, size), norms),
    )


def _noise_scale(norms: Array, size: int) -> NoiseScale:
    """Appendix A.1 with batches of 1 and of B."""
    whole, one = norms[..., 0], norms[..., 1]
    trace = (one - whole) * size / (size - 1)
    squared_norm = (size * whole - one) / (size - 1)
    return NoiseScale(trace, squared_norm, trace / squared_norm)


moments = Statistic("moments of gradients", _at_site, _finish)
"""Sums of squares, variances, signal to noise and noise scales as :class:`Moments`."""
