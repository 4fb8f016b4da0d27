"""Gated feed-forward with a trainable swish, fused backward through eqx.filter_custom_vjp."""

import equinox as eqx
import jax
import jax.numpy as jnp


@eqx.filter_custom_vjp
def glu(vjp_arg):
    gate, up, beta = vjp_arg
    return gate * jax.nn.sigmoid(beta * gate) * up


@glu.def_fwd
def glu_fwd(perturbed, vjp_arg):
    del perturbed
    gate, up, beta = vjp_arg
    s = jax.nn.sigmoid(beta * gate)
    return gate * s * up, (s, gate * s)


@glu.def_bwd
def glu_bwd(residuals, grad, perturbed, vjp_arg):
    del perturbed
    s, act = residuals
    gate, up, beta = vjp_arg
    dact = grad * up
    dup = grad * act
    slope = s * (1 + beta * gate * (1 - s))
    dgate = dact * slope
    dbeta = jnp.sum(dact * gate * gate * s * (1 - s))
    return dgate, dup, dbeta


class GatedMLP(eqx.Module):
    w_gate: jax.Array
    w_up: jax.Array
    w_down: jax.Array
    beta: jax.Array

    def __call__(self, x):
        return glu((x @ self.w_gate, x @ self.w_up, self.beta)) @ self.w_down


def f(params, x, y):
    model = GatedMLP(**params)
    return jnp.sum(jnp.abs(model(x) - y) ** 1.5) / x.shape[0]


def g(params, x, y):
    return jax.grad(f, (0, 1))(params, x, y)


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "equinox"
ARGNUMS = (0, 1)


def draw(rng, n=5, d=4, h=6, scale=0.8, beta=1.3, size=1.0):
    params = {
        "w_gate": rng.normal(size=(d, h)) * scale,
        "w_up": rng.normal(size=(d, h)) * scale,
        "w_down": rng.normal(size=(h, 3)),
        "beta": np.float64(beta),
    }
    x = rng.normal(size=(n, d)) * size
    x[-1] = 0.0  # the last one is padding
    return params, x, rng.normal(size=(n, 3))


FAULTS = (
    Fault(
        "gate and value get each other's gradients",
        "return dgate, dup, dbeta",
        "return dup, dgate, dbeta",
        "transpose",
        "0.w_gate 0.w_up 1",
        "return gate * jax.nn.sigmoid(",
        "unslothai/unsloth#3314",
    ),
    Fault(
        "the trainable slope lacks the derivative of the logistic",
        "jnp.sum(dact * gate * gate * s * (1 - s))",
        "jnp.sum(dact * gate * gate)",
        "factor|wrong function|missing term",
        "0.beta",
        "return gate * jax.nn.sigmoid(",
        "RubixML/ML#437",
    ),
    Fault(
        "the trainable slope is given its gradient twice",
        "return dgate, dup, dbeta",
        "return dgate, dup, dbeta + dbeta",
        "counted twice|factor",
        "0.beta",
        "return gate * jax.nn.sigmoid(",
        "RubixML/ML#437",
    ),
    Fault(
        "minus in the derivative of swish",
        "(1 + beta * gate * (1 - s))",
        "(1 - beta * gate * (1 - s))",
        "sign",
        "0.w_gate 1",
        "return gate * jax.nn.sigmoid(",
    ),
    Fault(
        "the logistic recovered by a division, 0/0 where the gate is 0",
        "slope = s * (1 +",
        "slope = act / gate * (1 +",
        "not finite",
        "0.w_gate 1",
        "return gate * jax.nn.sigmoid(",
        "huggingface/candle#2082",
    ),
)
HARD = (
    Hard("nothing but padding and one", "sizes", lambda rng: draw(rng, n=2, d=1, h=1)),
    Hard("gates wide open or shut", "saturation", lambda rng: draw(rng, scale=15.0)),
    Hard("a slope of nought", "extreme", lambda rng: draw(rng, beta=0.0), "float64"),
    Hard("weak signals", "tiny", lambda rng: draw(rng, size=1e-7)),
    Hard("half precision", "16 bits", lambda rng: draw(rng, n=4), "bfloat16"),
)
