"""What a checker must not say: that a right gradient is wrong, or a cause that is not the cause."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

import funcprop as fp
from funcprop import Layer, LayerError, check_gradient, check_layer, check_model, gradient
from funcprop.checking import check_rule
from funcprop.checking.diagnosis.searches import is_wrong
from funcprop.checking.oracles import slopes_of
from funcprop.checking.widening import widened

X = np.random.default_rng(0).normal(size=6).astype(np.float32)
KEY = jax.random.key(0)
SLOW = pytest.mark.slow


def kinds(report):
    return [found.kind for found in report.findings]


# ------------------------------------------------------------- whose error it is


def test_the_automatic_side_may_be_the_worse_one(no_cause):
    """Cancellation, an overflow and an underflow that jax.grad has and the other side has not."""
    far = jnp.asarray(1000 + X)
    check_gradient(
        lambda x: jnp.mean(x**2) - jnp.mean(x) ** 2, lambda x: 2 * (x - x.mean()) / x.size, far
    ).assert_ok()
    report = check_gradient(
        lambda x: jnp.log(jnp.sum(jnp.exp(x))), lambda x: jax.nn.softmax(x), jnp.asarray(X + 100)
    )
    report.assert_ok()
    assert "the error is that of jax.grad, manual is right" in report.notes[0]
    tiny = jnp.array([1e-30, 2e-30], jnp.float32)

    def by_hand(x):
        y = x / jnp.max(jnp.abs(x))
        return y / jnp.linalg.norm(y)

    report = check_gradient(lambda x: jnp.sqrt(jnp.sum(x**2)), by_hand, tiny)
    report.assert_ok()
    assert "jax.grad is not finite in 2 of 2 entries" in report.notes[0]
    wrong = check_gradient(lambda x: jnp.sqrt(jnp.sum(x**2)), lambda x: 2 * by_hand(x), tiny)
    assert not wrong.ok


def safe_sqrt(z):
    return jnp.where(z > 0, jnp.sqrt(z), 0.0)


def safe_slope(z):
    return jnp.where(z > 0, 0.5 / jnp.sqrt(jnp.where(z > 0, z, 1.0)), 0.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_nan_of_the_automatic_side_in_every_dtype(dtype):
    x = np.array([[-1.0, 2.0, 3.0]])
    report = check_layer(fp.elementwise(safe_sqrt, safe_slope), x=x, dtype=dtype)
    report.assert_ok()
    assert "that of jax.vjp, manual is right" in report.notes[0]
    wrong = fp.elementwise(safe_sqrt, lambda z: 1.01 * safe_slope(z))
    assert not check_layer(wrong, x=x, dtype=dtype, diagnose=False).ok


def spread_of(factor):
    """Variances by the textbook's formula: the automatic gradient cancels, by hand it does not."""

    def forward(params, x, key=None):
        return jnp.mean(x * x, 1) - jnp.mean(x, 1) ** 2, x

    def backward(weights, x, delta, statistic=gradient):
        centred = x - x.mean(1, keepdims=True)
        return factor * 2 * delta[:, None] * centred / x.shape[1], ()

    return Layer(fp.stateless, forward, backward, "variance")


def test_what_is_wrong_in_float64_too_is_not_excused():
    x = 3e4 + np.random.default_rng(2).normal(size=(4, 8))
    report = check_layer(spread_of(1.0), x=x)
    report.assert_ok()
    assert "is nearer to float64 than jax.vjp" in report.notes[0]
    assert not check_layer(spread_of(1.002), x=x, diagnose=False).ok


KINKED = jnp.array([0.0, 1.0, -2.0, 0.5, -1.0])


