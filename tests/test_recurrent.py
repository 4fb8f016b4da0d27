"""Recurrent layers: NumPy's and PyTorch's forward, lengths, states, truncation, chunks, faults."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import funcprop as fp
from funcprop.cases.case import normal
from tests.drawing import params_of

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)
LAYERS = {"rnn": fp.rnn, "lstm": fp.lstm, "gru": fp.gru}
every_layer = pytest.mark.parametrize("name", LAYERS)


def swept(layer, params, x, delta):
    y, residuals = layer.forward(params, x)
    return y, *layer.backward(params, residuals, delta)


def shapes_of(name, size, hidden):
    """The shapes of a layer's params, without the work of drawing some."""
    layer = LAYERS[name](hidden)
    return jax.eval_shape(lambda: layer.init(KEY, (3, size))[0])


def drawn(name, batch=3, time=5, size=2, hidden=4, dtype="float32", seed=0):
    """params, x, a state, and deltas of y and of the state, as of a layer of that name."""
    draw = np.random.default_rng(seed)
    params = params_of(LAYERS[name](hidden), (3, size), seed, dtype)

    def array(*shape):
        return draw.normal(size=shape).astype(dtype)

    x, delta = array(batch, time, size), array(batch, time, hidden)
    states = [array(batch, hidden) for _ in range(4)]
    pairs = (tuple(states[:2]), tuple(states[2:]))
    return params, x, *((pairs) if name == "lstm" else (states[0], states[1])), delta


# ------------------------------------------------------------------ what they compute


def sigma(z):
    return 1 / (1 + np.exp(-z))


def textbook(name, p, x, state, length):
    """The last state and all y of one sequence, step by step in NumPy float64."""
    h, c = state if name == "lstm" else (state, None)
    y = np.zeros((len(x), len(h)))
    for t in range(length):
        if name == "gru":
            a, v = x[t] @ p["x"]["w"].T + p["x"]["b"], h @ p["h"]["w"].T + p["h"]["b"]
            (a_r, a_z, a_n), (v_r, v_z, v_n) = a.reshape(3, -1), v.reshape(3, -1)
            r, z = sigma(a_r + v_r), sigma(a_z + v_z)
            h = (1 - z) * np.tanh(a_n + r * v_n) + z * h
        else:
            z = p["w"] @ x[t] + p["u"] @ h + p["b"]
            if name == "lstm":
                i, f, g, o = z.reshape(4, -1)
                c = sigma(f) * c + sigma(i) * np.tanh(g)
                h = sigma(o) * np.tanh(c)
            else:
                h = np.tanh(z)
        y[t] = h
    return y, (h, c) if name == "lstm" else h


@every_layer
def test_they_are_their_equations_in_numpy(name):
    with jax.enable_x64(True):
        params, x, state, _, _ = drawn(name, dtype="float64")
        sizes = np.array([5, 0, 2])
        layer = LAYERS[name](4, state=True)
        (y, _, last), alone = jax.jit(
            lambda params, x, state: (
                layer.apply(params, (x, sizes, state)),
                LAYERS[name](4).apply(params, x),
            )
        )(params, x, state)
        y, last, alone = jax.device_get((y, last, alone))
        for i, length in enumerate(sizes.tolist()):
            own = jax.tree.map(lambda s: s[i], state)  # noqa: B023
            due, due_last = textbook(name, params, x[i], own, length)
            np.testing.assert_allclose(y[i], due, atol=1e-14)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a[i], b, atol=1e-14),  # noqa: B023
                last,
                due_last,
            )
            zeros = jax.tree.map(np.zeros_like, own)
            due, _ = textbook(name, params, x[i], zeros, 5)
            np.testing.assert_allclose(alone[i], due, atol=1e-14)


