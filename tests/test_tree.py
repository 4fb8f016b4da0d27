"""Recursive layers over trees: recursion in Python, chains, padding, shared children, faults."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funcprop as fp
from funcprop.cases.tree import trees
from tests.drawing import params_of

pytestmark = pytest.mark.usefixtures("strict")

LAYERS = {"tree_rnn": fp.tree_rnn(4), "tree_lstm": fp.tree_lstm(4)}
both_layers = pytest.mark.parametrize("name", LAYERS)


def made(layer, x, children, seed=0):
    shape = jax.eval_shape(lambda: (jnp.asarray(x[0]), jnp.asarray(children[0])))
    return params_of(layer, shape, seed, x.dtype)


def swept(layer, params, x, children, delta):
    (h, _), residuals = layer.forward(params, (x, children))
    (delta_x, none), grads = layer.backward(params, residuals, (delta, None))
    assert none is None
    return h, delta_x, grads


sweeps = {name: jax.jit(lambda *a, f=layer: swept(f, *a)) for name, layer in LAYERS.items()}


def drawn(seed, batch=3, nodes=6, most=2, features=3):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(batch, nodes, features)).astype("float32")
    delta = draw.normal(size=(batch, nodes, 4)).astype("float32")
    return x, trees(batch, nodes, most)(draw), delta


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def affine(p, x, h):
    return p["w"] @ x + p["u"] @ h + p["b"]


def rnn_node(p, x, states):
    return (np.tanh(affine(p, x, sum((h for (h,) in states), np.zeros(4)))),)


def lstm_node(p, x, states):
    i, o, u = np.split(affine(p["gates"], x, sum((h for h, _ in states), np.zeros(4))), 3)
    c = sigmoid(i) * np.tanh(u)
    for h, c_k in states:
        c = c + sigmoid(affine(p["forget"], x, h)) * c_k
    return sigmoid(o) * np.tanh(c), c


NODES = {"tree_rnn": rnn_node, "tree_lstm": lstm_node}


def recursive(name, p, x, children):
    """h of all nodes, by recursion from each node down to its leaves."""

    def state(b, n):
        under = [state(b, k) for k in children[b, n] if k >= 0]
        return NODES[name](p, x[b, n], under)

    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p)
    return np.array([[state(b, n)[0] for n in range(x.shape[1])] for b in range(len(x))])


def close(found, due, tolerance=2e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, due
    )


@both_layers
def test_random_trees_are_what_recursion_says(name):
    for seed in range(4):
        x, children, delta = drawn(seed)
        params = made(LAYERS[name], x, children, seed)
        h = sweeps[name](params, x, children, delta)[0]
        close(h, recursive(name, params, x, children))


def plain(name, p, x, children):
    """h of one example as one writes it down: the states in a list, nobody's first."""

    def joint(p, x, h):
        return x @ p["w"].T + h @ p["u"].T + p["b"]

    size = p["u"].shape[1] if name == "tree_rnn" else p["forget"]["u"].shape[1]
    states = [jnp.zeros((2, size), x.dtype)]
    for x_n, nodes in zip(x, children, strict=True):
        h_k, c_k = jnp.stack(states)[nodes + 1].swapaxes(0, 1)
        if name == "tree_rnn":
            states.append(jnp.tanh(joint(p, x_n, h_k.sum(0)))[None].repeat(2, 0))
            continue
        i, o, u = jnp.split(joint(p["gates"], x_n, h_k.sum(0)), 3)
        f = jax.nn.sigmoid(joint(p["forget"], x_n, h_k))
        c = jax.nn.sigmoid(i) * jnp.tanh(u) + (f * c_k).sum(0)
        states.append(jnp.stack([jax.nn.sigmoid(o) * jnp.tanh(c), c]))
    return jnp.stack(states[1:])[:, 0]


@settings(deadline=None, derandomize=True, max_examples=2)
@given(
    batch=st.integers(1, 3),
    nodes=st.integers(1, 5),
    most=st.integers(0, 3),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 99),
)
def test_any_shape(batch, nodes, most, sizes, seed):
    with jax.enable_x64(True):
        draw = np.random.default_rng(seed)
        x = draw.normal(size=(batch, nodes, sizes[0]))
        children = draw.integers(
            -1, np.broadcast_to(np.arange(nodes)[:, None], (batch, nodes, most)), dtype=np.int64
        )
        delta = draw.normal(size=(batch, nodes, sizes[1]))
        for name in LAYERS:
            layer = getattr(fp, name)(sizes[1])
            params = made(layer, x, children)

            @jax.jit
            def both(params, x, delta, name=name, layer=layer, children=children):
                each = jax.vmap(lambda p, x, c: plain(name, p, x, c), (None, 0, 0))
                due, pullback = jax.vjp(lambda p, x: each(p, x, jnp.asarray(children)), params, x)
                grads, delta_x = pullback(delta)
                return swept(layer, params, x, children, delta), (due, delta_x, grads)

            close(*both(params, x, delta), tolerance=1e-12)


