"""Every statistic of every layer, against jax.jacrev of the batch's vector of losses."""

import itertools

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from test_laws import drawn, made, of_cases, shape_of

import funcprop as fp
from funcprop import LayerError, Loss, statistics
from funcprop.cases.catalogue import LAYERS
from funcprop.core import contraction
from funcprop.core.checks import is_inexact
from funcprop.core.loss import no_parameters
from funcprop.statistics.at_site import each_gradient

pytestmark = pytest.mark.usefixtures("strict")


def has_parameters(case):
    shape = shape_of(case.draw(np.random.default_rng(3)))
    return bool(jax.tree.leaves(made(case.layer, shape)[0]))


ALONE = [case for case in LAYERS if not case.mixes and has_parameters(case)]
# A layer for every kind of site, and for every way in which sites are put together.
SITES = (
    "affine", "conv", "conv_transpose", "embedding", "positional", "layer_norm", "function",
    "repeat", "share", "remat", "lstm", "gru, chunks", "tree_lstm", "diagonal_recurrence", "ssm",
    "graph_attention", "message_passing", "fork, parallel",
)  # fmt: skip
alone = of_cases(ALONE, [case for case in ALONE if case.name in SITES])
mixing = pytest.mark.parametrize("case", [c for c in LAYERS if c.mixes], ids=lambda case: case.name)


def params_of(init, *given):
    """Parameters in the shapes of init's, drawn by NumPy, which takes no time to compile."""
    draw = np.random.default_rng(11)
    shapes = jax.eval_shape(lambda key: (init(key, *given)[0],), jax.random.key(0))[0]
    return jax.tree.map(lambda s: draw.normal(size=s.shape).astype(s.dtype), shapes)


def _linear():
    """ℓᵢ = Σ target · prediction over all floats of an example's prediction."""

    def forward(params, x, key=None):
        prediction, target = x
        leaves = [leaf for leaf in jax.tree.leaves(prediction) if is_inexact(leaf)]
        terms = [
            jnp.sum(p * t, tuple(range(1, p.ndim)))
            for p, t in zip(leaves, jax.tree.leaves(target), strict=True)
        ]
        return sum(terms), (prediction, target)

    def backward(weights, residuals, delta, statistic=fp.gradient):
        prediction, target = residuals
        due = iter(jax.tree.leaves(target))
        scaled = [
            next(due) * delta.reshape(-1, *[1] * (leaf.ndim - 1)) if is_inexact(leaf) else None
            for leaf in jax.tree.leaves(prediction)
        ]
        return (jax.tree.unflatten(jax.tree.structure(prediction), scaled), None), ()

    return Loss(no_parameters, forward, backward, None, None, "linear")


linear = _linear()


def _quadratic():
    """ℓᵢ = ½ Σₖ (sₖ · prediction)², of K columns sₖ an example, (B, K, ...) each: the root of its
    Hessian.
    """

    def times(prediction, columns):
        leaves = [leaf for leaf in jax.tree.leaves(prediction) if is_inexact(leaf)]
        terms = [
            jnp.einsum("bp,bkp->bk", p.reshape(len(p), -1), s.reshape(*s.shape[:2], -1))
            for p, s in zip(leaves, columns, strict=True)
        ]
        return sum(terms)

    def as_prediction(prediction, floats):
        due = iter(floats)
        filled = [next(due) if is_inexact(leaf) else None for leaf in jax.tree.leaves(prediction)]
        return jax.tree.unflatten(jax.tree.structure(prediction), filled)

    def forward(params, x, key=None):
        return jnp.sum(times(*x) ** 2, axis=1) / 2, x

    def backward(weights, residuals, delta, statistic=fp.gradient):
        prediction, columns = residuals
        scaled = times(prediction, columns) * delta[:, None]
        floats = [jnp.einsum("bk,bk...->b...", scaled, s) for s in columns]
        return (as_prediction(prediction, floats), None), ()

    def root(residuals):
        prediction, columns = residuals
        return as_prediction(prediction, [jnp.moveaxis(s, 1, 0) for s in columns])

    return Loss(no_parameters, forward, backward, root, None, "quadratic")


quadratic = _quadratic()


def losses_of(model, loss, x, y, key=None):
    """The vector of losses as a function of the parameters."""

    def losses(params):
        own, loss_own = (params, ()) if loss.init is no_parameters else params
        return loss.apply(loss_own, (model.apply(own, x, key), y))

    return losses


def formed(model, loss, params, x, y, key=None):
    """gᵢ by jax.jacrev, and all of each in one row."""
    each = jax.jacrev(losses_of(model, loss, x, y, key))(params)
    return each, flattened(each)


def flattened(each):
    return jnp.concatenate([g.reshape(len(g), -1) for g in jax.tree.leaves(each)], axis=1)


def by_statistics(model, loss, params, x, y, max_norm, **options):
    half, other = (jax.tree.map(lambda a, s=s: a[s], (x, y)) for s in (slice(0, 3), slice(3, None)))
    both = statistics.combine(
        each=statistics.per_example_gradients,
        norms=statistics.squared_norms,
        inner=statistics.inner_products,
        moments=statistics.moments,
        mean=statistics.mean_gradient,
    )
    found = both(model, loss)(params, x, y, **options)
    found["clipped"] = statistics.clipped_gradient(max_norm)(model, loss)(params, x, y, **options)
    between = statistics.inner_products_between(model, loss)
    found["between"] = between(params, half, other, **options)
    return found


