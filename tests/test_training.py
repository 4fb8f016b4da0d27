"""Steps, the loop, evaluation and stopping."""

import functools
import gc
import weakref

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

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
slow = pytest.mark.slow


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
    ],
    ids=[
        "schedule",
        "adamw",
        "MultiSteps",
        "partition",
        "muon",
        "schedule_free",
        "plateau",
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

    step = fp.update_step(RULE._replace(estimate=estimate), optax.lbfgs())
    jax.eval_shape(step, fp.init_state(RULE, optax.lbfgs(), PARAMS, KEY), (X, Y))
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


@pytest.mark.parametrize("every", [1, 3, 100, *(pytest.param(n, marks=slow) for n in (2, 7))])
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
    found = jax.jit(fp.accuracy)(scores[:, 0].at[0].set(jnp.nan), jnp.array([1, 1]))
    np.testing.assert_array_equal(found, [np.nan, 1])
    np.testing.assert_array_equal(
        jax.jit(fp.accuracy)(scores[:, 0], jnp.array([1, 2])), [1, np.nan]
    )
    found = fp.accuracy(scores.at[0, 1].set(jnp.nan), (labels, mask))  # not looked at
    np.testing.assert_allclose(found, [1, 0.5])


def test_a_score_gives_one_number_an_example():
    def of_all_pairs(prediction, y):
        return prediction[:, 0] - y[:, None]

    with pytest.raises(LayerError, match=r"score 'own': it gave \(30, 30\)"):
        fp.evaluate(RULE, PARAMS, (X, Y), scores={"own": of_all_pairs})
    with pytest.raises(LayerError, match=r"score 'own': it gave \(\)"):
        fp.fit(
            RULE, SGD, PARAMS, (X, Y), key=KEY, steps=1, validation=(X, Y),
            scores={"own": lambda prediction, y: jnp.mean(prediction)},
        )  # fmt: skip


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


def test_patience_takes_no_nan_for_the_best():
    assert fp.patience("a", 2)({"a": [float("nan"), 3.0, 1.0]}) is None
    assert fp.patience("a", 2)({"a": [1.0, float("nan"), 3.0]}) is not None
    assert fp.patience("a", 1, larger=True)({"a": [float("nan"), 1.0]}) is None


@pytest.mark.parametrize("kind", ["arrays", "iterable"])
def test_the_best_state_is_returned_whole(kind):
    """Of rounds whose validation gets better and then worse."""
    optimizer = optax.chain(
        optax.scale_by_adam(), optax.scale_by_schedule(lambda n: jnp.where(n < 12, -0.05, 0.3))
    )
    kept = []
    data = (X, Y) if kind == "arrays" else [(X, Y)] * 24
    state, history = fp.fit(
        RULE, optimizer, PARAMS, data, key=KEY, steps=24, every=3, validation=(X, Y),
        stop=fp.patience("validation_loss", 3, best=True),
        callback=lambda state, history: kept.append(state),
    )  # fmt: skip
    best = int(np.argmin(history["validation_loss"]))
    assert 0 < best < len(kept) - 1
    assert history["best_step"] == history["validation_step"][best] == int(state.step)
    chex.assert_trees_all_equal(state, kept[best])
    assert history["stopped"] == "validation_loss has not improved for 3 entries"


def test_the_best_state_needs_an_entry_a_round():
    with pytest.raises(ValueError, match=r"the list has 3 entries of this round"):
        fp.fit(
            RULE, SGD, PARAMS, (X, Y), key=KEY, steps=9, every=3,
            stop=fp.patience("loss", 3, best=True),
        )  # fmt: skip
    twice = [fp.patience("validation_loss", 3, best=True)] * 2
    with pytest.raises(ValueError, match="give one"):
        fp.fit(RULE, SGD, PARAMS, (X, Y), key=KEY, steps=9, validation=(X, Y), stop=twice)


@functools.cache
def poisoned(at):
    """SGD whose update number ``at``, counted from 1, is NaN."""
    return optax.chain(
        optax.sgd(0.05), optax.scale_by_schedule(lambda n: jnp.where(n == at - 1, jnp.nan, 1.0))
    )


@pytest.mark.parametrize(
    ("kind", "at"),
    [("arrays", 1), ("arrays", 6), ("iterable", 5), pytest.param("batches", 5, marks=slow)],
)
def test_the_state_before_the_first_update_that_is_not_finite_is_returned(kind, at):
    """All losses are finite: the NaN comes with an update, at the end of a round or within one."""
    data = [(X, Y)] * 9 if kind == "iterable" else (X, Y)
    options = {"key": KEY, "every": 3, **({"batch_size": 8} if kind == "batches" else {})}
    found, history = fp.fit(RULE, poisoned(at), PARAMS, data, steps=6, **options)
    assert history["not_finite_step"] == at == int(found.step) + 1 == len(history["loss"])
    assert history["stopped"].startswith(f"the update of step {at} makes params[0]['b'] and 3 more")
    assert np.isfinite(history["loss"]).all()
    if at > 1:
        due, due_history = fp.fit(RULE, poisoned(at), PARAMS, data, steps=at - 1, **options)
        chex.assert_trees_all_close(found.params, due.params, rtol=1e-6)
        np.testing.assert_allclose(history["loss"][:-1], due_history["loss"], rtol=1e-6)
    else:
        chex.assert_trees_all_equal(found.params, PARAMS)


def test_an_update_that_is_not_finite_stops_whatever_else_is_asked():
    stops = [fp.until("loss", at_most=0), fp.patience("validation_loss", 5, best=True)]
    options = {"key": KEY, "steps": 9, "every": 3, "validation": (X, Y), "stop": stops}
    state, history = fp.fit(RULE, poisoned(5), PARAMS, (X, Y), **options)
    assert history["not_finite_step"] == 5
    assert history["validation_step"] == [3, 4]
    assert np.isfinite(history["validation_loss"]).all()
    assert int(state.step) == 4
    _, history = fp.fit(RULE, optax.sgd(1e38), PARAMS, (X, Y), **options)
    assert history["stopped"].startswith("the loss is ")


def test_a_state_that_overflows_is_noticed_though_the_parameters_are_finite():
    """Adam's second moment turns infinite, so that its updates are 0 from then on."""

    def estimate(params, state, x, y, key, sample_weight=None):
        value, grads, _ = RULE.estimate(params, (), x, y, key)
        return value, jax.tree.map(lambda g: 1e20 * g, grads), state + 1.0

    rule = fp.Rule(lambda key, params: jnp.zeros(()), estimate, MODEL.apply)
    _, history = fp.fit(rule, optax.adam(1e-3), PARAMS, (X, Y), key=KEY, steps=3)
    assert history["stopped"].startswith("the update of step 1 makes opt_state[0].nu")

    def growing(params, state, x, y, key, sample_weight=None):
        return *RULE.estimate(params, (), x, y, key)[:2], state * 1e30

    rule = fp.Rule(lambda key, params: jnp.ones(()), growing, MODEL.apply)
    _, history = fp.fit(rule, SGD, PARAMS, (X, Y), key=KEY, steps=3)
    assert history["stopped"].startswith("the update of step 2 makes rule_state NaN or infinite")


def test_what_an_optimizer_keeps_infinite_from_the_start_is_let_be():
    """reduce_on_plateau's best value is infinite before the first step."""
    optimizer = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(accumulation_size=50))
    _, history = fp.fit(RULE, optimizer, PARAMS, (X, Y), key=KEY, steps=6, every=2)
    assert "stopped" not in history


