"""The table of cases: every layer and loss with an input to try it on.

``funcprop check`` and the tests run over it; adding a layer to the library is adding a line here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..combinators import fork, on, parallel, remat, repeat, residual, serial
from ..layers import activations
from ..layers.activations import elementwise, gelu, identity, relu, silu, tanh
from ..layers.dense import affine, dense
from ..layers.function import function
from ..losses import (
    hinge,
    huber,
    kl_divergence,
    mean_absolute_error,
    mean_squared_error,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)
from ..mlp import mlp

Draw = Callable[[np.random.Generator], Any]


class Case(NamedTuple):
    """A layer or loss and how to draw an input for it.

    Attributes:
        name: what tables call it.
        layer: the layer or the loss.
        draw: ``draw(generator) -> x`` from a ``numpy.random.Generator``: NumPy arrays with a
            leading batch axis, floats in float64.
        analytic: whether its forward pass computes in complex numbers.
    """

    name: str
    layer: Any
    draw: Draw
    analytic: bool = False


def normal(*shape: int, scale: float = 1.0) -> Draw:
    return lambda draw: scale * draw.normal(size=shape)


def _labels(*shape: int, classes: int) -> Draw:
    return lambda draw: draw.integers(0, classes, shape, dtype=np.int32)


def _distribution(*shape: int) -> Draw:
    return lambda draw: draw.dirichlet(np.ones(shape[-1]), shape[:-1])


def _signs(*shape: int) -> Draw:
    return lambda draw: draw.choice(np.array([-1, 1], np.int32), shape)


def _probabilities(*shape: int) -> Draw:
    return lambda draw: draw.uniform(size=shape)


def _mask(*shape: int) -> Draw:
    """The first example keeps nothing, the second one token, the others about half."""

    def drawn(draw):
        mask = draw.random(shape) < 0.5
        mask[0], mask[1] = False, np.arange(shape[1]) == 1
        return mask

    return drawn


def _all(*draws: Any) -> Draw:
    """A tuple, each entry drawn on its own; a tuple among them is one again."""
    return lambda draw: tuple(
        (_all(*entry) if isinstance(entry, tuple) else entry)(draw) for entry in draws
    )


def _activation(name: str, layer: Any, analytic: bool = False) -> Case:
    return Case(name, layer, normal(4, 9, scale=2.0), analytic)


ACTIVATIONS: tuple[Case, ...] = (
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

LAYERS: tuple[Case, ...] = (
    Case("affine", affine(3), normal(4, 5), True),
    Case("affine without bias", affine(3, bias=False), normal(4, 5), True),
    Case("dense", dense(3, tanh), normal(4, 5), True),
    Case("dense on tokens", dense(3, gelu), normal(4, 6, 5)),
    Case(
        "function",
        function(
            lambda w, x: jnp.tanh(x * w),
            lambda key, shape: (jax.random.normal(key, shape), shape),
            name="function",
        ),
        normal(4, 5),
        True,
    ),
    Case("serial", serial(dense(6), tanh, dense(2)), normal(4, 5), True),
    Case("residual", residual(dense(5, tanh)), normal(4, 5), True),
    Case("fork, parallel", serial(fork(2), parallel(dense(3), dense(2, tanh))), normal(4, 5), True),
    Case("on", on(0, dense(3, tanh)), _all(normal(4, 5), _labels(4, classes=9)), True),
    Case("repeat", repeat(dense(5, tanh), 4), normal(4, 5), True),
    Case("remat", remat(dense(3, silu)), normal(4, 5)),
    Case("repeat of remat", repeat(remat(residual(dense(5, gelu))), 3), normal(4, 5)),
    Case("mlp", mlp((5, 8, 8, 3), relu), normal(4, 5)),
)

LOSSES: tuple[Case, ...] = (
    Case("mean_squared_error", mean_squared_error, _all(normal(4, 3), normal(4, 3)), True),
    Case("mean_absolute_error", mean_absolute_error, _all(normal(4, 3), normal(4, 3))),
    Case("huber", huber(), _all(normal(4, 3), normal(4, 3))),
    Case(
        "softmax_cross_entropy", softmax_cross_entropy(), _all(normal(4, 5), _labels(4, classes=5))
    ),
    Case(
        "softmax_cross_entropy, distributions",
        softmax_cross_entropy(),
        _all(normal(4, 5), _distribution(4, 5)),
    ),
    Case(
        "softmax_cross_entropy, smoothed",
        softmax_cross_entropy(0.1),
        _all(normal(4, 5), _labels(4, classes=5)),
    ),
    Case(
        "softmax_cross_entropy, masked tokens",
        softmax_cross_entropy(),
        _all(normal(4, 6, 5), (_labels(4, 6, classes=5), _mask(4, 6))),
    ),
    Case(
        "mean_squared_error, masked tokens",
        mean_squared_error,
        _all(normal(4, 6, 3), (normal(4, 6, 3), _mask(4, 6))),
        True,
    ),
    Case("sigmoid_cross_entropy", sigmoid_cross_entropy, _all(normal(4, 3), _probabilities(4, 3))),
    Case("kl_divergence", kl_divergence, _all(normal(4, 5), _distribution(4, 5))),
    Case("hinge", hinge, _all(normal(4, 3), _signs(4, 3))),
)

CASES: tuple[Case, ...] = LAYERS + ACTIVATIONS + LOSSES
