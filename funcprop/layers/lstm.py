"""The LSTM."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ..core.contraction import accumulated, transport
from ..core.layer import Layer
from .initializers import lecun_normal, orthogonal
from .recurrent import recurrent
from .recurrent_weights import joint_check, joint_init, joint_map, joint_site, sigmoid
from .steps import Cell


def forget_one(key, shape):
    """0, and 1 for the forget gate."""
    return jnp.concatenate([jnp.full(shape[0] // 4, n) for n in (0.0, 1.0, 0.0, 0.0)])


def lstm(
    hidden: int,
    *,
    state: bool = False,
    truncate: int | None = None,
    chunk: int | None = None,
    w_init: Any = lecun_normal,
    u_init: Any = orthogonal,
    b_init: Any = forget_one,
) -> Layer:
    """Long short-term memory (Hochreiter & Schmidhuber 1997; Gers 2000, with forget gates).

        forward     z_t = x_t Wᵀ + h_{t-1} Uᵀ + b          (z_i, z_f, z_g, z_o) = z_t
                    i = σ(z_i)   f = σ(z_f)   g = tanh z_g   o = σ(z_o)
                    c_t = f ⊙ c_{t-1} + i ⊙ g              y_t = h_t = o ⊙ tanh c_t
        transport   δh_t = δ_t + δz_{t+1} U
                    δc_t = δc_{t+1} ⊙ f_{t+1} + δh_t ⊙ o ⊙ (1 - tanh² c_t)
                    δz_i = δc ⊙ g ⊙ i (1 - i)              δz_f = δc ⊙ c_{t-1} ⊙ f (1 - f)
                    δz_g = δc ⊙ i ⊙ (1 - g²)               δz_o = δh ⊙ tanh c_t ⊙ o (1 - o)
                    δx_t = δz_t W
        gradient    δW = Σ δzᵀ x      δU = Σ δz_tᵀ h_{t-1}      δb = Σ δz

    x (B, T, d), W (4 H, d), U (4 H, H), b (4 H,), y and δ (B, T, H); Σ runs over all steps.  The
    gates stand in PyTorch's order i, f, g, o; b is the sum of its two biases.

    With lengths (B,) of integers, (x, lengths) goes in and (y, lengths) comes out.  A step behind
    the end changes nothing, whatever its x: y is 0 there, its δ is ignored, the state stays.

    Args:
        hidden: H, the features of y.
        state: whether the state to begin with, which is 0 otherwise, is the last entry of the
            input and the state at the end the last of the output: (x, state) or
            (x, lengths, state).  Here it is the pair (h, c), each (B, H).  With it the parts of a
            long sequence can follow each other, forward and backward.
        truncate: cuts δ of the state every so many steps: between the steps k and k + 1, 2 k and
            2 k + 1, and so on, where y is unchanged and δ is that of a forward pass with
            ``jax.lax.stop_gradient`` around the state (truncated backprop through time).
        chunk: keeps the state every so many steps only, and computes the gates again on the way
            back, a chunk at a time (Chen 2016, arXiv 1604.06174); δz of all steps, which W needs
            at once, is what is left of the memory.
        w_init: ``w_init(key, (4 H, d))``, by default normal with variance 1/d.
        u_init: ``u_init(key, (H, H))``, of each gate; by default orthogonal (Saxe 2014, arXiv
            1312.6120).
        b_init: ``b_init(key, (4 H,))``, by default 0 and for the forget gate 1 (Jozefowicz 2015,
            ICML).

    Raises:
        LayerError: for options that make no sense; while tracing, when the input and the weights
            do not fit; where lengths are concrete, when one is out of [0, T].  Under a trace such
            a length gives NaN in its y and δx, and in all of δW.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import lstm
    >>> layer = lstm(5, state=True)
    >>> shape = jax.eval_shape(lambda: (jnp.ones((7, 3)), (jnp.ones(5), jnp.ones(5))))
    >>> params, (y, (h, c)) = layer.init(jax.random.key(0), shape)
    >>> y.shape, h.shape, c.shape
    ((7, 5), (5,), (5,))
    """
    site = joint_site("lstm", chunk)

    def step(params, x, state):
        h, c = state
        z_i, z_f, z_g, z_o = jnp.split(accumulated(joint_map(params, x, h)), 4, axis=-1)
        i, f, g, o = sigmoid(z_i), sigmoid(z_f), jnp.tanh(z_g), sigmoid(z_o)
        new = f * c + i * g
        squashed = jnp.tanh(new)
        kept = tuple(leaf.astype(x.dtype) for leaf in (i, f, g, o, c, squashed))
        return (o * squashed, new), kept

    def back(weights, kept, h, delta):
        i, f, g, o, c, squashed = accumulated(kept)
        delta_h, delta_c = delta
        delta_c = delta_c + delta_h * o * (1 - squashed * squashed)
        gates = [
            delta_c * g * i * (1 - i),
            delta_c * c * f * (1 - f),
            delta_c * i * (1 - g * g),
            delta_h * squashed * o * (1 - o),
        ]
        delta_z = jnp.concatenate(gates, axis=-1).astype(h.dtype)
        return (transport(delta_z, weights["u"], like=delta_z), delta_c * f), (delta_z,)

    def sweep(weights, x, h, delta_z, statistic):
        (delta_z,) = delta_z
        return transport(delta_z, weights["w"], like=x), statistic(site, (x, h), delta_z)

    init, check = joint_init(4, hidden, w_init, u_init, b_init), joint_check("lstm", 4, hidden)
    cell = Cell("lstm", hidden, 2, (4 * hidden,), init, check, step, back, sweep)
    return recurrent(cell, state, truncate, chunk)
