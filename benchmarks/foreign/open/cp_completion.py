# Completion of a three-way tensor (user x item x week) by a weighted CP model.
# Ridge on all factors, neighbouring weeks are tied together.
import jax.numpy as jnp

RIDGE = 0.03
SMOOTH = 0.4


def reconstruct(A, B, C, lam):
    return jnp.einsum("r,ir,jr,kr->ijk", lam, A, B, C)


def f(A, B, C, lam, X, seen):
    E = jnp.where(seen, reconstruct(A, B, C, lam) - X, 0.0)
    fit = 0.5 * jnp.sum(E * E) / jnp.sum(seen)
    ridge = 0.5 * RIDGE * (jnp.sum(A * A) + jnp.sum(B * B) + jnp.sum(C * C))
    step = C[1:] - C[:-1]
    smooth = 0.5 * SMOOTH * jnp.sum(step * step)
    return fit + ridge + smooth


def g(A, B, C, lam, X, seen):
    R = reconstruct(A, B, C, lam) - X
    E = jnp.where(seen, R, 0.0) / jnp.sum(seen)

    # penalties
    dA, dB, dC = RIDGE * A, RIDGE * B, RIDGE * C
    dC = dC.at[1:-1].add(SMOOTH * (2 * C[1:-1] - C[2:] - C[:-2]))
    dC = dC.at[0].add(SMOOTH * (C[0] - C[1]))
    dC = dC.at[-1].add(SMOOTH * (C[-1] - C[-2]))

    # fit: matricised tensor times Khatri-Rao product, one mode at a time
    dA += jnp.einsum("ijk,jr,kr,r->ir", E, B, C, lam)
    dB += jnp.einsum("ijk,ir,kr,r->jr", E, A, C, lam)
    dC += jnp.einsum("ijk,ir,jr,r->kr", E, A, B, lam)
    dlam = jnp.einsum("ijk,ir,jr,kr->r", E, A, B, C)
    return dA, dB, dC, dlam


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "einsum"
ARGNUMS = (0, 1, 2, 3)


def draw(rng, i=6, j=5, k=7, r=3, scale=1.0, share=0.5):
    A, B, C = (rng.normal(size=(n, r)) * scale for n in (i, j, k))
    seen = rng.random((i, j, k)) < share
    seen[0, 0, 0] = True
    return A, B, C, rng.uniform(0.5, 2, r), 5 * rng.normal(size=(i, j, k)), seen


def fitted(rng):
    """The model fits the data but for the last digits."""
    A, B, C, lam, X, seen = draw(rng)
    C[:] = C[:1]
    X = np.einsum("r,ir,jr,kr->ijk", lam, A, B, C) * (1 + 1e-6)
    return A * 1e3, B / 1e3, C, lam, X, seen


def alike(rng):
    """Columns that are the same but for a thousandth."""
    A, B, C, *rest = draw(rng)
    A, B, C = (M[:, :1] * (1 + 1e-3 * rng.normal(size=M.shape)) for M in (A, B, C))
    return A, B, C, *rest


def unequal(rng):
    A, B, *rest = draw(rng)
    return A * 1e8, B * 1e-8, *rest


FAULTS = (
    Fault(
        "entries that nobody has seen count",
        "jnp.where(seen, R, 0.0)",
        "R",
        "mask ignored",
        "0 1 2 3",
        "E = jnp.where(seen, reconstruct",
    ),
    Fault(
        "the last week is tied to the week before the one before it",
        "SMOOTH * (C[-1] - C[-2])",
        "SMOOTH * (C[-1] - C[-3])",
        "off by one",
        "2",
        "step = C[1:] - C[:-1]",
    ),
    Fault(
        "items without the weights of the components",
        '"ijk,ir,kr,r->jr", E, A, C, lam',
        '"ijk,ir,kr->jr", E, A, C',
        "factor",
        "1",
        'return jnp.einsum("r,ir,jr,kr->ijk"',
    ),
    Fault(
        "the weights' gradient in the library's own precision",
        'dlam = jnp.einsum("ijk,ir,jr,kr->r", E, A, B, C)',
        'dlam = jnp.einsum("ijk,ir,jr,kr->r", E, A, B, C).astype(jnp.float32)',
        "dtype",
        "3",
        'return jnp.einsum("r,ir,jr,kr->ijk"',
        "tinygrad/tinygrad#3613",
        "float64",
    ),
    Fault(
        "the ridge of the users is there twice",
        "dA += jnp.einsum(",
        "dA += RIDGE * A + jnp.einsum(",
        "counted twice",
        "0",
        "ridge = 0.5 * RIDGE",
    ),
)  # fmt: skip
HARD = (
    Hard("a fit but for the last digits", "cancellation", fitted),
    Hard("components alike", "ill-conditioned", alike),
    Hard("factors of very different sizes", "extreme", unequal),
    Hard("two weeks, one of all else", "sizes", lambda rng: draw(rng, 1, 1, 2, 1)),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)  # fmt: skip