@pytest.mark.parametrize(
    ("f", "slope", "x"),
    [
        (lambda x: jnp.maximum(x, 0).sum(), lambda x: (x >= 0).astype(x.dtype), KINKED),
        (lambda x: jnp.maximum(x, 0).sum(), lambda x: (x > 0).astype(x.dtype), 0 * KINKED),
        (lambda x: jnp.abs(x).sum(), lambda x: jnp.where(x > 0, 1.0, -1.0), KINKED),
        (jnp.max, lambda x: jax.nn.one_hot(jnp.argmax(x), x.size), jnp.array([1.0, 1.0, 0.5])),
    ],
    ids=["relu", "relu of zeros", "abs", "a tie"],
)
def test_a_kink_is_called_a_kink(f, slope, x, no_cause):
    report = check_gradient(f, slope, x)
    report.assert_ok()
    assert "at a kink, where both sides may be right" in report.notes[0]
    # Beyond the slopes of both sides, or wrong elsewhere, it is wrong.
    assert not check_gradient(f, lambda x: 3 * slope(x) + 2, x).ok
    if x.any():
        assert not check_gradient(f, lambda x: slope(x) + 0.1 * (x == x.max()), x).ok


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_kink_of_a_layer(dtype):
    layer = fp.elementwise(
        lambda z: jnp.maximum(z, 0), lambda z: (z >= 0).astype(z.dtype), name="relu of mine"
    )
    report = check_layer(layer, x=np.array([[0.0, 1.0, -1.0]]), dtype=dtype)
    report.assert_ok()
    assert "at a kink" in report.notes[0]


def test_differences_with_steps_that_fit_the_point(x64):
    """Of tiny and of huge numbers, and where the values cancel."""
    for scale in (1e-30, 1e12):
        point = jnp.array([1.0, 2.0]) * scale
        slopes, *_, rejected = slopes_of(lambda x: jnp.sqrt(jnp.sum(x**2)), point)
        np.testing.assert_allclose(slopes, np.array([1, 2]) / np.sqrt(5), rtol=1e-6)
        assert not rejected.any()


# ---------------------------------------------------- random numbers, and float32 written out


def test_random_numbers_are_those_that_were_drawn():
    x = jnp.asarray(X)

    def f(x, key):
        return jnp.sum(x * jax.random.normal(key, x.shape))

    for key in (KEY, jax.random.PRNGKey(0)):
        report = check_gradient(f, lambda x, key: jax.random.normal(key, x.shape), x, key)
        report.assert_ok()
        assert report.notes == ()
    report = check_gradient(f, lambda x, key: 2 * jax.random.normal(key, x.shape), x, key)
    assert kinds(report) == ["factor"]


@pytest.mark.slow
def test_random_numbers_of_a_model_are_those_that_were_drawn():
    model = fp.serial(fp.dense(3), fp.dropout(0.5))
    report = check_layer(model, (5,))
    report.assert_ok()
    assert report.notes == ()
    params, _ = model.init(KEY, (5,))
    batch = np.ones((4, 5), np.float32), np.zeros((4, 3), np.float32)
    check_model(model, params, *batch, fp.mean_squared_error, key=KEY, parts=True).assert_ok()
    rule = fp.backpropagation(model, fp.mean_squared_error)
    check_rule(rule, model, fp.mean_squared_error, params, *batch, key=KEY).assert_ok()


IMAGES = jnp.ones((2, 8, 3)) * X[:3]
WEIGHTS = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)), "float32")
CONV = {"window_strides": (1,), "padding": "SAME", "dimension_numbers": ("NHC", "HIO", "NHC")}


def scanned(w):
    return jnp.sum(jax.lax.scan(lambda h, u: (jnp.tanh(w @ h + u), h), jnp.zeros(3), IMAGES[0])[0])


def scanned_in_float32(w):
    zeros = jnp.zeros(3, jnp.float32)
    return jnp.sum(jax.lax.scan(lambda h, u: (jnp.tanh(w @ h + u), h), zeros, IMAGES[0])[0])


