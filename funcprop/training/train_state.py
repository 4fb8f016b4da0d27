"""What training carries from step to step, and whether it is finite."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import keystr, tree_flatten_with_path

from ..core.checks import LayerError, is_inexact
from ..core.rule import Rule
from ..learning.state import check_optimizer, check_state
from .arguments import check_key, check_params, check_rule

Tree = Any


class TrainState(NamedTuple):
    """All that training carries from step to step.

    Attributes:
        params: the parameters.
        opt_state: the optimizer's state.
        rule_state: the learning rule's state, outside of what the optimizer sees.
        step: how many steps were taken, int32.
        key: the key from which each step folds its own.
    """

    params: Tree
    opt_state: Tree
    rule_state: Tree
    step: jax.Array
    key: jax.Array


def init_state(
    rule: Rule, optimizer: optax.GradientTransformation, params: Tree, key: jax.Array
) -> TrainState:
    """The state before the first step.

    Args:
        rule: a learning rule.
        optimizer: any optax transformation.
        params: the parameters; they are copied, since a step donates its state.
        key: a key of ``jax.random``.

    >>> import jax, optax
    >>> from funcprop import backpropagation, init_state, mean_squared_error, mlp
    >>> model = mlp((2, 1))
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> rule = backpropagation(model, mean_squared_error)
    >>> int(init_state(rule, optax.sgd(0.1), params, jax.random.key(1)).step)
    0
    """
    check_rule("init_state", rule)
    check_optimizer("init_state", optimizer)
    check_key("init_state", key)
    check_params("init_state", params)
    rule_key, key = jax.random.split(key)
    state = TrainState(
        params, optimizer.init(params), rule.init(rule_key, params), jnp.zeros((), jnp.int32), key
    )
    # A buffer may be donated once only, and an optimizer may start from the parameters' own.
    return jax.tree.map(jnp.copy, state)


def check_train_state(name: str, state: Any, rule: Rule, optimizer: Any) -> None:
    """Raises unless the rule and the optimizer can go on from a state."""
    check_params(name, state.params)
    check_key(name, state.key)
    advice = (
        "go on with the rule and the optimizer that the state was made with, and restore one from "
        "a file with a template: init_state(rule, optimizer, params, key)"
    )
    opt_state = jax.eval_shape(optimizer.init, state.params)
    check_state(name, state.opt_state, opt_state, "opt_state", advice)
    rule_state = jax.eval_shape(rule.init, jax.random.key(0), state.params)
    check_state(name, state.rule_state, rule_state, "rule_state", advice)


def check_not_a_state(name: str, params: Any) -> None:
    """Raises where ``params`` is what a file made of a :class:`TrainState`."""
    if isinstance(params, dict) and set(params) == set(TrainState._fields):
        raise LayerError(
            name,
            "params is a dict of a TrainState's fields, as files return it; restore it with a "
            "template, init_state(rule, optimizer, params, key), so that it is a TrainState again",
        )


def floats(state: TrainState) -> list[tuple[str, Any]]:
    """The leaves that training can make NaN or infinite, by name."""
    parts = {"params": state.params, "opt_state": state.opt_state, "rule_state": state.rule_state}
    return [
        (f"{name}{keystr(path)}", leaf)
        for name, part in parts.items()
        for path, leaf in tree_flatten_with_path(part)[0]
        if is_inexact(leaf)
    ]


@jax.jit
def finite(state: TrainState) -> jax.Array:
    """Which of the :func:`floats` are finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for _, leaf in floats(state)] or [jnp.array(True)])


def guarded(step, watched, state, going, *args):
    """A step that is not taken where it makes a watched leaf NaN or infinite, nor after that."""
    new, scalars = step(state, *args)
    fine = ~watched | finite(new)
    going &= fine.all()
    state = jax.tree.map(functools.partial(jnp.where, going), new, state)
    return state, going, scalars, fine


def broken(state: TrainState, fine: np.ndarray) -> str:
    """The reason to stop at the update after ``state``, which made some leaves not finite."""
    names = [name for (name, _), ok in zip(floats(state), fine, strict=True) if not ok]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"the update of step {int(state.step) + 1} makes {names[0]}{more} NaN or infinite; the "
        "state before it is returned"
    )
