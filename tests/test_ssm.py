"""State spaces: a recurrence in NumPy, sequences in parts, what autodiff says, faults, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funcprop as fp
from tests.drawing import params_of

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)
PARALLEL = pytest.mark.parametrize("parallel", [True, False])


def swept(layer, params, x, delta):
    y, residuals = layer.forward(params, x)
    return y, *layer.backward(params, residuals, delta)


def in_numpy(params, u, start=None):
    """Step by step in complex128."""
    nu, theta = (np.asarray(params[name], np.float64) for name in ("nu", "theta"))
    lam = np.exp(-np.exp(nu) + 1j * np.exp(theta))
    gamma = np.sqrt(1 - np.abs(lam) ** 2)
    u = np.asarray(u, np.float64)
    n = u.shape[-1] // 2
    u = u[..., :n] + 1j * u[..., n:]
    h = 0 * u[:, 0] if start is None else start[:, :n] + 1j * start[:, n:]
    steps = []
    for t in range(u.shape[1]):
        h = lam * h + gamma * u[:, t]
        steps.append(np.concatenate([h.real, h.imag], -1))
    return np.stack(steps, 1)


def plain(params, u, start):
    """Step by step in real arithmetic, for autodiff."""
    decay, angle = jnp.exp(-jnp.exp(params["nu"])), jnp.exp(params["theta"])
    a, b = decay * jnp.cos(angle), decay * jnp.sin(angle)
    gamma, n = jnp.sqrt(1 - decay**2), len(a)

    def step(h, u):
        real, imag = h[:, :n], h[:, n:]
        h = jnp.concatenate([a * real - b * imag, a * imag + b * real], -1)
        h = h + jnp.concatenate([gamma, gamma]) * u
        return h, h

    return jnp.moveaxis(jax.lax.scan(step, start, jnp.moveaxis(u, 1, 0))[1], 0, 1)


@settings(deadline=None, derandomize=True, max_examples=4)
@given(
    batch=st.integers(1, 3),
    time=st.integers(1, 20),
    n=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_it_is_the_recurrence_whatever_the_shape(batch, time, n, seed):
    with jax.enable_x64(True):
        draw = np.random.default_rng(seed)
        layers = [fp.diagonal_recurrence(state=True, parallel=p) for p in (True, False)]
        params = {name: draw.normal(size=n) - 1 for name in ("nu", "theta")}
        shapes = ((batch, time, 2 * n), (batch, 2 * n))
        x, delta = (tuple(draw.normal(size=s) for s in shapes) for _ in range(2))

        def reference(params, x):
            h = plain(params, *x)
            return h, h[:, -1]

        @jax.jit
        def both(params, x, delta):
            y, pullback = jax.vjp(reference, params, x)
            swept_by = (swept(layer, params, x, delta) for layer in layers)
            due = (y, *pullback(delta))
            return [((found, grads, delta_x), due) for found, delta_x, grads in swept_by]

        for found, due in both(params, x, delta):
            fp.compare(found, due).assert_ok()


@PARALLEL
def test_long_memories_of_long_sequences_in_float32(parallel):
    """T 3000, |λ| to 0.9999: as near to a recurrence in complex128 as λ's own rounding lets it."""
    layer = fp.diagonal_recurrence(radius=(0.99, 0.9999), parallel=parallel)
    params, _ = layer.init(KEY, (3000, 16))
    u = np.random.default_rng(4).normal(size=(2, 3000, 16)).astype("float32")
    due = in_numpy(params, u)
    found = jax.jit(layer.apply)(params, u)
    assert np.abs(found - due).max() < 3e-4 * np.abs(due).max()
    assert 0.3 < due[:, 1000:].std() < 1  # γ keeps the size: a part's variance is 1 at most


def test_gradients_of_a_long_sequence_in_float32_are_those_of_float64():
    layer = fp.diagonal_recurrence(radius=(0.99, 0.9999))
    params, _ = layer.init(KEY, (2000, 8))
    u, delta = np.random.default_rng(0).normal(size=(2, 2, 2000, 8)).astype("float32")
    sweep = jax.jit(functools.partial(swept, layer))
    narrow = sweep(params, u, delta)
    with jax.enable_x64(True):
        wide = sweep(*jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, u, delta)))
    narrow, wide = jax.device_get((narrow, wide))
    for ours, due in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
        assert np.abs(ours - due).max() < 3e-4 * np.abs(due).max()