def test_rules_optimizers_and_programs_are_let_go():
    def train(optimizer):
        model = fp.mlp(SIZES)
        rule = fp.backpropagation(model, LOSS)
        for data in ((X, Y), [(X, Y)]):
            fp.fit(rule, optimizer, PARAMS, data, key=KEY, steps=1, validation=(X, Y))
        return [weakref.ref(function) for function in (rule.estimate, model[0], optimizer.update)]

    def searched(updates, state, params, *, value_fn, **extra):
        """As a line search: the program itself then holds a function made of the rule."""
        grads = jax.grad(value_fn)(params)
        return jax.tree.map(lambda g: -0.1 * g, grads), state

    search = optax.GradientTransformationExtraArgs(lambda params: (), searched)
    references = train(optax.sgd(0.2)) + train(search)
    del search, searched
    gc.collect()
    assert [reference() for reference in references] == [None] * 6


# ------------------------------------------------------------- layers that mix the examples

NORMED = fp.serial(fp.dense(6), fp.batch_norm(), fp.tanh, fp.dense(3))
NORMED_PARAMS = NORMED.init(KEY, (4,))[0]
NORMED_RULE = fp.backpropagation(NORMED, LOSS)


def test_evaluate_and_predict_refuse_layers_that_mix_examples():
    message = r"layers\[1\] batch_norm: it mixes the examples.* result of {}.*calibrate\(model"
    with pytest.raises(LayerError, match=message.format("evaluate")):
        fp.evaluate(NORMED_RULE, NORMED_PARAMS, (X, Y))
    with pytest.raises(LayerError, match=message.format("predict")):
        NORMED_RULE.predict(NORMED_PARAMS, X)

    def forward(params, x, key=None):
        return x - x.mean(0), None

    def backward(weights, residuals, delta, statistic=fp.gradient):
        return delta - delta.mean(0), statistic(site, None, delta)

    site = fp.Site("centred", lambda inputs, delta: (), mixes=True)
    centred = fp.serial(fp.Layer(fp.stateless, forward, backward, "centred"), MODEL)
    with pytest.raises(LayerError, match=r"layers\[0\] centred: it mixes"):
        fp.evaluate(fp.backpropagation(centred, LOSS), ((), PARAMS), (X, Y))


