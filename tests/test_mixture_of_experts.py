"""Mixtures of experts: all experts on all tokens, ties, no mixing of examples; auxiliary losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funcprop as fp
from funcprop.checking import automatic
from funcprop.layers import routing
from tests.drawing import params_of

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)


def swept(layer, params, x, delta):
    y, residuals = layer.forward(params, x)
    return y, *layer.backward(params, residuals, delta)


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def sweep(layer):
    return jax.jit(functools.partial(swept, layer))


def everywhere(params, x, chosen, activation, gated=False):
    """All experts on all tokens (B, T, n), written from the equations."""
    up, down = params["up"], params["down"]
    s = x @ params["router"]["w"].T
    top, ids = jax.lax.top_k(s, chosen)
    one_hot = jax.nn.one_hot(ids, s.shape[-1], dtype=x.dtype)
    gates = jnp.sum(one_hot * jax.nn.softmax(top)[..., None], axis=-2)
    z = jnp.einsum("btn,emn->btem", x, up["w"]) + up["b"]
    if gated:
        first, second = jnp.split(z, 2, axis=-1)
        h = activation(first) * second
    else:
        h = activation(z)
    o = jnp.einsum("btem,enm->bten", h, down["w"]) + down["b"]
    spread = one_hot.mean((1, 2)) * jax.nn.softmax(s).mean(1)
    return jnp.einsum("bten,bte->btn", o, gates), s.shape[-1] * spread.sum(-1)


@settings(deadline=None, derandomize=True, max_examples=3)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 9),
    experts=st.integers(2, 5),
    chosen=st.integers(1, 2),
    gated=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_is_all_experts_on_all_tokens(batch, tokens, experts, chosen, gated, seed):
    with jax.enable_x64(True):
        draw = np.random.default_rng(seed)
        layer = fp.mixture_of_experts(experts, 3, chosen=chosen, activation=fp.silu, gated=gated)
        params = params_of(layer, (tokens, 2), seed, "float64")
        x, before, delta = (draw.normal(size=s) for s in ((batch, tokens, 2), batch, batch))
        delta = (draw.normal(size=x.shape), delta)

        def reference(params, x):
            y, balance = everywhere(params, x[0], chosen, jax.nn.silu, gated)
            return y, balance + x[1]

        @jax.jit
        def both(params, x, delta):
            y, pullback = jax.vjp(reference, params, x)
            found, delta_x, grads = swept(layer, params, x, delta)
            return (found, grads, delta_x), (y, *pullback(delta))

        found, due = both(params, (x, before), delta)
        for ours, theirs in zip(*map(jax.tree.leaves, (found, due)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


blocks_of = jax.jit(routing.blocks_of, static_argnums=1)


@pytest.mark.parametrize("fall", ["evenly", "on one", "on the last", "at random"])
@pytest.mark.parametrize(("n", "experts"), [(3, 5), (40, 3), (700, 4)])
def test_every_pair_stands_in_a_block_of_its_expert_once(n, experts, fall):
    number = np.arange(n)
    ids = {
        "evenly": number % experts,
        "on one": 0 * number,
        "on the last": 0 * number + experts - 1,
        "at random": np.random.default_rng(0).integers(0, experts, n),
    }[fall]
    expert, pair, place = map(np.asarray, blocks_of(ids.astype(np.int32), experts))
    found = [(p, e) for e, row in zip(expert, pair, strict=True) for p in row if p < n]
    assert sorted(found) == list(enumerate(ids))
    np.testing.assert_array_equal(pair.ravel()[place], number)
    assert pair.size < n + experts * pair.shape[1]  # no more rows than the last blocks leave empty


def test_at_a_tie_the_first_experts_are_chosen_and_none_is_full():
    layer = fp.mixture_of_experts(4, 3, activation=fp.tanh)
    params = params_of(layer, (50, 2))
    params["router"]["w"] = np.zeros_like(params["router"]["w"])
    x = normal(2, 50, 2)
    y, balance = jax.jit(layer.apply)(params, x)
    up, down = params["up"], params["down"]
    each = [np.tanh(x @ up["w"][e].T + up["b"][e]) @ down["w"][e].T + down["b"][e] for e in (0, 1)]
    np.testing.assert_allclose(y, (each[0] + each[1]) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(balance, 1, rtol=1e-6)


def test_the_balance_is_e_where_all_tokens_go_to_one():
    layer = fp.mixture_of_experts(4, 3, chosen=1)
    params = params_of(layer, (6, 2))
    params["router"]["w"] = np.float32([[0], [0], [100], [0]]).repeat(2, axis=1)
    np.testing.assert_allclose(jax.jit(layer.apply)(params, jnp.ones((3, 6, 2)))[1], 4, rtol=1e-6)


def test_of_one_gated_expert_it_is_swiglu():
    layer, plain = (
        fp.mixture_of_experts(1, 5, chosen=1, activation=fp.silu, gated=True),
        fp.swiglu(5),
    )
    params = params_of(layer, (7, 3))
    x, delta = normal(2, 2, 7, 3)
    own = {
        name: jax.tree.map(lambda leaf: leaf[0], params[mine])
        for name, mine in (("in", "up"), ("out", "down"))
    }
    (y, balance), delta_x, grads = sweep(layer)(params, x, (delta, np.zeros(2, np.float32)))
    due, due_x, due_grads = sweep(plain)(own, x, delta)
    grads = {"in": grads["up"], "out": grads["down"]}
    fp.compare(
        (y, delta_x, grads), (due, due_x, jax.tree.map(lambda leaf: leaf[None], due_grads))
    ).assert_ok()
    assert balance.tolist() == [1, 1]


# ------------------------------------------------------------- what counts in the balance

COUNTED = fp.mixture_of_experts(3, 4, activation=fp.tanh)
EPS = jnp.finfo(jnp.float32).eps


@jax.jit
def counted(params, x, delta):
    """y and its companions, and what a delta of the balance alone gives for x and the router."""
    y, residuals = COUNTED.forward(params, x)
    nothing, between = jnp.zeros_like(y[0]), (None,) * (len(y) - 2)
    delta_x, grads = COUNTED.backward(params, residuals, (nothing, *between, delta))
    return y, delta_x, grads["router"]["w"]


@jax.jit
def spread(router, x, delta):
    """The balance of the tokens x (T, n), from the equations, and its deltas."""

    def balance(router, x):
        s = x @ router.T
        _, ids = jax.lax.top_k(s, 2)
        return 3 * jnp.sum(jax.nn.one_hot(ids, 3).mean((0, 1)) * jax.nn.softmax(s).mean(0))

    due, pullback = jax.vjp(balance, router, x)
    return due, *pullback(delta)


def test_the_balance_of_a_masked_input_is_that_of_its_real_tokens():
    params, x = params_of(COUNTED, (6, 2)), normal(3, 6, 2)
    mask = np.array([[True, False, True, True, False, True], [False] * 6, [True] * 6])
    x[~mask] = 30.0  # padding may be far out: all of it goes to the same experts
    delta = np.float32([2.0, 3.0, -1.0])
    (_, beside, balance), (delta_x, none), grads = counted(params, (x, mask), delta)
    assert none is None
    np.testing.assert_array_equal(beside, mask)
    assert balance[1] == 0
    balance, delta_x = jax.device_get((balance, delta_x))
    assert not delta_x[~mask].any()
    total = 0
    for i in (0, 2):
        due, by_router, by_x = spread(params["router"]["w"], x[i, mask[i]], delta[i])
        np.testing.assert_allclose(balance[i], due, rtol=8 * EPS)
        np.testing.assert_allclose(delta_x[i, mask[i]], by_x, atol=16 * EPS)
        total = total + by_router
    np.testing.assert_allclose(grads, total, atol=64 * EPS)


def test_of_examples_of_one_token_the_balance_is_that_of_all_of_them():
    params, x, before = params_of(COUNTED, (2,)), normal(5, 2), np.arange(5, dtype=np.float32)
    mask, delta = np.array([True, True, False, True, True]), np.float32([1.0, -3.0, 2.0, 0.5, 4.0])
    (_, _, balance), (delta_x, _, again), grads = counted(params, (x, mask, before), delta)
    due, by_router, by_x = spread(params["router"]["w"], x[mask], delta.sum())
    delta_x = jax.device_get(delta_x)
    np.testing.assert_allclose(balance, due + before, rtol=8 * EPS)
    np.testing.assert_allclose(delta_x[mask], by_x, atol=16 * EPS)
    assert not delta_x[2].any()
    np.testing.assert_array_equal(again, delta)
    np.testing.assert_allclose(grads, by_router, atol=64 * EPS)


# ------------------------------------------------------------------------- whole models

TOKENS = (5, 4)


def model():
    def block(*norm):
        return fp.residual(fp.serial(*norm, fp.mixture_of_experts(3, 6, activation=fp.tanh)))

    deeper = fp.repeat(fp.remat(block(fp.on(0, fp.layer_norm()))), 2)
    head = fp.on(0, fp.serial(fp.flatten, fp.dense(3)))
    return fp.serial(block(), deeper, head)


LOSS = fp.auxiliary(fp.softmax_cross_entropy(), 0.1)


@functools.cache
def drawn():
    x = normal(12, *TOKENS)
    y = np.argmax(x[:, 0, :3], axis=-1).astype(np.int32)
    return params_of(model(), TOKENS), x, y


def test_a_model_with_its_balances():
    params, x, y = drawn()
    fp.check_model(model(), params, x, y, LOSS).assert_ok()

    @jax.jit
    def run(params, x, y):
        prediction, balance = model().apply(params, x)
        plain = fp.softmax_cross_entropy().apply((), (prediction, y))
        return prediction, balance, plain, LOSS.apply((), ((prediction, balance), y))

    prediction, balance, plain, losses = jax.device_get(run(params, x, y))
    assert prediction.shape == (12, 3)
    assert np.all(balance > 3 * 0.5)  # three layers have added theirs
    np.testing.assert_allclose(losses, plain + 0.1 * balance, rtol=1e-5)
    right = np.argmax(prediction, -1) == y
    np.testing.assert_array_equal(fp.accuracy((prediction, balance), y), right)


@pytest.mark.slow
def test_a_model_with_its_balances_trains_as_with_jax_grad():
    _, x, y = drawn()
    params, _ = model().init(KEY, TOKENS)
    with jax.numpy_dtype_promotion("standard"):
        ours, theirs = (
            fp.fit(
                rule(model(), LOSS), optax.adam(1e-2), params, (x, y), key=KEY, steps=40, every=40
            )[1]
            for rule in (fp.backpropagation, automatic)
        )
    np.testing.assert_allclose(ours["loss"][:20], theirs["loss"][:20], rtol=1e-4)
    assert ours["loss"][-1] < 0.7 * ours["loss"][0]
    value = jnp.mean(LOSS.apply((), (model().apply(params, x), y)))
    assert ours["loss"][0] == pytest.approx(float(value), rel=1e-5)


def test_transformer_blocks_of_experts_pass_mask_and_balance_on():
    def block():
        return fp.transformer_block(2, experts=fp.mixture_of_experts(3, 6, activation=fp.tanh))

    model = fp.serial(block(), fp.repeat(block(), 2), fp.on(0, fp.dense(3)), fp.pick(0, 2))
    mask = np.arange(5) < np.array([[5], [3]])
    shape = (jax.ShapeDtypeStruct((5, 4), "float32"), jax.ShapeDtypeStruct((5,), bool))
    out = jax.eval_shape(lambda: [jnp.zeros(leaf.shape) for leaf in model.init(KEY, shape)[1]])
    assert [leaf.shape for leaf in out] == [(5, 3), ()]
    params = params_of(model, shape)
    x, y = normal(2, 5, 4), np.array([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]], np.int32)
    fp.check_model(model, params, (x, mask), (y, mask), LOSS).assert_ok()
    prediction, balance = jax.jit(model.apply)(params, (x, mask))
    short, own = jax.jit(model.apply)(params, (x[1:, :3], mask[1:, :3]))
    np.testing.assert_allclose(balance[1:], own, rtol=64 * EPS)
    np.testing.assert_allclose(prediction[1:, :3], short, atol=256 * EPS)


def test_examples_do_not_mix():
    """Per-example gradients are those of batches of one example, and nobody sees a neighbour."""
    layer = fp.mixture_of_experts(3, 6, activation=fp.tanh)
    params, x, _ = drawn()
    own = params[0][0]
    delta = (x[::-1], np.arange(12, dtype=np.float32))

    def each(site, inputs, delta):
        def one(inputs, delta):
            return site.gradient(*jax.tree.map(lambda leaf: leaf[None], (inputs, delta)))

        return jax.vmap(one)(inputs, delta)

    @jax.jit
    def together(own, x, delta):
        y, residuals = layer.forward(own, x)
        return y, *layer.backward(own, residuals, delta, each)

    @jax.jit
    def alone(own, x, delta):
        def one(x, delta):
            first = jax.tree.map(lambda leaf: leaf[None], (x, delta))
            y, delta_x, grads = swept(layer, own, *first)
            return jax.tree.map(lambda leaf: leaf[0], (y, delta_x)), grads

        (y, delta_x), grads = jax.lax.map(lambda pair: one(*pair), (x, delta))
        return y, delta_x, grads

    found = together(own, x, delta)
    fp.compare(found, alone(own, x, delta)).assert_ok()
    far = x.copy()
    far[3] = 7.0
    other = together(own, far, delta)
    for ours, theirs in zip(found[0], other[0], strict=True):
        np.testing.assert_array_equal(np.delete(ours, 3, 0), np.delete(theirs, 3, 0))


# ---------------------------------------------------------------------------- auxiliary


def test_the_curvature_of_what_is_beside_is_0():
    prediction, target = (jax.random.normal(KEY, (4, 5)), jnp.ones(4)), jnp.array([0, 4, 2, 2])
    plain = fp.softmax_cross_entropy()
    _, residuals = LOSS.forward((), (prediction, target))
    _, own = plain.forward((), (prediction[0], target))
    root, beside = LOSS.root(residuals)
    np.testing.assert_array_equal(root, plain.root(own))
    assert beside.shape == (len(root), 4)
    assert not beside.any()
    drawn, beside = LOSS.sample(KEY, residuals)
    np.testing.assert_array_equal(drawn, plain.sample(KEY, own))
    assert beside.tolist() == [0] * 4


def test_of_a_loss_with_parameters():
    loss = fp.auxiliary(fp.linear_cross_entropy(7, chunk=3), 0.3)
    both = fp.mixture_of_experts(3, 4)
    x, y = normal(6, 5), np.arange(6, dtype=np.int32)
    shape = jax.eval_shape(lambda: ((x[0], x[0, 0]), y[0]))
    params = (params_of(both, (5,)), params_of(loss, shape))
    assert params[1]["w"].shape == (3, 3, 5)
    ours = fp.value_and_backprop(both, loss)
    reference = automatic(both, loss).estimate
    fp.compare(ours, lambda *a: reference(a[0], (), *a[1:], None)[:2], params, x, y).assert_ok()


def routed(m):
    """A layer of the routed maps alone: of twenty tokens the odd ones through the second of two."""
    ids = jnp.arange(20).reshape(4, 5, 1) % 2
    site = fp.Site("routed", functools.partial(m.gradients, 2))

    def init(key, shape):
        return {"w": jax.random.normal(key, (2, 3, 2)), "b": jnp.zeros((2, 3))}, (5, 1, 3)

    def forward(params, x, key=None):
        return m.mapped(x, ids, params), x

    def backward(weights, x, delta, statistic=fp.gradient):
        delta_x = m.transported(delta, ids, weights["w"])[:, :, 0]
        return delta_x, statistic(site, (x, ids), delta)

    return fp.Layer(init, forward, backward, "routed")
