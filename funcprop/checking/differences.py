"""Two trees side by side, in units of their dtype's eps."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import LayerError
from .diagnosis.finding import MISTAKES, Finding
from .diagnosis.patterns import pattern
from .report import Difference, Report

Tree = Any


# Bounds in eps for (relative l2 of the whole tree, max-norm of a leaf), by the size of the float.
BOUNDS = {2: (4.0, 16.0), 4: (16.0, 128.0), 8: (16.0, 128.0)}


def side_by_side(
    manual: Any,
    automatic: Any,
    *args: Any,
    names: tuple[str, str],
    title: str,
    whole_bound: float | None = None,
    leaf_bound: float | None = None,
) -> Report:
    """The report of :func:`compare` without a search for the cause."""
    if callable(manual):
        sides = jax.jit(manual), jax.jit(automatic)
        manual, automatic = retried(lambda: [side(*args) for side in sides])
    findings, pairs = paired(manual, automatic, names)
    if not findings and not any(np.size(a) for _, a, _ in _inexact(pairs)):
        described = [f"{p} {jnp.result_type(a)}{list(np.shape(a))}" for p, a, _ in pairs]
        came = ", ".join(described) or "no leaves"
        raise LayerError("compare", f"both sides have {came}; floats must be there to be compared")
    problems = tuple(found.statement for found in findings)
    leaves = tuple(
        difference(path, a, b, bound=leaf_bound, against=names[1]) for path, a, b in pairs
    )
    wholes = (whole_difference(pairs, bound=whole_bound, against=names[1]),) if pairs else ()
    return Report(title, names, leaves, wholes, problems, findings, pairs=_arrays(pairs))


@contextlib.contextmanager
def in_words(name: str) -> Iterator[None]:
    """Says what to do about a function that JAX cannot trace."""
    try:
        yield
    except jax.errors.TracerArrayConversionError as error:
        raise LayerError(
            name,
            "a function turns traced values into NumPy arrays, and both sides are jitted; write it "
            "with jax.numpy, or call NumPy by jax.pure_callback with "
            "vmap_method='sequential'",
        ) from error
    except jax.errors.ConcretizationTypeError as error:
        raise LayerError(
            name,
            "a function needs the value of a traced array, as of an if, a range or float(), and "
            "both sides are jitted; use jax.lax.cond, fori_loop or jnp.where, or call it by "
            "jax.pure_callback with vmap_method='sequential'",
        ) from error


def retried(check: Callable[[], Any]) -> Any:
    """The result of a check, tried once more without JAX's caches where they are in its way.

    JAX keeps the first width in which it has met a closed-over NumPy constant of 64 bits, and then
    cannot compile the other one.
    """
    try:
        return check()
    except ValueError as error:
        if "verifier errors" not in str(error):
            raise
    jax.clear_caches()
    return check()


def difference(
    path: str,
    a: Any,
    b: Any,
    *,
    against: str,
    bound: float | None = None,
    eps: float | None = None,
    whole: bool = False,
) -> Difference:
    """The :class:`Difference` of two arrays of one shape."""
    dtype, shape = jnp.result_type(a), np.shape(a)
    if not jnp.issubdtype(dtype, jnp.inexact):  # a count is right or wrong
        bound = 0.0
    eps = eps if eps is not None else _eps(dtype)
    if bound is None:
        bound = BOUNDS.get(np.dtype(dtype).itemsize, BOUNDS[4])[0 if whole else 1]
    a, b = (np.asarray(leaf).astype(np.float64) for leaf in (a, b))
    with np.errstate(all="ignore"):  # infinities and NaN are counted, and fail
        gap = np.abs(a - b)
        norm_gap, norm_a, norm_b = (float(np.linalg.norm(v.ravel())) for v in (gap, a, b))
        # The angle by way of the unit vectors' difference, which does not cancel near 0.
        unit_a, unit_b = (v.ravel() / (n or 1.0) for v, n in ((a, norm_a), (b, norm_b)))
        half = float(np.linalg.norm(unit_a - unit_b)) / 2
        cosine = float(unit_a @ unit_b) if norm_a and norm_b else math.nan
    angle = math.degrees(2 * math.asin(min(half, 1.0))) if norm_a and norm_b else math.nan
    if norm_a == norm_b == 0:
        cosine, angle = 1.0, 0.0
    max_eps = _ratio(_largest(gap), _largest(np.abs(b))) / eps
    l2_eps = _ratio(norm_gap, norm_b) / eps
    order = np.where(np.isnan(gap), np.inf, gap)
    at = np.unravel_index(int(np.argmax(order)), shape) if gap.size else ()
    measured = l2_eps if whole else max_eps
    ok = bool(measured <= bound) and bool(np.isfinite(a).all()) and bool(np.isfinite(b).all())
    where = ""
    if not ok and not whole:
        where = pattern(~(gap <= bound * eps * _largest(np.abs(b))), b)
    return Difference(
        path,
        tuple(shape),
        str(dtype),
        l2_eps,
        max_eps,
        cosine,
        angle,
        norm_a / norm_b if norm_b else (1.0 if norm_a == 0 else math.inf),
        tuple(int(i) for i in at),
        (float(a[at]), float(b[at])) if gap.size else (0.0, 0.0),
        (int((~np.isfinite(a)).sum()), int((~np.isfinite(b)).sum())),
        bound,
        ok,
        against,
        where,
    )


def whole_difference(
    pairs: list[tuple[str, Any, Any]],
    *,
    against: str,
    bound: float | None = None,
    eps: float | None = None,
) -> Difference:
    """The :class:`Difference` of all floats taken as one vector, in the widest eps among them."""
    pairs = _inexact(pairs) or pairs
    dtype = max((jnp.result_type(a) for _, a, _ in pairs), key=_eps)
    a, b = (
        np.concatenate([np.asarray(pair[i]).astype(np.float64).ravel() for pair in pairs])
        for i in (1, 2)
    )
    eps = _eps(dtype) if eps is None else eps
    if bound is None:
        bound = BOUNDS.get(np.dtype(dtype).itemsize, BOUNDS[4])[0]
    found = difference("whole", a, b, against=against, bound=bound, eps=eps, whole=True)
    return found._replace(dtype=str(dtype))


def paired(
    manual: Tree, automatic: Tree, names: tuple[str, str]
) -> tuple[tuple[Finding, ...], list[tuple[str, Any, Any]]]:
    """What differs in structure, shape or dtype, and the pairs of leaves that can be compared."""
    ours: Any
    theirs: Any
    ours, theirs = (jax.tree_util.tree_flatten_with_path(tree) for tree in (manual, automatic))
    findings: list[Finding] = []

    def found(kind: str, path: str, statement: str) -> None:
        findings.append(Finding(kind, (path,) if path else (), statement, MISTAKES[kind]))

    if ours[1] != theirs[1]:
        found("structure", "", f"{names[0]} has the structure {ours[1]}, {names[1]} {theirs[1]}")
    at = {jax.tree_util.keystr(path) or "value": leaf for path, leaf in theirs[0]}
    pairs = []
    for path, leaf in ours[0]:
        name = jax.tree_util.keystr(path) or "value"
        if name not in at:
            found("structure", name, f"{name} is in {names[0]} only")
            continue
        other = at.pop(name)
        came, due = np.shape(leaf), np.shape(other)
        if came != due:
            text = f"{name} has shape {came} in {names[0]}, {due} in {names[1]}"
            found("structure", name, text)
            continue
        came, due = jnp.result_type(leaf), jnp.result_type(other)
        if came != due:
            found("dtype", name, f"{name} is {came} in {names[0]}, {due} in {names[1]}")
        pairs.append((name, leaf, other))
    for name in at:
        found("structure", name, f"{name} is in {names[1]} only")
    return tuple(findings), pairs


def _inexact(pairs: list[tuple[str, Any, Any]]) -> list[tuple[str, Any, Any]]:
    return [pair for pair in pairs if jnp.issubdtype(jnp.result_type(pair[1]), jnp.inexact)]


def _arrays(pairs: list[tuple[str, Any, Any]]) -> tuple[tuple[str, np.ndarray, np.ndarray], ...]:
    return tuple([(name, _wide(ours), _wide(theirs)) for name, ours, theirs in pairs])


def _wide(leaf: Any) -> np.ndarray:
    return np.asarray(leaf).astype(np.float64)


def _eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.inexact) else 1.0


def _largest(values: np.ndarray) -> float:
    return float(values.max()) if values.size else 0.0


def _ratio(gap: float, size: float) -> float:
    if math.isnan(gap) or math.isnan(size):
        return math.inf
    return gap / size if size else (0.0 if gap == 0 else math.inf)


EPS64 = float(np.finfo(np.float64).eps)


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
