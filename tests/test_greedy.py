"""Greedy training: each block against jax.grad of its own loss, the last one against backprop."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcprop as fp
from funcprop import GreedyState, backpropagation, greedy

pytestmark = pytest.mark.usefixtures("strict")
MODEL = fp.serial(fp.dense(5, fp.tanh), fp.dense(4), fp.tanh, fp.dense(3))
LOSS, RATE = fp.softmax_cross_entropy(), 0.25
RULE = greedy(MODEL, LOSS, (2,), optax.sgd(RATE))
ESTIMATE = jax.jit(RULE.estimate)
DRAW = np.random.default_rng(0)
INPUTS, LABELS = DRAW.normal(size=(7, 2)), np.array([0, 1, 2, 2, 1, 0, 1], np.int32)


@pytest.fixture
def given(x64):
    @jax.jit
    def drawn(key):
        params, _ = MODEL.init(key, (2,))
        params = jax.tree.map(lambda leaf: leaf + 0.1, params)
        return params, RULE.init(jax.random.key(1), params)

    return *drawn(jax.random.key(0)), jnp.asarray(INPUTS), jnp.asarray(LABELS)


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def own_losses(params, heads, x, y):
    """The sum of the blocks' losses; nothing goes from a block to the one before it."""
    total, h = 0.0, x
    for part, head in zip((params[0], params[1], params[3]), (*heads, None), strict=True):
        h = jax.lax.stop_gradient(h) @ part["w"].T + part["b"]
        h = h if head is None else jnp.tanh(h)
        scores = h if head is None else h @ head["w"].T + head["b"]
        total += -jnp.mean(jax.nn.log_softmax(scores)[jnp.arange(len(y)), y])
    return total


def test_each_tree_is_the_gradient_of_its_own_loss(given):
    params, state, x, y = given
    _, tree, new = ESTIMATE(params, state, x, y, None)
    due, heads = jax.jit(jax.grad(own_losses, (0, 1)))(params, state.heads, x, y)
    np.testing.assert_allclose(flat(tree), flat(due), rtol=1e-10, atol=1e-15)
    assert tree[2] == ()
    moved = jax.tree.map(lambda head, slope: head - RATE * slope, state.heads, heads)
    np.testing.assert_allclose(flat(new.heads), flat(moved), rtol=1e-12)


def test_value_and_last_tree_are_those_of_backprop(given):
    params, state, x, y = given
    value, tree, _ = ESTIMATE(params, state, x, y, None)
    due, grads, _ = jax.jit(backpropagation(MODEL, LOSS).estimate)(params, (), x, y, None)
    np.testing.assert_allclose(value, due, rtol=1e-15)
    np.testing.assert_allclose(flat(tree[3]), flat(grads[3]), rtol=1e-14, atol=1e-17)
    assert not np.allclose(flat(tree[0]), flat(grads[0]))


def test_readouts_of_images_and_of_tokens():
    """Images and tokens to (C,): of all of the output; tokens to tokens: each by itself."""

    def made(model, shape):
        return greedy(model, LOSS, shape, optax.sgd(RATE)), lambda key: model.init(key, shape)[0]

    def heads(model, shape):
        rule, init = made(model, shape)
        return jax.eval_shape(lambda key: rule.init(key, init(key)), jax.random.key(0)).heads

    images = fp.serial(fp.conv(2, 3), fp.relu, fp.dropout(0.5), fp.flatten, fp.dense(3))
    rule, init = made(images, (4, 4, 1))
    x, y = np.random.default_rng(2).normal(size=(7, 4, 4, 1)).astype(np.float32), LABELS

    @jax.jit
    def run(key):
        params = init(key)
        state = rule.init(key, params)
        estimate = jax.vmap(lambda key: rule.estimate(params, state, x, y, key)[:2])
        return params, state, estimate(jax.random.split(key))

    params, state, (values, trees) = run(jax.random.key(0))
    assert state.heads[0]["w"].shape == (3, 32)  # flatten goes to the block of the convolution
    assert values[0] != values[1]
    assert jax.tree.map(lambda leaf: leaf.shape[1:], trees) == jax.tree.map(jnp.shape, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(trees)} == {jnp.dtype("float32")}

    pooled = fp.serial(fp.conv(2, 3), fp.conv(2, 3), fp.global_avg_pool, fp.dense(3))
    first, second = heads(pooled, (4, 4, 1))
    assert first[1]["w"].shape == (3, 32)
    assert second["w"].shape == (3, 2)

    tokens = fp.serial(fp.embedding(9, 4), fp.dense(6, fp.tanh), fp.dense(5))
    shape = jax.ShapeDtypeStruct((8,), "int32")
    assert [head["w"].shape for head in heads(tokens, shape)] == [(5, 4), (5, 6)]
    rule, init = made(tokens, shape)
    x = np.arange(16, dtype=np.int32).reshape(2, 8) % 9

    @jax.jit
    def value(key):
        params = init(key)
        return rule.estimate(params, rule.init(key, params), x, x % 5, None)[0]

    assert np.isfinite(value(jax.random.key(0)))


def test_it_trains_and_weight_decay_leaves_the_readouts_alone():
    x = np.random.default_rng(1).normal(size=(128, 2)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int32)
    model = fp.mlp((2, 16, 16, 2), fp.tanh)
    params, _ = model.init(jax.random.key(2), (2,))
    options = {"key": jax.random.key(3), "batch_size": 32, "every": 120}
    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        rule = greedy(model, LOSS, (2,), optax.adam(0.02))
        state, _ = fp.fit(rule, optax.adam(0.02), params, (x, y), epochs=30, **options)
        still = greedy(model, LOSS, (2,), optax.sgd(0.0))
        decay = optax.add_decayed_weights(0.5)
        shrunk, _ = fp.fit(still, decay, params, (x, y), steps=2, **options)
        scored = {"scores": {"accuracy": fp.accuracy}, "rule_state": state.rule_state}
        found = fp.evaluate(rule, state.params, (x, y), **scored)
    assert found["accuracy"] > 0.95
    # The first readouts are drawn from the state's key, as init_state splits it.
    assert isinstance(shrunk.rule_state, GreedyState)
    _, state_key = jax.random.split(options["key"])
    first = jax.jit(still.init)(jax.random.split(state_key)[0], params)
    np.testing.assert_array_equal(flat(shrunk.rule_state.heads), flat(first.heads))
