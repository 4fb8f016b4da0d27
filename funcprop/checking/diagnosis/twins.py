"""Linear operations that are mistaken for one another.

What an operation sends back is the transpose of what it does, so a window a step further, an index
off by one, a mask forgotten, or a sum that keeps one of its terms is the transpose of another
operation, its twin.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MOST_PIECES = 8
Map = Callable[[list[Any], Any], Any]


class Twin(NamedTuple):
    """Another linear map in the place of an operation.

    Attributes:
        kind: a name of a mistake.
        what: the other map, in words.
        of: what it makes of the operands, given the true one beside them; they hold zeros in its
            place, of which the derivative is taken.
        own: the map itself, in the same way.
    """

    kind: str
    what: str
    of: Map
    own: Map


Found = Iterator[tuple[str, str, Map]]


def twins(eqn: Any, k: int) -> Iterator[Twin]:
    """The twins of an operation as a linear map of its operand k."""
    name, own = eqn.primitive.name, _operation(eqn)
    found: list[Found] = []
    if name == "conv_general_dilated":
        found = [_windows(eqn)]
    elif name == "gather" and k == 0:
        found = [_indices(eqn)]
    elif name == "split":
        found = [_pieces(eqn, own)]
    elif name == "reduce_max" or name == "reduce_min":
        own = _winner(eqn)
        found = [_winners(eqn)]
    elif name == "select_n" and k > 0:
        own = _term(eqn, k)
        what = "the selection lets all of it back"
        found = [iter([("mask ignored", what, lambda values, x: values[k])])]
    elif name == "add" or name == "sub":
        own = _term(eqn, k)
        found = [_copies(eqn, k, own)]
    elif name == "mul":
        found = [_factors(eqn, k), _copies(eqn, k, own)]
    elif name == "div" and k == 0:
        found = [_divisors(eqn), _copies(eqn, k, own)]
    elif name == "broadcast_in_dim":
        found = [_copies(eqn, k, own)]
    for kind, what, of in itertools.chain(*found):
        yield Twin(kind, what, of, own)


# ----------------------------------------------------------------------- the maps themselves


def _operation(eqn: Any, **changed: Any) -> Map:
    return lambda values, x: eqn.primitive.bind(*values, **{**eqn.params, **changed})


def _term(eqn: Any, k: int) -> Map:
    """A sum or a selection as a linear map of one of its operands: the others are 0."""

    def of(values, x):
        first = 1 if eqn.primitive.name == "select_n" else 0
        others = [v if n < first or n == k else jnp.zeros_like(v) for n, v in enumerate(values)]
        return eqn.primitive.bind(*others, **eqn.params)

    return of


def _winner(eqn: Any) -> Map:
    """A maximum, of which those that tie share what comes back."""
    axes, operation = eqn.params["axes"], _operation(eqn)

    def of(values, x):
        ties = x == jnp.expand_dims(operation([x], x), axes)
        return jnp.sum(values[0] * ties / jnp.sum(ties, axes, keepdims=True), axes)

    return of


# ----------------------------------------------------------------------- their twins


def _windows(eqn: Any) -> Found:
    """A convolution whose window is moved by one, along one axis or all."""
    padding = eqn.params["padding"]
    axes = range(len(padding))
    for some in dict.fromkeys([*((a,) for a in axes), tuple(axes)]):
        for step in (1, -1):
            moved = tuple(
                (lo + step, hi - step) if a in some else (lo, hi)
                for a, (lo, hi) in enumerate(padding)
            )
            where = "all axes" if len(some) > 1 else f"window axis {some[0]}"
            what = f"the window is moved by {-step:+d} along {where}"
            yield "off by one", what, _operation(eqn, padding=moved)


def _indices(eqn: Any) -> Found:
    """Entries taken by index: the next ones, or each of them once."""
    shape, take = eqn.invars[0].aval.shape, _operation(eqn)

    def moved(axis, step, clipped):
        def of(values, x):
            at = np.arange(shape[axis]) + step
            inside = _along((at >= 0) & (at < shape[axis]) | clipped, axis, x.ndim)
            next_ones = jnp.take(values[0], np.clip(at, 0, shape[axis] - 1), axis)
            return take([jnp.where(inside, next_ones, 0), *values[1:]], x)

        return of

    for axis in eqn.params["dimension_numbers"].start_index_map:
        if eqn.params["slice_sizes"][axis] == 1 and shape[axis] > 1:
            for step in (1, -1):
                what = f"indices of axis {axis} are moved by {step:+d}"
                yield "off by one", what, moved(axis, step, False)
                yield "off by one", f"{what}, the last kept", moved(axis, step, True)

    def once(values, x):
        numbers = jnp.arange(x.size, dtype=x.dtype).reshape(x.shape)
        source = take([numbers, *values[1:]], x).ravel()
        source = jnp.where(source >= 0, source, x.size).astype(int)  # NaN: from outside
        order = jnp.arange(source.size)
        last = jnp.full(x.size, -1).at[source].max(order, mode="drop")
        y = take(values, x)
        return jnp.where((last.at[source].get(mode="clip") == order).reshape(y.shape), y, 0)

    yield "missing term", "of what is taken several times the last one alone counts", once


def _pieces(eqn: Any, split: Map) -> Found:
    """Pieces of an array, two of them in each other's place."""

    def swapped(i, j):
        def of(values, x):
            pieces = list(split(values, x))
            pieces[i], pieces[j] = pieces[j], pieces[i]
            return pieces

        return of

    sizes = eqn.params["sizes"]
    for i, j in itertools.combinations(range(min(len(sizes), MOST_PIECES)), 2):
        if sizes[i] == sizes[j]:
            yield (
                "transpose",
                f"pieces {i + 1} and {j + 1} are taken for one another",
                swapped(i, j),
            )


