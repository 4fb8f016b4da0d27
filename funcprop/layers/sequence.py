"""Sequences with their lengths, and the last step of each."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ..core.checks import LayerError
from ..core.contraction import by_example
from ..core.layer import Layer, float_shape, is_shape
from ..core.site import gradient
from .shape import Example
from .steps import check_lengths, valid, wide


def shape_of_sequence(name: str, shape: Any) -> tuple[int, ...]:
    """(T, d) of one example's shape, given alone or with that of its length."""
    x, *lengths = shape if isinstance(shape, tuple) and not is_shape(shape) else (shape,)
    own = float_shape(name, x, "(T, d)")
    if len(own) != 2 or len(lengths) > 1 or any(getattr(n, "shape", None) != () for n in lengths):
        raise LayerError(name, f"shape is {shape}, (T, d) is due, or that with a length ()")
    return own


def _last_step() -> Layer:
    name = "last_step"

    def init(key, shape):
        return (), shape_of_sequence(name, shape)[1:]

    def forward(params, x, key=None):
        steps, lengths = x if isinstance(x, tuple) and len(x) == 2 else (x, None)
        check_lengths(name, steps, lengths)
        lengths = lengths if lengths is None else wide(lengths)
        kept = (Example(steps.shape[1:]), lengths)
        if lengths is None:
            return steps[:, -1], kept

        def taken(steps, lengths):
            last = jnp.clip(lengths - 1, 0, steps.shape[1] - 1)[:, None, None]
            found = jnp.take_along_axis(steps, last, axis=1)[:, 0]
            found = jnp.where(lengths[:, None] == 0, jnp.zeros((), found.dtype), found)
            return found * valid(lengths, steps.shape[1])[:, None].astype(found.dtype)

        return by_example(taken, steps, lengths), kept

    def backward(weights, residuals, delta, statistic=gradient):
        example, lengths = residuals
        time = example.shape[0]
        if lengths is None:
            return jnp.pad(delta[:, None], ((0, 0), (time - 1, 0), (0, 0))), ()
        delta = delta * valid(lengths, time)[:, None].astype(delta.dtype)
        is_last = jnp.arange(time, dtype=lengths.dtype) == jnp.clip(lengths, 1, time)[:, None] - 1
        is_last = is_last & (lengths != 0)[:, None]
        zero = jnp.zeros((), delta.dtype)
        return (jnp.where(is_last[:, :, None], delta[:, None], zero), None), ()

    return Layer(init, forward, backward, name)


last_step: Layer = _last_step()
"""The last step of every sequence: (B, T, d), or that with its lengths (B,), to (B, d)."""