FLOAT32 = {
    "convolution of what is closed over": lambda w: jnp.sum(
        jax.lax.conv_general_dilated(IMAGES, w[None] + 0 * IMAGES[0, :1, :, None], **CONV) ** 2
    ),
    "scan": scanned,
    "scan from float32": scanned_in_float32,
    "fori_loop": lambda w: jnp.sum(
        jax.lax.fori_loop(0, 3, lambda i, h: jnp.sin(w @ h), jnp.ones(3, jnp.float32))
    ),
    "cond": lambda w: jnp.sum(
        jax.lax.cond(w[0, 0] > 9, lambda w: w, lambda w: w.astype(jnp.float32) ** 3, w)
    ),
    "scatter": lambda w: jnp.sum(
        jnp.zeros((3, 3), jnp.float32).at[jnp.array([0, 0])].add(w[:2].astype(jnp.float32)) ** 2
    ),
    "sort and cumsum": lambda w: jnp.sum(jnp.cumsum(jnp.sort(w.astype(jnp.float32), 0), 0) ** 2),
}


FEW = ("scan from float32", "cond", "scatter")


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=SLOW) for name in FLOAT32]
)
def test_float32_written_in_the_code(name):
    f = FLOAT32[name]
    check_gradient(f, jax.grad(f), WEIGHTS).assert_ok()
    report = check_gradient(f, lambda w: -jax.grad(f)(w), WEIGHTS)
    assert kinds(report) == ["sign"]
    assert not report.notes  # it was judged in float64
    with jax.enable_x64(True):
        wide = widened(jax.grad(f), (WEIGHTS,), False)
        found = wide.call(np.asarray(WEIGHTS, np.float64))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, jax.jit(jax.grad(f))(WEIGHTS), rtol=1e-4, atol=1e-5)


def plain_relu(written):
    def forward(params, x, key=None):
        return jnp.where(x > 0, x, 0), x

    def backward(weights, x, delta, statistic=gradient):
        return delta * jnp.where(x > 0, written(x), jnp.zeros(x.shape)), ()

    return Layer(fp.stateless, forward, backward, "relu of mine")


def test_a_plain_zeros_means_what_it_meant():
    for dtype in ("float32", "float64"):
        check_layer(plain_relu(lambda x: jnp.ones(x.shape)), (4,), dtype=dtype).assert_ok()
    report = check_layer(plain_relu(lambda x: jnp.ones(x.shape, "float32")), (4,), dtype="bfloat16")
    assert kinds(report) == ["dtype"]


def call(kernel, *args):
    out = jax.ShapeDtypeStruct(args[0].shape, args[0].dtype)
    return pl.pallas_call(kernel, grid=(1,), out_shape=out, interpret=True)(*args)


def sine_kernel(x, y):
    y[...] = jnp.sin(x[...])


def slope_kernel(x, delta, found):
    @pl.when(pl.program_id(0) >= 0)
    def _():
        found[...] = delta[...] * jnp.cos(x[...])


@jax.custom_vjp
def sine(x):
    return call(sine_kernel, x)


sine.defvjp(lambda x: (sine(x), x), lambda x, delta: (call(slope_kernel, x, delta),))


def test_a_kernel_that_asks_for_its_place():
    def f(x):
        return jnp.sum(sine(x) ** 2)

    check_gradient(f, jax.grad(f), WEIGHTS).assert_ok()
    report = check_gradient(f, lambda x: 2 * jnp.sin(x) * jnp.cos(3 * x), WEIGHTS)
    assert kinds(report) == ["unknown"]


