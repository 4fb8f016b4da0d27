# second order recursive filter (direct form I), fitted to a recording d
import jax.numpy as jnp


def biquad(b, a, x):
    y = []
    for n in range(len(x)):
        acc = b[0] * x[n]
        if n >= 1:
            acc = acc + b[1] * x[n - 1] - a[0] * y[n - 1]
        if n >= 2:
            acc = acc + b[2] * x[n - 2] - a[1] * y[n - 2]
        y.append(acc)
    return y


def f(b, a, x, d):
    y = biquad(b, a, x)
    total = 0.0
    for n in range(len(x)):
        total = total + (y[n] - d[n]) ** 2
    return total / len(x)


def g(b, a, x, d):
    N = len(x)
    y = biquad(b, a, x)
    e = [2.0 * (y[n] - d[n]) / N for n in range(N)]
    # the feedback runs backward in time
    lam = [jnp.zeros_like(x[0])] * N
    for n in reversed(range(N)):
        s = e[n]
        if n + 1 < N:
            s = s - a[0] * lam[n + 1]
        if n + 2 < N:
            s = s - a[1] * lam[n + 2]
        lam[n] = s
    db, da = [0.0] * 3, [0.0] * 2
    for n in range(N):
        for k in range(min(3, n + 1)):
            db[k] = db[k] + lam[n] * x[n - k]
        for k in range(min(2, n)):
            da[k] = da[k] - lam[n] * y[n - k - 1]
    dx = []
    for n in range(N):
        s = 0.0
        for k in range(min(3, N - n)):
            s = s + b[k] * lam[n + k]
        dx.append(s)
    return jnp.stack(db), jnp.stack(da), jnp.stack(dx)


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "loop"
ARGNUMS = (0, 1, 2)


def draw(rng, n=9, a=(-0.7, 0.4), scale=1.0):
    return rng.normal(size=3), np.array(a), rng.normal(size=n) * scale, rng.normal(size=n) * scale


def fits(rng):
    b, a, x, d = draw(rng)
    for n in range(len(x)):
        past = sum(b[k] * x[n - k] for k in range(3) if n >= k)
        d[n] = past - sum(a[k] * d[n - k - 1] for k in range(2) if n > k)
    return b, a, x + 1e-5, d


FAULTS = (
    Fault(
        "the input gets the gradient of the output unfiltered",
        "dx.append(s)",
        "dx.append(e[n])",
        "wrong function",
        "2",
        "acc = b[0] * x[n]",
        "Trusted-AI/adversarial-robustness-toolbox#992",
    ),
    Fault(
        "the backward recursion stops short of the first sample",
        "for n in reversed(range(N)):",
        "for n in reversed(range(1, N)):",
        "off by one",
        "0 2",
        "acc = b[0] * x[n]",
        "pymc-devs/sunode#35",
    ),
    Fault(
        "the feedback is multiplied by the output of the same sample",
        "da[k] = da[k] - lam[n] * y[n - k - 1]",
        "da[k] = da[k] - lam[n] * y[n - k]",
        "off by one",
        "1",
        "acc = acc + b[1]",
    ),
    Fault(
        "the feedback is added going backward",
        "s = s - a[0] * lam[n + 1]",
        "s = s + a[0] * lam[n + 1]",
        "sign",
        "0 1 2",
        "acc = acc + b[1]",
    ),
    Fault(
        "the taps in the order of the forward pass",
        "s = s + b[k] * lam[n + k]",
        "s = s + b[2 - k] * lam[n + k]",
        "transpose",
        "2",
        "acc = acc + b[2]",
    ),
)
HARD = (
    Hard("the recording is met but for rounding", "cancellation", fits, "float64"),
    Hard("poles on the circle", "ill-conditioned", lambda rng: draw(rng, n=24, a=(-1.99, 0.99))),
    Hard("as many samples as taps", "sizes", lambda rng: draw(rng, n=3)),
    Hard("loud", "extreme", lambda rng: draw(rng, scale=1e15)),
    Hard("half the bits", "16 bits", draw, "float16"),
)
