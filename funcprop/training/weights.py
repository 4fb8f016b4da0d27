"""Sample weights, and a rule's estimate with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from ..core.checks import LayerError, check_sample_weight
from ..core.rule import Rule

Tree = Any
Array = jax.Array
Weights = Array | Callable[[Tree, Tree], Array] | None


def weights_of(name: str, sample_weight: Weights, x: Tree, y: Tree) -> Array | None:
    """The weights of a batch, (B,), where a function gives them."""
    if not callable(sample_weight):
        return sample_weight
    weights = sample_weight(x, y)
    check_sample_weight(weights, len(jax.tree.leaves(x)[0]), some=False, name=name)
    return weights


def estimated(rule: Rule, params, state, x, y, key, weights) -> tuple[Array, Tree, Tree]:
    """The rule's estimate; rules that know no sample weights are called without."""
    if weights is None:
        return rule.estimate(params, state, x, y, key)
    return rule.estimate(params, state, x, y, key, sample_weight=weights)


def check_values(
    rule: Rule, params: Tree, rule_state: Tree, data: Tree, sample_weight: Weights = None
) -> None:
    """Traces a step with the data as constants, so that layers and losses see its values."""
    x, y = data

    def traced(params, rule_state):
        weights = weights_of("sample_weight", sample_weight, x, y)
        return estimated(rule, params, rule_state, x, y, jax.random.key(0), weights)[:2]

    _, tree = jax.eval_shape(traced, params, rule_state)
    came, due = (str(jax.tree.structure(leaf)) for leaf in (params, tree))
    if came != due:
        raise LayerError(
            "params", f"they are {came}, the rule's estimate is {due}; give those that init made"
        )
