"""Differentially private backprop: Poisson sampling, clipping and noise."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..core.checks import LayerError, as_layer, check_number
from ..core.contraction import accumulated
from ..core.layer import Layer
from ..core.loss import Loss, as_loss
from ..core.rule import Rule, no_state, no_weights
from ..statistics.clipping import clipped_gradient
from .backpropagation import rule_of

Tree = Any


def dp_sgd(
    model: Layer, loss: Loss, *, max_norm: float, noise_multiplier: float, sampling_rate: float
) -> Rule:
    """The private gradient of DP-SGD, for any optimiser.

        each example is drawn with probability q, independently of the others
        g̃ = 1/(q N) (Σᵢ min(1, C/‖gᵢ‖) gᵢ + σ C z)        z ~ N(0, I)

    Abadi 2016, arXiv 1607.00133, algorithm 1.  The rule is given all N examples at each step, and
    draws the batch itself: Poisson sampling is what the privacy accountants reckon with, and
    batches of one shuffled order are not.  The drawn ones are swept in a batch of fixed size,
    six standard deviations above q N; if ever more are drawn, the rest is left out, which is no
    less private.

    One step is the Gaussian mechanism with noise multiplier σ on a sample of rate q, for data sets
    that differ by one example more or less.  What many steps amount to is for an accountant to
    say, such as ``dp_accounting``.  The loss that is reported is not private.

    Args:
        model: the model, a layer.
        loss: the loss.
        max_norm: C, above 0.
        noise_multiplier: σ, not below 0; with 0 nothing is private.
        sampling_rate: q, in (0, 1].

    Returns:
        A :class:`~funcprop.Rule` without state; train with the whole data as one batch.

    Raises:
        LayerError: for options that make no sense, an estimate without a key, and layers that mix
            examples.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import dense, dp_sgd, mean_squared_error
    >>> model = dense(1)
    >>> rule = dp_sgd(
    ...     model, mean_squared_error, max_norm=1.0, noise_multiplier=1.0, sampling_rate=0.1
    ... )
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> x, y = jnp.ones((100, 2)), jnp.ones((100, 1))
    >>> value, grads, _ = jax.jit(rule.estimate)(params, (), x, y, jax.random.key(1))
    >>> value.shape, grads["w"].shape
    ((), (1, 2))
    """
    model, loss = as_layer(model, "model"), as_loss(loss)
    check_number("dp_sgd", "max_norm", max_norm, above=0)
    check_number("dp_sgd", "noise_multiplier", noise_multiplier, at_least=0)
    check_number("dp_sgd", "sampling_rate", sampling_rate, above=0, at_most=1)
    clipped = clipped_gradient(max_norm)(model, loss)

    def estimate(params, state, x, y, key, sample_weight=None):
        no_weights("dp_sgd", sample_weight, "since each example must count for one")
        if key is None:
            raise LayerError("dp_sgd", "sample and noise are random; give the step a key")
        sample_key, noise_key, own_key = jax.random.split(key, 3)
        size = len(jax.tree.leaves(x)[0])
        due = sampling_rate * size
        most = min(size, int(np.ceil(due + 6 * np.sqrt(due * (1 - sampling_rate)))))
        drawn = jax.random.bernoulli(sample_key, sampling_rate, (size,))
        # A random order in front, so that it is by chance which are left out of too many.
        order = jax.random.permutation(jax.random.fold_in(sample_key, 1), size)
        (places,) = jnp.nonzero(drawn[order], size=most, fill_value=size)
        real = places < size
        chosen = order[jnp.minimum(places, size - 1)]
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], (x, y))
        counts = real.astype(jax.tree.leaves(params)[0].dtype)
        found = clipped(params, *batch, sample_weight=counts, key=own_key)

        deviation = noise_multiplier * max_norm / due
        wide = accumulated(found.gradient)
        noise = optax.tree.random_like(noise_key, wide)
        noisy = jax.tree.map(
            lambda grad, z, like: (grad * (most / due) + deviation * z).astype(like.dtype),
            wide,
            noise,
            found.gradient,
        )
        return found.value, noisy, state

    return rule_of(model, loss, no_state, estimate)._replace(private=True)