@every_layer
def test_they_are_pytorch_s(name):
    torch = pytest.importorskip("torch")
    _, x, state, _, delta = drawn(name)
    made = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[name]
    theirs = made(2, 4, batch_first=True)
    params = fp.from_pytorch(*(w.detach().numpy() for w in theirs.parameters()))
    given_x = torch.tensor(x, requires_grad=True)
    given = jax.tree.map(lambda s: torch.tensor(s)[None], state)
    due, _ = theirs(given_x, given)
    due.backward(torch.tensor(delta))
    zeros = jax.tree.map(jnp.zeros_like, state)
    (y, _), (delta_x, _), grads = swept(
        LAYERS[name](4, state=True), params, (x, state), (delta, zeros)
    )
    np.testing.assert_allclose(y, due.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(delta_x, given_x.grad.numpy(), rtol=1e-4, atol=1e-5)
    w, u, b, _ = (w.grad.numpy() for w in theirs.parameters())
    ours = grads if name != "gru" else {**grads["x"], "u": grads["h"]["w"]}
    for label, leaf in (("w", w), ("u", u), ("b", b)):
        np.testing.assert_allclose(ours[label], leaf, rtol=1e-4, atol=1e-5)


def test_pytorch_s_weights_are_told_apart_by_their_rows():
    for name, gates in (("rnn", 1), ("gru", 3), ("lstm", 4)):
        w, u = jnp.full((gates * 4, 2), 0.5), jnp.full((gates * 4, 4), 0.25)
        bare, full = fp.from_pytorch(w, u), fp.from_pytorch(w, u, np.ones(len(w)), np.ones(len(w)))
        due = shapes_of(name, 2, 4)
        assert jax.tree.map(jnp.shape, bare) == jax.tree.map(lambda leaf: leaf.shape, due)
        biases = (full["x"]["b"] + full["h"]["b"]) if name == "gru" else full["b"]
        assert (biases == 2).all()
        assert not any(leaf.any() for leaf in jax.tree.leaves(bare) if leaf.ndim == 1)


def test_how_their_weights_begin():
    params = jax.device_get(jax.jit(lambda key: fp.lstm(64).init(key, (3, 100))[0])(KEY))
    assert float(params["w"].std()) == pytest.approx(0.1, rel=0.03)
    for u in params["u"].reshape(4, 64, 64):
        np.testing.assert_allclose(u @ u.T, np.eye(64), atol=1e-5)
    assert params["b"].reshape(4, 64).mean(1).tolist() == [0, 1, 0, 0]
    identity = fp.rnn(
        3, fp.relu, u_init=lambda key, shape: jnp.eye(3), b_init=jax.nn.initializers.ones
    )
    params, _ = identity.init(KEY, (3, 2))
    assert params["u"].tolist() == np.eye(3).tolist()
    assert params["b"].tolist() == [1, 1, 1]


# ---------------------------------------------------------------- against jax.vjp


def plain(name, params, x, lengths, state, truncate=None):
    """y and the last state by a scan as a user writes it, for jax.vjp."""

    def step(state, now):
        x, t = now
        if truncate is not None:
            cut = (t > 0) & (t % truncate == 0)
            state = tuple(jnp.where(cut, lax.stop_gradient(leaf), leaf) for leaf in state)
        h, real = state[0], (t < lengths)[:, None]
        x = jnp.where(real, x, 0)
        if name == "gru":
            a = x @ params["x"]["w"].T + params["x"]["b"]
            v = h @ params["h"]["w"].T + params["h"]["b"]
            (a_r, a_z, a_n), (v_r, v_z, v_n) = jnp.split(a, 3, -1), jnp.split(v, 3, -1)
            r, z = jax.nn.sigmoid(a_r + v_r), jax.nn.sigmoid(a_z + v_z)
            new = ((1 - z) * jnp.tanh(a_n + r * v_n) + z * h,)
        else:
            z = x @ params["w"].T + h @ params["u"].T + params["b"]
            new = (jnp.tanh(z),)
            if name == "lstm":
                i, f, g, o = jnp.split(z, 4, -1)
                c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
                new = (jax.nn.sigmoid(o) * jnp.tanh(c), c)
        state = tuple(jnp.where(real, a, b) for a, b in zip(new, state, strict=True))
        return state, jnp.where(real, state[0], 0)

    given = jnp.swapaxes(x, 0, 1), jnp.arange(x.shape[1], dtype=lengths.dtype)
    state, y = lax.scan(step, state if name == "lstm" else (state,), given)
    return jnp.swapaxes(y, 0, 1), state if name == "lstm" else state[0]


def both(name, truncate, chunk):
    """Ours and that of jax.vjp, jitted: y, last state, deltas of x and of the state, gradient.

    Of jax.vjp also y of the whole, where ``truncate`` cuts the other.
    """
    layer = LAYERS[name](4, state=True, truncate=truncate, chunk=chunk)

    def ours(params, x, lengths, state, delta, delta_last):
        (y, _, last), (delta_x, none, first), grads = swept(
            layer, params, (x, lengths, state), (delta, None, delta_last)
        )
        assert none is None
        return y, last, delta_x, first, grads

    def theirs(params, x, lengths, state, delta, delta_last):
        (y, last), pullback = jax.vjp(
            lambda p, x, s: plain(name, p, x, lengths, s, truncate), params, x, state
        )
        grads, delta_x, first = pullback((delta, delta_last))
        return y, last, delta_x, first, grads

    def whole(params, x, lengths, state, *deltas):
        return plain(name, params, x, lengths, state)[0]

    return jax.jit(lambda *args: (ours(*args), theirs(*args), whole(*args)))


@pytest.mark.parametrize(
    ("name", "time", "truncate", "chunk"),
    [
        ("rnn", 6, 4, 3),
        ("lstm", 6, 4, 3),
        ("gru", 6, 4, 3),
        ("lstm", 5, 2, None),
        ("gru", 5, None, 2),
        pytest.param("rnn", 5, 2, None, marks=pytest.mark.slow),
        pytest.param("gru", 5, 2, None, marks=pytest.mark.slow),
        pytest.param("rnn", 5, None, 2, marks=pytest.mark.slow),
        pytest.param("lstm", 5, None, 2, marks=pytest.mark.slow),
    ],
)
def test_truncation_and_chunks(name, time, truncate, chunk):
    """y is that of the whole; δ is cut where jax.lax.stop_gradient stands in a plain loop."""
    with jax.enable_x64(True):
        params, x, state, delta_last, delta = drawn(name, time=time, dtype="float64")
        args = (params, x, np.array([time, 0, 4]), state, delta, delta_last)
        found, due, whole = both(name, truncate, chunk)(*args)
        fp.compare(found, due).assert_ok()
        np.testing.assert_allclose(found[0], whole, atol=1e-14)


@settings(deadline=None, derandomize=True, max_examples=3)
@given(
    name=st.sampled_from(sorted(LAYERS)),
    batch=st.integers(1, 3),
    time=st.integers(1, 5),
    size=st.integers(1, 3),
    chunk=st.one_of(st.none(), st.integers(1, 4)),
    seed=st.integers(0, 99),
)
def test_any_shape(name, batch, time, size, chunk, seed):
    with jax.enable_x64(True):
        params, x, state, delta_last, delta = drawn(
            name, batch, time, size, dtype="float64", seed=seed
        )
        sizes = np.random.default_rng(seed).integers(0, time + 1, batch)
        found, due, _ = both(name, None, chunk)(params, x, sizes, state, delta, delta_last)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, due
        )


