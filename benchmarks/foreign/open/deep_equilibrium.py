"""A single-layer deep equilibrium model: z = tanh(W z + U x + b), implicit gradient."""

import functools

import jax
import jax.numpy as jnp

ITERS = 120


def _iterate(step, start, iters):
    return jax.lax.fori_loop(0, iters, lambda _, v: step(v), start)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def equilibrium(W, U, b, x, iters):
    drive = x @ U.T + b
    return _iterate(lambda z: jnp.tanh(z @ W.T + drive), jnp.zeros_like(drive), iters)


def _fwd(W, U, b, x, iters):
    z_star = equilibrium(W, U, b, x, iters)
    return z_star, (W, U, x, z_star)


def _bwd(iters, res, v):
    """Solves u = v + J^T u by iteration, then pulls u through the layer once."""
    W, U, x, z_star = res
    slope = 1.0 - z_star * z_star
    u = _iterate(lambda u: v + (u * slope) @ W, v, iters)
    delta = u * slope
    return delta.T @ z_star, delta.T @ x, jnp.sum(delta, axis=0), delta @ U


equilibrium.defvjp(_fwd, _bwd)


def f(W, U, b, x, readout):
    z = equilibrium(W, U, b, x, ITERS)
    return jnp.sum(z * readout)


def g(W, U, b, x, readout):
    return jax.grad(f, argnums=(0, 1, 2, 3))(W, U, b, x, readout)


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "custom_vjp"
ARGNUMS = (0, 1, 2, 3)


def draw(rng, n=3, d=5, m=4, norm=0.6, scale=1.0, bias=0.2):
    W = rng.normal(size=(d, d))
    W *= norm / np.linalg.norm(W, 2)
    U, b = 0.5 * rng.normal(size=(d, m)), bias * rng.normal(size=d)
    return W, U, b, scale * rng.normal(size=(n, m)), rng.normal(size=(n, d))


FAULTS = (
    Fault(
        "the adjoint iteration with the weights untransposed",
        "(u * slope) @ W, v, iters",
        "(u * slope) @ W.T, v, iters",
        "transpose",
        "0 1 2 3",
        "return _iterate(lambda z",
    ),
    Fault(
        "the adjoint equation is not solved, one step is taken for it",
        "@ W, v, iters)",
        "@ W, v, 0)",
        "missing term",
        "0 1 2 3",
        "return _iterate(lambda z",
    ),
    Fault(
        "the slope takes the output for what goes into the tanh",
        "slope = 1.0 - z_star * z_star",
        "slope = 1.0 - jnp.tanh(z_star) ** 2",
        "wrong place",
        "0 1 2 3",
        "return _iterate(lambda z",
    ),
    Fault(
        "the tanh's slope without its one",
        "slope = 1.0 - z_star * z_star",
        "slope = -z_star * z_star",
        "missing term",
        "0 1 2 3",
        "return _iterate(lambda z",
        "scutan90/DeepLearning-500-questions#544",
    ),
    Fault(
        "the incoming cotangent is added once more at the end",
        "delta = u * slope",
        "delta = (u + v) * slope",
        "counted twice",
        "0 1 2 3",
        "return _iterate(lambda z",
    ),
)
HARD = (
    Hard("close to losing the fixed point", "ill-conditioned", lambda rng: draw(rng, norm=0.85)),
    Hard("all units saturated", "saturation", lambda rng: draw(rng, bias=30.0)),
    Hard("one unit, one input", "sizes", lambda rng: draw(rng, n=1, d=1, m=1)),
    Hard("inputs of a millionth", "tiny", lambda rng: draw(rng, scale=1e-6, bias=0.0), "float64"),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)
