"""Difference target propagation: learned inverses carry targets down, and each block is local."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..core.checks import check_number, floats_of, with_floats
from ..core.combinators import joined_blocks
from ..core.layer import Layer, Shape
from ..core.loss import Loss
from ..core.rule import Rule
from ..core.sweep import checked_batch, shares, weighted_mean
from ..layers.activations import tanh
from ..layers.dense import dense
from .backpropagation import rule_of
from .chain import (
    activities,
    chain,
    check_example,
    check_shape,
    losses_and_delta,
    model_and_loss,
    plus,
    shapes_between,
    weighted,
)
from .state import check_optimizer, check_state, descended, own_key

Tree = Any


class DifferenceTargetState(NamedTuple):
    """The feedback networks, outside of what the trained parameters' optimiser sees.

    Attributes:
        feedback: parameters of g₂ ... g_L₋₁.
        opt_state: their own optimiser's state.
    """

    feedback: tuple[Tree, ...]
    opt_state: Tree


def _dense_tanh(size_in: int, size_out: int) -> Layer:
    return dense(size_out, tanh)


def difference_target_propagation(
    model: Layer,
    loss: Loss,
    shape: Shape,
    *,
    optimizer: optax.GradientTransformation,
    step: float = 0.5,
    noise: float = 0.3,
    feedback: Callable[[int, int], Layer] = _dense_tanh,
) -> Rule:
    """Difference target propagation: each block has a target and a loss of its own.

        targets     ĥ_L₋₁ = h_L₋₁ - η̂ ∂ℓ/∂h_L₋₁      ĥₗ₋₁ = hₗ₋₁ - gₗ(hₗ) + gₗ(ĥₗ)
        tree        δWₗ = ∂/∂Wₗ ‖fₗ(hₗ₋₁) - ĥₗ‖²/(2 η̂)      δW_L = ∂ℓ/∂W_L      batch means
        feedback    gₗ descends along ‖gₗ(fₗ(hₗ₋₁ + ε)) - (hₗ₋₁ + ε)‖²      ε ~ N(0, noise²)

    f₁ ... f_L are the model's blocks: each part of a ``serial`` that has parameters, with what
    stands behind it.  gₗ, for l = 2 ... L - 1, learns to be an inverse of fₗ around hₗ₋₁; it maps
    an example's activities as one vector.  The local losses are divided by 2 η̂, so that the tree
    of the last two blocks is backprop's gradient; with two blocks that is all of it.

    Lee 2015, arXiv 1412.7525.

    Args:
        model: a ``serial`` of two or more blocks.
        loss: a loss without parameters.
        shape: of one example, as for ``init``.
        optimizer: any optax transformation, for the feedback networks; they take one step with
            each batch, after the targets are set.
        step: η̂, how far the first target lies down the slope of an example's own loss, above 0.
        noise: standard deviation of ε, not below 0.
        feedback: ``feedback(size_in, size_out) -> layer``, gₗ on vectors (B, size_in); by default
            ``dense(size_out, tanh)``.

    Returns:
        A :class:`~funcprop.Rule` with a :class:`~funcprop.DifferenceTargetState`; its value is the
        loss of the forward pass.  Without a key the feedback stays as it is.

    Raises:
        LayerError: for options out of range and losses with parameters; while tracing for a
            model that is one block and blocks that give no floats.

    >>> import jax, jax.numpy as jnp, optax
    >>> from funcprop import difference_target_propagation, mean_squared_error, mlp, tanh
    >>> model = mlp((2, 4, 3, 1), tanh)
    >>> rule = difference_target_propagation(
    ...     model, mean_squared_error, (2,), optimizer=optax.adam(1e-3))
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> state = rule.init(jax.random.key(1), params)
    >>> x, y = jnp.ones((4, 2)), jnp.ones((4, 1))
    >>> value, tree, state = rule.estimate(params, state, x, y, jax.random.key(2))
    >>> tree[0]["w"].shape, state.feedback[0]["w"].shape
    ((4, 2), (4, 3))
    """
    name = "difference_target_propagation"
    model, loss = model_and_loss(name, model, loss)
    check_number(name, "step", step, above=0)
    check_number(name, "noise", noise, at_least=0)
    check_shape(name, shape)
    check_optimizer(name, optimizer)

    def init(key, params):
        between = shapes_between(name, model, params, shape)
        rows = jax.eval_shape(lambda h: [_rows(hl) for hl in h], between)
        pairs = list(zip(rows[1:-1], rows[:-2], strict=True))
        made = []
        for (here, below), own in zip(pairs, jax.random.split(key, len(pairs)), strict=True):
            g, _ = feedback(here.shape[1], below.shape[1]).init(own, here.shape[1:])
            made.append(jax.tree.map(lambda leaf, dtype=here.dtype: leaf.astype(dtype), g))
        return DifferenceTargetState(tuple(made), optimizer.init(tuple(made)))

    def estimate(params, state, x, y, key, sample_weight=None):
        x, size = checked_batch(x, y)
        check_example(name, shape, x)
        check_state(name, state, jax.eval_shape(init, jax.random.key(0), params))
        fs = chain(name, model, params, key)
        h, backs = activities(fs, x)
        gs = [
            feedback(_rows(here).shape[1], _rows(below).shape[1])
            for here, below in zip(h[1:-1], h[:-2], strict=True)
        ]
        losses, delta = losses_and_delta(loss, h[-1], y)

        value, share = weighted_mean(losses, shares(sample_weight, size))

        slope, tree = backs[-1](weighted(share, delta))
        # A target is each example's own, whatever the example counts for.
        own = size * _rows(slope) if sample_weight is None else _rows(backs[-1](delta)[0])
        target = _rows(h[-2]) - step * own
        trees = [tree]
        for l in reversed(range(len(h) - 1)):
            error = weighted(share, (_rows(h[l]) - target) / step)
            trees.append(backs[l](_floats_like(h[l], error))[1])
            if l > 0:
                g, v = gs[l - 1], state.feedback[l - 1]
                target = _rows(h[l - 1]) - g.apply(v, _rows(h[l])) + g.apply(v, target)

        if key is not None and gs:
            grads = _reconstructing(gs, fs, h, state.feedback, noise, own_key(key), share)
            new = descended(name, optimizer, grads, state.opt_state, state.feedback)
            state = DifferenceTargetState(*new)
        return value, joined_blocks(model, trees[::-1]), state

    return rule_of(model, loss, init, estimate)


def _reconstructing(gs, fs, h, feedback, noise, key, share):
    """What leads the feedback networks towards inverses, downhill."""
    grads = []
    for l, (g, v, own) in enumerate(
        zip(gs, feedback, jax.random.split(key, len(gs)), strict=True), start=1
    ):
        floats = floats_of(h[l - 1])
        below = plus(floats, optax.tree.random_like(own, floats), noise)
        above, _ = fs[l](with_floats(h[l - 1], below))
        again, residuals = g.forward(v, _rows(above))
        delta = weighted(share, 2 * (again - _rows(below)))
        grads.append(g.backward(v, residuals, delta)[1])
    return tuple(grads)


def _rows(x: Tree) -> jax.Array:
    """Each example's floats as one vector: (B, n)."""
    leaves = jax.tree.leaves(floats_of(x))
    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def _floats_like(x: Tree, rows: jax.Array) -> Tree:
    """The floats of a tree like x from each example's vector."""
    leaves, structure = jax.tree.flatten(floats_of(x))
    ends = np.cumsum([math.prod(leaf.shape[1:]) for leaf in leaves])
    parts = jnp.split(rows, ends[:-1], axis=1)
    return jax.tree.unflatten(
        structure, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    )
