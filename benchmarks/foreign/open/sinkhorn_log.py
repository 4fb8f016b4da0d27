"""Entropic transport cost between two point clouds: a few Sinkhorn sweeps and their derivative."""

import jax
import jax.numpy as jnp
from jax.nn import logsumexp

REG = 0.6
SWEEPS = 5


def cost(x, y):
    return jnp.sum((x[:, None, :] - y[None, :, :]) ** 2, axis=-1)


def sweep(K, loga, logb, v):
    u = loga - logsumexp(K + v[None, :], axis=1)
    v_new = logb - logsumexp(K + u[:, None], axis=0)
    return u, v_new


def run(C, weights):
    n, m = C.shape
    K = -C / REG
    loga = jax.nn.log_softmax(weights)
    logb = jnp.full(m, -jnp.log(m), C.dtype)

    def body(carry, _):
        u, v = carry
        u, v_new = sweep(K, loga, logb, v)
        return (u, v_new), (u, v)

    start = (jnp.zeros(n, C.dtype), jnp.zeros(m, C.dtype))
    (u, v), history = jax.lax.scan(body, start, length=SWEEPS)
    return u, v, K, history


def f(x, y, weights):
    C = cost(x, y)
    u, v, K, _ = run(C, weights)
    plan = jnp.exp(K + u[:, None] + v[None, :])
    return jnp.sum(plan * C)


def g(x, y, weights):
    C = cost(x, y)
    u, v, K, history = run(C, weights)
    plan = jnp.exp(K + u[:, None] + v[None, :])

    dlog_plan = plan * C
    gu, gv = dlog_plan.sum(axis=1), dlog_plan.sum(axis=0)

    def undo(carry, uv):
        gu, gv, gK, gloga = carry
        u, v_old = uv
        # v = logb - lse_i(K + u)
        S = jax.nn.softmax(K + u[:, None], axis=0)
        gu = gu - S @ gv
        gK = gK - S * gv[None, :]
        # u = loga - lse_j(K + v_old)
        R = jax.nn.softmax(K + v_old[None, :], axis=1)
        gloga = gloga + gu
        gK = gK - R * gu[:, None]
        gv = -(gu @ R)
        return (jnp.zeros_like(gu), gv, gK, gloga), None

    carry = (gu, gv, dlog_plan, jnp.zeros_like(weights))
    (_, _, gK, gloga), _ = jax.lax.scan(undo, carry, history, reverse=True)

    gC = plan - gK / REG
    gx = 2 * (gC.sum(axis=1)[:, None] * x - gC @ y)
    gy = 2 * (gC.sum(axis=0)[:, None] * y - gC.T @ x)
    gw = gloga - jax.nn.softmax(weights) * gloga.sum()
    return gx, gy, gw


# ---- keys
from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "scan"
ARGNUMS = (0, 1, 2)


def draw(rng, n=4, m=6, d=2, spread=1.0, far=0.0):
    x, y = rng.normal(size=(n, d)) * spread, rng.normal(size=(m, d)) * spread
    return x + far, y + far, rng.normal(size=n)


def one_point(rng):
    """All points of a cloud in the same place."""
    x, y, weights = draw(rng)
    return 0 * x, 0 * y + 1, 0 * weights


FAULTS = (
    Fault(
        "the weights of the points get no gradient",
        "gw = gloga - jax.nn.softmax(weights) * gloga.sum()",
        "gw = jnp.zeros_like(gloga)",
        "stopped",
        "2",
        "loga = jax.nn.log_softmax(weights)",
        "PythonOT/POT#394",
    ),
    Fault(
        "the potential kept is the one after the sweep",
        "return (u, v_new), (u, v)",
        "return (u, v_new), (u, v_new)",
        "wrong place",
        "0 1 2",
        "u = loga - logsumexp(K + v[None, :], axis=1)",
    ),
    Fault(
        "the softmax of the second update goes along the rows",
        "S = jax.nn.softmax(K + u[:, None], axis=0)",
        "S = jax.nn.softmax(K + u[:, None], axis=1)",
        "transpose",
        "0 1 2",
        "v_new = logb - logsumexp(K + u[:, None], axis=0)",
    ),
    Fault(
        "the kernel's gradient is not divided by the regularisation",
        "gC = plan - gK / REG",
        "gC = plan - gK",
        "factor",
        "0 1",
        "K = -C / REG",
    ),
    Fault(
        "what came to a potential stays and is taken to earlier sweeps too",
        "return (jnp.zeros_like(gu), gv, gK, gloga), None",
        "return (gu, gv, gK, gloga), None",
        "counted twice",
        "0 1 2",
        "u = loga - logsumexp(K + v[None, :], axis=1)",
    ),
)  # fmt: skip
HARD = (
    Hard("all points of a cloud in one place", "ties", one_point, "float64"),
    Hard("points far from zero", "cancellation", lambda rng: draw(rng, spread=0.3, far=30.0)),
    Hard("costs far above REG", "ill-conditioned", lambda rng: draw(rng, spread=6.0)),
    Hard("one point on either side", "sizes", lambda rng: draw(rng, 1, 1, 1), "float64"),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)  # fmt: skip
