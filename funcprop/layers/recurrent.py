"""The layer that runs a cell over sequences, with their lengths and a state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import LayerError, check_count
from ..core.contraction import accumulated, by_example
from ..core.layer import Layer, float_shape, is_shape
from ..core.site import gradient
from .steps import Cell, check_lengths, only_real, scan_back, scan_forward, steps_of, swapped, valid


def recurrent(cell: Cell, state: bool, truncate: int | None, chunk: int | None) -> Layer:
    """The layer that runs a cell over sequences; :func:`lstm` says what the options do."""
    check_count(cell.name, "hidden", cell.hidden)
    for label, value in (("truncate", truncate), ("chunk", chunk)):
        if value is not None:
            check_count(cell.name, label, value)
    truncate, chunk = (value if value is None else int(value) for value in (truncate, chunk))

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
        padded = length is not None
        size = float_shape(cell.name, x, "(T, d)")
        if len(size) != 2 or (padded and getattr(length, "shape", None) != ()):
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
            steps = steps_of(x, lengths, chunk)
            first = own or (_zeros(x, cell.hidden),) * cell.arrays
            last, h, kept = scan_forward(cell, params, accumulated(first), steps, truncate, chunk)
            y = swapped(only_real(steps.real, h))
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
            steps = steps_of(x, lengths, chunk)
            if lengths is not None:
                delta = only_real(swapped(steps.real), delta)
                delta = delta * valid(lengths, x.shape[1])[:, None, None].astype(delta.dtype)
            h = _before(y, own)
            last = accumulated(last or (jnp.zeros_like(delta[:, 0]),) * cell.arrays)
            empty = tuple(_zeros(x, x.shape[1], size) for size in cell.sizes)
            each = swapped((delta, h, kept))
            first, delta_z = scan_back(
                cell, weights, params, last, empty, steps, each, truncate, chunk
            )
            return tuple(leaf.astype(x.dtype) for leaf in first), swapped(steps.x), h, delta_z

        first, x, h, delta_z = by_example(
            run, delta[0], last, x, lengths, own, y, kept, weights, params
        )
        delta_x, tree = cell.sweep(weights, x, h, delta_z, statistic)
        return joined(delta_x, None, first, lengths is not None), tree

    return Layer(init, forward, backward, cell.name)


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
