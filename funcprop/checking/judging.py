"""What the checks have in common: rows against an oracle, and why a gradient is wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..layer import is_inexact
from .compare import difference, retried, whole_difference
from .diagnosis import diagnose
from .mistakes import MISTAKES, named_sizes
from .oracles import coarse_differences, slopes_of
from .patterns import pattern
from .report import Difference, Finding, Report

Tree = Any
Pair = tuple[str, np.ndarray, np.ndarray]
EPS64 = float(np.finfo(np.float64).eps)
SATURATED = 4_096  # eps of a leaf; sums that cancel lose some hundreds


def in_float64(check: Callable[..., Report]) -> Callable[..., Report]:
    """The check with 64 bits enabled."""

    @functools.wraps(check)
    def wide(*args, **options):
        with jax.enable_x64(True):
            return retried(functools.partial(check, *args, **options))

    return wide


def by_differences(manual: Tree, slopes: Slopes, relative: float = 1e-6):
    """Manual against central differences, the rejected coordinates left out of both."""
    paths = jax.tree_util.tree_flatten_with_path(manual)[0]
    names = [jax.tree_util.keystr(path) for path, _ in paths]
    compared, spreads, lost, count = [], [], 0, 0
    for name, (_, ours), (theirs, left, right, spread, bad) in zip(
        names, paths, zip(*slopes, strict=True), strict=True
    ):
        lost += int((bad & ~_between(ours, left, right)).sum())
        count += bad.size
        compared.append((name, np.where(bad, 0, ours), np.where(bad, 0, theirs)))
        spreads.append(spread.ravel())
    scale = max((float(np.abs(b).max()) for _, _, b in compared if b.size), default=0.0)
    # Differences know a leaf to about eps/h of the whole: a leaf far below that has no scale.
    seen = [i for i, pair in enumerate(compared) if _visible(pair, scale)]
    notes: tuple[str, ...] = ()
    if count and lost > count // 2:
        notes = (
            f"{lost} of {count} coordinates lie at a kink, or their differences lose too many "
            "digits; too few are left to judge by",
        )
    compared = [compared[i] for i in seen]
    # A kink moves the slope of a few coordinates, digits that are lost that of all.
    room = 8 * float(np.median(np.concatenate(spreads))) if count else 0.0
    return (*bounded(compared, "central differences", relative, room), notes)


def _between(values, left, right) -> np.ndarray:
    """Which values lie between the slopes of two sides, as those at a kink may."""
    with np.errstate(all="ignore"):
        room = 1e-4 * np.maximum(np.abs(left), np.abs(right))
        low, high = np.minimum(left, right) - room, np.maximum(left, right) + room
        return (low <= values) & (values <= high)


def _visible(pair, scale):
    _, ours, theirs = pair
    return ours.size and max(np.abs(ours).max() / 10, np.abs(theirs).max()) > 1e-6 * scale


def bounded(
    compared: list[tuple[str, Any, Any]],
    against: str,
    relative: float,
    room: float = 0.0,
) -> tuple[tuple[Difference, ...], tuple[Difference, ...]]:
    """Rows of the leaves and of the whole; ``room`` is the error of the second side's numbers."""
    sizes = [float(np.abs(b).max(initial=0)) for _, _, b in compared]
    largest = max(sizes, default=0.0)
    # Terms of the size of the largest leaf may cancel in a small one.
    shares = [
        max(relative, 4 * EPS64 * largest / size, room / size) if size else relative
        for size in sizes
    ]
    leaves = tuple(
        difference(*leaf, against=against, bound=share / EPS64, eps=EPS64)
        for leaf, share in zip(compared, shares, strict=True)
    )
    if not compared:
        return leaves, ()
    bound = max(relative, room / largest if largest else 0.0) / EPS64
    return leaves, (whole_difference(compared, against=against, bound=bound, eps=EPS64),)


def against_truth(manual, automatic, truth):
    """The error against a float64 truth: at most 4 times that of jax.vjp, and 4 eps."""
    ours, theirs = pairs(manual, truth), pairs(automatic, truth)
    if not ours:
        return (), (), ()
    # Where the automatic side is not finite it is no measure.
    theirs = [
        (path, np.where(np.isfinite(b), b, np.asarray(t).astype(b.dtype)), t)
        for path, b, t in theirs
    ]
    own = whole_difference(theirs, against="float64")
    bound = 4 * own.l2_eps + 4
    return (), (whole_difference(ours, against="float64", bound=bound),), ()