def test_numpy_and_values_are_told_what_to_do():
    def f(x):
        return jnp.sum(x**2)

    x = jnp.asarray(X)
    with pytest.raises(LayerError, match=r"check_gradient: .*NumPy by jax.pure_callback"):
        check_gradient(f, lambda x: 2 * np.asarray(x), x)
    with pytest.raises(LayerError, match=r"check_gradient: .*value of a traced array.*lax.cond"):
        check_gradient(f, lambda x: 2 * x if x[0] > 0 else 3 * x, x)
    with pytest.raises(LayerError, match=r"compare: .*pure_callback"):
        fp.compare(lambda x: 2 * np.asarray(x), jax.grad(f), x)

    def called(x):
        out = jax.ShapeDtypeStruct(x.shape, np.float32)
        return jax.pure_callback(
            lambda v: (2 * np.asarray(v)).astype(np.float32), out, x, vmap_method="sequential"
        )

    check_gradient(f, called, x).assert_ok()
    assert kinds(check_gradient(f, lambda x: 3 * called(x), x)) == ["factor"]


@pytest.mark.filterwarnings("error")
def test_warnings_that_are_errors():
    x = jnp.array([-1.0, 2.0, 3.0])

    def f(x):
        return jnp.where(x > 0, jnp.sqrt(x), 0.0).sum()

    assert not check_gradient(f, lambda x: x * jnp.nan, x).ok
    assert not check_gradient(f, lambda x: x / 0, x).ok
    check_layer(fp.elementwise(jnp.log, lambda z: 1 / z), (3,))
    assert not check_gradient(lambda x: jnp.sum(x**9), lambda x: 1e38 * x**9, 1e4 * x).ok


# ---------------------------------------------------------------- no cause that is not it


@pytest.mark.parametrize(
    ("f", "slope"),
    [
        (lambda x, b: jnp.sum(b / x), lambda x, b: -b / x**2 * jnp.cos(b)),
        pytest.param(
            lambda x, b: jnp.sum(b * jnp.log(x)), lambda x, b: jnp.sin(5 * b) / x, marks=SLOW
        ),
    ],
    ids=["a quotient", "a logarithm"],
)
def test_what_is_not_finite_is_like_nothing(f, slope):
    one, bad = np.array([1.0, 2.0, 3.0]), np.array([np.inf, 5.0, 9.0])
    assert is_wrong(one, bad, 1e-9)
    assert is_wrong(bad, one, 1e-9)
    x = np.random.default_rng(4).uniform(1, 2, 5).astype(np.float32)
    assert kinds(check_gradient(f, slope, x, X[:5])) == ["unknown"]


def weighed(x):
    return jnp.sum(jnp.asarray(X[::-1].copy()) * jnp.sin(x))


@pytest.mark.parametrize("size", [0.0005, *(pytest.param(s, marks=SLOW) for s in (0.01, 0.003))])
def test_what_is_small_is_not_called_rounding(size):
    w = jnp.asarray(X[::-1].copy())
    report = check_gradient(weighed, lambda x: w * jnp.cos(x) + size * jnp.sin(3 * w), X)
    assert kinds(report) == ["unknown"]


def test_low_precision_is_said_of_narrow_casts_alone():
    f, x, w = weighed, jnp.asarray(X), jnp.asarray(X[::-1].copy())
    for narrow in ("bfloat16", "float16"):
        report = check_gradient(
            f, lambda x, narrow=narrow: w * jnp.cos(x).astype(narrow).astype(x.dtype), x
        )
        assert kinds(report) == ["low precision"]
        assert f"rounded to {narrow} on the way" in report.findings[0].statement
    trees = [np.array(v, np.float32) for v in (X, X * (1 + 2e-3 * np.cos(40 * X)))]
    assert kinds(fp.compare(*trees)) == ["unknown"]  # of two trees no program is known


@pytest.mark.parametrize(
    ("c", "kind", "said"),
    [(2 / 3, "factor", "2/3 of"), (-1.0, "sign", "turned"),
     pytest.param(2.0, "factor", "2 times", marks=SLOW),
     pytest.param(0.5, "factor", "1/2 of", marks=SLOW),
     pytest.param(1.37, "factor", "1.37 times", marks=SLOW)],
)  # fmt: skip
def test_a_ratio_that_all_leaves_share(c, kind, said):
    """Scalars too, of which one alone fits any factor."""
    y = jnp.asarray(X[::-1].copy())

    def f(p):
        return jnp.mean((jnp.tanh(p["a"] * X + p["b"]) * p["c"] - y) ** 2)

    p = {name: jnp.float32(v) for name, v in (("a", 0.7), ("b", -0.2), ("c", 1.3))}
    report = check_gradient(f, lambda p: jax.tree.map(lambda g: c * g, jax.grad(f)(p)), p)
    assert kinds(report) == [kind]
    assert report.findings[0].leaves == ("['a']", "['b']", "['c']")
    assert said in report.findings[0].statement


