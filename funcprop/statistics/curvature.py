"""Curvature by the sweep: other errors are sent back than the loss's derivative.

With Hᵢ = Σₖ sᵢₖ sᵢₖᵀ the Hessian of an example's own loss by its prediction, Jᵢ = ∂pᵢ/∂θ, and
uᵢₖ = Jᵢᵀ sᵢₖ what a sweep makes of the error sᵢₖ, the generalised Gauss-Newton matrix of the mean
loss is

    G = 1/B Σᵢ Jᵢᵀ Hᵢ Jᵢ = 1/B Σᵢₖ uᵢₖ uᵢₖᵀ

(Schraudolph 2002; Dangel 2020, arXiv 1912.10985, section 2).  Which errors are sent is an argument:
:func:`exact` all columns of a root of Hᵢ, :func:`sampled` random ones with Hᵢ as their second
moment, :func:`empirical` the loss's derivative, whose matrix is the empirical Fisher information.
Of a loss that is the negative log-likelihood of one target an example G is the Fisher information
1/B Σᵢ E[gᵢ gᵢᵀ] (Martens 2020, arXiv 1412.1193, section 9.2); of one that is a mean Σₖ sₖ ℓₖ over
tokens or outputs the Fisher information has sₖ² where G has sₖ (see :mod:`funcprop.losses`), and of
n terms of share 1/n it is G/n.  A loss's own parameters count as fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..core.checks import LayerError, as_layer, check_count
from ..core.contraction import accumulated
from ..core.layer import Layer
from ..core.loss import Loss, as_loss
from ..core.sweep import checked_batch, forward_pass
from .at_site import squared_norm
from .derivatives import hessian_vector_product
from .errors import Errors, empirical, exact, summed
from .gradient_moments import squares
from .statistic import Statistic, added, map_sites

Tree = Any
Array = jax.Array


class Trace(NamedTuple):
    """tr G.

    Attributes:
        total: a number, over all of the model's parameters.
        sites: a tree with a number for each site; with axes (n,) inside ``repeat``.
    """

    total: Array
    sites: Tree


def ggn_diagonal(model: Layer, loss: Loss, errors: Errors = exact) -> Callable[..., Tree]:
    """The diagonal of G, 1/B Σᵢₖ uᵢₖ².

    Args:
        model: the model, a layer.
        loss: the loss, convex in the prediction.
        errors: :func:`exact` or :func:`sampled`.

    Returns:
        ``f(params, x, y, *, weights=None, key=None) -> tree``, shaped like the model's parameters.

    Raises:
        LayerError: for layers that mix examples, and as :func:`~funcprop.value_and_backprop`.

    >>> import jax.numpy as jnp
    >>> from funcprop import dense, mean_squared_error
    >>> from funcprop.statistics import ggn_diagonal
    >>> params = {"w": jnp.array([[1.0, 2.0]]), "b": jnp.zeros(1)}
    >>> f = ggn_diagonal(dense(1), mean_squared_error)
    >>> found = f(params, jnp.array([[3.0, 1.0], [1.0, 0.0]]), jnp.zeros((2, 1)))
    >>> [f"{value:.2f}" for value in (*found["w"][0], *found["b"])]  # 2 x² in the mean
    ['10.00', '1.00', '2.00']
    """
    swept = _swept(model, loss, errors, "diagonals", squares)

    def f(params, x, y, *, weights=None, key=None):
        found, size = swept(params, x, y, weights, key)
        return map_sites(lambda at: jax.tree.map(lambda leaf: leaf / size, at.piece), found)

    return f


def ggn_trace(model: Layer, loss: Loss, errors: Errors = exact) -> Callable[..., Trace]:
    """The trace of G, 1/B Σᵢₖ ‖uᵢₖ‖²: squared norms, so that no uᵢₖ is formed where that is dearer.

    Args:
        model: the model, a layer.
        loss: the loss, convex in the prediction.
        errors: :func:`exact` or :func:`sampled`.

    Returns:
        ``f(params, x, y, *, weights=None, key=None) -> Trace``.

    Raises:
        LayerError: for layers that mix examples, and as :func:`~funcprop.value_and_backprop`.

    >>> import jax.numpy as jnp
    >>> from funcprop import dense, mean_squared_error
    >>> from funcprop.statistics import ggn_trace
    >>> params = {"w": jnp.array([[1.0, 2.0]]), "b": jnp.zeros(1)}
    >>> f = ggn_trace(dense(1), mean_squared_error)
    >>> round(float(f(params, jnp.array([[3.0, 1.0], [1.0, 0.0]]), jnp.zeros((2, 1))).total), 3)
    13.0
    """

    def mean_square(site, inputs, delta):
        return jnp.mean(squared_norm(site, inputs, delta))

    swept = _swept(model, loss, errors, "traces", mean_square)

    def f(params, x, y, *, weights=None, key=None):
        found, _ = swept(params, x, y, weights, key)
        return Trace(added(found, 0), map_sites(lambda at: at.piece, found))

    return f


def fisher_diagonal(model: Layer, loss: Loss, errors: Errors = exact) -> Callable[..., Tree]:
    """The diagonal of the Fisher information, 1/B Σᵢ E[gᵢ²] over targets drawn from the model.

    gᵢ is the gradient of an example's own loss.  Of a mean over n tokens or outputs that is
    ``ggn_diagonal`` divided by n, of n = 1 both are the same.

    Args:
        model: the model, a layer.
        loss: a loss that is a negative log-likelihood; with :func:`empirical`, any loss.
        errors: :func:`exact`, :func:`sampled`, or :func:`empirical`, where gᵢ is the gradient at
            the data's own targets; all three are of one scale.

    Returns:
        ``f(params, x, y, *, weights=None, key=None) -> tree``, shaped like the model's parameters.

    Raises:
        LayerError: for a loss that is no likelihood, for layers that mix examples, and as
            :func:`~funcprop.value_and_backprop`.

    >>> import jax.numpy as jnp
    >>> from funcprop import dense, huber, sigmoid_cross_entropy
    >>> from funcprop.statistics import empirical, exact, fisher_diagonal
    >>> params, x = {"b": jnp.zeros(1), "w": jnp.zeros((1, 1))}, jnp.ones((1, 1))
    >>> f, own = (fisher_diagonal(dense(1), sigmoid_cross_entropy, e) for e in (exact, empirical))
    >>> both = [own(params, x, jnp.full((1, 1), target))["b"][0] for target in (0.0, 1.0)]
    >>> float(f(params, x, jnp.zeros((1, 1)))["b"][0]), float(sum(both) / 2)  # equally likely
    (0.25, 0.25)
    >>> fisher_diagonal(dense(1), huber())
    Traceback (most recent call last):
        ...
    funcprop.LayerError: huber: it is no likelihood, from which targets could be drawn, as \
