"""How good a trained model is."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import LayerError, check_count, check_sample_weight, is_inexact
from ..core.contraction import accumulated, taken
from ..core.rule import Rule
from ..core.sweep import mean_loss, mixing_refused, models_own
from ..losses.standard import example_sum
from ..losses.targets import check_classes, check_mask, share_of
from .arguments import check_pair, check_params, check_rule
from .calibration import needs_calibration, observer, with_statistics
from .programs import program
from .weights import Weights, check_values, estimated, weights_of

Tree = Any
Array = jax.Array
Score = Callable[[Tree, Tree], Array]


def evaluate(
    rule: Rule,
    params: Tree,
    data: Tree,
    *,
    scores: Mapping[str, Score] | None = None,
    batch_size: int | None = None,
    rule_state: Tree = (),
    sample_weight: Weights = None,
) -> dict[str, float]:
    """The mean loss, and the mean of each score, over all examples.

    Of a rule with a model and a loss they are those of the model, without random numbers; of other
    rules the loss is what ``estimate`` gives without a key.

    Args:
        rule: a learning rule.
        params: the parameters.
        data: the pair (x, y).
        scores: ``{name: score(prediction, y) -> (B,)}``, say ``{"accuracy": accuracy}``.
        batch_size: examples at a time; by default all.
        rule_state: the rule's state, of a rule that has one.
        sample_weight: what each example counts for, floats (N,) of 0 or more, or a function
            ``(x, y) -> (B,)`` of each batch; the means are Σ wᵢ ℓᵢ / Σ wᵢ over all data.

    Returns:
        ``{"loss": ..., **scores}``.

    Raises:
        LayerError: when shapes, dtypes, structures or values do not fit, and for a layer that mixes
            the examples of a batch, by name: its result would depend on ``batch_size``; evaluate
            what :func:`~funcprop.calibrate` returns.

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
    check_rule("evaluate", rule)
    check_params("evaluate", params)
    check_pair("evaluate", "data", data)
    if rule.model is not None:
        mixing_refused("evaluate", rule.model)(models_own(rule.loss, params), data[0])
    check_data(rule, params, rule_state, data, sample_weight)
    return mean_scores(rule, params, data, scores, batch_size, rule_state, sample_weight)


def validation_of(
    rule: Rule,
    state: Any,
    data: Tree,
    scores: Mapping[str, Score] | None,
    weigh: Weights,
    inputs: Iterable[Tree] | None,
) -> Callable[[Any], dict[str, float]]:
    """``validate(state)``: :func:`evaluate` of a state of training, all checked here beforehand.

    ``inputs`` are batches to calibrate a model on that needs it.
    """
    check_pair("fit", "validation", data)
    check_data(rule, state.params, state.rule_state, data, weigh)
    seen = None
    if rule.model is not None and needs_calibration(rule.model):
        seen, inputs = observer(rule.model), _inputs_of(rule, inputs)

    def validate(state):
        own = models_own(rule.loss, state.params)
        found = None if seen is None else seen(own, inputs)
        return mean_scores(
            rule, state.params, data, scores, None, state.rule_state, weigh, statistics=found
        )

    if seen is None and rule.model is not None:
        own = models_own(rule.loss, state.params)
        mixing_refused("validation", rule.model)(own, data[0])
    return validate


def _inputs_of(rule: Rule, inputs: Iterable[Tree] | None) -> Iterable[Tree]:
    if inputs is None:
        raise LayerError(
            "fit",
            "the model has layers that mix the examples of a batch, and validation evaluates the "
            "form that calibrate makes of it: give calibrate=, batches of x, since data is an "
            "iterable that is used up once",
        )
    if rule.loss is None:
        raise LayerError("fit", "a rule without a loss cannot evaluate a calibrated model")
    return inputs


@dataclasses.dataclass(frozen=True)
class Slices:
    """x in batches, one after the other; what fills none is left out, as in training."""

    x: Tree
    batch_size: int | None

    def __iter__(self) -> Iterator[Tree]:
        size = len(jax.tree.leaves(self.x)[0])
        step = size if self.batch_size is None else int(self.batch_size)
        for start in range(0, size - size % step, step):
            rows = np.arange(start, start + step, dtype=np.int32)
            yield self.x if step == size else _some(self.x, rows)


def mean_scores(
    rule: Rule,
    params: Tree,
    data: Tree,
    scores: Mapping[str, Score] | None = None,
    batch_size: int | None = None,
    rule_state: Tree = (),
    sample_weight: Weights = None,
    statistics: Tree = None,
) -> dict[str, float]:
    """:func:`evaluate` of what was checked; with ``statistics`` the calibrated model's."""
    size = check_pair("evaluate", "data", data)
    if batch_size is not None:
        check_count("evaluate", "batch_size", batch_size)
    named = tuple((scores or {}).items())
    weigh = sample_weight if callable(sample_weight) else None
    run = program(_means, rule, named, weigh)
    sums: dict[str, float] = {}
    total, step = 0.0, int(batch_size or size)
    for start in range(0, size, step):
        batch, weights = data, None if weigh is not None else sample_weight
        if step < size:
            rows = np.arange(start, min(start + step, size), dtype=np.int32)
            batch, weights = _some((data, weights), rows)
        means, weight = run(params, rule_state, statistics, batch, weights)
        for name, mean in means.items():
            # A batch whose weights are all 0 has no mean, and none is asked for.
            sums[name] = sums.get(name, 0.0) + (float(mean) * float(weight) if weight else 0.0)
        total += float(weight)
    if not total > 0:
        raise LayerError("evaluate", f"the sample weights sum to {total}, it must be above 0")
    return {name: value / total for name, value in sums.items()}