def test_one_wrong_entry_is_one_wrong_entry():
    def f(x):
        return jnp.sum(jnp.sin(x) * x[::-1])

    (found,) = check_gradient(f, lambda x: jax.grad(f)(x).at[4].set(0.123), jnp.asarray(X)).findings
    assert found.kind == "unknown"
    assert "one entry is wrong, [4]: it is 0.123 and must be" in found.statement


def test_n_minus_1_for_n():
    x, scale = jnp.ones((4, 1)) * X + jnp.arange(4.0)[:, None], jnp.asarray(X[::-1].copy())

    def f(x):
        return jnp.sum((x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale) ** 2)

    def by_hand(x):
        n, r = x.shape[-1], jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)
        delta = 2 * x * r * scale * scale
        return r * delta - x * r**3 * (delta * x).sum(-1, keepdims=True) / (n - 1)

    (found,) = check_gradient(f, by_hand, x).findings
    assert found.kind == "factor"
    assert "is 6/5 times what it must be (6 is the size of axis 1 of argument 0)" in found.statement


@pytest.mark.slow
def test_a_constant_is_named_with_the_value_that_it_has():
    """The effect of another constant is no straight line, and its value is solved for."""
    x = jnp.asarray(X)

    def slope(x, c):
        t = jnp.tanh(c * x)
        return t + x * c * (1 - t * t)

    report = check_gradient(lambda x: jnp.sum(x * jnp.tanh(0.8 * x)), lambda x: slope(x, 0.5), x)
    (found,) = report.findings
    assert found.kind == "wrong function"
    assert "taken with 5/8 of the constant 0.8" in found.statement


def test_a_diagnosis_that_fails_leaves_the_report(monkeypatch):
    from funcprop.checking.diagnosis import diagnosis

    def broken(*args):
        raise RuntimeError("no\nway")

    for name in ("_turned", "changed", "_referred"):
        monkeypatch.setattr(diagnosis, name, broken)
    x = jnp.asarray(X)
    report = check_gradient(lambda x: jnp.sum(x**3), lambda x: 3 * x**2 + jnp.cos(x), x)
    assert not report.ok
    assert kinds(report) == ["unknown"]
    assert "RuntimeError: no way" in report.findings[0].statement


# ------------------------------------------------------------------------ coinciding sizes


@pytest.mark.parametrize(
    "shape", [(3,), (2, 2), pytest.param((4,), marks=SLOW), pytest.param((3, 4), marks=SLOW)]
)
def test_a_mean_over_the_wrong_axis_is_seen(shape):
    def forward(params, x, key=None):
        return x - x.mean(0), None

    def backward(weights, kept, delta, statistic=gradient):
        return delta - delta.sum(0) / delta[0].size, ()

    wrong = Layer(fp.stateless, forward, backward, "norm of mine")
    assert not check_layer(wrong, shape, diagnose=False).ok
    assert check_layer(fp.batch_norm(), shape).ok


def test_methods_of_arrays_as_numpy_code_has_them():
    def f(w, x):
        return jnp.sum(jnp.tanh(x.dot(w)) ** 2)

    def gradient(w, x):
        y = jnp.tanh(x.dot(w))
        return x.T.dot(2 * y * (1 - y * y))

    draw = np.random.default_rng(3)
    check_gradient(f, gradient, draw.normal(size=(3, 2)), draw.normal(size=(5, 3))).assert_ok()
