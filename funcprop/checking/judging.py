"""What the checks have in common: rows against an oracle, and why a gradient is wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..layer import is_inexact
from .compare import difference, retried, whole_difference
from .diagnosis import diagnose
from .mistakes import MISTAKES, named_sizes
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


def by_differences(manual, slopes, rejected):
    """Manual against central differences, the rejected coordinates left out of both."""
    names = [name for name, _, _ in pairs(manual, slopes)]
    compared, lost, count = [], 0, 0
    for name, ours, theirs, bad in zip(
        names, *(jax.tree.leaves(tree) for tree in (manual, slopes, rejected)), strict=True
    ):
        bad = np.asarray(bad)
        lost, count = lost + int(bad.sum()), count + bad.size
        compared.append((name, np.where(bad, 0, ours), np.where(bad, 0, theirs)))
    scale = max((float(np.abs(b).max()) for _, _, b in compared if b.size), default=0.0)
    # Differences know a leaf to about eps/h of the whole: a leaf far below that has no scale.
    compared = [pair for pair in compared if _visible(pair, scale)]
    notes: tuple[str, ...] = ()
    if count and lost > count // 2:
        notes = (f"{lost} of {count} coordinates lie at a kink; too few are left to judge by",)
    return (*bounded(compared, "central differences", 1e-6), notes)


def _visible(pair, scale):
    _, ours, theirs = pair
    return ours.size and max(np.abs(ours).max() / 10, np.abs(theirs).max()) > 1e-6 * scale


def bounded(
    compared: list[tuple[str, Any, Any]], against: str, relative: float
) -> tuple[tuple[Difference, ...], tuple[Difference, ...]]:
    bound = relative / EPS64
    largest = max((float(np.abs(b).max(initial=0)) for _, _, b in compared), default=0.0)

    def of(leaf):
        """Terms of the size of the largest leaf may cancel in a small one."""
        size = float(np.abs(leaf).max(initial=0))
        return max(bound, 4 * largest / size) if size else bound

    leaves = tuple(
        difference(n, a, b, against=against, bound=of(b), eps=EPS64) for n, a, b in compared
    )
    whole = (
        (whole_difference(compared, against=against, bound=bound, eps=EPS64),) if compared else ()
    )
    return leaves, whole


def against_truth(manual, automatic, truth):
    """The error against a float64 truth: at most 4 times that of jax.vjp, and 4 eps."""
    ours, theirs = pairs(manual, truth), pairs(automatic, truth)
    if not ours:
        return (), (), ()
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


def excused(report: Report, truth: Tree) -> Report:
    """The report without rows that fail for the other side's rounding.

    A leaf may be far from the automatic one because that one is far from float64: a gradient that
    cancels, as that of a bias in front of a norm, is rounding on both sides.

    Args:
        report: rows against the second side, with its arrays.
        truth: the automatic gradient in float64.
    """
    leaves = list(report.leaves)
    largest = max((float(np.abs(b).max(initial=0)) for _, _, b in report.pairs), default=0.0)
    notes: list[str] = []
    truths = [np.asarray(t, np.float64) for t in jax.tree.leaves(truth)]
    for i, ((path, a, b), t) in enumerate(zip(report.pairs, truths, strict=True)):
        row = leaves[i]
        if row.ok or any(row.non_finite):
            continue
        eps = float(jnp.finfo(row.dtype).eps)
        own, size = float(np.abs(b - t).max()), float(np.abs(t).max())
        # A leaf is a sum too: terms of the size of the largest leaf may cancel in it.
        right = float(np.abs(a - b).max()) <= (4 if eps < 1e-6 else 1) * eps * largest
        if eps > EPS64:
            right = right or float(np.abs(a - t).max()) <= 4 * own + 4 * eps * size
        if right:
            leaves[i] = row._replace(ok=True, pattern="")
            other = report.names[1]
            nearer = eps > EPS64 and float(np.abs(a - t).max()) < own
            text = f"is nearer to float64 than {other}" if nearer else "is rounding on both sides"
            notes.append(f"{path} {text}")
    wholes = report.wholes
    if all(d.ok for d in leaves) and not all(d.ok for d in wholes):
        ours = [(p, a, t) for (p, a, _), t in zip(report.pairs, truths, strict=True)]
        theirs = [(p, b, t) for (p, _, b), t in zip(report.pairs, truths, strict=True)]
        eps = float(jnp.finfo(wholes[0].dtype).eps)
        far, own = (whole_difference(v, against="float64", eps=eps).l2_eps for v in (ours, theirs))
        if notes or (eps > EPS64 and far <= 4 * own + 4):
            wholes = tuple(d._replace(ok=True) for d in wholes)
    report = report._replace(leaves=tuple(leaves), wholes=wholes, notes=(*report.notes, *notes))
    return report._replace(findings=()) if report.ok else report


def pairs(a: Tree, b: Tree) -> list[tuple[str, Any, Any]]:
    paths = jax.tree_util.tree_flatten_with_path(a)[0]
    return [
        (jax.tree_util.keystr(path), ours, theirs)
        for (path, ours), theirs in zip(paths, jax.tree.leaves(b), strict=True)
    ]


def cast(tree: Tree, dtype: Any) -> Tree:
    """Floats in another dtype, on the host: on the device each shape would be compiled for."""
    return jax.tree.map(
        lambda leaf: np.asarray(leaf).astype(dtype) if is_inexact(leaf) else leaf, tree
    )


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
        statement = f"{', '.join(wrong)}: right in float64, off in {report.leaves[0].dtype}"
        found = (finding("low precision", statement, wrong),)
    return report._replace(findings=found)


def differ(a: Tree, b: Tree) -> bool:
    return not all(np.array_equal(x, y, equal_nan=True) for _, x, y in pairs(a, b))


def finding(kind: str, statement: str, leaves: tuple[str, ...] = ()) -> Finding:
    return Finding(kind, leaves, statement, MISTAKES[kind])


NOT_DETERMINISTIC = finding(
    "not deterministic", "called twice with the same arguments, it gives two results"
)
