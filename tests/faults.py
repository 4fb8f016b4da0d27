"""Planted faults: hand-written gradients that are wrong in a known way, and innocent ones.

Each fault is a small named change to a rule that is correct, in its backward pass alone, with the
leaves that it hits and the names under which it may be reported.  ``report(fault)`` runs the check.

    python -m tests.faults [pattern ...]      proves that every fault is one, against jax.vjp
"""

from __future__ import annotations

import fnmatch
import functools
import importlib.util
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import funcprop as fp
from funcprop.cases.case import entries, labels, normal, probabilities, signs
from funcprop.cases.normalization import keyed, spread_out
from funcprop.checking import CASES, Report, check_gradient, check_layer, check_model, compare
from funcprop.core.checks import cotangent_of, delta_of, floats_of, is_inexact, with_floats
from funcprop.core.loss import no_parameters
from funcprop.statistics import per_example_gradients

Tree = Any
PACKAGE = Path(fp.__file__).parent
CASE = {case.name: case for case in CASES}
MOMENTS = "jnp.array([0.5, -1.0]), jnp.array([0.25, 2.0])"


class Fault(NamedTuple):
    """A subject with a fault in its hand-written gradient, or an innocent one.

    Attributes:
        name: unique and readable.
        subject: "layer", "function", "statistic" or "model".
        family: the file that the fault is planted in, or the function's name.
        make: makes the subject: a layer; (f, gradient); (statistic, reference); (model, loss).
        draw: draws from a ``numpy.random.Generator`` x; the arguments; (params, x, y); (x, y).
        wrong: the leaves that must be reported, as ``Report.wrong`` names them.
        kinds: acceptable names, the best first.
        analytic: whether a layer's forward pass computes in complex numbers.
        position: of a model the layer at which the fault must be placed, or how its name begins.
        proven: the leaves of its layer that are off, where ``wrong`` names parts of that layer.
        correct: makes the subject without the fault.
    """

    name: str
    subject: str
    family: str
    make: Callable[[], Any]
    draw: Callable[[np.random.Generator], Any]
    wrong: tuple[str, ...]
    kinds: tuple[str, ...]
    analytic: bool = False
    position: str = ""
    proven: tuple[str, ...] = ()
    correct: Callable[[], Any] | None = None


# -------------------------------------------------------------------- changes to the source


@functools.cache
def mutated(file: str, old: str, new: str, into: str | None = None) -> ModuleType:
    """A fresh module of ``file`` with one fragment replaced; or ``into``, which imports from it."""
    source = (PACKAGE / f"{file}.py").read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{file}: {old!r} stands {source.count(old)} times in it"
    module = _loaded(file, source.replace(old, new))
    if into is None:
        return module
    host = _loaded(into, (PACKAGE / f"{into}.py").read_text(encoding="utf-8"))
    origin = "funcprop." + file.replace("/", ".")
    taken = [n for n, value in vars(host).items() if getattr(value, "__module__", "") == origin]
    assert taken, f"{into} imports nothing from {file}"
    for name in taken:
        setattr(host, name, getattr(module, name))
    return host


_numbers = itertools.count()


def _loaded(file: str, source: str) -> ModuleType:
    *rooms, stem = file.split("/")
    name = ".".join(["funcprop", *rooms, f"_{stem}_{next(_numbers)}"])
    spec = importlib.util.spec_from_loader(name, None)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(PACKAGE / f"{file}.py")
    sys.modules[name] = module  # dataclasses look there
    exec(compile(source, module.__file__, "exec"), module.__dict__)
    return module


def paths(text: str) -> tuple[str, ...]:
    """``"w 0.b x x.1"`` as paths: ['params']['w'], ['params'][0]['b'], ['x'], ['x'][1]."""

    def path(word: str) -> str:
        steps = word.split(".")
        own = steps[0] == "x" and all(step.isdecimal() for step in steps[1:])
        keys = [f"[{step}]" if step.isdecimal() else f"['{step}']" for step in steps]
        return "".join(keys if own else ["['params']", *keys])

    return tuple(map(path, text.split()))


def edit(
    name: str,
    file: str,
    old: str,
    new: str,
    make: str,
    draw: Any,
    wrong: str,
    *kinds: str,
    into: str | None = None,
) -> Fault:
    """A layer or loss, ``make`` evaluated in the module in which ``old`` became ``new``.

    ``draw`` is a case's name, whose input is drawn, or draws one itself.
    """
    analytic = isinstance(draw, str) and CASE[draw].analytic
    own = {"fp": fp, "spread_out": spread_out, "keyed": keyed}

    def made(old=old, new=new):
        return eval(make, dict(vars(mutated(file, old, new, into))) | own)

    return Fault(
        name,
        "layer",
        Path(into or file).stem,
        made,
        CASE[draw].draw if isinstance(draw, str) else draw,
        paths(wrong),
        kinds,
        analytic,
        correct=lambda: made(old, old),
    )


def around(
    name: str,
    case: str,
    wrong: str,
    *kinds: str,
    x: Callable[[Tree], Tree] = lambda delta_x: delta_x,
    params: Callable[[Tree], Tree] = lambda grads: grads,
    delta: Callable[[Tree], Tree] = lambda delta: delta,
    layer: Callable[[], Any] | None = None,
    draw: Any = None,
) -> Fault:
    """A layer of the catalogue with a change to what goes into its backward pass or comes out."""

    def correct():
        return CASE[case].layer if layer is None else layer()

    def made():
        whole = correct()

        def backward(weights, residuals, came, statistic=fp.gradient):
            delta_x, grads = whole.backward(weights, residuals, delta(came), statistic)
            return x(delta_x), params(grads)

        return whole._replace(backward=backward)

    own = CASE[case]
    return Fault(
        name,
        "layer",
        own.layer.name,
        made,
        own.draw if draw is None else draw,
        paths(wrong),
        kinds,
        own.analytic and draw is None,
        correct=correct,
    )


def rounded(a: jax.Array, dtype: Any = jnp.bfloat16) -> jax.Array:
    return a.astype(dtype).astype(a.dtype)


_calls = itertools.count(1)


def restless(a: jax.Array) -> jax.Array:
    """``a`` times a number that is another at every call."""
    count = jax.pure_callback(
        lambda: np.float32(1 + 0.1 * (next(_calls) % 7)), jax.ShapeDtypeStruct((), np.float32)
    )
    return a * count.astype(a.dtype)


def diced(a: jax.Array) -> jax.Array:
    """``a`` times numbers that NumPy draws while tracing."""
    return a * np.random.default_rng().uniform(0.5, 1.5, a.shape).astype(a.dtype)


# --------------------------------------------------------------- activations and dense layers

ACTIVATIONS = (
    edit(
        "relu: the slope of leaky relu",
        "layers/activations",
        'lambda z: _where(z > 0, 1, 0, z), "relu")',
        'lambda z: _where(z > 0, 1, 0.01, z), "relu")',
        "relu", "relu", "x", "wrong function",
    ),
    edit(
        "relu6: not flat above 6",
        "layers/activations",
        "(z > 0) & (z < 6)", "z > 0",
        "relu6", normal(4, 9, scale=6.0), "x", "wrong function", "mask ignored",
    ),
    edit(
        "hard_tanh: the delta passes outside too",
        "layers/activations",
        "_where(jnp.abs(z) <= 1, 1, 0, z)", "_where(jnp.abs(z) <= 1, 1, 1, z)",
        "hard_tanh", "hard_tanh", "x", "wrong function", "mask ignored",
    ),
    edit(
        "hard_sigmoid: slope 1/5",
        "layers/activations",
        "1 / 6, 0, z", "1 / 5, 0, z",
        "hard_sigmoid", "hard_sigmoid", "x", "factor", "wrong function",
    ),
    edit(
        "leaky_relu: twice its slope",
        "layers/activations",
        "_where(z >= 0, 1, slope, z)", "_where(z >= 0, 1, 2 * slope, z)",
        "leaky_relu(0.1)", "leaky_relu", "x", "wrong function", "factor",
    ),
    edit(
        "elu: its value for its slope",
        "layers/activations",
        "1, alpha * jnp.exp(_negative(z))", "1, alpha * jnp.expm1(_negative(z))",
        "elu()", "elu", "x", "wrong function",
    ),
    edit(
        "celu: not divided by alpha",
        "layers/activations",
        "1, jnp.exp(_negative(z) / alpha)", "1, jnp.exp(_negative(z))",
        "celu(2.0)", "celu", "x", "wrong function",
    ),
    edit(
        "selu: scale missing",
        "layers/activations",
        "_SELU_SCALE * jnp.where(z > 0, 1,", "jnp.where(z > 0, 1,",
        "selu", "selu", "x", "factor",
    ),
    edit(
        "gelu: the slope of its tanh form",
        "layers/activations",
        'lambda z: _normal_cdf(z) + z * _normal_density(z), "gelu"',
        "lambda z: jax.nn.sigmoid(_gelu_2u(z)) * (1 + z * jax.nn.sigmoid(-_gelu_2u(z)) * "
        '_gelu_2u_slope(z)), "gelu"',
        "gelu", "gelu", "x", "wrong function",
    ),
    edit(
        "gelu: the density's term missing",
        "layers/activations",
        'lambda z: _normal_cdf(z) + z * _normal_density(z), "gelu"',
        'lambda z: _normal_cdf(z), "gelu"',
        "gelu", "gelu", "x", "missing term",
    ),
    edit(
        "gelu_tanh: the cube's 3 missing",
        "layers/activations",
        "(1 + 3 * _GELU_A * z * z)", "(1 + _GELU_A * z * z)",
        "gelu_tanh", "gelu_tanh", "x", "wrong function", "missing term", "factor",
    ),
    edit(
        "silu: sigmoid of z for that of -z",
        "layers/activations",
        "(1 + z * jax.nn.sigmoid(-z))", "(1 + z * jax.nn.sigmoid(z))",
        "silu", "silu", "x", "wrong function", "sign",
    ),
    edit(
        "mish: the second term missing",
        "layers/activations",
        "lambda z: _tanh_softplus(z) + z * _tanh_softplus_slope(z)",
        "lambda z: _tanh_softplus(z)",
        "mish", "mish", "x", "missing term",
    ),
    edit(
        "softplus: tanh for sigmoid",
        "layers/activations",
        'jnp.zeros_like(z)), jax.nn.sigmoid, "softplus"',
        'jnp.zeros_like(z)), jnp.tanh, "softplus"',
        "softplus", "softplus", "x", "wrong function",
    ),
    edit(
        "softplus: exponentials overflow",
        "layers/activations",
        'jnp.zeros_like(z)), jax.nn.sigmoid, "softplus"',
        'jnp.zeros_like(z)), lambda z: jnp.exp(z) / (1 + jnp.exp(z)), "softplus"',
        "softplus", normal(4, 9, scale=2000.0), "x", "not finite",
    ),
    edit(
        "softsign: not squared",
        "layers/activations",
        "1 / (1 + jnp.abs(z)) ** 2", "1 / (1 + jnp.abs(z))",
        "softsign", "softsign", "x", "wrong function", "missing term",
    ),
    edit(
        "sigmoid: derivative at the pre-activation",
        "layers/activations",
        'lambda y: y * (1 - y), "sigmoid", of_output=True', 'lambda y: y * (1 - y), "sigmoid"',
        "sigmoid", "sigmoid", "x", "wrong place",
    ),
    edit(
        "tanh: derivative at the pre-activation",
        "layers/activations",
        'lambda y: 1 - y * y, "tanh", of_output=True', 'lambda y: 1 - y * y, "tanh"',
        "tanh", "tanh", "x", "wrong place",
    ),
    edit(
        "tanh_precise: derivative at the output",
        "layers/activations",
        "jnp.tanh, lambda z: 4 * jax.nn.sigmoid(2 * z) * jax.nn.sigmoid(-2 * z)",
        "jnp.tanh, lambda z: 4 * jax.nn.sigmoid(2 * jnp.tanh(z)) * "
        "jax.nn.sigmoid(-2 * jnp.tanh(z))",
        "tanh_precise", "tanh_precise", "x", "wrong place",
    ),
    edit(
        "sigmoid_precise: derivative at the output",
        "layers/activations",
        "lambda z: jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)",
        "lambda z: jax.nn.sigmoid(jax.nn.sigmoid(z)) * jax.nn.sigmoid(-jax.nn.sigmoid(z))",
        "sigmoid_precise", "sigmoid_precise", "x", "wrong place",
    ),
    edit(
        "softmax: the sum missing",
        "layers/activations",
        "(p * (d - jnp.sum(d * p, axis=-1, keepdims=True)))", "(p * d)",
        "softmax", "softmax", "x", "missing term",
    ),
    edit(
        "softmax: the sum counted twice",
        "layers/activations",
        "(p * (d - jnp.sum(d", "(p * (d - 2 * jnp.sum(d",
        "softmax", "softmax", "x", "counted twice", "factor",
    ),
    edit(
        "log_softmax: mean for sum",
        "layers/activations",
        "(jnp.sum(d, axis=-1, keepdims=True) / total)",
        "(jnp.mean(d, axis=-1, keepdims=True) / total)",
        "log_softmax", "log_softmax", "x", "factor",
    ),
    edit(
        "identity: sign",
        "layers/activations",
        "lambda weights, residuals, delta, statistic=gradient: (delta, ())",
        "lambda weights, residuals, delta, statistic=gradient: (-delta, ())",
        "identity", "identity", "x", "sign",
    ),
    edit(
        "elementwise: delta ignored",
        "layers/activations",
        "return delta * derivative(kept), ()", "return derivative(kept), ()",
        'elementwise(jnp.sin, jnp.cos, name="elementwise")', "elementwise", "x", "not linear",
    ),
    edit(
        "elementwise: delta clipped",
        "layers/activations",
        "return delta * derivative(kept), ()",
        "return jnp.clip(delta, -1, 1) * derivative(kept), ()",
        'elementwise(jnp.sin, jnp.cos, name="elementwise")', "elementwise", "x", "not linear",
    ),
    edit(
        "elementwise: -cos for cos",
        "layers/activations",
        "return delta * derivative(kept), ()", "return -delta * derivative(kept), ()",
        'elementwise(jnp.sin, jnp.cos, name="elementwise")', "elementwise", "x", "sign",
    ),
    around("silu: half precision kept", "silu", "x", "dtype", x=lambda d: d.astype(jnp.float16)),
)  # fmt: skip

