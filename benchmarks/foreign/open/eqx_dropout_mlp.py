"""Two-layer classifier with inverted dropout, one key per example.  Equinox model, own backprop."""

import equinox as eqx
import jax
import jax.numpy as jnp

RATE = 0.4


def keep_mask(key, size):
    # uniform float32 so that the mask does not depend on the precision of the model
    return jax.random.uniform(key, (size,), jnp.float32) >= RATE


class Classifier(eqx.Module):
    fc1: eqx.nn.Linear
    fc2: eqx.nn.Linear

    def __call__(self, x, key):
        h = jax.nn.silu(self.fc1(x))
        h = jnp.where(keep_mask(key, h.shape[0]), h / (1.0 - RATE), 0.0)
        return self.fc2(h)


def assemble(params):
    hidden, features = params["w1"].shape
    k1, k2 = jax.random.split(jax.random.key(0))
    model = Classifier(
        eqx.nn.Linear(features, hidden, key=k1),
        eqx.nn.Linear(hidden, params["w2"].shape[0], key=k2),
    )
    where = lambda m: (m.fc1.weight, m.fc1.bias, m.fc2.weight, m.fc2.bias)  # noqa: E731
    return eqx.tree_at(where, model, (params["w1"], params["b1"], params["w2"], params["b2"]))


def f(params, xs, labels, seed):
    keys = jax.random.split(jax.random.key(seed), xs.shape[0])
    logits = jax.vmap(assemble(params))(xs, keys)
    hit = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - hit)


def g(params, xs, labels, seed):
    w1, b1, w2, b2 = (params[k] for k in ("w1", "b1", "w2", "b2"))
    batch = xs.shape[0]
    keys = jax.random.split(jax.random.key(seed), batch)
    mask = jax.vmap(lambda k: keep_mask(k, w1.shape[0]))(keys)
    z = xs @ w1.T + b1
    sig = jax.nn.sigmoid(z)
    dropped = jnp.where(mask, z * sig / (1.0 - RATE), 0.0)
    logits = dropped @ w2.T + b2

    delta2 = jax.nn.softmax(logits, axis=1).at[jnp.arange(batch), labels].add(-1.0) / batch
    back = delta2 @ w2
    dh = jnp.where(mask, back / (1.0 - RATE), 0.0)
    delta1 = dh * (sig + z * sig * (1.0 - sig))
    grads = {
        "w1": delta1.T @ xs,
        "b1": delta1.sum(axis=0),
        "w2": delta2.T @ dropped,
        "b2": delta2.sum(axis=0),
    }
    return ({k: v.astype(params[k].dtype) for k, v in grads.items()},)


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "equinox"
ARGNUMS = (0,)


def draw(rng, batch=6, scale=0.7, seed=3):
    params = {
        "w1": rng.normal(size=(8, 5)) * scale,
        "b1": rng.normal(size=8) * 0.4,
        "w2": rng.normal(size=(3, 8)) * scale,
        "b2": rng.normal(size=3),
    }
    return params, rng.normal(size=(batch, 5)), rng.integers(0, 3, batch), np.uint32(seed)


FAULTS = (
    Fault(
        "the mask is not applied on the way back, the scale is",
        "dh = jnp.where(mask, back / (1.0 - RATE), 0.0)",
        "dh = back / (1.0 - RATE)",
        "mask ignored",
        "0.b1 0.w1",
        "h = jnp.where(keep_mask(",
        "ddbourgin/numpy-ml#94",
    ),
    Fault(
        "the mask without its scale on the way back",
        "dh = jnp.where(mask, back / (1.0 - RATE), 0.0)",
        "dh = jnp.where(mask, back, 0.0)",
        "factor",
        "0.b1 0.w1",
        "h = jnp.where(keep_mask(",
    ),
    Fault(
        "another mask is drawn for the way back",
        "dh = jnp.where(mask, back",
        "dh = jnp.where(keep_mask(keys[0], mask.size).reshape(mask.shape), back",
        "wrong place|mask ignored",
        "0.b1 0.w1",
        "h = jnp.where(keep_mask(",
    ),
    Fault(
        "every example has the mask of its neighbour",
        "dh = jnp.where(mask, back",
        "dh = jnp.where(jnp.roll(mask, 1, axis=0), back",
        "off by one",
        "0.b1 0.w1",
        "h = jnp.where(keep_mask(",
    ),
    Fault(
        "the gradients come in the default type, not in that of the weights",
        "{k: v.astype(params[k].dtype) for",
        "{k: v.astype(jnp.float32) for",
        "dtype",
        "0.b1 0.b2 0.w1 0.w2",
        "",
        "tinygrad/tinygrad#3613",
        "bfloat16",
    ),
)
HARD = (
    Hard("a large seed", "random", lambda rng: draw(rng, batch=9, seed=4_000_000_001)),
    Hard("one example, seed nought", "random", lambda rng: draw(rng, batch=1, seed=0), "float64"),
    Hard("far into the tails of silu", "saturation", lambda rng: draw(rng, scale=30.0)),
    Hard("hardly any weights", "tiny", lambda rng: draw(rng, scale=1e-6)),
    Hard("half precision", "16 bits", lambda rng: draw(rng, batch=4), "bfloat16"),
)
