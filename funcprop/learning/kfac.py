"""Backprop with the Kronecker factors of the curvature beside the gradient."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import check_number, is_inexact
from ..core.layer import Layer, Shape
from ..core.loss import Loss
from ..core.rule import Rule
from ..core.sweep import value_and_backprop
from ..statistics.errors import Errors, sampled
from ..statistics.kfac import factors_of, kfac_factors
from .backpropagation import rule_of
from .chain import check_shape, example_for, model_and_loss
from .state import check_flag, check_state, own_key

Tree = Any


class KfacState(NamedTuple):
    """Moving averages of the Kronecker factors.

    Attributes:
        average: of the factors, from zeros on.
        weight: what it lacks to be one, decay to the power of the steps taken.
    """

    average: Tree
    weight: jax.Array

    @property
    def factors(self) -> Tree:
        """The average without its bias towards zero."""
        return jax.tree.map(lambda leaf: leaf / (1 - self.weight), self.average)


def kfac(
    model: Layer,
    loss: Loss,
    shape: Shape,
    *,
    errors: Errors | None = None,
    decay: float = 0.95,
    reduce: bool = False,
) -> Rule:
    """Backprop; the rule's state holds moving averages of the Kronecker factors.

    :func:`~funcprop.statistics.precondition_by_kfac` reads them, in a chain of optax:

        fit(kfac(model, loss, shape),
            optax.chain(precondition_by_kfac(1e-3), optax.sgd(0.1, momentum=0.9)), ...)

    Martens & Grosse 2015, arXiv 1503.05671.

    Args:
        model: the model, a layer.
        loss: the loss, without parameters of its own, convex in the prediction.
        shape: of one example, as for ``init``.
        errors: as of :func:`~funcprop.statistics.kfac_factors`; by default one sample.
        decay: how much of the average stays in each step, in [0, 1); 0 for full batches.
        reduce: as of :func:`~funcprop.statistics.kfac_factors`.

    Returns:
        A :class:`~funcprop.Rule` with a :class:`~funcprop.KfacState`; without a key the default
        errors cannot be drawn, and the factors stay as they are.

    Raises:
        LayerError: for a loss with parameters, and a decay outside [0, 1).

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import dense, kfac, mean_squared_error
    >>> model = dense(1)
    >>> rule = kfac(model, mean_squared_error, (2,))
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> state = rule.init(jax.random.key(1), params)
    >>> x, y = jnp.ones((4, 2)), jnp.ones((4, 1))
    >>> _, grads, state = jax.jit(rule.estimate)(params, state, x, y, jax.random.key(2))
    >>> state.factors.inputs.shape, grads["w"].shape
    ((3, 3), (1, 2))
    """
    model, loss = model_and_loss("kfac", model, loss)
    check_shape("kfac", shape)
    check_number("kfac", "decay", decay, at_least=0, below=1)
    check_flag("kfac", "reduce", reduce)
    sweep = value_and_backprop(model, loss)
    factors = kfac_factors(model, loss, errors or sampled(), reduce=reduce)

    def init(key, params):
        def of_one(params):
            y, residuals = model.forward(params, example_for(params, shape))
            column = jax.tree.map(lambda leaf: leaf[None] if is_inexact(leaf) else None, y)
            back = functools.partial(model.backward, params, residuals)
            return factors_of(back, column, 1, reduce)

        structs = jax.eval_shape(of_one, params)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), structs)
        return KfacState(zeros, jnp.ones(()))

    def estimate(params, state, x, y, key, sample_weight=None):
        check_state("kfac", state, jax.eval_shape(init, jax.random.key(0), params))
        value, grads = sweep(params, x, y, sample_weight=sample_weight, key=key)
        if key is None and errors is None:
            return value, grads, state
        own = None if key is None else own_key(key)
        new = factors(params, x, y, sample_weight=sample_weight, key=own)
        average = jax.tree.map(lambda a, f: decay * a + (1 - decay) * f, state.average, new)
        return value, grads, KfacState(average, decay * state.weight)

    return rule_of(model, loss, init, estimate)
