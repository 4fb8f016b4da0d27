"""The recursive network over trees."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import LayerError, as_layer, check_count
from ..core.contraction import accumulated, by_example, transport
from ..core.layer import Layer
from ..core.site import gradient
from .activations import tanh
from .children import (
    add_below,
    at,
    below,
    check_nodes,
    downwards,
    places,
    put,
    shape_of_nodes,
    upwards,
    valid,
    zeros,
)
from .initializers import lecun_normal, orthogonal
from .initializers import zeros as zero_bias
from .recurrent_weights import joint_check, joint_init, joint_map, joint_site


def tree_rnn(
    hidden: int,
    activation: Layer = tanh,
    *,
    w_init: Any = lecun_normal,
    u_init: Any = orthogonal,
    b_init: Any = zero_bias,
) -> Layer:
    """Recursive network: every node of a tree from the sum of its children.

        forward     s_n = Σ h_k over the children k of n
                    z_n = x_n Wᵀ + s_n Uᵀ + b                    h_n = σ(z_n)
        transport   δh_n = δ_n + Σ δz_m U over the parents m     δz_n = δh_n ⊙ σ′(z_n)
                    δx_n = δz_n W
        gradient    δW = Σ δzᵀ x      δU = Σ δz_nᵀ s_n      δb = Σ δz

    The input is (x, children), the output (h, children): children (B, N, C) of integers lists the
    nodes under each node, every one with a smaller number than its own; -1 is none.  x (B, N, d),
    W (H, d), U (H, H), b (H,), h and δ (B, N, H); Σ runs over all nodes.  The order of the children
    does not matter.  One listed twice counts twice; one with several parents gets the sum of their
    δ.  The root is the last node, as :data:`last_step` takes it: smaller trees are padded in front,
    with nodes that nobody lists, whose x may be any finite numbers.  A bfloat16 δh is accumulated
    in float32.  The value of σ′ at a kink is the activation's.  Goller & Küchler 1996 (ICNN),
    Socher 2013 (EMNLP), here with a sum instead of a place for each child.

    Args:
        hidden: H, the features of h.
        activation: σ, any layer without parameters that works on each node by itself.
        w_init, u_init, b_init: ``w_init(key, (H, d))``, by default normal with variance 1/d;
            ``u_init(key, (H, H))``, by default orthogonal (Saxe 2014, arXiv 1312.6120);
            ``b_init(key, (H,))``, by default zeros.

    Raises:
        LayerError: when ``activation`` is no such layer; while tracing, when x, children and the
            weights do not fit together; where children are concrete, when one is not smaller than
            its parent or is below -1.  Under a trace such a child gives NaN in h and δx of its
            example, and in all of δW.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import identity, tree_rnn
    >>> ones = jax.nn.initializers.ones
    >>> layer = tree_rnn(1, identity, w_init=ones, u_init=ones)
    >>> x, children = jnp.array([[[1.0], [2.0], [10.0]]]), jnp.array([[[-1, -1], [-1, -1], [0, 1]]])
    >>> params, _ = layer.init(jax.random.key(0), jax.eval_shape(lambda: (x[0], children[0])))
    >>> layer.apply(params, (x, children))[0].ravel().tolist()
    [1.0, 2.0, 13.0]
    """
    name = "tree_rnn"
    check_count(name, "hidden", hidden)
    activation = as_layer(activation, name)
    site, check = joint_site(name), joint_check(name, 1, hidden)
    weights_init = joint_init(1, hidden, w_init, u_init, b_init)

    def init(key, shape):
        x, children = shape_of_nodes(name, shape)
        own, kept_shape = activation.init(key, (hidden,))
        if jax.tree.leaves(own) or kept_shape != (hidden,):
            raise LayerError(
                name, f"its activation {activation.name} has parameters or changes the shape"
            )
        params = weights_init(key, x.shape[1])
        return params, (jax.ShapeDtypeStruct((x.shape[0], hidden), x.dtype), children)

    def forward(params, x, key=None):
        check_nodes(name, x)
        check(params, x[0])

        def run(x, children, params):
            under = places(children)

            def step(n, buffers):
                s = jnp.sum(below(buffers[0], at(under, n)), axis=1)
                h, kept = activation.forward((), joint_map(params, at(x, n), s))
                return h, s, kept

            empty = zeros(x, hidden)
            start = empty, empty, activation.forward((), empty)[1]
            h, *kept = upwards(step, start, x.shape[1])
            return h * valid(children).astype(h.dtype), kept

        h, kept = by_example(run, *x, params)
        return (h, x[1]), (*x, *kept)

    def backward(weights, residuals, delta, statistic=gradient):
        x, children, s, kept = residuals

        def run(delta, children, kept, u):
            under = places(children)

            def step(n, buffer, delta_h):
                # The buffer holds what the parents sent so far, and behind n the δz.
                delta_z, _ = activation.backward((), at(kept, n), delta_h.astype(delta.dtype))
                sent = transport(delta_z, u, like=delta_z)[:, None]
                return add_below(put(buffer, delta_z, n), at(under, n), sent)

            delta = delta * valid(children).astype(delta.dtype)
            return downwards(step, accumulated(delta), delta.shape[1]).astype(delta.dtype)

        delta_z = by_example(run, delta[0], children, kept, weights["u"])
        delta_x = transport(delta_z, weights["w"], like=x)
        return (delta_x, None), statistic(site, (x, s), delta_z)

    return Layer(init, forward, backward, name)
