"""What a loss is: a layer on (prediction, target), and its curvature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .checks import LayerError

Tree = Any
Array = jax.Array


class Loss(NamedTuple):
    """A :class:`~funcprop.Layer` on (prediction, target), and its curvature.

    Attributes:
        init: as of a layer; ``shape`` is the pair of the prediction's and the target's.
        forward: ``forward(params, (prediction, target), key=None) -> losses (B,), residuals``.
        backward: ``backward(weights, residuals, delta, statistic=gradient) ->
            (delta_prediction, delta_target), tree`` with delta (B,).
        root: ``root(residuals) -> (K, *prediction.shape)``, a square root of the Hessian; ``None``
            where there is none, and then :func:`~funcprop.statistics.exact` errors say so.
        sample: ``sample(key, residuals) -> (*prediction.shape,)``, a random column of it, with mean
            0; ``None`` as for ``root``, and :func:`~funcprop.statistics.sampled` errors.
        name: what errors call it.
        parts, rebuild: as of a layer.
        likelihood: whether ℓ = Σₖ sₖ ℓₖ, each ℓₖ the negative log-likelihood of a target up to a
            constant, independent of the others.  ``sample`` is then Σₖ √sₖ ∂ℓₖ at targets drawn
            from the model.
        terms: ``terms(residuals) -> s``, the shares sₖ, broadcastable to the prediction; ``None``
            for one term of share 1.
    """

    init: Callable[..., tuple[Tree, Any]]
    forward: Callable[..., tuple[Array, Tree]]
    backward: Callable[..., tuple[Tree, Tree]]
    root: Callable[[Tree], Array] | None = None
    sample: Callable[[Array, Tree], Array] | None = None
    name: str = ""
    parts: tuple = ()
    rebuild: Callable | None = None
    likelihood: bool = False
    terms: Callable[[Tree], Array] | None = None

    def apply(self, params: Tree, x: Tree, key: Array | None = None) -> Array:
        """The losses (B,) without residuals; ``x`` is (prediction, target)."""
        return self.forward(params, x, key)[0]

    def __call__(self, *args: Any, **options: Any) -> Any:
        """A loss is not called; raises an error that says what to do instead."""
        raise LayerError(
            self.name or "loss",
            "it is a Loss already, and not a function to call; give it as it is, as in "
            "value_and_backprop(model, loss), or use loss.apply((), (prediction, target))",
        )


def no_parameters(key: Array | None, shape: Any) -> tuple[tuple[()], tuple[()]]:
    """``init`` of a loss without parameters."""
    return (), ()


def has_parameters(loss: Loss) -> bool:
    """Whether ``loss.init`` gives parameters; nothing is computed."""
    if loss.init is no_parameters:  # spares the trace
        return False
    structs = jax.ShapeDtypeStruct((1,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    try:
        params = jax.eval_shape(lambda key: loss.init(key, structs)[0], jax.random.key(0))
    except Exception:  # it reads the shapes, as only an init that makes arrays must
        return True
    return bool(jax.tree.leaves(params))


def as_loss(loss: Any) -> Loss:
    """``loss`` itself if it is one, else an error that says what to do."""
    if all(hasattr(loss, attribute) for attribute in ("forward", "backward", "root", "sample")):
        return loss
    name = getattr(loss, "__name__", None) or getattr(loss, "name", None) or repr(loss)
    advice = f"it is a {type(loss).__name__}"
    if hasattr(loss, "backward") and hasattr(loss, "apply"):
        advice += (
            "; the model stands in front of the loss.  A layer on (prediction, target) that gives "
            "(B,) becomes a loss by Loss(layer.init, layer.forward, layer.backward)"
        )
    elif callable(loss) and getattr(loss, "__module__", "").startswith("funcprop."):
        advice = f"it is a constructor, call it: {name}()"
    elif callable(loss):
        advice = (
            "it is a bare function; use a loss of funcprop (mean_squared_error, "
            "softmax_cross_entropy(), ...), or write Loss(no_parameters, forward, backward), or "
            "for a prototype let jax.vjp differentiate f(params, (prediction, target)) -> (B,): "
            "Loss(*function(f, no_parameters)[:3])"
        )
    raise LayerError("loss", f"{name} is not a Loss: {advice}")