with label smoothing or a term added none is; take errors=empirical, or ggn_diagonal
    """
    loss = as_loss(loss)
    if errors is not empirical and not loss.likelihood:
        raise LayerError(
            loss.name,
            "it is no likelihood, from which targets could be drawn, as with label smoothing or a "
            "term added none is; take errors=empirical, or ggn_diagonal",
        )
    root, sample = _by_share(loss, loss.root), _by_share(loss, loss.sample)
    return ggn_diagonal(model, loss._replace(root=root, sample=sample), errors)


def _by_share(loss: Loss, columns: Any) -> Any:
    """Columns of E[∂ℓ ∂ℓᵀ] = Σₖ sₖ² Hₖ, made of those of the Hessian Σₖ sₖ Hₖ."""
    terms = loss.terms
    if columns is None or terms is None:
        return columns

    def of_terms(*args):  # the residuals come last
        def scaled(column, share):
            return (jnp.sqrt(accumulated(share)) * accumulated(column)).astype(column.dtype)

        return jax.tree.map(scaled, columns(*args), terms(args[-1]))

    return of_terms


def hessian_diagonal(model: Layer, loss: Loss, samples: int) -> Callable[..., Tree]:
    """An unbiased estimate of the Hessian's diagonal, the mean of v ⊙ H v over random signs v.

    Hutchinson's estimator (Bekas 2007, Applied Numerical Mathematics 57, section 2).  Its variance
    at parameter j is Σ Hⱼₖ²/samples over k ≠ j.

    Args:
        model: the model, a layer.
        loss: the loss.
        samples: how many v are drawn.

    Returns:
        ``f(params, x, y, *, key) -> tree``, shaped like the parameters; ``key`` draws v, and
        another one made of it is the model's.

    Raises:
        LayerError: as :func:`~funcprop.value_and_backprop`.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import dense, mean_squared_error
    >>> from funcprop.statistics import hessian_diagonal
    >>> params = {"w": jnp.array([[1.0]])}
    >>> f = hessian_diagonal(dense(1, bias=False), mean_squared_error, samples=3)
    >>> f(params, jnp.array([[3.0]]), jnp.zeros((1, 1)), key=jax.random.key(0))["w"].tolist()
    [[18.0]]
    """
    check_count("hessian_diagonal", "samples", samples)
    product = hessian_vector_product(model, loss)

    def f(params, x, y, *, key):
        signs_key, model_key = jax.random.split(key)

        def one(total, key):
            vector = optax.tree.random_like(key, params, jax.random.rademacher)
            found = product(params, x, y, vector, key=model_key)
            wide = accumulated((vector, found))
            return jax.tree.map(lambda t, v, h: t + v * h, total, *wide), None

        zeros = accumulated(jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(one, zeros, jax.random.split(signs_key, samples))
        return jax.tree.map(lambda t, like: (t / samples).astype(like.dtype), total, params)

    return f


def _swept(model: Layer, loss: Loss, errors: Errors, name: str, at_site: Any) -> Callable[..., Any]:
    """The sum of a piece over all errors, one sweep after the other, and the batch size."""
    model, loss = as_layer(model, "model"), as_loss(loss)
    statistic = Statistic(name, at_site, lambda found, size: found)

    def run(params, x, y, weights, key):
        x, size = checked_batch(x, y)
        losses, back = forward_pass(model, loss, params, x, y, weights=weights, key=key)
        columns = errors(loss, back, losses, key)

        return summed(lambda delta: back.from_prediction(delta, statistic.at)[1], columns), size

    return run
