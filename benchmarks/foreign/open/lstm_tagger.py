"""LSTM with a linear read-out at every step; backpropagation through time by hand."""

import jax
import jax.numpy as jnp

CELL_PENALTY = 0.2


def lstm_step(w, carry, x):
    h, c = carry
    pre = x @ w["Wx"] + h @ w["Wh"] + w["b"]
    i, fg, gg, o = jnp.split(pre, 4, axis=-1)
    i, fg, o = jax.nn.sigmoid(i), jax.nn.sigmoid(fg), jax.nn.sigmoid(o)
    gg = jnp.tanh(gg)
    c_new = fg * c + i * gg
    h_new = o * jnp.tanh(c_new)
    return (h_new, c_new), (h_new, (h, c, c_new, i, fg, gg, o))


def f(w, h0, c0, xs, ys):
    (_, c_last), (hs, _) = jax.lax.scan(lambda s, x: lstm_step(w, s, x), (h0, c0), xs)
    err = hs @ w["Wy"] - ys
    return 0.5 * jnp.mean(err**2) + CELL_PENALTY * jnp.mean(c_last**2)


def g(w, h0, c0, xs, ys):
    (_, c_last), (hs, cache) = jax.lax.scan(lambda s, x: lstm_step(w, s, x), (h0, c0), xs)
    derr = (hs @ w["Wy"] - ys) / ys.size
    dhs = derr @ w["Wy"].T

    def step(carry, inp):
        dh_next, dc_next, dWx, dWh, db = carry
        dh_out, x, (h_prev, c_prev, c, i, fg, gg, o) = inp
        dh = dh_out + dh_next
        tc = jnp.tanh(c)
        dc = dc_next + dh * o * (1 - tc**2)
        di = dc * gg * i * (1 - i)
        df = dc * c_prev * fg * (1 - fg)
        dg = dc * i * (1 - gg**2)
        do = dh * tc * o * (1 - o)
        dpre = jnp.concatenate([di, df, dg, do], axis=-1)
        dWx = dWx + x.T @ dpre
        dWh = dWh + h_prev.T @ dpre
        db = db + jnp.concatenate([di, df, dg, do], axis=-1).sum(axis=0)
        return (dpre @ w["Wh"].T, dc * fg, dWx, dWh, db), None

    dc_last = 2 * CELL_PENALTY * c_last / c_last.size
    zeros = [jnp.zeros_like(w[name]) for name in ("Wx", "Wh", "b")]
    carry = (jnp.zeros_like(h0), dc_last, *zeros)
    (dh0, dc0, dWx, dWh, db), _ = jax.lax.scan(step, carry, (dhs, xs, cache), reverse=True)
    dWy = jnp.tensordot(hs, derr, axes=((0, 1), (0, 1)))
    return {"Wx": dWx, "Wh": dWh, "b": db, "Wy": dWy}, dh0, dc0


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "scan"
ARGNUMS = (0, 1, 2)


def draw(rng, t=6, b=2, d=3, h=4, o=2, scale=1.0, forget=0.0):
    w = {"Wx": rng.normal(size=(d, 4 * h)) * scale, "Wh": rng.normal(size=(h, 4 * h)) * scale / 2}
    w |= {"b": rng.normal(size=4 * h) / 2, "Wy": rng.normal(size=(h, o))}
    w["b"][h : 2 * h] += forget
    h0, c0 = rng.normal(size=(2, b, h)) / 2
    return w, h0, c0, rng.normal(size=(t, b, d)), rng.normal(size=(t, b, o))


def nearly_right(rng):
    """Targets that are the outputs but for the last digits."""
    w, h0, c0, xs, ys = draw(rng)
    h, c = h0, c0
    for t, x in enumerate(xs):
        i, fg, gg, o = np.split(x @ w["Wx"] + h @ w["Wh"] + w["b"], 4, axis=-1)
        c = c / (1 + np.exp(-fg)) + np.tanh(gg) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        ys[t] = h @ w["Wy"] * (1 + 1e-5)
    return w, h0, c0, xs, ys


FAULTS = (
    Fault(
        "the cell's delta is set anew at every step, not added to",
        "dc = dc_next + dh * o * (1 - tc**2)",
        "dc = dh * o * (1 - tc**2)",
        "missing term",
        "0.Wx 0.Wh 0.b 1 2",
        "c_new = fg * c + i * gg",
        "apache/mxnet#4057",
    ),
    Fault(
        "what the loss asks of the last cell is ignored",
        "dc_last = 2 * CELL_PENALTY * c_last / c_last.size",
        "dc_last = jnp.zeros_like(c_last)",
        "missing term",
        "0.Wx 0.Wh 0.b 1 2",
        "return 0.5 * jnp.mean(err**2) + CELL_PENALTY",
        "deeplearning4j/deeplearning4j#8838",
    ),
    Fault(
        "the biases of three gates take the delta of one",
        "db = db + jnp.concatenate([di, df, dg, do], axis=-1)",
        "db = db + jnp.concatenate([df, df, dg, df], axis=-1)",
        "transpose",
        "0.b",
        'pre = x @ w["Wx"] + h @ w["Wh"] + w["b"]',
        "hanbt/learn_dl#53",
    ),
    Fault(
        "the forget gate's value in place of its slope",
        "df = dc * c_prev * fg * (1 - fg)",
        "df = dc * c_prev * fg",
        "wrong function",
        "0.Wx 0.Wh 0.b 1 2",
        "i, fg, o = jax.nn.sigmoid(i)",
        "CaptainE/RNN-LSTM-in-numpy#2",
    ),
    Fault(
        "the cell after the step in place of the one before",
        "df = dc * c_prev * fg * (1 - fg)",
        "df = dc * c * fg * (1 - fg)",
        "wrong place|off by one",
        "0.Wx 0.Wh 0.b 1 2",
        "c_new = fg * c + i * gg",
    ),
)  # fmt: skip
HARD = (
    Hard("targets met but for the last digits", "cancellation", nearly_right),
    Hard("gates wide open or shut", "saturation", lambda rng: draw(rng, scale=15.0)),
    Hard("a long sequence that forgets nothing", "large", lambda rng: draw(rng, t=300, forget=5.0)),
    Hard("one of everything", "sizes", lambda rng: draw(rng, 1, 1, 1, 1, 1)),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)  # fmt: skip
