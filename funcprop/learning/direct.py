"""What the direct roads of the error share: a forward pass in blocks, and matrices from the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..combinators import blocks
from ..layer import Layer, LayerError, Shape, as_layer, example_batch, floats_of
from ..losses import Loss, as_loss, no_parameters
from ..sweep import checked_batch

Tree = Any
Feedback = Callable[[jax.Array, tuple[int, ...]], jax.Array]


class Passed(NamedTuple):
    """A block that the forward pass went through; y is its output."""

    layer: Layer
    params: Tree
    residuals: Tree
    y: Tree


def forward_blocks(model: Layer, params: Tree, x: Tree, key: jax.Array | None) -> list[Passed]:
    """The forward pass block by block."""
    passed = []
    for i, (layer, own) in enumerate(blocks(model, params)):
        block_key = None if key is None else jax.random.fold_in(key, i)
        x, residuals = layer.forward(own, x, block_key)
        passed.append(Passed(layer, own, residuals, x))
    return passed


def checked(rule: str, model: Layer, loss: Loss) -> tuple[Layer, Loss]:
    """The model and a loss without parameters."""
    model, loss = as_layer(model, "model"), as_loss(loss)
    if loss.init is not no_parameters:
        raise LayerError(rule, f"{loss.name} has parameters; put them into the model")
    return model, loss


def value_and_error(loss: Loss, passed: list[Passed], x: Tree, y: Tree) -> tuple[jax.Array, Tree]:
    """The mean loss, and e = ∂value/∂prediction."""
    _, size = checked_batch(x, y)
    losses, residuals = loss.forward((), (passed[-1].y, y))
    (e, _), _ = loss.backward((), residuals, jnp.full_like(losses, 1 / size))
    return jnp.mean(losses), e


def flat(tree: Tree) -> jax.Array:
    """All floats of every example in a row, (B, K)."""
    leaves = jax.tree.leaves(tree)
    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def roads(
    rule: str, model: Layer, shape: Shape, feedback: Feedback, key: jax.Array, params: Tree
) -> tuple[Tree, ...]:
    """For each block but the last, B (K, *size) from the K outputs to each float of its output."""

    def outputs(params):
        return [
            floats_of(each.y) for each in forward_blocks(model, params, example_batch(shape), None)
        ]

    *hidden, last = jax.eval_shape(outputs, params)
    if not hidden:
        raise LayerError(
            rule, f"the model {model.name} is one block; a serial of two parametrised layers is due"
        )
    count = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(last))

    def draw(i, leaf):
        due = (count, *leaf.shape[1:])
        b = feedback(jax.random.fold_in(key, i), due)
        if jnp.shape(b) != due:
            raise LayerError(rule, f"feedback gave {jnp.shape(b)}, {due} is due")
        return jnp.asarray(b).astype(leaf.dtype)

    return tuple(jax.tree.map(lambda leaf, i=i: draw(i, leaf), y) for i, y in enumerate(hidden))


def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Normal numbers with variance 1/K, K the first size."""
    return jax.random.normal(key, shape) / math.sqrt(shape[0])


def along(signal: jax.Array, b: Tree) -> Tree:
    """signal B (B, *size), for each B of a tree: (B, K) and (K, *size)."""
    return jax.tree.map(lambda b: jnp.tensordot(signal.astype(b.dtype), b, 1), b)
