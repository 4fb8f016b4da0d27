"""Difference target propagation: its targets, its local losses and its feedback networks."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcprop as fp
from funcprop import difference_target_propagation

pytestmark = pytest.mark.usefixtures("strict")
LOSS = fp.softmax_cross_entropy()
MODEL = fp.mlp((4, 6, 5, 5, 3), fp.tanh)


@pytest.fixture(autouse=True)
def wide(x64):
    """Everything in float64."""


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def made(model, shape, batch, classes=3, **options):
    draw = np.random.default_rng(0)
    chosen = {"optimizer": optax.sgd(1.0)} | options
    rule = difference_target_propagation(model, LOSS, shape, **chosen)

    @jax.jit
    def drawn(key):
        params, _ = model.init(key, shape)
        return params, rule.init(key, params)

    x, y = jnp.asarray(draw.normal(size=(batch, *shape))), np.arange(batch) % classes
    return rule, *drawn(jax.random.key(0)), x, y


def linear(size_in, size_out):
    return fp.dense(size_out, bias=False)


def affine(p, h):
    return h @ p["w"].T + p["b"]


def test_it_descends_local_losses_at_targets_that_differences_carry():
    """By jax.grad of losses written out for this network."""
    rule, params, state, x, y = made(MODEL, (4,), 7, step=0.7)

    def loss_above(params, h, l):
        """Of the last block the input h; each example's own loss."""
        return jnp.sum(LOSS.apply((), (affine(params[3], h), y)))

    @jax.grad
    def due(params):
        h = [x]
        for p in params[:3]:
            h.append(jnp.tanh(affine(p, jax.lax.stop_gradient(h[-1]))))
        fixed = jax.lax.stop_gradient
        to = [h[3] - 0.7 * jax.grad(loss_above, 1)(params, fixed(h[3]), 3)]
        for l, v in ((3, state.feedback[1]), (2, state.feedback[0])):
            to.append(h[l - 1] - jnp.tanh(affine(v, h[l])) + jnp.tanh(affine(v, to[-1])))
        local = [jnp.sum((a - fixed(b)) ** 2) / 1.4 for a, b in zip(h[:0:-1], to, strict=True)]
        return (sum(local) + loss_above(params, fixed(h[3]), 3)) / 7

    estimate = rule.estimate
    tree, expected = jax.jit(lambda p: (estimate(p, state, x, y, None)[1], due(p)))(params)
    np.testing.assert_allclose(flat(tree), flat(expected), rtol=1e-11, atol=1e-16)


CNN = fp.serial(
    fp.conv(3, 3), fp.relu, fp.max_pool(2), fp.conv(2, 2), fp.tanh, fp.flatten, fp.dense(3)
)


@pytest.mark.parametrize(
    ("model", "shape", "networks"),
    [(fp.mlp((4, 6, 3), fp.tanh), (4,), 0), (MODEL, (4,), 2), (CNN, (6, 6, 2), 1)],
    ids=["two blocks", "four blocks", "cnn"],
)
def test_the_last_two_blocks_have_backprop_s_gradient(model, shape, networks):
    """With two blocks that is all; the feedback of a convolution maps whole images."""
    rule, params, state, x, y = made(model, shape, 4)
    assert len(state.feedback) == networks

    @jax.jit
    def both(params):
        found = rule.estimate(params, state, x, y, jax.random.key(2))
        return found, fp.value_and_backprop(model, LOSS)(params, x, y)

    (value, tree, new), (due, grads) = jax.device_get(both(params))
    np.testing.assert_allclose(value, due, rtol=1e-14)
    assert jax.tree.structure((tree, new)) == jax.tree.structure((grads, state))
    places = [i for i, part in enumerate(params) if jax.tree.leaves(part)]
    for i in places[-2:]:
        np.testing.assert_allclose(flat(tree[i]), flat(grads[i]), rtol=1e-11, atol=1e-16)
    others = places[:-2]
    assert all(not np.allclose(flat(tree[i]), flat(grads[i]), rtol=0.1) for i in others)


def test_exact_inverses_in_a_linear_network_give_gauss_newton_targets():
    """Of ½‖p - t‖² with an orthogonal last block: hₗ - ĥₗ = η̂ (JᵀJ)⁻¹ Jᵀ (p - t), J = ∂p/∂hₗ.

    The difference hₗ₋₁ - ĥₗ₋₁ = Vₗ (hₗ - ĥₗ) is multiplied by Vₗ = Wₗ⁻¹ at each block, and the
    first one is η̂ W_Lᵀ (p - t) = η̂ W_L⁻¹ (p - t): together η̂ J⁻¹ (p - t).
    """
    n, batch = 4, 6
    model = fp.serial(*[linear(n, n)] * 5)
    draw = np.random.default_rng(3)
    ws = [np.eye(n) + 0.4 * draw.normal(size=(n, n)) for _ in range(4)]
    ws.append(np.linalg.qr(draw.normal(size=(n, n)))[0])
    params = tuple({"w": w} for w in ws)
    x, t = draw.normal(size=(2, batch, n))
    rule = difference_target_propagation(
        model, fp.mean_squared_error, (n,), optimizer=optax.sgd(0.0), step=0.3, feedback=linear
    )
    state = jax.jit(rule.init)(jax.random.key(0), params)
    state = state._replace(feedback=tuple({"w": np.linalg.inv(w)} for w in ws[1:-1]))
    _, tree, _ = jax.jit(rule.estimate)(params, state, x, t, jax.random.key(1))

    h = [x]
    for w in ws:
        h.append(h[-1] @ w.T)
    e = 2 / n * (h[-1] - t)  # mean_squared_error is (2/n) ½‖p - t‖²
    for l in range(1, 5):
        jacobian = np.linalg.multi_dot([*ws[:l:-1], ws[l]]) if l < 4 else ws[4]
        newton = np.linalg.solve(jacobian.T @ jacobian, jacobian.T @ e.T).T
        np.testing.assert_allclose(tree[l - 1]["w"], newton.T @ h[l - 1] / batch, rtol=1e-9)


