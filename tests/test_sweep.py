"""value_and_backprop: weights of examples, micro-batches, feedback weights, parametric losses."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import funcprop as fp
from funcprop import LayerError, compare

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)
SIZES = (4, 6, 3)
MODEL = fp.mlp(SIZES, fp.tanh)
PARAMS = fp.init(KEY, SIZES)
X = np.random.default_rng(1).normal(size=(12, 4)).astype("float32")
Y = np.random.default_rng(2).integers(0, 3, 12, dtype=np.int32)
WEIGHTS = np.random.default_rng(3).uniform(size=12).astype("float32")
LOSS = fp.softmax_cross_entropy()
SWEEP = fp.value_and_backprop(MODEL, LOSS)
run = jax.jit(SWEEP, static_argnames="microbatch")


@jax.jit
@jax.value_and_grad
def weighted(params, weights):
    losses = LOSS.apply((), (MODEL.apply(params, X), Y))
    return jnp.sum(losses * weights) / jnp.sum(weights)


def test_it_is_value_and_grad():
    compare(run(PARAMS, X, Y), weighted(PARAMS, np.ones(12, np.float32))).assert_ok()


def test_weights_that_are_no_weights_give_nan_under_a_trace():
    negative, alone = np.ones(12, np.float32), np.zeros(12, np.float32)
    negative[3] = -0.5
    for weights in (negative, alone, np.full(12, np.inf, np.float32)):
        found = run(PARAMS, X, Y, sample_weight=weights)
        assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(found))
    alone[5] = 2.0  # all micro-batches but one weigh nothing
    due = run(PARAMS, X[5:6], Y[5:6])
    for microbatch in (None, 4):
        found = run(PARAMS, X, Y, sample_weight=alone, microbatch=microbatch)
        compare(found, due).assert_ok()


def test_weights_of_a_shard_may_all_be_0():
    """Under shard_map the devices' values and gradients are parts of one weighted mean."""
    kinds = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((4,), ("d",), kinds, devices=jax.devices()[:4])
    weights = np.arange(12, dtype=np.float32)
    weights[6:] = 0  # two devices of four have some

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P(), P("d"), P("d"), P("d")), out_specs=P()
    )
    def parallel(params, x, y, weights):
        value, grads = SWEEP(params, x, y, sample_weight=weights)
        return jax.lax.pmean(value, "d"), jax.tree.map(lambda leaf: leaf / 4, grads)

    found = parallel(PARAMS, X, Y, weights)
    compare(found, run(PARAMS, X, Y, sample_weight=weights)).assert_ok()


def test_one_micro_batch_without_jit():
    due = run(PARAMS, X, Y)
    with jax.disable_jit():
        compare(SWEEP(PARAMS, X, Y, microbatch=12), due).assert_ok()


def test_sample_weight():
    due = weighted(PARAMS, WEIGHTS)
    compare(run(PARAMS, X, Y, sample_weight=WEIGHTS), due).assert_ok()
    # What counts is their ratio; an example of weight 0 may as well not be there.
    compare(run(PARAMS, X, Y, sample_weight=7 * WEIGHTS), due).assert_ok()
    some = np.float32(np.arange(12) < 5)
    compare(run(PARAMS, X, Y, sample_weight=some), run(PARAMS, X[:5], Y[:5])).assert_ok()


@pytest.mark.parametrize("microbatch", [1, 4, 12])
def test_microbatches_add_up_to_the_batch(microbatch):
    for given in (None, WEIGHTS):
        due = run(PARAMS, X, Y, sample_weight=given)
        found = run(PARAMS, X, Y, sample_weight=given, microbatch=microbatch)
        compare(found, due).assert_ok()


def test_microbatches_of_bfloat16_are_added_in_float32():
    """Sixteen thousand equal terms: a bfloat16 sum would stop growing at 256 of them."""
    model = fp.affine(1, w_init=jax.nn.initializers.ones)
    params = {"w": jnp.ones((1, 1), jnp.bfloat16), "b": jnp.zeros(1, jnp.bfloat16)}
    n = 2048
    x, y = jnp.ones((n, 1), jnp.bfloat16), jnp.zeros((n, 1), jnp.bfloat16)
    sweep = fp.value_and_backprop(model, fp.mean_squared_error)
    value, grads = jax.jit(sweep, static_argnames="microbatch")(params, x, y, microbatch=1)
    assert value == 1
    assert grads["w"] == 2
    assert grads["w"].dtype == value.dtype == jnp.bfloat16


