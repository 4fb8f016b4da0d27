"""Soft maximum at a temperature over the entries of a padded row, with prior weights."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def soft_maximum(score, prior, tau, keep):
    return soft_maximum_fwd(score, prior, tau, keep)[0]


def soft_maximum_fwd(score, prior, tau, keep):
    t = jnp.where(keep > 0, score / tau, -jnp.inf)
    top = jnp.max(t, axis=-1, keepdims=True)
    total = jnp.sum(prior * jnp.exp(t - top), axis=-1, keepdims=True)
    log_z = jnp.log(total) + top
    return tau * log_z[:, 0], (score, prior, tau, keep, log_z)


def soft_maximum_bwd(saved, ct):
    score, prior, tau, keep, log_z = saved
    ct = ct[:, None]
    ratio = jnp.exp(jnp.where(keep > 0, score / tau, -jnp.inf) - log_z)
    p = prior * ratio
    d_score = ct * p
    d_prior = jnp.sum(ct * tau * ratio, axis=0)
    expected = jnp.sum(p * score / tau, axis=-1, keepdims=True)
    d_tau = jnp.sum(ct * (log_z - expected))
    return d_score, d_prior, d_tau, None


soft_maximum.defvjp(soft_maximum_fwd, soft_maximum_bwd)


def f(score, prior, tau, keep, weight):
    return jnp.sum(weight * soft_maximum(score, prior, tau, keep))


def g(score, prior, tau, keep, weight):
    return jax.grad(f, (0, 1, 2))(score, prior, tau, keep, weight)


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "custom_vjp"
ARGNUMS = (0, 1, 2)


def draw(rng, n=5, k=7, scale=1.0, shift=0.0, tau=0.7):
    keep = (np.arange(k) < rng.integers(min(3, k), k + 1, n)[:, None]).astype(np.int32)
    keep[0] = np.arange(k) < max(k - 2, 1)
    score = np.where(keep > 0, scale * rng.normal(size=(n, k)) + shift, 300.0)
    prior = rng.uniform(0.5, 1.5, k)
    prior[k // 2] = 0.0 if k > 1 else 1.0
    return score, prior, np.array(tau), keep, rng.normal(size=n)


def tied(rng):
    score, prior, tau, keep, weight = draw(rng)
    return np.full_like(score, 0.25), prior, tau, keep, weight


FAULTS = (
    Fault(
        "no gradient for a weight that is zero",
        "jnp.sum(ct * tau * ratio, axis=0)",
        "jnp.sum(ct * tau * ratio * (prior != 0), axis=0)",
        "stopped",
        "1",
        "total = jnp.sum(prior",
        "jax-ml/jax#37729",
    ),
    Fault(
        "padding is zeroed after its exponential has overflowed",
        "jnp.exp(jnp.where(keep > 0, score / tau, -jnp.inf) - log_z)",
        "jnp.exp(score / tau - log_z) * keep",
        "not finite",
        "0 1 2",
        "t = jnp.where(keep",
        "jax-ml/jax#23842",
    ),
    Fault(
        "the temperature inside the exponential is forgotten",
        "ct * (log_z - expected)",
        "ct * log_z",
        "missing term",
        "2",
        "t = jnp.where(keep",
    ),
    Fault(
        "the derivative of one over the temperature without its minus",
        "(log_z - expected)",
        "(log_z + expected)",
        "sign",
        "2",
        "t = jnp.where(keep",
    ),
    Fault(
        "probabilities go through bfloat16",
        "p = prior * ratio",
        "p = (prior * ratio).astype(jnp.bfloat16).astype(score.dtype)",
        "low precision",
        "0 2",
        "total = jnp.sum(prior",
    ),
)
HARD = (
    Hard("all scores equal", "ties", tied),
    Hard("a cold temperature", "saturation", lambda rng: draw(rng, tau=0.02)),
    Hard("scores around a thousand", "cancellation", lambda rng: draw(rng, shift=1e3), "float64"),
    Hard("one entry in a row", "sizes", lambda rng: draw(rng, n=3, k=1)),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)
