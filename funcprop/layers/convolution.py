"""Convolutions in one, two and three dimensions, and their transposes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core import contraction
from ..core.checks import LayerError, check_count, check_features, check_float
from ..core.layer import Layer, float_shape
from ..core.site import Site, gradient
from .initializers import zeros
from .windows import (
    Padding,
    Windows,
    check_counts,
    check_padding,
    correlate,
    kernel_gradient,
    pads_of,
    pairs,
    per_axis,
    reversed_kernel,
)

he_normal = jax.nn.initializers.he_normal()


def conv(
    features: int,
    kernel: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    groups: int = 1,
    bias: bool = True,
    w_init: Any = he_normal,
    b_init: Any = zeros,
) -> Layer:
    """Convolution (cross-correlation) of one, two or three axes.

        forward     y[o]  = Σₖ x[s o + d k - p] W[k] + b
        transport   δx[i] = Σₖ δ[(i + p - d k)/s] W[k]ᵀ      over k for which that is a place of δ
        gradient    δW[k] = Σ x[s o + d k - p]ᵀ δ[o]         δb = Σ δ

    x (B, *sizes, C), W (*kernel, C/groups, F), b (F,), y and δ (B, *out, F); Σ without an index
    runs over the batch and all places o.  s is the stride, d the dilation, p the padding in front;
    x is 0 outside.  With groups the channels and the features fall into as many parts, each part
    of the features seeing its part of the channels; ``groups=C`` is depthwise.

    A number for kernel, stride or dilation stands for all axes; there are as many axes as the
    input has between batch and channels.

    Args:
        features: F, the size of the last axis of y.
        kernel: size of the kernel along each axis.
        stride: places from one output to the next.
        dilation: places from one element of the kernel to the next.
        padding: ``"SAME"`` (out = ⌈size/stride⌉), ``"VALID"`` (none), ``"CAUSAL"`` (all of it in
            front, so that y[o] sees x up to s o), or for each axis a pair (in front, behind).
        groups: a divisor of C and of F.
        bias: whether there is a b.
        w_init: ``w_init(key, (*kernel, C/groups, F)) -> W``; by default normal with variance
            2/(C/groups · kernel) (He 2015, arXiv 1502.01852).
        b_init: ``b_init(key, (F,)) -> b``; by default zeros.

    Raises:
        LayerError: for options that make no sense, and while tracing when x, W and b do not fit.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import conv
    >>> params, out_shape = conv(8, 3, stride=2).init(jax.random.key(0), (28, 28, 1))
    >>> params["w"].shape, out_shape
    ((3, 3, 1, 8), (14, 14, 8))
    >>> difference = conv(1, 2, padding="VALID", bias=False)
    >>> x = jnp.array([1.0, 4.0, 9.0]).reshape(1, 3, 1)
    >>> difference.apply({"w": jnp.array([-1.0, 1.0]).reshape(2, 1, 1)}, x).ravel().tolist()
    [3.0, 5.0]
    """
    check_counts("conv", kernel=kernel, stride=stride, dilation=dilation)
    _check_options("conv", features, groups, padding, ("SAME", "VALID", "CAUSAL"))

    def windows(sizes):
        size, step, hole, reach = _sizes("conv", kernel, stride, dilation, len(sizes))
        pads = pads_of("conv", padding, sizes, reach, step)
        return Windows(sizes, size, step, (1,) * len(sizes), hole, pads)

    return _convolution(windows, "conv", features, groups, bias, w_init, b_init)


def conv_transpose(
    features: int,
    kernel: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    groups: int = 1,
    bias: bool = True,
    w_init: Any = he_normal,
    b_init: Any = zeros,
) -> Layer:
    """Transposed convolution: the input is spread by the stride, then convolved with stride 1.

        forward     y[o]  = Σₖ x[(o + d k - p)/s] W[k] + b   over k for which that is a place of x
        transport   δx[i] = Σₖ δ[s i - d k + p] W[k]ᵀ
        gradient    δW[k] = Σ x[i]ᵀ δ[s i - d k + p]         δb = Σ δ

    x (B, *sizes, C), W (*kernel, C/groups, F), b (F,), y and δ (B, *out, F), as
    ``jax.lax.conv_transpose`` has it.  The transpose of :func:`conv` as a linear map has the
    kernel reversed along its axes, W[::-1], and padding (d (k - 1) - p) in front and behind.

    Args:
        features: F, the size of the last axis of y.
        kernel, dilation, groups, bias, w_init, b_init: as of :func:`conv`.
        stride: places from one input to the next in the output.
        padding: ``"SAME"`` (out = stride · size), ``"VALID"`` (out = stride · size +
            max(reach - stride, 0) with reach = d (k - 1) + 1), or for each axis a pair of zeros in
            front of and behind the spread input: out = stride (size - 1) + 1 + pair - reach + 1.

    Raises:
        LayerError: for options that make no sense, and while tracing when x, W and b do not fit.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import conv_transpose
    >>> params, out_shape = conv_transpose(8, 3, stride=2).init(jax.random.key(0), (7, 7, 16))
    >>> params["w"].shape, out_shape
    ((3, 3, 16, 8), (14, 14, 8))
    """
    check_counts("conv_transpose", kernel=kernel, stride=stride, dilation=dilation)
    _check_options("conv_transpose", features, groups, padding, ("SAME", "VALID"))

    def windows(sizes):
        size, step, hole, reach = _sizes("conv_transpose", kernel, stride, dilation, len(sizes))
        if isinstance(padding, str):
            pads: Any = tuple(
                _pads_of_transpose(r, s, padding) for r, s in zip(reach, step, strict=True)
            )
        else:
            pads = pairs("conv_transpose", padding, len(sizes))
        return Windows(sizes, size, (1,) * len(sizes), step, hole, pads)

    return _convolution(windows, "conv_transpose", features, groups, bias, w_init, b_init)


def _pads_of_transpose(reach: int, stride: int, padding: str) -> tuple[int, int]:
    if padding == "VALID":
        return reach - 1, stride - 1 + max(reach - stride, 0)
    both = reach + stride - 2
    front = reach - 1 if stride > reach - 1 else -(-both // 2)
    return front, both - front


def _sizes(name: str, kernel: Any, stride: Any, dilation: Any, axes: int) -> Any:
    """kernel, stride, dilation and the windows' reach for each axis."""
    named = (("kernel", kernel), ("stride", stride), ("dilation", dilation))
    size, step, hole = (per_axis(name, option, value, axes) for option, value in named)
    return size, step, hole, tuple((k - 1) * d + 1 for k, d in zip(size, hole, strict=True))


