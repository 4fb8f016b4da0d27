"""Dense layers, and the combinators around them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..core.combinators import fork, on, parallel, pick, remat, repeat, residual, serial
from ..layers.activations import gelu, relu, silu, tanh
from ..layers.dense import affine, dense
from ..layers.function import function
from ..multilayer_perceptron import mlp
from .case import Case, entries, labels, normal

CASES: tuple[Case, ...] = (
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
    Case("on", on(0, dense(3, tanh)), entries(normal(4, 5), labels(4, classes=9)), True),
    Case(
        "pick",
        serial(pick(0), dense(3, tanh)),
        entries(normal(4, 5), normal(4, 2), labels(4, classes=9)),
        True,
    ),
    Case("repeat", repeat(dense(5, tanh), 4), normal(4, 5), True),
    Case("remat", remat(dense(3, silu)), normal(4, 5)),
    Case("repeat of remat", repeat(remat(residual(dense(5, gelu))), 3), normal(4, 5)),
    Case("mlp", mlp((5, 8, 8, 3), relu), normal(4, 5)),
)
