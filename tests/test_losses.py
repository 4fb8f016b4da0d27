"""Losses: values against optax, masks, curvature, and what they refuse."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcprop as fp
from funcprop import LayerError
from funcprop.checking.catalogue import LOSSES

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)
P = jax.random.normal(KEY, (4, 5))
T = jax.random.normal(jax.random.key(1), (4, 5))
LABELS = jnp.array([0, 4, 2, 2])
ONE_HOT = jax.nn.one_hot(LABELS, 5)
Q = jax.nn.softmax(T)


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
def test_under_a_trace_the_target_need_not_sum_to_1(loss):
    """Then p stands for Σ q of it, in the delta as in the value."""
    prediction, target = P.astype(jnp.float32), 2 * Q

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


# Of a prediction that is a tuple, test_auxiliary looks at the curvature.
CURVED = [case for case in LOSSES if case.layer.name != "auxiliary"]


def inputs_of(case):
    prediction, target = jax.tree.map(jnp.asarray, case.draw(np.random.default_rng(5)))
    shape = jax.tree.map(lambda leaf: leaf[0], (prediction, target))
    return case.layer.init(KEY, shape)[0], prediction, target


def hessian(loss, params, prediction, target):
    """Each example's own Hessian, (B, K, K), by autodiff."""

    def one(p, t):
        t = jax.tree.map(lambda leaf: leaf[None], t)
        return loss.apply(params, (p.reshape(1, *prediction.shape[1:]), t))[0]

    flat = prediction.reshape(len(prediction), -1)
    return jax.vmap(jax.hessian(one))(flat, target)


@pytest.mark.parametrize("case", CURVED, ids=lambda case: case.name)
def test_root_is_a_square_root_of_the_hessian(case, x64):
    params, prediction, target = inputs_of(case)
    _, residuals = case.layer.forward(params, (prediction, target))
    root = case.layer.root(residuals)
    assert root.shape[1:] == prediction.shape
    columns = root.reshape(len(root), len(prediction), -1)
    found = jnp.einsum("kbi,kbj->bij", columns, columns)
    np.testing.assert_allclose(found, hessian(case.layer, params, prediction, target), atol=1e-12)


@pytest.mark.parametrize("case", CURVED, ids=lambda case: case.name)
def test_samples_have_the_hessian_as_their_second_moment(case, x64):
    params, prediction, target = inputs_of(case)
    _, residuals = case.layer.forward(params, (prediction, target))
    n = 20_000
    drawn = jax.vmap(lambda k: case.layer.sample(k, residuals))(jax.random.split(KEY, n))
    assert drawn.shape[1:] == prediction.shape
    flat = drawn.reshape(n, len(prediction), -1)
    found = jnp.einsum("nbi,nbj->bij", flat, flat) / n
    due = hessian(case.layer, params, prediction, target)
    # A product of two entries has a standard deviation of about twice the largest variance.
    bound = 6 * 2 * max(float(jnp.abs(due).max()), 1e-12) / np.sqrt(n)
    np.testing.assert_allclose(found, due, atol=bound)
    if case.name not in ("mean_absolute_error", "hinge"):
        assert np.abs(drawn).max() > 0


def test_of_tokens_the_mean_over_the_mask():
    p = jax.random.normal(KEY, (3, 4, 5))
    labels = jax.random.randint(KEY, (3, 4), 0, 5)
    mask = jnp.array([[True] * 4, [True, False, True, False], [False] * 4])
    loss = fp.softmax_cross_entropy()
    each = optax.softmax_cross_entropy_with_integer_labels(p, labels)
    np.testing.assert_allclose(loss.apply((), (p, labels)), each.mean(1), rtol=1e-6)
    found = loss.apply((), (p, (labels, mask)))
    due = [each[0].mean(), (each[1, 0] + each[1, 2]) / 2, 0]
    np.testing.assert_allclose(found, due, rtol=1e-6)


def test_what_is_masked_is_not_looked_at():
    """Padding may hold anything, labels out of range and NaN predictions included."""
    p = jax.random.normal(KEY, (2, 3, 5)).at[:, 2].set(jnp.nan)
    labels = jnp.array([[0, 1, -100], [2, 3, 99]])
    mask = jnp.array([[True, True, False]] * 2)
    sweep = fp.value_and_backprop(fp.identity, fp.softmax_cross_entropy())
    for call in (sweep, jax.jit(sweep)):
        value, _ = call((), p, (labels, mask))
        assert np.isfinite(value)
    loss = fp.softmax_cross_entropy()
    _, residuals = loss.forward((), (p, (labels, mask)))
    (delta, rest), _ = loss.backward((), residuals, jnp.ones(2))
    assert rest == (None, None)
    assert np.all(np.asarray(delta)[:, 2] == 0)
    assert np.isfinite(delta).all()


def test_impossible_classes_cost_nothing():
    """A score of -inf rules a class out; loss and delta stay finite."""
    p = jnp.array([[0.0, 1.0, -jnp.inf]])
    loss = fp.softmax_cross_entropy()
    losses, residuals = loss.forward((), (p, jnp.array([1])))
    (delta, _), _ = loss.backward((), residuals, jnp.ones(1))
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
    p = jnp.array([[1.0 if loss is fp.hinge else 2.0]])
    _, residuals = loss.forward((), (p, jnp.array([[target]])))
    (delta, _), _ = loss.backward((), residuals, jnp.ones(1))
    assert delta[0, 0] == slope