DENSE = (
    edit(
        "affine: transport by W transposed",
        "layers/dense",
        'contraction.transport(delta, weights["w"], like=x)',
        'contraction.transport(delta, weights["w"].T, like=x)',
        "affine(5)", "affine", "x", "transpose",
    ),
    edit(
        "affine: sign of w",
        "layers/dense",
        '{"w": contraction.outer(delta, x)}', '{"w": -contraction.outer(delta, x)}',
        "affine(3)", "affine", "w", "sign",
    ),
    edit(
        "affine: mean over the batch",
        "layers/dense",
        '{"w": contraction.outer(delta, x)}', '{"w": contraction.outer(delta, x) / len(x)}',
        "affine(3, bias=False)", "affine without bias", "w", "factor",
    ),
    edit(
        "affine: bias stopped",
        "layers/dense",
        '{"b": contraction.total(delta)}', '{"b": 0 * contraction.total(delta)}',
        "affine(3)", "affine", "b", "stopped",
    ),
    edit(
        "affine: gradient of w transposed",
        "layers/dense",
        '{"w": contraction.outer(delta, x)}', '{"w": contraction.outer(x, delta)}',
        "affine(5)", "affine", "w", "transpose",
    ),
    edit(
        "affine: w in half precision",
        "layers/dense",
        '{"w": contraction.outer(delta, x)}',
        '{"w": contraction.outer(delta, x).astype("bfloat16")}',
        "affine(3)", "affine", "w", "dtype",
    ),
    edit(
        "affine: w rounded to half precision",
        "layers/dense",
        '{"w": contraction.outer(delta, x)}',
        '{"w": contraction.outer(delta, x).astype("bfloat16").astype(x.dtype)}',
        "affine(3)", "affine", "w", "low precision",
    ),
    edit(
        "affine: no bias in the tree",
        "layers/dense",
        'return grads | {"b": contraction.total(delta)} if bias else grads', "return grads",
        "affine(3)", "affine", "b", "structure",
    ),
    edit(
        "dense: derivative of the activation missing",
        "layers/dense",
        "delta_z, _ = activation.backward((), residuals, delta)", "delta_z = delta",
        "dense(3, fp.tanh)", "dense", "w b x", "wrong function", "missing term",
    ),
    edit(
        "dense: delta of the output transported",
        "layers/dense",
        "return linear.backward(weights, x, delta_z, statistic)",
        "return (linear.backward(weights, x, delta, statistic)[0], "
        "linear.backward(weights, x, delta_z, statistic)[1])",
        "dense(3, fp.tanh)", "dense", "x", "wrong place", "wrong function",
    ),
    edit(
        "dense on tokens: bias summed over the batch alone",
        "layers/dense",
        '{"b": contraction.total(delta)}', '{"b": delta.sum(0)}',
        "dense(3, fp.gelu)", "dense on tokens", "b", "structure",
    ),
    edit(
        "dense on tokens: bias of the last token",
        "layers/dense",
        '{"b": contraction.total(delta)}', '{"b": delta[:, -1].sum(0)}',
        "dense(3, fp.gelu)", "dense on tokens", "b", "missing term",
    ),
    edit(
        "dense on tokens: mean over tokens",
        "layers/dense",
        '{"w": contraction.outer(delta, x)}', '{"w": contraction.outer(delta, x) / x.shape[1]}',
        "dense(3, fp.gelu)", "dense on tokens", "w", "factor",
    ),
    edit(
        "dense: an offset",
        "layers/dense",
        'contraction.transport(delta, weights["w"], like=x)',
        'contraction.transport(delta, weights["w"], like=x) + 1e-3',
        "dense(3, fp.tanh)", "dense", "x", "not linear",
    ),
    around(
        "dense: one row of w doubled", "dense", "w", "factor",
        params=lambda g: g | {"w": g["w"].at[1].multiply(2)},
    ),
    around(
        "dense: one column of w stopped", "dense", "w", "stopped", "missing term",
        params=lambda g: g | {"w": g["w"].at[:, 2].set(0)},
    ),
    around("dense: all of x by 0.1 %", "dense", "x", "factor", x=lambda d: d * 1.001),
    around(
        "serial: one element of w by 30 %", "serial", "2.w", "factor",
        params=lambda g: (*g[:2], g[2] | {"w": g[2]["w"].at[1, 4].multiply(1.3)}),
    ),
    around("dense on tokens: random numbers", "dense on tokens", "x", "not deterministic", x=diced),
    around("function: a counter", "function", "x", "not deterministic", x=restless),
    edit(
        "function: sign of the parameters",
        "layers/function",
        "return pullback(cotangent_of(y, delta))[0]\n",
        "return jax.tree.map(jnp.negative, pullback(cotangent_of(y, delta))[0])\n",
        "function(lambda w, x: jnp.tanh(x * w), "
        "lambda key, shape: (jax.random.normal(key, shape), shape), name='function')",
        "function", "", "sign",
    )._replace(wrong=("['params']",)),
    edit(
        "function: no delta of the input",
        "layers/function",
        "delta_x = delta_of(pullback(cotangent_of(y, delta))[0])",
        "delta_x = jax.tree.map(jnp.zeros_like, delta_of(pullback(cotangent_of(y, delta))[0]))",
        "function(lambda w, x: jnp.tanh(x * w), "
        "lambda key, shape: (jax.random.normal(key, shape), shape), name='function')",
        "function", "x", "stopped",
    ),
)  # fmt: skip

COMBINATORS = (
    edit(
        "serial: trees in the order of the sweep",
        "core/combinators",
        "return delta, tuple(trees)", "return delta, tuple(reversed(trees))",
        "serial(fp.dense(5, fp.tanh), fp.dense(5, fp.tanh))", "dense",
        "0.w 0.b 1.w 1.b", "transpose",
    ),
    edit(
        "residual: the branch around it not added",
        "core/combinators",
        "return _add_to_entry_0(delta_x, _entry_0(delta)), tree", "return delta_x, tree",
        "residual(fp.dense(5, fp.tanh))", "residual", "x", "missing term",
    ),
    edit(
        "residual: the branch around it added twice",
        "core/combinators",
        "return _add_to_entry_0(delta_x, _entry_0(delta)), tree",
        "return _add_to_entry_0(delta_x, 2 * _entry_0(delta)), tree",
        "residual(fp.dense(5, fp.tanh))", "residual", "x", "counted twice", "factor",
    ),
    edit(
        "residual: the branch through its layer not added",
        "core/combinators",
        "return _add_to_entry_0(delta_x, _entry_0(delta)), tree", "return delta, tree",
        "residual(fp.dense(5, fp.tanh))", "residual", "x", "missing term",
    ),
    edit(
        "fork: one of two copies",
        "core/combinators",
        "return _sum(delta), ()", "return delta[0], ()",
        "fp.serial(fork(2), fp.parallel(fp.dense(3), fp.dense(2, fp.tanh)))", "fork, parallel",
        "x", "missing term",
    ),
    edit(
        "fork: mean of the copies",
        "core/combinators",
        "return _sum(delta), ()", "return jax.tree.map(lambda d: d / n, _sum(delta)), ()",
        "fp.serial(fork(2), fp.parallel(fp.dense(3), fp.dense(2, fp.tanh)))", "fork, parallel",
        "x", "factor",
    ),
    edit(
        "parallel: deltas reversed",
        "core/combinators",
        "zip(layers, weights, residuals, delta, strict=True)",
        "zip(layers, weights, residuals, delta[::-1], strict=True)",
        "fp.serial(fork(2), parallel(fp.dense(3), fp.dense(3, fp.tanh)))", "fork, parallel",
        "1.0.w 1.0.b 1.1.w 1.1.b x", "transpose",
    ),
    edit(
        "on: sign",
        "core/combinators",
        "return _with_entry(delta, i, delta_x), tree",
        "return _with_entry(delta, i, -delta_x), tree",
        "on(0, fp.dense(3, fp.tanh))", "on", "x.0", "sign",
    ),
    edit(
        "pick: nothing sent back",
        "core/combinators",
        "delta_x = _with_entry(delta_x, i, own)",
        "delta_x = _with_entry(delta_x, i, 0 * own)",
        "serial(pick(0), fp.dense(3, fp.tanh))", "pick", "x.0", "stopped",
    ),
    edit(
        "repeat: the layers in the forward order",
        "core/combinators",
        "residuals, held), length=n, reverse=True)", "residuals, held), length=n)",
        "repeat(fp.dense(5, fp.tanh), 4)", "repeat", "w b x", "transpose",
    ),
    edit(
        "remat: recomputed from a rounded input",
        "core/combinators",
        "_, kept = layer.forward(params, x, key)",
        "_, kept = layer.forward(params, x.astype(jnp.bfloat16).astype(x.dtype), key)",
        "remat(fp.dense(3, fp.silu))", "remat", "w b x", "low precision",
    ),
    edit(
        "share: one of two uses",
        "core/sharing",
        "functools.reduce(jnp.add, accumulated(g)).astype(g[0].dtype)", "g[0]",
        "share(fp.serial(fp.dense(5, fp.tanh), fp.dense(5, fp.tanh), fp.dense(3)), (0,), (1,))",
        "share", "shared.w shared.b", "missing term",
    ),
    edit(
        "share: the second use counted twice",
        "core/sharing",
        "functools.reduce(jnp.add, accumulated(g)).astype(g[0].dtype)", "g[0] + 2 * g[1]",
        "share(fp.serial(fp.dense(5, fp.tanh), fp.dense(5, fp.tanh), fp.dense(3)), (0,), (1,))",
        "share", "shared.w shared.b", "counted twice", "factor",
    ),
    edit(
        "mlp: the learning rate in the gradient",
        "layers/dense",
        '{"w": contraction.outer(delta, x)}', '{"w": 0.1 * contraction.outer(delta, x)}',
        "fp.serial(dense(8, fp.relu), fp.dense(3))", "mlp", "0.w", "factor",
    ),
)  # fmt: skip

CONVOLUTION = (
    edit(
        "conv: kernel not reversed",
        "layers/convolution",
        'reversed_kernel(weights["w"], groups)', 'jnp.swapaxes(weights["w"], -1, -2)',
        "conv(3, 3)", "conv", "x", "transpose",
    ),
    edit(
        "conv: window shifted by one",
        "layers/windows",
        "(reach - 1 - lo, wide - 1 - (o - 1) * s + lo)",
        "(reach - 2 - lo, wide - (o - 1) * s + lo)",
        "conv(3, 3)", "conv", "x", "off by one", into="layers/convolution",
    ),
    edit(
        "conv: padding of the kernel's gradient shifted by one",
        "layers/windows",
        "(lo, reach - 1 + (o - 1) * s + 1 - wide - lo)",
        "(lo + 1, reach - 2 + (o - 1) * s + 1 - wide - lo)",
        "conv(3, 3)", "conv", "w", "off by one", into="layers/convolution",
    ),
    edit(
        "conv: bias twice",
        "layers/convolution",
        '{"b": contraction.total(delta)}', '{"b": 2 * contraction.total(delta)}',
        "conv(3, 3)", "conv", "b", "factor", "counted twice",
    ),
    edit(
        "conv, causal with groups: groups reversed",
        "layers/convolution",
        "return delta_x, statistic(site, x, delta)",
        "return delta_x, statistic(site, x, jnp.roll(delta, features // 2, -1))",
        "conv(4, 3, stride=2, dilation=2, padding='CAUSAL', groups=2)",
        "conv, causal with groups", "w b", "transpose",
    ),
    edit(
        "conv, causal with groups: multiplied by the stride",
        "layers/convolution",
        "return delta_x, statistic(site, x, delta)",
        "return delta_x * g.spread[0], statistic(site, x, delta)",
        "conv(4, 3, stride=2, dilation=2, padding='CAUSAL', groups=2)",
        "conv, causal with groups", "x", "factor",
    ),
    around(
        "conv: one tap stopped", "conv", "w", "stopped", "missing term",
        params=lambda g: g | {"w": g["w"].at[0, 2].set(0)},
    ),
    around(
        "conv, depthwise: the edge stopped", "conv, depthwise", "x", "stopped", "missing term",
        x=lambda d: d.at[:, 0].set(0),
    ),
    around(
        "conv: the kernel's axes in another order", "conv", "w", "structure",
        params=lambda g: g | {"w": jnp.moveaxis(g["w"], -1, 0)},
    ),
    edit(
        "conv of three axes: slices rounded",
        "layers/windows",
        "[kernel_gradient(flat, each, delta) for each in slices]",
        "[kernel_gradient(flat, each, delta).astype(jnp.bfloat16).astype(x.dtype)"
        " for each in slices]",
        "conv(2, 2, stride=(1, 2, 1), bias=False)", "conv of three axes", "w", "low precision",
        into="layers/convolution",
    ),
    edit(
        "conv_transpose: taps of the kernel's gradient not reversed",
        "layers/windows",
        "return reversed_kernel(kernel_gradient(g.transposed(), delta, x, groups), groups)",
        "return jnp.swapaxes(kernel_gradient(g.transposed(), delta, x, groups), -1, -2)",
        "conv_transpose(2, 3, stride=2)", "conv_transpose", "w", "transpose",
        into="layers/convolution",
    ),
    around("conv_transpose: a counter", "conv_transpose", "x", "not deterministic", x=restless),
    around(
        "conv: delta clipped", "conv", "w b x", "not linear", delta=lambda d: jnp.clip(d, -1, 1)
    ),
)  # fmt: skip

POOLING = (
    edit(
        "max_pool: the delta goes to all of a window",
        "layers/pooling",
        "lambda k, w, d: jnp.where(w == k, d, zero), kept[0], delta)",
        "lambda k, w, d: jnp.where(w >= 0, d, zero) + 0 * k.astype(d.dtype), kept[0], delta)",
        "max_pool(2)", "max_pool", "x", "mask ignored",
    ),
    edit(
        "max_pool, overlapping: the tap beside the winner",
        "layers/pooling",
        "delta = _sum(axis.put(k, jnp.where(winners == k, delta, zero)) for k in taps)",
        "delta = _sum(axis.put(k, jnp.where(winners == (k + 1) % len(taps), delta, zero))"
        " for k in taps)",
        "max_pool((3, 2), (2, 1), 'SAME')", "max_pool, overlapping", "x", "off by one",
    ),
    edit(
        "avg_pool: padding counted",
        "layers/pooling",
        "delta_x = accumulated(delta) / counts(g, accumulated(delta))",
        "delta_x = accumulated(delta) / math.prod(g.kernel)",
        "avg_pool((3, 2), (2, 1), 'SAME')", "avg_pool", "x", "factor", "mask ignored",
    ),
    edit(
        "avg_pool: not divided by the count",
        "layers/pooling",
        "delta_x = accumulated(delta) / counts(g, accumulated(delta))",
        "delta_x = accumulated(delta)",
        "avg_pool(2)", normal(4, 4, 4, 2), "x", "factor",
    ),
    edit(
        "avg_pool: one of two taps",
        "layers/pooling",
        "delta_x = _sum(axis.put(k, delta_x) for k in range(math.prod(axis.kernel)))",
        "delta_x = _sum(axis.put(k, delta_x) for k in range(max(1, math.prod(axis.kernel) - 1)))",
        "avg_pool((3, 2), (2, 1), 'SAME')", "avg_pool", "x", "off by one", "missing term",
    ),
    edit(
        "global_avg_pool: divided by one of two sizes",
        "layers/pooling",
        "each = divided(delta, math.prod(sizes))", "each = divided(delta, math.prod(sizes[:1]))",
        "global_avg_pool", "global_avg_pool", "x", "factor",
    ),
    edit(
        "flatten: features reversed",
        "layers/shape",
        "return _reshaped(delta, example.shape), ()",
        "return _reshaped(delta[:, ::-1], example.shape), ()",
        "flatten", "flatten", "x", "transpose",
    ),
    edit(
        "reshape: rows stopped",
        "layers/shape",
        "return _reshaped(delta, example.shape), ()",
        "return _reshaped(delta.at[0].set(0), example.shape), ()",
        "reshape(3, -1)", "reshape", "x", "stopped", "missing term",
    ),
    edit(
        "transpose: not inverted",
        "layers/shape",
        "inverse = np.argsort(order(delta.ndim - 1))", "inverse = order(delta.ndim - 1)",
        "transpose(1, 2, 0)", normal(4, 3, 3, 3), "x", "transpose",
    ),
    edit(
        "concatenate: entries in reverse order",
        "layers/shape",
        "return tuple(delta[..., a:b] for a, b in itertools.pairwise(ends)), ()",
        "return tuple(delta[..., a:b] for a, b in itertools.pairwise(ends))[::-1], ()",
        "concatenate", entries(normal(4, 3, 2), normal(4, 3, 2)), "x.0 x.1", "transpose",
    ),
)  # fmt: skip

