"""Contrastive loss of paired images and texts: projections, unit length, learned temperature."""

import jax
import jax.numpy as jnp


def embed(x, w):
    e = jnp.einsum("nd,de->ne", x, w)
    norm = jnp.linalg.norm(e, axis=-1, keepdims=True)
    return e / norm, norm


def f(params, images, texts):
    img, _ = embed(images, params["w_img"])
    txt, _ = embed(texts, params["w_txt"])
    logits = jnp.exp(params["log_scale"]) * jnp.einsum("ie,te->it", img, txt)
    loss_i = -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits, axis=1)))
    loss_t = -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits, axis=0)))
    return 0.5 * (loss_i + loss_t)


def g(params, images, texts):
    n = images.shape[0]
    img, img_norm = embed(images, params["w_img"])
    txt, txt_norm = embed(texts, params["w_txt"])
    scale = jnp.exp(params["log_scale"])
    logits = scale * jnp.einsum("ie,te->it", img, txt)

    eye = jnp.eye(n, dtype=logits.dtype)
    g_i = 0.5 * (jax.nn.softmax(logits, axis=1) - eye) / n
    g_t = 0.5 * (jax.nn.softmax(logits, axis=0) - eye) / n
    g_logits = g_i + g_t

    g_log_scale = jnp.sum(g_logits * logits)
    g_img = scale * jnp.einsum("it,te->ie", g_logits, txt)
    g_txt = scale * jnp.einsum("it,ie->te", g_logits, img)

    # through e / |e|
    g_img = (g_img - img * jnp.einsum("ne,ne->n", img, g_img)[:, None]) / img_norm
    g_txt = (g_txt - txt * jnp.einsum("ne,ne->n", txt, g_txt)[:, None]) / txt_norm

    g_params = {
        "w_img": jnp.einsum("nd,ne->de", images, g_img),
        "w_txt": jnp.einsum("nd,ne->de", texts, g_txt),
        "log_scale": g_log_scale,
    }
    return g_params, jnp.einsum("ne,de->nd", g_img, params["w_img"])


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "einsum"
ARGNUMS = (0, 1)


def draw(rng, n=6, di=5, dt=7, e=4, log_scale=1.0, scale=1.0):
    params = {"w_img": rng.normal(size=(di, e)), "w_txt": rng.normal(size=(dt, e))}
    params["log_scale"] = np.array(log_scale)
    return params, rng.normal(size=(n, di)) * scale, rng.normal(size=(n, dt)) * scale


def alike(rng):
    """All pairs are the same pair but for a thousandth."""
    params, images, texts = draw(rng, log_scale=4.6)
    return params, images[:1] + 1e-3 * images, texts[:1] + 1e-3 * texts


FAULTS = (
    Fault(
        "images are gathered without their gradient in the loss of the texts",
        'g_img = scale * jnp.einsum("it,te->ie", g_logits, txt)',
        'g_img = scale * jnp.einsum("it,te->ie", g_i, txt)',
        "missing term",
        "0.w_img 1",
        "loss_t = -jnp.mean",
        "facebookresearch/SLIP#31",
    ),
    Fault(
        "the two directions are added, not averaged",
        "g_logits = g_i + g_t",
        "g_logits = 2 * (g_i + g_t)",
        "factor",
        "0.w_img 0.w_txt 0.log_scale 1",
        "return 0.5 * (loss_i + loss_t)",
    ),
    Fault(
        "products rounded before the sum that makes them small",
        "jnp.sum(g_logits * logits)",
        "jnp.sum((g_logits * logits).astype(jnp.bfloat16)).astype(scale.dtype)",
        "low precision",
        "0.log_scale",
        'logits = jnp.exp(params["log_scale"])',
        "jax-ml/jax#40128",
    ),
    Fault(
        "texts projected by the vector before it had unit length",
        'jnp.einsum("ne,ne->n", txt, g_txt)',
        'jnp.einsum("ne,ne->n", txt * txt_norm, g_txt)',
        "wrong place",
        "0.w_txt",
        "return e / norm, norm",
    ),
    Fault(
        "both directions normalise over the texts",
        "g_t = 0.5 * (jax.nn.softmax(logits, axis=0) - eye) / n",
        "g_t = 0.5 * (jax.nn.softmax(logits, axis=1) - eye) / n",
        "transpose",
        "0.w_img 0.w_txt 0.log_scale 1",
        "loss_t = -jnp.mean",
    ),
)  # fmt: skip
HARD = (
    Hard("pairs all alike", "cancellation", alike, "float64"),
    Hard("a scale of a hundred", "saturation", lambda rng: draw(rng, log_scale=4.6)),
    Hard("embeddings of length one millionth", "tiny", lambda rng: draw(rng, scale=1e-6)),
    Hard("a large batch", "large", lambda rng: draw(rng, n=300)),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)  # fmt: skip
