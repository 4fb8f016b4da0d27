"""Convolutions: the full product against jax.vjp, PyTorch, adjoints, what they refuse, faults."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcprop as fp
from funcprop.core import contraction
from funcprop.layers import windows as maps
from tests.drawing import covering, params_of

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Two images a chunk, the fewest."""
    monkeypatch.setattr(contraction, "CACHE", 1)


def swept(layer, params, x, delta):
    y, residuals = layer.forward(params, x)
    return y, *layer.backward(params, residuals, delta)


def plain(x, params, *, stride, dilation, padding, groups, spread=None):
    axes = x.ndim - 2
    places = "DHW"[-axes:]
    if padding == "CAUSAL":
        padding = [(dilation * (k - 1), 0) for k in params["w"].shape[:axes]]
    y = lax.conv_general_dilated(
        x,
        params["w"],
        (stride,) * axes if isinstance(stride, int) else stride,
        padding,
        spread,
        (dilation,) * axes,
        (f"N{places}C", f"{places}IO", f"N{places}C"),
        groups,
    )
    return y + params["b"]


def errors(layer, reference, x, params):
    """Traced: largest errors of y, δx, δW and δb, over the largest entry of each."""
    out, pullback = jax.vjp(reference, x, params)
    delta = jnp.cos(out)
    due = (out, *pullback(delta))
    found = swept(layer, params, x, delta)
    assert layer.init(KEY, x.shape[1:])[1] == out.shape[1:]
    return jax.tree.map(lambda a, b: abs(a - b).max() / (abs(b).max() + 1), found, due)


def agree(layer_of, reference_of, chosen):
    """That layer and reference agree with each of the chosen options, all in one program."""
    draw = np.random.default_rng(0)
    x = [draw.normal(size=options.pop("shape")) for options in chosen]
    sides = [(layer_of(**options), reference_of(**options)) for options in chosen]

    def everything(x, params):
        each = zip(sides, x, params, strict=True)
        return [errors(layer, reference, *given) for (layer, reference), *given in each]

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        params = [params_of(layer, a.shape[1:]) for (layer, _), a in zip(sides, x, strict=True)]
        assert np.max(jax.tree.leaves(jax.jit(everything)(x, params))) < 1e-12


def conv(kernel, **options):
    return fp.conv(4, kernel, **options)


def plain_conv(kernel, **options):
    return functools.partial(plain, **options)


PADDINGS = ["SAME", "VALID", "CAUSAL"]


@covering
def test_several_chunks_and_a_rest(choose):
    options = {
        "shape": [(5, 4, 4), (5, 4, 3, 4), (5, 4, 3, 2, 4)],
        "kernel": [3],
        "stride": [1, 2],
        "dilation": [1],
        "padding": ["SAME"],
        "groups": [1, 2, 4],
    }
    agree(conv, plain_conv, choose(options))


def test_chunks_are_added_in_float32():
    """1 and then 1/512 for each of the images behind it, all of which bfloat16 would lose."""
    x = jnp.ones((65, 3, 1), "bfloat16")
    delta = jnp.full((65, 1, 1), 2**-9, "bfloat16").at[0].set(1)
    g = maps.Windows((3,), (3,), (1,), (1,), (1,), ((0, 0),))
    assert maps.kernel_gradient(g, x, delta).ravel().tolist() == [1.125] * 3


def test_inside_of_loops_the_axes_are_in_the_fast_order():
    """XLA's CPU compiler turns them only outside; in the wrong order a step takes 20 times."""
    layer = fp.conv(3, 3)
    params, _ = layer.init(KEY, (4, 4, 2))
    x, delta = jnp.ones((3, 5, 4, 4, 2)), jnp.ones((3, 5, 4, 4, 3))

    def each(params, part):
        return params, swept(layer, params, *part)

    scan = jax.jit(lambda params, parts: lax.scan(each, params, parts))
    program = scan.lower(params, (x, delta)).compile().as_text()
    assert set(re.findall(r"dim_labels=(\S+)\b", program)) == {"b01f_01io->b01f"}


@pytest.mark.parametrize("kernel", [1, 2, 3])
@covering
def test_one_axis(choose, kernel):
    options = {
        "shape": [(2, 5, 4), (2, 6, 4)],
        "kernel": [kernel],
        "stride": [1, 2, 3],
        "dilation": [1, 2],
        "padding": [*PADDINGS, [(2, 1)]],
        "groups": [1, 2, 4],
    }
    agree(conv, plain_conv, choose(options))


@covering
def test_two_axes(choose):
    options = {
        "shape": [(2, 6, 5, 4)],
        "kernel": [(1, 2), (3, 2)],
        "stride": [1, (2, 3)],
        "dilation": [1, 2],
        "padding": [*PADDINGS, [(0, 1), (2, 0)]],
        "groups": [1, 2, 4],
    }
    agree(conv, plain_conv, choose(options))


