"""Predictive coding: activities settle to lower an energy, and the weights follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from ..core.checks import LayerError, check_count, check_number, floats_of, with_floats
from ..core.combinators import joined_blocks
from ..core.layer import Layer
from ..core.loss import Loss
from ..core.rule import Rule, no_state
from ..core.site import Site, gradient
from ..core.sweep import checked_batch, shares, weighted_mean
from .backpropagation import rule_of
from .chain import (
    Function,
    activities,
    chain,
    losses_and_delta,
    minus,
    model_and_loss,
    plus,
    scaled,
    weighted,
)

Tree = Any
Error = Callable[[Tree, Tree], tuple[Tree, Callable]]


def predictive_coding(model: Layer, loss: Loss, *, steps: int = 20, rate: float = 0.1) -> Rule:
    """Predictive coding: errors between blocks settle, then each block learns from its own.

        errors      εₗ = zₗ - fₗ(zₗ₋₁)      ε_L = -∂ℓ/∂f_L(z_L₋₁)      z₀ = x
        energy      F  = ½ Σₗ ‖εₗ‖² + ℓ(f_L(z_L₋₁), y)      the sum over l < L
        settling    żₗ = -∂F/∂zₗ = -εₗ + (∂fₗ₊₁/∂zₗ)ᵀ εₗ₊₁
        tree        δWₗ = ∂F/∂Wₗ = -(∂fₗ/∂Wₗ)ᵀ εₗ      at the z that was reached, a batch mean

    f₁ ... f_L are the model's blocks: each part of a ``serial`` that has parameters, with what
    stands behind it.  z starts at the forward pass, where all errors but the last are 0, and takes
    ``steps`` Euler steps of ``rate``.  Of a loss times c the settled tree, divided by c, tends to
    backprop's as c falls to 0.  Layers that mix the examples of a batch are served: the energy is
    that of the batch.

    Whittington & Bogacz 2017, Neural Computation 29, with the loss in place of the last layer's
    squared error.

    Args:
        model: a ``serial`` of two or more blocks.
        loss: a loss without parameters.
        steps: how many steps of settling.
        rate: length of a step, in (0, 1].

    Returns:
        A :class:`~funcprop.Rule` without state; its value is the loss of the forward pass.

    Raises:
        LayerError: for options out of range and losses with parameters; while tracing for a
            model that is one block and blocks that give no floats.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import mean_squared_error, mlp, predictive_coding, tanh
    >>> model = mlp((2, 3, 1), tanh)
    >>> rule = predictive_coding(model, mean_squared_error)
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> value, tree, _ = rule.estimate(params, (), jnp.ones((4, 2)), jnp.ones((4, 1)), None)
    >>> value.shape, tree[0]["w"].shape
    ((), (3, 2))
    """
    model, loss = _checked("predictive_coding", model, loss, steps, rate)

    def settled(fs, x, y, fed):
        errors = _errors(fs, loss, y)

        def step(z, _):
            return moved(errors, x, z, rate), None

        z, _ = jax.lax.scan(step, fed[:-1], length=steps)
        return [at(errors, x, z, l) for l in range(len(fs))]

    return _rule("predictive_coding", model, loss, settled)


def fixed_prediction(model: Layer, loss: Loss, *, steps: int = 20, rate: float = 0.5) -> Rule:
    """Predictive coding that holds predictions and derivatives at the forward pass.

        errors      εₗ = zₗ - fₗ(hₗ₋₁)      ε_L = -∂ℓ/∂f_L(h_L₋₁)      h the forward pass
        settling    ε̇ₗ = żₗ = -εₗ + (∂fₗ₊₁/∂hₗ)ᵀ εₗ₊₁
        tree        δWₗ = -(∂fₗ/∂Wₗ)ᵀ εₗ      at h, a batch mean

    Its equilibrium is backprop: -εₗ is then the derivative of ℓ by hₗ.  On the way there the
    tree of block l is backprop's gradient times the probability of L - l or more successes in
    ``steps`` trials that succeed with probability ``rate``.

    Millidge 2022, arXiv 2006.04182.

    Args:
        model: a ``serial`` of two or more blocks, as for :func:`predictive_coding`.
        loss: a loss without parameters.
        steps: how many steps of settling.
        rate: length of a step, in (0, 1]; with 1, L - 1 steps reach the equilibrium.

    Returns:
        A :class:`~funcprop.Rule` without state; its value is the loss of the forward pass.

    Raises:
        LayerError: as of :func:`predictive_coding`.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import fixed_prediction, mean_squared_error, mlp, tanh, value_and_backprop
    >>> model = mlp((2, 3, 1), tanh)
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> rule = fixed_prediction(model, mean_squared_error, steps=2, rate=0.5)
    >>> _, tree, _ = rule.estimate(params, (), jnp.ones((4, 2)), jnp.ones((4, 1)), None)
    >>> _, grads = value_and_backprop(model, mean_squared_error)(
    ...     params, jnp.ones((4, 2)), jnp.ones((4, 1)))
    >>> bool(jnp.allclose(tree[0]["w"], 0.75 * grads[0]["w"]))
    True
    """
    model, loss = _checked("fixed_prediction", model, loss, steps, rate)

    def settled(fs, x, y, fed):
        _, backs = activities(fs, x)
        last = scaled(-1.0, losses_and_delta(loss, fed[-1], y)[1])

        def step(eps, _):
            above = [*eps[1:], last]
            pulled = [back(e)[0] for back, e in zip(backs[1:], above, strict=True)]
            return [plus(e, minus(p, e), rate) for e, p in zip(eps, pulled, strict=True)], None

        start = [scaled(0.0, floats_of(h)) for h in fed[:-1]]
        eps, _ = jax.lax.scan(step, start, length=steps)
        return list(zip([*eps, last], backs, strict=True))

    return _rule("fixed_prediction", model, loss, settled)


def zil(model: Layer, loss: Loss) -> Rule:
    """Zero-divergence inference learning: predictive coding whose timing makes it backprop.

        settling    zₗ ← zₗ - εₗ + (∂fₗ₊₁/∂zₗ)ᵀ εₗ₊₁      steps of length 1
        tree        δWₗ = -(∂fₗ/∂Wₗ)ᵀ εₗ      at step L - l, a batch mean

    Energy and errors are those of :func:`predictive_coding`.  The error of the last block travels
    down by one block a step.  At step L - l it has reached block l, whose input is still that of
    the forward pass, so that the tree is backprop's gradient, exactly.

    Song 2020, "Can the brain do backpropagation?", NeurIPS 33.

    Args:
        model: a ``serial`` of two or more blocks, as for :func:`predictive_coding`.
        loss: a loss without parameters.

    Returns:
        A :class:`~funcprop.Rule` without state; its value is the loss of the forward pass.

    Raises:
        LayerError: as of :func:`predictive_coding`.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import mean_squared_error, mlp, tanh, value_and_backprop, zil
    >>> model = mlp((2, 3, 1), tanh)
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> x, y = jnp.ones((4, 2)), jnp.ones((4, 1))
    >>> _, tree, _ = zil(model, mean_squared_error).estimate(params, (), x, y, None)
    >>> _, grads = value_and_backprop(model, mean_squared_error)(params, x, y)
    >>> bool(jnp.allclose(tree[0]["w"], grads[0]["w"]))
    True
    """
    model, loss = model_and_loss("zil", model, loss)

    def settled(fs, x, y, fed):
        errors = _errors(fs, loss, y)

        def step(z, _):
            return moved(errors, x, z, 1.0), z

        _, history = jax.lax.scan(step, fed[:-1], length=len(fs))

        def z(t):
            return jax.tree.map(lambda leaf: leaf[t], history)

        last = len(fs) - 1
        return [at(errors, x, z(last - l), l) for l in range(len(fs))]

    return _rule("zil", model, loss, settled)


def moved(errors: list[Error], x: Tree, z: list[Tree], rate: float) -> list[Tree]:
    """z after one Euler step of ``rate``."""
    found = [at(errors, x, z, l) for l in range(len(errors))]
    eps = [e for e, _ in found]
    pulled = [back(e)[0] for e, back in found[1:]]
    flow = [minus(p, e) for p, e in zip(pulled, eps[:-1], strict=True)]
    return [
        with_floats(here, plus(floats_of(here), dz, rate)) for here, dz in zip(z, flow, strict=True)
    ]


def at(errors: list[Error], x: Tree, z: list[Tree], l: int) -> tuple[Tree, Callable]:
    """ε and the way back of block l, counted from 0, at the activities z between blocks."""
    return errors[l]([x, *z][l], [*z, None][l])


def _errors(fs: list[Function], loss: Loss, y: Tree) -> list[Error]:
    """For each block a function of what is below and above it that gives ε and the way back."""

    def between(f):
        def error(below, here):
            prediction, back = f(below)
            return minus(here, prediction), back

        return error

    def last(below, _):
        prediction, back = fs[-1](below)
        return scaled(-1.0, losses_and_delta(loss, prediction, y)[1]), back

    return [*map(between, fs[:-1]), last]


def _rule(name: str, model: Layer, loss: Loss, settled: Callable[..., list[Tree]]) -> Rule:
    """``settled`` gives each block's ε and way back; its tree is the mean of -(∂f/∂W)ᵀ ε."""

    def estimate(params, state, x, y, key, sample_weight=None):
        x, size = checked_batch(x, y)
        fs = chain(name, model, params, key)
        fed, _ = activities(fs, x)
        losses, _ = losses_and_delta(loss, fed[-1], y)
        value, share = weighted_mean(losses, shares(sample_weight, size))
        statistic = gradient if sample_weight is None else _unmixed
        trees = [
            back(scaled(-1.0, weighted(share, eps)), statistic)[1]
            for eps, back in settled(fs, x, y, fed)
        ]
        return value, joined_blocks(model, trees), state

    return rule_of(model, loss, no_state, estimate)


def _unmixed(site: Site, inputs: Tree, delta: Tree) -> Tree:
    if site.mixes:
        raise LayerError(
            site.name,
            "it mixes the examples of a batch, whose energy knows no sample_weight; leave the "
            "weights out, or take layer_norm or group_norm",
        )
    return gradient(site, inputs, delta)


def _checked(name: str, model: Layer, loss: Loss, steps: int, rate: float) -> tuple[Layer, Loss]:
    check_count(name, "steps", steps)
    check_number(name, "rate", rate, above=0, at_most=1)
    return model_and_loss(name, model, loss)
