"""Direct feedback alignment: the error of the output goes to every block at once."""

from __future__ import annotations

from ..core.combinators import joined_blocks
from ..core.layer import Layer, Shape
from ..core.loss import Loss
from ..core.rule import Rule
from ..core.sweep import checked_batch
from .backpropagation import rule_of
from .chain import activities, chain, check_example, check_shape, model_and_loss
from .direct import Feedback, along, flat, normal, output_error, roads, roads_due
from .state import check_state

NAME = "direct_feedback_alignment"


def direct_feedback_alignment(
    model: Layer, loss: Loss, shape: Shape, *, feedback: Feedback = normal
) -> Rule:
    """Direct feedback alignment: each block gets the output's error through a matrix of its own.

        backprop    δₗ = (δₗ₊₁ W) ⊙ φ′(aₗ)
        here        δₗ = (e Bₗ) ⊙ φ′(aₗ)      e = ∂L/∂prediction

    (Nøkland 2016, arXiv 1609.01596).  A block is a part of a ``serial`` that has parameters, with
    the parts behind it that have none; e Bₗ arrives at its output, and what is inside it is
    backprop.  The last block gets e itself.

    Args:
        model: a serial of two or more parametrised layers of any kind.
        loss: a loss without parameters.
        shape: of one example, as for ``init``.
        feedback: ``feedback(key, (K, *size)) -> b``, from the K numbers of e to a block's output;
            by default normal with variance 1/K.

    Returns:
        A :class:`~funcprop.Rule`; its state is a tuple with Bₗ (K, *size) for each block but the
        last.

    Raises:
        LayerError: for a loss with parameters and a ``shape`` that is none; in ``init``, when the
            model is one block, or ``feedback`` gives zeros or another shape; while tracing for a
            state of another rule or model and examples of another shape; and as the layers and the
            loss.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import direct_feedback_alignment, mean_squared_error, mlp
    >>> model = mlp((2, 5, 4, 3))
    >>> rule = direct_feedback_alignment(model, mean_squared_error, (2,))
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> state = rule.init(jax.random.key(1), params)
    >>> [b.shape for b in state]
    [(3, 5), (3, 4)]
    >>> _, tree, _ = rule.estimate(params, state, jnp.ones((4, 2)), jnp.ones((4, 3)), None)
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
        value, e, _ = output_error(loss, outputs[-1], y, sample_weight)
        deltas = [along(flat(e), b) for b in state]
        trees = [back(delta)[1] for back, delta in zip(backs, [*deltas, e], strict=True)]
        return value, joined_blocks(model, trees), state

    return rule_of(model, loss, init, estimate)
