"""Checks of a learning rule that ought to equal backprop, once and along training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.layer import Layer
from ..core.loss import Loss
from ..core.rule import Rule
from .differences import difference, paired, whole_difference
from .models import Evidence, automatic
from .report import Report
from .widening import cast, widened, x64_enabled

Tree = Any


def check_rule(
    rule: Rule,
    model: Layer,
    loss: Loss,
    params: Tree,
    x: Tree,
    y: Tree,
    *,
    key: jax.Array | None = None,
    state: Tree = None,
    title: str = "rule",
) -> Report:
    """Whether a learning rule's estimate is the gradient that ``jax.grad`` gives.

    For rules that ought to equal backprop: one's own, or feedback alignment with B = W.  A gradient
    that cancels, as that of a network that fits its data, keeps the rounding of its terms, so the
    bounds grow with the distance of ``jax.grad`` itself from a float64 gradient.

    Args:
        rule: a learning rule.
        model, loss: what the gradient is that of.
        params: the parameters.
        x, y: a batch.
        key: for the rule's random numbers, and those of the model's layers.
        state: the rule's state; by default that of ``rule.init``.
        title: what the report is called.

    Returns:
        A :class:`~funcprop.Report`, a row for each leaf of the parameters.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import backpropagation, mean_squared_error, mlp
    >>> from funcprop.checking import check_rule
    >>> model = mlp((4, 3, 2))
    >>> params, _ = model.init(jax.random.key(0), (4,))
    >>> rule = backpropagation(model, mean_squared_error)
    >>> check_rule(rule, model, mean_squared_error, params, jnp.ones((5, 4)), jnp.ones((5, 2))).ok
    True
    """
    return _checker(rule, model, loss)(params, x, y, key, state, title)


def _checker(rule: Rule, model: Layer, loss: Loss) -> Callable[..., Report]:
    """The check, its programs compiled once."""
    reference = automatic(model, loss)
    ours = jax.jit(lambda params, state, x, y, key: rule.estimate(params, state, x, y, key)[1])
    due = jax.jit(lambda params, x, y, key: reference.estimate(params, (), x, y, key)[1])
    wides: dict[tuple, Callable[..., Tree]] = {}

    def check(params, x, y, key, state, title):
        if state is None:
            state = rule.init(jax.random.key(0) if key is None else key, params)
        estimate, grads = ours(params, state, x, y, key), due(params, x, y, key)
        given = params, x, y, key
        x64 = x64_enabled()
        with jax.enable_x64(True):
            kind = tuple((jnp.shape(v), jnp.result_type(v)) for v in jax.tree.leaves(given))
            if kind not in wides:
                wides[kind] = jax.jit(widened(due, given, x64).call)
            truth = wides[kind](*cast(given, np.float64))
        findings, pairs = paired(estimate, grads, ("rule", "jax.grad"))
        statements = tuple(f.statement for f in findings)
        report = Report(title, ("rule", "jax.grad"), (), (), statements, findings)
        if findings:
            return report
        own = [(p, b, t) for (p, _, b), t in zip(pairs, jax.tree.leaves(truth), strict=True)]
        leaves = tuple(
            difference(p, a, b, against="jax.grad", bound=128 + 4 * _far(p, b, t))
            for (p, a, b), (_, _, t) in zip(pairs, own, strict=True)
        )
        far = whole_difference(own, against="float64").l2_eps
        whole = whole_difference(pairs, against="jax.grad", bound=16 + 4 * far)
        arrays = tuple((p, np.asarray(a), np.asarray(b)) for p, a, b in pairs)
        report = report._replace(leaves=leaves, wholes=(whole,), pairs=arrays)

        if report.ok:
            return report

        def by_rule(params, x, y):
            return rule.estimate(params, state, x, y, key)[1]

        def by_jax(params, x, y):
            return reference.estimate(params, (), x, y, key)[1]

        evidence = Evidence.of(by_rule, by_jax, reference, (params, x, y), key, x64)
        return evidence.explained(report)

    return check


def _far(path: str, automatic: Any, truth: Any) -> float:
    return difference(path, automatic, truth, against="float64").max_eps


class Diverged(AssertionError):
    """A rule's estimate has left the gradient.

    Attributes:
        report: what the comparison found.
        state: the state of training at that step.
        batch: the pair (x, y).
        path: the file with what a :func:`replay` needs, if there is one.
    """

    def __init__(self, report: Report, state: Any, batch: tuple, path: Path | None):
        self.report, self.state, self.batch, self.path = report, state, batch, path
        where = "" if path is None else f"\nsaved in {path}; funcprop.checking.replay runs it again"
        super().__init__(f"{report}{where}")


def watch(
    rule: Rule,
    model: Layer,
    loss: Loss,
    data: tuple[Tree, Tree],
    *,
    batch_size: int = 32,
    save: Any = None,
) -> Callable[[Any, Any], None]:
    """A callback for :func:`~funcprop.fit` that repeats :func:`check_rule` along training.

    It is called every ``every`` steps, as ``fit`` is told, on a batch that the step's number
    chooses.

    Args:
        rule, model, loss: as of :func:`check_rule`.
        data: the pair (x, y) that batches are drawn from.
        batch_size: examples in a batch.
        save: a file (.npz) for the parameters, the rule's state and the batch of a divergence.

    Returns:
        ``callback(state, history)``, which raises :class:`Diverged` at the first divergence.

    >>> import jax, jax.numpy as jnp, optax
    >>> from funcprop import backpropagation, fit, mean_squared_error, mlp
    >>> from funcprop.checking import watch
    >>> model, data = mlp((1, 4, 1)), (jnp.ones((8, 1)), jnp.zeros((8, 1)))
    >>> params, _ = model.init(jax.random.key(0), (1,))
    >>> rule = backpropagation(model, mean_squared_error)
    >>> callback = watch(rule, model, mean_squared_error, data, batch_size=4)
    >>> _ = fit(rule, optax.sgd(0.1), params, data, key=jax.random.key(1), steps=4, every=2,
    ...         callback=callback)
    """
    check = _checker(rule, model, loss)
    size = len(jax.tree.leaves(data)[0])

    def callback(state, history):
        step = int(state.step)
        chosen = np.random.default_rng(step).choice(size, min(batch_size, size), replace=False)
        x, y = jax.tree.map(lambda leaf: leaf[chosen], tuple(data))
        report = check(state.params, x, y, state.key, state.rule_state, f"rule at step {step}")
        if report.ok:
            return
        path = None
        if save is not None:
            path = Path(save).with_suffix(".npz")
            _save(path, state, x, y)
        raise Diverged(report, state, (x, y), path)

    return callback


def replay(path: Any, rule: Rule, model: Layer, loss: Loss) -> Report:
    """The comparison of a :class:`Diverged` once more, from its file.

    Args:
        path: the file.
        rule, model, loss: as of :func:`watch`, perhaps with the fault mended.

    Returns:
        A :class:`~funcprop.Report`.
    """
    with np.load(path) as held:
        arrays = {name: held[name] for name in held.files}
    params, x, y = _decoded(json.loads(str(arrays["structure"])), arrays)
    impl = str(arrays["key_impl"])
    key = jax.random.wrap_key_data(arrays["key"], impl=impl)
    due = jax.eval_shape(rule.init, key, params)
    leaves, structure = jax.tree.flatten(due)
    kept = [_restored(arrays[f"state_{i}"], leaf, impl) for i, leaf in enumerate(leaves)]
    state = jax.tree.unflatten(structure, kept)
    return check_rule(rule, model, loss, params, x, y, key=key, state=state, title="replay")


def _save(path: Path, state: Any, x: Tree, y: Tree) -> None:
    leaves: list[np.ndarray] = []
    structure = json.dumps(_encoded((state.params, x, y), leaves))
    kept = [
        jax.random.key_data(leaf) if _is_key(leaf) else leaf
        for leaf in jax.tree.leaves(state.rule_state)
    ]
    arrays: dict[str, Any] = {f"leaf_{i}": leaf for i, leaf in enumerate(leaves)}
    arrays |= {f"state_{i}": leaf for i, leaf in enumerate(kept)}
    arrays |= {"structure": structure, "key": jax.random.key_data(state.key)}
    np.savez(path, key_impl=str(jax.random.key_impl(state.key)), **arrays)


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _restored(leaf: np.ndarray, due: Any, impl: str) -> Any:
    """An array as it was before it lay in a file, which knows no keys and no bfloat16."""
    if _is_key(due):
        return jax.random.wrap_key_data(jax.numpy.asarray(leaf), impl=impl)
    return leaf.view(due.dtype) if leaf.dtype.kind == "V" else leaf


def _encoded(tree: Tree, leaves: list[np.ndarray]) -> Any:
    """The structure of tuples, lists and dicts as JSON; the arrays are collected."""
    if isinstance(tree, dict):
        return {"dict": {name: _encoded(part, leaves) for name, part in tree.items()}}
    if isinstance(tree, (tuple, list)):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [_encoded(part, leaves) for part in tree]}
    if tree is None:
        return None
    leaves.append(np.asarray(tree))
    return f"leaf_{len(leaves) - 1}"


def _decoded(structure: Any, arrays: dict[str, np.ndarray]) -> Tree:
    if structure is None:
        return None
    if isinstance(structure, str):
        leaf = arrays[structure]
        return leaf.view(jax.numpy.bfloat16) if leaf.dtype.kind == "V" else leaf
    ((kind, parts),) = structure.items()
    if kind == "dict":
        return {name: _decoded(part, arrays) for name, part in parts.items()}
    return (list if kind == "list" else tuple)(_decoded(part, arrays) for part in parts)
