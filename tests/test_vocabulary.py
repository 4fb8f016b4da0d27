"""linear_cross_entropy: the loss and gradient of whole logits, in a part of their memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import funcprop as fp
from funcprop import LayerError, compare, linear_cross_entropy
from tests.drawing import params_of

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)


def inputs(loss, shape, vocab, seed=0):
    draw = np.random.default_rng(seed)
    h = draw.normal(size=shape).astype("float32")
    target = draw.integers(0, vocab, shape[:-1], dtype=np.int32)
    one = jax.eval_shape(lambda h, target: (h[0], target[0]), h, target)
    return params_of(loss, one, seed), h, target


@functools.partial(jax.jit, static_argnums=0)
def swept(loss, params, h, target):
    """losses, (delta by the prediction, delta by the target), gradient."""
    losses, residuals = loss.forward(params, (h, target))
    delta = jnp.full(losses.shape, 1 / len(losses), losses.dtype)
    return losses, *loss.backward(params, residuals, delta)


LOSS = linear_cross_entropy(7, chunk=3)


def whole(params, vocab):
    """W without the rows behind the last label."""
    w = params["w"]
    return w.reshape(-1, w.shape[-1])[:vocab]


@settings(deadline=None, derandomize=True, max_examples=4)
@given(
    vocab=st.integers(1, 12),
    chunk=st.integers(1, 14),
    tokens=st.lists(st.integers(1, 3), max_size=2),
    smoothing=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 99),
)
def test_it_is_softmax_cross_entropy_behind_an_affine_map(vocab, chunk, tokens, smoothing, seed):
    loss = linear_cross_entropy(vocab, label_smoothing=smoothing, chunk=chunk)
    params, h, target = inputs(loss, (3, *tokens, 4), vocab, seed)
    assert params["w"].shape[0] == -(-vocab // chunk)
    assert params["w"].shape[1] <= chunk
    plain = fp.softmax_cross_entropy(smoothing)
    delta = np.float32([0.5, -1.0, 2.0])

    @jax.jit
    def both(params, h):
        losses, residuals = loss.forward(params, (h, target))
        (delta_h, none), grads = loss.backward(params, residuals, delta)
        assert none is None
        due, pullback = jax.vjp(
            lambda params, h: plain.apply((), (h @ whole(params, vocab).T, target)), params, h
        )
        return (losses, grads, delta_h), (due, *pullback(delta))

    for found, due in zip(*(jax.tree.leaves(side) for side in both(params, h)), strict=True):
        np.testing.assert_allclose(found, due, rtol=1e-5, atol=1e-5)


def test_it_is_torch_s():
    torch = pytest.importorskip("torch")
    loss = linear_cross_entropy(11, label_smoothing=0.1, chunk=4)
    params, h, target = inputs(loss, (6, 5), 11)
    w = torch.tensor(whole(params, 11), requires_grad=True)
    hidden = torch.tensor(h, requires_grad=True)
    due = torch.nn.functional.cross_entropy(
        hidden @ w.T, torch.tensor(target).long(), label_smoothing=0.1
    )
    due.backward()
    losses, (delta_h, _), grads = swept(loss, params, h, target)
    assert float(losses.mean()) == pytest.approx(due.item(), rel=1e-6)
    np.testing.assert_allclose(delta_h, hidden.grad.numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(whole(grads, 11), w.grad.numpy(), rtol=1e-5, atol=1e-7)


def test_params_of_the_sweep_are_the_model_s_and_the_loss_s():
    loss, model = LOSS, fp.dense(5, fp.tanh)
    own, x, target = inputs(loss, (8, 5), 7)
    params = (params_of(model, (5,)), own)
    sample_weight = np.arange(8, dtype=np.float32)

    def mean_loss(params):
        losses = fp.softmax_cross_entropy().apply(
            (), (model.apply(params[0], x) @ whole(params[1], 7).T, target)
        )
        return jnp.sum(losses * sample_weight) / 28

    due = jax.jit(jax.value_and_grad(mean_loss))(params)
    sweep = jax.jit(fp.value_and_backprop(model, loss), static_argnames="microbatch")
    for microbatch in (None, 2):
        found = sweep(params, x, target, sample_weight=sample_weight, microbatch=microbatch)
        compare(found, due).assert_ok()
    silent = (params[0], jax.tree.map(np.zeros_like, own))
    grads = sweep(params, x, target, weights=silent, microbatch=None)[1]
    assert not grads[0]["w"].any()  # W of the loss carries the error
    assert grads[1]["w"].any()


def test_a_chunk_is_a_site_and_rows_give_per_example_norms():
    loss = LOSS
    params, h, target = inputs(loss, (4, 2, 5), 7)
    seen = []

    def norms(site, inputs, delta):
        seen.append(site.name)
        x, d = site.rows(inputs, delta)
        return jnp.sum((x @ x.mT) * (d @ d.mT), axis=(1, 2))

    def one(params, h, target):
        return loss.apply(params, (h[None], target[None]))[0]

    @jax.jit
    def run(params, h, target):
        _, residuals = loss.forward(params, (h, target))
        each = jax.vmap(jax.grad(one), (None, 0, 0))(params, h, target)["w"]
        found = loss.backward(params, residuals, jnp.ones(4), norms)[1]
        return found, jnp.sum(each**2, (1, 2, 3))

    found, due = run(params, h, target)
    assert found.shape == (3, 4)
    assert seen == ["linear_cross_entropy"]
    np.testing.assert_allclose(found.sum(0), due, rtol=1e-5)


def test_rows_behind_the_last_label_count_for_nothing():
    loss = linear_cross_entropy(7, label_smoothing=0.2, chunk=3)
    _, h, target = inputs(loss, (4, 5), 7)
    params, _ = loss.init(KEY, jax.eval_shape(lambda h, target: (h[0], target[0]), h, target))
    assert params["w"].shape == (3, 3, 5)
    assert not params["w"][2, 1:].any()
    garbage = {"w": params["w"].at[2, 1:].set(1e3)}
    found = []
    roots = jax.jit(lambda p: loss.root(loss.forward(p, (h, target))[1]))
    for p in (params, garbage):
        found.append((*swept(loss, p, h, target), roots(p)))
        assert not found[-1][2]["w"][2, 1:].any()
    compare(*found).assert_ok()


def test_what_is_masked_is_not_looked_at():
    loss = LOSS
    params, h, target = inputs(loss, (3, 4, 5), 7)
    kept = np.array([[True, False, True, True], [False] * 4, [True] * 4])
    due = swept(loss, params, h, (target, kept))
    assert due[1][1] == (None, None)
    h, target = h.copy(), target.copy()
    h[0, 1], target[1] = np.nan, -100
    found = swept(loss, params, h, (target, kept))
    losses = found[0]
    compare(found, due).assert_ok()
    assert losses[1] == 0
    np.testing.assert_allclose(loss.apply(params, (h, (target, kept))), losses, rtol=1e-6)
    each = fp.softmax_cross_entropy().apply(
        (), (h[0, [0, 2, 3]] @ whole(params, 7).T, target[0, [0, 2, 3]])
    )
    assert float(losses[0]) == pytest.approx(float(each.mean()), rel=1e-6)


@pytest.mark.parametrize("bad", [-1, 7, 100])
def test_under_a_trace_a_bad_label_gives_nan(bad):
    loss = LOSS
    params, h, target = inputs(loss, (4, 5), 7)
    target[2] = bad
    losses, (delta_h, _), grads = swept(loss, params, h, target)
    np.testing.assert_array_equal(np.isnan(losses), [False, False, True, False])
    np.testing.assert_array_equal(np.isnan(delta_h).all(-1), [False, False, True, False])
    assert np.isnan(whole(grads, 7)).all()
    with pytest.raises(LayerError, match=rf"a label is {bad}, labels of 7 classes lie in \[0, 7"):
        loss.apply(params, (h, target))


def test_large_scores_do_not_overflow():
    loss = LOSS
    params, h, target = inputs(loss, (4, 5), 7)
    h = np.float32(3e4) * h
    losses, (delta_h, _), grads = swept(loss, params, h, target)
    due = fp.softmax_cross_entropy().apply((), (h @ whole(params, 7).T, target))
    np.testing.assert_allclose(losses, due, rtol=1e-5, atol=1e-2)
    assert np.isfinite(delta_h).all()
    assert np.isfinite(grads["w"]).all()


def test_a_bfloat16_sum_over_the_vocabulary_is_accumulated_in_float32():
    """log 3000 of equal scores; bfloat16 additions would stop at 256."""
    loss = linear_cross_entropy(3000, chunk=1)
    params = {"w": jnp.zeros((3000, 1, 2), jnp.bfloat16)}
    h = jnp.ones((1, 2), jnp.bfloat16)
    losses = loss.apply(params, (h, jnp.array([0])))
    assert losses.dtype == jnp.bfloat16
    assert float(losses[0]) == pytest.approx(np.log(3000), rel=2**-8)


def test_memory_is_a_chunk_s_and_not_the_vocabulary_s():
    vocab, tokens = 4096, 256
    loss = linear_cross_entropy(vocab, chunk=128)
    params, h, target = inputs(loss, (tokens, 32), vocab)

    def ours(params, h):
        losses, (delta_h, _), grads = swept(loss, params, h, target)
        return losses.mean(), (grads, delta_h)

    def plain(params, h):
        scores = h @ whole(params, vocab).T
        return fp.softmax_cross_entropy().apply((), (scores, target)).mean()

    sides = ours, jax.value_and_grad(plain, (0, 1))
    programs = [jax.jit(side).lower(params, h).compile() for side in sides]
    found, due = (p.memory_analysis().temp_size_in_bytes for p in programs)
    assert found < due / 10
    assert found < 4 * vocab * tokens  # one array of logits
    compare(*(p(params, h) for p in programs)).assert_ok()


@functools.cache
def on_one_device():
    """The sweep of a model and loss, its arguments, and what it gives."""
    loss, model = linear_cross_entropy(7, label_smoothing=0.1, chunk=3), fp.dense(5, fp.tanh)
    own, x, target = inputs(loss, (8, 5), 7)
    given = (params_of(model, (5,)), own), x, target
    sweep = fp.value_and_backprop(model, loss)
    return sweep, given, jax.device_get(jax.jit(sweep)(*given))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit, "shard_map"])
def test_on_meshes(kind):
    sweep, (params, x, target), due = on_one_device()
    types = (AxisType.Auto if kind == "shard_map" else kind,)
    mesh = jax.make_mesh((8,), ("data",), axis_types=types)
    if kind == "shard_map":

        def local(params, x, target):
            value, grads = sweep(params, x, target)
            return jax.lax.pmean(value, "data"), jax.tree.map(lambda g: g / 8, grads)

        specs = (P(), P("data"), P("data"))
        run = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P()))
        found = run(params, x, target)
    else:
        with jax.set_mesh(mesh):
            held = jax.device_put(params, NamedSharding(mesh, P()))
            batch = jax.device_put((x, target), NamedSharding(mesh, P("data")))
            found = jax.jit(lambda *args: sweep(*args))(held, *batch)
    compare(jax.device_get(found), due).assert_ok()