def both_wrong(report: Report, truth: Tree) -> Report:
    """The report with a note where the automatic side is far from float64 too."""
    notes = []
    for (path, _, b), t in zip(report.pairs, jax.tree.leaves(truth), strict=True):
        own = difference(path, b.astype(report.leaves[0].dtype), t, against="float64")
        if own.max_eps > SATURATED and any(d.ok for d in report.leaves if d.path == path):
            text = f"{path} of {report.names[1]} is {own.max_eps:.3g} eps from float64 itself"
            notes.append(f"{text}: both sides agree and both are wrong, as in saturated tails")
    return report._replace(notes=(*report.notes, *notes))


class Slopes(NamedTuple):
    """Central differences of a function: as of :func:`~.oracles.slopes_of`, leaf by leaf."""

    gradient: list[np.ndarray]
    left: list[np.ndarray]
    right: list[np.ndarray]
    spread: list[np.ndarray]
    rejected: list[np.ndarray]


def slopes_by_differences(
    value: Callable[[Tree], Any], point: Tree, coarse: bool = False
) -> Slopes:
    """Of a function of float64; or, with a step that survives it, of one that rounds to less."""
    if not coarse:
        return Slopes(*map(jax.tree.leaves, slopes_of(value, point)))
    slopes = jax.tree.leaves(coarse_differences(value, point))
    none = [np.zeros(s.shape, bool) for s in slopes]
    return Slopes(slopes, slopes, slopes, none, none)


def completed(truth: Tree, slopes: Slopes) -> Tree:
    """An automatic gradient in float64, differences where it is not finite."""
    leaves, structure = jax.tree.flatten(truth)
    leaves = [
        np.where(np.isfinite(t) | bad, t, slope)
        for t, slope, bad in zip(leaves, slopes.gradient, slopes.rejected, strict=True)
    ]
    return jax.tree.unflatten(structure, leaves)


def excused(
    report: Report, truth: Tree, ours: Callable[[], Tree], slopes: Callable[[], Slopes]
) -> tuple[Report, Tree]:
    """The report without rows that fail for an error of the other side, and the truth for it.

    A leaf may be far from the automatic one because that one is far from float64: a gradient that
    cancels, as that of a bias in front of a norm, is rounding on both sides; one that overflows is
    NaN.  At a kink there are several slopes, none of them wrong.

    Args:
        report: rows against the second side, with its arrays.
        truth: the automatic gradient in float64.
        ours: gives the first side in float64, which has to be right too.
        slopes: gives differences of the function.

    Returns:
        The report, and ``truth`` with what was taken for right at kinks, and with differences
        where it is not finite.
    """
    if all(d.ok for d in (*report.leaves, *report.wholes)):
        return report, truth
    leaves, notes = list(report.leaves), []
    finite = all(np.isfinite(t).all() for t in jax.tree.leaves(truth))
    truths = [np.asarray(t, np.float64) for t in jax.tree.leaves(truth)]
    if not finite:
        truths = jax.tree.leaves(completed(truth, slopes()))
    ours_wide = [np.asarray(t, np.float64) for t in jax.tree.leaves(ours())]
    largest = max((float(np.abs(t).max(initial=0)) for t in truths), default=0.0)
    equal: list[Pair] = []  # with the other side's numbers where it is excused
    for i, ((path, a, b), t, wide) in enumerate(zip(report.pairs, truths, ours_wide, strict=True)):
        row, text = leaves[i], ""
        if not row.ok and np.isfinite(a).all():
            with np.errstate(all="ignore"):
                text = _rounding(report, row, a, b, t, wide, largest)
                if not text:
                    sides = [side[i] for side in slopes()]
                    text = _kink(report, row, a, b, wide, sides)
                    if text:
                        truths[i] = t = np.where(sides[-1], a, t)
        if text:
            leaves[i] = row._replace(ok=True, pattern="")
            notes.append(f"{path}{text}")
            a = b = t
        equal.append((path, a, b))
    wholes = report.wholes
    if all(d.ok for d in leaves) and not all(d.ok for d in wholes):
        eps = float(jnp.finfo(wholes[0].dtype).eps)
        theirs = [(p, b, t) for (p, _, b), t in zip(equal, truths, strict=True)]
        mine = [(p, a, t) for (p, a, _), t in zip(equal, truths, strict=True)]
        far, own, both = (
            whole_difference(v, against="float64", eps=eps).l2_eps for v in (mine, theirs, equal)
        )
        if both <= wholes[0].bound or (eps > EPS64 and far <= 4 * own + 4) or notes:
            wholes = tuple(d._replace(ok=True) for d in wholes)
    report = report._replace(leaves=tuple(leaves), wholes=wholes, notes=(*report.notes, *notes))
    report = report._replace(findings=()) if report.ok else report
    return report, jax.tree.unflatten(jax.tree.structure(truth), truths)


