"""Pooling over the nodes of a graph."""

from __future__ import annotations

import jax.numpy as jnp

from ..contraction import accumulated
from ..layer import Layer, gradient
from .graph import Graphs, check_reduce, shape_of_graph


def graph_pool(reduce: str = "mean") -> Layer:
    """One vector for each graph: the sum, mean or maximum over its nodes.

        forward     y  = Σᵢ xᵢ          Σᵢ xᵢ / N          maxᵢ xᵢ
        transport   δxᵢ = δ             δ/N                δ/n at the n nodes with xᵢ = y, else 0

    The input is (x, edges) or (x, edges, mask) as of :func:`graph_conv`, the output an array.
    x (B, N, d), y and δ (B, d).  i runs over the real nodes and N is their number; of no node at
    all y is 0.  Nodes that tie for the maximum share δ, as with ``jax.grad``.

    Args:
        reduce: ``"sum"``, ``"mean"`` or ``"max"``.

    Raises:
        LayerError: for another ``reduce``, and as :func:`graph_conv` for the input.

    >>> import jax.numpy as jnp
    >>> from funcprop import graph_pool
    >>> x, edges = jnp.array([[[4.0], [2.0], [8.0]]]), jnp.array([[[0, 1]]])
    >>> mask = jnp.array([[True, True, False]])
    >>> [graph_pool(how).apply((), (x, edges, mask)).item() for how in ("sum", "mean", "max")]
    [6.0, 3.0, 4.0]
    """
    check_reduce("graph_pool", reduce)

    def count(graphs, x):
        if graphs.mask is None:
            return x.shape[1]
        return jnp.maximum(jnp.sum(graphs.mask, axis=1), 1)[:, None].astype(x.dtype)

    def init(key, shape):
        return (), shape_of_graph("graph_pool", shape)[1:]

    def forward(params, x, key=None):
        graphs, x = Graphs.of("graph_pool", x), x[0]
        if reduce == "max":
            y = jnp.max(graphs.real(x, -jnp.inf), axis=1)
            if graphs.mask is not None:
                y = jnp.where(jnp.any(graphs.mask, axis=1)[:, None], y, jnp.zeros((), y.dtype))
        else:
            y = jnp.sum(accumulated(graphs.real(x)), axis=1)
            y = (y / count(graphs, y) if reduce == "mean" else y).astype(x.dtype)
        return graphs.sound(y), (x, y, graphs)

    def backward(weights, residuals, delta, statistic=gradient):
        x, y, graphs = residuals
        others = (None,) if graphs.mask is None else (None, None)
        if reduce == "max":
            largest = graphs.real((x == y[:, None]).astype(delta.dtype))
            delta_x = largest * (delta / jnp.maximum(jnp.sum(largest, axis=1), 1))[:, None]
        else:
            delta = (delta / count(graphs, delta) if reduce == "mean" else delta)[:, None]
            delta_x = graphs.real(jnp.broadcast_to(delta, x.shape))
        return (graphs.sound(delta_x), *others), ()

    return Layer(init, forward, backward, "graph_pool")
