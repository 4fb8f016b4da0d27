"""Soft K-means: expected squared distance under softmax responsibilities."""

import jax.numpy as jnp


def responsibilities(D, beta):
    a = -beta * D
    a -= a.max(axis=1, keepdims=True)
    r = jnp.exp(a)
    r /= r.sum(axis=1, keepdims=True)
    return r


def f(X, C, beta):
    diff = X[:, None, :] - C[None, :, :]
    D = (diff**2).sum(axis=2)
    r = responsibilities(D, beta)
    return (r * D).sum() / X.shape[0]


def g(X, C, beta):
    N = X.shape[0]
    diff = X[:, None, :] - C[None, :, :]
    D = (diff**2).sum(axis=2)
    r = responsibilities(D, beta)
    # through the softmax
    dr = D / N
    da = r * (dr - (r * dr).sum(axis=1, keepdims=True))
    dbeta = -(da * D).sum()
    # straight and through the softmax
    dD = r / N - beta * da
    ddiff = 2 * diff * dD[:, :, None]
    dX = ddiff.sum(axis=1)
    dC = -ddiff.sum(axis=0)
    return dX, dC, dbeta


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "numpy"
ARGNUMS = (0, 1, 2)


def draw(rng, n=7, k=3, d=2, beta=0.6, scale=1.0, offset=0.0):
    X, C = rng.normal(size=(n, d)) * scale, rng.normal(size=(k, d)) * scale
    return X + offset, C + offset, np.array(beta)


def middle(rng):
    X, _, beta = draw(rng)
    return np.zeros_like(X), np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]), beta


FAULTS = (
    Fault(
        "the softmax as if each entry had its own argument alone",
        "da = r * (dr - (r * dr).sum(axis=1, keepdims=True))",
        "da = r * (1 - r) * dr",
        "missing term",
        "0 1 2",
        "r /= r.sum",
        "Apiquet/DeepLearningFrameworkFromScratchCpp#1",
    ),
    Fault(
        "responsibilities in bfloat16",
        "r = responsibilities(D, beta)\n    # through",
        "r = responsibilities(D.astype(jnp.bfloat16), beta.astype(jnp.bfloat16)).astype(D.dtype)\n"
        "    # through",
        "low precision",
        "0 1 2",
        "r = responsibilities(D, beta)\n    return",
    ),
    Fault(
        "centres are pushed away",
        "dC = -ddiff.sum(axis=0)",
        "dC = ddiff.sum(axis=0)",
        "sign",
        "1",
        "diff = X[:, None, :] - C[None, :, :]\n    D = (diff**2).sum(axis=2)\n"
        "    r = responsibilities(D, beta)\n    return",
    ),
    Fault(
        "the mean that the softmax subtracts is over the points",
        "(r * dr).sum(axis=1, keepdims=True))",
        "(r * dr).sum(axis=0, keepdims=True))",
        "transpose",
        "0 1 2",
        "r /= r.sum",
    ),
    Fault(
        "a number that multiplies an array gets an array for its gradient",
        "dbeta = -(da * D).sum()",
        "dbeta = -(da * D).sum(axis=1)",
        "structure",
        "2",
        "a = -beta * D",
        "raskr/rust-autograd#38",
    ),
)
HARD = (
    Hard("points far from zero", "cancellation", lambda rng: draw(rng, offset=1e3), "float64"),
    Hard("every point in the middle", "ties", middle),
    Hard("hard assignments", "saturation", lambda rng: draw(rng, beta=80.0)),
    Hard("ten thousand points", "large", lambda rng: draw(rng, n=10000)),
    Hard("half the bits", "16 bits", draw, "float16"),
)
