"""Selective state space layer (diagonal), with resets inside a packed sequence and padding."""

import jax
import jax.numpy as jnp


def discretise(x, dt, B, p, reset, length):
    A = -jnp.exp(p["A_log"])
    valid = jnp.arange(x.shape[0]) < length
    delta = jnp.where(valid[:, None], jax.nn.softplus(dt + p["dt_bias"]), 0)
    decay = jnp.exp(delta[:, :, None] * A)
    decay = jnp.where(reset[:, None, None], 0, decay)
    return delta, decay, (delta * x)[:, :, None] * B[:, None, :]


def scan_states(decay, drive):
    def step(h, inp):
        a, u = inp
        h_new = a * h + u
        return h_new, (h, h_new)

    return jax.lax.scan(step, jnp.zeros_like(drive[0]), (decay, drive))


def f(x, dt, B, C, p, reset, length, target):
    _, decay, drive = discretise(x, dt, B, p, reset, length)
    last, (_, h) = scan_states(decay, drive)
    y = jnp.einsum("tdn,tn->td", h, C) + p["D"] * x
    return 0.5 * jnp.mean((y - target) ** 2) + 0.5 * jnp.sum(last**2)


def g(x, dt, B, C, p, reset, length, target):
    T = x.shape[0]
    A = -jnp.exp(p["A_log"])
    raw = dt + p["dt_bias"]
    valid = (jnp.arange(T) < length)[:, None]
    delta = jnp.where(valid, jax.nn.softplus(raw), 0)
    decay = jnp.where(reset[:, None, None], 0, jnp.exp(delta[:, :, None] * A))
    drive = jnp.einsum("td,td,tn->tdn", delta, x, B)
    last, (h_before, h) = scan_states(decay, drive)

    dy = (jnp.einsum("tdn,tn->td", h, C) + p["D"] * x - target) / target.size
    dC = jnp.einsum("td,tdn->tn", dy, h)

    def back(dh, inp):
        dy_t, C_t, a = inp
        dh = dh + dy_t[:, None] * C_t
        return dh * a, dh

    _, dh = jax.lax.scan(back, last, (dy, C, decay), reverse=True)

    d_decay = dh * h_before * decay
    dhB = jnp.einsum("tdn,tn->td", dh, B)
    d_delta = jnp.einsum("tdn,dn->td", d_decay, A) + dhB * x
    d_raw = jnp.where(valid, d_delta * jax.nn.sigmoid(raw), 0)
    dx = dhB * delta + dy * p["D"]
    dB = jnp.einsum("tdn,td->tn", dh, delta * x)
    d_p = {
        "A_log": jnp.einsum("tdn,td->dn", d_decay, delta) * A,
        "D": jnp.sum(dy * x, axis=0),
        "dt_bias": d_raw.sum(axis=0),
    }
    return dx, d_raw, dB, dC, d_p


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "scan"
ARGNUMS = (0, 1, 2, 3, 4)


def draw(rng, t=8, d=3, n=4, length=6, resets=(0, 3), shift=0.0, log_rate=0.0):
    p = {"A_log": rng.normal(size=(d, n)) / 2 + log_rate, "D": rng.normal(size=d)}
    p["dt_bias"] = rng.normal(size=d)
    x, dt, target = rng.normal(size=(3, t, d))
    B, C = rng.normal(size=(2, t, n))
    reset = np.isin(np.arange(t), resets)
    return x, dt + shift, B, C, p, reset, np.array(length), target


def long(rng):
    return draw(rng, t=400, length=390, log_rate=-5.0)


FAULTS = (
    Fault(
        "steps of padding have a length again once softplus and bias are applied",
        "delta = jnp.where(valid, jax.nn.softplus(raw), 0)",
        "delta = jax.nn.softplus(raw)",
        "mask ignored",
        "0 1 2 3 4.A_log 4.D 4.dt_bias",
        "delta = jnp.where(valid[:, None]",
        "state-spaces/mamba#368",
    ),
    Fault(
        "the slope of a rectifier in place of softplus's",
        "d_delta * jax.nn.sigmoid(raw)",
        "d_delta * (raw > 0)",
        "wrong function",
        "1 4.dt_bias",
        "delta = jnp.where(valid[:, None]",
    ),
    Fault(
        "no gradient for a sequence that is scanned over",
        'dB = jnp.einsum("tdn,td->tn", dh, delta * x)',
        "dB = jnp.zeros_like(B)",
        "stopped",
        "2",
        "return delta, decay, (delta * x)",
        "jax-ml/jax#753",
    ),
    Fault(
        "the step's length acts through the decay only",
        'jnp.einsum("tdn,dn->td", d_decay, A) + dhB * x',
        'jnp.einsum("tdn,dn->td", d_decay, A)',
        "missing term",
        "1 4.dt_bias",
        "return delta, decay, (delta * x)",
    ),
    Fault(
        "the state before is found by dividing by the decay, which may be zero",
        "d_decay = dh * h_before * decay",
        "d_decay = dh * ((h - drive) / decay) * decay",
        "not finite",
        "1 4.A_log 4.dt_bias",
        "h_new = a * h + u",
        "tracel-ai/burn#3864",
    ),
)  # fmt: skip
HARD = (
    Hard("steps of hardly any length", "tiny", lambda rng: draw(rng, shift=-30.0)),
    Hard("decays that underflow", "extreme", lambda rng: draw(rng, shift=40.0, log_rate=3.0)),
    Hard("a long sequence that forgets slowly", "large", long),
    Hard("one step", "sizes", lambda rng: draw(rng, 1, 1, 1, 1, ()), "float64"),
    Hard("half precision", "16 bits", draw, "float16"),
)  # fmt: skip
