"""Meshes with Auto and Explicit axes, and shard_map, on eight virtual devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import funcprop as fp
from funcprop import compare, statistics

MODEL = fp.serial(
    fp.dense(8, fp.tanh), fp.repeat(fp.remat(fp.residual(fp.dense(8, fp.silu))), 2), fp.dense(4)
)
LOSS = fp.softmax_cross_entropy()


def numbers(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@functools.cache
def data(batch=32):
    params, _ = MODEL.init(jax.random.key(0), (6,))
    return params, numbers(batch, 6), np.random.default_rng(1).integers(0, 4, batch, np.int32)


def automatic(params, x, y):
    losses = LOSS.apply((), (MODEL.apply(params, x), y))
    return jax.value_and_grad(
        lambda p: jnp.sum(
            LOSS.apply((), (MODEL.apply(p, x), y)) * jnp.full_like(losses, 1 / len(x))
        )
    )(params)


manual = fp.value_and_backprop(MODEL, LOSS)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("microbatch", [pytest.param(None, marks=pytest.mark.slow), 16])
def test_a_sharded_batch(kind, microbatch):
    params, x, y = data()
    due = jax.jit(automatic)(params, x, y)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        x, y = (jax.device_put(a, NamedSharding(mesh, P("data"))) for a in (x, y))
        params = jax.device_put(params, NamedSharding(mesh, P()))
        value, grads = jax.jit(manual, static_argnames="microbatch")(
            params, x, y, microbatch=microbatch
        )
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(grads))
    compare(jax.device_get((value, grads)), jax.device_get(due)).assert_ok()


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_weights(kind):
    """A hidden layer cut over devices: the gradient has the weights' own layout."""
    model = fp.mlp((6, 16, 4), fp.tanh)
    params, _ = model.init(jax.random.key(0), (6,))
    x, y = data()[1:]
    sweep = fp.value_and_backprop(model, LOSS)
    due = jax.jit(sweep)(params, x, y)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    layout = ({"w": P("model", None), "b": P("model")}, {"w": P(None, "model"), "b": P()})
    with jax.set_mesh(mesh):
        x, y = (jax.device_put(a, NamedSharding(mesh, P("data"))) for a in (x, y))
        params = jax.tree.map(
            lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)), params, layout
        )
        value, grads = jax.jit(sweep)(params, x, y)
        if kind is AxisType.Explicit:
            for leaf, grad in zip(jax.tree.leaves(params), jax.tree.leaves(grads), strict=True):
                assert leaf.sharding.is_equivalent_to(grad.sharding, leaf.ndim)
    compare(jax.device_get((value, grads)), jax.device_get(due)).assert_ok()


def test_sharded_tokens_on_an_explicit_mesh():
    model = fp.dense(4)
    params, _ = model.init(jax.random.key(0), (3, 6))
    x, y = numbers(8, 6, 6), numbers(8, 6, 4)
    sweep = fp.value_and_backprop(model, fp.mean_squared_error)
    due = jax.jit(sweep)(params, x, y)
    mesh = jax.make_mesh((4, 2), ("data", "time"))
    with jax.set_mesh(mesh):
        x, y = (jax.device_put(a, NamedSharding(mesh, P("data", "time"))) for a in (x, y))
        found = jax.jit(sweep)(params, x, y)
    compare(jax.device_get(found), jax.device_get(due)).assert_ok()


def test_under_shard_map_it_is_what_value_and_grad_is():
    """Value and gradient of the device's own batch, the gradient summed over devices."""
    params, x, y = data()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def local(params, x, y):
        return [
            (jax.lax.pmean(value, "data"), jax.tree.map(lambda g: g / 8, grads))
            for value, grads in (side(params, x, y) for side in (manual, automatic))
        ]

    specs = (P(), P("data"), P("data"))
    found, due = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P()))(
        params, x, y
    )
    compare(found, due).assert_ok()
    compare(found, jax.jit(automatic)(params, x, y)).assert_ok()


def test_differentiable_under_shard_map():
    params, x, y = data()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    applies = (fp.differentiable(MODEL), MODEL.apply)

    def local(params, x, y):
        def value(params, x, apply):
            losses = LOSS.apply((), (apply(params, x), y))
            return jax.lax.pmean(jnp.mean(losses), "data")

        return tuple(jax.grad(value, (0, 1))(params, x, apply) for apply in applies)

    specs = (P(), P("data"), P("data"))
    out = ((P(), P("data")),) * 2
    compare(
        *jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out))(params, x, y)
    ).assert_ok()


def test_delta_x_of_weights_that_vary_is_summed():
    """Tensor parallel: x the same on every device, the rows of W spread over them."""
    layer = fp.affine(2)
    x, w, delta = numbers(5, 6), numbers(16, 6), numbers(5, 16)
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))

    def local(w, x, delta):
        params = {"w": w, "b": w[:, 0]}
        _, residuals = layer.forward(params, x)
        delta_x, grads = layer.backward(params, residuals, delta)
        return delta_x, grads["w"]

    specs = (P("model"), P(), P(None, "model"))
    run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(P(), P("model")))
    delta_x, grad = jax.jit(run)(w, x, delta)
    compare((delta_x, grad), (delta @ w, delta.T @ x)).assert_ok()


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_training_on_a_mesh(kind):
    params, x, y = data()
    optimizer = optax.adam(1e-2)
    rule = fp.backpropagation(MODEL, LOSS)
    step = fp.update_step(rule, optimizer)
    alone, _ = step(fp.init_state(rule, optimizer, params, jax.random.key(3)), (x, y))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        x, y = (jax.device_put(a, NamedSharding(mesh, P("data"))) for a in (x, y))
        params = jax.device_put(params, NamedSharding(mesh, P()))
        state = fp.init_state(rule, optimizer, params, jax.random.key(3))
        state, _ = step(state, (x, y))
    # Adam divides by |gradient|: its first step is the sign, so compare the moments.
    compare(
        jax.device_get(state.opt_state[0].mu), jax.device_get(alone.opt_state[0].mu)
    ).assert_ok()


