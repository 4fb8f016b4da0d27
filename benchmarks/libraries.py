"""The MLP's statistics by BackPACK, Opacus and kfac-jax, where they are installed.

    pip install torch==2.13.0 kfac-jax opacus
    pip install --no-deps backpack-for-pytorch "unfoldNd<1" einops

(without its dependencies BackPACK needs no torchvision).  Each is a function of a row's arguments
(params, x, y) of an MLP of relu: those of PyTorch as a row's ``torch`` has it.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def norms() -> Mapping[str, Callable[..., Callable[[], Any]]]:
    """Squared norms of the examples' gradients, by PyTorch's libraries."""
    named = {"backpack-for-pytorch": backpack_norms, "opacus": opacus_norms}
    return _present(named)


def factors() -> Mapping[str, Callable[..., Callable[[], Any]]]:
    """Gradient and sampled Kronecker factors, by PyTorch's libraries."""
    return _present({"backpack-for-pytorch": backpack_factors})


def factors_in_jax(params: Tree) -> Mapping[str, Callable[..., Any]]:
    """Gradient and sampled Kronecker factors by kfac-jax, a function of (params, x, y)."""
    return {label: make(params) for label, make in _present({"kfac-jax": kfac_jax_factors}).items()}


def _present(named: Mapping[str, Any]) -> Mapping[str, Any]:
    """Those of the distributions that are installed, with their versions."""
    found = {}
    for distribution, make in named.items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[f"{distribution} {metadata.version(distribution)}"] = make
    return found


def _modules(params: Tree) -> list[Any]:
    """The MLP's modules in PyTorch, with these weights."""
    from torch import nn

    # That nobody needs the gradient by x is meant.
    warnings.filterwarnings("ignore", "Full backward hook is firing")

    modules: list[Any] = []
    for layer in params:
        rows, columns = layer["w"].shape
        linear = nn.Linear(columns, rows)
        linear.weight.data, linear.bias.data = layer["w"].clone(), layer["b"].clone()
        modules += [linear, nn.ReLU()]
    return modules[:-1]


def backpack_norms(params, x, y):
    from backpack import backpack, extend, extensions
    from torch import nn

    model = extend(nn.Sequential(*_modules(params)))
    loss, y = extend(nn.CrossEntropyLoss(reduction="sum")), y.long()

    def run():
        with backpack(extensions.BatchL2Grad()):
            loss(model(x), y).backward()
        found = sum(p.batch_l2 for p in model.parameters())
        model.zero_grad()
        return found

    return run


def opacus_norms(params, x, y):
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from torch import nn

    module = nn.Sequential(*_modules(params))
    model = GradSampleModuleFastGradientClipping(module, loss_reduction="sum")
    loss, y = nn.CrossEntropyLoss(reduction="sum"), y.long()

    def run():
        loss(model(x), y).backward()
        found = model.get_norm_sample() ** 2
        model.zero_grad()
        return found

    return run


def backpack_factors(params, x, y):
    from backpack import backpack, extend, extensions
    from torch import nn

    model = extend(nn.Sequential(*_modules(params)))
    loss, y = extend(nn.CrossEntropyLoss()), y.long()

    def run():
        with backpack(extensions.KFAC(mc_samples=1)):
            loss(model(x), y).backward()
        found = [(p.grad, p.kfac) for p in model.parameters()]
        model.zero_grad()
        return found

    return run


def kfac_jax_factors(params: Tree) -> Callable[..., Any]:
    """kfac-jax knows a dense layer by x @ w + b: it gets wᵀ, turned before the clock runs."""
    import kfac_jax
    from kfac_jax._src import tag_graph_matcher, tracer

    def evaluated(equation, values):
        found = equation.primitive.bind(
            *values, **equation.primitive.get_bind_params(equation.params)
        )
        return found if isinstance(found, list) else [found]

    # Version 0.0.8 expects two values of get_bind_params, which has one from jax 0.10 on.
    tag_graph_matcher.eval_jaxpr_eqn = tracer.tgm.eval_jaxpr_eqn = evaluated
    turned = [(layer["w"].T, layer["b"]) for layer in params]

    def loss(layers, batch):
        x, y = batch
        for w, b in layers[:-1]:
            x = jax.nn.relu(x @ w + b)
        logits = x @ layers[-1][0] + layers[-1][1]
        kfac_jax.register_softmax_cross_entropy_loss(logits, y)
        log_p = jax.nn.log_softmax(logits)
        return -jnp.mean(jnp.take_along_axis(log_p, y[:, None], axis=-1))

    estimator = kfac_jax.BlockDiagonalCurvature(
        loss, params_index=0, default_estimation_mode="fisher_gradients"
    )

    def run(params, x, y):
        key = jax.random.key(0)
        state = estimator.init(key, (turned, (x, y)), None, None)
        state = estimator.update_curvature_matrix_estimate(
            state, 0.0, 1.0, 0.0, len(x), key, (turned, (x, y))
        )
        return jax.grad(loss)(turned, (x, y)), state

    return run
