"""Two trees side by side, in units of their dtype's eps."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any

# Bounds in eps for (relative l2 of the whole tree, max-norm of a leaf), by the size of the float.
BOUNDS = {2: (4.0, 16.0), 4: (16.0, 128.0), 8: (16.0, 128.0)}


class Difference(NamedTuple):
    """One leaf of two trees.  Norms are relative to the second tree's leaf.

    Attributes:
        path: where the leaf is, or "whole" for all leaves taken as one vector.
        shape, dtype: of the first tree's leaf.
        l2_eps, max_eps: ‖a - b‖₂/‖b‖₂ and max|a - b|/max|b| in units of the dtype's eps.
        cosine, angle: between a and b; the angle in degrees.
        norm_ratio: ‖a‖₂/‖b‖₂.
        worst_index: where |a - b| is largest.
        worst: the two values there.
        non_finite: how many values of a and of b are NaN or infinite.
        bound: the bound in eps that was applied, to ``l2_eps`` for "whole", else to ``max_eps``.
        ok: whether it holds.
        against: what the second tree is.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    l2_eps: float
    max_eps: float
    cosine: float
    angle: float
    norm_ratio: float
    worst_index: tuple[int, ...]
    worst: tuple[float, float]
    non_finite: tuple[int, int]
    bound: float
    ok: bool
    against: str