@pytest.mark.parametrize("kind", ["arrays", "iterable"])
def test_validation_is_of_the_model_calibrated_at_that_moment(kind):
    at = []
    data, more = (X, Y), {"batch_size": 10}
    if kind == "iterable":
        data, more = [(X[:15], Y[:15])] * 4, {"calibrate": [X[:10], X[10:20], X[20:]]}
    _, history = fp.fit(
        NORMED_RULE, optax.adam(0.05), NORMED_PARAMS, data, key=KEY, steps=4, every=2,
        validation=(X[:7], Y[:7]), scores={"accuracy": fp.accuracy},
        callback=lambda state, history: at.append(state.params), **more,
    )  # fmt: skip
    for i, params in enumerate(at):
        frozen, params = fp.calibrate(NORMED, params, [X[:10], X[10:20], X[20:]])
        rule, test = fp.backpropagation(frozen, LOSS), (X[:7], Y[:7])
        due = fp.evaluate(rule, params, test, scores={"accuracy": fp.accuracy}, batch_size=3)
        assert history["validation_loss"][i] == pytest.approx(due["loss"], rel=1e-5)
        assert history["validation_accuracy"][i] == pytest.approx(due["accuracy"])
    assert len(at) == 2


def test_experts_on_single_tokens_can_be_evaluated():
    """Their balance depends on the batch, the prediction does not."""
    model = fp.serial(fp.mixture_of_experts(3, 4), fp.pick(0), fp.dense(3))
    params = jax.jit(lambda key: model.init(key, (4,))[0])(KEY)
    rule = fp.backpropagation(model, LOSS)
    due = fp.evaluate(rule, params, (X, Y))["loss"]
    assert fp.evaluate(rule, params, (X, Y), batch_size=7)["loss"] == pytest.approx(due, rel=1e-5)
    assert jax.eval_shape(rule.predict, params, X).shape == (30, 3)