def of_gradients(each):
    """The median norm, and every statistic of gradients of single examples."""
    flat = flattened(each)
    squared = jnp.sum(flat * flat, axis=1)
    max_norm = jnp.sqrt(jnp.median(squared))
    c = jnp.minimum(1, max_norm / jnp.sqrt(squared))
    size = len(flat)
    total = jax.tree.map(lambda g: g.mean(0), each)
    whole = jnp.sum(flat.mean(0) ** 2)
    trace = (squared.mean() - whole) * size / (size - 1)
    return max_norm, {
        "each": each,
        "norms": squared,
        "inner": flat @ flat.T,
        "between": flat[:3] @ flat[3:].T,
        "mean": total,
        "clipped": jax.tree.map(
            lambda g: jnp.mean(g * c.reshape(-1, *[1] * (g.ndim - 1)), axis=0), each
        ),
        "square": jax.tree.map(lambda g: jnp.sum(g * g, axis=0), each),
        "variance": jax.tree.map(lambda g: jnp.var(g, axis=0, ddof=1), each),
        "trace": jnp.sum(jnp.var(flat, axis=0, ddof=1)),
        "squared_norm": whole - trace / size,
    }


def compared(found, due):
    """What is found, in the shape of what is due."""
    return {
        "each": found["each"],
        "norms": found["norms"].total,
        "inner": found["inner"].total,
        "between": found["between"].total,
        "mean": found["mean"],
        "clipped": found["clipped"].gradient,
        "square": found["moments"].sum_of_squares,
        "variance": found["moments"].variance,
        "trace": found["moments"].noise_scale.trace,
        "squared_norm": found["moments"].noise_scale.squared_norm,
    }


def assert_alike(found, due, bound):
    """Each leaf to the largest of its entries."""
    chex.assert_trees_all_equal_shapes_and_dtypes(found, due)
    paths = jax.tree_util.tree_flatten_with_path(due)[0]
    for (path, b), a in zip(paths, jax.tree.leaves(found), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        scale = max(np.abs(b).max(initial=0), 1e-30)
        assert np.abs(a - b).max(initial=0) <= bound * scale, jax.tree_util.keystr(path)


@alone
def test_every_statistic_of_every_layer(case):
    """Of gradients gᵢ; and curvature, G = 1/B Σᵢₖ uᵢₖ uᵢₖᵀ, uᵢₖ = ∂(sᵢₖ · pᵢ)/∂θ by jax.jacrev.

    The target of the first ones is sᵢ₀, so that gᵢ is uᵢ₀.
    """
    params, x, _, delta = drawn(case)
    draw = np.random.default_rng(0)
    columns = tuple(
        draw.normal(size=(len(leaf), 2, *leaf.shape[1:])) for leaf in jax.tree.leaves(delta)
    )

    def run(params, x, columns):
        targets = [tuple(s[:, k] for s in columns) for k in range(2)]

        def slopes(params):
            prediction = case.layer.apply(params, x)
            return jnp.stack([linear.apply((), (prediction, target)) for target in targets])

        u, size = jax.jacrev(slopes)(params), len(columns[0])
        max_norm, due = of_gradients(jax.tree.map(lambda leaf: leaf[0], u))
        found = by_statistics(case.layer, linear, params, x, targets[0], max_norm)

        vector = jax.tree.map(jnp.cos, params)
        along = jax.tree.map(lambda a, v: jnp.tensordot(a, v, v.ndim), u, vector)
        along = sum(jax.tree.leaves(along))
        due_curvature = {
            "diagonal": jax.tree.map(lambda leaf: jnp.sum(leaf**2, (0, 1)) / size, u),
            "trace": sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(u)) / size,
            "product": jax.tree.map(lambda leaf: jnp.tensordot(along, leaf, 2) / size, u),
        }
        given, product = (params, x, columns), statistics.gauss_newton_vector_product
        curvature = {
            "diagonal": statistics.ggn_diagonal(case.layer, quadratic)(*given),
            "trace": statistics.ggn_trace(case.layer, quadratic)(*given).total,
            "product": product(case.layer, quadratic)(*given, vector),
        }
        return found, due, curvature, due_curvature

    with jax.enable_x64(True):
        given = jax.tree.map(
            lambda a: a.astype(float) if is_inexact(a) else a, (params, x, columns)
        )
        found, due, curvature, due_curvature = jax.device_get(jax.jit(run)(*given))
    assert_alike(compared(found, due), due, 1e-10)
    assert_alike(curvature, due_curvature, 1e-10)


@of_cases(
    [case for case in ALONE if case.name in SITES],
    [case for case in ALONE if case.name in ("affine", "layer_norm", "lstm", "share")],
)
def test_clipping_by_layer(case):
    """Its norms are those of the whole; of one site alone it is clipping of the whole."""
    params, x, _, delta = drawn(case)
    target = tuple(jax.tree.leaves(delta))

    def run(params, x, target):
        norms = statistics.squared_norms(case.layer, linear)(params, x, target)
        bound = jnp.sqrt(jnp.median(norms.total))
        return norms, [
            statistics.clipped_gradient(bound, per_layer=per_layer)(case.layer, linear)(
                params, x, target
            )
            for per_layer in (False, True)
        ]

    with jax.enable_x64(True):
        given = jax.tree.map(lambda a: a.astype(float) if is_inexact(a) else a, (params, x, target))
        norms, (whole, by_layer) = jax.device_get(jax.jit(run)(*given))
    assert_alike(by_layer.squared_norms, norms.total, 1e-10)
    chex.assert_trees_all_equal_shapes_and_dtypes(by_layer.gradient, whole.gradient)
    sites = jax.tree.leaves(norms.sites)
    if len(sites) == 1 and sites[0].ndim == 1:
        assert_alike(by_layer.gradient, whole.gradient, 1e-10)


