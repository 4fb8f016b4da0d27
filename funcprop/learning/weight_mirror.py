"""Weight mirror: feedback weights that copy the forward weights by listening to noise."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import LayerError, check_count, check_number
from ..core.contraction import accumulated
from ..core.layer import Layer
from ..core.loss import Loss
from ..core.rows import matrix_of, of_matrix
from ..core.rule import Rule
from ..core.site import Site, gradient
from ..core.sweep import value_and_backprop
from ..statistics.statistic import AtSite, map_sites
from .backpropagation import rule_of
from .feedback import as_large, carriers, drawn, matrices
from .state import check_state, own_key

Tree = Any


def weight_mirror(
    model: Layer,
    loss: Loss,
    *,
    rate: float,
    decay: float | None = None,
    samples: int = 32,
    feedback: Callable[[jax.Array, jax.Array], jax.Array] = as_large,
) -> Rule:
    """Weight mirror: at each step noise passes through the weights, and B learns from it.

        δₗ = δₗ₊₁ B ⊙ φ′(aₗ)
        ξ ~ N(0, I)      y = W ξ      ΔB = η mean (y ξᵀ) - λ B

    E[y ξᵀ] = W, so B comes to stand along W, with η = λ as a moving average of it (Akrout 2019,
    arXiv 1904.05391, section 3).  The noise enters each matrix by itself; what the paper forms is
    Wᵀ, which carries the error as B does here.

    Args:
        model: any layer whose matrices all have a matrix form (:attr:`~funcprop.Site.rows`).
        loss: any loss.
        rate: η, above 0.
        decay: λ, in [0, 1]; by default η.
        samples: how many ξ a step.
        feedback: the first B, as of :func:`~funcprop.feedback_alignment`.

    Returns:
        A :class:`~funcprop.Rule`; its state is the tree of B, with ``None`` where the true
        parameters carry the error.

    Raises:
        LayerError: for options that make no sense; while tracing, for a layer without a matrix
            form (grouped convolution, mixture of experts), by name; and as
            :func:`~funcprop.feedback_alignment`.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import mean_squared_error, mlp, weight_mirror
    >>> model = mlp((2, 3, 1))
    >>> rule = weight_mirror(model, mean_squared_error, rate=0.1)
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> state = rule.init(jax.random.key(1), params)
    >>> x, y = jnp.ones((4, 2)), jnp.ones((4, 1))
    >>> estimate = jax.jit(rule.estimate)
    >>> for i in range(100):
    ...     _, _, state = estimate(params, state, x, y, jax.random.key(i))
    >>> bool(jnp.allclose(state[1]["w"], params[1]["w"], atol=0.5))
    True
    """
    name = "weight_mirror"
    check_number(name, "rate", rate, above=0)
    if decay is None and rate > 1:
        raise LayerError(name, f"rate is {rate!r}, and so is the decay, a number in [0, 1] is due")
    decay = rate if decay is None else decay
    check_number(name, "decay", decay, at_least=0, at_most=1)
    check_count(name, "samples", samples)
    samples = int(samples)
    sweep = value_and_backprop(model, loss, _with_site)

    def init(key, params):
        return drawn("weight_mirror", model, feedback, key, params)

    def estimate(params, state, x, y, key, sample_weight=None):
        check_state("weight_mirror", state, matrices(params))
        value, found = sweep(
            params, x, y, sample_weight=sample_weight, weights=carriers(params, state), key=key
        )
        tree = map_sites(lambda at: at.piece[1], found)
        if key is None:
            return value, tree, state
        count, noise_key = itertools.count(), own_key(key)

        def seen(at, own):
            site_key = jax.random.fold_in(noise_key, next(count))
            return _mirrored(at.piece[0], samples, at.depth.shape, site_key, own)

        new = map_sites(seen, found, params)
        state = jax.tree.map(lambda b, m: (1 - decay) * b + rate * m, state, matrices(new))
        return value, tree, state

    return rule_of(model, loss, init, estimate)


def _with_site(site: Site, inputs: Tree, delta: Tree) -> AtSite:
    tree = gradient(site, inputs, delta)
    if site.rows is None and jax.tree.leaves(matrices(tree)):
        raise LayerError(
            site.name,
            "it has no matrix form, as grouped convolutions and mixtures of experts have none, so "
            "weight_mirror cannot send noise through it; take kolen_pollack",
        )
    return AtSite((site, tree), jnp.zeros(()))


def _mirrored(
    site: Site, samples: int, repeats: tuple[int, ...], key: jax.Array, own: Tree
) -> Tree:
    """mean (y ξᵀ) in the place of each matrix of a site's parameters."""
    if not jax.tree.leaves(matrices(own)):
        return own
    if repeats:
        inside = functools.partial(_mirrored, site, samples, repeats[1:])
        return jax.vmap(inside)(jax.random.split(key, repeats[0]), own)
    w = accumulated(matrix_of(site, own))
    noise = jax.random.normal(key, (samples, w.shape[1]), w.dtype)
    found = of_matrix(site, (noise @ w.T).T @ noise / samples, own)
    return own | {name: leaf.astype(own[name].dtype) for name, leaf in found.items()}
