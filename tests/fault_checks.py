"""What a planted fault is, the check that fits it, and the proof that it is one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import funcprop as fp
from funcprop.checking import Report, check_gradient, check_layer, check_model, compare
from funcprop.core.checks import cotangent_of, delta_of, floats_of, is_inexact, with_floats
from tests.mutations import Mutation

Tree = Any


LIMIT = 4 * float(jnp.finfo("float32").eps)  # what is off by less is right


class Fault(NamedTuple):
    """A subject with a fault in its hand-written gradient, or an innocent one.

    Attributes:
        name: unique and readable.
        subject: "layer", "function", "statistic" or "model".
        family: the module of its layer, or the name of the function or statistic.
        make: makes the subject: a layer; (f, gradient); (statistic, reference); (model, loss).
        draw: draws from a ``numpy.random.Generator`` x; the arguments; (params, x, y); (x, y).
        wrong: the leaves that must be reported, as ``Report.wrong`` names them.
        kinds: acceptable names, the best first; of a generated one none where none is clear.
        analytic: whether a layer's forward pass computes in complex numbers.
        position: of a model the layer at which the fault must be placed, or how its name begins.
        proven: the leaves of its layer that are off, where ``wrong`` names parts of that layer.
        correct: makes the subject without the fault.
        mutation: what was changed, of a generated one; ``None`` of one by hand.
    """

    name: str
    subject: str
    family: str
    make: Callable[[], Any]
    draw: Callable[[np.random.Generator], Any]
    wrong: tuple[str, ...]
    kinds: tuple[str, ...]
    analytic: bool = False
    position: str = ""
    proven: tuple[str, ...] = ()
    correct: Callable[[], Any] | None = None
    mutation: Mutation | None = None


# ------------------------------------------------------------------------------- the checks


def cast(tree: Tree, dtype: Any) -> Tree:
    """The floats in ``dtype``, on the host."""
    return jax.tree.map(lambda a: np.asarray(a).astype(dtype) if is_inexact(a) else a, tree)


def generator_of(seed: int) -> np.random.Generator:
    """A stream apart from that of ``check_layer``: a delta that equals x hides faults."""
    return np.random.default_rng((seed, 1))


def report(fault: Fault, dtype: Any = "float32", seed: int = 0, *, diagnose: bool = True) -> Report:
    """What the check that fits the subject finds; of a layer without its cause, if so wanted."""
    with jax.enable_x64(np.dtype(dtype) == np.float64):
        draw, subject = generator_of(seed), fault.make()
        if fault.subject == "layer":
            return check_layer(
                subject,
                x=fault.draw(draw),
                dtype=dtype,
                seed=seed,
                analytic=fault.analytic,
                diagnose=diagnose,
                title=fault.name,
            )
        drawn = cast(fault.draw(draw), dtype)
        if fault.subject == "function":
            numbers = tuple(range(len(drawn)))
            return check_gradient(*subject, *drawn, argnums=numbers, title=fault.name)
        if fault.subject == "statistic":
            return compare(*subject, *drawn, title=fault.name)
        model, loss = subject
        given = params_of(model, drawn[0], dtype, seed), *drawn
        return check_model(model, *jax.tree.map(jnp.asarray, given), loss, title=fault.name)


def placed(fault: Fault, found: Report) -> bool:
    """Whether exactly the leaves that are off are reported, of a model the layer."""
    if fault.position:
        return bool(found.wrong) and all(p.startswith(fault.position) for p in found.wrong)
    return set(found.wrong) == set(fault.wrong)


def params_of(layer: Any, x: Tree, dtype: Any, seed: int) -> Tree:
    """Parameters of which none is constant, as float64 numbers of ``dtype`` under x64."""
    draw, key = np.random.default_rng(seed + 1), jax.random.key(seed)
    structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), x)
    single = hasattr(x, "shape") and is_inexact(x)
    params = layer.init(key, structs.shape if single else structs)[0]

    def moved(a):
        a = np.asarray(a, np.float64)
        return a if not a.size or np.ptp(a) else a + draw.normal(size=a.shape) / 2

    return cast(jax.tree.map(moved, params), dtype)


class Plain(NamedTuple):
    """A fault's subject for other checkers: a function with the faulty gradient attached.

    Attributes:
        f: a ``jax.custom_vjp`` function of ``args``.
        forward, backward: ``forward(*args) -> y``, ``backward(args, delta) -> gradients``.
        args: trees of floats.
        names: of each leaf of ``args`` its path as ``Fault.wrong`` has it.
    """

    f: Callable[..., Tree]
    forward: Callable[..., Tree]
    backward: Callable[[tuple, Tree], tuple]
    args: tuple
    names: tuple[str, ...]


def plain(fault: Fault, dtype: Any = "float32", seed: int = 0) -> Plain | None:
    """The subject as a function with its gradient; ``None`` for a statistic, which has none.

    Float64 needs ``jax.enable_x64``, for the call too.
    """
    draw = generator_of(seed)
    if fault.subject == "statistic":
        return None
    subject, drawn = fault.make(), fault.draw(draw)
    if fault.subject == "layer":
        return _plain_layer(subject, drawn, dtype, seed)
    if fault.subject == "function":
        f, gradient = subject
        drawn = cast(drawn, dtype)

        def scaled(args, delta):
            return jax.tree.map(lambda g: g * delta.astype(g.dtype), gradient(*args))

        names = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(drawn)]
        return _attached(f, scaled, drawn, names)
    model, loss = subject
    x, y = cast(drawn, dtype)
    params = params_of(model, x, dtype, seed)
    sweep = fp.value_and_backprop(model, loss)

    def back(args, delta):
        return (jax.tree.map(lambda g: g * delta.astype(g.dtype), sweep(*args, x, y)[1]),)

    found = jax.tree_util.tree_leaves_with_path(params)
    names = [f"layers[{p[0].idx}] {jax.tree_util.keystr(p[1:])}" for p, _ in found]
    return _attached(lambda params: sweep(params, x, y)[0], back, (params,), names)


def _plain_layer(layer: Any, x: Tree, dtype: Any, seed: int) -> Plain:
    key = jax.random.key(seed)
    x = cast(x, dtype)
    params = params_of(layer, x, dtype, seed)

    def forward(params, floats):
        return floats_of(layer.apply(params, with_floats(x, floats), key))

    def backward(args, delta):
        params, floats = args
        y, residuals = layer.forward(params, with_floats(x, floats), key)
        delta = delta_of(cotangent_of(y, delta))
        delta_x, grads = layer.backward(params, residuals, delta, fp.gradient)
        return grads, floats_of(delta_x)

    args = params, floats_of(x)
    tree = {"params": args[0], "x": args[1]}
    names = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return _attached(forward, backward, args, names)


def _attached(f: Any, backward: Any, args: tuple, names: list[str]) -> Plain:
    @jax.custom_vjp
    def attached(*args):
        return f(*args)

    attached.defvjp(lambda *args: (f(*args), args), backward)
    return Plain(attached, f, backward, args, tuple(names))


# ------------------------------------------------------------------------ that it is a fault


def excess(fault: Fault, dtype: Any = "float32", seed: int = 0) -> dict[str, float]:
    """By how much each leaf is off in float64, relative to its largest element.

    Infinite for a leaf that is missing, not finite, or of another shape or dtype.  The numbers are
    those of ``dtype``, and the forward pass must be that of the correct subject.
    """
    assert fault.correct is not None
    with jax.enable_x64(True):
        drawn = fault.draw(generator_of(seed))
        made, correct = fault.make(), fault.correct()
        if fault.subject == "layer":
            return _layer_excess(made, correct, drawn, dtype, seed)
        exact = cast(cast(drawn, dtype), np.float64)
        if fault.subject == "model":
            return _model_excess(fault, made, correct, exact, dtype, seed)
        if fault.subject == "function":
            due = jax.grad(correct[0], tuple(range(len(exact))))
        else:
            due = correct[1]
        for f in (correct[1], correct[0])[: 1 + (fault.subject == "statistic")]:
            gaps = gaps_of(jax.jit(f)(*exact), jax.jit(due)(*exact))
            assert max(gaps.values()) < 1e-10, f"the correct one is off by {gaps}"
        return gaps_of(jax.jit(made[fault.subject == "function"])(*exact), jax.jit(due)(*exact))


def _layer_excess(layer: Any, correct: Any, x: Tree, dtype: Any, seed: int) -> dict[str, float]:
    x = cast(cast(x, dtype), np.float64)
    params = cast(params_of(correct, x, dtype, seed), np.float64)
    key, draw = jax.random.key(seed), np.random.default_rng(seed + 2)
    y = jax.eval_shape(correct.apply, params, x, key)
    delta = jax.tree.map(lambda s: draw.normal(size=s.shape) if is_inexact(s) else None, y)
    delta = cast(cast(delta, dtype), np.float64)

    @jax.jit
    def by_hand(params, floats, delta):
        y, residuals = layer.forward(params, with_floats(x, floats), key)
        delta_x, grads = layer.backward(params, residuals, delta, fp.gradient)
        return floats_of(y), {"params": grads, "x": floats_of(delta_x)}

    @jax.jit
    def due(params, floats, delta):
        def apply(params, floats):
            return floats_of(correct.apply(params, with_floats(x, floats), key))

        y, pullback = jax.vjp(apply, params, floats)
        grads, delta_x = pullback(floats_of(delta))
        return y, {"params": grads, "x": delta_x}

    y, ours = by_hand(params, floats_of(x), delta)
    true_y, theirs = due(params, floats_of(x), delta)
    for a, b in zip(jax.tree.leaves(y), jax.tree.leaves(true_y), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, err_msg="forward pass")
    return gaps_of(ours, theirs)


def _model_excess(
    fault: Fault, made: Any, correct: Any, exact: Any, dtype: Any, seed: int
) -> dict[str, float]:
    """That of the layer at the fault's position, with the input that it has in the model."""
    x, y = exact
    params = cast(params_of(correct[0], x, dtype, seed), np.float64)
    params, x = jax.tree.map(jnp.asarray, (params, x))
    if fault.position.startswith("loss"):
        x = correct[0].apply(params, x), y
        layers = made[1], correct[1]
    else:
        n = int(re.findall(r"\d+", fault.position)[0])
        x = fp.serial(*correct[0].parts[:n]).apply(params[:n], x)
        layers = made[0].parts[n], correct[0].parts[n]
    gaps = _layer_excess(*layers, cast(x, np.float64), dtype, seed)
    place = "" if fault.proven else f"{fault.position} "
    return {f"{place}{path}": gap for path, gap in gaps.items()}


