"""What the direct roads of the error share: the error of the output, and matrices from it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import LayerError, floats_of
from ..core.layer import Layer, Shape
from ..core.loss import Loss
from ..core.sweep import shares, weighted_mean
from .chain import losses_and_delta, several_blocks, shapes_between, weighted
from .feedback import check_some

Tree = Any
Feedback = Callable[[jax.Array, tuple[int, ...]], jax.Array]


def output_error(
    loss: Loss, prediction: Tree, y: Tree, sample_weight: Any
) -> tuple[jax.Array, Tree, jax.Array]:
    """The mean loss, e = ∂value/∂prediction, and what each example counts for (B,)."""
    losses, delta = losses_and_delta(loss, prediction, y)
    value, share = weighted_mean(losses, shares(sample_weight, len(losses)))
    return value, weighted(share, delta), share


def flat(tree: Tree) -> jax.Array:
    """All floats of every example in a row, (B, K)."""
    leaves = jax.tree.leaves(tree)
    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def roads_due(outputs: list[Tree]) -> tuple[Tree, ...]:
    """For each block but the last the struct of B (K, *size), from what the blocks give."""
    *hidden, last = outputs
    count = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(floats_of(last)))

    def due(leaf):
        return jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype)

    return tuple(jax.tree.map(due, floats_of(each)) for each in hidden)


def roads(
    rule: str, model: Layer, shape: Shape, feedback: Feedback, key: jax.Array, params: Tree
) -> tuple[Tree, ...]:
    """For each block but the last, B (K, *size) from the K outputs to each float of its output."""

    places = [block.place for block in several_blocks(rule, model, params)]

    def draw(i, due):
        b = feedback(jax.random.fold_in(key, i), due.shape)
        if jnp.shape(b) != due.shape:
            raise LayerError(
                rule, f"feedback gave {jnp.shape(b)} for {places[i]}, {due.shape} is due"
            )
        check_some(rule, b, places[i])
        return jnp.asarray(b).astype(due.dtype)

    due = roads_due(shapes_between(rule, model, params, shape))
    return tuple(jax.tree.map(functools.partial(draw, i), y) for i, y in enumerate(due))


def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Normal numbers with variance 1/K, K the first size."""
    return jax.random.normal(key, shape) / math.sqrt(shape[0])


def along(signal: jax.Array, b: Tree) -> Tree:
    """signal B (B, *size), for each B of a tree: (B, K) and (K, *size)."""
    return jax.tree.map(lambda b: jnp.tensordot(signal.astype(b.dtype), b, 1), b)
