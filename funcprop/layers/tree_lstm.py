"""The LSTM over trees."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import LayerError, check_count
from ..core.contraction import accumulated, by_example, outer, total, transport
from ..core.layer import Layer
from ..core.site import Site, gradient
from .children import (
    add_below,
    at,
    below,
    below_all,
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


def tree_lstm(
    hidden: int, *, w_init: Any = lecun_normal, u_init: Any = orthogonal, b_init: Any = zero_bias
) -> Layer:
    """Child-sum tree LSTM (Tai 2015, arXiv 1503.00075, equations 2 to 8).

        forward     s_n = Σ h_k over the children k of n
                    z_n = x_n Wᵀ + s_n Uᵀ + b        (z_i, z_o, z_u) = z_n
                    i = σ(z_i)   o = σ(z_o)   u = tanh z_u
                    f_k = σ(x_n W_fᵀ + h_k U_fᵀ + b_f)                  for each child
                    c_n = i ⊙ u + Σ f_k ⊙ c_k        h_n = o ⊙ tanh c_n
        transport   δc_n = δh_n ⊙ o ⊙ (1 - tanh² c_n) + what its parents sent
                    δz_i = δc ⊙ u ⊙ i (1 - i)        δz_o = δh ⊙ tanh c ⊙ o (1 - o)
                    δz_u = δc ⊙ i ⊙ (1 - u²)         δz_k = δc ⊙ c_k ⊙ f_k (1 - f_k)
                    to each child δh: δz U + δz_k U_f, and δc: δc ⊙ f_k
                    δx_n = δz W + Σ δz_k W_f
        gradient    δW = Σ δzᵀ x      δU = Σ δz_nᵀ s_n        δb = Σ δz
                    δW_f = Σ δz_kᵀ x_n      δU_f = Σ δz_kᵀ h_k      δb_f = Σ δz_k

    The input is (x, children), the output (h, children), as of :func:`tree_rnn`.  x (B, N, d),
    children (B, N, C), W (3 H, d), U (3 H, H) and b (3 H,) of the site "gates", W_f (H, d),
    U_f (H, H) and b_f (H,) of the site "forget", h and δ (B, N, H); Σ runs over all nodes and, of
    δz_k, all children.  Of bfloat16, c, δh and δc are float32.

    Args:
        hidden: H, the features of h and c.
        w_init, u_init, b_init: ``w_init(key, (3 H or H, d))``, by default normal with variance 1/d;
            ``u_init(key, (H, H))`` of each gate, by default orthogonal (Saxe 2014, arXiv
            1312.6120); ``b_init(key, (3 H or H,))``, by default zeros.

    Raises:
        LayerError: as :func:`tree_rnn`.

    >>> import jax
    >>> from funcprop import dense, last_step, pick, serial, tree_lstm
    >>> model = serial(tree_lstm(8), pick(0), last_step, dense(2))
    >>> shape = jax.ShapeDtypeStruct((31, 5), "float32"), jax.ShapeDtypeStruct((31, 2), "int32")
    >>> params, out_shape = model.init(jax.random.key(0), shape)
    >>> params[0]["gates"]["u"].shape, params[0]["forget"]["u"].shape, out_shape
    ((24, 8), (8, 8), (2,))
    """
    name = "tree_lstm"
    check_count(name, "hidden", hidden)
    gates_site, forget_site = joint_site(f"{name} gates"), _forget_site(f"{name} forget")
    parts = {"gates": 3, "forget": 1}

    def init(key, shape):
        x, children = shape_of_nodes(name, shape)
        params = {
            part: joint_init(rows, hidden, w_init, u_init, b_init)(k, x.shape[1])
            for (part, rows), k in zip(parts.items(), jax.random.split(key), strict=True)
        }
        return params, (jax.ShapeDtypeStruct((x.shape[0], hidden), x.dtype), children)

    def forward(params, x, key=None):
        check_nodes(name, x)
        if not isinstance(params, dict) or set(params) != set(parts):
            came = sorted(params) if isinstance(params, dict) else f"a {type(params).__name__}"
            raise LayerError(name, f"params is {came}, a dict of ['forget', 'gates'] is due")
        for part, rows in parts.items():
            joint_check(f"{name} {part}", rows, hidden)(params[part], x[0])

        def run(x, children, params):
            gates, forget = params["gates"], params["forget"]
            under = places(children)

            def step(n, buffers):
                x_n, (h_k, c_k) = at(x, n), (below(leaf, at(under, n)) for leaf in buffers[:2])
                z = accumulated(joint_map(gates, x_n, jnp.sum(h_k, axis=1)))
                z_k = accumulated(joint_map(forget, x_n[:, None], h_k))
                i, o, u = _gates(z)
                f = jax.nn.sigmoid(z_k)
                c = i * u + jnp.sum(f * c_k, axis=1)
                return o * jnp.tanh(c), c, jnp.concatenate([i, o, u], axis=-1), f

            h, c = zeros(x, hidden), accumulated(zeros(x, hidden))
            start = h, c, zeros(x, 3 * hidden), zeros(x, under.shape[2], hidden)
            h, *kept = upwards(step, start, x.shape[1])
            return h * valid(children).astype(h.dtype), kept

        h, kept = by_example(run, *x, params)
        return (h, x[1]), (*x, h, *kept)

    def backward(weights, residuals, delta, statistic=gradient):
        x, children, h, c, iou, f = residuals
        gates, forget = weights["gates"], weights["forget"]

        def run(delta, h, c, iou, f, children, u_gates, u_forget):
            under = places(children)

            def step(n, buffers, here):
                delta_h, delta_c, iou, f = accumulated(here)
                nodes = at(under, n)
                i, o, u = jnp.split(iou, 3, axis=-1)
                squashed = jnp.tanh(at(c, n))
                delta_c = delta_c + delta_h * o * (1 - squashed * squashed)
                delta_i = delta_c * u * i * (1 - i)
                delta_o = delta_h * squashed * o * (1 - o)
                delta_u = delta_c * i * (1 - u * u)
                delta_z = jnp.concatenate([delta_i, delta_o, delta_u], axis=-1).astype(h.dtype)
                delta_k = delta_c[:, None] * below(c, nodes) * f * (1 - f)
                delta_k = delta_k.astype(h.dtype)
                sent = accumulated(transport(delta_z, u_gates, like=delta_z))[:, None]
                sent = sent + accumulated(transport(delta_k, u_forget, like=delta_k))
                return (
                    add_below(buffers[0], nodes, sent),
                    add_below(buffers[1], nodes, delta_c[:, None] * f),
                    put(buffers[2], delta_z, n),  # in the place of the gates, that are not needed
                    put(buffers[3], delta_k, n),  # any more
                )

            delta_h = accumulated(delta * valid(children).astype(delta.dtype))
            start = delta_h, jnp.zeros_like(delta_h), iou, f
            _, _, delta_z, delta_k = downwards(step, start, delta.shape[1])
            return delta_z, delta_k, below_all(h, under)

        delta_z, delta_k, h_k = by_example(
            run, delta[0], h, c, iou, f, children, gates["u"], forget["u"]
        )
        tree = {
            "gates": statistic(gates_site, (x, jnp.sum(h_k, axis=2)), delta_z),
            "forget": statistic(forget_site, (x, h_k), delta_k),
        }
        delta_x = transport(delta_z, gates["w"], like=x)
        return (delta_x + transport(jnp.sum(delta_k, axis=2), forget["w"], like=x), None), tree

    return Layer(init, forward, backward, name)


def _gates(z):
    z_i, z_o, z_u = jnp.split(z, 3, axis=-1)
    return jax.nn.sigmoid(z_i), jax.nn.sigmoid(z_o), jnp.tanh(z_u)


def _forget_site(name):
    """z_k = x Wᵀ + h_k Uᵀ + b, one row for each child of a node."""

    def gradients(inputs, delta):
        x, h_k = inputs
        return {"w": outer(jnp.sum(delta, axis=2), x), "u": outer(delta, h_k), "b": total(delta)}

    def rows(inputs, delta):
        x, h_k = inputs
        x = jnp.broadcast_to(x[:, :, None], (*h_k.shape[:3], x.shape[-1]))
        pairs = jnp.concatenate([h_k, x], axis=-1)  # u stands before w
        return tuple(a.reshape(len(a), -1, a.shape[-1]) for a in (pairs, delta))

    return Site(name, gradients, rows)
