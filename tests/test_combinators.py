"""Combinators: structure, composition, memory, and what they refuse."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcprop as fp
from funcprop import LayerError, compare
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


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: fp.serial(fp.dense(3), fp.residual(fp.dense(4))).init(KEY, (5,)),
            r"layers\[1\] residual: its layer dense turns shape \(3,\) into \(4,\)",
        ),
        (lambda: fp.repeat(fp.dense(4), 2).init(KEY, (5,)), r"repeat: its layer dense turns shape"),
        (lambda: fp.repeat(fp.dense(4), 0), r"repeat: n is 0"),
        (lambda: fp.fork(0), r"fork: n is 0"),
        (
            lambda: fp.repeat(fp.dense(5), 2).apply(
                fp.repeat(fp.dense(5), 3).init(KEY, (5,))[0], X
            ),
            r"repeat: a parameter has shape \(3, 5\), \(2, \.\.\.\) is due",
        ),
        (
            lambda: fp.parallel(fp.relu, fp.relu).apply(((), ()), X),
            r"parallel: x is a .*, a tuple of 2",
        ),
        (
            lambda: fp.parallel(fp.relu).init(KEY, (5,)),
            r"parallel: shape is that of one array, \(5,\), a tuple of 1 is due",
        ),
        (
            lambda: fp.on(2, fp.relu).apply((), (X, X)),
            r"on: x is a tuple of 2, a tuple with an entry 2",
        ),
        (lambda: fp.on(-1, fp.relu), r"on: its entry is -1, it must be a nonnegative integer"),
        (lambda: fp.on(1.0, fp.relu), r"on: its entry is 1.0, it must be a nonnegative integer"),
        (lambda: fp.pick(-1), r"pick: its entry is -1, it must be a nonnegative integer"),
        (lambda: fp.pick(True), r"pick: its entry is True, it must be a nonnegative integer"),
        (lambda: fp.pick(), r"pick: it was given no entry"),
        (lambda: fp.pick(0, 0), r"pick: entries is \(0, 0\), each entry must be picked once"),
        (
            lambda: fp.pick(0, 2).apply((), (X, X)),
            r"pick: x is a tuple of 2, a tuple with an entry 2",
        ),
        (
            lambda: fp.serial(fp.relu).apply((), X),
            r"serial: params has 0 entries, a tuple of 1 is due",
        ),
        (lambda: fp.serial(fp.relu).apply(None, X), r"serial: params has NoneType"),
        (
            lambda: fp.serial(fp.relu, fp.serial(fp.relu, fp.dense(2))).apply(
                ((), ((), fp.dense(2).init(KEY, (4,))[0])), X
            ),
            r"layers\[1\]\.layers\[1\] dense: x has 5 features, its weights take 4",
        ),
        (lambda: fp.residual(jnp.tanh), r"residual: tanh is not a Layer"),
        (
            lambda: fp.residual(fp.dense(4)).apply(fp.dense(4).init(KEY, (5,))[0], X),
            r"its layer dense turns float32\[4, 5\] into float32\[4, 4\]",
        ),
        (lambda: fp.dense(3).init(KEY, ()), r"dense: shape is \(\)"),
        (
            lambda: fp.dense(3).init(KEY, (jax.ShapeDtypeStruct((5,), "float32"),)),
            r"dense: shape is \(Shape.* one example's shape \(..., n > 0\) is due",
        ),
    ],
)
def test_messages(call, message):
    with pytest.raises(LayerError, match=message):
        call()


class Tensor:
    """An array of another library."""

    dtype, shape, ndim = "torch.float32", (4, 5), 2


Tensor.__module__ = "torch"
TWO = fp.serial(fp.dense(8), fp.dense(3))
TWO_PARAMS, _ = TWO.init(KEY, (5,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fp.relu(), r"^relu: it is a layer already; write relu without \(\)$"),
        (lambda: fp.serial(fp.flatten(), fp.dense(3)), r"^flatten: .* write flatten without"),
        (lambda: fp.relu(X), r"^relu: .* not called; write layer\.apply\(params, x\)"),
        (lambda: TWO(TWO_PARAMS, X), r"^serial: .* not called; write layer\.apply\(params, x\)"),
        (lambda: fp.dense(4, 3), r"^dense: two sizes are given, 4 and 3; write dense\(3\)"),
        (lambda: fp.dense(3, "relu"), r"'relu' is not a Layer: it is a str; .* dense\(3, relu\)"),
        (lambda: fp.rnn(4, 8), "rnn: 8 is not a Layer: it is an int; .* given here but to init"),
        (lambda: fp.serial([fp.dense(3), fp.relu]), r"\[dense, relu\] is .* a list; .*\(\*layers"),
        (lambda: fp.serial(fp.relu for _ in "ab"), r"it is a generator; .* serial\(\*layers\)"),
        (lambda: fp.serial(Tensor()), r"layers\[0\]: .* is not a Layer: it is a torch.Tensor"),
        (lambda: fp.summary((4,), TWO), r"^summary: \(4,\) is not a Layer"),
        (lambda: fp.sites((4,), TWO), r"^sites: \(4,\) is not a Layer"),
        (lambda: fp.differentiable(jnp.tanh), "^differentiable: tanh is not a Layer"),
        (lambda: fp.value_and_backprop(TWO, fp.relu), "relu is not a Loss: it is a Layer"),
        (lambda: TWO.init((5,), KEY), r"^serial: key and shape are swapped; write init\(key"),
        (lambda: TWO.init(7, (5,)), r"^serial: key is 7, .* write jax.random.key\(7\)"),
        (lambda: TWO.init(None, (5,)), r"layers\[0\] dense: key is None, .* jax.random.key\(0\)"),
        (lambda: TWO.init(jax.random.split(KEY), (5,)), r"key is key<fry>\[2\], it must be one"),
        (lambda: TWO.init(KEY, 5), r"^serial: shape is 5; it must be a tuple; write \(5,\)$"),
        (lambda: TWO.init(KEY, X), r"shape is float32\[4, 5\]; .* of one example, x.shape\[1:\]$"),
        (lambda: TWO.init(KEY, (None, 5)), "must be integers; leave the batch axis out"),
        (lambda: TWO.init(KEY, (5.0,)), r"shape is \(5.0,\); sizes must be integers"),
        (lambda: TWO.init(KEY, (-1, 5)), r"sizes must not be negative"),
        (lambda: fp.relu.init(KEY, (0,)), r"relu: shape is \(0,\); .* one feature or more"),
        (lambda: jax.jit(TWO.init)(KEY, (5,)), "sizes must not be traced; .* out of"),
        (lambda: fp.concatenate.init(KEY, (X, X)), r"shape is float32\[4, 5\] in .* x.shape\[1:\]"),
        (lambda: fp.relu._replace(init=lambda k, s: s).init(KEY, (5, 4, 3)), "must give .params"),
        (lambda: fp.on(1, fp.dense(3)).init(KEY, ((5,), jax.ShapeDtypeStruct((5,), int))),
         "dense: shape is that of int.*, floats are due"),
        (lambda: TWO.apply(X), r"^serial: x is missing; write apply\(params, x\)"),
        (lambda: TWO.apply(X, TWO_PARAMS), "^serial: params and x are swapped; write apply"),
        (lambda: fp.relu.apply(X, ()), r"^relu: x is \(\), without an array; write apply\(params"),
        (lambda: TWO.apply(TWO.init(KEY, (5,)), X), "^serial: params is what init gives, a pair"),
        (lambda: TWO.apply(TWO_PARAMS, Tensor()), r"a torch.Tensor, .*; write np.asarray\(x\)"),
        (lambda: TWO.forward(TWO_PARAMS, Tensor()), r"layers\[0\] dense: x is a torch.Tensor"),
        (lambda: fp.flatten.forward((), Tensor()), "flatten: x is a torch.Tensor"),
        (lambda: TWO.apply(TWO_PARAMS, X.tolist()), r"x is a list, .*; write jnp.asarray\(x\)"),
        (lambda: TWO.apply(TWO_PARAMS, {"a": X}), "dense: x is a dict, an array is due"),
        (lambda: fp.dense(np.float32(3)), "features is float32.*, it must be a positive integer"),
        (lambda: fp.reshape((2, 2)), r"write reshape\(\*shape\)"),
    ],
)  # fmt: skip
def test_everyday_slips(call, message):
    """One sentence that helps, never another library's words or a dump of numbers."""
    with pytest.raises(LayerError, match=message) as found:
        call()
    assert len(str(found.value)) < 200


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


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Linear", r"dense\(features\)"),
        ("Sequential", "serial"),
        ("cross_entropy", "softmax_cross_entropy"),
        ("add", "residual"),
        ("Softmax", "it is called softmax"),
        ("Conv2d", "conv"),
    ],
)
def test_names_of_other_libraries(name, hint):
    with pytest.raises(AttributeError, match=f"'funcprop' has no attribute '{name}'; .*{hint}"):
        getattr(fp, name)
    assert not hasattr(fp, "frobnicate")
    assert name not in dir(fp)
