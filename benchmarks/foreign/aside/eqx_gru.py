import equinox as eqx
import jax
import jax.numpy as jnp


class Forecaster(eqx.Module):
    """GRU over a series; after each step a linear read-out predicts the next target."""

    cell: eqx.nn.GRUCell
    readout: jax.Array

    def __call__(self, xs, h0):
        def tick(h, x):
            h = self.cell(x, h)
            return h, jnp.dot(self.readout, h)

        return jax.lax.scan(tick, h0, xs)[1]


def make(params):
    hidden, features = params["weight_hh"].shape[1], params["weight_ih"].shape[1]
    cell = eqx.nn.GRUCell(features, hidden, key=jax.random.PRNGKey(0))
    names = ("weight_ih", "weight_hh", "bias", "bias_n")
    cell = eqx.tree_at(
        lambda c: [getattr(c, name) for name in names], cell, [params[name] for name in names]
    )
    return Forecaster(cell, params["readout"])


def f(params, xs, h0, ys):
    return 0.5 * jnp.sum((make(params)(xs, h0) - ys) ** 2)


def forward(params, xs, h):
    tape = []
    for x in xs:
        ir, iz, i_n = jnp.split(params["weight_ih"] @ x + params["bias"], 3)
        hr, hz, hn = jnp.split(params["weight_hh"] @ h, 3)
        r, z = jax.nn.sigmoid(ir + hr), jax.nn.sigmoid(iz + hz)
        n = jnp.tanh(i_n + r * (hn + params["bias_n"]))
        new_h = n + z * (h - n)
        tape.append((x, h, r, z, n, hn + params["bias_n"], new_h))
        h = new_h
    return tape


def g(params, xs, h0, ys):
    tape = forward(params, xs, h0)
    grads = jax.tree.map(jnp.zeros_like, params)
    dh = jnp.zeros_like(h0)
    for (x, h, r, z, n, hn, new_h), y in zip(tape[::-1], ys[::-1], strict=True):
        dy = params["readout"] @ new_h - y
        grads["readout"] += dy * new_h
        dh = dh + dy * params["readout"]
        dz = dh * (h - n)
        dn = dh * (1 - z)
        dan = dn * (1 - n * n)
        dr = dan * hn
        dhn = dan * r
        dar = dr * r * (1 - r)
        daz = dz * z * (1 - z)
        di = jnp.concatenate([dar, daz, dan])
        dhh = jnp.concatenate([dar, daz, dhn])
        grads["weight_ih"] += jnp.outer(di, x)
        grads["bias"] += di
        grads["weight_hh"] += jnp.outer(dhh, h)
        grads["bias_n"] += dhn
        dh = dh * z + params["weight_hh"].T @ dhh
    return grads, dh


# ---- keys
from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "equinox"
ARGNUMS = (0, 2)


def draw(rng, steps=4, features=2, hidden=3, scale=0.8, inputs=1.0):
    params = {
        "weight_ih": rng.normal(size=(3 * hidden, features)) * scale,
        "weight_hh": rng.normal(size=(3 * hidden, hidden)) * scale,
        "bias": rng.normal(size=3 * hidden) * 0.4,
        "bias_n": rng.normal(size=hidden) * 0.4,
        "readout": rng.normal(size=hidden),
    }
    xs = rng.normal(size=(steps, features)) * inputs
    return params, xs, rng.normal(size=hidden), rng.normal(size=steps)


def frozen(rng):
    params, xs, h0, ys = draw(rng, steps=6)
    params["bias"][3:6] = 12.0
    return params, xs, h0, ys


REST = "0.bias 0.bias_n 0.weight_hh 0.weight_ih"
FAULTS = (
    Fault(
        "the recurrent weights get the state after the step instead of the one before it",
        '+= jnp.outer(dhh, h)\n        grads["bias_n"]',
        '+= jnp.outer(dhh, new_h)\n        grads["bias_n"]',
        "off by one|wrong place",
        "0.weight_hh",
        "h = self.cell(x, h)",
        "VikParuchuri/zero_to_gpt#9",
    ),
    Fault(
        "each step writes over the weights' gradient of the steps after it",
        'grads["weight_ih"] += jnp.outer(di, x)',
        'grads["weight_ih"] = jnp.outer(di, x)',
        "missing term",
        "0.weight_ih",
        "h = self.cell(x, h)",
        "NVIDIA/warp#168",
    ),
    Fault(
        "old and new state the wrong way round at the update gate",
        "dz = dh * (h - n)",
        "dz = dh * (n - h)",
        "sign",
        REST + " 2",
        "h = self.cell(x, h)",
    ),
    Fault(
        "the first state is taken for a constant",
        "return grads, dh",
        "return grads, jnp.zeros_like(dh)",
        "stopped",
        "2",
        "return jax.lax.scan(",
    ),
    Fault(
        "the candidate differentiated like a logistic",
        "dan = dn * (1 - n * n)",
        "dan = dn * n * (1 - n)",
        "wrong function",
        REST + " 2",
        "h = self.cell(x, h)",
    ),
)
HARD = (
    Hard("one step, one feature, one unit", "sizes", lambda rng: draw(rng, 1, 1, 1)),
    Hard("the update gate all but shut", "saturation", frozen),
    Hard("gates that jump", "ill-conditioned", lambda rng: draw(rng, scale=6.0), "float64"),
    Hard("enormous inputs", "extreme", lambda rng: draw(rng, inputs=1e6)),
    Hard("half precision", "16 bits", lambda rng: draw(rng, steps=3), "bfloat16"),
)
