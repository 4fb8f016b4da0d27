"""Activations."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

import funcprop as fp
from benchmarks.layers.row import Row, layer_row

FORMS = {
    fp.relu: jax.nn.relu,
    fp.relu6: jax.nn.relu6,
    fp.leaky_relu(): jax.nn.leaky_relu,
    fp.elu(): jax.nn.elu,
    fp.celu(): jax.nn.celu,
    fp.selu: jax.nn.selu,
    fp.gelu: functools.partial(jax.nn.gelu, approximate=False),
    fp.gelu_tanh: jax.nn.gelu,
    fp.silu: jax.nn.silu,
    fp.mish: jax.nn.mish,
    fp.softplus: jax.nn.softplus,
    fp.softsign: jax.nn.soft_sign,
    fp.sigmoid: jax.nn.sigmoid,
    fp.tanh: jnp.tanh,
    fp.hard_tanh: jax.nn.hard_tanh,
    fp.hard_sigmoid: jax.nn.hard_sigmoid,
    fp.softmax: jax.nn.softmax,
    fp.log_softmax: jax.nn.log_softmax,
}


def rows(scale: float = 1.0) -> list[Row]:
    shape = (max(2, round(512 * scale)), 512)

    def row(layer, f):
        return layer_row(layer.name, layer, lambda params, x: f(x), shape, calls=20)

    return [row(layer, f) for layer, f in FORMS.items()]