NORMALIZATION = (
    edit(
        "layer_norm: mean term missing",
        "layers/normalization",
        "return inverse * (g - weighted(delta, scale / n) - x * along)",
        "return inverse * (g - x * along)",
        "spread_out(layer_norm())", "layer_norm", "x", "missing term",
    ),
    edit(
        "layer_norm: projection missing",
        "layers/normalization",
        "return inverse * (g - weighted(delta, scale / n) - x * along)",
        "return inverse * (g - weighted(delta, scale / n))",
        "spread_out(layer_norm())", "layer_norm", "x", "missing term",
    ),
    edit(
        "layer_norm: mean term counted twice",
        "layers/normalization",
        "return inverse * (g - weighted(delta, scale / n) - x * along)",
        "return inverse * (g - 2 * weighted(delta, scale / n) - x * along)",
        "spread_out(layer_norm())", "layer_norm", "x", "counted twice", "factor",
    ),
    edit(
        "layer_norm: scale's gradient at what is not normalised",
        "layers/normalization",
        "return delta_x, statistic(site, normal, delta)",
        "return delta_x, statistic(site, normal / inverse, delta)",
        "spread_out(layer_norm())", "layer_norm", "scale", "wrong place", "factor",
    ),
    edit(
        "layer_norm: scale's gradient summed in half precision",
        "layers/normalization",
        "product = total(accumulated(normal) * accumulated(delta))",
        "product = total(normal.astype(jnp.bfloat16) * delta.astype(jnp.bfloat16))",
        "spread_out(layer_norm())", "layer_norm", "scale", "low precision",
    ),
    edit(
        "rms_norm: sign of the projection",
        "layers/normalization",
        "return inverse * (g - x * weighted(delta * x, scale / scale.shape[0]))",
        "return inverse * (g + x * weighted(delta * x, scale / scale.shape[0]))",
        "spread_out(rms_norm())", "rms_norm", "x", "sign",
    ),
    edit(
        "rms_norm: sum for the mean",
        "layers/normalization",
        "weighted(delta * x, scale / scale.shape[0])", "weighted(delta * x, scale)",
        "spread_out(rms_norm())", "rms_norm", "x", "factor",
    ),
    edit(
        "group_norm: projection missing",
        "layers/normalization",
        "(inverse * (g - mean(g) - x * mean(g * x))).reshape(shape)",
        "(inverse * (g - mean(g))).reshape(shape)",
        "spread_out(group_norm(2))", "group_norm", "x", "missing term",
    ),
    edit(
        "group_norm: bias of the first place alone",
        "layers/normalization",
        'return grads | {"b": total(delta)} if bias else grads',
        'return grads | {"b": total(delta[:, :1])} if bias else grads',
        "spread_out(group_norm(2))", "group_norm", "b", "missing term",
    ),
    edit(
        "batch_norm: mean and variance taken for constants",
        "layers/batch_norm",
        "delta_x = inverse * (g - _mean(g) - x * _mean(g * x))", "delta_x = inverse * g",
        "spread_out(batch_norm())", "batch_norm", "x", "missing term",
    ),
    edit(
        "batch_norm: the factor of an unbiased variance",
        "layers/batch_norm",
        "delta_x = inverse * (g - _mean(g) - x * _mean(g * x))",
        "delta_x = inverse * (g - _mean(g) - x * _mean(g * x)) * (1 - 1 / len(x))",
        "spread_out(batch_norm())", "batch_norm", "x", "factor",
    ),
    edit(
        "batch_norm: sign of the mean",
        "layers/batch_norm",
        "(g - _mean(g) - x * _mean(g * x))", "(g + _mean(g) - x * _mean(g * x))",
        "spread_out(batch_norm())", "batch_norm", "x", "sign", "factor",
    ),
    edit(
        "frozen_norm: sign of the delta",
        "layers/batch_norm",
        "delta_x = wide * (scale * inverse_of", "delta_x = -wide * (scale * inverse_of",
        f"spread_out(frozen_norm({MOMENTS}))", "frozen_norm", "x", "sign",
    ),
    edit(
        "frozen_norm: the scale left out",
        "layers/batch_norm",
        "wide * (scale * inverse_of(wide.dtype))", "wide * inverse_of(wide.dtype)",
        f"spread_out(frozen_norm({MOMENTS}))", "frozen_norm", "x", "factor",
    ),
    edit(
        "frozen_norm: epsilon missing",
        "layers/batch_norm",
        "scale * inverse_of(wide.dtype)", "scale * variance.astype(wide.dtype) ** -0.5",
        f"spread_out(frozen_norm({MOMENTS}, epsilon=1e-2))",
        "frozen_norm", "x", "wrong function", "factor",
    ),
    edit(
        "dropout: the mask ignored",
        "layers/dropout",
        "return delta if mask is None else thinned(delta, mask), ()",
        "return delta if mask is None else delta / (1 - rate), ()",
        "keyed(dropout(0.4))", "dropout with a key", "x", "mask ignored",
    ),
    edit(
        "dropout: the keep probability missing",
        "layers/dropout",
        "return delta if mask is None else thinned(delta, mask), ()",
        "return delta if mask is None else jnp.where(mask, delta, 0), ()",
        "keyed(dropout(0.4))", "dropout with a key", "x", "factor",
    ),
    edit(
        "dropout: another mask is drawn",
        "layers/dropout",
        "return delta if mask is None else thinned(delta, mask), ()",
        "return thinned(delta, __import__('numpy').random.random(mask.shape) > rate), ()",
        "keyed(dropout(0.4))", "dropout with a key", "x", "not deterministic",
    ),
)  # fmt: skip

EMBEDDING = (
    edit(
        "embedding: repeated ids counted once",
        "layers/embedding",
        'start.at[ids].add(delta, mode="drop")', 'start.at[ids].set(delta, mode="drop")',
        "embedding(5, 3)", "embedding", "w", "missing term",
    ),
    edit(
        "embedding: ids from 1",
        "layers/embedding",
        'start.at[ids].add(delta, mode="drop")', 'start.at[ids + 1].add(delta, mode="drop")',
        "embedding(5, 3)", "embedding", "w", "off by one",
    ),
    edit(
        "embedding: delta in half precision",
        "layers/embedding",
        "delta = contraction.accumulated(delta)\n",
        "delta = contraction.accumulated(delta.astype(jnp.bfloat16))\n",
        "embedding(5, 3)", "embedding", "w", "low precision",
    ),
    edit(
        "embedding: mean over the batch",
        "layers/embedding",
        'add(delta, mode="drop").astype(delta_dtype)',
        'add(delta / len(ids), mode="drop").astype(delta_dtype)',
        "embedding(5, 3)", "embedding", "w", "factor",
    ),
    edit(
        "positional: shifted by one step",
        "layers/embedding",
        "((0, unused), (0, 0))", "((unused, 0), (0, 0))",
        "positional(7)", "positional", "p", "off by one",
    ),
    edit(
        "positional: mean over the batch",
        "layers/embedding",
        "jnp.sum(delta, axis=0)", "jnp.mean(delta, axis=0)",
        "positional(7)", "positional", "p", "factor",
    ),
    edit(
        "sinusoidal: nothing sent back",
        "layers/embedding",
        "return delta, ()", "return 0 * delta, ()",
        "sinusoidal()", "sinusoidal", "x", "stopped",
    ),
    around(
        "share, tied embedding: the second use alone", "share, tied embedding",
        "shared.w", "missing term",
    )._replace(
        make=lambda: mutated(
            "core/sharing",
            "functools.reduce(jnp.add, accumulated(g)).astype(g[0].dtype)", "g[1]",
        ).share(
            fp.serial(fp.embedding(5, 3), fp.dense(3, fp.tanh), fp.affine(5, bias=False)),
            (0,), (2,),
        ),
    ),
)  # fmt: skip

GROUPED = (normal(4, 3, 4, 2), normal(4, 5, 2, 2), normal(4, 5, 2, 2))
KEYS = np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [1, 0, 0, 0, 0]], bool)
MASKED = entries(*GROUPED, lambda draw: KEYS)

ATTENTION = (
    edit(
        "attention: the softmax's sum missing",
        "layers/attention",
        "p * (_products(delta, v) - along)", "p * _products(delta, v)",
        "attention()", MASKED, "x.0 x.1", "missing term",
    ),
    edit(
        "attention: not divided by the root of d",
        "layers/attention",
        "(_products(delta, v) - along) / math.sqrt(q.shape[-1])",
        "(_products(delta, v) - along)",
        "attention()", MASKED, "x.0 x.1", "factor",
    ),
    edit(
        "attention: the queries' heads reversed",
        "layers/attention",
        "_heads(_mixed(delta_s, k), groups),", "_heads(_mixed(delta_s, k), groups)[:, :, ::-1],",
        "attention()", MASKED, "x.0", "transpose",
    ),
    edit(
        "attention: the values' weights not transposed",
        "layers/attention",
        "_gathered(delta, p),", "_gathered(delta, jnp.swapaxes(p, -1, -2)),",
        "attention()", entries(normal(4, 5, 2, 2), normal(4, 5, 2, 2), normal(4, 5, 2, 2)),
        "x.2", "transpose",
    ),
    edit(
        "attention, in blocks: what is ahead is seen",
        "layers/attention",
        "p = jnp.exp(seen.scores(part_q, part_k, size, i, j) - log)",
        "p = jnp.exp(_products(part_q, part_k) / math.sqrt(part_q.shape[-1]) - log)",
        "attention(causal=True, window=4, block=2)", "attention, causal, in blocks",
        "x.0 x.1 x.2", "mask ignored",
    ),
    edit(
        "attention, in blocks: the last block alone",
        "layers/attention",
        "_put(leaf, n, _at(leaf, n, size) + new)", "_put(leaf, n, new)",
        "attention(causal=True, window=4, block=2)", "attention, causal, in blocks",
        "x.0 x.1 x.2", "missing term",
    ),
    around(
        "attention: one head of the keys by 10 %",
        "attention, grouped, with a mask", "x.1", "factor", draw=MASKED,
        x=lambda d: (d[0], d[1].at[:, :, 1].multiply(1.1), *d[2:]),
    ),
    edit(
        "rotary: turned the same way",
        "layers/rotary",
        "return turned(delta, base, -1.0), ()", "return turned(delta, base), ()",
        "rotary()", "rotary", "x", "transpose", "sign",
    ),
    edit(
        "rotary: turned one step too far",
        "layers/rotary",
        "return turned(delta, base, -1.0), ()",
        "return turned(jnp.pad(delta, ((0, 0), (1, 0), *[(0, 0)] * (delta.ndim - 2))),"
        " base, -1.0)[:, 1:], ()",
        "rotary()", "rotary", "x", "off by one",
    ),
    edit(
        "multi_head_attention: deltas not turned back",
        "layers/transformer",
        "delta_q, delta_k = (turned(leaf, rotary_base, -1.0) for leaf in (delta_q, delta_k))",
        "pass",
        "multi_head_attention(2, causal=True, rotary_base=100.0)", "multi_head_attention",
        "qkv.w qkv.b x", "wrong place", "transpose",
    ),
    edit(
        "multi_head_attention: heads reversed",
        "layers/transformer",
        "mix.backward((), residuals[\"mix\"], delta_mixed)[0]",
        "mix.backward((), residuals[\"mix\"], delta_mixed[:, :, ::-1])[0]",
        "multi_head_attention(2, causal=True, rotary_base=100.0)", "multi_head_attention",
        "qkv.w qkv.b x", "transpose",
    ),
    edit(
        "multi_head_attention: delta rounded",
        "layers/transformer",
        "first = delta[0] if isinstance(delta, tuple) else delta\n        d, made",
        "first = delta.astype(jnp.bfloat16).astype(delta.dtype)\n        d, made",
        "multi_head_attention(2, causal=True, rotary_base=100.0)", "multi_head_attention",
        "qkv.w qkv.b out.w out.b x", "low precision",
    ),
    edit(
        "transformer_block: keys and values swapped",
        "layers/transformer",
        '"qkv": [delta_q, delta_k, delta_v]', '"qkv": [delta_q, delta_v, delta_k]',
        "transformer_block(2, 5)", "transformer_block", "0.0.w", "transpose",
    )._replace(
        wrong=paths("0.0.b 0.0.scale 0.1.qkv.w 0.1.qkv.b x.0")
    ),
    edit(
        "decoder_block: the memory's other uses dropped",
        "layers/transformer",
        'delta[1] + deltas["kv"]', 'deltas["kv"]',
        "decoder_block(2, 5)", "decoder_block", "x.1", "missing term",
    ),
    edit(
        "glu: halves swapped",
        "layers/gated",
        "[delta_gate, delta_h * gate]", "[delta_h * gate, delta_gate]",
        "glu(3)", "glu", "in.w in.b x", "transpose",
    ),
    edit(
        "swiglu: the gate before its activation",
        "layers/gated",
        "[delta_gate, delta_h * gate]", "[delta_gate, delta_h * kept_gate]",
        "swiglu(3, bias=False)", "swiglu", "in.w x", "wrong place",
    ),
    edit(
        "geglu: sigmoid's slope for gelu's",
        "layers/gated",
        "delta_gate, _ = activation.backward((), kept_gate, delta_h * up)",
        "delta_gate = jax.nn.sigmoid(kept_gate) * jax.nn.sigmoid(-kept_gate) * delta_h * up",
        "geglu(3)", "geglu", "in.w in.b x", "wrong function",
    ),
)  # fmt: skip

SHORT = entries(normal(4, 3, 2), lambda draw: np.array([1, 3, 2, 2], np.int32))

