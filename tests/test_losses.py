"""Losses: values against optax, masks, curvature, and what they refuse."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcprop as fp
from funcprop.cases.catalogue import LOSSES
from funcprop.core.loss import has_parameters
from funcprop.losses.targets import one_hot
from tests.drawing import params_of

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)
P = jax.random.normal(KEY, (4, 5))
T = jax.random.normal(jax.random.key(1), (4, 5))
LABELS = jnp.array([0, 4, 2, 2])
ONE_HOT = jax.nn.one_hot(LABELS, 5)
Q = jax.nn.softmax(T)
XENT = fp.softmax_cross_entropy()


@functools.partial(jax.jit, static_argnums=0)
def swept(loss, prediction, target):
    """The losses, and the deltas of prediction and target."""
    losses, residuals = loss.forward((), (prediction, target))
    return losses, loss.backward((), residuals, jnp.ones_like(losses))[0]


@pytest.mark.parametrize(
    ("loss", "target", "due"),
    [
        (fp.mean_squared_error, T, lambda: jnp.mean(optax.squared_error(P, T), -1)),
        (fp.mean_absolute_error, T, lambda: jnp.mean(jnp.abs(P - T), -1)),
        (fp.huber(0.7), T, lambda: jnp.mean(optax.huber_loss(P, T, delta=0.7), -1)),
        (
            fp.softmax_cross_entropy(),
            LABELS,
            lambda: optax.softmax_cross_entropy_with_integer_labels(P, LABELS),
        ),
        (fp.softmax_cross_entropy(), Q, lambda: optax.softmax_cross_entropy(P, Q)),
        (
            fp.softmax_cross_entropy(0.2),
            LABELS,
            lambda: optax.softmax_cross_entropy(P, optax.smooth_labels(ONE_HOT, 0.2)),
        ),
        (
            fp.sigmoid_cross_entropy,
            Q,
            lambda: jnp.mean(optax.sigmoid_binary_cross_entropy(P, Q), -1),
        ),
        (fp.kl_divergence, Q, lambda: optax.kl_divergence(jax.nn.log_softmax(P), Q)),
        (
            fp.hinge,
            2 * ONE_HOT - 1,
            lambda: jnp.mean(optax.hinge_loss(P, 2 * ONE_HOT - 1), -1),
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_values(loss, target, due):
    found = loss.apply((), (P, target))
    chex.assert_shape(found, (4,))
    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_allclose(found, due(), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("loss", [fp.softmax_cross_entropy(0.1), fp.kl_divergence])
def test_a_target_that_rounding_took_off_1(loss, x64):
    """Then p stands for Σ q of it, in the delta as in the value."""
    prediction, target = P.astype(jnp.float64), (1 + 2**-8) * jax.nn.softmax(T.astype(jnp.float64))

    @jax.jit
    def both(p, t):
        losses, residuals = loss.forward((), (p, t))
        _, pullback = jax.vjp(lambda p, t: loss.apply((), (p, t)), p, t)
        weights = jnp.arange(1, 5, dtype=losses.dtype)
        return loss.backward((), residuals, weights)[0], pullback(weights)

    fp.compare(*both(prediction, target)).assert_ok()


def test_the_mean_over_outputs_is_torch_s():
    """mean_squared_error of (B, n) is the mean over n, and the value the mean over B too."""
    value, _ = fp.value_and_backprop(fp.identity, fp.mean_squared_error)((), P, T)
    assert value == pytest.approx(float(np.mean((np.asarray(P) - T) ** 2)), rel=1e-6)


# Of a prediction that is a tuple, test_mixture_of_experts looks at the curvature.
CURVED = [case for case in LOSSES if case.layer.root and case.layer.name != "auxiliary"]


def hessian(loss, params, prediction, target):
    """Each example's own Hessian, (B, K, K), by autodiff."""

    def one(p, t):
        t = jax.tree.map(lambda leaf: leaf[None], t)
        return loss.apply(params, (p.reshape(1, *prediction.shape[1:]), t))[0]

    flat = prediction.reshape(len(prediction), -1)
    return jax.vmap(jax.hessian(one))(flat, target)


