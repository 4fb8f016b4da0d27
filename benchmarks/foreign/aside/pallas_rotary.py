"""Rotary embedding (rotate-half, partial) with learned tables, as in a model with trained angles.

x is (heads, tokens, dim); cos and sin are (positions, rot) with rot <= dim and independent halves.
The tokens stand at positions START, START + 1, ... of the tables.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

BT = 2
START = 4


def rot_half(v):
    half = v.shape[-1] // 2
    return jnp.concatenate([-v[..., half:], v[..., :half]], axis=-1)


def rotary_kernel(x_ref, cos_ref, sin_ref, o_ref):
    rot = cos_ref.shape[1]
    x = x_ref[0]
    head = x[:, :rot]
    o_ref[0, :, :rot] = head * cos_ref[...] + rot_half(head) * sin_ref[...]
    o_ref[0, :, rot:] = x[:, rot:]


def rotary_grad_kernel(x_ref, cos_ref, sin_ref, do_ref, dx_ref, dcos_ref, dsin_ref):
    rot = cos_ref.shape[1]

    @pl.when(pl.program_id(1) == 0)
    def _zero():
        dcos_ref[...] = jnp.zeros_like(dcos_ref)
        dsin_ref[...] = jnp.zeros_like(dsin_ref)

    d = do_ref[0, :, :rot]
    head = x_ref[0, :, :rot]
    # the transpose of rot_half is -rot_half
    dx_ref[0, :, :rot] = d * cos_ref[...] - rot_half(d * sin_ref[...])
    dx_ref[0, :, rot:] = do_ref[0, :, rot:]
    dcos_ref[...] += (d * head).astype(dcos_ref.dtype)
    dsin_ref[...] += (d * rot_half(head)).astype(dsin_ref.dtype)


@jax.custom_vjp
def rotary(x, cos, sin):
    heads, tokens, dim = x.shape
    table = pl.BlockSpec((BT, cos.shape[1]), lambda h, t: (START // BT + t, 0))
    token = pl.BlockSpec((1, BT, dim), lambda h, t: (h, t, 0))
    return pl.pallas_call(
        rotary_kernel,
        grid=(heads, tokens // BT),
        in_specs=[token, table, table],
        out_specs=token,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        interpret=True,
    )(x, cos, sin)


def rotary_fwd(x, cos, sin):
    return rotary(x, cos, sin), (x, cos, sin)


def rotary_bwd(saved, do):
    x, cos, sin = saved
    heads, tokens, dim = x.shape
    rot = cos.shape[1]
    # heads innermost: the tables' gradients are summed over them
    table = pl.BlockSpec((BT, rot), lambda t, h: (START // BT + t, 0))
    token = pl.BlockSpec((1, BT, dim), lambda t, h: (h, t, 0))
    total = pl.BlockSpec((BT, rot), lambda t, h: (t, 0))
    sums = jax.ShapeDtypeStruct((tokens, rot), jnp.promote_types(x.dtype, jnp.float32))
    dx, dcos, dsin = pl.pallas_call(
        rotary_grad_kernel,
        grid=(tokens // BT, heads),
        in_specs=[token, table, table, token],
        out_specs=[token, total, total],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype), sums, sums],
        interpret=True,
    )(x, cos, sin, do)
    here = slice(START, START + tokens)
    dcos = jnp.zeros_like(cos).at[here].set(dcos.astype(cos.dtype))
    dsin = jnp.zeros_like(sin).at[here].set(dsin.astype(sin.dtype))
    return dx, dcos, dsin


rotary.defvjp(rotary_fwd, rotary_bwd)


def f(x, cos, sin, keys):
    """Scores of the rotated queries against fixed keys, squashed."""
    return jnp.sum(jnp.tanh(jnp.einsum("htd,hsd->hts", rotary(x, cos, sin), keys)))


def g(x, cos, sin, keys):
    return jax.grad(f, (0, 1, 2))(x, cos, sin, keys)


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "pallas"
ARGNUMS = (0, 1, 2)


def draw(rng, heads=2, tokens=4, dim=7, rot=4, positions=10, scale=0.5):
    x = scale * rng.normal(size=(heads, tokens, dim))
    angle = np.arange(positions)[:, None] / 3.0 ** np.arange(rot)
    cos = np.cos(angle) + 0.1 * rng.normal(size=angle.shape)
    sin = np.sin(angle) + 0.1 * rng.normal(size=angle.shape)
    return x, cos, sin, 0.5 * rng.normal(size=(heads, 3, dim))


FAULTS = (
    Fault(
        "the cotangent is rotated first and multiplied by the sine after",
        "rot_half(d * sin_ref[...])",
        "rot_half(d) * sin_ref[...]",
        "transpose|wrong place",
        "0",
        "o_ref[0, :, :rot] = head",
        "PaddlePaddle/Paddle#74716",
    ),
    Fault(
        "the cotangent is rotated on, not back",
        "cos_ref[...] - rot_half(d",
        "cos_ref[...] + rot_half(d",
        "sign",
        "0",
        "o_ref[0, :, :rot] = head",
    ),
    Fault(
        "channels that are not rotated get no gradient",
        "dx_ref[0, :, rot:] = do_ref[0, :, rot:]",
        "dx_ref[0, :, rot:] = jnp.zeros_like(do_ref[0, :, rot:])",
        "stopped",
        "0",
        "o_ref[0, :, rot:] = x[:, rot:]",
    ),
    Fault(
        "the tables are read from their beginning, not from the first position",
        "lambda t, h: (START // BT + t, 0)",
        "lambda t, h: (t, 0)",
        "off by one",
        "0",
        "table = pl.BlockSpec((BT, cos.shape[1])",
    ),
    Fault(
        "every head overwrites the sines' gradient",
        "dsin_ref[...] += (d",
        "dsin_ref[...] = (d",
        "missing term",
        "2",
        "o_ref[0, :, :rot] = head",
    ),
)
HARD = (
    Hard("scores far into the tanh", "saturation", lambda rng: draw(rng, scale=6.0)),
    Hard("one pair of channels, one head", "sizes", lambda rng: draw(rng, 1, 2, 3, 2)),
    Hard("all queries zero", "ties", lambda rng: (np.zeros((2, 4, 7)), *draw(rng)[1:])),
    Hard("queries of a billionth", "tiny", lambda rng: draw(rng, scale=1e-9), "float64"),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)
