"""Settling and its contrast: against an energy differentiated by JAX, and the bias in β."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcprop as fp
from funcprop import LayerError, equilibrium_propagation

pytestmark = pytest.mark.usefixtures("strict")
MODEL = fp.mlp((3, 5, 4, 2))
LOSS = fp.mean_squared_error
DRAW = np.random.default_rng(0)
SIZES = ((5, 3), (4, 5), (2, 4))
WEIGHTS = [{"w": 0.2 * DRAW.normal(size=s), "b": 0.3 * DRAW.normal(size=s[0])} for s in SIZES]
INPUTS, TARGETS = DRAW.uniform(size=(6, 3)), DRAW.uniform(size=(6, 2))


@pytest.fixture
def given(x64):
    """Parameters, inputs and targets in float64."""
    return tuple(jax.tree.map(jnp.asarray, WEIGHTS)), jnp.asarray(INPUTS), jnp.asarray(TARGETS)


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def rho(u):
    return 1 / (1 + jnp.exp(2 - 4 * u))


def energy(params, x, states):
    """Of all examples together; their states have nothing to do with each other."""
    rates = [x, *map(rho, states)]
    total = sum(jnp.sum(u * u) / 2 for u in states)
    for part, below, above in zip(params, rates, rates[1:], strict=False):
        total -= jnp.sum(above * (below @ part["w"].T + part["b"]))
    return total


def settled(params, x, y, states, beta, steps, rate):
    def nudged_energy(states):
        cost = jnp.sum(jnp.mean((states[-1] - y) ** 2, axis=1))
        return energy(params, x, states) + beta * cost

    for _ in range(steps):
        slopes = jax.grad(nudged_energy)(states)
        states = [u - rate * s for u, s in zip(states, slopes, strict=True)]
    return states


@pytest.mark.parametrize("symmetric", [False, True])
def test_it_is_the_contrast_of_the_energy_that_jax_differentiates(given, symmetric):
    """Step by step, far from rest too, where the numbers of steps can be told."""
    params, x, y = given
    options = {"beta": 0.7, "steps": 7, "nudged_steps": 3, "rate": 0.3, "symmetric": symmetric}
    rule = equilibrium_propagation(MODEL, LOSS, **options)

    @jax.jit
    def both(params):
        value, tree, _ = rule.estimate(params, (), x, y, None)
        free = settled(params, x, y, [jnp.zeros((6, n)) for n in (5, 4, 2)], 0.0, 7, 0.3)
        high = settled(params, x, y, free, 0.7, 3, 0.3)
        low = settled(params, x, y, free, -0.7, 3, 0.3) if symmetric else free
        high, low = (jax.grad(energy)(params, x, states) for states in (high, low))
        scale = 6 * 0.7 * (2 if symmetric else 1)
        due = jax.tree.map(lambda high, low: (high - low) / scale, high, low)
        return (value, tree, rule.predict(params, x)), (due, free[-1])

    (value, tree, predicted), (due, last) = jax.device_get(both(params))
    np.testing.assert_allclose(predicted, last, rtol=1e-12)
    np.testing.assert_allclose(value, np.mean((last - TARGETS) ** 2), rtol=1e-12)
    np.testing.assert_allclose(flat(tree), flat(due), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(("symmetric", "order"), [(False, 1), (True, 2)])
def test_at_rest_its_bias_falls_as_beta_or_its_square(given, symmetric, order):
    """Against the gradient of the loss at rest, by jax.grad through the settling."""
    params, x, y = given
    long = {"steps": 300, "nudged_steps": 300, "symmetric": symmetric}

    def rule(beta):
        return equilibrium_propagation(MODEL, LOSS, beta=beta, **long)

    def cost(params):
        return jnp.mean((rule(1.0).predict(params, x) - y) ** 2)

    betas = [0.02, 0.01, 0.005, 0.0025]

    @jax.jit
    def run(params):
        trees = [rule(beta).estimate(params, (), x, y, None)[1] for beta in betas]
        exact = flat(jax.grad(cost)(params))
        return [jnp.linalg.norm(flat(t) - exact) / jnp.linalg.norm(exact) for t in trees]

    errors = run(params)
    slopes = np.diff(np.log(errors)) / np.diff(np.log(betas))
    np.testing.assert_allclose(slopes, order, atol=0.05)
    assert errors[-1] < (2 * 0.0025, 20 * 0.0025**2)[order - 1]


def test_labels_are_one_hot_and_a_bad_one_is_seen(given):
    params, x, _ = given
    labels = np.array([0, 1, 1, 0, 1, 0], np.uint8)
    rule = equilibrium_propagation(MODEL, LOSS, steps=3, nudged_steps=4)
    estimate = jax.jit(rule.estimate)
    value, tree, _ = estimate(params, (), x, labels, None)
    due, same, _ = estimate(params, (), x, np.eye(2)[labels], None)
    assert value == due
    np.testing.assert_array_equal(flat(tree), flat(same))
    labels[3] = 2
    bad = jnp.array(labels)
    with pytest.raises(LayerError, match=r"a label is 2, labels of 2 classes"):
        jax.eval_shape(lambda params: rule.estimate(params, (), x, bad, None), params)
    _, tree, _ = estimate(params, (), x, bad, None)
    assert np.all(np.isnan(flat(tree)))


def test_one_layer_and_layers_without_bias():
    """Of a net without hidden units, with ρ = identity, the outputs at rest are W x."""
    model = fp.dense(2, bias=False)
    rule = equilibrium_propagation(
        model, LOSS, activation=fp.identity, symmetric=False, rate=1.0, nudged_steps=60
    )
    params, _ = model.init(jax.random.key(0), (3,))
    x, y = (a.astype(np.float32) for a in (INPUTS, TARGETS))

    @jax.jit
    def run(params):
        rules = (rule, fp.backpropagation(model, LOSS))
        found = [each.estimate(params, (), x, y, None)[:2] for each in rules]
        return rule.predict(params, x), *found

    predicted, (value, tree), (exact_value, exact) = jax.device_get(run(params))
    np.testing.assert_allclose(predicted, x @ np.asarray(params["w"]).T, rtol=1e-6)
    assert set(tree) == {"w"}
    assert tree["w"].dtype == jnp.float32
    np.testing.assert_allclose(value, exact_value, rtol=1e-6)
    # u = (W x + β y)/(1 + β) at rest, as the loss's derivative is u - y.
    np.testing.assert_allclose(tree["w"], exact["w"] / 1.5, rtol=1e-4, atol=1e-6)


def test_it_trains_and_is_evaluated():
    model = fp.mlp((2, 8, 2))
    x = np.random.default_rng(1).uniform(size=(128, 2)).astype(np.float32)
    y = (x[:, 0] > x[:, 1]).astype(np.int32)
    params, _ = model.init(jax.random.key(2), (2,))
    rule = equilibrium_propagation(model, LOSS, beta=1.0)
    options = {"key": jax.random.key(3), "batch_size": 32, "epochs": 25, "every": 100}
    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        state, _ = fp.fit(rule, optax.adam(0.02), params, (x, y), **options)
    found = fp.evaluate(rule, state.params, (x, y), scores={"accuracy": fp.accuracy})
    assert found["accuracy"] > 0.95
