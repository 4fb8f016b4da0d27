"""Checks of anybody's gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .compare import compare
from .judging import by_differences, cast, finding, pairs, with_findings
from .mistakes import named_sizes
from .oracles import central_differences
from .report import Report

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
    cannot vouch for itself.

    Args:
        f: a function of ``args`` to a real number.
        gradient: ``gradient(*args)``, as ``jax.grad(f, argnums)`` would give it.
        *args: where to compare, arrays or trees of arrays.
        argnums: by which of the arguments.
        title: what the report is called; by default the name of ``f``.

    Returns:
        A :class:`Report`.

    Raises:
        TypeError: as ``jax.grad``, when an argument is not of floats or f not a real number.

    >>> import jax.numpy as jnp
    >>> from funcprop import check_gradient
    >>> x = jnp.array([1.0, 2.0])
    >>> check_gradient(lambda x: jnp.sum(x**2), lambda x: 2 * x, x).ok
    True
    >>> check_gradient(lambda x: jnp.sum(x**2), lambda x: x, x).ok
    False
    """
    args = jax.tree.map(jnp.asarray, args)
    title = title or str(getattr(f, "__name__", "f"))
    report = compare(
        gradient, jax.grad(f, argnums), *args, names=("manual", "jax.grad"), title=title
    )
    if report.problems:
        return report
    numbers = (argnums,) if isinstance(argnums, int) else argnums

    def single(found):
        return (found,) if isinstance(argnums, int) else tuple(found)

    with jax.enable_x64(True):
        wide = cast(args, np.float64)

        def of_chosen(chosen):
            replaced = list(wide)
            for number, value in zip(numbers, chosen, strict=True):
                replaced[number] = value
            return f(*replaced)

        chosen = tuple(wide[number] for number in numbers)
        slopes, rejected = central_differences(of_chosen, chosen)
        manual = single(jax.jit(gradient)(*wide))
        leaves, wholes, notes = by_differences(manual, slopes, rejected)
        report = report._replace(
            leaves=report.leaves + leaves, wholes=report.wholes + wholes, problems=notes
        )
        if report.ok:
            return report
        if any(
            not np.array_equal(a, b, equal_nan=True)
            for _, a, b in pairs(single(jax.jit(lambda *a: gradient(*a))(*wide)), manual)
        ):
            statement = "called twice with the same arguments, it gives two results"
            return report._replace(findings=(finding("not deterministic", statement),))
        due, tolerance = single(jax.jit(jax.grad(f, argnums))(*wide)), 1e-9
        _, own, _ = by_differences(due, slopes, rejected)
        if own and not own[0].ok:  # a rule of f's own is wrong
            due, tolerance = slopes, 1e-6
        shapes = {
            f"argument {number}{jax.tree_util.keystr(path)}": np.shape(leaf)
            for number, arg in enumerate(args)
            for path, leaf in jax.tree_util.tree_leaves_with_path(arg)
        }
        slope = jax.jit(jax.grad(of_chosen))
        return with_findings(
            report,
            manual,
            due,
            named_sizes(shapes),
            value=of_chosen,
            point=chosen,
            inputs=chosen,
            again=lambda inputs: jax.tree.leaves(slope(inputs)),
            tolerance=tolerance,
        )
