"""Two towers and a contrastive loss with a learnt temperature (CLIP-like), flax.linen.

There are more captions than images: the first n captions belong to the n images, the others are
extra negatives, some of them padding.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

EPS = 0.05


class Tower(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(self.width, use_bias=False, name="proj")(x)
        length = jnp.sqrt(jnp.sum(h * h, axis=-1, keepdims=True))
        return h / (length + EPS)


class TwoTowers(nn.Module):
    width: int = 4

    def setup(self):
        self.image = Tower(self.width)
        self.text = Tower(self.width)
        self.log_scale = self.param("log_scale", nn.initializers.constant(1.0), ())

    def __call__(self, images, texts):
        return jnp.exp(self.log_scale) * (self.image(images) @ self.text(texts).T)


def f(params, images, texts, valid):
    logits = TwoTowers().apply({"params": params}, images, texts)
    n = images.shape[0]
    logits = jnp.where(valid, logits, -jnp.inf)
    rows = jax.nn.logsumexp(logits, axis=1)
    columns = jax.nn.logsumexp(logits[:, :n], axis=0)
    return jnp.mean(0.5 * rows + 0.5 * columns - jnp.diagonal(logits[:, :n]))


def embed(kernel, x):
    h = x @ kernel
    length = jnp.sqrt(jnp.sum(h * h, axis=-1, keepdims=True))
    return h, length, h / (length + EPS)


def embed_back(x, h, length, d):
    along = jnp.sum(h * d, axis=-1, keepdims=True)
    dh = d / (length + EPS) - h * along / (length * (length + EPS) ** 2)
    return x.T @ dh


def g(params, images, texts, valid):
    n, m = images.shape[0], texts.shape[0]
    hi, li, zi = embed(params["image"]["proj"]["kernel"], images)
    ht, lt, zt = embed(params["text"]["proj"]["kernel"], texts)
    scale = jnp.exp(params["log_scale"])
    scores = scale * (zi @ zt.T)
    logits = jnp.where(valid, scores, -jnp.inf)
    dlogits = 0.5 * jax.nn.softmax(logits, axis=1)
    dlogits = dlogits.at[:, :n].add(0.5 * jax.nn.softmax(logits[:, :n], axis=0))
    dlogits = (dlogits - jnp.eye(n, m, dtype=logits.dtype)) / n
    dscale = jnp.sum(dlogits * scores)
    dzi = scale * dlogits @ zt
    dzt = scale * dlogits.T @ zi
    return (
        {
            "image": {"proj": {"kernel": embed_back(images, hi, li, dzi)}},
            "text": {"proj": {"kernel": embed_back(texts, ht, lt, dzt)}},
            "log_scale": dscale,
        },
    )


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "flax"
ARGNUMS = (0,)


def draw(rng, n=5, extra=3, scale=1.0, log_scale=0.8):
    params = {
        "image": {"proj": {"kernel": rng.normal(size=(6, 4)) * 0.4 * scale}},
        "text": {"proj": {"kernel": rng.normal(size=(3, 4)) * 0.5 * scale}},
        "log_scale": np.float64(log_scale),
    }
    valid = np.ones(n + extra, bool)
    valid[n::2] = False
    return params, rng.normal(size=(n, 6)), rng.normal(size=(n + extra, 3)), valid


def twins(rng):
    params, images, texts, valid = draw(rng)
    images[1:3] = images[0]
    texts[1:3] = texts[0]
    return params, images, texts, valid


BOTH = "0.image.proj.kernel 0.text.proj.kernel"
FAULTS = (
    Fault(
        "normalisation differentiated as if eps were not there",
        "/ (length * (length + EPS) ** 2)",
        "/ ((length + EPS) ** 3)",
        "wrong place|wrong function",
        BOTH,
        "return h / (length + EPS)\n\n\nclass",
        "chainer/chainer#4190",
    ),
    Fault(
        "gradient for the scale itself, given to its logarithm",
        "dscale = jnp.sum(dlogits * scores)",
        "dscale = jnp.sum(dlogits * (zi @ zt.T))",
        "factor",
        "0.log_scale",
        "return jnp.exp(self.log_scale) *",
    ),
    Fault(
        "the captions' direction normalised along the images' axis",
        "softmax(logits[:, :n], axis=0))",
        "softmax(logits[:, :n], axis=1))",
        "transpose",
        BOTH + " 0.log_scale",
        "columns = ",
    ),
    Fault(
        "the captions' embedding cut off from its weights",
        "dzt = scale * dlogits.T @ zi",
        "dzt = jnp.zeros_like(zt)",
        "stopped",
        "0.text.proj.kernel",
        "return jnp.exp(self.log_scale) *",
        "sl-93/SUPERVISED-CONTRASTIVE-LEARNING-FOR-PRE-TRAINED-LANGUAGE-MODEL-FINE-TUNING#2",
    ),
    Fault(
        "the temperature sees the infinities of the padding",
        "dscale = jnp.sum(dlogits * scores)",
        "dscale = jnp.sum(dlogits * logits)",
        "not finite",
        "0.log_scale",
        "logits = jnp.where(valid, logits, -jnp.inf)",
        "NVIDIA-NeMo/Automodel#3850",
    ),
)
HARD = (
    Hard("three pairs alike", "ties", twins),
    Hard("a scale of four hundred", "saturation", lambda rng: draw(rng, log_scale=6.0)),
    Hard("embeddings shorter than eps", "tiny", lambda rng: draw(rng, scale=1e-4)),
    Hard("a single pair", "sizes", lambda rng: draw(rng, n=1, extra=1), "float64"),
    Hard("half precision", "16 bits", lambda rng: draw(rng, n=6, log_scale=0.2), "bfloat16"),
)