@pytest.mark.parametrize("case", CURVED, ids=lambda case: case.name)
def test_root_and_samples_have_the_hessian_as_their_second_moment(case, x64):
    """The root exactly, as it is a square root; samples as many of them show."""
    loss, n = case.layer, 20_000
    prediction, target = case.draw(np.random.default_rng(5))
    shape = jax.eval_shape(lambda *x: jax.tree.map(lambda leaf: leaf[0], x), prediction, target)
    params = params_of(loss, shape, dtype="float64")

    def moment(columns):
        assert columns.shape[1:] == prediction.shape
        columns = columns.reshape(len(columns), len(prediction), -1)
        return jnp.einsum("kbi,kbj->bij", columns, columns)

    @jax.jit
    def run(params, prediction, target):
        _, residuals = loss.forward(params, (prediction, target))
        drawn = jax.vmap(lambda k: loss.sample(k, residuals))(jax.random.split(KEY, n))
        due = hessian(loss, params, prediction, target)
        return due, moment(loss.root(residuals)), moment(drawn) / n, jnp.abs(drawn).max()

    due, found, sampled, largest = run(params, prediction, target)
    np.testing.assert_allclose(found, due, atol=1e-12)
    # A product of two entries has a standard deviation of about twice the largest variance.
    bound = 6 * 2 * max(float(np.abs(due).max()), 1e-12) / np.sqrt(n)
    np.testing.assert_allclose(sampled, due, atol=bound)
    if case.name not in ("mean_absolute_error", "hinge"):
        assert largest > 0


def test_of_tokens_the_mean_over_the_mask():
    draw = np.random.default_rng(0)
    p = draw.normal(size=(3, 4, 5)).astype("float32")
    labels = draw.integers(0, 5, (3, 4), dtype=np.int32)
    mask = np.array([[True] * 4, [True, False, True, False], [False] * 4])

    @jax.jit
    def run(p, labels, mask):
        each = optax.softmax_cross_entropy_with_integer_labels(p, labels)
        return each, XENT.apply((), (p, labels)), XENT.apply((), (p, (labels, mask)))

    each, whole, masked = jax.device_get(run(p, labels, mask))
    np.testing.assert_allclose(whole, each.mean(1), rtol=1e-6)
    due = [each[0].mean(), (each[1, 0] + each[1, 2]) / 2, 0]
    np.testing.assert_allclose(masked, due, rtol=1e-6)


def test_what_is_masked_is_not_looked_at():
    """Padding may hold anything, labels out of range and NaN predictions included."""
    p = np.random.default_rng(0).normal(size=(2, 3, 5)).astype("float32")
    p[:, 2] = np.nan
    labels = np.array([[0, 1, -100], [2, 3, 99]], np.int32)
    mask = np.array([[True, True, False]] * 2)
    sweep = fp.value_and_backprop(fp.identity, fp.softmax_cross_entropy())
    for call in (sweep, jax.jit(sweep)):
        value, _ = call((), p, (labels, mask))
        assert np.isfinite(value)
    _, (delta, rest) = swept(XENT, p, (labels, mask))
    assert rest == (None, None)
    assert np.all(np.asarray(delta)[:, 2] == 0)
    assert np.isfinite(delta).all()


