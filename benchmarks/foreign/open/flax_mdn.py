"""Mixture density network (Bishop 1994) with flax.nnx; targets are points in the plane."""

import jax
import jax.numpy as jnp
from flax import nnx

IN, HID, K, D = 3, 7, 4, 2


class MDN(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.trunk = nnx.Linear(IN, HID, rngs=rngs)
        self.logit = nnx.Linear(HID, K, rngs=rngs)
        self.mean = nnx.Linear(HID, K * D, rngs=rngs)
        self.logstd = nnx.Linear(HID, K, rngs=rngs)

    def __call__(self, x):
        h = jnp.tanh(self.trunk(x))
        return self.logit(h), self.mean(h).reshape(-1, K, D), self.logstd(h)


GRAPHDEF, _ = nnx.split(MDN(nnx.Rngs(0)))


def f(params, x, y):
    model = nnx.merge(GRAPHDEF, params)
    logit, mean, logstd = model(x)
    sq = jnp.sum((y[:, None, :] - mean) ** 2, axis=-1)
    logp = -0.5 * sq * jnp.exp(-2.0 * logstd) - D * logstd
    logmix = jax.nn.log_softmax(logit, axis=-1)
    return -jnp.mean(jax.nn.logsumexp(logmix + logp, axis=-1))


def _lin(p, h):
    return h @ p["kernel"] + p["bias"]


def _lin_bwd(h, d):
    return {"kernel": h.T @ d, "bias": d.sum(0)}


def g(params, x, y):
    N = x.shape[0]
    # --- forward ---
    pre = _lin(params["trunk"], x)
    h = jnp.tanh(pre)
    logit = _lin(params["logit"], h)
    mean = _lin(params["mean"], h).reshape(N, K, D)
    logstd = _lin(params["logstd"], h)
    diff = y[:, None, :] - mean
    ivar = jnp.exp(-2.0 * logstd)
    logp = -0.5 * (diff**2).sum(-1) * ivar - D * logstd
    pi = jax.nn.softmax(logit)
    gamma = jax.nn.softmax(jax.nn.log_softmax(logit) + logp)  # responsibilities
    # --- backward ---
    d_logit = (pi - gamma) / N
    d_mean = -gamma[:, :, None] * diff * ivar[:, :, None] / N
    d_mean = d_mean.reshape(N, K * D)
    d_logstd = gamma * (D - (diff**2).sum(-1) * ivar) / N
    d_h = d_logit @ params["logit"]["kernel"].T
    d_h = d_h + d_mean @ params["mean"]["kernel"].T
    d_h = d_h + d_logstd @ params["logstd"]["kernel"].T
    d_pre = d_h * (1.0 - jnp.tanh(pre) ** 2)
    return (
        {
            "trunk": _lin_bwd(x, d_pre),
            "logit": _lin_bwd(h, d_logit),
            "mean": _lin_bwd(h, d_mean),
            "logstd": _lin_bwd(h, d_logstd),
        },
    )


# ---- keys
from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "flax"
ARGNUMS = (0,)


def draw(rng, n=6, scale=0.5, logstd=-0.2):
    def layer(i, o):
        return {"kernel": rng.normal(size=(i, o)) * scale, "bias": rng.normal(size=o) * scale}

    params = {
        "trunk": layer(3, 7),
        "logit": layer(7, 4),
        "mean": layer(7, 8),
        "logstd": layer(7, 4),
    }
    params["logstd"]["bias"] += logstd
    return params, rng.normal(size=(n, 3)), rng.normal(size=(n, 2))


def alike(rng):
    params, x, y = draw(rng)
    for layer in ("logit", "mean", "logstd"):
        params[layer]["kernel"][:] = 0.0
        params[layer]["bias"][:] = 0.0
    return params, x, y


def hit(rng):
    params, x, y = draw(rng, logstd=-6.0)
    params["logstd"]["kernel"][:] = 0.0
    params["mean"]["kernel"][:] = 0.0
    y[:] = params["mean"]["bias"][:2] + 1e-3 * rng.normal(size=y.shape)
    return params, x, y


def leaves(*names):
    return " ".join(f"0.{name}.{leaf}" for name in names for leaf in ("bias", "kernel"))


FAULTS = (
    Fault(
        "the means have the gradient of the likelihood, not of its negative",
        "d_mean = -gamma",
        "d_mean = gamma",
        "sign",
        leaves("mean", "trunk"),
        "sq = jnp.sum((",
        "STOR-i/GaussianProcesses.jl#26",
    ),
    Fault(
        "derivative by the deviation, though the network gives its logarithm",
        "d_logstd = gamma * (",
        "d_logstd = gamma / jnp.exp(logstd) * (",
        "factor",
        leaves("logstd", "trunk"),
        "logp = -0.5 * sq",
        "stanfordmlgroup/ngboost#6",
    ),
    Fault(
        "the head of the weights is returned in bfloat16",
        '"logit": _lin_bwd(h, d_logit),',
        '"logit": _lin_bwd(h.astype(jnp.bfloat16), d_logit.astype(jnp.bfloat16)),',
        "dtype|low precision",
        leaves("logit"),
        "return self.logit(h)",
    ),
    Fault(
        "the means' share reaches the trunk twice",
        "d_h = d_h + d_mean @",
        "d_h = d_h + 2.0 * d_mean @",
        "counted twice|factor",
        leaves("trunk"),
        "return self.logit(h)",
    ),
    Fault(
        "the derivative of tanh is given the activation instead of the weighted sum",
        "(1.0 - jnp.tanh(pre) ** 2)",
        "(1.0 - jnp.tanh(h) ** 2)",
        "wrong place",
        leaves("trunk"),
        "h = jnp.tanh(self.trunk(x))",
        "benoitfragit/libBrain#78",
    ),
)
HARD = (
    Hard("all components alike", "ties", alike),
    Hard("narrow components on the target", "cancellation", hit),
    Hard("narrow components far away", "saturation", lambda rng: draw(rng, logstd=-3.0)),
    Hard("a thousand points", "large", lambda rng: draw(rng, n=1000)),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)
