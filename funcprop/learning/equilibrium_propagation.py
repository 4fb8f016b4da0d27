"""Equilibrium propagation: a network that settles, freely and with its outputs nudged."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import LayerError, as_layer, check_count, check_number, position
from ..core.combinators import serial
from ..core.contraction import accumulated
from ..core.layer import Layer
from ..core.loss import Loss
from ..core.rule import Rule, no_state
from ..core.sweep import checked_batch, shares, weighted_mean
from ..layers.activations import elementwise
from ..layers.dense import affine
from ..losses.targets import one_hot
from .chain import model_and_loss, weighted
from .state import check_flag

Tree = Any
NAME = "equilibrium_propagation"
# The hard sigmoid of the unit interval with its corners rounded: steepest, with slope 1, at ½.
firing_rate = elementwise(
    lambda u: jax.nn.sigmoid(4 * u - 2),
    lambda rho: 4 * rho * (1 - rho),
    of_output=True,
    name="firing_rate",
)


def equilibrium_propagation(
    model: Layer,
    loss: Loss,
    *,
    activation: Layer = firing_rate,
    beta: float = 0.5,
    symmetric: bool = True,
    steps: int = 30,
    nudged_steps: int = 10,
    rate: float = 0.5,
) -> Rule:
    """Correlations of neighbours at rest, with the outputs free and nudged towards the target.

        energy      E  = ½ Σₗ uₗ² - Σₗ ρ(uₗ) (Wₗ ρ(uₗ₋₁) + bₗ)             ρ(u₀) = x
        settling    uₗ ← uₗ + rate (-uₗ + ρ′(uₗ) (Wₗ ρ(uₗ₋₁) + bₗ + Wₗ₊₁ᵀ ρ(uₗ₊₁)))
                    at the outputs - rate β ∂ℓ/∂u_L more
        one-sided   δWₗ = 1/(β B) Σ (ρ(uₗ)ᵀ ρ(uₗ₋₁) at 0 - ρ(uₗ)ᵀ ρ(uₗ₋₁) at β)
        symmetric   δWₗ = 1/(2β B) Σ (ρ(uₗ)ᵀ ρ(uₗ₋₁) at -β - ρ(uₗ)ᵀ ρ(uₗ₋₁) at β)

    Scellier & Bengio 2017, arXiv 1602.05179; the symmetric form is Laborieux 2021,
    arXiv 2006.03824.  Every weight sees the two units that it joins, and is used both ways.  For
    states at rest the tree is the gradient of the loss at the free ones, but for an error that
    falls as β, and as β² with both signs.  In the place of 1/B stands each example's share of the
    sample weights, where there are some.

    The model lends its matrices and biases alone: the states settle under ρ from 0 on, the nudged
    ones from where the free ones came to rest, and the prediction is the free outputs u_L, not what
    the layers compute.  ``value`` is their mean loss.  Labels (B, ...) of outputs (B, ..., C) are
    one-hot to the loss.

    Args:
        model: dense layers, one or in a :func:`~funcprop.serial`, with a bias or without; an
            :func:`~funcprop.mlp` for one.  Their activations are not used.
        loss: ℓ, without parameters; the nudging is its derivative.
        activation: ρ, any activation that works element by element; by default sigmoid(4u - 2), the
            hard sigmoid of [0, 1] with its corners rounded: where ρ′ is 0 nothing that a unit is
            told can move it.
        beta: β, how strong the nudging is, above 0.
        symmetric: whether it is nudged both ways.
        steps: of the free phase.
        nudged_steps: of a nudged phase.
        rate: of the settling, in (0, 1].

    Returns:
        A :class:`~funcprop.Rule` without state; it draws no random numbers.

    Raises:
        LayerError: for models of other layers, a loss with parameters, and options that make no
            sense, in the constructor; as the layers and the loss do for shapes and labels.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import equilibrium_propagation, mean_squared_error, mlp
    >>> model = mlp((2, 3, 1))
    >>> rule = equilibrium_propagation(model, mean_squared_error)
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> value, grads, _ = rule.estimate(params, (), jnp.ones((4, 2)), jnp.ones((4, 1)), None)
    >>> value.shape, grads[0]["w"].shape, rule.predict(params, jnp.ones((4, 2))).shape
    ((), (3, 2), (4, 1))
    """
    model, loss = model_and_loss(NAME, model, loss)
    activation = as_layer(activation, f"{NAME}: activation")
    kept, out = activation.init(jax.random.key(0), (2,))
    if jax.tree.leaves(kept) or out != (2,):
        raise LayerError(
            NAME, f"activation is {activation.name}, one that works element by element is due"
        )
    stacked = model.rebuild is serial().rebuild
    for i, part in enumerate(model.parts if stacked else (model,)):
        if part.name != "dense":
            raise LayerError(
                part.name,
                f"{NAME} takes dense layers alone, since its energy is made of their matrices; "
                "leave this one out, and give the activation as an argument of the rule",
                f"layers[{i}]" if stacked else "",
            )
    check_number(NAME, "beta", beta, above=0)
    check_number(NAME, "rate", rate, above=0, at_most=1)
    check_flag(NAME, "symmetric", symmetric)
    check_count(NAME, "steps", steps)
    check_count(NAME, "nudged_steps", nudged_steps)

    def rates(x, states):
        """x and every ρ(uₗ), and what ρ′ needs."""
        made = [activation.forward((), u) for u in states]
        return [x, *(rho for rho, _ in made)], [kept for _, kept in made]

    def settled(layers, x, states, count, nudge):
        def step(states, _):
            rho, kept = rates(x, states)
            drive = [layer.apply(part, r) for (layer, part), r in zip(layers, rho, strict=False)]
            for l, (layer, part) in enumerate(layers[1:]):
                drive[l] += layer.backward(part, rho[l + 1], rho[l + 2], _nothing)[0]
            slopes = [activation.backward((), k, d)[0] for k, d in zip(kept, drive, strict=True)]
            moved = [u + rate * (s - u) for u, s in zip(states, slopes, strict=True)]
            if nudge is not None:
                moved[-1] -= rate * nudge(states[-1])
            return tuple(moved), None

        return jax.lax.scan(step, states, length=count)[0]

    def freely(params, x):
        layers = _layers(params if stacked else (params,))
        states: list[jax.Array] = []
        for i, (layer, part) in enumerate(layers):
            with position(f"layers[{i}]"):
                drive = layer.apply(part, states[-1] if states else x)
            states.append(jnp.zeros_like(drive))
        return layers, settled(layers, x, tuple(states), steps, None)

    def correlations(layers, x, states, share):
        rho = accumulated(rates(x, states)[0])
        return tuple(
            layer.backward(accumulated(part), below, weighted(share, above))[1]
            for (layer, part), below, above in zip(layers, rho, rho[1:], strict=False)
        )

    def estimate(params, state, x, y, key, sample_weight=None):
        x, size = checked_batch(x, y)
        layers, free = freely(params, x)
        y = one_hot(NAME, y, free[-1])
        losses = loss.apply((), (free[-1], y))
        value, share = weighted_mean(losses, shares(sample_weight, size))

        def nudged(beta):
            def nudge(u):
                _, residuals = loss.forward((), (u, y))
                return loss.backward((), residuals, jnp.full_like(losses, beta))[0][0]

            return correlations(layers, x, settled(layers, x, free, nudged_steps, nudge), share)

        low = nudged(-beta) if symmetric else correlations(layers, x, free, share)
        apart = 2 * beta if symmetric else beta
        tree = jax.tree.map(
            lambda low, high, like: ((low - high) / apart).astype(like.dtype),
            low,
            nudged(beta),
            tuple(part for _, part in layers),
        )
        return value, tree if stacked else tree[0], state

    def predict(params, x):
        return freely(params, jnp.asarray(x))[1][-1]

    return Rule(no_state, estimate, predict)


def _layers(parts: Tree) -> list[tuple[Layer, Tree]]:
    """Each matrix as an affine map, with its parameters."""
    return [(affine(len(part["w"]), bias="b" in part), part) for part in parts]


def _nothing(site: Any, inputs: Tree, delta: Tree) -> tuple[()]:
    return ()
