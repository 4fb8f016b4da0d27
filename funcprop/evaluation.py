"""What a trained model is worth."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .layer import LayerError
from .learning.backpropagation import Rule

Tree = Any
Score = Callable[[Tree, Tree], jax.Array]


def evaluate(
    rule: Rule,
    params: Tree,
    data: Tree,
    *,
    scores: Mapping[str, Score] | None = None,
    batch_size: int | None = None,
    rule_state: Tree = (),
) -> dict[str, float]:
    """The mean loss, and the mean of each score, over all examples.

    Args:
        rule: a learning rule.
        params: the parameters.
        data: the pair (x, y).
        scores: ``{name: score(prediction, y) -> (B,)}``, say ``{"accuracy": accuracy}``.
        batch_size: examples at a time; by default all.
        rule_state: the rule's state, of a rule that has one.

    Returns:
        ``{"loss": ..., **scores}``.

    Raises:
        LayerError: when shapes, dtypes, structures or values do not fit.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import accuracy, backpropagation, evaluate, mlp, softmax_cross_entropy
    >>> model = mlp((2, 3))
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> rule = backpropagation(model, softmax_cross_entropy())
    >>> found = evaluate(rule, params, (jnp.zeros((4, 2)), jnp.array([0, 1, 2, 0])),
    ...                  scores={"accuracy": accuracy})
    >>> round(found["loss"], 4), found["accuracy"]
    (1.0986, 0.5)
    """
    check_values(rule, params, rule_state, data)
    size = examples(data)
    batch_size = size if batch_size is None else batch_size
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, 1 or more is due")
    named = tuple((scores or {}).items())
    sums: dict[str, float] = {}
    for start in range(0, size, batch_size):
        rows = slice(start, start + batch_size)
        batch = jax.tree.map(operator.itemgetter(rows), data)
        count = min(batch_size, size - start)
        for name, mean in _evaluate(rule, named, params, rule_state, batch).items():
            sums[name] = sums.get(name, 0.0) + float(mean) * count
    return {name: value / size for name, value in sums.items()}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluate(rule, scores, params, rule_state, batch):
    x, y = batch
    found = {"loss": rule.estimate(params, rule_state, x, y, None)[0]}
    prediction = rule.predict(params, x) if scores else None
    return found | {name: jnp.mean(score(prediction, y)) for name, score in scores}


def accuracy(prediction: Tree, target: Tree) -> jax.Array:
    """Which examples have their largest score at the label, 1. or 0.; of tokens the part.

    Args:
        prediction: scores (B, ..., C), or a tuple of them and what came beside them, as
            :func:`auxiliary` takes it.
        target: labels (B, ...), distributions (B, ..., C), or (target, mask) as a loss takes it.

    Returns:
        (B,) float32.

    >>> import jax.numpy as jnp
    >>> from funcprop import accuracy
    >>> accuracy(jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([1, 1])).tolist()
    [1.0, 0.0]
    """
    prediction = prediction[0] if isinstance(prediction, (tuple, list)) else prediction
    target, mask = target if isinstance(target, (tuple, list)) else (target, None)
    labels = target if target.ndim < prediction.ndim else jnp.argmax(target, axis=-1)
    if labels.shape != prediction.shape[:-1]:
        raise LayerError("accuracy", f"labels are {labels.shape}, {prediction.shape[:-1]} are due")
    right = (jnp.argmax(prediction, axis=-1) == labels).astype(jnp.float32)
    tokens = tuple(range(1, right.ndim))
    if mask is None:
        return jnp.mean(right, axis=tokens)
    return jnp.sum(right * mask, axis=tokens) / jnp.maximum(jnp.sum(mask, axis=tokens), 1)


def check_values(rule: Rule, params: Tree, rule_state: Tree, data: Tree) -> None:
    """Traces the rule with the data as constants, so that layers and losses see its values."""
    jax.eval_shape(
        lambda params, rule_state: rule.estimate(params, rule_state, *data, jax.random.key(0))[0],
        params,
        rule_state,
    )


def examples(data: Tree) -> int:
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(data)]
        raise LayerError(
            "data", f"x and y have shapes {shapes}; one leading axis of examples is due"
        )
    return sizes.pop()[0]
