"""Relaxed categorical code: noisy softmax over a codebook, in the manner of dVAE / VQ-wav2vec.

The noise is drawn from the seed again in the backward pass instead of being stored.
"""

import jax
import jax.numpy as jnp
from jax.nn import softmax


def perturb(logits, seed):
    noise = jax.random.gumbel(jax.random.key(seed), logits.shape, logits.dtype)
    return logits + noise


@jax.custom_vjp
def relaxed_code(logits, codebook, tau, seed):
    """Returns the mixed code vectors and the mixing weights."""
    probs = softmax(perturb(logits, seed) / tau, axis=-1)
    return probs @ codebook, probs


def relaxed_code_fwd(logits, codebook, tau, seed):
    return relaxed_code(logits, codebook, tau, seed), (logits, codebook, tau, seed)


def relaxed_code_bwd(res, cts):
    logits, codebook, tau, seed = res
    ct_code, ct_probs = cts
    z = perturb(logits, seed)
    probs = softmax(z / tau, axis=-1)
    upstream = ct_probs + ct_code @ codebook.T
    ds = probs * (upstream - jnp.sum(probs * upstream, axis=-1, keepdims=True))
    d_codebook = probs.T @ ct_code
    d_tau = -jnp.sum(ds * z) / tau**2
    return ds / tau, d_codebook, d_tau, None


relaxed_code.defvjp(relaxed_code_fwd, relaxed_code_bwd)


def f(logits, codebook, tau, seed, target, usage):
    code, probs = relaxed_code(logits, codebook, tau, seed)
    return jnp.sum((code - target) ** 2) + jnp.sum(usage * probs)


def g(logits, codebook, tau, seed, target, usage):
    return jax.grad(f, (0, 1, 2))(logits, codebook, tau, seed, target, usage)


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "custom_vjp"
ARGNUMS = (0, 1, 2)


def draw(rng, n=4, k=6, d=3, tau=0.8, scale=1.0):
    seed = np.array(rng.integers(1000), np.uint32)
    logits, codebook = scale * rng.normal(size=(n, k)), rng.normal(size=(k, d))
    return logits, codebook, np.array(tau), seed, rng.normal(size=(n, d)), rng.normal(size=(n, k))


FAULTS = (
    Fault(
        "the backward pass draws other noise",
        "z = perturb(logits, seed)",
        "z = perturb(logits, seed + 1)",
        "wrong place",
        "0 1 2",
        "probs = softmax(perturb(",
        "state-spaces/mamba#1023",
    ),
    Fault(
        "only the diagonal of the softmax's derivative",
        "probs * (upstream - jnp.sum(probs * upstream, axis=-1, keepdims=True))",
        "probs * (1.0 - probs) * upstream",
        "missing term",
        "0 2",
        "probs = softmax(perturb(",
        "Apiquet/DeepLearningFrameworkFromScratchCpp#1",
    ),
    Fault(
        "the temperature's gradient without the minus of one over it",
        "d_tau = -jnp.sum(ds * z)",
        "d_tau = jnp.sum(ds * z)",
        "sign",
        "2",
        "probs = softmax(perturb(",
    ),
    Fault(
        "the temperature's gradient at the logits without their noise",
        "jnp.sum(ds * z)",
        "jnp.sum(ds * logits)",
        "wrong place",
        "2",
        "probs = softmax(perturb(",
    ),
    Fault(
        "the code's cotangent is clipped on its way in",
        "ct_code, ct_probs = cts",
        "ct_code, ct_probs = jnp.clip(cts[0], -0.5, 0.5), cts[1]",
        "not linear",
        "0 1 2",
        "return probs @ codebook, probs",
    ),
)
HARD = (
    Hard("another seed", "random", lambda rng: draw(np.random.default_rng(7))),
    Hard("many samples", "random", lambda rng: draw(rng, n=400), "float64"),
    Hard("a temperature near zero", "saturation", lambda rng: draw(rng, tau=0.03)),
    Hard("one code", "sizes", lambda rng: draw(rng, n=1, k=1, d=1)),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)
