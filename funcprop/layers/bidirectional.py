"""Sequences read backwards, and in both directions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..contraction import by_example
from ..layer import Layer, LayerError, as_layer, gradient, is_inexact, is_shape, position
from .sequence import check_lengths, valid

Tree = Any


def reverse(layer: Layer) -> Layer:
    """A layer that reads sequences from their last step to their first.

        forward     y  = R f(R x)      (R x)[t] = x[T - 1 - t]
        transport   δx = R (R δ) ∂f/∂x

    The output of a step stays at that step.  In (x, lengths) each sequence ends at its own length,
    and what stands behind it stays there; a state, (x, state) or (x, lengths, state), passes to
    the layer as it is.

    Args:
        layer: a layer on x (B, T, d), or on such a tuple, that keeps T; params and tree are its
            own.

    Raises:
        LayerError: when x or lengths do not fit.

    >>> import jax.numpy as jnp
    >>> from funcprop import identity, reverse, rnn
    >>> layer = reverse(rnn(1, identity))
    >>> params = {"w": jnp.ones((1, 1)), "u": jnp.ones((1, 1)), "b": jnp.zeros(1)}
    >>> layer.apply(params, jnp.arange(4.0).reshape(1, 4, 1))[0, :, 0].tolist()
    [6.0, 6.0, 5.0, 3.0]
    """
    layer = as_layer(layer, "reverse")

    def forward(params, x, key=None):
        lengths = lengths_of(x)
        check_lengths("reverse", _first(x), lengths)
        y, residuals = layer.forward(params, _with_first(x, turned(_first(x), lengths)), key)
        return _with_first(y, turned(_first(y), lengths)), (lengths, residuals)

    def backward(weights, residuals, delta, statistic=gradient):
        lengths, residuals = residuals
        delta = _with_first(delta, turned(_first(delta), lengths))
        delta_x, tree = layer.backward(weights, residuals, delta, statistic)
        return _with_first(delta_x, turned(_first(delta_x), lengths)), tree

    def rebuild(parts):
        return reverse(*parts)

    return Layer(layer.init, forward, backward, "reverse", (layer,), rebuild)


def bidirectional(layer: Layer, backwards: Layer | None = None) -> Layer:
    """Sequences read in both directions, the outputs side by side (Schuster & Paliwal 1997).

        forward     y  = (f(x), R g(R x))      (R x)[t] = x[T - 1 - t]
        transport   δx = δ_f ∂f/∂x + R (R δ_g) ∂g/∂x

    x (B, T, d), y and δ (B, T, both layers' features), or with lengths (x, lengths) and
    (y, lengths).  Where the layers take a state, that of both is the pair of theirs: (x, (s, s'))
    or (x, lengths, (s, s')).  Params and tree are pairs too.

    Args:
        layer: f, say ``lstm(8)``.
        backwards: what reads from the end; by default ``reverse(layer)``, with params of its own.

    Raises:
        LayerError: as its layers.

    >>> import jax
    >>> from funcprop import bidirectional, lstm
    >>> params, out_shape = bidirectional(lstm(8)).init(jax.random.key(0), (7, 3))
    >>> [part["w"].shape for part in params], out_shape
    ([(32, 3), (32, 3)], (7, 16))
    """
    layer = as_layer(layer, "bidirectional")
    layers = (layer, reverse(layer) if backwards is None else as_layer(backwards, "bidirectional"))

    def sides(x):
        """The input of each layer: x and lengths are common, a state is a pair."""
        common = (_first(x), *[lengths_of(x)] * (lengths_of(x) is not None))
        if len(common) == (len(x) if isinstance(x, tuple) else 1):
            return (x, x)
        if not isinstance(x[-1], tuple) or len(x[-1]) != 2 or len(x) != len(common) + 1:
            raise LayerError(
                "bidirectional", "the input is no x, (x, lengths), (x, pair of states) or "
                "(x, lengths, pair of states)"  # fmt: skip
            )
        return tuple((*common, state) for state in x[-1])

    def init(key, shape):
        keys = jax.random.split(key)
        given = (shape, shape) if is_shape(shape) else sides(shape)
        made = []
        for i, part in enumerate(layers):
            with position(f"layers[{i}]"):
                made.append(part.init(keys[i], given[i]))
        params, out = zip(*made, strict=True)
        if is_shape(shape):
            return params, (*out[0][:-1], out[0][-1] + out[1][-1])
        first, second = (_first(o) for o in out)
        y = jax.ShapeDtypeStruct((*first.shape[:-1], first.shape[-1] + second.shape[-1]), first.dtype)
        return params, joined(y, *out)

    def joined(y, first, second):
        """The common output, with the states of both."""
        if not isinstance(first, tuple):
            return y
        if first[-1] is None or is_lengths(first[-1]):
            return (y, *first[1:])
        return (y, *first[1:-1], (first[-1], second[-1]))
    ...
