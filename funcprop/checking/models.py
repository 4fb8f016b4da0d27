"""A whole model's gradient, and its training, beside those of jax.grad."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..layer import Layer, floats_of, with_floats
from ..learning.backpropagation import Rule, no_state, rule_of
from ..losses import Loss
from ..sweep import checked_batch, split_params, value_and_backprop
from .compare import compare
from .judging import cast, excused, with_findings
from .layers import both_sides, judged
from .parts import by_vjp, taken_apart
from .report import Finding, Report

Tree = Any


def check_model(
    model: Layer,
    params: Tree,
    x: Tree,
    y: Tree,
    loss: Loss,
    *,
    key: jax.Array | None = None,
    parts: bool | None = None,
    title: str = "gradient",
) -> Report:
    """Whether a model's hand-written gradient by its parameters is that of ``jax.grad``.

    Where it is not, every layer's backward pass is judged on its own: the model is taken apart,
    each part gets the input and the delta that the right derivative brings to it, and a fault in
    ``layers[7]`` is reported there and nowhere else.  What a combinator does between its parts is
    judged too, with parts whose derivative is that of ``jax.vjp``.

    Compare before training: the gradient of a network that fits its data is a sum that cancels to
    nothing, and rounding is all that is left of it on both sides.

    Args:
        model: any layer.
        params: its parameters; of a loss with parameters the pair (model's, loss's).
        x, y: a batch, with a leading axis of examples.
        loss: the loss.
        key: for layers that draw random numbers.
        parts: whether each part is judged; by default where the whole gradient is wrong.
        title: what the report is called.

    Returns:
        A :class:`~funcprop.Report`, a row for each leaf of the parameters; its ``parts`` are those
        of the layers, by their places.

    Raises:
        LayerError: when shapes, dtypes or values do not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import check_model, mean_squared_error, mlp
    >>> model = mlp((4, 3, 2))
    >>> params, _ = model.init(jax.random.key(0), (4,))
    >>> check_model(model, params, jnp.ones((5, 4)), jnp.ones((5, 2)), mean_squared_error).ok
    True
    """
    sweep = value_and_backprop(model, loss)
    reference = automatic(model, loss)
    report = compare(
        lambda params, x, y: sweep(params, x, y, key=key)[1],
        lambda params, x, y: reference.estimate(params, (), x, y, key)[1],
        params,
        x,
        y,
        names=("by hand", "jax.grad"),
        title=title,
    )
    truth = None
    if not report.ok and not report.problems:
        with jax.enable_x64(True):
            wide = (cast(tree, np.float64) for tree in (params, x, y))
            truth = jax.jit(lambda *wide: reference.estimate(wide[0], (), *wide[1:], key)[1])(*wide)
        report = excused(report, truth)
    if parts is None:
        parts = not report.ok
    if not parts:
        return report
    found = _parts(model, params, x, y, loss, key)
    report = report._replace(parts=tuple(found))
    if any(not part.ok for part in found):
        return report._replace(findings=tuple(f for part in found for f in _placed(part)))
    if truth is None:
        return report
    return explained(report, reference, params, x, y, key, sweep, truth)


def explained(report: Report, reference: Rule, params, x, y, key, sweep, due: Tree) -> Report:
    """The report of a whole gradient with the mistakes that explain it.

    ``due`` is the gradient in float64; ``sweep(params, x, y, key)`` gives (anything, ours).
    """
    if report.ok:
        return report
    with jax.enable_x64(True):
        params, x, y = (cast(tree, np.float64) for tree in (params, x, y))
        ours = jax.jit(lambda params: sweep(params, x, y, key=key)[1])(params)

        def value(floats):
            return reference.estimate(with_floats(params, floats), (), x, y, key)[0]

        named = {"x": jax.tree.leaves(x)[0], "": params}
        report = report._replace(findings=())
        return with_findings(report, ours, due, named, value=value, point=floats_of(params))


def _placed(part: Report) -> list[Finding]:
    """A part's findings as those of the whole."""
    return [
        f._replace(
            leaves=tuple(f"{part.title} {leaf}" for leaf in f.leaves),
            statement=f"{part.title}: {f.statement}",
        )
        for f in part.findings
    ]


def _parts(model, params, x, y, loss, key) -> list[Report]:
    """A report for each part and each combinator of the model, and for the loss."""
    x, size = checked_batch(x, y)
    own, loss_own = split_params(loss, params)
    dtype = jnp.result_type(*(leaf for leaf in jax.tree.leaves(floats_of((params, x)))))
    with jax.enable_x64(True):
        own, loss_own, x, y = (
            jax.tree.map(jnp.asarray, cast(tree, np.float64)) for tree in (own, loss_own, x, y)
        )
        prediction = model.apply(own, x, key)
        share = np.full(size, 1 / size)
        _, kept = by_vjp(loss).forward(loss_own, (prediction, y))
        delta = by_vjp(loss).backward(loss_own, kept, share)[0][0]
        parts = taken_apart(model, own, x, delta, key)
    found: list[Report] = []
    sides: dict[int, Any] = {}
    for part in parts:
        title = f"{part.place} {part.layer.name}".strip()
        if part.whole:
            title = f"{title}, between its parts"
        if id(part.layer) not in sides:  # a part that is repeated is compiled once
            sides[id(part.layer)] = both_sides(part.layer, dtype)
        found.append(
            judged(
                part.layer, part.params, part.x, part.delta, part.key,
                dtype=dtype, analytic=False, title=title, sides=sides[id(part.layer)],
            )
        )  # fmt: skip
    title = f"loss {loss.name}"
    found.append(
        judged(
            loss, loss_own, (prediction, y), share, None, dtype=dtype, analytic=False, title=title
        )
    )
    return found


def automatic(model: Layer, loss: Loss) -> Rule:
    """Backprop by ``jax.value_and_grad``: the rule to compare a whole training with.

    It draws the same random numbers from a key as :func:`~funcprop.backpropagation` does.

    Args:
        model: any layer.
        loss: a loss; of one with parameters params is the pair (model's, loss's).

    Returns:
        A :class:`~funcprop.Rule` without state.

    >>> import jax, jax.numpy as jnp, optax
    >>> from funcprop import backpropagation, fit, mean_squared_error, mlp
    >>> from funcprop.checking import automatic
    >>> model, data = mlp((1, 4, 1)), (jnp.ones((8, 1)), jnp.zeros((8, 1)))
    >>> params, _ = model.init(jax.random.key(0), (1,))
    >>> by_hand, by_jax = (
    ...     fit(rule(model, mean_squared_error), optax.sgd(0.1), params, data,
    ...         key=jax.random.key(1), steps=3)[1]["loss"] for rule in (backpropagation, automatic))
    >>> max(abs(a - b) for a, b in zip(by_hand, by_jax)) < 1e-6
    True
    """

    def mean_loss(params, x, y, key, weights):
        own, loss_own = split_params(loss, params)
        losses = loss.apply(loss_own, (model.apply(own, x, key), y))
        return jnp.mean(losses) if weights is None else jnp.average(losses, weights=weights)

    def estimate(params, state, x, y, key, sample_weight=None):
        value, grads = jax.value_and_grad(mean_loss)(params, x, y, key, sample_weight)
        return value, grads, state

    return rule_of(model, loss, no_state, estimate)
