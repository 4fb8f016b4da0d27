"""Combinators: structure, composition, memory, and what they refuse."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcprop as fp
from funcprop import compare
from funcprop.core.layer import stateless

pytestmark = pytest.mark.usefixtures("strict")

X = jax.random.normal(jax.random.key(1), (4, 5))
KEY = jax.random.key(0)


def swept(layer, params, x=X, weights=None, key=None):
    y, residuals = layer.forward(params, x, key)
    return y, *layer.backward(params if weights is None else weights, residuals, y)


def test_serial_is_associative_up_to_nesting():
    a, b, c = fp.dense(6, fp.tanh), fp.dense(5), fp.dense(3, fp.relu)
    flat = fp.serial(a, b, c)
    params, out_shape = flat.init(KEY, (5,))
    due = swept(flat, params)
    left = swept(fp.serial(fp.serial(a, b), c), (params[:2], params[2]))
    right = swept(fp.serial(a, fp.serial(b, c)), (params[0], params[1:]))
    chex.assert_trees_all_equal(left[:2], due[:2])
    chex.assert_trees_all_equal(right[:2], due[:2])
    chex.assert_trees_all_equal((*left[2][0], left[2][1]), due[2])
    chex.assert_trees_all_equal((right[2][0], *right[2][1]), due[2])
    assert out_shape == (3,)


def test_serial_of_nothing_is_the_identity():
    y, delta_x, tree = swept(fp.serial(), ())
    chex.assert_trees_all_equal((y, delta_x), (X, X))
    assert tree == ()


def test_repeat_is_serial_of_equal_layers():
    layer = fp.dense(5, fp.tanh)
    params, _ = fp.repeat(layer, 3).init(KEY, (5,))
    single = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(3))
    y, delta_x, grads = swept(fp.repeat(layer, 3), params)
    due = swept(fp.serial(layer, layer, layer), single)
    compare((y, delta_x), due[:2]).assert_ok()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *due[2])
    compare(grads, stacked).assert_ok()
    assert len({float(w[0, 0]) for w in params["w"]}) == 3


def test_remat_recomputes_with_the_parameters_and_carries_with_the_weights():
    layer = fp.serial(fp.dense(6, fp.gelu), fp.dense(5, fp.silu))
    params, _ = layer.init(KEY, (5,))
    others, _ = layer.init(jax.random.key(9), (5,))
    for weights in (params, others):
        compare(
            swept(fp.remat(layer), params, weights=weights), swept(layer, params, weights=weights)
        ).assert_ok()


def temporary(f, *args):
    return jax.jit(f).lower(*args).compile().memory_analysis().temp_size_in_bytes


def test_remat_inside_repeat_saves_memory_and_stacks_no_parameters():
    """32 layers of gelu: kept in full, with remat, and the sweep of jax.checkpoint."""
    layer, n, width = fp.dense(64, fp.gelu), 32, 64
    x = jax.random.normal(KEY, (256, width))
    kept, saved = fp.repeat(layer, n), fp.repeat(fp.remat(layer), n)
    params, _ = kept.init(KEY, (width,))

    def sweep(model):
        return lambda params, x: model.backward(params, *model.forward(params, x)[::-1])

    activation, weights = x.size * 4, sum(leaf.size for leaf in jax.tree.leaves(params)) * 4
    in_full, with_remat = (temporary(sweep(model), params, x) for model in (kept, saved))
    assert with_remat < 0.7 * in_full
    # One activation a layer, a few more at work, and no second copy of the weights.
    assert with_remat < (n + 4) * activation + weights / 4


def test_compile_time_does_not_grow_with_depth():
    """The program of 64 layers is that of 4, but for its numbers."""

    def operations(n):
        model = fp.repeat(fp.dense(5, fp.tanh), n)
        params, _ = model.init(KEY, (5,))
        text = jax.jit(lambda p, x: swept(model, p, x)).lower(params, X).as_text()
        return len(text.splitlines())

    assert operations(64) == operations(4)


def test_companions_pass_unchanged():
    """Lengths beside a sequence: in and out of on, residual, repeat and remat; their delta None."""
    lengths = jnp.array([1, 2, 3, 4])
    model = fp.serial(
        fp.on(0, fp.dense(5, fp.tanh)),
        fp.repeat(fp.remat(fp.residual(fp.on(0, fp.dense(5, fp.gelu)))), 2),
    )
    shape = (jax.ShapeDtypeStruct((5,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))
    params, out_shape = model.init(KEY, shape)
    assert out_shape == shape
    (y, same), residuals = jax.jit(model.forward)(params, (X, lengths))
    chex.assert_trees_all_equal(same, lengths)
    (delta_x, none), _ = jax.jit(model.backward)(params, residuals, (y, None))
    assert none is None
    assert delta_x.shape == X.shape


def test_residual_adds_entry_0_of_a_tuple_only():
    layer = fp.residual(fp.parallel(fp.dense(5), fp.dense(2)))
    shape = (jax.ShapeDtypeStruct((5,), jnp.float32),) * 2
    params, out_shape = layer.init(KEY, shape)
    assert [s.shape for s in out_shape] == [(5,), (2,)]
    a, b = layer.apply(params, (X, X))
    chex.assert_trees_all_close(a, X + fp.dense(5).apply(params[0], X))
    chex.assert_trees_all_close(b, fp.dense(2).apply(params[1], X))
    _, residuals = layer.forward(params, (X, X))
    (delta_a, _), _ = layer.backward(params, residuals, (a, b))
    chex.assert_trees_all_close(delta_a, a + a @ params[0]["w"], rtol=1e-5)


def noisy(scale=1.0):
    """A layer that draws: multiplies by 1 + noise with a key, and does nothing without."""

    def forward(params, x, key=None):
        factor = 1.0 if key is None else 1 + scale * jax.random.normal(key, x.shape)
        return x * factor, factor

    return fp.Layer(stateless, forward, lambda w, r, d, s=fp.gradient: (d * r, ()), "noisy")


@pytest.mark.parametrize(
    "model",
    [
        fp.serial(noisy(), noisy()),
        fp.serial(fp.fork(2), fp.parallel(noisy(), noisy())),
        fp.repeat(noisy(), 2),
        fp.repeat(fp.remat(noisy()), 2),
        fp.residual(noisy()),
        fp.serial(fp.fork(2), fp.on(1, noisy())),
        fp.dense(5, noisy()),
    ],
    ids=["serial", "parallel", "repeat", "remat", "residual", "on", "dense"],
)
def test_keys_reach_every_part_and_no_two_draw_alike(model):
    params, _ = model.init(KEY, (5,))
    x = jnp.ones((3, 5))
    run = jax.jit(model.apply)
    with_key = run(params, x, jax.random.key(3))
    chex.assert_trees_all_equal(with_key, run(params, x, jax.random.key(3)))
    for other in (run(params, x, jax.random.key(4)), run(params, x)):
        assert not all(
            np.allclose(a, b)
            for a, b in zip(jax.tree.leaves(with_key), jax.tree.leaves(other), strict=True)
        )
    if isinstance(with_key, tuple) and model.parts[-1].name == "parallel":
        assert not np.allclose(*with_key)

    @jax.jit
    def both(params, x):
        """The pullback of the same draw."""
        y, pullback = jax.vjp(lambda x: model.apply(params, x, jax.random.key(3)), x)
        _, residuals = model.forward(params, x, jax.random.key(3))
        return model.backward(params, residuals, y)[0], pullback(y)[0]

    compare(*both(params, x)).assert_ok()


def test_rebuild_makes_the_combinator_anew():
    """Whoever maps over the parts and rebuilds gets the same function."""
    model = fp.serial(
        fp.dense(5, fp.tanh),
        fp.fork(2),
        fp.parallel(fp.residual(fp.dense(5)), fp.remat(fp.dense(5))),
        fp.on(0, fp.repeat(fp.dense(5, fp.gelu), 2)),
    )

    def rebuilt(layer):
        return layer.rebuild(tuple(map(rebuilt, layer.parts))) if layer.rebuild else layer

    params, _ = model.init(KEY, (5,))
    chex.assert_trees_all_equal(rebuilt(model).apply(params, X), model.apply(params, X))
    chex.assert_trees_all_equal(rebuilt(model).init(KEY, (5,))[0], params)


def test_summary_counts_every_parameter():
    model = fp.serial(
        fp.dense(5, fp.tanh),
        fp.repeat(fp.residual(fp.serial(fp.dense(7), fp.relu, fp.dense(5))), 3),
        fp.fork(2),
        fp.parallel(fp.dense(2), fp.dense(1, bias=False)),
    )
    params, _ = model.init(KEY, (4,))
    found = fp.summary(model, (4,))
    assert found.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(row.parameters for row in found.rows) == found.parameters
    assert [row.name for row in found.rows] == [
        "dense", "3 × dense", "3 × relu", "3 × dense", "fork", "dense", "dense",
    ]  # fmt: skip
    assert [row.position for row in found.rows][1] == "layers[1].repeat[:].residual.layers[0]"
    assert max(map(len, str(found).splitlines())) <= 100


def test_pick_takes_several_entries_in_their_order():
    x = (X, jnp.arange(4), (X[:, 0], jnp.arange(4)), 2 * X)
    shape = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)
    layer = fp.pick(np.int64(3), 0)
    assert [leaf.shape for leaf in layer.init(KEY, shape)[1]] == [(5,), (5,)]
    y, residuals = layer.forward((), x)
    np.testing.assert_array_equal(y, (2 * X, X))
    delta_x, _ = layer.backward((), residuals, (X, 3 * X))
    assert (delta_x[1], delta_x[2][1]) == (None, None)
    np.testing.assert_array_equal(delta_x[2][0], jnp.zeros(4))
    np.testing.assert_array_equal((delta_x[0], delta_x[3]), (3 * X, X))


def test_counts_of_numpy_and_old_keys_are_taken():
    layer = fp.repeat(fp.dense(np.int64(5)), np.int32(2))
    params, out_shape = layer.init(jax.random.PRNGKey(0), [np.int64(5)])
    assert (params["w"].shape, out_shape) == ((2, 5, 5), (5,))
    assert fp.max_pool(np.int64(2)).init(None, (4, 4, 1))[1] == (2, 2, 1)


def test_a_layer_is_shown_in_a_line():
    model = fp.serial(fp.dense(3, fp.relu), fp.repeat(fp.dense(3), 2))
    assert repr(model) == "serial(dense, repeat(dense))"


def test_dtypes_of_ids_stay():
    ids = jax.ShapeDtypeStruct((6,), np.int32)
    wide = jax.ShapeDtypeStruct((2, 3), np.int32)
    layer = fp.serial(fp.fork(2), fp.on(1, fp.serial(fp.identity, fp.reshape(2, 3))), fp.pick(1))
    assert layer.init(KEY, ids)[1] == wide
    assert fp.concatenate.init(KEY, (ids, ids))[1] == jax.ShapeDtypeStruct((12,), np.int32)
    assert fp.function(lambda _, x: x + 1).init(KEY, ids)[1] == ids
    for first in (fp.flatten, fp.transpose(), fp.serial(fp.fork(2), fp.concatenate)):
        assert fp.sites(fp.serial(first, fp.embedding(5, 3)), wide)[1].name == "embedding"


def test_names_of_other_libraries_are_not_listed():
    others = {"Linear", "Sequential", "cross_entropy", "add", "Softmax", "Conv2d"}
    assert not others & set(dir(fp))
    assert not hasattr(fp, "frobnicate")
