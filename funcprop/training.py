"""Training: a step, a loop that scans on the device, evaluation, and when to stop.

All of it knows learning rules only (:class:`~funcprop.Rule`); backprop is one of them.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .layer import LayerError
from .learning.backpropagation import Rule

Tree = Any
Metrics = Callable[["TrainState", Tree], Mapping[str, jax.Array]]
Score = Callable[[Tree, Tree], jax.Array]
History = dict[str, Any]


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
    rule_key, key = jax.random.split(key)
    state = TrainState(
        params, optimizer.init(params), rule.init(rule_key, params), jnp.zeros((), jnp.int32), key
    )
    # A buffer may be donated once only, and an optimizer may start from the parameters' own.
    return jax.tree.map(jnp.copy, state)


def update_step(
    rule: Rule, optimizer: optax.GradientTransformation, metrics: Metrics | None = None
) -> Callable[[TrainState, Tree], tuple[TrainState, dict[str, jax.Array]]]:
    """One step of training, jitted; it donates the state that it is given.

    Args:
        rule: a learning rule.
        optimizer: any optax transformation that needs no gradient at other points; those that take
            extra arguments get ``value``, ``grad`` and ``value_fn``, whose derivative is the rule's
            own estimate (``optax.lbfgs`` with its line search works).
        metrics: ``metrics(state, batch) -> {name: scalar}``, traced with the step, of the state
            before it.

    Returns:
        ``step(state, (x, y)) -> state, {"loss": ..., **metrics}``.

    >>> import jax, jax.numpy as jnp, optax
    >>> from funcprop import backpropagation, init_state, mean_squared_error, mlp, update_step
    >>> model, optimizer = mlp((2, 1)), optax.sgd(0.1)
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> rule = backpropagation(model, mean_squared_error)
    >>> state = init_state(rule, optimizer, params, jax.random.key(1))
    >>> step = update_step(rule, optimizer)
    >>> state, scalars = step(state, (jnp.ones((4, 2)), jnp.ones((4, 1))))
    >>> int(state.step), list(scalars)
    (1, ['loss'])
    """
    return jax.jit(functools.partial(_step, rule, optimizer, metrics), donate_argnums=0)


def _step(rule, optimizer, metrics, state, batch):
    params, opt_state, rule_state, step, key = state
    step_key = jax.random.fold_in(key, step)
    value, grads, new_rule_state = rule.estimate(params, rule_state, *batch, step_key)
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
        grads,
        opt_state,
        params,
        value=value,
        grad=grads,
        value_fn=_value_function(rule, rule_state, batch, step_key),
    )
    scalars = {"loss": value}
    if metrics is not None:
        scalars |= metrics(state, batch)
    new = TrainState(optax.apply_updates(params, updates), opt_state, new_rule_state, step + 1, key)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        state, new, custom_message="the step changed its state; rule and optimizer must keep it"
    )
    return new, scalars


def _value_function(rule, rule_state, batch, key):
    """The batch's loss as a function of the parameters, its derivative the rule's estimate."""

    @jax.custom_vjp
    def value(params):
        return rule.estimate(params, rule_state, *batch, key)[0]

    def forward(params):
        return rule.estimate(params, rule_state, *batch, key)[:2]

    def backward(grads, cotangent):
        return (jax.tree.map(lambda grad: (cotangent * grad).astype(grad.dtype), grads),)

    value.defvjp(forward, backward)
    return value


# ---------------------------------------------------------------------------- the loop


def fit(
    rule: Rule,
    optimizer: optax.GradientTransformation,
    params: Tree,
    data: Tree,
    *,
    key: jax.Array,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    validation: Tree = None,
    scores: Mapping[str, Score] | None = None,
    metrics: Metrics | None = None,
    callback: Callable[[TrainState, History], Any] | None = None,
    every: int | None = None,
    stop: Callable[[History], str | None] | Sequence[Callable[[History], str | None]] | None = None,
    unroll: int = 1,
) -> tuple[TrainState, History]:
    """Trains, with whole epochs scanned on the device.

    Args:
        rule: a learning rule.
        optimizer: any optax transformation, see :func:`update_step`.
        params: the parameters, or a :class:`TrainState` to go on from: with the same key and data
            the steps are then those that an unbroken run would have taken.
        data: the pair (x, y) of arrays with a leading axis of examples; or any iterable of such
            pairs, each a batch, used up once.
        key: a key of ``jax.random``, for the shuffling and the steps.
        epochs: how often to go through the pair (x, y); or
        steps: how many steps to take; of an iterable at most that many.
        batch_size: examples a step.  Each epoch shuffles anew and leaves out the rest that fills
            no batch.  By default all examples, unshuffled.
        validation: a pair (x, y) that is evaluated every ``every`` steps.
        scores: ``{name: score(prediction, y) -> (B,)}`` for the validation, say ``accuracy``.
        metrics: ``metrics(state, batch) -> {name: scalar}``, traced at every step.
        callback: ``callback(state, history)``, called on the host every ``every`` steps.
        every: steps between two calls to the host; by default an epoch, of an iterable 100.
        stop: one or more functions ``stop(history) -> reason`` or ``None``, asked every ``every``
            steps (:func:`until`, :func:`patience`, :func:`not_finite`); by default
            :func:`not_finite`.
        unroll: how many steps the scan unrolls; more is faster for tiny networks, and compiles
            longer.

    Returns:
        ``(state, history)``; the history maps "loss" and the metrics to a list with a number a
        step, "validation_step", "validation_loss" and "validation_<score>" to a list with a
        number a validation, and "stopped" to the reason, where there is one.

    Raises:
        LayerError: before the first step, when shapes, dtypes or structures do not fit, or a
            value (a label, say) is out of range; of an iterable the first batch is looked at.
        ValueError: for arguments that make no sense together.

    >>> import jax, jax.numpy as jnp, optax
    >>> from funcprop import backpropagation, fit, mean_squared_error, mlp
    >>> model = mlp((1, 1))
    >>> params, _ = model.init(jax.random.key(0), (1,))
    >>> x = jnp.linspace(-1, 1, 32)[:, None]
    >>> state, history = fit(backpropagation(model, mean_squared_error), optax.sgd(0.3), params,
    ...                      (x, 3 * x + 1), key=jax.random.key(1), epochs=50, batch_size=8)
    >>> len(history["loss"]), history["loss"][-1] < 1e-6
    (200, True)
    """
    shuffle_key, state_key = jax.random.split(key)
    resumed = isinstance(params, TrainState)
    state = params if resumed else init_state(rule, optimizer, params, state_key)
    if isinstance(data, tuple):
        first = int(state.step)
        chunks = _scanned(data, shuffle_key, first, epochs, steps, batch_size, every, unroll)
        _check_values(rule, state.params, state.rule_state, data)
    else:
        chunks = _iterated(data, epochs, steps, batch_size, every)
    stops = (not_finite,) if stop is None else (stop,) if callable(stop) else tuple(stop)
    if validation is not None:
        _check_values(rule, state.params, state.rule_state, validation)

    history: History = {}
    fresh = not resumed  # a state that somebody else may hold is not donated
    for run in chunks:
        state, scalars = run(rule, optimizer, metrics, state, fresh)
        fresh = callback is None
        for name, values in scalars.items():
            history.setdefault(name, []).extend(np.asarray(values).tolist())
        if validation is not None:
            found = evaluate(
                rule, state.params, validation, scores=scores, rule_state=state.rule_state
            )
            for name, value in {"step": int(state.step), **found}.items():
                history.setdefault(f"validation_{name}", []).append(value)
        if callback is not None:
            callback(state, history)
        reason = next((reason for ask in stops if (reason := ask(history))), None)
        if reason:
            history["stopped"] = reason
            break
    return state, history


def _scanned(data, key, first, epochs, steps, batch_size, every, unroll):
    """Runs of many steps each, over batches drawn from the arrays."""
    if len(data) != 2:
        raise ValueError(f"data is a tuple of {len(data)}; the pair (x, y) is due")
    size = _examples(data)
    if batch_size is not None and not 1 <= batch_size <= size:
        raise ValueError(f"batch_size is {batch_size}, 1 to {size} (all examples) is due")
    if (epochs is None) == (steps is None):
        raise ValueError("give epochs or steps, one of the two")
    per_epoch = 1 if batch_size is None else size // batch_size
    steps = epochs * per_epoch if steps is None else steps
    every = per_epoch if every is None else every
    if steps < 1 or every < 1:
        raise ValueError(f"epochs, steps and every must be 1 or more; steps is {steps}")
    counts = [every] * (steps // every) + [steps % every] * (steps % every > 0)

    def runs():
        arrays = jax.tree.map(jnp.asarray, data)
        orders = _orders(key, size, batch_size, first, counts)
        for count, order in zip(counts, orders, strict=True):

            def run(rule, optimizer, metrics, state, donate, count=count, order=order):
                scan = _scan_donating if donate else _scan
                return scan(rule, optimizer, metrics, count, unroll, state, arrays, order)

            yield run

    return runs()


def _orders(key, size, batch_size, first, counts) -> Iterator[jax.Array | None]:
    """Which examples each step takes: arrays (count, batch_size) cut from the epochs' orders."""
    if batch_size is None:
        yield from itertools.repeat(None, len(counts))
        return
    per_epoch = size // batch_size
    epoch, skip = divmod(first, per_epoch)
    rows = jnp.zeros((0, batch_size), jnp.int32)
    for count in counts:
        missing = -(-(skip + count - len(rows)) // per_epoch)
        if missing > 0:
            new = _shuffled(key, size, batch_size, epoch + jnp.arange(missing))
            rows, epoch = jnp.concatenate([rows, new]), epoch + missing
        yield rows[skip : skip + count]
        rows, skip = rows[skip + count :], 0


@functools.partial(jax.jit, static_argnums=(1, 2))
def _shuffled(key, size, batch_size, epochs):
    used = size - size % batch_size
    orders = jax.vmap(lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), size))
    return orders(epochs)[:, :used].reshape(-1, batch_size)


