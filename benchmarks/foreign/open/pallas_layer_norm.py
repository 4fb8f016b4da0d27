"""Layer norm as two Pallas kernels; rows from `length` on are padding and come out as zeros."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

BLOCK_ROWS = 4


def _wide(dtype):
    return jnp.promote_types(dtype, jnp.float32)


def _forward_kernel(len_ref, x_ref, g_ref, b_ref, y_ref, mu_ref, rstd_ref, *, eps):
    x = x_ref[...].astype(mu_ref.dtype)
    mu = jnp.mean(x, axis=1, keepdims=True)
    var = jnp.mean((x - mu) ** 2, axis=1, keepdims=True)
    rstd = jax.lax.rsqrt(var + eps)
    row = pl.program_id(0) * BLOCK_ROWS + jax.lax.broadcasted_iota(jnp.int32, mu.shape, 0)
    y = (x - mu) * rstd * g_ref[...] + b_ref[...]
    y_ref[...] = jnp.where(row < len_ref[0], y, 0.0).astype(y_ref.dtype)
    mu_ref[...] = mu
    rstd_ref[...] = rstd


def _backward_kernel(len_ref, x_ref, g_ref, mu_ref, rstd_ref, dy_ref, dx_ref, dg_ref, db_ref):
    step = pl.program_id(0)

    @pl.when(step == 0)
    def _():
        dg_ref[...] = jnp.zeros_like(dg_ref)
        db_ref[...] = jnp.zeros_like(db_ref)

    mu, rstd = mu_ref[...], rstd_ref[...]
    row = step * BLOCK_ROWS + jax.lax.broadcasted_iota(jnp.int32, mu.shape, 0)
    dy = jnp.where(row < len_ref[0], dy_ref[...].astype(mu.dtype), 0.0)
    xhat = (x_ref[...].astype(mu.dtype) - mu) * rstd
    wdy = dy * g_ref[...]
    width = xhat.shape[1]
    c1 = jnp.sum(wdy * xhat, axis=1, keepdims=True) / width
    c2 = jnp.sum(wdy, axis=1, keepdims=True) / width
    dx_ref[...] = ((wdy - (xhat * c1 + c2)) * rstd).astype(dx_ref.dtype)
    dg_ref[...] += jnp.sum(dy * xhat, axis=0, keepdims=True)
    db_ref[...] += jnp.sum(dy, axis=0, keepdims=True)


def _specs(cols):
    rows = pl.BlockSpec((BLOCK_ROWS, cols), lambda i: (i, 0))
    stat = pl.BlockSpec((BLOCK_ROWS, 1), lambda i: (i, 0))
    whole = pl.BlockSpec((1, cols), lambda i: (0, 0))
    return pl.BlockSpec((1,), lambda i: (0,)), rows, stat, whole


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def layer_norm(x, gamma, beta, length, eps):
    return _layer_norm_fwd(x, gamma, beta, length, eps)[0]


def _layer_norm_fwd(x, gamma, beta, length, eps):
    n, cols = x.shape
    one, rows, stat, whole = _specs(cols)
    like_stat = jax.ShapeDtypeStruct((n, 1), _wide(x.dtype))
    y, mu, rstd = pl.pallas_call(
        functools.partial(_forward_kernel, eps=eps),
        out_shape=(jax.ShapeDtypeStruct(x.shape, x.dtype), like_stat, like_stat),
        grid=(n // BLOCK_ROWS,),
        in_specs=[one, rows, whole, whole],
        out_specs=(rows, stat, stat),
        interpret=True,
    )(length, x, gamma[None], beta[None])
    return y, (x, gamma, mu, rstd, length)


def _layer_norm_bwd(eps, res, dy):
    x, gamma, mu, rstd, length = res
    n, cols = x.shape
    one, rows, stat, whole = _specs(cols)
    like_sum = jax.ShapeDtypeStruct((1, cols), mu.dtype)
    dx, dg, db = pl.pallas_call(
        _backward_kernel,
        out_shape=(jax.ShapeDtypeStruct(x.shape, x.dtype), like_sum, like_sum),
        grid=(n // BLOCK_ROWS,),
        in_specs=[one, rows, whole, stat, stat, rows],
        out_specs=(rows, whole, whole),
        interpret=True,
    )(length, x, gamma[None], mu, rstd, dy)
    return dx, dg[0].astype(gamma.dtype), db[0].astype(gamma.dtype), None


layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


def f(x, gamma, beta, length, w):
    return jnp.sum(w * layer_norm(x, gamma, beta, length, 1e-3))


def g(x, gamma, beta, length, w):
    return jax.grad(f, argnums=(0, 1, 2))(x, gamma, beta, length, w)


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "pallas"
ARGNUMS = (0, 1, 2)


def draw(rng, n=12, d=8, length=10, scale=1.0, shift=0.1):
    x = scale * rng.normal(size=(n, d)) + shift
    x[2] = 0.5
    gamma, beta = rng.uniform(0.5, 1.5, d), rng.normal(size=d)
    return x, gamma, beta, np.array([length], np.int32), rng.normal(size=(n, d))


FAULTS = (
    Fault(
        "padded rows are let into the backward pass",
        "dy = jnp.where(row < len_ref[0], dy_ref[...].astype(mu.dtype), 0.0)",
        "dy = dy_ref[...].astype(mu.dtype)",
        "mask ignored",
        "0 1 2",
        "y_ref[...] = jnp.where(",
    ),
    Fault(
        "the sums are divided by the number of rows",
        "width = xhat.shape[1]",
        "width = xhat.shape[0]",
        "transpose|factor",
        "0",
        "var = jnp.mean(",
        "flagos-ai/FlagGems#5392",
    ),
    Fault(
        "the scale's gradient is added up in bfloat16",
        "dg_ref[...] += jnp.sum(dy * xhat, axis=0, keepdims=True)",
        "dg_ref[...] += jnp.sum(dy * xhat, axis=0, keepdims=True).astype(jnp.bfloat16)",
        "low precision",
        "1",
        "y = (x - mu) * rstd",
        "karpathy/llm.c#476",
    ),
    Fault(
        "one over the deviation is saved without epsilon",
        "rstd_ref[...] = rstd\n",
        "rstd_ref[...] = jax.lax.rsqrt(var)\n",
        "not finite",
        "0 1",
        "rstd = jax.lax.rsqrt(",
    ),
    Fault(
        "the mean of the cotangent is added, not taken off",
        "(xhat * c1 + c2)",
        "(xhat * c1 - c2)",
        "sign",
        "0",
        "mu = jnp.mean(",
    ),
)
HARD = (
    Hard("rows around a thousand", "cancellation", lambda rng: draw(rng, shift=1e3)),
    Hard("rows that hardly vary", "ill-conditioned", lambda rng: draw(rng, scale=1e-5)),
    Hard("one tile, one column", "sizes", lambda rng: draw(rng, n=4, d=1, length=4)),
    Hard("very small values", "tiny", lambda rng: draw(rng, scale=1e-20, shift=0.0), "float64"),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)