@of_cases(
    [c for c in LAYERS if c.name in ("dense", "conv", "embedding", "lstm", "transformer_block")],
    [c for c in LAYERS if c.name in ("dense", "conv", "embedding", "lstm")],
)
def test_bfloat16_is_summed_in_float32(case):
    """Of the same numbers in both dtypes; gradients of single examples stay in bfloat16."""
    params, x, _, delta = drawn(case)
    target = tuple(jax.tree.leaves(delta))

    def as_type(dtype):
        return jax.tree.map(
            lambda a: jnp.asarray(a).astype(jnp.bfloat16).astype(dtype) if is_inexact(a) else a,
            (params, x, target),
        )

    @jax.jit
    def run(params, x, target):
        both = statistics.combine(
            each=statistics.per_example_gradients,
            norms=statistics.squared_norms,
            moments=statistics.moments,
        )
        found = both(case.layer, linear)(params, x, target)
        factors = statistics.kfac_factors(case.layer, linear, statistics.empirical)
        sums = found["norms"].total, found["moments"].sum_of_squares, factors(params, x, target)
        return found["each"], sums

    each, sums = run(*as_type(jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(each)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(sums)} == {jnp.dtype(jnp.float32)}
    due_each, due_sums = run(*as_type(jnp.float32))
    assert_alike(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), each), due_each, 2**-5)
    assert_alike(sums, due_sums, 2**-5)


@mixing
def test_layers_that_mix_examples_are_refused(case):
    params, x, _, delta = drawn(case)
    target = tuple(jax.tree.leaves(delta))
    for statistic in (
        statistics.squared_norms,
        statistics.combine(one=statistics.mean_gradient, other=statistics.moments),
        statistics.clipped_gradient(1.0),
        statistics.inner_products_between,
    ):
        between = statistic is statistics.inner_products_between
        given = ((x, target), (x, target)) if between else (x, target)
        with pytest.raises(LayerError, match=r"mixes the examples of a batch.*calibrate"):
            jax.eval_shape(statistic(case.layer, linear), params, *given)
    # The gradient of the mean has its meaning all the same, and is the sum over the deltas sent.

    @jax.jit
    def run(params, x, target):
        mean = statistics.mean_gradient(case.layer, linear)(params, x, target)
        sweep = fp.value_and_backprop(case.layer, linear, each_gradient)
        return mean, sweep(params, x, target)[1]

    mean, each = jax.device_get(run(params, x, target))
    assert_alike(jax.tree.map(lambda g: g.sum(0), each), mean, 1e-5)


def test_of_a_loss_with_parameters_and_ids():
    """An embedding whose ids repeat, and chunks of a vocabulary, each a site."""
    model = fp.serial(fp.embedding(50, 4), fp.dense(6, fp.tanh))
    loss = fp.linear_cross_entropy(20, chunk=7)
    draw = np.random.default_rng(0)
    ids, labels = (draw.integers(0, n, (6, 9), dtype=np.int32) for n in (12, 20))
    structs = jax.ShapeDtypeStruct((9,), jnp.int32)
    own = params_of(model.init, structs)
    loss_own = params_of(loss.init, (jax.ShapeDtypeStruct((9, 6), np.float32), structs))
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(a, float), (own, loss_own))

        @jax.jit
        def run(params):
            max_norm, due = of_gradients(formed(model, loss, params, ids, labels)[0])
            return by_statistics(model, loss, params, ids, labels, max_norm), due

        found, due = jax.device_get(run(params))
    assert_alike(compared(found, due), due, 1e-10)
    assert found["norms"].sites[1].shape == (6, 3)


def test_masks_of_dropout_are_those_of_the_forward_pass():
    model = fp.serial(fp.dense(8, fp.tanh), fp.dropout(0.5), fp.dense(2))
    params = params_of(model.init, (3,))
    x, y = np.arange(12, dtype=np.float32).reshape(4, 3) / 7, np.ones((4, 2), np.float32)
    key = jax.random.key(5)

    @jax.jit
    def run(params):
        each, _ = formed(model, fp.mean_squared_error, params, x, y, key=key)
        max_norm, due = of_gradients(each)
        found = by_statistics(model, fp.mean_squared_error, params, x, y, max_norm, key=key)
        return found["norms"].total, found["each"], due

    norms, each, due = run(params)
    np.testing.assert_allclose(norms, due["norms"], rtol=1e-5)
    assert_alike(each, due["each"], 1e-5)


@pytest.mark.parametrize(("tokens", "formed_is_cheaper"), [(2, False), (40, True)])
def test_each_site_takes_the_cheaper_form(tokens, formed_is_cheaper):
    """Gram matrices of the tokens for few, the examples' gradients for many of them."""
    model = fp.dense(9)
    params = params_of(model.init, (tokens, 6))
    draw = np.random.default_rng(1)
    x, y = (draw.normal(size=(4, tokens, n)).astype(np.float32) for n in (6, 9))
    norms = statistics.squared_norms(model, fp.mean_squared_error)
    text = str(jax.make_jaxpr(norms)(params, x, y))
    assert (f"[4,{tokens},{tokens}]" in text) != formed_is_cheaper

    @jax.jit
    def run(*given):
        _, flat = formed(model, fp.mean_squared_error, *given)
        return norms(*given).total, jnp.sum(flat**2, 1)

    found, due = run(params, x, y)
    np.testing.assert_allclose(found, due, rtol=1e-5)


def test_chunks_of_examples_whose_rows_outgrow_the_cache(monkeypatch):
    """Columns of a convolution, 2 of 5 images at a time, give what all at once give."""
    model = fp.conv(3, 3)
    params = params_of(model.init, (6, 6, 2))
    x = np.random.default_rng(1).normal(size=(5, 6, 6, 2)).astype(np.float32)
    y = np.zeros((5, 6, 6, 3), np.float32)
    wanted = {"each": statistics.per_example_gradients, "norms": statistics.squared_norms}
    both = statistics.combine(**wanted)(model, fp.mean_squared_error)

    def run():
        text = str(jax.make_jaxpr(lambda p: both(p, x, y))(params))
        return jax.jit(lambda p: both(p, x, y))(params), "scan" in text

    whole, cut = run()
    monkeypatch.setattr(contraction, "CACHE", 4096)
    chunked, cut_now = run()
    assert (cut, cut_now) == (False, True)
    assert_alike(chunked, whole, 1e-6)


