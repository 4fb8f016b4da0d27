"""The scans of a recurrent layer over the steps of its sequences, forward and back.

A cell says what one step does.  On the way back the scan carries deltas only; what the sites get,
and δx, are made of all steps at once behind it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.checks import LayerError, check_float, is_concrete

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


class Steps(NamedTuple):
    """What is scanned: x (T, B, d), which steps are real (T, B), None for all, and their number."""

    x: jax.Array
    real: jax.Array | None
    number: jax.Array


def steps_of(x: jax.Array, lengths: jax.Array | None, chunk: int | None) -> Steps:
    """The steps, with x = 0 where they are not real.

    Of a sequence whose length is none all steps are real, and NaN.
    """
    number, real = jnp.arange(x.shape[1], dtype=jnp.int32), None
    if chunk is not None and x.shape[1] % chunk:
        real = jnp.ones((x.shape[1], len(x)), bool)  # those that fill up a chunk are not
    if lengths is not None:
        good = valid(lengths, x.shape[1])[:, None]
        real = (number < lengths.astype(jnp.int32)[:, None]) | jnp.isnan(good)
        x = only_real(real, x) * good[:, :, None].astype(x.dtype)
        real = swapped(real)
    return Steps(swapped(x), real, number)


def _step(cell: Cell, truncate: int | None, params: Tree) -> Any:
    def step(state, steps):
        if truncate is not None:
            cut = _cut(steps.number, truncate)
            state = tuple(jnp.where(cut, lax.stop_gradient(leaf), leaf) for leaf in state)
        new, kept = cell.step(params, steps.x, state)
        new = _kept(steps.real, new, state)
        return new, (new[0].astype(steps.x.dtype), kept)

    return step


def _step_back(cell: Cell, truncate: int | None, weights: Tree) -> Any:
    def step(carry, given):
        (last, *others), written = carry
        steps, delta, h, kept = given
        last = (last + delta.astype(last.dtype), *others)
        first, delta_z = cell.back(weights, kept, h, last)
        first = _kept(steps.real, first, last)
        if truncate is not None:
            cut = _cut(steps.number, truncate)
            first = tuple(jnp.where(cut, jnp.zeros_like(leaf), leaf) for leaf in first)
        written = tuple(
            lax.dynamic_update_index_in_dim(
                all_steps, only_real(steps.real, leaf), steps.number, axis=1
            )
            for all_steps, leaf in zip(written, delta_z, strict=True)
        )
        return (first, written), None

    return step


def _cut(number: jax.Array, truncate: int) -> jax.Array:
    return (number > 0) & (number % truncate == 0)


def scan_forward(
    cell: Cell, params: Tree, state: State, steps: Steps, truncate: int | None, chunk: int | None
) -> tuple[State, jax.Array, Tree]:
    """The last state, h of all steps, and what is kept: of each step, or the state in front of
    each chunk.
    """
    scan = functools.partial(lax.scan, _step(cell, truncate, params))
    if chunk is None:
        last, (h, kept) = scan(state, steps)
        return last, h, kept

    def part(state, steps):
        last, (h, _) = scan(state, steps)
        return last, (h, state)

    last, (h, borders) = lax.scan(part, state, _chunks(steps, chunk))
    return last, h.reshape(-1, *h.shape[2:])[: len(steps.x)], borders


def scan_back(
    cell: Cell,
    weights: Tree,
    params: Tree,
    delta_state: State,
    written: tuple[jax.Array, ...],
    steps: Steps,
    each: tuple[jax.Array, jax.Array, Tree],
    truncate: int | None,
    chunk: int | None,
) -> tuple[State, tuple[jax.Array, ...]]:
    """The delta of the first state, and ``written``, (B, T, ...), with all of ``delta_z``.

    ``each`` is δ, the h before, and what was kept, of each step or of each chunk, whose steps are
    computed again with ``params``.
    """
    back = functools.partial(lax.scan, _step_back(cell, truncate, weights), reverse=True)
    delta, h, kept = each
    if chunk is None:
        return back((delta_state, written), (steps, delta, h, kept))[0]

    def part(carry, given):
        steps, delta, h, border = given
        _, (_, kept) = lax.scan(_step(cell, truncate, params), border, steps)
        return back(carry, (steps, delta, h, kept))

    given = (*_chunks((steps, delta, h), chunk), kept)
    return lax.scan(part, (delta_state, written), given, reverse=True)[0]


def _chunks(tree: Tree, chunk: int) -> Tree:
    """(T, ...) as (T/chunk, chunk, ...), filled up with zeros: steps that are not real.

    They have the number 0, and what they write on the way back the real step 0 writes over.
    """

    def cut_up(leaf):
        ends = [(0, -len(leaf) % chunk)] + [(0, 0)] * (leaf.ndim - 1)
        return jnp.pad(leaf, ends).reshape(-1, chunk, *leaf.shape[1:])

    return jax.tree.map(cut_up, tree)


def swapped(tree: Tree) -> Tree:
    """(B, T, ...) as (T, B, ...), and back."""
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), tree)


def only_real(real: jax.Array | None, x: jax.Array) -> jax.Array:
    """x where a step is real, elsewhere 0."""
    if real is None:
        return x
    return jnp.where(real.reshape(real.shape + (1,) * (x.ndim - real.ndim)), x, jnp.zeros_like(x))


def _kept(real: jax.Array | None, new: State, old: State) -> State:
    """The new state, in the dtype of the old one, which stays where a step is not real."""
    new = tuple(a.astype(b.dtype) for a, b in zip(new, old, strict=True))
    if real is None:
        return new
    return tuple(jnp.where(real[:, None], a, b) for a, b in zip(new, old, strict=True))


def check_lengths(name: str, x: Any, lengths: Any = None) -> None:
    """Raises unless x is a batch of sequences (B, T, d), and lengths (B,), where given, fit it."""
    if getattr(x, "ndim", 0) != 3 or not x.shape[1]:
        raise LayerError(name, f"x is {jnp.shape(x)}, sequences (B, T > 0, d) are due")
    check_float(name, x)
    if lengths is None:
        return
    integers = hasattr(lengths, "dtype") and jnp.issubdtype(lengths.dtype, jnp.integer)
    if not integers or lengths.shape != x.shape[:1]:
        came = f"{lengths.dtype}{list(lengths.shape)}" if hasattr(lengths, "dtype") else lengths
        raise LayerError(name, f"lengths is {came}, integers [{len(x)}] are due, one a sequence")
    if is_concrete(lengths):
        values = np.asarray(lengths)
        bad = values[(values < 0) | (values > x.shape[1])]
        if bad.size:
            due = f"one from 0 to the {x.shape[1]} steps of x is due"
            raise LayerError(name, f"a length is {bad[0]}, {due}")


def valid(lengths: jax.Array, time: int) -> jax.Array:
    """1 for a length in [0, T], NaN for any other: (B,)."""
    lengths = wide(lengths)
    one = jnp.ones((), jnp.float32)
    return jnp.where((lengths >= 0) & (lengths <= time), one, jnp.nan * one)


def wide(lengths: Any) -> Any:
    """In a dtype that T fits in."""
    return lengths.astype(jnp.int32) if lengths.dtype.itemsize < 4 else lengths