def _scan_steps(rule, optimizer, metrics, count, unroll, state, arrays, order):
    def step(state, rows):
        batch = arrays if rows is None else jax.tree.map(lambda leaf: leaf[rows], arrays)
        return _step(rule, optimizer, metrics, state, batch)

    return jax.lax.scan(step, state, order, length=count, unroll=min(unroll, count))


_scan = jax.jit(_scan_steps, static_argnums=(0, 1, 2, 3, 4))
_scan_donating = jax.jit(_scan_steps, static_argnums=(0, 1, 2, 3, 4), donate_argnums=5)
_one = jax.jit(_step, static_argnums=(0, 1, 2))
_one_donating = jax.jit(_step, static_argnums=(0, 1, 2), donate_argnums=3)


def _iterated(data, epochs, steps, batch_size, every):
    """Runs of ``every`` steps each, a call a step, over the batches of an iterable."""
    if epochs is not None or batch_size is not None:
        raise ValueError(
            "epochs and batch_size go with arrays: data is an iterable of batches, used up once; "
            "give steps, or the pair (x, y) as a tuple"
        )
    if every is not None and every < 1:
        raise ValueError(f"every is {every}, 1 or more is due")
    every = 100 if every is None else every
    batches = iter(data if steps is None else itertools.islice(data, steps))
    first = next(batches, None)
    if first is None:
        raise ValueError("data is an iterable without batches; an iterator is used up once")
    batches = itertools.chain([first], batches)

    def take(many: Iterable, rule, optimizer, metrics, state, donate):
        collected: list[dict[str, jax.Array]] = []
        for batch in many:
            one = _one_donating if donate or collected else _one
            state, scalars = one(rule, optimizer, metrics, state, tuple(batch))
            collected.append(scalars)
        return state, {name: [s[name] for s in collected] for name in collected[0]}

    def runs():
        checked = False
        while some := tuple(itertools.islice(batches, every)):

            def run(rule, optimizer, metrics, state, donate, some=some, check=not checked):
                if check:
                    _check_values(rule, state.params, state.rule_state, tuple(some[0]))
                return take(some, rule, optimizer, metrics, state, donate)

            checked = True
            yield run

    return runs()


