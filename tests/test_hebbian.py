"""Hebb's and Oja's rule: their formulas, number by number, and what Oja's finds."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcprop as fp
from funcprop import hebbian

pytestmark = pytest.mark.usefixtures("strict")
DRAW = np.random.default_rng(0)
INPUTS = DRAW.normal(size=(7, 4))


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def made(model, x, **options):
    """The parameters and what the rule makes of them."""
    draw = np.random.default_rng(3)
    params = jax.eval_shape(lambda key: model.init(key, x.shape[1:])[0], jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape)), params)
    value, tree, _ = jax.jit(hebbian(model, **options).estimate)(
        params, (), x, np.zeros(len(x)), None
    )
    return jax.device_get((params, value, tree))


@pytest.mark.parametrize("oja", [False, True])
def test_the_formulas_of_two_linear_blocks(x64, oja):
    x = INPUTS
    model = fp.serial(fp.dense(3), fp.dense(2, bias=False))
    params, value, tree = made(model, x, oja=oja)
    h = x @ params[0]["w"].T + params[0]["b"]
    y = h @ params[1]["w"].T
    for part, below, above, own in ((params[0], x, h, tree[0]), (params[1], h, y, tree[1])):
        due = {"w": -above.T @ below / 7, "b": -above.sum(axis=0) / 7}
        if oja:
            squares = (above**2).sum(axis=0) / 7
            due["w"] += squares[:, None] * part["w"]
            due["b"] += squares * part.get("b", 0.0)
        assert set(own) == set(part)
        for name, leaf in own.items():
            np.testing.assert_allclose(leaf, due[name], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(value, np.mean(y**2), rtol=1e-14)


def test_hebb_climbs_the_squared_output_of_each_block(x64):
    """Of layers with activations and poolings, against jax.grad."""
    x = jnp.asarray(DRAW.normal(size=(5, 6, 6, 1)))
    model = fp.serial(fp.conv(2, 3), fp.tanh, fp.max_pool(2), fp.flatten, fp.dense(3, fp.sigmoid))
    params, _, tree = made(model, x)

    def squared(params):
        h = fp.serial(*model.parts[:4]).apply(params[:4], x)
        y = model.parts[4].apply(params[4], jax.lax.stop_gradient(h))
        return (jnp.sum(h**2) + jnp.sum(y**2)) / (2 * len(x))

    due = jax.tree.map(jnp.negative, jax.jit(jax.grad(squared))(params))
    np.testing.assert_allclose(flat(tree), flat(due), rtol=1e-10, atol=1e-14)


def test_oja_on_kernels_and_tables_is_that_of_their_matrices(x64):
    """A convolution of one place is a dense layer on each, an embedding one on one-hot ids."""
    x = DRAW.normal(size=(5, 3, 4))
    params, _, tree = made(fp.conv(2, 1), x, oja=True)
    rule = jax.jit(hebbian(fp.dense(2), oja=True).estimate)
    matrix = {"w": params["w"][0].T, "b": params["b"]}
    _, due, _ = rule(matrix, (), x, np.zeros(5), None)
    np.testing.assert_allclose(tree["w"][0].T, due["w"], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(tree["b"], due["b"], rtol=1e-12, atol=1e-15)

    ids = np.array([[1, 0], [1, 1], [2, 0]])

    @jax.jit
    def both(w):
        by_table = hebbian(fp.embedding(3, 2), oja=True).estimate
        by_matrix = hebbian(fp.affine(2, bias=False), oja=True).estimate
        return (
            by_table({"w": w}, (), ids, np.zeros(3), None)[1],
            by_matrix({"w": w.T}, (), np.eye(3)[ids], np.zeros(3), None)[1],
        )

    tree, due = both(DRAW.normal(size=(3, 2)))
    np.testing.assert_allclose(tree["w"].T, due["w"], rtol=1e-12, atol=1e-15)


def test_oja_finds_the_first_principal_component():
    """From 20 starts, in two units each, by plain descent on batches: direction and length."""
    draw = np.random.default_rng(1)
    turn, _ = np.linalg.qr(draw.normal(size=(5, 5)))
    x = jnp.asarray(
        draw.normal(size=(400, 5)) * np.array([2, 1, 0.7, 0.5, 0.3]) @ turn.T, "float32"
    )
    rule = hebbian(fp.affine(2, bias=False), oja=True)

    def trained(w):
        def step(params, batch):
            tree = rule.estimate(params, (), batch, jnp.zeros(len(batch)), None)[1]
            return jax.tree.map(lambda p, slope: p - 0.05 * slope, params, tree), None

        return jax.lax.scan(step, {"w": w}, jnp.tile(x.reshape(1, 400, 5), (400, 1, 1)))[0]["w"]

    found = jax.jit(jax.vmap(trained))(jnp.asarray(draw.normal(size=(20, 2, 5)), "float32"))
    component = np.linalg.eigh(np.asarray(x.T @ x, np.float64))[1][:, -1]
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-4)
    np.testing.assert_allclose(np.abs(np.asarray(found) @ component), 1, atol=1e-4)


def test_a_loss_is_what_value_is_and_changes_nothing_else():
    x, y = INPUTS.astype(np.float32), np.array([0, 1, 2, 0, 1, 2, 0], np.int32)
    model = fp.mlp((4, 5, 3), fp.tanh)
    loss = fp.softmax_cross_entropy()
    params, _ = model.init(jax.random.key(0), (4,))
    plain, told = hebbian(model, oja=True), hebbian(model, loss, oja=True)

    @jax.jit
    def run(params):
        due = jnp.mean(loss.apply((), (model.apply(params, x), y)))
        return due, *[rule.estimate(params, (), x, y, None)[:2] for rule in (plain, told)]

    due, (_, tree), (value, same) = run(params)
    np.testing.assert_allclose(value, due, rtol=1e-6)
    np.testing.assert_array_equal(flat(tree), flat(same))
    assert flat(tree).dtype == jnp.float32
    options = {"key": jax.random.key(3), "steps": 20, "every": 20}
    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        state, _ = fp.fit(told, optax.sgd(0.05), params, (x, y), **options)
    assert np.isfinite(fp.evaluate(told, state.params, (x, y))["loss"])
