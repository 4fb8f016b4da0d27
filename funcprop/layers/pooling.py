"""Maximum and mean over windows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.checks import LayerError, check_float
from ..core.contraction import accumulated, by_example, divided
from ..core.layer import Layer, float_shape
from ..core.site import gradient
from .shape import Example
from .windows import Padding, Windows, check_counts, check_padding, pads_of, per_axis


def max_pool(
    window: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Layer:
    """The largest element of every window, channel by channel.

        forward     y[o]  = maxₖ x[s o + k - p]        k*[o] the first k that attains it
        transport   δx[i] = Σₒ δ[o]                    over o with s o + k*[o] - p = i

    x (B, *sizes, C) with one to three sizes, y and δ (B, *out, C); s is the stride, p the padding
    in front, which counts as -∞.  Of equal elements the first takes the delta, in the order of the
    window's axes, as in ``jax.grad`` of ``jax.lax.reduce_window``.  A NaN in a window makes its y
    NaN.  The number k* is kept, a byte a window; where windows overlap the maximum is taken axis
    by axis, the last one first, and a number kept for each.

    Args:
        window: size of the window along each axis, or one number for all of them.
        stride: places from one window to the next; by default the window's size.
        padding: ``"SAME"``, ``"VALID"``, or for each axis a pair (in front, behind), smaller than
            the window.

    Raises:
        LayerError: for options that make no sense, and while tracing when x does not fit them.

    >>> import jax.numpy as jnp
    >>> from funcprop import max_pool
    >>> x = jnp.array([3.0, 1.0, 2.0, 2.0]).reshape(1, 4, 1)
    >>> y, winners = max_pool(2).forward((), x)
    >>> y.ravel().tolist(), max_pool(2).backward((), winners, jnp.ones_like(y))[0].ravel().tolist()
    ([3.0, 2.0], [1.0, 0.0, 1.0, 0.0])
    """
    windows = _windows("max_pool", window, stride, padding)

    def forward(params, x, key=None):
        g = _checked(windows, "max_pool", x)
        y, kept = x, []
        for part in [g] if _apart(g) else reversed(_axes(g)):
            y, winners = _first_largest(part, y)
            kept.append(winners)
        return y, (tuple(kept), Example(x.shape[1:]))

    def backward(weights, residuals, delta, statistic=gradient):
        kept, example = residuals
        g = windows(example.shape[:-1])
        zero = jnp.zeros((), delta.dtype)
        if _apart(g):
            return _side_by_side(g, lambda k, w, d: jnp.where(w == k, d, zero), kept[0], delta), ()
        for axis, winners in zip(_axes(g), reversed(kept), strict=True):
            taps = range(math.prod(axis.kernel))
            delta = _sum(axis.put(k, jnp.where(winners == k, delta, zero)) for k in taps)
        return delta, ()

    return Layer(_init("max_pool", windows), forward, backward, "max_pool")


def _apart(g: Windows) -> bool:
    """Whether windows lie side by side, so that an element of x is in one of them at most."""
    return g.stride == g.kernel


def _first_largest(g: Windows, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest tap and the number of the first that is as large."""
    number = jnp.uint8 if math.prod(g.kernel) <= 256 else jnp.int32
    taps = g.taps(x, -jnp.inf)
    y = next(taps)
    winners = jnp.zeros_like(y, number)
    for k, tap in enumerate(taps, 1):
        winners = jnp.where(tap > y, jnp.asarray(k, number), winners)
        y = jnp.maximum(y, tap)
    return y, winners


def _side_by_side(g: Windows, f: Callable[..., jax.Array], *windows: jax.Array) -> jax.Array:
    """f of each tap's number and ``windows``, at the taps' places; for windows side by side."""

    def run(*windows):
        split = [size for o in g.out for size in (o, 1)]
        windows = tuple(w.reshape(len(w), *split, w.shape[-1]) for w in windows)
        taps = jnp.arange(math.prod(g.kernel), dtype=windows[0].dtype)
        y = f(taps.reshape(*[size for k in g.kernel for size in (1, k)], 1), *windows)
        covered = [o * k for o, k in zip(g.out, g.kernel, strict=True)]
        ends = [
            (-lo, n + lo - size, 0)
            for n, (lo, _), size in zip(g.sizes, g.pads, covered, strict=True)
        ]
        y = y.reshape(len(y), *covered, y.shape[-1])
        return lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), *ends, (0, 0, 0)])

    return by_example(run, *windows)


