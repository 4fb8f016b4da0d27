"""A gradient written by hand inside a Flax NNX module, checked by the module's parameters.

    python examples/check_nnx.py

A network of two linear layers has an activation between them that brings its own rule
(jax.custom_vjp), the swish with σ the logistic function:

    y  = z σ(z)        dz = dy (σ(z) + z σ(z) (1 - σ(z)))

nnx.split takes the module apart into its parameters and the rest, so its loss is a function of a
tree of arrays, as check_gradient takes it.  The activation belongs to the rest: the same parameters
go into the module with the rule and into the one without.

Then the first term of dz is left out.  The gradient of the last layer stays right, that of the
first one does not, and the report names the term.

Needs Flax (pip install ".[interop]").  Takes a few seconds.
"""

import jax
import jax.numpy as jnp
from flax import nnx

import funcprop as fp


def plain_swish(z):
    return z * jax.nn.sigmoid(z)


def swish_with(backward):
    """The swish with a derivative of its own."""

    @jax.custom_vjp
    def swish(z):
        return plain_swish(z)

    swish.defvjp(lambda z: (plain_swish(z), z), backward)
    return swish


def backward(z, dy):
    p = jax.nn.sigmoid(z)
    return (dy * (p + z * p * (1 - p)),)


def wrong_backward(z, dy):
    p = jax.nn.sigmoid(z)
    return (dy * z * p * (1 - p),)


class Network(nnx.Module):
    def __init__(self, activation, rngs):
        self.first = nnx.Linear(4, 6, rngs=rngs)
        self.last = nnx.Linear(6, 2, rngs=rngs)
        self.activation = activation

    def __call__(self, x):
        return self.last(self.activation(self.first(x)))


def loss_with(activation):
    """(the loss of the module's parameters and a batch, the parameters)"""
    graph, params = nnx.split(Network(activation, nnx.Rngs(0)), nnx.Param)

    def loss(params, x, y):
        return jnp.mean((nnx.merge(graph, params)(x) - y) ** 2)

    return loss, params


keys = jax.random.split(jax.random.key(1))
x, y = jax.random.normal(keys[0], (5, 4)), jax.random.normal(keys[1], (5, 2))
plain, params = loss_with(plain_swish)
right, _ = loss_with(swish_with(backward))
wrong, _ = loss_with(swish_with(wrong_backward))

passed = fp.check_gradient(plain, jax.grad(right), params, x, y, title="NNX module")
passed.assert_ok()
print(f"{passed}\n")

failed = fp.check_gradient(plain, jax.grad(wrong), params, x, y, title="without a term")
print(failed)
