"""Pre-norm feed-forward block of a transformer (equinox), loss against a target sequence."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import erf

EPS = 1e-2


class FeedForward(eqx.Module):
    norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, width, inner, key):
        a, b = jax.random.split(key)
        self.norm = eqx.nn.LayerNorm(width, eps=EPS)
        self.up = eqx.nn.Linear(width, inner, key=a)
        self.down = eqx.nn.Linear(inner, width, use_bias=False, key=b)

    def __call__(self, token):
        h = self.norm(token)
        h = jax.nn.gelu(self.up(h), approximate=False)
        return token + self.down(h)


def load(arrays):
    inner, width = arrays["up"]["weight"].shape
    blank = eqx.filter_eval_shape(FeedForward, width, inner, jax.random.key(0))
    return eqx.tree_at(
        lambda m: (m.norm.weight, m.norm.bias, m.up.weight, m.up.bias, m.down.weight),
        blank,
        (
            arrays["norm"]["weight"],
            arrays["norm"]["bias"],
            arrays["up"]["weight"],
            arrays["up"]["bias"],
            arrays["down"]["weight"],
        ),
    )


def f(arrays, tokens, target):
    out = jax.vmap(load(arrays))(tokens)
    return 0.5 * jnp.mean((out - target) ** 2)


def g(arrays, tokens, target):
    gamma, beta = arrays["norm"]["weight"], arrays["norm"]["bias"]
    w, b, v = arrays["up"]["weight"], arrays["up"]["bias"], arrays["down"]["weight"]
    centred = tokens - tokens.mean(axis=-1, keepdims=True)
    inv = jax.lax.rsqrt((centred**2).mean(axis=-1, keepdims=True) + EPS)
    xhat = centred * inv
    y = gamma * xhat + beta
    z = y @ w.T + b
    cdf = 0.5 * (1 + erf(z / 2**0.5))
    act = z * cdf
    dout = (tokens + act @ v.T - target) / tokens.size

    dv = dout.T @ act
    pdf = jnp.exp(-0.5 * z * z) / (2 * jnp.pi) ** 0.5
    dz = (dout @ v) * (cdf + z * pdf)
    dw, db = dz.T @ y, dz.sum(axis=0)
    dy = dz @ w
    dgamma, dbeta = (dy * xhat).sum(axis=0), dy.sum(axis=0)

    def through_norm(d):
        d = d * gamma
        along = (d * xhat).mean(axis=-1, keepdims=True)
        return inv * (d - d.mean(axis=-1, keepdims=True) - xhat * along)

    dtokens = dout + through_norm(dy)
    grads = {
        "norm": {"weight": dgamma, "bias": dbeta},
        "up": {"weight": dw, "bias": db},
        "down": {"weight": dv},
    }
    return grads, dtokens


# ---- keys
from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "equinox"
ARGNUMS = (0, 1)


def draw(rng, length=4, width=5, scale=1.0, shift=0.0, weights=0.7):
    arrays = {
        "norm": {"weight": 1 + 0.3 * rng.normal(size=width), "bias": 0.3 * rng.normal(size=width)},
        "up": {"weight": weights * rng.normal(size=(7, width)), "bias": 0.3 * rng.normal(size=7)},
        "down": {"weight": 0.7 * rng.normal(size=(width, 7))},
    }
    tokens = shift + scale * rng.normal(size=(length, width))
    return arrays, tokens, rng.normal(size=(length, width))


WEIGHTS = "0.down.weight 0.norm.bias 0.norm.weight 0.up.bias 0.up.weight"
FAULTS = (
    Fault(
        "the mean of the gradient is taken off twice",
        "(d - d.mean(axis=-1, keepdims=True)",
        "(d - 2 * d.mean(axis=-1, keepdims=True)",
        "counted twice",
        "1",
        "h = self.norm(token)",
        "tenstorrent/tt-metal#53204",
    ),
    Fault(
        "the skip's gradient is added in front of the norm's derivative instead of after it",
        "dtokens = dout + through_norm(dy)",
        "dtokens = through_norm(dout + dy)",
        "wrong place",
        "1",
        "return token + self.down(h)",
        "Dao-AILab/quack#53",
    ),
    Fault(
        "the skip has no gradient",
        "dtokens = dout + through_norm(dy)",
        "dtokens = through_norm(dy)",
        "missing term",
        "1",
        "return token + self.down(h)",
        "paiml/entrenar#313",
    ),
    Fault(
        "derivative of the logistic approximation of gelu",
        "(cdf + z * pdf)",
        "jax.vmap(jax.vmap(jax.grad(lambda s: s * jax.nn.sigmoid(1.702 * s))))(z)",
        "wrong function",
        "0.norm.bias 0.norm.weight 0.up.bias 0.up.weight 1",
        "h = jax.nn.gelu(",
    ),
    Fault(
        "eps is outside the root in the norm's derivative",
        "return inv * (d -",
        "return 1 / ((centred**2).mean(-1, keepdims=True) ** 0.5 + EPS) * (d -",
        "wrong place|wrong function",
        "1",
        "h = self.norm(token)",
    ),
)
HARD = (
    Hard("tokens far from zero", "cancellation", lambda rng: draw(rng, shift=200.0)),
    Hard("tokens almost constant", "ill-conditioned", lambda rng: draw(rng, scale=1e-4)),
    Hard("deep in the tails of gelu", "saturation", lambda rng: draw(rng, weights=20.0)),
    Hard("a very wide spread", "extreme", lambda rng: draw(rng, scale=1e12), "float64"),
    Hard("half precision", "16 bits", lambda rng: draw(rng, length=3), "bfloat16"),
)