def test_norms_of_sites_add_up_and_keep_the_layers_of_repeat_apart():
    model = fp.serial(fp.repeat(fp.dense(3, fp.tanh), 4), fp.dense(2))
    given = (
        params_of(model.init, (3,)),
        np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32),
        np.zeros((5, 2), np.float32),
    )
    norms = statistics.squared_norms(model, fp.mean_squared_error)
    (total, (inside, last)), (each, _) = jax.device_get(
        jax.jit(lambda *args: (norms(*args), formed(model, fp.mean_squared_error, *args)))(*given)
    )
    assert (inside.shape, last.shape) == ((5, 4), (5,))
    np.testing.assert_allclose(total, inside.sum(1) + last, rtol=1e-6)
    due = np.sum(each[0]["w"] ** 2, (2, 3)) + np.sum(each[0]["b"] ** 2, 2)
    np.testing.assert_allclose(inside, due, rtol=1e-5)


def test_clipping():
    model, loss = fp.serial(fp.dense(3, fp.tanh), fp.dense(1)), fp.mean_squared_error
    params = params_of(model.init, (2,))
    x = np.array([[2.0, 1.0], [0.1, 0.2], [0.3, 0.1]], np.float32)

    @jax.jit
    def run(params, max_norm):
        y = model.apply(params, x) + jnp.array([[30.0], [0.0], [1.0]])  # the second gradient is 0
        found = [
            statistics.clipped_gradient(max_norm, per_layer=per_layer)(model, loss)(params, x, y)
            for per_layer in (False, True)
        ]
        return found, formed(model, loss, params, x, y)

    def clipped(each, norms, max_norm):
        c = np.where(norms > max_norm, max_norm / np.maximum(norms, 1e-30), 1).astype(np.float32)
        return jax.tree.map(lambda g: np.tensordot(c, g, 1) / 3, each)

    for max_norm in (0.5, 1e6):
        (found, by_layer), (each, flat) = jax.device_get(run(params, max_norm))
        norms = np.linalg.norm(flat, axis=1)
        assert_alike(found.gradient, clipped(each, norms, max_norm), 1e-6)
        np.testing.assert_allclose(found.squared_norms, norms**2, rtol=1e-5, atol=1e-9)
        for layer, grads in zip(each, by_layer.gradient, strict=True):
            own = np.sqrt(sum(np.sum(g.reshape(3, -1) ** 2, 1) for g in layer.values()))
            assert_alike(grads, clipped(layer, own, max_norm), 1e-6)
        np.testing.assert_allclose(by_layer.squared_norms, norms**2, rtol=1e-5, atol=1e-9)


def test_norms_and_gradient_take_a_tenth_of_the_memory_of_vmap():
    model = fp.serial(fp.dense(64, fp.relu), fp.dense(64, fp.relu), fp.dense(10))
    params = params_of(model.init, (80,))
    x, y = np.ones((32, 80), np.float32), np.zeros(32, np.int32)
    loss = fp.softmax_cross_entropy()

    def one(params, x, y):
        return jax.grad(lambda p: losses_of(model, loss, x[None], y[None])(p)[0])(params)

    def by_vmap(params, x, y):
        each = jax.vmap(one, (None, 0, 0))(params, x, y)
        norms = sum(jnp.sum(g.reshape(32, -1) ** 2, 1) for g in jax.tree.leaves(each))
        return norms, jax.tree.map(lambda g: g.mean(0), each)

    def by_hand(params, x, y):
        both = statistics.combine(norms=statistics.squared_norms, mean=statistics.mean_gradient)
        return both(model, loss)(params, x, y)

    def memory(f):
        compiled = jax.jit(f).lower(params, x, y).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(by_hand) * 10 < memory(by_vmap)


# ------------------------------------------------------------------------- derivatives


@pytest.fixture
def small(x64):
    """A network with a convolution and a norm, one batch, in float64."""
    model = fp.serial(fp.conv(2, 2), fp.tanh, fp.flatten, fp.layer_norm(), fp.dense(3))
    params = jax.tree.map(lambda a: a.astype(float) / 2, params_of(model.init, (3, 3, 1)))
    draw = np.random.default_rng(0)
    return model, params, draw.normal(size=(4, 3, 3, 1)), draw


def test_jacobian(small):
    whole, all_params, x, _ = small
    first = whole.parts[0]  # whose output has several axes
    for model, params in ((whole, all_params), (first, all_params[0])):

        @jax.jit
        def run(params, x, model=model):
            by_params = jax.jacrev(lambda p: model.apply(p, x))(params)
            by_x = jax.vmap(jax.jacrev(lambda x: model.apply(params, x[None])[0]))(x)
            due = statistics.Jacobian(by_params, by_x)
            return statistics.jacobian(model)(params, x), due

        assert_alike(*jax.device_get(run(params, x)), 1e-12)


def test_saliency(small):
    model, params, x, _ = small
    y = jnp.array([0, 2, 1, 1])
    loss = fp.softmax_cross_entropy(0.1)

    @jax.jit
    def run(params, x):
        due = jax.grad(lambda x: loss.apply((), (model.apply(params, x), y)).sum())(x)
        return statistics.saliency(model, loss)(params, x, y), due

    assert_alike(*run(params, x), 1e-12)


LOSSES = {
    "mean_squared_error": (fp.mean_squared_error, lambda d: d.normal(size=(4, 3))),
    "huber": (fp.huber(0.5), lambda d: d.normal(size=(4, 3))),
    "hinge": (fp.hinge, lambda d: d.choice([-1.0, 1.0], (4, 3))),
    "sigmoid_cross_entropy": (fp.sigmoid_cross_entropy, lambda d: d.uniform(size=(4, 3))),
    "softmax_cross_entropy": (fp.softmax_cross_entropy(0.1), lambda d: d.integers(0, 3, 4)),
    "kl_divergence": (fp.kl_divergence, lambda d: d.dirichlet(np.ones(3), 4)),
}
of_losses = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("huber", "sigmoid_cross_entropy")))
        for name in LOSSES
    ],
)


