"""A small VAE in flax.linen with a Gaussian decoder that predicts its own variance.

Negative ELBO per example, averaged over the batch.  The backward pass is by hand because the
training loop it comes from runs where there is no autodiff.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

LATENT, HIDDEN, PIXELS = 3, 6, 5
BETA = 0.7


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.softplus(nn.Dense(HIDDEN, name="fc")(x))
        return nn.Dense(LATENT, name="mu")(h), nn.Dense(LATENT, name="logvar")(h)


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, z):
        h = nn.tanh(nn.Dense(HIDDEN, name="fc")(z))
        return nn.Dense(PIXELS, name="mean")(h), nn.Dense(PIXELS, name="logs2")(h)


class VAE(nn.Module):
    def setup(self):
        self.encoder = Encoder()
        self.decoder = Decoder()

    def __call__(self, x, eps):
        mu, logvar = self.encoder(x)
        z = mu + jnp.exp(0.5 * logvar) * eps
        return mu, logvar, *self.decoder(z)


def noise(seed, like):
    draw = jax.random.normal(jax.random.key(seed), (like.shape[0], LATENT), jnp.float32)
    return draw.astype(like.dtype)


def f(variables, x, seed):
    mu, logvar, mean, logs2 = VAE().apply(variables, x, noise(seed, x))
    recon = 0.5 * jnp.sum(logs2 + (x - mean) ** 2 * jnp.exp(-logs2), axis=-1)
    kl = 0.5 * jnp.sum(mu**2 + jnp.exp(logvar) - 1.0 - logvar, axis=-1)
    return jnp.mean(recon + BETA * kl)


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def dense_grad(x, dy):
    return {"kernel": x.T @ dy, "bias": jnp.sum(dy, axis=0)}


def g(variables, x, seed):
    enc, dec = variables["params"]["encoder"], variables["params"]["decoder"]
    n = x.shape[0]
    eps = noise(seed, x)
    a = dense(enc["fc"], x)
    h = jnp.logaddexp(a, 0.0)
    mu, logvar = dense(enc["mu"], h), dense(enc["logvar"], h)
    std = jnp.exp(0.5 * logvar)
    t = jnp.tanh(dense(dec["fc"], mu + std * eps))
    mean, logs2 = dense(dec["mean"], t), dense(dec["logs2"], t)

    # decoder
    prec = jnp.exp(-logs2)
    dmean = (mean - x) * prec / n
    dlogs2 = (0.5 - 0.5 * (x - mean) ** 2 * prec) / n
    dt = dmean @ dec["mean"]["kernel"].T + dlogs2 @ dec["logs2"]["kernel"].T
    dpre = dt * (1.0 - t**2)
    dz = dpre @ dec["fc"]["kernel"].T
    # through the sample, then the divergence
    dmu = dz + BETA * mu / n
    dlogvar = 0.5 * dz * eps * std
    dlogvar += BETA * 0.5 * (jnp.exp(logvar) - 1.0) / n
    # encoder
    dh = dmu @ enc["mu"]["kernel"].T + dlogvar @ enc["logvar"]["kernel"].T
    da = dh * nn.sigmoid(a)
    gdec = {
        "fc": dense_grad(mu + std * eps, dpre),
        "mean": dense_grad(t, dmean),
        "logs2": dense_grad(t, dlogs2),
    }
    genc = {"fc": dense_grad(x, da), "mu": dense_grad(h, dmu), "logvar": dense_grad(h, dlogvar)}
    return ({"params": {"encoder": genc, "decoder": gdec}},)


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "flax"
ARGNUMS = (0,)


def draw(rng, n=4, scale=0.6, shift=0.0, seed=7):
    def layer(i, o):
        return {"kernel": rng.normal(size=(i, o)) * scale, "bias": rng.normal(size=o) * 0.3}

    encoder = {"fc": layer(5, 6), "mu": layer(6, 3), "logvar": layer(6, 3)}
    decoder = {"fc": layer(3, 6), "mean": layer(6, 5), "logs2": layer(6, 5)}
    encoder["logvar"]["bias"] += shift
    x = rng.normal(size=(n, 5))
    return {"params": {"encoder": encoder, "decoder": decoder}}, x, np.uint32(seed)


def both(*names):
    return " ".join(f"0.params.{name}.{leaf}" for name in names for leaf in ("bias", "kernel"))


def exact(rng):
    variables, x, seed = draw(rng)
    for name in ("mean", "logs2"):
        variables["params"]["decoder"][name]["kernel"][:] = 0.0
    x[:] = variables["params"]["decoder"]["mean"]["bias"] + 1e-3 * rng.normal(size=x.shape)
    return variables, x, seed


ENCODER = both("encoder.fc", "encoder.mu", "encoder.logvar")
FAULTS = (
    Fault(
        "the square in the decoder's log-variance gradient has 1 for a half",
        "dlogs2 = (0.5 - 0.5 * (x",
        "dlogs2 = (0.5 - 1.0 * (x",
        "factor",
        ENCODER + " " + both("decoder.fc", "decoder.logs2"),
        "recon = ",
        "y0ast/VAE-Torch#13",
    ),
    Fault(
        "the divergence's gradient for the log-variance is reversed",
        "dlogvar += BETA",
        "dlogvar -= BETA",
        "sign",
        both("encoder.fc", "encoder.logvar"),
        "kl = ",
        "Kaixhin/Autoencoders#9",
    ),
    Fault(
        "the log-variance has its gradient from the divergence only, not from the sample",
        "dlogvar = 0.5 * dz * eps * std",
        "dlogvar = jnp.zeros_like(mu)",
        "missing term",
        both("encoder.fc", "encoder.logvar"),
        "z = mu + ",
    ),
    Fault(
        "softplus has the step of relu for its derivative",
        "da = dh * nn.sigmoid(a)",
        "da = dh * (a > 0)",
        "wrong function",
        both("encoder.fc"),
        "h = nn.softplus(",
    ),
    Fault(
        "fresh noise in the backward pass",
        "dlogvar = 0.5 * dz * eps * std",
        "dlogvar = 0.5 * dz * noise(seed + 1, x) * std",
        "wrong place",
        both("encoder.fc", "encoder.logvar"),
        "z = mu + ",
    ),
)
HARD = (
    Hard("another seed", "random", lambda rng: draw(rng, n=6, seed=123456)),
    Hard("a collapsed posterior", "saturation", lambda rng: draw(rng, shift=-14.0)),
    Hard("nearly perfect reconstruction", "cancellation", exact),
    Hard("one example", "sizes", lambda rng: draw(rng, n=1), "float64"),
    Hard("half precision", "16 bits", lambda rng: draw(rng, n=5), "bfloat16"),
)