def avg_pool(
    window: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    *,
    count_padding: bool = False,
) -> Layer:
    """The mean of every window, channel by channel.

        forward     y[o]  = 1/n[o] Σₖ x[s o + k - p]
        transport   δx[i] = Σₖ δ[o]/n[o]               over k with s o + k - p = i for some o

    x (B, *sizes, C) with one to three sizes, y and δ (B, *out, C); s is the stride, p the padding
    in front, n[o] how many elements of x lie in the window.  Both sums are taken axis by axis.

    Args:
        window: size of the window along each axis, or one number for all of them.
        stride: places from one window to the next; by default the window's size.
        padding: ``"SAME"``, ``"VALID"``, or for each axis a pair (in front, behind), smaller than
            the window.
        count_padding: whether the padding counts as zeros, so that n is the window's size.

    Raises:
        LayerError: for options that make no sense, and while tracing when x does not fit them.

    >>> import jax.numpy as jnp
    >>> from funcprop import avg_pool
    >>> x = jnp.array([3.0, 1.0, 2.0]).reshape(1, 3, 1)
    >>> avg_pool(2, 2, "SAME").apply((), x).ravel().tolist()
    [2.0, 2.0]
    """
    windows = _windows("avg_pool", window, stride, padding)

    def counts(g, delta):
        """n, with an axis for the channels."""
        if count_padding:
            return math.prod(g.kernel)
        each = [
            np.convolve(np.pad(np.ones(n), pad), np.ones(k), "valid")[::s]
            for n, k, s, pad in zip(g.sizes, g.kernel, g.stride, g.pads, strict=True)
        ]
        return jnp.asarray(functools.reduce(np.multiply.outer, each)[..., None], delta.dtype)

    def forward(params, x, key=None):
        g = _checked(windows, "avg_pool", x)
        y = accumulated(x)
        for axis in [g] if _apart(g) else reversed(_axes(g)):
            y = _sum(axis.taps(y))
        return (y / counts(g, y)).astype(x.dtype), Example(x.shape[1:])

    def backward(weights, example, delta, statistic=gradient):
        g = windows(example.shape[:-1])
        delta_x = accumulated(delta) / counts(g, accumulated(delta))
        if _apart(g):
            delta_x = delta_x.astype(delta.dtype)
            return _side_by_side(g, lambda k, d: d + jnp.zeros_like(k), delta_x), ()
        for axis in _axes(g):
            # All taps of a window have the same delta.
            delta_x = _sum(axis.put(k, delta_x) for k in range(math.prod(axis.kernel)))
        return delta_x.astype(delta.dtype), ()

    return Layer(_init("avg_pool", windows), forward, backward, "avg_pool")


def _global_avg_pool() -> Layer:
    def init(key, shape):
        shape = float_shape("global_avg_pool", shape)
        _check_rank("global_avg_pool", shape)
        return (), shape[-1:]

    def forward(params, x, key=None):
        check_float("global_avg_pool", x)
        _check_rank("global_avg_pool", x.shape[1:])
        y = jnp.mean(accumulated(x), axis=tuple(range(1, x.ndim - 1)))
        return y.astype(x.dtype), Example(x.shape[1:])

    def backward(weights, example, delta, statistic=gradient):
        *sizes, channels = example.shape
        each = divided(delta, math.prod(sizes)).reshape(len(delta), *[1] * len(sizes), channels)
        return jnp.broadcast_to(each, (len(delta), *example.shape)), ()

    return Layer(init, forward, backward, "global_avg_pool")


global_avg_pool = _global_avg_pool()


def _windows(name: str, window: Any, stride: Any, padding: Any) -> Callable[..., Windows]:
    """``windows(sizes)`` for a layer's options."""
    check_counts(name, window=window, stride=window if stride is None else stride)
    check_padding(name, padding, ("SAME", "VALID"))

    def windows(sizes):
        size = per_axis(name, "window", window, len(sizes))
        step = size if stride is None else per_axis(name, "stride", stride, len(sizes))
        pads = pads_of(name, padding, sizes, size, step)
        if any(max(pad) >= k for pad, k in zip(pads, size, strict=True)):
            raise LayerError(
                name, f"padding is {padding}, less than the window {size} is due on every side"
            )
        one = (1,) * len(sizes)
        return Windows(tuple(sizes), size, step, one, one, pads)

    return windows


def _axes(g: Windows) -> list[Windows]:
    """g as windows of one axis each, to be gone through from the last to the first."""
    one, none, found = (1,) * len(g.sizes), ((0, 0),) * len(g.sizes), []
    for axis in range(len(g.sizes)):

        def alone(given, default, axis=axis):
            return (*default[:axis], given[axis], *default[axis + 1 :])

        # The axes behind have been gone through.
        sizes = (*g.sizes[: axis + 1], *g.out[axis + 1 :])
        found.append(
            Windows(
                sizes, alone(g.kernel, one), alone(g.stride, one), one, one, alone(g.pads, none)
            )
        )
    return found


def _sum(pieces: Any) -> jax.Array:
    return functools.reduce(jnp.add, pieces)


def _init(name: str, windows: Callable[..., Windows]) -> Callable[..., Any]:
    def init(key, shape):
        shape = float_shape(name, shape)
        _check_rank(name, shape)
        return (), (*_fitting(windows, name, shape).out, shape[-1])

    return init


def _checked(windows: Callable[..., Windows], name: str, x: Any) -> Windows:
    check_float(name, x)
    _check_rank(name, x.shape[1:])
    return _fitting(windows, name, x.shape[1:])


def _fitting(windows: Callable[..., Windows], name: str, shape: Any) -> Windows:
    g = windows(tuple(shape[:-1]))
    if min(g.out) < 1:
        raise LayerError(
            name, f"one example is {tuple(shape)}, too small for the window {g.kernel}"
        )
    return g


def _check_rank(name: str, shape: Any) -> None:
    if not 2 <= len(shape) <= 4:
        raise LayerError(
            name,
            f"one example is {tuple(shape)}, (*sizes, channels) with one to three sizes is due",
        )