# --------------------------------------------------------------------------- curvature


def dense_ggn(model, loss, params, x, y):
    """G = 1/B Σᵢ Jᵢᵀ Hᵢ Jᵢ and the Hessian, by jax.jacrev and jax.hessian."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    p = model.apply(params, x)
    slopes = jax.jacrev(lambda flat: model.apply(unravel(flat), x))(flat)

    def one(p, y):
        return loss.apply((), (p[None], y[None]))[0]

    hessians = jax.vmap(jax.hessian(one))(p, y)
    matrix = jnp.einsum("ikp,ikl,ilq->pq", slopes, hessians, slopes) / len(p)
    return matrix, jax.hessian(
        lambda flat: loss.apply((), (model.apply(unravel(flat), x), y)).mean()
    )(flat)


@of_losses
def test_the_gauss_newton_matrix_and_the_hessian(small, name):
    """Their products, and the first one's diagonal and trace, against the dense matrices."""
    model, params, x, draw = small
    loss, drawn_target = LOSSES[name]
    y = drawn_target(draw)
    vector = jax.tree.map(lambda leaf: draw.normal(size=leaf.shape), params)
    st, flat = statistics, lambda tree: jax.flatten_util.ravel_pytree(tree)[0]

    @jax.jit
    def run(params, x, y, vector):
        matrix, hessian = dense_ggn(model, loss, params, x, y)
        squares = st.moments(model, loss)(params, x, y).sum_of_squares
        found = {
            "hessian": flat(st.hessian_vector_product(model, loss)(params, x, y, vector)),
            "product": flat(st.gauss_newton_vector_product(model, loss)(params, x, y, vector)),
            "diagonal": flat(st.ggn_diagonal(model, loss)(params, x, y)),
            "trace": st.ggn_trace(model, loss)(params, x, y),
            "empirical": flat(st.fisher_diagonal(model, loss, st.empirical)(params, x, y)),
        }
        due = {
            "hessian": hessian @ flat(vector),
            "product": matrix @ flat(vector),
            "diagonal": jnp.diag(matrix),
            "empirical": flat(squares) / len(x),
        }
        if loss.likelihood:
            found["fisher"] = flat(st.fisher_diagonal(model, loss)(params, x, y))
        return found, due

    found, due = jax.device_get(run(params, x, y, vector))
    for which, b in due.items():
        bound = 1e-11 if which in ("hessian", "product") else 1e-12
        room = bound * max(1, np.abs(b).max())
        np.testing.assert_allclose(found[which], b, rtol=0, atol=room, err_msg=which)
    if name == "hinge":
        assert not found["product"].any()
    leaves = jax.tree.leaves(found["trace"].sites)
    assert len(leaves) == 3
    np.testing.assert_allclose(found["trace"].total, due["diagonal"].sum(), atol=1e-12)
    np.testing.assert_allclose(sum(leaves), found["trace"].total, rtol=1e-12)
    if loss.likelihood:  # of 3 outputs, or of one distribution
        terms = 1 if name == "kl_divergence" else 3
        assert_alike(found["fisher"], found["diagonal"] / terms, 1e-12)
    else:
        assert name in ("huber", "hinge", "softmax_cross_entropy")  # which is smoothed
        with pytest.raises(LayerError, match=rf"{name}: it is no likelihood.*empirical"):
            st.fisher_diagonal(model, loss, st.sampled(3))


def combinations(options, *shape):
    """All arrays (K, *shape) with entries from ``options``."""
    found = itertools.product(options, repeat=int(np.prod(shape)))
    return np.array(list(found)).reshape(-1, *shape)


def log_softmax(p):
    return p - np.log(np.exp(p).sum(-1, keepdims=True))


def of_labels(log_p):
    """All labels (K, T) of T tokens, and how likely each is."""
    labels = combinations(range(log_p.shape[-1]), len(log_p)).astype(np.int32)
    return labels, np.exp(np.sum(log_p[np.arange(len(log_p)), labels], axis=1))


def of_distributions(p):
    labels, likely = of_labels(log_softmax(p))
    return np.eye(p.shape[-1])[labels], likely


def of_bits(p):
    bits = combinations((0.0, 1.0), *p.shape)
    one = 1 / (1 + np.exp(-p))
    return bits, np.prod(np.where(bits == 1, one, 1 - one).reshape(len(bits), -1), axis=1)


def of_normals(p):
    """The nodes of Gauss and Hermite, exact for g² of degree 2, of a normal of variance 1/2."""
    nodes, weights = np.polynomial.hermite.hermgauss(3)
    which = combinations(range(3), *p.shape)
    likely = np.prod(weights[which].reshape(len(which), -1) / np.sqrt(np.pi), axis=1)
    return p + nodes[which], likely


