"""Usual mistakes, as they show in one leaf: its values beside the right ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from .patterns import pattern
from .spots import ends, shifted

MOST_DENOMINATOR = 100  # of a factor that is shown as a fraction


class Seen(NamedTuple):
    """One mistake that explains a leaf.

    Attributes:
        rank: how far-fetched it is; of two explanations the lower one is given.
        kind, statement, factor: as of a Finding.
        remaining: the share of the difference that is left.
    """

    rank: int
    kind: str
    statement: str
    factor: float | None = None
    remaining: float = 0.0


def seen(ours: np.ndarray, due: np.ndarray, sizes: dict[str, int], tolerance: float) -> list[Seen]:
    """The mistakes that explain the difference of two arrays to within a tolerance.

    Args:
        ours, due: the wrong and the right values, float64.
        sizes: named sizes that a factor may come from.
        tolerance: the share of max|due| that counts as rounding.
    """
    if not np.isfinite(ours).all():
        bad = ~np.isfinite(ours)
        return [
            Seen(0, "not finite", f"{int(bad.sum())} values are NaN or infinite, {pattern(bad)}")
        ]
    if not np.isfinite(due).all():
        return []
    scale = float(np.abs(due).max(initial=0)) or float(np.abs(ours).max(initial=0)) or 1.0
    ours, due = ours / scale, due / scale  # so that squares of tiny numbers are not 0
    wrong = np.abs(ours - due) > tolerance
    return [
        *_proportional(ours, due, wrong, sizes, tolerance),
        *_permuted(ours, due, tolerance),
    ]


def _proportional(ours, due, wrong, sizes, tolerance) -> Iterator[Seen]:
    """m = c t on the wrong entries: a sign, a factor, a zero; and values where 0 is due."""
    m, t = ours[wrong], due[wrong]
    if not m.size:
        return
    partial = m.size < ours.size and (np.abs(due[~wrong]) > tolerance).any()
    where = f" on {pattern(wrong)}" if partial else ""
    if not np.abs(t).max() > tolerance:
        if partial:
            statement = f"there are values where 0 is due{where}"
            yield Seen(4, "mask ignored", statement)
        return
    c, gap = float(m @ t / (t @ t)), float(np.abs(m - t).max())
    if partial and m.size == 1 and not is_named(c, sizes):
        return  # a factor fits one number always
    rest = float(np.abs(m - c * t).max())
    if rest > max(10 * tolerance, 1e-9 * gap) or rest > 0.02 * gap:
        yield from _by_slices(ours, due, wrong, tolerance)
        return
    if abs(c) * np.abs(t).max() <= 10 * tolerance:
        kind = "missing term" if partial else "stopped"
        yield Seen(1, kind, f"it is 0{where}", 0.0)
    elif abs(c + 1) < 1e-6:
        yield Seen(1, "sign", f"the sign is turned{where}", -1.0)
    else:
        rank = 1 if m.size > 1 and (is_named(c, sizes) or not partial) else 6
        text = f"it is {factor_text(c)} what it must be{sizes_text(c, sizes)}{where}"
        yield Seen(rank, "factor", text, c)


def _by_slices(ours, due, wrong, tolerance) -> Iterator[Seen]:
    """A factor of its own for each index of one axis."""
    for axis in range(ours.ndim):
        if ours.shape[axis] == 1 or ours.ndim == 1:
            continue
        a = np.moveaxis(ours, axis, 0).reshape(ours.shape[axis], -1)
        b = np.moveaxis(due, axis, 0).reshape(ours.shape[axis], -1)
        if a.shape[1] < 2:
            continue
        square = (b * b).sum(1)
        c = (a * b).sum(1) / np.where(square, square, 1)
        if np.abs(a - c[:, None] * b).max() <= 10 * tolerance:
            kind = "factor"
            if np.all(np.isclose(np.abs(c), 1, atol=1e-6)):
                kind = "sign"
            elif np.all(np.isclose(c, 0, atol=1e-6) | np.isclose(c, 1, atol=1e-6)):
                kind = "missing term"
            values = ", ".join(f"{v:.4g}" for v in c[:8])
            more = ", ..." if len(c) > 8 else ""
            yield Seen(
                4, kind, f"each index of axis {axis} has a factor of its own: {values}{more}"
            )
            return


def _permuted(ours, due, tolerance) -> Iterator[Seen]:
    """The right values in other places."""
    if ours.size < 3 or np.ptp(due) <= tolerance:
        return

    def same(other):
        return other.shape == ours.shape and np.abs(ours - other).max() <= 10 * tolerance

    gap = np.abs(np.sort(ours, axis=None) - np.sort(due, axis=None)).max()
    if gap <= 10 * tolerance < np.abs(ours - due).max() / 100:
        yield Seen(4, "transpose", "it has the right values in other places")
    for a, b in itertools.combinations(range(due.ndim), 2):
        if due.shape[a] == due.shape[b]:
            for sign, word in ((1, ""), (-1, " and has the other sign")):
                if same(sign * np.swapaxes(due, a, b)):
                    yield Seen(2, "transpose", f"it is transposed in the axes {a} and {b}{word}")
            gap = ours - due  # of a term t that stands there as tᵀ: tᵀ - t
            if due.shape[a] > 2 and np.abs(gap + np.swapaxes(gap, a, b)).max() <= 10 * tolerance:
                yield Seen(4, "transpose", f"a term of it is transposed in the axes {a} and {b}")
    for axis, size in enumerate(due.shape):
        for step in (1, -1, 2, -2):
            if size <= abs(step):
                continue
            moved = due
            for _ in range(abs(step)):
                moved = shifted(moved, step // abs(step), axis)
            inside = [slice(None)] * due.ndim
            inside[axis] = slice(step, None) if step > 0 else slice(None, step)
            rest = np.abs(ours - moved)[tuple(inside)]
            if same(moved) or (size > 2 and abs(step) == 1 and same(np.roll(due, step, axis))):
                yield Seen(2, "off by one", f"it is shifted by {step:+d} along axis {axis}")
            elif size > 3 and np.abs(moved).max() > tolerance and rest.max() <= 10 * tolerance:
                yield Seen(4, "off by one", f"it is shifted by {step:+d} along axis {axis}")
        if size > 1 and same(np.flip(due, axis)):
            yield Seen(2, "transpose", f"the order of axis {axis} is reversed")
        elif size > 1:
            order = _order(np.moveaxis(ours, axis, 0), np.moveaxis(due, axis, 0), tolerance)
            if order is not None:
                shown = ", ".join(map(str, order[:8])) + (", ..." if size > 8 else "")
                yield Seen(3, "transpose", f"axis {axis} has another order: {shown}")


def turned(a: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
    """What can be mistaken for an array: (kind, in words, the array) of it moved or turned."""
    for axis, size in enumerate(a.shape):
        if size > 1:
            for step in (1, -1):
                word = f"shifted by {step:+d} along axis {axis}"
                yield "off by one", word, shifted(a, step, axis)
                if size > 2:
                    yield "off by one", f"{word}, around the end", np.roll(a, step, axis)
            yield "transpose", f"reversed along axis {axis}", np.flip(a, axis)
            if size % 2 == 0 and size > 2:
                halves = f"with the halves of axis {axis} swapped"
                yield "transpose", halves, np.roll(a, size // 2, axis)
            for word, kept in ends(size):
                index = np.isin(np.arange(size), kept)
                part = np.where(np.expand_dims(index, _others(a.ndim, axis)), a, 0)
                yield "missing term", f"0 but at {word} of the indices of axis {axis}", part
    for first, last in itertools.combinations(range(a.ndim + 1), 2):
        if last - first > 1:
            axes = tuple(range(first, last))
            yield "transpose", f"reversed along the axes {axes}", np.flip(a, axes)
    for one, two in itertools.combinations(range(a.ndim), 2):
        if a.shape[one] == a.shape[two] > 1:
            yield "transpose", f"transposed in the axes {one} and {two}", np.swapaxes(a, one, two)


def _others(ndim: int, axis: int) -> tuple[int, ...]:
    return tuple(k for k in range(ndim) if k != axis)


def _order(ours, due, tolerance) -> list[int] | None:
    """Which slice of ``due`` each slice of ``ours`` is, if they are the same slices."""
    if len(due) > 256:
        return None
    a, b = (v.reshape(len(v), -1) for v in (ours, due))
    gap = np.abs(a[:, None] - b[None]).max(-1)
    order = gap.argmin(1)
    good = gap[np.arange(len(a)), order].max() <= 10 * tolerance
    if not good or len(set(order.tolist())) < len(order) or (order == np.arange(len(a))).all():
        return None
    return [int(i) for i in order]


def named_sizes(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Sizes with names, of arrays with names; those of 1 name no factor."""
    found: dict[str, int] = {}
    for name, shape in shapes.items():
        for axis, size in enumerate(shape):
            if size > 1:
                found.setdefault(f"the size of axis {axis} of {name}", size)
        if math.prod(shape) not in (0, 1, *shape):
            found.setdefault(f"the number of entries of {name}", math.prod(shape))
    return found


