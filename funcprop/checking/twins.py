"""Linear operations that are mistaken for one another.

What an operation sends back is the transpose of what it does, so a window a step further, an index
off by one, or a sum that keeps one of its terms is the transpose of another operation, its twin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


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
    of: Callable[[list[Any], Any], Any]
    own: Callable[[list[Any], Any], Any]


def twins(eqn: Any, k: int) -> Iterator[Twin]:
    """The twins of an operation as a linear map of its operand k."""
    name, own = eqn.primitive.name, _operation(eqn)
    if name == "conv_general_dilated":
        found = _windows(eqn)
    elif name == "gather" and k == 0:
        found = _indices(eqn)
    elif name in ("reduce_max", "reduce_min"):
        found, own = _winners(eqn)
    elif name == "div" and k == 0 and eqn.invars[1].aval.shape:
        found = _divisors()
    elif name in ("add", "sub"):
        own = _term(eqn, k)
        found = _copies(eqn, k, own)
    elif name in ("broadcast_in_dim", "mul"):
        found = _copies(eqn, k, own)
    else:
        return
    for kind, what, of in found:
        yield Twin(kind, what, of, own)


Found = Iterator[tuple[str, str, Callable[[list[Any], Any], Any]]]


def _operation(eqn: Any, **changed: Any) -> Callable[[list[Any], Any], Any]:
    return lambda values, x: eqn.primitive.bind(*values, **{**eqn.params, **changed})


def _term(eqn: Any, k: int) -> Callable[[list[Any], Any], Any]:
    """A sum as a linear map of one of its terms."""

    def of(values, x):
        terms = [v if n == k else jnp.zeros_like(v) for n, v in enumerate(values)]
        return eqn.primitive.bind(*terms, **eqn.params)

    return of


def _windows(eqn: Any) -> Found:
    """A convolution whose window is moved by one, along one axis or all."""
    padding = eqn.params["padding"]
    axes = range(len(padding))
    for some in {(a,) for a in axes} | {tuple(axes)}:
        for step in (1, -1):
            moved = tuple(
                (lo + step, hi - step) if a in some else (lo, hi)
                for a, (lo, hi) in enumerate(padding)
            )
            where = "all axes" if len(some) == len(padding) > 1 else f"window axis {some[0]}"
            what = f"the window is moved by {-step:+d} along {where}"
            yield "off by one", what, _operation(eqn, padding=moved)


def _indices(eqn: Any) -> Found:
    """Entries taken by index: the next ones, or each of them once."""
    shape, take = eqn.invars[0].aval.shape, _operation(eqn)
    for axis in eqn.params["dimension_numbers"].start_index_map:
        if eqn.params["slice_sizes"][axis] != 1 or shape[axis] < 2:
            continue
        for step in (1, -1):
            at = np.arange(shape[axis]) + step
            for end, inside in (("", (at >= 0) & (at < shape[axis])), (", the last kept", True)):

                def moved(values, x, at=np.clip(at, 0, shape[axis] - 1), axis=axis, inside=inside):
                    keep = _along(np.broadcast_to(inside, at.shape), axis, x.ndim)
                    others = jnp.where(keep, jnp.take(values[0], at, axis), 0)
                    return take([others, *values[1:]], x)

                yield "off by one", f"indices of axis {axis} are moved by {step:+d}{end}", moved

    def once(values, x):
        numbers = jnp.arange(x.size, dtype=x.dtype).reshape(x.shape)
        source = take([numbers, *values[1:]], x).ravel()
        source = jnp.where(source >= 0, source, x.size).astype(int)  # NaN: from outside
        order = jnp.arange(source.size)
        last = jnp.full(x.size, -1).at[source].max(order, mode="drop")
        y = take(values, x)
        return jnp.where((last.at[source].get(mode="clip") == order).reshape(y.shape), y, 0)

    yield "missing term", "of what is taken several times the last one alone counts", once


def _winners(eqn: Any) -> tuple[Found, Any]:
    """A maximum of which all get the delta."""
    axes, operation = eqn.params["axes"], _operation(eqn)

    def all_of(shared):
        def of(values, x):
            each = jnp.isfinite(x).astype(x.dtype)  # a mask has made the others -inf
            count = jnp.maximum(jnp.sum(each, axes, keepdims=True), 1) if shared else 1
            return jnp.sum(values[0] * each / count, axes)

        return of

    def own(values, x):
        ties = x == jnp.expand_dims(operation([x], x), axes)
        return jnp.sum(values[0] * ties / jnp.sum(ties, axes, keepdims=True), axes)

    found = [
        ("mask ignored", "every entry gets all of it, not the largest alone", all_of(False)),
        ("mask ignored", "every entry gets a share of it, not the largest alone", all_of(True)),
    ]
    return iter(found), own


def _divisors() -> Found:
    what = "the divisor is its largest value everywhere"
    yield "factor", what, lambda values, x: values[0] / jnp.max(values[1])


def _copies(eqn: Any, k: int, operation: Any) -> Found:
    """Copies along an axis, of which one alone counts."""
    shape, given = eqn.outvars[0].aval.shape, eqn.invars[k].aval.shape
    kept = eqn.params.get("broadcast_dimensions", tuple(range(len(given))))
    for axis, size in enumerate(shape):
        if size < 2 or (axis in kept and given[kept.index(axis)] == size):
            continue
        for n, word in ((0, "first"), (size - 1, "last")):

            def one(values, x, keep=_along(np.arange(size) == n, axis, len(shape))):
                return jnp.where(keep, operation(values, x), 0)

            yield "missing term", f"of the sum over axis {axis} the {word} index alone counts", one


def _along(a: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    return np.expand_dims(a, [other for other in range(ndim) if other != axis])
