"""Activations: y = σ(z), δz = δy ⊙ σ′(z), one line each.

Most keep z; tanh and sigmoid keep y, as autodiff does, and :data:`tanh_precise` and
:data:`sigmoid_precise` are their forms that keep z and stay right in the tails.  At a kink each
takes the value that ``jax.grad`` of its namesake in ``jax.nn`` takes; the comment states it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import erfc

from ..core.checks import LayerError, check_float, check_number
from ..core.contraction import accumulated
from ..core.layer import Layer, stateless
from ..core.site import gradient

Function = Callable[[jax.Array], jax.Array]


def elementwise(
    f: Function, derivative: Function, *, of_output: bool = False, name: str | None = None
) -> Layer:
    """An activation from a function and its derivative.

        forward     y  = σ(z)
        transport   δz = δy ⊙ σ′(z)

    z, y, δ of any one shape.

    Args:
        f: σ, applied to an array of any shape, element by element.
        derivative: σ′ as a function of z, or with ``of_output=True`` as a function of y = σ(z);
            then y is kept in place of z.
        of_output: what ``derivative`` is a function of.
        name: what errors and summaries call it; by default the name of ``f``.

    Raises:
        LayerError: when z is not an array of floats.

    >>> import jax.numpy as jnp
    >>> from funcprop import elementwise
    >>> square = elementwise(jnp.square, lambda z: 2 * z)
    >>> y, residuals = square.forward((), jnp.array([[3.0]]))
    >>> square.backward((), residuals, jnp.array([[1.0]]))[0].tolist()
    [[6.0]]
    """
    label = name or str(getattr(f, "__name__", "elementwise"))

    def forward(params, z, key=None):
        check_float(label, z)
        y = f(z)
        return y, y if of_output else z

    def backward(weights, kept, delta, statistic=gradient):
        return delta * derivative(kept), ()

    return Layer(stateless, forward, backward, label)


def _of(f: Function, derivative: Function, name: str, **options: bool) -> Layer:
    return elementwise(f, derivative, name=name, **options)


# ------------------------------------------------------------------ piecewise linear

relu = _of(jax.nn.relu, lambda z: _where(z > 0, 1, 0, z), "relu")  # 0 at 0
relu6 = _of(  # 0 at 0 and at 6
    jax.nn.relu6, lambda z: _where((z > 0) & (z < 6), 1, 0, z), "relu6"
)
hard_tanh = _of(  # 1 at -1 and at 1
    jax.nn.hard_tanh, lambda z: _where(jnp.abs(z) <= 1, 1, 0, z), "hard_tanh"
)
hard_sigmoid = _of(  # relu6(z + 3)/6; 0 at -3 and at 3
    jax.nn.hard_sigmoid, lambda z: _where((z > -3) & (z < 3), 1 / 6, 0, z), "hard_sigmoid"
)


def leaky_relu(slope: float = 0.01) -> Layer:
    """y = z for z ≥ 0, ``slope`` z below; σ′(0) = 1 (Maas 2013).

    >>> import jax.numpy as jnp
    >>> from funcprop import leaky_relu
    >>> leaky_relu(0.5).apply((), jnp.array([-2.0, 2.0])).tolist()
    [-1.0, 2.0]
    """
    slope = check_number("leaky_relu", "slope", slope)
    return _of(
        lambda z: jnp.where(z >= 0, z, slope * z),
        lambda z: _where(z >= 0, 1, slope, z),
        "leaky_relu",
    )


# ---------------------------------------------------------------- piecewise exponential


def elu(alpha: float = 1.0) -> Layer:
    """y = z for z > 0, α(eᶻ - 1) below; σ′(0) = α (Clevert 2016, arXiv 1511.07289).

    >>> import jax.numpy as jnp
    >>> from funcprop import elu
    >>> elu().apply((), jnp.array([0.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    alpha = check_number("elu", "alpha", alpha)
    return _of(
        lambda z: jnp.where(z > 0, z, alpha * jnp.expm1(_negative(z))),
        lambda z: jnp.where(z > 0, 1, alpha * jnp.exp(_negative(z))).astype(z.dtype),
        "elu",
    )


def celu(alpha: float = 1.0) -> Layer:
    """y = z for z > 0, α(exp(z/α) - 1) below; σ′(0) = 1 (Barron 2017, arXiv 1704.07483).

    Raises:
        LayerError: when α is 0.

    >>> import jax.numpy as jnp
    >>> from funcprop import celu
    >>> celu(2.0).apply((), jnp.array([0.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    alpha = check_number("celu", "alpha", alpha)
    if alpha == 0:
        raise LayerError("celu", "alpha is 0, a number other than 0 is due; use relu")
    return _of(
        lambda z: jnp.where(z > 0, z, alpha * jnp.expm1(_negative(z) / alpha)),
        lambda z: jnp.where(z > 0, 1, jnp.exp(_negative(z) / alpha)).astype(z.dtype),
        "celu",
    )


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
selu = _of(  # Klambauer 2017, arXiv 1706.02515; scale·α at 0
    lambda z: _SELU_SCALE * jnp.where(z > 0, z, _SELU_ALPHA * jnp.expm1(_negative(z))),
    lambda z: (
        _SELU_SCALE * jnp.where(z > 0, 1, _SELU_ALPHA * jnp.exp(_negative(z))).astype(z.dtype)
    ),
    "selu",
)

# ------------------------------------------------------------------------------ smooth

sigmoid = _of(jax.nn.sigmoid, lambda y: y * (1 - y), "sigmoid", of_output=True)
sigmoid_precise = _of(
    jax.nn.sigmoid, lambda z: jax.nn.sigmoid(z) * jax.nn.sigmoid(-z), "sigmoid_precise"
)
tanh = _of(jnp.tanh, lambda y: 1 - y * y, "tanh", of_output=True)
tanh_precise = _of(  # sech² = 4 σ(2z) σ(-2z)
    jnp.tanh, lambda z: 4 * jax.nn.sigmoid(2 * z) * jax.nn.sigmoid(-2 * z), "tanh_precise"
)
softplus = _of(lambda z: jnp.logaddexp(z, jnp.zeros_like(z)), jax.nn.sigmoid, "softplus")
softsign = _of(  # 1 at 0
    lambda z: z / (1 + jnp.abs(z)), lambda z: 1 / (1 + jnp.abs(z)) ** 2, "softsign"
)
silu = _of(  # Elfwing 2018, arXiv 1702.03118
    lambda z: z * jax.nn.sigmoid(z),
    lambda z: jax.nn.sigmoid(z) * (1 + z * jax.nn.sigmoid(-z)),
    "silu",
)
gelu = _of(  # z Φ(z), Hendrycks & Gimpel 2016, arXiv 1606.08415
    lambda z: z * _normal_cdf(z), lambda z: _normal_cdf(z) + z * _normal_density(z), "gelu"
)
gelu_tanh = _of(  # its tanh form, with ½(1 + tanh u) = σ(2u), which does not cancel
    lambda z: z * jax.nn.sigmoid(_gelu_2u(z)),
    lambda z: (
        jax.nn.sigmoid(_gelu_2u(z)) * (1 + z * jax.nn.sigmoid(-_gelu_2u(z)) * _gelu_2u_slope(z))
    ),
    "gelu_tanh",
)
mish = _of(  # z tanh(log(1 + eᶻ)), Misra 2019, arXiv 1908.08681
    lambda z: z * _tanh_softplus(z),
    lambda z: _tanh_softplus(z) + z * _tanh_softplus_slope(z),
    "mish",
)


def _negative(z):
    """z where it is not positive, else 0: keeps exp of the branch not taken finite."""
    return jnp.where(z > 0, jnp.zeros_like(z), z)


def _where(condition, yes: float, no: float, like):
    return jnp.where(condition, jnp.asarray(yes, like.dtype), jnp.asarray(no, like.dtype))


def _normal_cdf(z):
    return erfc(-z * math.sqrt(0.5)) / 2


def _normal_density(z):
    u = -z * math.sqrt(0.5)  # as in erfc, so that its exp(-u²) serves here too
    return jnp.exp(-(u * u)) * (1 / math.sqrt(2 * math.pi))


_GELU_C, _GELU_A = 2 * math.sqrt(2 / math.pi), 0.044715


def _gelu_2u(z):
    return _GELU_C * (z + _GELU_A * z * z * z)


def _gelu_2u_slope(z):
    return _GELU_C * (1 + 3 * _GELU_A * z * z)


def _tanh_softplus(z):
    """tanh(log(1 + eᶻ)) = (1 + 2e)/(1 + 2e + 2e²) with e = e⁻ᶻ, or with e = eᶻ for z < 0."""
    e = jnp.exp(-jnp.abs(z))
    return jnp.where(z > 0, (1 + 2 * e) / (1 + 2 * e + 2 * e * e), _tail(e) / (_tail(e) + 2))


def _tanh_softplus_slope(z):
    """Its derivative, 4e(1 + e)/(e² + 2e + 2)² with e = eᶻ, in the same two branches."""
    e = jnp.exp(-jnp.abs(z))
    right = 4 * e * e * (1 + e) / (1 + 2 * e + 2 * e * e) ** 2
    return jnp.where(z > 0, right, 4 * e * (1 + e) / (_tail(e) + 2) ** 2)


def _tail(e):
    return e * (e + 2)


# ------------------------------------------------------------------- over the last axis


def _softmax_backward(weights, y, delta, statistic=gradient):
    p, d = accumulated((y, delta))
    return (p * (d - jnp.sum(d * p, axis=-1, keepdims=True))).astype(delta.dtype), ()


def _softmax(z):
    y = jax.nn.softmax(accumulated(z), axis=-1).astype(z.dtype)
    return y, y


def _log_softmax(z):
    z = z - jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
    wide = accumulated(z)
    total = jnp.sum(jnp.exp(wide), axis=-1, keepdims=True)
    return (wide - jnp.log(total)).astype(z.dtype), (z, total)


def _log_softmax_backward(weights, residuals, delta, statistic=gradient):
    z, total = residuals
    wide, d = accumulated((z, delta))
    delta_z = d - jnp.exp(wide) * (jnp.sum(d, axis=-1, keepdims=True) / total)
    return delta_z.astype(delta.dtype), ()


def _over_last_axis(f, backward, name):
    def forward(params, z, key=None):
        check_float(name, z)
        if z.ndim < 2 or z.shape[-1] == 0:
            raise LayerError(name, f"x has shape {z.shape}, a batch (B, ..., n) with n > 0 is due")
        return f(z)

    return Layer(stateless, forward, backward, name)


softmax = _over_last_axis(_softmax, _softmax_backward, "softmax")
log_softmax = _over_last_axis(_log_softmax, _log_softmax_backward, "log_softmax")
