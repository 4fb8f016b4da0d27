"""Linear-chain CRF: weighted negative log-likelihood of tag sequences of unequal length."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import logsumexp


def forward_step(trans, alpha, inp):
    emit, live = inp
    new = emit + logsumexp(alpha[:, :, None] + trans, axis=1)
    return jnp.where(live[:, None], new, alpha), alpha


def alphas(emissions, trans, start, length):
    em = jnp.swapaxes(emissions, 0, 1)
    live = jnp.arange(len(em))[:, None] < length
    last, before = lax.scan(
        lambda a, e: forward_step(trans, a, e), start + em[0], (em[1:], live[1:])
    )
    return last, before, live


def f(emissions, trans, start, end, tags, length, weight):
    B = emissions.shape[0]
    rows = jnp.arange(B)
    alpha, _, live = alphas(emissions, trans, start, length)
    log_z = logsumexp(alpha + end, axis=1)

    picked = jnp.take_along_axis(emissions, tags[..., None], axis=2)[..., 0]
    score = start[tags[:, 0]] + end[tags[rows, length - 1]]
    score += jnp.sum(jnp.where(live.T, picked, 0), axis=1)
    score += jnp.sum(jnp.where(live.T[:, 1:], trans[tags[:, :-1], tags[:, 1:]], 0), axis=1)
    return jnp.mean(weight * (log_z - score))


def g(emissions, trans, start, end, tags, length, weight):
    B, T, _ = emissions.shape
    rows = jnp.arange(B)
    last, before, live = alphas(emissions, trans, start, length)

    # log Z, reverse over time
    dlog_z = weight / B
    dalpha = dlog_z[:, None] * jax.nn.softmax(last + end, axis=1)
    dend = dalpha.sum(0)

    def back(carry, inp):
        dalpha, dtrans = carry
        alpha, live_t = inp
        dnew = jnp.where(live_t[:, None], dalpha, 0)
        pair = jax.nn.softmax(alpha[:, :, None] + trans, axis=1) * dnew[:, None, :]
        dprev = jnp.where(live_t[:, None], pair.sum(2), dalpha)
        return (dprev, dtrans + pair.sum(0)), dnew

    init = (dalpha, jnp.zeros_like(trans))
    (dalpha, dtrans), dem = lax.scan(back, init, (before, live[1:]), reverse=True)
    dem = jnp.concatenate([dalpha[None], dem])
    dstart = dalpha.sum(0)

    # minus the score of the given tags
    w = jnp.where(live.T, weight[:, None] / B, 0)
    prev, this, w_pair = tags[:, :-1], tags[:, 1:], w[:, 1:]
    dtrans = dtrans.at[prev, this].add(-w_pair)
    dem = jnp.swapaxes(dem, 0, 1).at[rows[:, None], jnp.arange(T), tags].add(-w)
    dstart = dstart.at[tags[:, 0]].add(-weight / B)
    dend = dend.at[tags[rows, length - 1]].add(-weight / B)
    return dem, dtrans, dstart, dend


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "scan"
ARGNUMS = (0, 1, 2, 3)


def draw(rng, lengths=(6, 4, 2), t=6, k=4, scale=1.0, flat=False):
    b = len(lengths)
    emissions = rng.normal(size=(b, t, k)) * scale
    trans, start, end = rng.normal(size=(k, k)) * scale, rng.normal(size=k), rng.normal(size=k)
    tags, weight = rng.integers(0, k, (b, t)), rng.uniform(0.3, 2, b)
    if flat:
        emissions, trans, start, end = (0 * a for a in (emissions, trans, start, end))
    return emissions, trans, start, end, tags, np.array(lengths), weight


FAULTS = (
    Fault(
        "a transition into the first tag is counted",
        "prev, this, w_pair = tags[:, :-1], tags[:, 1:], w[:, 1:]",
        "prev, this, w_pair = jnp.roll(tags, 1, axis=1), tags, w",
        "off by one",
        "1",
        "score += jnp.sum(jnp.where(live.T[:, 1:], trans",
        "neoml-lib/neoml#70",
    ),
    Fault(
        "the transitions are normalised over the tags they lead to",
        "jax.nn.softmax(alpha[:, :, None] + trans, axis=1)",
        "jax.nn.softmax(alpha[:, :, None] + trans, axis=2)",
        "transpose",
        "0 1 2",
        "new = emit + logsumexp(",
    ),
    Fault(
        "frames beyond the end get a gradient",
        "pair.sum(0)), dnew\n",
        "pair.sum(0)), dalpha\n",
        "mask ignored",
        "0",
        "return jnp.where(live[:, None], new, alpha), alpha",
        "tensorflow/tensorflow#41280",
    ),
    Fault(
        "log Z is not multiplied by what comes from above",
        "dlog_z = weight / B",
        "dlog_z = jnp.ones_like(weight) / B",
        "factor",
        "0 1 2 3",
        "return jnp.mean(weight * (log_z - score))",
        "pytorch/pytorch#11750",
    ),
    Fault(
        "the right boundary never learns",
        "return dem, dtrans, dstart, dend",
        "return dem, dtrans, dstart, jnp.zeros_like(dend)",
        "stopped",
        "3",
        "log_z = logsumexp(alpha + end, axis=1)",
        "keras-team/keras-contrib#508",
    ),
)  # fmt: skip
HARD = (
    Hard("all scores zero", "ties", lambda rng: draw(rng, flat=True)),
    Hard("scores of a hundred", "saturation", lambda rng: draw(rng, scale=100.0)),
    Hard("long sequences", "large", lambda rng: draw(rng, (200, 150), 200, 5)),
    Hard("sequences of one tag", "sizes", lambda rng: draw(rng, (1, 1), 2, 2), "float64"),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)  # fmt: skip