KEPT = np.array([[True, False, True], [False, True, False], [True, True, True]])
ONE_TERM = fp.sigmoid_cross_entropy._replace(terms=None, name="somebody's")
# The loss, the prediction's shape, all targets, the mask, and the terms of each example.
LIKELIHOODS = {
    "labels": (fp.softmax_cross_entropy(), (3,), of_labels, None, [1, 1, 1]),
    "labels of tokens": (fp.softmax_cross_entropy(), (2, 3), of_labels, None, [2, 2, 2]),
    "labels of masked tokens": (fp.softmax_cross_entropy(), (3, 3), of_labels, KEPT, [2, 1, 3]),
    "distributions": (fp.softmax_cross_entropy(), (2, 3), of_distributions, None, [2, 2, 2]),
    "divergence": (fp.kl_divergence, (3, 2), of_distributions, KEPT, [2, 1, 3]),
    "bits": (fp.sigmoid_cross_entropy, (3,), of_bits, None, [3, 3, 3]),
    "bits of masked tokens": (fp.sigmoid_cross_entropy, (3, 2), of_bits, KEPT, [4, 2, 6]),
    "normals": (fp.mean_squared_error, (2,), of_normals, None, [2, 2, 2]),
    "normals of masked tokens": (fp.mean_squared_error, (3, 1), of_normals, KEPT, [2, 1, 3]),
    "vocabulary": (fp.linear_cross_entropy(3, chunk=2), (3, 2), of_labels, KEPT, [2, 1, 3]),
    "one term, somebody's": (ONE_TERM, (1,), of_bits, None, [1, 1, 1]),
}
# Those whose masked tokens are in the table too.
MASKED = {
    "labels": "labels of masked tokens",
    "labels of tokens": "labels of masked tokens",
    "distributions": "divergence",
    "bits": "bits of masked tokens",
    "normals": "normals of masked tokens",
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (MASKED.get(name) in LIKELIHOODS))
        for name in LIKELIHOODS
    ],
)
def test_the_fisher_information_is_the_mean_square_over_all_targets(name, x64):
    """E[gᵢ²] over targets drawn from the model, by enumeration, of one scale with empirical errors;
    the Gauss-Newton diagonal divided by the number of terms, drawn errors too.
    """
    loss, shape, enumerated, kept, terms = LIKELIHOODS[name]
    draw, model = np.random.default_rng(4), fp.affine(shape[-1])
    params = {"w": draw.normal(size=(shape[-1], 2)), "b": draw.normal(size=shape[-1])}
    x = draw.normal(size=(3, *shape[:-1], 2))
    scores = prediction = x @ params["w"].T + params["b"]
    given = params
    if name == "vocabulary":
        own = {"w": draw.normal(size=(2, 2, 2))}
        given, scores = (params, own), prediction @ own["w"].reshape(4, 2)[:3].T
    st = statistics

    @jax.jit
    def one(given, x, kept, targets, likely):
        def with_mask(y):
            return y[None] if kept is None else (y[None], kept[None])

        def at(y):
            return st.fisher_diagonal(model, loss, st.empirical)(given, x[None], with_mask(y))

        due = jax.tree.map(lambda g: jnp.tensordot(likely, g, 1), jax.vmap(at)(targets))
        args, key = (given, x[None], with_mask(targets[0])), jax.random.key(3)
        exact = [f(model, loss)(*args) for f in (st.fisher_diagonal, st.ggn_diagonal)]
        drawn = [
            f(model, loss, st.sampled(2))(*args, key=key)
            for f in (st.fisher_diagonal, st.ggn_diagonal)
        ]
        return due, exact, drawn

    for i in range(3):
        if loss.name.startswith(("softmax", "linear")) and enumerated is of_labels:
            log_p = log_softmax(scores[i])
            targets, likely = of_labels(np.atleast_2d(log_p))
            targets = targets[:, 0] if log_p.ndim == 1 else targets
        else:
            targets, likely = enumerated(scores[i])
        np.testing.assert_allclose(likely.sum(), 1, rtol=1e-14)
        mask = None if kept is None else kept[i]
        due, exact, drawn = jax.device_get(one(given, x[i], mask, targets, likely))
        assert_alike(exact[0], due, 1e-13)
        for fisher, ggn in (exact, drawn):
            assert_alike(fisher, jax.tree.map(lambda g, n=terms[i]: g / n, ggn), 1e-13)


@pytest.mark.parametrize(
    "loss",
    [
        fp.softmax_cross_entropy(0.1),
        fp.linear_cross_entropy(3, label_smoothing=0.1),
        fp.auxiliary(fp.softmax_cross_entropy(), 0.1),
        fp.weighted(fp.softmax_cross_entropy()),
        fp.mean_absolute_error,
    ],
    ids=lambda loss: loss.name,
)
def test_what_is_no_likelihood_has_no_fisher_information(loss):
    for errors in (statistics.exact, statistics.sampled()):
        with pytest.raises(LayerError, match=r"no likelihood.*label smoothing or a term added"):
            statistics.fisher_diagonal(fp.affine(3), loss, errors)
    statistics.fisher_diagonal(fp.affine(3), loss, statistics.empirical)


@of_losses
def test_sampled_errors_are_without_bias(small, name):
    """The mean of 4,000 estimates lies within 5 of its standard deviations; by chance it would not
    once in a million numbers."""
    model, params, x, draw = small
    loss, drawn_target = LOSSES[name]
    y = drawn_target(draw)

    @jax.jit
    def run(key):
        def one(key):
            found = statistics.ggn_diagonal(model, loss, statistics.sampled())
            return jax.flatten_util.ravel_pytree(found(params, x, y, key=key))[0]

        many = jax.lax.map(one, jax.random.split(key, 4000), batch_size=500)
        due = statistics.ggn_diagonal(model, loss)(params, x, y)
        return many.mean(0), many.std(0), jax.flatten_util.ravel_pytree(due)[0]

    mean, deviation, due = run(jax.random.key(7))
    assert np.all(np.abs(mean - due) <= 5 * deviation / np.sqrt(4000) + 1e-12)
    with pytest.raises(LayerError, match="give the call a key"):
        jax.eval_shape(statistics.ggn_diagonal(model, loss, statistics.sampled()), params, x, y)


def test_several_samples_are_their_mean(small):
    model, params, x, _ = small
    loss, y = fp.softmax_cross_entropy(), jnp.array([0, 2, 1, 1])

    @jax.jit
    def run(key):
        many = statistics.ggn_trace(model, loss, statistics.sampled(2000))
        return many(params, x, y, key=key).total, statistics.ggn_trace(model, loss)(params, x, y)

    found, due = run(jax.random.key(1))
    np.testing.assert_allclose(found, due.total, rtol=0.1)


