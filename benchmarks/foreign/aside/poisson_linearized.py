import jax.numpy as jnp

# Poisson GLM with exposure; the exponential goes on as a line above ETA so that it cannot explode
ETA = 1.5
REG = 0.1


def f(b0, b, X, y, expo):
    z = b0 + X.dot(b) + jnp.log(expo)
    zc = jnp.minimum(z, ETA)
    mu = jnp.exp(zc) * (1 + z - zc)
    nll = mu - y * jnp.log(mu)
    return nll.mean() + 0.5 * REG * b.dot(b)


def g(b0, b, X, y, expo):
    n = len(y)
    z = b0 + X.dot(b)
    z += jnp.log(expo)
    low = jnp.minimum(z, ETA)
    mu = jnp.exp(low) * (1 + z - low)
    slope = jnp.where(z > ETA, jnp.exp(ETA), jnp.exp(low))
    dz = (slope - y * slope / mu) / n
    db0 = dz.sum()
    db = X.T.dot(dz)
    db += REG * b
    dexpo = dz / expo
    return db0, db, dexpo


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "numpy"
ARGNUMS = (0, 1, 4)


def draw(rng, n=8, d=3, far=110.0, scale=1.0):
    X, b = rng.normal(size=(n, d)) * scale, rng.normal(size=d)
    X[0] = far * b / b.dot(b)  # one point far out
    y = rng.poisson(2.0, n).astype(float)
    y[0] = 40.0
    return np.array(0.2), b, X, y, rng.uniform(0.3, 3.0, n)


def knots(rng):
    _, b, X, y, expo = draw(rng)
    return np.array(ETA), b * 0.0, X, y, np.ones_like(expo)


FAULTS = (
    Fault(
        "the slope of the line is the threshold, not its exponential",
        "slope = jnp.where(z > ETA, jnp.exp(ETA), jnp.exp(low))",
        "slope = jnp.where(z > ETA, ETA, jnp.exp(low))",
        "wrong function",
        "0 1 4",
        "mu = jnp.exp(zc)",
        "glm-tools/pyglmnet#181",
    ),
    Fault(
        "the penalty without its weight",
        "db += REG * b",
        "db += b",
        "factor",
        "1",
        "return nll.mean() + 0.5 * REG",
        "wush978/KDD2015wpp#11",
    ),
    Fault(
        "the exposure is left out of the rate",
        "z += jnp.log(expo)",
        "z += 0.0",
        "wrong place",
        "0 1 4",
        "z = b0 + X.dot(b) + jnp.log(expo)",
    ),
    Fault(
        "the gradient of the weights comes back in half precision",
        "db += REG * b",
        "db = (db + REG * b).astype(jnp.float16)",
        "dtype",
        "1",
    ),
    Fault(
        "the exponential is taken first and scaled down to the cap afterwards",
        "slope = jnp.where(z > ETA, jnp.exp(ETA), jnp.exp(low))",
        "slope = jnp.exp(z) / jnp.maximum(jnp.exp(z) / jnp.exp(ETA), 1)",
        "not finite",
        "0 1 4",
        "zc = jnp.minimum(z, ETA)",
    ),
)
HARD = (
    Hard("every rate at the bend", "ties", knots),
    Hard("a point very far out", "extreme", lambda rng: draw(rng, far=1e6)),
    Hard("one count", "sizes", lambda rng: draw(rng, n=1, d=1, far=1.0), "float64"),
    Hard("columns that are nearly constant zero", "tiny", lambda rng: draw(rng, scale=1e-9)),
    Hard("sixteen bits", "16 bits", draw, "bfloat16"),
)
