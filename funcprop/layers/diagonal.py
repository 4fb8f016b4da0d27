"""Linear recurrences of complex numbers, each on its own, by parallel scan."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..core.checks import LayerError, check_float, check_number
from ..core.contraction import Varying, accumulated, by_example, matched, total
from ..core.layer import Layer, float_shape, is_shape
from ..core.site import Site, gradient

# Complex numbers are kept as real arrays of 2 N features, the N real parts first.


def diagonal_recurrence(
    *,
    radius: tuple[float, float] = (0.9, 0.999),
    phase: float = 2 * math.pi,
    state: bool = False,
    parallel: bool = True,
) -> Layer:
    """N linear recurrences of complex numbers (Orvieto 2023, arXiv 2303.06349, equations 5 to 8).

        forward     λ  = exp(-eᵛ + i eᶿ)        γ  = √(1 - |λ|²)        hₜ = λ hₜ₋₁ + γ uₜ
        transport   gₜ = λ̄ gₜ₊₁ + δₜ            δuₜ = γ gₜ              δh₀ = λ̄ g₁
        gradient    δλ = Σ h̄ₜ₋₁ gₜ              δγ = Σ Re(ūₜ gₜ)
                    δν = eᵛ (δγ |λ|²/γ - Re(λ̄ δλ))                      δθ = eᶿ Im(λ̄ δλ)

    u, h, δ (B, T, 2 N), of each step the N real parts and then the N imaginary ones; ν and θ (N,),
    written v and θ in exponents, so that |λ| < 1 whatever they are; a bar conjugates, Σ runs over
    examples and steps.  The adjoint of a complex number has ∂L/∂Re and ∂L/∂Im as its parts.
    γ keeps the size of h that of u.

    Both passes are scans in parallel, as h → λ h + u is associative under composition (Blelloch
    1990, CMU-CS-90-190): four steps are composed into one of factor λ⁴, and so on, log₄ T times.
    Narrow floats are widened for it.

    Args:
        radius: λ is drawn evenly from the ring between these radii.
        phase: its angle is drawn evenly from (0, phase).
        state: whether the input is (u, h₀) and the output (h, h_T), the states (B, 2 N), to go
            through a long sequence in parts.  Without it h₀ = 0.
        parallel: whether steps are composed, or taken one after the other, which is less work but
            leaves cores idle.

    Raises:
        LayerError: for a ring or a phase that is none, and while tracing when the input and the
            parameters do not fit.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import diagonal_recurrence
    >>> layer = diagonal_recurrence()
    >>> half = {"nu": jnp.log(jnp.log(jnp.array([2.0]))), "theta": jnp.array([-jnp.inf])}
    >>> u = jnp.zeros((1, 4, 2)).at[0, 0, 0].set(2 / jnp.sqrt(3.0))
    >>> layer.apply(half, u)[0, :, 0].round(4).tolist()
    [1.0, 0.5, 0.25, 0.125]
    """
    name = "diagonal_recurrence"
    radius, phase = _check_ring(name, radius, phase)
    scanned = _composed if parallel else _stepped

    def gradients(inputs, delta):
        params, h, u, start = inputs
        lam, gamma = _factors(params)
        h, g = _complex(h), _complex(delta)
        # Over the steps of each example first, whose sums run along the memory.
        delta_lam = jnp.sum(jnp.conj(h[:, :-1]) * g[:, 1:], axis=1)
        if start is not None:
            delta_lam += jnp.conj(_complex(start)) * g[:, 0]
        delta_gamma = _halves(jnp.sum(accumulated(u) * accumulated(delta), axis=1))
        by_exponent = jnp.conj(lam) * delta_lam
        nu, theta = accumulated((params["nu"], params["theta"]))
        shrink = jnp.exp(-2 * jnp.exp(nu)) / gamma
        grads = {
            "nu": total(jnp.exp(nu) * (delta_gamma * shrink - jnp.real(by_exponent))),
            "theta": total(jnp.exp(theta) * jnp.imag(by_exponent)),
        }
        return jax.tree.map(lambda grad: grad.astype(params["nu"].dtype), grads)

    site = Site(name, gradients)

    def init(key, shape):
        own = shape_with_state(name, shape, state)
        if own[1] % 2:
            raise LayerError(name, f"u has {own[1]} features, 2 N are due, real parts and others")
        params = _ring(key, own[1] // 2, radius, phase)
        return params, tuple(shape) if state else own

    def forward(params, x, key=None):
        u, start = entries_with_state(name, x, state)
        _check(name, params, u, start)

        def run(params, u, *start):
            lam, gamma = _factors(params)
            drive = _complex(jnp.tile(gamma, 2) * accumulated(u))
            for h in start:
                drive = drive.at[:, 0].add(lam * _complex(h))
            return _pairs(scanned(lam, drive)).astype(u.dtype)

        h = by_example(run, params, u, *(() if start is None else (start,)))
        return (h, h[:, -1]) if state else h, (params, h, u, start)

    def backward(weights, residuals, delta, statistic=gradient):
        params, h, u, start = residuals
        delta, *last = delta if state else (delta,)

        def run(weights, delta, *last):
            lam, gamma = _factors(weights)
            delta = _complex(delta)
            for h in last:
                delta = delta.at[:, -1].add(_complex(h))
            g = scanned(jnp.conj(lam), delta, reverse=True)
            start = _pairs(jnp.conj(lam) * g[:, 0])
            g = _pairs(g)
            return g, jnp.tile(gamma, 2) * g, start

        g, delta_u, delta_start = by_example(run, weights, delta, *last)
        delta_u = matched(delta_u.astype(delta.dtype), Varying.of(u))
        # The site's inputs need a batch axis, the parameters too.  XLA never forms the copies.
        copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(u), *leaf.shape)), params)
        tree = statistic(site, (copies, h, u, start), g)
        if not state:
            return delta_u, tree
        return (delta_u, matched(delta_start.astype(delta.dtype), Varying.of(start))), tree

    return Layer(init, forward, backward, name)


def _stepped(lam: jax.Array, u: jax.Array, reverse: bool = False) -> jax.Array:
    """hₜ = λ hₜ₋₁ + uₜ, or in reverse hₜ = λ hₜ₊₁ + uₜ, along axis 1 from 0 on."""

    def step(h, u):
        h = lam * h + u
        return h, h

    h = lax.scan(step, jnp.zeros_like(u[:, 0]), jnp.moveaxis(u, 1, 0), reverse=reverse)[1]
    return jnp.moveaxis(h, 0, 1)


def _composed(lam: jax.Array, u: jax.Array, reverse: bool = False) -> jax.Array:
    """The same by blocks: within each from 0 on, then λᵏ times what came before the block."""
    batch, time, n = u.shape
    if time == 1:
        return u
    size = min(4, time)
    blocks = jnp.pad(u, ((0, 0), (0, -time % size), (0, 0))).reshape(batch, -1, size, n)
    places = range(size)[::-1] if reverse else range(size)
    h, powers = [blocks[:, :, places[0]]], [lam]
    for place in places[1:]:
        h.append(lam * h[-1] + blocks[:, :, place])
        powers.append(lam * powers[-1])
    if time > size:
        ends = _composed(powers[-1], h[-1], reverse)
        ends = ends[:, 1:] if reverse else ends[:, :-1]
        before = jnp.pad(ends, ((0, 0), (0, 1) if reverse else (1, 0), (0, 0)))
        h = [power * before + own for power, own in zip(powers, h, strict=True)]
    h = h[::-1] if reverse else h
    return jnp.stack(h, axis=2).reshape(batch, -1, n)[:, :time]


def _factors(params: Any) -> tuple[jax.Array, jax.Array]:
    """λ and γ.  1 - |λ|² by expm1, since |λ| is near 1."""
    nu, theta = accumulated((params["nu"], params["theta"]))
    lam = jnp.exp(lax.complex(-jnp.exp(nu), jnp.exp(theta)))
    return lam, jnp.sqrt(-jnp.expm1(-2 * jnp.exp(nu)))


def _complex(pairs: jax.Array) -> jax.Array:
    pairs, n = accumulated(pairs), pairs.shape[-1] // 2
    return lax.complex(pairs[..., :n], pairs[..., n:])


def _pairs(h: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.real(h), jnp.imag(h)], axis=-1)


def _halves(pairs: jax.Array) -> jax.Array:
    """The parts' sum: Re(ā b) of the parts' products."""
    n = pairs.shape[-1] // 2
    return pairs[..., :n] + pairs[..., n:]


def _ring(key: jax.Array, n: int, radius: tuple[float, float], phase: float) -> dict[str, Any]:
    """ν and θ for λ drawn evenly from a ring (Orvieto 2023, lemma 3.2)."""
    first, second = jax.random.split(key)
    tiny = jnp.finfo(jnp.zeros(()).dtype).tiny
    inner = jnp.maximum(radius[0] ** 2, tiny)
    squared = jax.random.uniform(first, (n,), minval=inner, maxval=radius[1] ** 2)
    angle = phase * jax.random.uniform(second, (n,), minval=tiny)
    return {"nu": jnp.log(-jnp.log(squared) / 2), "theta": jnp.log(angle)}


def _check_ring(name: str, radius: Any, phase: Any) -> tuple[tuple[float, float], float]:
    wrong = f"radius is {radius!r}, two numbers 0 ≤ inner < outer ≤ 1 are due"
    if not isinstance(radius, tuple) or len(radius) != 2:
        raise LayerError(name, wrong)
    inner, outer = (check_number(name, "a radius", r, at_least=0) for r in radius)
    if not inner < outer <= 1:
        raise LayerError(name, wrong)
    phase = check_number(name, "phase", phase, above=0)
    if phase > 2 * math.pi:
        raise LayerError(name, f"phase is {phase:g}, a number in (0, 2π] is due")
    return (inner, outer), phase


def shape_with_state(name: str, shape: Any, state: bool) -> tuple[int, int]:
    due = "that of (T, n) and of a state (2 N,)" if state else "(T, n)"
    given = shape if isinstance(shape, tuple) and not is_shape(shape) else (shape,)
    if len(given) != 1 + state:
        raise LayerError(name, f"shape is {shape}, {due} is due")
    sizes = [float_shape(name, one, due) for one in given]
    if list(map(len, sizes)) != [2, 1][: 1 + state]:
        raise LayerError(name, f"shape is {shape}, {due} is due")
    return sizes[0][0], sizes[0][1]


def entries_with_state(name: str, x: Any, state: bool) -> tuple[Any, Any]:
    if isinstance(x, tuple) != state or (state and len(x) != 2):
        came = f"a tuple of {len(x)}" if isinstance(x, tuple) else "one array"
        due = "a pair (sequences, state)" if state else "one array (B, T, n)"
        raise LayerError(name, f"x is {came}, {due} is due with state={state}")
    return x if state else (x, None)


def _check(name: str, params: Any, u: Any, start: Any) -> None:
    check_float(name, u, "u")
    if not isinstance(params, dict) or set(params) != {"nu", "theta"}:
        raise LayerError(name, "params is not a dict of ['nu', 'theta']")
    if u.ndim != 3 or not u.shape[1] or u.shape[2] % 2:
        raise LayerError(name, f"u is {u.shape}, sequences (B, T > 0, 2 N) are due")
    for label, leaf in params.items():
        if leaf.shape != (u.shape[2] // 2,) or leaf.dtype != u.dtype:
            due = f"{u.dtype}{[u.shape[2] // 2]}"
            raise LayerError(name, f"{label} is {leaf.dtype}{list(leaf.shape)}, {due} is due")
    if start is None:
        return
    if jnp.shape(start) != (len(u), u.shape[2]) or jnp.result_type(start) != u.dtype:
        came = f"{jnp.result_type(start)}{list(jnp.shape(start))}"
        raise LayerError(name, f"the state is {came}, {u.dtype}{[len(u), u.shape[2]]} is due")