def test_hessian_diagonal_by_random_signs(small):
    """Within 5 standard deviations of the estimator, which are known: √Σ Hⱼₖ² off the diagonal."""
    model, params, x, draw = small
    loss, y = fp.mean_squared_error, draw.normal(size=(4, 3))

    @jax.jit
    def run(key):
        found = statistics.hessian_diagonal(model, loss, 400)(params, x, y, key=key)
        return jax.flatten_util.ravel_pytree(found)[0], dense_ggn(model, loss, params, x, y)[1]

    found, hessian = run(jax.random.key(2))
    due = np.diag(hessian)
    deviation = np.sqrt((np.sum(hessian**2, axis=1) - due**2) / 400)
    assert np.all(np.abs(found - due) <= 5 * deviation + 1e-12)
    assert np.any(np.abs(found - due) > 1e-6)


def test_eigenpairs_of_the_gauss_newton_matrix(small):
    model, params, x, _ = small
    loss, y = fp.softmax_cross_entropy(), jnp.array([0, 2, 1, 1])

    @jax.jit
    def run(params):
        product = statistics.gauss_newton_vector_product(model, loss)
        found = statistics.eigenpairs(
            lambda v: product(params, x, y, v), params, 3, 20, jax.random.key(0)
        )
        matrix = dense_ggn(model, loss, params, x, y)[0]
        short = statistics.eigenpairs(
            lambda v: matrix @ v, jnp.zeros(len(matrix)), 2, 3, jax.random.key(1)
        )
        return found, short, matrix

    found, short, matrix = jax.device_get(run(params))
    values = np.linalg.eigvalsh(matrix)
    np.testing.assert_allclose(found.values, values[::-1][:3], rtol=1e-10)
    vectors = flat_rows(found.vectors)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(3), atol=1e-10)
    np.testing.assert_allclose(vectors @ matrix, found.values[:, None] * vectors, atol=1e-8)
    # 4 examples of 3 classes span 8 directions: the space is exhausted long before 20 steps.
    assert np.all(found.residuals < 1e-8)
    error = np.abs(short.values[:, None] - values).min(1)
    assert np.all(error <= short.residuals + 1e-12)


def flat_rows(vectors):
    """(count, n) in float64."""
    rows = [np.asarray(v, np.float64).reshape(len(v), -1) for v in jax.tree.leaves(vectors)]
    return np.concatenate(rows, axis=1)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_eigenpairs_of_matrices_of_every_rank(dtype):
    """500 models each, of 1 to 9 examples that count: ranks 2 to all 18, always 18 steps."""
    model = fp.serial(fp.affine(3, bias=False), fp.tanh, fp.affine(2, bias=False))
    product = statistics.gauss_newton_vector_product(model, fp.mean_squared_error)
    with jax.enable_x64(True):

        @jax.jit
        @jax.vmap
        def run(seed):
            keys = jax.random.split(jax.random.key(seed), 3)
            params, _ = model.init(keys[0], (4,))
            x = jax.random.normal(keys[1], (9, 4))
            x = jnp.where((jnp.arange(9) <= seed % 9)[:, None], x, 0)
            params, x, y = jax.tree.map(lambda a: a.astype(dtype), (params, x, x[:, :2]))

            found = statistics.eigenpairs(
                lambda v: product(params, x, y, v), params, 4, 18, keys[2]
            )
            wide = jax.tree.map(lambda a: a.astype("float64"), (params, x, y))
            flat, unravel = jax.flatten_util.ravel_pytree(wide[0])
            columns = jax.vmap(unravel)(jnp.eye(flat.size))
            return found, jax.vmap(lambda v: product(*wide, v))(columns)

        found, matrix = jax.device_get(run(jnp.arange(500)))
    for seed in range(500):
        pairs, a = jax.tree.map(lambda leaf, seed=seed: leaf[seed], (found, matrix))
        a, v = flat_rows(a), flat_rows(pairs.vectors)
        due = np.linalg.eigvalsh(a)[::-1]
        room = 64 * float(jnp.finfo(dtype).eps) * due[0]
        np.testing.assert_allclose(pairs.values, due[:4], rtol=0, atol=room)
        error = np.linalg.norm(v @ a - pairs.values[:, None] * v, axis=1)
        assert np.all(error <= pairs.residuals + room)
        np.testing.assert_allclose(v @ v.T, np.eye(4), atol=64 * float(jnp.finfo(dtype).eps))


def test_eigenpairs_of_any_scale_and_of_values_that_come_twice():
    """Indefinite matrices with eigenvalues 0 and double ones; all of them are found, each as often
    as it is there.
    """
    spectra = [
        [0] * 8,
        [3, 3, 3, 3, -2, -2, 0, 0],
        [1] * 8,
        [-5] + [0] * 7,
        [8, -7, 6, 5, 4, -3, 2, 1],
    ]
    draw = np.random.default_rng(0)
    scales = [1e-30, 1.0, 1e30]
    matrices = []
    for scale in scales:
        for spectrum in spectra:
            q = np.linalg.qr(draw.normal(size=(8, 8)))[0]
            matrices.append(scale * q @ np.diag(spectrum) @ q.T)
    a = np.asarray(matrices, np.float32)

    @jax.jit
    @jax.vmap
    def run(a):
        return statistics.eigenpairs(lambda v: a @ v, a[0], 8, 8, jax.random.key(0))

    eps = float(jnp.finfo("float32").eps)
    for matrix, *found in zip(a.astype(np.float64), *jax.device_get(run(a)), strict=True):
        values, v, residuals = (np.asarray(leaf, np.float64) for leaf in found)
        due = np.linalg.eigvalsh((matrix + matrix.T) / 2)
        room = 64 * eps * np.abs(due).max()
        np.testing.assert_allclose(np.sort(values), due, rtol=0, atol=room)
        assert np.all(np.linalg.norm(v @ matrix - values[:, None] * v, axis=1) <= residuals + room)
        np.testing.assert_allclose(v @ v.T, np.eye(8), atol=64 * eps)


