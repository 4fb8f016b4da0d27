"""Each usual mistake is named, and nothing else is; what a change of the derivation would do."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcprop as fp
from funcprop import check_gradient, check_layer
from funcprop.checking import MISTAKES
from funcprop.checking.mistakes import factor_text, is_named, named_sizes
from funcprop.checking.rewiring import opened, rewired

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(5, 4))
W = DRAW.normal(size=(4, 4))
C = DRAW.normal(size=(5, 4))
MASK = X > -0.3


def c(x):
    """The weights of the sum, in the dtype of x."""
    return C.astype(x.dtype)


def norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True))


def norm_gradient(x, mean=1, projection=1):
    centred = x - x.mean(-1, keepdims=True)
    deviation = jnp.sqrt((centred**2).mean(-1, keepdims=True))
    y = centred / deviation
    along = (c(x) * y).mean(-1, keepdims=True)
    return (c(x) - mean * c(x).mean(-1, keepdims=True) - projection * along * y) / deviation


def normalised(x):
    return jnp.sum(c(x) * norm(x))


def squashed(x, w):
    return jnp.sum(c(x) * jnp.tanh(x @ w))


def squashed_gradient(x, w, place=lambda z: 1 - jnp.tanh(z) ** 2, carrier=lambda w: w.T):
    delta = c(x) * place(x @ w)
    return delta @ carrier(w), x.T @ delta


def branched(x):
    return jnp.sum(c(x) * (x + jnp.sin(x)))


def masked(x):
    return jnp.sum(c(x) * jnp.where(MASK, x**2, 0))


def recurrent(x, u):
    def step(h, x):
        return jnp.tanh(x + h @ u), h

    return jnp.sum(c(x)[0] * jax.lax.scan(step, jnp.zeros(4), x)[0])


def recurrent_gradient(x, u, carried=1.0, before=True):
    def step(h, x):
        return jnp.tanh(x + h @ u), (h, jnp.tanh(x + h @ u))

    _, (h, y) = jax.lax.scan(step, jnp.zeros(4), x)

    def back(delta, y):
        dz = delta * (1 - y * y)
        return carried * dz @ u.T, dz

    _, dz = jax.lax.scan(back, jnp.asarray(c(x)[0]), y, reverse=True)
    return dz, (h if before else y).T @ dz


FUNCTIONS = {
    "sign": (squashed, lambda x, w: (squashed_gradient(x, w)[0], -squashed_gradient(x, w)[1])),
    "factor": (branched, lambda x: c(x) * (1 + jnp.cos(x)) / 5),
    "transpose": (squashed, lambda x, w: squashed_gradient(x, w, carrier=lambda w: w)),
    "missing term": (normalised, lambda x: norm_gradient(x, projection=0)),
    "counted twice": (branched, lambda x: c(x) * (2 + jnp.cos(x))),
    "wrong place": (
        squashed,
        lambda x, w: squashed_gradient(x, w, place=lambda z: 1 - jnp.tanh(jnp.tanh(z)) ** 2),
    ),
    "wrong function": (
        squashed,
        lambda x, w: squashed_gradient(
            x, w, place=lambda z: jax.nn.sigmoid(z) * (1 - jax.nn.sigmoid(z))
        ),
    ),
    "off by one": (recurrent, lambda x, u: recurrent_gradient(x, u, before=False)),
    "mask ignored": (masked, lambda x: 2 * c(x) * x),
    "low precision": (
        branched,
        lambda x: c(x) * (1 + jnp.cos(x).astype(jnp.bfloat16).astype(x.dtype)),
    ),
    "stopped": (squashed, lambda x, w: (squashed_gradient(x, w)[0], 0 * w)),
    "dtype": (branched, lambda x: (c(x) * (1 + jnp.cos(x))).astype(jnp.float16)),
    "structure": (branched, lambda x: (c(x) * (1 + jnp.cos(x)))[:, 0]),
    "not finite": (branched, lambda x: c(x) * (1 + jnp.cos(x)) / MASK),
}
CASES = {**FUNCTIONS, "missing term, carried": (
    recurrent, lambda x, u: recurrent_gradient(x, u, carried=0)
)}  # fmt: skip


def arguments(f):
    return (X, W)[: f.__code__.co_argcount]


@pytest.mark.parametrize("kind", CASES)
def test_a_mistake_is_named(kind):
    f, wrong = CASES[kind]
    args = tuple(jnp.asarray(a, "float32") for a in arguments(f))
    report = check_gradient(f, _as_gradient(wrong), *args, argnums=tuple(range(len(args))))
    assert not report.ok
    assert {finding.kind for finding in report.findings} == {kind.split(",")[0]}, str(report)
    assert report.findings[0].advice == MISTAKES[kind.split(",")[0]]


def _as_gradient(f):
    def gradient(*args):
        found = f(*args)
        found = found if isinstance(found, tuple) else (found,)
        return jax.tree.map(
            lambda g, a: g if g.dtype == jnp.float16 else g.astype(a.dtype), found, args
        )

    return gradient


@pytest.mark.parametrize(
    ("f", "gradient"),
    [
        (normalised, lambda x: (norm_gradient(x),)),
        (squashed, squashed_gradient),
        (recurrent, recurrent_gradient),
    ],
)
def test_the_right_ones_pass(f, gradient):
    args = tuple(jnp.asarray(a, "float32") for a in arguments(f))
    numbers = tuple(range(len(args)))
    report = check_gradient(f, _as_gradient(gradient), *args, argnums=numbers)
    report.assert_ok()
    assert report.findings == ()


def test_the_line_of_the_forward_pass_is_shown():
    f, wrong = FUNCTIONS["missing term"]
    report = check_gradient(f, _as_gradient(wrong), jnp.asarray(X, "float32"), argnums=(0,))
    assert "return centred / jnp.sqrt(" in report.findings[0].line
    assert "test_diagnosis.py" in report.findings[0].line


def test_a_rule_of_its_own_is_judged():
    @jax.custom_vjp
    def f(x):
        return jnp.sum(jnp.tanh(x) ** 3)

    f.defvjp(lambda x: (f(x), x), lambda x, g: (g * 3 * jnp.tanh(x) ** 2,))
    report = check_gradient(f, jax.grad(f), jnp.asarray(X[0], "float32"))
    assert [finding.kind for finding in report.findings] == ["wrong function"]
    assert "left out" in report.findings[0].statement
    assert report.wrong == ("value",)


def test_constants_of_64_bits_are_no_obstacle():
    weights = np.linspace(1, 2, 4)  # which JAX, having met them in 32 bits, cannot compile in 64

    def f(x):
        return jnp.sum(weights * jnp.tanh(x))

    x = jnp.asarray(X[0], "float32")
    jax.jit(f)(x)
    check_gradient(f, lambda x: weights.astype(x.dtype) * (1 - jnp.tanh(x) ** 2), x).assert_ok()


def test_a_kernel_of_a_fixed_dtype_is_judged_coarsely():
    def f(x):
        return jnp.sum(jnp.sin(x.astype(jnp.float32)))

    x = jnp.asarray(X[0], "float32")
    report = check_gradient(f, lambda x: jnp.cos(x), x)
    report.assert_ok()
    assert "coarsely" in report.notes[0]
    assert not check_gradient(f, lambda x: jnp.cos(x) * 1.2, x).ok


def test_what_is_not_linear_or_not_deterministic():
    layer = fp.dense(3, fp.tanh)
    draws = itertools.count(2)

    def changed(change):
        def backward(weights, residuals, delta, statistic=fp.gradient):
            delta_x, tree = layer.backward(weights, residuals, delta, statistic)
            return change(delta_x), tree

        return layer._replace(backward=backward)

    report = check_layer(changed(jnp.tanh), (4,))
    assert [f.kind for f in report.findings] == ["not linear"]
    report = check_layer(changed(lambda d: d * next(draws)), (4,))
    assert [f.kind for f in report.findings] == ["not deterministic"]


def test_what_is_not_finite_far_out():
    def slope(z):
        return jnp.exp(z) / (1 + jnp.exp(z))  # NaN from 89 on

    layer = fp.elementwise(lambda z: jnp.logaddexp(z, 0), slope)
    report = check_layer(layer, (4,))
    assert [f.kind for f in report.findings] == ["not finite"]
    assert "1000 times this x" in report.problems[0]


def test_what_is_wrong_on_both_sides_is_said_and_the_nearer_side_is_not_accused():
    x = np.array([[8.0, 9.0, 10.0]])  # where 1 - y² has no digits left
    report = check_layer(fp.tanh, x=x)
    report.assert_ok()
    assert "both sides agree and both are wrong" in report.notes[0]
    report = check_gradient(
        lambda x: jnp.sum(jnp.tanh(x)),
        lambda x: 1 - jnp.tanh(x) ** 2,
        jnp.asarray(x, "float32"),
    )
    assert "both sides agree and both are wrong" in report.notes[0]
    report = check_layer(fp.tanh_precise, x=x)
    report.assert_ok()
    assert report.notes == ("['x'] is nearer to float64 than jax.vjp",)
    assert check_layer(fp.tanh, (4,)).notes == ()


def test_a_leaf_that_is_rounding_accuses_nobody():
    model = fp.serial(fp.dense(3), fp.batch_norm(), fp.dense(2))
    params, _ = model.init(jax.random.key(0), (4,))
    x, y = X.astype(np.float32), DRAW.normal(size=(5, 2)).astype(np.float32)
    report = fp.check_model(model, params, x, y, fp.mean_squared_error)
    report.assert_ok()


# -------------------------------------------------------------------------- the rewiring


@pytest.mark.parametrize("f", [normalised, squashed, branched, masked, recurrent])
def test_the_rewired_gradient_is_that_of_jax(f, x64):
    point = tuple(map(jnp.asarray, arguments(f)))
    due = np.concatenate([g.ravel() for g in jax.grad(lambda p: f(*p))(point)])
    for slopes in (False, True):
        found = rewired(lambda p: f(*p), point, slopes)
        np.testing.assert_allclose(found.gradient, due, atol=1e-13)
        assert found.effects.shape == (len(found.changes), due.size)
        # The gradient is linear in each change: what is said is what it does.
        once = np.array([not change.looped for change in found.changes], bool)
        rows = 0.7 * np.eye(len(found.changes))[once]
        np.testing.assert_allclose(found.at(rows), due + 0.7 * found.effects[once], atol=1e-10)


def test_a_path_left_out_is_a_stopped_gradient(x64):
    point = jnp.asarray(X)

    def stopped(x):
        centred = x - x.mean(-1, keepdims=True)
        deviation = jnp.sqrt((centred**2).mean(-1, keepdims=True))
        return jnp.sum(c(x) * centred / jax.lax.stop_gradient(deviation))

    found = rewired(normalised, point)
    effects = [
        effect
        for change, effect in zip(found.changes, found.effects, strict=True)
        if change.kind == "scale"
    ]
    due = jax.grad(stopped)(point).ravel()
    assert min(np.abs(found.gradient - e - due).max() for e in effects) < 1e-12


def test_opened_ignores_rules(x64):
    @jax.custom_jvp
    def f(x):
        return jnp.sin(x)

    f.defjvp(lambda primals, tangents: (jnp.sin(*primals), 7 * tangents[0]))
    assert jax.grad(f)(1.0) == 7
    np.testing.assert_allclose(jax.grad(opened(f))(1.0), np.cos(1.0))


# ---------------------------------------------------------------------------- the factors


@pytest.mark.parametrize(
    ("c", "text", "named"),
    [
        (5.0, "5 (5 is the size of axis 0 of x)", True),
        (-0.2, "-1/5 (5 is the size of axis 0 of x)", True),
        (np.sqrt(3), "√3", True),
        (1 / np.sqrt(4.0), "1/2", True),
        (1.001, "1.001", False),
        (0.0, "0", True),
    ],
)
def test_factors_are_named(c, text, named):
    sizes = named_sizes({"x": (5, 1)})
    assert factor_text(c, sizes) == text
    assert is_named(c, sizes) == named