def _rounding(report, row, a, b, t, wide, largest) -> str:
    """Why a leaf that fails is right, where its rounding or the other side's is to blame."""
    eps, (mine, other) = float(jnp.finfo(row.dtype).eps), report.names
    size, gap = float(np.abs(t).max()), float(np.abs(a - t).max())
    if not np.abs(wide - t).max() <= 1e-6 * size + 1e3 * EPS64 * largest:
        return ""  # wrong in float64 too
    # A leaf is a sum too: terms of the size of the largest leaf may cancel in it.
    room = (4 if eps < 1e-6 else 1) * eps * largest
    lost = ~np.isfinite(b) & np.isfinite(t)
    if lost.any():
        if gap > row.bound * eps * size + room + (1e-6 * size if eps == EPS64 else 0):
            return ""
        where = pattern(lost)
        place = f" ({where})" if where else ""
        text = f": {other} is not finite in {int(lost.sum())} of {b.size} entries{place}"
        return f"{text}, where float64 is: the error is that of {other}, {mine} is right"
    own = float(np.abs(b - t).max())
    right = float(np.abs(a - b).max()) <= room
    if eps > EPS64:
        right = right or gap <= 4 * own + 4 * eps * size
    if not right:
        return ""
    if eps > EPS64 and gap < own:
        return f" is nearer to float64 than {other}: {gap:.1e} off, {other} {own:.1e}"
    return " is rounding on both sides"


def _kink(report, row, a, b, wide, sides) -> str:
    """Why a leaf that fails is right, where it differs at kinks alone."""
    slope, left, right, _, rejected = map(np.asarray, sides)
    eps, (mine, other) = float(jnp.finfo(row.dtype).eps), report.names
    differ = ~(np.abs(a - b) <= row.bound * eps * np.abs(b).max())
    allowed = rejected & _between(a, left, right)
    smooth = rejected | (np.abs(wide - slope) <= 1e-6 * max(np.abs(slope).max(), np.abs(b).max()))
    if not differ.any() or not allowed[differ].all() or not smooth.all():
        return ""
    at = tuple(np.argwhere(differ)[0])
    count = int(differ.sum())
    entries = "an entry" if count == 1 else f"{count} entries"
    place = f"[{', '.join(map(str, at))}]"
    return (
        f": {entries} at a kink, where both sides may be right: at {place} the slopes are "
        f"{left[at]:.4g} and {right[at]:.4g}, {mine} takes {a[at]:.4g}, {other} {b[at]:.4g}"
    )


def pairs(a: Tree, b: Tree) -> list[tuple[str, Any, Any]]:
    paths = jax.tree_util.tree_flatten_with_path(a)[0]
    return [
        (jax.tree_util.keystr(path), ours, theirs)
        for (path, ours), theirs in zip(paths, jax.tree.leaves(b), strict=True)
    ]


def cast(tree: Tree, dtype: Any) -> Tree:
    """Floats in another dtype, on the host: on the device each shape would be compiled for."""

    def of(leaf):
        if not is_inexact(leaf):
            return leaf
        with np.errstate(over="ignore"):  # what is too large for it is infinite there
            return np.asarray(leaf).astype(dtype)

    return jax.tree.map(of, tree)


def with_findings(
    report: Report, ours: Tree, due: Tree, trees: dict[str, Tree], **evidence: Any
) -> Report:
    """A report that fails, with the mistakes that explain it.

    Args:
        report: the report so far.
        ours, due: the two gradients in float64, from the best oracle.
        trees: arrays with names, whose sizes a factor may come from.
        **evidence: as of :func:`diagnose`.
    """
    if report.ok:
        return report
    shapes = {
        f"{name}{jax.tree_util.keystr(path)}": np.shape(leaf)
        for name, tree in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    found = diagnose(pairs(ours, due), named_sizes(shapes), **evidence)
    wrong = report.wrong
    if not found and wrong:
        dtype, narrow = report.leaves[0].dtype, evidence.get("narrow", ())
        statement = f"{', '.join(wrong)}: right in float64, off in {dtype}"
        if narrow:
            statement += f", and rounded to {' and '.join(narrow)} on the way"
            found = (finding("low precision", statement, wrong),)
        else:
            advice = f"look for a difference of large numbers, or what {dtype} does not hold."
            found = (Finding("unknown", wrong, statement, advice),)
    return report._replace(findings=found)


def differ(a: Tree, b: Tree) -> bool:
    return not all(np.array_equal(x, y, equal_nan=True) for _, x, y in pairs(a, b))


def finding(kind: str, statement: str, leaves: tuple[str, ...] = ()) -> Finding:
    return Finding(kind, leaves, statement, MISTAKES[kind])


NOT_DETERMINISTIC = finding(
    "not deterministic", "called twice with the same arguments, it gives two results"
)
