"""GroupNorm on NHWC feature maps.  Hands out the group means too (they are regularised)."""

from functools import partial

import jax
import jax.numpy as jnp

GROUPS = 3
EPS = 1e-2


def _split(x, groups):
    """(N, H, W, C) -> (N, H*W, G, C//G)"""
    n, h, w, c = x.shape
    return x.reshape(n, h * w, groups, c // groups)


def _per_channel(stat, channels):
    """(N, 1, G, 1) -> (N, 1, 1, C)"""
    stat = stat[:, 0, :, 0]
    return jnp.repeat(stat, channels // stat.shape[1], axis=1)[:, None, None, :]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(x, scale, bias, groups, eps):
    return _group_norm_fwd(x, scale, bias, groups, eps)[0]


def _group_norm_fwd(x, scale, bias, groups, eps):
    xs = _split(x, groups)
    mean = jnp.mean(xs, axis=(1, 3), keepdims=True)
    var = jnp.mean(jnp.square(xs - mean), axis=(1, 3), keepdims=True)
    inv_std = 1.0 / jnp.sqrt(var + eps)
    x_norm = ((xs - mean) * inv_std).reshape(x.shape)
    y = x_norm * scale + bias
    return (y, mean[:, 0, :, 0]), (x, scale, mean, inv_std)


def _group_norm_bwd(groups, eps, residuals, cotangents):
    x, scale, mean, inv_std = residuals
    dy, dmean = cotangents
    channels = x.shape[-1]

    # affine parameters: per channel
    x_norm = (x - _per_channel(mean, channels)) * _per_channel(inv_std, channels)
    dscale = jnp.sum(dy * x_norm, axis=(0, 1, 2))
    dbias = jnp.sum(dy, axis=(0, 1, 2))

    # input: per group
    centred = _split(x, groups) - mean
    normed = centred * inv_std
    dnormed = _split(dy * scale, groups)
    count = normed.shape[1] * normed.shape[3]
    sum_d = jnp.sum(dnormed, axis=(1, 3), keepdims=True)
    sum_dx = jnp.sum(dnormed * normed, axis=(1, 3), keepdims=True)
    dx = inv_std * (dnormed - (sum_d + normed * sum_dx) / count)
    dx = dx + dmean[:, None, :, None] / count
    return dx.reshape(x.shape), dscale, dbias


group_norm.defvjp(_group_norm_fwd, _group_norm_bwd)


def f(x, scale, bias, w, v):
    y, mean = group_norm(x, scale, bias, GROUPS, EPS)
    return jnp.sum(w * y) + jnp.sum(v * mean)


def g(x, scale, bias, w, v):
    return jax.grad(f, argnums=(0, 1, 2))(x, scale, bias, w, v)


# ---- keys
from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "custom_vjp"
ARGNUMS = (0, 1, 2)


def draw(rng, n=2, h=3, w=2, c=6, spread=0.5, shift=0.2):
    x = spread * rng.normal(size=(n, h, w, c)) + shift
    scale, bias = rng.uniform(0.5, 1.5, c), rng.normal(size=c)
    return x, scale, bias, rng.normal(size=(n, h, w, c)), 3.0 * rng.normal(size=(n, 3))


FAULTS = (
    Fault(
        "the group of a channel by remainder, not by quotient",
        "jnp.repeat(stat, channels // stat.shape[1], axis=1)",
        "jnp.tile(stat, (1, channels // stat.shape[1]))",
        "transpose|off by one",
        "1",
        "x_norm = ((xs",
        "tenstorrent/tt-metal#56202",
    ),
    Fault(
        "the cotangent of the means is dropped",
        "dx = dx + dmean[:, None, :, None] / count",
        "dx = dx.astype(dy.dtype)",
        "missing term",
        "0",
        "mean = jnp.mean(xs",
    ),
    Fault(
        "the sums are divided by one less than their number",
        "(sum_d + normed * sum_dx) / count",
        "(sum_d + normed * sum_dx) / (count - 1)",
        "off by one|factor",
        "0",
        "var = jnp.mean(",
    ),
    Fault(
        "epsilon is added to the deviation, not to the variance",
        "(x, scale, mean, inv_std)\n\n\ndef _group_norm_bwd",
        "(x, scale, mean, 1.0 / (jnp.sqrt(var) + eps))\n\n\ndef _group_norm_bwd",
        "wrong function",
        "0 1",
        "inv_std = 1.0 / jnp.sqrt",
    ),
    Fault(
        "the last term with the centred, not the normalised values",
        "(sum_d + normed * sum_dx)",
        "(sum_d + centred * sum_dx)",
        "wrong place|factor",
        "0",
        "var = jnp.mean(",
    ),
)
HARD = (
    Hard("a large mean", "cancellation", lambda rng: draw(rng, shift=500.0)),
    Hard("nearly constant groups", "ill-conditioned", lambda rng: draw(rng, spread=1e-5)),
    Hard("one value in a group", "sizes", lambda rng: draw(rng, n=1, h=1, w=1, c=3)),
    Hard("values of a million", "large", lambda rng: draw(rng, spread=1e6), "float64"),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)
