"""300 random MLPs: 30 architectures times 10 seeds, each architecture one vmapped call."""

import itertools
import math

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import funcprop as fp
from funcprop.checking import compare

pytestmark = pytest.mark.usefixtures("strict")

SEEDS = 10
ACTIVATIONS = {
    "relu": fp.relu,
    "sigmoid": fp.sigmoid,
    "sigmoid_precise": fp.sigmoid_precise,
    "tanh": fp.tanh,
    "tanh_precise": fp.tanh_precise,
    "gelu": fp.gelu,
    "gelu_tanh": fp.gelu_tanh,
    "silu": fp.silu,
    "mish": fp.mish,
    "softplus": fp.softplus,
    "softsign": fp.softsign,
    "elu": fp.elu(),
    "celu": fp.celu(),
    "selu": fp.selu,
    "identity": fp.identity,
}


def _erf(z):
    """erf of a complex number with a tiny imaginary part."""
    values = np.vectorize(math.erf)(z.real)
    return values + 1j * z.imag * 2 / math.sqrt(math.pi) * np.exp(-(z.real**2))


def _softplus(z):
    return np.log1p(np.exp(-np.where(z.real > 0, z, -z))) + np.where(z.real > 0, z, 0)


def _sigmoid(z):
    return 1 / (1 + np.exp(-z))


# The same functions once more, from their definitions, for complex numbers.
COMPLEX = {
    "sigmoid": _sigmoid,
    "sigmoid_precise": _sigmoid,
    "tanh": np.tanh,
    "tanh_precise": np.tanh,
    "gelu": lambda z: z * (1 + _erf(z / math.sqrt(2))) / 2,
    "gelu_tanh": lambda z: z / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "silu": lambda z: z * _sigmoid(z),
    "mish": lambda z: z * np.tanh(_softplus(z)),
    "softplus": _softplus,
    "softsign": lambda z: z / (1 + np.where(z.real > 0, z, -z)),
    "elu": lambda z: np.where(z.real > 0, z, np.exp(np.where(z.real > 0, 0, z)) - 1),
    "celu": lambda z: np.where(z.real > 0, z, np.exp(np.where(z.real > 0, 0, z)) - 1),
    "selu": lambda z: (
        1.0507009873554805
        * np.where(z.real > 0, z, 1.6732632423543772 * (np.exp(np.where(z.real > 0, 0, z)) - 1))
    ),
    "identity": lambda z: z,
    "relu": lambda z: np.where(z.real > 0, z, 0),
}