# --------------------------------------------------------------------------- exact facts


@both_layers
def test_a_chain_is_a_recurrent_network(name):
    x, _, delta = drawn(0)
    children = np.broadcast_to(np.array([[n - 1, -1] for n in range(6)], np.int32), (3, 6, 2))
    params = made(LAYERS[name], x, children)
    p = jax.tree.map(np.asarray, params)
    h, c = np.zeros((3, 4)), np.zeros((3, 4))
    due = []
    for t in range(6):
        if name == "tree_rnn":
            h = np.tanh(x[:, t] @ p["w"].T + h @ p["u"].T + p["b"])
        else:
            gates, forget = p["gates"], p["forget"]
            i, o, u = np.split(x[:, t] @ gates["w"].T + h @ gates["u"].T + gates["b"], 3, axis=1)
            f = sigmoid(x[:, t] @ forget["w"].T + h @ forget["u"].T + forget["b"])
            c = f * c + sigmoid(i) * np.tanh(u)
            h = sigmoid(o) * np.tanh(c)
        due.append(h)
    close(sweeps[name](params, x, children, delta)[0], np.stack(due, axis=1))


@both_layers
def test_leaves_are_a_feed_forward_layer(name):
    x, children, delta = drawn(0)
    children = np.full_like(children, -1)
    params = made(LAYERS[name], x, children)
    h, _, grads = sweeps[name](params, x, children, delta)
    if name == "tree_rnn":
        due = np.tanh(x @ params["w"].T + params["b"])
        u_grads = [grads["u"]]
    else:
        i, o, u = np.split(x @ params["gates"]["w"].T + params["gates"]["b"], 3, axis=-1)
        due = sigmoid(o) * np.tanh(sigmoid(i) * np.tanh(u))
        u_grads = [grads["gates"]["u"], *grads["forget"].values()]
    close(h, due)
    assert not any(np.any(leaf) for leaf in u_grads)


@both_layers
def test_the_order_of_the_children_does_not_matter(name):
    x, children, delta = drawn(1)
    params = made(LAYERS[name], x, children)
    found = sweeps[name](params, x, children, delta)
    close(sweeps[name](params, x, children[:, :, ::-1], delta), found, 1e-6)


@both_layers
def test_padding_in_front_changes_nothing(name):
    x, children, delta = drawn(2, nodes=4)
    params = made(LAYERS[name], x, children)
    h, delta_x, grads = sweeps[name](params, x, children, delta)
    draw = np.random.default_rng(0)
    padded = np.concatenate([draw.normal(size=(3, 2, 3)).astype("float32"), x], axis=1)
    later = np.where(children < 0, -1, children + 2)
    later = np.concatenate([np.full((3, 2, 2), -1, np.int32), later], axis=1)
    front = np.concatenate([np.zeros((3, 2, 4), np.float32), delta], axis=1)
    h_padded, delta_padded, grads_padded = sweeps[name](params, padded, later, front)
    np.testing.assert_array_equal(h_padded[:, 2:], h)
    np.testing.assert_array_equal(delta_padded[:, 2:], delta_x)
    assert not np.any(delta_padded[:, :2])
    close(grads_padded, grads)


@both_layers
def test_another_topological_order_permutes_h(name):
    x, _, delta = drawn(3)
    children = np.array([[-1, -1], [-1, -1], [0, 1], [-1, -1], [1, 3], [2, 4]], np.int32)
    order = np.array([3, 1, 4, 0, 2, 5])  # the old number of each
    number = np.append(np.argsort(order), -1)
    again = number[children[order]].astype(np.int32)
    params = made(LAYERS[name], x, children[None])
    old = sweeps[name](params, x, np.broadcast_to(children, (3, 6, 2)), delta)
    new = sweeps[name](params, x[:, order], np.broadcast_to(again, (3, 6, 2)), delta[:, order])
    close(new, (old[0][:, order], old[1][:, order], old[2]), 2e-6)


