# Deep set with a masked mean (Zaheer et al.), nnx flavour.
# sets: (B, S, F) padded with whatever happened to be in the buffer, mask: (B, S)

import jax
import jax.numpy as jnp
from flax import nnx


class Phi(nnx.Module):
    def __init__(self, d, h, *, rngs):
        self.lin = nnx.Linear(d, h, rngs=rngs)

    def __call__(self, x):
        return nnx.softplus(self.lin(x))


class DeepSet(nnx.Module):
    def __init__(self, d, h, r, *, rngs):
        self.phi = Phi(d, h, rngs=rngs)
        self.rho1 = nnx.Linear(h, r, rngs=rngs)
        self.rho2 = nnx.Linear(r, 1, rngs=rngs)

    def __call__(self, sets, mask):
        m = mask[..., None].astype(sets.dtype)
        pooled = jnp.sum(self.phi(sets) * m, axis=1) / jnp.maximum(jnp.sum(m, axis=1), 1)
        return self.rho2(nnx.tanh(self.rho1(pooled)))[:, 0]


def build(params):
    d, h = params["phi"]["lin"]["kernel"].shape
    r = params["rho1"]["kernel"].shape[1]
    skeleton = nnx.eval_shape(lambda: DeepSet(d, h, r, rngs=nnx.Rngs(0)))
    graphdef, _ = nnx.split(skeleton)
    return nnx.merge(graphdef, params)


def f(params, sets, mask, y):
    score = build(params)(sets, mask)
    return jnp.mean(jax.nn.softplus(score) - y * score)


def g(params, sets, mask, y):
    p1, r1, r2 = params["phi"]["lin"], params["rho1"], params["rho2"]
    m = mask[..., None].astype(sets.dtype)
    size = jnp.maximum(jnp.sum(m, axis=1), 1)
    z = sets @ p1["kernel"] + p1["bias"]
    e = jnp.logaddexp(z, 0)
    pooled = jnp.sum(e * m, axis=1) / size
    t = jnp.tanh(pooled @ r1["kernel"] + r1["bias"])
    score = (t @ r2["kernel"] + r2["bias"])[:, 0]

    ds = (jax.nn.sigmoid(score) - y)[:, None] / y.shape[0]
    dt = ds * r2["kernel"][:, 0]
    du = dt * (1 - t**2)
    dpooled = du @ r1["kernel"].T
    de = (dpooled / size)[:, None, :] * m
    dz = de * jax.nn.sigmoid(z)
    return (
        {
            "phi": {
                "lin": {
                    "kernel": jnp.einsum("bsf,bsh->fh", sets, dz),
                    "bias": jnp.sum(dz, axis=(0, 1)),
                }
            },
            "rho1": {"kernel": pooled.T @ du, "bias": jnp.sum(du, axis=0)},
            "rho2": {"kernel": t.T @ ds, "bias": jnp.sum(ds, axis=0)},
        },
    )


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "flax"
ARGNUMS = (0,)


def draw(rng, batch=4, most=5, scale=0.5, rubbish=250.0):
    def layer(i, o):
        return {"kernel": rng.normal(size=(i, o)) * scale, "bias": rng.normal(size=o) * 0.4}

    params = {"phi": {"lin": layer(3, 6)}, "rho1": layer(6, 4), "rho2": layer(4, 1)}
    sets = rng.normal(size=(batch, most, 3))
    mask = np.arange(most) < rng.integers(1, most + 1, (batch, 1))
    mask[0, 0], mask[0, 1:] = True, False
    sets = np.where(mask[..., None], sets, rubbish * (2.0 + rng.random(sets.shape)))
    return params, sets, mask, rng.integers(0, 2, batch).astype(float)


def nobody(rng):
    params, sets, mask, y = draw(rng)
    mask[1] = False
    return params, sets, mask, y


PHI = "0.phi.lin.bias 0.phi.lin.kernel"
FAULTS = (
    Fault(
        "padding takes its share of the mean's gradient",
        "de = (dpooled / size)[:, None, :] * m",
        "de = (dpooled / size)[:, None, :] * jnp.ones_like(m)",
        "mask ignored",
        PHI,
        "pooled = jnp.sum(self.phi(sets) * m",
    ),
    Fault(
        "the mean handed back as if it were a sum",
        "de = (dpooled / size)[",
        "de = (dpooled)[",
        "factor|missing term",
        PHI,
        "pooled = jnp.sum(self.phi(sets) * m",
        "kakaobrain/trident#66",
    ),
    Fault(
        "softplus written out: large rubbish overflows before the mask removes it",
        "dz = de * jax.nn.sigmoid(z)",
        "dz = de * jnp.exp(z) / (1 + jnp.exp(z))",
        "not finite",
        PHI,
        "return nnx.softplus(",
        "tracel-ai/burn#5373",
    ),
    Fault(
        "the derivative of tanh for that of softplus",
        "dz = de * jax.nn.sigmoid(z)",
        "dz = de * (1 - jnp.tanh(z) ** 2)",
        "wrong function",
        PHI,
        "return nnx.softplus(",
    ),
    Fault(
        "the matrix product of the backward pass in sixteen bits",
        'dpooled = du @ r1["kernel"].T',
        'dpooled = (du.astype("bfloat16") @ r1["kernel"].T.astype("bfloat16")).astype(du.dtype)',
        "low precision",
        PHI,
        "return self.rho2(",
        "pytorch/pytorch#105682",
    ),
)
HARD = (
    Hard("an empty set", "sizes", nobody),
    Hard("rubbish near the largest float", "extreme", lambda rng: draw(rng, rubbish=1e30)),
    Hard("certain of everything", "saturation", lambda rng: draw(rng, scale=6.0)),
    Hard("sets of a thousand", "large", lambda rng: draw(rng, most=1000)),
    Hard("half precision", "16 bits", lambda rng: draw(rng, batch=5), "bfloat16"),
)
