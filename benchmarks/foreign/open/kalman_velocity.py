"""Negative log likelihood of a damped constant-velocity Kalman filter with gaps in the record."""

import jax.numpy as jnp


def transition(phi):
    one = jnp.ones_like(phi)
    return jnp.stack([jnp.stack([one, one]), jnp.stack([0 * one, phi])])


def filter_pass(phi, log_q, log_r, ys, seen):
    F = transition(phi)
    Q0 = jnp.array([[0.25, 0.5], [0.5, 1.0]], ys.dtype)
    m, P = jnp.zeros_like(F[0]), jnp.eye(2, dtype=ys.dtype)
    steps, nll = [], 0.0
    for t in range(len(ys)):
        m_old, P_old = m, P
        m = F @ m_old
        P = F @ P_old @ F.T + jnp.exp(log_q) * Q0
        v = ys[t] - m[0]
        S = P[0, 0] + jnp.exp(log_r)
        K = seen[t] * P[:, 0] / S
        nll = nll + 0.5 * seen[t] * (jnp.log(S) + v**2 / S)
        steps.append((m_old, P_old, P, v, S, K))
        m = m + K * v
        P = P - jnp.outer(K, P[0])
    return nll, steps, F, Q0


def f(phi, log_q, log_r, ys, seen):
    nll, _, _, _ = filter_pass(phi, log_q, log_r, ys, seen)
    return nll / len(ys)


def g(phi, log_q, log_r, ys, seen):
    _, steps, F, Q0 = filter_pass(phi, log_q, log_r, ys, seen)
    q, r, T = jnp.exp(log_q), jnp.exp(log_r), len(ys)
    dm, dP = jnp.zeros_like(F[0]), jnp.zeros_like(F)
    dF, dq, dr = jnp.zeros_like(F), 0.0, 0.0
    dys = []
    for t in reversed(range(T)):
        m_old, P_old, Pp, v, S, K = steps[t]
        # update
        dK = dm * v - dP @ Pp[0]
        dv = dm @ K + seen[t] * v / S / T
        dPp = dP.at[0].add(-dP.T @ K)
        dPp = dPp.at[:, 0].add(seen[t] * dK / S)
        dS = -dK @ K / S
        dS = dS + seen[t] * 0.5 * (1 / S - v**2 / S**2) / T
        dPp = dPp.at[0, 0].add(dS)
        dr = dr + dS
        dys.append(dv)
        dmp = dm.at[0].add(-dv)
        # predict
        dq = dq + jnp.sum(dPp * Q0)
        dF = dF + dPp @ F @ P_old.T + dPp.T @ F @ P_old
        dF = dF + jnp.outer(dmp, m_old)
        dP = F.T @ dPp @ F
        dm = F.T @ dmp
    dphi = dF[1, 1]
    dlog_q = dq * q
    dlog_r = dr * r
    return dphi, dlog_q, dlog_r, jnp.stack(dys[::-1])


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "loop"
ARGNUMS = (0, 1, 2, 3)


def draw(rng, T=6, q=-0.5, r=0.3, offset=0.0):
    seen = np.ones(T)
    seen[2:3] = 0.0
    ys = np.cumsum(rng.normal(size=T)) + offset
    return np.array(0.8), np.array(q), np.array(r), ys, seen


def blind(rng):
    phi, q, r, ys, seen = draw(rng)
    return phi, q, r, ys, 0.0 * seen


FAULTS = (
    Fault(
        "the noise is on a logarithmic scale and its gradient is not",
        "dlog_r = dr * r",
        "dlog_r = dr",
        "factor",
        "2",
        "S = P[0, 0] + jnp.exp(log_r)",
        "alan-turing-institute/stat-fem#35",
    ),
    Fault(
        "gaps in the record count in the spread",
        "dS = dS + seen[t] * 0.5 * (",
        "dS = dS + 0.5 * (",
        "mask ignored",
        "0 1 2",
        "nll = nll + 0.5 * seen[t]",
    ),
    Fault(
        "the slope of one over the spread lacks its square",
        "(1 / S - v**2 / S**2)",
        "(1 / S - v**2 / S)",
        "wrong function",
        "0 1 2",
        "nll = nll + 0.5 * seen[t]",
    ),
    Fault(
        "the covariance goes back through the transition the forward way",
        "dP = F.T @ dPp @ F",
        "dP = F @ dPp @ F.T",
        "transpose",
        "0 1 2",
        "P = F @ P_old @ F.T",
    ),
    Fault(
        "the state after the step where the one before belongs",
        "dF = dF + jnp.outer(dmp, m_old)",
        "dF = dF + jnp.outer(dmp, F @ m_old + K * v)",
        "off by one",
        "0",
        "m = F @ m_old\n        P = F",
    ),
)
HARD = (
    Hard("a record far from the start", "cancellation", lambda rng: draw(rng, offset=1e3)),
    Hard("hardly any noise", "ill-conditioned", lambda rng: draw(rng, r=-12.0), "float64"),
    Hard("nothing was seen", "ties", blind),
    Hard("one sample", "sizes", lambda rng: draw(rng, T=1)),
    Hard("sixteen bits", "16 bits", draw, "bfloat16"),
)
