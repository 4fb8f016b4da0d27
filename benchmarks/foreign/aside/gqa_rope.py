"""Causal grouped-query attention with learned rotary phases.

Shapes: q (T, Hq, D); k, v (T, Hkv, D); phase (T, D); cot (T, Hq, D).  Hq = Hkv * G.
"""

import jax.numpy as jnp


def rotate_half(x):
    lo, hi = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([-hi, lo], axis=-1)


def rotate_half_t(x):  # its transpose
    lo, hi = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([hi, -lo], axis=-1)


def rope(x, phase):
    c, s = jnp.cos(phase)[:, None, :], jnp.sin(phase)[:, None, :]
    return x * c + rotate_half(x) * s


def fwd(q, k, v, phase):
    T, Hq, D = q.shape
    Hkv = k.shape[1]
    qr = rope(q, phase).reshape(T, Hkv, Hq // Hkv, D)
    kr = rope(k, phase)
    s = jnp.einsum("tkgd,skd->kgts", qr, kr) * D**-0.5
    s = jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, -jnp.inf)
    m = s.max(axis=-1, keepdims=True)
    lse = m + jnp.log(jnp.exp(s - m).sum(axis=-1, keepdims=True))
    o = jnp.einsum("kgts,skd->tkgd", jnp.exp(s - lse), v)
    return o, (qr, kr, lse)


def f(q, k, v, phase, cot):
    o, _ = fwd(q, k, v, phase)
    return jnp.sum(o.reshape(q.shape) * cot)


def g(q, k, v, phase, cot):
    T, _, D = q.shape
    o, (qr, kr, lse) = fwd(q, k, v, phase)
    do = cot.reshape(o.shape)
    delta = jnp.einsum("tkgd,tkgd->kgt", do, o)[..., None]

    # recompute the probabilities from the saved logsumexp
    s = jnp.einsum("tkgd,skd->kgts", qr, kr)
    causal = jnp.tril(jnp.ones((T, T), bool))
    p = jnp.where(causal, jnp.exp(s * D**-0.5 - lse), 0)

    dv = jnp.einsum("kgts,tkgd->skd", p, do)
    dp = jnp.einsum("tkgd,skd->kgts", do, v)
    ds = p * (dp - delta) * D**-0.5
    dqr = jnp.einsum("kgts,skd->tkgd", ds, kr).reshape(q.shape)
    dkr = jnp.einsum("kgts,tkgd->skgd", ds, qr)

    c, s = jnp.cos(phase), jnp.sin(phase)
    dq = dqr * c[:, None] + rotate_half_t(dqr * s[:, None])
    dk = dkr * c[:, None, None] + rotate_half_t(dkr * s[:, None, None])
    dk = dk.sum(axis=2)

    def turn(d, x):
        return (
            jnp.einsum("thd,thd->td", d, rotate_half(x)) * c - jnp.einsum("thd,thd->td", d, x) * s
        )

    dphase = turn(dqr, q) + turn(dkr.sum(axis=2), k)
    return dq, dk, dv, dphase


# ---- keys
from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "einsum"
ARGNUMS = (0, 1, 2, 3)


def draw(rng, t=7, hkv=2, group=3, d=4, scale=1.0, level=0.0):
    q, cot = rng.normal(size=(2, t, hkv * group, d))
    k, v = rng.normal(size=(2, t, hkv, d))
    return q * scale, k, v + level, rng.uniform(-3, 3, (t, d)), cot


FAULTS = (
    Fault(
        "no causal mask when the probabilities are recomputed",
        "jnp.where(causal, jnp.exp(s * D**-0.5 - lse), 0)",
        "jnp.exp(s * D**-0.5 - lse)",
        "mask ignored",
        "0 1 2 3",
        "s = jnp.where(jnp.tril",
        "ssiu/flash-attention-turing#5",
    ),
    Fault(
        "the sine multiplies after the half is turned back, not before",
        "rotate_half_t(dqr * s[:, None])",
        "rotate_half_t(dqr) * s[:, None]",
        "transpose",
        "0",
        "return x * c + rotate_half(x) * s",
        "PaddlePaddle/Paddle#74716",
    ),
    Fault(
        "keys' gradient laid out by query heads",
        "dk = dk.sum(axis=2)",
        "dk = dk.reshape(q.shape)",
        "structure",
        "1",
        's = jnp.einsum("tkgd,skd->kgts", qr, kr) * D',
        "fla-org/flash-linear-attention#384",
    ),
    Fault(
        "scores cast down and up again",
        's = jnp.einsum("tkgd,skd->kgts", qr, kr)\n',
        's = jnp.einsum("tkgd,skd->kgts", qr, kr).astype(jnp.bfloat16).astype(q.dtype)\n',
        "low precision",
        "0 1 2 3",
        's = jnp.einsum("tkgd,skd->kgts", qr, kr) * D',
        "jax-ml/jax#19301",
    ),
    Fault(
        "phases get the queries' share only",
        "dphase = turn(dqr, q) + turn(dkr.sum(axis=2), k)",
        "dphase = turn(dqr, q)",
        "missing term",
        "3",
        "kr = rope(k, phase)",
    ),
)  # fmt: skip
HARD = (
    Hard("values that are nearly constant", "cancellation", lambda rng: draw(rng, level=300.0)),
    Hard("sharp attention", "saturation", lambda rng: draw(rng, scale=20.0)),
    Hard("long sequence", "large", lambda rng: draw(rng, 150, 2, 2, 8)),
    Hard("one position, one head", "sizes", lambda rng: draw(rng, 1, 1, 1, 2), "float64"),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)  # fmt: skip
