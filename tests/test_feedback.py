"""Rules that differ in which weights, and which road, carry the error."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcprop as fp
from funcprop.learning.feedback import as_large, carriers, matrices

pytestmark = pytest.mark.usefixtures("strict")

CE, MSE = fp.softmax_cross_entropy(), fp.mean_squared_error
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def wide(x64):
    """Everything in float64."""


def made(model, shape, batch=5):
    """Parameters, all of them drawn, inputs and targets."""
    draw, shapes = np.random.default_rng(0), []

    def init(key):
        params, out = model.init(key, shape)
        shapes.append(out)
        return params

    params = jax.eval_shape(init, KEY)
    params = jax.tree.map(lambda a: jnp.asarray(draw.normal(size=a.shape) * 0.5), params)
    x, y = (jnp.asarray(draw.normal(size=(batch, *s))) for s in (shape, *shapes))
    return params, x, y


def near(found, due, rtol=1e-12):
    assert jax.tree.structure(found) == jax.tree.structure(due)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(due), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1, np.abs(b).max()))


MODELS = {
    "mlp": (fp.mlp((3, 6, 5, 2), fp.tanh), (3,)),
    "cnn": (fp.serial(fp.conv(4, 3), fp.gelu, fp.max_pool(2), fp.flatten, fp.dense(2)), (4, 4, 1)),
    "lstm": (fp.serial(fp.lstm(4), fp.last_step, fp.dense(2)), (3, 2)),
    "block": (fp.serial(fp.repeat(fp.transformer_block(2), 2), fp.dense(2)), (3, 4)),
    "repeat": (fp.serial(fp.dense(4), fp.repeat(fp.dense(4, fp.silu), 3), fp.dense(2)), (3,)),
}
own = lambda key, w: w  # noqa: E731


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "repeat" else ()) for n in MODELS]
)
def test_what_carries_the_error_back(name):
    model, shape = MODELS[name]
    params, x, y = made(model, shape)
    exact = [
        fp.feedback_alignment(model, MSE, feedback=own),
        fp.sign_symmetry(model, MSE, magnitude=lambda key, w: jnp.abs(w)),
        fp.kolen_pollack(model, MSE, optax.sgd(0.1), feedback=own),
        fp.weight_mirror(model, MSE, rate=0.1, feedback=own),
    ]
    drawn, direct = (
        fp.feedback_alignment(model, MSE),
        fp.direct_feedback_alignment(model, MSE, shape),
    )

    @jax.jit
    def run(params):
        def estimated(rule):
            state = rule.init(KEY, params)
            return rule.estimate(params, state, x, y, KEY)[:2], state

        due = fp.value_and_backprop(model, MSE)(params, x, y, key=KEY)
        return [estimated(rule)[0] for rule in exact], estimated(drawn), estimated(direct)[0], due

    found, ((_, tree), state), by_road, due = jax.device_get(run(params))
    # With the weights themselves it is backprop.
    for each in found:
        near(each, due)
    # Only matrices are replaced; the last layer's gradient needs no feedback.
    leaves = jax.tree_util.tree_leaves_with_path
    for path, leaf in leaves(state, is_leaf=lambda leaf: leaf is None):
        if path and getattr(path[-1], "key", None) in ("w", "u"):
            assert leaf is not None
    assert {path[-1].key for path, _ in leaves(state)} <= {"w", "u"}
    near(tree[-1], due[1][-1])
    first = jax.tree.leaves(matrices(tree))[0], jax.tree.leaves(matrices(due[1]))[0]
    assert np.abs(first[0] - first[1]).max() > 1e-3
    # Direct feedback reaches every block.
    value, tree = by_road
    near((value, tree[-1]), (due[0], due[1][-1]))
    assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, params)
    first = [np.abs(leaf).max() for leaf in jax.tree.leaves(tree[0])]
    assert min(first[:1]) > 0


def backward_of(params, x, deltas):
    """The MLP's gradient from the deltas δₗ at its pre-activations, in NumPy."""
    h, trees = np.asarray(x), []
    for i, (layer, delta) in enumerate(zip(params, deltas, strict=True)):
        trees.append({"w": delta.T @ h, "b": delta.sum(0)})
        z = h @ np.asarray(layer["w"]).T + np.asarray(layer["b"])
        h = np.tanh(z) if i < len(params) - 1 else z
    return tuple(trees)