RECURRENT = (
    edit(
        "rnn: no delta through the recurrence",
        "layers/rnn",
        'return (transport(delta_z, weights["u"], like=delta_z),), (delta_z,)',
        'return (0 * transport(delta_z, weights["u"], like=delta_z),), (delta_z,)',
        "rnn(3, fp.gelu)", "rnn", "w u b x", "missing term",
    ),
    edit(
        "rnn: recurrent weights transposed",
        "layers/rnn",
        'return (transport(delta_z, weights["u"], like=delta_z),), (delta_z,)',
        'return (transport(delta_z, weights["u"].T, like=delta_z),), (delta_z,)',
        "rnn(3, fp.gelu)", "rnn", "w u b x", "transpose",
    ),
    edit(
        "rnn: the state behind the step for the one before it",
        "layers/recurrent",
        "h = _before(y, own)", "h = y",
        "rnn(3, fp.gelu)", "rnn", "u", "off by one", into="layers/rnn",
    ),
    edit(
        "rnn: the first step stopped",
        "layers/rnn",
        'return transport(delta_z, weights["w"], like=x), statistic(site, (x, h), delta_z)',
        "return (transport(delta_z, weights['w'], like=x).at[:, 0].set(0),"
        " statistic(site, (x, h), delta_z))",
        "rnn(3, fp.gelu)", "rnn", "x", "stopped", "missing term",
    ),
    edit(
        "rnn, chunks: the last state's delta dropped",
        "layers/recurrent",
        "last = accumulated(last or (jnp.zeros_like(delta[:, 0]),) * cell.arrays)",
        "last = accumulated((jnp.zeros_like(delta[:, 0]),) * cell.arrays)",
        "rnn(3, state=True, chunk=2)", "rnn, chunks", "w u b x.0 x.2", "missing term",
        into="layers/rnn",
    ),
    edit(
        "lstm: no delta through the forget gate",
        "layers/lstm",
        "like=delta_z), delta_c * f), (delta_z,)", "like=delta_z), 0 * delta_c), (delta_z,)",
        "lstm(3)", "lstm", "w u b x", "missing term",
    ),
    edit(
        "lstm: the cell's delta not carried",
        "layers/lstm",
        "delta_c = delta_c + delta_h * o * (1 - squashed * squashed)",
        "delta_c = delta_h * o * (1 - squashed * squashed)",
        "lstm(3)", "lstm", "w u b x", "missing term",
    ),
    edit(
        "lstm: gates in another order",
        "layers/lstm",
        "delta_z = jnp.concatenate(gates, axis=-1).astype(h.dtype)",
        "delta_z = jnp.concatenate([gates[n] for n in (1, 0, 2, 3)], axis=-1).astype(h.dtype)",
        "lstm(3)", "lstm", "w u b x", "transpose",
    ),
    edit(
        "lstm: sigmoid's slope for tanh's",
        "layers/lstm",
        "delta_c * i * (1 - g * g),", "delta_c * i * g * (1 - g),",
        "lstm(3)", "lstm", "w u b x", "wrong function",
    ),
    edit(
        "lstm: the cell for its squashed form",
        "layers/lstm",
        "delta_h * squashed * o * (1 - o),", "delta_h * jnp.arctanh(squashed) * o * (1 - o),",
        "lstm(3)", "lstm", "w u b x", "wrong place", "wrong function",
    ),
    edit(
        "lstm: delta of the cell clipped",
        "layers/lstm",
        "like=delta_z), delta_c * f), (delta_z,)",
        "like=delta_z), jnp.clip(delta_c * f, -0.1, 0.1)), (delta_z,)",
        "lstm(3)", "lstm", "w u b x", "not linear",
    ),
    edit(
        "lstm: deltas rounded at every step",
        "layers/lstm",
        "delta_z = jnp.concatenate(gates, axis=-1).astype(h.dtype)",
        "delta_z = jnp.concatenate(gates, axis=-1).astype(jnp.bfloat16).astype(h.dtype)",
        "lstm(3)", "lstm", "w u b x", "low precision",
    ),
    around("lstm: nothing sent to the steps before", "lstm", "x", "stopped", x=lambda d: 0 * d),
    around("lstm: numbers from NumPy", "lstm", "u", "not deterministic",
           params=lambda g: g | {"u": diced(g["u"])}),
    edit(
        "lstm, chunks: recurrent weights get the mean over the batch",
        "layers/recurrent_weights",
        'return {"w": w, "u": u, "b": contraction.total(delta)}',
        'return {"w": w, "u": u / len(delta), "b": contraction.total(delta)}',
        "lstm(3, state=True, chunk=2)", "lstm, chunks", "u", "factor", into="layers/lstm",
    ),
    edit(
        "gru: no delta around the update gate",
        "layers/gru",
        "return (delta_h * z + through.astype(z.dtype),)", "return (through.astype(z.dtype),)",
        "gru(3)", "gru", "x.w x.b h.w h.b x.0", "missing term",
    ),
    edit(
        "gru: sign of the update gate",
        "layers/gru",
        "(h.astype(n.dtype) - n) * z * (1 - z)", "(n - h.astype(n.dtype)) * z * (1 - z)",
        "gru(3)", "gru", "x.w x.b h.w h.b x.0", "sign",
    ),
    edit(
        "gru: sigmoid for tanh",
        "layers/gru",
        "delta_h * (1 - z) * (1 - n * n)", "delta_h * (1 - z) * n * (1 - n)",
        "gru(3)", "gru", "x.w x.b h.w h.b x.0", "wrong function",
    ),
    edit(
        "gru, chunks: the steps behind the last whole chunk missing",
        "layers/recurrent_weights",
        "if time % chunk:\n            total", "if False:\n            total",
        "gru(3, chunk=2)", "gru, chunks", "x.w x.b h.w h.b", "missing term", "off by one",
        into="layers/gru",
    ),
    edit(
        "gru: deltas of the padding",
        "layers/recurrent",
        "delta = only_real(swapped(steps.real), delta)\n", "pass\n",
        "gru(3)", SHORT, "x.w x.b h.w h.b x.0", "mask ignored", into="layers/gru",
    ),
    around(
        "gru: delta of x summed over the batch", "gru", "x.0", "structure",
        x=lambda d: (d[0].sum(0), *d[1:]),
    ),
    edit(
        "reverse: not turned back",
        "layers/bidirectional",
        "return turned(delta_x, lengths), tree", "return delta_x, tree",
        "reverse(fp.gru(3))", "reverse", "x.0", "transpose",
    ),
    edit(
        "bidirectional: one of two directions",
        "layers/bidirectional",
        "first = _entries(deltas[0])[0] + _entries(deltas[1])[0]",
        "first = _entries(deltas[0])[0]",
        "bidirectional(fp.lstm(3, state=True))", "bidirectional", "x.0", "missing term",
    ),
    edit(
        "bidirectional: directions swapped",
        "layers/bidirectional",
        "cut, made = (first[..., :size], first[..., size:]), []",
        "cut, made = (first[..., size:], first[..., :size]), []",
        "bidirectional(fp.lstm(3, state=True))", "bidirectional",
        "0.w 0.u 0.b 1.w 1.u 1.b x.0 x.2.0.0 x.2.0.1 x.2.1.0 x.2.1.1", "transpose",
    ),
    edit(
        "last_step: one step later",
        "layers/sequence",
        "jnp.clip(lengths, 1, time)[:, None] - 1", "jnp.clip(lengths, 0, time - 1)[:, None]",
        "last_step", SHORT, "x.0", "off by one",
    ),
    edit(
        "last_step: empty sequences",
        "layers/sequence",
        "is_last = is_last & (lengths != 0)[:, None]", "pass",
        "last_step", "last_step", "x.0", "mask ignored",
    ),
)  # fmt: skip

STATE_SPACE = (
    edit(
        "diagonal_recurrence: not conjugated",
        "layers/diagonal",
        "g = scanned(jnp.conj(lam), delta, reverse=True)", "g = scanned(lam, delta, reverse=True)",
        "diagonal_recurrence()", "diagonal_recurrence", "nu theta x", "transpose", "sign",
    ),
    edit(
        "diagonal_recurrence: the state of the same step",
        "layers/diagonal",
        "jnp.conj(h[:, :-1]) * g[:, 1:]", "jnp.conj(h[:, 1:]) * g[:, 1:]",
        "diagonal_recurrence()", "diagonal_recurrence", "nu theta", "off by one",
    ),
    edit(
        "diagonal_recurrence with a state: its term missing",
        "layers/diagonal",
        "delta_lam += jnp.conj(_complex(start)) * g[:, 0]", "pass",
        "diagonal_recurrence(state=True)", "diagonal_recurrence with a state",
        "nu theta", "missing term",
    ),
    edit(
        "diagonal_recurrence: gamma taken for a constant",
        "layers/diagonal",
        "(delta_gamma * shrink - jnp.real(by_exponent))", "(-jnp.real(by_exponent))",
        "diagonal_recurrence(parallel=False)", "diagonal_recurrence, step by step",
        "nu", "missing term",
    ),
    edit(
        "diagonal_recurrence with a state: the last state's delta dropped",
        "layers/diagonal",
        "delta = delta.at[:, -1].add(_complex(h))", "pass",
        "diagonal_recurrence(state=True)", "diagonal_recurrence with a state",
        "nu theta x.0 x.1", "missing term",
    ),
    edit(
        "diagonal_recurrence: forward in time",
        "layers/diagonal",
        "g = scanned(jnp.conj(lam), delta, reverse=True)", "g = scanned(jnp.conj(lam), delta)",
        "diagonal_recurrence()", "diagonal_recurrence", "nu theta x", "transpose",
    ),
    edit(
        "ssm: the skip's branch not added",
        "layers/ssm",
        'delta_x = delta_x + matched(weights["skip"]["d"] * delta, Varying.of(x))', "pass",
        "ssm(3)", "ssm", "x", "missing term",
    ),
    edit(
        "ssm: the skip's gradient in half precision",
        "layers/ssm",
        "total(accumulated(x) * accumulated(delta)).astype(delta.dtype)",
        "total(x.astype(jnp.bfloat16) * delta.astype(jnp.bfloat16)).astype(delta.dtype)",
        "ssm(3)", "ssm", "skip.d", "low precision",
    ),
    edit(
        "ssm with a state: the skip averaged over time",
        "layers/ssm",
        '"skip": statistic(skip, x, delta)', '"skip": statistic(skip, x, delta / x.shape[1])',
        "ssm(2, state=True)", "ssm with a state", "skip.d", "factor",
    ),
)  # fmt: skip

TREE = (
    edit(
        "tree_rnn: a child keeps the last parent's delta",
        "layers/children",
        '.add(rows.astype(buffer.dtype), mode="drop")',
        '.set(rows.astype(buffer.dtype), mode="drop")',
        "tree_rnn(4)", "tree_rnn", "w u b x.0", "missing term", into="layers/tree",
    ),
    edit(
        "tree_rnn: a node's own state for its children's",
        "layers/tree",
        "return (delta_x, None), statistic(site, (x, s), delta_z)",
        "return (delta_x, None), statistic(site, (x, kept), delta_z)",
        "tree_rnn(4)", "tree_rnn", "u", "wrong place", "off by one",
    ),
    edit(
        "tree_rnn, softplus: children get a mean",
        "layers/tree",
        "sent = transport(delta_z, u, like=delta_z)[:, None]",
        "sent = transport(delta_z, u, like=delta_z)[:, None] / 2",
        "tree_rnn(4, fp.softplus)", "tree_rnn, softplus", "w u b x.0", "factor",
    ),
    edit(
        "tree_lstm: no delta through the forget gate",
        "layers/tree_lstm",
        "add_below(buffers[1], nodes, delta_c[:, None] * f)", "buffers[1]",
        "tree_lstm(4)", "tree_lstm", "gates.w gates.u gates.b forget.w forget.u forget.b x.0",
        "missing term",
    ),
    edit(
        "tree_lstm: the first child alone",
        "layers/tree_lstm",
        '{"w": outer(jnp.sum(delta, axis=2), x),', '{"w": outer(delta[:, :, 0], x),',
        "tree_lstm(4)", "tree_lstm", "forget.w", "missing term",
    ),
    edit(
        "tree_lstm: tanh's slope for sigmoid's",
        "layers/tree_lstm",
        "delta_i = delta_c * u * i * (1 - i)", "delta_i = delta_c * u * (1 - i * i)",
        "tree_lstm(4)", "tree_lstm", "gates.w gates.u gates.b forget.w forget.u forget.b x.0",
        "wrong function",
    ),
    edit(
        "tree_lstm: gates in another order",
        "layers/tree_lstm",
        "[delta_i, delta_o, delta_u]", "[delta_o, delta_i, delta_u]",
        "tree_lstm(4)", "tree_lstm", "gates.w gates.u gates.b forget.w forget.u forget.b x.0",
        "transpose",
    ),
)  # fmt: skip

GRAPH = (
    edit(
        "graph_conv: edges not turned",
        "layers/graph",
        "graphs._replace(source=graphs.target, target=graphs.source)", "graphs",
        "graph_conv(2)", "graph_conv", "w x.0", "transpose",
    ),
    edit(
        "graph_conv: a node's own term missing",
        "layers/graph",
        "delta_h = _propagated(delta, own, edge, turned)",
        "delta_h = _propagated(delta, 0 * own, edge, turned)",
        "graph_conv(2)", "graph_conv", "w x.0", "missing term",
    ),
    edit(
        "graph_conv, twice, with a mask: the mask ignored",
        "layers/graph",
        "delta, *others = delta\n        delta = graphs.real(delta)\n", "delta, *others = delta\n",
        "fp.serial(graph_conv(4, bias=False), fp.on(0, fp.tanh), graph_conv(2))",
        "graph_conv, twice, with a mask", "2.b x.0", "mask ignored",
    ),
    edit(
        "graph_attention: the softmax's sum missing",
        "layers/graph_attention",
        "delta_z = edge * (by_edge - taken(along, target))", "delta_z = edge * by_edge",
        "graph_attention(2, heads=2)", "graph_attention", "in.w out.a x.0", "missing term",
    ),
    edit(
        "graph_attention: no slope below 0",
        "layers/graph_attention",
        "delta_z = jnp.where(rises, delta_z, slope * delta_z)", "pass",
        "graph_attention(2, heads=2)", "graph_attention", "in.w out.a x.0",
        "wrong function", "factor",
    ),
    edit(
        "graph_attention, mean of heads: not divided by their number",
        "layers/graph_attention",
        "delta_o[:, :, None] / heads", "delta_o[:, :, None]",
        "graph_attention(3, heads=2, concat=False)", "graph_attention, mean of heads, with a mask",
        "in.w out.a x.0", "factor",
    ),
    edit(
        "graph_attention: sources and targets swapped",
        "layers/graph_attention",
        "for ends in (source, target))", "for ends in (target, source))",
        "graph_attention(2, heads=2)", "graph_attention", "in.w out.a x.0", "transpose",
    ),
    edit(
        "message_passing: sources alone",
        "layers/message_passing",
        "delta_x = added(added(start, graphs.source, source), graphs.target, target)",
        "delta_x = added(start, graphs.source, source)",
        "message_passing(fp.serial(fp.concatenate, fp.dense(2, fp.tanh)))", "message_passing",
        "x.0", "missing term",
    ),
    edit(
        "message_passing, mean: not divided by the degree",
        "layers/message_passing",
        "delta_r = (accumulated(delta_r) / kept).astype(delta_r.dtype)", "pass",
        "message_passing(fp.serial(fp.concatenate, fp.dense(2, fp.tanh)),"
        " fp.serial(fp.concatenate, fp.dense(3)), reduce='mean')",
        "message_passing, mean, with an update", "0.1.w 0.1.b x.0", "factor",
    ),
    edit(
        "message_passing, maximum: all messages win",
        "layers/message_passing",
        "jnp.where(ties, taken(share, graphs.target), jnp.zeros((), m.dtype))",
        "taken(share, graphs.target)",
        "message_passing(fp.serial(fp.concatenate, fp.dense(2, fp.tanh)), reduce='max',"
        " edge_features=True)",
        "message_passing, maximum, of edge features", "0.1.w 0.1.b x.0 x.2", "mask ignored",
    ),
    edit(
        "message_passing: the features' delta dropped",
        "layers/message_passing",
        "d + graphs.sound(graphs.joining(f)).astype(d.dtype)", "d",
        "message_passing(fp.serial(fp.concatenate, fp.dense(2, fp.tanh)), reduce='max',"
        " edge_features=True)",
        "message_passing, maximum, of edge features", "x.2", "missing term",
    ),
    edit(
        "graph_pool: masked nodes counted",
        "layers/graph_pool",
        "each / count(kept.shape[0], mask, delta)[:, None]",
        "each / count(kept.shape[0], None, delta)[:, None]",
        "graph_pool()", "graph_pool", "x.0", "mask ignored", "factor",
    ),
    edit(
        "graph_pool: masked nodes get a delta",
        "layers/graph_pool",
        "each = real(jnp.broadcast_to(each, (len(delta), *kept.shape)), mask)",
        "each = jnp.broadcast_to(each, (len(delta), *kept.shape))",
        "graph_pool()", "graph_pool", "x.0", "mask ignored",
    ),
    edit(
        "graph_pool, maximum: all nodes win",
        "layers/graph_pool",
        "(x == y[:, None]).astype(x.dtype)", "(x <= y[:, None]).astype(x.dtype)",
        "graph_pool('max')", "graph_pool, maximum", "x.0", "mask ignored",
    ),
)  # fmt: skip

EXPERTS = (
    edit(
        "mixture_of_experts: the router's softmax without its sum",
        "layers/mixture_of_experts",
        "return p * (delta - jnp.sum(p * delta, axis=-1, keepdims=True))", "return p * delta",
        "mixture_of_experts(3, 4, activation=fp.tanh)", "mixture_of_experts",
        "router.w x", "missing term",
    ),
    edit(
        "mixture_of_experts: the balance's delta dropped",
        "layers/mixture_of_experts",
        "(delta_s + _through_softmax(p, delta_p)).astype(x.dtype)", "delta_s.astype(x.dtype)",
        "mixture_of_experts(3, 4, activation=fp.tanh)", "mixture_of_experts",
        "router.w x", "missing term",
    ),
    edit(
        "mixture_of_experts: the last block of an expert alone",
        "layers/routing",
        "grad.at[e].add(part)", "grad.at[e].set(part)",
        "mixture_of_experts(3, 4, activation=fp.tanh)", "mixture_of_experts",
        "up.w up.b down.w down.b", "missing term", into="layers/mixture_of_experts",
    ),
    edit(
        "mixture_of_experts, gated: one half for the other",
        "layers/mixture_of_experts",
        "jnp.concatenate([delta_first, delta * first], axis=-1)",
        "jnp.concatenate([delta * first, delta_first], axis=-1)",
        "mixture_of_experts(4, 3, activation=fp.silu, gated=True)",
        "mixture_of_experts, gated, with a balance", "up.w up.b x.0", "transpose",
    ),
    edit(
        "mixture_of_experts, gated: the number of experts missing",
        "layers/mixture_of_experts",
        "delta_p = experts * by_balance * slope", "delta_p = by_balance * slope",
        "mixture_of_experts(4, 3, activation=fp.silu, gated=True)",
        "mixture_of_experts, gated, with a balance", "router.w x.0", "factor",
    ),
    edit(
        "mixture_of_experts, one of all: the experts' road to x missing",
        "layers/mixture_of_experts",
        "delta_x = by_router + matched(delta_x, Varying.of(x))", "delta_x = by_router",
        "mixture_of_experts(3, 4, chosen=1)",
        "mixture_of_experts, one of all, examples of one token", "x", "missing term",
    ),
)  # fmt: skip

