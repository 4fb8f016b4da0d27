"""SwiGLU with a gate score per row (experts), one row per program."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl


def swiglu_fwd_kernel(a_ref, b_ref, s_ref, c_ref):
    a = a_ref[...]
    c_ref[...] = a * jax.nn.sigmoid(a) * b_ref[...] * s_ref[...]


def swiglu_bwd_kernel(a_ref, b_ref, s_ref, dc_ref, da_ref, db_ref, ds_ref):
    a, b, dc = a_ref[...], b_ref[...], dc_ref[...]
    sig = jax.nn.sigmoid(a)
    silu = a * sig
    ds_ref[...] = jnp.sum(dc * silu * b, axis=1, keepdims=True)
    dh = dc * s_ref[...]
    da_ref[...] = dh * b * (sig + silu * (1.0 - sig))
    db_ref[...] = dh * silu


@jax.custom_vjp
def swiglu(a, b, score):
    T, D = a.shape
    return pl.pallas_call(
        swiglu_fwd_kernel,
        out_shape=jax.ShapeDtypeStruct((T, D), a.dtype),
        grid=(T,),
        in_specs=[
            pl.BlockSpec((1, D), lambda row: (row, 0)),
            pl.BlockSpec((1, D), lambda row: (row, 0)),
            pl.BlockSpec((1, 1), lambda row: (row, 0)),
        ],
        out_specs=pl.BlockSpec((1, D), lambda row: (row, 0)),
        interpret=True,
    )(a, b, score[:, None])


def swiglu_fwd(a, b, score):
    return swiglu(a, b, score), (a, b, score)


def swiglu_bwd(res, dc):
    a, b, score = res
    T, D = a.shape
    row_in = pl.BlockSpec((1, D), lambda row: (row, 0))
    row_out = pl.BlockSpec((1, D), lambda row: (row, 0))
    cell = pl.BlockSpec((1, 1), lambda row: (row, 0))
    like = jax.ShapeDtypeStruct((T, D), a.dtype)
    da, db, ds = pl.pallas_call(
        swiglu_bwd_kernel,
        out_shape=(like, like, jax.ShapeDtypeStruct((T, 1), a.dtype)),
        grid=(T,),
        in_specs=[row_in, row_in, cell, row_in],
        out_specs=(row_out, row_out, cell),
        interpret=True,
    )(a, b, score[:, None], dc)
    return da, db, ds[:, 0]


swiglu.defvjp(swiglu_fwd, swiglu_bwd)


def f(a, b, score, target):
    return jnp.mean(jnp.square(swiglu(a, b, score) - target))


def g(a, b, score, target):
    return jax.grad(f, argnums=(0, 1, 2))(a, b, score, target)


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "pallas"
ARGNUMS = (0, 1, 2)


def draw(rng, t=6, d=9, scale=1.5, peak=100.0):
    a, b = scale * rng.normal(size=(t, d)), rng.normal(size=(t, d))
    a[0, -1], b[0, -1] = peak, 0.05
    return a, b, rng.uniform(0.2, 0.8, t), rng.normal(size=(t, d))


FAULTS = (
    Fault(
        "every row's gradient is written to the first row",
        "row_out = pl.BlockSpec((1, D), lambda row: (row, 0))",
        "row_out = pl.BlockSpec((1, D), lambda row: (0, 0))",
        "off by one",
        "0 1",
        "c_ref[...] = a * jax.nn.sigmoid",
        "ByteDance-Seed/Triton-distributed#185",
    ),
    Fault(
        "a bracket is missing in the derivative of silu",
        "(sig + silu * (1.0 - sig))",
        "(1.0 + jnp.exp(-a) + a * jnp.exp(-a) * sig * sig)",
        "wrong function",
        "0",
        "c_ref[...] = a * jax.nn.sigmoid",
        "chelsea0x3b/dfdx#915",
    ),
    Fault(
        "the row's score is left out of one of the two gradients",
        "db_ref[...] = dh * silu",
        "db_ref[...] = dc * silu",
        "factor",
        "1",
        "c_ref[...] = a * jax.nn.sigmoid",
        "state-spaces/mamba#1023",
    ),
    Fault(
        "a sigmoid that overflows",
        "sig = jax.nn.sigmoid(a)\n",
        "sig = jnp.exp(a) / (1.0 + jnp.exp(a))\n",
        "not finite",
        "0 1 2",
        "c_ref[...] = a * jax.nn.sigmoid",
        "trymirai/lalamo#328",
    ),
    Fault(
        "the two halves are returned in the wrong order",
        "return da, db, ds[:, 0]",
        "return db, da, ds[:, 0]",
        "transpose",
        "0 1",
        "c_ref[...] = a * jax.nn.sigmoid",
    ),
)
HARD = (
    Hard("gates far from zero", "saturation", lambda rng: draw(rng, scale=60.0)),
    Hard("a gate of ten thousand", "extreme", lambda rng: draw(rng, peak=1e4)),
    Hard("one row of one", "sizes", lambda rng: draw(rng, t=1, d=1, peak=0.3)),
    Hard("closed gates", "ties", lambda rng: (np.zeros((6, 9)), *draw(rng)[1:]), "float64"),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)
