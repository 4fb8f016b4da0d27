# hypergradient: validation loss after a few unrolled momentum steps of ridge regression
import jax.numpy as jnp

STEPS = 4


def slope(w, lam, X, y):
    return X.T @ (X @ w - y) / len(y) + lam * w


def train(w, lr, mom, lam, X, y):
    ws, vs = [w], [jnp.zeros_like(w)]
    for k in range(STEPS):
        vs.append(mom * vs[k] - lr * slope(ws[k], lam, X, y))
        ws.append(ws[k] + vs[k + 1])
    return ws, vs


def f(w0, lr, mom, lam, X, y, Xval, yval):
    ws, _ = train(w0, lr, mom, lam, X, y)
    r = Xval @ ws[-1] - yval
    return 0.5 * jnp.mean(r**2)


def g(w0, lr, mom, lam, X, y, Xval, yval):
    ws, vs = train(w0, lr, mom, lam, X, y)
    dw = Xval.T @ (Xval @ ws[STEPS] - yval) / len(yval)
    dv = jnp.zeros_like(w0)
    dlr, dmom, dlam = jnp.zeros_like(lr), jnp.zeros_like(mom), jnp.zeros_like(lam)
    for k in range(STEPS - 1, -1, -1):
        dv = dv + dw
        dlr = dlr - jnp.dot(dv, slope(ws[k], lam, X, y))
        dmom = dmom + jnp.dot(dv, vs[k])
        dslope = -lr * dv
        dlam = dlam + jnp.dot(dslope, ws[k])
        dw = dw + X.T @ (X @ dslope) / len(y) + lam * dslope
        dv = mom * dv
    return dw, dlr, dmom, dlam


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "loop"
ARGNUMS = (0, 1, 2, 3)


def draw(rng, n=9, m=5, d=3, lr=0.2, scale=1.0):
    X, Xval, w = rng.normal(size=(n, d)), rng.normal(size=(m, d)), rng.normal(size=d)
    y, yval = X @ w + rng.normal(size=n), Xval @ w + rng.normal(size=m)
    rates = np.array(lr), np.array(0.7), np.array(0.4)
    return rng.normal(size=d), *rates, X * scale, y, Xval, yval


def alike(rng):
    w0, lr, mom, lam, X, y, Xval, yval = draw(rng)
    X[:, 1] = X[:, 0] * (1 + 1e-6)
    return w0, lr, mom, 0 * lam, X, y, Xval, yval


FAULTS = (
    Fault(
        "the momentum is multiplied by the velocity after the step",
        "dmom = dmom + jnp.dot(dv, vs[k])",
        "dmom = dmom + jnp.dot(dv, vs[k + 1])",
        "off by one",
        "2",
        "vs.append(mom * vs[k]",
    ),
    Fault(
        "the curvature of the penalty is left out",
        "/ len(y) + lam * dslope",
        "/ len(y)",
        "missing term",
        "0 1 2 3",
        "return X.T @ (X @ w - y)",
    ),
    Fault(
        "the weights pass on the velocity's gradient as well as their own",
        "dw = dw + X.T @ (X @ dslope)",
        "dw = dw + dv + X.T @ (X @ dslope)",
        "counted twice",
        "0 1 2 3",
        "ws.append(ws[k]",
    ),
    Fault(
        "the gradient is taken at weights that this step has changed",
        "jnp.dot(dv, slope(ws[k], lam, X, y))",
        "jnp.dot(dv, slope(ws[k + 1], lam, X, y))",
        "off by one|wrong place",
        "1",
        "vs.append(mom * vs[k]",
        "hans/glove.py#6",
    ),
    Fault(
        "what is summed for the penalty goes to a name that is never returned",
        "dlam = dlam + jnp.dot(dslope, ws[k])",
        "dlam_k = dlam + jnp.dot(dslope, ws[k])",
        "stopped",
        "3",
        "return X.T @ (X @ w - y)",
    ),
)
HARD = (
    Hard("two columns are one", "ill-conditioned", alike),
    Hard("the steps blow up", "extreme", lambda rng: draw(rng, lr=40.0, scale=30.0), "float64"),
    Hard("hardly a step", "tiny", lambda rng: draw(rng, lr=1e-8)),
    Hard("thousands of rows", "large", lambda rng: draw(rng, n=5000, m=3000, d=6)),
    Hard("sixteen bits", "16 bits", draw, "bfloat16"),
)
