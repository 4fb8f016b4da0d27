"""Window attention with cosine similarity and a table of relative position biases."""

import jax
import jax.numpy as jnp
from jax.numpy import einsum

EPS = 0.01
MAX_LOG_SCALE = 4.6


def relative_index(n):
    i = jnp.arange(n)
    return i[:, None] - i[None, :] + n - 1


def l2(x):
    return jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) + EPS)


def f(q, k, v, table, log_scale, allowed, y):
    """q, k, v, y: (window, head, position, channel); allowed: (window, position, position)."""
    sim = einsum("whid,whjd->whij", q / l2(q), k / l2(k))
    scale = jnp.exp(jnp.minimum(log_scale, MAX_LOG_SCALE))
    bias = einsum("ijh->hij", table[relative_index(q.shape[2])])
    logits = sim * scale[:, None, None] + bias
    logits = jnp.where(allowed[:, None], logits, -jnp.inf)
    out = einsum("whij,whjd->whid", jax.nn.softmax(logits), v)
    return 0.5 * jnp.mean((out - y) ** 2)


def g(q, k, v, table, log_scale, allowed, y):
    qn, kn = l2(q), l2(k)
    qh, kh = q / qn, k / kn
    sim = einsum("whid,whjd->whij", qh, kh)
    scale = jnp.exp(jnp.minimum(log_scale, MAX_LOG_SCALE))
    rel = relative_index(q.shape[2])
    z = sim * scale[:, None, None] + einsum("ijh->hij", table[rel])
    p = jax.nn.softmax(jnp.where(allowed[:, None], z, -jnp.inf))
    out = einsum("whij,whjd->whid", p, v)

    d_out = (out - y) / y.size
    d_v = einsum("whij,whid->whjd", p, d_out)
    d_p = einsum("whid,whjd->whij", d_out, v)
    d_z = p * (d_p - einsum("whij,whij->whi", p, d_p)[..., None])

    d_table = jnp.zeros_like(table).at[rel].add(einsum("whij->ijh", d_z))
    d_scale = einsum("whij,whij->h", d_z, sim)
    d_log_scale = d_scale * scale * (log_scale < MAX_LOG_SCALE)
    d_sim = d_z * scale[:, None, None]

    d_qh = einsum("whij,whjd->whid", d_sim, kh)
    d_kh = einsum("whij,whid->whjd", d_sim, qh)
    d_q = (d_qh - qh * jnp.sum(qh * d_qh, axis=-1, keepdims=True)) / qn
    d_k = (d_kh - kh * jnp.sum(kh * d_kh, axis=-1, keepdims=True)) / kn
    return d_q, d_k, d_v, d_table, d_log_scale


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "einsum"
ARGNUMS = (0, 1, 2, 3, 4)


def draw(rng, w=3, h=2, n=5, d=4, log_scale=(1.0, 5.0), scale=1.0, level=0.0):
    q, k, v, y = rng.normal(size=(4, w, h, n, d)) * scale
    q[0, 0, 1] = 0.0  # a padded position
    allowed = (rng.random((w, n, n)) < 0.7) | np.eye(n, dtype=bool)
    table = rng.normal(size=(2 * n - 1, h))
    return q, k, v + level, table, np.array(log_scale)[:h], allowed, y + level


FAULTS = (
    Fault(
        "biases of (j, i) for (i, j)",
        'einsum("whij->ijh", d_z)',
        'einsum("whij->jih", d_z)',
        "transpose",
        "3",
        "bias = einsum(",
    ),
    Fault(
        "the exponential of the scale has derivative one",
        "d_scale * scale * (log_scale",
        "d_scale * (log_scale",
        "wrong function",
        "4",
        "scale = jnp.exp(jnp.minimum(log_scale, MAX_LOG_SCALE))\n    bias",
    ),
    Fault(
        "the length of a key is taken as a constant",
        "d_k = (d_kh - kh * jnp.sum(kh * d_kh, axis=-1, keepdims=True)) / kn",
        "d_k = d_kh / kn",
        "missing term",
        "1",
        'sim = einsum("whid,whjd->whij", q / l2(q), k / l2(k))',
    ),
    Fault(
        "the bias gets no gradient",
        '.at[rel].add(einsum("whij->ijh", d_z))',
        '.at[rel].add(0.0 * einsum("whij->ijh", d_z))',
        "stopped",
        "3",
        "bias = einsum(",
        "facebookresearch/xformers#636",
    ),
    Fault(
        "the length without its epsilon at a position of zeros",
        "d_q = (d_qh - qh * jnp.sum(qh * d_qh, axis=-1, keepdims=True)) / qn",
        "d_q = (d_qh - qh * jnp.sum(qh * d_qh, axis=-1, keepdims=True)) / jnp.sqrt(qn**2 - EPS)",
        "not finite",
        "0",
        "return jnp.sqrt(jnp.sum(x * x",
    ),
)  # fmt: skip
HARD = (
    Hard("a scale of a hundred", "saturation", lambda rng: draw(rng, log_scale=(4.5, 4.59))),
    Hard("vectors shorter than the epsilon", "tiny", lambda rng: draw(rng, scale=1e-4)),
    Hard("a far offset of the values", "cancellation", lambda rng: draw(rng, level=500.0)),
    Hard("many windows", "large", lambda rng: draw(rng, 60, 2, 9, 6)),
    Hard("half precision", "16 bits", draw, "float16"),
)  # fmt: skip
