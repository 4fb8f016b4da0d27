"""Critic with a spectrally normalised square layer (power-iteration vectors are given)."""

import equinox as eqx
import jax
import jax.numpy as jnp

SLOPE = 0.2


class SpectralLinear(eqx.Module):
    linear: eqx.nn.Linear
    u: jax.Array
    v: jax.Array

    def __call__(self, x):
        sigma = self.u @ self.linear.weight @ self.v
        return self.linear.weight @ x / sigma + self.linear.bias


class Critic(eqx.Module):
    body: SpectralLinear
    head: jax.Array

    def __call__(self, x):
        return self.head @ jax.nn.leaky_relu(self.body(x), SLOPE)


def critic(params, u, v):
    size = u.shape[0]
    model = Critic(
        SpectralLinear(eqx.nn.Linear(size, size, key=jax.random.PRNGKey(1)), u, v), params[2]
    )
    return eqx.tree_at(lambda m: (m.body.linear.weight, m.body.linear.bias), model, params[:2])


def f(params, u, v, real, fake):
    model = critic(params, u, v)
    hinge_real = jax.nn.softplus(1.0 - jax.vmap(model)(real))
    hinge_fake = jax.nn.softplus(1.0 + jax.vmap(model)(fake))
    return hinge_real.mean() + hinge_fake.mean()


def g(params, u, v, real, fake):
    W, b, head = params
    sigma = u @ W @ v
    Wn = W / sigma

    def one_side(x, sign):
        # gradient of mean softplus(1 + sign * critic(x)) for the normalised weights
        pre = x @ Wn.T + b
        hid = jnp.where(pre >= 0, pre, SLOPE * pre)
        dscore = sign * jax.nn.sigmoid(1.0 + sign * (hid @ head)) / x.shape[0]
        dpre = jnp.outer(dscore, head) * jnp.where(pre >= 0, 1.0, SLOPE).astype(x.dtype)
        return dpre.T @ x, dpre.sum(0), dscore @ hid

    real_grads, fake_grads = one_side(real, -1.0), one_side(fake, 1.0)
    dWn, db, dhead = (r + s for r, s in zip(real_grads, fake_grads, strict=True))
    # W / sigma, with sigma = u' W v
    dW = (dWn - jnp.sum(dWn * Wn) * jnp.outer(u, v)) / sigma
    return ((dW, db, dhead),)


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "equinox"
ARGNUMS = (0,)


def draw(rng, n=5, m=3, size=4, weights=1.0, inputs=1.0, turns=2):
    W = rng.normal(size=(size, size)) * weights
    u = rng.normal(size=size)
    for _ in range(turns):
        v = W.T @ u / np.linalg.norm(W.T @ u)
        u = W @ v / np.linalg.norm(W @ v)
    params = (W, 0.3 * rng.normal(size=size), rng.normal(size=size))
    return params, u, v, inputs * rng.normal(size=(n, size)), inputs * rng.normal(size=(m, size))


def kink(rng):
    params, u, v, real, fake = draw(rng)
    params[1][:] = 0.0
    real[0] = 0.0
    return params, u, v, real, fake


def orthogonal(rng):
    params, u, v, real, fake = draw(rng)
    W = params[0]
    u[:] = rng.normal(size=u.shape)
    w = W @ v
    u -= w * (u @ w) / (w @ w)
    u += 1e-2 * w
    return params, u, v, real, fake


FAULTS = (
    Fault(
        "the norm is taken for a constant",
        "dW = (dWn - jnp.sum(dWn * Wn) * jnp.outer(u, v)) / sigma",
        "dW = dWn / sigma",
        "missing term|stopped",
        "0.0",
        "sigma = self.u @",
        "rdevon/cortex#57",
    ),
    Fault(
        "the outer product of the two vectors the wrong way round",
        "jnp.outer(u, v)",
        "jnp.outer(v, u)",
        "transpose",
        "0.0",
        "sigma = self.u @",
    ),
    Fault(
        "the slope of the leaky relu is not used backward",
        "jnp.where(pre >= 0, 1.0, SLOPE).astype",
        "jnp.where(pre >= 0, 1.0, 0.0).astype",
        "wrong function|factor",
        "0.0 0.1",
        "return self.head @ jax.nn.leaky_relu(",
        "deeplearning4j/deeplearning4j#8178",
    ),
    Fault(
        "plus before the norm's share",
        "dW = (dWn - jnp.sum(",
        "dW = (dWn + jnp.sum(",
        "sign",
        "0.0",
        "return self.linear.weight @ x / sigma",
    ),
    Fault(
        "the product with the normalised weights is summed in bfloat16",
        "jnp.sum(dWn * Wn) *",
        "jnp.sum((dWn * Wn).astype(jnp.bfloat16)).astype(W.dtype) *",
        "low precision",
        "0.0",
        "sigma = self.u @",
    ),
)
HARD = (
    Hard("a leaky relu at its kink", "ties", kink),
    Hard("vectors almost at a right angle", "ill-conditioned", orthogonal, "float64"),
    Hard("weights of one millionth", "tiny", lambda rng: draw(rng, weights=1e-6)),
    Hard("a critic sure of itself", "saturation", lambda rng: draw(rng, inputs=30.0)),
    Hard("half precision", "16 bits", lambda rng: draw(rng, n=4), "float16"),
)
