"""Which errors a sweep of curvature sends back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import LayerError, check_count
from ..core.loss import Loss
from ..core.sweep import Back

Tree = Any
Array = jax.Array
Errors = Callable[[Loss, Back, Array, Any], Tree]
"""``errors(loss, back, losses, key) -> (K, *prediction)``: the columns sᵢₖ."""


def exact(loss: Loss, back: Back, losses: Array, key: Any) -> Tree:
    """All columns of a root of the loss's Hessian: as many sweeps as an example has outputs."""
    return _given(loss, "root")(back.loss_residuals)


def empirical(loss: Loss, back: Back, losses: Array, key: Any) -> Tree:
    """The loss's derivative: one sweep, and the empirical Fisher information in the place of G."""
    return jax.tree.map(lambda leaf: leaf[None], back.error(jnp.ones_like(losses)))


def sampled(count: int = 1) -> Errors:
    """``count`` random errors, drawn with the ``key`` given; unbiased.

    >>> from funcprop.statistics import sampled
    >>> sampled(0)
    Traceback (most recent call last):
        ...
    funcprop.LayerError: sampled: count is 0, it must be a positive integer
    """
    check_count("sampled", "count", count)

    def errors(loss, back, losses, key):
        sample = _given(loss, "sample")
        if key is None:
            raise LayerError("sampled", "errors are drawn at random; give the call a key")
        # Another stream than that of layers which draw from the same key.
        keys = jax.random.split(jax.random.fold_in(key, count), count)
        drawn = jax.vmap(lambda k: sample(k, back.loss_residuals))(keys)
        return jax.tree.map(lambda leaf: leaf / jnp.sqrt(count).astype(leaf.dtype), drawn)

    return errors


def _given(loss: Loss, what: str) -> Callable[..., Tree]:
    """The loss's root or sample."""
    found = getattr(loss, what)
    if found is None:
        others = "empirical" + ", sampled(n)" * bool(loss.sample) + ", exact" * bool(loss.root)
        raise LayerError(
            loss.name or "loss",
            f"it has no {what}, of which these errors are made; take errors={others}, or write "
            f"one: Loss(..., {what}=...)",
        )
    return found


def summed(sweep: Callable[[Tree], Tree], columns: Tree) -> Tree:
    """The sum of ``sweep(delta)`` over all errors, one after the other."""

    def add(total, delta):
        return jax.tree.map(jnp.add, total, sweep(delta)), None

    first, rest = (jax.tree.map(lambda leaf, i=i: leaf[i], columns) for i in (0, slice(1, None)))
    return jax.lax.scan(add, sweep(first), rest)[0]