def activations_of(params, x):
    """h and φ′(a) of every hidden layer, and the prediction."""
    h, hidden = np.asarray(x), []
    for layer in params[:-1]:
        h = np.tanh(h @ np.asarray(layer["w"]).T + np.asarray(layer["b"]))
        hidden.append((h, 1 - h**2))
    return hidden, h @ np.asarray(params[-1]["w"]).T + np.asarray(params[-1]["b"])


def test_the_equations_of_an_mlp():
    """Each rule beside its published formula, step by step."""
    model, shape = MODELS["mlp"]
    params, x, y = made(model, shape)
    ((_, d1), (_, d2)), prediction = activations_of(params, x)
    e = 2 * (prediction - np.asarray(y)) / y.size
    p = [np.asarray(layer["w"]) for layer in params]

    rules = {
        "feedback": fp.feedback_alignment(model, MSE),
        "signs": fp.sign_symmetry(model, MSE, magnitude=as_large),
        "direct": fp.direct_feedback_alignment(model, MSE, shape),
        "target": fp.direct_random_target_projection(model, MSE, shape),
        "indirect": fp.indirect_feedback_alignment(model, MSE, shape),
    }

    @jax.jit
    def run(params):
        states = {name: rule.init(KEY, params) for name, rule in rules.items()}
        return states, {
            name: rule.estimate(params, states[name], x, y, None)[1] for name, rule in rules.items()
        }

    states, trees = jax.device_get(run(params))

    def beside(name, first, second):
        d = second(states[name])
        near(trees[name], backward_of(params, x, [first(states[name], d), d, e]))

    beside(
        "feedback",
        lambda b, d: d @ b[1]["w"] * d1,
        lambda b: e @ b[2]["w"] * d2,
    )
    beside(
        "signs",
        lambda m, d: d @ (m[1]["w"] * np.sign(p[1])) * d1,
        lambda m: e @ (m[2]["w"] * np.sign(p[2])) * d2,
    )
    beside("direct", lambda b, d: e @ b[0] * d1, lambda b: e @ b[1] * d2)
    t = np.asarray(y) / len(y)
    beside("target", lambda b, d: t @ b[0] * d1, lambda b: t @ b[1] * d2)
    beside("indirect", lambda b, d: e @ b * d1, lambda b: (e @ b * d1) @ p[1].T * d2)


def test_direct_feedback_of_a_linear_network_with_products_is_backprop():
    model = fp.serial(fp.dense(6), fp.dense(5), fp.flatten, fp.dense(4), fp.dense(3))
    params, x, y = made(model, (7,))
    w = [np.asarray(params[i]["w"]) for i in (1, 3, 4)]
    state = (w[2] @ w[1] @ w[0], w[2] @ w[1], w[2])
    rule = fp.direct_feedback_alignment(model, MSE, (7,))
    drawn = jax.eval_shape(rule.init, KEY, params)
    assert [b.shape for b in drawn] == [b.shape for b in state]

    @jax.jit
    def both(params, state):
        found = rule.estimate(params, state, x, y, None)[:2]
        return found, fp.value_and_backprop(model, MSE)(params, x, y)

    near(*both(params, state))


def test_target_projection_takes_labels_and_distributions():
    model, shape = fp.mlp((3, 6, 4), fp.tanh), (3,)
    params, x, _ = made(model, shape)
    labels = np.array([0, 3, 1, 1, 2])
    rule = fp.direct_random_target_projection(model, CE, shape)

    @jax.jit
    def run(params):
        state = rule.init(KEY, params)
        return state, [
            rule.estimate(params, state, x, given, None)[:2]
            for given in (labels, np.eye(4)[labels])
        ]

    state, (one, two) = jax.device_get(run(params))
    near(one, two)
    signal = np.eye(4)[labels] / 5
    ((_, slope),), _ = activations_of(params, x)
    near(one[1][0]["w"], (signal @ state[0] * slope).T @ np.asarray(x))


# ------------------------------------------------------------------ Kolen-Pollack's law


