"""What the checks have in common: rows against an oracle, and why a gradient is wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .comparison import difference, retried, whole_difference
from .diagnosis.diagnosis import diagnose
from .diagnosis.mistakes import MISTAKES, named_sizes
from .oracles import Slopes, slopes_allow
from .report import Difference, Finding, Report

Tree = Any
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
        lost += int((bad & ~slopes_allow(ours, left, right)).sum())
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


def pairs(a: Tree, b: Tree) -> list[tuple[str, Any, Any]]:
    paths = jax.tree_util.tree_flatten_with_path(a)[0]
    return [
        (jax.tree_util.keystr(path), ours, theirs)
        for (path, ours), theirs in zip(paths, jax.tree.leaves(b), strict=True)
    ]


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
