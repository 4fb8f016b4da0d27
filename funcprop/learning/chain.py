"""A model cut into its blocks, each a function with its own way back: for rules that are local.

A block of a ``serial`` draws from the model's key what the model draws, so that a rule and the
gradient of the same batch see the same masks, and its errors name places in the model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import LayerError, as_layer, floats_of, is_inexact
from ..core.combinators import Block, blocks
from ..core.contraction import accumulated
from ..core.layer import Layer, Shape, as_shape, example_batch, is_shape
from ..core.loss import Loss, as_loss, has_parameters

Tree = Any
Back = Callable[..., tuple[Tree, Tree]]
Function = Callable[[Tree], tuple[Tree, Back]]


def model_and_loss(rule: str, model: Layer, loss: Loss) -> tuple[Layer, Loss]:
    """Both, if the loss has no parameters: those would belong to no block."""
    model, loss = as_layer(model, "model"), as_loss(loss)
    if has_parameters(loss):
        raise LayerError(rule, f"{loss.name} has parameters; put them into the model")
    return model, loss


def several_blocks(rule: str, model: Layer, params: Tree) -> list[Block]:
    """The model's blocks, two or more."""
    found = blocks(model, params)
    if len(found) < 2:
        raise LayerError(
            rule,
            f"the model, {model.name}, is one block, and the rule works between blocks; make it a "
            "serial of two or more layers with parameters, or take backpropagation",
        )
    return found


def functions(rule: str, found: Sequence[Block], key: jax.Array | None) -> list[Function]:
    """Blocks as functions ``f(x) -> y, back``, ``back(delta, statistic) -> delta_x, tree``.

    A block draws the same random numbers each time it is run.
    """
    return [functools.partial(_run, rule, block, key) for block in found]


def _run(rule: str, block: Block, key: jax.Array | None, x: Tree) -> tuple[Tree, Back]:
    y, residuals = block.layer.forward(block.params, x, key)
    if not jax.tree.leaves(floats_of(y)):
        raise LayerError(
            rule, f"the block of {block.names} gives no floats, and some are due", block.place
        )
    return y, functools.partial(block.layer.backward, block.params, residuals)


def chain(rule: str, model: Layer, params: Tree, key: jax.Array | None) -> list[Function]:
    """The blocks of :func:`several_blocks` as functions."""
    return functions(rule, several_blocks(rule, model, params), key)


def activities(fs: Sequence[Function], x: Tree) -> tuple[list[Tree], list[Back]]:
    """What each block gives in the forward pass, and each one's way back."""
    outputs, backs = [], []
    for f in fs:
        x, back = f(x)
        outputs.append(x)
        backs.append(back)
    return outputs, backs


def check_array(rule: str, block: Block, y: Tree) -> None:
    """Raises unless a block gives one array of floats."""
    if not hasattr(y, "dtype"):
        came, advice = f"a {type(y).__name__}", "end it with pick(0)"
    elif not is_inexact(y):
        came, advice = f"{y.dtype}", "embed it in the same block"
    else:
        return
    raise LayerError(
        rule,
        f"the block of {block.names} gives {came}, one array of floats is due; {advice}",
        block.place,
    )


# ---------------------------------------------------------------- what a rule is told of shapes


def check_shape(rule: str, shape: Shape) -> None:
    """Raises unless ``shape`` can be that of one example."""
    as_shape(rule, shape)


def example_for(params: Tree, shape: Shape) -> Tree:
    """A batch of one example; where ``shape`` says no dtype it has that of the parameters."""
    x = example_batch(shape)
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(params) if is_inexact(leaf)]
    return x.astype(dtypes[0]) if is_shape(shape) and dtypes else x


def check_example(rule: str, shape: Shape, x: Tree) -> None:
    """Raises unless the examples of x have the shape that the rule was made for."""
    due = [leaf.shape[1:] for leaf in jax.tree.leaves(jax.eval_shape(lambda: example_batch(shape)))]
    came = [jnp.shape(leaf)[1:] for leaf in jax.tree.leaves(x)]
    if came != due:
        raise LayerError(
            rule,
            f"an example of x has {_listed(came)}, the rule was made for {_listed(due)}; give it "
            "the shape of one example, without the batch axis",
        )


def _listed(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(f"shape {shape}" for shape in shapes)


def shapes_between(rule: str, model: Layer, params: Tree, shape: Shape) -> list[Tree]:
    """What each block of :func:`several_blocks` gives of one example, a batch of it, as structs.

    The example is :func:`example_for` the parameters.
    """

    def outputs(params):
        return activities(chain(rule, model, params, None), example_for(params, shape))[0]

    several_blocks(rule, model, params)
    return jax.eval_shape(outputs, params)


# --------------------------------------------------------------------------------- arithmetic


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


def weighted(share: jax.Array, a: Tree) -> Tree:
    """shareᵢ aᵢ for each example i, share (B,); rounded once."""

    def times(a):
        wide = accumulated(a)
        factor = share.astype(wide.dtype).reshape(-1, *(1,) * (a.ndim - 1))
        return (wide * factor).astype(a.dtype)

    return jax.tree.map(times, a)


def scaled(scale: float, a: Tree) -> Tree:
    """scale a."""
    return jax.tree.map(lambda a: scale * a, a)
