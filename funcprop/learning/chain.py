"""A model cut into its blocks, each a function with its own way back: for rules that are local."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..combinators import blocks
from ..layer import Layer, LayerError, as_layer, floats_of, position
from ..losses import Loss, as_loss, no_parameters

Tree = Any
Block = Callable[[Tree], tuple[Tree, Callable[[Tree], tuple[Tree, Tree]]]]


def model_and_loss(rule: str, model: Layer, loss: Loss) -> tuple[Layer, Loss]:
    """Both, if the loss has no parameters: those would belong to no block."""
    model, loss = as_layer(model, "model"), as_loss(loss)
    if loss.init is not no_parameters:
        raise LayerError(rule, f"{loss.name} has parameters; put them into the model")
    return model, loss


def chain(rule: str, model: Layer, params: Tree, key: jax.Array | None) -> list[Block]:
    """The model's blocks as functions ``f(x) -> y, back``, ``back(delta) -> delta_x, tree``.

    A block draws the same random numbers each time it is run.

    Raises:
        LayerError: when the model is one block, and when a block gives no floats.
    """
    found = blocks(model, params)
    if len(found) < 2:
        raise LayerError(
            rule,
            f"the model, {model.name}, is one block, and the rule works between blocks; make it a "
            "serial of two or more layers with parameters",
        )
    keys = [None] * len(found) if key is None else list(jax.random.split(key, len(found)))
    return [
        functools.partial(_run, rule, i, *block, block_key)
        for i, (block, block_key) in enumerate(zip(found, keys, strict=True))
    ]


def _run(rule, i, layer, params, key, x):
    with position(f"blocks[{i}]"):
        y, residuals = layer.forward(params, x, key)
        if not jax.tree.leaves(floats_of(y)):
            raise LayerError(
                layer.name, f"it gives no floats, and {rule} needs some between blocks"
            )
    return y, functools.partial(layer.backward, params, residuals)


def activities(fs: list[Block], x: Tree) -> tuple[list[Tree], list[Callable]]:
    """What each block gives in the forward pass, and each one's way back."""
    outputs, backs = [], []
    for f in fs:
        x, back = f(x)
        outputs.append(x)
        backs.append(back)
    return outputs, backs


def losses_and_delta(loss: Loss, prediction: Tree, y: Tree) -> tuple[jax.Array, Tree]:
    """Each example's own loss ℓ (B,), and ∂ℓ/∂prediction."""
    losses, residuals = loss.forward((), (prediction, y))
    return losses, loss.backward((), residuals, jnp.ones_like(losses))[0][0]


def plus(a: Tree, b: Tree, scale: float = 1.0) -> Tree:
    """a + scale b over the floats of a tree."""
    return jax.tree.map(lambda a, b: a + scale * b, a, b)


def minus(a: Tree, b: Tree) -> Tree:
    """a - b over the floats of a tree."""
    return jax.tree.map(lambda a, b: a - b, floats_of(a), floats_of(b))


def scaled(scale: float, a: Tree) -> Tree:
    """scale a."""
    return jax.tree.map(lambda a: scale * a, a)