def _check_values(rule: Rule, params: Tree, rule_state: Tree, data: Tree) -> None:
    """Traces the rule with the data as constants, so that layers and losses see its values."""
    jax.eval_shape(
        lambda params, rule_state: rule.estimate(params, rule_state, *data, None)[0],
        params,
        rule_state,
    )


def _examples(data: Tree) -> int:
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(data)]
        raise LayerError(
            "data", f"x and y have shapes {shapes}; one leading axis of examples is due"
        )
    return sizes.pop()[0]


# -------------------------------------------------------------------------- evaluation


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
    _check_values(rule, params, rule_state, data)
    size = _examples(data)
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


def accuracy(prediction: jax.Array, target: Tree) -> jax.Array:
    """Which examples have their largest score at the label, 1. or 0.; of tokens the part.

    Args:
        prediction: scores (B, ..., C).
        target: labels (B, ...), distributions (B, ..., C), or (target, mask) as a loss takes it.

    Returns:
        (B,) float32.

    >>> import jax.numpy as jnp
    >>> from funcprop import accuracy
    >>> accuracy(jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([1, 1])).tolist()
    [1.0, 0.0]
    """
    target, mask = target if isinstance(target, (tuple, list)) else (target, None)
    labels = target if target.ndim < prediction.ndim else jnp.argmax(target, axis=-1)
    if labels.shape != prediction.shape[:-1]:
        raise LayerError("accuracy", f"labels are {labels.shape}, {prediction.shape[:-1]} are due")
    right = (jnp.argmax(prediction, axis=-1) == labels).astype(jnp.float32)
    tokens = tuple(range(1, right.ndim))
    if mask is None:
        return jnp.mean(right, axis=tokens)
    return jnp.sum(right * mask, axis=tokens) / jnp.maximum(jnp.sum(mask, axis=tokens), 1)


