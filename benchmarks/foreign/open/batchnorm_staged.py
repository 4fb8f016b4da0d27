import jax.numpy as jnp


def batchnorm_forward(x, gamma, beta, eps=1e-3):
    N = x.shape[0]

    # step1: calculate mean
    mu = 1.0 / N * jnp.sum(x, axis=0)

    # step2: subtract mean vector of every training example
    xmu = x - mu

    # step3: following the lower branch - calculation denominator
    sq = xmu**2

    # step4: calculate variance
    var = 1.0 / N * jnp.sum(sq, axis=0)

    # step5: add eps for numerical stability, then sqrt
    sqrtvar = jnp.sqrt(var + eps)

    # step6: invert sqrtvar
    ivar = 1.0 / sqrtvar

    # step7: execute normalization
    xhat = xmu * ivar

    # step8 and 9: the two transformation steps
    gammax = gamma * xhat
    out = gammax + beta

    cache = (xhat, gamma, xmu, ivar, sqrtvar, var, eps)
    return out, cache


def batchnorm_backward(dout, cache):
    xhat, gamma, xmu, ivar, sqrtvar, var, eps = cache
    N, D = dout.shape
    # step9
    dbeta = jnp.sum(dout, axis=0)
    # step8
    dgamma = jnp.sum(dout * xhat, axis=0)
    dxhat = dout * gamma
    # step7
    divar = jnp.sum(dxhat * xmu, axis=0)
    dxmu1 = dxhat * ivar
    # step6
    dsqrtvar = -1.0 / (sqrtvar**2) * divar
    # step5
    dvar = 0.5 * 1.0 / jnp.sqrt(var + eps) * dsqrtvar
    # step4
    dsq = 1.0 / N * jnp.ones((N, D), dout.dtype) * dvar
    # step3
    dxmu2 = 2 * xmu * dsq
    # step2
    dx1 = dxmu1 + dxmu2
    dmu = -1 * jnp.sum(dx1, axis=0)
    # step1
    dx2 = 1.0 / N * jnp.ones_like(dout) * dmu
    # step0
    dx = dx1 + dx2
    return dx, dgamma, dbeta


def f(x, gamma, beta, target):
    out, _ = batchnorm_forward(x, gamma, beta)
    return 0.5 * jnp.sum((out - target) ** 2)


def g(x, gamma, beta, target):
    out, cache = batchnorm_forward(x, gamma, beta)
    return batchnorm_backward(out - target, cache)


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "numpy"
ARGNUMS = (0, 1, 2)


def draw(rng, n=7, d=4, scale=1.0, offset=0.0):
    x = rng.normal(size=(n, d)) * np.geomspace(1.0, 0.05, d) * scale + offset
    return x, rng.normal(size=d) + 2.0, rng.normal(size=d), rng.normal(size=(n, d))


def flat(rng):
    x, gamma, beta, target = draw(rng)
    x[:, 1] = 0.7
    return x, gamma, beta, target


FAULTS = (
    Fault(
        "the weight is forgotten on the way to the input",
        "dxhat = dout * gamma",
        "dxhat = dout * 1.0",
        "factor|missing term",
        "0",
        "gammax = gamma * xhat",
        "karpathy/llm.c#763",
    ),
    Fault(
        "the spread is taken for a constant",
        "dx1 = dxmu1 + dxmu2",
        "dx1 = dxmu1",
        "missing term",
        "0",
        "var = 1.0 / N",
        "ooples/AiDotNet#695",
    ),
    Fault(
        "eps outside the root",
        "dvar = 0.5 * 1.0 / jnp.sqrt(var + eps) * dsqrtvar",
        "dvar = 0.5 * 1.0 / (jnp.sqrt(var) + eps) * dsqrtvar",
        "wrong place",
        "0",
        "sqrtvar = jnp.sqrt(var + eps)",
    ),
    Fault(
        "the weight's gradient is added up from values rounded to bfloat16",
        "dgamma = jnp.sum(dout * xhat, axis=0)",
        "dgamma = jnp.sum((dout * xhat).astype(jnp.bfloat16), axis=0).astype(gamma.dtype)",
        "low precision",
        "1",
        "gammax = gamma * xhat",
        "linkedin/Liger-Kernel#1253",
    ),
    Fault(
        "a buffer of the default type instead of the input's",
        "jnp.ones((N, D), dout.dtype)",
        "jnp.ones((N, D), jnp.float32)",
        "dtype",
        "0",
        "",
        "tinygrad/tinygrad#3613",
        "bfloat16",
    ),
)
HARD = (
    Hard("far from zero", "cancellation", lambda rng: draw(rng, offset=300.0)),
    Hard("a column without spread", "ill-conditioned", flat),
    Hard("a batch of one", "sizes", lambda rng: draw(rng, n=1)),
    Hard("hardly any spread", "tiny", lambda rng: draw(rng, scale=1e-7), "float64"),
    Hard("half the bits", "16 bits", draw, "float16"),
)