def factor_text(c: float) -> str:
    """A factor in front of a noun: "3 times", "1/2 of"."""
    text, _ = _factor(c)
    return f"{text} {'of' if abs(c) < 1 else 'times'}"


def sizes_text(c: float, sizes: dict[str, int]) -> str:
    """The sizes that a factor may come from, in brackets."""
    known = [
        f"{n} is {' or '.join(names)}"
        for n in dict.fromkeys(_factor(c)[1])
        if (names := [name for name, size in sizes.items() if size == n][:3])
    ]
    return f" ({', '.join(known)})" if known else ""


def _factor(c: float) -> tuple[str, tuple[int, ...]]:
    """A factor as the number, the root or the fraction that it is, and the numbers in it."""
    sign, size = ("-" if c < 0 else ""), abs(c)
    for value, form in ((size, "{}"), (1 / size if size else 0.0, "1/{}")):
        for root, inner in ((1, "{}"), (2, "√{}")):
            n = round(value**root)
            if 2 <= n <= 100_000 and math.isclose(value**root, n, rel_tol=1e-6):
                return sign + form.format(inner.format(n)), (n,)
    part = Fraction(size).limit_denominator(MOST_DENOMINATOR)
    if part and math.isclose(size, part, rel_tol=1e-7):
        short = part.denominator > 12 and len(f"{size:.6g}") <= len(str(part))
        return f"{sign}{f'{size:.6g}' if short else part}", part.as_integer_ratio()
    return f"{c:.6g}", ()


