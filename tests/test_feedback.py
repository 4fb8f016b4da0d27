"""Rules that differ in which weights, and which road, carry the error."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcprop as fp
from funcprop import LayerError
from funcprop.learning.feedback import as_large, carriers, matrices

pytestmark = pytest.mark.usefixtures("strict")

CE, MSE = fp.softmax_cross_entropy(), fp.mean_squared_error
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def wide(x64):
    """Everything in float64."""


def made(model, shape, batch=5):
    """Parameters, all of them drawn, inputs and targets."""
    draw = np.random.default_rng(0)
    params, out = model.init(KEY, shape)
    params = jax.tree.map(lambda a: jnp.asarray(draw.normal(size=a.shape)) * 0.5, params)
    x, y = (jnp.asarray(draw.normal(size=(batch, *s))) for s in (shape, out))
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
models = pytest.mark.parametrize("name", MODELS)
own = lambda key, w: w  # noqa: E731


@models
def test_with_the_weights_themselves_it_is_backprop(name):
    model, shape = MODELS[name]
    params, x, y = made(model, shape)
    rules = [
        fp.feedback_alignment(model, MSE, feedback=own),
        fp.sign_symmetry(model, MSE, magnitude=lambda key, w: jnp.abs(w)),
        fp.kolen_pollack(model, MSE, optax.sgd(0.1), feedback=own),
        fp.weight_mirror(model, MSE, rate=0.1, feedback=own),
    ]

    @jax.jit
    def run(params):
        found = [rule.estimate(params, rule.init(KEY, params), x, y, KEY)[:2] for rule in rules]
        return found, fp.value_and_backprop(model, MSE)(params, x, y, key=KEY)

    found, due = run(params)
    for each in found:
        near(each, due)


@models
def test_only_matrices_are_replaced(name):
    model, shape = MODELS[name]
    params, x, y = made(model, shape)
    rule = fp.feedback_alignment(model, MSE)
    state = rule.init(KEY, params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda leaf: leaf is None):
        if path and getattr(path[-1], "key", None) in ("w", "u"):
            assert leaf is not None
    assert {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(state)} <= {"w", "u"}
    tree = rule.estimate(params, state, x, y, None)[1]
    due = fp.value_and_backprop(model, MSE)(params, x, y)[1]
    near(tree[-1], due[-1])  # the last layer's gradient needs no feedback
    first = jax.tree.leaves(matrices(tree))[0], jax.tree.leaves(matrices(due))[0]
    assert np.abs(first[0] - first[1]).max() > 1e-3


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

    def beside(rule, first, second, change=lambda state: state):
        state = change(rule.init(KEY, params))
        tree = rule.estimate(params, state, x, y, None)[1]
        near(tree, backward_of(params, x, [*first(state, second(state)), e]))

    fa = fp.feedback_alignment(model, MSE)
    beside(
        fa,
        lambda b, d: (d @ np.asarray(b[1]["w"]) * d1, d),
        lambda b: e @ np.asarray(b[2]["w"]) * d2,
    )
    signs = fp.sign_symmetry(model, MSE, magnitude=as_large)
    beside(
        signs,
        lambda m, d: (d @ (np.asarray(m[1]["w"]) * np.sign(p[1])) * d1, d),
        lambda m: e @ (np.asarray(m[2]["w"]) * np.sign(p[2])) * d2,
    )
    direct = fp.direct_feedback_alignment(model, MSE, shape)
    beside(
        direct,
        lambda b, d: (e @ np.asarray(b[0]) * d1, d),
        lambda b: e @ np.asarray(b[1]) * d2,
    )
    target = fp.direct_random_target_projection(model, MSE, shape)
    beside(
        target,
        lambda b, d: (np.asarray(y) / len(y) @ np.asarray(b[0]) * d1, d),
        lambda b: np.asarray(y) / len(y) @ np.asarray(b[1]) * d2,
    )
    indirect = fp.indirect_feedback_alignment(model, MSE, shape)
    beside(
        indirect,
        lambda b, d: (e @ np.asarray(b) * d1, d),
        lambda b: (e @ np.asarray(b) * d1) @ p[1].T * d2,
    )


def test_direct_feedback_of_a_linear_network_with_products_is_backprop():
    model = fp.serial(fp.dense(6), fp.dense(5), fp.flatten, fp.dense(4), fp.dense(3))
    params, x, y = made(model, (7,))
    w = [params[i]["w"] for i in (1, 3, 4)]
    state = (w[2] @ w[1] @ w[0], w[2] @ w[1], w[2])
    rule = fp.direct_feedback_alignment(model, MSE, (7,))
    drawn = rule.init(KEY, params)
    assert [b.shape for b in drawn] == [b.shape for b in state]
    near(
        rule.estimate(params, state, x, y, None)[:2],
        fp.value_and_backprop(model, MSE)(params, x, y),
    )


@models
def test_direct_feedback_reaches_every_block(name):
    model, shape = MODELS[name]
    params, x, y = made(model, shape)
    rule = fp.direct_feedback_alignment(model, MSE, shape)
    value, tree, _ = jax.jit(rule.estimate)(params, rule.init(KEY, params), x, y, KEY)
    due_value, due = fp.value_and_backprop(model, MSE)(params, x, y, key=KEY)
    near((value, tree[-1]), (due_value, due[-1]))
    assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, params)
    first = [np.abs(leaf).max() for leaf in jax.tree.leaves(tree[0])]
    assert min(first[:1]) > 0


def test_target_projection_takes_labels_and_distributions():
    model, shape = fp.mlp((3, 6, 4), fp.tanh), (3,)
    params, x, _ = made(model, shape)
    labels = jnp.array([0, 3, 1, 1, 2])
    rule = fp.direct_random_target_projection(model, CE, shape)
    state = rule.init(KEY, params)
    one = rule.estimate(params, state, x, labels, None)
    two = rule.estimate(params, state, x, jax.nn.one_hot(labels, 4, dtype=float), None)
    near(one[:2], two[:2])
    signal = jax.nn.one_hot(labels, 4, dtype=float) / 5
    ((_, slope),), _ = activations_of(params, x)
    near(one[1][0]["w"], (np.asarray(signal @ state[0]) * slope).T @ np.asarray(x))


# ------------------------------------------------------------------ Kolen-Pollack's law


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "coupled momentum"])
def test_kolen_pollack_loses_the_difference_by_the_decay_alone(name):
    """W - B = (1 - λ)ᵗ (W₀ - B₀), to rounding; with the decay inside the momentum it does not."""
    rate, decay = 0.1, 0.3
    optimizer = {
        "sgd": optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate)),
        "momentum": optax.chain(
            optax.trace(0.9), optax.add_decayed_weights(decay), optax.scale(-rate)
        ),
        "adamw": optax.adamw(rate, weight_decay=decay),
        "coupled momentum": optax.chain(
            optax.add_decayed_weights(decay), optax.sgd(rate, momentum=0.9)
        ),
    }[name]
    model, shape = MODELS["mlp"]
    params, x, y = made(model, shape)
    rule = fp.kolen_pollack(model, MSE, optimizer)
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        state = fp.init_state(rule, optimizer, params, KEY)
        first = jax.tree.map(
            lambda w, b: np.asarray(w - b), matrices(state.params), state.rule_state.feedback
        )
        step = fp.update_step(rule, optimizer)
        for _ in range(20):
            state, _ = step(state, (x, y))
    last = jax.tree.map(lambda w, b: w - b, matrices(state.params), state.rule_state.feedback)
    due = jax.tree.map(lambda d: d * (1 - rate * decay) ** 20, first)
    if name == "coupled momentum":
        with pytest.raises(AssertionError):
            near(last, due, 1e-10)
    else:
        near(last, due, 1e-10)


def test_weight_decay_leaves_feedback_alone():
    model, shape = MODELS["mlp"]
    params, x, y = made(model, shape)
    optimizer = optax.adamw(1e-2, weight_decay=0.5)
    for rule in (
        fp.feedback_alignment(model, MSE),
        fp.sign_symmetry(model, MSE, magnitude=as_large),
        fp.direct_feedback_alignment(model, MSE, shape),
        fp.indirect_feedback_alignment(model, MSE, shape),
    ):
        with jax.numpy_dtype_promotion("standard"):
            state = fp.init_state(rule, optimizer, params, KEY)
            before = jax.device_get(state.rule_state)
            step = fp.update_step(rule, optimizer)
            for _ in range(3):
                state, _ = step(state, (x, y))
        jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.rule_state))


# ------------------------------------------------------------------------ weight mirror


@models
def test_the_mirror_shows_the_weights(name):
    """The mean over many draws is W: within 5 standard deviations for each of its numbers, and for
    how long it is."""
    model, shape = MODELS[name]
    params, x, y = made(model, shape)
    rule = fp.weight_mirror(model, MSE, rate=1.0, decay=1.0, samples=16)
    start = rule.init(KEY, params)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, None, 0))
    def seen(params, start, key):
        return rule.estimate(params, start, x, y, key)[2]

    draws = seen(params, start, jax.random.split(jax.random.key(3), 2000))

    def compared(each, w):
        deviation = np.std(each, axis=0) / np.sqrt(len(each))
        assert (np.abs(np.mean(each, axis=0) - w) <= 5 * deviation).all()
        length = np.tensordot(np.asarray(each), np.asarray(w), w.ndim) / np.sum(w * w)
        spread = np.std(length) / np.sqrt(len(length))
        assert abs(np.mean(length) - 1) <= 5 * spread < 0.08

    jax.tree.map(compared, draws, matrices(params))


def test_the_mirror_keeps_an_average():
    model, shape = MODELS["mlp"]
    params, x, y = made(model, shape)
    rule = fp.weight_mirror(model, MSE, rate=0.25, decay=0.125)
    once = fp.weight_mirror(model, MSE, rate=1.0, decay=1.0)
    state = rule.init(KEY, params)
    shown = once.estimate(params, state, x, y, KEY)[2]
    found = rule.estimate(params, state, x, y, KEY)[2]
    near(found, jax.tree.map(lambda b, m: 0.875 * b + 0.25 * m, state, shown))
    assert rule.estimate(params, state, x, y, None)[2] is state


# ---------------------------------------------------------------------------- alignment


def test_alignment_of_what_is_known():
    model, shape = MODELS["mlp"]
    params, x, y = made(model, shape)
    rule = fp.feedback_alignment(model, MSE)
    optimizer = optax.sgd(0.1)
    metrics = fp.alignment(rule, model, MSE, feedback=lambda state: state)
    with jax.numpy_dtype_promotion("standard"):
        state = fp.init_state(rule, optimizer, params, KEY)
        _, found = jax.jit(fp.update_step(rule, optimizer, metrics))(state, (x, y))
    a = rule.estimate(params, state.rule_state, x, y, None)[1]
    b = fp.value_and_backprop(model, MSE)(params, x, y)[1]
    for place, (one, two) in {"": (a, b), **{f"[{i}]": (a[i], b[i]) for i in range(3)}}.items():
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


def test_alignment_is_drawn(tmp_path):
    from funcprop.cli import pictures

    model, shape = MODELS["mlp"]
    params, x, y = made(model, shape)
    rule = fp.feedback_alignment(model, MSE)
    metrics = fp.alignment(rule, model, MSE, feedback=lambda state: state)
    with jax.numpy_dtype_promotion("standard"):
        run = {"key": KEY, "steps": 5, "metrics": metrics}
        _, history = fp.fit(rule, optax.sgd(0.1), params, (x, y), **run)
    pictures.alignment(tmp_path / "angles.png", "Feedback alignment", history)
    assert (tmp_path / "angles.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(KeyError, match="angle"):
        pictures.alignment(tmp_path / "none.png", "", {"loss": [1.0]})


# ------------------------------------------------------------------------------- errors


def test_redrawn_magnitudes():
    model, shape = MODELS["mlp"]
    params, x, y = made(model, shape)
    rules = [fp.sign_symmetry(model, MSE, magnitude=as_large, redraw=r) for r in (False, True)]
    for rule, same in zip(rules, (True, False), strict=True):
        state = rule.init(KEY, params)
        one, two = (
            rule.estimate(params, state, x, y, jax.random.key(i))[1][0]["w"] for i in (1, 2)
        )
        assert np.array_equal(one, two) == same


def test_errors():
    model, shape = MODELS["mlp"]
    params, x, y = made(model, shape)
    with pytest.raises(LayerError, match=r"the model, layer_norm, has no matrices.*take back"):
        fp.feedback_alignment(fp.layer_norm(), MSE).init(KEY, {"scale": x[0], "b": x[0]})
    with pytest.raises(LayerError, match=r"feedback gave float64\[2\] for \[0\]\['w'\], float64"):
        fp.feedback_alignment(model, MSE, feedback=lambda k, w: jnp.ones(2)).init(KEY, params)
    with pytest.raises(LayerError, match=r"the feedback of \[0\]\['w'\] is 0.*give feedback"):
        fp.kolen_pollack(model, MSE, optax.sgd(0.1)).init(KEY, jax.tree.map(jnp.zeros_like, params))
    with pytest.raises(LayerError, match=r"feedback_alignment: rule_state is \(\)"):
        fp.feedback_alignment(model, MSE).estimate(params, (), x, y, None)
    for rate, decay, match in (
        (0, None, "rate is 0"),
        (0.1, 2.0, "decay is 2.0, it must be a finite"),
    ):
        with pytest.raises(LayerError, match=match):
            fp.weight_mirror(model, MSE, rate=rate, decay=decay)
    with pytest.raises(LayerError, match="samples is 0"):
        fp.weight_mirror(model, MSE, rate=0.1, samples=0)
    grouped = fp.serial(fp.conv(2, 3, groups=2), fp.flatten, fp.dense(1))
    own, image, target = made(grouped, (3, 3, 2))
    mirror = fp.weight_mirror(grouped, MSE, rate=0.1)
    with pytest.raises(LayerError, match=r"layers\[0\] conv: it has no matrix.*grouped.*kolen_pol"):
        mirror.estimate(own, mirror.init(KEY, own), image, target, KEY)
    for rule in (
        fp.direct_feedback_alignment,
        fp.direct_random_target_projection,
        fp.indirect_feedback_alignment,
    ):
        with pytest.raises(LayerError, match=r"model, dense, is one block.*make it a serial"):
            rule(fp.dense(2), MSE, (3,)).init(KEY, {"w": jnp.ones((2, 3)), "b": jnp.ones(2)})
        with pytest.raises(LayerError, match=r"has parameters; put them into the model"):
            rule(model, fp.linear_cross_entropy(5), (3,))
        with pytest.raises(LayerError, match=r"gave \(2,\) for layers\[0\], \(2, 6\) is due"):
            rule(model, MSE, (3,), feedback=lambda key, due: jnp.ones(2)).init(KEY, params)
    rule = fp.direct_random_target_projection(model, CE, (3,))
    with pytest.raises(LayerError):
        rule.estimate(params, rule.init(KEY, params), x, jnp.zeros((5, 1), int), None)
    lstm, sequence = MODELS["lstm"]
    own, x, y = made(lstm, sequence)
    rule = fp.indirect_feedback_alignment(lstm, MSE, sequence)
    with pytest.raises(LayerError, match=r"layers\[0\] lstm: indirect.*dense layers alone"):
        rule.init(KEY, own)
    with pytest.raises(LayerError, match=r"layers\[0\] lstm: indirect.*dense layers alone"):
        rule.estimate(own, jnp.ones((2, 4)), x, y, None)


def test_carriers_keep_what_is_no_matrix():
    params = ({"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, (), {"scale": jnp.ones(2)})
    feedback = jax.tree.map(jnp.zeros_like, matrices(params))
    found = carriers(params, feedback)
    assert not found[0]["w"].any()
    assert found[0]["b"].all()
    assert found[2]["scale"].all()
