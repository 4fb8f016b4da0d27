"""Activations: values at kinks, and derivatives that are right in the tails."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcprop as fp

pytestmark = pytest.mark.usefixtures("strict")


def slope(layer, z):
    z = jnp.asarray(z)
    _, residuals = layer.forward((), z)
    return layer.backward((), residuals, jnp.ones_like(z))[0]


NAMESAKES = {
    "relu": (fp.relu, jax.nn.relu, [0.0]),
    "relu6": (fp.relu6, jax.nn.relu6, [0.0, 6.0]),
    "leaky_relu": (fp.leaky_relu(), jax.nn.leaky_relu, [0.0]),
    "elu": (fp.elu(1.5), lambda z: jax.nn.elu(z, 1.5), [0.0]),
    "selu": (fp.selu, jax.nn.selu, [0.0]),
    "celu": (fp.celu(1.5), lambda z: jax.nn.celu(z, 1.5), [0.0]),
    "softsign": (fp.softsign, jax.nn.soft_sign, [0.0]),
    "hard_tanh": (fp.hard_tanh, jax.nn.hard_tanh, [-1.0, 1.0]),
    "hard_sigmoid": (fp.hard_sigmoid, jax.nn.hard_sigmoid, [-3.0, 3.0]),
    "gelu": (fp.gelu, lambda z: jax.nn.gelu(z, approximate=False), []),
    "gelu_tanh": (fp.gelu_tanh, jax.nn.gelu, []),
    "silu": (fp.silu, jax.nn.silu, []),
    "mish": (fp.mish, jax.nn.mish, []),
    "softplus": (fp.softplus, jax.nn.softplus, []),
    "sigmoid": (fp.sigmoid, jax.nn.sigmoid, []),
    "tanh": (fp.tanh, jnp.tanh, []),
}


@pytest.mark.parametrize("name", NAMESAKES)
def test_values_and_kinks_are_those_of_the_namesake(name):
    layer, namesake, kinks = NAMESAKES[name]
    z = np.float32([-7.0, -2.5, -0.3, 0.2, 1.7, 5.0, *kinks])
    # JAX's as users compile it: not optimised, its tanh is off in the tail by more than the bound.
    optimised = {"xla_backend_optimization_level": 3}
    with jax.numpy_dtype_promotion("standard"):
        theirs = jax.jit(jax.vmap(jax.value_and_grad(namesake)), compiler_options=optimised)
        value, due = jax.device_get(theirs(z))

    @jax.jit
    def ours(z):
        return layer.apply((), z), slope(layer, z), jax.grad(lambda z: layer.apply((), z).sum())(z)

    found, slopes, own = jax.device_get(ours(z))
    np.testing.assert_allclose(found, value, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(slopes, due, rtol=2e-6, atol=1e-7)
    # The kinks exactly, and of autodiff through our own forward pass too.
    np.testing.assert_array_equal(slopes[6:], due[6:])
    np.testing.assert_array_equal(own[6:], due[6:])


def _sigmoid(z):
    return 1 / (1 + np.exp(-z)) if z > 0 else np.exp(z) / (1 + np.exp(z))


def _normal_cdf(z):
    return math.erfc(-z / math.sqrt(2)) / 2


def _mish(z):
    s = _sigmoid(z)
    t = np.tanh(np.log1p(np.exp(z)) if z < 30 else z)
    sech2 = 4 * np.exp(-2 * z) if z > 20 else 1 - t * t
    return t + z * sech2 * s


def _gelu_tanh(z):
    u = math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)
    du = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z**2)
    s = _sigmoid(2 * u)
    return s + z * s * _sigmoid(-2 * u) * 2 * du


# The derivatives once more in Python's float64, each without cancellation in the tails.
TAILS = {
    "gelu": (fp.gelu, lambda z: _normal_cdf(z) + z * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)),
    "gelu_tanh": (fp.gelu_tanh, _gelu_tanh),
    "silu": (fp.silu, lambda z: _sigmoid(z) * (1 + z * _sigmoid(-z))),
    "mish": (fp.mish, _mish),
    "softplus": (fp.softplus, _sigmoid),
    "softsign": (fp.softsign, lambda z: 1 / (1 + abs(z)) ** 2),
    "elu": (fp.elu(), lambda z: 1.0 if z > 0 else math.exp(z)),
    "selu": (
        fp.selu,
        lambda z: 1.0507009873554805 * (1 if z > 0 else 1.6732632423543772 * math.exp(z)),
    ),
    "celu": (fp.celu(2.0), lambda z: 1.0 if z > 0 else math.exp(z / 2)),
    "sigmoid_precise": (fp.sigmoid_precise, lambda z: _sigmoid(z) * _sigmoid(-z)),
    "tanh_precise": (
        fp.tanh_precise,
        lambda z: 4 * math.exp(-2 * abs(z)) / (1 + math.exp(-2 * abs(z))) ** 2,
    ),
}


@pytest.mark.parametrize("name", TAILS)
def test_right_in_the_tails(name):
    """To |z| = 80 in float32: within a few eps of the exact slope, times its condition number.

    A slope like exp(-z²/2) turns one rounding of z²/2 into z²/2 roundings of the result, so the
    bound is 8 eps (|σ′| + |z σ″|); below the smallest normal number nothing is promised.
    """
    layer, exact = TAILS[name]
    z = np.concatenate([np.linspace(-80, 80, 641), np.linspace(-6, 6, 241)]).astype(np.float32)
    values, found = jax.jit(lambda z: (layer.apply((), z), slope(layer, z)))(z)
    found = np.asarray(found, np.float64)
    due = np.array([exact(float(v)) for v in z])
    h = 1e-6
    bend = np.array([(exact(float(v) + h) - exact(float(v) - h)) / (2 * h) for v in z])
    eps, tiny = np.finfo(np.float32).eps, 4 * np.finfo(np.float32).tiny
    bound = 8 * eps * (np.abs(due) + np.abs(z * bend)) + tiny
    worst = np.argmax(np.abs(found - due) / bound)
    assert np.all(np.abs(found - due) <= bound), (z[worst], found[worst], due[worst])
    assert np.isfinite(values).all()


@pytest.mark.parametrize(
    ("kept_output", "precise"), [(fp.tanh, fp.tanh_precise), (fp.sigmoid, fp.sigmoid_precise)]
)
def test_the_forms_that_keep_the_output_lose_the_tails(kept_output, precise):
    """Which is why the others exist: 1 - y² is 0 once y rounds to 1."""
    z = jnp.array([20.0])
    assert slope(kept_output, z)[0] == 0
    assert slope(precise, z)[0] > 0


@pytest.mark.parametrize("layer", [fp.softmax, fp.log_softmax], ids=["softmax", "log_softmax"])
def test_over_the_last_axis_only(layer):
    z = jax.random.normal(jax.random.key(0), (2, 3, 5))
    y = layer.apply((), z)
    sums = jnp.sum(y if layer is fp.softmax else jnp.exp(y), axis=-1)
    np.testing.assert_allclose(sums, 1, rtol=1e-6)
    huge = jnp.array([[1e4, -1e4, 0.0]])
    assert np.isfinite(slope(layer, huge)).all()