def test_impossible_classes_cost_nothing():
    """A score of -inf rules a class out; loss and delta stay finite."""
    p = np.array([[0.0, 1.0, -np.inf]], np.float32)
    losses, (delta, _) = swept(XENT, p, np.array([1], np.int32))
    assert np.isfinite(losses).all()
    np.testing.assert_allclose(delta, [[0.26894143, -0.26894143, 0]], rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "target", "slope"),
    [
        (fp.mean_absolute_error, 2.0, 1.0),
        (fp.hinge, 1.0, 0.0),
        (fp.huber(1.0), 1.0, 1.0),
    ],
    ids=["mean_absolute_error at 0", "hinge at the margin", "huber at the threshold"],
)
def test_values_at_kinks(loss, target, slope):
    p = np.array([[1.0 if loss is fp.hinge else 2.0]], np.float32)
    _, (delta, _) = swept(loss, p, np.array([[target]], np.float32))
    assert delta[0, 0] == slope


@pytest.mark.parametrize(
    "labels",
    [
        jnp.array([0, 5, 2, -1]),
        jnp.array([0, 7, 2, 9], jnp.uint8),
        jnp.array([0, 2**32 - 1, 2, 2**31 + 1], jnp.uint32),
        jnp.array([0, 100, 2, -128], jnp.int8),
    ],
    ids=lambda labels: str(labels.dtype),
)
def test_under_a_trace_a_bad_label_gives_nan(labels):
    losses, (delta, _) = swept(XENT, P, labels)
    np.testing.assert_array_equal(np.isnan(losses), [False, True, False, True])
    np.testing.assert_array_equal(np.isnan(delta).all(-1), [False, True, False, True])
    np.testing.assert_array_equal(np.isnan(delta).any(-1), [False, True, False, True])


def test_more_classes_than_an_int8_holds():
    losses, _ = swept(XENT, np.zeros((2, 300), np.float32), np.array([0, 127], np.int8))
    np.testing.assert_allclose(losses, np.log(300), rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "good", "bad"),
    [
        (fp.sigmoid_cross_entropy, Q, {1: 1.001, 3: -1e-3}),
        (fp.softmax_cross_entropy(), Q, {1: 0.99, 3: -1.0}),
        (fp.softmax_cross_entropy(0.1), ONE_HOT, {1: jnp.nan, 3: jnp.inf}),
        (fp.kl_divergence, Q, {1: 0.99, 3: -1.0}),
        (fp.hinge, 2 * ONE_HOT - 1, {1: 0.999, 3: 0.0}),
        (fp.weighted(fp.mean_squared_error), (T[:, 0], T), {1: jnp.nan, 3: -jnp.inf}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_under_a_trace_a_bad_target_gives_nan(loss, good, bad, dtype):
    """In the loss, the deltas and the curvature of its example, and in no other."""
    with jax.enable_x64(dtype == "float64"):
        scale = 8 if dtype != "float32" else 1  # how bad: these have room for rounding
        bad = {i: 1 + scale * 4 * (v - 1) if 0 < v < 2 else v * scale for i, v in bad.items()}
        prediction, good = jax.tree.map(lambda a: jnp.asarray(a, dtype), (P, good))
        first, structure = jax.tree.flatten(good)
        for row, value in bad.items():
            first[0] = first[0].at[(row, 0)[: first[0].ndim]].set(value)
        wrong = jax.tree.unflatten(structure, first)

        @jax.jit
        def run(target):
            losses, residuals = loss.forward((), (prediction, target))
            deltas = loss.backward((), residuals, jnp.ones_like(losses))[0]
            _, pullback = jax.vjp(lambda *x: loss.apply((), x), prediction, target)
            curved = [loss.root(residuals).sum(0)] if loss.root else []
            if loss.sample:
                curved.append(loss.sample(KEY, residuals))
            return losses, deltas, pullback(jnp.ones_like(losses)), curved

        for found in jax.tree.leaves(run(wrong)):
            assert found.dtype == dtype
            nan = np.isnan(np.asarray(found, np.float64)).reshape(4, -1).any(1)
            np.testing.assert_array_equal(nan, [False, True, False, True])
        for found in jax.tree.leaves(run(good)):
            assert np.isfinite(np.asarray(found, np.float64)).all()


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (XENT, np.array([[0, 2**32, 1], [2**32 + 1, 1, 0]])),
        (XENT, np.array([[0, 2**63, 1], [2**63 + 1, 1, 0]], np.uint64)),
        (fp.hinge, np.array([[[1], [2**32 + 1], [-1]], [[2**32 - 1], [1], [1]]])),
    ],
    ids=lambda value: getattr(value, "name", str(getattr(value, "dtype", ""))),
)
def test_an_integer_that_jax_would_wrap_around_gives_nan(loss, target):
    """With a mask that is traced no value can be refused."""
    prediction = P[:2, :3, None] if loss is fp.hinge else jnp.stack([P[:3], P[:3]])

    @jax.jit
    def run(mask):
        return loss.apply((), (prediction, (target, mask)))

    assert np.isnan(run(np.ones((2, 3), bool))).all()
    assert np.isfinite(run(np.array([[True, False, True], [False, True, True]]))).all()


