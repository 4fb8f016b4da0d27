"""Multi-head self-attention over a padded batch, dropout on the weights, residual connection."""

import math

import jax
import jax.numpy as jnp

P_DROP = 0.25


def keep_mask(seed, shape):
    return jax.random.bernoulli(jax.random.PRNGKey(seed), 1.0 - P_DROP, shape)


def f(params, x, target, lengths, seed):
    q = jnp.einsum("btm,mhc->bhtc", x, params["wq"])
    k = jnp.einsum("btm,mhc->bhtc", x, params["wk"])
    v = jnp.einsum("btm,mhc->bhtc", x, params["wv"])
    logits = jnp.einsum("bhqc,bhkc->bhqk", q, k) / math.sqrt(q.shape[-1])
    valid = jnp.arange(x.shape[1]) < lengths[:, None]
    logits = jnp.where(valid[:, None, None, :], logits, jnp.finfo(logits.dtype).min)
    attn = jax.nn.softmax(logits, axis=-1)
    keep = keep_mask(seed, attn.shape)
    attn = jnp.where(keep, attn / (1.0 - P_DROP), 0.0)
    ctx = jnp.einsum("bhqk,bhkc->bqhc", attn, v)
    out = x + jnp.einsum("bqhc,hcm->bqm", ctx, params["wo"]) + params["bo"]
    err = (out - target) * valid[..., None]
    return jnp.sum(err**2) / jnp.sum(lengths)


def g(params, x, target, lengths, seed):
    wq, wk, wv, wo = params["wq"], params["wk"], params["wv"], params["wo"]
    scale = 1.0 / math.sqrt(wq.shape[-1])
    # forward again
    q, k, v = (jnp.einsum("btm,mhc->bhtc", x, w) for w in (wq, wk, wv))
    valid = jnp.arange(x.shape[1]) < lengths[:, None]
    key_mask = valid[:, None, None, :]
    scores = jnp.einsum("bhqc,bhkc->bhqk", q, k) * scale
    neg = jnp.finfo(scores.dtype).min
    probs = jax.nn.softmax(jnp.where(key_mask, scores, neg), axis=-1)
    keep = keep_mask(seed, probs.shape)
    dropped = jnp.where(keep, probs / (1.0 - P_DROP), 0.0)
    ctx = jnp.einsum("bhqk,bhkc->bqhc", dropped, v)
    out = x + jnp.einsum("bqhc,hcm->bqm", ctx, wo) + params["bo"]

    # loss and output projection
    d_err = 2.0 * (out - target) / jnp.sum(lengths)
    d_out = d_err * valid[..., None]
    grads = {"bo": d_out.sum(axis=(0, 1)), "wo": jnp.einsum("bqhc,bqm->hcm", ctx, d_out)}
    d_ctx = jnp.einsum("bqm,hcm->bqhc", d_out, wo)

    # weighted sum, dropout, softmax
    d_v = jnp.einsum("bhqk,bqhc->bhkc", dropped, d_ctx)
    d_dropped = jnp.einsum("bqhc,bhkc->bhqk", d_ctx, v)
    d_probs = jnp.where(keep, d_dropped / (1.0 - P_DROP), 0.0)
    d_scores = probs * (d_probs - jnp.sum(d_probs * probs, axis=-1, keepdims=True))
    d_scores = jnp.where(key_mask, d_scores, 0.0)

    d_q = jnp.einsum("bhqk,bhkc->bhqc", d_scores, k) * scale
    d_k = jnp.einsum("bhqk,bhqc->bhkc", d_scores, q) * scale
    d_x = d_out
    for name, d_y in (("wq", d_q), ("wk", d_k), ("wv", d_v)):
        grads[name] = jnp.einsum("btm,bhtc->mhc", x, d_y)
        d_x = d_x + jnp.einsum("bhtc,mhc->btm", d_y, params[name])
    return grads, d_x


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "einsum"
ARGNUMS = (0, 1)


def draw(rng, lengths=(5, 3, 0), t=5, m=6, h=2, c=4, scale=1.0, seed=3, same=False):
    b = len(lengths)
    params = {name: rng.normal(size=(m, h, c)) * scale / m**0.5 for name in ("wq", "wk", "wv")}
    params |= {"wo": rng.normal(size=(h, c, m)) / 3, "bo": rng.normal(size=m) / 2}
    x = rng.normal(size=(b, t, m))
    if same:
        x = np.broadcast_to(x[:, :1], x.shape).copy()
    return params, x, rng.normal(size=(b, t, m)), np.array(lengths), seed


FAULTS = (
    Fault(
        "the scale of the dropout is forgotten on the way back",
        "jnp.where(keep, d_dropped / (1.0 - P_DROP), 0.0)",
        "jnp.where(keep, d_dropped, 0.0)",
        "factor",
        "0.wq 0.wk 1",
        "attn = jnp.where(keep, attn",
    ),
    Fault(
        "the scores are recomputed in half precision",
        '"bhqc,bhkc->bhqk", q, k) * scale',
        '"bhqc,bhkc->bhqk", q, k).astype(jnp.bfloat16).astype(q.dtype) * scale',
        "low precision",
        "0.wq 0.wk 0.wv 0.wo 1",
        "logits = jnp.einsum",
        "NVIDIA/cudnn-frontend#744",
    ),
    Fault(
        "the error at padded positions goes back too",
        "d_out = d_err * valid[..., None]",
        "d_out = d_err",
        "mask ignored",
        "0.wq 0.wk 0.wv 0.wo 0.bo 1",
        "err = (out - target) * valid",
    ),
    Fault(
        "the residual connection is added once more in the loop's start",
        "d_x = d_out\n",
        "d_x = d_out + d_out\n",
        "counted twice",
        "1",
        'out = x + jnp.einsum("bqhc,hcm->bqm", ctx, params["wo"])',
    ),
    Fault(
        "masked with minus infinity, though a sequence may be all padding",
        "neg = jnp.finfo(scores.dtype).min",
        "neg = -jnp.inf",
        "not finite",
        "0.wv 0.wo 0.bo 1",
        "logits = jnp.where",
        "pytorch/pytorch#41508",
    ),
)  # fmt: skip
HARD = (
    Hard("other draws of the dropout", "random", lambda rng: draw(rng, seed=11)),
    Hard("attention on one key", "saturation", lambda rng: draw(rng, scale=9.0)),
    Hard("all tokens of a sequence equal", "ties", lambda rng: draw(rng, same=True)),
    Hard("a batch of one token", "sizes", lambda rng: draw(rng, (1,), 1, 3, 1, 1)),
    Hard("half precision", "16 bits", lambda rng: draw(rng, (5, 2)), "bfloat16"),
)  # fmt: skip
