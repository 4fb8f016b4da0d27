"""A small neural ODE, dz/dt = tanh(W z + t u + b), by Runge-Kutta and its discrete adjoint."""

import jax
import jax.numpy as jnp

STEPS = 6


def field(p, t, z):
    return jnp.tanh(p["W"] @ z + t * p["u"] + p["b"])


def rk4(p, t, z, dt):
    k1 = field(p, t, z)
    k2 = field(p, t + dt / 2, z + dt / 2 * k1)
    k3 = field(p, t + dt / 2, z + dt / 2 * k2)
    k4 = field(p, t + dt, z + dt * k3)
    return z + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4), (k1, k2, k3, k4)


def solve(p, z0, span):
    dt = (span[1] - span[0]) / STEPS

    def step(z, i):
        z_new, ks = rk4(p, span[0] + i * dt, z, dt)
        return z_new, (z, ks)

    return jax.lax.scan(step, z0, jnp.arange(STEPS))


def f(p, z0, span, y):
    z1, _ = solve(p, z0, span)
    return 0.5 * jnp.sum((z1 - y) ** 2)


def g(p, z0, span, y):
    z1, (zs, ks) = solve(p, z0, span)
    t0, dt = span[0], (span[1] - span[0]) / STEPS

    def adjoint(carry, saved):
        a, grad, d_t0, d_dt = carry
        i, z, (k1, k2, k3, k4) = saved
        t, mid, end = t0 + i * dt, t0 + (i + 0.5) * dt, t0 + (i + 1) * dt

        def pull(k, time, point, c):  # of one evaluation of the field
            s = c * (1 - k * k)
            new = {"W": jnp.outer(s, point), "u": s * time, "b": s}
            return p["W"].T @ s, jnp.dot(s, p["u"]), new

        d4, s4, n4 = pull(k4, end, z + dt * k3, dt / 6 * a)
        d3, s3, n3 = pull(k3, mid, z + dt / 2 * k2, dt / 3 * a + dt * d4)
        d2, s2, n2 = pull(k2, mid, z + dt / 2 * k1, dt / 3 * a + dt / 2 * d3)
        d1, s1, n1 = pull(k1, t, z, dt / 6 * a + dt / 2 * d2)

        grad = {q: grad[q] + n1[q] + n2[q] + n3[q] + n4[q] for q in grad}
        d_t0 += s1 + s2 + s3 + s4
        d_dt += i * (s1 + s2 + s3 + s4) + (s2 + s3) / 2 + s4
        d_dt += jnp.dot(a, k1 + 2 * k2 + 2 * k3 + k4) / 6
        d_dt += jnp.dot(d4, k3) + jnp.dot(d3, k2) / 2 + jnp.dot(d2, k1) / 2
        return (a + d1 + d2 + d3 + d4, grad, d_t0, d_dt), None

    a = z1 - y
    zero = jnp.zeros_like(dt)
    carry = (a, jax.tree.map(jnp.zeros_like, p), zero, zero)
    saved = (jnp.arange(STEPS), zs, ks)
    (a, grad, d_t0, d_dt), _ = jax.lax.scan(adjoint, carry, saved, reverse=True)
    return grad, a, jnp.stack([d_t0 - d_dt / STEPS, d_dt / STEPS])


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "scan"
ARGNUMS = (0, 1, 2)
ALL = "0.W 0.u 0.b 1 2"


def draw(rng, d=4, scale=1.0, span=(0.2, 2.3)):
    p = {"W": rng.normal(size=(d, d)) * scale, "u": rng.normal(size=d), "b": rng.normal(size=d)}
    return p, rng.normal(size=d), np.array(span), rng.normal(size=d)


def stiff(rng):
    """A stiff linear decay beside a slow one."""
    p, z0, span, y = draw(rng)
    p["W"] = np.diag([-8.0, -1e-4, 1e-4, -3.0])
    return p, z0 / 10, span, y


def short(rng):
    return draw(rng, span=(1.0, 1.0 + 1e-5))


def backwards(rng):
    return draw(rng, d=1, span=(1.0, -1.0))


FAULTS = (
    Fault(
        "the adjoint starts with the other sign",
        "a = z1 - y\n",
        "a = y - z1\n",
        "sign",
        "0.W 0.u 0.b 1 2",
        "return 0.5 * jnp.sum((z1 - y) ** 2)",
        "msurtsukov/neural-ode#5",
    ),
    Fault(
        "run backwards, the states are those of one step later",
        "saved = (jnp.arange(STEPS), zs, ks)",
        "saved = (jnp.arange(STEPS), jnp.concatenate([zs[1:], z1[None]]), ks)",
        "off by one|wrong place",
        "0.W",
        "z_new, ks = rk4(",
        "Theano/Theano#166",
    ),
    Fault(
        "the third stage's weights get the state at the start of the step",
        "pull(k3, mid, z + dt / 2 * k2, ",
        "pull(k3, mid, z, ",
        "wrong place",
        "0.W",
        "k3 = field(",
    ),
    Fault(
        "the third stage is not taken to depend on the second",
        "dt / 3 * a + dt / 2 * d3)",
        "dt / 3 * a)",
        "missing term",
        "0.W 0.u 0.b 1 2",
        "k3 = field(",
    ),
    Fault(
        "the third stage weighs as the last",
        "dt / 3 * a + dt * d4)",
        "dt / 6 * a + dt * d4)",
        "factor",
        ALL,
        "return z + dt / 6 * (k1",
    ),
)  # fmt: skip
HARD = (
    Hard("fast beside slow", "ill-conditioned", stiff),
    Hard("large weights", "saturation", lambda rng: draw(rng, scale=20.0)),
    Hard("a span of next to nothing", "cancellation", short),
    Hard("one dimension, backwards in time", "sizes", backwards, "float64"),
    Hard("half precision", "16 bits", draw, "float16"),
)  # fmt: skip
