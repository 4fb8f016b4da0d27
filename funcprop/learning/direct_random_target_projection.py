"""Direct random target projection: the target goes to every block, before any error is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..core.checks import LayerError, is_inexact
from ..core.combinators import joined_blocks
from ..core.layer import Layer, Shape
from ..core.loss import Loss
from ..core.rule import Rule
from ..core.sweep import checked_batch
from .backpropagation import rule_of
from .chain import activities, chain, check_example, check_shape, model_and_loss, weighted
from .direct import Feedback, along, flat, normal, output_error, roads, roads_due
from .state import check_state

NAME = "direct_random_target_projection"


def direct_random_target_projection(
    model: Layer, loss: Loss, shape: Shape, *, feedback: Feedback = normal
) -> Rule:
    """Direct random target projection: each block gets the target through a random matrix.

        δₗ = (y* Bₗ / B) ⊙ φ′(aₗ)      y* the target, of a label its one-hot vector

    (Frenkel 2021, arXiv 1909.01311).  No block but the last needs the output, so that it may be
    updated in the forward pass already.  1/B stands for the mean over the batch, in its place the
    examples' shares where there are sample weights; blocks are those of
    :func:`~funcprop.direct_feedback_alignment`, and the last one gets its true error.

    Args:
        model: a serial of two or more parametrised layers, its prediction one array (B, ..., K).
        loss: a loss without parameters, of labels (B, ...) or targets (B, ..., K).
        shape: of one example, as for ``init``.
        feedback: as of :func:`~funcprop.direct_feedback_alignment`.

    Returns:
        A :class:`~funcprop.Rule`; its state is a tuple with Bₗ (K, *size) for each block but the
        last.

    Raises:
        LayerError: as :func:`~funcprop.direct_feedback_alignment`, and when the target is neither
            labels nor shaped like the prediction.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import direct_random_target_projection, mlp, softmax_cross_entropy
    >>> model = mlp((2, 5, 3))
    >>> rule = direct_random_target_projection(model, softmax_cross_entropy(), (2,))
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> state = rule.init(jax.random.key(1), params)
    >>> _, tree, _ = rule.estimate(params, state, jnp.ones((2, 2)), jnp.array([0, 2]), None)
    >>> tree[0]["w"].shape
    (5, 2)
    """
    model, loss = model_and_loss(NAME, model, loss)
    check_shape(NAME, shape)

    def init(key, params):
        return roads(NAME, model, shape, feedback, key, params)

    def estimate(params, state, x, y, key, sample_weight=None):
        x, _ = checked_batch(x, y)
        check_example(NAME, shape, x)
        outputs, backs = activities(chain(NAME, model, params, key), x)
        check_state(NAME, state, roads_due(outputs))
        value, e, share = output_error(loss, outputs[-1], y, sample_weight)
        target = flat(_target(outputs[-1], y))
        deltas = [along(weighted(share, target), b) for b in state]
        trees = [back(delta)[1] for back, delta in zip(backs, [*deltas, e], strict=True)]
        return value, joined_blocks(model, trees), state

    return rule_of(model, loss, init, estimate)


def _target(prediction: jax.Array, y: jax.Array) -> jax.Array:
    """y shaped like the prediction."""
    shape = jnp.shape(prediction)
    if is_inexact(y) and jnp.shape(y) == shape:
        return jnp.asarray(y).astype(prediction.dtype)
    if shape and not is_inexact(y) and jnp.shape(y) == shape[:-1]:
        return jax.nn.one_hot(y, shape[-1], dtype=prediction.dtype)
    raise LayerError(
        NAME,
        f"the target is {jnp.result_type(y)}{list(jnp.shape(y))}, labels {list(shape[:-1])} or "
        f"floats {list(shape)} are due",
    )
