"""Derivatives that need no derivation: the complex step and central differences, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any


class Slopes(NamedTuple):
    """Differences of a scalar function: each a tree like its point, or the list of its leaves.

    Attributes:
        gradient: the central differences.
        left, right: the slopes of the two sides.
        spread: how far the slopes of h and of h/2 are apart.
        rejected: where none of them can be trusted, as at a kink.
    """

    gradient: Tree
    left: Tree
    right: Tree
    spread: Tree
    rejected: Tree


def central_differences(
    f: Callable[[Tree], jax.Array], point: Tree, h: float = 1e-5
) -> tuple[Tree, Tree]:
    """The gradient of a scalar function by differences, and where it cannot be trusted.

        ∂f/∂vᵢ ≈ (f(v + h eᵢ) - f(v - h eᵢ)) / 2h

    A kink between v - h eᵢ and v + h eᵢ shows in the two one-sided slopes: their distance does not
    halve with h, as it does for a smooth function.  Such coordinates are rejected.

    Args:
        f: a real function of the tree.
        point: a tree of float64 arrays.
        h: the step.

    Returns:
        ``(gradient, rejected)``, two trees like ``point``, the second of booleans.

    Raises:
        TypeError: when ``point`` is not float64 (differences of float32 are too coarse to judge).

    >>> import jax, jax.numpy as jnp
    >>> from funcprop.checking import central_differences
    >>> with jax.enable_x64(True):
    ...     point = jnp.array([2.0, 0.0])
    ...     slopes, rejected = central_differences(lambda v: jnp.abs(v).sum(), point)
    >>> slopes.round(6).tolist(), rejected.tolist()
    ([1.0, 0.0], [False, True])
    """
    found = slopes_of(f, point, h)
    return found.gradient, found.rejected


def slopes_of(f: Callable[[Tree], jax.Array], point: Tree, h: float = 1e-5) -> Slopes:
    """Central differences, and more of what they show.

    Where slopes of h and h/2 are far apart in most coordinates, as those of a function are that
    cancels, other steps are tried: 100 h, with Richardson's extrapolation (4 d(h/2) - d(h))/3, and
    h times the largest number of each leaf, where all are tiny or huge.
    """
    flat = _flat(point)
    scales = np.concatenate(
        [np.zeros(0), *(np.full(v.size, np.abs(v).max(initial=0) or 1) for v in _leaves(point))]
    )

    def slopes(h, direction):
        at = jax.vmap(lambda t: f(_like(point, flat + t * direction)))
        middle, low, high, half_low, half_high = at(jnp.array([0, -h, h, -h / 2, h / 2]))
        bend = jnp.abs(high - 2 * middle + low) / h
        half_bend = jnp.abs(half_high - 2 * middle + half_low) / (h / 2)
        slope, half_slope = (high - low) / (2 * h), (half_high - half_low) / h
        scale = 1e-5 * (1 + jnp.abs(slope))
        # Smooth: bends are h f″ and h f″/2, the slopes agree to h².  A kink at v keeps the bend,
        # one beside it moves the slope.
        at_point = (half_bend > 0.75 * bend) & (bend > scale)
        beside = jnp.abs(slope - half_slope) > scale / 10
        rejected = ~jnp.isfinite(slope) | at_point | beside
        sides = (middle - low) / h, (high - middle) / h
        return Slopes(slope, *sides, jnp.abs(slope - half_slope), rejected)

    def larger(direction):
        whole, half = slopes(100 * h, direction), slopes(50 * h, direction)
        gradient = (4 * half.gradient - whole.gradient) / 3
        return whole._replace(gradient=gradient, spread=half.spread / 3)

    def relative(direction):
        size = direction @ scales
        found = slopes(h, size * direction)
        gradient, left, right, spread = (values / size for values in found[:4])
        return Slopes(gradient, left, right, spread, found.rejected)

    def unsure(found, step):
        """The relative error of most slopes; of a step beside numbers of this size as well."""
        with np.errstate(invalid="ignore"):
            trusted = np.where(found.rejected, np.inf, found.spread)
            spread = np.median(trusted) if flat.size else 0.0
            share = spread / (np.abs(found.gradient).max(initial=0) or 1.0)
        rounding = float(np.finfo(np.float64).eps) * np.abs(flat).max(initial=0) / step
        return np.inf if np.isnan(share) else max(share, rounding)

    found = _each(lambda direction: slopes(h, direction), flat.size)
    if not unsure(found, h) <= 1e-7:
        others = [
            (_each(larger, flat.size), 100 * h),
            (_each(relative, flat.size), h * scales.max()),
        ]
        found, _ = min((found, h), *others, key=lambda pair: unsure(*pair))
    return Slopes(*(_like(point, part) for part in found))


def slopes_by_differences(
    value: Callable[[Tree], Any], point: Tree, coarse: bool = False
) -> Slopes:
    """Leaf by leaf, of a function of float64; or, with a step that survives it, of one that rounds
    to less.
    """
    if not coarse:
        return Slopes(*map(jax.tree.leaves, slopes_of(value, point)))
    slopes = jax.tree.leaves(coarse_differences(value, point))
    none = [np.zeros(s.shape, bool) for s in slopes]
    return Slopes(slopes, slopes, slopes, none, none)


def slopes_allow(values, left, right) -> np.ndarray:
    """Which values lie between the slopes of two sides, as those at a kink may."""
    with np.errstate(all="ignore"):
        room = 1e-4 * np.maximum(np.abs(left), np.abs(right))
        low, high = np.minimum(left, right) - room, np.maximum(left, right) + room
        return (low <= values) & (values <= high)


def coarse_differences(f: Callable[[Tree], jax.Array], point: Tree, h: float = 1e-2) -> Tree:
    """Central differences with a step that survives float32, of one point after the other."""
    flat = _flat(point)

    def slope(direction):
        high, low = (f(_like(point, flat + sign * h * direction)) for sign in (1, -1))
        return (high - low).astype(float) / (2 * h)

    return _like(point, jax.device_get(jax.jit(lambda e: jax.lax.map(slope, e))(np.eye(flat.size))))


def complex_step(f: Callable[[Tree], jax.Array], point: Tree, h: float = 1e-30) -> Tree:
    """The gradient of an analytic scalar function, exact to rounding.

        ∂f/∂vᵢ = Im f(v + i h eᵢ) / h        (Squire & Trapp 1998, SIAM Rev. 40, eq. 2)

    Args:
        f: a function that is analytic and computes in complex numbers when given some.
        point: a tree of float64 arrays.
        h: the step; nothing cancels, so it is tiny.

    Returns:
        A tree like ``point``.

    Raises:
        TypeError: when ``point`` is not float64.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop.checking import complex_step
    >>> with jax.enable_x64(True):
    ...     print(complex_step(lambda v: (v**3).sum(), jnp.array([2.0, 1.0])).tolist())
    [12.0, 3.0]
    """
    flat = _flat(point)

    def slope(direction):
        return jnp.imag(f(_like(point, jax.lax.complex(flat, h * direction)))) / h

    return _like(point, _each(slope, flat.size))


def _each(f: Callable[[jax.Array], Tree], size: int) -> Tree:
    """``f`` of every unit vector, in one program, the results on the host."""
    return jax.device_get(jax.jit(lambda e: jax.lax.map(f, e, batch_size=256))(np.eye(size)))


def _flat(point: Tree) -> np.ndarray:
    leaves = _leaves(point)
    wrong = {str(leaf.dtype) for leaf in leaves} - {"float64"}
    if wrong:
        raise TypeError(f"the point is {sorted(wrong)}, float64 is due; see jax.enable_x64")
    return np.concatenate([np.zeros(0), *(leaf.ravel() for leaf in leaves)])


def _leaves(point: Tree) -> list[np.ndarray]:
    return list(map(np.asarray, jax.tree.leaves(point)))


def _like(point: Tree, flat: Any) -> Tree:
    """The vector cut into a tree like ``point``, in the vector's own dtype."""
    leaves, structure = jax.tree.flatten(point)
    ends = np.cumsum([leaf.size for leaf in leaves])
    return jax.tree.unflatten(
        structure,
        [
            flat[end - leaf.size : end].reshape(leaf.shape)
            for leaf, end in zip(leaves, ends, strict=True)
        ],
    )
