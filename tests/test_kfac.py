"""Kronecker factors where they are exact, and what preconditioning by them does."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_laws import drawn
from test_statistics import alone, linear, params_of

import funcprop as fp
from funcprop import kfac, statistics
from funcprop.statistics import kfac_factors, precondition_by_kfac

pytestmark = pytest.mark.usefixtures("strict")


@pytest.fixture(autouse=True)
def wide(x64):
    """Everything in float64."""


def made(model, shape, batch):
    """Parameters, inputs and targets of the shape of the output."""
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda a: a.astype(float), params_of(model.init, shape))
    x = draw.normal(size=(batch, *shape))
    return params, x, draw.normal(size=jax.eval_shape(model.apply, params, x).shape)


def block_of(model, loss, params, x, y, layer):
    """The Gauss-Newton block of one layer's [W b], by jax.jacrev and jax.hessian."""

    def predicted(matrix):
        own = {"w": matrix[:, :-1], "b": matrix[:, -1]}
        return model.apply((*params[:layer], own, *params[layer + 1 :]), x)

    matrix = jnp.concatenate([params[layer]["w"], params[layer]["b"][:, None]], axis=1)
    slopes = jax.jacrev(predicted)(matrix)
    slopes = slopes.reshape(len(x), -1, matrix.size)

    def one(p, y):
        return loss.apply((), (p[None], y[None]))[0]

    prediction = predicted(matrix)
    bend = jax.vmap(jax.hessian(one))(prediction, y)
    size = slopes.shape[1]
    return jnp.einsum("ikp,ikl,ilq->pq", slopes, bend.reshape(len(x), size, size), slopes) / len(x)


def kron(factors):
    return np.kron(factors.deltas, factors.inputs)


def factors_and_blocks(model, loss, params, x, y, reduce=False):
    """The factors of a chain whose first layers are dense, and the block of each of these."""
    count = sum(bool(p) for p in params)

    @jax.jit
    def run(*given):
        blocks = [block_of(model, loss, *given, layer) for layer in range(count)]
        return kfac_factors(model, loss, reduce=reduce)(*given), blocks

    return jax.device_get(run(params, x, y))


def test_of_one_example_they_are_the_block():
    model = fp.serial(fp.dense(4, fp.tanh), fp.dense(3, fp.tanh), fp.dense(2))
    params, x, _ = made(model, (3,), 1)
    found, blocks = factors_and_blocks(model, fp.softmax_cross_entropy(), params, x, np.array([1]))
    assert len(blocks) == 3
    for factors, due in zip(found, blocks, strict=True):
        np.testing.assert_allclose(kron(factors), due, atol=1e-13)


def test_of_a_deep_linear_network_they_are_the_block():
    """Squared loss and any batch (arXiv 2507.05127); with the bias of the last layer only."""
    model = fp.serial(fp.dense(4), fp.dense(3), fp.dense(2))
    params, x, y = made(model, (3,), 5)
    found, blocks = factors_and_blocks(model, fp.mean_squared_error, params, x, y)
    for factors, due in zip(found, blocks, strict=True):
        np.testing.assert_allclose(kron(factors), due, atol=1e-12)


def test_expand_and_reduce_are_exact_where_the_loss_sees_tokens_and_their_mean():
    """Deep linear networks again (arXiv 2311.00636, propositions 1 and 2)."""
    tokens = fp.serial(fp.dense(4), fp.dense(2))
    params, x, y = made(tokens, (6, 3), 5)
    found, blocks = factors_and_blocks(tokens, fp.mean_squared_error, params, x, y)
    for factors, due in zip(found, blocks, strict=True):
        np.testing.assert_allclose(kron(factors), due, atol=1e-12)
    pooled, params, y = fp.serial(*tokens.parts, fp.global_avg_pool), (*params, ()), y[:, 0]
    found, blocks = factors_and_blocks(pooled, fp.mean_squared_error, params, x, y, reduce=True)
    expanded = jax.jit(kfac_factors(pooled, fp.mean_squared_error))(params, x, y)
    assert len(blocks) == 2
    for reduced, other, due in zip(found, expanded, blocks, strict=False):
        np.testing.assert_allclose(kron(reduced), due, atol=1e-12)
        assert np.abs(kron(other) - due).max() > 0.01


