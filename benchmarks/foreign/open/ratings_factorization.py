"""Biased matrix factorisation (ratings R, only where M is 1)."""

LAM = 0.08
LR = 0.1


def f(P, Q, bu, bi, R, M):
    n = M.sum()
    mu = (M * R).sum() / n
    E = M * (R - mu - bu[:, None] - bi - P.dot(Q.T))
    fit = 0.5 * (E**2).sum() / n
    # weighted lambda: who rates more is shrunk more
    shrink = (M.sum(axis=1) * (P**2).sum(axis=1)).sum() + (M.sum(axis=0) * (Q**2).sum(axis=1)).sum()
    return fit + 0.5 * LAM * shrink / n


def g(P, Q, bu, bi, R, M):
    n = M.sum()
    mu = (M * R).sum() / n
    E = R - mu - bu[:, None] - bi[None, :] - P.dot(Q.T)
    E = E * M
    nu, ni = M.sum(axis=1)[:, None], M.sum(axis=0)[:, None]
    dP = (-E.dot(Q) + LAM * nu * P) / n
    dQ = (-E.T.dot(P) + LAM * ni * Q) / n
    dbu = -E.sum(axis=1) / n
    dbi = -E.sum(axis=0) / n
    dR = E / n
    dR -= M * E.sum() / n**2
    return dP, dQ, dbu, dbi, dR


# ---- keys
from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "numpy"
ARGNUMS = (0, 1, 2, 3, 4)


def draw(rng, n_u=6, n_i=8, k=2, scale=1.0):
    P, Q = rng.normal(size=(n_u, k)), rng.normal(size=(n_i, k))
    bu, bi = rng.normal(size=n_u), rng.normal(size=n_i)
    R = rng.integers(1, 6, (n_u, n_i)).astype(float)
    M = (rng.random((n_u, n_i)) < 0.6).astype(float)
    M[0, 0] = 1.0
    return P * scale, Q * scale, bu, bi, R * scale, M


def perfect(rng):
    P, Q, bu, bi, R, M = draw(rng)
    R = bu[:, None] + bi + P.dot(Q.T)
    return P, Q, bu, bi, R + 1000.0, M


def unseen(rng):
    P, Q, bu, bi, R, M = draw(rng)
    M[2], M[:, 3] = 0.0, 0.0
    return P, Q, bu, bi, R, M


FAULTS = (
    Fault(
        "the items are moved by users that have moved already",
        "dQ = (-E.T.dot(P) + LAM * ni * Q) / n",
        "dQ = (-E.T.dot(P - LR * dP) + LAM * ni * Q) / n",
        "wrong place",
        "1",
        "E = M * (R - mu",
        "albertauyeung/matrix-factorization-in-python#3",
    ),
    Fault(
        "ratings that were never given count",
        "E = E * M",
        "E = E * 1.0",
        "mask ignored",
        "0 1 2 3 4",
        "E = M * (R - mu",
    ),
    Fault(
        "what is subtracted has the sign of what it is subtracted from",
        "dbu = -E.sum(axis=1) / n",
        "dbu = E.sum(axis=1) / n",
        "sign",
        "2",
        "E = M * (R - mu",
        "KhawajaAbaid/micrograd_c#1",
    ),
    Fault(
        "the biases of the items stay without a gradient",
        "dbi = -E.sum(axis=0) / n",
        "dbi = 0 * bi",
        "stopped",
        "3",
        "E = M * (R - mu",
    ),
    Fault(
        "the mean of the ratings is no function of them",
        "dR -= M * E.sum() / n**2",
        "dR -= 0.0",
        "missing term",
        "4",
        "mu = (M * R).sum() / n\n    E = M * (",
    ),
)
HARD = (
    Hard("nearly nothing left over", "cancellation", perfect),
    Hard("a user and an item without ratings", "ties", unseen),
    Hard("six of everything", "sizes", lambda rng: draw(rng, n_u=6, n_i=6, k=6), "float64"),
    Hard("small ratings", "tiny", lambda rng: draw(rng, scale=1e-12)),
    Hard("half the bits", "16 bits", draw, "float16"),
)
