"""Sequences read backwards, and in both directions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import LayerError, as_layer, is_inexact, position
from ..core.contraction import by_example
from ..core.layer import Layer, is_shape
from ..core.site import gradient
from .shape import Example
from .steps import check_lengths, valid

Tree = Any


def reverse(layer: Layer) -> Layer:
    """A layer that reads sequences from their last step to their first.

        forward     y  = R f(R x)              (R x)[t] = x[T - 1 - t]
        transport   δx = R (R δ) ∂f/∂x

    The output of a step stays at that step.  In (x, lengths) each sequence is turned within its
    own length; a state, (x, state) or (x, lengths, state), passes to the layer as it is.

    Args:
        layer: a layer that maps x (B, T, d), or such a tuple, to y (B, T, ...), or such a tuple;
            params and tree are its own.

    Raises:
        LayerError: when x or lengths do not fit.

    >>> import jax.numpy as jnp
    >>> from funcprop import identity, reverse, rnn
    >>> params = {"w": jnp.ones((1, 1)), "u": jnp.ones((1, 1)), "b": jnp.zeros(1)}
    >>> y = reverse(rnn(1, identity)).apply(params, jnp.arange(4.0).reshape(1, 4, 1))
    >>> y[0, :, 0].tolist()
    [6.0, 6.0, 5.0, 3.0]
    """
    layer = as_layer(layer, "reverse")

    def turned(entries, lengths):
        first, *others = _entries(entries)
        return _alone((by_example(_turned, first, lengths), *others))

    def init(key, shape):
        with position("reverse"):
            return layer.init(key, shape)

    def forward(params, x, key=None):
        lengths = _entries(x)[1] if _common(x) == 2 else None
        check_lengths("reverse", _entries(x)[0], lengths)
        with position("reverse"):
            y, residuals = layer.forward(params, turned(x, lengths), key)
        return turned(y, lengths), (lengths, residuals)

    def backward(weights, residuals, delta, statistic=gradient):
        lengths, residuals = residuals
        with position("reverse"):
            delta_x, tree = layer.backward(weights, residuals, turned(delta, lengths), statistic)
        return turned(delta_x, lengths), tree

    return Layer(init, forward, backward, "reverse", (layer,), lambda parts: reverse(*parts))


def bidirectional(layer: Layer, backwards: Layer | None = None) -> Layer:
    """Sequences read in both directions, the outputs side by side (Schuster & Paliwal 1997).

        forward     y  = (f(x), g(x))          g reads from the last step to the first
        transport   δx = δ_f ∂f/∂x + δ_g ∂g/∂x

    x (B, T, d), y and δ (B, T, both layers' features); with lengths (x, lengths) and (y, lengths).
    Where the layers take a state, the pair of theirs is the last entry.  Params and tree are pairs.

    Args:
        layer: f, say ``lstm(8)``.
        backwards: g; by default ``reverse(layer)``, with params of its own.

    Raises:
        LayerError: as its layers.

    >>> import jax
    >>> from funcprop import bidirectional, lstm
    >>> params, out_shape = bidirectional(lstm(8)).init(jax.random.key(0), (7, 3))
    >>> [part["w"].shape for part in params], out_shape
    ([(32, 3), (32, 3)], (7, 16))
    """
    name = "bidirectional"
    layer = as_layer(layer, name)
    layers = (layer, reverse(layer) if backwards is None else as_layer(backwards, name))

    def sides(x, common):
        """What each layer is given: the first entries are common, a state is a pair."""
        shared, states = _entries(x)[:common], _entries(x)[common:]
        if any(not isinstance(pair, tuple) or len(pair) != 2 for pair in states):
            raise LayerError(name, "state is no pair, that of each direction is due")
        return [_alone((*shared, *(pair[i] for pair in states))) for i in range(2)]

    def joined(first, outputs, common):
        """``first`` and what else comes out, the states as pairs."""
        one, other = map(_entries, outputs)
        return _alone((first, *one[1:common], *zip(one[common:], other[common:], strict=True)))

    def init(key, shape):
        single, made = is_shape(shape), []
        given = [shape] * 2 if single else sides(shape, _common(shape))
        for i, (part, k) in enumerate(zip(layers, jax.random.split(key), strict=True)):
            with position(f"layers[{i}]"):
                made.append(part.init(k, given[i]))
        params, out = zip(*made, strict=True)
        if single:
            return params, (*out[0][:-1], out[0][-1] + out[1][-1])
        one, other = (_entries(struct)[0] for struct in out)
        size = (*one.shape[:-1], one.shape[-1] + other.shape[-1])
        return params, joined(jax.ShapeDtypeStruct(size, one.dtype), out, _common(shape))

    def forward(params, x, key=None):
        if not isinstance(params, (tuple, list)) or len(params) != 2:
            raise LayerError(name, "params is no pair, those of each direction are due")
        keys = [None] * 2 if key is None else jax.random.split(key)
        common, made = _common(x), []
        for i, given in enumerate(sides(x, common)):
            with position(f"layers[{i}]"):
                made.append(layers[i].forward(params[i], given, keys[i]))
        outputs, residuals = zip(*made, strict=True)
        firsts = [_entries(y)[0] for y in outputs]
        sizes = Example((common, firsts[0].shape[-1]))
        return joined(jnp.concatenate(firsts, axis=-1), outputs, common), (sizes, residuals)

    def backward(weights, residuals, delta, statistic=gradient):
        sizes, residuals = residuals
        common, size = sizes.shape
        first = _entries(delta)[0]
        cut, made = (first[..., :size], first[..., size:]), []
        for i, (_, *more) in enumerate(map(_entries, sides(delta, common))):
            given = _alone((cut[i], *more))
            with position(f"layers[{i}]"):
                made.append(layers[i].backward(weights[i], residuals[i], given, statistic))
        deltas, trees = zip(*made, strict=True)
        first = _entries(deltas[0])[0] + _entries(deltas[1])[0]
        return joined(first, deltas, common), trees

    return Layer(init, forward, backward, name, layers, lambda parts: bidirectional(*parts))


def _turned(x: jax.Array, lengths: jax.Array | None) -> jax.Array:
    """Each sequence turned round within its length, NaN if that is none."""
    if lengths is None:
        return x[:, ::-1]
    time, lengths = x.shape[1], lengths.astype(jnp.int32)
    numbers, ends = jnp.arange(time, dtype=jnp.int32), jnp.clip(lengths, 0, time)[:, None]
    source = jnp.where(numbers < ends, ends - 1 - numbers, numbers)
    found = jax.vmap(lambda x, source: x[source])(x, source)
    return found * valid(lengths, time)[:, None, None].astype(x.dtype)


def _entries(x: Tree) -> tuple:
    return x if isinstance(x, tuple) else (x,)


def _alone(entries: tuple) -> Tree:
    return entries if len(entries) > 1 else entries[0]


def _common(x: Tree) -> int:
    """How many entries are common to both directions: 2 with lengths, 1 without."""
    second = x[1] if isinstance(x, tuple) and len(x) > 1 else None
    return 2 if hasattr(second, "dtype") and not is_inexact(second) else 1