def test_validation_of_an_iterable_asks_for_batches_to_calibrate_on():
    with pytest.raises(LayerError, match="give calibrate=, batches of x"):
        fp.fit(NORMED_RULE, SGD, NORMED_PARAMS, [(X, Y)], key=KEY, validation=(X, Y))


# ----------------------------------------------------------------------------- sample weights

TOKENS = fp.serial(fp.embedding(7, 4), fp.dense(5, fp.tanh), fp.dense(7))
TOKENS_PARAMS = TOKENS.init(KEY, jax.ShapeDtypeStruct((5,), "int32"))[0]
IDS, NEXT = DRAW.integers(0, 7, (2, 6, 5)).astype(np.int32)
MASK = np.arange(5) < np.array([5, 1, 3, 0, 2, 4])[:, None]


def tokens(x, y):
    return y[1].sum(1, dtype="float32")


def token_mean(params, rows=slice(None)):
    log_p = jax.nn.log_softmax(TOKENS.apply(params, IDS[rows]))
    losses = -jnp.take_along_axis(log_p, NEXT[rows][..., None], -1)[..., 0]
    return jnp.sum(jnp.where(MASK[rows], losses, 0)) / MASK[rows].sum()


@pytest.mark.parametrize("microbatch", [None, pytest.param(2, marks=slow)])
def test_the_mean_over_all_tokens_is_one_argument(microbatch):
    rule = fp.backpropagation(TOKENS, LOSS, microbatch=microbatch)
    data, run = (IDS, (NEXT, MASK)), {"key": KEY, "steps": 1}
    value, grads = jax.jit(jax.value_and_grad(token_mean))(TOKENS_PARAMS)
    due = jax.tree.map(lambda p, g: p - 0.1 * g, *jax.device_get((TOKENS_PARAMS, grads)))
    labels = np.argmax(np.asarray(jax.jit(TOKENS.apply)(TOKENS_PARAMS, IDS)), -1)
    given = {"function": tokens, "array": MASK.sum(1).astype(np.float32)}
    step = fp.update_step(rule, SGD, sample_weight=tokens)
    state, _ = step(fp.init_state(rule, SGD, TOKENS_PARAMS, KEY), data)
    chex.assert_trees_all_close(state.params, due, rtol=1e-5, atol=1e-7)
    for weights in given.values():
        state, history = fp.fit(rule, SGD, TOKENS_PARAMS, data, sample_weight=weights, **run)
        chex.assert_trees_all_close(state.params, due, rtol=1e-5, atol=1e-7)
        assert history["loss"][0] == pytest.approx(float(value), rel=1e-5)
        for batch_size in (None, 1):  # one example has no token at all
            found = fp.evaluate(
                rule, TOKENS_PARAMS, data, sample_weight=weights, batch_size=batch_size,
                scores={"right": fp.accuracy},
            )  # fmt: skip
            assert found["loss"] == pytest.approx(float(value), rel=1e-5)
            assert found["right"] == pytest.approx(np.mean((labels == NEXT)[MASK]), rel=1e-5)
    state, history = fp.fit(
        rule, SGD, TOKENS_PARAMS, iter([data]), key=KEY, sample_weight=tokens, validation=data
    )
    chex.assert_trees_all_close(state.params, due, rtol=1e-5, atol=1e-7)
    assert history["validation_loss"][0] == pytest.approx(float(jax.jit(token_mean)(due)), rel=1e-5)


def test_weights_are_drawn_with_their_examples():
    weights = np.where(np.arange(30) < 20, 1.0, 0.0).astype(np.float32)
    poisonous = X.copy()
    poisonous[20:] = 1e3
    seen = []

    def metrics(state, batch):
        jax.debug.callback(lambda x: seen.append(x), batch[0], ordered=True)
        return {}

    _, history = fp.fit(
        RULE, optax.sgd(0.0), PARAMS, (poisonous, Y), key=KEY, epochs=1, batch_size=10,
        sample_weight=weights, metrics=metrics,
    )  # fmt: skip
    jax.effects_barrier()
    rows = {tuple(row): i for i, row in enumerate(X[:20].tolist())}
    for x, value in zip(seen, history["loss"], strict=True):
        kept = [rows[tuple(row)] for row in x.tolist() if tuple(row) in rows]
        due = fp.evaluate(RULE, PARAMS, (X[kept], Y[kept]))["loss"]
        assert value == pytest.approx(due, rel=1e-5)


