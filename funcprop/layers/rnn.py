"""The plain recurrent layer, h_t = σ(W x_t + U h_{t-1} + b)."""

from __future__ import annotations

from typing import Any

from ..core.checks import LayerError, as_layer
from ..core.contraction import transport
from ..core.layer import Layer
from .activations import tanh
from .initializers import lecun_normal, orthogonal, zeros
from .recurrent import recurrent
from .recurrent_weights import joint_check, joint_init, joint_map, joint_site
from .steps import Cell


def rnn(
    hidden: int,
    activation: Layer = tanh,
    *,
    state: bool = False,
    truncate: int | None = None,
    chunk: int | None = None,
    w_init: Any = lecun_normal,
    u_init: Any = orthogonal,
    b_init: Any = zeros,
) -> Layer:
    """Recurrent layer of Elman (1990, Cognitive Science 14).

        forward     z_t = x_t Wᵀ + h_{t-1} Uᵀ + b          y_t = h_t = σ(z_t)
        transport   δh_t = δ_t + δz_{t+1} U                δz_t = δh_t ⊙ σ′(z_t)
                    δx_t = δz_t W                          δh_0 = δz_1 U
        gradient    δW = Σ δzᵀ x      δU = Σ δz_tᵀ h_{t-1}      δb = Σ δz

    x (B, T, d), W (H, d), U (H, H), b (H,), y and δ (B, T, H); Σ runs over all steps.  Sequences
    with lengths, the state, and the options are those of :func:`lstm`, and the state is h (B, H).
    The value of σ′ at a kink is the activation's.

    Args:
        hidden: H, the features of y.
        activation: σ, any layer without parameters that keeps its input's shape.
        state, truncate, chunk: as of :func:`lstm`.
        w_init, u_init, b_init: ``w_init(key, (H, d))``, by default normal with variance 1/d;
            ``u_init(key, (H, H))``, by default orthogonal (Saxe 2014, arXiv 1312.6120);
            ``b_init(key, (H,))``, by default zeros.

    Raises:
        LayerError: as :func:`lstm`, and when ``activation`` is no such layer.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import identity, rnn
    >>> ones = jax.nn.initializers.ones
    >>> layer = rnn(1, identity, w_init=ones, u_init=ones)
    >>> params, out_shape = layer.init(jax.random.key(0), (4, 1))
    >>> layer.apply(params, jnp.arange(4.0).reshape(1, 4, 1))[0, :, 0].tolist()
    [0.0, 1.0, 3.0, 6.0]
    """
    activation = as_layer(activation, "rnn")
    site = joint_site("rnn", chunk)
    weights_init = joint_init(1, hidden, w_init, u_init, b_init)

    def init(key, features):
        own, kept_shape = activation.init(key, (hidden,))
        if own or kept_shape != (hidden,):
            raise LayerError(
                "rnn", f"its activation {activation.name} has parameters or changes the shape"
            )
        return weights_init(key, features)

    def step(params, x, state):
        h, kept = activation.forward((), joint_map(params, x, state[0]))
        return (h,), kept

    def back(weights, kept, h, delta):
        delta_z, _ = activation.backward((), kept, delta[0].astype(h.dtype))
        return (transport(delta_z, weights["u"], like=delta_z),), (delta_z,)

    def sweep(weights, x, h, delta_z, statistic):
        (delta_z,) = delta_z
        return transport(delta_z, weights["w"], like=x), statistic(site, (x, h), delta_z)

    check = joint_check("rnn", 1, hidden)
    cell = Cell("rnn", hidden, 1, (hidden,), init, check, step, back, sweep)
    return recurrent(cell, state, truncate, chunk)
