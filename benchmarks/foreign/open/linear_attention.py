"""Causal linear attention: phi(q) . cumsum(phi(k) v) / (phi(q) . cumsum(phi(k)))."""

import jax
import jax.numpy as jnp

TINY = 1e-4


def phi(x):
    return jax.nn.elu(x) + 1


def rev_cumsum(x):
    return jnp.cumsum(x[:, ::-1], axis=1)[:, ::-1]


def attention(q, k, v):
    fq, fk = phi(q), phi(k)
    kv = jnp.cumsum(jnp.einsum("bthd,bthe->bthde", fk, v), axis=1)
    z = jnp.cumsum(fk, axis=1)
    num = jnp.einsum("bthd,bthde->bthe", fq, kv)
    den = jnp.einsum("bthd,bthd->bth", fq, z) + TINY
    out = num / den[..., None]
    return out, (fq, fk, kv, z, den)


def f(q, k, v, y):
    out, _ = attention(q, k, v)
    return jnp.mean(jnp.square(out - y))


def g(q, k, v, y):
    out, (fq, fk, kv, z, den) = attention(q, k, v)
    dout = 2 * (out - y) / out.size
    dnum = dout / den[..., None]
    dden = -jnp.einsum("bthe,bthe->bth", dnum, out)

    # queries
    dfq = jnp.einsum("bthe,bthde->bthd", dnum, kv) + dden[..., None] * z

    # state and normaliser run backwards in time
    dkv = rev_cumsum(jnp.einsum("bthd,bthe->bthde", fq, dnum))
    dz = dden[..., None] * fq
    dfk = jnp.einsum("bthde,bthe->bthd", dkv, v)
    dfk += rev_cumsum(dz)
    dv = jnp.einsum("bthde,bthd->bthe", dkv, fk)

    dq = dfq * jnp.where(q > 0, 1.0, jnp.exp(q))
    dk = dfk * jnp.where(k > 0, 1.0, jnp.exp(k))
    return dq, dk, dv


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "einsum"
ARGNUMS = (0, 1, 2)


def draw(rng, b=2, t=6, h=3, d=4, e=5, shift=0.0, level=0.0):
    q, k = rng.normal(size=(2, b, t, h, d))
    v, y = rng.normal(size=(2, b, t, h, e))
    return q, k + shift, v + level, y + level


def on_the_kink(rng):
    q, k, v, y = draw(rng)
    return q, np.zeros_like(k), v, y


FAULTS = (
    Fault(
        "keys get nothing through the normaliser",
        "dfk += rev_cumsum(dz)",
        "dfk += 0 * rev_cumsum(dz)",
        "missing term",
        "1",
        "z = jnp.cumsum(fk",
        "fla-org/flash-linear-attention#875",
    ),
    Fault(
        "the state's gradient is summed forwards in time",
        'dkv = rev_cumsum(jnp.einsum("bthd,bthe->bthde", fq, dnum))',
        'dkv = jnp.cumsum(jnp.einsum("bthd,bthe->bthde", fq, dnum), axis=1)',
        "transpose",
        "1 2",
        "kv = jnp.cumsum(",
    ),
    Fault(
        "a step does not count for its own normaliser",
        "dfk += rev_cumsum(dz)",
        "dfk += rev_cumsum(dz) - dz",
        "off by one",
        "1",
        "z = jnp.cumsum(fk",
    ),
    Fault(
        "quotient rule without its minus",
        "dden = -jnp.einsum",
        "dden = jnp.einsum",
        "sign",
        "0 1",
        "out = num / den",
    ),
    Fault(
        "the feature put where the key belongs",
        "jnp.where(k > 0, 1.0, jnp.exp(k))",
        "jnp.where(k > 0, 1.0, jnp.exp(fk))",
        "wrong place",
        "1",
        "return jax.nn.elu(x) + 1",
    ),
)  # fmt: skip
HARD = (
    Hard("keys on the kink", "ties", on_the_kink),
    Hard("features close to nothing", "ill-conditioned", lambda rng: draw(rng, shift=-7.0)),
    Hard("values far from zero", "cancellation", lambda rng: draw(rng, level=200.0)),
    Hard("long sequence", "large", lambda rng: draw(rng, 1, 250, 2, 4, 4)),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)  # fmt: skip
