"""Graphs: the dense formulas, what padding and order may not change, reach, errors, faults."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funcprop as fp
from funcprop.cases.case import entries
from funcprop.cases.graph import MASKED, MESSAGE
from tests.drawing import params_of

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)
HOW = ("sum", "mean", "max")
LAYERS = {
    "conv": fp.graph_conv(2),
    "attention": fp.graph_attention(2, heads=2),
    "update": fp.message_passing(MESSAGE, fp.serial(fp.concatenate, fp.dense(3))),
    **{how: fp.message_passing(MESSAGE, reduce=how) for how in ("mean", "max")},
    **{f"pool {how}": fp.graph_pool(how) for how in HOW},
}


def structs(x):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)


def init(layer, x):
    """Parameters that are nowhere 0."""
    return params_of(layer, structs(x), dtype=x[0].dtype)


def swept(layer, params, x, delta=None):
    """y, δx and grads, for δ = cos y where none is given."""
    y, residuals = layer.forward(params, x)
    y = y[0] if isinstance(y, tuple) else y
    delta = jnp.cos(y) if delta is None else delta
    if layer.name != "graph_pool":
        delta = (delta, *[None] * len(x[1:]))
    delta_x, grads = layer.backward(params, residuals, delta)
    return y, delta_x[0], grads


@jax.jit
def everything(params, x):
    return {name: swept(layer, params[name], x) for name, layer in LAYERS.items()}


def all_params(x):
    return {name: init(layer, x) for name, layer in LAYERS.items()}


def close(found, due):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), found, due)


# ----------------------------------------------------------------------- the dense formulas


def adjacency(edges, nodes):
    """A[b, i, j]: the number of edges from j to i; of (-1, -1) nothing is left."""
    source, target = (jax.nn.one_hot(edges[..., i], nodes, dtype=float) for i in (0, 1))
    return jnp.einsum("bei,bej->bij", target, source)


def affine(p, x):
    return x @ p["w"].T + p["b"]


def dense_conv(p, x, a):
    a = a + jnp.eye(a.shape[1])
    root = 1 / jnp.sqrt(a.sum(-1))
    return root[:, :, None] * a * root[:, None] @ (x @ p["w"].T) + p["b"]


def dense_attention(p, x, a):
    a, heads = a + jnp.eye(a.shape[1]), p["out"]["a"].shape[1]
    h = (x @ p["in"]["w"].T).reshape(*x.shape[:2], heads, -1)
    s, t = ((h * part).sum(-1) for part in p["out"]["a"])
    z = jax.nn.leaky_relu(t[:, :, None] + s[:, None], 0.2)
    alpha = a[..., None] * jnp.exp(z)
    alpha = alpha / alpha.sum(2, keepdims=True)
    o = jnp.einsum("bijk,bjkf->bikf", alpha, h)
    return o.reshape(*x.shape[:2], -1) + p["out"]["b"]


def dense_messages(p, x, a, how):
    ends = jnp.broadcast_to(x[:, None], (*a.shape, x.shape[-1]))
    m = jnp.tanh(affine(p[0][1], jnp.concatenate([ends, ends.swapaxes(1, 2)], -1)))
    if how == "max":
        largest = jnp.where(a[..., None] > 0, m, -1.0).max(2)
        return jnp.where(a.sum(-1, keepdims=True) > 0, largest, 0.0)
    y = jnp.einsum("bij,bijm->bim", a, m)
    return y / jnp.maximum(a.sum(-1, keepdims=True), 1) if how == "mean" else y


def dense_form(name, p, x, edges):
    a = adjacency(edges, x.shape[1])
    if name == "conv":
        return dense_conv(p, x, a)
    if name == "attention":
        return dense_attention(p, x, a)
    if name.startswith("pool"):
        return getattr(jnp, name.removeprefix("pool "))(x, axis=1)
    r = dense_messages(p, x, a, "sum" if name == "update" else name)
    return affine(p[1][1], jnp.concatenate([x, r], -1)) if name == "update" else r


@settings(deadline=None, derandomize=True, max_examples=2)
@given(
    batch=st.integers(1, 3),
    nodes=st.integers(1, 5),
    count=st.integers(0, 7),
    size=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_every_layer_is_its_dense_formula(batch, nodes, count, size, seed):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        draw = np.random.default_rng(seed)
        edges = draw.integers(0, nodes, (batch, count, 2))
        edges[draw.random((batch, count)) < 0.2] = -1
        x = jnp.asarray(draw.normal(size=(batch, nodes, size))), jnp.asarray(edges)
        params = all_params(x)

        @jax.jit
        def dense(params, x, edges):
            def one(name):
                y, pullback = jax.vjp(lambda p, x: dense_form(name, p, x, edges), params[name], x)
                return y, *pullback(jnp.cos(y))[::-1]

            return {name: one(name) for name in LAYERS}

        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, 1e-9, 1e-12),
            everything(params, x),
            dense(params, *x),
        )


# ------------------------------------------------------------------ what changes nothing

BATCH, NODES = 3, 5


@pytest.fixture(scope="module")
def drawn():
    """x (3, 5, 3) with edges (3, 7, 2), the parameters of all layers, and what they give."""
    draw = np.random.default_rng(3)
    edges = draw.integers(0, NODES, (BATCH, 7, 2), dtype=np.int32)
    x = jnp.asarray(draw.normal(size=(BATCH, NODES, 3)), jnp.float32), jnp.asarray(edges)
    with jax.numpy_dtype_promotion("strict"):
        params = all_params(x)
        return x, params, everything(params, x)


def test_the_order_of_nodes_and_edges_is_none(drawn):
    (x, edges), params, due = drawn
    draw = np.random.default_rng(0)
    order = np.stack([draw.permutation(NODES) for _ in range(BATCH)])
    inverse = np.argsort(order, axis=1)
    moved = np.take_along_axis(np.asarray(x), order[..., None], 1)
    renamed = np.take_along_axis(inverse, np.asarray(edges).reshape(BATCH, -1), 1)
    renamed = renamed.reshape(edges.shape)[:, ::-1].astype(np.int32)
    found = jax.device_get(everything(params, (moved, renamed)))
    back = {
        name: (
            y if name.startswith("pool") else np.take_along_axis(y, inverse[..., None], 1),
            np.take_along_axis(delta_x, inverse[..., None], 1),
            grads,
        )
        for name, (y, delta_x, grads) in found.items()
    }
    close(back, due)


def test_padding_changes_nothing_whatever_it_holds(drawn):
    """Two nodes of NaN behind the others, padding edges in front, an edge to a padded node."""
    (x, edges), params, due = drawn
    wide = jnp.pad(x, ((0, 0), (0, 2), (0, 0)), constant_values=jnp.nan)
    padding = jnp.broadcast_to(jnp.array([[-1, -1], [NODES, 1], [-1, -1]], jnp.int32), (3, 3, 2))
    mask = jnp.broadcast_to(jnp.arange(NODES + 2) < NODES, (BATCH, NODES + 2))
    found = everything(params, (wide, jnp.concatenate([padding, edges], 1), mask))
    for name, (y, delta_x, grads) in found.items():
        rest = [delta_x] if name.startswith("pool") else [delta_x, y]
        assert not np.any([leaf[:, NODES:] for leaf in rest if leaf.shape[2:] == x.shape[2:]])
        assert not any(np.any(leaf[:, NODES:]) for leaf in rest)
        y = y if name.startswith("pool") else y[:, :NODES]
        close((y, delta_x[:, :NODES], grads), due[name])


def test_a_batch_is_each_graph_alone(drawn):
    x, params, due = drawn
    x, due = jax.device_get((x, due))
    times = [everything(params, jax.tree.map(lambda a, b=b: a[[b] * 3], x)) for b in range(BATCH)]
    for name in LAYERS:
        y, delta_x, grads = zip(*[jax.device_get(found[name]) for found in times], strict=True)
        summed = jax.tree.map(lambda *leaves: sum(leaves) / 3, *grads)
        close((np.stack(y)[:, 0], np.stack(delta_x)[:, 0], summed), due[name])


def test_without_a_mask_a_node_that_no_edge_touches_is_alone(drawn):
    (x, _), params, _ = drawn
    edges = jnp.broadcast_to(jnp.array([[0, 1], [2, 1], *[[-1, -1]] * 5], jnp.int32), (BATCH, 7, 2))
    clean, dirty = (everything(params, (x.at[:, 4].set(v), edges)) for v in (0.0, jnp.nan))
    for name in ("conv", "attention", "update", "mean", "max"):
        for a, b in zip(clean[name][:2], dirty[name][:2], strict=True):
            np.testing.assert_array_equal(a[:, :4], b[:, :4])


# ------------------------------------------------------------------------- exact facts


def test_attention_without_scores_is_the_mean_of_a_node_and_its_neighbours():
    layer = fp.graph_attention(2, bias=False)
    x = jnp.array([[[1.0, 2.0], [3.0, 6.0], [8.0, 4.0]]])
    params = {"in": {"w": jnp.eye(2)}, "out": {"a": jnp.zeros((2, 1, 2))}}
    y, _ = layer.apply(params, (x, jnp.array([[[0, 2], [1, 2], [-1, -1]]])))
    np.testing.assert_allclose(y, [[[1, 2], [3, 6], [4, 4]]], rtol=1e-6)


def test_the_mean_of_heads_is_that_of_the_heads_side_by_side(drawn):
    x, params, due = drawn
    p = params["attention"] | {"out": params["attention"]["out"] | {"b": jnp.ones(2)}}
    y = jax.jit(fp.graph_attention(2, heads=2, concat=False).apply)(p, x)[0]
    heads = due["attention"][0] - params["attention"]["out"]["b"]
    close(y, 1 + (heads[..., :2] + heads[..., 2:]) / 2)


def test_scores_of_attention_may_be_huge():
    layer = fp.graph_attention(1, bias=False)
    params = {"in": {"w": jnp.ones((1, 1))}, "out": {"a": jnp.full((2, 1, 1), 3e4)}}
    x = jnp.array([[[3.0], [-3.0], [-4.0]]])
    y, delta_x, grads = swept(layer, params, (x, jnp.array([[[0, 1], [2, 0], [2, 1]]])))
    np.testing.assert_allclose(y, [[[3], [3], [-4]]])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((delta_x, grads)))


def test_every_edge_counts_and_a_loop_is_one_more():
    x = jnp.array([[[1.0], [5.0]]])
    edges = jnp.array([[[0, 1], [0, 1], [0, 0]]])
    y, _ = fp.graph_conv(1, bias=False).apply({"w": jnp.ones((1, 1))}, (x, edges))
    np.testing.assert_allclose(y[0, :, 0], [2 / 2, 5 / 3 + 2 / np.sqrt(6)], rtol=1e-6)


def test_means_of_constants_are_constant_and_nodes_without_edges_get_zeros():
    x = jnp.full((1, 3, 2), 7.0)
    edges = jnp.array([[[0, 1], [2, 1], [1, 2]]])
    for how, due in zip(HOW, (14.0, 7.0, 7.0), strict=True):
        y, kept = fp.message_passing(fp.pick(0), reduce=how).apply(((), ()), (x, edges))
        np.testing.assert_array_equal(y[0, :, 0], [0.0, due, 7.0])
        assert kept is edges


def test_messages_that_tie_share_as_with_segment_max():
    x, target = jnp.array([[[2.0], [2.0], [1.0], [0.0]]]), jnp.array([3, 3, 3])
    edges = jnp.stack([jnp.arange(3), target], -1)[None]
    layer = fp.message_passing(fp.pick(0), reduce="max")
    _, found, _ = swept(layer, ((), ()), (x, edges), jnp.ones_like(x))
    due = jax.grad(lambda x: jax.ops.segment_max(x[0, :3], target, 4)[3, 0])(x)
    np.testing.assert_array_equal(found, due)
    assert found[0, :, 0].tolist() == [0.5, 0.5, 0.0, 0.0]
    _, pooled, _ = swept(fp.graph_pool("max"), (), (x, edges), jnp.ones((1, 1)))
    assert pooled[0, :, 0].tolist() == [0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    "layer", [fp.graph_conv(2), fp.graph_attention(2), fp.message_passing(MESSAGE, MESSAGE)]
)
def test_delta_reaches_two_hops_through_two_layers(layer):
    """Along the path 0 -> 1 -> 2 -> 3 -> 4, of the last node's y."""
    edges = jnp.stack([jnp.arange(4), jnp.arange(1, 5)], -1)[None]
    x = np.random.default_rng(0).normal(size=(1, 5, 2)).astype("float32"), edges
    model = fp.serial(layer, layer)
    delta = jnp.zeros((1, 5, 2)).at[0, 4].set(1.0)
    _, delta_x, _ = jax.jit(lambda p, d: swept(model, p, x, d))(init(model, x), delta)
    assert (abs(delta_x[0]).sum(-1) > 0).tolist() == [False, False, True, True, True]


