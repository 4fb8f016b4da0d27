"""Greedy training: each block against a loss of its own, through a readout of its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..combinators import blocks, joined_blocks, serial
from ..layer import Layer, LayerError, Shape, as_layer, example_batch, gradient, is_inexact
from ..layers.activations import identity
from ..layers.dense import affine
from ..layers.shape import flatten
from ..losses import Loss, as_loss, no_parameters
from ..sweep import checked_batch, forward_pass
from .backpropagation import Rule

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
    parameters and those behind it without (:func:`~funcprop.combinators.blocks`).

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
    model, loss = as_layer(model, "model"), as_loss(loss)
    if loss.init is not no_parameters:
        raise LayerError(NAME, f"{loss.name} has parameters; put them into the model")

    def readouts(params):
        """A layer for each block, and the shapes that they take."""

        def outputs(params, h):
            return [h := block.apply(part, h) for block, part in blocks(model, params)]

        dtype = jax.tree.leaves(params)[0].dtype
        x = jax.tree.map(
            lambda leaf: leaf.astype(dtype) if is_inexact(leaf) else leaf, example_batch(shape)
        )
        *hidden, prediction = jax.eval_shape(outputs, params, x)
        if not hidden:
            raise LayerError(
                NAME,
                f"{model.name} is one block; a serial of two or more is due, or backpropagation",
            )
        layers = [_readout(i, struct, prediction) for i, struct in enumerate(hidden)]
        return [*layers, identity], [struct.shape[1:] for struct in hidden]

    def init(key, params):
        layers, shapes = readouts(params)
        keys = jax.random.split(key, len(shapes))
        made = zip(layers, keys, shapes, strict=False)
        heads = tuple(layer.init(head_key, shape)[0] for layer, head_key, shape in made)
        dtype = jax.tree.leaves(params)[0].dtype
        heads = jax.tree.map(lambda leaf: leaf.astype(dtype), heads)
        return GreedyState(heads, optimizer.init(heads))

    def estimate(params, state, x, y, key):
        h, size = checked_batch(x, y)
        parts, (layers, _) = blocks(model, params), readouts(params)
        keys = [None] * len(parts) if key is None else jax.random.split(key, len(parts))
        trees, head_trees = [], []
        for (block, part), block_key, readout, head in zip(
            parts, keys, layers, (*state.heads, ()), strict=True
        ):
            h, residuals = block.forward(part, h, block_key)
            losses, back = forward_pass(readout, loss, head, h, y, weights=None, key=None)
            delta, head_tree = back.from_losses(jnp.full_like(losses, 1 / size), gradient)
            trees.append(block.backward(part, residuals, delta)[1])
            head_trees.append(head_tree)
        updates, opt_state = optimizer.update(tuple(head_trees[:-1]), state.opt_state, state.heads)
        new = GreedyState(optax.apply_updates(state.heads, updates), opt_state)
        return jnp.mean(losses), joined_blocks(model, trees), new

    return Rule(init, estimate, model.apply)


def _readout(i: int, hidden: Tree, prediction: Tree) -> Layer:
    """An affine map from the output of block i to the prediction."""
    for what, struct in ((f"block {i}", hidden), ("the model", prediction)):
        if not hasattr(struct, "dtype"):
            came = f"a {type(struct).__name__}"
            raise LayerError(NAME, f"{what} gives {came}, one array is due; end it with pick(0)")
    if hidden.shape[:-1] == prediction.shape[:-1]:
        return affine(prediction.shape[-1])
    if prediction.ndim == 2:
        return serial(flatten, affine(prediction.shape[-1]))
    raise LayerError(
        NAME,
        f"block {i} gives {hidden.shape[1:]} an example, the prediction is {prediction.shape[1:]}; "
        "a readout keeps all axes but the last, or gives (C,)",
    )
