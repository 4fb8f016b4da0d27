"""A whole model's gradient, and its training, beside those of jax.grad."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import floats_of, with_floats
from ..core.layer import Layer
from ..core.loss import Loss
from ..core.rule import Rule, no_state
from ..core.sweep import checked_batch, split_params, value_and_backprop
from ..learning.backpropagation import rule_of
from .diagnosis.diagnosis import with_findings
from .diagnosis.finding import Finding, pairs
from .differences import in_words, side_by_side
from .excuses import excused
from .judge import both_sides, judged
from .oracles import slopes_by_differences
from .parts import Part, by_vjp, taken_apart
from .report import Report
from .widening import all_widened, cast, narrow_casts, x64_enabled

Tree = Any
NOT_THE_SAME = "what its rebuild makes of its parts is right, and so another layer than this one"


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
    judged too, with parts whose derivative is that of ``jax.vjp``; one that its ``rebuild`` does
    not make anew as it is, where nothing else is to blame, as it stands.

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
    x64 = x64_enabled()

    @jax.jit
    def by_hand(params, x, y):
        return sweep(params, x, y, key=key)[1]

    @jax.jit
    def by_jax(params, x, y):
        return reference.estimate(params, (), x, y, key)[1]

    with in_words(model.name):
        report = side_by_side(
            by_hand, by_jax, params, x, y, names=("by hand", "jax.grad"), title=title
        )
    evidence = None
    if not report.ok and not report.problems:
        evidence = Evidence.of(by_hand, by_jax, reference, (params, x, y), key, x64)
        report = evidence.excused(report)
    if parts is None:
        parts = not report.ok
    if not parts:
        return report if report.ok or evidence is None else evidence.explained(report)
    found = _parts(model, params, x, y, loss, key, x64, wrong=not report.ok)
    report = report._replace(parts=tuple(found))
    if any(not part.ok for part in found):
        return report._replace(findings=tuple(f for part in found for f in _placed(part)))
    return report if evidence is None else evidence.explained(report)


class Evidence(NamedTuple):
    """The gradient of a whole model in float64, from both sides.

    Attributes:
        given: (params, x, y) as they came, and
        wide: in float64.
        ours, theirs: the two sides in float64.
        value: the mean loss, of the floats of params in float64.
        tolerance: the share of a leaf that may be rounding.
        narrow: the narrower floats to which our side rounds.
    """

    given: tuple
    wide: tuple
    ours: Tree
    theirs: Tree
    value: Any
    tolerance: float
    narrow: tuple[str, ...]

    @classmethod
    def of(cls, by_hand, by_jax, reference: Rule, given: tuple, key: Any, x64: bool) -> Evidence:
        def value(params, x, y):
            return reference.estimate(params, (), x, y, key)[0]

        with jax.enable_x64(True):
            wide = tuple(cast(tree, np.float64) for tree in given)
            sides = all_widened((by_hand, by_jax, value), given, x64)
            ours, theirs = (jax.jit(side.call)(*wide) for side in sides[:2])

        def of_floats(floats):
            return sides[2].call(with_floats(wide[0], floats), *wide[1:])

        tolerance = max(sides[0].constants, *(side.tolerance for side in sides[1:]))
        narrow = narrow_casts(by_hand, given)
        return cls(given, wide, ours, theirs, of_floats, tolerance, narrow)

    def excused(self, report: Report) -> Report:
        """The report without rows that fail for an error of the automatic side."""
        with jax.enable_x64(True):
            return excused(
                report,
                self.theirs,
                lambda: self.ours,
                lambda: slopes_by_differences(self.value, floats_of(self.wide[0])),
            )[0]

    def explained(self, report: Report) -> Report:
        """The report with the mistakes that explain it."""
        if report.ok:
            return report
        params, x, _ = self.wide
        with jax.enable_x64(True):
            return with_findings(
                report._replace(findings=()),
                pairs(self.ours, self.theirs),
                {"x": jax.tree.leaves(x)[0], "": params},
                value=self.value,
                point=floats_of(params),
                tolerance=self.tolerance,
                narrow=self.narrow,
            )


def _placed(part: Report) -> list[Finding]:
    """A part's findings as those of the whole."""
    return [
        f._replace(
            leaves=tuple(f"{part.title} {leaf}" for leaf in f.leaves),
            statement=f"{part.title}: {f.statement}",
        )
        for f in part.findings
    ]


def _parts(model, params, x, y, loss, key, x64, wrong) -> list[Report]:
    """A report for each part and each combinator of the model, and for the loss.

    Where the whole is wrong and none of these is, also for the combinators that are to blame.
    """
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
    sides: dict[int, Any] = {}

    def judged_there(part, layer, more=""):
        if id(layer) not in sides:  # a part that is repeated is compiled once
            sides[id(layer)] = both_sides(layer, dtype)
        return judged(
            layer, part.params, part.x, part.delta, part.key,
            dtype=dtype, analytic=False, title=f"{part.place} {layer.name}".strip() + more,
            x64=x64, explain=with_findings, sides=sides[id(layer)],
        )  # fmt: skip

    found = [
        judged_there(part, part.layer, ", between its parts" if part.whole else "")
        for part in parts
    ]
    title = f"loss {loss.name}"
    found.append(
        judged(
            loss,
            loss_own,
            (prediction, y),
            share,
            None,
            dtype=dtype,
            analytic=False,
            title=title,
            x64=x64,
            explain=with_findings,
        )
    )
    if wrong and all(report.ok for report in found):
        found[-1:-1] = _as_they_stand(parts, judged_there)
    return found


def _as_they_stand(parts: list[Part], judged_there: Callable[..., Report]) -> list[Report]:
    """Reports of the innermost combinators whose own backward pass is wrong.

    ``rebuild`` makes another layer than one of them is, as where somebody replaced ``backward``
    alone: then what was made anew of right parts is right.
    """
    blamed: dict[str, Report] = {}
    for part in reversed(parts):  # what is inside of another comes before it
        inside = [at for at in blamed if at == part.place or at.startswith(f"{part.place}.")]
        if not part.whole or not part.place or inside:
            continue
        report = judged_there(part, part.own)
        if not report.ok:
            blamed[part.place] = report._replace(notes=(*report.notes, NOT_THE_SAME))
    return list(blamed.values())[::-1]


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
