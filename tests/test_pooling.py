"""Pooling and shapes: the full product against jax.vjp of reduce_window, facts, errors, faults."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcprop as fp
from tests.drawing import covering

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)


def swept(layer, x, delta):
    y, residuals = layer.forward((), x)
    return y, layer.backward((), residuals, delta)[0]


def reduced(kind, window, stride, padding):
    """The plain form, by jax.lax.reduce_window."""

    def run(x):
        axes = x.ndim - 2
        size, step = ((n,) * axes if isinstance(n, int) else n for n in (window, stride))
        pads = [(0, 0), *padding, (0, 0)] if isinstance(padding, list) else padding

        def over(x, start, f):
            return lax.reduce_window(x, start, f, (1, *size, 1), (1, *step, 1), pads)

        if kind == "max":
            return over(x, -jnp.inf, lax.max)
        return over(x, 0.0, lax.add) / over(jnp.ones_like(x), 0.0, lax.add)

    return run


PRODUCTS = {
    "1d": (
        (2, 7, 2),
        {
            "window": [1, 2, 3],
            "stride": [1, 2, 3],
            "padding": ["VALID", "SAME", [(1, 0)], [(1, 2)]],
        },
    ),
    "2d": (
        (2, 6, 5, 2),
        {
            "window": [2, 3, (1, 2)],
            "stride": [1, 2, 3, (2, 1)],
            "padding": ["VALID", "SAME", [(0, 1), (1, 0)]],
        },
    ),
    "3d": (
        (2, 4, 3, 4, 1),
        {"window": [2, (1, 3, 2)], "stride": [1, (2, 1, 2)], "padding": ["VALID", "SAME"]},
    ),
}


def fits(window, stride, padding):
    """Padding has to be less than the window."""
    if isinstance(padding, str):
        return True
    sizes = [window] * len(padding) if isinstance(window, int) else window
    return all(max(pad) < size for pad, size in zip(padding, sizes, strict=True))


@pytest.mark.parametrize("axes", PRODUCTS)
@pytest.mark.parametrize("kind", ["max", "avg"])
@covering
def test_options_together(choose, kind, axes):
    """Whole numbers with many ties: sums and winners have to be the very same."""
    shape, options = PRODUCTS[axes]
    make = {"max": fp.max_pool, "avg": fp.avg_pool}[kind]
    draw, chosen = np.random.default_rng(0), choose(options, fits)

    def errors(x, numbers, **options):
        layer = make(**options)
        due, pullback = jax.vjp(reduced(kind, **options), x)
        delta = numbers[: due.size].reshape(due.shape)
        y, delta_x = swept(layer, x, delta)
        assert layer.init(KEY, shape[1:])[1] == y.shape[1:]
        return abs(y - due).max(), abs(delta_x - pullback(delta)[0]).max()

    with jax.enable_x64(True):
        x = draw.integers(-2, 3, shape).astype(float)
        numbers = draw.integers(-9, 9, 4 * x.size).astype(float)
        each = jax.jit(lambda *given: [errors(*given, **options) for options in chosen])
        assert np.max(each(x, numbers)) <= (0 if kind == "max" else 1e-14)


def test_the_layers_are_torch_s():
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, 7, 6, 3)).astype("float32")
    pads = [(1, 1), (1, 1)]
    for layer, theirs in (
        (fp.max_pool(3, 2, pads), lambda x: torch.nn.functional.max_pool2d(x, 3, 2, 1)),
        (
            fp.avg_pool(3, 2, pads, count_padding=True),
            lambda x: torch.nn.functional.avg_pool2d(x, 3, 2, 1),
        ),
        (
            fp.avg_pool(3, 2, pads),
            lambda x: torch.nn.functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        ),
        (fp.global_avg_pool, lambda x: x.mean((2, 3))),
    ):
        tensor = torch.tensor(x, requires_grad=True)
        due = theirs(tensor.permute(0, 3, 1, 2))
        due = due.permute(0, 2, 3, 1) if due.ndim == 4 else due
        delta = draw.normal(size=due.shape).astype("float32")
        due.backward(torch.tensor(delta))
        y, delta_x = swept(layer, jnp.asarray(x), jnp.asarray(delta))
        np.testing.assert_allclose(y, due.detach().numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(delta_x, tensor.grad.numpy(), rtol=1e-5, atol=1e-6)


def test_a_maximum_keeps_bytes():
    """The winners of 2×2 windows take a 16th of x, of more than 256 taps four bytes each."""
    x = jnp.zeros((2, 8, 8, 3))
    (winners,), _ = fp.max_pool(2).forward((), x)[1]
    assert winners.nbytes * 16 == x.nbytes
    kept = jax.eval_shape(lambda: fp.max_pool(17).forward((), jnp.zeros((1, 17, 17, 1)))[1])
    assert kept[0][0].dtype == jnp.int32


@pytest.mark.parametrize("layer", [fp.max_pool(2), fp.max_pool(2, 1), fp.avg_pool(2)])
def test_a_nan_is_seen_in_its_window_alone(layer):
    y = layer.apply((), jnp.ones((1, 6, 1)).at[0, 2].set(jnp.nan))
    assert np.isnan(y).any()
    assert np.isfinite(y[0, 0])
    assert np.isfinite(y[0, -1])


def test_shapes_are_numpy_s():
    x = jnp.arange(48.0).reshape(2, 2, 3, 4)
    for layer, due in (
        (fp.flatten, x.reshape(2, 24)),
        (fp.reshape(6, -1), x.reshape(2, 6, 4)),
        (fp.reshape(), None),
        (fp.transpose(), x.transpose(0, 3, 2, 1)),
        (fp.transpose(1, 2, 0), x.transpose(0, 2, 3, 1)),
    ):
        if due is None:
            continue
        np.testing.assert_array_equal(swept(layer, x, due)[1], x)
        np.testing.assert_array_equal(layer.apply((), x), due)
        assert layer.init(KEY, (2, 3, 4))[1] == due.shape[1:]
    assert fp.flatten.apply((), jnp.zeros(3)).shape == (3, 1)
    assert fp.reshape().apply((), jnp.zeros((3, 1))).shape == (3,)


X = jnp.ones((2, 6, 5, 4))


def test_concatenate_puts_arrays_side_by_side_and_cuts_their_delta():
    a, b, c = X, 2 * X[..., :1], 3 * X[..., :2]
    y, deltas = jax.jit(lambda *x: swept(fp.concatenate, x, jnp.concatenate(x, -1)))(a, b, c)
    np.testing.assert_array_equal(y, np.concatenate([a, b, c], axis=-1))
    for delta, due in zip(deltas, (a, b, c), strict=True):
        np.testing.assert_array_equal(delta, due)
    structs = tuple(jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in (a, b, c))
    assert fp.concatenate.init(KEY, structs)[1] == (6, 5, 7)