def test_an_rnn_takes_any_activation():
    params, x, _, _, delta = drawn("rnn")

    def sweeps(params, x):
        for activation in (fp.relu, fp.tanh_precise, fp.leaky_relu(0.1)):
            layer = fp.rnn(4, activation)
            y, delta_x, grads = swept(layer, params, x, delta)
            due, pullback = jax.vjp(layer.apply, params, x)
            yield (y, grads, delta_x), (due, *pullback(delta))

    for found, due in jax.jit(lambda *args: list(sweeps(*args)))(params, x):
        fp.compare(found, due).assert_ok()


# ------------------------------------------------------------- sequences and states


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_the_parts_of_a_sequence_follow_each_other(name):
    """Two halves with the state between them are the whole, forward and backward."""
    layer = LAYERS[name](4, state=True)
    params, x, state, delta_last, delta = drawn(name, time=6)
    sizes = np.array([6, 1, 4], np.int32)

    @jax.jit
    def sweeps(params, x, state, delta, delta_last):
        whole = swept(layer, params, (x, sizes, state), (delta, None, delta_last))
        (one, _, middle), kept = layer.forward(params, (x[:, :2], jnp.minimum(sizes, 2), state))
        (other, _, last), kept_2 = layer.forward(
            params, (x[:, 2:], jnp.maximum(sizes - 2, 0), middle)
        )
        (d_2, _, between), grads_2 = layer.backward(
            params, kept_2, (delta[:, 2:], None, delta_last)
        )
        (d_1, _, first), grads = layer.backward(params, kept, (delta[:, :2], None, between))
        y, delta_x = jnp.concatenate([one, other], 1), jnp.concatenate([d_1, d_2], 1)
        halves = (y, last, delta_x, first, jax.tree.map(jnp.add, grads, grads_2))
        (y, _, last), (delta_x, _, first), grads = whole
        return halves, (y, last, delta_x, first, grads)

    fp.compare(*sweeps(params, x, state, delta, delta_last)).assert_ok()


