"""Causal multi-head attention in equinox; the core has a flash-style backward rule.

The rule stores the log-normaliser of each row and recomputes the probabilities from it.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp

HEADS = 2


def _causal(t):
    return jnp.tril(jnp.ones((t, t), dtype=bool))


def _attend_fwd(q, k, v):
    t, d = q.shape
    s = jnp.where(_causal(t), q @ k.T / math.sqrt(d), -1e30)
    lse = jax.nn.logsumexp(s, axis=-1, keepdims=True)
    out = jnp.exp(s - lse) @ v
    return out, (q, k, v, out, lse)


def _attend_bwd(saved, dout):
    q, k, v, out, lse = saved
    t, d = q.shape
    s = q @ k.T / math.sqrt(d)
    p = jnp.exp(jnp.where(_causal(t), s - lse, -1e30))
    dv = p.T @ dout
    dp = dout @ v.T
    delta = jnp.sum(dout * out, axis=-1, keepdims=True)
    ds = p * (dp - delta) / math.sqrt(d)
    dq = ds @ k
    dk = ds.T @ q
    return dq, dk, dv


@jax.custom_vjp
def attend(q, k, v):
    return _attend_fwd(q, k, v)[0]


attend.defvjp(_attend_fwd, _attend_bwd)


class CausalSelfAttention(eqx.Module):
    query: eqx.nn.Linear
    key: eqx.nn.Linear
    value: eqx.nn.Linear
    output: eqx.nn.Linear

    def __init__(self, weights):
        def linear(name):
            o, i = weights[name].shape
            blank = eqx.nn.Linear(i, o, use_bias=False, key=jax.random.key(0))
            return eqx.tree_at(lambda m: m.weight, blank, weights[name])

        self.query, self.key = linear("wq"), linear("wk")
        self.value, self.output = linear("wv"), linear("wo")

    def __call__(self, x):
        def heads(layer):
            return jax.vmap(layer)(x).reshape(x.shape[0], HEADS, -1).swapaxes(0, 1)

        mixed = jax.vmap(attend)(heads(self.query), heads(self.key), heads(self.value))
        return jax.vmap(self.output)(mixed.swapaxes(0, 1).reshape(x.shape[0], -1))


def f(weights, x, probe):
    return jnp.sum(jnp.sin(CausalSelfAttention(weights)(x)) * probe)


def g(weights, x, probe):
    return jax.grad(f, argnums=(0, 1))(weights, x, probe)


# ---- keys
from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "equinox"
ARGNUMS = (0, 1)


def draw(rng, t=5, width=4, scale=1.0):
    weights = {
        "wq": rng.normal(size=(6, width)) * 0.7 * scale,
        "wk": rng.normal(size=(6, width)) * 0.7 * scale,
        "wv": rng.normal(size=(6, width)) * 0.7,
        "wo": rng.normal(size=(3, 6)) * 0.6,
    }
    return weights, rng.normal(size=(t, width)), rng.normal(size=(t, 3))


def repeated(rng):
    weights, x, probe = draw(rng)
    x[1:4] = x[0]
    return weights, x, probe


FAULTS = (
    Fault(
        "the values' gradient is never written",
        "dv = p.T @ dout",
        "dv = jnp.zeros_like(v)",
        "stopped",
        "0.wv 1",
        "out = jnp.exp(s - lse) @ v",
        "ooples/AiDotNet.Tensors#257",
    ),
    Fault(
        "the rows' sums are left out of the softmax's derivative",
        "ds = p * (dp - delta) /",
        "ds = p * dp /",
        "missing term",
        "0.wk 0.wq 1",
        "lse = jax.nn.logsumexp(",
    ),
    Fault(
        "the probabilities are recomputed without the causal mask",
        "p = jnp.exp(jnp.where(_causal(t), s - lse, -1e30))",
        "p = jnp.exp(jnp.where(_causal(t), s, s) - lse)",
        "mask ignored",
        "0.wk 0.wq 0.wv 1",
        "s = jnp.where(_causal(t),",
    ),
    Fault(
        "keys and queries are on the wrong sides of the scores' gradient",
        "dk = ds.T @ q",
        "dk = ds @ q",
        "transpose",
        "0.wk 1",
        "s = jnp.where(_causal(t),",
    ),
    Fault(
        "the rule computes in sixteen bits whatever the forward pass has",
        "dv = p.T @ dout",
        'dv = (p.T.astype("bfloat16") @ dout.astype("bfloat16")).astype(p.dtype)',
        "low precision",
        "0.wv 1",
        "out = jnp.exp(s - lse) @ v",
        "pytorch/pytorch#87979",
    ),
)
HARD = (
    Hard("one token", "sizes", lambda rng: draw(rng, t=1)),
    Hard("the same token again and again", "ties", repeated),
    Hard("attention to one place", "saturation", lambda rng: draw(rng, scale=5.0)),
    Hard("scores near zero", "cancellation", lambda rng: draw(rng, scale=1e-4), "float64"),
    Hard("half precision", "16 bits", lambda rng: draw(rng, t=6), "bfloat16"),
)
