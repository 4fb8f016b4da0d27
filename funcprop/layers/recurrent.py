"""The scan over the steps of sequences that rnn, lstm and gru have in common.

A cell says what one step does.  On the way back the scan carries deltas only; δx, and what the
sites get, are made of all steps at once behind it.
"""

from __future__ import annotations

import functools
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
        sizes: how many features each array of ``delta_z`` has.
        init: ``init(key, d) -> params``.
        check: ``check(params, x)`` raises unless they fit together.
        step: ``step(params, x, state) -> state, kept`` for x (B, d).
        back: ``back(weights, kept, h, delta) -> delta_state, delta_z``: from the delta of the
            state behind a step to that of the state before it, whose first array is h, and a tuple,
            the deltas of the pre-activations.
        sweep: ``sweep(weights, x, h, delta_z, statistic) -> delta_x, tree``, all (B, T, ...), with
            h that of the step before each.
    """

    name: str
    hidden: int
    arrays: int
    sizes: tuple[int, ...]
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
            raise LayerError(
                cell.name, f"shape is {shape}, (T, d) is due, or that with a length ()"
            )
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
            steps = _steps(x, lengths, chunk)
            first = own or (_zeros(x, cell.hidden),) * cell.arrays
            scan = functools.partial(lax.scan, _step(cell, truncate, params))
            last, h, kept = _forward(scan, accumulated(first), steps, chunk)
            y = swapped(h if lengths is None else _where(steps.real, h))
            return y, tuple(leaf.astype(x.dtype) for leaf in last), swapped(kept)

        y, last, kept = by_example(run, x, lengths, own, params)
        kept = kept if chunk is None else (params, kept)
        return joined(y, lengths, last, lengths is not None), (x, lengths, own, y, kept)

    def backward(weights, residuals, delta, statistic=gradient):
        x, lengths, own, y, kept = residuals
        delta = delta if isinstance(delta, tuple) else (delta,)
        last = _arrays(cell, delta[-1]) if state else None
        params, kept = (None, kept) if chunk is None else kept

        def run(delta, last, x, lengths, own, y, kept, weights, params):
            steps = _steps(x, lengths, chunk)
            if lengths is not None:
                good = valid(lengths, x.shape[1])[:, None, None].astype(delta.dtype)
                delta = _where(swapped(steps.real), delta) * good
            h = _before(y, own)
            last = accumulated(last or (jnp.zeros_like(delta[:, 0]),) * cell.arrays)
            empty = tuple(_zeros(x, x.shape[1], size) for size in cell.sizes)
            scan = functools.partial(lax.scan, _step(cell, truncate, params))
            back = functools.partial(lax.scan, _step_back(cell, truncate, weights), reverse=True)
            each = (steps, *swapped((delta, h, kept)))
            first, delta_z = _backward(scan, back, (last, empty), *each, chunk)
            return tuple(leaf.astype(x.dtype) for leaf in first), swapped(steps.x), h, delta_z

        first, x, h, delta_z = by_example(
            run, delta[0], last, x, lengths, own, y, kept, weights, params
        )
        delta_x, tree = cell.sweep(weights, x, h, delta_z, statistic)
        return joined(delta_x, None, first, lengths is not None), tree

    return Layer(init, forward, backward, cell.name)


def check_count(name: str, label: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LayerError(name, f"{label} is {value!r}, a whole number above 0 is due")


# ---------------------------------------------------------------------------- the scans


class _Steps(NamedTuple):
    """What is scanned: x (T, B, d), which steps are real (T, B), None for all, and their number."""

    x: jax.Array
    real: jax.Array | None
    number: jax.Array


def _steps(x: jax.Array, lengths: jax.Array | None, chunk: int | None) -> _Steps:
    """The steps, with x = 0 where they are not real.

    Of a sequence whose length is none all steps are real, and NaN.
    """
    number, real = jnp.arange(x.shape[1], dtype=jnp.int32), None
    if chunk is not None and x.shape[1] % chunk:
        real = jnp.ones((x.shape[1], len(x)), bool)  # those that fill up a chunk are not
    if lengths is not None:
        good = valid(lengths, x.shape[1])[:, None]
        real = (number < lengths.astype(jnp.int32)[:, None]) | jnp.isnan(good)
        x = _where(real, x) * good[:, :, None].astype(x.dtype)
        real = swapped(real)
    return _Steps(swapped(x), real, number)


def _step(cell: Cell, truncate: int | None, params: Tree) -> Any:
    def step(state, steps):
        if truncate is not None:
            cut = _cut(steps.number, truncate)
            state = tuple(jnp.where(cut, lax.stop_gradient(leaf), leaf) for leaf in state)
        new, kept = cell.step(params, steps.x, state)
        new = _where_real(steps.real, new, state)
        return new, (new[0].astype(steps.x.dtype), kept)

    return step


def _step_back(cell: Cell, truncate: int | None, weights: Tree) -> Any:
    def step(carry, given):
        (last, *others), written = carry
        steps, delta, h, kept = given
        last = (last + delta.astype(last.dtype), *others)
        first, delta_z = cell.back(weights, kept, h, last)
        first = _where_real(steps.real, first, last)
        if truncate is not None:
            cut = _cut(steps.number, truncate)
            first = tuple(jnp.where(cut, jnp.zeros_like(leaf), leaf) for leaf in first)
        if steps.real is not None:
            delta_z = tuple(_where(steps.real, leaf) for leaf in delta_z)
        written = tuple(
            lax.dynamic_update_index_in_dim(all_steps, leaf, steps.number, axis=1)
            for all_steps, leaf in zip(written, delta_z, strict=True)
        )
        return (first, written), None

    return step


def _cut(number: jax.Array, truncate: int) -> jax.Array:
    return (number > 0) & (number % truncate == 0)


def _forward(scan, state, steps, chunk):
    """The last state, h of all steps, and what is kept: of each step, or the state in front of
    each chunk.
    """
    if chunk is None:
        last, (h, kept) = scan(state, steps)
        return last, h, kept

    def part(state, steps):
        last, (h, _) = scan(state, steps)
        return last, (h, state)

    last, (h, borders) = lax.scan(part, state, _chunks(steps, chunk))
    return last, h.reshape(-1, *h.shape[2:])[: len(steps.x)], borders


def _backward(scan, back, carry, steps, delta, h, kept, chunk):
    """The delta of the first state, and the deltas of the pre-activations (B, T, ...)."""
    if chunk is None:
        return back(carry, (steps, delta, h, kept))[0]

    def part(carry, given):
        steps, delta, h, border = given
        _, (_, kept) = scan(border, steps)
        return back(carry, (steps, delta, h, kept))

    return lax.scan(part, carry, (*_chunks((steps, delta, h), chunk), kept), reverse=True)[0]


def _chunks(tree: Tree, chunk: int) -> Tree:
    """(T, ...) as (T/chunk, chunk, ...), filled up with zeros: steps that are not real.

    They have the number 0, and what they write on the way back the real step 0 writes over.
    """

    def cut_up(leaf):
        ends = [(0, -len(leaf) % chunk)] + [(0, 0)] * (leaf.ndim - 1)
        return jnp.pad(leaf, ends).reshape(-1, chunk, *leaf.shape[1:])

    return jax.tree.map(cut_up, tree)


# ---------------------------------------------------------------------------- helpers


def swapped(tree: Tree) -> Tree:
    """(B, T, ...) as (T, B, ...), and back."""
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), tree)


def _where(real: jax.Array, x: jax.Array) -> jax.Array:
    """x where a step is real, elsewhere 0."""
    return jnp.where(real.reshape(real.shape + (1,) * (x.ndim - real.ndim)), x, jnp.zeros_like(x))


def _where_real(real: jax.Array | None, new: State, old: State) -> State:
    """The new state, in the dtype of the old one, which stays where a step is not real."""
    new = tuple(a.astype(b.dtype) for a, b in zip(new, old, strict=True))
    if real is None:
        return new
    return tuple(jnp.where(real[:, None], a, b) for a, b in zip(new, old, strict=True))


def _before(y: jax.Array, state: Any) -> jax.Array:
    """h in front of each step, for those that are real."""
    first = jnp.zeros_like(y[:, :1]) if state is None else state[0][:, None]
    return jnp.concatenate([first, y[:, :-1]], axis=1)


def _zeros(x: jax.Array, *sizes: int) -> jax.Array:
    """Zeros (B, ...) that vary over the axes of a mesh as x does."""
    zero = jnp.zeros_like(x[:, 0, 0]).reshape(-1, *(1,) * len(sizes))
    return jnp.broadcast_to(zero, (len(x), *sizes))


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