@pytest.mark.parametrize("chunk", [None, 2])
@every_layer
def test_padding_changes_nothing(name, chunk):
    """NaN in padded x and δ: the numbers of each sequence by itself; zeros behind its end."""
    params, x, state, delta_last, delta = drawn(name)
    sizes = np.array([3, 0, 5], np.int32)
    layer = LAYERS[name](4, state=True, chunk=chunk)
    padding = np.where(np.arange(5) < sizes[:, None], 0.0, np.nan)[..., None].astype("float32")
    sweep = jax.jit(lambda x, delta: swept(layer, params, x, delta))
    clean = sweep((x, sizes, state), (delta, None, delta_last))
    dirty = sweep((x + padding, sizes, state), (delta + padding, None, delta_last))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    (y, out, last), (delta_x, none, first), _ = clean
    assert none is None
    assert out.tolist() == sizes.tolist()
    for leaf in (y, delta_x):
        assert not np.any(np.asarray(leaf)[np.isnan(padding[..., 0])])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[1]), last, state)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[1]), first, delta_last)

    alone, _, _ = jax.jit(layer.apply)(
        params, (x[:1, :3], sizes[:1], jax.tree.map(lambda s: s[:1], state))
    )
    np.testing.assert_allclose(y[:1, :3], alone, rtol=1e-5, atol=1e-6)


@every_layer
def test_a_bad_length_gives_nan_under_a_trace(name):
    params, x, _, _, delta = drawn(name)
    for layer in (LAYERS[name](4), fp.reverse(LAYERS[name](4, chunk=2))):
        (y, _), (delta_x, _), grads = jax.jit(
            lambda sizes, layer=layer: swept(layer, params, (x, sizes), (delta, None))
        )(np.array([6, 5, -1], np.int32))
        for leaf in (y, delta_x):
            assert np.isnan(leaf).all(axis=(1, 2)).tolist() == [True, False, True]
            assert np.isfinite(leaf[1]).all()
        assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(grads))


