"""Checks of a layer."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import LayerError, is_inexact
from ..core.layer import as_shape, is_shape
from ..core.loss import Loss
from .diagnosis.diagnosis import with_findings
from .judge import judged
from .report import Report
from .widening import cast, x64_enabled

Tree = Any


def check_layer(
    layer: Any,
    shape: Any = None,
    *,
    dtype: Any = "float32",
    batch: int | None = None,
    x: Tree = None,
    params: Tree = None,
    seed: int = 0,
    analytic: bool = False,
    diagnose: bool = True,
    title: str | None = None,
) -> Report:
    """Whether a layer's hand-written backward pass is right.

    The gradient by parameters and input, for a random delta, is compared with ``jax.vjp`` of
    ``layer.apply``, both sides jitted; in float64 also with the complex step or with central
    differences, and in narrower floats its error against a float64 truth with that of
    ``jax.vjp``.  That ``backward`` is linear in delta is tried too.  Of a gradient that is right
    the ``rows`` of the layer's sites are then compared with the gradients of single examples, and
    a loss's ``root`` and ``sample`` with its Hessian.

    Args:
        layer: a layer or a loss.
        shape: shape of one example; or
        x: an input with its batch axis, floats in any dtype.
        dtype: the working dtype, of parameters and of floats in x.
        batch: how many examples are drawn for ``shape``; by default 3 or the next number that no
            axis of the input, the parameters or the output has.
        params: parameters; by default drawn by ``layer.init``, and those that are constant
            (biases) made random.
        seed: for all draws.
        analytic: whether ``forward`` computes in complex numbers, for the complex step.
        diagnose: whether the cause of a wrong gradient is looked for; without, a wrong one takes
            hardly longer than a right one.
        title: what the report is called; by default the layer's name.

    Returns:
        A :class:`Report`: a row for each leaf of the parameters and the input, by each oracle.

    Raises:
        LayerError: when neither shape nor x is given.

    >>> from funcprop import check_layer, dense, tanh
    >>> report = check_layer(dense(3, tanh), (4,))
    >>> report.ok
    True
    """
    init_key, run_key = jax.random.split(jax.random.key(seed))
    draw = np.random.default_rng(seed)
    if shape is None and x is None:
        raise LayerError(layer.name, "give check_layer the shape of one example, or x")
    x64 = x64_enabled() or np.dtype(dtype) == np.float64
    with jax.enable_x64(x64):
        drawn = x is None
        if drawn:
            shape = as_shape(layer.name, shape)
            made = (params, ()) if params is not None else layer.init(init_key, shape)
            size = _free_size(shape, *made) if batch is None else batch
            x = _draw(draw, layer.name, shape, size)
        if params is None:
            structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), x)
            made = made if drawn else layer.init(init_key, structs if shape is None else shape)
            params = _not_constant(draw, made[0])
        params, x = (cast(tree, dtype) for tree in (params, x))
        if drawn and isinstance(layer, Loss):
            _check_targets(layer, params, x, run_key)
        y = jax.eval_shape(layer.apply, params, x, run_key)
        for label, tree in (("parameters and input", (params, x)), ("output", y)):
            if not any(map(is_inexact, jax.tree.leaves(tree))):
                raise LayerError(
                    layer.name or "layer",
                    f"its {label} hold no floats, and check_layer compares derivatives",
                )
        # A stream of its own: whoever draws x from the same seed must not get delta = x.
        delta = _draw_like(np.random.default_rng((seed, *b"delta")), y)
    title = f"{title or layer.name or 'layer'} {np.dtype(dtype).name}"
    return judged(
        layer,
        params,
        x,
        delta,
        run_key,
        dtype=dtype,
        analytic=analytic,
        explain=with_findings if diagnose else None,
        title=title,
        x64=x64,
    )


def _check_targets(loss: Loss, params: Tree, x: Tree, key: Any) -> None:
    """Raises where targets drawn at random are not valid ones, which gives NaN under a trace."""
    try:
        loss.apply(params, x, key)
    except LayerError as error:
        advice = "give check_layer x=(prediction, target) with valid targets"
        raise LayerError(error.layer, f"{error.message}; {advice}", error.position) from None


def _free_size(*trees: Any) -> int:
    """How many examples: 3, or the next number that no array has, so that no mean hides."""
    taken: set[int] = set()
    for leaf in jax.tree.leaves(trees, is_leaf=is_shape):
        sizes = leaf if is_shape(leaf) else np.shape(leaf) or getattr(leaf, "shape", ())
        taken |= {*sizes, math.prod(sizes)}
    return next(n for n in itertools.count(3) if n not in taken)


def _draw(draw: np.random.Generator, name: str, shape: Any, batch: int) -> Tree:
    if is_shape(shape):
        return draw.normal(size=(batch, *shape))
    if not all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(shape)):
        raise LayerError(
            name,
            f"shape {shape} does not say which of its arrays hold integers; give check_layer a "
            "jax.ShapeDtypeStruct for each, or x",
        )
    return jax.tree.map(
        lambda s: (
            draw.normal(size=(batch, *s.shape))
            if jnp.issubdtype(s.dtype, jnp.inexact)
            else np.ones((batch, *s.shape), s.dtype)
        ),
        shape,
    )


def _draw_like(draw: np.random.Generator, y: Tree) -> Tree:
    return jax.tree.map(lambda s: draw.normal(size=s.shape) if is_inexact(s) else None, y)


def _not_constant(draw: np.random.Generator, params: Tree) -> Tree:
    """Parameters with noise added where all are equal, as biases are at first."""

    def moved(leaf):
        if not is_inexact(leaf) or not leaf.size or np.ptp(np.asarray(leaf, np.float64)):
            return leaf
        return leaf + (draw.normal(size=leaf.shape) / 2).astype(leaf.dtype)

    return jax.tree.map(moved, params)
