"""Rounds of steps: what :func:`~funcprop.fit` runs on the device between two looks at the host.

A round is ``take(state) -> state, scalars``.  ``take(state, watched) -> state, scalars, reason``
runs it with a look at every step, and stops before the first that makes a watched leaf of the state
NaN or infinite; the scalars then end with those of that step.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..core.checks import LayerError, check_sample_weight
from ..core.contraction import taken
from ..core.rule import Rule
from .arguments import check_pair
from .programs import program
from .train_state import TrainState, broken, guarded
from .weights import Weights, check_values, estimated, weights_of

Tree = Any
Metrics = Callable[[TrainState, Tree], Mapping[str, jax.Array]]


def one_step(rule, optimizer, metrics, state, batch, sample_weight=None):
    params, opt_state, rule_state, step, key = state
    x, y = batch
    step_key = jax.random.fold_in(key, step)
    weights = weights_of("sample_weight", sample_weight, x, y)
    value, grads, new_rule_state = estimated(rule, params, rule_state, x, y, step_key, weights)

    def updated(**of_the_loss):
        update = optax.with_extra_args_support(optimizer).update
        return update(grads, opt_state, params, rule_state=new_rule_state, **of_the_loss)

    value_fn = _value_function(rule, rule_state, x, y, step_key, weights)
    of_the_loss = {"value": value, "grad": grads, "value_fn": value_fn}
    updates, opt_state = (
        _privately(updated, of_the_loss) if rule.private else updated(**of_the_loss)
    )
    scalars = {"loss": value}
    if metrics is not None:
        scalars |= metrics(state, batch)
    new = TrainState(optax.apply_updates(params, updates), opt_state, new_rule_state, step + 1, key)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        state, new, custom_message="the step changed its state; rule and optimizer must keep it"
    )
    return new, scalars


def _privately(updated, of_the_loss):
    """An update by the estimate alone; an optimizer that asks for the loss itself is an error."""
    try:
        return updated()
    except TypeError:
        jax.eval_shape(lambda: updated(**of_the_loss))
    raise LayerError(
        "fit",
        "the optimizer asks for the value of the loss, as a line search does, which this rule does "
        "not give since it is not private; take one that needs a gradient alone, say optax.adam",
    )


def _value_function(rule, rule_state, x, y, key, weights):
    """The batch's loss as a function of the parameters, its derivative the rule's estimate."""

    @jax.custom_vjp
    def value(params):
        return estimated(rule, params, rule_state, x, y, key, weights)[0]

    def forward(params):
        return estimated(rule, params, rule_state, x, y, key, weights)[:2]

    def backward(grads, cotangent):
        return (jax.tree.map(lambda grad: (cotangent * grad).astype(grad.dtype), grads),)

    value.defvjp(forward, backward)

    def value_fn(params, *, rule_state=None):
        return value(params)  # a line search hands on all that came beside, and takes no unknown

    return value_fn


class Step(NamedTuple):
    """What a step is made of; the programs made of it are kept with the rule."""

    rule: Rule
    optimizer: optax.GradientTransformation
    metrics: Metrics | None
    sample_weight: Weights

    @property
    def weigh(self) -> Callable | None:
        return self.sample_weight if callable(self.sample_weight) else None

    def program(self, make: Callable, *static: Any) -> Callable:
        return program(make, self.rule, self.optimizer, self.metrics, self.weigh, *static)


def scanned(step, data, key, first, epochs, steps, batch_size, every, unroll):
    """Rounds of many steps each, over batches drawn from the arrays."""
    size = check_pair("fit", "data", data)
    if batch_size not in (None, size) and step.rule.private:
        raise LayerError(
            "fit",
            "the rule draws its own batches from all examples, so that what it releases is known; "
            "leave out batch_size",
        )
    if batch_size is not None and batch_size > size:
        raise ValueError(f"batch_size is {batch_size}, 1 to {size} (all examples) is due")
    if (epochs is None) == (steps is None):
        raise ValueError("give epochs or steps, one of the two")
    if not callable(step.sample_weight):
        check_sample_weight(step.sample_weight, size, name="fit")
    per_epoch = 1 if batch_size is None else size // batch_size
    steps = int(epochs * per_epoch if steps is None else steps)
    every = int(per_epoch if every is None else every)
    counts = [every] * (steps // every) + [steps % every] * (steps % every > 0)

    def rounds():
        weights = None if callable(step.sample_weight) else step.sample_weight
        arrays = jax.tree.map(jnp.asarray, (data, weights))
        orders = _orders(key, size, batch_size, first, counts)
        for count, order in zip(counts, orders, strict=True):

            def take(state, watched=None, count=count, order=order):
                scan = step.program(_scan, count, min(int(unroll), count), watched is not None)
                if watched is None:
                    return scan(state, arrays, order)
                state, scalars, fine = scan(state, watched, arrays, order)
                fine = np.asarray(fine)
                wrong = np.flatnonzero(~fine.all(1))
                if not wrong.size:
                    return state, scalars, None
                kept = jax.tree.map(lambda values: values[: wrong[0] + 1], scalars)
                return state, kept, broken(state, fine[wrong[0]])

            yield take

    return rounds()


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


def _scan(rule, optimizer, metrics, weigh, count, unroll, look):
    """A program of ``count`` steps, over all of the arrays or rows of them."""

    def one(state, arrays, rows):
        if rows is not None:
            arrays = jax.tree.map(lambda leaf: taken(leaf, rows), arrays)
        batch, weights = arrays
        return one_step(rule, optimizer, metrics, state, batch, weights if weigh is None else weigh)

    def plain(state, arrays, order):
        def step(state, rows):
            return one(state, arrays, rows)

        return jax.lax.scan(step, state, order, length=count, unroll=unroll)

    def looked_at(state, watched, arrays, order):
        def step(carry, rows):
            state, going, *found = guarded(one, watched, *carry, arrays, rows)
            return (state, going), found

        carry, found = jax.lax.scan(step, (state, jnp.array(True)), order, length=count)
        return carry[0], *found

    return jax.jit(looked_at if look else plain)


def _one(rule, optimizer, metrics, weigh, look, donate):
    """A program of one step."""

    def step(state, batch):
        return one_step(rule, optimizer, metrics, state, batch, weigh)

    def looked_at(state, watched, batch):
        state, _, *found = guarded(step, watched, state, jnp.array(True), batch)
        return state, *found

    if look:
        return jax.jit(looked_at)
    return jax.jit(step, donate_argnums=0 if donate else ())


def iterated(step, data, epochs, steps, batch_size, every):
    """Rounds of ``every`` steps each, a call a step, over the batches of an iterable."""
    if epochs is not None or batch_size is not None:
        raise ValueError(
            "epochs and batch_size go with arrays: data is an iterable of batches, used up once; "
            "give steps, or the pair (x, y) as a tuple"
        )
    if step.rule.private:
        raise LayerError(
            "fit",
            "the rule draws its own batches from all examples, so that what it releases is known; "
            "give all of them as the pair (x, y)",
        )
    if step.sample_weight is not None and step.weigh is None:
        raise LayerError(
            "fit", "sample_weight is an array and data an iterable; give a function (x, y) -> (B,)"
        )
    every = int(every or 100)
    batches = enumerate(data if steps is None else itertools.islice(data, int(steps)))

    def checked(numbered):
        number, batch = numbered
        check_pair("fit", f"batch {number} of data", batch)
        return tuple(batch)

    def rounds():
        first = True
        while some := [checked(batch) for batch in itertools.islice(batches, every)]:

            def take(state, watched=None, some=some, first=first):
                if first:
                    check_values(
                        step.rule, state.params, state.rule_state, some[0], step.sample_weight
                    )
                collected: list[dict[str, jax.Array]] = []
                reason = None
                for batch in some:
                    # The round's first state is kept: the round may have to be run again.
                    one = step.program(_one, watched is not None, bool(collected))
                    if watched is None:
                        state, scalars = one(state, batch)
                    else:
                        state, scalars, fine = one(state, watched, batch)
                        reason = None if bool(fine.all()) else broken(state, np.asarray(fine))
                    collected.append(scalars)
                    if reason is not None:
                        break
                found = {name: [s[name] for s in collected] for name in collected[0]}
                return (state, found) if watched is None else (state, found, reason)

            first = False
            yield take
        if first:
            raise ValueError("data is an iterable without batches; an iterator is used up once")

    return rounds()
