"""Feedback weights: trees that carry the error back in the place of the parameters.

Feedback replaces matrices only, the leaves that a layer names "w" or "u"; biases, scales and
whatever else a layer has keep their true values on the way back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import LayerError, is_concrete, with_floats
from ..core.layer import Layer

Tree = Any
MATRICES = ("w", "u")


def matrices(tree: Tree) -> Tree:
    """``tree`` with ``None`` in the place of all that is no matrix."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if _name(path) in MATRICES else None, tree
    )


def carriers(params: Tree, feedback: Tree) -> Tree:
    """``params`` with the matrices of ``feedback`` in the place of their own."""
    return with_floats(params, feedback)


def as_large(key: jax.Array, w: jax.Array) -> jax.Array:
    """Normal numbers as large as those of w: N(0, mean of w²), for each matrix by itself."""
    return jax.random.normal(key, w.shape, w.dtype) * jnp.sqrt(jnp.mean(w * w))


def drawn(
    rule: str,
    model: Layer,
    feedback: Callable[[jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    params: Tree,
) -> Tree:
    """``feedback(key, w)`` for every matrix w, shaped like the params with ``None`` elsewhere."""
    found, structure = jax.tree_util.tree_flatten_with_path(matrices(params))
    if not found:
        raise LayerError(
            rule,
            f"the model, {model.name}, has no matrices that feedback could stand for, leaves "
            'named "w" or "u"; take backpropagation',
        )
    leaves = []
    for i, (path, w) in enumerate(found):
        b = feedback(jax.random.fold_in(key, i), w)
        where = jax.tree_util.keystr(path)
        if jnp.shape(b) != w.shape or jnp.result_type(b) != w.dtype:
            came = f"{jnp.result_type(b)}{list(jnp.shape(b))}"
            due = f"{w.dtype}{list(w.shape)}"
            raise LayerError(rule, f"feedback gave {came} for {where}, {due} is due")
        check_some(rule, b, where)
        leaves.append(b)
    return jax.tree.unflatten(structure, leaves)


def check_some(rule: str, b: jax.Array, where: str) -> None:
    """Raises where a matrix of feedback is known, and 0."""
    if is_concrete(b) and jnp.size(b) and not jnp.any(b):
        raise LayerError(
            rule, f"the feedback of {where} is 0, so no error would pass; give feedback=..."
        )


def _name(path: Any) -> Any:
    return getattr(path[-1], "key", None) if path else None