def test_labels_of_64_bits_are_not_wrapped_around(x64):
    for loss in (XENT, fp.linear_cross_entropy(5)):
        params, _ = loss.init(KEY, (P[0], LABELS[0]))
        params, p = jax.tree.map(lambda a: a.astype(jnp.float64), (params, P))
        run = jax.jit(lambda t, loss=loss, params=params, p=p: loss.apply(params, (p, t)))
        nan = np.isnan(run(jnp.array([0, 2**32, 1, -(2**32)])))
        np.testing.assert_array_equal(nan, [False, True, False, True])
    found = jax.jit(lambda t: one_hot("loss", t, P))(jnp.array([0, 2**32, 1, -(2**32)]))
    np.testing.assert_array_equal(np.isnan(found).all(1), [False, True, False, True])


@pytest.mark.parametrize(
    ("loss", "bad"),
    [
        (fp.sigmoid_cross_entropy, 2.0),
        (fp.hinge, 0.0),
        (fp.softmax_cross_entropy(), 7.0),
        (fp.kl_divergence, -1.0),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_bad_target_under_a_mask_is_not_looked_at(loss, bad):
    prediction = np.stack([P, -P])
    good = np.asarray(2 * ONE_HOT - 1 if loss is fp.hinge else ONE_HOT)
    target, wrong, mask = np.stack([good, good]), np.stack([good, good]), np.ones((2, 4), bool)
    wrong[0, 1], mask[0, 1] = bad, False
    losses, (delta, _) = found = swept(loss, prediction, (wrong, mask))
    due = swept(loss, prediction, (target, mask))
    chex.assert_trees_all_equal(found[0], due[0])
    chex.assert_trees_all_equal(delta, due[1][0])
    assert not delta[0, 1].any()
    # Nor where values are concrete, and would be refused.
    alone = loss.apply((), (prediction, (wrong, mask)))
    np.testing.assert_allclose(alone, losses, rtol=1e-6)


# ------------------------------------------------------------------------ narrow floats


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        "mean_squared_error", "mean_absolute_error", "huber", "sigmoid_cross_entropy", "hinge",
        "softmax_cross_entropy", "softmax_cross_entropy, masked", "kl_divergence",
        "linear_cross_entropy",
    ],
)  # fmt: skip
def test_means_of_more_terms_than_float16_counts(name, dtype):
    """Values, deltas, samples and shares of 70,000 terms are those of float32, rounded once."""
    draw = np.random.default_rng(0)
    loss = {"huber": fp.huber(), "linear_cross_entropy": fp.linear_cross_entropy(4)}.get(
        name.split(",")[0], getattr(fp, name.split(",")[0])
    )
    loss = loss() if name.startswith("softmax") else loss
    tokens, outputs = (7, 10_000) if name in ("mean_squared_error", "hinge") else (35_000, 2)
    prediction = draw.normal(size=(2, tokens, outputs)).astype(dtype)
    target = draw.integers(0, 2, size=prediction.shape)
    if name == "hinge":
        target = 2 * target - 1
    elif name == "kl_divergence":
        target = np.stack([target[..., 0], 1 - target[..., 0]], -1) / 2 + 0.25
    target = target.astype(dtype)
    if "softmax" in name or name == "linear_cross_entropy":
        target = draw.integers(0, 2, size=(2, tokens), dtype=np.int32)
    shape = jax.eval_shape(lambda: (jnp.asarray(prediction[0]), jnp.asarray(target[0])))
    params = params_of(loss, shape, dtype=dtype)
    if "masked" in name:
        target = (target, draw.random((2, tokens)) < 0.9)

    @jax.jit
    def run(params, prediction, target):
        losses, residuals = loss.forward(params, (prediction, target))
        assert losses.dtype == prediction.dtype
        delta = loss.backward(params, residuals, jnp.full_like(losses, 512))[0][0]
        return losses, delta, loss.sample(KEY, residuals), loss.terms(residuals)

    def wide(tree):
        return jax.tree.map(lambda a: a.astype("float32") if a.dtype == dtype else a, tree)

    given = params, prediction, target
    found, due = run(*given), run(*wide(given))
    info = jnp.finfo(dtype)
    once = {"rtol": 0.51 * float(info.eps), "atol": 0.51 * float(info.smallest_subnormal)}
    for ours, theirs in zip(found[:3], due[:3], strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(*(np.asarray(a, np.float64) for a in (ours, theirs)), **once)
    np.testing.assert_array_equal(found[3], due[3])
    assert found[3].dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "loss", [fp.mean_squared_error, fp.softmax_cross_entropy(), fp.linear_cross_entropy(5)]
)
def test_roots_in_narrow_floats_are_rounded_once(loss, dtype):
    h = np.random.default_rng(0).normal(size=(2, 60, 5)).astype(dtype)
    target = h[:, ::-1] if loss.name == "mean_squared_error" else np.zeros((2, 60), np.int32)
    shape = jax.eval_shape(lambda: (jnp.asarray(h[0]), jnp.asarray(target[0])))
    params = params_of(loss, shape, dtype=dtype)

    @jax.jit
    def run(params, h, target):
        return loss.root(loss.forward(params, (h, target))[1])

    found = run(params, h, target)
    assert found.dtype == dtype
    wide = (jax.tree.map(lambda a: a.astype("float32") if a.dtype == dtype else a, t)
            for t in (params, h, target))  # fmt: skip
    eps = float(jnp.finfo(dtype).eps)
    due = np.asarray(run(*wide), np.float64)
    np.testing.assert_allclose(
        np.asarray(found, np.float64), due, rtol=eps, atol=eps * np.abs(due).max()
    )