@covering
def test_three_axes(choose):
    options = {
        "shape": [(2, 4, 5, 3, 4)],
        "kernel": [(2, 3, 2)],
        "stride": [1, (2, 1, 2)],
        "dilation": [1, 2],
        "padding": ["SAME", [(1, 0), (0, 2), (1, 1)]],
        "groups": [1, 2, 4],
    }
    agree(conv, plain_conv, choose(options))


def plain_transposed(kernel, stride, dilation, padding, groups):
    def run(x, params):
        if groups == 1:
            y = lax.conv_transpose(
                x, params["w"], (stride,), padding, (dilation,), ("NWC", "WIO", "NWC")
            )
            return y + params["b"]
        # jax.lax.conv_transpose has no groups.
        options = {"dilation": dilation, "padding": padding, "groups": groups}
        return plain(x, params, stride=1, spread=(stride,), **options)

    return run


@covering
def test_transposed(choose):
    def layer_of(kernel, **options):
        return fp.conv_transpose(4, kernel, **options)

    options = {
        "shape": [(2, 5, 4)],
        "kernel": [1, 2, 3],
        "stride": [1, 2, 3],
        "dilation": [1, 2],
        "padding": ["SAME", "VALID", [(2, 1)]],
        "groups": [1],
    }
    in_groups = options | {"padding": [[(2, 1)], [(4, 5)]], "groups": [2, 4]}
    agree(layer_of, plain_transposed, choose(options) + choose(in_groups))


def test_the_layers_are_torch_s():
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(0)
    x, w, b = (draw.normal(size=s).astype("float32") for s in ((2, 7, 6, 4), (3, 3, 2, 6), (6,)))
    forms = {
        "conv": (
            fp.conv(6, 3, stride=2, padding=[(1, 1), (1, 1)], groups=2),
            lambda x, w, b: torch.conv2d(x, w.permute(3, 2, 0, 1), b, 2, 1, 1, 2),
        ),
        # PyTorch's kernel is reversed, and a padding p of its is reach - 1 - p of ours.
        "conv_transpose": (
            fp.conv_transpose(6, 3, stride=2, padding=[(1, 1), (1, 1)], groups=2),
            lambda x, w, b: torch.conv_transpose2d(
                x,
                w.flip(0, 1).reshape(3, 3, 2, 2, 3).permute(3, 2, 4, 0, 1).reshape(4, 3, 3, 3),
                b,
                2,
                1,
                groups=2,
            ),
        ),
    }
    for layer, theirs in forms.values():
        tensors = [torch.tensor(leaf, requires_grad=True) for leaf in (x, w, b)]
        due = theirs(tensors[0].permute(0, 3, 1, 2), *tensors[1:]).permute(0, 2, 3, 1)
        delta = draw.normal(size=due.shape).astype("float32")
        due.backward(torch.tensor(delta))
        y, delta_x, grads = jax.jit(functools.partial(swept, layer))(
            {"w": w, "b": b}, jnp.asarray(x), jnp.asarray(delta)
        )
        found = (y, delta_x, grads["w"], grads["b"])
        for ours, torchs in zip(found, (due, *(t.grad for t in tensors)), strict=True):
            np.testing.assert_allclose(ours, torchs.detach().numpy(), rtol=1e-4, atol=1e-4)


def test_conv_transpose_is_the_adjoint_of_conv():
    """<conv(x), y> = <x, conv_transpose(y)> with the kernel reversed, in and out exchanged."""
    draw = np.random.default_rng(1)
    x, y, w = (draw.normal(size=s) for s in ((2, 7, 3), (2, 4, 5), (3, 3, 5)))
    with jax.enable_x64(True):
        up = fp.conv(5, 3, stride=2, padding=[(1, 1)], bias=False).apply({"w": jnp.asarray(w)}, x)
        down = fp.conv_transpose(3, 3, stride=2, padding=[(1, 1)], bias=False).apply(
            {"w": jnp.asarray(w[::-1].swapaxes(1, 2))}, jnp.asarray(y)
        )
    np.testing.assert_allclose(np.vdot(up, y), np.vdot(x, down), rtol=1e-13)


def test_a_causal_convolution_does_not_see_ahead():
    layer = fp.conv(2, 3, padding="CAUSAL", dilation=2)
    params, out = layer.init(KEY, (9, 2))
    x = jax.random.normal(KEY, (1, 9, 2))
    seen = abs(layer.apply(params, x.at[:, 5].add(1.0)) - layer.apply(params, x)).sum((0, 2))
    assert out == (9, 2)
    np.testing.assert_array_equal(seen > 1e-6, [t in (5, 7, 9) for t in range(9)])


def test_the_bias_is_in_and_out():
    params, _ = fp.conv(2, 1, b_init=jax.nn.initializers.ones).init(KEY, (3, 2))
    bare, _ = fp.conv(2, 1, bias=False).init(KEY, (3, 2))
    assert params["b"].tolist() == [1, 1]
    assert set(bare) == {"w"}
