"""Attention of the nodes of a graph to their neighbours."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import LayerError, check_count, check_features, check_number, position
from ..core.contraction import Varying, accumulated, matched, total
from ..core.layer import Layer
from ..core.site import Site, gradient
from .dense import affine
from .graph import Graphs, added, shape_of_graph, taken
from .initializers import he_normal, zeros

NAME = "graph_attention"
lecun_normal = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)


def graph_attention(
    features: int,
    heads: int = 1,
    *,
    concat: bool = True,
    slope: float = 0.2,
    bias: bool = True,
    w_init: Any = he_normal,
    a_init: Any = lecun_normal,
    b_init: Any = zeros,
) -> Layer:
    """Graph attention (Velickovic 2018, arXiv 1710.10903, equations 1 to 6).

        forward     h  = x Wᵀ      s = h·a₀      t = h·a₁        eᵢⱼ = σ(sⱼ + tᵢ)
                    αᵢⱼ = softmax of eᵢⱼ over j = i and the sources j of edges into i
                    oᵢ = Σⱼ αᵢⱼ hⱼ               y = o + b
        transport   δαᵢⱼ = δoᵢ·hⱼ                δzᵢⱼ = αᵢⱼ (δαᵢⱼ - Σⱼ αᵢⱼ δαᵢⱼ) σ′(sⱼ + tᵢ)
                    δsⱼ = Σᵢ δzᵢⱼ                δtᵢ = Σⱼ δzᵢⱼ
                    δhⱼ = Σᵢ αᵢⱼ δoᵢ + δsⱼ a₀ + δtⱼ a₁           δx = δh W
        gradient    δW = Σ δhᵀ x      δa₀ = Σ δs h      δa₁ = Σ δt h      δb = Σ δ

    The input is (x, edges) or (x, edges, mask) as of :func:`graph_conv`, and what stands beside x
    comes out beside y; edges go from j to i, each node's edge to itself is added here.  All but
    the first and last line of the gradient goes head by head: x (B, N, n), h and o (B, N, H, d),
    W (H d, n) ("in"), a (2, H, d); y, δ and b hold o's heads side by side, (B, N, H d), or with
    ``concat=False`` their mean, (B, N, d).  σ is the leaky relu, σ′(0) = 1.

    Args:
        features: d, the features of a head.
        heads: H.
        concat: whether heads stand side by side in y, or y is their mean.
        slope: σ(z) = slope z for z < 0.
        bias: whether there is a b.
        w_init: ``w_init(key, (H d, n)) -> W``; by default normal with variance 2/n (He 2015).
        a_init: ``a_init(key, (2, H, d)) -> a``; by default normal with variance 1/(2 d).
        b_init: ``b_init(key, b's shape) -> b``; by default zeros.

    Raises:
        LayerError: for options that make no sense, and as :func:`graph_conv` for the input.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import graph_attention
    >>> shape = (jax.ShapeDtypeStruct((34, 5), "float32"), jax.ShapeDtypeStruct((156, 2), "int32"))
    >>> params, out_shape = graph_attention(4, heads=2).init(jax.random.key(0), shape)
    >>> jax.tree.map(jnp.shape, params)
    {'in': {'w': (8, 5)}, 'out': {'a': (2, 2, 4), 'b': (8,)}}
    >>> out_shape[0].shape
    (34, 8)
    """
    check_features(NAME, features)
    check_count(NAME, "heads", heads)
    slope = check_number(NAME, "slope", slope)
    linear = affine(heads * features, bias=False, w_init=w_init)
    width = heads * features if concat else features

    def gradients(h, delta):
        *scores, delta = delta
        wide = accumulated(h)
        a = [jnp.sum(wide * d[..., None], axis=(0, 1)) for d in accumulated(scores)]
        grads = {"a": jnp.stack(a).astype(h.dtype)}
        return grads | {"b": total(delta)} if bias else grads

    def rows(h, delta):
        own = jnp.eye(heads, dtype=h.dtype)
        apart = jnp.stack([d[..., None] * own for d in delta[:2]], axis=-2)
        return h.reshape(len(h), -1, features), apart.reshape(len(h), -1, 2 * heads)

    site = Site(NAME, gradients, rows, summed_bias=False)

    def init(key, shape):
        nodes, size = shape_of_graph(NAME, shape)
        w_key, a_key, b_key = jax.random.split(key, 3)
        out = {"a": a_init(a_key, (2, heads, features))}
        if bias:
            out["b"] = b_init(b_key, (width,))
        params = {"in": linear.init(w_key, (nodes, size))[0], "out": out}
        return params, (jax.ShapeDtypeStruct((nodes, width), shape[0].dtype), *shape[1:])

    def scores(h, a):
        """s and t."""
        return tuple(jnp.sum(h * part, axis=-1) for part in accumulated(a))

    def forward(params, x, key=None):
        graphs, (x, *others) = Graphs.of(NAME, x), x
        check_params(params)
        source, target = graphs.source, graphs.target
        with position(NAME):
            h, x = linear.forward(params["in"], graphs.real(x))
        h = h.reshape(*h.shape[:2], heads, features)
        wide = accumulated(h)
        s, t = scores(wide, params["out"]["a"])
        # z, e, α of the edges, and of each node to itself.
        edge, own = taken(s, source) + taken(t, target), s + t
        rises = edge >= 0, own >= 0
        edge, own = (jnp.where(r, z, slope * z) for r, z in zip(rises, (edge, own), strict=True))
        largest = added(own, target, edge, most=True)
        edge, own = jnp.exp(edge - taken(largest, target)), jnp.exp(own - largest)
        share = graphs.good[:, None, None].astype(wide.dtype) / added(own, target, edge)
        edge, own = edge * taken(share, target), own * share
        o = added(own[..., None] * wide, target, edge[..., None] * taken(wide, source))
        y = o.reshape(*o.shape[:2], -1) if concat else jnp.mean(o, axis=2)
        y = y.astype(x.dtype)
        y = y + params["out"]["b"] if bias else y
        return (graphs.real(y), *others), (x, h, (edge, own), rises, graphs)

    def backward(weights, residuals, delta, statistic=gradient):
        x, h, (edge, own), (rises, own_rises), graphs = residuals
        source, target = graphs.source, graphs.target
        delta, *others = delta
        delta = graphs.real(delta)
        delta_o, wide = accumulated((delta, h))
        delta_o = delta_o.reshape(h.shape) if concat else delta_o[:, :, None] / heads
        delta_o = jnp.broadcast_to(delta_o, h.shape)
        at_target = taken(delta_o, target)
        by_edge = jnp.sum(at_target * taken(wide, source), axis=-1)
        by_own = jnp.sum(delta_o * wide, axis=-1)
        along = added(own * by_own, target, edge * by_edge)
        delta_z = edge * (by_edge - taken(along, target))
        delta_own = own * (by_own - along)
        delta_z = jnp.where(rises, delta_z, slope * delta_z)
        delta_own = jnp.where(own_rises, delta_own, slope * delta_own)
        delta_s, delta_t = (added(delta_own, ends, delta_z) for ends in (source, target))
        delta_h = added(own[..., None] * delta_o, source, edge[..., None] * at_target)
        a = accumulated(weights["out"]["a"])
        delta_h = delta_h + delta_s[..., None] * a[0] + delta_t[..., None] * a[1]
        delta_h = delta_h.reshape(*h.shape[:2], -1).astype(h.dtype)
        delta_h = matched(delta_h, Varying.of(h))
        delta_scores = (leaf.astype(h.dtype) for leaf in (delta_s, delta_t))
        out = statistic(site, h, (*delta_scores, delta))
        delta_x, tree = linear.backward(weights["in"], x, delta_h, statistic)
        return (delta_x, *others), {"in": tree, "out": out}

    def check_params(params):
        due = ["a", "b"] if bias else ["a"]
        if not isinstance(params, dict) or set(params) != {"in", "out"}:
            raise LayerError(NAME, "params is not a dict of ['in', 'out']")
        out = params["out"]
        if not isinstance(out, dict) or sorted(out) != due:
            raise LayerError(NAME, f"params['out'] is not a dict of {due}")
        if out["a"].shape != (2, heads, features) or (bias and out["b"].shape != (width,)):
            shapes = ", ".join(f"{name} is {leaf.shape}" for name, leaf in sorted(out.items()))
            raise LayerError(NAME, f"{shapes}, a {(2, heads, features)} and b ({width},) are due")

    return Layer(init, forward, backward, NAME)
