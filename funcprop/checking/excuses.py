"""A gradient that differs from the automatic one and is right: whose error it is, and kinks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .diagnosis.patterns import pattern
from .differences import EPS64, whole_difference
from .oracles import Slopes, slopes_allow
from .report import Report

Tree = Any
Pair = tuple[str, np.ndarray, np.ndarray]


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
    allowed = rejected & slopes_allow(a, left, right)
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
