"""The private gradient: what is drawn, what one example can change, and the noise."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcprop as fp
from funcprop import dp_sgd

pytestmark = pytest.mark.usefixtures("strict")
MODEL, LOSS = fp.serial(fp.dense(4, fp.tanh), fp.dense(2)), fp.softmax_cross_entropy()
PARAMS, _ = MODEL.init(jax.random.key(0), (3,))
N = 60
X, Y = np.random.default_rng(1).normal(size=(N, 3)).astype(np.float32), np.arange(N) % 2


def rule(**options):
    chosen = {"max_norm": 0.3, "noise_multiplier": 0.0, "sampling_rate": 0.2} | options
    return dp_sgd(MODEL, LOSS, **chosen)


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


@functools.cache
def clipped():
    """The gradient of each example, by jax.grad, no longer than 0.3."""

    @jax.jit
    @jax.vmap
    def each(x, y):
        return flat(
            jax.grad(lambda p: LOSS.apply((), (MODEL.apply(p, x[None]), y[None]))[0])(PARAMS)
        )

    found = np.asarray(each(X, Y))
    return found * np.minimum(1, 0.3 / np.linalg.norm(found, axis=1))[:, None]


ALL = jax.jit(rule(sampling_rate=1.0).estimate)


def test_with_all_drawn_and_no_noise_it_is_the_mean_of_clipped_gradients():
    _, grads, _ = ALL(PARAMS, (), X, Y, jax.random.key(0))
    np.testing.assert_allclose(flat(grads), clipped().mean(0), rtol=1e-5, atol=1e-7)


def test_the_mean_over_many_draws_is_that_of_all_and_spreads_as_poisson_sampling_does():
    """Of 4,000 draws each number lies within 5 of its standard deviations, which are known."""
    estimate = rule().estimate
    keys = jax.random.split(jax.random.key(2), 4000)
    many = jax.jit(jax.vmap(lambda key: flat(estimate(PARAMS, (), X, Y, key)[1])))(keys)
    many = np.asarray(many)
    variance = np.sum(clipped() ** 2, axis=0) * 0.2 * 0.8 / (0.2 * N) ** 2
    error = np.abs(many.mean(0) - clipped().mean(0))
    assert np.all(error <= 5 * np.sqrt(variance / 4000) + 1e-7)
    np.testing.assert_allclose(many.var(0), variance, rtol=0.2)


def test_a_draw_of_nobody_is_noise_alone():
    estimate = rule(sampling_rate=0.01).estimate

    @jax.jit
    @jax.vmap
    def seen(key):
        value, grads, _ = estimate(PARAMS, (), X, Y, key)
        return value, jnp.linalg.norm(flat(grads))

    values, sizes = jax.device_get(seen(jax.random.split(jax.random.key(5), 50)))
    assert 10 < np.sum(sizes == 0) < 45
    np.testing.assert_array_equal(sizes == 0, values == 0)
    assert np.all(np.isfinite(sizes))


def test_one_example_changes_the_sum_by_the_bound_at_most():
    """The same draw of the others, with another example in one place, and with it far off."""
    x, y = X.copy(), Y.copy()
    x[7], y[7] = 1e4, 1 - Y[7]
    grads, other = (
        flat(ALL(PARAMS, (), *given, jax.random.key(0))[1]) for given in ((X, Y), (x, y))
    )
    assert 0 < np.linalg.norm(grads - other) * N <= 2 * 0.3 * (1 + 1e-5)


def test_the_noise_has_its_deviation():
    quiet, noisy = rule().estimate, rule(noise_multiplier=1.5).estimate

    @jax.jit
    @jax.vmap
    def noise(key):
        return flat(noisy(PARAMS, (), X, Y, key)[1]) - flat(quiet(PARAMS, (), X, Y, key)[1])

    many = np.asarray(noise(jax.random.split(jax.random.key(3), 2000)))
    deviation = 1.5 * 0.3 / (0.2 * N)
    np.testing.assert_allclose(many.std(0), deviation, rtol=0.1)
    np.testing.assert_allclose(many.mean(0), 0, atol=5 * deviation / np.sqrt(2000))
    mixed = np.corrcoef(many.T) - np.eye(many.shape[1])
    assert np.abs(mixed).max() < 0.15


def test_it_trains_with_any_optimizer():
    start = rule(noise_multiplier=0.5, sampling_rate=0.5, max_norm=1.0)
    labels = (X[:, 0] > 0).astype(np.int32)
    options = {"key": jax.random.key(4), "batch_size": N, "steps": 100, "every": 100}
    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        state, history = fp.fit(start, optax.adam(0.03), PARAMS, (X, labels), **options)
    assert np.mean(history["loss"][-10:]) < np.mean(history["loss"][:10]) / 2
    right = jax.jit(lambda params: fp.accuracy(MODEL.apply(params, X), labels))(state.params)
    assert np.mean(right) > 0.9


def test_validation_is_the_mean_loss_without_noise():
    _, history = fp.fit(
        rule(noise_multiplier=1.0), optax.sgd(0.0), PARAMS, (X, Y), key=jax.random.key(0), steps=1,
        validation=(X[:7], Y[:7]),
    )  # fmt: skip
    due = jax.jit(lambda: jnp.mean(LOSS.apply((), (MODEL.apply(PARAMS, X[:7]), Y[:7]))))()
    assert history["validation_loss"] == [pytest.approx(float(due), rel=1e-5)]
