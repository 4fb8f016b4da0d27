"""Activations, element by element and over the last axis."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ..core.layer import identity
from ..layers import activations
from ..layers.activations import elementwise, gelu, relu, silu, tanh
from .case import Case, normal


def _activation(name: str, layer: Any, analytic: bool = False) -> Case:
    return Case(name, layer, normal(4, 9, scale=2.0), analytic)


CASES: tuple[Case, ...] = (
    _activation("identity", identity, True),
    _activation("relu", relu),
    _activation("leaky_relu", activations.leaky_relu()),
    _activation("relu6", activations.relu6),
    _activation("elu", activations.elu()),
    _activation("selu", activations.selu),
    _activation("celu", activations.celu()),
    _activation("gelu", gelu),
    _activation("gelu_tanh", activations.gelu_tanh),
    _activation("silu", silu),
    _activation("mish", activations.mish),
    _activation("softplus", activations.softplus),
    _activation("softsign", activations.softsign),
    _activation("sigmoid", activations.sigmoid),
    _activation("tanh", tanh, True),
    _activation("sigmoid_precise", activations.sigmoid_precise),
    _activation("tanh_precise", activations.tanh_precise, True),
    _activation("hard_tanh", activations.hard_tanh),
    _activation("hard_sigmoid", activations.hard_sigmoid),
    _activation("softmax", activations.softmax),
    _activation("log_softmax", activations.log_softmax),
    _activation("elementwise", elementwise(jnp.sin, jnp.cos, name="elementwise"), True),
)
