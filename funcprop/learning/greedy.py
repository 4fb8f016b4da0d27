"""Greedy training: each block against a loss of its own, through a readout of its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax

from ..core.checks import LayerError
from ..core.combinators import Block, joined_blocks, serial
from ..core.layer import Layer, Shape, identity
from ..core.loss import Loss
from ..core.rule import Rule
from ..core.site import gradient
from ..core.sweep import checked_batch, forward_pass, shares, weighted_mean
from ..layers.dense import affine
from ..layers.shape import flatten
from .backpropagation import rule_of
from .chain import chain, check_array, check_shape, model_and_loss, several_blocks, shapes_between
from .state import check_optimizer, check_state, descended

Tree = Any
NAME = "greedy"


class GreedyState(NamedTuple):
    """The readouts of all blocks but the last, and what trains them.

    Attributes:
        heads: a tuple of their parameters.
        opt_state: the state of their optimizer.
    """

    heads: Tree
    opt_state: Tree


def greedy(model: Layer, loss: Loss, shape: Shape, optimizer: optax.GradientTransformation) -> Rule:
    """Greedy layer-wise training: each block has a linear readout and a loss of its own.

        forward     hₗ = fₗ(hₗ₋₁)      pₗ = aₗ(hₗ)      ℓₗ = loss(pₗ, y)
        backward    δhₗ = 1/B ∂ℓₗ/∂pₗ ∂aₗ/∂hₗ, which goes back through block l and ends there

    All blocks and readouts are trained at once, each on what the blocks before it make of the
    batch at that step (decoupled greedy learning: Belilovsky 2020, arXiv 1901.08164), where older
    greedy methods train one to its end before the next.  The last block has no readout: its
    output is the prediction, and its tree is backprop's.  A block is a part of the model with
    parameters and those behind it without (:func:`~funcprop.core.combinators.blocks`).

    The readouts are an affine map each, of the last axis where block and prediction agree in all
    others, else of the whole output.  They are the rule's state, which ``optimizer`` trains and the
    optimizer of the parameters does not see.  ``value`` is the loss of the model's prediction.

    Args:
        model: a :func:`~funcprop.serial` of two blocks or more, each giving one array.
        loss: the loss, without parameters.
        shape: of one example, as for ``init``.
        optimizer: any optax transformation, for the readouts.

    Returns:
        A :class:`~funcprop.Rule` whose state is a :class:`GreedyState`.

    Raises:
        LayerError: for a loss with parameters; in ``init`` for a model of one block, and blocks
            from which the prediction cannot be read out.

    >>> import jax, jax.numpy as jnp, optax
    >>> from funcprop import greedy, mean_squared_error, mlp
    >>> model = mlp((2, 3, 1))
    >>> rule = greedy(model, mean_squared_error, (2,), optax.sgd(0.1))
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> state = rule.init(jax.random.key(1), params)
    >>> x, y = jnp.ones((4, 2)), jnp.ones((4, 1))
    >>> value, grads, state = rule.estimate(params, state, x, y, None)
    >>> value.shape, grads[0]["w"].shape, state.heads[0]["w"].shape
    ((), (3, 2), (1, 3))
    """
    model, loss = model_and_loss(NAME, model, loss)
    check_shape(NAME, shape)
    check_optimizer(NAME, optimizer)

    def readouts(params):
        """A layer for each block, and the shapes that they take."""
        *hidden, prediction = shapes_between(NAME, model, params, shape)
        found = several_blocks(NAME, model, params)
        check_array(NAME, found[-1], prediction)
        layers = [_readout(*pair, prediction) for pair in zip(found, hidden, strict=False)]
        return [*layers, identity], [struct.shape[1:] for struct in hidden]

    def init(key, params):
        layers, shapes = readouts(params)
        keys = jax.random.split(key, len(shapes))
        made = zip(layers, keys, shapes, strict=False)
        heads = tuple(layer.init(head_key, shape)[0] for layer, head_key, shape in made)
        dtype = jax.tree.leaves(params)[0].dtype
        heads = jax.tree.map(lambda leaf: leaf.astype(dtype), heads)
        return GreedyState(heads, optimizer.init(heads))

    def estimate(params, state, x, y, key, sample_weight=None):
        h, size = checked_batch(x, y)
        check_state(NAME, state, jax.eval_shape(init, jax.random.key(0), params))
        layers, _ = readouts(params)
        trees, head_trees, share = [], [], shares(sample_weight, size)
        fs = chain(NAME, model, params, key)
        for f, readout, head in zip(fs, layers, (*state.heads, ()), strict=True):
            h, back = f(h)
            losses, from_readout = forward_pass(readout, loss, head, h, y, weights=None, key=None)
            value, delta_loss = weighted_mean(losses, share)
            delta, tree = from_readout.from_losses(delta_loss, gradient)
            head_trees.append(tree)
            trees.append(back(delta)[1])
        new = descended(NAME, optimizer, tuple(head_trees[:-1]), state.opt_state, state.heads)
        return value, joined_blocks(model, trees), GreedyState(*new)

    return rule_of(model, loss, init, estimate)


def _readout(block: Block, hidden: Tree, prediction: Tree) -> Layer:
    """An affine map from the output of a block to the prediction."""
    check_array(NAME, block, hidden)
    if hidden.shape[:-1] == prediction.shape[:-1]:
        return affine(prediction.shape[-1])
    if prediction.ndim == 2:
        return serial(flatten, affine(prediction.shape[-1]))
    raise LayerError(
        NAME,
        f"the block of {block.names} gives {hidden.shape[1:]} an example, the prediction is "
        f"{prediction.shape[1:]}; a readout keeps all axes but the last, or gives (C,)",
        block.place,
    )