def _winners(eqn: Any) -> Found:
    """A maximum of which all get the delta."""
    axes = eqn.params["axes"]

    def all_of(values, x, shared=False):
        each = jnp.isfinite(x).astype(x.dtype)  # a mask has made the others -inf
        count = jnp.maximum(jnp.sum(each, axes, keepdims=True), 1) if shared else 1
        return jnp.sum(values[0] * each / count, axes)

    yield "mask ignored", "every entry gets all of it, not the largest alone", all_of
    what = "every entry gets a share of it, not the largest alone"
    yield "mask ignored", what, lambda values, x: all_of(values, x, shared=True)


def _factors(eqn: Any, k: int) -> Found:
    """Another factor in a product: none, or a function of the right one."""
    if not eqn.invars[1 - k].aval.shape:
        return

    def by(f):
        return lambda values, x: values[k] * _finite(f(values[1 - k]))

    yield "factor", "the factor is left out", by(jnp.ones_like)
    yield "wrong function", "the factor is squared", by(jnp.square)
    yield "wrong function", "the factor's exponential is taken", by(jnp.exp)
    yield "wrong function", "the factor's reciprocal is taken", by(jnp.reciprocal)


def _divisors(eqn: Any) -> Found:
    """Another divisor."""

    def by(f):
        return lambda values, x: values[0] * _finite(f(values[1]))

    if eqn.invars[1].aval.shape:
        yield "factor", "the divisor is left out", by(jnp.ones_like)
        yield "factor", "the divisor is its largest value everywhere", by(lambda b: 1 / jnp.max(b))
        yield "wrong function", "the divisor is squared", by(lambda b: 1 / b**2)
        yield "wrong function", "the divisor's root is taken", by(jax.lax.rsqrt)
        yield "wrong function", "it is multiplied by its divisor", by(lambda b: b)


def _copies(eqn: Any, k: int, operation: Map) -> Found:
    """Copies along an axis, of which one alone counts."""
    shape, given = eqn.outvars[0].aval.shape, eqn.invars[k].aval.shape
    kept = eqn.params.get("broadcast_dimensions", tuple(range(len(given))))

    def one(axis, n):
        keep = _along(np.arange(shape[axis]) == n, axis, len(shape))
        return lambda values, x: jnp.where(keep, operation(values, x), 0)

    for axis, size in enumerate(shape):
        if size > 1 and (axis not in kept or given[kept.index(axis)] != size):
            for n, word in ((0, "first"), (size - 1, "last")):
                what = f"the {word} index of the sum over axis {axis} alone counts"
                yield "missing term", what, one(axis, n)


def _finite(a: Any) -> Any:
    return jnp.where(jnp.isfinite(a), a, 0)


def _along(a: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    return np.expand_dims(a, [other for other in range(ndim) if other != axis])