def test_sampled_and_empirical_errors():
    model = fp.serial(fp.dense(3, fp.tanh), fp.dense(2))
    params, x, _ = made(model, (3,), 4)
    y, loss = np.array([0, 1, 1, 0]), fp.softmax_cross_entropy()

    @jax.jit
    def run(params, x, y, key):
        many = kfac_factors(model, loss, statistics.sampled(20_000))
        return (
            kfac_factors(model, loss)(params, x, y),
            many(params, x, y, key=key),
            kfac_factors(model, loss, statistics.empirical)(params, x, y),
            statistics.pairs(model, loss)(params, x, y),
        )

    exact, found, own, pairs = jax.device_get(run(params, x, y, jax.random.key(0)))
    for a, b in zip(found, exact, strict=True):
        np.testing.assert_allclose(a.inputs, b.inputs, rtol=1e-12)
        np.testing.assert_allclose(a.deltas, b.deltas, atol=0.05 * np.abs(b.deltas).max())
    for a, (_, delta) in zip(own, pairs, strict=True):
        np.testing.assert_allclose(a.deltas, delta.T @ delta / 4, atol=1e-14)


def test_factors_are_of_the_gauss_newton_scale_and_empirical_ones_of_the_fisher_s():
    """Two outputs of probability 1/2: D is 1/2 · 1/4 on its diagonal, and E[g gᵀ] 1/4 · 1/4."""
    model, loss = fp.dense(2), fp.sigmoid_cross_entropy
    params, x = {"w": np.zeros((2, 1)), "b": np.zeros(2)}, np.ones((1, 1))
    rule = kfac(model, loss, (1,), decay=0.0)
    own = kfac_factors(model, loss, statistics.empirical)
    targets = np.array([[[a, b]] for a in (0.0, 1.0) for b in (0.0, 1.0)])

    @jax.jit
    def run(params, x, targets, key):
        y = targets[0]
        exact = kfac_factors(model, loss)(params, x, y)
        drawn = kfac_factors(model, loss, statistics.sampled())(params, x, y, key=key)
        _, _, state = rule.estimate(params, rule.init(key, params), x, y, key)
        return exact, drawn, state.factors, jax.vmap(lambda y: own(params, x, y).deltas)(targets)

    exact, drawn, of_rule, each = jax.device_get(run(params, x, targets, jax.random.key(0)))
    np.testing.assert_allclose(exact.deltas, np.eye(2) / 8, atol=1e-16)
    np.testing.assert_allclose(np.diag(drawn.deltas), [1 / 8, 1 / 8], atol=1e-16)
    np.testing.assert_allclose(np.diag(of_rule.deltas), [1 / 8, 1 / 8], atol=1e-16)
    np.testing.assert_allclose(each.mean(0), np.eye(2) / 16, atol=1e-16)


def test_of_ids_norms_kernels_and_what_is_repeated():
    ids, loss = np.array([[1, 1, 4], [0, 4, 4]]), fp.mean_squared_error
    text = fp.serial(fp.embedding(6, 4), fp.layer_norm(), fp.repeat(fp.dense(4, fp.tanh), 2))
    flat = fp.serial(*text.parts[:2], fp.dense(4, fp.tanh), fp.dense(4, fp.tanh))
    params = params_of(text.init, jax.ShapeDtypeStruct((3,), jnp.int32))
    params = jax.tree.map(lambda a: a.astype(float), params)

    @jax.jit
    def run(params):
        y = jnp.zeros((2, 3, 4))
        one, two = (jax.tree.map(lambda a, i=i: a[i], params[2]) for i in range(2))
        return (
            kfac_factors(text, loss)(params, ids, y),
            kfac_factors(flat, loss)((*params[:2], one, two), ids, y),
            statistics.ggn_diagonal(text, loss)(params, ids, y),
        )

    (table, norm, layers), due, diagonal = jax.device_get(run(params))
    np.testing.assert_allclose(table.inputs, np.array([1, 2, 0, 0, 3, 0]) / 6)
    assert norm.inputs is None
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b), norm.diagonal, diagonal[1])
    assert (layers.inputs.shape, layers.deltas.shape) == ((2, 5, 5), (2, 4, 4))
    for i in range(2):
        np.testing.assert_allclose(layers.inputs[i], due[2 + i].inputs, atol=1e-14)
        np.testing.assert_allclose(layers.deltas[i], due[2 + i].deltas, atol=1e-14)

    image = fp.serial(fp.conv(2, 2, padding="VALID"), fp.flatten)
    params, x, y = made(image, (3, 3, 1), 1)
    found = jax.jit(kfac_factors(image, loss))(params, x, y)[0]
    patches = [[*x[0, i : i + 2, j : j + 2, 0].ravel(), 1] for i in (0, 1) for j in (0, 1)]
    rows = np.array(patches)
    np.testing.assert_allclose(found.inputs, rows.T @ rows / 4, atol=1e-14)
    np.testing.assert_allclose(found.deltas, np.eye(2) * 4 * 2 / 8, atol=1e-14)