@both_layers
def test_a_shared_child_takes_the_sum_of_its_deltas(name):
    """Node 0 twice under node 1 and once under node 2, and the same tree with copies of node 0."""
    x, _, delta = drawn(4)
    shared = np.array([[-1, -1], [0, 0], [0, -1], [1, 2]], np.int32)
    apart = np.array([[-1, -1]] * 3 + [[0, 1], [2, -1], [3, 4]], np.int32)
    params = made(LAYERS[name], x, apart[None])
    copies = np.concatenate([x[:, :1], x[:, :1], x[:, :4]], axis=1)
    seen = np.concatenate([0 * delta[:, :3], delta[:, 3:]], axis=1)
    due, due_delta, due_grads = sweeps[name](
        params, copies, np.broadcast_to(apart, (3, 6, 2)), seen
    )
    children = np.broadcast_to(shared, (3, 4, 2))
    h, delta_x, grads = sweeps[name](params, x[:, :4], children, seen[:, 2:])
    close(h, due[:, 2:])
    close(delta_x[:, 1:], due_delta[:, 3:])
    close(delta_x[:, 0], due_delta[:, :3].sum(1))
    close(grads, due_grads)


@both_layers
def test_examples_do_not_touch_each_other(name):
    x, children, delta = drawn(5)
    params = made(LAYERS[name], x, children)
    found = sweeps[name](params, x, children, delta)
    other_x, other = x.copy(), children.copy()
    other_x[0], other[0] = np.nan, -1
    for ours, due in zip(sweeps[name](params, other_x, other, delta)[:2], found[:2], strict=True):
        np.testing.assert_array_equal(ours[1:], due[1:])
        assert np.isnan(ours[0]).all()


@both_layers
def test_a_bad_child_gives_nan_under_a_trace(name):
    x, children, delta = drawn(6)
    params = made(LAYERS[name], x, children)
    due = sweeps[name](params, x, children, delta)
    for n, bad in ((2, 2), (2, 5), (0, 0), (3, 99), (4, -2)):
        spoilt = children.copy()
        spoilt[1, n, 1] = bad
        found = sweeps[name](params, x, spoilt, delta)
        for ours, good in zip(found[:2], due[:2], strict=True):
            assert np.isnan(ours[1]).all()
            np.testing.assert_array_equal(ours[::2], good[::2])
        assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(found[2]))


def test_children_may_be_of_a_narrow_dtype():
    x, _, delta = drawn(0, batch=1, nodes=200)
    chain = np.array([[max(n - 1, -1)] for n in range(200)])[None]
    params = made(LAYERS["tree_rnn"], x, chain)
    due = sweeps["tree_rnn"](params, x, chain.astype(np.int16), delta)
    chain[0, 127:] = -1
    found = sweeps["tree_rnn"](params, x, chain.astype(np.int8), delta)
    np.testing.assert_array_equal(found[0][0, :127], due[0][0, :127])
    assert np.isfinite(found[0]).all()


# --------------------------------------------------------------------------- with others


def test_in_models():
    """Stacked, repeated, rematerialised, with its root read: the gradient of jax.grad."""
    tree = fp.repeat(fp.remat(fp.tree_rnn(4, fp.relu)), 2)
    model = fp.serial(fp.tree_lstm(4), tree, fp.pick(0), fp.last_step, fp.dense(2))
    x, children, _ = drawn(7)
    params = made(model, x, children)
    y = np.array([0, 1, 1], np.int32)
    loss = fp.softmax_cross_entropy()
    fp.check_model(model, params, (x, children), y, loss).assert_ok()


def test_parameters_in_a_batch():
    x, children, delta = drawn(8)
    layer = LAYERS["tree_rnn"]
    many = [made(layer, x, children, seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *many)
    found = jax.jit(jax.vmap(lambda p: swept(layer, p, x, children, delta)))(stacked)
    for i, params in enumerate(many):
        due = sweeps["tree_rnn"](params, x, children, delta)
        close(jax.tree.map(lambda leaf, i=i: leaf[i], found), due)


def test_the_walk_back_copies_no_buffer():
    """The loop of the walk back holds no copy of an array of all nodes."""
    x, children, delta = drawn(0, batch=2, nodes=9)
    for name, layer in LAYERS.items():
        params = made(layer, x, children)
        text = sweeps[name].lower(params, x, children, delta).compile().as_text()
        bodies = [part for part in text.split("\n\n") if "scatter" in part and "ENTRY" not in part]
        assert any("dynamic-update-slice" in body for body in bodies)
        copied = [line for body in bodies for line in body.splitlines() if " copy(" in line]
        assert not [line for line in copied if "[2,9," in line], name
