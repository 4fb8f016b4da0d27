"""Rules without a backward pass: forward gradients and evolution strategies."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import funcprop as fp

MSE, CE = fp.mean_squared_error, fp.softmax_cross_entropy()
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def wide(x64):
    """Everything in float64."""


def made(model, shape, batch=5):
    draw = np.random.default_rng(0)
    params = jax.eval_shape(lambda key: model.init(key, shape)[0], KEY)
    params = jax.tree.map(lambda a: jnp.asarray(draw.normal(size=a.shape)), params)
    x = jnp.asarray(draw.normal(size=(batch, *shape)))
    out = jax.eval_shape(model.apply, params, x)
    return params, x, jnp.asarray(draw.normal(size=out.shape))


def backprop(model, params, x, y):
    """The value, and all numbers of the gradient in a row."""
    value, grads = jax.jit(fp.value_and_backprop(model, MSE))(params, x, y)
    return value, np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)])


def draws(rule, params, x, y, count, seed=1):
    """``count`` estimates, all numbers of each in a row."""

    def one(key):
        tree = rule.estimate(params, (), x, y, key)[1]
        return jax.flatten_util.ravel_pytree(tree)[0]

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), count)))


def assert_unbiased(found, due):
    """Within 5 standard deviations for each number; along ``due`` too, to a few hundredths."""
    deviation = found.std(0) / np.sqrt(len(found))
    assert (np.abs(found.mean(0) - due) <= 5 * deviation + 1e-12).all()
    along = found @ due / (due @ due)
    spread = along.std() / np.sqrt(len(along))
    assert abs(along.mean() - 1) <= 5 * spread < 0.2


# --------------------------------------------------------------------- forward gradient


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "activities"),
    [
        ("mlp", True),
        ("cnn", False),
        pytest.param("mlp", False, marks=slow),
        pytest.param("cnn", True, marks=slow),
    ],
)
def test_forward_gradient_is_unbiased(name, activities):
    model, shape = {
        "mlp": (fp.mlp((3, 4, 3, 2), fp.tanh), (3,)),
        "cnn": (fp.serial(fp.conv(2, 2), fp.gelu, fp.flatten, fp.dense(2)), (3, 3, 1)),
    }[name]
    params, x, y = made(model, shape)
    rule = fp.forward_gradient(model, MSE, activities=activities)
    value, due = backprop(model, params, x, y)
    assert_unbiased(draws(rule, params, x, y, 8000), due)
    found = jax.jit(lambda params: rule.estimate(params, (), x, y, KEY)[0])(params)
    np.testing.assert_allclose(found, value, rtol=1e-12)


@pytest.mark.parametrize("size", [10, pytest.param(100, marks=slow)])
def test_variance_and_cosine_of_a_forward_gradient(size):
    """E‖ĝ - g‖²/‖g‖² = P + 1, and E|cos| near √(2/πP)."""
    model = fp.dense(1, bias=False)
    params, x, y = made(model, (size,), 1)
    rule = fp.forward_gradient(model, MSE)
    _, due = backprop(model, params, x, y)
    found = draws(rule, params, x, y, 20000)
    relative = ((found - due) ** 2).sum(1) / (due @ due)
    assert abs(relative.mean() - (size + 1)) < 5 * relative.std() / np.sqrt(len(relative))
    assert relative.std() / np.sqrt(len(relative)) < 0.02 * size
    cosine = np.abs(found @ due) / np.linalg.norm(found, axis=1) / np.linalg.norm(due)
    np.testing.assert_allclose(cosine.mean(), np.sqrt(2 / np.pi / size), rtol=0.05)


@pytest.mark.parametrize("activities", [True, pytest.param(False, marks=slow)])
def test_directions_are_averaged(activities):
    model = fp.mlp((3, 4, 2), fp.tanh)
    params, x, y = made(model, (3,))
    _, due = backprop(model, params, x, y)
    variance = [
        ((draws(rule, params, x, y, 20000) - due) ** 2).sum(1).mean()
        for rule in (
            fp.forward_gradient(model, MSE, activities=activities, directions=k) for k in (1, 8)
        )
    ]
    np.testing.assert_allclose(variance[0] / variance[1], 8, rtol=0.1)


def test_activities_of_a_linear_layer_are_exact_but_for_the_direction():
    """With one block and one output δ = u² ∂ℓ/∂y: the tree stands along the gradient."""
    model = fp.dense(1)
    params, x, y = made(model, (3,), 1)
    rule = fp.forward_gradient(model, MSE, activities=True)
    _, due = backprop(model, params, x, y)
    found = draws(rule, params, x, y, 50)
    factors = found / due
    np.testing.assert_allclose(factors, factors[:, :1] * np.ones(4), rtol=1e-10)
    assert (factors >= 0).all()


# ------------------------------------------------------------------ evolution strategies


def linear(params, x, y, key):
    return params @ x


def quadratic(params, x, y, key):
    return params @ y @ params / 2 + params @ x


def test_a_linear_function_gives_each_pair_its_slope():
    """ĝ = 1/n Σ (g·ε) ε at any σ: its mean is g, and 1/n Σ ε εᵀ does not depend on σ."""
    draw = np.random.default_rng(0)
    params, g = (jnp.asarray(draw.normal(size=4)) for _ in range(2))
    found = [
        draws(fp.evolution(linear, pairs=8, sigma=sigma, ranks=False), params, g, None, 4000)
        for sigma in (1e-3, 1.0, 50.0)
    ]
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, rtol=1e-8, atol=1e-9)
    assert_unbiased(found[0], np.asarray(g))
    # The same 1/n Σ ε εᵀ for another slope: an estimate is linear in g.
    twice = draws(fp.evolution(linear, pairs=8, ranks=False), params, 2 * g, None, 4000)
    np.testing.assert_allclose(twice, 2 * found[0], rtol=1e-8, atol=1e-9)


def test_a_quadratic_function_is_estimated_without_bias():
    draw = np.random.default_rng(0)
    params, slope = (jnp.asarray(draw.normal(size=4)) for _ in range(2))
    root = draw.normal(size=(4, 4))
    bend = jnp.asarray(root @ root.T)
    rule = fp.evolution(quadratic, pairs=8, sigma=0.7, ranks=False)
    assert_unbiased(draws(rule, params, slope, bend, 4000), np.asarray(bend @ params + slope))


def test_ranks_by_hand():
    """Of the values 3, 1, 1, 7: ranks 2, ½, ½, 3 of 0 to 3, scaled to [-½, ½]."""
    from funcprop.learning.evolution_strategies import _centred_ranks

    found = _centred_ranks(jnp.array([[3.0, 1.0], [1.0, 7.0]]))
    np.testing.assert_allclose(found, np.array([[2, 0.5], [0.5, 3]]) / 3 - 0.5)
    worst = _centred_ranks(jnp.array([[3.0, jnp.nan], [1.0, 7.0]]))
    assert worst[0, 1] == worst.max() == 0.5


def test_ranks_know_no_scale():
    draw = np.random.default_rng(0)
    params, g = (jnp.asarray(draw.normal(size=4)) for _ in range(2))
    one, two = (
        draws(fp.evolution(f, pairs=8), params, g, None, 20)
        for f in (linear, lambda p, x, y, key: jnp.exp(3 * linear(p, x, y, key)))
    )
    np.testing.assert_allclose(one, two, rtol=1e-10)
    assert np.mean(one @ np.asarray(g) > 0) > 0.9


def test_chunks_change_nothing_and_memory_does_not_grow():
    model = fp.mlp((20, 10))
    params, x, y = made(model, (20,))

    def compiled(*sizes):
        """The trees of populations of such sizes, (pairs, chunk), as one program."""
        rules = [fp.evolution_strategies(model, MSE, pairs=n, chunk=chunk) for n, chunk in sizes]
        run = jax.jit(lambda params: [r.estimate(params, (), x, y, KEY)[1] for r in rules])
        return run.lower(params).compile()

    few, many = (compiled((pairs, 4)) for pairs in (16, 256))
    (due,) = few(params)
    for other in compiled((16, 1), (16, 16))(params):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), due, other)
    memory = [program.memory_analysis().temp_size_in_bytes for program in (few, many)]
    assert memory[1] < 1.1 * memory[0] + 256 * 64


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_population_is_split_over_devices(kind):
    model = fp.mlp((3, 2))
    params, x, y = made(model, (3,))
    due = jax.jit(fp.evolution_strategies(model, MSE, pairs=16).estimate)(params, (), x, y, KEY)
    split = fp.evolution_strategies(model, MSE, pairs=16, axis="population")
    mesh = jax.make_mesh((8,), ("population",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        found = jax.device_get(jax.jit(split.estimate)(params, (), x, y, KEY))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, due)
    if kind == AxisType.Auto:
        run = jax.shard_map(
            lambda *given: split.estimate(*given, KEY)[1],
            mesh=mesh,
            in_specs=P(),
            out_specs=P(),
        )
        again = jax.device_get(jax.jit(run)(params, (), x, y))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), again, due[1])


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda m: fp.forward_gradient(m, CE), marks=slow),
        lambda m: fp.forward_gradient(m, CE, activities=True),
        pytest.param(lambda m: fp.evolution_strategies(m, CE, pairs=16), marks=slow),
    ],
    ids=["weights", "activities", "evolution"],
)
def test_they_train(make):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(64, 2)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int32)
    model = fp.mlp((2, 8, 2), fp.tanh)
    params, _ = model.init(KEY, (2,))
    params = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    rule = make(model)
    state, history = fp.fit(rule, optax.adam(0.02), params, (x, y), key=KEY, steps=300)
    assert history["loss"][-1] < 0.6 * history["loss"][0]
    value, tree, _ = jax.jit(lambda params: rule.estimate(params, (), x, y, None))(state.params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(tree))
    assert abs(fp.evaluate(rule, state.params, (x, y))["loss"] - float(value)) < 1e-6
