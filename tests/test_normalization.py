"""Norms and dropout: jax.vjp of the plain forms, PyTorch, large means, calibration, faults."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funcprop as fp
from funcprop import LayerError
from funcprop.checking.cases.case import normal
from funcprop.checking.cases.normalization import keyed, spread_out
from funcprop.layers import batch_norm as batch_module
from funcprop.layers import dropout as dropout_module
from funcprop.layers import normalization as module

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


@settings(deadline=None, derandomize=True, max_examples=3)
@given(batch=st.integers(2, 5), places=st.integers(3, 5), seed=st.integers(0, 99))
@pytest.mark.parametrize("name", PLAIN)
def test_the_plain_form(name, batch, places, seed):
    layer, normalised = PLAIN[name]
    with jax.enable_x64(True):
        draw = np.random.default_rng(seed)
        x, delta = (jnp.asarray(draw.normal(size=(batch, places, 4))) for _ in range(2))
        params = jax.tree.map(
            lambda leaf: jnp.asarray(draw.normal(size=leaf.shape)), layer.init(KEY, (places, 4))[0]
        )

        def plain(params, x):
            y = normalised(x) * params["scale"]
            return y + params["b"] if "b" in params else y

        y, pullback = jax.vjp(plain, params, x)
        found, delta_x, grads = swept(layer, params, x, delta)
        fp.compare((found, grads, delta_x), (y, *pullback(delta))).assert_ok()


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
        wide = jnp.asarray(x.astype("float64"))
        due, pullback = jax.vjp(normalised, wide)
        due_x = np.asarray(pullback(jnp.asarray(delta.astype("float64")))[0])
        due = np.asarray(due)
        along = (due * delta).sum(tuple(range(wide.ndim - 1)))
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


def test_a_calibrated_model_gives_what_training_on_the_same_batch_gives():
    model = network()
    params, _ = model.init(KEY, (4,))
    x = jax.random.normal(KEY, (32, 4)) * 3 + 1
    frozen, kept = fp.calibrate(model, params, x)
    np.testing.assert_allclose(frozen.apply(kept, x), model.apply(params, x), rtol=1e-4, atol=1e-5)
    # Every example is now on its own.
    np.testing.assert_allclose(
        frozen.apply(kept, x[:1]), model.apply(params, x)[:1], rtol=1e-4, atol=1e-5
    )
    assert kept[3][1]["mean"].shape == (3, 6)
    sites = jax.tree.leaves(fp.sites(frozen, (4,)), is_leaf=lambda s: isinstance(s, fp.Site))
    assert [s.name for s in sites if isinstance(s, fp.Site)].count("frozen_norm") == 3
    assert not any(s.mixes for s in sites if isinstance(s, fp.Site))


def test_batches_are_taken_together_whatever_their_sizes():
    """The first batch norm sees the same data however they are cut; large means survive."""
    model = fp.batch_norm()
    params, _ = model.init(KEY, (3,))
    x = np.random.default_rng(0).normal(size=(60, 3)).astype("float32") * 1e-2 + 1e4
    cut = [x[:7], x[7:8], x[8:40], x[40:]]
    _, kept = fp.calibrate(model, params, (batch for batch in cut))
    np.testing.assert_allclose(kept["mean"], x.astype("float64").mean(0), rtol=1e-7)
    np.testing.assert_allclose(kept["variance"], x.astype("float64").var(0), rtol=1e-3)


def test_calibration_leaves_a_model_without_batch_norm_alone():
    model = fp.serial(fp.dense(3), fp.layer_norm())
    params, _ = model.init(KEY, (4,))
    frozen, kept = fp.calibrate(model, params, jnp.ones((2, 4)))
    assert frozen is model
    fp.compare(kept, params).assert_ok()


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


X = jnp.ones((2, 3, 4))
P = {"scale": jnp.ones(4), "b": jnp.ones(4)}


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: fp.layer_norm(epsilon=0), "layer_norm: epsilon is 0, a number above 0 is due"),
        (lambda: fp.rms_norm(epsilon="a"), "rms_norm: epsilon is 'a'"),
        (lambda: fp.batch_norm(epsilon=-1), "epsilon is -1"),
        (lambda: fp.layer_norm().apply(P, X[..., :3]), "x has 3 features, b is (.4,.); check"),
        (lambda: fp.layer_norm().apply(P, X.astype("bfloat16")), "x is bfloat16, b is float32"),
        (lambda: fp.layer_norm().apply(P, X.astype(int)), "x is int32, floats are due"),
        (lambda: fp.layer_norm().apply(P, X[0, 0]), r"x has shape \(4,\), .* use x\[None\]"),
        (lambda: fp.rms_norm().apply(P, X), r"params is \['b', 'scale'\], a dict of \['scale'\]"),
        (lambda: fp.layer_norm().apply(X, X), "a dict of"),
        (lambda: fp.layer_norm().init(KEY, ()), r"shape is \(\), one example's shape"),
        (lambda: fp.group_norm(0), "groups is 0, a whole number above 0"),
        (lambda: fp.group_norm(3).init(KEY, (2, 4)), "groups is 3, a divisor of the channels"),
        (lambda: fp.group_norm(3).apply(P, X), "groups is 3, a divisor of the channels"),
        (lambda: fp.frozen_norm().apply(P, X), r"params is \['b', 'scale'\], a dict of \['b', 'me"),
        (lambda: fp.dropout(1.0), r"dropout: rate is 1.0, a number in \[0, 1\) is due"),
        (lambda: fp.dropout(-0.1), "rate is -0.1"),
        (lambda: fp.dropout(jnp.ones(())), "rate is Array"),
        (lambda: fp.dropout(0.1).apply((), X.astype(int)), "dropout: x is int32"),
        (lambda: fp.calibrate(fp.batch_norm(), P, []), "calibrate: data holds no batch"),
        (
            lambda: fp.calibrate(
                shared := fp.share(fp.serial(fp.batch_norm(), fp.batch_norm()), (0,), (1,)),
                shared.init(KEY, (4,))[0],
                X,
            ),
            "a batch_norm lies inside share",
        ),
    ],
)
def test_what_is_refused(run, message):
    with pytest.raises(LayerError, match=message):
        run()


TOKENS = normal(4, 3, 4)


@pytest.mark.parametrize(
    ("broken", "old", "new", "make"),
    [
        (module, "- weighted(delta, scale / n)", "", "m.layer_norm()"),
        (module, "- x * along", "+ x * along", "m.layer_norm()"),
        (
            module,
            "g, scale, x, inverse, delta):\n        n =",
            "g, scale, x, inverse, delta):\n        inverse = inverse**2\n        n =",
            "m.layer_norm()",
        ),
        (module, "product = total(accumulated(normal) *", "product = total(", "m.rms_norm()"),
        (module, "g - x * weighted(delta * x,", "g - weighted(delta * x,", "m.rms_norm()"),
        (module, "(g - x * weighted(", "(g + x * weighted(", "m.rms_norm()"),
        (module, "(g - mean(g) - x * mean(g * x))", "(g - x * mean(g * x))", "m.group_norm(2)"),
        (
            module,
            "(g - mean(g) - x * mean(g * x))",
            "(g - mean(g) - mean(g * x))",
            "m.group_norm(2)",
        ),
        (module, '"b": total(delta)', '"b": -total(delta)', "m.group_norm(2)"),
        (batch_module, "(g - _mean(g) - x", "(g - x", "m.batch_norm()"),
        (batch_module, "- x * _mean(g * x))", "+ x * _mean(g * x))", "m.batch_norm()"),
        (batch_module, '* accumulated(weights["scale"]), acc', ", acc", "m.batch_norm()"),
        (batch_module, "-total(wide) * slope", "total(wide) * slope", "m.frozen_norm()"),
        (batch_module, "-0.5 * along", "-along", "m.frozen_norm()"),
        (batch_module, "along * slope * inverse", "along * slope", "m.frozen_norm()"),
        (dropout_module, "else thinned(delta, mask)", "else delta", "dropout"),
        (
            dropout_module,
            "else thinned(delta, mask)",
            "else thinned(delta, ~mask)",
            "dropout",
        ),
        (
            dropout_module,
            "thinned(delta, mask), ()",
            "-thinned(delta, mask), ()",
            "dropout",
        ),
    ],
)
def test_planted_faults_are_found(fault_is_found, broken, old, new, make):
    def layer(m):
        return keyed(m.dropout(0.4)) if make == "dropout" else spread_out(eval(make))

    fault_is_found(broken, old, new, layer, TOKENS)
