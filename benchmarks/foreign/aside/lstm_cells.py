"""LSTM, one sequence, every step written out.  z_t = [h_{t-1}; x_t]."""

import jax.numpy as jnp


def sigma(a):
    return 1.0 / (1.0 + jnp.exp(-a))


def run(p, xs):
    hs = [jnp.zeros_like(p["bf"])]
    cs = [jnp.zeros_like(p["bf"])]
    gates = []
    for t in range(len(xs)):
        z = jnp.concatenate([hs[t], xs[t]])
        forget = sigma(p["Wf"] @ z + p["bf"])
        inp = sigma(p["Wi"] @ z + p["bi"])
        cand = jnp.tanh(p["Wg"] @ z + p["bg"])
        out = sigma(p["Wo"] @ z + p["bo"])
        c = forget * cs[t] + inp * cand
        h = out * jnp.tanh(c)
        hs.append(h)
        cs.append(c)
        gates.append((forget, inp, cand, out))
    return hs, cs, gates


def f(p, xs, ys):
    hs, cs, _ = run(p, xs)
    loss = 0.05 * jnp.sum(cs[-1] ** 2)
    for t in range(len(xs)):
        loss += 0.5 * (jnp.dot(p["wy"], hs[t + 1]) - ys[t]) ** 2
    return loss


def g(p, xs, ys):
    hs, cs, gates = run(p, xs)
    d = {name: jnp.zeros_like(value) for name, value in p.items()}
    dxs = [None] * len(xs)
    dh_next = jnp.zeros_like(hs[0])
    dc_next = 0.1 * cs[-1]
    for t in reversed(range(len(xs))):
        forget, inp, cand, out = gates[t]
        err = jnp.dot(p["wy"], hs[t + 1]) - ys[t]
        d["wy"] += err * hs[t + 1]
        dh = err * p["wy"] + dh_next
        tc = jnp.tanh(cs[t + 1])
        dc = dh * out * (1 - tc**2) + dc_next
        da = {
            "f": dc * cs[t] * forget * (1 - forget),
            "i": dc * cand * inp * (1 - inp),
            "g": dc * inp * (1 - cand**2),
            "o": dh * tc * out * (1 - out),
        }
        z = jnp.concatenate([hs[t], xs[t]])
        dz = jnp.zeros_like(z)
        for k in "figo":
            d["W" + k] += jnp.outer(da[k], z)
            d["b" + k] += da[k]
            dz += p["W" + k].T @ da[k]
        dh_next = dz[: len(dh)]
        dxs[t] = dz[len(dh) :]
        dc_next = dc * forget
    return d, jnp.stack(dxs)


# ---- keys
from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "loop"
ARGNUMS = (0, 1)


def draw(rng, T=4, n=2, H=3, scale=1.0):
    p = {"W" + k: rng.normal(size=(H, H + n)) * scale for k in "figo"}
    p |= {"b" + k: rng.normal(size=H) * scale for k in "figo"}
    p["wy"] = rng.normal(size=H)
    return p, rng.normal(size=(T, n)), rng.normal(size=T)


ALL = "0.Wf 0.Wg 0.Wi 0.Wo 0.bf 0.bg 0.bi 0.bo 1"
FAULTS = (
    Fault(
        "what the last cell adds to the loss is not passed back",
        "dc_next = 0.1 * cs[-1]",
        "dc_next = jnp.zeros_like(hs[0])",
        "missing term",
        ALL,
        "loss = 0.05",
        "deeplearning4j/deeplearning4j#8838",
    ),
    Fault(
        "the forget gate itself where its slope belongs",
        '"f": dc * cs[t] * forget * (1 - forget)',
        '"f": dc * cs[t] * forget',
        "wrong function",
        ALL,
        'forget = sigma(p["Wf"]',
        "CaptainE/RNN-LSTM-in-numpy#2",
    ),
    Fault(
        "the weights see the hidden state after the step",
        "z = jnp.concatenate([hs[t], xs[t]])\n        dz",
        "z = jnp.concatenate([hs[t + 1], xs[t]])\n        dz",
        "off by one",
        "0.Wf 0.Wg 0.Wi 0.Wo",
        "z = jnp.concatenate([hs[t], xs[t]])\n        forget",
        "VikParuchuri/zero_to_gpt#9",
    ),
    Fault(
        "the hidden state brings nothing back from the step after",
        'dh = err * p["wy"] + dh_next',
        'dh = err * p["wy"]',
        "missing term",
        ALL,
        "h = out * jnp.tanh(c)",
        "qixianbiao/RNN#2",
    ),
    Fault(
        "the slope of tanh from the cell and not from its tanh",
        "dc = dh * out * (1 - tc**2)",
        "dc = dh * out * (1 - cs[t + 1] ** 2)",
        "wrong place",
        ALL,
        "h = out * jnp.tanh(c)",
    ),
)
HARD = (
    Hard("gates wide open or shut", "saturation", lambda rng: draw(rng, scale=8.0)),
    Hard("one step, one unit", "sizes", lambda rng: draw(rng, T=1, n=1, H=1), "float64"),
    Hard("weights of nearly nothing", "tiny", lambda rng: draw(rng, scale=1e-6)),
    Hard("a longer sequence", "large", lambda rng: draw(rng, T=12, n=4, H=8)),
    Hard("sixteen bits", "16 bits", draw, "bfloat16"),
)