class Report(NamedTuple):
    """What a comparison found; ``print`` it.

    Attributes:
        title: what was compared.
        names: what the two sides are called, the first one ours.
        leaves: a :class:`Difference` for each leaf, and for each oracle.
        wholes: a :class:`Difference` of all leaves as one vector, for each oracle.
        problems: what else is wrong, a sentence each.
    """

    title: str
    names: tuple[str, str]
    leaves: tuple[Difference, ...]
    wholes: tuple[Difference, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every bound holds and there is no problem."""
        return not self.problems and all(d.ok for d in (*self.leaves, *self.wholes))

    @property
    def worst_leaf(self) -> float:
        """The largest ``max_eps`` of a leaf against the second side, in eps."""
        return max((d.max_eps for d in self.leaves if d.against == self.names[1]), default=0.0)

    @property
    def worst_whole(self) -> float:
        """``l2_eps`` of the whole tree against the second side, in eps."""
        return max((d.l2_eps for d in self.wholes if d.against == self.names[1]), default=0.0)

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "FAILED"
        lines = [f"{self.title}: {self.names[0]} against {self.names[1]}: {verdict}"]
        width = max([len(d.path) for d in (*self.leaves, *self.wholes)] + [4])
        lines.append(
            f"{'leaf':<{width}}  {'shape':>12}  {'dtype':>8}  {'l2 eps':>9}  {'max eps':>9}"
            f"  {'bound':>8}  {'angle':>8}  {'ratio':>8}  verdict"
        )
        for d in (*self.leaves, *self.wholes):
            shape = "x".join(map(str, d.shape)) or "scalar"
            lines.append(
                f"{d.path:<{width}}  {shape:>12}  {d.dtype:>8}  {d.l2_eps:>9.3g}  {d.max_eps:>9.3g}"
                f"  {d.bound:>8.3g}  {d.angle:>8.2g}  {d.norm_ratio:>8.6g}  "
                f"{'ok' if d.ok else 'FAILED'}"
                + ("" if d.against == self.names[1] else f"  ({d.against})")
            )
            if not d.ok and d.path != "whole":
                index = ", ".join(map(str, d.worst_index))
                lines.append(
                    f"    worst at [{index}]: {self.names[0]} {d.worst[0]:.9g}, "
                    f"{d.against} {d.worst[1]:.9g}; "
                    f"not finite: {d.non_finite[0]}, {d.non_finite[1]}"
                )
        return "\n".join([*lines, *(f"problem: {problem}" for problem in self.problems)])

    def to_dict(self) -> dict[str, Any]:
        """The report as plain lists, dicts, strings and numbers."""
        return {
            "title": self.title,
            "names": list(self.names),
            "ok": self.ok,
            "leaves": [_plain(d) for d in self.leaves],
            "whole": [_plain(d) for d in self.wholes],
            "problems": list(self.problems),
        }

    def assert_ok(self) -> None:
        """Raises AssertionError with the report as its message unless ``ok``."""
        if not self.ok:
            raise AssertionError(str(self))

    def plot(self, axes: Any = None) -> Any:
        """Bars of each leaf's difference in eps beside its bound.

        Args:
            axes: matplotlib axes; by default those of a new figure.

        Returns:
            The axes.

        Raises:
            ModuleNotFoundError: without matplotlib, which the extra ``plot`` installs.
        """
        import matplotlib.pyplot as plt

        if axes is None:
            _, axes = plt.subplots(figsize=(7, 0.35 * len(self.leaves) + 1.2), layout="constrained")
        places = np.arange(len(self.leaves))
        sizes = [max(d.max_eps, 1e-3) if math.isfinite(d.max_eps) else 1e12 for d in self.leaves]
        colours = ["tab:blue" if d.ok else "tab:red" for d in self.leaves]
        axes.barh(places, sizes, color=colours)
        axes.plot([d.bound for d in self.leaves], places, "k|", markersize=10, label="bound")
        axes.set_yticks(places, [d.path for d in self.leaves])
        axes.set_xscale("log")
        axes.invert_yaxis()
        axes.set_xlabel(f"max |{self.names[0]} - {self.names[1]}| / max, in eps")
        axes.legend()
        return axes


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
        A :class:`Report`.  NaN fails; structure, shape and dtype must be equal.

    Raises:
        TypeError: when one side is a function and the other is not.

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
    if callable(manual):
        manual, automatic = jax.jit(manual)(*args), jax.jit(automatic)(*args)
    elif args:
        raise TypeError("compare takes further arguments only with two functions")
    problems, pairs = _paired(manual, automatic, names)
    leaves = tuple(
        difference(path, a, b, bound=leaf_bound, against=names[1]) for path, a, b in pairs
    )
    wholes = (whole_difference(pairs, bound=whole_bound, against=names[1]),) if pairs else ()
    return Report(title, names, leaves, wholes, tuple(problems))


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
        bool(measured <= bound) and bool(np.isfinite(a).all()) and bool(np.isfinite(b).all()),
        against,
    )


def whole_difference(
    pairs: list[tuple[str, Any, Any]],
    *,
    against: str,
    bound: float | None = None,
    eps: float | None = None,
) -> Difference:
    """The :class:`Difference` of all pairs taken as one vector, in the widest eps among them."""
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


def _paired(
    manual: Tree, automatic: Tree, names: tuple[str, str]
) -> tuple[list[str], list[tuple[str, Any, Any]]]:
    """What differs in structure, shape or dtype, and the pairs of leaves that can be compared."""
    ours: Any
    theirs: Any
    ours, theirs = (jax.tree_util.tree_flatten_with_path(tree) for tree in (manual, automatic))
    problems = []
    if ours[1] != theirs[1]:
        problems.append(f"{names[0]} has the structure {ours[1]}, {names[1]} {theirs[1]}")
    at = {jax.tree_util.keystr(path): leaf for path, leaf in theirs[0]}
    pairs = []
    for path, leaf in ours[0]:
        name = jax.tree_util.keystr(path)
        if name not in at:
            problems.append(f"{name} is in {names[0]} only")
            continue
        other = at.pop(name)
        if np.shape(leaf) != np.shape(other):
            problems.append(
                f"{name} has shape {np.shape(leaf)} in {names[0]}, {np.shape(other)} in {names[1]}"
            )
            continue
        if jnp.result_type(leaf) != jnp.result_type(other):
            problems.append(
                f"{name} is {jnp.result_type(leaf)} in {names[0]}, "
                f"{jnp.result_type(other)} in {names[1]}"
            )
        pairs.append((name or "value", leaf, other))
    problems += [f"{name} is in {names[1]} only" for name in at]
    return problems, pairs


def _eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.inexact) else 1.0


def _largest(values: np.ndarray) -> float:
    return float(values.max()) if values.size else 0.0


def _ratio(gap: float, size: float) -> float:
    if math.isnan(gap) or math.isnan(size):
        return math.inf
    return gap / size if size else (0.0 if gap == 0 else math.inf)


def _plain(d: Difference) -> dict[str, Any]:
    plain = d._asdict()
    return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}
