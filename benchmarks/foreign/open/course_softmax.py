"""Softmax classifier of a course: scores, a shifted softmax, the mean loss and weight decay."""

import jax.numpy as jnp

REG = 0.05


def f(W, b, X, y):
    num_train = X.shape[0]
    scores = X.dot(W) + b
    scores -= jnp.max(scores, axis=1, keepdims=True)
    exp_scores = jnp.exp(scores)
    probs = exp_scores / jnp.sum(exp_scores, axis=1, keepdims=True)
    data_loss = -jnp.mean(jnp.log(probs[jnp.arange(num_train), y]))
    reg_loss = 0.5 * REG * jnp.sum(W * W)
    return data_loss + reg_loss


def g(W, b, X, y):
    num_train = X.shape[0]
    scores = X.dot(W) + b
    scores -= jnp.max(scores, axis=1, keepdims=True)
    probs = jnp.exp(scores) / jnp.sum(jnp.exp(scores), axis=1, keepdims=True)
    dscores = probs.at[jnp.arange(num_train), y].add(-1.0)
    dscores /= num_train
    dW = X.T.dot(dscores)
    dW += REG * W
    db = jnp.sum(dscores, axis=0)
    return dW, db


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "numpy"
ARGNUMS = (0, 1)


def draw(rng, n=7, d=5, c=4, scale=1.0):
    W, b = rng.normal(size=(d, c)) * scale, rng.normal(size=c)
    return W, b, rng.normal(size=(n, d)), rng.integers(0, c, n)


FAULTS = (
    Fault(
        "the mean is forgotten",
        "dscores /= num_train",
        "dscores /= 1.0",
        "factor",
        "0 1",
        "data_loss = -jnp.mean",
    ),
    Fault(
        "decay without its half",
        "dW += REG * W",
        "dW += 0.5 * REG * W",
        "factor",
        "0",
        "reg_loss =",
    ),
    Fault("decay left out", "dW += REG * W", "dW += 0.0 * W", "missing term", "0", "reg_loss ="),
    Fault(
        "one too many taken off",
        "y].add(-1.0)",
        "y].add(-2.0)",
        "counted twice|factor",
        "0 1",
        "data_loss =",
    ),
    Fault(
        "bias by the mean",
        "db = jnp.sum(",
        "db = jnp.mean(",
        "factor",
        "1",
        "scores = X.dot(W) + b\n    scores -= jnp.max(scores, axis=1, keepdims=True)\n    exp",
    ),
)
HARD = (
    Hard("sure of the wrong class", "saturation", lambda rng: draw(rng, scale=8.0)),
    Hard("one example", "sizes", lambda rng: draw(rng, n=1)),
    Hard(
        "ties in the maximum", "ties", lambda rng: (np.zeros((5, 4)), np.zeros(4), *draw(rng)[2:])
    ),
    Hard("many rows", "large", lambda rng: draw(rng, n=3000)),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)