def _convolution(
    windows: Callable[[tuple[int, ...]], Windows],
    name: str,
    features: int,
    groups: int,
    bias: bool,
    w_init: Any,
    b_init: Any,
) -> Layer:
    """The layer, for the windows that ``windows(sizes)`` gives."""

    def gradients(x, delta):
        grads = {"w": kernel_gradient(windows(x.shape[1:-1]), x, delta, groups)}
        return grads | {"b": contraction.total(delta)} if bias else grads

    def rows(x, delta):
        taps = windows(x.shape[1:-1]).taps(x)
        return tuple(
            leaf.reshape(len(x), -1, leaf.shape[-1])
            for leaf in (jnp.concatenate(list(taps), axis=-1), delta)
        )

    # With groups the gradient is several products, of one part of the channels each.
    site = Site(name, gradients, rows if groups == 1 else None, inputs_first=True)

    def init(key, shape):
        shape = float_shape(name, shape)
        g = _checked(windows, name, shape)
        if shape[-1] < 1 or shape[-1] % groups:
            raise LayerError(
                name, f"groups is {groups}, a divisor of the {shape[-1]} channels is due"
            )
        w_key, b_key = jax.random.split(key)
        params = {"w": w_init(w_key, (*g.kernel, shape[-1] // groups, features))}
        if bias:
            params["b"] = b_init(b_key, (features,))
        return params, (*g.out, features)

    def forward(params, x, key=None):
        check_float(name, x)
        g = _checked(windows, name, x.shape[1:])
        _check_params(name, params, x, g.kernel, groups, features, bias)
        y = correlate(g, x, params["w"], groups)
        return y + params["b"] if bias else y, x

    def backward(weights, x, delta, statistic=gradient):
        g = windows(x.shape[1:-1]).transposed()
        delta_x = correlate(g, delta, reversed_kernel(weights["w"], groups), groups)
        delta_x = contraction.matched(delta_x, contraction.Varying.of(x))
        return delta_x, statistic(site, x, delta)

    return Layer(init, forward, backward, name)


# ------------------------------------------------------------------------------- checks


def _check_options(name: str, features: Any, groups: Any, padding: Any, named: Any) -> None:
    check_features(name, features)
    check_count(name, "groups", groups)
    if features % groups:
        raise LayerError(name, f"groups is {groups}, a divisor of the {features} features is due")
    check_padding(name, padding, named)


def _checked(windows: Any, name: str, shape: Any) -> Windows:
    """The windows for one example's shape."""
    shape = tuple(shape)
    if not 2 <= len(shape) <= 4:
        raise LayerError(
            name, f"one example is {shape}, (*sizes, channels) with one to three sizes is due"
        )
    g = windows(shape[:-1])
    if min(g.out) < 1:
        raise LayerError(
            name,
            f"one example is {shape}, too small for the kernel {g.kernel} with dilation "
            f"{g.dilation} and padding {g.pads}: the output would be {g.out}",
        )
    return g


def _check_params(
    name: str, params: Any, x: jax.Array, kernel: Any, groups: int, features: int, bias: bool
) -> None:
    names = {"w", "b"} if bias else {"w"}
    if not isinstance(params, dict) or set(params) != names:
        came = sorted(params) if isinstance(params, dict) else f"a {type(params).__name__}"
        raise LayerError(name, f"params is {came}, a dict of {sorted(names)} is due")
    w = params["w"]
    channels = w.shape[-2] * groups if w.ndim > 1 else None
    if w.shape != (*kernel, x.shape[-1] // groups, features) or x.shape[-1] % groups:
        raise LayerError(
            name,
            f"x has {x.shape[-1]} channels, its weights take {channels} (w is {w.shape}, "
            f"({', '.join(map(str, kernel))}, channels/{groups}, {features}) is due); check the "
            "shape given to init",
        )
    if bias and params["b"].shape != (features,):
        raise LayerError(name, f"b is {params['b'].shape}, ({features},) is due")
    for label, leaf in sorted(params.items(), reverse=True):
        if leaf.dtype != x.dtype:
            raise LayerError(
                name, f"x is {x.dtype}, {label} is {leaf.dtype}; cast one of them to the other"
            )
