"""The scan over the steps of sequences that rnn, lstm and gru have in common.

A cell says what one step does.  On the way back the scan carries deltas only; δx, and what the
sites get, are made of all steps at once behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..contraction import accumulated, by_example
from ..layer import Layer, LayerError, gradient, is_shape
from .sequence import check_lengths, valid

Tree = Any
State = tuple[jax.Array, ...]


class Cell(NamedTuple):
    """One step of a recurrent layer, and what all steps come to.

    Attributes:
        name: what errors call the layer.
        hidden: H, the size of each array of the state.
        arrays: of how many arrays (B, H) the state is made; the first one is h, the output.
        init: ``init(key, d) -> params``.
        check: ``check(params, x)`` raises unless they fit together.
        step: ``step(params, x, state) -> state, kept`` for x (B, d).
        back: ``back(weights, kept, h, delta) -> delta_state, delta_z``: from the delta of the
            state behind a step to that of the state before it, whose first array is h, and to the
            deltas of the pre-activations.
        sweep: ``sweep(weights, x, h, delta_z, statistic) -> delta_x, tree``, all (B, T, ...), with
            h that of the step before each.
    """

    name: str
    hidden: int
    arrays: int
    init: Callable[..., Tree]
    check: Callable[..., None]
    step: Callable[..., tuple[State, Tree]]
    back: Callable[..., tuple[State, Tree]]
    sweep: Callable[..., tuple[jax.Array, Tree]]


def recurrent(cell: Cell, state: bool, truncate: int | None, chunk: int | None) -> Layer:
    """The layer that runs a cell over sequences; :func:`lstm` says what the options do."""
    check_count(cell.name, "hidden", cell.hidden)
    for label, value in (("truncate", truncate), ("chunk", chunk)):
        if value is not None:
            check_count(cell.name, label, value)

    def entries(x):
        """The sequences, their lengths and the first state; None for what is not there."""
        given = x if isinstance(x, tuple) and not is_shape(x) else (x,)
        if len(given) not in ((2, 3) if state else (1, 2)):
            due = "(x, state) or (x, lengths, state)" if state else "x or (x, lengths)"
            advice = "" if state else "; a state is taken with state=True"
            raise LayerError(cell.name, f"the input has {len(given)} entries, {due} is due{advice}")
        own = _arrays(cell, given[-1]) if state else None
        return given[0], given[1] if len(given) == 2 + state else None, own

    def joined(first, lengths, own, padded):
        own = own if cell.arrays > 1 or not state else own[0]
        given = (first, *[lengths] * padded, *[own] * state)
        return given if len(given) > 1 else first

    def init(key, shape):
        x, length, own = entries(shape)
        size = tuple(x) if is_shape(x) else tuple(x.shape)
        padded = length is not None
        if len(size) != 2 or (padded and length.shape != ()):
            raise LayerError(cell.name, f"shape is {shape}, (T, d) is due, or that with a length ()")
        out = (size[0], cell.hidden)
        if not is_shape(x):
            out = joined(jax.ShapeDtypeStruct(out, x.dtype), length, own, padded)
        return cell.init(key, size[1]), out

    def forward(params, x, key=None):
        x, lengths, own = entries(x)
        check_lengths(cell.name, x, lengths)
        cell.check(params, x)
        if state:
            _check_state(cell, x, own)

        def run(x, lengths, own, params):
            steps = _steps(x, lengths, truncate)
            start = own or (_zeros(x, cell.hidden),) * cell.arrays
            last, h, kept = _forward(cell, params, steps, accumulated(start), chunk)
            y = _time_second(h if lengths is None else _where(steps.real, h))
            return y, tuple(leaf.astype(x.dtype) for leaf in last), _time_second(kept)

        y, last, kept = by_example(run, x, lengths, own, params)
        kept = kept if chunk is None else (params, kept)
        return joined(y, lengths, last, lengths is not None), (x, lengths, own, y, kept)

    def backward(weights, residuals, delta, statistic=gradient):
        x, lengths, own, y, kept = residuals
        delta, last = (delta if isinstance(delta, tuple) else (delta,)), None
        if state:
            last = _arrays(cell, delta[-1])
        params, kept = (weights, kept) if chunk is None else kept

        def run(delta, last, x, lengths, own, y, kept, weights, params):
            steps = _steps(x, lengths, truncate)
            if lengths is not None:
                good = valid(lengths, x.shape[1])[:, None, None].astype(delta.dtype)
                delta = _where(_time_second(steps.real), delta) * good
            first = own[0][:, None] if state else jnp.zeros_like(y[:, :1])
            h = jnp.concatenate([first, y[:, :-1]], axis=1)
            carry = accumulated(last or (jnp.zeros_like(delta[:, 0]),) * cell.arrays)
            each = _time_first((delta, h, kept))
            before, delta_z = _backward(cell, weights, params, steps, *each, carry, chunk)
            before = tuple(leaf.astype(x.dtype) for leaf in before)
            return before, _time_second((steps.x, delta_z)), h

        before, (x, delta_z), h = by_example(
            run, delta[0], last, x, lengths, own, y, kept, weights, params
        )
        delta_x, tree = cell.sweep(weights, x, h, delta_z, statistic)
        return joined(delta_x, None, before, lengths is not None), tree

    return Layer(init, forward, backward, cell.name)


def check_count(name: str, label: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LayerError(name, f"{label} is {value!r}, a whole number above 0 is due")


# ---------------------------------------------------------------------------- the steps


class _Steps(NamedTuple):
    """What the scan runs over: x (T, B, d), whether each step is real (T, B), and before which ones
    delta is cut off (T,); None for all and for none.
    """

    x: jax.Array
    real: jax.Array | None
    cut: jax.Array | None


def _steps(x: jax.Array, lengths: jax.Array | None, truncate: int | None) -> _Steps:
    """The steps with x = 0 where they are not real.

    Of a sequence whose length is none all steps are real, and NaN.
    """
    numbers, real = jnp.arange(x.shape[1], dtype=jnp.int32), None
    if lengths is not None:
        good = valid(lengths, x.shape[1])[:, None]
        real = (numbers < lengths.astype(jnp.int32)[:, None]) | jnp.isnan(good)
        x = _where(real, x) * good[:, :, None].astype(x.dtype)
        real = _time_first(real)
    cut = None if truncate is None else (numbers > 0) & (numbers % truncate == 0)
    return _Steps(_time_first(x), real, cut)


def _forward(cell, params, steps, state, chunk):
    """The last state, h of all steps, and what is kept: of each step, or the state before each
    chunk.
    """
    if chunk is None:
        last, (h, kept) = lax.scan(_step(cell, params), state, steps)
        return last, h, kept

    def part(state, steps):
        last, (h, _) = lax.scan(_step(cell, params), state, steps)
        return last, (h, state)

    last, (h, borders) = lax.scan(part, state, _chunks(_with_real(steps, chunk), chunk))
    return last, h.reshape(-1, *h.shape[2:])[: len(steps.x)], borders


def _step(cell, params):
    def step(state, steps):
        x, real, cut = steps
        if cut is not None:
            state = tuple(jnp.where(cut, lax.stop_gradient(leaf), leaf) for leaf in state)
        new, kept = cell.step(params, x, state)
        new = _like(new, state)
        if real is not None:
            new = tuple(_where(real, a, b) for a, b in zip(new, state, strict=True))
        return new, (new[0].astype(x.dtype), kept)

    return step


def _backward(cell, weights, params, steps, delta, h, kept, carry, chunk):
    """The delta of the first state, and the deltas of the pre-activations of all steps."""

    def step(carry, given):
        delta, h, kept, real, cut = given
        carry = (carry[0] + delta.astype(carry[0].dtype), *carry[1:])
        before, delta_z = cell.back(weights, kept, h, carry)
        before = _like(before, carry)
        if real is not None:
            before = tuple(_where(real, a, b) for a, b in zip(before, carry, strict=True))
            delta_z = jax.tree.map(lambda leaf: _where(real, leaf), delta_z)
        if cut is not None:
            before = tuple(jnp.where(cut, jnp.zeros_like(leaf), leaf) for leaf in before)
        return before, delta_z

    if chunk is None:
        each = (delta, h, kept, steps.real, steps.cut)
        return lax.scan(step, carry, each, reverse=True)

    def part(carry, given):
        steps, delta, h, border = given
        _, (_, kept) = lax.scan(_step(cell, params), border, steps)
        return lax.scan(step, carry, (delta, h, kept, steps.real, steps.cut), reverse=True)

    each = (*_chunks((_with_real(steps, chunk), delta, h), chunk), kept)
    before, delta_z = lax.scan(part, carry, each, reverse=True)
    merged = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), delta_z)
    return before, jax.tree.map(lambda leaf: leaf[: len(delta)], merged)


def _with_real(steps, chunk):
    """Steps that fill no chunk are filled up with steps that are not real."""
    if steps.real is not None or len(steps.x) % chunk == 0:
        return steps
    return steps._replace(real=jnp.ones(steps.x.shape[:2], bool))


def _chunks(tree, chunk):
    """(T, ...) as (T/chunk, chunk, ...), filled up with zeros and False."""

    def cut_up(leaf):
        ends = [(0, -len(leaf) % chunk)] + [(0, 0)] * (leaf.ndim - 1)
        return jnp.pad(leaf, ends).reshape(-1, chunk, *leaf.shape[1:])

    return jax.tree.map(cut_up, tree)


# ---------------------------------------------------------------------------- helpers


def _time_first(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), tree)


_time_second = _time_first


def _where(real: jax.Array, new: jax.Array, old: jax.Array | None = None) -> jax.Array:
    """``new`` where a step is real, elsewhere ``old`` or 0."""
    real = real.reshape(real.shape + (1,) * (new.ndim - real.ndim))
    return jnp.where(real, new, jnp.zeros((), new.dtype) if old is None else old)


def _zeros(x: jax.Array, hidden: int) -> jax.Array:
    """Zeros (B, H) that vary over the axes of a mesh as x does."""
    return jnp.broadcast_to(jnp.zeros_like(x[:, 0, :1]), (len(x), hidden))


def _like(new: State, old: State) -> State:
    return tuple(a.astype(b.dtype) for a, b in zip(new, old, strict=True))


def _arrays(cell: Cell, state: Any) -> Any:
    """The state as a tuple, as the cell has it."""
    return state if cell.arrays > 1 else (state,)


def _check_state(cell: Cell, x: jax.Array, state: Any) -> None:
    due = f"{x.dtype}{[len(x), cell.hidden]}"
    if not isinstance(state, tuple) or len(state) != cell.arrays:
        came = f"a {type(state).__name__}"
        raise LayerError(cell.name, f"state is {came}, a tuple of {cell.arrays} {due} is due")
    for leaf in state:
        came = f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else repr(leaf)
        if came != due:
            raise LayerError(cell.name, f"state is {came}, {due} is due")
