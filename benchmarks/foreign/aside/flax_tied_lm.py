"""Tiny language model, input and output embedding tied, learned positions.

tokens [B, T+1] int, weight [B, T] marks real (not padding) targets.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


class TiedLM(nn.Module):
    vocab: int
    width: int
    length: int

    def setup(self):
        self.tok = nn.Embed(self.vocab, self.width)
        self.pos = nn.Embed(self.length, self.width)
        self.mix = nn.Dense(self.width)

    def __call__(self, ids):
        T = ids.shape[1]
        h = self.tok(ids) + self.pos(jnp.arange(T))[None]
        # every position sees the running mean of the positions up to it
        past = jnp.cumsum(h, axis=1) / jnp.arange(1, T + 1, dtype=h.dtype)[:, None]
        h = h + jnp.tanh(self.mix(past))
        return self.tok.attend(h)


def f(params, tokens, weight):
    V, E = params["tok"]["embedding"].shape
    lm = TiedLM(V, E, params["pos"]["embedding"].shape[0])
    logits = lm.apply({"params": params}, tokens[:, :-1])
    logp = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.sum(weight * nll) / jnp.sum(weight)


def g(params, tokens, weight):
    E = params["tok"]["embedding"]
    P = params["pos"]["embedding"]
    W, b = params["mix"]["kernel"], params["mix"]["bias"]
    ids, targets = tokens[:, :-1], tokens[:, 1:]
    T = ids.shape[1]
    count = jnp.arange(1, T + 1, dtype=E.dtype)[:, None]
    h0 = E[ids] + P[:T]
    past = jnp.cumsum(h0, axis=1) / count
    u = jnp.tanh(past @ W + b)
    h1 = h0 + u
    probs = jax.nn.softmax(h1 @ E.T)

    onehot = jax.nn.one_hot(targets, E.shape[0], dtype=E.dtype)
    dlogits = (probs - onehot) * weight[..., None] / jnp.sum(weight)
    dE_head = jnp.einsum("btv,bte->ve", dlogits, h1)
    dh1 = dlogits @ E
    du = dh1 * (1 - u * u)
    dW = jnp.einsum("bti,bto->io", past, du)
    db = du.sum((0, 1))
    dpast = du @ W.T
    dh0 = dh1 + jnp.flip(jnp.cumsum(jnp.flip(dpast / count, 1), axis=1), 1)
    dE = jnp.zeros_like(E).at[ids].add(dh0)
    dP = jnp.zeros_like(P).at[jnp.arange(T)].add(dh0.sum(0))
    return (
        {
            "tok": {"embedding": dE + dE_head},
            "pos": {"embedding": dP},
            "mix": {"kernel": dW, "bias": db},
        },
    )


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "flax"
ARGNUMS = (0,)


def draw(rng, batch=3, length=5, vocab=7, scale=0.7):
    params = {
        "tok": {"embedding": rng.normal(size=(vocab, 4)) * scale},
        "pos": {"embedding": rng.normal(size=(length + 1, 4)) * scale},
        "mix": {"kernel": rng.normal(size=(4, 4)) * 0.5, "bias": rng.normal(size=4) * 0.3},
    }
    tokens = rng.integers(0, vocab, (batch, length + 1))
    weight = np.ones((batch, length))
    for row in range(1, batch):
        weight[row, length - row :] = 0.0
    return params, tokens, weight


def blank(rng):
    params, tokens, weight = draw(rng)
    params["tok"]["embedding"][:] = params["tok"]["embedding"][0]
    return params, tokens, weight


ALL = "0.mix.bias 0.mix.kernel 0.pos.embedding 0.tok.embedding"
FAULTS = (
    Fault(
        "the share of the output layer is left out of the tied embedding",
        '"embedding": dE + dE_head',
        '"embedding": dE',
        "missing term",
        "0.tok.embedding",
        "return self.tok.attend(h)",
        "paiml/entrenar#314",
    ),
    Fault(
        "of a token that stands twice only the last place counts",
        "zeros_like(E).at[ids].add(",
        "zeros_like(E).at[ids].set(",
        "missing term",
        "0.tok.embedding",
        "h = self.tok(ids) +",
        "pytorch/pytorch#1528",
    ),
    Fault(
        "the targets are not moved on by one",
        "tokens[:, :-1], tokens[:, 1:]\n    T",
        "tokens[:, :-1], tokens[:, :-1]\n    T",
        "off by one",
        ALL,
        "nll = -",
    ),
    Fault(
        "padding takes part in the backward pass",
        "(probs - onehot) * weight[..., None] /",
        "(probs - onehot) /",
        "mask ignored",
        ALL,
        "return jnp.sum(weight * nll)",
    ),
    Fault(
        "all positions are written into row 0",
        ".at[jnp.arange(T)].add(",
        ".at[jnp.arange(T) * 0].add(",
        "off by one",
        "0.pos.embedding",
        "h = self.tok(ids) +",
        "ByteDance-Seed/Triton-distributed#180",
    ),
)
HARD = (
    Hard("a token and nothing else", "sizes", lambda rng: draw(rng, batch=1, length=1)),
    Hard("all tokens embedded alike", "ties", blank, "float64"),
    Hard("sure predictions", "saturation", lambda rng: draw(rng, scale=8.0)),
    Hard("embeddings near zero", "tiny", lambda rng: draw(rng, scale=1e-5)),
    Hard("half precision", "16 bits", lambda rng: draw(rng, batch=2, length=6), "bfloat16"),
)
