"""Two trees side by side, in units of their dtype's eps."""

from __future__ import annotations

from typing import Any

from .diagnosis.diagnosis import diagnose
from .differences import _eps, in_words, side_by_side
from .report import Report
from .widening import narrow_casts

Tree = Any


def compare(
    manual: Any,
    automatic: Any,
    *args: Any,
    names: tuple[str, str] = ("manual", "automatic"),
    title: str = "gradient",
    whole_bound: float | None = None,
    leaf_bound: float | None = None,
) -> Report:
    """Compares two gradients leaf by leaf.

    Of two functions the report also says which change of one operation of ``automatic`` would make
    it ``manual``.

    Args:
        manual: a tree of arrays, or a function of ``args`` that gives one.
        automatic: the same, to compare with.  Functions are jitted, both.
        *args: arguments of the two functions.
        names: what the report calls the two sides.
        title: what the report calls the comparison.
        whole_bound: bound on the relative l2 norm of all leaves as one vector, in eps; by default
            16, for 16-bit floats 4.
        leaf_bound: bound on each leaf's max-norm relative to its max, in eps; by default 128,
            for 16-bit floats 16.

    Returns:
        A :class:`Report`.  NaN fails; structure, shape and dtype must be equal, and integers and
        booleans among the leaves exactly so.

    Raises:
        TypeError: when one side is a function and the other is not.
        LayerError: when there is nothing to compare: no leaf with a float in it.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import backprop, apply, compare, init
    >>> params = init(jax.random.key(0), (4, 8, 2))
    >>> x, y = jnp.ones((3, 4)), jnp.zeros((3, 2))
    >>> report = compare(lambda p: backprop(p, x, y)[1],
    ...                  jax.grad(lambda p: jnp.mean((apply(p, x) - y) ** 2)), params)
    >>> report.ok, len(report.leaves)
    (True, 4)
    """
    if callable(manual) != callable(automatic):
        raise TypeError("compare takes two trees, or two functions and their arguments")
    if args and not callable(manual):
        raise TypeError("compare takes further arguments only with two functions")
    bounds = {"whole_bound": whole_bound, "leaf_bound": leaf_bound}
    with in_words("compare"):
        report = side_by_side(manual, automatic, *args, names=names, title=title, **bounds)
    if report.ok or report.findings:
        return report
    reference = (automatic, args) if callable(automatic) else None
    narrow = narrow_casts(manual, args) if callable(manual) else ()
    tolerance = 1e3 * max((_eps(row.dtype) for row in report.leaves), default=0.0)
    found = diagnose(report.pairs, {}, reference=reference, tolerance=tolerance, narrow=narrow)
    return report._replace(findings=found)
