"""Predictive coding against its energy, and against backprop where the two are one."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcprop as fp
from funcprop import fixed_prediction, predictive_coding, zil
from funcprop.core.combinators import blocks
from funcprop.learning.chain import chain
from funcprop.learning.predictive_coding import _errors, moved

pytestmark = pytest.mark.usefixtures("strict")
LOSS = fp.softmax_cross_entropy()


@pytest.fixture(autouse=True)
def wide(x64):
    """Everything in float64."""


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def drawn(model, shape, batch, classes=3, seed=0):
    draw = np.random.default_rng(seed)
    params = jax.eval_shape(lambda key: model.init(key, shape)[0], jax.random.key(seed))

    def of(leaf):  # as large as the initialisers' numbers
        scale = 1 / np.sqrt(np.prod(leaf.shape) / min(leaf.shape)) if len(leaf.shape) > 1 else 0.1
        return jnp.asarray(scale * draw.normal(size=leaf.shape))

    params = jax.tree.map(of, params)
    return params, jnp.asarray(draw.normal(size=(batch, *shape))), np.arange(batch) % classes


def mean_loss(model, params, x, y):
    return jnp.mean(LOSS.apply((), (model.apply(params, x), y)))


def relative(a, b):
    return jnp.linalg.norm(flat(a) - flat(b)) / jnp.linalg.norm(flat(b))


DEEP = fp.mlp((4, 6, 5, 5, 3), fp.tanh)


def energy(model, params, z, x, y):
    """½ Σ ‖z - f(z below)‖² + the losses, of the sum over the batch."""
    found = blocks(model, params)
    total = jnp.zeros(())
    for (layer, own, _), below, here in zip(found, [x, *z], [*z, None], strict=True):
        f = layer.apply(own, below)
        if here is None:
            return total + jnp.sum(LOSS.apply((), (f, y)))
        total = total + jnp.sum((here - f) ** 2) / 2


def fed_forward(model, params, x):
    z = []
    for layer, own, _ in blocks(model, params):
        x = layer.apply(own, x)
        z.append(x)
    return z[:-1]


@pytest.mark.parametrize("steps", [1, 12])
def test_it_descends_the_energy_and_gives_its_gradient_there(steps):
    """Both by jax.grad of the energy as a whole."""
    params, x, y = drawn(DEEP, (4,), 7)

    estimate = predictive_coding(DEEP, LOSS, steps=steps, rate=0.3).estimate

    @jax.jit
    def run(params):
        def step(z, _):
            slopes = jax.grad(energy, 2)(DEEP, params, z, x, y)
            return [a - 0.3 * s for a, s in zip(z, slopes, strict=True)], None

        z, _ = jax.lax.scan(step, fed_forward(DEEP, params, x), length=steps)
        due = jax.grad(energy, 1)(DEEP, params, z, x, y)
        value, tree, _ = estimate(params, (), x, y, None)
        gap = relative(jax.tree.map(lambda leaf: 7 * leaf, tree), due)
        return gap, value, mean_loss(DEEP, params, x, y)

    gap, value, due = run(params)
    assert gap < 1e-13
    np.testing.assert_allclose(value, due, rtol=1e-14)


def test_the_energy_never_rises():
    params, x, y = drawn(DEEP, (4,), 5)
    params = jax.tree.map(lambda a: 2 * np.asarray(a), params)  # errors that are not small

    @jax.jit
    def energies(params):
        errors = _errors(chain("test", DEEP, params, None), LOSS, y)

        def step(z, _):
            return moved(errors, x, z, 0.1), energy(DEEP, params, z, x, y)

        return jax.lax.scan(step, fed_forward(DEEP, params, x), length=200)[1]

    found = energies(params)
    assert np.all(np.diff(found) <= 0)
    assert found[-1] < 0.9 * found[0]


def times(size):
    """The loss times a number."""

    def forward(params, x, key=None):
        losses, residuals = LOSS.forward(params, x)
        return size * losses, residuals

    def backward(weights, residuals, delta, statistic=fp.gradient):
        return LOSS.backward(weights, residuals, size * delta, statistic)

    return LOSS._replace(forward=forward, backward=backward)


def test_of_a_small_loss_it_is_backprop():
    """Its distance from backprop falls as the loss does."""
    params, x, y = drawn(DEEP, (4,), 5)

    @jax.jit
    def distance(size):
        grads = fp.value_and_backprop(DEEP, LOSS)(params, x, y)[1]
        rule = predictive_coding(DEEP, times(size), steps=300, rate=0.3)
        tree = rule.estimate(params, (), x, y, None)[1]
        return relative(jax.tree.map(lambda leaf: leaf / size, tree), grads)

    first, second = distance(1e-2), distance(1e-3)
    np.testing.assert_allclose(first / second, 10, rtol=0.05)
    assert second < 1e-2


def binomial_tail(steps, rate, least):
    """The probability of ``least`` or more successes, by adding up trial after trial."""
    chances = np.zeros(steps + 1)
    chances[0] = 1
    for _ in range(steps):
        chances[1:] = (1 - rate) * chances[1:] + rate * chances[:-1]
        chances[0] *= 1 - rate
    return chances[least:].sum()


@functools.cache
def fixed_predictions():
    """Of some steps and rates the tree, and the gradient."""
    params, x, y = drawn(DEEP, (4,), 5)
    given = [(1, 0.3), (5, 0.3), (10, 0.3), (20, 0.3), (100, 0.3), (2, 1.0), (3, 1.0)]

    @jax.jit
    def run(params):
        trees = [
            fixed_prediction(DEEP, LOSS, steps=steps, rate=rate).estimate(params, (), x, y, None)[1]
            for steps, rate in given
        ]
        return trees, fp.value_and_backprop(DEEP, LOSS)(params, x, y)[1]

    trees, grads = jax.device_get(run(params))
    return dict(zip(given, trees, strict=True)), grads


def test_fixed_prediction_is_backprop_times_a_binomial_tail():
    trees, grads = fixed_predictions()
    for steps, rate in [(1, 0.3), (5, 0.3), (2, 1.0), (3, 1.0)]:
        tree = trees[steps, rate]
        for l, (own, due) in enumerate(zip(tree, grads, strict=True)):
            share = binomial_tail(steps, rate, len(tree) - 1 - l)
            np.testing.assert_allclose(flat(own), share * flat(due), rtol=1e-12, atol=1e-16)


def test_fixed_prediction_converges_to_backprop_by_its_rate():
    """Below the last hidden block what lacks is (1 - rate)^t."""
    trees, grads = fixed_predictions()
    lacks = [
        (relative(trees[steps, 0.3][2], grads[2]), relative(trees[steps, 0.3], grads))
        for steps in (10, 20, 100)
    ]
    np.testing.assert_allclose(lacks[0][0], 0.7**10, rtol=1e-10)
    np.testing.assert_allclose(lacks[1][0], 0.7**20, rtol=1e-8)
    assert lacks[2][1] < 1e-11


CNN = fp.serial(
    fp.conv(3, 3), fp.relu, fp.conv(2, 3), fp.tanh, fp.max_pool(2), fp.flatten, fp.dense(3)
)
NORMED = fp.serial(fp.dense(5), fp.batch_norm(), fp.silu, fp.dense(3))
ZIL_CASES = {
    "one hidden": (fp.mlp((4, 6, 3), fp.relu), (4,), 5),
    "one example": (DEEP, (4,), 1),
    "deep": (fp.mlp((4, *[5] * 6, 3), fp.gelu), (4,), 6),
    "cnn": (CNN, (6, 6, 2), 4),
    "batch norm": (NORMED, (4,), 8),
}


@pytest.mark.parametrize("name", ZIL_CASES)
def test_zil_is_backprop(name):
    model, shape, batch = ZIL_CASES[name]
    params, x, y = drawn(model, shape, batch)

    @jax.jit
    def both(params):
        due = jax.value_and_grad(lambda p: mean_loss(model, p, x, y))(params)
        return zil(model, LOSS).estimate(params, (), x, y, None)[:2], due

    (value, tree), (due, grads) = jax.device_get(both(params))
    np.testing.assert_allclose(value, due, rtol=1e-14)
    assert jax.tree.structure(tree) == jax.tree.structure(grads)
    for own, true in zip(jax.tree.leaves(tree), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(own, true, rtol=0, atol=5e-13 * np.abs(flat(grads)).max())


def test_companions_pass_between_blocks_as_they_are():
    """Tokens of a vocabulary, and sequences with lengths."""
    model = fp.serial(
        fp.on(0, fp.embedding(7, 3)), fp.on(0, fp.dense(4, fp.tanh)), fp.last_step, fp.dense(3)
    )
    shape = tuple(jax.ShapeDtypeStruct(s, jnp.int32) for s in ((6,), ()))
    x = (np.arange(24).reshape(4, 6) % 7, np.array([6, 1, 3, 5]))
    y = np.arange(4) % 3

    @jax.jit
    def run(key):
        params, _ = model.init(key, shape)
        rules = (zil(model, LOSS), fixed_prediction(model, LOSS, steps=2, rate=1.0))
        trees = [rule.estimate(params, (), x, y, None)[1] for rule in rules]
        return trees, fp.value_and_backprop(model, LOSS)(params, x, y)[1]

    trees, grads = jax.device_get(run(jax.random.key(0)))
    for tree in trees:
        assert relative(tree, grads) < 1e-13


def test_dropout_draws_one_mask_for_all_steps():
    """The gradient is that of the value, and the model draws its masks from the rule's key."""
    model = fp.serial(fp.dense(6, fp.tanh), fp.dropout(0.5), fp.dense(3), fp.dropout(0.3))
    params, x, y = drawn(model, (4,), 6)
    estimate = zil(model, LOSS).estimate
    key = jax.random.key(3)

    @jax.jit
    def run(params):
        value, tree, _ = estimate(params, (), x, y, key)
        grads = jax.grad(lambda p: estimate(p, (), x, y, key)[0])(params)
        still, _, _ = estimate(params, (), x, y, None)
        return value, relative(tree, grads), still, mean_loss(model, params, x, y)

    value, gap, still, due = run(params)
    assert gap < 1e-13
    np.testing.assert_allclose(still, due, rtol=1e-14)
    assert abs(still - value) > 1e-3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtypes_are_kept(dtype):
    params, x, y = drawn(DEEP, (4,), 5)
    params, x = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), (params, x))
    for rule in (predictive_coding(DEEP, LOSS), fixed_prediction(DEEP, LOSS), zil(DEEP, LOSS)):
        value, tree, _ = jax.eval_shape(rule.estimate, params, (), x, y, None)
        assert {leaf.dtype for leaf in jax.tree.leaves((value, tree))} == {jnp.dtype(dtype)}


def test_it_trains():
    model = fp.mlp((4, 8, 8, 3), fp.tanh)
    params, x, _ = drawn(model, (4,), 60)
    y = np.argmax(x[:, :3], axis=1)
    rule = predictive_coding(model, LOSS)
    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        state, history = fp.fit(
            rule, optax.adam(0.02), params, (x, y), key=jax.random.key(2), batch_size=60, steps=100
        )
        found = fp.evaluate(rule, state.params, (x, y), scores={"accuracy": fp.accuracy})
    assert history["loss"][-1] < history["loss"][0] / 3
    assert found["accuracy"] > 0.9
    due = jax.jit(lambda params: mean_loss(model, params, x, y))(state.params)
    np.testing.assert_allclose(found["loss"], due, rtol=1e-12)
