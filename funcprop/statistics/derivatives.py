"""Derivatives of more than one number, and of the sweep itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import LayerError, as_layer, floats_of, is_inexact, with_floats
from ..core.contraction import by_example
from ..core.layer import Layer
from ..core.loss import Loss, as_loss
from ..core.site import gradient
from ..core.sweep import checked_batch, forward_pass, split_params, value_and_backprop
from .at_site import each_gradient
from .statistic import Statistic, examples_first

Tree = Any


class Jacobian(NamedTuple):
    """Derivatives of every example's outputs.

    Attributes:
        params: by the parameters, (B, *out) in front of each leaf's axes.
        x: by the inputs, (B, *out) in front of each input's axes; ``None`` at integers.
    """

    params: Tree
    x: Tree


def jacobian(model: Layer) -> Callable[..., Jacobian]:
    """The derivatives of each output of each example, by its inputs and by the parameters.

    One forward pass, and a sweep for each output, which sends a row of the identity back.

    Args:
        model: a layer whose output is one array (B, *out).

    Returns:
        ``f(params, x, *, weights=None, key=None) -> Jacobian``.  Under ``jax.jit`` what is not
        used of it is not computed.

    Raises:
        LayerError: for layers that mix examples, for a model with several outputs, and as the
            model itself.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import dense
    >>> from funcprop.statistics import jacobian
    >>> params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.zeros(2)}
    >>> found = jacobian(dense(2))(params, jnp.array([[5.0, 6.0]]))
    >>> found.x.tolist(), found.params["w"].shape, found.params["w"][0, 1].tolist()
    ([[[1.0, 2.0], [3.0, 4.0]]], (1, 2, 2, 2), [[0.0, 0.0], [5.0, 6.0]])
    """
    model = as_layer(model, "model")
    each = Statistic("jacobians", each_gradient, lambda found, size: examples_first(found))

    def f(params, x, *, weights=None, key=None):
        x, size = checked_batch(x, x)
        y, residuals = model.forward(params, x, key)
        if not hasattr(y, "shape") or not is_inexact(y):
            raise LayerError("jacobian", "the model's output is no array of floats; pick one")
        out = y.shape[1:]

        def swept(y, carriers, residuals):
            columns = jnp.eye(math.prod(out), dtype=y.dtype).reshape(-1, 1, *out)

            def sweep(column):
                delta = jnp.zeros_like(y) + column
                delta_x, found = model.backward(carriers, residuals, delta, each.at)
                return delta_x, each.finish(found, size)

            # (B, K, ...) for K outputs.
            found = jax.vmap(sweep, out_axes=1)(columns)
            return jax.tree.map(lambda leaf: leaf.reshape(size, *out, *leaf.shape[2:]), found)

        by_x, by_params = by_example(swept, y, params if weights is None else weights, residuals)
        return Jacobian(by_params, by_x)

    return f


def saliency(model: Layer, loss: Loss) -> Callable[..., Tree]:
    """∂ℓᵢ/∂xᵢ: how each number of an input would change its example's own loss.

    Simonyan 2013, arXiv 1312.6034, section 3 (of the loss in place of a class score).

    Args:
        model: the model, a layer.
        loss: the loss.

    Returns:
        ``f(params, x, y, *, weights=None, key=None) -> delta_x``, shaped like x, ``None`` at
        integers.  Of an embedding's ids it is ``None``: look at the layers behind it.

    Raises:
        LayerError: for layers that mix examples, and as :func:`~funcprop.value_and_backprop`.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import dense, mean_squared_error
    >>> from funcprop.statistics import saliency
    >>> params = {"w": jnp.array([[1.0, 2.0]]), "b": jnp.zeros(1)}
    >>> f = saliency(dense(1), mean_squared_error)
    >>> f(params, jnp.array([[1.0, 1.0]]), jnp.array([[2.0]])).tolist()
    [[2.0, 4.0]]
    """
    model, loss = as_layer(model, "model"), as_loss(loss)
    nothing = Statistic("saliencies", lambda site, inputs, delta: (), lambda found, size: ())

    def f(params, x, y, *, weights=None, key=None):
        x, _ = checked_batch(x, y)
        losses, back = forward_pass(model, loss, params, x, y, weights=weights, key=key)
        return back.from_losses(jnp.ones_like(losses), nothing.at)[0]

    return f


def hessian_vector_product(model: Layer, loss: Loss) -> Callable[..., Tree]:
    """H v, H the Hessian of the mean loss by the parameters.

    The sweep differentiated forward along v (Pearlmutter 1994, Neural Computation 6, eq. 3.4):

        H v = ∂/∂r ∇L(θ + r v) at r = 0

    Args:
        model: the model, a layer.
        loss: the loss.

    Returns:
        ``f(params, x, y, vector, *, sample_weight=None, key=None) -> tree``; ``vector`` and the
        result are shaped like the parameters.

    Raises:
        LayerError: as :func:`~funcprop.value_and_backprop`.
        TypeError: when ``vector`` is not shaped like the parameters.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import dense, mean_squared_error
    >>> from funcprop.statistics import hessian_vector_product
    >>> params = {"w": jnp.array([[1.0, 2.0]]), "b": jnp.zeros(1)}
    >>> vector = {"w": jnp.array([[1.0, 0.0]]), "b": jnp.zeros(1)}
    >>> f = hessian_vector_product(dense(1), mean_squared_error)
    >>> product = f(params, jnp.array([[3.0, 1.0]]), jnp.array([[2.0]]), vector)
    >>> product["w"].tolist(), product["b"].tolist()
    ([[18.0, 6.0]], [6.0])
    """
    sweep = value_and_backprop(model, loss)

    def f(params, x, y, vector, *, sample_weight=None, key=None):
        def grads(params):
            return sweep(params, x, y, sample_weight=sample_weight, key=key)[1]

        return jax.jvp(grads, (params,), (vector,))[1]

    return f


def gauss_newton_vector_product(model: Layer, loss: Loss) -> Callable[..., Tree]:
    """G v, G the generalised Gauss-Newton matrix of the mean loss by the model's parameters.

        G v = 1/B Σᵢ Jᵢᵀ Hᵢ Jᵢ v      Jᵢ = ∂pᵢ/∂θ, Hᵢ the Hessian of ℓᵢ by the prediction pᵢ

    Forward along v, through the loss's own derivative, and one sweep back (Schraudolph 2002,
    Neural Computation 14, section 3).  A loss's own parameters count as fixed.

    Args:
        model: the model, a layer.
        loss: a loss, convex in the prediction.

    Returns:
        ``f(params, x, y, vector, *, key=None) -> tree``; ``vector`` and the result are shaped like
        the model's parameters.

    Raises:
        LayerError: as :func:`~funcprop.value_and_backprop`.
        TypeError: when ``vector`` is not shaped like the model's parameters.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import dense, mean_squared_error
    >>> from funcprop.statistics import gauss_newton_vector_product
    >>> params = {"w": jnp.array([[1.0, 2.0]]), "b": jnp.zeros(1)}
    >>> vector = {"w": jnp.array([[1.0, 0.0]]), "b": jnp.zeros(1)}
    >>> f = gauss_newton_vector_product(dense(1), mean_squared_error)
    >>> product = f(params, jnp.array([[3.0, 1.0]]), jnp.array([[2.0]]), vector)
    >>> product["w"].tolist(), product["b"].tolist()  # H and G are equal for a linear model
    ([[18.0, 6.0]], [6.0])
    """
    model, loss = as_layer(model, "model"), as_loss(loss)

    def f(params, x, y, vector, *, key=None):
        x, size = checked_batch(x, y)
        own, loss_own = split_params(loss, params)

        def predicted(own):
            return floats_of(model.apply(own, x, key))

        losses, back = forward_pass(model, loss, params, x, y, weights=None, key=key)
        _, tangent = jax.jvp(predicted, (own,), (vector,))

        def slope(floats):
            prediction = with_floats(back.prediction, floats)
            _, residuals = loss.forward(loss_own, (prediction, y))
            (delta, _), _ = loss.backward(loss_own, residuals, jnp.full_like(losses, 1 / size))
            return delta

        _, bent = jax.jvp(slope, (floats_of(back.prediction),), (tangent,))
        return back.from_prediction(bent, gradient)[1]

    return f
