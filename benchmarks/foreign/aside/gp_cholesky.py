"""Marginal likelihood of a Gaussian process (RBF + noise, constant mean), gradient by hand.

Data fit and complexity penalty come back separately because I anneal one of them.
Rasmussen & Williams, eq. 5.9, with hyperparameters on the log scale.
"""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular


@jax.custom_vjp
def evidence(X, y, mean, log_ell, log_noise):
    return evidence_fwd(X, y, mean, log_ell, log_noise)[0]


def evidence_fwd(X, y, mean, log_ell, log_noise):
    resid = y - mean
    sq = jnp.sum((X[:, None, :] - X[None, :, :]) ** 2, axis=-1)
    Kf = jnp.exp(-0.5 * sq * jnp.exp(-2.0 * log_ell))
    K = Kf + jnp.exp(log_noise) * jnp.eye(len(y), dtype=Kf.dtype)
    L = jnp.linalg.cholesky(K)
    alpha = cho_solve((L, True), resid)
    fit = 0.5 * jnp.dot(resid, alpha)
    penalty = jnp.sum(jnp.log(jnp.diagonal(L)))
    return (fit, penalty), (X, sq, Kf, L, alpha, log_ell, log_noise)


def evidence_bwd(res, ct):
    X, sq, Kf, L, alpha, log_ell, log_noise = res
    ct_fit, ct_pen = ct
    Linv = solve_triangular(L, jnp.eye(len(alpha), dtype=L.dtype), lower=True)
    Kinv = Linv.T @ Linv
    dK = 0.5 * (ct_pen * Kinv - ct_fit * jnp.outer(alpha, alpha))
    dy = ct_fit * alpha
    dmean = -jnp.sum(dy)
    M = dK * Kf * jnp.exp(-2.0 * log_ell)
    dell = jnp.sum(M * sq)
    dX = -2.0 * (jnp.sum(M, axis=1)[:, None] * X - M @ X)
    dnoise = jnp.exp(log_noise) * jnp.trace(dK)
    return dX, dy, dmean, dell, dnoise


evidence.defvjp(evidence_fwd, evidence_bwd)


def f(X, y, mean, log_ell, log_noise, anneal):
    wide = jnp.promote_types(X.dtype, jnp.float32)  # no Cholesky in 16 bits
    fit, penalty = evidence(*(v.astype(wide) for v in (X, y, mean, log_ell, log_noise)))
    return fit + anneal * penalty


def g(*args):
    return jax.grad(f, argnums=(0, 1, 2, 3, 4))(*args)


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "custom_vjp"
ARGNUMS = (0, 1, 2, 3, 4)


def draw(rng, n=6, d=2, log_noise=-1.0, log_ell=0.4, size=1.0):
    X, y = rng.normal(size=(n, d)), size * rng.normal(size=n)
    return X, y, np.array(0.3), np.array(log_ell), np.array(log_noise), np.array(0.6)


def doubled(rng):
    X, y, *rest = draw(rng, log_noise=-4.0)
    X[3:] = X[:3]
    return X, y, *rest


FAULTS = (
    Fault(
        "the gradient by the mean has the other sign",
        "dmean = -jnp.sum(dy)",
        "dmean = jnp.sum(dy)",
        "sign",
        "2",
        "resid = y - mean",
        "STOR-i/GaussianProcesses.jl#26",
    ),
    Fault(
        "the derivative by the length, not by its logarithm",
        "dell = jnp.sum(M * sq)",
        "dell = jnp.sum(M * sq) * jnp.exp(-log_ell)",
        "factor",
        "3",
        "Kf = jnp.exp(",
        "scikit-learn/scikit-learn#11113",
    ),
    Fault(
        "the penalty's own cotangent is not used",
        "ct_pen * Kinv",
        "ct_fit * Kinv",
        "not linear",
        "0 3 4",
        "penalty = jnp.sum(",
    ),
    Fault(
        "the inverse is put together from the factor in the wrong order",
        "Linv.T @ Linv",
        "Linv @ Linv.T",
        "transpose",
        "0 3",
        "penalty = jnp.sum(",
    ),
    Fault(
        "the log determinant in full, though the penalty is its half",
        "0.5 * (ct_pen * Kinv - ct_fit * jnp.outer(alpha, alpha))",
        "ct_pen * Kinv - 0.5 * ct_fit * jnp.outer(alpha, alpha)",
        "counted twice|factor",
        "0 3 4",
        "penalty = jnp.sum(",
    ),
)
HARD = (
    Hard(
        "a long length scale", "ill-conditioned", lambda rng: draw(rng, log_noise=-6.0, log_ell=2.5)
    ),
    Hard("every point twice", "ties", doubled),
    Hard("large observations", "large", lambda rng: draw(rng, size=1e5)),
    Hard("little noise", "ill-conditioned", lambda rng: draw(rng, log_noise=-16.0), "float64"),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)