def is_named(c: float, sizes: dict[str, int]) -> bool:
    """Whether a factor is 0, -1, or made of a whole number below 1,000 or its root, or a fraction
    of a size that is there, as n/(n - 1) is.
    """
    if abs(c) < 1e-6 or abs(c + 1) < 1e-6:
        return True
    part = Fraction(abs(c)).limit_denominator(MOST_DENOMINATOR)
    near = bool(part) and math.isclose(abs(c), part, rel_tol=1e-7)
    if near and {*part.as_integer_ratio()} & {*sizes.values()}:
        return True
    value = max(abs(c), 1 / abs(c))
    return any(
        2 <= round(value**root) < 1000
        and math.isclose(value**root, round(value**root), rel_tol=1e-6)
        for root in (1, 2)
    )


LOW = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}


def common(ours: list[np.ndarray], due: list[np.ndarray], sizes, tolerance) -> list[Seen]:
    """One factor that all leaves have in common, be they single numbers."""
    scales = [float(np.abs(b).max(initial=0)) for b in due]
    if len(due) < 2 or not all(0 < s < np.inf for s in scales):
        return []
    m, t = (
        np.concatenate([(leaf / s).ravel() for leaf, s in zip(side, scales, strict=True)])
        for side in (ours, due)
    )
    c = float(m @ t / (t @ t))
    if not np.abs(m - c * t).max() <= 10 * tolerance * max(1.0, abs(c)):
        return []
    found = list(_proportional(m, t, np.ones(m.shape, bool), sizes, tolerance))
    return [seen._replace(rank=0) for seen in found]


def rounded(ours: np.ndarray, due: np.ndarray, narrow: tuple[str, ...]) -> Seen | None:
    """A difference as large as rounding to one of these floats makes it."""
    scale = float(np.abs(due).max(initial=0))
    gap = np.abs(ours - due)
    if not scale or not np.isfinite(gap).all():
        return None
    size = float(gap.max()) / scale
    names = [n for n in narrow if n in LOW and LOW[n] / 64 <= size <= 4 * LOW[n]]
    if not names:
        return None
    name = min(names, key=lambda n: abs(math.log(size / LOW[n])))
    text = f"it is off by {size:.1e} of its largest value, and is rounded to {name} on the way"
    return Seen(8, "low precision", text)


def no_mistake(ours: np.ndarray, due: np.ndarray, tolerance: float) -> Seen:
    """What is left to say of a leaf."""
    if not np.isfinite(due).all():
        return Seen(9, "unknown", "what it must be is not finite in float64, and cannot judge it")
    with np.errstate(all="ignore"):
        wrong = ~(np.abs(ours - due) <= tolerance * np.abs(due).max(initial=0))
    if wrong.sum() == 1 < wrong.size:
        (index,) = np.argwhere(wrong)
        place = ", ".join(map(str, index))
        values = f"it is {ours[wrong][0]:.6g} and must be {due[wrong][0]:.6g}"
        return Seen(9, "unknown", f"one entry is wrong, [{place}]: {values}")
    return Seen(9, "unknown", "no usual mistake explains its values")