def architectures():
    """Every activation twice, every depth from 1 to 5 six times, both losses fifteen times."""
    draw = np.random.default_rng(0)
    names = list(ACTIVATIONS)
    for i in range(30):
        depth = 1 + i % 5
        sizes = tuple(int(s) for s in draw.integers(3, 9, depth + 1))
        yield names[i % len(names)], sizes, int(draw.integers(3, 8)), bool((i // 15 + i) % 2)


ARCHITECTURES = tuple(architectures())
each = pytest.mark.parametrize(
    ("name", "sizes", "batch", "classify"),
    [
        pytest.param(
            *architecture,
            id=f"{architecture[0]}-{'-'.join(map(str, architecture[1]))}",
            # Half of them have every activation once, every depth and both losses.
            marks=[pytest.mark.slow] * (i >= len(ACTIVATIONS)),
        )
        for i, architecture in enumerate(ARCHITECTURES)
    ],
)


def drawn(sizes, batch, classify, dtype):
    """Parameters (biases too), inputs and targets of all seeds, their numbers exact in dtype.

    Weights have variance 1/n: with 2/n a deep network of positive activations saturates its
    softmax, and p - q cancels for both sides.
    """
    draw = np.random.default_rng(sizes)
    params = tuple(
        {
            "w": draw.normal(size=(SEEDS, m, n)) / math.sqrt(n),
            "b": draw.normal(size=(SEEDS, m)) / 4,
        }
        for n, m in itertools.pairwise(sizes)
    )
    x = draw.normal(size=(SEEDS, batch, sizes[0]))
    if classify:
        y = draw.integers(0, sizes[-1], (SEEDS, batch), dtype=np.int32)
    else:
        y = draw.normal(size=(SEEDS, batch, sizes[-1]))
    return jax.tree.map(lambda a: a.astype(dtype) if a.dtype == np.float64 else a, (params, x, y))


def sides(name, classify):
    loss = fp.softmax_cross_entropy() if classify else fp.mean_squared_error
    activation = ACTIVATIONS[name]

    def manual(params, x, y):
        return fp.backprop(params, x, y, loss, activation)

    def automatic(params, x, y):
        def value(params):
            losses = loss.apply((), (fp.apply(params, x, activation), y))
            return jnp.sum(losses * jnp.full_like(losses, 1 / len(x)))

        return jax.value_and_grad(value)(params)

    return jax.jit(jax.vmap(manual)), jax.jit(jax.vmap(automatic))


def complex_gradient(name, classify, params, x, y):
    """∂value/∂θᵢ = Im value(θ + ih eᵢ)/h, one parameter at a time, in NumPy."""
    leaves, structure = jax.tree.flatten(params)
    leaves = [np.asarray(leaf) for leaf in leaves]
    size = sum(leaf.size for leaf in leaves)
    flat = np.concatenate([leaf.ravel() for leaf in leaves])
    points = flat + 1e-30j * np.eye(size)
    pieces = np.split(points, np.cumsum([leaf.size for leaf in leaves])[:-1], axis=1)
    moved = jax.tree.unflatten(
        structure,
        [p.reshape(size, *leaf.shape) for p, leaf in zip(pieces, leaves, strict=True)],
    )
    h = np.broadcast_to(x, (size, *x.shape)).astype(complex)
    for i, layer in enumerate(moved):
        h = np.einsum("pbn,pmn->pbm", h, layer["w"]) + layer["b"][:, None]
        h = COMPLEX[name](h) if i < len(moved) - 1 else h
    if classify:
        top = h - h.real.max(-1, keepdims=True)
        log_p = top - np.log(np.exp(top).sum(-1, keepdims=True))
        losses = -np.take_along_axis(log_p, np.broadcast_to(y[:, None], (size, len(y), 1)), 2)
    else:
        losses = ((h - y) ** 2).mean(-1)
    slopes = losses.reshape(size, -1).mean(-1).imag / 1e-30
    slopes = np.split(slopes, np.cumsum([leaf.size for leaf in leaves])[:-1])
    return jax.tree.unflatten(
        structure, [g.reshape(leaf.shape) for g, leaf in zip(slopes, leaves, strict=True)]
    )


def of_seed(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


@each
def test_within_the_bounds(name, sizes, batch, classify, x64):
    manual, automatic = sides(name, classify)
    for dtype in ("float64", "float32", "bfloat16"):
        given = drawn(sizes, batch, classify, jnp.dtype(dtype))
        exact = jax.tree.map(lambda a: a if a.dtype == np.int32 else a.astype(np.float64), given)
        # To the host first: slicing a device array compiles a program for every shape.
        ours, theirs, (_, truth) = jax.device_get(
            (manual(*given), automatic(*given), automatic(*exact))
        )
        chex.assert_trees_all_equal_shapes_and_dtypes(ours[1], given[0])
        eps = float(jnp.finfo(dtype).eps)
        for i in range(SEEDS):
            compare(of_seed(ours[1], i), of_seed(theirs[1], i)).assert_ok()
            compare(of_seed(ours[0], i), of_seed(theirs[0], i)).assert_ok()
            if dtype == "float64":
                slopes = complex_gradient(name, classify, *of_seed(given, i))
                assert _distance(of_seed(ours[1], i), slopes) <= 1e-11
            else:  # the error against the truth: at most 4 times that of jax.grad, and 4 eps
                own, other = (
                    _distance(of_seed(side[1], i), of_seed(truth, i)) / eps
                    for side in (ours, theirs)
                )
                assert own <= 4 * other + 4


def _distance(a, b):
    a, b = (
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (a, b)
    )
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@hypothesis.settings(deadline=None, derandomize=True, max_examples=6)
@hypothesis.given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=3),
    name=st.sampled_from(sorted(ACTIVATIONS)),
    classify=st.booleans(),
    batch=st.integers(1, 5),
    seed=st.integers(0, 2**31 - 1),
)
def test_any_small_network(sizes, name, classify, batch, seed):
    draw = np.random.default_rng(seed)
    params = tuple(
        {"w": draw.normal(size=(m, n)), "b": draw.normal(size=m)}
        for n, m in itertools.pairwise(sizes)
    )
    x, y = draw.normal(size=(batch, sizes[0])), draw.normal(size=(batch, sizes[-1]))
    y = np.argmax(y, -1) if classify else y
    manual, automatic = sides(name, classify)
    given = jax.tree.map(lambda a: jnp.asarray(a)[None], (params, x, y))
    ours, theirs = manual(*given), automatic(*given)
    compare(of_seed(ours[1], 0), of_seed(theirs[1], 0)).assert_ok()


# ------------------------------------------------------------------- the MLP page itself


def test_the_page_and_the_layer_are_one(strict):
    sizes = (4, 6, 3)
    params = fp.init(jax.random.key(0), sizes)
    x, y = jnp.ones((2, 4)), jnp.ones((2, 3))
    model = fp.mlp(sizes, fp.tanh)
    assert [p["w"].shape for p in params] == [(6, 4), (3, 6)]
    assert [p["b"].shape for p in params] == [(6,), (3,)]
    assert isinstance(params, tuple)
    chex.assert_trees_all_equal(fp.apply(params, x, fp.tanh), model.apply(params, x))
    by_layer = fp.value_and_backprop(model, fp.mean_squared_error)(params, x, y)
    chex.assert_trees_all_equal(fp.backprop(params, x, y, activation=fp.tanh), by_layer)
    chex.assert_trees_all_equal(model.init(jax.random.key(0), (4,))[0], params)


def test_initial_weights_have_variance_2_over_the_inputs():
    params = fp.init(jax.random.key(0), (200, 300, 100))
    assert np.std(params[0]["w"]) == pytest.approx(math.sqrt(2 / 200), rel=0.02)
    assert np.std(params[1]["w"]) == pytest.approx(math.sqrt(2 / 300), rel=0.02)
    assert not params[0]["b"].any()