LOSSES = (
    edit(
        "mean_squared_error: 2 missing",
        "losses/standard",
        "lambda p, t: 2 * (p - t),", "lambda p, t: p - t,",
        "mean_squared_error", "mean_squared_error", "x.0", "factor",
    ),
    edit(
        "mean_squared_error: sign of the target's",
        "losses/standard",
        "lambda p, t: 2 * (t - p),", "lambda p, t: 2 * (p - t),",
        "mean_squared_error", "mean_squared_error", "x.1", "sign",
    ),
    edit(
        "mean_squared_error, masked tokens: the mask ignored",
        "losses/standard",
        "    slopes = jnp.where(share == 0, jnp.zeros_like(slopes), slopes)\n"
        "    return delta.reshape(delta.shape + (1,) * (slopes.ndim - 1)) * share * slopes",
        "    share = jnp.max(share, axis=1, keepdims=True)\n"
        "    return delta.reshape(delta.shape + (1,) * (slopes.ndim - 1)) * share * slopes",
        "mean_squared_error", "mean_squared_error, masked tokens", "x.0 x.1.0", "mask ignored",
    ),
    edit(
        "mean_absolute_error: 0 for -1",
        "losses/standard",
        "jnp.where(p >= t, 1, -1)", "jnp.where(p >= t, 1, 0)",
        "mean_absolute_error", "mean_absolute_error", "x.0", "wrong function", "missing term",
    ),
    edit(
        "huber: not clipped",
        "losses/standard",
        "lambda p, t: clipped(p - t),", "lambda p, t: p - t,",
        "huber()", "huber", "x.0", "wrong function",
    ),
    edit(
        "huber: clipped at another threshold",
        "losses/standard",
        "jnp.clip(r, -threshold, threshold)", "jnp.clip(r, -1.1 * threshold, 1.1 * threshold)",
        "huber()", "huber", "x.0 x.1", "wrong function",
    ),
    edit(
        "sigmoid_cross_entropy: tanh for sigmoid",
        "losses/standard",
        "lambda p, t: jax.nn.sigmoid(p) - t,", "lambda p, t: jnp.tanh(p) - t,",
        "sigmoid_cross_entropy", "sigmoid_cross_entropy", "x.0", "wrong function",
    ),
    edit(
        "sigmoid_cross_entropy: target stopped",
        "losses/standard",
        "lambda p, t: -p,", "lambda p, t: 0 * p,",
        "sigmoid_cross_entropy", "sigmoid_cross_entropy", "x.1", "stopped",
    ),
    edit(
        "sigmoid_cross_entropy: exponentials overflow",
        "losses/standard",
        "lambda p, t: jax.nn.sigmoid(p) - t,", "lambda p, t: jnp.exp(p) / (1 + jnp.exp(p)) - t,",
        "sigmoid_cross_entropy", entries(normal(4, 3, scale=2000.0), probabilities(4, 3)),
        "x.0", "not finite",
    ),
    edit(
        "softmax_cross_entropy: the target's term missing",
        "losses/standard",
        "slopes = jnp.exp(log_p) * jnp.sum(q, axis=-1, keepdims=True) - q\n",
        "slopes = jnp.exp(log_p) * jnp.sum(q, axis=-1, keepdims=True)\n",
        "softmax_cross_entropy()", "softmax_cross_entropy", "x.0", "missing term",
    ),
    edit(
        "softmax_cross_entropy, distributions: sign",
        "losses/standard",
        "slopes = jnp.exp(log_p) * jnp.sum(q, axis=-1, keepdims=True) - q\n",
        "slopes = q - jnp.exp(log_p) * jnp.sum(q, axis=-1, keepdims=True)\n",
        "softmax_cross_entropy()", "softmax_cross_entropy, distributions", "x.0", "sign",
    ),
    edit(
        "softmax_cross_entropy, smoothed: labels from 1",
        "losses/standard",
        "slopes = jnp.exp(log_p) * jnp.sum(q, axis=-1, keepdims=True) - q\n",
        "slopes = jnp.exp(log_p) * jnp.sum(q, axis=-1, keepdims=True) - jnp.roll(q, 1, -1)\n",
        "softmax_cross_entropy(0.1)", "softmax_cross_entropy, smoothed", "x.0", "off by one",
    ),
    edit(
        "softmax_cross_entropy, masked tokens: the mask ignored",
        "losses/standard",
        "delta_prediction = spread(share, slopes, delta)",
        "delta_prediction = spread(0 * share + jnp.max(share, axis=1, keepdims=True), slopes,"
        " delta)",
        "softmax_cross_entropy()", "softmax_cross_entropy, masked tokens", "x.0", "mask ignored",
    ),
    edit(
        "softmax_cross_entropy, distributions: logits for log probabilities",
        "losses/standard",
        "else -log_p\n", "else -jnp.exp(log_p)\n",
        "softmax_cross_entropy()", "softmax_cross_entropy, distributions",
        "x.1", "wrong function", "wrong place",
    ),
    edit(
        "kl_divergence: the 1 missing",
        "losses/standard",
        "by_q = jnp.log(q) + 1 - log_p", "by_q = jnp.log(q) - log_p",
        "kl_divergence", "kl_divergence", "x.1", "missing term",
    ),
    edit(
        "hinge: the margin ignored",
        "losses/standard",
        "lambda p, t: jnp.where(t * p < 1, -t, 0),", "lambda p, t: -t,",
        "hinge", entries(normal(4, 3, scale=3.0), signs(4, 3)), "x.0",
        "mask ignored", "wrong function",
    ),
    edit(
        "hinge: sign",
        "losses/standard",
        "lambda p, t: jnp.where(t * p < 1, -t, 0),", "lambda p, t: jnp.where(t * p < 1, t, 0),",
        "hinge", "hinge", "x.0", "sign",
    ),
    edit(
        "linear_cross_entropy: the last chunk alone",
        "losses/vocabulary",
        "delta_h += contraction.transport", "delta_h = contraction.transport",
        "linear_cross_entropy(7, chunk=3)", "linear_cross_entropy, masked tokens",
        "x.0", "missing term",
    ),
    edit(
        "linear_cross_entropy: rows that fill up a chunk get a gradient",
        "losses/vocabulary",
        "delta_z = jnp.where(alive, delta_z, 0)", "pass",
        "linear_cross_entropy(7, chunk=3)", "linear_cross_entropy, masked tokens",
        "w", "mask ignored",
    ),
    edit(
        "linear_cross_entropy, smoothed: twice the smoothing",
        "losses/vocabulary",
        "+ label_smoothing / vocab\n", "+ 2 * label_smoothing / vocab\n",
        "linear_cross_entropy(7, label_smoothing=0.1, chunk=3)",
        "linear_cross_entropy, smoothed", "w x.0", "factor", "counted twice",
    ),
    edit(
        "linear_cross_entropy, smoothed: h rounded",
        "losses/vocabulary",
        "return delta_h, statistic(site, h, delta_z.astype(h.dtype))",
        "return delta_h, statistic(site, h.astype(jnp.bfloat16).astype(h.dtype),"
        " delta_z.astype(h.dtype))",
        "linear_cross_entropy(7, label_smoothing=0.1, chunk=3)",
        "linear_cross_entropy, smoothed", "w", "low precision",
    ),
    edit(
        "auxiliary: the coefficient missing",
        "losses/auxiliary",
        "coefficient * delta), target)", "delta), target)",
        "auxiliary(fp.softmax_cross_entropy(), 0.5)", "auxiliary", "x.0.1", "factor",
    ),
)  # fmt: skip

LAYER_FAULTS = (
    *ACTIVATIONS, *DENSE, *COMBINATORS, *CONVOLUTION, *POOLING, *NORMALIZATION, *EMBEDDING,
    *ATTENTION, *RECURRENT, *STATE_SPACE, *TREE, *GRAPH, *EXPERTS, *LOSSES,
)  # fmt: skip


# ------------------------------------------------------------------------- plain functions
#
# Each with its gradient by hand, by all of its arguments; a fault is a change to that source.


def log_sum_exp(x, w):
    """Σᵢ wᵢ log Σₖ exp xᵢₖ."""
    return jnp.sum(w * jax.nn.logsumexp(x, axis=1))


def log_sum_exp_gradient(x, w):
    top = x.max(1, keepdims=True)
    e = jnp.exp(x - top)
    total = e.sum(1, keepdims=True)
    return w[:, None] * e / total, (top + jnp.log(total))[:, 0]


def cross_entropy(z, q):
    """Mean over examples of -Σₖ qₖ log softmax(z)ₖ."""
    return -jnp.mean(jnp.sum(q * jax.nn.log_softmax(z), axis=1))


def cross_entropy_gradient(z, q):
    log_p = jax.nn.log_softmax(z)
    size = len(z)
    return (jnp.exp(log_p) * q.sum(1, keepdims=True) - q) / size, -log_p / size


def quadratic(a, x, b):
    """½ xᵀ A x - bᵀ x, A of any kind."""
    return x @ a @ x / 2 - b @ x


def quadratic_gradient(a, x, b):
    return jnp.outer(x, x) / 2, (a @ x + a.T @ x) / 2 - b, -x


def log_determinant(a):
    """log det (A Aᵀ + 1), of a matrix that is symmetric and positive."""
    return jnp.linalg.slogdet(a @ a.T + jnp.eye(len(a), dtype=a.dtype))[1]


def log_determinant_gradient(a):
    s = a @ a.T + jnp.eye(len(a), dtype=a.dtype)
    return (2 * jnp.linalg.solve(s, a),)


def cosine_similarity(u, v):
    """Sum over rows of the cosine between u and v."""
    lengths = jnp.linalg.norm(u, axis=1) * jnp.linalg.norm(v, axis=1)
    return jnp.sum(jnp.sum(u * v, axis=1) / lengths)


def cosine_similarity_gradient(u, v):
    a, b = (jnp.linalg.norm(leaf, axis=1, keepdims=True) for leaf in (u, v))
    cosine = jnp.sum(u * v, axis=1, keepdims=True) / (a * b)
    return v / (a * b) - cosine * u / a**2, u / (a * b) - cosine * v / b**2


def kernel_sum(x, y, log_gamma):
    """Σᵢⱼ exp(-γ |xᵢ - yⱼ|²)."""
    gaps = x[:, None] - y[None]
    return jnp.sum(jnp.exp(-jnp.exp(log_gamma) * jnp.sum(gaps**2, axis=-1)))


def kernel_sum_gradient(x, y, log_gamma):
    gamma = jnp.exp(log_gamma)
    gaps = x[:, None] - y[None]
    squares = jnp.sum(gaps**2, axis=-1)
    k = jnp.exp(-gamma * squares)
    pulls = 2 * gamma * k[..., None] * gaps
    return -pulls.sum(1), pulls.sum(0), -gamma * jnp.sum(k * squares)


def distances(x, w):
    """Σᵢⱼ wᵢⱼ √(|xᵢ - xⱼ|² + 0.01)."""
    gaps = x[:, None] - x[None]
    return jnp.sum(w * jnp.sqrt(jnp.sum(gaps**2, axis=-1) + 0.01))


def distances_gradient(x, w):
    gaps = x[:, None] - x[None]
    d = jnp.sqrt(jnp.sum(gaps**2, axis=-1) + 0.01)
    pulls = (w / d)[..., None] * gaps
    return pulls.sum(1) - pulls.sum(0), d


def robust_regression(w, b, x, y):
    """Mean of Huber's loss of x w + b - y."""
    r = x @ w + b - y
    return jnp.mean(jnp.where(jnp.abs(r) <= 1, r * r / 2, jnp.abs(r) - 0.5))


def robust_regression_gradient(w, b, x, y):
    r = x @ w + b - y
    slope = jnp.clip(r, -1, 1) / len(x)
    return x.T @ slope, slope.sum(), slope[:, None] * w, -slope


def dot_attention(q, k, v, c):
    """Σ c ⊙ softmax(q kᵀ/√d) v."""
    return jnp.sum(c * (jax.nn.softmax(q @ k.T / q.shape[1] ** 0.5) @ v))


def dot_attention_gradient(q, k, v, c):
    root = q.shape[1] ** 0.5
    p = jax.nn.softmax(q @ k.T / root)
    dp = c @ v.T
    ds = p * (dp - jnp.sum(dp * p, axis=1, keepdims=True)) / root
    return ds @ k, ds.T @ q, p.T @ c, p @ v


def gaussian(mean, p, x):
    """Log likelihood, up to a constant, of a normal distribution with precision PᵀP."""
    r = (x - mean) @ p.T
    return len(x) * jnp.linalg.slogdet(p)[1] - jnp.sum(r * r) / 2


def gaussian_gradient(mean, p, x):
    r = (x - mean) @ p.T
    dx = -r @ p
    return -dx.sum(0), len(x) * jnp.linalg.inv(p).T - r.T @ (x - mean), dx


def network(params, x, y):
    """Mean squared error of two layers."""
    h = jnp.tanh(x @ params["w1"].T + params["b1"])
    return jnp.mean((h @ params["w2"].T + params["b2"] - y) ** 2)


def network_gradient(params, x, y):
    z = x @ params["w1"].T + params["b1"]
    h = jnp.tanh(z)
    dy = 2 * (h @ params["w2"].T + params["b2"] - y) / y.size
    dz = dy @ params["w2"] * (1 - h * h)
    grads = {"w1": dz.T @ x, "b1": dz.sum(0), "w2": dy.T @ h, "b2": dy.sum(0)}
    return grads, dz @ params["w1"], -dy


def normalised_dot(x, gain, c):
    """Σ c ⊙ gain ⊙ (x - mean)/σ over the last axis."""
    x = x - x.mean(-1, keepdims=True)
    return jnp.sum(c * gain * x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-3))


def normalised_dot_gradient(x, gain, c):
    x = x - x.mean(-1, keepdims=True)
    inverse = 1 / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-3)
    n, g = x * inverse, c * gain
    dx = inverse * (g - g.mean(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True))
    return dx, (c * n).sum(0), gain * n


def recurrence(a, u, x):
    """½ Σₜ |hₜ|² with hₜ = tanh(A hₜ₋₁ + U xₜ)."""

    def step(h, x):
        h = jnp.tanh(a @ h + u @ x)
        return h, h

    return jnp.sum(jax.lax.scan(step, jnp.zeros(len(a), a.dtype), x)[1] ** 2) / 2


def recurrence_gradient(a, u, x):
    def step(h, x):
        h = jnp.tanh(a @ h + u @ x)
        return h, h

    _, h = jax.lax.scan(step, jnp.zeros(len(a), a.dtype), x)

    def back(carried, h):
        dz = (h + carried) * (1 - h * h)
        return a.T @ dz, dz

    _, dz = jax.lax.scan(back, jnp.zeros(len(a), a.dtype), h, reverse=True)
    before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])
    return dz.T @ before, dz.T @ x, dz @ u


