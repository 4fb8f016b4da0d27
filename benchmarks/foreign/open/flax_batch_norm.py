import jax
import jax.numpy as jnp
from flax import linen as nn

EPS = 1e-3


# batch norm over axis 0, training mode, with the fused backward pass
@jax.custom_vjp
def batch_norm(x, gamma, beta):
    return bn_fwd(x, gamma, beta)[0]


def bn_fwd(x, gamma, beta):
    mu = x.mean(0)
    xmu = x - mu
    var = (xmu**2).mean(0)
    ivar = 1.0 / jnp.sqrt(var + EPS)
    out = gamma * (xmu * ivar) + beta
    return out, (xmu, ivar, gamma)


def bn_bwd(cache, dout):
    xmu, ivar, gamma = cache
    m = dout.shape[0]
    xhat = xmu * ivar
    dgamma = (dout * xhat).sum(0)
    dbeta = dout.sum(0)
    dxhat = dout * gamma
    mean_d = dxhat.sum(0) / m
    mean_dx = (dxhat * xhat).sum(0) / m
    dx = ivar * (dxhat - mean_d - xhat * mean_dx)
    return dx, dgamma, dbeta


batch_norm.defvjp(bn_fwd, bn_bwd)


class FusedBatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        gamma = self.param("gamma", nn.initializers.ones_init(), x.shape[-1:])
        beta = self.param("beta", nn.initializers.zeros_init(), x.shape[-1:])
        return batch_norm(x, gamma, beta)


class Net(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.hidden, use_bias=False)(x)
        x = FusedBatchNorm()(x)
        x = nn.elu(x)
        return nn.Dense(2)(x)


def f(params, x, labels):
    hidden = params["Dense_0"]["kernel"].shape[1]
    scores = Net(hidden).apply({"params": params}, x)
    picked = jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None], axis=1)
    return -picked.mean()


def g(params, x, labels):
    return jax.grad(f, (0, 1))(params, x, labels)


# ---- keys
from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "flax"
ARGNUMS = (0, 1)


def draw(rng, n=6, d=3, hidden=5, scale=1.0, shift=0.0):
    params = {
        "Dense_0": {"kernel": rng.normal(size=(d, hidden))},
        "FusedBatchNorm_0": {
            "gamma": 1.0 + 0.4 * rng.normal(size=hidden),
            "beta": 0.3 * rng.normal(size=hidden),
        },
        "Dense_1": {"kernel": rng.normal(size=(hidden, 2)), "bias": rng.normal(size=2)},
    }
    return params, shift + scale * rng.normal(size=(n, d)), rng.integers(0, 2, n)


NORM = "0.FusedBatchNorm_0.beta 0.FusedBatchNorm_0.gamma"
FAULTS = (
    Fault(
        "mean and variance taken for constants",
        "dx = ivar * (dxhat - mean_d - xhat * mean_dx)",
        "dx = ivar * dxhat",
        "missing term",
        "0.Dense_0.kernel 1",
        "xmu = x - mu",
        "facebookresearch/CrypTen#143",
    ),
    Fault(
        "the input's gradient forgets the scale",
        "dxhat = dout * gamma",
        "dxhat = dout",
        "factor|missing term",
        "0.Dense_0.kernel 1",
        "out = gamma *",
        "denizyuret/Knet.jl#288",
    ),
    Fault(
        "the gradients of scale and shift change places",
        "return dx, dgamma, dbeta",
        "return dx, dbeta, dgamma",
        "transpose",
        NORM,
        "out = gamma *",
        "Oneflow-Inc/oneflow#6149",
    ),
    Fault(
        "means over one example less",
        "    m = dout.shape[0]",
        "    m = dout.shape[0] - 1",
        "off by one|factor",
        "0.Dense_0.kernel 1",
        "var = (xmu**2).mean(0)",
    ),
    Fault(
        "projection on the centred input instead of the normalised one",
        "mean_dx = (dxhat * xhat).sum(0) / m",
        "mean_dx = (dxhat * xmu).sum(0) / m",
        "wrong place",
        "0.Dense_0.kernel 1",
        "ivar = 1.0 /",
    ),
)
HARD = (
    Hard("far from zero", "cancellation", lambda rng: draw(rng, shift=300.0)),
    Hard("hardly any spread", "ill-conditioned", lambda rng: draw(rng, scale=1e-3)),
    Hard("two thousand examples", "large", lambda rng: draw(rng, n=2000)),
    Hard("one example", "sizes", lambda rng: draw(rng, n=1), "float64"),
    Hard("half precision", "16 bits", lambda rng: draw(rng, n=7), "bfloat16"),
)
