"""Is the backward kernel right?  A Pallas kernel with its derivative written by hand, checked.

    python examples/check_kernel.py

A row softmax is one kernel forward and one backward, tied together by jax.custom_vjp:

    y  = exp(x - max x) / Σ exp(x - max x)        dx = y (dy - Σ dy y)

JAX takes such a rule at its word, so jax.grad of the kernel is the thing to check, not the judge.
It is compared with jax.grad of the same function in plain JAX, and with central differences, which
know no rule.  Then the sum is left out of the backward kernel, as if each output depended on its
own input alone, and the report names the term.

Central differences need float64.  The kernels follow the dtype of their inputs (out_shape is made
from x), so the check can run them in float64.  Of a kernel that computes in float32 whatever it is
given, differences know the slopes to some per cent only: judge it beside plain JAX.

Kernels run in interpret mode, so no accelerator is needed.  Takes a few seconds.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

import funcprop as fp

ROWS = 4  # of a block


def forward_kernel(x, y):
    e = jnp.exp(x[...] - jnp.max(x[...], axis=-1, keepdims=True))
    y[...] = e / jnp.sum(e, axis=-1, keepdims=True)


def backward_kernel(y, dy, dx):
    dx[...] = y[...] * (dy[...] - jnp.sum(dy[...] * y[...], axis=-1, keepdims=True))


def wrong_backward_kernel(y, dy, dx):
    dx[...] = y[...] * dy[...]


def by_rows(kernel, *arrays):
    """A kernel over blocks of rows; the result has the shape and the dtype of the first array."""
    x = arrays[0]
    block = pl.BlockSpec((ROWS, x.shape[1]), lambda i: (i, 0))
    return pl.pallas_call(
        kernel,
        grid=(x.shape[0] // ROWS,),
        in_specs=[block] * len(arrays),
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        interpret=True,
    )(*arrays)


def softmax_with(backward_kernel):
    """The softmax whose derivative is that kernel's."""

    @jax.custom_vjp
    def softmax(x):
        return by_rows(forward_kernel, x)

    def forward(x):
        y = softmax(x)
        return y, y

    def backward(y, dy):
        return (by_rows(backward_kernel, y, dy),)

    softmax.defvjp(forward, backward)
    return softmax


def loss_with(softmax):
    """A number that weighs every output differently."""
    return lambda x, weights: jnp.sum(weights * softmax(x))


def plain_softmax(x):
    e = jnp.exp(x - jax.lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True)))
    return e / jnp.sum(e, axis=-1, keepdims=True)


keys = jax.random.split(jax.random.key(0))
x, weights = (jax.random.normal(key, (8, 5)) for key in keys)
plain = loss_with(plain_softmax)
right = loss_with(softmax_with(backward_kernel))
wrong = loss_with(softmax_with(wrong_backward_kernel))

# The backward kernel beside plain JAX, and beside differences of plain JAX.
passed = fp.check_gradient(plain, jax.grad(right), x, weights, title="softmax kernel")
passed.assert_ok()
print(passed)

# The same without a second implementation: its own forward kernel judges, by differences alone.
alone = fp.check_gradient(right, jax.grad(right), x, weights, title="softmax kernel alone")
alone.assert_ok()
print(f"\nbeside differences of its own forward kernel: {'ok' if alone.ok else 'FAILED'}\n")

failed = fp.check_gradient(plain, jax.grad(wrong), x, weights, title="kernel without its sum")
print(failed)
