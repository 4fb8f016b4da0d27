"""y = gelu(x @ w + b), tanh form, tiled over M, N and K with the epilogue on the last K step."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

BM, BN, BK = 4, 4, 2
C0 = 0.7978845608028654  # sqrt(2 / pi)
C1 = 0.044715


def _spec(block, index):
    return pl.BlockSpec(block, index)


# ---------------------------------------------------------------- forward


def _dense_gelu(x_ref, w_ref, b_ref, y_ref, z_ref):
    k = pl.program_id(2)

    @pl.when(k == 0)
    def _init():
        z_ref[...] = jnp.zeros_like(z_ref)

    z_ref[...] += jnp.dot(x_ref[...], w_ref[...], preferred_element_type=z_ref.dtype)

    @pl.when(k == pl.num_programs(2) - 1)
    def _epilogue():
        z = z_ref[...] + b_ref[...]
        y = 0.5 * z * (1.0 + jnp.tanh(C0 * (z + C1 * z * z * z)))
        z_ref[...] = z
        y_ref[...] = y.astype(y_ref.dtype)


# ---------------------------------------------------------------- backward


def _dgelu(z_ref, dy_ref, dz_ref):
    z = z_ref[...]
    t = jnp.tanh(C0 * (z + C1 * z * z * z))
    slope = 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * C0 * (1.0 + 3.0 * C1 * z * z)
    dz_ref[...] = dy_ref[...] * slope


def _dx(dz_ref, w_ref, dx_ref):
    @pl.when(pl.program_id(2) == 0)
    def _init():
        dx_ref[...] = jnp.zeros_like(dx_ref)

    dx_ref[...] += jnp.dot(dz_ref[...], w_ref[...].T, preferred_element_type=dx_ref.dtype)


def _dw(x_ref, dz_ref, dw_ref):
    @pl.when(pl.program_id(2) == 0)
    def _init():
        dw_ref[...] = jnp.zeros_like(dw_ref)

    dw_ref[...] += jnp.dot(x_ref[...].T, dz_ref[...], preferred_element_type=dw_ref.dtype)


@jax.custom_vjp
def dense_gelu(x, w, b):
    return dense_gelu_fwd(x, w, b)[0]


def dense_gelu_fwd(x, w, b):
    (M, K), N = x.shape, w.shape[1]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    y, z = pl.pallas_call(
        _dense_gelu,
        grid=(M // BM, N // BN, K // BK),
        in_specs=[
            _spec((BM, BK), lambda i, j, k: (i, k)),
            _spec((BK, BN), lambda i, j, k: (k, j)),
            _spec((1, BN), lambda i, j, k: (0, j)),
        ],
        out_specs=[_spec((BM, BN), lambda i, j, k: (i, j))] * 2,
        out_shape=[jax.ShapeDtypeStruct((M, N), x.dtype), jax.ShapeDtypeStruct((M, N), wide)],
        interpret=True,
    )(x, w, b[None])
    return y, (x, w, z)


def dense_gelu_bwd(res, dy):
    x, w, z = res
    (M, K), N = x.shape, w.shape[1]
    tile = _spec((BM, BN), lambda i, j: (i, j))
    dz = pl.pallas_call(
        _dgelu,
        grid=(M // BM, N // BN),
        in_specs=[tile, tile],
        out_specs=tile,
        out_shape=jax.ShapeDtypeStruct(z.shape, z.dtype),
        interpret=True,
    )(z, dy)
    dx = pl.pallas_call(
        _dx,
        grid=(M // BM, K // BK, N // BN),
        in_specs=[
            _spec((BM, BN), lambda i, k, j: (i, j)),
            _spec((BK, BN), lambda i, k, j: (k, j)),
        ],
        out_specs=_spec((BM, BK), lambda i, k, j: (i, k)),
        out_shape=jax.ShapeDtypeStruct(x.shape, dz.dtype),
        interpret=True,
    )(dz, w)
    dw = pl.pallas_call(
        _dw,
        grid=(K // BK, N // BN, M // BM),
        in_specs=[
            _spec((BM, BK), lambda k, j, i: (i, k)),
            _spec((BM, BN), lambda k, j, i: (i, j)),
        ],
        out_specs=_spec((BK, BN), lambda k, j, i: (k, j)),
        out_shape=jax.ShapeDtypeStruct(w.shape, dz.dtype),
        interpret=True,
    )(x, dz)
    db = jnp.sum(dz, axis=0)
    return dx.astype(x.dtype), dw.astype(w.dtype), db.astype(w.dtype)


dense_gelu.defvjp(dense_gelu_fwd, dense_gelu_bwd)


def f(x, w, b, readout):
    return jnp.sum(readout * dense_gelu(x, w, b))


def g(x, w, b, readout):
    return jax.grad(f, (0, 1, 2))(x, w, b, readout)


# ---- keys
from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "pallas"
ARGNUMS = (0, 1, 2)


def draw(rng, m=12, k=6, n=8, scale=0.6, bias=0.3, shift=0.0):
    x, w = rng.normal(size=(m, k)), scale * rng.normal(size=(k, n))
    return x, w, bias * rng.normal(size=n) + shift, rng.normal(size=(m, n))


FAULTS = (
    Fault(
        "the weights' gradient stops one tile of the batch too early",
        "grid=(K // BK, N // BN, M // BM)",
        "grid=(K // BK, N // BN, M // BM - 1)",
        "off by one",
        "1",
        "z_ref[...] += jnp.dot(",
    ),
    Fault(
        "the output is saved where the slope needs what went into the activation",
        "return y, (x, w, z)",
        "return y, (x, w, y)",
        "wrong place",
        "0 1 2",
        "y = 0.5 * z * (1.0",
        "ooples/AiDotNet.Tensors#106",
    ),
    Fault(
        "the bias gets the mean over the batch",
        "db = jnp.sum(dz, axis=0)",
        "db = jnp.mean(dz, axis=0)",
        "factor",
        "2",
        "z = z_ref[...] + b_ref[...]",
        "kvfrans/notes#5",
    ),
    Fault(
        "the cotangent of the sum is held in bfloat16 between the kernels",
        "dz_ref[...] = dy_ref[...] * slope",
        "dz_ref[...] = (dy_ref[...] * slope).astype(jnp.bfloat16).astype(dz_ref.dtype)",
        "low precision",
        "0 1 2",
        "y = 0.5 * z * (1.0",
    ),
    Fault(
        "the tanh's slope with a tanh that is not squared",
        "(1.0 - t * t)",
        "(1.0 - t)",
        "wrong function",
        "0 1 2",
        "y = 0.5 * z * (1.0",
    ),
)
HARD = (
    Hard("far into both tails", "saturation", lambda rng: draw(rng, scale=40.0)),
    Hard("one tile in every direction", "sizes", lambda rng: draw(rng, m=4, k=2, n=4)),
    Hard("only negative sums", "cancellation", lambda rng: draw(rng, shift=-5.0)),
    Hard("small weights", "tiny", lambda rng: draw(rng, scale=1e-8, bias=0.0), "float64"),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)
