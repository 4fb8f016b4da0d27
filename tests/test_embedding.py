"""Embeddings and positions: facts, NumPy, PyTorch, what they refuse, planted faults."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funcprop as fp
from funcprop import LayerError
from tests.drawing import params_of

pytestmark = pytest.mark.usefixtures("strict")

W = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
FIVE = fp.embedding(5, 3)


@functools.partial(jax.jit, static_argnums=0)
def swept(layer, params, x, delta):
    y, residuals = layer.forward(params, x)
    return y, *layer.backward(params, residuals, delta)


@settings(deadline=None, derandomize=True, max_examples=6)
@given(
    vocab=st.integers(1, 9),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    dtype=st.sampled_from(["int8", "uint8", "int32", "uint32"]),
    seed=st.integers(0, 99),
)
def test_embedding_is_a_product_with_one_hot_rows(vocab, shape, dtype, seed):
    draw = np.random.default_rng(seed)
    ids = draw.integers(0, vocab, shape).astype(dtype)
    w = draw.normal(size=(vocab, 2)).astype("float32")
    delta = draw.normal(size=(*shape, 2)).astype("float32")
    y, delta_x, grads = swept(fp.embedding(vocab, 2), {"w": w}, ids, delta)
    one_hot = np.eye(vocab)[ids]
    np.testing.assert_array_equal(y, w[ids])
    assert delta_x is None
    due = one_hot.reshape(-1, vocab).T @ delta.reshape(-1, 2)
    np.testing.assert_allclose(grads["w"], due, rtol=1e-5, atol=1e-5)


def test_embedding_is_torch_s():
    torch = pytest.importorskip("torch")
    ids = np.array([[0, 4, 4], [2, 4, 0]])
    delta = np.random.default_rng(0).normal(size=(2, 3, 3)).astype("float32")
    w = torch.tensor(W, requires_grad=True)
    due = torch.nn.functional.embedding(torch.tensor(ids), w)
    due.backward(torch.tensor(delta))
    y, _, grads = swept(FIVE, {"w": W}, ids.astype(np.int32), delta)
    np.testing.assert_array_equal(y, due.detach().numpy())
    np.testing.assert_allclose(grads["w"], w.grad.numpy(), rtol=1e-6)


@pytest.mark.parametrize("bad", [-1, 5, -6, 300])
def test_a_bad_id_under_a_trace_is_nan_in_y_and_in_the_whole_gradient(bad):
    ids, good = np.array([[[1, bad], [2, 3]], [[1, 4], [2, 3]]], np.int32)
    delta = np.ones((2, 2, 3), np.float32)
    y, _, grads = swept(FIVE, {"w": W}, ids, delta)
    np.testing.assert_array_equal(np.isnan(y).any(-1), [[False, True], [False, False]])
    assert np.isnan(grads["w"]).all()
    assert np.isfinite(swept(FIVE, {"w": W}, good, delta)[2]["w"]).all()
    with pytest.raises(LayerError, match=rf"embedding: an id is {bad}, ids lie in \[0, 5\)"):
        FIVE.apply({"w": W}, ids)


def test_a_bfloat16_gradient_is_accumulated_in_float32():
    """2000 ones in one row: bfloat16 additions would stop at 256."""
    ids, delta = jnp.zeros((1, 2000), jnp.int32), jnp.ones((1, 2000, 1), jnp.bfloat16)
    params = {"w": jnp.zeros((2, 1), jnp.bfloat16)}
    _, _, grads = swept(fp.embedding(2, 1), params, ids, delta)
    assert grads["w"].dtype == jnp.bfloat16
    assert grads["w"].tolist() == [[2000.0], [0.0]]


def test_positions_beyond_the_sequence_get_no_gradient():
    x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype("float32")
    params = params_of(fp.positional(8), (5, 3))
    y, delta_x, grads = swept(fp.positional(8), params, x, 2 * x)
    np.testing.assert_array_equal(y, x + params["p"][:5])
    np.testing.assert_array_equal(delta_x, 2 * x)
    np.testing.assert_allclose(grads["p"][:5], 2 * np.sum(np.asarray(x), 0), rtol=1e-5)
    assert not grads["p"][5:].any()


@pytest.mark.parametrize(("length", "features", "base"), [(7, 4, 1e4), (3000, 5, 100.0)])
def test_sinusoidal_is_the_formula(length, features, base):
    y = fp.sinusoidal(base).apply((), jnp.zeros((1, length, features)))[0]
    for t in (0, 1, length - 1):
        for k in range(features):
            angle = t / base ** ((k - k % 2) / features)
            due = np.cos(angle) if k % 2 else np.sin(angle)
            assert float(y[t, k]) == pytest.approx(due, abs=1e-7)


def test_a_model_of_ids_is_trained_and_shows_its_sites():
    model = fp.serial(fp.embedding(5, 4), fp.positional(3), fp.dense(2))
    found = fp.sites(model, jax.ShapeDtypeStruct((3,), jnp.int32))
    assert [site.name for site in found] == ["embedding", "positional", "dense"]
    ids, labels = jnp.array([[0, 1, 4]] * 2), jnp.array([[0, 1, 1]] * 2)
    loss = fp.softmax_cross_entropy()

    def mean(params):
        return loss.apply((), (model.apply(params, ids), labels)).mean()

    @jax.jit
    def both(params):
        found = fp.value_and_backprop(model, loss)(params, ids, labels)
        return found, jax.value_and_grad(mean)(params)

    fp.compare(*both(params_of(model, (3,)))).assert_ok()
