"""What all learning rules keep to: the model's masks, its places in errors, and their own state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcprop as fp
from funcprop import LayerError
from funcprop.statistics import precondition_by_kfac

CE, SGD, KEY = fp.softmax_cross_entropy(), optax.sgd(0.1), jax.random.key(1)
MODEL = fp.mlp((8, 6, 5, 3), fp.tanh)
PARAMS, _ = MODEL.init(jax.random.key(0), (8,))
X, Y = jax.random.normal(jax.random.key(2), (12, 8)), jnp.arange(12) % 3


def shapes(model, shape):
    """Those of the parameters: all that it takes to see what is refused."""
    return jax.eval_shape(lambda key: model.init(key, shape)[0], KEY)


def own(key, w):
    return w


def redrawn(key, w):
    return jnp.abs(w)


# Each rule of a model and the shape of an example, as far as it has a state.
STATEFUL = {
    "feedback_alignment": lambda m, shape: fp.feedback_alignment(m, CE),
    "sign_symmetry": lambda m, shape: fp.sign_symmetry(m, CE),
    "kolen_pollack": lambda m, shape: fp.kolen_pollack(m, CE, optax.adam(0.1)),
    "weight_mirror": lambda m, shape: fp.weight_mirror(m, CE, rate=0.1),
    "direct_feedback_alignment": lambda m, shape: fp.direct_feedback_alignment(m, CE, shape),
    "direct_random_target_projection": lambda m, shape: fp.direct_random_target_projection(
        m, CE, shape
    ),
    "indirect_feedback_alignment": lambda m, shape: fp.indirect_feedback_alignment(m, CE, shape),
    "difference_target_propagation": lambda m, shape: fp.difference_target_propagation(
        m, CE, shape, optimizer=SGD
    ),
    "greedy": lambda m, shape: fp.greedy(m, CE, shape, SGD),
    "kfac": lambda m, shape: fp.kfac(m, CE, shape),
}
SHAPED = list(STATEFUL)[4:]
BY_BLOCKS = {
    **{name: STATEFUL[name] for name in SHAPED[:5]},
    "predictive_coding": lambda m, shape: fp.predictive_coding(m, CE),
    "fixed_prediction": lambda m, shape: fp.fixed_prediction(m, CE),
    "zil": lambda m, shape: fp.zil(m, CE),
    "forward_gradient": lambda m, shape: fp.forward_gradient(m, CE, activities=True),
    "hebbian": lambda m, shape: fp.hebbian(m, CE),
}
OTHERS = {
    "evolution": lambda m, shape: fp.evolution_strategies(m, CE, pairs=2),
    "forward_gradient by weights": lambda m, shape: fp.forward_gradient(m, CE),
    "equilibrium_propagation": lambda m, shape: fp.equilibrium_propagation(m, CE),
}
EXACT = {
    "zil": BY_BLOCKS["zil"],
    "fixed_prediction": lambda m, shape: fp.fixed_prediction(m, CE, rate=1.0),
    "feedback_alignment": lambda m, shape: fp.feedback_alignment(m, CE, feedback=own),
    "sign_symmetry": lambda m, shape: fp.sign_symmetry(m, CE, magnitude=redrawn, redraw=True),
    "kolen_pollack": lambda m, shape: fp.kolen_pollack(m, CE, optax.sgd(0.0), feedback=own),
    "weight_mirror": lambda m, shape: fp.weight_mirror(m, CE, rate=1e-9, feedback=own),
    "kfac": STATEFUL["kfac"],
}
EXACT_AT_THE_END = [*SHAPED[:5], "predictive_coding"]


# ---------------------------------------------------------------------------- sample weights

WEIGHABLE = {
    "backpropagation": lambda m, shape: fp.backpropagation(m, CE, microbatch=2),
    **STATEFUL,
    **BY_BLOCKS,
    **OTHERS,
    "oja": lambda m, shape: fp.hebbian(m, CE, oja=True),
}
# The same for any batch; of forward_gradient a direction in which the loss is not flat.
DRAWING = {"evolution": KEY, "forward_gradient by weights": jax.random.key(2)}


@pytest.mark.parametrize("name", WEIGHABLE)
def test_an_example_of_weight_0_is_left_out(name):
    """Weighted, the batch with four more examples that count nothing is the batch without them."""
    rule, key = WEIGHABLE[name](MODEL, (8,)), DRAWING.get(name)
    weights = np.where(np.arange(12) < 8, 3.0, 0.0).astype(np.float32)

    @jax.jit
    def both(params, weights, x, y):
        state = rule.init(KEY, params)
        return (
            rule.estimate(params, state, x, y, key, sample_weight=weights),
            rule.estimate(params, state, x[:8], y[:8], key),
        )

    found, due = both(PARAMS, weights, np.where(weights[:, None] > 0, X, 100.0), Y)
    fp.compare(found, due, leaf_bound=512, whole_bound=64).assert_ok()


def test_weighted_rules_that_are_exact_are_weighted_backprop():
    rules = {name: make(MODEL, (8,)) for name, make in EXACT.items()}
    rules["automatic"] = fp.checking.automatic(MODEL, CE)

    @jax.jit
    def run(params, weights):
        return {
            name: rule.estimate(params, rule.init(KEY, params), X, Y, KEY, sample_weight=weights)
            for name, rule in rules.items()
        }, fp.value_and_backprop(MODEL, CE)(params, X, Y, sample_weight=weights)

    found, due = run(PARAMS, np.arange(12, dtype=np.float32))
    for name, (value, tree, _) in found.items():
        fp.compare((value, tree), due, title=name, leaf_bound=512, whole_bound=64).assert_ok()


def test_forward_forward_weighs_true_and_wrong_labels_alike():
    model = fp.serial(fp.dense(6, fp.relu), fp.dense(5, fp.relu))
    estimate = fp.forward_forward(model, classes=3).estimate

    @jax.jit
    def both(weights):
        params, _ = model.init(KEY, (8 + 3,))
        return (
            estimate(params, (), X, Y, None, sample_weight=weights),
            estimate(params, (), X[:8], Y[:8], None),
        )

    fp.compare(*both(np.where(np.arange(12) < 8, 1.0, 0.0).astype(np.float32))).assert_ok()


# ------------------------------------------------------------------------- without a key


@pytest.mark.parametrize("name", ["backpropagation", "kfac", "equilibrium_propagation"])
def test_validation_and_evaluation_need_no_key(name):
    rule = WEIGHABLE[name](MODEL, (8,))
    state, history = fp.fit(
        rule, optax.sgd(0.0), PARAMS, (X, Y), key=KEY, steps=1, validation=(X[:5], Y[:5])
    )
    found = fp.evaluate(rule, PARAMS, (X[:5], Y[:5]), rule_state=state.rule_state)
    assert history["validation_loss"] == [found["loss"]]
    if rule.loss is not None:
        due = jnp.mean(CE.apply((), (MODEL.apply(PARAMS, X[:5]), Y[:5])))
        assert found["loss"] == pytest.approx(float(due), rel=1e-5)


# ------------------------------------------------------------------------------------ masks

DROPPING = fp.serial(
    *(fp.dropout(0.2), fp.dense(9, fp.tanh), fp.dropout(0.5)),
    *(fp.dense(7, fp.tanh), fp.dropout(0.5), fp.dense(3)),
)
DROPPING_PARAMS, _ = DROPPING.init(jax.random.key(0), (8,))


def told(rule, model, params, feedback=None):
    """What ``alignment`` and the rule say of one step."""
    metrics = fp.alignment(rule, model, CE, feedback=feedback)
    state = fp.init_state(rule, SGD, params, KEY)
    return jax.device_get(fp.update_step(rule, SGD, metrics)(state, (X, Y))[1])


# Those that replace the weights do so in one place.
ALIKE = ("feedback_alignment", "sign_symmetry", "kolen_pollack")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ALIKE else ()) for n in EXACT]
)
def test_with_dropout_the_gradient_sees_the_same_masks(name):
    """``alignment`` and the rule draw the same: rules that are exact have no angle."""
    found = told(EXACT[name](DROPPING, (8,)), DROPPING, DROPPING_PARAMS)
    assert found["angle"] < 0.1
    np.testing.assert_allclose(found["ratio"], 1, atol=1e-4)


@pytest.mark.parametrize("name", EXACT_AT_THE_END)
def test_with_dropout_the_last_block_is_exact(name):
    rule = {**STATEFUL, **BY_BLOCKS}[name](DROPPING, (8,))
    found = told(rule, DROPPING, DROPPING_PARAMS)
    if name == "predictive_coding":  # its input has settled, but masks are those of the value
        backprop = fp.backpropagation(DROPPING, CE)
        due = fp.update_step(backprop, SGD)(
            fp.init_state(backprop, SGD, DROPPING_PARAMS, KEY), (X, Y)
        )[1]
        np.testing.assert_allclose(found["loss"], due["loss"], rtol=1e-5)
    else:
        assert found[f"angle layers[{len(DROPPING.parts) - 1}]"] < 0.1
        assert found["angle"] > 1


def test_with_dropout_the_value_is_that_of_backprop():
    names = ["forward_gradient", "forward_gradient by weights", "evolution"]
    rules = [{**BY_BLOCKS, **OTHERS}[name](DROPPING, (8,)) for name in names]
    rules.append(fp.backpropagation(DROPPING, CE))
    *found, due = jax.jit(
        lambda params: [rule.estimate(params, (), X, Y, KEY)[0] for rule in rules]
    )(DROPPING_PARAMS)
    np.testing.assert_allclose(found, np.full(3, due), rtol=1e-5)


def test_what_a_rule_draws_is_not_what_the_model_draws():
    """The noise of a population, and of feedback networks, comes from a key of its own."""
    from funcprop.learning.state import own_key

    drawn = [jax.random.key_data(k).tolist() for k in jax.random.split(KEY, 1000)]
    assert jax.random.key_data(own_key(KEY)).tolist() not in drawn


# ------------------------------------------------------------------------------------ places


@pytest.mark.parametrize("name", BY_BLOCKS)
def test_errors_name_the_places_of_the_model(name):
    """Not those within a block: the third layer is layers[2] whatever cuts the model."""
    model = fp.serial(fp.dense(6), fp.relu, fp.dense(5), fp.tanh, fp.dense(3))
    params = shapes(model, (8,))
    rule = BY_BLOCKS[name](model, (8,))
    state = jax.eval_shape(rule.init, KEY, params)
    wrong = (*params[:2], {"w": jnp.ones((5, 4)), "b": jnp.ones(5)}, *params[3:])
    with pytest.raises(LayerError, match=r"^layers\[2\] dense: x has 6 features.*take 4"):
        jax.eval_shape(rule.estimate, wrong, state, X, Y, KEY)
    with pytest.raises(LayerError, match=r"serial: params has 4 entries, a tuple of 5 is due"):
        jax.eval_shape(rule.estimate, params[1:], state, X, Y, KEY)


@pytest.mark.parametrize("name", ["forward_gradient", "hebbian"])
def test_refusals_name_the_places_of_the_model(name):
    model = fp.serial(fp.dense(6, fp.relu), fp.dense(6, fp.relu), fp.batch_norm(), fp.dense(3))
    with pytest.raises(LayerError, match=r"^layers\[2\] batch_norm: "):
        jax.eval_shape(BY_BLOCKS[name](model, (8,)).estimate, shapes(model, (8,)), (), X, Y, KEY)


@pytest.mark.parametrize("part", [fp.layer_norm(), fp.batch_norm(), fp.residual(fp.dense(6))])
def test_indirect_feedback_refuses_what_is_not_dense(part):
    due = rf"^layers\[1\] {part.name}: indirect_feedback_alignment passes through dense.*take d"
    for model in (
        fp.serial(fp.dense(6), part, fp.tanh, fp.dense(3)),
        fp.serial(fp.dense(6), fp.serial(part, fp.tanh)._replace(name=part.name), fp.dense(3)),
    ):
        with pytest.raises(LayerError, match=due):
            jax.eval_shape(
                fp.indirect_feedback_alignment(model, CE, (8,)).init, KEY, shapes(model, (8,))
            )


# ------------------------------------------------------------------------------------ states


@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_that_is_not_due_is_refused(name):
    rule = STATEFUL[name](MODEL, (8,))
    state = jax.eval_shape(rule.init, KEY, PARAMS)

    def evaluate(**more):
        return fp.evaluate(rule, PARAMS, (X, Y), **more)

    advice = "take it from the rule's init; evaluate takes it as rule_state=state.rule_state"
    with pytest.raises(LayerError, match=rf"^{name}: rule_state is \(\), .* is due; {advice}"):
        evaluate()
    with pytest.raises(LayerError, match=rf"^{name}: rule_state is \(float32\[1\],\), .* is due"):
        evaluate(rule_state=(jnp.ones(1),))
    turned = jax.tree.map(lambda leaf: np.zeros(leaf.shape[::-1], leaf.dtype), state)
    if name != "kfac":  # whose factors are square
        shapes = r"is float32\[(\d), (\d)\], float32\[\2, \1\] is due"
        with pytest.raises(LayerError, match=rf"^{name}: rule_state\S* {shapes}"):
            evaluate(rule_state=turned)
    half = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float16), state)
    with pytest.raises(LayerError, match=rf"^{name}: rule_state\S* is float16"):
        evaluate(rule_state=half)


def test_what_alignment_compares_is_checked():
    rule = STATEFUL["kolen_pollack"](MODEL, (8,))
    with pytest.raises(LayerError, match=r"^alignment: feedback is KolenPollackState.* is due"):
        told(rule, MODEL, PARAMS, lambda state: state)
    with pytest.raises(LayerError, match=r"^alignment: feedback\[0\]\['w'\] is float32\[8, 6\]"):
        told(rule, MODEL, PARAMS, lambda state: jax.tree.map(jnp.transpose, state.feedback))
    hidden = fp.serial(fp.dense(6, fp.relu), fp.dense(5, fp.relu))
    params, _ = hidden.init(jax.random.key(0), (11,))
    with pytest.raises(LayerError, match=r"^alignment: the model itself cannot be run on the b"):
        told(fp.forward_forward(hidden, 3), hidden, params)


# ------------------------------------------------------------------------- shapes and dtypes


@pytest.mark.parametrize("name", {**STATEFUL, **BY_BLOCKS, **OTHERS})
def test_bfloat16(name):
    """The shape of an example says no dtype: it is that of the parameters."""
    rule = {**STATEFUL, **BY_BLOCKS, **OTHERS}[name](MODEL, (8,))
    half = jnp.bfloat16
    params = jax.tree.map(lambda leaf: leaf.astype(half), PARAMS)

    def run(params, x):
        state = rule.init(KEY, params)
        return rule.estimate(params, state, x, Y, KEY)[:2]

    value, tree = jax.eval_shape(run, params, X.astype(half))
    assert {leaf.dtype for leaf in jax.tree.leaves((value, tree))} == {jnp.dtype(half)}


@pytest.mark.parametrize("name", SHAPED)
def test_the_shape_of_an_example(name):
    with pytest.raises(LayerError, match=rf"^{name}: shape is 8; it must be a tuple; write \(8,\)"):
        STATEFUL[name](MODEL, 8)
    with pytest.raises(
        LayerError,
        match=rf"^{name}: shape is .*; sizes must be|{name}: shape is .*; it must be a tuple",
    ):
        STATEFUL[name](MODEL, SGD)
    if name in ("greedy", "kfac"):  # whose state is the same for it
        return
    rule = STATEFUL[name](MODEL, (12, 8))
    with pytest.raises(LayerError, match=rf"^{name}: .* shape \(8,\), .* for shape \(12, 8\)"):
        jax.eval_shape(
            lambda params: rule.estimate(params, rule.init(KEY, params), X, Y, None), PARAMS
        )


# ------------------------------------------------------------------------------- optimisers


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "weight_mirror" else pytest.mark.slow)
        for name in STATEFUL
    ],
)
def test_line_searches_serve_rules_with_a_state(name):
    """optax's line search refuses arguments that it does not know, and the state is one."""
    rule, optimizer = STATEFUL[name](MODEL, (8,)), optax.lbfgs()
    if name != "weight_mirror":  # a search that takes less time to compile
        search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=15)
        before = precondition_by_kfac(1.0) if name == "kfac" else optax.identity()
        optimizer = optax.chain(before, optax.scale(-1.0), search)
    _, history = fp.fit(rule, optimizer, PARAMS, (X, Y), key=KEY, steps=8)
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize("name", ["kolen_pollack", "difference_target_propagation", "greedy"])
def test_optimisers_of_a_rules_own(name):
    make = {
        "kolen_pollack": lambda o: fp.kolen_pollack(MODEL, CE, o),
        "difference_target_propagation": lambda o: fp.difference_target_propagation(
            MODEL, CE, (8,), optimizer=o
        ),
        "greedy": lambda o: fp.greedy(MODEL, CE, (8,), o),
    }[name]
    with pytest.raises(LayerError, match=rf"^{name}: optimizer is 0.1, an optax transformation"):
        make(0.1)
    rule = make(optax.lbfgs())
    with pytest.raises(LayerError, match=rf"^{name}: its own optimizer needs more than a gradien"):
        jax.eval_shape(
            lambda params: rule.estimate(params, rule.init(KEY, params), X, Y, KEY), PARAMS
        )