def _some(tree: Tree, rows: np.ndarray) -> Tree:
    """Some rows of arrays, of NumPy's on the host."""
    return jax.tree.map(
        lambda leaf: leaf[rows] if isinstance(leaf, np.ndarray) else _taken(leaf, rows), tree
    )


_taken = jax.jit(taken)


def _means(rule: Rule, scores: Any, weigh: Any) -> Callable[..., Any]:
    """The means over one batch, and what the batch counts for."""

    def run(params, rule_state, statistics, batch, weights):
        x, y = batch
        weights = weights if weigh is None else weights_of("evaluate", weigh, x, y)
        if rule.model is not None and rule.loss is not None:
            own, model = models_own(rule.loss, params), rule.model
            model = model if statistics is None else with_statistics(model, statistics)
            predict = functools.partial(model.apply, own)
        else:
            model, predict = None, functools.partial(rule.predict, params)
        found = {"loss": _value(rule, model, params, rule_state, x, y, weights)}
        size = len(jax.tree.leaves(batch)[0])
        if scores:
            prediction = predict(x)
            share = 1 / size if weights is None else weights / jnp.sum(weights)
            for name, score in scores:
                each = _checked_score(name, score(prediction, y), size)
                found[name] = jnp.sum(jnp.where(share == 0, 0, share * each))
        return found, size if weights is None else jnp.sum(weights)

    return jax.jit(run)


def _value(rule, model, params, rule_state, x, y, weights) -> Array:
    """The mean loss of a batch without random numbers; ``model`` stands in the rule's place."""
    if model is None:
        return estimated(rule, params, rule_state, x, y, None, weights)[0]
    return mean_loss(model, rule.loss)(params, x, y, None, weights)


def check_data(
    rule: Rule, params: Tree, rule_state: Tree, data: Tree, sample_weight: Weights = None
) -> None:
    """Traces the loss with the data as constants, so that layers and losses see its values."""
    x, y = data
    weights = weights_of("evaluate", sample_weight, x, y)
    check_sample_weight(weights, len(jax.tree.leaves(x)[0]), name="evaluate")
    model = None if rule.loss is None else rule.model
    due = jax.eval_shape(rule.init, jax.random.key(0), params)
    if model is not None and jax.tree.leaves((due, rule_state)):  # the rule says if it is its own
        check_values(rule, params, rule_state, data)
    jax.eval_shape(
        lambda params, state: _value(rule, model, params, state, x, y, weights), params, rule_state
    )


def _checked_score(name: str, each: Any, size: int) -> Array:
    if jnp.shape(each) != (size,):
        raise LayerError(
            f"score {name!r}",
            f"it gave {jnp.shape(each)}, it must give one number an example, ({size},)",
        )
    return each.astype(jnp.float32)


def accuracy(prediction: Tree, target: Tree) -> Array:
    """Which examples have their largest score at the label, 1. or 0.; of tokens the part.

    Args:
        prediction: scores (B, ..., C), or a tuple of them and what came with them, as
            :func:`auxiliary` takes it.
        target: labels (B, ...), distributions (B, ..., C), or (target, mask) as a loss takes it.

    Returns:
        (B,) float32; NaN where a score is NaN, 0 for an example without a token under its mask.

    Raises:
        LayerError: for shapes and dtypes that do not fit; for labels out of [0, C) where they are
            concrete.  Under a trace such a label gives NaN.

    >>> import jax.numpy as jnp
    >>> from funcprop import accuracy
    >>> accuracy(jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([1, 1])).tolist()
    [1.0, 0.0]
    """
    prediction = prediction[0] if isinstance(prediction, (tuple, list)) else prediction
    target, mask = target if isinstance(target, (tuple, list)) else (target, None)
    if mask is not None:
        check_mask("accuracy", prediction, mask)
    check_classes("accuracy", prediction, target, mask, labels=True)
    classes = prediction.shape[-1]
    if is_inexact(target):
        known, labels = ~jnp.isnan(target).any(-1), jnp.argmax(target, axis=-1)
    else:
        labels = jnp.asarray(target)
        known = (labels >= 0) & (labels < classes)
    known &= ~jnp.isnan(prediction).any(-1)
    right = (jnp.argmax(prediction, axis=-1) == labels).astype(jnp.float32)
    right = jnp.where(known, right, jnp.nan)
    return example_sum(share_of("accuracy", accumulated(prediction), mask), right[..., None])