# ------------------------------------------------------------------------- statistics

IMAGES = fp.serial(fp.conv(4, 3), fp.tanh, fp.group_norm(2), fp.flatten, fp.dense(4))
TEXT = fp.serial(
    fp.embedding(7, 8), fp.transformer_block(2), fp.gru(5), fp.last_step, fp.dense(4, fp.tanh)
)


def of_examples(model):
    """Statistics with a batch in front."""
    both = statistics.combine(
        each=statistics.per_example_gradients,
        norms=statistics.squared_norms,
        inner=statistics.inner_products,
    )(model, LOSS)

    def run(params, x, y):
        found = both(params, x, y)
        found["clipped"] = statistics.clipped_gradient(0.5)(model, LOSS)(params, x, y).squared_norms
        if model is IMAGES:
            found["jacobian"] = statistics.jacobian(model)(params, x)
        return found

    return run


def of_batches(model):
    """Statistics that are means over the batch."""

    def run(params, x, y):
        moments = statistics.moments(model, LOSS)(params, x, y)
        clipped = statistics.clipped_gradient(0.5, per_layer=True)(model, LOSS)(params, x, y)
        factors = statistics.kfac_factors(model, LOSS, statistics.empirical)(params, x, y)
        return (
            jax.tree.map(lambda leaf: leaf / len(y), moments.sum_of_squares),
            statistics.ggn_diagonal(model, LOSS)(params, x, y),
            statistics.ggn_trace(model, LOSS, statistics.empirical)(params, x, y),
            clipped.gradient,
            factors,
        )

    return run


@functools.cache
def alone(model):
    """A batch; the function of both kinds of statistics; what they are without a mesh."""
    draw = np.random.default_rng(2)
    y = draw.integers(0, 4, 16, np.int32)
    if model is IMAGES:
        shape, x = (4, 4, 2), numbers(16, 4, 4, 2)
    else:
        shape, x = jax.ShapeDtypeStruct((3,), jnp.int32), draw.integers(0, 7, (16, 3), np.int32)
    params = model.init(jax.random.key(0), shape)[0]
    each, means = of_examples(model), of_batches(model)
    both = jax.jit(lambda *given: (each(*given), means(*given)))
    return (params, x, y), both


@functools.cache
def without_a_mesh(model):
    given, both = alone(model)
    return jax.device_get(both(*given))


def assert_near(found, due):
    """Each leaf to its largest number: several of them are 0 but for rounding."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(due), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1e-3))


def assert_sharded(each, means):
    """As Explicit axes tell."""
    assert all(leaf.sharding.spec[:1] == ("data",) for leaf in jax.tree.leaves(each))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(means))


def on(mesh, params, x, y):
    x, y = (jax.device_put(a, NamedSharding(mesh, P("data"))) for a in (x, y))
    return jax.device_put(params, NamedSharding(mesh, P())), x, y


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        pytest.param(IMAGES, AxisType.Explicit, id="images-Explicit"),
        pytest.param(IMAGES, AxisType.Auto, id="images-Auto", marks=pytest.mark.slow),
        pytest.param(TEXT, AxisType.Explicit, id="text-Explicit", marks=pytest.mark.slow),
        pytest.param(TEXT, AxisType.Auto, id="text-Auto", marks=pytest.mark.slow),
    ],
)
def test_statistics_of_a_sharded_batch(model, kind):
    given, both = alone(model)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        found = both(*on(mesh, *given))
        if kind == AxisType.Explicit:
            assert_sharded(*found)
    assert_near(jax.device_get(found), without_a_mesh(model))


def test_statistics_of_sharded_text_have_a_layout():
    """Explicit axes are a matter of types, so that nothing need be compiled to see a fault."""
    given, both = alone(TEXT)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        assert_sharded(*jax.eval_shape(both, *on(mesh, *given)))


def test_statistics_under_shard_map():
    """Of the device's own batch: what is a mean over it is averaged over devices by the caller."""
    given, both = alone(IMAGES)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def local(params, x, y):
        found, means = both(params, x, y)
        return found, jax.lax.pmean(means, "data")

    specs = (P(), P("data"), P("data"))
    found = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(P("data"), P()))
    found, mean = jax.jit(found)(*given)
    due, due_mean = without_a_mesh(IMAGES)
    inner = found.pop("inner"), due["inner"]  # of the examples of one device, two each
    assert_near((found, mean), ({n: v for n, v in due.items() if n != "inner"}, due_mean))
    blocks = np.asarray(inner[1].total).reshape(8, 2, 8, 2)[np.arange(8), :, np.arange(8)]
    assert_near(inner[0].total.reshape(8, 2, 2), blocks)
