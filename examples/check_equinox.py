"""A gradient written by hand inside an Equinox module, checked by the module's parameters.

    python examples/check_equinox.py

A network of two linear layers has a norm between them that brings its own rule (jax.custom_vjp):

    y  = x / √(mean x² + ε)        dx = (dy - y mean(dy y)) / √(mean x² + ε)

eqx.partition splits the module into its arrays and the rest, so its loss is a function of a tree of
arrays, as check_gradient takes it.  The norm is a leaf of the rest: the same arrays go into the
module with the rule and into the one without.  The report names the module's own fields.

Then the second term of dx is left out.  The gradient of the last layer stays right, that of the
first one does not, and the report names the term.

Needs Equinox (pip install ".[interop]").  Takes a few seconds.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

import funcprop as fp


def plain_norm(x):
    return x / jnp.sqrt(jnp.mean(x**2) + 1e-5)


def norm_with(backward):
    """The norm with a derivative of its own."""

    @jax.custom_vjp
    def norm(x):
        return plain_norm(x)

    def forward(x):
        size = jnp.sqrt(jnp.mean(x**2) + 1e-5)
        return x / size, (x / size, size)

    norm.defvjp(forward, backward)
    return norm


def backward(kept, dy):
    y, size = kept
    return ((dy - y * jnp.mean(dy * y)) / size,)


def wrong_backward(kept, dy):
    _, size = kept
    return (dy / size,)


class Network(eqx.Module):
    first: eqx.nn.Linear
    last: eqx.nn.Linear
    norm: Callable

    def __init__(self, norm, key):
        keys = jax.random.split(key)
        self.first = eqx.nn.Linear(4, 6, key=keys[0])
        self.last = eqx.nn.Linear(6, 2, key=keys[1])
        self.norm = norm

    def __call__(self, x):
        return self.last(self.norm(self.first(x)))


def loss_with(norm):
    """(the loss of the module's arrays and a batch, the arrays)"""
    arrays, rest = eqx.partition(Network(norm, jax.random.key(0)), eqx.is_inexact_array)

    def loss(arrays, x, y):
        return jnp.mean((jax.vmap(eqx.combine(arrays, rest))(x) - y) ** 2)

    return loss, arrays


keys = jax.random.split(jax.random.key(1))
x, y = jax.random.normal(keys[0], (5, 4)), jax.random.normal(keys[1], (5, 2))
plain, arrays = loss_with(plain_norm)
right, _ = loss_with(norm_with(backward))
wrong, _ = loss_with(norm_with(wrong_backward))

passed = fp.check_gradient(plain, jax.grad(right), arrays, x, y, title="Equinox module")
passed.assert_ok()
print(f"{passed}\n")

failed = fp.check_gradient(plain, jax.grad(wrong), arrays, x, y, title="without a term")
print(failed)
