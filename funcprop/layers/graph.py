"""The disjoint union of a batch's graphs, and graph convolution."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import contraction
from ..core.checks import LayerError, check_affine, check_features, check_float, is_concrete
from ..core.contraction import accumulated, by_example
from ..core.layer import Layer, shapes_of_arrays
from ..core.site import Site, gradient
from .initializers import he_normal, zeros


def graph_conv(
    features: int, *, bias: bool = True, w_init: Any = he_normal, b_init: Any = zeros
) -> Layer:
    """Graph convolution (Kipf & Welling 2017, arXiv 1609.02907, equation 2).

        forward     h  = x Wᵀ           y  = Â h + b       Â = D⁻¹ᐟ² (A + I) D⁻¹ᐟ²
        transport   δh = Âᵀ δ           δx = δh W
        gradient    δW = Σ δhᵀ x        δb = Σ δ

    The input is (x, edges) or (x, edges, mask), and what stands beside x comes out beside y.
    x (B, N, n), y and δ (B, N, m), edges (B, E, 2) of integers, each (source, target) or (-1, -1)
    for padding, mask (B, N) True at real nodes.  A[i, j] is the number of edges from j to i and D
    the row sums of A + I: the edges into a node and its self-loop, which is added here.  Edges
    go one way; for an undirected graph give both.

    With a mask, x may hold anything at the nodes left out, NaN too: their y is 0, they take no
    delta, and an edge that touches one counts as padding.  Without one every node is real.

    Args:
        features: m, the size of the last axis of y.
        bias: whether there is a b.
        w_init: ``w_init(key, (m, n)) -> W``; by default normal with variance 2/n (He 2015).
        b_init: ``b_init(key, (m,)) -> b``; by default zeros.

    Raises:
        LayerError: while tracing, when shapes and dtypes do not fit; where edges are concrete also
            for one that joins no two nodes.  Under a trace such an edge gives NaN in y and
            δx of its graph.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import graph_conv
    >>> layer = graph_conv(1, w_init=jax.nn.initializers.ones)
    >>> x, edges = jnp.array([[[4.0], [2.0], [8.0], [4.0]]]), jnp.array([[[0, 3], [1, 3], [2, 3]]])
    >>> shape = (jax.ShapeDtypeStruct((4, 1), "float32"), jax.ShapeDtypeStruct((3, 2), "int32"))
    >>> params, _ = layer.init(jax.random.key(0), shape)
    >>> layer.apply(params, (x, edges))[0].round(3).ravel().tolist()  # 8 = 4/4 + (4 + 2 + 8)/√4
    [4.0, 2.0, 8.0, 8.0]
    """
    check_features("graph_conv", features)

    def gradients(x, delta):
        delta_h, delta = delta
        grads = {"w": contraction.outer(delta_h, x)}
        return grads | {"b": contraction.total(delta)} if bias else grads

    site = Site("graph_conv", gradients, lambda x, delta: (x, delta[0]), summed_bias=False)

    def init(key, shape):
        nodes, size = shape_of_graph("graph_conv", shape)
        w_key, b_key = jax.random.split(key)
        params = {"w": w_init(w_key, (features, size))}
        if bias:
            params["b"] = b_init(b_key, (features,))
        return params, (jax.ShapeDtypeStruct((nodes, features), shape[0].dtype), *shape[1:])

    def forward(params, x, key=None):
        graphs, (x, *others) = Graphs.of("graph_conv", x), x
        check_affine("graph_conv", params, x, features, bias)
        x = graphs.real(x)
        h = contraction.affine_map(x, params["w"])
        degree = (1 + graphs.counts(x.shape[1])).astype(accumulated(h).dtype)
        root = lax.rsqrt(degree)
        edge = taken(root, graphs.source) * taken(root, graphs.target)
        own = graphs.good[:, None].astype(degree.dtype) / degree
        y = _propagated(h, own, edge, graphs, params.get("b"))
        return (graphs.real(y), *others), (x, own, edge, graphs)

    def backward(weights, residuals, delta, statistic=gradient):
        x, own, edge, graphs = residuals
        delta, *others = delta
        delta = graphs.real(delta)
        turned = graphs._replace(source=graphs.target, target=graphs.source)
        delta_h = _propagated(delta, own, edge, turned)
        tree = statistic(site, x, (delta_h, delta))
        return (contraction.transport(delta_h, weights["w"], like=x), *others), tree

    return Layer(init, forward, backward, "graph_conv")


def _propagated(h: Any, own: Any, edge: Any, graphs: Graphs, b: Any = None) -> jax.Array:
    """Â h + b, with the elements of Â on its diagonal (B, N) and of the edges (B, E)."""
    wide = accumulated(h)
    start = wide * own[..., None]
    start = start if b is None else start + accumulated(b)
    messages = taken(wide, graphs.source) * edge[..., None]
    return added(start, graphs.target, messages).astype(h.dtype)


# ------------------------------------------------------------------------ the disjoint union


NONE = np.iinfo(np.int32).max


class Graphs(NamedTuple):
    """Which nodes and edges of a batch are real.

    Attributes:
        source, target: (B, E) int32, ``NONE`` for the ends of an edge that is none.
        mask: (B, N), or ``None`` where all nodes are real.
        good: (B,), 1 or NaN for a graph with an edge to where no node is.
    """

    source: jax.Array
    target: jax.Array
    mask: jax.Array | None
    good: jax.Array

    @classmethod
    def of(cls, name: str, x: Any, features: bool = False) -> Graphs:
        """Those of an input (x, edges), or (x, edges, features), with or without a mask."""
        check_graphs(name, x, features)
        nodes, edges, mask = x[0].shape[1], x[1], x[2 + features] if x[2 + features :] else None
        _check_ends(name, nodes, edges)
        edges = edges.astype(jnp.int32) if edges.dtype.itemsize < 4 else edges
        source, target = edges[..., 0], edges[..., 1]
        real = (source >= 0) & (source < nodes) & (target >= 0) & (target < nodes)
        one = jnp.ones((), jnp.float32)
        good = jnp.all(real | ((source == -1) & (target == -1)), axis=1)
        good = jnp.where(good, one, jnp.nan * one)
        source, target = (jnp.where(real, e, NONE).astype(jnp.int32) for e in (source, target))
        if mask is not None:
            mask = jnp.asarray(mask)
            real = taken(mask, source) & taken(mask, target)
            source, target = (jnp.where(real, e, NONE) for e in (source, target))
        return cls(source, target, mask, good)

    def real(self, x: jax.Array) -> jax.Array:
        """x (B, N, d), 0 at nodes that are none."""
        return real(x, self.mask)

    def sound(self, x: jax.Array) -> jax.Array:
        """x (B, N, d) or (B, E, d), NaN for a graph with an edge to where no node is."""
        return x * self.good[:, None, None].astype(x.dtype)

    def start(self, values: jax.Array, nodes: int, fill: float = 0.0) -> jax.Array:
        """Where to add values (B, E, d): (B, N, d) of one number, or of NaN as in ``sound``."""
        good = self.good[:, None, None].astype(values.dtype)
        return jnp.broadcast_to(fill * good, (len(values), nodes, values.shape[-1]))

    def joining(self, features: jax.Array) -> jax.Array:
        """features (B, E, d) of real edges, 0 elsewhere."""
        real = (self.source != NONE)[..., None]
        return jnp.where(real, features, jnp.zeros((), features.dtype))

    def counts(self, nodes: int) -> jax.Array:
        """How many edges come into each of the N nodes, (B, N) int32."""
        start = jnp.zeros((len(self.target), nodes), jnp.int32)
        return added(start, self.target, jnp.ones_like(self.target))


def real(x: jax.Array, mask: jax.Array | None, other: float = 0.0) -> jax.Array:
    """x (B, N, d) where mask (B, N) is True, ``other`` elsewhere."""
    return x if mask is None else jnp.where(mask[..., None], x, jnp.asarray(other, x.dtype))


def taken(x: jax.Array, ids: jax.Array) -> jax.Array:
    """x (B, N, ...) at ids (B, E), of any node for ``NONE``: (B, E, ...)."""

    def run(x, ids):
        flat = x.reshape(-1, *x.shape[2:])
        found = jnp.asarray(flat).at[_union(ids, x)].get(mode="clip")
        return found.reshape(*ids.shape, *x.shape[2:])

    return by_example(run, x, ids)


def added(start: jax.Array, ids: jax.Array, values: jax.Array, most: bool = False) -> jax.Array:
    """start (B, N, ...) with values (B, E, ...) added at ids, those at ``NONE`` dropped.

    With ``most`` the largest of them instead of the sum.
    """

    def run(start, ids, values):
        place = start.reshape(-1, *start.shape[2:]).at[_union(ids, start)]
        put = place.max if most else place.add
        return put(values.reshape(-1, *values.shape[2:]), mode="drop").reshape(start.shape)

    return by_example(run, start, ids, values)


def _union(ids: jax.Array, x: jax.Array) -> jax.Array:
    """ids as those of the union of all graphs, B N for an id that is none."""
    nodes = x.shape[1]
    first = nodes * jnp.arange(len(ids), dtype=jnp.int32)[:, None]
    return jnp.where(ids == NONE, len(ids) * nodes, ids + first).ravel()


# --------------------------------------------------------------------------------- checks


def check_graphs(name: str, x: Any, features: bool = False) -> None:
    due = "(x, edges, features)" if features else "(x, edges)"
    if not isinstance(x, tuple) or len(x) not in (2 + features, 3 + features):
        came = f"a tuple of {len(x)}" if isinstance(x, tuple) else f"a {type(x).__name__}"
        raise LayerError(name, f"the input is {came}, {due} is due, or that with a mask")
    nodes, edges = x[:2]
    check_float(name, nodes)
    if nodes.ndim != 3 or not nodes.shape[1]:
        raise LayerError(name, f"x is {nodes.shape}, nodes (B, N > 0, d) are due")
    integers = hasattr(edges, "dtype") and jnp.issubdtype(edges.dtype, jnp.signedinteger)
    if not integers or edges.ndim != 3 or edges.shape[::2] != (len(nodes), 2):
        raise LayerError(
            name, f"edges is {_described(edges)}, integers [{len(nodes)}, E, 2] are due"
        )
    if features:
        check_float(name, x[2], "features")
        if x[2].ndim != 3 or x[2].shape[:2] != edges.shape[:2]:
            raise LayerError(
                name, f"features is {x[2].shape}, {(*edges.shape[:2], 'f')} are due, f an edge"
            )
    for mask in x[2 + features :]:
        if not hasattr(mask, "dtype") or mask.dtype != bool or mask.shape != nodes.shape[:2]:
            raise LayerError(
                name, f"mask is {_described(mask)}, bool{list(nodes.shape[:2])} is due"
            )


def _check_ends(name: str, nodes: int, edges: Any) -> None:
    if is_concrete(edges):
        ends = np.asarray(edges)
        good = ((ends >= 0) & (ends < nodes)).all(-1) | (ends == -1).all(-1)
        if not good.all():
            bad = ends[~good][0].tolist()
            raise LayerError(
                name,
                f"an edge is {tuple(bad)}, (source, target) of nodes in [0, {nodes}) is due, or "
                "(-1, -1) for none",
            )


def shape_of_graph(name: str, shape: Any, features: bool = False) -> tuple[int, int]:
    """(N, n) of one example's shape, a tuple of structs."""
    structs = shapes_of_arrays(name, shape, "a tuple of structs, as (x, edges),")
    check_graphs(
        name,
        tuple(jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype) for leaf in structs),
        features,
    )
    return tuple(shape[0].shape)


def check_reduce(name: str, reduce: Any) -> None:
    if reduce not in ("sum", "mean", "max"):
        raise LayerError(name, f"reduce is {reduce!r}, 'sum', 'mean' or 'max' is due")


def _described(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else type(leaf).__name__
