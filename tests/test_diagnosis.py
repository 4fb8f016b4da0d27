"""Each usual mistake is named, and nothing else is; what a change of the derivation would do."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcprop as fp
from funcprop import check_gradient, check_layer
from funcprop.checking import MISTAKES
from funcprop.checking.diagnosis import searches
from funcprop.checking.diagnosis.mistakes import factor_text, is_named, named_sizes, sizes_text
from funcprop.checking.diagnosis.rewiring import opened, rewired

SLOW = pytest.mark.slow
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
    if f is normalised:  # the line of the forward pass
        assert "return centred / jnp.sqrt(" in report.findings[0].line
        assert "test_diagnosis.py" in report.findings[0].line


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


def test_a_kernel_of_a_fixed_dtype_is_judged_coarsely(no_cause):
    def sine(x):
        out = jax.ShapeDtypeStruct(x.shape, "float32")
        return jax.pure_callback(np.sin, out, x, vmap_method="sequential")

    f = jax.custom_jvp(lambda x: jnp.sum(sine(x)))
    f.defjvp(lambda x, t: (f(*x), jnp.vdot(jnp.cos(*x), *t)))
    x = jnp.asarray(X[0], "float32")
    report = check_gradient(f, lambda x: jnp.cos(x), x)
    report.assert_ok()
    assert "coarsely" in report.notes[0]
    assert not check_gradient(f, lambda x: jnp.cos(x) * 1.2, x).ok


def test_a_cast_to_float32_is_judged_in_float64(no_cause):
    def f(x):
        return jnp.sum(jnp.sin(x.astype(jnp.float32)))

    x = jnp.asarray(X[0], "float32")
    report = check_gradient(f, lambda x: jnp.cos(x), x)
    report.assert_ok()
    assert report.notes == ()
    assert not check_gradient(f, lambda x: jnp.cos(x) * 1.00001, x).ok


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
    assert report.wrong == ("['x']",)
    report = check_layer(changed(lambda d: d * next(draws)), (4,))
    assert [f.kind for f in report.findings] == ["not deterministic"]
    assert report.wrong == report.findings[0].leaves == ("['x']",)


def test_what_is_not_finite_far_out():
    def slope(z):
        return jnp.exp(z) / (1 + jnp.exp(z))  # NaN from 89 on

    layer = fp.elementwise(lambda z: jnp.logaddexp(z, 0), slope)
    for diagnose in (True, False):
        report = check_layer(layer, (4,), diagnose=diagnose)
        assert [f.kind for f in report.findings] == ["not finite"]
        assert report.wrong == ("['x']",)
        assert "1000 times this x" in report.problems[0]


@pytest.mark.parametrize("diagnose", [True, False])
def test_what_is_right_for_this_delta_alone_is_named(diagnose):
    """A bound that only the doubled delta meets: no row fails, and the leaf is named."""
    layer = fp.identity._replace(backward=lambda w, r, d, s=fp.gradient: (jnp.clip(d, -1, 1), ()))
    report = check_layer(layer, x=np.ones((3, 1)), diagnose=diagnose)
    assert all(row.ok for row in report.leaves)
    assert [f.kind for f in report.findings] == ["not linear"]
    assert report.wrong == ("['x']",)


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
    assert re.match(r"\['x'\] is nearer to float64 than jax.vjp: .* off, jax.vjp ", *report.notes)
    assert check_layer(fp.tanh, (4,)).notes == ()


def test_a_leaf_that_is_rounding_accuses_nobody():
    model = fp.serial(fp.dense(3), fp.batch_norm(), fp.dense(2))
    params, _ = model.init(jax.random.key(0), (4,))
    x, y = X.astype(np.float32), DRAW.normal(size=(5, 2)).astype(np.float32)
    report = fp.check_model(model, params, x, y, fp.mean_squared_error)
    report.assert_ok()


# -------------------------------------------------------------------------- the rewiring


@pytest.mark.parametrize(
    "f",
    [squashed, *(pytest.param(f, marks=SLOW) for f in (normalised, branched, masked, recurrent))],
)
def test_the_rewired_gradient_is_that_of_jax(f, x64):
    _is_linear_in_each_change(f, tuple(map(jnp.asarray, arguments(f))))


def _is_linear_in_each_change(f, point):
    due = np.concatenate([g.ravel() for g in jax.jit(jax.grad(lambda p: f(*p)))(point)])
    for slopes in (False, True):
        found = rewired(lambda p: f(*p), point, slopes)
        np.testing.assert_allclose(found.gradient, due, atol=1e-13)
        assert found.effects.shape == (len(found.changes), due.size)
        # The gradient is linear in each change but of a constant: what is said is what it does.
        once = np.array([not c.looped and c.kind != "constant" for c in found.changes], bool)
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
    due = np.asarray(jax.jit(jax.grad(stopped))(point)).ravel()
    assert min(np.abs(found.gradient - e - due).max() for e in effects) < 1e-12


# ------------------------------------------------------- operations mistaken for one another

IDS = jnp.array([3, 0, 3, 4, 3])
COUNTS = jnp.array([1.0, 2.0, 2.0, 4.0])
KERNEL = jnp.asarray(DRAW.normal(size=(3, 4, 4)), "float32")


def convolved(x, low=1):
    dims = ("NWC", "WIO", "NWC")
    k, ends = KERNEL.astype(x.dtype), [(low, 2 - low)]
    y = jax.lax.conv_general_dilated(x[None], k, (1,), ends, dimension_numbers=dims)
    return jnp.sum(c(x) * y[0])


def counted_once(x):
    last = jnp.array([False, True, False, True, True])[:, None]
    return jnp.sum(jnp.where(last, c(x), 0) * x[IDS])


def sides(x, swapped=False):
    a, b = jnp.split(x, 2, axis=-1)
    a, b = (b, a) if swapped else (a, b)
    return jnp.sum(c(x)[:, :2] * a + c(x)[:, 2:] * b * 2) + jnp.sum(jnp.sin(x))


def summed(x, steps=range(5)):
    """The same row of x in every step of a scan."""
    used = jnp.isin(jnp.arange(5), jnp.array(steps))

    weights = jnp.asarray(c(x))

    def step(h, t):
        h = 0.5 * h + weights[t] * jnp.where(used[t], x[0], jax.lax.stop_gradient(x[0]))
        return h, None

    return jnp.sum(jax.lax.scan(step, jnp.zeros(4, x.dtype), jnp.arange(5))[0])


def rising(x, share=None):
    if share is None:
        return jnp.sum(c(x)[0] * jnp.max(x, 0))
    return jnp.sum(c(x)[0] * share(x, 0))


# (f, a function whose gradient is mistaken for that of f, the mistake, words of the report)
TWINS = {
    "window": (convolved, lambda x: convolved(x, 2), "off by one", "the window is moved by -1"),
    "once": (lambda x: jnp.sum(c(x) * x[IDS]), counted_once, "missing term", "the last one alone"),
    "indices": (
        lambda x: jnp.sum(c(x) * x[IDS] * (1 + x[0])),
        lambda x: jnp.sum(c(x) * (x[IDS] * (1 + x[0]) + _moved(x) * (1 + _held(x)[0]))),
        "off by one",
        "indices of axis 0 are moved by +1, the last kept",
    ),
    "pieces": (sides, lambda x: sides(x, True), "transpose", "pieces 1 and 2"),
    "winners": (rising, lambda x: rising(x, jnp.sum), "mask ignored", "gets all of it"),
    "shares": (rising, lambda x: rising(x, jnp.mean), "mask ignored", "gets a share of it"),
    "divisor": (
        lambda x: jnp.sum(c(x) * (x / COUNTS)),
        lambda x: jnp.sum(c(x) * x / 4),
        "factor",
        "its largest value everywhere",
    ),
    "square": (
        lambda x: jnp.sum(c(x) * (x / COUNTS)),
        lambda x: jnp.sum(c(x) * x / COUNTS**2),
        "wrong function",
        "the divisor is squared",
    ),
    "copies": (
        lambda x: jnp.sum(c(x) * (x[:1] + c(x))),
        lambda x: jnp.sum(c(x)[-1:] * x[:1]),
        "missing term",
        "the last index of the sum over axis 0",
    ),
    "steps": (summed, lambda x: summed(x, [4]), "missing term", "back the last of the steps"),
}


def _held(x):
    return jax.lax.stop_gradient(x)


def _moved(x):
    """What the indices one further take, less what the right ones do; its value is 0."""
    gap = x[jnp.minimum(IDS + 1, 4)] - x[IDS]
    return gap - _held(gap)


@pytest.mark.parametrize(
    "name",
    [
        "once",
        *(pytest.param(n, marks=SLOW) for n in ("window", "pieces", "winners", "divisor", "steps")),
    ],
)
def test_with_twins_too_the_rewired_gradient_is_that_of_jax(name, x64):
    _is_linear_in_each_change(TWINS[name][0], (jnp.asarray(X),))


FEW = ("window", "pieces", "winners", "divisor")


@pytest.mark.parametrize("name", [n if n in FEW else pytest.param(n, marks=SLOW) for n in TWINS])
def test_another_operation_is_named(name):
    f, other, kind, words = TWINS[name]
    x = jnp.asarray(X, "float32")
    report = check_gradient(f, jax.grad(other), x)
    assert not report.ok
    assert [finding.kind for finding in report.findings] == [kind], str(report)
    assert words in report.findings[0].statement


@pytest.mark.parametrize(
    ("count", "two", "most"),
    [(12, (3, 7), 100), pytest.param(20, (7, 13), searches.MOST_PAIRS, marks=SLOW)],
)
def test_two_paths_among_many(monkeypatch, count, two, most):
    """More pairs of paths than are tried: the likely ones are."""
    monkeypatch.setattr(searches, "MOST_PAIRS", most)
    rates = np.arange(1, 1 + count) / count * 3

    def f(x, off=()):
        terms = [jnp.sin(r * (_held(x) if n in off else x)) for n, r in enumerate(rates)]
        return jnp.sum(c(x) * sum(terms))

    report = check_gradient(f, jax.grad(lambda x: f(x, two)), jnp.asarray(X, "float32"))
    assert [finding.kind for finding in report.findings] == ["missing term"]
    assert "and" in report.findings[0].statement


@pytest.mark.slow
def test_a_term_that_is_transposed():
    square = jnp.asarray(X[:4] + 3 * np.eye(4), "float32")

    def f(p):
        return jnp.linalg.slogdet(p)[1] - jnp.sum(p * p)

    report = check_gradient(f, lambda p: jnp.linalg.inv(p) - 2 * p, square)
    assert [finding.kind for finding in report.findings] == ["transpose"]
    assert "a term of it is transposed" in report.findings[0].statement


# ------------------------------------------------------------ two functions, no gradient


def squares(x, w):
    return jnp.sum(x * x, 1) + jnp.sum(jnp.sin(x @ w), 1) ** 2 + 0.1 * x[:, 0] ** 4


def lengths(x, w):
    return jnp.sqrt(squares(x, w))


@pytest.mark.parametrize(
    ("due", "other", "kind", "words"),
    [
        (lengths, squares, "wrong function", "sqrt is left out"),
        (
            lengths,
            lambda x, w: jnp.sqrt(squares(x, w) - 0.1 * x[:, 0] ** 4),
            "missing term",
            "operand 2 of add is missing",
        ),
        (
            lengths,
            lambda x, w: jnp.sqrt(squares(x, w) + 0.1 * x[:, 0] ** 4),
            "counted twice",
            "operand 2 of add is counted twice",
        ),
        (
            squares,
            lambda x, w: jnp.sum(jnp.sin(x @ w), 1) ** 2,
            "missing term",
            "is missing and operand",
        ),
    ],
)
def test_compare_says_which_operation_of_what_is_due_is_another(due, other, kind, words):
    args = jnp.abs(jnp.asarray(X, "float32")) + 1, jnp.asarray(W, "float32")
    report = fp.compare(other, due, *args)
    assert [finding.kind for finding in report.findings] == [kind], str(report)
    assert words in report.findings[0].statement
    assert "test_diagnosis.py" in report.findings[0].line


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
        (5.0, "5 times (5 is the size of axis 0 of x)", True),
        (-0.2, "-1/5 of (5 is the size of axis 0 of x)", True),
        (np.sqrt(3), "√3 times", True),
        (1 / np.sqrt(4.0), "1/2 of", True),
        (1.001, "1.001 times", False),
        (0.0, "0 of", True),
        (1.25, "5/4 times (5 is the size of axis 0 of x)", True),
        (-2 / 3, "-2/3 of", False),
        (1.37, "1.37 times", False),
    ],
)
def test_factors_are_named(c, text, named):
    sizes = named_sizes({"x": (5, 1)})
    assert factor_text(c) + sizes_text(c, sizes) == text
    assert is_named(c, sizes) == named
