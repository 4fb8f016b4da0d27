"""What training and evaluation are given: a sentence for each thing that cannot be used."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from ..core.checks import LayerError, check_integers, described, is_inexact, is_key

Tree = Any


def check_rule(name: str, rule: Any) -> None:
    """Raises unless ``rule`` is a learning rule."""
    if all(hasattr(rule, attribute) for attribute in ("init", "estimate", "predict")):
        return
    if hasattr(rule, "forward") and hasattr(rule, "backward"):
        came = f"the layer {rule.name}"
        raise LayerError(name, f"rule is {came}; make one of it: backpropagation(model, loss)")
    raise LayerError(
        name, f"rule is {described(rule)}, it must be a Rule, say backpropagation(model, loss)"
    )


def check_key(name: str, key: Any) -> None:
    """Raises unless ``key`` is one key of ``jax.random``, of either kind."""
    if is_key(key):
        return
    seed = int(key) if isinstance(key, (int, np.integer)) else 0
    raise LayerError(
        name,
        f"key is {described(key)}, it must be one key of jax.random, say jax.random.key({seed})",
    )


def check_params(name: str, params: Any) -> None:
    """Raises unless ``params`` is a tree of arrays of floats."""
    fields = getattr(params, "_fields", ())
    if "params" in fields and "opt_state" in fields:
        raise LayerError(name, "params is a TrainState; give its params, state.params")
    for path, leaf in tree_leaves_with_path(params):
        if not isinstance(leaf, (jax.Array, np.ndarray)) or not is_inexact(leaf):
            raise LayerError(
                name,
                f"params{keystr(path)} is {described(leaf)}, parameters are arrays of floats; give "
                "those that init made: params, out_shape = model.init(key, shape)",
            )


def check_pair(name: str, argument: str, pair: Any) -> int:
    """The number of examples in a pair (x, y) of trees of arrays; raises unless it is one."""
    if not isinstance(pair, (tuple, list)):
        raise LayerError(name, f"{argument} is {described(pair)}, it must be the pair (x, y)")
    if len(pair) != 2:
        hint = "; weights are given as sample_weight" if len(pair) == 3 else ""
        came = f"a {type(pair).__name__} of {len(pair)}"
        raise LayerError(name, f"{argument} is {came}, it must be the pair (x, y){hint}")
    for path, leaf in tree_leaves_with_path(tuple(pair)):
        place = f"{'xy'[path[0].idx]}{keystr(path[1:])}"
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
            advice = "give arrays, say numpy.asarray of it"
            raise LayerError(name, f"{argument}: {place} is {described(leaf)}; {advice}")
        if leaf.dtype.kind in "OSUMm":
            raise LayerError(
                name, f"{argument}: {place} holds {leaf.dtype}, it must hold numbers or booleans"
            )
        check_integers(f"{name}: {argument}", place, leaf)
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(pair)}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(pair)]
        raise LayerError(
            name,
            f"{argument}: x and y have shapes {shapes}; all must have one leading axis of "
            "examples, 1 or more",
        )
    return sizes.pop()[0]


def check_data(name: str, data: Any) -> None:
    """Raises unless ``data`` is the pair (x, y), or an iterable of such pairs."""
    if isinstance(data, tuple):
        check_pair(name, "data", data)
        return
    listed = isinstance(data, list) and any(hasattr(entry, "dtype") for entry in data)
    if listed or hasattr(data, "dtype") or isinstance(data, (dict, str)) or not _iterable(data):
        more = "; a list is taken for an iterable of batches" if listed else ""
        raise LayerError(
            name,
            f"data is {described(data)}, it must be the pair (x, y), a tuple, or an iterable of "
            f"such pairs{more}",
        )


def _iterable(value: Any) -> bool:
    try:
        iter(value)
    except TypeError:
        return False
    return True