def filtered(x, k, c):
    """Σ c ⊙ (x correlated with k), where they overlap."""
    taps = jnp.stack([x[i : len(x) - len(k) + 1 + i] for i in range(len(k))])
    return jnp.sum(c * (k @ taps))


def filtered_gradient(x, k, c):
    size = len(x) - len(k) + 1
    taps = jnp.stack([x[i : size + i] for i in range(len(k))])
    dx = jnp.zeros_like(x)
    for i in range(len(k)):
        dx = dx.at[i : size + i].add(k[i] * c)
    return dx, taps @ c, k @ taps


def _sizes(draw: np.random.Generator, count: int) -> list[int]:
    return [int(n) for n in draw.integers(3, 8, count)]


def _arrays(*letters: str, scale: float = 1.0) -> Callable[[np.random.Generator], tuple]:
    """Draws an array for each word, of axes of which each letter has one random size."""

    def drawn(draw):
        names = sorted(set("".join(letters)))
        size = dict(zip(names, _sizes(draw, len(names)), strict=True))
        return tuple(scale * draw.normal(size=[size[n] for n in word]) for word in letters)

    return drawn


def _network_arguments(draw: np.random.Generator) -> tuple:
    w1, b1, w2, b2, x, y = _arrays("hn", "h", "mh", "m", "bn", "bm")(draw)
    return {"w1": w1, "b1": b1, "w2": w2, "b2": b2}, x, y


def _gaussian_arguments(draw: np.random.Generator) -> tuple:
    mean, p, x = _arrays("n", "nn", "bn")(draw)
    return mean, p / 4 + np.eye(len(p)), x


def _filtered_arguments(draw: np.random.Generator) -> tuple:
    k, size = 2 + int(draw.integers(3)), int(draw.integers(4, 9))
    return draw.normal(size=k + size - 1), draw.normal(size=k), draw.normal(size=size)


FUNCTIONS: dict[Callable[..., Any], tuple[Callable[..., Any], Any]] = {
    log_sum_exp: (log_sum_exp_gradient, _arrays("bn", "b")),
    cross_entropy: (
        cross_entropy_gradient,
        lambda draw: (
            5 * (z := _arrays("bn")(draw)[0]),
            draw.dirichlet(np.ones(z.shape[1]), len(z)),
        ),
    ),
    quadratic: (quadratic_gradient, _arrays("nn", "n", "n")),
    log_determinant: (log_determinant_gradient, _arrays("nm")),
    cosine_similarity: (cosine_similarity_gradient, _arrays("bn", "bn")),
    kernel_sum: (kernel_sum_gradient, lambda draw: (*_arrays("an", "bn")(draw), np.float64(-0.7))),
    distances: (distances_gradient, _arrays("bn", "bb")),
    robust_regression: (robust_regression_gradient, _arrays("n", "", "bn", "b")),
    dot_attention: (dot_attention_gradient, _arrays("td", "sd", "sm", "tm")),
    gaussian: (gaussian_gradient, _gaussian_arguments),
    network: (network_gradient, _network_arguments),
    normalised_dot: (normalised_dot_gradient, _arrays("bn", "n", "bn")),
    recurrence: (recurrence_gradient, _arrays("hh", "hn", "tn")),
    filtered: (filtered_gradient, _filtered_arguments),
}


def change(
    f: Callable[..., Any], name: str, old: str, new: str, wrong: str, *kinds: str, draw: Any = None
) -> Fault:
    """A fault in the gradient of ``f``; ``wrong`` has the numbers of its arguments."""
    gradient, arguments = FUNCTIONS[f]

    def made():
        source = inspect.getsource(gradient)
        assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {f.__name__}"
        own = dict(globals())
        exec(source.replace(old, new), own)
        return f, own[gradient.__name__]

    def path(word):
        first, *keys = word.split(".")
        return f"[{first}]" + "".join(f"['{key}']" for key in keys)

    return Fault(
        f"{f.__name__}: {name}",
        "function",
        f.__name__,
        made,
        arguments if draw is None else draw,
        tuple(map(path, wrong.split())),
        kinds,
        correct=lambda: (f, gradient),
    )


def _twice(draw: np.random.Generator) -> tuple:
    x, w = draw.normal(size=(4, 3)), draw.normal(size=(4, 4))
    return np.concatenate([x[:3], x[:1]]), w


ROW = ".at[0].multiply(1.001)"

FUNCTION_FAULTS = (
    change(log_sum_exp, "the largest not subtracted", "top = x.max(1, keepdims=True)",
           "top = jnp.zeros_like(x[:, :1])", "0 1", "not finite",
           draw=_arrays("bn", "b", scale=2000.0)),
    change(log_sum_exp, "weights missing", "w[:, None] * e / total", "e / total", "0",
           "factor", "wrong function"),
    change(log_sum_exp, "one row by 0.1 %", "w[:, None] * e / total",
           f"(w[:, None] * e / total){ROW}", "0", "factor"),
    change(cross_entropy, "the batch's size missing", "size = len(z)", "size = 1", "0 1", "factor"),
    change(cross_entropy, "sign of the target", "-log_p / size", "log_p / size", "1", "sign"),
    change(cross_entropy, "labels from 1", "keepdims=True) - q)",
           "keepdims=True) - jnp.roll(q, 1, 1))", "0", "off by one"),
    change(quadratic, "one of two uses of A", "(a @ x + a.T @ x) / 2", "a @ x / 2", "1",
           "missing term"),
    change(quadratic, "A taken for symmetric", "(a @ x + a.T @ x) / 2", "a @ x", "1", "transpose",
           "counted twice"),
    change(quadratic, "one half missing", "jnp.outer(x, x) / 2", "jnp.outer(x, x)", "0", "factor"),
    change(quadratic, "the linear term missing", "/ 2 - b", "/ 2", "1", "missing term"),
    change(log_determinant, "2 missing", "2 * jnp", "jnp", "0", "factor"),
    change(log_determinant, "solved in half precision", "jnp.linalg.solve(s, a)",
           "rounded(jnp.linalg.solve(s, a), jnp.float16)", "0", "low precision"),
    change(log_determinant, "one column stopped", "2 * jnp.linalg.solve(s, a)",
           "2 * jnp.linalg.solve(s, a).at[:, 1].set(0)", "0", "stopped", "missing term"),
    change(cosine_similarity, "projection missing", "v / (a * b) - cosine * u / a**2",
           "v / (a * b)", "0", "missing term"),
    change(cosine_similarity, "sign of the projection", "u / (a * b) - cosine * v / b**2",
           "u / (a * b) + cosine * v / b**2", "1", "sign"),
    change(cosine_similarity, "length for its square", "cosine * u / a**2", "cosine * u / a", "0",
           "wrong function"),
    change(kernel_sum, "2 missing", "pulls = 2 * gamma", "pulls = gamma", "0 1", "factor"),
    change(kernel_sum, "sign of y", "pulls.sum(0), -gamma", "-pulls.sum(0), -gamma", "1", "sign"),
    change(kernel_sum, "gamma for its logarithm", "-gamma * jnp.sum(k", "-jnp.sum(k", "2",
           "factor"),
    change(distances, "one of two uses of x", "pulls.sum(1) - pulls.sum(0)", "pulls.sum(1)", "0",
           "missing term"),
    change(distances, "0/0 where two are the same",
           "pulls = (w / d)[..., None] * gaps",
           "pulls = (w / jnp.sqrt(jnp.sum(gaps**2, axis=-1)))[..., None] * gaps", "0",
           "not finite", draw=_twice),
    change(distances, "another epsilon", "axis=-1) + 0.01", "axis=-1) + 0.02", "0 1",
           "wrong function"),
    change(robust_regression, "not clipped", "jnp.clip(r, -1, 1)", "r", "0 1 2 3",
           "wrong function"),
    change(robust_regression, "bias stopped", "slope.sum()", "0 * slope.sum()", "1", "stopped"),
    change(robust_regression, "the learning rate in it", "x.T @ slope", "0.01 * x.T @ slope", "0",
           "factor"),
    change(dot_attention, "the softmax's sum missing",
           "(dp - jnp.sum(dp * p, axis=1, keepdims=True))", "dp", "0 1", "missing term"),
    change(dot_attention, "divided by d", "keepdims=True)) / root", "keepdims=True)) / root**2",
           "0 1", "factor"),
    change(dot_attention, "the sum in half precision", "jnp.sum(dp * p,",
           "jnp.sum((dp * p).astype(jnp.bfloat16),", "0 1", "low precision"),
    change(dot_attention, "weights transposed", "ds.T @ q, p.T @ c", "ds.T @ q, p @ c", "2",
           "transpose", draw=_arrays("td", "td", "tm", "tm")),
    change(gaussian, "inverse not transposed", "jnp.linalg.inv(p).T", "jnp.linalg.inv(p)", "1",
           "transpose"),
    change(gaussian, "the determinant's term missing", "len(x) * jnp.linalg.inv(p).T - r", "-r",
           "1", "missing term"),
    change(gaussian, "the determinant's term once for all examples",
           "len(x) * jnp.linalg.inv(p).T - r", "jnp.linalg.inv(p).T - r", "1", "factor"),
    change(network, "derivative at the pre-activation", "(1 - h * h)", "(1 - z * z)",
           "0.w1 0.b1 1", "wrong place"),
    change(network, "one hidden unit stopped", "(1 - h * h)", "(1 - h * h).at[:, 0].set(0)",
           "0.w1 0.b1 1", "stopped", "missing term"),
    change(network, "the number of outputs missing", "/ y.size", "/ len(y)",
           "0.w1 0.b1 0.w2 0.b2 1 2", "factor"),
    change(network, "one leaf missing", '"b2": dy.sum(0)}', "}", "0.b2", "structure"),
    change(network, "bias in half precision", '"b2": dy.sum(0)}',
           '"b2": dy.sum(0).astype(jnp.float16)}', "0.b2", "dtype"),
    change(network, "numbers from NumPy", '"w1": dz.T @ x', '"w1": diced(dz.T @ x)', "0.w1",
           "not deterministic"),
    change(normalised_dot, "mean term missing", "(g - g.mean(-1, keepdims=True) - n", "(g - n", "0",
           "missing term"),
    change(normalised_dot, "projection counted twice", "- n * (g * n)", "- 2 * n * (g * n)", "0",
           "counted twice", "factor"),
    change(normalised_dot, "gain's gradient at what is not normalised", "(c * n).sum(0)",
           "(c * x).sum(0)", "1", "wrong place", "factor"),
    change(normalised_dot, "another epsilon", "+ 1e-3)", "+ 1e-5)", "0 1 2", "wrong function"),
    change(recurrence, "the state of the same step", "return dz.T @ before, dz.T @ x",
           "return dz.T @ h, dz.T @ x", "0", "off by one"),
    change(recurrence, "nothing carried", "return a.T @ dz, dz", "return 0 * a.T @ dz, dz", "0 1 2",
           "missing term"),
    change(recurrence, "A not transposed", "return a.T @ dz, dz", "return a @ dz, dz", "0 1 2",
           "transpose"),
    change(recurrence, "the step's own loss missing", "dz = (h + carried) * (1 - h * h)",
           "dz = carried * (1 - h * h)", "0 1 2", "stopped", "missing term"),
    change(recurrence, "a counter", "dz @ u", "restless(dz @ u)", "2", "not deterministic"),
    change(filtered, "kernel reversed", "k[i] * c", "k[-1 - i] * c", "0", "transpose"),
    change(filtered, "the edge stopped", "return dx, taps", "return dx.at[0].set(0), taps", "0",
           "stopped", "missing term"),
    change(filtered, "taps shifted by one", "taps @ c,", "jnp.roll(taps, 1, axis=1) @ c,", "1",
           "off by one"),
)  # fmt: skip

# ------------------------------------------------------------------------------ statistics


def losses_of(model: Any, loss: Any) -> Callable[..., jax.Array]:
    return lambda params, x, y: loss.apply((), (model.apply(params, x), y))


def each(model: Any, loss: Any) -> Callable[..., Tree]:
    """Per-example gradients by jax."""
    return jax.jacrev(losses_of(model, loss))


def flat(grads: Tree) -> jax.Array:
    """Per-example gradients as one matrix (B, parameters)."""
    return jnp.concatenate([g.reshape(len(g), -1) for g in jax.tree.leaves(grads)], axis=1)


def curvature(model: Any, loss: Any) -> Callable[..., Tree]:
    """Diagonal of the Gauss-Newton matrix of the mean loss, by jax."""

    def diagonal(params, x, y):
        def own(z, y):
            return loss.apply((), (z[None], y[None]))[0]

        bent = jax.vmap(jax.hessian(own))(model.apply(params, x), y)
        slopes = jax.jacrev(model.apply)(params, x)
        return jax.tree.map(
            lambda j: jnp.einsum("bi...,bij,bj...->...", j, bent, j) / len(j), slopes
        )

    return diagonal


def jacobians(model: Any, loss: Any) -> Callable[..., Tree]:
    def found(params, x, y):
        by_params, by_x = jax.jacrev(model.apply, (0, 1))(params, x)
        return by_params, jnp.moveaxis(jnp.diagonal(by_x, axis1=0, axis2=2), -1, 0)

    return found


def products(model: Any, loss: Any) -> Callable[..., Tree]:
    """The Hessian of the mean loss times the parameters."""

    def found(params, x, y):
        slope = jax.grad(lambda p: losses_of(model, loss)(p, x, y).mean())
        return jax.jvp(slope, (params,), (params,))[1]

    return found


def clipped(model: Any, loss: Any) -> Callable[..., Tree]:
    def found(params, x, y):
        grads = each(model, loss)(params, x, y)
        norms = jnp.linalg.norm(flat(grads), axis=1)
        share = jnp.minimum(1, 0.3 / norms) / len(norms)
        return jax.tree.map(lambda g: jnp.einsum("b,b...->...", share, g), grads)

    return found


def spread(model: Any, loss: Any) -> Callable[..., Tree]:
    return lambda *at: jax.tree.map(lambda g: jnp.var(g, axis=0, ddof=1), each(model, loss)(*at))


def of_each(f: Callable[[Tree], Tree]) -> Callable[[Any, Any], Callable[..., Tree]]:
    return lambda model, loss: lambda *at: f(each(model, loss)(*at))


def squares_of(grads: Tree) -> Tree:
    return jax.tree.map(lambda g: jnp.sum(g * g, axis=0), grads)


def means_of_squares(grads: Tree) -> Tree:
    return jax.tree.map(lambda g: jnp.mean(g * g, axis=0), grads)


def kronecker(model: Any, loss: Any) -> Callable[..., Tree]:
    """The factors of the last of two dense layers."""

    def found(params, x, y):
        h = model.parts[0].apply(params[0], x)
        rows = jnp.concatenate([h, jnp.ones_like(h[:, :1])], axis=1)

        def own(z, y):
            return loss.apply((), (z[None], y[None]))[0]

        bent = jax.vmap(jax.hessian(own))(model.apply(params, x), y)
        return {"inputs": rows.T @ rows / len(rows), "deltas": bent.mean(0)}

    return found


SMALL = (fp.serial(fp.dense(4, fp.tanh), fp.dense(3)), entries(normal(5, 4), labels(5, classes=3)))
TOKENS = (
    fp.serial(fp.dense(6, fp.tanh), fp.dense(3)),
    entries(normal(5, 2, 6), labels(5, 2, classes=3)),
)
ALL = "[0]['b'] [0]['w'] [1]['b'] [1]['w']"


