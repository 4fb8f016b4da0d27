"""What the checks have in common: rows against an oracle, and why a gradient is wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .diagnosis.finding import pairs
from .differences import bounded, difference, retried, whole_difference
from .oracles import Slopes, slopes_allow
from .report import Report

Tree = Any
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


def differing(a: Tree, b: Tree) -> tuple[str, ...]:
    """The leaves that are not the same numbers."""
    return tuple([name for name, x, y in pairs(a, b) if not np.array_equal(x, y, equal_nan=True)])
