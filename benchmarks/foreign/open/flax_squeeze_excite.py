"""Squeeze-and-excite with its own backward rule: flax.linen.custom_vjp around the whole block."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class SqueezeExcite(nn.Module):
    squeezed: int

    @nn.compact
    def __call__(self, x):
        c = x.shape[-1]
        lecun = nn.initializers.lecun_normal()
        self.param("down", lecun, (c, self.squeezed))
        self.param("up", lecun, (self.squeezed, c))
        self.param("up_bias", nn.initializers.zeros, (c,))
        return nn.custom_vjp(gated, forward_fn=gated_fwd, backward_fn=gated_bwd)(self, x)


def gated(mdl, x):
    return gated_fwd(mdl, x)[0]


def gated_fwd(mdl, x):
    down, up = mdl.get_variable("params", "down"), mdl.get_variable("params", "up")
    squeeze = jnp.mean(x, axis=(1, 2))
    hidden_in = squeeze @ down
    hidden = nn.relu(hidden_in)
    gate = nn.sigmoid(hidden @ up + mdl.get_variable("params", "up_bias"))
    out = x * gate[:, None, None, :]
    return out, (x, squeeze, hidden_in, hidden, gate, down, up)


def gated_bwd(residuals, dout):
    x, squeeze, hidden_in, hidden, gate, down, up = residuals
    area = x.shape[1] * x.shape[2]
    dx = dout * gate[:, None, None, :]
    dgate = jnp.sum(dout * x, axis=(1, 2))
    dlogit = dgate * gate * (1 - gate)
    dup = hidden.T @ dlogit
    dhidden = dlogit @ up.T
    dhidden_in = jnp.where(hidden_in > 0, dhidden, 0)
    ddown = squeeze.T @ dhidden_in
    dsqueeze = dhidden_in @ down.T
    dx = dx + dsqueeze[:, None, None, :] / area
    params_t = {"params": {"down": ddown, "up": dup, "up_bias": jnp.sum(dlogit, axis=0)}}
    return params_t, dx


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (1, 1), name="expand")(x)
        x = SqueezeExcite(3, name="se")(x)
        return nn.Conv(1, (1, 1), name="project")(jnp.tanh(x))[..., 0]


def f(params, x, target):
    residual = Block().apply({"params": params}, x) - target
    return jnp.mean(jnp.sum(jnp.log1p(residual**2), axis=(1, 2)))


def g(params, x, target):
    return jax.grad(f, argnums=(0, 1))(params, x, target)


# ---- keys
from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "flax"
ARGNUMS = (0, 1)


def draw(rng, n=3, height=4, width=3, scale=1.0, up=1.0):
    params = {
        "expand": {"kernel": rng.normal(size=(1, 1, 2, 4)), "bias": rng.normal(size=4) * 0.5},
        "se": {
            "down": rng.normal(size=(4, 3)) * 0.8,
            "up": rng.normal(size=(3, 4)) * up,
            "up_bias": rng.normal(size=4) * 0.5,
        },
        "project": {"kernel": rng.normal(size=(1, 1, 4, 1)), "bias": rng.normal(size=1)},
    }
    x = rng.normal(size=(n, height, width, 2)) * scale
    return params, x, rng.normal(size=(n, height, width))


def kink(rng):
    params, x, target = draw(rng)
    params["se"]["down"][:, 1] = 0.0
    return params, x, target


INPUT = "0.expand.bias 0.expand.kernel 1"
FAULTS = (
    Fault(
        "the gate taken for a constant on the way back to the input",
        "dx = dx + dsqueeze[:, None, None, :] / area",
        "dx = dx + jnp.zeros_like(dsqueeze)[:, None, None, :] / area",
        "stopped|missing term",
        INPUT,
        "squeeze = jnp.mean(",
    ),
    Fault(
        "the mean over the picture divided by its width alone",
        "area = x.shape[1] * x.shape[2]",
        "area = x.shape[2]",
        "factor",
        INPUT,
        "squeeze = jnp.mean(",
        "linkedin/Liger-Kernel#1376",
    ),
    Fault(
        "the gate differentiated like a tanh",
        "dlogit = dgate * gate * (1 - gate)",
        "dlogit = dgate * (1 - gate * gate)",
        "wrong function",
        INPUT + " 0.se.down 0.se.up 0.se.up_bias",
        "gate = nn.sigmoid(",
    ),
    Fault(
        "the weights upward get what stands before the relu",
        "dup = hidden.T @ dlogit",
        "dup = hidden_in.T @ dlogit",
        "wrong place",
        "0.se.up",
        "gate = nn.sigmoid(",
    ),
    Fault(
        "the relu lets everything through backward",
        "jnp.where(hidden_in > 0, dhidden, 0)",
        "jnp.where(hidden_in > 0, dhidden, dhidden)",
        "mask ignored|wrong function",
        INPUT + " 0.se.down",
        "hidden = nn.relu(",
    ),
)
HARD = (
    Hard("a relu at its kink", "ties", kink),
    Hard("gates open or shut", "saturation", lambda rng: draw(rng, up=40.0)),
    Hard("a single pixel", "sizes", lambda rng: draw(rng, n=1, height=1, width=1)),
    Hard("a loud picture", "extreme", lambda rng: draw(rng, scale=1e3), "float64"),
    Hard("half precision", "16 bits", lambda rng: draw(rng, n=2), "bfloat16"),
)
