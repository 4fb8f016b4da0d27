"""Minkowski distances between two point sets, weighted by dimension, rows in chunks."""

from functools import partial

import jax
import jax.numpy as jnp

CHUNK = 3


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def cdist(a, b, s, p):
    return jnp.sum(s * jnp.abs(a[:, None] - b[None]) ** p, axis=-1) ** (1.0 / p)


def cdist_fwd(a, b, s, p):
    r = cdist(a, b, s, p)
    return r, (a, b, s, r)


def cdist_bwd(p, saved, ct):
    a, b, s, r = saved
    h = jnp.where(r > 0, ct / jnp.where(r > 0, r, 1.0) ** (p - 1), 0.0)
    da, db, ds = [], jnp.zeros_like(b), jnp.zeros_like(s)
    for i in range(0, a.shape[0], CHUNK):
        c = slice(i, i + CHUNK)
        diff = a[c, None] - b[None]
        flow = h[c, :, None] * s * jnp.sign(diff) * jnp.abs(diff) ** (p - 1)
        da.append(jnp.sum(flow, axis=1))
        db = db - jnp.sum(flow, axis=0)
        ds = ds + jnp.sum(h[c, :, None] * jnp.abs(diff) ** p, axis=(0, 1)) / p
    return jnp.concatenate(da), db, ds


cdist.defvjp(cdist_fwd, cdist_bwd)


def f(a, b, s, w):
    return jnp.sum(w * cdist(a, b, s, 3.0))


g = jax.grad(f, (0, 1, 2))


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "custom_vjp"
ARGNUMS = (0, 1, 2)


def draw(rng, n=5, m=4, d=3, scale=1.0, shift=0.0):
    a, b = scale * rng.normal(size=(n, d)) + shift, scale * rng.normal(size=(m, d)) + shift
    b[0] = a[n // 3]
    return a, b, rng.uniform(0.5, 1.5, d), rng.normal(size=(n, m))


def coincident(rng):
    a, _, s, w = draw(rng)
    return np.repeat(a[:1], 5, axis=0), np.repeat(a[:1], 4, axis=0), s, w


FAULTS = (
    Fault(
        "always the gradient of the Euclidean distance",
        "h[c, :, None] * s * jnp.sign(diff) * jnp.abs(diff) ** (p - 1)",
        "ct[c, :, None] * s * diff / jnp.maximum(r[c, :, None], 1e-20)",
        "wrong function",
        "0 1",
        "return jnp.sum(s * jnp.abs",
        "flagos-ai/FlagGems#5023",
    ),
    Fault(
        "two equal points divide by zero",
        "jnp.where(r > 0, ct / jnp.where(r > 0, r, 1.0) ** (p - 1), 0.0)",
        "ct / r ** (p - 1)",
        "not finite",
        "0 1 2",
        "return jnp.sum(s * jnp.abs",
        "pytorch/pytorch#37154",
    ),
    Fault(
        "the sign of the difference is lost in an even power",
        "jnp.sign(diff) * jnp.abs(diff) ** (p - 1)",
        "diff ** (p - 1)",
        "sign",
        "0 1",
        "return jnp.sum(s * jnp.abs",
    ),
    Fault(
        "the root's exponent is left out for the weights",
        "axis=(0, 1)) / p",
        "axis=(0, 1))",
        "factor",
        "2",
        "return jnp.sum(s * jnp.abs",
    ),
    Fault(
        "every chunk overwrites the second set's gradient",
        "db = db - jnp.sum(flow, axis=0)",
        "db = -jnp.sum(flow, axis=0)",
        "missing term",
        "1",
        "return jnp.sum(s * jnp.abs",
    ),
)
HARD = (
    Hard("all points coincide", "ties", coincident),
    Hard("far from the origin", "cancellation", lambda rng: draw(rng, shift=300.0)),
    Hard("points very close to each other", "tiny", lambda rng: draw(rng, scale=1e-7)),
    Hard("one point in one dimension", "sizes", lambda rng: draw(rng, n=1, m=1, d=1)),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)
