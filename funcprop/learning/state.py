"""What rules keep: is it the state that is due, and what their own optimisers make of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..core.checks import LayerError, described

Tree = Any
# Beyond any layer's place: what a rule draws stands apart from what the model draws.
OWN = 2**31 - 1


def own_key(key: jax.Array) -> jax.Array:
    """A key for what the rule itself draws; the model is given ``key``, as for the gradient."""
    return jax.random.fold_in(key, OWN)


def check_state(
    rule: str, state: Tree, due: Tree, what: str = "rule_state", advice: str | None = None
) -> None:
    """Raises unless ``state`` has the structure, the shapes and the dtypes of ``due``."""
    if advice is None:
        advice = "take it from the rule's init; evaluate takes it as rule_state=state.rule_state"
        if what != "rule_state":
            advice = "give the part of the rule's state that stands in the place of the matrices"
    structures: list[Any] = [jax.tree.structure(tree) for tree in (state, due)]
    if structures[0] != structures[1]:
        raise LayerError(rule, f"{what} is {_said(state)}, {_said(due)} is due; {advice}")
    came, wanted = (jax.tree_util.tree_leaves_with_path(tree) for tree in (state, due))
    for (path, leaf), (_, like) in zip(came, wanted, strict=True):
        if jnp.shape(leaf) != jnp.shape(like) or jnp.result_type(leaf) != like.dtype:
            raise LayerError(
                rule,
                f"{what}{jax.tree_util.keystr(path)} is {_said(leaf)}, {_said(like)} is due; "
                f"{advice}",
            )


def _said(tree: Tree) -> str:
    text = str(jax.tree.map(_Told, tree))
    return text if len(text) <= 160 else f"{text[:160]} ..."


class _Told:
    """A leaf that prints its dtype and shape."""

    def __init__(self, leaf: Any):
        self.text = f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"

    def __repr__(self) -> str:
        return self.text


def check_flag(rule: str, argument: str, value: Any) -> None:
    """Raises unless ``value`` is a bool: of anything else, "no" too, most is true."""
    if not isinstance(value, (bool, np.bool_)):
        raise LayerError(rule, f"{argument} is {value!r}, it must be True or False")


def check_optimizer(rule: str, optimizer: Any) -> None:
    """Raises unless it is an optax transformation; ``rule`` is what the error names."""
    if hasattr(optimizer, "init") and hasattr(optimizer, "update"):
        return
    called = getattr(optimizer, "__name__", None)
    advice = f"call it: {called}(1e-3)" if called else "say optax.adam(1e-3)"
    raise LayerError(
        rule,
        f"optimizer is {described(optimizer)}, an optax transformation is needed; {advice}",
    )


def descended(
    rule: str, optimizer: optax.GradientTransformation, grads: Tree, opt_state: Tree, tree: Tree
) -> tuple[Tree, Tree]:
    """A tree of the rule's own after a step along ``grads``, and its optimiser's state."""
    try:
        updates, opt_state = optimizer.update(grads, opt_state, tree)
    except TypeError as error:
        if "keyword-only argument" not in str(error):
            raise
        raise LayerError(
            rule,
            "its own optimizer needs more than a gradient, as a line search does (optax.lbfgs); "
            "take one that does not, say optax.adam",
        ) from None
    return optax.apply_updates(tree, updates), opt_state