# ------------------------------------------------------------- traces, features, combinators


@pytest.mark.parametrize("bad", [(0, NODES), (-2, 0), (-1, 2), (2**31 - 1, 0)])
def test_under_a_trace_an_edge_of_no_nodes_gives_nan_in_its_graph_alone(drawn, bad):
    (x, edges), params, _ = drawn
    due = everything(params, (x, edges.at[1, 2].set(-1)))
    found = everything(params, (x, edges.at[1, 2].set(jnp.array(bad, jnp.int32))))
    for name in set(LAYERS) - {f"pool {how}" for how in HOW}:
        for a, b in zip(found[name][:2], due[name][:2], strict=True):
            assert np.isnan(a[1]).all(), name
            np.testing.assert_array_equal(a[::2], b[::2])


def test_edge_features_reach_the_message_and_take_its_delta():
    """Also through what passes by: the features' own delta is added; padding holds anything."""
    message = fp.serial(fp.concatenate, fp.affine(1, bias=False))
    layer = fp.message_passing(message, edge_features=True)
    x = jnp.array([[[1.0], [2.0]]])
    edges = jnp.array([[[0, 1], [-1, -1], [1, 0]]])
    features = jnp.array([[[5.0], [jnp.nan], [7.0]]])
    params = (((), {"w": jnp.array([[1.0, 10.0, 100.0]])}), ())
    (y, _, kept), residuals = layer.forward(params, (x, edges, features))
    assert kept is features
    np.testing.assert_allclose(y[0, :, 0], [712.0, 521.0])
    delta = (jnp.array([[[1.0], [3.0]]]), None, jnp.full_like(features, 0.5))
    (delta_x, none, delta_features), grads = layer.backward(params, residuals, delta)
    assert none is None
    np.testing.assert_allclose(delta_features[0, :, 0], [300.5, 0.5, 100.5])
    np.testing.assert_allclose(delta_x[0, :, 0], [3 + 10, 30 + 1])
    np.testing.assert_allclose(grads[0][1]["w"], [[1 * 3 + 2 * 1, 2 * 3 + 1 * 1, 5 * 3 + 7 * 1]])


