"""cast: what is computed in which dtype, against autodiff and float64.

It has no line in the table of cases: differences in float64 cannot judge what is rounded.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import funcprop as fp
from funcprop import cast
from funcprop.cases.catalogue import ACTIVATIONS, LAYERS
from funcprop.core.checks import is_inexact
from tests.programs import scan_sizes

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (16, 5))
BFLOAT16_EPS = float(jnp.finfo(jnp.bfloat16).eps) / float(jnp.finfo(jnp.float32).eps)


@functools.cache
def sweep_of(layer, statistic):
    @jax.jit
    def sweep(params, x, weights):
        y, residuals = layer.forward(params, x)
        delta = jax.tree.map(lambda leaf: jnp.cos(leaf) if is_inexact(leaf) else None, y)
        return y, delta, *layer.backward(weights, residuals, delta, statistic)

    return sweep


def swept(layer, params, x, weights=None, statistic=fp.gradient):
    return sweep_of(layer, statistic)(params, x, params if weights is None else weights)


def by_vjp(layer, params, x, delta):
    def run(params, x, delta):
        y, pullback = jax.vjp(layer.apply, params, x)
        return y, pullback(delta)

    return jax.jit(run)(params, x, delta)


def model_of(width=5):
    return fp.serial(fp.dense(8, fp.tanh), fp.repeat(fp.dense(8, fp.gelu), 2), fp.dense(width))


def test_the_gradient_is_that_of_vjp_and_nearer_to_float64(x64):
    layer = cast(model_of(), "bfloat16")
    params, _ = layer.init(KEY, (5,))
    params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, X))
    y, delta, delta_x, grads = swept(layer, params, x)
    due_y, due = by_vjp(layer, params, x, delta)
    fp.compare(
        (y, grads, delta_x),
        (due_y, *due),
        leaf_bound=16 * BFLOAT16_EPS,
        whole_bound=4 * BFLOAT16_EPS,
    ).assert_ok()

    def wide(tree):
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree)

    _, truth = by_vjp(model_of(), wide(params), wide(x), wide(delta))

    def error(found):
        pairs = zip(jax.tree.leaves(wide(found)), jax.tree.leaves(truth), strict=True)
        return float(sum(jnp.sum((a - b) ** 2) for a, b in pairs)) ** 0.5

    assert error((grads, delta_x)) <= 1.05 * error(due)


def test_a_site_contracts_in_float32_what_was_rounded_to_bfloat16():
    """δWᵀ of rounded factors, exact to float32; bfloat16 sums would be 2⁻⁹ off."""
    layer = cast(fp.affine(3), "bfloat16")
    params, _ = layer.init(KEY, (5,))
    x = jax.random.normal(KEY, (500, 5))
    _, delta, delta_x, grads = swept(layer, params, x)

    def rounded(leaf):
        return np.asarray(leaf.astype(jnp.bfloat16)).astype(np.float64)

    due = rounded(delta).T @ rounded(x)
    np.testing.assert_allclose(grads["w"], due, atol=2e-6 * np.abs(due).max())
    np.testing.assert_allclose(grads["b"], rounded(delta).sum(0), rtol=1e-5)
    through = rounded(delta) @ rounded(params["w"])
    np.testing.assert_allclose(delta_x, through, atol=2**-8 * np.abs(through).max())


def test_small_deltas_survive_bfloat16_and_vanish_in_float16():
    params, _ = fp.affine(3).init(KEY, (5,))

    def gradient(dtype):
        layer = cast(fp.affine(3), dtype)
        _, residuals = layer.forward(params, X)
        return layer.backward(params, residuals, jnp.full((16, 3), 1e-30))[1]["b"]

    np.testing.assert_allclose(gradient("bfloat16"), 16e-30, rtol=2**-8)
    assert not gradient("float16").any()


def test_cast_to_its_own_dtype_is_the_layer():
    plain = model_of()
    layer = cast(plain, "float32")
    params, _ = layer.init(KEY, (5,))
    others, _ = layer.init(jax.random.key(1), (5,))
    for weights in (params, others):
        found = swept(layer, params, X, weights)
        fp.compare(found, swept(plain, params, X, weights)).assert_ok()
    fp.check_layer(layer, (5,)).assert_ok()
    fp.check_layer(layer, (5,), dtype="bfloat16").assert_ok()


def test_dtypes_of_everything():
    """Ids, tuples with integers, and residuals half as large."""
    layer = cast(fp.serial(fp.embedding(7, 4), fp.dense(3, fp.tanh)), "bfloat16")
    params, out_shape = layer.init(KEY, (6,))
    y, _, delta_x, grads = swept(layer, params, jnp.array([[0, 6, 3, 3, 3, 1]]))
    assert out_shape == y.shape[1:] == (6, 3)
    assert delta_x is None
    assert {leaf.dtype.name for leaf in jax.tree.leaves((y, grads))} == {"float32"}
    on = cast(fp.on(0, fp.dense(3, fp.tanh)), "bfloat16")
    shape = (jax.ShapeDtypeStruct((5,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))
    params, _ = on.init(KEY, shape)
    (y, ids), _, delta_x, _ = swept(on, params, (X, jnp.arange(16)))
    assert (y.dtype, ids.dtype, delta_x[0].dtype, delta_x[1]) == (
        "float32",
        "int32",
        "float32",
        None,
    )
    held = [
        sum(
            leaf.size * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(jax.eval_shape(layer.forward, *layer_args)[1])
        )
        for layer, layer_args in (
            (model, (model.init(KEY, (5,))[0], X))
            for model in (cast(model_of(), "bfloat16"), model_of())
        )
    ]
    assert held[0] == held[1] / 2


def test_other_weights_carry_the_error_and_every_site_is_seen_once():
    layer = cast(fp.repeat(fp.dense(5, fp.tanh), 3), "bfloat16")
    params, _ = layer.init(KEY, (5,))
    seen = []

    def statistic(site, inputs, delta):
        seen.append((site.name, inputs.dtype.name, delta.dtype.name))
        return fp.gradient(site, inputs, delta)

    silent = jax.tree.map(jnp.zeros_like, params)
    _, _, delta_x, tree = swept(layer, params, X, silent, statistic)
    assert seen == [("dense", "float32", "float32")]
    assert not delta_x.any()
    assert tree["w"][2].any()
    assert fp.sites(layer, (5,)).name == "dense"
    again = layer.rebuild(layer.parts)
    fp.compare(swept(again, params, X), swept(layer, params, X)).assert_ok()


def test_it_learns():
    layer = cast(fp.mlp((5, 16, 3), fp.tanh), "bfloat16")
    params, _ = layer.init(KEY, (5,))
    labels = jnp.argmax(X[:, :3], axis=-1)
    step = jax.jit(fp.value_and_backprop(layer, fp.softmax_cross_entropy()))
    first, _ = step(params, X, labels)
    for _ in range(100):
        value, grads = step(params, X, labels)
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
    assert value < first / 10


@pytest.mark.parametrize("kind", [AxisType.Explicit, "shard_map"])
def test_on_meshes(kind):
    model = cast(fp.serial(fp.embedding(7, 4), fp.dense(3, fp.tanh)), "bfloat16")
    params, _ = model.init(KEY, (2,))
    ids, labels = jnp.arange(16).reshape(8, 2) % 7, jnp.arange(16).reshape(8, 2) % 3
    sweep = fp.value_and_backprop(model, fp.softmax_cross_entropy())
    due = jax.jit(sweep)(params, ids, labels)
    types = (AxisType.Auto if kind == "shard_map" else kind,)
    mesh = jax.make_mesh((8,), ("data",), axis_types=types)
    if kind == "shard_map":

        def local(params, ids, labels):
            value, grads = sweep(params, ids, labels)
            return jax.lax.pmean(value, "data"), jax.tree.map(lambda g: g / 8, grads)

        specs = (P(), P("data"), P("data"))
        run = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P()))
        found = run(params, ids, labels)
    else:
        with jax.set_mesh(mesh):
            held = jax.device_put(params, NamedSharding(mesh, P()))
            batch = jax.device_put((ids, labels), NamedSharding(mesh, P("data")))
            found = jax.jit(lambda *args: sweep(*args))(held, *batch)
    # XLA leaves a rounding to bfloat16 out where it fuses two operations, and fuses differently.
    fp.compare(
        *jax.device_get((found, due)),
        leaf_bound=16 * BFLOAT16_EPS,
        whole_bound=4 * BFLOAT16_EPS,
    ).assert_ok()


SUMS = {"reduce_sum", "cumsum", "cumprod", "reduce_prod", "scatter-add", "reduce_window_sum"}
NOT_A_SUM = {
    ("function", "reduce_sum"): "jax.vjp's own sum",
    ("hard_sigmoid", "div by 6"): "a constant of its formula",
    ("repeat of remat", "added to a carry"): "the residual stream, of as many terms as layers",
}


def is_narrow(variable):
    return getattr(variable.aval, "dtype", None) in (jnp.float16, jnp.bfloat16)


def narrow_sums(jaxpr):
    """What a program adds or counts in floats narrower than float32; products of matrices are left
    out, as XLA adds those in float32.
    """
    for eqn in jaxpr.eqns:
        name, given = eqn.primitive.name, eqn.invars
        literals = [v.val for v in given if isinstance(v, Literal)]
        if name == "scan":
            inner, (consts, carry) = eqn.params["jaxpr"].jaxpr, scan_sizes(eqn.params)
            outs = inner.outvars[:carry]
            carries = zip(inner.invars[consts : consts + len(outs)], outs, strict=True)
            sums = {v: e for e in inner.eqns if e.primitive.name == "add" for v in e.outvars}
            for carry, out in carries:
                if is_narrow(out) and any(carry is v for v in getattr(sums.get(out), "invars", ())):
                    yield "added to a carry"
        if is_narrow(eqn.outvars[0]):
            if name in SUMS:
                yield name
            # Numbers that stand in the source are weakly typed.
            whole = jnp.issubdtype(given[0].aval.dtype, jnp.integer) if given else False
            if name == "convert_element_type" and whole and not given[0].aval.weak_type:
                yield "a whole number"
            if name == "div" and literals and literals[0] % 1 == 0 and literals[0] > 2:
                yield f"div by {literals[0]:g}"
        for part in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_program):
            if is_program(part):
                yield from narrow_sums(getattr(part, "jaxpr", part))


def is_program(value):
    return isinstance(value, Jaxpr | ClosedJaxpr)


ALL = (*LAYERS, *ACTIVATIONS)
EXCUSED = [case for case in ALL if case.name in {name for name, _ in NOT_A_SUM}]
SOME = [*EXCUSED, *(case for case in ALL[::5] if case not in EXCUSED)]
REST = [case for case in ALL if case not in SOME]


@pytest.mark.parametrize(
    ("cases", "due"),
    [(SOME, set(NOT_A_SUM)), pytest.param(REST, set(), marks=pytest.mark.slow)],
    ids=["some", "the rest"],
)
def test_no_layer_adds_or_counts_in_narrow_floats(cases, due):
    """Of all programs of the table, traced in float16."""
    found = set()
    for case in cases:
        x = case.draw(np.random.default_rng(7))
        shape = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), x)
        if hasattr(x, "shape") and is_inexact(x):
            shape = shape.shape

        params = jax.eval_shape(lambda key, c=case, s=shape: c.layer.init(key, s)[0], KEY)
        given = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float16 if is_inexact(a) else a.dtype),
            (params, x),
        )

        def sweep(params, x, layer=case.layer):
            y, residuals = layer.forward(params, x, KEY)
            delta = jax.tree.map(lambda leaf: leaf if is_inexact(leaf) else None, y)
            return y, layer.backward(params, residuals, delta)

        program = jax.make_jaxpr(sweep)(*given).jaxpr
        found |= {(case.name, sum_) for sum_ in narrow_sums(program)}
    assert found == due


def test_counts_beyond_float16_are_right():
    """70,000 places or classes, more than float16 has numbers for."""
    count = 70_000
    x = jnp.ones((1, count, 1), jnp.float16)
    delta = jnp.full((1, 1), 1000, jnp.float16)
    y, residuals = fp.global_avg_pool.forward((), x)
    delta_x, _ = fp.global_avg_pool.backward((), residuals, delta)
    np.testing.assert_array_equal(y, 1)
    np.testing.assert_allclose(delta_x[0, 0, 0], 1000 / count, rtol=2**-11)
    z = jnp.zeros((1, count), jnp.float16)
    np.testing.assert_allclose(fp.softmax.apply((), z)[0, 0], 1 / count, atol=2**-25)
    y, residuals = fp.log_softmax.forward((), z)
    np.testing.assert_allclose(y[0, 0], -np.log(count), rtol=2**-11)
    # Σ δ is 70 000 too.
    delta_z, _ = fp.log_softmax.backward((), residuals, jnp.ones_like(z).at[0, 0].set(8))
    np.testing.assert_allclose(delta_z[0, 0], 7, rtol=2**-11)
    assert abs(float(delta_z[0, 1])) < 2**-9


def test_rules_add_and_square_in_wide_floats():
    """Squares of 300, whose number is infinite in float16, and sums of many."""
    model = fp.affine(1, bias=False)
    w = {"w": jnp.full((1, 2), 0.5, jnp.float16)}
    x = jnp.full((300, 2), 300, jnp.float16)
    hebb, rule = fp.hebbian(model, oja=True), fp.forward_forward(model, 2)
    wide, ones = jnp.full((1, 4), 100, jnp.float16), jnp.full((2, 2), 1.5, jnp.float16)

    @jax.jit
    def run():
        labels = jnp.array([0, 1])
        return (
            *hebb.estimate(w, (), x / 2, None, None)[:2],
            *rule.estimate({"w": wide}, (), ones, labels, None)[:2],
            rule.predict({"w": wide}, ones),
        )

    value, tree, loss, grads, goodness = run()
    np.testing.assert_allclose(value, 150**2, rtol=2**-10)
    np.testing.assert_allclose(tree["w"], -(150**2 - 150**2 * 0.5), rtol=2**-10)
    # Of a wrong label the goodness is 400², which in float16 is infinite.
    np.testing.assert_allclose(goodness, 400**2, rtol=2**-10)
    np.testing.assert_allclose(grads["w"][0, :2], 3 * 2 * 400 * 1.5, rtol=2**-9)
    assert loss.dtype == grads["w"].dtype == jnp.float16


def test_angles_of_gradients_whose_squares_are_no_numbers():
    """Backprop's estimate is the gradient: 0 degrees, of any length."""
    model = fp.affine(1, bias=False)
    rule = fp.backpropagation(model, fp.mean_absolute_error)
    metrics = jax.jit(fp.alignment(rule, model, fp.mean_absolute_error))
    state = fp.init_state(rule, optax.sgd(0.1), {"w": jnp.zeros((1, 2))}, KEY)
    for size in (1e-25, 1.0, 1e25):
        found = metrics(state, (jnp.full((1, 2), size), -jnp.ones((1, 1))))
        np.testing.assert_allclose(found["angle"], 0, atol=0.1)
        np.testing.assert_allclose(found["ratio"], 1, rtol=1e-6)
