"""Steps, the loop, evaluation and stopping."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import funcprop as fp
from funcprop import LayerError, compare

KEY = jax.random.key(0)
SIZES = (4, 8, 3)
MODEL = fp.mlp(SIZES, fp.tanh)
PARAMS = fp.init(KEY, SIZES)
LOSS = fp.softmax_cross_entropy()
RULE = fp.backpropagation(MODEL, LOSS)
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(30, 4)).astype(np.float32)
Y = np.argmax(X[:, :3], axis=1).astype(np.int32)
SGD = optax.sgd(0.1)


def automatic_steps(optimizer, batches, params=PARAMS):
    """What optax and jax.grad make of the same batches."""

    @jax.jit
    def step(params, opt_state, x, y):
        def loss(p):
            logits = MODEL.apply(p, x)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    opt_state, values = optimizer.init(params), []
    for x, y in batches:
        params, opt_state, value = step(params, opt_state, x, y)
        values.append(float(value))
    return params, values


def test_a_step_is_jax_grad_s_and_optax_s():
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    step = fp.update_step(RULE, optimizer)
    state = fp.init_state(RULE, optimizer, PARAMS, KEY)
    losses = []
    for _ in range(5):
        state, scalars = step(state, (X, Y))
        losses.append(float(scalars["loss"]))
    params, values = automatic_steps(optimizer, [(X, Y)] * 5)
    chex.assert_trees_all_close(state.params, params, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(losses, values, rtol=1e-5)
    assert int(state.step) == 5


def test_a_step_donates_its_state_but_not_the_parameters_given():
    step = fp.update_step(RULE, SGD)
    state = fp.init_state(RULE, SGD, PARAMS, KEY)
    step(state, (X, Y))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(PARAMS))
    assert not KEY.is_deleted()


SCHEDULE = optax.cosine_decay_schedule(0.1, 20)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(SCHEDULE, momentum=0.9, nesterov=True),
        optax.adamw(1e-2),
        optax.MultiSteps(optax.adam(1e-2), 2),
        optax.partition(
            {"w": optax.adam(1e-2), "b": optax.set_to_zero()},
            lambda params: jax.tree_util.tree_map_with_path(lambda p, _: p[-1].key, params),
        ),
        optax.contrib.muon(1e-2),
        optax.contrib.schedule_free_adamw(1e-2),
        optax.chain(optax.adam(3e-2), optax.contrib.reduce_on_plateau(patience=2)),
        optax.lbfgs(),
    ],
    ids=[
        "schedule",
        "adamw",
        "MultiSteps",
        "partition",
        "muon",
        "schedule_free",
        "plateau",
        "lbfgs",
    ],
)
def test_optimizers(optimizer):
    _, history = fp.fit(RULE, optimizer, PARAMS, (X, Y), key=KEY, steps=20)
    assert history["loss"][-1] < 0.85 * history["loss"][0]


def test_lbfgs_line_search_uses_the_hand_written_gradient():
    """value_fn's derivative is the rule's own estimate: a wrong one must be seen to be used."""
    _, history = fp.fit(RULE, optax.lbfgs(), PARAMS, (X, Y), key=KEY, steps=30)
    assert history["loss"][-1] < 1e-3 * history["loss"][0]
    asked = []

    def estimate(params, rule_state, x, y, key):
        asked.append(1)
        return RULE.estimate(params, rule_state, x, y, key)

    fp.fit(RULE._replace(estimate=estimate), optax.lbfgs(), PARAMS, (X, Y), key=KEY, steps=2)
    assert len(asked) > 2


def test_fit_is_the_loop_over_its_shuffled_batches():
    """The batches that fit drew, given to jax.grad and optax, give the same parameters."""
    seen = []

    def metrics(state, batch):
        jax.debug.callback(lambda x, y: seen.append((x, y)), *batch, ordered=True)
        return {"first": batch[0][0, 0]}

    state, history = fp.fit(
        RULE, SGD, PARAMS, (X, Y), key=KEY, epochs=3, batch_size=8, metrics=metrics
    )
    jax.effects_barrier()
    assert len(seen) == 9
    params, values = automatic_steps(SGD, seen)
    compare(state.params, params, leaf_bound=1024, whole_bound=256).assert_ok()
    np.testing.assert_allclose(history["loss"], values, rtol=1e-5)
    np.testing.assert_array_equal(history["first"], [x[0, 0] for x, _ in seen])
    rows = {tuple(row): i for i, row in enumerate(X.tolist())}
    epochs = [
        [rows[tuple(row)] for x, _ in seen[3 * e : 3 * e + 3] for row in x.tolist()]
        for e in range(3)
    ]
    for epoch in epochs:
        assert len(set(epoch)) == 24  # no example twice in an epoch
    assert epochs[0] != epochs[1] != epochs[2]
    for x, y in seen:  # inputs keep their labels
        np.testing.assert_array_equal(np.argmax(x[:, :3], 1), y)


@pytest.mark.parametrize("every", [1, 2, 3, 7, 100])
def test_every_changes_nothing_but_the_calls_to_the_host(every):
    calls = []
    state, history = fp.fit(
        RULE, SGD, PARAMS, (X, Y), key=KEY, steps=10, batch_size=8, every=every,
        callback=lambda state, history: calls.append((int(state.step), len(history["loss"]))),
    )  # fmt: skip
    due, due_history = fp.fit(RULE, SGD, PARAMS, (X, Y), key=KEY, steps=10, batch_size=8)
    chex.assert_trees_all_close(state.params, due.params, rtol=1e-6)
    np.testing.assert_allclose(history["loss"], due_history["loss"], rtol=1e-6)
    assert calls == [(n, n) for n in [*range(every, 10, every), 10]]


def test_going_on_from_a_state_is_an_unbroken_run():
    options = {"key": KEY, "batch_size": 8}
    whole, history = fp.fit(RULE, SGD, PARAMS, (X, Y), steps=11, **options)
    part, first = fp.fit(RULE, SGD, PARAMS, (X, Y), steps=4, **options)
    rest, second = fp.fit(RULE, SGD, part, (X, Y), steps=7, **options)
    chex.assert_trees_all_close(rest.params, whole.params, rtol=1e-6)
    np.testing.assert_allclose(first["loss"] + second["loss"], history["loss"], rtol=1e-6)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(part.params))


def test_states_kept_by_a_callback_stay_alive():
    kept = []
    fp.fit(RULE, SGD, PARAMS, (X, Y), key=KEY, epochs=3, callback=lambda s, h: kept.append(s))
    assert len({float(state.params[0]["w"][0, 0]) for state in kept}) == 3


def test_batches_of_an_iterator():
    batches = [(X[i : i + 10], Y[i : i + 10]) for i in (0, 10, 20)] * 2
    calls = []
    state, history = fp.fit(
        RULE, SGD, PARAMS, iter(batches), key=KEY, every=4,
        callback=lambda state, history: calls.append(int(state.step)),
    )  # fmt: skip
    params, values = automatic_steps(SGD, batches)
    compare(state.params, params, leaf_bound=1024, whole_bound=256).assert_ok()
    np.testing.assert_allclose(history["loss"], values, rtol=1e-5)
    assert calls == [4, 6]
    endless = (batches[0] for _ in iter(int, 1))
    assert int(fp.fit(RULE, SGD, PARAMS, endless, key=KEY, steps=5)[0].step) == 5


def test_metrics_see_the_state_before_the_step():
    def metrics(state, batch):
        return {"w": state.params[0]["w"][0, 0], "step": state.step}

    _, history = fp.fit(RULE, SGD, PARAMS, (X, Y), key=KEY, steps=3, metrics=metrics)
    assert history["step"] == [0, 1, 2]
    assert history["w"][0] == PARAMS[0]["w"][0, 0]


def test_rule_state_is_carried_and_the_key_changes_every_step():
    def estimate(params, state, x, y, key):
        value, grads, _ = RULE.estimate(params, (), x, y, None)
        draw = jnp.zeros(()) if key is None else jax.random.uniform(key)
        return value, grads, {"count": state["count"] + 1, "draw": draw}

    rule = fp.Rule(
        lambda key, params: {"count": jnp.zeros((), int), "draw": jnp.zeros(())},
        estimate,
        MODEL.apply,
    )
    draws = []
    state, _ = fp.fit(
        rule, SGD, PARAMS, (X, Y), key=KEY, steps=4, every=1,
        callback=lambda s, h: draws.append(float(s.rule_state["draw"])),
    )  # fmt: skip
    assert int(state.rule_state["count"]) == 4
    assert len(set(draws)) == 4


def test_validation_and_scores():
    state, history = fp.fit(
        RULE, optax.adam(0.05), PARAMS, (X, Y), key=KEY, epochs=3, batch_size=10,
        validation=(X[:7], Y[:7]), scores={"accuracy": fp.accuracy},
    )  # fmt: skip
    assert history["validation_step"] == [3, 6, 9]
    found = fp.evaluate(RULE, state.params, (X[:7], Y[:7]), scores={"accuracy": fp.accuracy})
    assert history["validation_loss"][-1] == found["loss"]
    assert history["validation_accuracy"][-1] == found["accuracy"]


def test_evaluate_takes_the_mean_over_examples_whatever_the_batch_size():
    logits = np.asarray(MODEL.apply(PARAMS, X))
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    due = {"loss": -log_p[np.arange(30), Y].mean(), "accuracy": (logits.argmax(1) == Y).mean()}
    for batch_size in (None, 7, 30, 100):
        found = fp.evaluate(
            RULE, PARAMS, (X, Y), scores={"accuracy": fp.accuracy}, batch_size=batch_size
        )
        assert found == pytest.approx(due, rel=1e-5)


def test_accuracy():
    scores = jnp.array([[[1.0, 2.0], [2.0, 1.0], [0.0, 1.0]]] * 2)
    labels = jnp.array([[1, 1, 1], [0, 0, 0]])
    np.testing.assert_allclose(fp.accuracy(scores, labels), [2 / 3, 1 / 3], rtol=1e-6)
    mask = jnp.array([[True, False, False], [False, True, True]])
    np.testing.assert_allclose(fp.accuracy(scores, (labels, mask)), [1, 0.5])
    np.testing.assert_allclose(fp.accuracy(scores, jax.nn.one_hot(labels, 2)), [2 / 3, 1 / 3])
    with pytest.raises(LayerError, match=r"labels are \(2, 1\), \(2, 3\) are due"):
        fp.accuracy(scores, labels[:, :1])


def test_dropout_like_layers_are_off_without_a_key():
    """evaluate draws nothing, a training step does."""

    def forward(params, x, key=None):
        factor = 1.0 if key is None else jax.random.uniform(key, x.shape)
        return x * factor, factor

    noise = fp.Layer(fp.stateless, forward, lambda w, r, d, s=fp.gradient: (d * r, ()), "noise")
    rule = fp.backpropagation(fp.serial(noise, MODEL), LOSS)
    params = ((), PARAMS)
    still = fp.evaluate(rule, params, (X, Y))["loss"]
    assert still == fp.evaluate(RULE, PARAMS, (X, Y))["loss"]
    _, history = fp.fit(rule, optax.sgd(0.0), params, (X, Y), key=KEY, steps=3)
    assert len(set(history["loss"])) == 3


# ---------------------------------------------------------------------------- stopping


def test_stopping():
    options = {"key": KEY, "epochs": 200, "validation": (X, Y), "batch_size": 10}
    _, history = fp.fit(
        RULE, optax.adam(0.05), PARAMS, (X, Y), stop=fp.until("validation_loss", at_most=0.3),
        **options,
    )  # fmt: skip
    assert history["stopped"].startswith("validation_loss reached 0.2")
    assert history["validation_loss"][-2] > 0.3
    _, history = fp.fit(
        RULE, optax.sgd(0.0), PARAMS, (X, Y),
        stop=[fp.not_finite, fp.patience("validation_loss", 3)], **options,
    )  # fmt: skip
    assert history["stopped"] == "validation_loss has not improved for 3 entries"
    assert len(history["validation_loss"]) == 4
    _, history = fp.fit(RULE, optax.sgd(1e38), PARAMS, (X, Y), **options)
    assert history["stopped"].startswith("the loss is ")
    assert len(history["loss"]) < 60


def test_stopping_functions():
    assert fp.until("loss", at_most=1)({"loss": [3, 2]}) is None
    assert fp.until("a", at_least=1)({"a": [3, 0.5]}) is None
    assert fp.patience("a", 2, larger=True)({"a": [1, 3, 2, 2]}) is not None
    assert fp.patience("a", 2, larger=True)({"a": [1, 3, 2, 4]}) is None
    assert fp.not_finite({"loss": [1.0, float("inf"), 2.0]}) is None
    with pytest.raises(ValueError, match=r"the history has no 'b'; it has a"):
        fp.until("b", at_most=0)({"a": [1]})
    with pytest.raises(ValueError, match="at_least or at_most"):
        fp.until("a")
    with pytest.raises(ValueError, match="rounds is 0"):
        fp.patience("a", 0)


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ((X, Y), {}, "give epochs or steps"),
        ((X, Y), {"epochs": 1, "steps": 1}, "give epochs or steps"),
        ((X, Y), {"epochs": 1, "batch_size": 31}, r"batch_size is 31, 1 to 30"),
        ((X, Y), {"epochs": 0}, "must be 1 or more"),
        ((X, Y), {"steps": 1, "every": 0}, "must be 1 or more"),
        ((X, Y, Y), {"steps": 1}, r"data is a tuple of 3"),
        ((X, Y[:5]), {"steps": 1}, r"one leading axis of examples"),
        ((X, Y[:, None]), {"steps": 1}, r"labels are \(30, 1\), \(30,\) are due"),
        ((X, Y + 1), {"steps": 1}, r"a label is 3, labels of 3 classes"),
        ((X, Y.astype(np.int64) + 2**32), {"steps": 1}, r"a label is 429496729\d"),
        ((X[:, :3], Y), {"steps": 1}, r"layers\[0\] dense: x has 3 features"),
        ([(X, Y + 1)], {}, r"a label is 3"),
        ([], {}, "without batches"),
        ([(X, Y)], {"epochs": 2}, "go with arrays"),
        ([(X, Y)], {"every": 0}, "every is 0"),
    ],
)
def test_messages(data, options, message):
    with pytest.raises(ValueError, match=message):
        fp.fit(RULE, SGD, PARAMS, data, key=KEY, **options)


def test_more_messages():
    with pytest.raises(LayerError, match="a label is 3"):
        fp.evaluate(RULE, PARAMS, (X, Y + 1))
    with pytest.raises(ValueError, match="batch_size is 0"):
        fp.evaluate(RULE, PARAMS, (X, Y), batch_size=0)
    with pytest.raises(LayerError, match="a label is 3"):
        fp.fit(RULE, SGD, PARAMS, (X, Y), key=KEY, steps=1, validation=(X, Y + 1))

    def estimate(params, state, x, y, key):
        value, grads, _ = RULE.estimate(params, state, x, y, key)
        return value, grads, jnp.zeros(3)

    with pytest.raises(AssertionError, match="the step changed its state"):
        fp.fit(RULE._replace(estimate=estimate), SGD, PARAMS, (X, Y), key=KEY, steps=1)


# --------------------------------------------------------------------------- platforms


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        fp.serial(
            fp.dense(8), fp.repeat(fp.remat(fp.residual(fp.dense(8, fp.gelu))), 3), fp.dense(3)
        ),
    ],
    ids=["mlp", "repeat"],
)
def test_update_steps_lower_for_every_platform(model, platform):
    rule, optimizer = fp.backpropagation(model, LOSS), optax.adamw(1e-3)
    params, _ = model.init(KEY, (4,))
    step = fp.update_step(rule, optimizer)
    # Exported functions take raw keys only.
    state = fp.init_state(rule, optimizer, params, jax.random.PRNGKey(0))
    exported = jax.export.export(step, platforms=[platform])(state, (X, Y))
    assert exported.platforms == (platform,)
    if platform == "cpu":
        found, _ = exported.call(state, (X, Y))
        chex.assert_trees_all_close(found.params, step(state, (X, Y))[0].params, rtol=1e-6)
