"""The linear recurrent unit, its recurrence scanned in parallel."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import funcprop as fp
from benchmarks.layers.row import Row, layer_row


def complex_of(pairs):
    n = pairs.shape[-1] // 2
    return jax.lax.complex(pairs[..., :n], pairs[..., n:])


def pairs_of(h):
    return jnp.concatenate([h.real, h.imag], -1)


def in_parallel(lam, u):
    def composed(a, b):
        return a[0] * b[0], b[0] * a[1] + b[1]

    def one(u):
        lams = jnp.repeat(lam[None], len(u), axis=0)
        return jax.lax.associative_scan(composed, (lams, u))[1]

    return pairs_of(jax.vmap(one)(complex_of(u)))


def in_sequence(lam, u):
    def step(h, u):
        h = lam * h + u
        return h, h

    u = jnp.moveaxis(complex_of(u), 1, 0)
    return pairs_of(jnp.moveaxis(jax.lax.scan(step, jnp.zeros_like(u[0]), u)[1], 0, 1))


def recurrence(scanned):
    def run(params, u):
        lam = jnp.exp(jax.lax.complex(-jnp.exp(params["nu"]), jnp.exp(params["theta"])))
        gamma = jnp.sqrt(1 - jnp.abs(lam) ** 2)
        return scanned(lam, jnp.concatenate([gamma, gamma]) * u)

    return run


def unit(scanned):
    def run(params, x):
        h = recurrence(scanned)(params["recurrence"], x @ params["in"]["w"].T)
        return h @ params["out"]["w"].T + params["skip"]["d"] * x

    return run


def rows(scale: float = 1.0) -> list[Row]:
    batch = max(2, round(8 * scale))

    def row(name, layer, plain, time, width):
        time = max(8, round(time * scale))
        peers = {
            "jax.vjp of associative_scan": plain(in_parallel),
            "jax.vjp of lax.scan": plain(in_sequence),
        }
        return layer_row(f"{name}, T {time}", layer, peers, (batch, time, width), calls=3)

    return [
        row("diagonal_recurrence, 64", fp.diagonal_recurrence(), recurrence, 1024, 128),
        row("ssm 64, 64 states", fp.ssm(64), unit, 512, 64),
        row("ssm 64, 64 states", fp.ssm(64), unit, 1024, 64),
        row("the same, step by step", fp.ssm(64, parallel=False), unit, 1024, 64),
    ]
