"""Multiclass SVM without loops, as handed in for the first assignment."""

import jax.numpy as jnp


def f(W, X, y, reg):
    num_train = X.shape[0]
    scores = X.dot(W)
    correct_class_score = scores[jnp.arange(num_train), y].reshape(-1, 1)
    margins = scores - correct_class_score + 1.0  # note delta = 1
    margins *= margins > 0
    margins = margins.at[jnp.arange(num_train), y].set(0)
    loss = jnp.sum(margins) / num_train
    loss += reg * jnp.sum(W * W)
    return loss


def g(W, X, y, reg):
    num_train = X.shape[0]
    rows = jnp.arange(num_train)
    scores = X.dot(W)
    margins = scores - scores[rows, y].reshape(-1, 1) + 1.0
    margins = margins.at[rows, y].set(0)
    binary = (margins > 0).astype(X.dtype)
    # every class over the margin pulls once at the correct one
    row_sum = jnp.sum(binary, axis=1)
    binary = binary.at[rows, y].set(-row_sum)
    dW = X.T.dot(binary)
    dW /= num_train
    dW += 2 * reg * W
    dX = binary.dot(W.T) / num_train
    return dW, dX


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "numpy"
ARGNUMS = (0, 1)


def draw(rng, n=9, d=6, c=4, scale=0.5):
    W, X = rng.normal(size=(d, c)) * scale, rng.normal(size=(n, d))
    return W, X, rng.integers(0, c, n), np.array(0.3)


def columns(rng):
    W, X, y, reg = draw(rng)
    return W, X * 10.0 ** np.arange(-3, 3), y, reg


FAULTS = (
    Fault(
        "decay without the two of the square",
        "dW += 2 * reg * W",
        "dW += reg * W",
        "factor",
        "0",
        "loss += reg",
        "jingtinghuang/CS231n-Spring-2017#3",
    ),
    Fault(
        "the correct class counts as a violated margin",
        "margins = margins.at[rows, y].set(0)",
        "margins = margins.at[rows, y].add(0)",
        "mask ignored",
        "0 1",
        "margins = margins.at[jnp.arange",
    ),
    Fault(
        "a class is over the margin only where its score is higher",
        "binary = (margins > 0).astype",
        "binary = (margins > 1).astype",
        "wrong place",
        "0 1",
        "margins *= margins > 0",
    ),
    Fault(
        "the gradient of the data lies on its side",
        "dX = binary.dot(W.T) / num_train",
        "dX = W.dot(binary.T) / num_train",
        "structure|transpose",
        "1",
        "scores = X.dot(W)\n    correct_class_score",
    ),
    Fault(
        "the product for the weights in bfloat16",
        "dW = X.T.dot(binary)",
        "dW = X.T.astype(jnp.bfloat16).dot(binary.astype(jnp.bfloat16)).astype(W.dtype)",
        "low precision",
        "0",
        "scores = X.dot(W)\n    correct_class_score",
    ),
)
HARD = (
    Hard("all scores are the same", "ties", lambda rng: (np.zeros((6, 4)), *draw(rng)[1:])),
    Hard("features of six magnitudes", "ill-conditioned", columns),
    Hard("one example, two classes", "sizes", lambda rng: draw(rng, n=1, d=1, c=2), "float64"),
    Hard("heavy weights", "extreme", lambda rng: draw(rng, scale=3e5)),
    Hard("sixteen bits", "16 bits", draw, "bfloat16"),
)
