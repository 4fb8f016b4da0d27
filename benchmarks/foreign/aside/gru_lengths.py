"""GRU over sequences of unequal length, with one dropout mask for the inputs of all steps."""

from functools import partial

import jax
import jax.numpy as jnp

KEEP = 0.8


def input_mask(x, seed):
    kept = jax.random.bernoulli(jax.random.PRNGKey(seed), KEEP, x.shape[:1] + x.shape[2:])
    return kept.astype(x.dtype) / KEEP


def cell(p, h, inp):
    x, live = inp
    az = x @ p["Wz"] + h @ p["Uz"] + p["bz"]
    ar = x @ p["Wr"] + h @ p["Ur"] + p["br"]
    z, r = jax.nn.sigmoid(az), jax.nn.sigmoid(ar)
    n = jnp.tanh(x @ p["Wn"] + (r * h) @ p["Un"] + p["bn"])
    new = jnp.where(live, (1 - z) * n + z * h, h)
    return new, (h, z, r, n)


def time_major(x, lengths, seed):
    x = x * input_mask(x, seed)[:, None, :]
    live = jnp.arange(x.shape[1])[:, None, None] < lengths[None, :, None]
    return jnp.swapaxes(x, 0, 1), live


def f(x, h0, p, lengths, y, seed):
    last, _ = jax.lax.scan(partial(cell, p), h0, time_major(x, lengths, seed))
    return 0.5 * jnp.mean((last @ p["V"] - y) ** 2)


def g(x, h0, p, lengths, y, seed):
    xs, live = time_major(x, lengths, seed)
    last, saved = jax.lax.scan(partial(cell, p), h0, (xs, live))
    derr = (last @ p["V"] - y) / y.size

    def back(carry, inp):
        dh, acc = carry
        x_t, live_t, (h, z, r, n) = inp
        dnew = jnp.where(live_t, dh, 0)
        daz = dnew * (h - n) * z * (1 - z)
        dan = dnew * (1 - z) * (1 - n * n)
        drh = dan @ p["Un"].T
        dar = drh * h * r * (1 - r)
        step = {"Wz": x_t.T @ daz, "Uz": h.T @ daz, "bz": daz.sum(0)}
        step |= {"Wr": x_t.T @ dar, "Ur": h.T @ dar, "br": dar.sum(0)}
        step |= {"Wn": x_t.T @ dan, "Un": (r * h).T @ dan, "bn": dan.sum(0)}
        acc = {name: acc[name] + d for name, d in step.items()}
        dx = daz @ p["Wz"].T + dar @ p["Wr"].T + dan @ p["Wn"].T
        dh_prev = dnew * z + drh * r + daz @ p["Uz"].T + dar @ p["Ur"].T
        return (jnp.where(live_t, dh_prev, dh), acc), dx

    acc = {name: jnp.zeros_like(w) for name, w in p.items() if name != "V"}
    (dh0, dp), dxs = jax.lax.scan(back, (derr @ p["V"].T, acc), (xs, live, saved), reverse=True)
    dx = jnp.swapaxes(dxs, 0, 1) * input_mask(x, seed)[:, None, :]
    dp["V"] = last.T @ derr
    return dx, dh0, dp


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "scan"
ARGNUMS = (0, 1, 2)
ALL = "0 1 2.Wz 2.Uz 2.bz 2.Wr 2.Ur 2.br 2.Wn 2.Un 2.bn"


def draw(rng, lengths=(5, 3, 4), d=4, h=3, o=2, scale=1.0, seed=5, far=0.0):
    b, t = len(lengths), max(lengths)
    p = {}
    for gate in "zrn":
        p |= {
            "W" + gate: rng.normal(size=(d, h)) * scale,
            "U" + gate: rng.normal(size=(h, h)) * scale,
        }
        p["b" + gate] = rng.normal(size=h) / 2
    p["V"] = rng.normal(size=(h, o))
    y = rng.normal(size=(b, o)) + far
    return rng.normal(size=(b, t, d)), rng.normal(size=(b, h)), p, np.array(lengths), y, seed


FAULTS = (
    Fault(
        "steps beyond the end of a sequence are gone through as well",
        "dnew = jnp.where(live_t, dh, 0)",
        "dnew = dh",
        "mask ignored",
        "0 2.Wz 2.Uz 2.bz 2.Wr 2.Ur 2.br 2.Wn 2.Un 2.bn",
        "new = jnp.where(live,",
    ),
    Fault(
        "the buffer of the reset gate holds what the sigmoid was given",
        "return new, (h, z, r, n)",
        "return new, (h, z, ar, n)",
        "wrong place",
        "0 1 2.Wz 2.Uz 2.bz 2.Wr 2.Ur 2.br 2.Wn 2.Un 2.bn",
        "z, r = jax.nn.sigmoid(az), jax.nn.sigmoid(ar)",
        "microsoft/onnxruntime#16862",
    ),
    Fault(
        "gradients rounded before they are added up",
        "acc[name] + d for",
        "acc[name] + d.astype(jnp.bfloat16).astype(d.dtype) for",
        "low precision",
        "2.Wz 2.Uz 2.bz 2.Wr 2.Ur 2.br 2.Wn 2.Un 2.bn",
        "",
        "linkedin/Liger-Kernel#1253",
    ),
    Fault(
        "the inputs' gradient in the type of the activations that were kept",
        "dx = jnp.swapaxes(dxs, 0, 1) * input_mask(x, seed)[:, None, :]",
        "dx = (jnp.swapaxes(dxs, 0, 1) * input_mask(x, seed)[:, None, :]).astype(jnp.bfloat16)",
        "dtype",
        "0",
        "x = x * input_mask(x, seed)",
        "roboflow/rf-detr#1076",
    ),
    Fault(
        "new less old in place of old less new",
        "daz = dnew * (h - n) * z * (1 - z)",
        "daz = dnew * (n - h) * z * (1 - z)",
        "sign",
        ALL,
        "new = jnp.where(live,",
    ),
)  # fmt: skip
HARD = (
    Hard("other draws of the dropout", "random", lambda rng: draw(rng, seed=21)),
    Hard("gates at their ends", "saturation", lambda rng: draw(rng, scale=12.0), "float64"),
    Hard("a target out of reach", "extreme", lambda rng: draw(rng, far=1e12)),
    Hard("a sequence of no length", "sizes", lambda rng: draw(rng, (1, 0), 1, 1, 1)),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)  # fmt: skip