def after(rule, optimizer, params, batch, steps):
    """The states before and after some steps."""
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        first = fp.init_state(rule, optimizer, params, KEY)
        step = fp.update_step(rule, optimizer)
        return first, jax.lax.scan(lambda state, _: step(state, batch), first, length=steps)[0]


def test_kolen_pollack_loses_the_difference_by_the_decay_alone():
    """W - B = (1 - λ)ᵗ (W₀ - B₀), to rounding; with the decay inside the momentum it does not."""
    rate, decay = 0.1, 0.3
    decayed = optax.add_decayed_weights(decay)
    optimizers = {
        "sgd": optax.chain(decayed, optax.sgd(rate)),
        "momentum": optax.chain(optax.trace(0.9), decayed, optax.scale(-rate)),
        "adamw": optax.adamw(rate, weight_decay=decay),
        "coupled momentum": optax.chain(decayed, optax.sgd(rate, momentum=0.9)),
    }
    model, shape = MODELS["mlp"]
    params, *batch = made(model, shape)

    @jax.jit
    def run(params):
        return {
            name: after(fp.kolen_pollack(model, MSE, optimizer), optimizer, params, batch, 20)
            for name, optimizer in optimizers.items()
        }

    for name, states in jax.device_get(run(params)).items():
        first, last = (
            jax.tree.map(lambda w, b: w - b, matrices(state.params), state.rule_state.feedback)
            for state in states
        )
        due = jax.tree.map(lambda d: d * (1 - rate * decay) ** 20, first)
        if name == "coupled momentum":
            with pytest.raises(AssertionError):
                near(last, due, 1e-10)
        else:
            near(last, due, 1e-10)


def test_weight_decay_leaves_feedback_alone():
    model, shape = MODELS["mlp"]
    params, *batch = made(model, shape)
    optimizer = optax.adamw(1e-2, weight_decay=0.5)
    rules = (
        fp.feedback_alignment(model, MSE),
        fp.sign_symmetry(model, MSE, magnitude=as_large),
        fp.direct_feedback_alignment(model, MSE, shape),
        fp.indirect_feedback_alignment(model, MSE, shape),
    )
    run = jax.jit(lambda params: [after(rule, optimizer, params, batch, 3) for rule in rules])
    for first, last in jax.device_get(run(params)):
        assert not np.array_equal(first.params[0]["w"], last.params[0]["w"])
        jax.tree.map(np.testing.assert_array_equal, first.rule_state, last.rule_state)


# ------------------------------------------------------------------------ weight mirror


@pytest.mark.parametrize(
    "name", ["mlp", "cnn", *(pytest.param(n, marks=pytest.mark.slow) for n in list(MODELS)[2:])]
)
def test_the_mirror_shows_the_weights(name):
    """The mean over many draws is W: within 5 standard deviations for each of its numbers, and for
    how long it is."""
    model, shape = MODELS[name]
    params, x, y = made(model, shape)
    rule = fp.weight_mirror(model, MSE, rate=1.0, decay=1.0, samples=16)

    @jax.jit
    def seen(params):
        start, keys = rule.init(KEY, params), jax.random.split(jax.random.key(3), 2000)
        return jax.vmap(lambda key: rule.estimate(params, start, x, y, key)[2])(keys)

    draws = jax.device_get(seen(params))

    def compared(each, w):
        deviation = np.std(each, axis=0) / np.sqrt(len(each))
        assert (np.abs(np.mean(each, axis=0) - w) <= 5 * deviation).all()
        length = np.tensordot(np.asarray(each), np.asarray(w), w.ndim) / np.sum(w * w)
        spread = np.std(length) / np.sqrt(len(length))
        assert abs(np.mean(length) - 1) <= 5 * spread < 0.08

    jax.tree.map(compared, draws, jax.device_get(matrices(params)))


def test_the_mirror_keeps_an_average():
    model, shape = MODELS["mlp"]
    params, x, y = made(model, shape)
    rule = fp.weight_mirror(model, MSE, rate=0.25, decay=0.125)
    once = fp.weight_mirror(model, MSE, rate=1.0, decay=1.0)

    @jax.jit
    def run(params):
        state = rule.init(KEY, params)
        assert rule.estimate(params, state, x, y, None)[2] is state
        return state, [each.estimate(params, state, x, y, KEY)[2] for each in (once, rule)]

    state, (shown, found) = jax.device_get(run(params))
    near(found, jax.tree.map(lambda b, m: 0.875 * b + 0.25 * m, state, shown))


