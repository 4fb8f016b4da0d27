# Global filter layer: a learned complex filter in the frequency domain (two real arrays),
# one per channel.  u is (batch, length, channels), wr and wi are (length // 2 + 1, channels).

import jax
import jax.numpy as jnp


def _up(a):
    # there is no FFT below 32 bits
    return a.astype(jnp.promote_types(a.dtype, jnp.float32))


@jax.custom_vjp
def spectral_filter(u, wr, wi):
    return _filter_fwd(u, wr, wi)[0]


def _filter_fwd(u, wr, wi):
    length = u.shape[1]
    uf = jnp.fft.rfft(_up(u), axis=1)
    wf = jax.lax.complex(_up(wr), _up(wi))
    out = jnp.fft.irfft(uf * wf, n=length, axis=1)
    return out.astype(u.dtype), (uf, wf, u[:0], wr[:0])


def _filter_bwd(saved, dout):
    uf, wf, u_like, w_like = saved
    length = dout.shape[1]
    gf = jnp.fft.rfft(_up(dout), axis=1)
    # signal
    du = jnp.fft.irfft(gf * jnp.conj(wf), n=length, axis=1)
    # filter: bins that stand for a conjugate pair count double
    twice = slice(1, (length + 1) // 2)
    weight = jnp.ones(uf.shape[1], du.dtype).at[twice].set(2.0) / length
    prod = jnp.sum(uf * jnp.conj(gf), axis=0) * weight[:, None]
    dwr = jnp.real(prod)
    dwi = -jnp.imag(prod)
    return du.astype(u_like.dtype), dwr.astype(w_like.dtype), dwi.astype(w_like.dtype)


spectral_filter.defvjp(_filter_fwd, _filter_bwd)


def f(u, wr, wi, target):
    y = spectral_filter(u, wr, wi)
    return 0.5 * jnp.sum((y - target) ** 2)


def g(u, wr, wi, target):
    return jax.grad(f, (0, 1, 2))(u, wr, wi, target)


# ---- keys
from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "custom_vjp"
ARGNUMS = (0, 1, 2)


def draw(rng, b=2, length=9, c=3, size=1.0, level=0.0):
    bins = length // 2 + 1
    u = size * rng.normal(size=(b, length, c)) + level
    wr, wi = rng.normal(size=(bins, c)), rng.normal(size=(bins, c))
    return u, wr, wi, size * rng.normal(size=(b, length, c))


FAULTS = (
    Fault(
        "the filter is applied backwards without its conjugate",
        "gf * jnp.conj(wf)",
        "gf * wf",
        "transpose",
        "0",
        "out = jnp.fft.irfft(uf",
    ),
    Fault(
        "the last bin is held for a Nyquist bin at an odd length too",
        "slice(1, (length + 1) // 2)",
        "slice(1, length // 2)",
        "off by one",
        "1 2",
        "out = jnp.fft.irfft(uf",
        "ooples/AiDotNet.Tensors#911",
    ),
    Fault(
        "the inverse transform's normalisation is missing from the filter's gradient",
        ".set(2.0) / length",
        ".set(2.0) / 1.0",
        "factor",
        "1 2",
        "out = jnp.fft.irfft(uf",
    ),
    Fault(
        "the imaginary part with the sign of the conjugate",
        "dwi = -jnp.imag(prod)",
        "dwi = jnp.imag(prod)",
        "sign",
        "2",
        "wf = jax.lax.complex(",
    ),
    Fault(
        "the cotangent is rounded to bfloat16 before its transform",
        "gf = jnp.fft.rfft(_up(dout), axis=1)",
        "gf = jnp.fft.rfft(_up(dout.astype(jnp.bfloat16)), axis=1)",
        "low precision",
        "0 1 2",
        "out = jnp.fft.irfft(uf",
    ),
)
HARD = (
    Hard("a large constant under the signal", "cancellation", lambda rng: draw(rng, level=1e3)),
    Hard("a signal of length one", "sizes", lambda rng: draw(rng, b=1, length=1, c=1)),
    Hard("an even length", "sizes", lambda rng: draw(rng, length=8), "float64"),
    Hard("a loud signal", "large", lambda rng: draw(rng, size=1e6)),
    Hard("half precision", "16 bits", draw, "bfloat16"),
)
