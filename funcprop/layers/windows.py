"""Windows that slide over the axes between batch and channels: their places, taps and products.

x is spread (``spread`` - 1 zeros between neighbours), padded, and seen through a window of
``kernel`` elements ``dilation`` apart, every ``stride`` places.  Tap k holds for every window its
element k.  Convolution and pooling are sums and maxima over taps.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import contraction
from ..core.checks import LayerError, check_count

Pairs = tuple[tuple[int, int], ...]
Padding = str | Sequence[tuple[int, int]]


class Windows(NamedTuple):
    """Sizes an axis; see the module for the words."""

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    spread: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: Pairs

    @property
    def wide(self) -> tuple[int, ...]:
        """Sizes of x spread."""
        return tuple((n - 1) * u + 1 for n, u in zip(self.sizes, self.spread, strict=True))

    @property
    def reach(self) -> tuple[int, ...]:
        """From a window's first element to behind its last one."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def out(self) -> tuple[int, ...]:
        """How many windows there are."""
        return tuple(
            (wide + lo + hi - reach) // s + 1
            for wide, reach, s, (lo, hi) in zip(
                self.wide, self.reach, self.stride, self.pads, strict=True
            )
        )

    def transposed(self) -> Windows:
        """The windows through which x sees y."""
        pads = tuple(
            (reach - 1 - lo, wide - 1 - (o - 1) * s + lo)
            for wide, reach, o, s, (lo, _) in zip(
                self.wide, self.reach, self.out, self.stride, self.pads, strict=True
            )
        )
        return Windows(self.out, self.kernel, self.spread, self.stride, self.dilation, pads)

    def taps(self, x: jax.Array, fill: Any = 0.0) -> Iterator[jax.Array]:
        """Tap after tap, the last axis of the kernel fastest: (B, *out, C), ``fill`` outside."""
        last = tuple((o - 1) * s for o, s in zip(self.out, self.stride, strict=True))
        padding = [
            (lo, reach + end - wide - lo, u - 1)
            for wide, reach, end, u, (lo, _) in zip(
                self.wide, self.reach, last, self.spread, self.pads, strict=True
            )
        ]
        around = [(0, 0, 0), *padding, *[(0, 0, 0)] * (x.ndim - 1 - len(padding))]
        x = lax.pad(x, jnp.asarray(fill, x.dtype), around)
        for start in self._starts():
            stop = [at + end + 1 for at, end in zip(start, last, strict=True)]
            ends = [len(x), *stop, *x.shape[1 + len(stop) :]]
            begins = [0, *start, *[0] * (x.ndim - 1 - len(stop))]
            yield lax.slice(x, begins, ends, [1, *self.stride, *[1] * (x.ndim - 1 - len(stop))])

    def put(self, tap: int, piece: jax.Array) -> jax.Array:
        """What tap number ``tap`` saw, back at its places: (B, *sizes, C), 0 elsewhere.

        For windows without spread.
        """
        start = next(itertools.islice(self._starts(), tap, None))
        around = []
        for at, n, o, s, (lo, _) in zip(
            start, self.sizes, self.out, self.stride, self.pads, strict=True
        ):
            around.append((at - lo, n - (at - lo + (o - 1) * s + 1), s - 1))
        return lax.pad(piece, jnp.zeros((), piece.dtype), [(0, 0, 0), *around, (0, 0, 0)])

    def _starts(self) -> Iterator[tuple[int, ...]]:
        return itertools.product(
            *[range(0, k * d, d) for k, d in zip(self.kernel, self.dilation, strict=True)]
        )


# ------------------------------------------------------------------- options of the layers


def check_counts(name: str, **options: Any) -> None:
    """Raises unless each option is a positive integer, or a tuple of them, one for each axis."""
    for argument, value in options.items():
        for count in value if isinstance(value, (tuple, list)) else (value,):
            check_count(name, argument, count)