# --------------------------------------------------------------------------- refusals

XENT = fp.softmax_cross_entropy()


@pytest.mark.parametrize(
    ("loss", "prediction", "target", "message"),
    [
        (XENT, P, LABELS[:, None], r"labels are \(4, 1\), \(4,\) are due; use target\[\.\.\., 0\]"),
        (XENT, P, LABELS[:3], r"labels are \(3,\), \(4,\) are due"),
        (XENT, P, LABELS.astype(jnp.float32), r"distributions .* are due; labels must be integers"),
        (XENT, P, ONE_HOT.astype(jnp.int32), r"distributions must be floats"),
        (XENT, P, LABELS == 0, r"target is bool, integer labels or distributions are due"),
        (XENT, P, Q.astype(jnp.bfloat16), r"prediction is float32, target is bfloat16"),
        (XENT, P[0], LABELS[0], r"prediction is \(5,\), a batch of scores"),
        (XENT, P[:0], LABELS[:0], r"prediction has shape \(0, 5\), a batch of one example or more"),
        (XENT, P, [0, 1, 2, 3], r"target is a tuple of 4, \(target, mask\) is due"),
        (XENT, P, 3, r"target is a int, an array is due"),
        (XENT, P, (LABELS, LABELS == 0), r"a mask is for tokens.* use sample_weight"),
        (
            fp.kl_divergence,
            P,
            LABELS,
            r"kl_divergence: target is int32, distributions .* use jax.nn.one_hot",
        ),
        (
            fp.mean_squared_error,
            P[:, :1],
            T[:, 0],
            r"\(4, 1\), target is \(4,\); use target\[:, None",
        ),
        (fp.mean_squared_error, P[:, 0], T[:, :1], r"prediction is \(4,\), target is \(4, 1\)"),
        (fp.mean_squared_error, P, LABELS, r"these look like labels; use jax.nn.one_hot"),
        (fp.mean_squared_error, P, ONE_HOT.astype(jnp.int32), r"target is int32, floats are due"),
        (fp.mean_squared_error, P, T[:, :4], r"prediction is \(4, 5\), target is \(4, 4\)"),
        (fp.mean_squared_error, P[:, :0], T[:, :0], r"prediction is empty"),
        (fp.sigmoid_cross_entropy, P, T[0], r"target is \(5,\)"),
        (fp.huber(), P.astype(jnp.int32), T, r"huber: prediction is int32, floats are due"),
    ],
)
def test_shapes_and_dtypes_are_refused_while_tracing(loss, prediction, target, message):
    with pytest.raises(LayerError, match=message):
        loss.apply((), (prediction, target))
    if hasattr(target, "dtype") or isinstance(target, tuple):
        with pytest.raises(LayerError, match=message):
            jax.eval_shape(lambda p, t: loss.apply((), (p, t)), prediction, target)


@pytest.mark.parametrize(
    ("loss", "target", "message"),
    [
        (XENT, LABELS.at[1].set(5), r"a label is 5, labels of 5 classes lie in \[0, 5\)"),
        (XENT, LABELS.at[1].set(-1), r"a label is -1"),
        (XENT, np.array([0, 1, 2, 2**32 + 3]), r"a label is 4294967299"),
        (XENT, ONE_HOT * 2, r"a target sums to 2, a distribution is due"),
        (XENT, T - 3, r"a target is -[\d.]+, a distribution is due"),
        (fp.kl_divergence, ONE_HOT * 2, r"kl_divergence: a target sums to 2"),
        (fp.sigmoid_cross_entropy, T, r"targets lie in \[.*\], \[0, 1\] is due"),
        (fp.hinge, ONE_HOT, r"a target is 0.0, each must be -1 or 1"),
    ],
)
def test_values_are_refused_where_they_are_concrete(loss, target, message):
    with pytest.raises(LayerError, match=message):
        loss.apply((), (P, target))
    with pytest.raises(LayerError, match=message):
        fp.value_and_backprop(fp.identity, loss)((), P, target)


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
    @jax.jit
    def run(labels):
        losses, residuals = XENT.forward((), (P, labels))
        return losses, XENT.backward((), residuals, jnp.ones(4))[0][0]

    losses, delta = run(labels)
    np.testing.assert_array_equal(np.isnan(losses), [False, True, False, True])
    np.testing.assert_array_equal(np.isnan(delta).all(-1), [False, True, False, True])
    np.testing.assert_array_equal(np.isnan(delta).any(-1), [False, True, False, True])


def test_more_classes_than_an_int8_holds():
    p = jnp.zeros((2, 300))
    losses = XENT.apply((), (p, jnp.array([0, 127], jnp.int8)))
    np.testing.assert_allclose(losses, np.log(300), rtol=1e-6)


def test_under_a_trace_a_bad_sign_gives_nan():
    losses = jax.jit(lambda t: fp.hinge.apply((), (P, t)))(ONE_HOT)
    assert np.isnan(losses).all()


def test_options_are_checked():
    with pytest.raises(LayerError, match=r"label_smoothing is 1.0, .* at least 0 and below 1"):
        fp.softmax_cross_entropy(1.0)
    with pytest.raises(LayerError, match="threshold is 0, it must be a finite number above 0"):
        fp.huber(0)
