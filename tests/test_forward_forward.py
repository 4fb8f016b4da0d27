"""Forward-forward: each block's tree against jax.grad of its own loss, and what the labels do."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcprop as fp
from funcprop import forward_forward

pytestmark = pytest.mark.usefixtures("strict")
MODEL = fp.serial(fp.dense(5, fp.relu), fp.dense(6), fp.tanh, fp.dense(4))
CLASSES, THRESHOLD, SLOPE = 3, 0.4, 2.0
RULE = forward_forward(MODEL, CLASSES, threshold=THRESHOLD, slope=SLOPE)
ESTIMATE = jax.jit(RULE.estimate)
DRAW = np.random.default_rng(0)
INPUTS, LABELS = DRAW.normal(size=(7, 2)), np.array([0, 1, 2, 2, 1, 0, 1], np.int32)


def shapes(model, shape):
    return jax.eval_shape(lambda key: model.init(key, shape)[0], jax.random.key(0))


def drawn(shape):
    draw = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.4 * draw.normal(size=leaf.shape)), shapes(MODEL, shape)
    )


@pytest.fixture
def given(x64):
    return drawn((2 + CLASSES,)), jnp.asarray(INPUTS), jnp.asarray(LABELS)


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def activities(params, x, labels):
    """What each block gives; each is told of the direction of the one before it alone."""
    h, found = jnp.concatenate([x, jax.nn.one_hot(labels, CLASSES)], axis=1), []
    for part, f in zip((params[0], params[1], params[3]), "rti", strict=True):
        h = jax.lax.stop_gradient(h) @ part["w"].T + part["b"]
        h = {"r": jax.nn.relu, "t": jnp.tanh, "i": lambda h: h}[f](h)
        found.append(h)
        h = h / jnp.linalg.norm(h, axis=1, keepdims=True) * np.sqrt(h.shape[1])
    return found


def goodness(params, x, labels):
    return jnp.stack([jnp.mean(h**2, axis=1) for h in activities(params, x, labels)])


def losses(params, x, true, wrong):
    """(blocks,): a logistic loss of true labels, and one of wrong ones (k, B)."""
    positive = jax.nn.sigmoid(SLOPE * (goodness(params, x, true) - THRESHOLD))
    value = -jnp.mean(jnp.log(positive), axis=1)
    each = [jax.nn.sigmoid(SLOPE * (goodness(params, x, w) - THRESHOLD)) for w in wrong]
    return value - sum(jnp.mean(jnp.log(1 - p), axis=1) for p in each) / len(wrong)


def test_each_tree_is_the_gradient_of_its_own_loss(given):
    """Without a key over all wrong labels; nothing comes from the blocks behind."""
    params, x, y = given
    value, tree, _ = ESTIMATE(params, (), x, y, None)
    wrong = [(y + 1) % CLASSES, (y + 2) % CLASSES]
    due, grads = jax.jit(jax.value_and_grad(lambda p: losses(p, x, y, wrong).sum()))(params)
    np.testing.assert_allclose(value, due, rtol=1e-12)
    np.testing.assert_allclose(flat(tree), flat(grads), rtol=1e-10, atol=1e-14)
    assert tree[2] == ()


def test_wrong_labels_are_drawn_evenly_and_are_never_the_true_one(given):
    """Each draw is one of two: with x alike in all examples the value tells which."""
    params, x, y = given
    estimate = jax.jit(jax.vmap(RULE.estimate, (None, None, None, None, 0)))
    keys = jax.random.split(jax.random.key(1), 1000)
    values, trees, _ = estimate(params, (), x[:1], y[:1], keys)
    loss = jax.jit(lambda wrong: losses(params, x[:1], LABELS[:1], [wrong]).sum())
    due = [loss((LABELS[:1] + shift) % CLASSES) for shift in (1, 2)]
    near = np.abs(np.asarray(values)[:, None] - np.asarray(due)) < 1e-12
    assert np.all(near.sum(axis=1) == 1)
    assert abs(near[:, 0].mean() - 0.5) < 0.08  # 5 standard deviations
    # The tree without a key is the mean of the two.
    both = [jax.tree.map(lambda leaf, i=i: leaf[i], trees) for i in near.argmax(axis=0)]
    _, mean, _ = ESTIMATE(params, (), x[:1], y[:1], None)
    np.testing.assert_allclose((flat(both[0]) + flat(both[1])) / 2, flat(mean), rtol=1e-9)
    # Examples draw apart from each other.
    values, _, _ = estimate(params, (), np.repeat(x[:1], 8, axis=0), np.repeat(y[:1], 8), keys)
    assert len(np.unique(np.round(np.asarray(values), 9))) > 4


def test_it_predicts_the_goodness_of_each_label(given):
    params, x, _ = given
    found = jax.jit(RULE.predict)(params, x)
    total = jax.jit(lambda labels: goodness(params, x, labels).sum(axis=0))
    due = [total(np.full(7, label)) for label in range(CLASSES)]
    np.testing.assert_allclose(found, np.stack(due, axis=1), rtol=1e-12)


def test_only_the_direction_is_passed_on(given):
    params, x, y = given
    louder = (jax.tree.map(lambda leaf: 3 * leaf, params[0]), *params[1:])
    trees = [ESTIMATE(p, (), x, y, None)[1] for p in (params, louder)]
    np.testing.assert_allclose(flat(trees[0][1:]), flat(trees[1][1:]), rtol=1e-10)
    assert not np.allclose(flat(trees[0][0]), flat(trees[1][0]))


def test_a_silent_block_gives_no_nan():
    params = drawn((2 + CLASSES,))
    silent = ({"w": params[0]["w"], "b": np.full(5, -1e3, np.float32)}, *params[1:])
    x, y = jnp.asarray(INPUTS, jnp.float32), jnp.asarray(LABELS)
    value, tree, _ = ESTIMATE(silent, (), x, y, None)
    assert np.isfinite(value)
    assert np.all(np.isfinite(flat(tree)))
    assert flat(tree).dtype == jnp.float32


def test_images_have_the_label_in_every_place_and_dropout_its_key():
    # Of two classes one is wrong, so that the key draws the masks alone.
    model = fp.serial(fp.conv(4, 3), fp.relu, fp.dropout(0.5), fp.flatten, fp.dense(5))
    rule = forward_forward(model, 2)
    x = np.random.default_rng(1).normal(size=(7, 4, 4, 1)).astype(np.float32)

    @jax.jit
    def run(key):
        params, _ = model.init(key, (4, 4, 1 + 2))
        estimate = jax.vmap(lambda key: rule.estimate(params, (), x, LABELS % 2, key)[:2])
        return params, estimate(jax.random.split(key))

    params, (values, trees) = run(jax.random.key(0))
    assert values[0] != values[1]
    assert jax.tree.map(lambda leaf: leaf.shape[1:], trees) == jax.tree.map(jnp.shape, params)
    assert jax.eval_shape(rule.predict, params, x).shape == (7, 2)


def test_it_trains_and_is_evaluated():
    model = fp.serial(fp.dense(16, fp.relu), fp.dense(16, fp.relu))
    rule = forward_forward(model, 2)
    x = np.asarray(jax.random.normal(jax.random.key(1), (128, 2)))
    y = (x[:, 0] > x[:, 1]).astype(np.int32)
    params, _ = model.init(jax.random.key(2), (4,))
    options = {"key": jax.random.key(3), "batch_size": 32, "epochs": 30, "every": 120}
    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        state, history = fp.fit(rule, optax.adam(0.02), params, (x, y), **options)
    found = fp.evaluate(rule, state.params, (x, y), scores={"accuracy": fp.accuracy})
    assert found["accuracy"] > 0.95
    assert found["loss"] < history["loss"][0] / 2


def test_a_bad_label_under_a_trace_gives_nan():
    params, x = drawn((2 + CLASSES,)), np.ones((4, 2), np.float32)
    assert np.isnan(ESTIMATE(params, (), x, np.array([3, 1, 2, 0], np.int32), None)[0])
