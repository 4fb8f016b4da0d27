"""Gaussian process regression in one dimension: the evidence by a Cholesky factor in loops."""

import jax.numpy as jnp


def cholesky(K):
    n = K.shape[0]
    L = [[None] * n for _ in range(n)]
    for i in range(n):
        for j in range(i + 1):
            s = K[i, j]
            for p in range(j):
                s = s - L[i][p] * L[j][p]
            L[i][j] = jnp.sqrt(s) if i == j else s / L[j][j]
    return L


def solve_lower(L, b):
    z = []
    for i in range(len(L)):
        s = b[i]
        for p in range(i):
            s = s - L[i][p] * z[p]
        z.append(s / L[i][i])
    return z


def solve_upper(L, z):
    n = len(L)
    a = [None] * n
    for i in reversed(range(n)):
        s = z[i]
        for p in range(i + 1, n):
            s = s - L[p][i] * a[p]
        a[i] = s / L[i][i]
    return jnp.stack(a)


def kernel(ls, sf, x):
    d = x[:, None] - x[None, :]
    return d, sf**2 * jnp.exp(-0.5 * d**2 / ls**2)


def f(ls, sf, noise, mean, x, y):
    _, Ks = kernel(ls, sf, x)
    K = Ks + noise**2 * jnp.eye(len(x), dtype=x.dtype)
    L = cholesky(K)
    z = solve_lower(L, y - mean)
    nll = 0.0
    for i in range(len(x)):
        nll = nll + 0.5 * z[i] ** 2 + jnp.log(L[i][i])
    return nll


def g(ls, sf, noise, mean, x, y):
    eye = jnp.eye(len(x), dtype=x.dtype)
    d, Ks = kernel(ls, sf, x)
    L = cholesky(Ks + noise**2 * eye)
    centred = y - mean
    alpha = solve_upper(L, solve_lower(L, centred))
    inverse = jnp.stack([solve_upper(L, solve_lower(L, e)) for e in eye])
    dK = 0.5 * (inverse - jnp.outer(alpha, alpha))
    B = dK * Ks
    dls = jnp.sum(B * d**2) / ls**3
    dsf = 2 * jnp.sum(B) / sf
    dnoise = 2 * noise * jnp.trace(dK)
    dmean = -jnp.sum(alpha)
    dx = -2 * jnp.sum(B * d, axis=1) / ls**2
    return dls, dsf, dnoise, dmean, dx, alpha


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "loop"
ARGNUMS = (0, 1, 2, 3, 4, 5)


def draw(rng, n=5, ls=0.8, noise=0.4, offset=0.0):
    x = np.sort(rng.normal(size=n)) * 1.5
    y = np.sin(2 * x) + noise * rng.normal(size=n) + 0.6 + offset
    return np.array(ls), np.array(1.3), np.array(noise), np.array(0.3) + offset, x, y


def repeated(rng):
    *rest, x, y = draw(rng)
    return *rest, np.repeat(x[:3], 2)[:5], y


FAULTS = (
    Fault(
        "the mean is pushed the wrong way",
        "dmean = -jnp.sum(alpha)",
        "dmean = jnp.sum(alpha)",
        "sign",
        "3",
        "z = solve_lower(L, y - mean)",
        "STOR-i/GaussianProcesses.jl#26",
    ),
    Fault(
        "the slope by the logarithm of the length",
        "dls = jnp.sum(B * d**2) / ls**3",
        "dls = jnp.sum(B * d**2) / ls**2",
        "wrong function|factor",
        "0",
        "return d, sf**2",
        "scikit-learn/scikit-learn#31366",
    ),
    Fault(
        "entries off the diagonal count half",
        "dx = -2 * jnp.sum(B * d, axis=1)",
        "dx = -jnp.sum(B * d, axis=1)",
        "factor",
        "4",
        "d = x[:, None] - x[None, :]",
        "pytorch/pytorch#30578",
    ),
    Fault(
        "the solve is for the data with their mean still in",
        "centred = y - mean",
        "centred = y",
        "wrong place",
        "0 1 2 3 4 5",
        "z = solve_lower(L, y - mean)",
    ),
    Fault(
        "the noise gets the sum of the matrix, not of its diagonal",
        "dnoise = 2 * noise * jnp.trace(dK)",
        "dnoise = 2 * noise * jnp.sum(dK)",
        "mask ignored",
        "2",
        "K = Ks + noise**2 * jnp.eye",
        "AndreiChertkov/fpcross#2",
    ),
)
HARD = (
    Hard("a length far beyond the points", "ill-conditioned", lambda rng: draw(rng, ls=30.0)),
    Hard("every place twice", "ties", repeated),
    Hard("little noise", "ill-conditioned", lambda rng: draw(rng, ls=3.0, noise=1e-3), "float64"),
    Hard("data far from zero", "cancellation", lambda rng: draw(rng, offset=1e3)),
    Hard("sixteen bits", "16 bits", lambda rng: draw(rng, noise=1.5), "bfloat16"),
)
