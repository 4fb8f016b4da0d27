"""Message passing along the edges of a graph, with any layers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import LayerError, as_layer, check_float, position
from ..core.contraction import accumulated
from ..core.layer import Layer, is_shape
from ..core.site import gradient
from .graph import Graphs, added, check_reduce, shape_of_graph, taken

NAME = "message_passing"


def message_passing(
    message: Layer,
    update: Layer | None = None,
    *,
    reduce: str = "sum",
    edge_features: bool = False,
) -> Layer:
    """Messages along all edges, reduced at their targets (Gilmer 2017, arXiv 1704.01212, 1 and 2).

        forward     mₑ = f(xₛ, xₜ) for every edge e from s to t
                    rᵢ = Σ mₑ, their mean or their maximum, over the edges into i
                    y  = r, or with an update g(x, r)
        transport   δ through g to (δx, δr), then δmₑ = δrₜ for the sum, δrₜ/n for the mean of n,
                    δrₜ/n for the n messages that are the maximum, else 0, and through f to
                    (δxₛ, δxₜ), which are added to δx at s and at t
        gradient    those of f, of all edges, and of g

    The input is (x, edges) or (x, edges, mask) as of :func:`graph_conv`, and with
    ``edge_features`` (x, edges, features) or (x, edges, features, mask); what stands beside x
    comes out beside y.  x (B, N, d), features (B, E, k), r (B, N, m).  f takes the tuple (xₛ, xₜ),
    each (B, E, d), or (xₛ, xₜ, features), and gives (B, E, m): say
    ``serial(concatenate, dense(8, relu))``.  g takes the tuple (x, r).  A node without edges into
    it has r = 0, whatever ``reduce`` is.  Messages that tie for the maximum share δ, as
    with ``jax.grad``.  f sees zeros in place of an edge that is padding, and takes no delta there.

    Args:
        message: f, any layer on such a tuple.
        update: g, any layer on the tuple (x, r); ``None`` for y = r.
        reduce: ``"sum"``, ``"mean"`` or ``"max"``.
        edge_features: whether the input has features of the edges.

    Params and tree are the pair of f's and g's.

    Raises:
        LayerError: for another ``reduce`` and what is no Layer; when f or g does not give vectors,
            one an edge or node; and as :func:`graph_conv` for the input.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import message_passing, pick
    >>> x, edges = jnp.array([[[4.0], [2.0], [8.0]]]), jnp.array([[[0, 2], [1, 2]]])
    >>> [message_passing(pick(0), reduce=how).apply(((), ()), (x, edges))[0].ravel().tolist()
    ...  for how in ("sum", "mean", "max")]
    [[0.0, 0.0, 6.0], [0.0, 0.0, 3.0], [0.0, 0.0, 4.0]]
    """
    message = as_layer(message, f"{NAME} message")
    update = None if update is None else as_layer(update, f"{NAME} update")
    check_reduce(NAME, reduce)

    def init(key, shape):
        nodes, size = shape_of_graph(NAME, shape, edge_features)
        x, edges, keys = shape[0], shape[1], jax.random.split(key)
        ends = jax.ShapeDtypeStruct((edges.shape[0], size), x.dtype)
        with position("message"):
            own, out = message.init(keys[0], (ends, ends, *shape[2 : 2 + edge_features]))
        width, params = _width("message", out, edges.shape[0]), (own, ())
        if update is not None:
            reduced = jax.ShapeDtypeStruct((nodes, width), x.dtype)
            with position("update"):
                other, out = update.init(keys[1], (x, reduced))
            width, params = _width("update", out, nodes), (own, other)
        return params, (jax.ShapeDtypeStruct((nodes, width), x.dtype), *shape[1:])

    def forward(params, x, key=None):
        graphs, (x, *others) = Graphs.of(NAME, x, edge_features), x
        if not isinstance(params, (tuple, list)) or len(params) != 2:
            raise LayerError(NAME, "params is no pair (message's, update's); see init")
        keys = (None, None) if key is None else jax.random.split(key)
        x = graphs.real(x)
        seen = (taken(x, graphs.source), taken(x, graphs.target), *others[1 : 1 + edge_features])
        seen = tuple(graphs.joining(leaf) for leaf in seen)
        with position("message"):
            messages, kept = message.forward(params[0], seen, keys[0])
        _check_vectors("message", messages, graphs.source)
        r, most = _reduced(reduce, messages, graphs, x.shape[1])
        y, kept_update = r, None
        if update is not None:
            with position("update"):
                y, kept_update = update.forward(params[1], (x, r), keys[1])
            _check_vectors("update", y, x[..., 0])
            y = graphs.sound(y)
        return (graphs.real(y), *others), (kept, kept_update, most, graphs)

    def backward(weights, residuals, delta, statistic=gradient):
        kept, kept_update, most, graphs = residuals
        delta, *others = delta
        start, delta_r, tree = None, graphs.real(delta), ()
        if update is not None:
            with position("update"):
                made = update.backward(weights[1], kept_update, delta_r, statistic)
            (start, delta_r), tree = made
            start = accumulated(graphs.sound(start))
        delta_m = _delta_of_messages(reduce, delta_r, most, graphs)
        with position("message"):
            deltas, own = message.backward(weights[0], kept, delta_m, statistic)
        source, target, *features = accumulated(deltas)
        start = graphs.start(source, delta.shape[1]) if start is None else start
        delta_x = added(added(start, graphs.source, source), graphs.target, target)
        others[1 : 1 + edge_features] = [
            d + graphs.sound(graphs.joining(f)).astype(d.dtype)
            for d, f in zip(others[1 : 1 + edge_features], features, strict=True)
        ]
        return (delta_x.astype(delta.dtype), *others), (own, tree)

    def rebuild(parts):
        return message_passing(*parts, reduce=reduce, edge_features=edge_features)

    parts = (message,) if update is None else (message, update)
    places = ("message", "update")[: len(parts)]
    return Layer(init, forward, backward, NAME, parts, rebuild, places=places)


def _reduced(reduce: str, m: jax.Array, graphs: Graphs, nodes: int) -> tuple[jax.Array, Any]:
    """r, and what is kept of it."""
    if reduce == "max":
        none = (graphs.counts(nodes) == 0)[..., None]
        largest = added(graphs.start(m, nodes, -jnp.inf), graphs.target, m, most=True)
        return jnp.where(none, graphs.start(m, nodes), largest), (m, largest)
    wide = accumulated(m)
    r = added(graphs.start(wide, nodes), graphs.target, wide)
    count = None
    if reduce == "mean":
        count = jnp.maximum(graphs.counts(nodes), 1)[..., None].astype(wide.dtype)
        r = r / count
    return r.astype(m.dtype), count


def _delta_of_messages(reduce: str, delta_r: jax.Array, kept: Any, graphs: Graphs) -> jax.Array:
    """δm from δr, 0 on padding."""
    if reduce == "max":
        m, largest = kept
        ties = m == taken(largest, graphs.target)
        one = accumulated(ties.astype(m.dtype))
        n = jnp.maximum(added(graphs.start(one, delta_r.shape[1]), graphs.target, one), 1)
        share = (accumulated(delta_r) / n).astype(m.dtype)
        delta_m = jnp.where(ties, taken(share, graphs.target), jnp.zeros((), m.dtype))
        return graphs.joining(delta_m)
    if reduce == "mean":
        delta_r = (accumulated(delta_r) / kept).astype(delta_r.dtype)
    return graphs.joining(taken(delta_r, graphs.target))


def _width(part: str, shape: Any, rows: int) -> int:
    if not is_shape(shape) or len(shape) != 2 or shape[0] != rows:
        raise LayerError(NAME, f"its {part} gives {shape} for one example, ({rows}, m) is due")
    return shape[1]


def _check_vectors(part: str, y: Any, like: jax.Array) -> None:
    check_float(NAME, y, f"what its {part} gives")
    if y.ndim != 3 or y.shape[:2] != like.shape:
        raise LayerError(NAME, f"its {part} gives {y.shape}, {(*like.shape, 'm')} is due")