def gaps_of(ours: Tree, theirs: Tree) -> dict[str, float]:
    """By how much each leaf is off, relative to the largest element of the right one."""
    found = {jax.tree_util.keystr(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(ours)}
    gaps = {}
    for path, b in jax.tree_util.tree_leaves_with_path(theirs):
        name = jax.tree_util.keystr(path)
        a = found.get(name)
        name = name or "value"
        if a is None or a.shape != b.shape or a.dtype != b.dtype or not np.isfinite(a).all():
            gaps[name] = np.inf
            continue
        assert np.isfinite(b).all(), f"{name} is not finite in jax either"
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        largest = np.abs(b).max(initial=0)
        gap = np.abs(a - b).max(initial=0)
        gaps[name] = gap / largest if largest else (np.inf if gap else 0.0)
    return gaps


def proof(fault: Fault, dtype: Any = "float32", seed: int = 0) -> str:
    """What is wrong with the claim that the leaves it names, and no others, are off; or ''."""
    try:
        gaps = excess(fault, dtype, seed)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    hit = {name for name, gap in gaps.items() if gap > LIMIT}
    due = set(fault.proven or fault.wrong)
    lines = [f"{name} off by {gaps[name]:.2g}" for name in sorted(hit - due)]
    for name in sorted(due - hit):
        lines.append(f"{name} not off: {gaps.get(name, 'no such leaf')}")
    return "; ".join(lines)
