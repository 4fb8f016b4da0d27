"""Plain functions, each with its gradient by hand, by all of its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def log_sum_exp(x, w):
    """Σᵢ wᵢ log Σₖ exp xᵢₖ."""
    return jnp.sum(w * jax.nn.logsumexp(x, axis=1))


def log_sum_exp_gradient(x, w):
    top = x.max(1, keepdims=True)
    e = jnp.exp(x - top)
    total = e.sum(1, keepdims=True)
    return w[:, None] * e / total, (top + jnp.log(total))[:, 0]


def cross_entropy(z, q):
    """Mean over examples of -Σₖ qₖ log softmax(z)ₖ."""
    return -jnp.mean(jnp.sum(q * jax.nn.log_softmax(z), axis=1))


def cross_entropy_gradient(z, q):
    log_p = jax.nn.log_softmax(z)
    size = len(z)
    return (jnp.exp(log_p) * q.sum(1, keepdims=True) - q) / size, -log_p / size


def quadratic(a, x, b):
    """½ xᵀ A x - bᵀ x, A of any kind."""
    return x @ a @ x / 2 - b @ x


def quadratic_gradient(a, x, b):
    return jnp.outer(x, x) / 2, (a @ x + a.T @ x) / 2 - b, -x


def log_determinant(a):
    """log det (A Aᵀ + 1), of a matrix that is symmetric and positive."""
    return jnp.linalg.slogdet(a @ a.T + jnp.eye(len(a), dtype=a.dtype))[1]


def log_determinant_gradient(a):
    s = a @ a.T + jnp.eye(len(a), dtype=a.dtype)
    return (2 * jnp.linalg.solve(s, a),)


def cosine_similarity(u, v):
    """Sum over rows of the cosine between u and v."""
    lengths = jnp.linalg.norm(u, axis=1) * jnp.linalg.norm(v, axis=1)
    return jnp.sum(jnp.sum(u * v, axis=1) / lengths)


def cosine_similarity_gradient(u, v):
    a, b = (jnp.linalg.norm(leaf, axis=1, keepdims=True) for leaf in (u, v))
    cosine = jnp.sum(u * v, axis=1, keepdims=True) / (a * b)
    return v / (a * b) - cosine * u / a**2, u / (a * b) - cosine * v / b**2


def kernel_sum(x, y, log_gamma):
    """Σᵢⱼ exp(-γ |xᵢ - yⱼ|²)."""
    gaps = x[:, None] - y[None]
    return jnp.sum(jnp.exp(-jnp.exp(log_gamma) * jnp.sum(gaps**2, axis=-1)))


def kernel_sum_gradient(x, y, log_gamma):
    gamma = jnp.exp(log_gamma)
    gaps = x[:, None] - y[None]
    squares = jnp.sum(gaps**2, axis=-1)
    k = jnp.exp(-gamma * squares)
    pulls = 2 * gamma * k[..., None] * gaps
    return -pulls.sum(1), pulls.sum(0), -gamma * jnp.sum(k * squares)


def distances(x, w):
    """Σᵢⱼ wᵢⱼ √(|xᵢ - xⱼ|² + 0.01)."""
    gaps = x[:, None] - x[None]
    return jnp.sum(w * jnp.sqrt(jnp.sum(gaps**2, axis=-1) + 0.01))


def distances_gradient(x, w):
    gaps = x[:, None] - x[None]
    d = jnp.sqrt(jnp.sum(gaps**2, axis=-1) + 0.01)
    pulls = (w / d)[..., None] * gaps
    return pulls.sum(1) - pulls.sum(0), d


def robust_regression(w, b, x, y):
    """Mean of Huber's loss of x w + b - y."""
    r = x @ w + b - y
    return jnp.mean(jnp.where(jnp.abs(r) <= 1, r * r / 2, jnp.abs(r) - 0.5))


def robust_regression_gradient(w, b, x, y):
    r = x @ w + b - y
    slope = jnp.clip(r, -1, 1) / len(x)
    return x.T @ slope, slope.sum(), slope[:, None] * w, -slope


def dot_attention(q, k, v, c):
    """Σ c ⊙ softmax(q kᵀ/√d) v."""
    return jnp.sum(c * (jax.nn.softmax(q @ k.T / q.shape[1] ** 0.5) @ v))


def dot_attention_gradient(q, k, v, c):
    root = q.shape[1] ** 0.5
    p = jax.nn.softmax(q @ k.T / root)
    dp = c @ v.T
    ds = p * (dp - jnp.sum(dp * p, axis=1, keepdims=True)) / root
    return ds @ k, ds.T @ q, p.T @ c, p @ v


def gaussian(mean, p, x):
    """Log likelihood, up to a constant, of a normal distribution with precision PᵀP."""
    r = (x - mean) @ p.T
    return len(x) * jnp.linalg.slogdet(p)[1] - jnp.sum(r * r) / 2


def gaussian_gradient(mean, p, x):
    r = (x - mean) @ p.T
    dx = -r @ p
    return -dx.sum(0), len(x) * jnp.linalg.inv(p).T - r.T @ (x - mean), dx


def network(params, x, y):
    """Mean squared error of two layers."""
    h = jnp.tanh(x @ params["w1"].T + params["b1"])
    return jnp.mean((h @ params["w2"].T + params["b2"] - y) ** 2)