@pytest.mark.parametrize("errors", [statistics.exact, statistics.empirical])
def test_preconditioning_solves_the_damped_system(errors):
    model = fp.serial(fp.dense(4, fp.tanh), fp.dense(2))
    params, x, y = made(model, (3,), 5)
    loss, damping = fp.mean_squared_error, 0.03
    transformation = precondition_by_kfac(damping)

    @jax.jit
    def run(params, x, y):
        factors = kfac_factors(model, loss, errors)(params, x, y)
        _, grads = fp.value_and_backprop(model, loss)(params, x, y)
        state = transformation.init(params)
        return factors, grads, transformation.update(grads, state, params, rule_state=factors)[0]

    factors, grads, found = jax.device_get(run(params, x, y))
    for own, g, u in zip(factors, grads, found, strict=True):
        a, d = np.asarray(own.inputs), np.asarray(own.deltas)
        pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(d) / len(d)))
        damped_a = a + pi * np.sqrt(damping) * np.eye(len(a))
        damped_d = d + np.sqrt(damping) / pi * np.eye(len(d))
        matrix = np.concatenate([g["w"], g["b"][:, None]], axis=1).ravel()
        due = np.linalg.solve(np.kron(damped_d, damped_a), matrix).reshape(len(d), -1)
        np.testing.assert_allclose(u["w"], due[:, :-1], rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(u["b"], due[:, -1], rtol=1e-8, atol=1e-10)


@alone
def test_every_layer_can_be_preconditioned(case):
    params, x, _, delta = drawn(case)
    target = tuple(jax.tree.leaves(delta))

    def run(params, x, target):
        factors = kfac_factors(case.layer, linear, statistics.empirical)(params, x, target)
        transformation = precondition_by_kfac(0.1)
        return transformation.update(params, transformation.init(params), rule_state=factors)[0]

    found = jax.eval_shape(run, params, x, target)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), found) == jax.tree.map(
        lambda a: (a.shape, a.dtype), params
    )


def test_one_step_solves_linear_regression():
    model = fp.dense(2)
    params, x, y = made(model, (3,), 20)
    optimizer = optax.chain(precondition_by_kfac(1e-14), optax.sgd(1.0))
    rule = kfac(model, fp.mean_squared_error, (3,), errors=statistics.exact, decay=0.0)
    state, _ = fp.fit(rule, optimizer, params, (x, y), steps=1, key=jax.random.key(0))
    ones = np.concatenate([x, np.ones((20, 1))], axis=1)
    due = np.linalg.lstsq(ones, y, rcond=None)[0].T
    np.testing.assert_allclose(state.params["w"], due[:, :-1], atol=1e-5)
    np.testing.assert_allclose(state.params["b"], due[:, -1], atol=1e-5)


def test_the_state_is_an_average_without_bias():
    model = fp.serial(fp.conv(2, 2), fp.tanh, fp.flatten, fp.layer_norm(), fp.dense(2))
    params, x, y = made(model, (3, 3, 1), 4)
    rule = kfac(model, fp.mean_squared_error, (3, 3, 1), errors=statistics.exact, decay=0.8)

    @jax.jit
    def run(params, state, x, y):
        _, _, state = rule.estimate(params, state, x, y, None)
        return state, kfac_factors(model, fp.mean_squared_error)(params, x, y)

    states, seen = [jax.jit(rule.init)(jax.random.key(0), params)], []
    for batch in (slice(0, 2), slice(2, 4)):
        state, factors = run(params, states[-1], x[batch], y[batch])
        states.append(state)
        seen.append(factors)
    states, seen = jax.device_get((states, seen))
    first, state = states[1].factors, states[2]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), first, seen[0])
    due = jax.tree.map(lambda a, b: (0.8 * 0.2 * a + 0.2 * b) / (1 - 0.8**2), *seen)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), state.factors, due)
