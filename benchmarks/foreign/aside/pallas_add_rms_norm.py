"""Fused residual add + RMSNorm.

    h = x + r
    y = h / rms(h) * w

Both y and h are returned: h is the residual stream of the next block.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

BM = 2
EPS = 1e-5


def _acc(ref):
    return jnp.promote_types(ref.dtype, jnp.float32)


def add_rms_fwd_kernel(x_ref, r_ref, w_ref, y_ref, h_ref, rrms_ref):
    h = x_ref[...] + r_ref[...]
    hf = h.astype(_acc(h_ref))
    ms = jnp.mean(hf * hf, axis=-1, keepdims=True)
    rrms = jax.lax.rsqrt(ms + EPS)
    y_ref[...] = (hf * rrms * w_ref[...]).astype(y_ref.dtype)
    h_ref[...] = h
    rrms_ref[...] = rrms


def add_rms_bwd_kernel(h_ref, w_ref, rrms_ref, dy_ref, dh_in_ref, dh_ref, dw_ref):
    acc = _acc(h_ref)
    hf, dy = h_ref[...].astype(acc), dy_ref[...].astype(acc)
    rrms = rrms_ref[...]
    wdy = dy * w_ref[...]
    proj = jnp.mean(wdy * hf, axis=-1, keepdims=True) * rrms * rrms
    dh = rrms * (wdy - hf * proj) + dh_in_ref[...]
    dh_ref[...] = dh.astype(dh_ref.dtype)
    # one row of partial sums per program, added up outside
    dw_ref[...] = jnp.sum(dy * hf * rrms, axis=0, keepdims=True)


@jax.custom_vjp
def add_rms_norm(x, r, w):
    return add_rms_norm_fwd(x, r, w)[0]


def add_rms_norm_fwd(x, r, w):
    m, n = x.shape
    tile = pl.BlockSpec((BM, n), lambda i: (i, 0))
    col = pl.BlockSpec((BM, 1), lambda i: (i, 0))
    vec = pl.BlockSpec((1, n), lambda i: (0, 0))
    same = jax.ShapeDtypeStruct((m, n), x.dtype)
    y, h, rrms = pl.pallas_call(
        add_rms_fwd_kernel,
        grid=(m // BM,),
        in_specs=[tile, tile, vec],
        out_specs=[tile, tile, col],
        out_shape=[same, same, jax.ShapeDtypeStruct((m, 1), _acc(x))],
        interpret=True,
    )(x, r, w.reshape(1, n))
    return (y, h), (h, w, rrms)


def add_rms_norm_bwd(res, cts):
    h, w, rrms = res
    dy, dh_out = cts
    m, n = h.shape
    tile = pl.BlockSpec((BM, n), lambda i: (i, 0))
    col = pl.BlockSpec((BM, 1), lambda i: (i, 0))
    vec = pl.BlockSpec((1, n), lambda i: (0, 0))
    part = pl.BlockSpec((1, n), lambda i: (i, 0))
    dh, dw = pl.pallas_call(
        add_rms_bwd_kernel,
        grid=(m // BM,),
        in_specs=[tile, vec, col, tile, tile],
        out_specs=[tile, part],
        out_shape=[
            jax.ShapeDtypeStruct((m, n), h.dtype),
            jax.ShapeDtypeStruct((m // BM, n), rrms.dtype),
        ],
        interpret=True,
    )(h, w.reshape(1, n), rrms, dy, dh_out)
    dw = jnp.sum(dw, axis=0).astype(w.dtype)
    return dh, dh, dw


add_rms_norm.defvjp(add_rms_norm_fwd, add_rms_norm_bwd)


def f(x, r, w, a, b):
    y, h = add_rms_norm(x, r, w)
    return jnp.sum(a * y) + jnp.sum(b * h)


def g(x, r, w, a, b):
    return jax.grad(f, (0, 1, 2))(x, r, w, a, b)


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "pallas"
ARGNUMS = (0, 1, 2)


def draw(rng, m=6, n=5, scale=1.0):
    x, r = scale * rng.normal(size=(m, n)), scale * rng.normal(size=(m, n))
    return x, r, rng.uniform(0.5, 1.5, n), rng.normal(size=(m, n)), rng.normal(size=(m, n))


def opposite(rng):
    x, r, w, a, b = draw(rng)
    return x, -x + 1e-3 * r, w, a, b


FAULTS = (
    Fault(
        "the weight is forgotten on the way to the input",
        "wdy = dy * w_ref[...]",
        "wdy = dy * jnp.ones_like(w_ref[...])",
        "factor",
        "0 1",
        "y_ref[...] = (hf * rrms",
        "karpathy/llm.c#763",
    ),
    Fault(
        "the weight's gradient is never computed",
        "dw_ref[...] = jnp.sum(dy * hf * rrms, axis=0, keepdims=True)",
        "dw_ref[...] = jnp.zeros_like(dw_ref)",
        "stopped",
        "2",
        "y_ref[...] = (hf * rrms",
        "paiml/entrenar#257",
    ),
    Fault(
        "the mean square is saved where its inverse root is expected",
        "rrms_ref[...] = rrms\n",
        "rrms_ref[...] = ms\n",
        "wrong place",
        "0 1 2",
        "rrms = jax.lax.rsqrt(",
        "flagos-ai/FlagGems#5771",
    ),
    Fault(
        "the cotangent of the residual stream is lost",
        "(wdy - hf * proj) + dh_in_ref[...]",
        "(wdy - hf * proj)",
        "missing term",
        "0 1",
        "h_ref[...] = h\n",
    ),
    Fault(
        "the residual's own cotangent is added outside the kernel once more",
        "return dh, dh, dw",
        "return dh, dh + dh_out, dw",
        "counted twice",
        "1",
        "h_ref[...] = h\n",
    ),
)
HARD = (
    Hard("the two inputs nearly cancel", "cancellation", opposite),
    Hard("all zeros", "ties", lambda rng: (np.zeros((6, 5)), np.zeros((6, 5)), *draw(rng)[2:])),
    Hard("activations of a million", "large", lambda rng: draw(rng, scale=1e6)),
    Hard("one column", "sizes", lambda rng: draw(rng, m=2, n=1), "float64"),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)
