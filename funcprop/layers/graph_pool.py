"""Pooling over the nodes of a graph."""

from __future__ import annotations

import jax.numpy as jnp

from ..core.contraction import accumulated
from ..core.layer import Layer
from ..core.site import gradient
from .graph import check_graphs, check_reduce, real, shape_of_graph
from .shape import Example


def graph_pool(reduce: str = "mean") -> Layer:
    """One vector for each graph: the sum, mean or maximum over its nodes.

        forward     y  = Σᵢ xᵢ          Σᵢ xᵢ / N          maxᵢ xᵢ
        transport   δxᵢ = δ             δ/N                δ/n at the n nodes with xᵢ = y, else 0

    The input is (x, edges) or (x, edges, mask) as of :func:`graph_conv`, the output an array; the
    edges are not looked at.  x (B, N, d), y and δ (B, d).  i runs over the real nodes and N is
    their number; of no node at all y is 0.  Nodes that tie for the maximum share δ, as with
    ``jax.grad``.

    Args:
        reduce: ``"sum"``, ``"mean"`` or ``"max"``.

    Raises:
        LayerError: for another ``reduce``, and while tracing when shapes and dtypes do not fit.

    >>> import jax.numpy as jnp
    >>> from funcprop import graph_pool
    >>> x, edges = jnp.array([[[4.0], [2.0], [8.0]]]), jnp.array([[[0, 1]]])
    >>> mask = jnp.array([[True, True, False]])
    >>> [graph_pool(how).apply((), (x, edges, mask)).item() for how in ("sum", "mean", "max")]
    [6.0, 3.0, 4.0]
    """
    check_reduce("graph_pool", reduce)

    def count(nodes, mask, like):
        dtype = accumulated(like).dtype
        if mask is None:
            return jnp.full((1, 1), nodes, dtype)
        return jnp.maximum(jnp.sum(mask, axis=1), 1)[:, None].astype(dtype)

    def init(key, shape):
        return (), shape_of_graph("graph_pool", shape)[1:]

    def forward(params, x, key=None):
        check_graphs("graph_pool", x)
        x, _, mask = (*x, None) if len(x) == 2 else x
        if reduce == "max":
            y = jnp.max(real(x, mask, -jnp.inf), axis=1)
            if mask is not None:
                y = jnp.where(jnp.any(mask, axis=1)[:, None], y, jnp.zeros((), y.dtype))
        else:
            y = jnp.sum(accumulated(real(x, mask)), axis=1)
            y = (y / count(x.shape[1], mask, x) if reduce == "mean" else y).astype(x.dtype)
        return y, ((x, y) if reduce == "max" else Example(x.shape[1:]), mask)

    def backward(weights, residuals, delta, statistic=gradient):
        kept, mask = residuals
        each = accumulated(delta)[:, None]
        if reduce == "max":
            x, y = kept
            largest = real(accumulated((x == y[:, None]).astype(x.dtype)), mask)
            each = each / jnp.maximum(jnp.sum(largest, axis=1, keepdims=True), 1) * largest
        else:
            each = each / count(kept.shape[0], mask, delta)[:, None] if reduce == "mean" else each
            each = real(jnp.broadcast_to(each, (len(delta), *kept.shape)), mask)
        delta_x = each.astype(delta.dtype)
        return (delta_x, None) if mask is None else (delta_x, None, None), ()

    return Layer(init, forward, backward, "graph_pool")
