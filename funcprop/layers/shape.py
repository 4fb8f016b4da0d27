"""Layers that only arrange the elements of an example anew."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import LayerError, check_array, described, is_array
from ..core.contraction import by_example
from ..core.layer import Layer, is_shape, shapes_of_arrays
from ..core.site import gradient


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Example:
    """The shape of one example, a residual that takes no memory."""

    shape: tuple[int, ...]


def reshape(*shape: int) -> Layer:
    """Every example in another shape, its elements in the same order.

        forward     y  = x  as (B, *shape)
        transport   δx = δ  as x is

    Args:
        *shape: the new shape of one example; one entry may be -1, what is left over.

    Raises:
        LayerError: when the sizes do not fit.

    >>> import jax.numpy as jnp
    >>> from funcprop import reshape
    >>> reshape(3, -1).apply((), jnp.zeros((5, 12))).shape
    (5, 3, 4)
    """
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        raise LayerError("reshape", f"shape is {shape[0]}; write reshape(*shape), its sizes alone")
    if not all(_is_integer(n) and n >= -1 for n in shape):
        raise LayerError("reshape", f"shape is {shape}, whole numbers are due, or one -1")
    if shape.count(-1) > 1:
        raise LayerError("reshape", f"shape is {shape}, only one entry may be -1")
    shape = tuple(map(int, shape))

    def arranged(old):
        known = math.prod(n for n in shape if n != -1)
        size = math.prod(old)
        if (size != known) if -1 not in shape else (known == 0 or size % known):
            raise LayerError(
                "reshape", f"one example is {old} with {size} elements, they do not fill {shape}"
            )
        return tuple(size // known if n == -1 else n for n in shape)

    return _arrangement("reshape", arranged)


flatten: Layer
"""Every example as a vector: (B, ...) to (B, n)."""


def _arrangement(name: str, arranged: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Layer:
    def init(key, shape):
        return (), _like(shape, arranged(_single(name, shape)))

    def forward(params, x, key=None):
        _check_batch(name, x)
        return _reshaped(x, arranged(x.shape[1:])), Example(x.shape[1:])

    def backward(weights, example, delta, statistic=gradient):
        if delta is None:
            return None, ()
        return _reshaped(delta, example.shape), ()

    return Layer(init, forward, backward, name)


def _reshaped(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return by_example(lambda x: x.reshape(len(x), *shape), x)


flatten = _arrangement("flatten", lambda old: (math.prod(old),))


def transpose(*axes: int) -> Layer:
    """The axes of every example in another order.

        forward     y[b, i₀, i₁, ...]  = x[b, ...]  with axis j of y axis ``axes[j]`` of x
        transport   δx: the same by the inverse order

    Args:
        *axes: the axes of one example, numbered from 0 without the batch axis, in their new order;
            none at all reverses them.

    Raises:
        LayerError: when ``axes`` is not an order of the input's axes.

    >>> import jax.numpy as jnp
    >>> from funcprop import transpose
    >>> transpose(2, 0, 1).apply((), jnp.zeros((5, 28, 28, 3))).shape
    (5, 3, 28, 28)
    """

    if not all(_is_integer(axis) and axis >= 0 for axis in axes):
        raise LayerError("transpose", f"axes is {axes}, they must be nonnegative integers")
    axes = tuple(map(int, axes))

    def order(count):
        new = axes or tuple(reversed(range(count)))
        if sorted(new) != list(range(count)):
            raise LayerError(
                "transpose", f"axes is {axes}, the numbers 0 to {count - 1} in some order are due"
            )
        return new

    def init(key, shape):
        sizes = _single("transpose", shape)
        return (), _like(shape, tuple(sizes[axis] for axis in order(len(sizes))))

    def forward(params, x, key=None):
        _check_batch("transpose", x)
        return x.transpose(0, *[axis + 1 for axis in order(x.ndim - 1)]), None

    def backward(weights, residuals, delta, statistic=gradient):
        if delta is None:
            return None, ()
        inverse = np.argsort(order(delta.ndim - 1))
        return delta.transpose(0, *[int(axis) + 1 for axis in inverse]), ()

    return Layer(init, forward, backward, "transpose")


def _concatenate() -> Layer:
    def check(parts):
        dtypes = {leaf.dtype for leaf in parts}
        shapes = [tuple(leaf.shape) for leaf in parts]
        alike = len({shape[:-1] for shape in shapes}) == 1 and min(map(len, shapes)) > 0
        if not alike or len(dtypes) > 1:
            raise LayerError(
                "concatenate",
                f"its entries are {', '.join(f'{p.dtype}{list(p.shape)}' for p in parts)}; "
                "one dtype is due, and shapes that differ in the last axis only",
            )

    def init(key, shape):
        due = "a tuple of arrays"
        if not shapes_of_arrays("concatenate", shape, due):
            raise LayerError("concatenate", f"shape is {shape}, {due} is due")
        check(shape)
        first = shape[0]
        sizes = (*first.shape[:-1], sum(leaf.shape[-1] for leaf in shape))
        return (), jax.ShapeDtypeStruct(sizes, first.dtype)

    def forward(params, x, key=None):
        if not isinstance(x, (tuple, list)) or not x or not all(map(is_array, x)):
            raise LayerError("concatenate", f"x is {described(x)}, a tuple of arrays is due")
        check(x)
        return jnp.concatenate(x, axis=-1), Example(tuple(leaf.shape[-1] for leaf in x))

    def backward(weights, sizes, delta, statistic=gradient):
        if delta is None:
            return (None,) * len(sizes.shape), ()
        ends = itertools.accumulate(sizes.shape, initial=0)
        return tuple(delta[..., a:b] for a, b in itertools.pairwise(ends)), ()

    return Layer(init, forward, backward, "concatenate")


concatenate: Layer = _concatenate()
"""The arrays of a tuple side by side along their last axis."""


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _single(name: str, shape: Any) -> tuple[int, ...]:
    if is_shape(shape):
        return tuple(shape)
    if not isinstance(shape, jax.ShapeDtypeStruct):
        raise LayerError(name, f"shape is {shape}, that of one array is due")
    return shape.shape


def _like(shape: Any, sizes: tuple[int, ...]) -> Any:
    """The shape of an array of these sizes and of the dtype that ``shape`` says."""
    single = isinstance(shape, jax.ShapeDtypeStruct)
    return jax.ShapeDtypeStruct(sizes, shape.dtype) if single else sizes


def _check_batch(name: str, x: Any) -> None:
    check_array(name, x)
    if jnp.ndim(x) < 1:
        raise LayerError(name, f"x is {described(x)}, an array with a batch axis is due")