def test_reverse_is_the_layer_on_sequences_turned_round():
    params, x, state, delta_last, delta = drawn("gru")
    layer = fp.gru(4, state=True)
    sizes = jnp.array([3, 0, 5])
    turn = np.array([[2, 1, 0, 3, 4], [0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])
    rows = np.arange(3)[:, None]

    @jax.jit
    def sweeps(params, x, state, delta, delta_last):
        found = swept(fp.reverse(layer), params, (x, sizes, state), (delta, None, delta_last))
        (y, _, last), (delta_x, _, first), grads = swept(
            layer, params, (x[rows, turn], sizes, state), (delta[rows, turn], None, delta_last)
        )
        return found, ((y[rows, turn], sizes, last), (delta_x[rows, turn], None, first), grads)

    for one, other in zip(
        *map(jax.tree.leaves, sweeps(params, x, state, delta, delta_last)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_bidirectional_is_both_directions_side_by_side():
    x = normal(3, 5, 2)(np.random.default_rng(0)).astype("float32")
    sizes = np.array([2, 5, 0], np.int32)
    layer = fp.bidirectional(fp.lstm(4), fp.reverse(fp.gru(3)))
    params = drawn("lstm")[0], drawn("gru", hidden=3)[0]
    assert jax.eval_shape(lambda: jnp.zeros(layer.init(KEY, (5, 2))[1])).shape == (5, 7)
    (y, _), ((one, _), (other, _)) = jax.jit(
        lambda x: (
            layer.apply(params, x),
            [part.apply(p, x) for part, p in zip(layer.parts, params, strict=True)],
        )
    )((x, sizes))
    np.testing.assert_array_equal(y, jnp.concatenate([one, other], axis=-1))
    assert layer.parts[0].name == "lstm"
    assert [part.name for part in layer.rebuild(layer.parts).parts] == ["lstm", "reverse"]
    rows = fp.summary(layer, (5, 2)).rows
    assert [(row.position, row.name) for row in rows] == [
        ("layers[0]", "lstm"),
        ("layers[1].reverse", "gru"),
    ]
    # without lengths, with states, and whole models of it
    pair = jax.eval_shape(lambda: (x[0], (x[0, 0, :1], x[0, 0, :1])))
    states = fp.bidirectional(fp.gru(1, state=True))
    _, (y, (one, other)) = jax.eval_shape(lambda: states.init(KEY, pair))
    assert (y.shape, one.shape, other.shape) == ((5, 2), (1,), (1,))
    model = fp.serial(fp.bidirectional(fp.gru(2)), fp.bidirectional(fp.rnn(3)), fp.last_step)
    assert jax.eval_shape(lambda: jnp.zeros(model.init(KEY, (5, 2))[1])).shape == (6,)


# ------------------------------------------------------------------------- its place


def test_inside_repeat_and_remat_and_under_vmap():
    model = fp.repeat(fp.remat(fp.residual(fp.lstm(3, chunk=2))), 2)
    x = normal(4, 3, 3)(np.random.default_rng(0)).astype("float32")
    params = params_of(model, (3, 3))

    @jax.jit
    def sweeps(params, x):
        many = jax.vmap(lambda x: swept(model, params, x, x))(jnp.stack([x, 2 * x]))
        y, pullback = jax.vjp(model.apply, params, 2 * x)
        grads, delta_x = pullback(2 * x)
        return jax.tree.map(lambda leaf: leaf[1], many), (y, delta_x, grads)

    fp.compare(*sweeps(params, x)).assert_ok()


def test_memory_of_a_long_sequence_in_chunks():
    """In a sequence of 600 steps chunks leave the gates out; δz of all steps stays."""

    def temporary(layer):
        x = jax.ShapeDtypeStruct((4, 600, 8), "float32")
        params, _ = jax.eval_shape(lambda key: layer.init(key, x.shape[1:]), KEY)
        y = jax.eval_shape(layer.apply, params, x)
        program = jax.jit(functools.partial(swept, layer)).lower(params, x, y).compile()
        return program.memory_analysis().temp_size_in_bytes

    state = 4 * 600 * 32 * 4
    whole, chunks = temporary(fp.lstm(32)), temporary(fp.lstm(32, chunk=25))
    assert whole > 10 * state
    assert chunks < 8 * state < 0.7 * whole


def test_a_bfloat16_state_is_carried_in_float32():
    """A forget gate of 1 and small steps: a sum in bfloat16 would stand still."""
    params = {"w": jnp.zeros((4, 1)), "u": jnp.zeros((4, 1)), "b": jnp.array([-5.3, 20, 20, 20])}
    params = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params)
    x = jnp.zeros((1, 200, 1), "bfloat16")
    zero = jnp.zeros((1, 1), "bfloat16")
    _, (_, c) = fp.lstm(1, state=True).apply(params, (x, (zero, zero)))
    assert c.dtype == "bfloat16"
    assert float(c[0, 0]) == pytest.approx(200 * sigma(-5.3125), rel=0.02)
