"""The check of a layer at one place, with one delta."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import delta_of, floats_of, is_inexact, with_floats
from ..core.site import gradient
from .diagnosis.finding import RESTLESS, Finding, finding, pairs
from .differences import bounded, in_words, side_by_side
from .excuses import excused
from .judging import against_truth, both_wrong, by_differences, differing, in_float64
from .laws import by_laws
from .oracles import complex_step, slopes_by_differences
from .report import Report
from .widening import cast, narrow_casts, widened

Tree = Any
FAR = (0.0, 1e3)  # at these multiples of x nothing may be infinite or NaN that jax.vjp gives


@in_float64
def judged(
    layer: Any,
    params: Tree,
    x: Tree,
    delta: Tree,
    key: Any,
    *,
    dtype: Any,
    analytic: bool,
    title: str,
    x64: bool,
    explain: Callable[..., Report] | None,
    sides: tuple[Any, Any] | None = None,
) -> Report:
    """The check of a layer at one place, with one delta.

    ``x64`` says whether the layer's own process has 64 bits enabled.  ``explain(report, compared,
    trees, **evidence)`` looks for the cause of a wrong gradient, as ``with_findings`` of the
    diagnosis does; ``None`` for no cause.  ``sides`` are those of :func:`both_sides`, where the
    layer stands in several places.
    """
    # The same numbers serve every dtype: those of the working one, exactly.
    params, x, delta = (cast(cast(tree, dtype), np.float64) for tree in (params, x, delta))
    others = jax.tree.map(lambda leaf: None if is_inexact(leaf) else np.asarray(leaf), x), key
    manually, automatically = sides or both_sides(layer, dtype)
    given = (*(cast(tree, dtype) for tree in (params, floats_of(x), delta)), *others)
    with jax.enable_x64(x64), in_words(layer.name or "layer"):
        manual, automatic = manually(*given), automatically(*given)
    report = side_by_side(manual, automatic, names=("manual", "jax.vjp"), title=title)
    if report.problems:
        return report
    exact = (*(cast(tree, np.float64) for tree in given[:3]), *others)
    # Without options of the compiler, which an inner function must not have.
    by_hand, by_jax = (jax.jit(side.__wrapped__) for side in (manually, automatically))
    theirs = widened(by_jax, given, x64)
    truth = automatic if np.dtype(dtype) == np.float64 else jax.jit(theirs.call)(*exact)
    point = {"params": floats_of(params), "x": floats_of(x)}

    @functools.cache
    def ours():
        """Our side in float64, and the share that may be rounding."""
        try:
            wide = widened(by_hand, given, x64, theirs.own)
            return jax.jit(wide.call)(*exact), wide.constants
        except Exception:  # a rule for one dtype only, and whatever it raises of others
            return manual, 1e3 * float(jnp.finfo(dtype).eps)

    @functools.cache
    def function():
        narrow = {"params": floats_of(given[0]), "x": given[1]}
        held = with_floats(params, narrow["params"]), _joined(given[1], others[0])
        return widened(_value(layer, *held, given[2], key), (narrow,), x64, theirs.own)

    @functools.cache
    def slopes():
        return slopes_by_differences(lambda p: jnp.real(function().call(p)), point)

    report, truth = excused(both_wrong(report, truth), truth, lambda: ours()[0], slopes)
    if np.dtype(dtype) != np.float64:
        leaves, wholes, notes = against_truth(manual, automatic, truth)
    elif analytic and function().own:
        steps = complex_step(function().call, point)
        leaves, wholes = bounded(pairs(manual, steps), "complex step", 1e-11)
        notes = ()
    else:
        leaves, wholes, notes = by_differences(manual, slopes())
    report = report._replace(
        leaves=report.leaves + leaves, wholes=report.wholes + wholes, problems=notes
    )
    with jax.enable_x64(x64):
        nonlinear = _linearity(manually, given, manual)
        infinite = _far((manually, automatically), given, np.dtype(dtype).name)
    problems = (*(found.statement for found in (*nonlinear, *infinite)), *notes)
    report = report._replace(problems=problems)
    if report.ok:
        return _with_laws(report, layer, explain, *exact)
    plain = nonlinear or (infinite if all(row.ok for row in report.leaves) else ())
    if explain is None:  # what needs no search is named all the same
        return report._replace(findings=plain)
    with jax.enable_x64(x64):
        again = both_sides(layer, dtype)[0](*given)
    restless = differing(manual, again)
    if restless:
        return report._replace(findings=(finding("not deterministic", RESTLESS, restless),))
    if plain:
        return report._replace(findings=plain)
    found, rounding = ours()
    names = ("params", "x", "delta")
    inputs = dict(zip(names, (params, point["x"], delta), strict=True))
    of_inputs = jax.jit(theirs.call)

    def of_others(inputs):
        return jax.tree.leaves(of_inputs(*(inputs[name] for name in names), *others))

    return explain(
        report,
        pairs(found, truth),
        {"x": given[1], "params": given[0]},
        value=function().call,
        point=point,
        inputs=inputs,
        again=of_others,
        tolerance=max(theirs.tolerance, function().tolerance, rounding),
        narrow=narrow_casts(by_hand, given),
    )


def _with_laws(report, layer, explain, params, floats, delta, rest, key):
    """The report of a gradient that is right, with what statistics take from the layer."""
    try:
        leaves, arrays = by_laws(layer, params, _joined(floats, rest), delta, key)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # A rule for one dtype only, or a backward pass that computes with its gradients.
        note = f"what statistics take from it was not checked: {error}"
        return report._replace(notes=(*report.notes, note))
    report = report._replace(leaves=report.leaves + leaves)
    return report if report.ok or explain is None else explain(report, arrays, {})


def both_sides(layer, dtype):
    """(hand-written, automatic), jitted: of (params, floats of x, delta, the rest of x, key)."""
    # On CPU the compiler's optimisations abort the process on some programs in float16.
    fragile = np.dtype(dtype) == np.float16 and jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if fragile else None

    def manual(params, floats, delta, rest, key):
        _, residuals = layer.forward(params, _joined(floats, rest), key)
        delta_x, grads = layer.backward(params, residuals, delta, gradient)
        return {"params": grads, "x": floats_of(delta_x)}

    def automatic(params, floats, delta, rest, key):
        def apply(params, floats):
            return floats_of(layer.apply(params, _joined(floats, rest), key))

        _, pullback = jax.vjp(apply, params, floats)
        grads, delta_x = pullback(floats_of(delta))
        return {"params": delta_of(grads), "x": delta_x}

    return tuple(jax.jit(side, compiler_options=options) for side in (manual, automatic))


def _joined(floats, rest):
    """x from its floats and its other leaves, each with ``None`` in the other's places."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, floats, rest, is_leaf=lambda leaf: leaf is None
    )


