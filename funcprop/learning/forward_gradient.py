"""Forward gradients: the derivative along a random direction, times that direction."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..core.checks import LayerError, as_layer, check_count, floats_of, with_floats
from ..core.combinators import blocks, joined_blocks
from ..core.contraction import Varying, divided, matched, one_by_one
from ..core.layer import Layer
from ..core.loss import Loss, as_loss, has_parameters
from ..core.rule import Rule, no_state
from ..core.site import gradient
from ..core.sweep import checked_batch, mean_loss, shares, weighted_mean
from .backpropagation import rule_of
from .chain import functions, weighted
from .state import check_flag, own_key

Tree = Any
NAME = "forward_gradient"


def forward_gradient(
    model: Layer, loss: Loss, *, directions: int = 1, activities: bool = False
) -> Rule:
    """The gradient guessed from derivatives along random directions, in forward mode.

    By weights, with f the mean loss and θ all parameters (Baydin 2022, arXiv 2202.08587):

        v ~ N(0, I)      ĝ = (∇f · v) v

    By activities, with yₗ the output of block l for one example and ℓ its loss (after Ren 2022,
    arXiv 2210.03310):

        uₗ ~ N(0, I)      d = Σₗ (∂ℓ/∂yₗ) · uₗ      δₗ = d uₗ

    and the gradient of block l is what its own backward pass makes of δₗ.  ∇f · v, and d of all
    blocks and examples, is one ``jax.jvp``.  Both forms are unbiased, as E[v vᵀ] = I: E[δₗ] is
    ∂ℓ/∂yₗ, and a backward pass is linear in it.  The variance of ĝ by weights is P + 1 times its
    squared norm for P parameters; by activities it grows with the number of units instead.  The
    mean of k directions has 1/k of it.

    A block is a part of a :func:`~funcprop.serial` that has parameters, with the parts behind it
    that have none, so a dense layer is perturbed behind its activation, whose derivative is known.
    Within a block the error travels as in backprop.

    Args:
        model: any layer; by activities a model of several blocks, none of which mixes examples.
        loss: any loss; by activities one without parameters.
        directions: k, how many directions are averaged, one after the other.
        activities: whether activities are perturbed instead of weights.

    Returns:
        A :class:`~funcprop.Rule` without state.  Without a key it gives the loss and zeros.

    Raises:
        LayerError: by activities for a loss with parameters, and for layers that mix examples.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import forward_gradient, mean_squared_error, mlp
    >>> model = mlp((2, 3, 1))
    >>> rule = forward_gradient(model, mean_squared_error, activities=True)
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> x, y = jnp.ones((4, 2)), jnp.ones((4, 1))
    >>> value, grads, _ = jax.jit(rule.estimate)(params, (), x, y, jax.random.key(1))
    >>> value.shape, grads[0]["w"].shape
    ((), (3, 2))
    """
    model, loss = as_layer(model, "model"), as_loss(loss)
    check_count(NAME, "directions", directions)
    check_flag(NAME, "activities", activities)
    if activities and has_parameters(loss):
        raise LayerError(
            NAME,
            f"{loss.name} has parameters, which no activity stands for; put them into the model",
        )
    value_of = mean_loss(model, loss)

    def by_weights(params, x, y, key, direction_keys, sample_weight):
        def value(params):
            return value_of(params, x, y, key, sample_weight)

        def along(direction_key):
            v = optax.tree.random_like(direction_key, params)
            _, derivative = jax.jvp(value, (params,), (v,))
            return jax.tree.map(lambda leaf: derivative.astype(leaf.dtype) * leaf, v)

        return value(params), _mean_of(along, direction_keys)

    def by_activities(params, x, y, key, direction_keys, sample_weight):
        x, size = checked_batch(x, y)
        fs = functions(NAME, blocks(model, params), key)

        def forward(added):
            h, outputs, backs = x, [], []
            for i, f in enumerate(fs):
                h, back = f(h)
                outputs.append(floats_of(h))
                if added is not None:
                    h = with_floats(h, jax.tree.map(jnp.add, outputs[i], added[i]))
                backs.append(back)
            return loss.apply((), (h, y)), (outputs, backs)

        losses, (outputs, backs) = forward(None)
        value, share = weighted_mean(losses, shares(sample_weight, size))

        def along(direction_key):
            u = optax.tree.random_like(direction_key, outputs)
            zeros = jax.tree.map(jnp.zeros_like, u)
            _, d = jax.jvp(lambda added: forward(added)[0], (zeros,), (u,))
            return weighted(share, weighted(d, u))

        deltas = _mean_of(along, direction_keys)
        trees = [back(d, _own_gradient)[1] for back, d in zip(backs, deltas, strict=True)]
        return value, joined_blocks(model, trees)

    form = by_activities if activities else by_weights

    def estimate(params, state, x, y, key, sample_weight=None):
        if key is None:
            value = value_of(params, x, y, None, sample_weight)
            return value, jax.tree.map(jnp.zeros_like, params), state
        direction_keys = jax.random.split(own_key(key), directions)
        value, grads = form(params, x, y, key, direction_keys, sample_weight)
        return value, matched(grads, Varying.of(params)), state

    return rule_of(model, loss, no_state, estimate)


def _mean_of(f, keys):
    """The mean of f over keys, one after the other: memory does not grow with their number."""
    return one_by_one(lambda key: divided(f(key), len(keys)), keys)


def _own_gradient(site, inputs, delta):
    if site.mixes:
        raise LayerError(
            site.name,
            "it mixes the examples of a batch, so that forward_gradient by activities has no "
            "meaning; perturb the weights (activities=False), or train with layer_norm",
        )
    return gradient(site, inputs, delta)
