"""How a rule's estimate stands to the gradient, along training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import LayerError
from ..core.contraction import accumulated
from ..core.layer import Layer
from ..core.loss import Loss
from ..core.rule import Rule
from ..core.sweep import value_and_backprop
from ..statistics.at_site import length
from .feedback import matrices
from .state import check_state

Tree = Any


def alignment(
    rule: Rule,
    model: Layer,
    loss: Loss,
    *,
    feedback: Callable[[Tree], Tree] | None = None,
) -> Callable[[Any, Tree], dict[str, jax.Array]]:
    """Metrics of a training: the angle between the rule's estimate and the gradient.

        angle = arccos (g·ĝ / ‖g‖‖ĝ‖), in degrees      ratio = ‖ĝ‖/‖g‖

    of all parameters together and for each layer; g is backprop's gradient of the same batch, with
    the same parameters and random numbers.  Both share the forward pass with the training step,
    which is compiled with them.

    Args:
        rule: the rule that is trained with, whose prediction is what the model computes.  That of
            :func:`~funcprop.equilibrium_propagation`, a network that settles, is another function,
            and its angle says little; :func:`~funcprop.forward_forward` gives its model another
            input, and has no angle.
        model: its model.
        loss: its loss.
        feedback: ``feedback(rule_state) -> tree`` shaped like the parameters with ``None`` where
            there is no feedback; then the angle and the ratio between B and W come too.  The state
            of ``feedback_alignment`` and ``weight_mirror`` is that tree, ``lambda state: state``;
            of ``kolen_pollack`` it is ``lambda state: state.feedback``.  That of ``sign_symmetry``
            is M, which is not what carries the error: leave the argument out.

    Returns:
        ``metrics(state, batch) -> {name: number}`` for :func:`~funcprop.update_step` and
        :func:`~funcprop.fit`: "angle", "ratio", and with a layer's place behind, as in "angle[0]",
        "feedback_angle[1]".  The angle is NaN where one of the two is 0.

    Raises:
        LayerError: while tracing, when what ``feedback`` gives is not shaped like the matrices.

    >>> import jax, jax.numpy as jnp, optax
    >>> import funcprop as fp
    >>> model, loss = fp.mlp((2, 3, 1)), fp.mean_squared_error
    >>> rule = fp.feedback_alignment(model, loss)
    >>> metrics = fp.alignment(rule, model, loss, feedback=lambda state: state)
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> _, history = fp.fit(rule, optax.sgd(0.1), params, (jnp.ones((4, 2)), jnp.ones((4, 1))),
    ...                     key=jax.random.key(1), steps=3, metrics=metrics)
    >>> len(history["angle[0]"]), history["angle[1]"][0] < 0.1
    (3, True)
    """
    sweep = value_and_backprop(model, loss)

    def metrics(state, batch):
        key = jax.random.fold_in(state.key, state.step)  # as the step itself does
        _, estimate, _ = rule.estimate(state.params, state.rule_state, *batch, key)
        try:
            _, due = sweep(state.params, *batch, key=key)
        except LayerError as error:
            raise LayerError(
                "alignment",
                f"the model itself cannot be run on the batch, for its gradient: {error}",
            ) from None
        found = _compared("", estimate, due)
        if feedback is not None:
            b, w = feedback(state.rule_state), matrices(state.params)
            check_state("alignment", b, w, "feedback")
            found |= _compared("feedback_", b, w)
        return found

    return metrics


def _compared(prefix: str, tree: Tree, due: Tree) -> dict[str, jax.Array]:
    places: dict[str, list[tuple[jax.Array, jax.Array]]] = {}
    paths = jax.tree_util.tree_flatten_with_path(due)[0]
    for (path, b), a in zip(paths, jax.tree.leaves(tree), strict=True):
        for place in {"", jax.tree_util.keystr(path[:-1])}:
            places.setdefault(place, []).append(accumulated((a, b)))
    found = {}
    for place, leaves in places.items():
        a, b = (
            length([leaf.reshape(-1, 1) for leaf in side])[0] for side in zip(*leaves, strict=True)
        )
        cosine = sum(jnp.vdot(p / a, q / b) for p, q in leaves)
        found[f"{prefix}angle{place}"] = jnp.degrees(jnp.arccos(jnp.clip(cosine, -1, 1)))
        found[f"{prefix}ratio{place}"] = a / b
    return found
