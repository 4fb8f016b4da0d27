"""Cross entropy with soft targets that need not sum to one, plus z-loss; a loss per row.

The backward kernel is tiled over rows and vocabulary.  Rows with valid == 0 are skipped.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

BLOCK_R = 4
BLOCK_V = 5
Z_WEIGHT = 0.05


def _ce_forward(logits_ref, targets_ref, valid_ref, loss_ref, lse_ref, mass_ref):
    x = logits_ref[...].astype(lse_ref.dtype)
    t = targets_ref[...].astype(lse_ref.dtype)
    m = jnp.max(x, axis=-1, keepdims=True)
    lse = m + jnp.log(jnp.sum(jnp.exp(x - m), axis=-1, keepdims=True))
    mass = jnp.sum(t, axis=-1, keepdims=True)
    nll = lse * mass - jnp.sum(t * x, axis=-1, keepdims=True)
    loss = nll + Z_WEIGHT * lse * lse
    loss_ref[...] = jnp.where(valid_ref[...] > 0, loss, 0.0)
    lse_ref[...] = lse
    mass_ref[...] = mass


def _ce_backward(
    logits_ref, targets_ref, valid_ref, lse_ref, mass_ref, dloss_ref, dlogits_ref, dtargets_ref
):
    lse = lse_ref[...]
    x = logits_ref[...].astype(lse.dtype)
    t = targets_ref[...].astype(lse.dtype)
    up = jnp.where(valid_ref[...] > 0, dloss_ref[...], 0.0)
    prob = jnp.exp(x - lse)
    dx = prob * (mass_ref[...] + 2.0 * Z_WEIGHT * lse) - t
    dlogits_ref[...] = (up * dx).astype(dlogits_ref.dtype)
    dtargets_ref[...] = (up * (lse - x)).astype(dtargets_ref.dtype)


@jax.custom_vjp
def soft_cross_entropy(logits, targets, valid):
    return _fwd(logits, targets, valid)[0]


def _fwd(logits, targets, valid):
    rows, vocab = logits.shape
    full = pl.BlockSpec((BLOCK_R, vocab), lambda r: (r, 0))
    one = pl.BlockSpec((BLOCK_R, 1), lambda r: (r, 0))
    column = jax.ShapeDtypeStruct((rows, 1), jnp.promote_types(logits.dtype, jnp.float32))
    loss, lse, mass = pl.pallas_call(
        _ce_forward,
        grid=(rows // BLOCK_R,),
        in_specs=[full, full, one],
        out_specs=[one, one, one],
        out_shape=[column, column, column],
        interpret=True,
    )(logits, targets, valid[:, None])
    return loss[:, 0], (logits, targets, valid, lse, mass)


def _bwd(res, dloss):
    logits, targets, valid, lse, mass = res
    rows, vocab = logits.shape
    tile = pl.BlockSpec((BLOCK_R, BLOCK_V), lambda r, v: (r, v))
    one = pl.BlockSpec((BLOCK_R, 1), lambda r, v: (r, 0))
    call = functools.partial(pl.pallas_call, interpret=True)
    dlogits, dtargets = call(
        _ce_backward,
        grid=(rows // BLOCK_R, vocab // BLOCK_V),
        in_specs=[tile, tile, one, one, one, one],
        out_specs=[tile, tile],
        out_shape=[
            jax.ShapeDtypeStruct(logits.shape, logits.dtype),
            jax.ShapeDtypeStruct(targets.shape, targets.dtype),
        ],
    )(logits, targets, valid[:, None], lse, mass, dloss[:, None])
    return dlogits, dtargets, None


soft_cross_entropy.defvjp(_fwd, _bwd)


def f(logits, targets, valid, weight):
    return jnp.vdot(weight, soft_cross_entropy(logits, targets, valid))


def g(logits, targets, valid, weight):
    return jax.grad(f, argnums=(0, 1))(logits, targets, valid, weight)


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "pallas"
ARGNUMS = (0, 1)


def draw(rng, rows=8, vocab=10, scale=1.0, shift=0.5):
    logits = scale * rng.normal(size=(rows, vocab)) + shift
    targets = rng.uniform(0.0, 0.3, size=(rows, vocab))
    valid = np.ones(rows, np.int32)
    valid[1::3] = 0
    return logits, targets, valid, rng.normal(size=rows)


FAULTS = (
    Fault(
        "all rows get the first row's cotangent",
        "dloss[:, None])",
        "jnp.full_like(dloss, dloss[0])[:, None])",
        "not linear|off by one",
        "0 1",
        "loss_ref[...] = jnp.where(",
        "paiml/aprender#2182",
    ),
    Fault(
        "the targets are taken to sum to one",
        "prob * (mass_ref[...] + 2.0",
        "prob * (1.0 + 2.0",
        "factor|missing term",
        "0",
        "nll = lse * mass",
        "NVIDIA-NeMo/Automodel#2428",
    ),
    Fault(
        "skipped rows get a gradient all the same",
        "up = jnp.where(valid_ref[...] > 0, dloss_ref[...], 0.0)",
        "up = dloss_ref[...]",
        "mask ignored",
        "0 1",
        "loss_ref[...] = jnp.where(",
    ),
    Fault(
        "the targets' gradient the wrong way round",
        "(up * (lse - x))",
        "(up * (x - lse))",
        "sign",
        "1",
        "nll = lse * mass",
    ),
    Fault(
        "the probabilities are rounded before the targets come off",
        "prob = jnp.exp(x - lse)",
        "prob = jnp.exp(x - lse).astype(jnp.bfloat16).astype(lse.dtype)",
        "low precision",
        "0",
        "nll = lse * mass",
        "linkedin/Liger-Kernel#1341",
    ),
)


def certain(rng):
    logits, _, valid, weight = draw(rng, scale=0.1, shift=0.0)
    logits[:, 3] += 40.0
    return logits, (np.arange(10) == 3) * np.ones((8, 1)), valid, weight


HARD = (
    Hard("sure and right", "saturation", certain),
    Hard("logits shifted by a thousand", "cancellation", lambda rng: draw(rng, shift=1e3)),
    Hard("logits of millions", "extreme", lambda rng: draw(rng, scale=1e6), "float64"),
    Hard("equal logits", "ties", lambda rng: draw(rng, scale=0.0)),
    Hard("half precision", "16 bits", draw, "float16"),
)