def measured(
    name: str,
    file: str,
    old: str,
    new: str,
    make: str,
    reference: Callable[[Any, Any], Callable[..., Tree]],
    subject: Any,
    wrong: str,
    *kinds: str,
    into: str | None = None,
    taken: Callable[[Any], Tree] = lambda found: found,
    vector: bool = False,
) -> Fault:
    """A statistic, ``make(model, loss)`` in the module in which ``old`` became ``new``."""
    model, drawn = subject
    loss = fp.softmax_cross_entropy()

    def made(old=old, new=new):
        space = dict(vars(mutated(f"statistics/{file}", old, new, into))) | {"fp": fp}
        f = eval(make, space)(model, loss)
        reach = (lambda p, x, y: f(p, x, y, p)) if vector else f
        return (lambda *at: taken(reach(*at))), reference(model, loss)

    def draw(generator):
        x, y = drawn(generator)
        shape = x.shape[1:] if is_inexact(x) else jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        key = jax.random.key(int(generator.integers(2**31)))
        return model.init(key, shape)[0], x, y

    return Fault(
        name,
        "statistic",
        file,
        made,
        draw,
        tuple(wrong.split()),
        kinds,
        correct=lambda: made(old, old),
    )


def total(found: Any) -> Tree:
    return found.total


STATISTIC_FAULTS = (
    measured(
        "per_example_gradients: transposed",
        "per_example",
        'jnp.einsum("brm,brn->bmn", right, left)', 'jnp.einsum("brm,brn->bnm", right, left)',
        "per_example_gradients", each, SMALL, "[0]['w'] [1]['w']", "transpose",
    ),
    measured(
        "per_example_gradients: inputs rounded",
        "per_example",
        "left = dense(left)\n    size",
        "left = dense(left)\n    left = left.astype(jnp.bfloat16).astype(right.dtype)\n    size",
        "per_example_gradients", each, SMALL, "[0]['w'] [1]['w']", "low precision",
    ),
    measured(
        "squared_norms: bias missing",
        "per_example",
        "return _squares(*rows) + _norms(bias(site, inputs, delta))", "return _squares(*rows)",
        "squared_norms", of_each(lambda g: jnp.sum(flat(g) ** 2, axis=1)), SMALL,
        "value", "missing term", taken=total,
    ),
    measured(
        "squared_norms: products of two tokens missing",
        "per_example",
        "squares = products(left, left) * products(right, right)",
        "squares = products(left, left) * products(right, right)"
        " * jnp.eye(right.shape[1], dtype=right.dtype)",
        "squared_norms", of_each(lambda g: jnp.sum(flat(g) ** 2, axis=1)), TOKENS,
        "value", "missing term", taken=total,
    ),
    measured(
        "inner_products: bias missing",
        "per_example",
        "return inner + _products(*(bias(site, *given) for given in (first, second)))",
        "return inner",
        "inner_products", of_each(lambda g: flat(g) @ flat(g).T), SMALL,
        "value", "missing term", taken=total,
    ),
    measured(
        "clipped_gradient: divided by the squared norm",
        "clipping",
        "jnp.sqrt(jnp.where(too_long, norms, 1))", "jnp.where(too_long, norms, 1)",
        "clipped_gradient(0.3)", clipped, SMALL, ALL, "wrong function",
        taken=lambda found: found.gradient,
    ),
    measured(
        "clipped_gradient: sum over the batch",
        "clipping",
        "c, c, counts / size)", "c, c, counts)",
        "clipped_gradient(0.3)", clipped, SMALL, ALL, "factor",
        taken=lambda found: found.gradient,
    ),
    measured(
        "moments: the variance divided by B",
        "gradient_moments",
        "jnp.maximum(square - total * total / size, 0) / (size - 1)",
        "jnp.maximum(square - total * total / size, 0) / size",
        "moments", spread, SMALL, ALL, "factor", taken=lambda found: found.variance,
    ),
    measured(
        "moments: the mean not taken off",
        "gradient_moments",
        "jnp.maximum(square - total * total / size, 0)", "square",
        "moments", spread, SMALL, ALL, "missing term", taken=lambda found: found.variance,
    ),
    measured(
        "moments: products of two tokens missing",
        "gradient_moments",
        "rows[0].shape[1] > 1:", "rows[0].shape[1] > 99:",
        "moments", of_each(squares_of), TOKENS, "[0]['w'] [1]['w']", "missing term",
        taken=lambda found: found.sum_of_squares,
    ),
    measured(
        "jacobian: outputs reversed",
        "derivatives",
        "jnp.eye(math.prod(out), dtype=y.dtype).reshape",
        "jnp.eye(math.prod(out), dtype=y.dtype)[::-1].reshape",
        "lambda model, loss: lambda params, x, y: jacobian(model)(params, x)", jacobians, SMALL,
        "[0][0]['b'] [0][0]['w'] [0][1]['b'] [0][1]['w'] [1]", "transpose", taken=tuple,
    ),
    measured(
        "saliency: mean over the batch",
        "derivatives",
        "back.from_losses(jnp.ones_like(losses), nothing.at)[0]",
        "back.from_losses(jnp.ones_like(losses) / len(losses), nothing.at)[0]",
        "saliency",
        lambda model, loss: jax.grad(lambda p, x, y: losses_of(model, loss)(p, x, y).sum(), 1),
        SMALL, "value", "factor",
    ),
    measured(
        "hessian_vector_product: the gradient",
        "derivatives",
        "jax.jvp(grads, (params,), (vector,))[1]", "jax.jvp(grads, (params,), (vector,))[0]",
        "hessian_vector_product", products, SMALL, ALL, "wrong function", vector=True,
    ),
    measured(
        "ggn_diagonal: sum over the batch",
        "curvature",
        "lambda leaf: leaf / size, at.piece", "lambda leaf: leaf, at.piece",
        "ggn_diagonal", curvature, SMALL, ALL, "factor",
    ),
    measured(
        "ggn_diagonal: one of its columns",
        "curvature",
        "return jax.lax.scan(add, sweep(first), rest)[0]", "return sweep(first)",
        "ggn_diagonal", curvature, SMALL, ALL, "missing term",
    ),
    measured(
        "fisher_diagonal, empirical: errors of the mean loss",
        "curvature",
        "back.error(jnp.ones_like(losses))", "back.error(jnp.ones_like(losses) / len(losses))",
        "lambda model, loss: fisher_diagonal(model, loss, empirical)",
        of_each(means_of_squares), SMALL, ALL, "factor",
    ),
    measured(
        "ggn_trace: sum over the batch",
        "curvature",
        "return jnp.mean(squared_norm(site, inputs, delta))",
        "return jnp.sum(squared_norm(site, inputs, delta))",
        "ggn_trace",
        lambda model, loss: lambda *at: sum(
            leaf.sum() for leaf in jax.tree.leaves(curvature(model, loss)(*at))
        ),
        SMALL, "value", "factor", taken=total,
    ),
    measured(
        "kfac_factors: inputs divided by B - 1",
        "kfac",
        "return site, rows.T @ rows / len(rows)", "return site, rows.T @ rows / (len(rows) - 1)",
        "kfac_factors", kronecker, SMALL, "['inputs']", "factor",
        taken=lambda found: {"inputs": found[1].inputs, "deltas": found[1].deltas},
    ),
    measured(
        "kfac_factors: deltas' products of two outputs missing",
        "kfac",
        "return rows.T @ rows, own, None", "return jnp.diag(jnp.sum(rows * rows, 0)), own, None",
        "kfac_factors", kronecker, SMALL, "['deltas']", "stopped", "missing term",
        taken=lambda found: {"inputs": found[1].inputs, "deltas": found[1].deltas},
    ),
)  # fmt: skip


def rows_of(
    name: str,
    file: str,
    old: str,
    new: str,
    make: str,
    drawn: Any,
    wrong: str,
    *kinds: str,
    into: str | None = None,
) -> Fault:
    """Per-example gradients of a layer whose site has faulty rows."""
    loss = fp.mean_squared_error

    def made(old=old, new=new):
        layer = eval(make, dict(vars(mutated(file, old, new, into))) | {"fp": fp})
        model = fp.serial(layer)
        return per_example_gradients(model, loss), each(model, loss)

    def draw(generator):
        x, layer = drawn(generator), eval(make, dict(vars(fp)))
        key = jax.random.key(int(generator.integers(2**31)))
        params, out = fp.serial(layer).init(key, x.shape[1:])
        return params, x, generator.normal(size=(len(x), *out))

    return Fault(
        name,
        "statistic",
        Path(into or file).stem,
        made,
        draw,
        tuple(wrong.split()),
        kinds,
        correct=lambda: made(old, old),
    )


STATISTIC_FAULTS += (
    rows_of(
        "conv, rows: taps reversed",
        "layers/convolution",
        "jnp.concatenate(list(taps), axis=-1)", "jnp.concatenate(list(taps)[::-1], axis=-1)",
        "conv(3, 3)", normal(4, 5, 4, 2), "[0]['w']", "transpose",
    ),
    rows_of(
        "lstm, rows: weights and recurrent weights swapped",
        "layers/recurrent_weights",
        "return Beside((h, x)), delta", "return Beside((x, h)), delta",
        "lstm(3)", normal(4, 3, 3), "[0]['u'] [0]['w']", "transpose", into="layers/lstm",
    ),
    rows_of(
        "affine, rows: one token stopped",
        "layers/dense",
        "delta.reshape(len(x), -1, features)\n",
        "delta.at[:, 1].set(0).reshape(len(x), -1, features)\n",
        "dense(3)", normal(4, 3, 4), "[0]['w']", "missing term",
    ),
)  # fmt: skip


# ------------------------------------------------------------------------ layers in a model


def inside(
    name: str,
    file: str,
    old: str,
    new: str,
    make: str,
    model: Callable[[Any], Any],
    data: Any,
    position: str,
    wrong: str,
    *kinds: str,
    into: str | None = None,
) -> Fault:
    """A faulty layer, ``make`` in the changed module, as a part of ``model(layer)``."""

    def made(old=old, new=new):
        layer = eval(make, dict(vars(mutated(file, old, new, into))) | {"fp": fp})
        if hasattr(layer, "root"):
            return model(layer), layer._replace(init=no_parameters)
        return model(layer), fp.softmax_cross_entropy()

    return Fault(
        f"{name}, in a model",
        "model",
        Path(into or file).stem,
        made,
        data,
        tuple(f"{position} {path}" for path in paths(wrong)),
        kinds,
        position=position,
        correct=lambda: made(old, old),
    )


VECTORS = entries(normal(8, 4), labels(8, classes=3))
IMAGES = entries(normal(5, 6, 6, 2), labels(5, classes=3))
WORDS = entries(labels(5, 6, classes=7), labels(5, classes=3))
STEPS = entries(normal(5, 4, 3), labels(5, 4, classes=3))

MODEL_FAULTS = (
    inside(
        "dense: sign of w",
        "layers/dense",
        '{"w": contraction.outer(delta, x)}', '{"w": -contraction.outer(delta, x)}',
        "dense(6, fp.tanh)", lambda part: fp.serial(part, fp.dense(5, fp.silu), fp.dense(3)),
        VECTORS, "layers[0] dense", "w", "sign",
    ),
    inside(
        "dense: transport by W transposed",
        "layers/dense",
        'contraction.transport(delta, weights["w"], like=x)',
        'contraction.transport(delta, weights["w"].T, like=x)',
        "dense(6, fp.tanh)",
        lambda part: fp.serial(fp.dense(6, fp.silu), fp.dense(6, fp.tanh), part, fp.dense(3)),
        VECTORS, "layers[2] dense", "x", "transpose",
    ),
    inside(
        "dense: bias averaged over the batch",
        "layers/dense",
        '{"b": contraction.total(delta)}', '{"b": contraction.total(delta) / len(delta)}',
        "dense(3)", lambda part: fp.serial(*[fp.dense(5, fp.tanh)] * 4, part),
        VECTORS, "layers[4] dense", "b", "factor",
    ),
    inside(
        "dense: w rounded",
        "layers/dense",
        '{"w": contraction.outer(delta, x)}',
        '{"w": contraction.outer(delta, x).astype("bfloat16").astype(x.dtype)}',
        "dense(5, fp.tanh)",
        lambda part: fp.serial(fp.dense(5, fp.silu), part, fp.dense(3)),
        VECTORS, "layers[1] dense", "w", "low precision",
    ),
    inside(
        "dense: one row by 0.1 %",
        "layers/dense",
        '{"w": contraction.outer(delta, x)}',
        '{"w": contraction.outer(delta, x).at[2].multiply(1.001)}',
        "dense(5, fp.tanh)",
        lambda part: fp.serial(fp.dense(5, fp.silu), fp.layer_norm(), part, fp.dense(3)),
        VECTORS, "layers[2] dense", "w", "factor",
    ),
    inside(
        "layer_norm: mean term missing",
        "layers/normalization",
        "return inverse * (g - weighted(delta, scale / n) - x * along)",
        "return inverse * (g - x * along)",
        "layer_norm()",
        lambda part: fp.serial(fp.dense(6), part, fp.gelu, fp.dense(3)),
        VECTORS, "layers[1] layer_norm", "x", "missing term",
    ),
    inside(
        "batch_norm: mean and variance taken for constants",
        "layers/batch_norm",
        "delta_x = inverse * (g - _mean(g) - x * _mean(g * x))", "delta_x = inverse * g",
        "batch_norm()",
        lambda part: fp.serial(fp.dense(6), part, fp.silu, fp.dense(3)),
        VECTORS, "layers[1] batch_norm", "x", "missing term",
    ),
    inside(
        "conv: window shifted by one",
        "layers/windows",
        "(reach - 1 - lo, wide - 1 - (o - 1) * s + lo)",
        "(reach - 2 - lo, wide - (o - 1) * s + lo)",
        "conv(3, 3)",
        lambda part: fp.serial(
            fp.conv(4, 3), fp.tanh, part, fp.max_pool(2), fp.flatten, fp.dense(3)
        ),
        IMAGES, "layers[2] conv", "x", "off by one", into="layers/convolution",
    ),
    inside(
        "max_pool: the delta goes to all of a window",
        "layers/pooling",
        "lambda k, w, d: jnp.where(w == k, d, zero), kept[0], delta)",
        "lambda k, w, d: jnp.where(w >= 0, d, zero) + 0 * k.astype(d.dtype), kept[0], delta)",
        "max_pool(2)",
        lambda part: fp.serial(fp.conv(4, 3), fp.tanh, part, fp.flatten, fp.dense(3)),
        IMAGES, "layers[2] max_pool", "x", "mask ignored",
    ),
    inside(
        "lstm: no delta through the forget gate",
        "layers/lstm",
        "like=delta_z), delta_c * f), (delta_z,)", "like=delta_z), 0 * delta_c), (delta_z,)",
        "lstm(5)",
        lambda part: fp.serial(fp.embedding(7, 4), part, fp.last_step, fp.dense(3)),
        WORDS, "layers[1] lstm", "w u b x", "missing term",
    ),
    inside(
        "gru: sigmoid for tanh",
        "layers/gru",
        "delta_h * (1 - z) * (1 - n * n)", "delta_h * (1 - z) * n * (1 - n)",
        "gru(4)", lambda part: fp.serial(fp.dense(4), part, fp.dense(3)),
        STEPS, "layers[1] gru", "x.w x.b h.w h.b x", "wrong function",
    ),
    inside(
        "embedding: repeated ids counted once",
        "layers/embedding",
        'start.at[ids].add(delta, mode="drop")', 'start.at[ids].set(delta, mode="drop")',
        "embedding(7, 4)",
        lambda part: fp.serial(part, fp.gru(5), fp.last_step, fp.dense(3)),
        WORDS, "layers[0] embedding", "w", "missing term",
    ),
    inside(
        "gelu: the slope of its tanh form",
        "layers/activations",
        'lambda z: _normal_cdf(z) + z * _normal_density(z), "gelu"',
        "lambda z: jax.nn.sigmoid(_gelu_2u(z)) * (1 + z * jax.nn.sigmoid(-_gelu_2u(z)) * "
        '_gelu_2u_slope(z)), "gelu"',
        "gelu", lambda part: fp.serial(fp.dense(6), part, fp.dense(3)),
        VECTORS, "layers[1] gelu", "x", "wrong function",
    ),
    inside(
        "tanh: derivative at the pre-activation",
        "layers/activations",
        'lambda y: 1 - y * y, "tanh", of_output=True', 'lambda y: 1 - y * y, "tanh"',
        "fp.dense(6, tanh)", lambda part: fp.serial(fp.dense(4, fp.silu), part, fp.dense(3)),
        VECTORS, "layers[1] dense", "w b x", "wrong place",
    ),
    inside(
        "residual: the branch around it not added",
        "core/combinators",
        "return _add_to_entry_0(delta_x, _entry_0(delta)), tree", "return delta_x, tree",
        "residual(fp.dense(6, fp.tanh))",
        lambda part: fp.serial(fp.dense(6), part, fp.dense(3)),
        VECTORS, "layers[1] residual", "x", "missing term",
    )._replace(wrong=("layers[1] residual, between its parts ['x']",), proven=paths("x")),
    inside(
        "repeat: bias stopped",
        "layers/dense",
        '{"b": contraction.total(delta)}', '{"b": 0 * contraction.total(delta)}',
        "fp.repeat(dense(6, fp.tanh), 3)",
        lambda part: fp.serial(fp.dense(6), part, fp.dense(3)),
        VECTORS, "layers[1].repeat[", "b", "stopped",
    )._replace(
        wrong=tuple(f"layers[1].repeat[{n}] dense ['params']['b']" for n in range(3)),
        proven=paths("b"),
    ),
    inside(
        "residual of dense: mean over the batch",
        "layers/dense",
        '{"w": contraction.outer(delta, x)}', '{"w": contraction.outer(delta, x) / len(x)}',
        "fp.residual(dense(6, fp.tanh))",
        lambda part: fp.serial(fp.dense(6), part, fp.dense(3)),
        VECTORS, "layers[1].residual dense", "w", "factor",
    )._replace(proven=paths("w")),
    inside(
        "multi_head_attention: heads reversed",
        "layers/transformer",
        'mix.backward((), residuals["mix"], delta_mixed)[0]',
        'mix.backward((), residuals["mix"], delta_mixed[:, :, ::-1])[0]',
        "multi_head_attention(2)",
        lambda part: fp.serial(fp.dense(4), part, fp.dense(3)),
        STEPS, "layers[1] multi_head_attention", "qkv.w qkv.b x", "transpose",
    ),
    inside(
        "transformer_block: the softmax's sum missing",
        "layers/attention",
        "p * (_products(delta, v) - along)", "p * _products(delta, v)",
        "transformer_block(2, 5)",
        lambda part: fp.serial(fp.dense(4), part, fp.dense(3)),
        STEPS, "layers[1].layers[0].remat.residual.layers[1] multi_head_attention",
        "qkv.w qkv.b x", "missing term", into="layers/transformer",
    )._replace(proven=paths("0.0.b 0.0.scale 0.1.qkv.w 0.1.qkv.b x")),
    inside(
        "softmax_cross_entropy: the target's term missing",
        "losses/standard",
        "slopes = jnp.exp(log_p) * jnp.sum(q, axis=-1, keepdims=True) - q\n",
        "slopes = jnp.exp(log_p) * jnp.sum(q, axis=-1, keepdims=True)\n",
        "softmax_cross_entropy()",
        lambda part: fp.serial(fp.dense(6, fp.tanh), fp.dense(3)),
        VECTORS, "loss softmax_cross_entropy", "x.0", "missing term",
    ),
)  # fmt: skip

