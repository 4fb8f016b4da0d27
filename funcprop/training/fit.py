"""Training: a step, and a loop that scans on the device.

All of it knows learning rules only (:class:`~funcprop.Rule`); backprop is one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from ..core.checks import LayerError, check_count
from ..core.rule import Rule
from ..learning.state import check_optimizer
from .arguments import check_data, check_key, check_pair, check_rule
from .evaluation import Score, Slices, validation_of
from .rounds import Metrics, Step, iterated, one_step, scanned
from .stopping import History, Patience, not_finite
from .train_state import TrainState as TrainState
from .train_state import check_not_a_state, check_train_state, finite
from .train_state import init_state as init_state
from .weights import Weights, check_values

Tree = Any


def update_step(
    rule: Rule,
    optimizer: optax.GradientTransformation,
    metrics: Metrics | None = None,
    *,
    sample_weight: Weights = None,
) -> Callable[[TrainState, Tree], tuple[TrainState, dict[str, jax.Array]]]:
    """One step of training, jitted; it donates the state that it is given.

    Args:
        rule: a learning rule.
        optimizer: any optax transformation that needs no gradient at other points; those that take
            extra arguments get ``value``, ``grad`` and ``value_fn``, whose derivative is the rule's
            own estimate (``optax.lbfgs`` with its line search works), and ``rule_state``, the
            state after the estimate of a rule that has one (for
            :func:`~funcprop.statistics.precondition_by_kfac`).  Of a rule that is private they get
            ``rule_state`` alone.
        metrics: ``metrics(state, batch) -> {name: scalar}``, traced with the step, of the state
            before it.
        sample_weight: what each example of a batch counts for in the mean: a function
            ``(x, y) -> (B,)`` of the batch, traced with the step, or an array (B,) for batches that
            are all weighted alike; floats of 0 or more.  ``lambda x, y: class_weight[y]`` weighs
            classes.

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
    check_rule("update_step", rule)
    check_optimizer("update_step", optimizer)

    def step(state, batch):
        if not isinstance(state, TrainState):
            raise LayerError(
                "update_step",
                f"state is a {type(state).__name__}, it must be a TrainState; make it with "
                "init_state(rule, optimizer, params, key)",
            )
        check_pair("update_step", "batch", batch)
        return one_step(rule, optimizer, metrics, state, batch, sample_weight)

    return jax.jit(step, donate_argnums=0)


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
    sample_weight: Weights = None,
    validation: Tree = None,
    calibrate: Iterable[Tree] | None = None,
    scores: Mapping[str, Score] | None = None,
    metrics: Metrics | None = None,
    callback: Callable[[TrainState, History], Any] | None = None,
    every: int | None = None,
    stop: Callable[[History], str | None] | Sequence[Callable[[History], str | None]] | None = None,
    unroll: int = 1,
) -> tuple[TrainState, History]:
    """Trains, with whole epochs scanned on the device.

    A model, an optimizer's state or a rule's state that turns NaN or infinite ends training.  The
    state returned is then the one before the first update that made anything so; the history's
    "stopped" says why, and "not_finite_step" which update it was, counted from 1.  All is looked at
    once a round (``every`` steps); only a round that went wrong is run again, with a look at each
    step.  A leaf that is not finite from the start, as some optimizers have, is not looked at.

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
        sample_weight: what each example counts for in the mean over its batch, floats of 0 or more:
            an array (N,) for the pair (x, y), or a function ``(x, y) -> (B,)`` of a batch, for an
            iterable too.  The validation is weighted by the function; an array is of the training
            data alone.  ``lambda x, y: class_weight[y]`` weighs classes, and for tokens under a
            mask ``lambda x, y: y[1].sum(1, dtype="float32")`` gives the mean over all tokens.
        validation: a pair (x, y) that is evaluated every ``every`` steps.  Where the model has
            layers that mix the examples of a batch (batch norm), what is evaluated is the form that
            :func:`~funcprop.calibrate` makes of it on the training data, batch by batch, with the
            parameters of that moment.
        calibrate: batches of x for that form, in the place of the training data; to be given where
            ``data`` is an iterable.
        scores: ``{name: score(prediction, y) -> (B,)}`` for the validation, say ``accuracy``.
        metrics: ``metrics(state, batch) -> {name: scalar}``, traced at every step.
        callback: ``callback(state, history)``, called on the host every ``every`` steps.
        every: steps between two calls to the host; by default an epoch, of an iterable 100.
        stop: one or more functions ``stop(history) -> reason`` or ``None``, asked every ``every``
            steps (:func:`until`, :func:`patience`); :func:`not_finite` is asked in any case.  With
            ``patience(..., best=True)`` the state of the best round is returned.
        unroll: how many steps the scan unrolls; more is faster for tiny networks, and compiles
            longer.

    Returns:
        ``(state, history)``; the history maps "loss" and the metrics to a list with a number a
        step, "validation_step", "validation_loss" and "validation_<score>" to a list with a
        number a validation, and "stopped" to the reason, where there is one.

    Raises:
        LayerError: before the first step, for arguments of another kind, when shapes, dtypes or
            structures do not fit, or a value (a label, say) is out of range; of an iterable the
            first batch is looked at, and in later ones a value out of range makes the loss NaN.
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
    name = "fit"
    check_rule(name, rule)
    check_optimizer(name, optimizer)
    check_key(name, key)
    shuffle_key, state_key = jax.random.split(key)
    if isinstance(params, TrainState):
        check_train_state(name, params, rule, optimizer)
        state = params
    else:
        check_not_a_state(name, params)
        state = init_state(rule, optimizer, params, state_key)
    check_data(name, data)
    for argument, value in {
        "epochs": epochs, "steps": steps, "batch_size": batch_size, "every": every, "unroll": unroll
    }.items():  # fmt: skip
        if value is not None:
            check_count(name, argument, value)
    step = Step(rule, optimizer, metrics, sample_weight)
    if isinstance(data, tuple):
        first = int(state.step)
        rounds = scanned(step, data, shuffle_key, first, epochs, steps, batch_size, every, unroll)
        check_values(rule, state.params, state.rule_state, data, sample_weight)
    else:
        rounds = iterated(step, data, epochs, steps, batch_size, every)
    stops = () if stop is None else (stop,) if callable(stop) else tuple(stop)
    validate = None
    if validation is not None:
        weigh = sample_weight if callable(sample_weight) else None
        inputs: Iterable[Tree] | None = None
        if calibrate is not None:
            inputs = list(calibrate)
        elif isinstance(data, tuple):
            inputs = Slices(data[0], batch_size)
        validate = validation_of(rule, state, validation, scores, weigh, inputs)

    history: History = {}
    best = _Best(stops)
    watched = finite(state)
    for take in rounds:
        before = state
        state, scalars = take(before)
        broken = None
        if not bool((~watched | finite(state)).all()):
            state, scalars, broken = take(before, watched)
        for label, values in scalars.items():
            history.setdefault(label, []).extend(np.asarray(values).tolist())
        if validate is not None:
            history.setdefault("validation_step", []).append(int(state.step))
            for label, mean in validate(state).items():
                history.setdefault(f"validation_{label}", []).append(mean)
        best.look(state, history)
        if broken is not None:
            history["not_finite_step"] = int(state.step) + 1
        if callback is not None:
            callback(state, history)
        reason = not_finite(history) or broken or _first_reason(stops, history)
        if reason:
            history["stopped"] = reason
            break
    return best.chosen(state, history), history


def _first_reason(stops, history):
    return next((reason for ask in stops if (reason := ask(history))), None)


class _Best:
    """The state of the best round, where a :func:`patience` asks for it."""

    def __init__(self, stops: Sequence[Any]):
        asked = [stop for stop in stops if isinstance(stop, Patience) and stop.best]
        if len(asked) > 1:
            raise ValueError("stop has several of patience(..., best=True), give one")
        self.patience = asked[0] if asked else None
        self.state: TrainState | None = None
        self.entries = 0

    def look(self, state: TrainState, history: History) -> None:
        if self.patience is None:
            return
        best, name = self.patience.best_entry(history), self.patience.name
        new, self.entries = len(history[name]) - self.entries, len(history[name])
        if new != 1:
            raise ValueError(
                f"patience({name!r}, best=True): the list has {new} entries of this round, it must "
                "have one; name one of the validation's, or give every=1"
            )
        if best == self.entries - 1:
            self.state = state

    def chosen(self, state: TrainState, history: History) -> TrainState:
        if self.state is None:
            return state
        history["best_step"] = int(self.state.step)
        return self.state
