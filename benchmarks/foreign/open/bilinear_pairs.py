"""Scores of relations between two entities: a bilinear form, a diagonal one and a bias.

Multi-label logistic loss; a pair is labelled for some of the relations only.
"""

import jax
import jax.numpy as jnp


def scores(theta, head, tail):
    s = jnp.einsum("bi,kij,bj->bk", head, theta["W"], tail)
    s = s + jnp.einsum("bi,ki,bi->bk", head, theta["D"], tail)
    return s + theta["b"]


def f(theta, head, tail, labels, known):
    s = scores(theta, head, tail)
    nll = jax.nn.softplus(s) - labels * s
    return jnp.sum(jnp.where(known, nll, 0)) / jnp.sum(known)


def g(theta, head, tail, labels, known):
    W, D = theta["W"], theta["D"]
    s = scores(theta, head, tail)
    ds = jnp.where(known, jax.nn.sigmoid(s) - labels, 0) / jnp.sum(known)
    dW = jnp.einsum("bk,bi,bj->kij", ds, head, tail)
    dD = jnp.einsum("bk,bi,bi->ki", ds, head, tail)
    db = jnp.sum(ds, axis=0)
    dhead = jnp.einsum("bk,kij,bj->bi", ds, W, tail)
    dhead += jnp.einsum("bk,ki->bi", ds, D) * tail
    dtail = jnp.einsum("bk,kij,bi->bj", ds, W, head)
    dtail += jnp.einsum("bk,ki->bi", ds, D) * head
    return {"W": dW, "D": dD, "b": db}, dhead, dtail


# ---- keys
from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "einsum"
ARGNUMS = (0, 1, 2)


def draw(rng, b=7, k=3, d=5, scale=1.0, share=0.6):
    theta = {"W": rng.normal(size=(k, d, d)), "D": rng.normal(size=(k, d)), "b": rng.normal(size=k)}
    head, tail = rng.normal(size=(2, b, d)) * scale / 2
    known = rng.random((b, k)) < share
    known[0] = True
    return theta, head, tail, rng.integers(0, 2, (b, k)).astype(float), known


def by_halves(rng):
    """Scores that are sums of large numbers: the tail enters once with either sign."""
    theta, head, tail, labels, known = draw(rng, d=4)
    theta["W"][:, :, 2:] = -theta["W"][:, :, :2]
    tail[:, 2:] = tail[:, :2] = tail[:, :2] + 100.0
    theta["D"] *= 0.01
    return theta, head, tail, labels, known


FAULTS = (
    Fault(
        "the head's gradient is not weighted by that of the scores",
        'jnp.einsum("bk,kij,bj->bi", ds, W, tail)',
        'jnp.einsum("kij,bj->bi", W, tail)',
        "factor",
        "1",
        's = jnp.einsum("bi,kij,bj->bk"',
        "torch/nn#658",
    ),
    Fault(
        "the weights' gradient has no axis of relations",
        '"bk,bi,bj->kij", ds',
        '"bk,bi,bj->ij", ds',
        "structure",
        "0.W",
        's = jnp.einsum("bi,kij,bj->bk"',
        "pytorch/pytorch#1571",
    ),
    Fault(
        "the tail gets the form with its sides exchanged",
        '"bk,kij,bi->bj", ds, W, head',
        '"bk,kji,bi->bj", ds, W, head',
        "transpose",
        "2",
        's = jnp.einsum("bi,kij,bj->bk"',
    ),
    Fault(
        "the bias by the mean over pairs",
        "db = jnp.sum(ds, axis=0)",
        "db = jnp.mean(ds, axis=0)",
        "factor",
        "0.b",
        'return s + theta["b"]',
        "kvfrans/notes#5",
    ),
    Fault(
        "the diagonal form's derivative by the tail has the tail again",
        'dtail += jnp.einsum("bk,ki->bi", ds, D) * head',
        'dtail += jnp.einsum("bk,ki->bi", ds, D) * tail',
        "wrong place",
        "2",
        's = s + jnp.einsum("bi,ki,bi->bk"',
    ),
)  # fmt: skip
HARD = (
    Hard("forms that cancel", "cancellation", by_halves),
    Hard("scores of hundreds", "saturation", lambda rng: draw(rng, scale=10.0)),
    Hard("a single pair", "sizes", lambda rng: draw(rng, b=1, k=1, d=1)),
    Hard("entities next to nothing", "tiny", lambda rng: draw(rng, scale=1e-12)),
    Hard("half precision", "16 bits", draw, "float16"),
)  # fmt: skip
