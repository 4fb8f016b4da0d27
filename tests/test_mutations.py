"""Mutations of a program: each does what it says, at the same place in every dtype."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcprop as fp
from funcprop.checking import MISTAKES
from tests import mutations, programs
from tests.fault_checks import params_of
from tests.faults import CASE

X, Y = jnp.array([[1.0, -2.0, 3.0], [0.5, 4.0, -0.25]]), jnp.arange(6.0).reshape(2, 3) - 2
V, Q = jnp.array([3.0, 1.0, 2.0]), jnp.arange(9.0).reshape(3, 3)
N, MASK = jnp.array([0, 2, 2]), jnp.array([True, False, True])
KERNEL = jnp.array([1.0, 10.0, 100.0])


def convolved(x, w):
    return lax.conv_general_dilated(x[None, None], w[None, None], (1,), [(1, 1)])[0, 0]


def running(x):
    return lax.scan(lambda total, x: (total + x, total), jnp.ones(()), x)


def scattered(x, ids):
    return jnp.full(4, 5.0).at[ids].add(x, mode="drop")


# kind: a function, its arguments, how the mutation's name ends, what is due
TABLE = {
    "negated": (jnp.sin, (X,), "sin 1: negated", -jnp.sin(X)),
    "doubled": (jnp.sin, (X,), "sin 1: doubled", 2 * jnp.sin(X)),
    "halved": (jnp.sin, (X,), "sin 1: halved", jnp.sin(X) / 2),
    "off by 1 %": (jnp.sin, (X,), "sin 1: off by 1 %", 1.01 * jnp.sin(X)),
    "stopped": (jnp.sin, (X,), "sin 1: stopped", 0 * X),
    "rounded to bfloat16": (
        jnp.sin, (X,), "sin 1: rounded to bfloat16",
        jnp.sin(X).astype(jnp.bfloat16).astype(X.dtype),
    ),
    "clipped to [-1, 1]": (
        jnp.square, (X,), "square 1: clipped to [-1, 1]", jnp.minimum(X * X, 1)
    ),
    "scaled by a size": (jnp.sin, (X,), "sin 1: divided by a size of 3", jnp.sin(X) / 3),
    "one entry of an axis": (
        jnp.sin, (X,), "last entry of axis 1 stopped", jnp.sin(X).at[:, 2].set(0)
    ),
    "only one entry of an axis": (
        jnp.sin, (X,), "only the first entry of axis 0 kept", jnp.sin(X).at[1].set(0)
    ),
    "rolled": (jnp.sin, (X,), "rolled by one along axis 1", jnp.roll(jnp.sin(X), 1, 1)),
    "reversed": (jnp.sin, (X,), "reversed along axis 0", jnp.sin(X)[::-1]),
    "transposed": (jnp.sin, (Q,), "sin 1: axes 0 and 1 exchanged", jnp.sin(Q).T),
    "argument replaced": (lambda x, y: x + 2 * y, (X, Y), "argument 1 in its place", 3 * Y),
    "integers off by one": (lambda x, n: x[n], (V, N - 1), "argument 1: one more", V[N]),
    "mask ignored": (
        lambda m, x: jnp.where(m, x, 0), (MASK, V), "argument 0: inverted", V * ~MASK
    ),
    "addend left out": (lambda x, y: x - y, (X, Y), "operand 0 left out", -Y),
    "addend counted twice": (jnp.add, (X, Y), "operand 1 counted twice", X + 2 * Y),
    "addend's sign": (jnp.add, (X, Y), "sign of operand 0", Y - X),
    "operands exchanged": (lambda x, y: x / y, (Y, X), "operands exchanged", X / Y),
    "factor left out": (jnp.multiply, (X, Y), "operand 1 left out", X),
    "not divided": (lambda x, y: x / y, (Y, X), "not divided", Y),
    "factor squared": (jnp.multiply, (X, Y), "operand 0 squared", X * X * Y),
    "taken twice": (jnp.sin, (X,), "taken twice", jnp.sin(jnp.sin(X))),
    "operand from elsewhere": (
        lambda x, y: jnp.sin(x) * y, (X, Y), "argument 0 for operand 1", jnp.sin(X) * X
    ),
    "constant": (lambda x: x + 0.01, (X,), "0.01 left out", X),
    "another function of its kind": (jnp.tanh, (X,), "logistic for tanh", jax.nn.sigmoid(X)),
    "function left out": (lambda x: -x, (X,), "neg left out", X),
    "exponent": (lambda x: x**3, (X,), "power 2 for 3", X**2),
    "operand transposed": (
        jnp.dot, (X, Q), "axes 0 and 1 of operand 1 exchanged", X @ Q.T
    ),
    "kernel reversed": (
        convolved, (V, KERNEL), "axis 2 of the kernel reversed", convolved(V, KERNEL[::-1])
    ),
    "padding off by one": (
        lambda x: jnp.pad(x, (1, 1)), (V,), "axis 0 padded one place later",
        jnp.array([0, 0, 3.0, 1, 2]),
    ),
    "start off by one": (
        lambda x: lax.slice(x, (0, 0), (2, 2)), (X,), "axis 1 cut one place later", X[:, 1:]
    ),
    "indices off by one": (
        scattered, (V, N), "indices one more", jnp.array([5.0, 8, 5, 8])
    ),
    "the last one kept": (scattered, (V, N[:1]), "set for add", None),
    "over another axis": (lambda x: x.sum(0), (Q,), "over axes (1,) for (0,)", Q.sum(1)),
    "another reduction": (lambda x: x.sum(0), (X,), "mean of 2", X.mean(0)),
    "cumulated the other way": (
        lambda x: lax.cumsum(x), (V,), "from the other end", jnp.cumsum(V[::-1])[::-1]
    ),
    "parts exchanged": (
        lambda x, y: jnp.concatenate([x, y]), (X, Y), "parts 0 and 1 exchanged",
        jnp.concatenate([Y, X]),
    ),
    "choice": (
        lambda m, x, y: lax.select(m, x, y), (MASK, V, -V), "always the first one", -V
    ),
    "comparison": (lambda x: (x > 1) * x, (V,), "ge for gt", V),
    "logic": (
        lambda m, x: x * (m & (x > 2)), (MASK, V), "operand 0 alone", V * MASK
    ),
    "order of axes": (lambda x: x.T, (Q,), "left as they are", Q),
    "read in another order": (
        lambda x: x.reshape(3, 2), (X,), "the first axis read fastest", X.reshape(3, 2, order="F")
    ),
    "spread along another axis": (
        lambda x: lax.broadcast_in_dim(x, (3, 3), (0,)), (V,), "along axis 1 for 0",
        jnp.broadcast_to(V, (3, 3)),
    ),
    "numbers off by one": (
        lambda x: x * lax.iota(jnp.int32, 3), (V,), "from 1", V * jnp.array([1, 2, 3])
    ),
    "scanned the other way": (
        running, (V,), "in the other direction", (jnp.array(7.0), jnp.array([4.0, 3, 1]))
    ),
    "nothing carried": (
        running, (V,), "carried value 0 reset at every step", (jnp.array(2.0), jnp.zeros(3))
    ),
    "a step left out": (
        running, (V,), "what the first entry gives stopped",
        (jnp.array(7.0), jnp.array([0, 4.0, 5])),
    ),
}  # fmt: skip
TABLE["the last one kept"] = (
    scattered, (V, N), "what was there dropped", jnp.array([3.0, 0, 3, 0])
)  # fmt: skip


def the_one(program, kind, words):
    found = [m for m in mutations.mutations(program) if m.kind == kind and m.name.endswith(words)]
    assert found, [m.name for m in mutations.mutations(program) if m.kind == kind]
    return found[0]


def assert_close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


def test_each_kind_has_an_example_and_words_of_the_mistakes():
    assert set(TABLE) == set(mutations.KINDS)
    for described in mutations.KINDS.values():
        assert set(described.meanings) <= set(MISTAKES)


@pytest.mark.parametrize("kind", TABLE)
def test_a_mutation_does_what_it_says(kind):
    f, args, words, due = TABLE[kind]
    program = programs.traced(f, args)
    found = mutations.made(program, args, the_one(program, kind, words))
    assert_close(found, due)
    right = programs.run(program, args)
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (found, right)), strict=True))


def gradient_of(name, dtype, computed=False):
    """The backward pass of a case and what it is called with, in a dtype."""
    case = CASE[name]
    x = jax.tree.map(
        lambda a: a.astype(dtype) if a.dtype.kind == "f" else a,
        case.draw(np.random.default_rng(0)),
    )
    params, key = params_of(case.layer, x, dtype, 0), jax.random.key(0)
    forward = jax.jit(lambda p, x: case.layer.forward(p, x, key))
    y, residuals = forward(params, x) if computed else jax.eval_shape(forward, params, x)
    delta = jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.floating) else None, y)
    return case.layer.backward, (params, residuals, delta)


SLOW = ("rnn", "batch_norm", "max_pool", "tree_rnn")
SOME = ["dense", "repeat of remat", "huber"]
SOME += [pytest.param(name, marks=pytest.mark.slow) for name in SLOW]


@pytest.mark.parametrize("name", SOME)
def test_a_program_without_a_change_gives_the_right_gradient(name):
    backward, args = gradient_of(name, "float32", computed=True)
    found = programs.run(programs.traced(backward, args, mutations.NAMES), args)
    fp.compare(found, jax.jit(backward)(*args)).assert_ok()


@pytest.mark.parametrize("name", SOME)
def test_a_place_is_the_same_in_every_dtype(name):
    lists = []
    for dtype in ("float32", "bfloat16", "float64"):
        with jax.enable_x64(dtype == "float64"):
            backward, args = gradient_of(name, dtype)
            program = programs.traced(backward, args, mutations.NAMES)
        lists.append({m.name for m in mutations.mutations(program)})
    assert lists[0] - lists[2] == set()
    for found in lists[1:]:  # casts aside
        assert len(found & lists[0]) > 0.7 * len(lists[0])


def halves(x):
    return lax.fori_loop(0, 3, lambda n, x: x / 2, x)


def until(x):
    return lax.while_loop(lambda x: x.sum() > 1, lambda x: x / 2, x)


def either(x):
    return lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x)


INNER = {
    "a step of a scan": (halves, "scan 1, div 1", -X / 8),
    "the body of a loop": (until, "while 1, div 1", -X / 2),
    "a branch": (either, "cond 1 branch 1, sin 1", -jnp.sin(X)),
    "what is recomputed": (jax.checkpoint(jnp.sin), "remat2 1, sin 1", -jnp.sin(X)),
    "a function with a rule": (jax.nn.relu, "jit 1, max 1", -jnp.maximum(X, 0)),
    "a function in a function": (jax.jit(jax.jit(jnp.sin)), "sin 1", -jnp.sin(X)),
}  # fmt: skip


@pytest.mark.parametrize("name", INNER)
def test_a_change_is_made_in_an_inner_program(name):
    f, place, due = INNER[name]
    program = programs.traced(f, (X,))
    chosen = the_one(program, "negated", f"{place}: negated")
    assert_close(jax.jit(lambda x: mutations.made(program, (x,), chosen))(X), due)


def test_a_changed_function_is_traced_anew_for_what_it_is_given():
    f = lambda x, y: jnp.sin(x) * y  # noqa: E731
    chosen = the_one(programs.traced(f, (X, Y)), "negated", "sin 1: negated")
    g = mutations.changed(f, chosen)
    assert_close(g(V, V), -jnp.sin(V) * V)
    with jax.enable_x64(True):
        assert g(np.float64(1), np.float64(2)).dtype == np.float64
    with pytest.raises(LookupError, match="no equation sin 1"):
        mutations.changed(jnp.cos, chosen)(V)


def test_a_layer_keeps_its_forward_pass_and_its_other_statistics():
    layer = fp.dense(3, fp.tanh)
    params, _ = layer.init(jax.random.key(0), (3,))
    y, residuals = layer.forward(params, X)
    args = (params, residuals, y)
    program = programs.traced(layer.backward, args, mutations.NAMES)
    chosen = the_one(program, "negated", "weights['w']: negated")
    wrong = mutations.mutated(layer, chosen)
    delta_x, grads = wrong.backward(*args)
    right_x, right = layer.backward(*args)
    assert_close((delta_x, grads), (-right_x, right))
    assert fp.sites(wrong, (3,)) == fp.sites(layer, (3,))
    assert wrong.forward is layer.forward


def test_the_order_is_fixed_and_each_kind_comes_before_the_next_of_one():
    backward, args = gradient_of("dense on tokens", "float32")
    listed = mutations.mutations(programs.traced(backward, args, mutations.NAMES))
    order = mutations.drawn(listed, 7)
    assert [m.name for m in order] == [m.name for m in mutations.drawn(listed, 7)]
    assert sorted(m.name for m in order) == sorted(m.name for m in listed)
    assert len({m.name for m in order}) == len(order)
    for anywhere in (True, False):
        kinds = [m.kind for m in order if mutations.KINDS[m.kind].anywhere is anywhere]
        count = len(set(kinds))
        assert len(set(kinds[:count])) == count


def test_nothing_here_knows_the_diagnosis():
    for module in (mutations, programs):
        assert "checking" not in "".join(
            line for line in inspect.getsource(module).splitlines() if "import" in line
        )