def per_axis(name: str, argument: str, value: Any, axes: int) -> tuple[int, ...]:
    """``value`` for each of the axes; one number stands for all of them."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes
    if len(values) != axes:
        raise LayerError(
            name,
            f"{argument} is {value}, it must be a positive integer or {axes} of them; the input "
            f"has {axes} axes between batch and channels",
        )
    return tuple(map(int, values))


def pads_of(name: str, padding: Padding, sizes: Sequence[int], reach: Any, stride: Any) -> Pairs:
    """Zeros in front of and behind each axis, for ``"SAME"`` and so on or explicit pairs."""
    if padding == "CAUSAL":
        return tuple((r - 1, 0) for r in reach)
    if isinstance(padding, str):
        return tuple(
            (int(lo), int(hi)) for lo, hi in lax.padtype_to_pads(sizes, reach, stride, padding)
        )
    return pairs(name, padding, len(sizes))


def pairs(name: str, padding: Any, axes: int) -> Pairs:
    """``padding`` as (in front, behind) for each of the axes."""
    if len(padding) != axes:
        raise LayerError(
            name,
            f"padding is {padding}, a pair (in front, behind) for each of {axes} axes is due",
        )
    return tuple((int(lo), int(hi)) for lo, hi in padding)


def check_padding(name: str, padding: Any, named: Sequence[str]) -> None:
    if isinstance(padding, str):
        if padding not in named:
            raise LayerError(name, f"padding is {padding!r}, one of {', '.join(named)} is due")
        return
    try:
        ends = [end for lo, hi in padding for end in (lo, hi)]
    except (TypeError, ValueError):
        ends = [None]
    if any(isinstance(e, bool) or not isinstance(e, (int, np.integer)) or e < 0 for e in ends):
        raise LayerError(
            name,
            f"padding is {padding!r}, it must be one of {', '.join(named)}, or for each axis a "
            "pair (in front, behind) of nonnegative integers",
        )


# ------------------------------------------------------- sums of products, XLA's or faster ones
#
# On GPU and TPU all of them are XLA's convolutions.  XLA's CPU convolutions of one and two axes
# run at the speed of its matrix products, but for the gradient's with many images, which takes some
# 3 times as long as in chunks of a few; those of three axes or with groups are slow (the gradient
# with groups takes some 50 times what it should), so there they are made of faster pieces.


def correlate(g: Windows, x: jax.Array, w: jax.Array, groups: int = 1) -> jax.Array:
    """y[o] = Σₖ x[window o, element k] W[k]: x (B, *sizes, C), W (*kernel, C/groups, F)."""

    def whole(x, w):
        places = "DHW"[-len(g.sizes) :]
        letters = (f"N{places}C", f"{places}IO", f"N{places}C")
        return lax.conv_general_dilated(
            x, w, g.stride, g.pads, g.spread, g.dilation, letters, groups
        )

    def by_taps(x, w):
        each = w.reshape(-1, x.shape[-1], w.shape[-1] // groups)
        taps = zip(g.taps(x), each, strict=True)
        wide = contraction.accumulated
        y = sum(wide(tap[..., None]) * wide(v) for tap, v in taps)
        return y.reshape(*y.shape[:-2], w.shape[-1]).astype(x.dtype)

    def in_chunks(x, w):
        each = w.reshape(-1, w.shape[-2], groups, w.shape[-1] // groups)

        def chunk(x):
            cols = _columns(g, x, groups)
            return jnp.einsum("n...kgc,kcgf->n...gf", cols, each).reshape(
                *cols.shape[:-3], w.shape[-1]
            )

        y = lax.map(chunk, _chunked(g, x))
        return y.reshape(len(x), *y.shape[2:])

    def by_slices(x, w):
        flat, slices = _slices(g, x)
        y = sum(
            contraction.accumulated(correlate(flat, each, v))
            for each, v in zip(slices, w, strict=True)
        )
        return y.reshape(len(x), -1, *y.shape[1:]).astype(x.dtype)

    faster = in_chunks if groups > 1 else by_slices if len(g.sizes) == 3 else None
    if groups > 1 and w.shape[-2] == 1:
        faster = by_taps
    return _on_cpu(faster, whole, x, w)


def kernel_gradient(g: Windows, x: jax.Array, delta: jax.Array, groups: int = 1) -> jax.Array:
    """δW[k] = Σ x[window o, element k]ᵀ δ[o] over batch and windows: (*kernel, C/groups, F)."""
    if max(g.stride) == 1 < max(g.spread):  # the zeros between would cost as much as the rest
        return reversed_kernel(kernel_gradient(g.transposed(), delta, x, groups), groups)
    shape = (*g.kernel, x.shape[-1] // groups, delta.shape[-1])
    # x convolved with δ as the kernel, batch and channels having changed places.
    places = "DHW"[-len(g.sizes) :]
    pads = [
        (lo, reach - 1 + (o - 1) * s + 1 - wide - lo)
        for wide, reach, o, s, (lo, _) in zip(g.wide, g.reach, g.out, g.stride, g.pads, strict=True)
    ]

    def whole(x, delta):
        letters = (f"C{places}N", f"I{places}O", f"{places}NC")
        return lax.conv_general_dilated(
            x, delta, g.dilation, pads, g.spread, g.stride, letters, batch_group_count=groups
        )

    def in_order(x, delta):
        # XLA's CPU convolution is fast in this order of axes; outside of loops, and there alone,
        # the compiler brings any other into it.
        letters = (f"N{places}C", f"{places}IO", f"N{places}C")
        x, delta = jnp.swapaxes(x, 0, -1), jnp.moveaxis(delta, 0, -2)
        w = lax.conv_general_dilated(x, delta, g.dilation, pads, g.spread, g.stride, letters)
        return jnp.moveaxis(w, 0, -2)

    def of_columns(x, delta):
        cols = _columns(g, x, groups)
        delta = delta.reshape(*delta.shape[:-1], groups, -1)
        if cols.shape[-1] == delta.shape[-1] == 1:
            cols, delta = contraction.accumulated((cols[..., 0], delta[..., None, :, 0]))
            return jnp.sum(cols * delta, tuple(range(cols.ndim - 2)))
        cols, delta = (
            leaf.reshape(-1, *leaf.shape[leaf.ndim - keep :])
            for leaf, keep in ((cols, 3), (delta, 2))
        )
        return jnp.einsum("ngf,nkgc->gfkc", delta, cols).transpose(2, 3, 0, 1)

    def in_chunks(product, floats, x, delta):
        def step(total, part):
            return total + contraction.accumulated(product(*part)).reshape(shape), None

        some = contraction.few_in_cache(len(x), floats * x.dtype.itemsize)
        even = len(x) - len(x) % some
        zero = contraction.accumulated(jnp.zeros_like(delta[:1].ravel()[0]))
        parts = [leaf[:even].reshape(-1, some, *leaf.shape[1:]) for leaf in (x, delta)]
        total, _ = lax.scan(step, jnp.broadcast_to(zero, shape), parts)
        if even < len(x):
            total, _ = step(total, (x[even:], delta[even:]))
        return total.astype(delta.dtype)

    def by_images(x, delta):
        if (x.size + delta.size) * x.dtype.itemsize <= 2 * contraction.CACHE:
            return in_order(x, delta)
        floats = math.prod(x.shape[1:]) + math.prod(delta.shape[1:])
        return in_chunks(lambda *part: in_order(*contraction.accumulated(part)), floats, x, delta)

    def by_columns(x, delta):
        floats = math.prod(g.out) * math.prod(g.kernel) * x.shape[-1]
        return in_chunks(of_columns, floats, x, delta)

    def by_slices(x, delta):
        flat, slices = _slices(g, x)
        delta = delta.reshape(-1, *delta.shape[2:])
        return jnp.stack([kernel_gradient(flat, each, delta) for each in slices])

    faster = by_columns if groups > 1 else by_slices if len(g.sizes) == 3 else by_images
    return _on_cpu(faster, whole, x, delta, summed=True)


def reversed_kernel(w: jax.Array, groups: int = 1) -> jax.Array:
    """W for the transposed windows: reversed, its inputs and outputs having changed places."""
    *kernel, channels, features = w.shape
    parts = w.reshape(*kernel, channels, groups, features // groups)
    swapped = jnp.swapaxes(parts, -3, -1).reshape(*kernel, features // groups, channels * groups)
    return lax.rev(swapped, range(len(kernel)))


def _on_cpu(faster: Any, whole: Any, *args: jax.Array, summed: bool = False) -> jax.Array:
    if faster is None:
        run = whole
    else:
        run = functools.partial(lax.platform_dependent, cpu=faster, default=whole)
    if faster is None and not summed:
        return run(*args)
    return contraction.by_example(run, *args, summed=summed)


def _slices(g: Windows, x: jax.Array) -> tuple[Windows, list[jax.Array]]:
    """Windows of the axes but the first, and what each of its elements sees, put in the batch."""
    parts: Any = [[sizes[part] for sizes in g] for part in (slice(1), slice(1, None))]
    first, flat = (Windows(*part) for part in parts)
    return flat, [tap.reshape(-1, *tap.shape[2:]) for tap in first.taps(x)]


def _columns(g: Windows, x: jax.Array, groups: int = 1) -> jax.Array:
    """What each window sees: (B, *out, taps, groups, C/groups)."""
    taps = jnp.stack(list(g.taps(x)), axis=-2)
    return taps.reshape(*taps.shape[:-1], groups, -1)


def _chunked(g: Windows, x: jax.Array) -> jax.Array:
    """x in chunks of a few images, whose columns stay in the cache: (chunks, some, *sizes, C)."""
    columns = math.prod(g.out) * math.prod(g.kernel) * x.shape[-1] * x.dtype.itemsize
    some = contraction.few_in_cache(len(x), columns)
    some = max(c for c in range(1, some + 1) if len(x) % c == 0)
    return x.reshape(-1, some, *x.shape[1:])