# ---------------------------------------------------------------------------- alignment


def test_alignment_of_what_is_known(tmp_path):
    from funcprop.cli import pictures

    model, shape = MODELS["mlp"]
    params, x, y = made(model, shape)
    rule = fp.feedback_alignment(model, MSE)
    metrics = fp.alignment(rule, model, MSE, feedback=lambda state: state)

    @jax.jit
    def run(params):
        with jax.numpy_dtype_promotion("standard"):
            state = fp.init_state(rule, optax.sgd(0.1), params, KEY)
            _, found = fp.update_step(rule, optax.sgd(0.1), metrics)(state, (x, y))
        tree = rule.estimate(params, state.rule_state, x, y, None)[1]
        return state, found, tree, fp.value_and_backprop(model, MSE)(params, x, y)[1]

    state, found, a, b = jax.device_get(run(params))
    for place, (one, two) in {
        "": (a, b),
        **{f" layers[{i}]": (a[i], b[i]) for i in range(3)},
    }.items():
        one, two = (np.concatenate([np.ravel(v) for v in jax.tree.leaves(t)]) for t in (one, two))
        cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
        np.testing.assert_allclose(
            found[f"angle{place}"], np.degrees(np.arccos(min(cosine, 1))), atol=1e-5
        )
        np.testing.assert_allclose(
            found[f"ratio{place}"], np.linalg.norm(one) / np.linalg.norm(two), rtol=1e-9
        )
    w, b = np.ravel(params[1]["w"]), np.ravel(state.rule_state[1]["w"])
    due = np.degrees(np.arccos(w @ b / np.linalg.norm(w) / np.linalg.norm(b)))
    np.testing.assert_allclose(found["feedback_angle layers[1]"], due, rtol=1e-9)

    history = {name: [float(value)] for name, value in found.items()}
    pictures.alignment(tmp_path / "angles.png", "Feedback alignment", history)
    assert (tmp_path / "angles.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(KeyError, match="angle"):
        pictures.alignment(tmp_path / "none.png", "", {"loss": [1.0]})


def test_alignment_shares_the_forward_pass_with_the_step():
    """3 products forward, 3 gradients and 2 transports; with it 3 gradients and 2 transports more,
    less the gradient of the last layer, which is the same."""
    model, shape = fp.mlp((9, 8, 7, 6), fp.tanh), (9,)
    params, x, y = made(model, shape)
    rule, optimizer = fp.feedback_alignment(model, MSE), optax.sgd(0.1)

    def products(metrics):
        with jax.numpy_dtype_promotion("standard"):
            state = fp.init_state(rule, optimizer, params, KEY)
            step = fp.update_step(rule, optimizer, metrics)
            return step.lower(state, (x, y)).compile().as_text().count(" dot(")

    assert products(None) == 8
    assert products(fp.alignment(rule, model, MSE)) == 12


# ------------------------------------------------------------------------------- errors


def test_redrawn_magnitudes():
    model, shape = MODELS["mlp"]
    params, x, y = made(model, shape)
    rules = [fp.sign_symmetry(model, MSE, magnitude=as_large, redraw=r) for r in (False, True)]

    @jax.jit
    def run(params):
        found = []
        for rule in rules:
            state = rule.init(KEY, params)
            each = jax.vmap(
                lambda key, r=rule, s=state: r.estimate(params, s, x, y, key)[1][0]["w"]
            )
            found.append(each(jax.random.split(KEY)))
        return found

    for (one, two), same in zip(run(params), (True, False), strict=True):
        assert np.array_equal(one, two) == same


def test_carriers_keep_what_is_no_matrix():
    params = ({"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, (), {"scale": jnp.ones(2)})
    feedback = jax.tree.map(jnp.zeros_like, matrices(params))
    found = carriers(params, feedback)
    assert not found[0]["w"].any()
    assert found[0]["b"].all()
    assert found[2]["scale"].all()
