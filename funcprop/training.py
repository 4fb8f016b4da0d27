"""Training: a step, and a loop that scans on the device.

All of it knows learning rules only (:class:`~funcprop.Rule`); backprop is one of them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .evaluation import Score, check_values, evaluate, examples
from .learning.backpropagation import Rule
from .stopping import History, not_finite

Tree = Any
Metrics = Callable[["TrainState", Tree], Mapping[str, jax.Array]]


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
            own estimate (``optax.lbfgs`` with its line search works), and ``rule_state``, the
            state after the estimate of a rule that has one (for
            :func:`~funcprop.statistics.precondition_by_kfac`).
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
        rule_state=new_rule_state,
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

    def value_fn(params, *, rule_state=None):
        return value(params)  # a line search hands on all that came beside, and takes no unknown

    return value_fn


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
        check_values(rule, state.params, state.rule_state, data)
    else:
        chunks = _iterated(data, epochs, steps, batch_size, every)
    stops = (not_finite,) if stop is None else (stop,) if callable(stop) else tuple(stop)
    if validation is not None:
        check_values(rule, state.params, state.rule_state, validation)

    history: History = {}
    donate = not resumed and callback is None  # nobody else may hold what is donated
    for run in chunks:
        state, scalars = run(rule, optimizer, metrics, state, donate)
        donate = callback is None
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
    size = examples(data)
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
    rows: jax.Array | None = None
    for count in counts:
        missing = -(-(skip + count - (0 if rows is None else len(rows))) // per_epoch)
        if rows is None or missing > 0:
            new = _shuffled(key, size, batch_size, epoch + np.arange(missing))
            rows, epoch = new if rows is None else jnp.concatenate([rows, new]), epoch + missing
        whole = skip == 0 and len(rows) == count  # the usual case, an epoch: nothing to cut
        yield rows if whole else rows[skip : skip + count]
        rows, skip = (None if whole else rows[skip + count :]), 0


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
                    check_values(rule, state.params, state.rule_state, tuple(some[0]))
                return take(some, rule, optimizer, metrics, state, donate)

            checked = True
            yield run

    return runs()