def network_gradient(params, x, y):
    z = x @ params["w1"].T + params["b1"]
    h = jnp.tanh(z)
    dy = 2 * (h @ params["w2"].T + params["b2"] - y) / y.size
    dz = dy @ params["w2"] * (1 - h * h)
    grads = {"w1": dz.T @ x, "b1": dz.sum(0), "w2": dy.T @ h, "b2": dy.sum(0)}
    return grads, dz @ params["w1"], -dy


def normalised_dot(x, gain, c):
    """Σ c ⊙ gain ⊙ (x - mean)/σ over the last axis."""
    x = x - x.mean(-1, keepdims=True)
    return jnp.sum(c * gain * x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-3))


def normalised_dot_gradient(x, gain, c):
    x = x - x.mean(-1, keepdims=True)
    inverse = 1 / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-3)
    n, g = x * inverse, c * gain
    dx = inverse * (g - g.mean(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True))
    return dx, (c * n).sum(0), gain * n


def recurrence(a, u, x):
    """½ Σₜ |hₜ|² with hₜ = tanh(A hₜ₋₁ + U xₜ)."""

    def step(h, x):
        h = jnp.tanh(a @ h + u @ x)
        return h, h

    return jnp.sum(jax.lax.scan(step, jnp.zeros(len(a), a.dtype), x)[1] ** 2) / 2


def recurrence_gradient(a, u, x):
    def step(h, x):
        h = jnp.tanh(a @ h + u @ x)
        return h, h

    _, h = jax.lax.scan(step, jnp.zeros(len(a), a.dtype), x)

    def back(carried, h):
        dz = (h + carried) * (1 - h * h)
        return a.T @ dz, dz

    _, dz = jax.lax.scan(back, jnp.zeros(len(a), a.dtype), h, reverse=True)
    before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])
    return dz.T @ before, dz.T @ x, dz @ u


def filtered(x, k, c):
    """Σ c ⊙ (x correlated with k), where they overlap."""
    taps = jnp.stack([x[i : len(x) - len(k) + 1 + i] for i in range(len(k))])
    return jnp.sum(c * (k @ taps))


def filtered_gradient(x, k, c):
    size = len(x) - len(k) + 1
    taps = jnp.stack([x[i : size + i] for i in range(len(k))])
    dx = jnp.zeros_like(x)
    for i in range(len(k)):
        dx = dx.at[i : size + i].add(k[i] * c)
    return dx, taps @ c, k @ taps


def _sizes(draw: np.random.Generator, count: int) -> list[int]:
    return [int(n) for n in draw.integers(3, 8, count)]


def arrays(*letters: str, scale: float = 1.0) -> Callable[[np.random.Generator], tuple]:
    """Draws an array for each word, of axes of which each letter has one random size."""

    def drawn(draw):
        names = sorted(set("".join(letters)))
        size = dict(zip(names, _sizes(draw, len(names)), strict=True))
        return tuple(scale * draw.normal(size=[size[n] for n in word]) for word in letters)

    return drawn


def _network_arguments(draw: np.random.Generator) -> tuple:
    w1, b1, w2, b2, x, y = arrays("hn", "h", "mh", "m", "bn", "bm")(draw)
    return {"w1": w1, "b1": b1, "w2": w2, "b2": b2}, x, y


def _gaussian_arguments(draw: np.random.Generator) -> tuple:
    mean, p, x = arrays("n", "nn", "bn")(draw)
    return mean, p / 4 + np.eye(len(p)), x


def _filtered_arguments(draw: np.random.Generator) -> tuple:
    k, size = 2 + int(draw.integers(3)), int(draw.integers(4, 9))
    return draw.normal(size=k + size - 1), draw.normal(size=k), draw.normal(size=size)


FUNCTIONS: dict[Callable[..., Any], tuple[Callable[..., Any], Any]] = {
    log_sum_exp: (log_sum_exp_gradient, arrays("bn", "b")),
    cross_entropy: (
        cross_entropy_gradient,
        lambda draw: (
            5 * (z := arrays("bn")(draw)[0]),
            draw.dirichlet(np.ones(z.shape[1]), len(z)),
        ),
    ),
    quadratic: (quadratic_gradient, arrays("nn", "n", "n")),
    log_determinant: (log_determinant_gradient, arrays("nm")),
    cosine_similarity: (cosine_similarity_gradient, arrays("bn", "bn")),
    kernel_sum: (kernel_sum_gradient, lambda draw: (*arrays("an", "bn")(draw), np.float64(-0.7))),
    distances: (distances_gradient, arrays("bn", "bb")),
    robust_regression: (robust_regression_gradient, arrays("n", "", "bn", "b")),
    dot_attention: (dot_attention_gradient, arrays("td", "sd", "sm", "tm")),
    gaussian: (gaussian_gradient, _gaussian_arguments),
    network: (network_gradient, _network_arguments),
    normalised_dot: (normalised_dot_gradient, arrays("bn", "n", "bn")),
    recurrence: (recurrence_gradient, arrays("hh", "hn", "tn")),
    filtered: (filtered_gradient, _filtered_arguments),
}