# ------------------------------------------------------------------------------ weighted


def test_a_weight_of_any_sign():
    """1/B Σ wᵢ ℓᵢ and its gradient, not divided by Σ w, which may be 0."""
    loss, w = fp.weighted(XENT), np.array([1.0, -2.0, 0.5, 0.5], np.float32)
    each, _ = swept(XENT, P, LABELS)
    found, (delta, (delta_w, none)) = swept(loss, P, (w, LABELS))
    np.testing.assert_allclose(found, w * each, rtol=1e-6)
    assert none is None
    np.testing.assert_array_equal(delta_w, each)
    np.testing.assert_allclose(delta, w[:, None] * (jax.nn.softmax(P) - ONE_HOT), atol=1e-6)
    sweep = fp.value_and_backprop(fp.dense(5), loss)

    def mean(params):
        return jnp.mean(w * XENT.apply((), (fp.dense(5).apply(params, T), LABELS)))

    both = jax.jit(lambda params: (sweep(params, T, (w, LABELS)), jax.value_and_grad(mean)(params)))
    fp.compare(*both(params_of(fp.dense(5), (5,)))).assert_ok()


def test_weighted_tokens_with_a_mask_and_a_loss_with_parameters():
    inner = fp.linear_cross_entropy(7)
    loss, h = fp.weighted(inner), np.stack([P, T])
    target = np.array([LABELS, LABELS]), np.ones((2, 4), bool)
    target[1][0, 1] = False
    w = np.array([-1.0, 3.0], np.float32)
    shape = jax.eval_shape(lambda *x: jax.tree.map(lambda a: a[0], x), h, (w, target))
    params = params_of(loss, shape)

    @jax.jit
    def run(params, h, w, target):
        found, residuals = loss.forward(params, (h, (w, target)))
        (_, (_, rest)), grads = loss.backward(params, residuals, jnp.ones(2))
        assert rest == (None, None)
        assert grads["w"].shape == params["w"].shape
        value, (own, _) = fp.value_and_backprop(fp.identity, loss)(((), params), h, (w, target))
        assert own == ()
        return found, inner.apply(params, (h, target)), value

    found, plain, value = run(params, h, w, target)
    np.testing.assert_allclose(found, w * plain, rtol=1e-6)
    assert float(value) == pytest.approx(float(found.mean()), rel=1e-6)