def test_eigenpairs_of_narrow_floats_and_of_what_is_not_finite():
    """Of floats narrower than float32 only the products are rounded, by 2⁻⁸ of the largest."""

    @jax.jit
    def run(diagonal, bad):
        def pairs(diagonal):
            return statistics.eigenpairs(lambda v: diagonal * v, diagonal, 2, 4, jax.random.key(0))

        return pairs(diagonal), jax.vmap(pairs)(bad)

    diagonal = jnp.array([1, -8, 4, 0], "bfloat16")
    found, bad = run(diagonal, jnp.array([[1, jnp.nan, 2, 3], [1, jnp.inf, 2, 3]], "float32"))
    assert (found.values.dtype, found.vectors.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(found.values, [-8, 4], atol=8 * 4 * 2**-8)
    assert np.all(np.isnan(bad.values))
    assert np.all(np.isnan(bad.residuals))


NARROW = fp.affine(1, bias=False)  # under the absolute error the gradient of an example is x


def test_products_and_sums_of_narrow_floats_are_wide():
    """Gradients (300, ..., 300) and their squares and sums, beyond 65,504."""
    params = {"w": jnp.zeros((1, 4), jnp.float16)}
    x = jnp.full((300, 4), 300, jnp.float16)
    y = -jnp.ones((300, 1), jnp.float16)
    both = statistics.combine(
        inner=statistics.inner_products,
        norms=statistics.squared_norms,
        moments=statistics.moments,
        mean=statistics.mean_gradient,
    )
    found = jax.jit(both(NARROW, fp.mean_absolute_error))(params, x, y)
    np.testing.assert_array_equal(found["inner"].total, 360_000)
    np.testing.assert_array_equal(found["norms"].total, 360_000)
    np.testing.assert_array_equal(found["moments"].gradient["w"], 300)
    np.testing.assert_allclose(found["mean"]["w"], 300, rtol=2**-11)
    assert found["mean"]["w"].dtype == jnp.float16
    # Products of bfloat16 are not rounded to it: 257² = 66,049.
    wide, x = {"w": jnp.zeros((1, 2), jnp.bfloat16)}, jnp.array([[1, 2**-8]], jnp.bfloat16)
    inner = statistics.inner_products(NARROW, fp.mean_absolute_error)
    found = jax.jit(inner)(wide, x, -jnp.ones((1, 1), jnp.bfloat16))
    np.testing.assert_array_equal(found.total, 1 + 2**-16)


@pytest.mark.parametrize("per_layer", [False, True])
def test_clipping_where_a_square_is_no_number(per_layer):
    """Norms from 1e-35 to 1e37 of one batch; large inputs, large deltas, and rows of both kinds."""

    @jax.jit
    def run(bound, x, y, delta):
        loss = fp.mean_absolute_error if delta is None else linear
        clipped = statistics.clipped_gradient(bound, per_layer=per_layer)(NARROW, loss)
        return clipped({"w": jnp.zeros((1, 4), x.dtype)}, x, y if delta is None else delta)

    one = -jnp.ones((1, 1), "float32")
    for size in (1e-35, 1e-25, 1e-3, 1e18, 1e21, 1e37):
        x = jnp.full((1, 4), size / 2, "float32")
        for bound in (size / 4, size, 4 * size):
            due = min(bound, size) / 2
            found = run(jnp.float32(bound), x, one, None).gradient["w"]
            np.testing.assert_allclose(found, due, rtol=1e-6)
            ones = jnp.full((1, 4), 0.5, "float32")
            found = run(jnp.float32(bound), ones, None, jnp.full((1, 1), size, "float32"))
            np.testing.assert_allclose(found.gradient["w"], due, rtol=1e-6)
    # The second token is large and its delta 0, the third one has the gradient.
    x = jnp.array([1.0, 1e30, 2.0])[:, None, None] * jnp.ones((1, 3, 4)) * jnp.eye(3)[..., None]
    x = jnp.sum(x, 0, keepdims=True).astype("float32")
    delta = jnp.array([0, 0, 1e20], "float32")[None, :, None]
    found = run(jnp.float32(1), x, None, delta).gradient["w"]
    np.testing.assert_allclose(found, 0.5, rtol=1e-6)
    # float16, whose own c would be 0, and many examples, whose count is no float16.
    x = jnp.full((2, 4), 30_000, "float16")
    found = run(jnp.float32(1e-3), x, -jnp.ones((2, 1), "float16"), None).gradient["w"]
    np.testing.assert_allclose(found, 5e-4, rtol=2**-10)
    x = jnp.ones((70_000, 4), "float16")
    found = run(jnp.float32(1), x, -jnp.ones((70_000, 1), "float16"), None)
    np.testing.assert_allclose(found.gradient["w"], 0.5, rtol=2**-10)
    np.testing.assert_array_equal(found.value, 1)


def test_clipping_of_what_is_not_finite_and_by_a_bound_that_is_none():
    clip = jax.jit(
        lambda bound, x: statistics.clipped_gradient(bound)(NARROW, fp.mean_absolute_error)(
            {"w": jnp.zeros((1, 4), "float32")}, x, -jnp.ones((1, 1), "float32")
        )
    )
    x = jnp.full((1, 4), 0.5, "float32")
    for bound in (-1.0, 0.0, jnp.nan):
        assert np.all(np.isnan(clip(jnp.float32(bound), x).gradient["w"]))
    for bad in (jnp.nan, jnp.inf, 3e38):  # of the last one the norm is infinite
        assert np.all(np.isnan(clip(jnp.float32(1), x.at[0].set(bad)).gradient["w"]))
    np.testing.assert_array_equal(clip(jnp.float32(jnp.inf), x).gradient["w"], x)
    np.testing.assert_array_equal(clip(jnp.float32(1), 0 * x).gradient["w"], 0)
