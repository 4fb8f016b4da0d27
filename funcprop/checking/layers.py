"""Checks of a layer, and of anybody's gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..layer import LayerError, delta_of, floats_of, gradient, is_inexact, is_shape, with_floats
from .compare import Difference, Report, compare, difference, whole_difference
from .oracles import central_differences, complex_step

Tree = Any
EPS64 = float(np.finfo(np.float64).eps)


def check_layer(
    layer: Any,
    shape: Any = None,
    *,
    dtype: Any = "float32",
    batch: int = 3,
    x: Tree = None,
    params: Tree = None,
    seed: int = 0,
    analytic: bool = False,
    title: str | None = None,
) -> Report:
    """Whether a layer's hand-written backward pass is right.

    The gradient by parameters and input, for a random delta, is compared with ``jax.vjp`` of
    ``layer.apply``, both sides jitted; in float64 also with the complex step or with central
    differences, and in narrower floats its error against a float64 truth with that of
    ``jax.vjp``.  That ``backward`` is linear in delta is tried too.

    Args:
        layer: a layer or a loss.
        shape: shape of one example; or
        x: an input with its batch axis, floats in any dtype.
        dtype: the working dtype, of parameters and of floats in x.
        batch: how many examples are drawn for ``shape``.
        params: parameters; by default drawn by ``layer.init``, and those that are constant
            (biases) made random.
        seed: for all draws.
        analytic: whether ``forward`` computes in complex numbers, for the complex step.
        title: what the report is called; by default the layer's name.

    Returns:
        A :class:`Report`: a row for each leaf of the parameters and the input, by each oracle.

    Raises:
        LayerError: when neither shape nor x is given.

    >>> from funcprop import check_layer, dense, tanh
    >>> report = check_layer(dense(3, tanh), (4,))
    >>> report.ok
    True
    """
    init_key, run_key = jax.random.split(jax.random.key(seed))
    draw = np.random.default_rng(seed)
    if shape is None and x is None:
        raise LayerError(layer.name, "give check_layer the shape of one example, or x")
    with jax.enable_x64(True):
        if x is None:
            x = _draw(draw, shape, batch)
        if params is None:
            structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), x)
            own = shape if shape is not None else structs.shape if hasattr(x, "shape") else structs
            params = _not_constant(draw, layer.init(init_key, own)[0])
        # The same numbers serve every dtype: those of the working one, exactly.
        params, x = (_cast(_cast(tree, dtype), np.float64) for tree in (params, x))
        y = jax.eval_shape(layer.apply, params, x, run_key)
        delta = _cast(_cast(_draw_like(draw, y), dtype), np.float64)
        sides = _sides(layer, params, x, run_key)

        given = tuple(_cast(tree, dtype) for tree in (params, floats_of(x), delta))
        manual, automatic = (side(*given) for side in sides)
        title = f"{title or layer.name or 'layer'} {np.dtype(dtype).name}"
        report = compare(manual, automatic, names=("manual", "jax.vjp"), title=title)
        if report.problems:
            return report
        problems = _linearity(sides[0], given, manual)
        exact = tuple(_cast(tree, np.float64) for tree in given)
        truth = sides[1](*exact)
        if np.dtype(dtype) == np.float64:
            more = _judged(layer, manual, exact, x, run_key, analytic)
        else:
            more = _against_truth(manual, automatic, truth)
    leaves, wholes, notes = more
    return report._replace(
        leaves=report.leaves + leaves, wholes=report.wholes + wholes, problems=(*problems, *notes)
    )


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
    with jax.enable_x64(True):
        wide = _cast(args, np.float64)

        def of_chosen(chosen):
            replaced = list(wide)
            for number, value in zip(numbers, chosen, strict=True):
                replaced[number] = value
            return f(*replaced)

        chosen = tuple(wide[number] for number in numbers)
        slopes, rejected = central_differences(of_chosen, chosen)
        manual = jax.jit(gradient)(*wide)
        manual = (manual,) if isinstance(argnums, int) else tuple(manual)
        leaves, wholes, notes = _by_differences(manual, slopes, rejected)
    return report._replace(
        leaves=report.leaves + leaves, wholes=report.wholes + wholes, problems=notes
    )


# ------------------------------------------------------------------------------ pieces


def _sides(layer, params, x, key):
    """(hand-written, automatic): functions of (params, floats of x, delta) to a dict of both."""

    def manual(params, floats, delta):
        _, residuals = layer.forward(params, with_floats(x, floats), key)
        delta_x, grads = layer.backward(params, residuals, delta, gradient)
        return {"params": grads, "x": floats_of(delta_x)}

    def automatic(params, floats, delta):
        def apply(params, floats):
            return floats_of(layer.apply(params, with_floats(x, floats), key))

        _, pullback = jax.vjp(apply, params, floats)
        grads, delta_x = pullback(floats_of(delta))
        return {"params": delta_of(grads), "x": delta_x}

    return jax.jit(manual), jax.jit(automatic)


def _judged(layer, manual, exact, x, key, analytic):
    """Float64 against an oracle that knows no derivative."""
    params, floats, delta = exact

    def value(point):
        y = layer.apply(point["params"], with_floats(x, point["x"]), key)
        terms = jax.tree.map(
            lambda a, d: jnp.sum(a * d.astype(a.dtype)), floats_of(y), floats_of(delta)
        )
        return sum(jax.tree.leaves(terms))

    point = {"params": params, "x": floats}
    if not analytic:
        slopes, rejected = central_differences(lambda p: jnp.real(value(p)), point)
        return _by_differences(manual, slopes, rejected)
    slopes = complex_step(value, point)
    return (*_bounded(_pairs(manual, slopes), "complex step", 1e-11), ())


def _by_differences(manual, slopes, rejected):
    """Manual against central differences, the rejected coordinates left out of both."""
    names = [name for name, _, _ in _pairs(manual, slopes)]
    pairs, lost, count = [], 0, 0
    for name, ours, theirs, bad in zip(
        names, *(jax.tree.leaves(tree) for tree in (manual, slopes, rejected)), strict=True
    ):
        bad = np.asarray(bad)
        lost, count = lost + int(bad.sum()), count + bad.size
        pairs.append((name, np.where(bad, 0, ours), np.where(bad, 0, theirs)))
    scale = max((float(np.abs(b).max()) for _, _, b in pairs if b.size), default=0.0)
    # Differences know a leaf to about eps/h of the whole: a leaf far below that has no scale.
    pairs = [pair for pair in pairs if _visible(pair, scale)]
    notes: tuple[str, ...] = ()
    if count and lost > count // 2:
        notes = (f"{lost} of {count} coordinates lie at a kink; too few are left to judge by",)
    return (*_bounded(pairs, "central differences", 1e-6), notes)


def _visible(pair, scale):
    _, ours, theirs = pair
    return ours.size and max(np.abs(ours).max() / 10, np.abs(theirs).max()) > 1e-6 * scale


def _bounded(
    pairs: list[tuple[str, Any, Any]], against: str, relative: float
) -> tuple[tuple[Difference, ...], tuple[Difference, ...]]:
    bound = relative / EPS64
    leaves = tuple(
        difference(n, a, b, against=against, bound=bound, eps=EPS64) for n, a, b in pairs
    )
    whole = (whole_difference(pairs, against=against, bound=bound, eps=EPS64),) if pairs else ()
    return leaves, whole


def _against_truth(manual, automatic, truth):
    """The error against a float64 truth: at most 4 times that of jax.vjp, and 4 eps."""
    ours, theirs = _pairs(manual, truth), _pairs(automatic, truth)
    if not ours:
        return (), (), ()
    own = whole_difference(theirs, against="float64")
    bound = 4 * own.l2_eps + 4
    return (), (whole_difference(ours, against="float64", bound=bound),), ()


def _linearity(manual, given, result):
    """Law 2: backward(2 δ) = 2 backward(δ), exactly, since 2 is a power of two; no offset."""
    params, floats, delta = given
    doubled = manual(params, floats, _doubled(delta))
    pairs = _pairs(doubled, _doubled(result))
    wrong = [name for name, a, b in pairs if not np.array_equal(a, b, equal_nan=True)]
    if wrong:
        return (f"backward is not linear in delta: doubling it does not double {', '.join(wrong)}",)
    return ()


def _doubled(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: np.add(leaf, leaf), tree)


def _pairs(a: Tree, b: Tree) -> list[tuple[str, Any, Any]]:
    paths = jax.tree_util.tree_flatten_with_path(a)[0]
    return [
        (jax.tree_util.keystr(path), ours, theirs)
        for (path, ours), theirs in zip(paths, jax.tree.leaves(b), strict=True)
    ]


def _cast(tree: Tree, dtype: Any) -> Tree:
    """Floats in another dtype, on the host: on the device each shape would be compiled for."""
    return jax.tree.map(
        lambda leaf: np.asarray(leaf).astype(dtype) if is_inexact(leaf) else leaf, tree
    )


def _draw(draw: np.random.Generator, shape: Any, batch: int) -> Tree:
    if is_shape(shape):
        return draw.normal(size=(batch, *shape))
    return jax.tree.map(
        lambda s: (
            draw.normal(size=(batch, *s.shape))
            if jnp.issubdtype(s.dtype, jnp.inexact)
            else np.ones((batch, *s.shape), s.dtype)
        ),
        shape,
    )


def _draw_like(draw: np.random.Generator, y: Tree) -> Tree:
    return jax.tree.map(lambda s: draw.normal(size=s.shape) if is_inexact(s) else None, y)


def _not_constant(draw: np.random.Generator, params: Tree) -> Tree:
    """Parameters with noise added where all are equal, as biases are at first."""

    def moved(leaf):
        if not is_inexact(leaf) or not leaf.size or np.ptp(np.asarray(leaf, np.float64)):
            return leaf
        return leaf + (draw.normal(size=leaf.shape) / 2).astype(leaf.dtype)

    return jax.tree.map(moved, params)
