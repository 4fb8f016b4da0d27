"""Kalman filter: minus log-likelihood of a series with gaps, and its gradient.

State m ~ A m + noise(q); observation y = mu + h.m + noise(r).  theta holds A, h, mu, log_q, log_r.
"""

import jax
import jax.numpy as jnp


def update(theta, state, inp):
    m, P = state
    y, seen = inp
    mp = theta["A"] @ m
    Pp = theta["A"] @ P @ theta["A"].T + jnp.diag(jnp.exp(theta["log_q"]))
    e = Pp @ theta["h"]
    s = theta["h"] @ e + jnp.exp(theta["log_r"])
    v = y - theta["mu"] - theta["h"] @ mp
    nll = jnp.where(seen, 0.5 * (jnp.log(s) + v * v / s), 0)
    m_new = jnp.where(seen, mp + e * v / s, mp)
    P_new = jnp.where(seen, Pp - jnp.outer(e, e) / s, Pp)
    return (m_new, P_new), (nll, (m, P, mp, Pp, m_new))


def run(theta, y, seen):
    d = theta["h"].shape[0]
    init = (jnp.zeros(d, y.dtype), jnp.eye(d, dtype=y.dtype))
    return jax.lax.scan(lambda st, inp: update(theta, st, inp), init, (y, seen))


def f(theta, y, seen):
    _, (nll, _) = run(theta, y, seen)
    return jnp.sum(nll)


def g(theta, y, seen):
    A, h = theta["A"], theta["h"]
    _, (_, tape) = run(theta, y, seen)

    def back(carry, inp):
        dm, dP, acc = carry
        y_t, seen_t, (m, P, mp, Pp, m_new) = inp  # noqa: RUF059
        e = Pp @ h
        s = h @ e + jnp.exp(theta["log_r"])
        v = y_t - theta["mu"] - h @ mp

        # likelihood, then the mean's and the covariance's correction
        de = dm * v / s - (dP + dP.T) @ e / s
        dv = v / s + e @ dm / s
        ds = 0.5 / s - 0.5 * v * v / s**2
        ds += e @ dP @ e / s**2 - e @ dm * v / s**2
        # s = h.e + r, e = Pp h, v = y - mu - h.mp
        de += h * ds
        dh = e * ds + Pp @ de - mp * dv
        live = jnp.where(seen_t, 1, 0).astype(v.dtype)
        dPp = dP + live * jnp.outer(de, h)
        dmp = dm - live * h * dv
        # prediction
        dA = jnp.outer(dmp, m) + (dPp + dPp.T) @ A @ P
        acc = {
            "A": acc["A"] + dA,
            "h": acc["h"] + live * dh,
            "mu": acc["mu"] - live * dv,
            "log_q": acc["log_q"] + jnp.diagonal(dPp) * jnp.exp(theta["log_q"]),
            "log_r": acc["log_r"] + live * ds * jnp.exp(theta["log_r"]),
        }
        return (A.T @ dmp, A.T @ dPp @ A, acc), None

    carry = (jnp.zeros_like(h), jnp.zeros_like(A), jax.tree.map(jnp.zeros_like, theta))
    (_, _, acc), _ = jax.lax.scan(back, carry, (y, seen, tape), reverse=True)
    return (acc,)


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "scan"
ARGNUMS = (0,)


def draw(rng, t=9, d=3, log_q=-1.0, log_r=-0.5, level=0.0):
    theta = {"A": rng.normal(size=(d, d)) / 2, "h": rng.normal(size=d)}
    theta |= {"mu": rng.normal() + level, "log_q": log_q + rng.normal(size=d) / 2, "log_r": log_r}
    theta = {name: np.asarray(value) for name, value in theta.items()}
    seen = rng.random(t) < 0.75
    seen[0] = True
    return theta, rng.normal(size=t) * 2 + level, seen


def quiet(rng):
    return draw(rng, log_q=-9.0, log_r=-14.0)


def by_chance_right(rng):
    """Innovations as large as they should be: the two halves of the likelihood cancel."""
    theta, y, seen = draw(rng, t=200, d=1)
    theta["A"][:] = 0.0
    s = theta["h"] ** 2 * np.exp(theta["log_q"]) + np.exp(theta["log_r"])
    y = theta["mu"] + np.sqrt(s) * np.where(np.arange(200) % 2, 1.0, -1.0)
    return theta, y, seen | True


FAULTS = (
    Fault(
        "the mean's gradient has the wrong sign",
        '"mu": acc["mu"] - live * dv,',
        '"mu": acc["mu"] + live * dv,',
        "sign",
        "0.mu",
        'v = y - theta["mu"] - theta["h"] @ mp',
        "STOR-i/GaussianProcesses.jl#26",
    ),
    Fault(
        "the innovation of the corrected state, not of the predicted one",
        'v = y_t - theta["mu"] - h @ mp',
        'v = y_t - theta["mu"] - h @ m_new',
        "wrong place",
        "0.A 0.h 0.mu 0.log_q 0.log_r",
        'v = y - theta["mu"] - theta["h"] @ mp',
        "rlabbe/filterpy#260",
    ),
    Fault(
        "multiplied by the innovation's variance as if it were a precision",
        "dv = v / s + e @ dm / s",
        "dv = v * s + e @ dm / s",
        "wrong function",
        "0.A 0.h 0.mu 0.log_q 0.log_r",
        "nll = jnp.where(seen",
        "JuliaStats/TimeModels.jl#34",
    ),
    Fault(
        "the covariance goes back by A on the side of its transpose",
        "A.T @ dPp @ A, acc",
        "A @ dPp @ A.T, acc",
        "transpose",
        "0.A 0.h 0.log_q 0.log_r",
        'Pp = theta["A"] @ P @ theta["A"].T',
        "pymc-devs/pymc-extras#744",
    ),
    Fault(
        "h squared in the variance, and h in e as well",
        "dh = e * ds + Pp @ de",
        "dh = 2 * e * ds + Pp @ de",
        "counted twice",
        "0.h",
        's = theta["h"] @ e + jnp.exp(theta["log_r"])\n    v = y - theta["mu"] - theta',
    ),
)  # fmt: skip
HARD = (
    Hard("innovations as large as they should be", "cancellation", by_chance_right),
    Hard("almost no noise", "ill-conditioned", quiet, "float64"),
    Hard("a long series", "large", lambda rng: draw(rng, t=400)),
    Hard("a state of one, one observation", "sizes", lambda rng: draw(rng, t=1, d=1)),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)  # fmt: skip
