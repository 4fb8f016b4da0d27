"""Convolution, leaky ReLU and overlapping max pooling, naive loops."""

import jax.numpy as jnp

SLOPE = 0.1
POOL = 3


def conv_naive(x, w, b):
    H, W = x.shape
    xp = jnp.pad(x, 1)
    z = jnp.zeros_like(x)
    for i in range(H):
        for j in range(W):
            z = z.at[i, j].set(jnp.sum(xp[i : i + 3, j : j + 3] * w) + b)
    return z


def f(x, w, b, target):
    z = conv_naive(x, w, b)
    a = jnp.where(z > 0, z, SLOPE * z)
    loss = 0.0
    for i in range(target.shape[0]):
        for j in range(target.shape[1]):
            window = a[i : i + POOL, j : j + POOL].reshape(-1)
            pooled = window[jnp.argmax(window)]
            loss += 0.5 * (pooled - target[i, j]) ** 2
    return loss


def g(x, w, b, target):
    H, W = x.shape
    z = conv_naive(x, w, b)
    a = jnp.where(z > 0, z, SLOPE * z)

    # max pool: the first largest entry of each window
    da = jnp.zeros_like(a)
    for i in range(target.shape[0]):
        for j in range(target.shape[1]):
            win = a[i : i + POOL, j : j + POOL].reshape(-1)
            best = jnp.argmax(win)
            err = win[best] - target[i, j]
            da = da.at[i + best // POOL, j + best % POOL].add(err)

    # leaky relu
    dz = jnp.where(z > 0, da, SLOPE * da)

    # convolution
    xp = jnp.pad(x, 1)
    dxp, dw = jnp.zeros_like(xp), jnp.zeros_like(w)
    for i in range(H):
        for j in range(W):
            dw += dz[i, j] * xp[i : i + 3, j : j + 3]
            dxp = dxp.at[i : i + 3, j : j + 3].add(dz[i, j] * w)
    db = jnp.sum(dz)
    return dxp[1:-1, 1:-1], dw, db


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "loop"
ARGNUMS = (0, 1, 2)


def draw(rng, h=6, w=5, scale=1.0, bias=-1.5):
    x, k = rng.normal(size=(h, w)) * scale, 0.3 * rng.normal(size=(3, 3))
    return x, k, np.array(bias) * scale, rng.normal(size=(h - 2, w - 2)) * scale - 1.0


def blank(rng):
    x, k, b, target = draw(rng)
    x[:, 2:] = 0.0
    return x, k, b, target


FAULTS = (
    Fault(
        "where windows overlap the last one overwrites the others",
        "j + best % POOL].add(err)",
        "j + best % POOL].set(err)",
        "missing term",
        "0 1 2",
        "pooled = window[",
        "FluxML/Flux.jl#1197",
    ),
    Fault(
        "the padding is an offset in the forward pass alone",
        "return dxp[1:-1, 1:-1], dw, db",
        "return dxp[:-2, :-2], dw, db",
        "off by one",
        "0",
        "z = z.at[i, j].set(",
        "tensorflow/tensorflow#11092",
    ),
    Fault(
        "rows and columns of the kernel swapped",
        ".add(dz[i, j] * w)",
        ".add(dz[i, j] * w.T)",
        "transpose",
        "0",
        "z = z.at[i, j].set(",
    ),
    Fault(
        "the slope of a plain ReLU",
        "dz = jnp.where(z > 0, da, SLOPE * da)",
        "dz = jnp.where(z > 0, da, 0.0 * da)",
        "wrong function",
        "0 1 2",
        "a = jnp.where(z > 0, z, SLOPE * z)\n    loss",
    ),
    Fault(
        "entries close to the largest get the gradient too",
        "da = da.at[i + best // POOL, j + best % POOL].add(err)",
        "da = da.at[i : i + 3, j : j + 3].add(err * (win[best] - win < 0.05).reshape(3, 3))",
        "counted twice",
        "0 1 2",
        "pooled = window[",
        "mni-ml/framework#22",
    ),
)
HARD = (
    Hard("a blank half, every window a draw", "ties", blank),
    Hard("one window", "sizes", lambda rng: draw(rng, h=3, w=3), "float64"),
    Hard("nothing above zero", "saturation", lambda rng: draw(rng, bias=-9.0)),
    Hard("a faint image", "tiny", lambda rng: draw(rng, scale=1e-9)),
    Hard("half the bits", "16 bits", draw, "float16"),
)