def test_a_long_sequence_in_parts_is_the_whole():
    layer = fp.ssm(3, state=True)
    structs = (jax.ShapeDtypeStruct((12, 4), "float32"), jax.ShapeDtypeStruct((6,), "float32"))
    params, out_shape = layer.init(KEY, structs)
    assert out_shape == structs
    draw = np.random.default_rng(0)
    x, delta = draw.normal(size=(2, 2, 12, 4)).astype("float32")
    start, delta_end = draw.normal(size=(2, 2, 6)).astype("float32")

    def parts(params, x, start, delta, delta_end):
        (first, between), kept = layer.forward(params, (x[:, :5], start))
        (second, end), rest = layer.forward(params, (x[:, 5:], between))
        later, grads = layer.backward(params, rest, (delta[:, 5:], delta_end))
        sooner, more = layer.backward(params, kept, (delta[:, :5], later[1]))
        delta_x = (jnp.concatenate([sooner[0], later[0]], 1), sooner[1])
        y = (jnp.concatenate([first, second], 1), end)
        return y, delta_x, jax.tree.map(jnp.add, grads, more)

    @jax.jit
    def both(params, x, start, delta, delta_end):
        whole = swept(layer, params, (x, start), (delta, delta_end))
        return parts(params, x, start, delta, delta_end), whole

    fp.compare(*both(params, x, start, delta, delta_end)).assert_ok()


def test_the_unit_is_its_equation():
    """y = Re(C h) + D x with complex B and C read off the real matrices."""
    layer = fp.ssm(3)
    params, _ = layer.init(KEY, (9, 4))
    x = np.random.default_rng(0).normal(size=(2, 9, 4)).astype("float32")
    into, out = (np.asarray(params[name]["w"]) for name in ("in", "out"))
    b, c = into[:3] + 1j * into[3:], out[:, :3] - 1j * out[:, 3:]
    u = x @ b.T
    h = in_numpy(params["recurrence"], np.concatenate([u.real, u.imag], -1))
    due = ((h[..., :3] + 1j * h[..., 3:]) @ c.T).real + params["skip"]["d"] * x
    np.testing.assert_allclose(jax.jit(layer.apply)(params, x), due, rtol=1e-4, atol=1e-5)


def test_the_ring_is_where_it_was_asked_to_be():
    layer = fp.diagonal_recurrence(radius=(0.5, 0.8), phase=1.0)
    params, _ = layer.init(KEY, (1, 2000))
    radius, angle = np.exp(-np.exp(params["nu"])), np.exp(params["theta"])
    assert 0.5 <= radius.min() < 0.51
    assert 0.79 < radius.max() <= 0.8
    assert 0 < angle.min() < 0.01
    assert 0.99 < angle.max() <= 1
    assert np.mean(radius**2) == pytest.approx((0.25 + 0.64) / 2, abs=0.01)  # even on the ring


BLOCK = fp.residual(fp.serial(fp.ssm(4), fp.gelu, fp.dense(4)))
MODEL = fp.serial(fp.dense(4), fp.repeat(fp.remat(BLOCK), 2), fp.last_step, fp.dense(1))


def test_a_model_of_two_blocks():
    x = np.random.default_rng(0).normal(size=(4, 5, 1)).astype("float32")
    params = params_of(MODEL, x.shape[1:])
    fp.check_model(MODEL, params, x, x[:, 0], fp.mean_squared_error).assert_ok()


@pytest.mark.slow
def test_memory_of_one_step_lasts():
    """A model of two blocks learns to give back the first input at the end."""
    x = jax.random.normal(KEY, (64, 12, 1))
    params, _ = MODEL.init(KEY, x.shape[1:])
    rule = fp.backpropagation(MODEL, fp.mean_squared_error)
    with jax.numpy_dtype_promotion("standard"):
        _, history = fp.fit(
            rule, optax.adam(1e-2), params, (x, x[:, 0]), key=KEY, steps=60, every=60
        )
    assert history["loss"][-1] < 0.3 * history["loss"][0]