def test_microbatches_save_memory():
    model = fp.mlp((64, 256, 256, 10), fp.gelu)
    params, _ = model.init(KEY, (64,))
    x, y = jnp.ones((1024, 64)), jnp.zeros(1024, jnp.int32)
    sweep = fp.value_and_backprop(model, LOSS)

    def temporary(microbatch):
        run = jax.jit(lambda p, x, y: sweep(p, x, y, microbatch=microbatch))
        return run.lower(params, x, y).compile().memory_analysis().temp_size_in_bytes

    assert temporary(64) < 0.5 * temporary(None)


def test_other_weights_carry_the_error():
    """Feedback alignment with B = W is backprop, and with another B the first layer alone moves."""
    others = fp.init(jax.random.key(9), SIZES)
    value, grads = run(PARAMS, X, Y)
    same = run(PARAMS, X, Y, weights=PARAMS)
    chex.assert_trees_all_equal(same, (value, grads))
    fed_value, fed = run(PARAMS, X, Y, weights=others)
    assert fed_value == value
    chex.assert_trees_all_equal(fed[1], grads[1])
    assert not np.allclose(fed[0]["w"], grads[0]["w"])
    # By hand: δ¹ = (δ² B²) ⊙ σ′.
    h = jnp.tanh(X @ PARAMS[0]["w"].T + PARAMS[0]["b"])
    p = jax.nn.softmax(h @ PARAMS[1]["w"].T + PARAMS[1]["b"])
    delta = (p - jax.nn.one_hot(Y, 3)) / 12
    hidden = (delta @ others[1]["w"]) * (1 - h * h)
    np.testing.assert_allclose(fed[0]["w"], hidden.T @ X, rtol=1e-4, atol=1e-6)


def test_a_statistic_takes_the_gradient_s_place():
    """Here the size of delta at every site."""
    sweep = fp.value_and_backprop(MODEL, LOSS, lambda site, inputs, delta: jnp.abs(delta).sum())
    _, sizes = jax.jit(sweep)(PARAMS, X, Y)
    assert [size.shape for size in sizes] == [(), ()]
    h = MODEL.apply(PARAMS, X)
    due = jnp.abs(jax.nn.softmax(h) - jax.nn.one_hot(Y, 3)).sum() / 12
    assert sizes[1] == pytest.approx(float(due), rel=1e-5)


def parametric_loss():
    """Squared error after a learnt scale: a loss with parameters of its own."""

    def forward(scale, x, key=None):
        prediction, target = x
        r = scale * prediction - target
        return jnp.sum(r * r, -1), (prediction, r)

    site = fp.Site("scale", lambda p, d: jnp.sum(p * d))

    def backward(scale, residuals, delta, statistic=fp.gradient):
        prediction, r = residuals
        slope = 2 * r * delta[:, None]
        return (scale * slope, -slope), statistic(site, prediction, slope)

    return fp.Loss(lambda key, shape: (jnp.ones(()), ()), forward, backward, None, None, "scaled")


def test_a_loss_with_parameters():
    loss, y = parametric_loss(), jnp.ones((12, 3))
    params = (PARAMS, jnp.array(1.5))

    def value(params):
        return jnp.mean(loss.apply(params[1], (MODEL.apply(params[0], X), y)))

    found = jax.jit(fp.value_and_backprop(MODEL, loss))(params, X, y)
    compare(found, jax.jit(jax.value_and_grad(value))(params)).assert_ok()
    with pytest.raises(LayerError, match="scaled has parameters, so params must be the pair"):
        fp.value_and_backprop(MODEL, loss)(jnp.array(1.5), X, y)


def test_numpy_arrays_are_taken_as_jit_takes_them():
    x, y = np.asarray(X, np.float64), np.asarray(Y, np.int64)
    compare(SWEEP(PARAMS, x, y), run(PARAMS, X, Y)).assert_ok()
