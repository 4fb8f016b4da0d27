"""The hand-written rule inside anybody's jax.grad: plain JAX, Flax NNX and Equinox."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcprop as fp
from funcprop import compare

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
LAYER = fp.serial(fp.dense(5, fp.gelu), fp.dense(3))
PARAMS, _ = LAYER.init(KEY, (4,))


def counted():
    """A dense layer that counts how often its own backward pass is traced."""
    layer, calls = fp.dense(3, fp.tanh), []

    def backward(weights, residuals, delta, statistic=fp.gradient):
        calls.append(1)
        return layer.backward(weights, residuals, delta, statistic)

    return layer._replace(backward=backward), calls


def test_plain_jax():
    f = fp.differentiable(LAYER)

    def value(apply):
        return lambda params, x: jnp.sum(jnp.sin(apply(params, x)))

    found = jax.jit(jax.value_and_grad(value(f), (0, 1)))(PARAMS, X)
    compare(found, jax.jit(jax.value_and_grad(value(LAYER.apply), (0, 1)))(PARAMS, X)).assert_ok()
    np.testing.assert_array_equal(f(PARAMS, X), LAYER.apply(PARAMS, X))
    each = jax.vmap(jax.grad(lambda p, x: value(f)(p, x[None])), (None, 0))(PARAMS, X)
    due = jax.vmap(jax.grad(lambda p, x: value(LAYER.apply)(p, x[None])), (None, 0))(PARAMS, X)
    compare(each, due).assert_ok()


def test_it_is_the_hand_written_rule_that_runs():
    layer, calls = counted()
    params, _ = layer.init(KEY, (4,))
    jax.grad(lambda p: fp.differentiable(layer)(p, X).sum())(params)
    assert calls
    broken = layer._replace(backward=lambda w, r, d, s=fp.gradient: (jnp.zeros_like(X), w))
    grads = jax.grad(lambda p: fp.differentiable(broken)(p, X).sum())(params)
    np.testing.assert_array_equal(grads["w"], params["w"])


def test_companions_and_keys():
    shape = (jax.ShapeDtypeStruct((4,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))
    layer = fp.on(0, fp.dense(3, fp.tanh))
    params, _ = layer.init(KEY, shape)
    ids = jnp.arange(6)
    f = fp.differentiable(layer)

    def value(params, x):
        y, same = f(params, (x, ids), jax.random.key(1))
        return jnp.sum(y * same[:, None])

    found = jax.jit(jax.grad(value, (0, 1)))(params, X)

    def due(params, x):
        return jnp.sum(layer.apply(params, (x, ids))[0] * ids[:, None])

    compare(found, jax.jit(jax.grad(due, (0, 1)))(params, X)).assert_ok()


def test_it_refuses_forward_mode_and_apply_does_not():
    f = fp.differentiable(LAYER)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda p: f(p, X), (PARAMS,), (PARAMS,))
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jacfwd(lambda x: f(PARAMS, x))(X)
    jax.jvp(lambda p: LAYER.apply(p, X), (PARAMS,), (PARAMS,))


def test_it_can_be_differentiated_again():
    f = fp.differentiable(LAYER)

    def hessian(apply):
        def value(x):
            return jnp.sum(jnp.sin(apply(PARAMS, x)))

        return jax.jit(lambda x: (jax.hessian(value)(x), jax.jacrev(jax.grad(value))(x)))

    compare(hessian(f)(X[:1]), hessian(LAYER.apply)(X[:1])).assert_ok()


def test_flax_nnx():
    nnx = pytest.importorskip("flax.nnx")

    class Module(nnx.Module):
        def __init__(self, layer, rngs):
            params, _ = layer.init(rngs.params(), (4,))
            self.w, self.b = nnx.Param(params["w"]), nnx.Param(params["b"])
            self.head = nnx.Linear(3, 2, rngs=rngs)
            self.layer = fp.differentiable(layer)

        def __call__(self, x):
            return self.head(self.layer({"w": self.w[...], "b": self.b[...]}, x))

    layer, calls = counted()
    module = Module(layer, nnx.Rngs(0))
    value = nnx.jit(nnx.value_and_grad(lambda m: jnp.mean(m(X) ** 2)))
    _, found = value(module)
    assert calls
    module.layer = layer.apply
    _, due = value(module)
    compare(nnx.to_pure_dict(found), nnx.to_pure_dict(due)).assert_ok()


def test_equinox():
    eqx = pytest.importorskip("equinox")

    class Module(eqx.Module):
        params: dict
        head: eqx.nn.Linear
        layer: fp.Layer = eqx.field(static=True)
        by_hand: bool = eqx.field(static=True)

        def __call__(self, x):
            apply = fp.differentiable(self.layer) if self.by_hand else self.layer.apply
            return jax.vmap(self.head)(apply(self.params, x))

    layer, calls = counted()
    params, _ = layer.init(KEY, (4,))
    head = eqx.nn.Linear(3, 2, key=jax.random.key(2))
    value = eqx.filter_jit(eqx.filter_grad(lambda m: jnp.mean(m(X) ** 2)))
    found = value(Module(params, head, layer, True))
    assert calls
    due = value(Module(params, head, layer, False))
    compare(jax.tree.leaves(found), jax.tree.leaves(due)).assert_ok()


def test_function_is_any_jax_function_as_a_layer():
    def norm(params, x):
        mean = x.mean(-1, keepdims=True)
        return params["scale"] * (x - mean) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)

    layer = fp.function(norm, lambda key, shape: ({"scale": jnp.ones(shape)}, shape))
    fp.check_layer(layer, (5,)).assert_ok()
    model = fp.serial(fp.dense(5), layer, fp.dense(2))
    fp.check_layer(model, (4,), dtype="float64").assert_ok()
    total = fp.function(lambda _, x: x.sum(-1))
    assert total.init(KEY, (3, 4)) == ((), (3,))
    fp.check_layer(total, (3, 4)).assert_ok()
    mixing = fp.function(lambda _, x: x - x.mean(0), mixes=True, name="centre")
    fp.check_layer(mixing, (3,)).assert_ok()
    pair = fp.function(lambda _, x: (x[0] * 2, x[1]))
    ids = jnp.arange(6)
    fp.check_layer(pair, x=(X, ids)).assert_ok()