FAULTS: tuple[Fault, ...] = (*LAYER_FAULTS, *FUNCTION_FAULTS, *STATISTIC_FAULTS, *MODEL_FAULTS)
PLACES = {fault.name: fault for fault in FAULTS}
assert len(PLACES) == len(FAULTS), "two faults have one name"


# ------------------------------------------------------------------------------- the checks


def cast(tree: Tree, dtype: Any) -> Tree:
    """The floats in ``dtype``, on the host."""
    return jax.tree.map(lambda a: np.asarray(a).astype(dtype) if is_inexact(a) else a, tree)


def generator_of(seed: int) -> np.random.Generator:
    """A stream apart from that of ``check_layer``: a delta that equals x hides faults."""
    return np.random.default_rng((seed, 1))


def report(fault: Fault, dtype: Any = "float32", seed: int = 0) -> Report:
    """What the check that fits the subject finds."""
    with jax.enable_x64(np.dtype(dtype) == np.float64):
        draw, subject = generator_of(seed), fault.make()
        if fault.subject == "layer":
            return check_layer(
                subject,
                x=fault.draw(draw),
                dtype=dtype,
                seed=seed,
                analytic=fault.analytic,
                title=fault.name,
            )
        drawn = cast(fault.draw(draw), dtype)
        if fault.subject == "function":
            numbers = tuple(range(len(drawn)))
            return check_gradient(*subject, *drawn, argnums=numbers, title=fault.name)
        if fault.subject == "statistic":
            return compare(*subject, *drawn, title=fault.name)
        model, loss = subject
        given = params_of(model, drawn[0], dtype, seed), *drawn
        return check_model(model, *jax.tree.map(jnp.asarray, given), loss, title=fault.name)


def params_of(layer: Any, x: Tree, dtype: Any, seed: int) -> Tree:
    """Parameters of which none is constant, as float64 numbers of ``dtype`` under x64."""
    draw, key = np.random.default_rng(seed + 1), jax.random.key(seed)
    structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), x)
    single = hasattr(x, "shape") and is_inexact(x)
    params = layer.init(key, structs.shape if single else structs)[0]

    def moved(a):
        a = np.asarray(a, np.float64)
        return a if not a.size or np.ptp(a) else a + draw.normal(size=a.shape) / 2

    return cast(jax.tree.map(moved, params), dtype)


class Plain(NamedTuple):
    """A fault's subject for other checkers: a function with the faulty gradient attached.

    Attributes:
        f: a ``jax.custom_vjp`` function of ``args``.
        forward, backward: ``forward(*args) -> y``, ``backward(args, delta) -> gradients``.
        args: trees of floats.
        names: of each leaf of ``args`` its path as ``Fault.wrong`` has it.
    """

    f: Callable[..., Tree]
    forward: Callable[..., Tree]
    backward: Callable[[tuple, Tree], tuple]
    args: tuple
    names: tuple[str, ...]


def plain(fault: Fault, dtype: Any = "float32", seed: int = 0) -> Plain | None:
    """The subject as a function with its gradient; ``None`` for a statistic, which has none.

    Float64 needs ``jax.enable_x64``, for the call too.
    """
    draw = generator_of(seed)
    if fault.subject == "statistic":
        return None
    subject, drawn = fault.make(), fault.draw(draw)
    if fault.subject == "layer":
        return _plain_layer(subject, drawn, dtype, seed)
    if fault.subject == "function":
        f, gradient = subject
        drawn = cast(drawn, dtype)

        def scaled(args, delta):
            return jax.tree.map(lambda g: g * delta.astype(g.dtype), gradient(*args))

        names = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(drawn)]
        return _attached(f, scaled, drawn, names)
    model, loss = subject
    x, y = cast(drawn, dtype)
    params = params_of(model, x, dtype, seed)
    sweep = fp.value_and_backprop(model, loss)

    def back(args, delta):
        return (jax.tree.map(lambda g: g * delta.astype(g.dtype), sweep(*args, x, y)[1]),)

    found = jax.tree_util.tree_leaves_with_path(params)
    names = [f"layers[{p[0].idx}] {jax.tree_util.keystr(p[1:])}" for p, _ in found]
    return _attached(lambda params: sweep(params, x, y)[0], back, (params,), names)


def _plain_layer(layer: Any, x: Tree, dtype: Any, seed: int) -> Plain:
    key = jax.random.key(seed)
    x = cast(x, dtype)
    params = params_of(layer, x, dtype, seed)

    def forward(params, floats):
        return floats_of(layer.apply(params, with_floats(x, floats), key))

    def backward(args, delta):
        params, floats = args
        y, residuals = layer.forward(params, with_floats(x, floats), key)
        delta = delta_of(cotangent_of(y, delta))
        delta_x, grads = layer.backward(params, residuals, delta, fp.gradient)
        return grads, floats_of(delta_x)

    args = params, floats_of(x)
    tree = {"params": args[0], "x": args[1]}
    names = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return _attached(forward, backward, args, names)


def _attached(f: Any, backward: Any, args: tuple, names: list[str]) -> Plain:
    @jax.custom_vjp
    def attached(*args):
        return f(*args)

    attached.defvjp(lambda *args: (f(*args), args), backward)
    return Plain(attached, f, backward, args, tuple(names))


# -------------------------------------------------------------------------------- innocents


def innocents(count: int, seed: int = 0) -> Iterator[tuple[Fault, str, int]]:
    """Correct subjects, each with a dtype and a seed for :func:`report`.

    All cases of the catalogue in four dtypes with batches of random sizes; in two the plain
    functions with random shapes, the statistics and the models.
    """
    layers = [
        (_innocent(case), dtype)
        for case in CASES
        for dtype in ("float64", "float32", "bfloat16", "float16")
    ]
    functions = [
        (
            Fault(f.__name__, "function", f.__name__, lambda f=f, g=g: (f, g), draw, (), ()),
            dtype,
        )
        for f, (g, draw) in FUNCTIONS.items()
        for dtype in ("float64", "float32")
    ]
    others = [
        (
            fault._replace(
                name=name, make=fault.correct, wrong=(), kinds=(), position="", proven=()
            ),
            dtype,
        )
        for fault in (*STATISTIC_FAULTS, *MODEL_FAULTS)
        for name in [fault.name.replace(":", " without:", 1)]
        for dtype in ("float64", "float32")
    ]
    subjects = layers + functions + others
    shuffled = np.random.default_rng(seed)
    numbers = itertools.chain.from_iterable(
        shuffled.permutation(len(subjects)) for _ in itertools.count()
    )
    for i, number in enumerate(itertools.islice(numbers, count)):
        yield *subjects[number], seed * 1_000_003 + i


def _innocent(case: Any) -> Fault:
    def draw(generator):
        x, more = case.draw(generator), case.draw(generator)
        both = jax.tree.map(lambda a, b: np.concatenate([a, b]), x, more)
        least = 2 if isinstance(x, tuple) else 1
        size = int(generator.integers(least, len(jax.tree.leaves(both)[0]) + 1))
        return jax.tree.map(lambda a: a[:size], both)

    return Fault(
        case.name, "layer", case.layer.name, lambda: case.layer, draw, (), (), case.analytic
    )


# ------------------------------------------------------------------------ that it is a fault


def excess(fault: Fault, dtype: Any = "float32", seed: int = 0) -> dict[str, float]:
    """By how much each leaf is off in float64, relative to its largest element.

    Infinite for a leaf that is missing, not finite, or of another shape or dtype.  The numbers are
    those of ``dtype``, and the forward pass must be that of the correct subject.
    """
    assert fault.correct is not None
    with jax.enable_x64(True):
        drawn = fault.draw(generator_of(seed))
        made, correct = fault.make(), fault.correct()
        if fault.subject == "layer":
            return _layer_excess(made, correct, drawn, dtype, seed)
        exact = cast(cast(drawn, dtype), np.float64)
        if fault.subject == "model":
            return _model_excess(fault, made, correct, exact, dtype, seed)
        if fault.subject == "function":
            due = jax.grad(correct[0], tuple(range(len(exact))))
        else:
            due = correct[1]
        for f in (correct[1], correct[0])[: 1 + (fault.subject == "statistic")]:
            gaps = _excess(jax.jit(f)(*exact), jax.jit(due)(*exact))
            assert max(gaps.values()) < 1e-10, f"the correct one is off by {gaps}"
        return _excess(jax.jit(made[fault.subject == "function"])(*exact), jax.jit(due)(*exact))


def _layer_excess(layer: Any, correct: Any, x: Tree, dtype: Any, seed: int) -> dict[str, float]:
    x = cast(cast(x, dtype), np.float64)
    params = cast(params_of(correct, x, dtype, seed), np.float64)
    key, draw = jax.random.key(seed), np.random.default_rng(seed + 2)
    y = jax.eval_shape(correct.apply, params, x, key)
    delta = jax.tree.map(lambda s: draw.normal(size=s.shape) if is_inexact(s) else None, y)
    delta = cast(cast(delta, dtype), np.float64)

    @jax.jit
    def by_hand(params, floats, delta):
        y, residuals = layer.forward(params, with_floats(x, floats), key)
        delta_x, grads = layer.backward(params, residuals, delta, fp.gradient)
        return floats_of(y), {"params": grads, "x": floats_of(delta_x)}

    @jax.jit
    def due(params, floats, delta):
        def apply(params, floats):
            return floats_of(correct.apply(params, with_floats(x, floats), key))

        y, pullback = jax.vjp(apply, params, floats)
        grads, delta_x = pullback(floats_of(delta))
        return y, {"params": grads, "x": delta_x}

    y, ours = by_hand(params, floats_of(x), delta)
    true_y, theirs = due(params, floats_of(x), delta)
    for a, b in zip(jax.tree.leaves(y), jax.tree.leaves(true_y), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, err_msg="forward pass")
    return _excess(ours, theirs)


def _model_excess(
    fault: Fault, made: Any, correct: Any, exact: Any, dtype: Any, seed: int
) -> dict[str, float]:
    """That of the layer at the fault's position, with the input that it has in the model."""
    x, y = exact
    params = cast(params_of(correct[0], x, dtype, seed), np.float64)
    params, x = jax.tree.map(jnp.asarray, (params, x))
    if fault.position.startswith("loss"):
        x = correct[0].apply(params, x), y
        layers = made[1], correct[1]
    else:
        n = int(re.findall(r"\d+", fault.position)[0])
        x = fp.serial(*correct[0].parts[:n]).apply(params[:n], x)
        layers = made[0].parts[n], correct[0].parts[n]
    gaps = _layer_excess(*layers, cast(x, np.float64), dtype, seed)
    place = "" if fault.proven else f"{fault.position} "
    return {f"{place}{path}": gap for path, gap in gaps.items()}


def _excess(ours: Tree, theirs: Tree) -> dict[str, float]:
    found = {jax.tree_util.keystr(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(ours)}
    gaps = {}
    for path, b in jax.tree_util.tree_leaves_with_path(theirs):
        name = jax.tree_util.keystr(path)
        a = found.get(name)
        name = name or "value"
        if a is None or a.shape != b.shape or a.dtype != b.dtype or not np.isfinite(a).all():
            gaps[name] = np.inf
            continue
        assert np.isfinite(b).all(), f"{name} is not finite in jax either"
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        largest = np.abs(b).max(initial=0)
        gap = np.abs(a - b).max(initial=0)
        gaps[name] = gap / largest if largest else (np.inf if gap else 0.0)
    return gaps


def proof(fault: Fault, dtype: Any = "float32", seed: int = 0) -> str:
    """What is wrong with the claim that the leaves it names, and no others, are off; or ''."""
    limit = 4 * float(jnp.finfo(dtype).eps)
    try:
        gaps = excess(fault, dtype, seed)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    hit = {name for name, gap in gaps.items() if gap > limit}
    due = set(fault.proven or fault.wrong)
    lines = [f"{name} off by {gaps[name]:.2g}" for name in sorted(hit - due)]
    for name in sorted(due - hit):
        lines.append(f"{name} not off: {gaps.get(name, 'no such leaf')}")
    return "; ".join(lines)


def main(patterns: list[str]) -> int:
    chosen = [
        fault
        for fault in FAULTS
        if not patterns or any(fnmatch.fnmatchcase(fault.name, p) for p in patterns)
    ]
    bad = 0
    for fault in chosen:
        found = proof(fault)
        bad += bool(found)
        if found:
            print(f"{fault.name}: {found}", flush=True)
    print(f"{bad} of {len(chosen)} are not as claimed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
