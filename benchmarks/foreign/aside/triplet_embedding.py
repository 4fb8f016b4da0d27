# triplet loss on the unit sphere
import jax.numpy as jnp

MARGIN = 0.4
EPS = 1e-4


def l2norm(v):
    return v / jnp.sqrt((v * v).sum(axis=1, keepdims=True) + EPS)


def l2norm_bwd(dunit, v):
    length = jnp.sqrt(jnp.sum(v**2, axis=1, keepdims=True) + EPS)
    unit = v / length
    return (dunit - unit * jnp.sum(dunit * unit, axis=1, keepdims=True)) / length


def f(W, anchor, positive, negative):
    ea, ep, en = l2norm(anchor.dot(W)), l2norm(positive.dot(W)), l2norm(negative.dot(W))
    d_ap = jnp.sum((ea - ep) ** 2, axis=1)
    d_an = jnp.sum((ea - en) ** 2, axis=1)
    violation = d_ap - d_an + MARGIN
    violation = violation * (violation > 0)
    return jnp.mean(violation)


def g(W, anchor, positive, negative):
    n = anchor.shape[0]
    za, zp, zn = anchor.dot(W), positive.dot(W), negative.dot(W)
    ea, ep, en = l2norm(za), l2norm(zp), l2norm(zn)
    gap = ((ea - ep) ** 2).sum(axis=1) - ((ea - en) ** 2).sum(axis=1)
    active = (gap + MARGIN > 0)[:, None] / n
    active = active.astype(W.dtype)

    dea = 2 * (en - ep) * active
    dep = 2 * (ep - ea) * active
    den = 2 * (ea - en) * active

    dza = l2norm_bwd(dea, za)
    dzp = l2norm_bwd(dep, zp)
    dzn = l2norm_bwd(den, zn)
    dW = anchor.T.dot(dza) + positive.T.dot(dzp) + negative.T.dot(dzn)
    danchor = dza.dot(W.T)
    dpositive = dzp.dot(W.T)
    return dW, danchor, dpositive


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "numpy"
ARGNUMS = (0, 1, 2)


def draw(rng, n=8, d=5, k=3, scale=1.0):
    a = rng.normal(size=(n, d))
    p, q = a + 0.7 * rng.normal(size=(n, d)), a + rng.normal(size=(n, d))
    p[0] = 0.0  # a padded row
    return rng.normal(size=(d, k)) * scale, a * scale, p * scale, q * scale


def twins(rng):
    W, a, p, q = draw(rng)
    return W, a, p, p + 1e-6 * q


FAULTS = (
    Fault(
        "the query gets no gradient",
        "danchor = dza.dot(W.T)",
        "danchor = jnp.zeros_like(anchor)",
        "stopped",
        "1",
        "ea, ep, en = l2norm(anchor",
        "BVLC/caffe#603",
    ),
    Fault(
        "the normalisation passes the gradient through as it is",
        "return (dunit - unit * jnp.sum(dunit * unit, axis=1, keepdims=True)) / length",
        "return dunit",
        "wrong function",
        "0 1 2",
        "return v / jnp.sqrt",
        "luhaofang/tripletloss#7",
    ),
    Fault(
        "the anchor is pulled by the positive alone",
        "dea = 2 * (en - ep) * active",
        "dea = 2 * (ea - ep) * active",
        "missing term",
        "0 1",
        "d_an = jnp.sum",
    ),
    Fault(
        "triplets that are far enough apart count as well",
        "active = (gap + MARGIN > 0)[:, None] / n",
        "active = jnp.ones_like(gap)[:, None] / n",
        "mask ignored",
        "0 1 2",
        "violation = violation * (",
    ),
    Fault(
        "the length of a row of zeros is zero",
        "jnp.sum(v**2, axis=1, keepdims=True) + EPS",
        "jnp.sum(v**2, axis=1, keepdims=True)",
        "not finite",
        "0 2",
        "return v / jnp.sqrt",
        "tenstorrent/tt-metal#55585",
    ),
)
HARD = (
    Hard("positive and negative nearly the same", "cancellation", twins, "float64"),
    Hard("rows of zeros", "ties", lambda rng: (draw(rng)[0], *np.zeros((3, 8, 5)))),
    Hard("short vectors", "tiny", lambda rng: draw(rng, scale=1e-5)),
    Hard("many triplets", "large", lambda rng: draw(rng, n=2000, d=5)),
    Hard("sixteen bits", "16 bits", draw, "bfloat16"),
)