# --------------------------------------------------------------------- what is a loss


def own_loss(init, **options):
    """Half a square, as one would write it, without root and sample."""

    def forward(params, x, key=None):
        return (x[0] - x[1]) ** 2 / 2, x

    def backward(weights, residuals, delta, statistic=fp.gradient):
        error = delta * (residuals[0] - residuals[1])
        return (error, -error), ()

    return fp.Loss(init, forward, backward, name="half", **options)


@pytest.mark.parametrize(
    "init", [lambda key, shape: ((), ()), lambda key, shape: ({}, None), fp.stateless]
)
def test_whether_a_loss_has_parameters_is_read_from_what_init_gives(init):
    loss, model = own_loss(init), fp.serial(fp.dense(1), fp.reshape())
    params, _ = model.init(KEY, (5,))
    for mine in (loss, fp.weighted(loss)):
        y = T[:, 0] if mine is loss else (jnp.ones(4), T[:, 0])
        _, grads = fp.value_and_backprop(model, mine)(params, P, y)
        assert jax.tree.structure(grads) == jax.tree.structure(params)
        product = fp.statistics.gauss_newton_vector_product(model, mine)(params, P, y, params)
        assert jax.tree.structure(product) == jax.tree.structure(params)
    for rule in (fp.direct_feedback_alignment, fp.forward_gradient):
        rule(fp.mlp((5, 3, 1)), loss, *[(5,)] * (rule is fp.direct_feedback_alignment))
    fp.check_model(model, params, P, T[:, 0], loss).assert_ok()
    assert not has_parameters(loss)
    assert has_parameters(fp.linear_cross_entropy(3))
    assert has_parameters(fp.auxiliary(fp.linear_cross_entropy(3), 0.1))
    assert not has_parameters(fp.auxiliary(loss, 0.1))


def test_a_loss_without_root_and_sample_has_empirical_statistics():
    loss = own_loss(fp.no_parameters)
    model = fp.serial(fp.dense(1), fp.reshape())
    params, _ = model.init(KEY, (5,))
    for statistic in (fp.statistics.fisher_diagonal, fp.statistics.kfac_factors):
        statistic(model, loss, fp.statistics.empirical)(params, P, T[:, 0])
    S = jax.ShapeDtypeStruct((), jnp.float32)
    report = fp.check_layer(loss, (S, S))
    report.assert_ok()
    assert not report.notes


def test_a_loss_made_of_a_function():
    """As the refusal of a bare function tells one to."""
    prototype = fp.function(lambda _, pt: (pt[0] - pt[1]) ** 2, fp.no_parameters, name="square")
    loss = fp.Loss(*prototype[:3], name="square")
    _, grads = fp.value_and_backprop(fp.identity, loss)((), T[:, 0], P[:, 0])
    assert grads == ()