def test_class_weights():
    importance = jnp.array([1.0, 5.0, 0.0])
    found = fp.evaluate(RULE, PARAMS, (X, Y), sample_weight=lambda x, y: importance[y])
    log_p = np.asarray(jax.nn.log_softmax(MODEL.apply(PARAMS, X)))[np.arange(30), Y]
    due = -np.average(log_p, weights=np.asarray(importance)[Y])
    assert found["loss"] == pytest.approx(due, rel=1e-5)
    with pytest.raises(LayerError, match="not negative, and not 0 everywhere"):
        fp.evaluate(RULE, PARAMS, (X, Y), sample_weight=lambda x, y: 0.0 * importance[y])


# ---------------------------------------------------------------------------------- meshes


@pytest.mark.parametrize("spec", [P("d"), pytest.param(P(), marks=slow)], ids=["cut", "copied"])
def test_batches_of_data_on_a_mesh_with_explicit_axes(spec):
    """jax.make_mesh gives Explicit axes; 6 of 32 rows do not fill 4 devices, 8 do."""
    x, y = np.tile(X, (2, 1))[:32], np.tile(Y, 2)[:32]
    options = {"key": KEY, "steps": 3, "batch_size": 8, "sample_weight": tilted}
    due = fp.fit(RULE, SGD, PARAMS, (x, y), validation=(x, y), **options)[1]
    scores = {"accuracy": fp.accuracy}
    evaluated = fp.evaluate(RULE, PARAMS, (x, y), scores=scores)
    mesh = jax.make_mesh((4,), ("d",), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        params = jax.device_put(PARAMS, NamedSharding(mesh, P()))
        data = jax.device_put((x, y), NamedSharding(mesh, spec))
        found = fp.fit(RULE, SGD, params, data, validation=data, **options)[1]
        np.testing.assert_allclose(found["loss"], due["loss"], rtol=1e-5)
        np.testing.assert_allclose(found["validation_loss"], due["validation_loss"], rtol=1e-5)
        for batch_size in (8, 6):
            means = fp.evaluate(RULE, params, data, scores=scores, batch_size=batch_size)
            assert means == pytest.approx(evaluated, rel=1e-5)


def tilted(x, y):
    return 1.0 + y


def test_integers_of_numpy_are_integers():
    counts = {"steps": np.int64(4), "batch_size": np.int32(8), "every": np.int16(2)}
    state, history = fp.fit(RULE, SGD, PARAMS, (X, Y), key=KEY, unroll=np.int64(2), **counts)
    assert int(state.step) == len(history["loss"]) == 4
    assert fp.evaluate(RULE, PARAMS, (X, Y), batch_size=np.int64(7))["loss"] > 0


# --------------------------------------------------------------------------- platforms


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
def test_update_steps_lower_for_every_platform(model):
    rule, optimizer = fp.backpropagation(model, LOSS), optax.adamw(1e-3)
    params, _ = model.init(KEY, (4,))
    step = fp.update_step(rule, optimizer)
    # Exported functions take raw keys only.
    state = fp.init_state(rule, optimizer, params, jax.random.PRNGKey(0))
    platforms = ("cpu", "cuda", "tpu")
    exported = jax.export.export(step, platforms=platforms)(state, (X, Y))
    assert exported.platforms == platforms
    found, _ = exported.call(state, (X, Y))
    chex.assert_trees_all_close(found.params, step(state, (X, Y))[0].params, rtol=1e-6)