# ---------------------------------------------------------------------------- stopping


def until(
    name: str, *, at_least: float | None = None, at_most: float | None = None
) -> Callable[[History], str | None]:
    """Stop when the last number of a list in the history has reached a target.

    Args:
        name: the list, say "validation_accuracy" or "loss".
        at_least: stop at this number or above; or
        at_most: stop at this number or below.

    >>> from funcprop import until
    >>> until("validation_accuracy", at_least=0.97)({"validation_accuracy": [0.9, 0.98]})
    'validation_accuracy reached 0.98'
    """
    if (at_least is None) == (at_most is None):
        raise ValueError("give at_least or at_most, one of the two")

    def stop(history):
        last = _named(history, name)[-1]
        reached = last >= at_least if at_least is not None else last <= at_most  # type: ignore
        return f"{name} reached {last:.6g}" if reached else None

    return stop


def patience(name: str, rounds: int, *, larger: bool = False) -> Callable[[History], str | None]:
    """Stop when the best number of a list in the history is ``rounds`` entries old.

    Args:
        name: the list; of "loss" and of metrics an entry is a step.
        rounds: how many entries without a better one, at least 1.
        larger: whether larger numbers are better.

    >>> from funcprop import patience
    >>> patience("validation_loss", 2)({"validation_loss": [3.0, 1.0, 1.5, 1.2]})
    'validation_loss has not improved for 2 entries'
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, 1 or more is due")

    def stop(history):
        values = np.asarray(_named(history, name))
        best = np.argmax(values if larger else -values)
        waited = len(values) - 1 - best
        return f"{name} has not improved for {waited} entries" if waited >= rounds else None

    return stop


def not_finite(history: History) -> str | None:
    """Stop when the last loss is NaN or infinite; the reason names the first that was.

    >>> from funcprop import not_finite
    >>> not_finite({"loss": [1.0, float("nan")]})
    'the loss is nan at step 2'
    """
    if math.isfinite(history["loss"][-1]):
        return None
    first = next(i for i, loss in enumerate(history["loss"]) if not math.isfinite(loss))
    return f"the loss is {history['loss'][first]} at step {first + 1}"


def _named(history: History, name: str) -> list[float]:
    if not history.get(name):
        known = ", ".join(sorted(history))
        raise ValueError(f"the history has no {name!r}; it has {known}")
    return history[name]
