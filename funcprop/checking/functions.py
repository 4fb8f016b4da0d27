"""Checks of anybody's gradient."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import LayerError, is_inexact
from .diagnosis.diagnosis import with_findings
from .diagnosis.finding import RESTLESS, Finding, finding, pairs
from .diagnosis.rewiring import opened
from .differences import in_words, side_by_side
from .excuses import completed, excused
from .judging import both_wrong, by_differences, differing, in_float64
from .oracles import Slopes, slopes_by_differences
from .report import Report
from .widening import all_widened, cast, narrow_casts, x64_enabled

Tree = Any


def check_gradient(
    f: Callable[..., jax.Array],
    gradient: Callable[..., Tree],
    *args: Any,
    argnums: int | tuple[int, ...] = 0,
    title: str | None = None,
) -> Report:
    """Whether a function's hand-written gradient is right.

    It is compared with ``jax.grad``, both sides jitted, and in float64 ``jax.grad``'s place is
    taken once more by central differences, so that an ``f`` with a derivative rule of its own
    cannot vouch for itself: to judge that rule, say of a ``jax.custom_vjp`` function or a Pallas
    kernel, give ``jax.grad(f)`` as the gradient.

    Args:
        f: a function of ``args`` to a real number.
        gradient: ``gradient(*args)``, as ``jax.grad(f, argnums)`` would give it.
        *args: where to compare, arrays or trees of arrays.
        argnums: by which of the arguments.
        title: what the report is called; by default the name of ``f``.

    Returns:
        A :class:`Report`.

    Raises:
        LayerError: when an argument of ``argnums`` is not there, or not of floats.
        TypeError: as ``jax.grad``, when f is not a real number.

    >>> import jax.numpy as jnp
    >>> from funcprop import check_gradient
    >>> x = jnp.array([1.0, 2.0])
    >>> check_gradient(lambda x: jnp.sum(x**2), lambda x: 2 * x, x).ok
    True
    >>> check_gradient(lambda x: jnp.sum(x**2), lambda x: x, x).ok
    False
    """
    numbers: tuple[int, ...]
    if isinstance(argnums, (tuple, list)):
        argnums = numbers = tuple(map(operator.index, argnums))
    else:
        argnums = operator.index(argnums)
        numbers = (argnums,)
    args = jax.tree.map(jnp.asarray, args)
    for number in numbers:
        if not -len(args) <= number < len(args):
            came = f"argnums is {argnums}, there are {len(args)} arguments"
            raise LayerError("check_gradient", f"{came}, numbered from 0")
        leaves = jax.tree.leaves(args[number])
        if not leaves or not all(map(is_inexact, leaves)):
            came = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves) or "no arrays"
            raise LayerError(
                "check_gradient",
                f"argument {number} is {came}, floats are due; cast it, or leave it out of argnums",
            )
    title = title or str(getattr(f, "__name__", "f"))
    x64 = x64_enabled()
    automatic = jax.grad(f, argnums)
    with in_words("check_gradient"):
        report = side_by_side(gradient, automatic, *args, names=("manual", "jax.grad"), title=title)
    if report.problems:
        return report

    def single(found):
        return (found,) if isinstance(argnums, int) else tuple(found)

    @in_float64
    def judged(report):
        wide = jax.tree.map(jnp.asarray, cast(args, np.float64))  # NumPy has no methods for tracers
        ours, theirs, function = all_widened((gradient, automatic, f), args, x64)

        def of_chosen(chosen):
            replaced = list(wide)
            for number, value in zip(numbers, chosen, strict=True):
                replaced[number] = value
            return function.call(*replaced)

        chosen = tuple(wide[number] for number in numbers)
        manual, due = (single(jax.jit(side.call)(*wide)) for side in (ours, theirs))
        relative = max(1e-6, 10 * ours.constants)
        if function.narrow:  # differences of float32 know a slope to some thousandths
            relative = 5e-2
            note = f"it is rounded to {' and '.join(function.narrow)} on the way: judged coarsely"
            report = report._replace(notes=(note,))
        slopes = slopes_by_differences(of_chosen, chosen, coarse=bool(function.narrow))
        if not function.narrow:
            due = completed(due, slopes)
            report = both_wrong(report, due)
        report, due = excused(report, due, lambda: manual, lambda: slopes)
        leaves, wholes, notes = by_differences(manual, slopes, relative)
        if isinstance(argnums, int):
            leaves = tuple(d._replace(path=_alone(d.path)) for d in leaves)
        report = report._replace(
            leaves=report.leaves + leaves, wholes=report.wholes + wholes, problems=notes
        )
        if all(row.ok for row in (*report.leaves, *report.wholes)):
            return report
        with jax.enable_x64(x64):
            once, again = (jax.jit(lambda *args: gradient(*args))(*args) for _ in range(2))
        restless = differing(single(once), single(again))
        if restless:
            return report._replace(findings=(finding("not deterministic", RESTLESS, restless),))
        value: Callable[[Tree], jax.Array] | None = of_chosen
        tolerance = max(theirs.tolerance, function.tolerance, ours.constants)
        if not function.narrow and not _agrees(due, slopes):
            # f has a rule of its own, which is wrong
            value = opened(of_chosen)
            due = _gradient(value, chosen)
            if due is None or not _agrees(due, slopes):
                due, value, tolerance = tuple(slopes.gradient), None, 1e-6
        slope = None if value is None else jax.jit(jax.grad(value))
        return with_findings(
            report,
            pairs(manual, due),
            {f"argument {number}": arg for number, arg in enumerate(args)},
            value=value,
            point=chosen,
            inputs=chosen,
            again=None if slope is None else lambda inputs: jax.tree.leaves(slope(inputs)),
            tolerance=tolerance,
            narrow=narrow_casts(gradient, args),
        )

    report = judged(report)
    if isinstance(argnums, int):
        report = report._replace(findings=tuple(map(_of_one, report.findings)))
    return report


def _of_one(found: Finding) -> Finding:
    leaves = tuple(map(_alone, found.leaves))
    text = found.statement.replace(", ".join(found.leaves), ", ".join(leaves), 1)
    return found._replace(leaves=leaves, statement=text)


def _alone(path: str) -> str:
    """A leaf's path where there is one argument."""
    return path.removeprefix("[0]") or "value"


def _agrees(due: Tree, slopes: Slopes) -> bool:
    _, wholes, _ = by_differences(due, slopes)
    return all(whole.ok for whole in wholes)


def _gradient(value: Callable, chosen: Tree) -> Tree | None:
    try:
        return jax.jit(jax.grad(value))(chosen)
    except Exception:  # what is inside has no derivative
        return None
