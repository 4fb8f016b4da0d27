"""Soft mixture of experts: every token goes to every expert that is open to it."""

import jax
import jax.numpy as jnp

BALANCE = 0.3


def experts(p, x):
    pre = jnp.einsum("nd,edf->enf", x, p["w1"]) + p["b1"][:, None]
    act = jax.nn.relu(pre)
    return pre, act, jnp.einsum("enf,efo->eno", act, p["w2"])


def f(p, x, y, open_):
    _, _, z = experts(p, x)
    route = jax.nn.softmax(x @ p["wg"], axis=-1)
    gates = jnp.where(open_, route, 0)
    out = jnp.einsum("ne,eno->no", gates, z)
    load = jnp.mean(route, axis=0)
    balance = load.size * jnp.sum(load * load)
    return jnp.mean((out - y) ** 2) + BALANCE * balance


def g(p, x, y, open_):
    pre, act, z = experts(p, x)
    route = jax.nn.softmax(x @ p["wg"], axis=-1)
    gates = jnp.where(open_, route, 0)
    d_out = 2 * (jnp.einsum("ne,eno->no", gates, z) - y) / y.size

    # experts
    d_z = jnp.einsum("ne,no->eno", gates, d_out)
    d_act = jnp.einsum("eno,efo->enf", d_z, p["w2"])
    d_pre = jnp.where(pre > 0, d_act, 0)
    grads = {
        "w1": jnp.einsum("nd,enf->edf", x, d_pre),
        "b1": d_pre.sum(axis=1),
        "w2": jnp.einsum("enf,eno->efo", act, d_z),
    }
    d_x = jnp.einsum("enf,edf->nd", d_pre, p["w1"])

    # router
    d_gates = jnp.einsum("no,eno->ne", d_out, z)
    d_route = jnp.where(open_, d_gates, 0)
    d_route += BALANCE * 2 * route.shape[1] * jnp.mean(route, axis=0) / len(x)
    d_logits = route * (d_route - jnp.sum(route * d_route, axis=-1, keepdims=True))
    grads["wg"] = jnp.einsum("nd,ne->de", x, d_logits)
    d_x += jnp.einsum("ne,de->nd", d_logits, p["wg"])
    return grads, d_x


# ---- keys
from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "einsum"
ARGNUMS = (0, 1)


def draw(rng, n=8, d=4, e=3, ff=5, o=2, sharp=1.0):
    p = {"wg": rng.normal(size=(d, e)) * sharp, "w1": rng.normal(size=(e, d, ff))}
    p |= {"b1": rng.normal(size=(e, ff)), "w2": rng.normal(size=(e, ff, o)) / 2}
    open_ = rng.random((n, e)) < 0.7
    return p, rng.normal(size=(n, d)), rng.normal(size=(n, o)), open_


def on_the_kink(rng):
    p, x, *rest = draw(rng)
    p["b1"][:] = 0.0
    x[:4] = 0.0
    return p, x, *rest


ROUTE = 'softmax(x @ p["wg"], axis=-1)\n    gates = jnp.where(open_, route, 0)\n    out'
FAULTS = (
    Fault(
        "the softmax goes over an axis of one, so that the router learns nothing",
        "d_logits = route * (d_route - jnp.sum(route * d_route, axis=-1, keepdims=True))",
        "d_logits = route * (d_route - jnp.sum(d_route[..., None], axis=-1))",
        "stopped",
        "0.wg 1",
        ROUTE,
        "davidmrau/mixture-of-experts#27",
    ),
    Fault(
        "closed experts have an output, and the router is blamed for it",
        "d_route = jnp.where(open_, d_gates, 0)",
        "d_route = d_gates",
        "mask ignored",
        "0.wg 1",
        "gates = jnp.where(open_, route, 0)\n    out",
        "huggingface/transformers#48687",
    ),
    Fault(
        "the softmax has a diagonal Jacobian",
        "d_logits = route * (d_route - jnp.sum(route * d_route, axis=-1, keepdims=True))",
        "d_logits = route * (1 - route) * d_route",
        "wrong function",
        "0.wg 1",
        ROUTE,
    ),
    Fault(
        "the rectifier is asked before the bias",
        "jnp.where(pre > 0, d_act, 0)",
        'jnp.where(pre - p["b1"][:, None] > 0, d_act, 0)',
        "wrong place",
        "0.w1 0.b1 1",
        "act = jax.nn.relu(pre)",
    ),
    Fault(
        "the bias's gradient keeps the axis of tokens",
        '"b1": d_pre.sum(axis=1),',
        '"b1": d_pre,',
        "structure",
        "0.b1",
        'pre = jnp.einsum("nd,edf->enf"',
        "deeplearning4j/nd4j#2424",
    ),
)  # fmt: skip
HARD = (
    Hard("tokens on the kink", "ties", on_the_kink),
    Hard("a router without doubt", "saturation", lambda rng: draw(rng, sharp=30.0)),
    Hard("many tokens", "large", lambda rng: draw(rng, n=2000)),
    Hard("one expert", "sizes", lambda rng: draw(rng, n=1, e=1, o=1), "float64"),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)  # fmt: skip