def _value(layer, params, x, delta, key):
    """Σ y δ as a function of the point, whose gradient the backward pass gives."""

    def value(point):
        y = layer.apply(with_floats(params, point["params"]), with_floats(x, point["x"]), key)
        terms = jax.tree.map(
            lambda a, d: jnp.sum(a * jnp.asarray(d).astype(a.dtype)), floats_of(y), floats_of(delta)
        )
        return sum(jax.tree.leaves(terms))

    return value


def _far(sides, given, dtype) -> tuple[Finding, ...]:
    """Whether the manual side is finite where the other one is, at x = 0 and far out."""
    if dtype == "float16":  # whose largest number is near
        return ()
    params, floats, *others = given
    for scale in FAR:
        far = jax.tree.map(lambda leaf, scale=scale: (leaf * scale).astype(leaf.dtype), floats)
        ours, theirs = (side(params, far, *others) for side in sides)
        bad = [
            name for name, a, b in pairs(ours, theirs) if np.any(np.isfinite(b) & ~np.isfinite(a))
        ]
        if bad:
            where = "x = 0" if not scale else f"{scale:g} times this x"
            text = f"at {where} {', '.join(bad)} is not finite, and in jax.vjp it is"
            return (finding("not finite", text, tuple(bad)),)
    return ()


def _linearity(manual, given, result) -> tuple[Finding, ...]:
    """Law 2: backward(2 δ) = 2 backward(δ), exactly, since 2 is a power of two; no offset."""
    params, floats, delta, *others = given
    doubled = manual(params, floats, _doubled(delta), *others)
    both = pairs(doubled, _doubled(result))
    wrong = [name for name, a, b in both if not _doubles(np.asarray(a), np.asarray(b))]
    if wrong:
        text = f"backward is not linear in delta: doubling it does not double {', '.join(wrong)}"
        return (finding("not linear", text, tuple(wrong)),)
    return ()


def _doubles(a, b):
    """Whether they are equal; float16 rounds tiny numbers, of which doubling is not exact."""
    if np.array_equal(a, b, equal_nan=True):
        return True
    gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
    eps = float(jnp.finfo(a.dtype).eps)
    return a.dtype == np.float16 and bool(gap.max() <= 4 * eps * np.abs(b).max())


def _doubled(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: np.add(leaf, leaf), tree)
