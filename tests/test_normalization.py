"""Norms and dropout: jax.vjp of the plain forms, PyTorch, large means, calibration, faults."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funcprop as fp
from funcprop import LayerError
from funcprop.core.frozen import needs_calibration
from funcprop.training.calibration import observer
from tests.drawing import params_of

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)


def swept(layer, params, x, delta):
    y, residuals = layer.forward(params, x)
    return y, *layer.backward(params, residuals, delta)


def standard(x, axes, epsilon=1e-5):
    mean = x.mean(axes, keepdims=True)
    return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + epsilon)


def grouped(x, groups):
    parts = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    return standard(parts, (1, 3)).reshape(x.shape)


PLAIN = {
    "layer_norm": (fp.layer_norm(), lambda x: standard(x, -1)),
    "layer_norm without bias": (fp.layer_norm(bias=False), lambda x: standard(x, -1)),
    "rms_norm": (fp.rms_norm(), lambda x: x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)),
    "group_norm": (fp.group_norm(2), lambda x: grouped(x, 2)),
    "instance norm": (fp.group_norm(4, bias=False), lambda x: grouped(x, 4)),
    "batch_norm": (fp.batch_norm(), lambda x: standard(x, tuple(range(x.ndim - 1)))),
    "batch_norm without bias": (fp.batch_norm(bias=False), lambda x: standard(x, (0, 1))),
    "larger epsilon": (fp.layer_norm(epsilon=0.5), lambda x: standard(x, -1, 0.5)),
}


@settings(deadline=None, derandomize=True, max_examples=2)
@given(batch=st.integers(2, 5), places=st.integers(3, 5), seed=st.integers(0, 99))
def test_the_plain_forms(batch, places, seed):
    def both(name, params, x, delta):
        layer, normalised = PLAIN[name]

        def plain(params, x):
            y = normalised(x) * params["scale"]
            return y + params["b"] if "b" in params else y

        y, pullback = jax.vjp(plain, params, x)
        found, delta_x, grads = swept(layer, params, x, delta)
        return (found, grads, delta_x), (y, *pullback(delta))

    with jax.enable_x64(True):
        x, delta = np.random.default_rng(seed).normal(size=(2, batch, places, 4))
        params = {
            name: params_of(layer, (places, 4), seed, "float64")
            for name, (layer, _) in PLAIN.items()
        }
        found = jax.jit(lambda *given: {name: both(name, p, *given) for name, p in params.items()})
        for name, sides in found(x, delta).items():
            fp.compare(*sides, title=name).assert_ok()


def test_the_layers_are_torch_s():
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(0)
    x, delta = (draw.normal(size=(3, 5, 4)).astype("float32") for _ in range(2))
    scale, b = (draw.normal(size=4).astype("float32") for _ in range(2))
    f = torch.nn.functional
    forms = {
        fp.layer_norm(): lambda x, s, b: f.layer_norm(x, (4,), s, b),
        fp.group_norm(2): lambda x, s, b: f.group_norm(x.permute(0, 2, 1), 2, s, b),
        fp.batch_norm(): lambda x, s, b: f.batch_norm(
            x.permute(0, 2, 1), None, None, s, b, training=True
        ),
    }
    for layer, theirs in forms.items():
        tensors = [torch.tensor(leaf, requires_grad=True) for leaf in (x, scale, b)]
        due = theirs(*tensors)
        due = due if layer.name == "layer_norm" else due.permute(0, 2, 1)
        due.backward(torch.tensor(delta))
        y, delta_x, grads = swept(layer, {"scale": scale, "b": b}, jnp.asarray(x), delta)
        found = (y, delta_x, grads["scale"], grads["b"])
        for ours, torchs in zip(found, (due, *(t.grad for t in tensors)), strict=True):
            np.testing.assert_allclose(ours, torchs.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["layer_norm", "group_norm", "batch_norm"])
def test_a_mean_of_1e4_and_a_spread_of_1e_2_in_float32(name):
    """Against float64 of the same float32 numbers; the plain form is off by some percent."""
    shape = (256, 16, 4) if name == "batch_norm" else (4, 64, 256)
    layer, normalised = (
        (fp.group_norm(4), lambda x: grouped(x, 4)) if name == "group_norm" else PLAIN[name]
    )
    draw = np.random.default_rng(0)
    x = (1e4 + 1e-2 * draw.normal(size=shape)).astype("float32")
    delta = draw.normal(size=shape).astype("float32")
    params = {"scale": jnp.ones(shape[-1]), "b": jnp.zeros(shape[-1])}
    y, delta_x, grads = jax.jit(lambda *args: swept(layer, *args))(params, x, delta)
    with jax.enable_x64(True):

        @jax.jit
        def wide(x, delta):
            due, pullback = jax.vjp(normalised, x)
            return due, pullback(delta)[0]

        due, due_x = jax.device_get(wide(x.astype("float64"), delta.astype("float64")))
        along = (due * delta).sum(tuple(range(x.ndim - 1)))
    np.testing.assert_allclose(y, due, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(delta_x, due_x, rtol=1e-4, atol=1e-4 * float(abs(due_x).max()))
    np.testing.assert_allclose(grads["scale"], along, rtol=1e-3, atol=1e-2)
    plain = jax.jit(normalised)(x)
    assert abs(np.asarray(plain) - due).max() > 1e-3


def network():
    return fp.serial(
        fp.dense(6),
        fp.batch_norm(),
        fp.relu,
        fp.repeat(fp.residual(fp.serial(fp.dense(6), fp.batch_norm(), fp.tanh)), 3),
        fp.remat(fp.serial(fp.dense(3), fp.batch_norm(bias=False))),
        fp.dropout(0.5),
    )


@pytest.fixture(scope="module")
def calibrated():
    """A network, its parameters, the data, and its calibrated form."""
    model = network()
    params = params_of(model, (4,))
    x = jnp.asarray(np.random.default_rng(0).normal(1, 3, size=(32, 4)), jnp.float32)
    frozen, kept = fp.calibrate(model, params, x)
    assert kept is params
    return model, params, x, frozen


def sites_of(model, shape):
    leaves = jax.tree.leaves(fp.sites(model, shape), is_leaf=lambda s: isinstance(s, fp.Site))
    return [leaf for leaf in leaves if isinstance(leaf, fp.Site)]


def test_a_calibrated_model_gives_what_training_on_the_same_batch_gives(calibrated):
    model, params, x, frozen = calibrated
    due, y, alone = jax.jit(
        lambda params, x: (
            model.apply(params, x),
            frozen.apply(params, x),
            frozen.apply(params, x[:1]),
        )
    )(params, x)
    np.testing.assert_allclose(y, due, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(alone, due[:1], rtol=1e-4, atol=1e-5)
    assert fp.statistics_of(frozen)[3][0][0][1]["mean"].shape == (3, 6)
    assert [site.name for site in sites_of(frozen, (4,))].count("frozen_norm") == 3
    assert not any(site.mixes for site in sites_of(frozen, (4,)))
    assert needs_calibration(model)
    assert not needs_calibration(frozen)


def test_both_forms_take_the_same_parameters(calibrated):
    _, params, x, frozen = calibrated

    @jax.jit
    def both(params, x):
        y, pullback = jax.vjp(lambda params: frozen.apply(params, x), params)
        return swept(frozen, params, x, jnp.ones_like(y))[2], pullback(jnp.ones_like(y))[0]

    made = jax.eval_shape(lambda: frozen.init(KEY, (4,))[0])
    chex.assert_trees_all_equal_shapes_and_dtypes(made, params)
    fp.compare(*both(params, x)).assert_ok()


def test_every_part_of_a_calibrated_model_is_checked():
    """Each repetition too, with the statistics that it holds."""
    model = fp.repeat(fp.residual(fp.batch_norm(bias=False)), 2)
    params, _ = model.init(KEY, (2,))
    x = jnp.array([[0.0, 5.0], [2.0, -3.0], [1.0, 1.0]])
    frozen, _ = fp.calibrate(model, params, x)
    report = fp.check_model(frozen, params, x, jnp.zeros((3, 2)), fp.mean_squared_error, parts=True)
    report.assert_ok()
    assert len([part for part in report.parts if "frozen_norm" in part.title]) == 2


def test_each_example_of_a_calibrated_model_has_its_own_gradient(calibrated):
    _, params, x, frozen = calibrated
    target = jnp.zeros((5, 3))
    gradients = fp.statistics.per_example_gradients(frozen, fp.mean_squared_error)

    def losses(params):
        return fp.mean_squared_error.apply((), (frozen.apply(params, x[:5]), target))

    found, due = jax.jit(
        lambda params: (gradients(params, x[:5], target), jax.jacrev(losses)(params))
    )(params)
    fp.compare(found, due).assert_ok()


def test_batches_are_taken_together_whatever_their_sizes():
    """The first batch norm sees the same data however they are cut; large means survive."""
    model = fp.batch_norm()
    params, _ = model.init(KEY, (3,))
    x = np.random.default_rng(0).normal(size=(60, 3)).astype("float32") * 1e-2 + 1e4
    cut = [x[:7], x[7:8], x[8:40], x[40:]]
    frozen, _ = fp.calibrate(model, params, (batch for batch in cut))
    held = fp.statistics_of(frozen)
    np.testing.assert_allclose(held["mean"], x.astype("float64").mean(0), rtol=1e-7)
    np.testing.assert_allclose(held["variance"], x.astype("float64").var(0), rtol=1e-3)


def test_calibration_leaves_a_model_without_batch_norm_alone():
    model = fp.serial(fp.dense(3), fp.residual(fp.layer_norm()))
    params, _ = model.init(KEY, (4,))
    frozen, kept = fp.calibrate(model, params, jnp.ones((2, 4)))
    assert frozen is model
    assert kept is params
    assert fp.statistics_of(model) == ()
    assert fp.with_statistics(model, ()) is model


def test_batch_norms_are_found_in_every_combinator():
    norm = fp.batch_norm
    two = fp.serial(fp.dense(4), norm(), fp.dense(4), norm())
    model = fp.serial(
        fp.fork(2),
        fp.parallel(fp.cast(norm(), "bfloat16"), fp.remat(norm())),
        fp.on(1, fp.bidirectional(fp.residual(norm()), norm())),
        fp.pick(1),
        fp.dense(4),
        # One set of parameters, two sets of statistics; a norm that is not shared as well.
        fp.share(fp.serial(norm(), fp.dense(4), norm(), fp.tanh, norm()), (0,), (4,)),
        fp.share(two, (0,), (2,)),
        fp.transformer_block(2, norm=norm()),
        fp.repeat(fp.repeat(fp.remat(fp.serial(fp.dense(4), norm(), fp.tanh)), 2), 3),
    )
    params = params_of(model, (3, 4))
    x = np.random.default_rng(0).normal(1, 2, size=(16, 3, 4)).astype("float32")
    frozen, _ = fp.calibrate(model, params, x)
    y, due = jax.jit(lambda params, x: (frozen.apply(params, x), model.apply(params, x)))(params, x)
    np.testing.assert_allclose(y, due, rtol=1e-3, atol=1e-3)
    assert not any(site.mixes for site in sites_of(frozen, (3, 4)))
    held = fp.statistics_of(frozen)
    assert len(jax.tree.leaves(held)) == 2 * (2 + 2 + 3 + 2 + 2 + 1)
    assert held[8][0][0][0][1]["variance"].shape == (3, 2, 4)
    first, last = held[5][0][0], held[5][0][4]
    assert abs(first["mean"] - last["mean"]).max() > 0.01


def test_messages_of_a_graph_are_calibrated():
    model = fp.message_passing(
        fp.serial(fp.concatenate, fp.dense(3), fp.batch_norm()),
        fp.serial(fp.concatenate, fp.dense(4), fp.batch_norm()),
    )
    nodes = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    x = (nodes, np.array([[[0, 1], [1, 2], [3, 4]]] * 2, np.int32))
    shape = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)
    params = params_of(model, shape)
    frozen, _ = fp.calibrate(model, params, x)
    y, due = jax.jit(lambda *given: (frozen.apply(*given)[0], model.apply(*given)[0]))(params, x)
    np.testing.assert_allclose(y, due, rtol=1e-4, atol=1e-4)


def test_a_norm_that_is_frozen_already_may_be_repeated():
    norm = fp.frozen_norm(jnp.array([1.0, 2.0]), jnp.array([4.0, 9.0]))
    model = fp.repeat(norm, 3)
    params, _ = model.init(KEY, (2,))
    x = jax.random.normal(KEY, (5, 2))
    one = norm.init(KEY, (2,))[0]
    due = norm.apply(one, norm.apply(one, norm.apply(one, x)))
    np.testing.assert_array_equal(model.apply(params, x), due)
    assert fp.statistics_of(model)[0]["mean"].tolist() == [[1.0, 2.0]] * 3
    again = fp.repeat(model, 2)  # of what holds the statistics of three repetitions
    assert fp.statistics_of(again)[0][0]["mean"].shape == (2, 3, 2)
    same = model.rebuild(model.parts)
    np.testing.assert_array_equal(same.apply(params, x), due)


def test_a_norm_that_no_part_shows_is_not_left_in_training():
    hidden = fp.serial(fp.dense(3), fp.batch_norm())._replace(parts=(), rebuild=None)
    model = fp.serial(hidden, fp.batch_norm())
    params, _ = model.init(KEY, (4,))
    message = r"layers\[0\]\.layers\[1\] batch_norm: it mixes the examples .* can't freeze it"
    for whole, own in ((model, params), (hidden, params[0])):
        with pytest.raises(LayerError, match=message.removeprefix(r"layers\[0\]\.")):
            fp.calibrate(whole, own, jnp.ones((2, 4)))


def test_statistics_go_through_a_checkpoint_to_the_bit(calibrated, tmp_path):
    """In a fresh model, from leaves alone: the structure is had without computing anything."""
    _, params, x, frozen = calibrated
    np.savez(tmp_path / "statistics.npz", *jax.tree.leaves(fp.statistics_of(frozen)))
    fresh = network()
    template = jax.eval_shape(
        lambda params, x: fp.statistics_of(fp.calibrate(fresh, params, x)[0]), params, x
    )
    with np.load(tmp_path / "statistics.npz") as stored:
        leaves = [stored[name] for name in stored.files]
    loaded = jax.tree.unflatten(jax.tree.structure(template), leaves)
    y, due = (jax.jit(m.apply)(params, x) for m in (fp.with_statistics(fresh, loaded), frozen))
    np.testing.assert_array_equal(y, due)


def test_new_statistics_need_no_new_program(calibrated):
    model, params, x, frozen = calibrated
    traced = []

    def noted(params, x, key=None):
        traced.append(x.shape)
        return x, ()

    model = fp.serial(fp.identity._replace(forward=noted), model)
    params = ((), params)
    seen = observer(model)
    evaluated = jax.jit(lambda params, held, x: fp.with_statistics(model, held).apply(params, x))
    for data in ([x[:16], x[16:]], [x[16:], x[:16]]):
        held = seen(params, data)
        y = evaluated(params, held, x)
        again, _ = fp.calibrate(frozen, params[1], data)
        due = jax.jit(again.apply)(params[1], x)
        np.testing.assert_allclose(y, due, rtol=1e-4, atol=1e-4)
    assert traced == [(16, 4), (32, 4)]


def test_a_bad_value_that_comes_traced_gives_nan():
    x = jnp.ones((2, 1))

    @jax.jit
    def run(mean, variance):
        norm = fp.frozen_norm(mean, variance, bias=False, epsilon=1.0)
        y, residuals = norm.forward({"scale": jnp.ones(1)}, x)
        return y, norm.backward({"scale": jnp.ones(1)}, residuals, x)

    assert all(leaf > 0 for leaf in jax.tree.leaves(run(jnp.zeros(1), jnp.ones(1)))[0])
    for bad in (-0.5, jnp.inf, jnp.nan):
        found = run(jnp.zeros(1), jnp.full(1, bad))
        assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_statistics_of_narrow_floats_are_float32(dtype):
    """70,000 values would overflow a count in float16, and a mean of 300 is not one in bfloat16."""
    x = np.random.default_rng(0).normal(300.7, size=(70_000, 2)).astype(dtype)
    params = params_of(fp.batch_norm(), (2,), dtype=dtype)
    for model in (fp.batch_norm(), fp.cast(fp.batch_norm(), "float32")):
        frozen, _ = fp.calibrate(model, params, x)
        held = fp.statistics_of(frozen)
        held = held if isinstance(held, dict) else held[0]
        wide = np.asarray(x.astype("float32"))
        assert held["mean"].dtype == held["variance"].dtype == jnp.float32
        np.testing.assert_allclose(held["mean"], wide.mean(0, dtype="float64"), rtol=1e-6)
        np.testing.assert_allclose(held["variance"], wide.var(0, dtype="float64"), rtol=1e-4)
        assert frozen.apply(params, x[:2]).dtype == x.dtype


@pytest.mark.slow
def test_a_calibrated_model_is_trained_as_one_with_constants():
    """K-FAC and weight decay see no parameter in them: both rules end where plain jax.grad does."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(64, 4)).astype("float32") * [1, 5, 0.2, 2] + [0, 3, 0, -9]
    x = x.astype("float32")
    y = np.stack([x[:, 0] * x[:, 1], x[:, 3]], axis=1) / 5
    model = fp.serial(fp.batch_norm(), fp.dense(16, fp.tanh), fp.batch_norm(), fp.dense(2))
    params, _ = model.init(KEY, (4,))
    frozen, params = fp.calibrate(model, params, x)
    before = jax.tree.map(np.asarray, fp.statistics_of(frozen))
    means = [(held["mean"], held["variance"]) for held in (before[0], before[2])]

    @jax.jit
    def plain(params, x):
        first, hidden, second, last = params
        for norm, affine, (mean, variance) in zip(
            (first, second), (hidden, last), means, strict=True
        ):
            x = (x - mean) / jnp.sqrt(variance + 1e-5) * norm["scale"] + norm["b"]
            x = x @ affine["w"].T + affine["b"]
            x = jnp.tanh(x) if affine is hidden else x
        return x

    def mean_loss(params):
        return jnp.mean(fp.mean_squared_error.apply((), (plain(params, x), y)))

    optimizer = optax.adamw(3e-2, weight_decay=0.1)
    rule = fp.backpropagation(frozen, fp.mean_squared_error)
    with jax.numpy_dtype_promotion("standard"):
        state, _ = fp.fit(rule, optimizer, params, (x, y), key=KEY, steps=40)
        theirs, moments = params, optimizer.init(params)
        step = jax.jit(lambda p, s: optimizer.update(jax.grad(mean_loss)(p), s, p))
        for _ in range(40):
            updates, moments = step(theirs, moments)
            theirs = optax.apply_updates(theirs, updates)
        np.testing.assert_allclose(mean_loss(state.params), mean_loss(theirs), rtol=1e-3)

        rule = fp.kfac(frozen, fp.mean_squared_error, (4,), errors=fp.statistics.exact)
        optimizer = optax.chain(fp.statistics.precondition_by_kfac(1e-3), optax.sgd(0.1))
        state, history = fp.fit(rule, optimizer, params, (x, y), key=KEY, steps=60)
    assert history["loss"][-1] < 0.015  # with the statistics among the parameters it is 0.026
    np.testing.assert_allclose(plain(state.params, x), frozen.apply(state.params, x), atol=1e-4)
    after = fp.statistics_of(frozen)
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_the_statistics_of_torch_are_taken_as_they_are():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(6, 3)).astype("float32") * 2 + 1
    theirs = torch.nn.BatchNorm1d(3, momentum=1.0)
    theirs(torch.tensor(x))
    running = [t.numpy() for t in (theirs.running_mean, theirs.running_var)]
    ours = fp.frozen_norm(*running)
    params, _ = ours.init(KEY, (3,))
    due = theirs.eval()(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(ours.apply(params, jnp.asarray(x)), due, rtol=1e-5, atol=1e-6)
    # Theirs is the sum of squares over n - 1, what calibrate finds that over n.
    held = fp.statistics_of(fp.calibrate(fp.batch_norm(), params, x)[0])
    np.testing.assert_allclose(held["variance"] * (6 / 5), running[1], rtol=1e-5)


def test_a_summary_shows_constants_apart_from_the_parameters():
    model = fp.repeat(fp.residual(fp.serial(fp.dense(2), fp.batch_norm())), 3)
    params, _ = model.init(KEY, (2,))
    frozen, _ = fp.calibrate(model, params, jnp.arange(8.0).reshape(4, 2))
    found, plain = fp.summary(frozen, (2,)), fp.summary(model, (2,))
    assert (
        str(found)
        .splitlines()[-2]
        .endswith("12  b (2,)  scale (2,)  constants mean (3, 2)  variance (3, 2)")
    )
    assert str(found).splitlines()[-1].endswith("30  and 12 constants")
    assert found.parameters == plain.parameters == sum(map(jnp.size, jax.tree.leaves(params)))
    assert (found.constants, plain.constants) == (12, 0)
    assert "constants" not in str(plain)


def test_dropout_keeps_its_share_and_its_mask():
    x = jnp.ones((100, 100))
    layer = fp.dropout(0.3)
    y, mask = layer.forward((), x, KEY)
    assert mask.dtype == bool
    kept = float(mask.mean())
    assert kept == pytest.approx(0.7, abs=0.03)
    mask = np.asarray(mask)
    np.testing.assert_allclose(y, mask / 0.7, rtol=1e-6)
    np.testing.assert_allclose(
        layer.backward((), jnp.asarray(mask), 2 * x)[0], 2 * mask / 0.7, rtol=1e-6
    )
    other = layer.forward((), x, jax.random.key(1))[1]
    assert (mask != other).any()


@pytest.mark.parametrize("key", [None, KEY])
def test_dropout_that_drops_nothing(key):
    x = jax.random.normal(KEY, (3, 4))
    layer = fp.dropout(0.5 if key is None else 0)
    y, residuals = layer.forward((), x, key)
    assert residuals is None
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(layer.backward((), residuals, x)[0], x)


def test_dropout_draws_another_mask_in_every_layer_of_a_model():
    model = fp.serial(fp.dropout(0.5), fp.dropout(0.5))
    y = model.apply(((), ()), jnp.ones((1, 1000)), KEY)
    assert set(np.unique(y)) == {0.0, 4.0}
    assert float((y > 0).mean()) == pytest.approx(0.25, abs=0.05)
    deep = fp.repeat(fp.dropout(0.5), 2)
    y = deep.apply(deep.init(KEY, (1000,))[0], jnp.ones((1, 1000)), KEY)
    assert float((y > 0).mean()) == pytest.approx(0.25, abs=0.05)


ONE = jnp.ones(1)


NUMBERS = {
    "epsilon": (
        lambda v: fp.layer_norm(epsilon=v),
        lambda v: fp.rms_norm(epsilon=v),
        lambda v: fp.group_norm(2, epsilon=v),
        lambda v: fp.batch_norm(epsilon=v),
        lambda v: fp.frozen_norm(ONE, ONE, epsilon=v),
    ),
    "rate": (fp.dropout,),
    "dropout_rate": (lambda v: fp.transformer_block(2, dropout_rate=v),),
    "slope": (fp.leaky_relu, lambda v: fp.graph_attention(2, slope=v)),
    "alpha": (fp.elu, fp.celu),
    "base": (fp.rotary, fp.sinusoidal, lambda v: fp.multi_head_attention(2, rotary_base=v)),
    "phase": (lambda v: fp.diagonal_recurrence(phase=v), lambda v: fp.ssm(2, phase=v)),
    "a radius": (
        lambda v: fp.diagonal_recurrence(radius=(v, 1.0)),
        lambda v: fp.ssm(2, radius=(0.1, v)),
    ),
    "threshold": (fp.huber,),
    "label_smoothing": (
        fp.softmax_cross_entropy,
        lambda v: fp.linear_cross_entropy(3, label_smoothing=v),
    ),
}


@pytest.mark.parametrize("argument", NUMBERS)
def test_an_option_that_is_a_number_is_finite(argument):
    for make in NUMBERS[argument]:
        for value in (0.5, np.float32(0.5), np.float64(0.5)):
            make(value)
        for value in (np.inf, -np.inf, np.nan, True, np.True_, "0.5", 10**400):
            with pytest.raises(LayerError, match=f"{argument} is .*, it must be a finite number"):
                make(value)