def test_the_feedback_descends_its_reconstruction_and_stays_without_a_key():
    """Without noise; by jax.grad of the losses written out."""
    rule, params, state, x, y = made(MODEL, (4,), 7, noise=0.0)

    def reconstruction(feedback):
        h = [x]
        for p in params[:3]:
            h.append(jnp.tanh(affine(p, h[-1])))
        again = [jnp.tanh(affine(v, h[l])) for v, l in zip(feedback, (2, 3), strict=True)]
        return sum(jnp.sum((a - h[l]) ** 2) / 7 for a, l in zip(again, (1, 2), strict=True))

    @jax.jit
    def run(state):
        new = rule.estimate(params, state, x, y, jax.random.key(2))[2]
        still = rule.estimate(params, state, x, y, None)[2]  # without a key
        due = jax.grad(reconstruction)(state.feedback)
        return flat(state.feedback), flat(new.feedback), flat(still.feedback), flat(due)

    before, after, still, due = jax.device_get(run(state))
    np.testing.assert_allclose(before - after, due, rtol=1e-11, atol=1e-15)
    np.testing.assert_array_equal(still, before)


def test_the_noise_has_its_deviation():
    """Of linear maps the mean over ε is 2 (V W - 1) (h hᵀ + noise² 1) Wᵀ."""
    n, batch, noise, draws = 3, 2, 0.7, 4000
    model = fp.serial(linear(n, n), linear(n, n), fp.dense(3))
    rule, params, state, x, y = made(model, (n,), batch, noise=noise, feedback=linear)

    @jax.jit
    @jax.vmap
    def step(key):
        new = rule.estimate(params, state, x, y, key)[2]
        return state.feedback[0]["w"] - new.feedback[0]["w"]

    steps = np.asarray(step(jax.random.split(jax.random.key(5), draws)))
    (first, second, _), x = jax.device_get((params, x))
    h, w, v = x @ first["w"].T, second["w"], np.asarray(state.feedback[0]["w"])
    due = 2 * (v @ w - np.eye(n)) @ (h.T @ h / batch + noise**2 * np.eye(n)) @ w.T
    assert np.all(np.abs(steps.mean(0) - due) < 5 * steps.std(0) / np.sqrt(draws))
    still = 2 * (v @ w - np.eye(n)) @ (h.T @ h / batch) @ w.T
    assert np.any(np.abs(still - due) > 20 * steps.std(0) / np.sqrt(draws))


def test_weight_decay_leaves_the_feedback_alone():
    """The trained optimiser decays by a half each step, the feedback's takes steps of 0."""
    rule, params, _, x, y = made(MODEL, (4,), 6, optimizer=optax.sgd(0.0))
    decay = optax.chain(optax.add_decayed_weights(0.5), optax.scale(-1.0))
    step = fp.update_step(rule, optax.chain(optax.scale(0.0), decay))
    start = fp.init_state(rule, optax.chain(optax.scale(0.0), decay), params, jax.random.key(3))
    before = jax.tree.map(jnp.copy, start.rule_state.feedback)
    state, _ = step(start, (x, y))
    state, _ = step(state, (x, y))
    np.testing.assert_allclose(flat(state.params), flat(params) / 4, rtol=1e-15)
    np.testing.assert_array_equal(flat(state.rule_state.feedback), flat(before))


def test_it_trains_and_its_feedback_becomes_an_inverse():
    model = fp.mlp((4, 8, 8, 3), fp.tanh)
    rule, params, _, x, _ = made(model, (4,), 60, optimizer=optax.adam(0.01), noise=0.1)
    y = np.argmax(x[:, :3], axis=1)

    def reconstruction(state, batch):
        h = model.parts[0].apply(state.params[0], batch[0])
        again = jnp.tanh(
            affine(state.rule_state.feedback[0], model.parts[1].apply(state.params[1], h))
        )
        return {"reconstruction": jnp.mean((again - h) ** 2)}

    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        state, history = fp.fit(
            rule,
            optax.adam(0.01),
            params,
            (x, y),
            key=jax.random.key(2),
            batch_size=60,
            steps=300,
            metrics=reconstruction,
        )
        found = fp.evaluate(
            rule,
            state.params,
            (x, y),
            scores={"accuracy": fp.accuracy},
            rule_state=state.rule_state,
        )
    assert found["loss"] < history["loss"][0] / 3
    assert found["accuracy"] > 0.9
    assert history["reconstruction"][-1] < history["reconstruction"][0] / 3


def test_sequences_with_lengths_and_dtypes():
    """The lengths pass between blocks as they are; feedback takes the dtype of activities."""
    hidden = [fp.on(0, fp.dense(features, fp.tanh)) for features in (4, 5, 4)]
    model = fp.serial(*hidden, fp.last_step, fp.dense(3))
    shape = (jax.ShapeDtypeStruct((6, 2), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))
    rule = difference_target_propagation(model, LOSS, shape, optimizer=optax.sgd(0.1))
    x = (np.ones((3, 6, 2), np.float32), np.array([6, 1, 3]))

    @jax.jit
    def run(key):
        params, _ = model.init(key, shape)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        state = rule.init(key, params)
        return params, state, rule.estimate(params, state, x, np.arange(3), key)

    params, state, found = run(jax.random.key(0))
    assert state.feedback[0]["w"].shape == (24, 30)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    assert jax.tree.structure(found[1]) == jax.tree.structure(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