def test_layers_repeat_and_recompute():
    draw = np.random.default_rng(0)
    x = jax.device_get(jax.tree.map(jnp.asarray, entries(*MASKED)(draw)))
    message = fp.serial(fp.concatenate, fp.dense(3))
    step = fp.serial(
        fp.residual(fp.graph_conv(3)),
        fp.on(0, fp.tanh),
        fp.remat(fp.message_passing(message, reduce="mean")),
    )
    model = fp.serial(fp.repeat(step, 2), fp.graph_pool())
    params = params_of(model, structs(x))

    @jax.jit
    def both(params, x):
        y, residuals = model.forward(params, x)
        assert y.shape[1:] == model.init(KEY, structs(x))[1] == (3,)
        delta_x, grads = model.backward(params, residuals, jnp.cos(y))
        due, pullback = jax.vjp(lambda p, nodes: model.apply(p, (nodes, *x[1:])), params, x[0])
        return (y, grads, delta_x[0]), (due, *pullback(jnp.cos(due)))

    fp.compare(*both(params, x)).assert_ok()


def test_a_graph_layer_keeps_no_activation_of_the_edges():
    x = jnp.zeros((1, 10, 8)), jnp.zeros((1, 1000, 2), jnp.int32)
    layer = fp.graph_conv(64)
    params = params_of(layer, structs(x))
    _, kept = jax.eval_shape(layer.forward, params, x)
    assert max(leaf.size for leaf in jax.tree.leaves(kept)) == 1000


def test_message_passing_is_made_of_its_parts_and_gives_them_keys():
    x = jnp.ones((1, 2, 3)), jnp.array([[[0, 1]]])
    layer = fp.message_passing(
        fp.serial(fp.concatenate, fp.dropout(0.5)), fp.serial(fp.concatenate, fp.dense(4))
    )
    again = layer.rebuild((layer.parts[0], fp.pick(0)))
    assert [row.name for row in fp.summary(layer, structs(x)).rows] == [
        *("concatenate", "dropout"),
        *("concatenate", "dense"),
    ]
    params, _ = again.init(KEY, structs(x))
    np.testing.assert_array_equal(again.apply(params, x)[0], x[0])
    alone = fp.message_passing(layer.parts[0])
    dropped = alone.apply((((), ()), ()), x, jax.random.key(1))[0][0, 1]
    assert set(dropped.tolist()) == {0.0, 2.0}
