import jax.numpy as jnp

GAMMA = 0.5
STEPS = ((1, 0), (0, 1), (1, 1))


def costs(x, y):
    return [[jnp.sum((x[i] - y[j]) ** 2) for j in range(len(y))] for i in range(len(x))]


def fill(D):
    """Accumulated soft costs; a cell is reached from above, from the left and from both."""
    R = {}
    for i in range(len(D)):
        for j in range(len(D[0])):
            before = [R[i - a, j - b] for a, b in STEPS if (i - a, j - b) in R]
            if not before:
                R[i, j] = D[i][j]
                continue
            low = before[0]
            for r in before[1:]:
                low = jnp.minimum(low, r)
            total = 0.0
            for r in before:
                total = total + jnp.exp((low - r) / GAMMA)
            R[i, j] = D[i][j] + low - GAMMA * jnp.log(total)
    return R


def f(x, y):
    R = fill(costs(x, y))
    return R[len(x) - 1, len(y) - 1] / (len(x) + len(y))


def g(x, y):
    n, m = len(x), len(y)
    D = costs(x, y)
    R = fill(D)
    E = {(n - 1, m - 1): jnp.ones_like(D[0][0]) / (n + m)}
    for i in reversed(range(n)):
        for j in reversed(range(m)):
            if (i, j) == (n - 1, m - 1):
                continue
            e = 0.0
            for a, b in ((1, 0), (0, 1), (1, 1)):
                if i + a < n and j + b < m:
                    u, v = i + a, j + b
                    weight = jnp.exp((R[u, v] - R[i, j] - D[u][v]) / GAMMA)
                    e = e + E[u, v] * weight
            E[i, j] = e
    dx = [0.0] * n
    dy = [0.0] * m
    for (i, j), e in E.items():
        dx[i] = dx[i] + 2 * e * (x[i] - y[j])
        dy[j] = dy[j] - 2 * e * (x[i] - y[j])
    return jnp.stack(dx), jnp.stack(dy)


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "loop"
ARGNUMS = (0, 1)


def draw(rng, n=4, m=5, d=2, scale=1.0, offset=0.0):
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    return x * scale + offset, y * scale + offset


def same(rng):
    x, _ = draw(rng)
    return x, np.concatenate([x, x[-1:]])


FAULTS = (
    Fault(
        "the weights of the three ways are not applied going back",
        "e = e + E[u, v] * weight",
        "e = e + E[u, v]",
        "factor|missing term",
        "0 1",
        "R[i, j] = D[i][j] + low",
        "keonlee9420/Parallel-Tacotron2#15",
    ),
    Fault(
        "the gradient that comes in is ignored",
        "E = {(n - 1, m - 1): jnp.ones_like(D[0][0]) / (n + m)}",
        "E = {(n - 1, m - 1): jnp.ones_like(D[0][0])}",
        "factor",
        "0 1",
        "return R[len(x) - 1",
        "k2-fsa/k2#341",
    ),
    Fault(
        "the cost of the cell that is left, not of the one that is entered",
        "weight = jnp.exp((R[u, v] - R[i, j] - D[u][v]) / GAMMA)",
        "weight = jnp.exp((R[u, v] - R[i, j] - D[i][j]) / GAMMA)",
        "wrong place",
        "0 1",
        "R[i, j] = D[i][j] + low",
    ),
    Fault(
        "the diagonal is walked twice",
        "for a, b in ((1, 0), (0, 1), (1, 1)):",
        "for a, b in ((1, 0), (0, 1), (1, 1), (1, 1)):",
        "counted twice",
        "0 1",
        "R[i, j] = D[i][j] + low",
    ),
    Fault(
        "the table of expected visits in bfloat16",
        "            E[i, j] = e",
        "            E[i, j] = e.astype(jnp.bfloat16).astype(e.dtype)",
        "low precision",
        "0 1",
        "R[i, j] = D[i][j] + low",
    ),
)
HARD = (
    Hard("a sequence and itself", "cancellation", same),
    Hard("all steps cost nothing", "ties", lambda rng: (np.ones((4, 2)), np.ones((5, 2)))),
    Hard("one sample each", "sizes", lambda rng: draw(rng, n=1, m=1, d=1)),
    Hard("one way is much the cheapest", "saturation", lambda rng: draw(rng, scale=15.0)),
    Hard("sixteen bits", "16 bits", draw, "bfloat16"),
)
