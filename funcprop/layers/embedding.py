"""Embedding of ids, and positions added to a sequence, learned and sinusoidal."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import contraction
from ..core.checks import (
    LayerError,
    check_count,
    check_features,
    check_float,
    check_number,
    is_concrete,
)
from ..core.layer import FloatShape, Layer, float_shape, is_shape, stateless
from ..core.rows import OneHot
from ..core.site import Site, gradient
from .initializers import lecun_normal

small_normal = jax.nn.initializers.normal(0.02)


def embedding(vocab: int, features: int, *, w_init: Any = lecun_normal) -> Layer:
    """Rows of a table, one for each id.

        forward     y  = W[x]
        transport   none: ids carry no delta
        gradient    δW[v] = Σ δ over the places where x = v

    x (B, ...) integers in [0, V), W (V, d), y and δ (B, ..., d).  W is laid out as that of
    ``affine(V, bias=False)``, so that :func:`~funcprop.share` can tie an output layer to it (Press
    & Wolf 2017, arXiv 1608.05859).  As a matrix product y = e(x) W with one-hot rows e(x), and in
    ``rows`` the site's factors are (δ, e(x)): δW = Σ e(x)ᵀ δ.  A bfloat16 gradient is accumulated
    in float32.

    Args:
        vocab: V, how many ids there are.
        features: d, the size of the last axis of y.
        w_init: ``w_init(key, (V, d)) -> W``; by default normal with variance 1/d.

    Raises:
        LayerError: while tracing, when x is not of integers or W not (V, d); where x is concrete
            also for an id out of [0, V).  Under a trace such an id gives NaN in its y, and in all
            of δW.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import embedding
    >>> params, out_shape = embedding(5, 3).init(jax.random.key(0), (7,))
    >>> params["w"].shape, out_shape
    ((5, 3), (7, 3))
    >>> embedding(2, 1).apply({"w": jnp.array([[3.0], [4.0]])}, jnp.array([[1, 0, 1]])).tolist()
    [[[4.0], [3.0], [4.0]]]
    """
    check_count("embedding", "vocab", vocab)
    check_features("embedding", features)
    vocab, features = int(vocab), int(features)

    def gradients(ids, delta):
        def scattered(ids, delta):
            # The table starts at 0, or at NaN if an id is none: nothing is added anywhere for it.
            start = jnp.where(jnp.all(ids < vocab), 0, jnp.nan).astype(delta.dtype)
            start = contraction.accumulated(jnp.broadcast_to(start, (vocab, features)))
            delta = contraction.accumulated(delta)
            return start.at[ids].add(delta, mode="drop").astype(delta_dtype)

        delta_dtype = delta.dtype
        return {"w": contraction.by_example(scattered, ids, delta, summed=True)}

    def rows(ids, delta):
        one_hot = OneHot(ids.reshape(len(ids), -1), vocab, jnp.zeros((), delta.dtype))
        return one_hot, delta.reshape(len(ids), -1, features)

    site = Site("embedding", gradients, rows, inputs_first=True)

    def init(key, shape):
        shape = _shape_of_ids(shape)
        return {"w": w_init(key, (vocab, features))}, (*shape, features)

    def forward(params, x, key=None):
        _check_ids(params, x, vocab, features)
        x = x.astype(jnp.int32) if x.dtype.itemsize < 4 else x
        # All that is no id becomes V: a negative index would count from the end.
        ids = jnp.where((x >= 0) & (x < vocab), x, vocab)
        return contraction.by_example(_taken, params["w"], ids), ids

    def backward(weights, ids, delta, statistic=gradient):
        return None, statistic(site, ids, delta)

    return Layer(init, forward, backward, "embedding")


def positional(length: int, *, p_init: Any = small_normal) -> Layer:
    """A learned vector for each position, added to a sequence.

        forward     y  = x + p[:T]
        transport   δx = δ
        gradient    δp[:T] = Σ δ over the batch      δp[T:] = 0

    x, y and δ (B, T, d) with T ≤ length, p (length, d).

    Args:
        length: the longest sequence.
        p_init: ``p_init(key, (length, d)) -> p``; by default normal with standard deviation 0.02.

    Raises:
        LayerError: while tracing, when x is longer than ``length`` or does not fit p.

    >>> import jax
    >>> from funcprop import positional
    >>> params, out_shape = positional(100).init(jax.random.key(0), (7, 3))
    >>> params["p"].shape, out_shape
    ((100, 3), (7, 3))
    """
    check_count("positional", "length", length)

    def gradients(inputs, delta):
        unused = length - delta.shape[1]
        return {"p": jnp.pad(jnp.sum(delta, axis=0), ((0, unused), (0, 0)))}

    site = Site("positional", gradients)

    def init(key, shape):
        shape = float_shape("positional", shape, "a sequence (T, d)")
        _check_sequence("positional", "shape", shape, shape)
        _check_length(shape[0], length)
        return {"p": p_init(key, (length, shape[1]))}, shape

    def forward(params, x, key=None):
        check_float("positional", x)
        _check_sequence("positional", "x", x.shape, x.shape[1:])
        _check_length(x.shape[1], length)
        if not isinstance(params, dict) or set(params) != {"p"}:
            raise LayerError("positional", "params is a dict {'p': (length, d)}; see init")
        p, due = params["p"], (length, x.shape[2])
        if p.shape != due or p.dtype != x.dtype:
            raise LayerError(
                "positional",
                f"p is {p.dtype}{list(p.shape)}, {x.dtype}{list(due)} is due; check the sizes "
                "given to init",
            )
        return x + p[: x.shape[1]], None

    def backward(weights, residuals, delta, statistic=gradient):
        return delta, statistic(site, (), delta)

    return Layer(init, forward, backward, "positional")


def sinusoidal(base: float = 10000.0) -> Layer:
    """Sines and cosines of the position, added to a sequence; no parameters.

        forward     y[t, 2i] = x[t, 2i] + sin(t / base^(2i/d))
                    y[t, 2i + 1] = x[t, 2i + 1] + cos(t / base^(2i/d))
        transport   δx = δ

    x, y and δ (B, T, d); t counts from 0.  Vaswani 2017, arXiv 1706.03762, sec. 3.5.

    Args:
        base: the wavelengths go from 2π to 2π base.

    >>> import jax.numpy as jnp
    >>> from funcprop import sinusoidal
    >>> sinusoidal().apply((), jnp.zeros((1, 2, 2))).round(3).tolist()
    [[[0.0, 1.0], [0.8410000205039978, 0.5400000214576721]]]
    """
    base = check_number("sinusoidal", "base", base, above=0)

    def init(key, shape):
        shape = float_shape("sinusoidal", shape, "a sequence (T, d)")
        _check_sequence("sinusoidal", "shape", shape, shape)
        return stateless(key, shape)

    def forward(params, x, key=None):
        check_float("sinusoidal", x)
        _check_sequence("sinusoidal", "x", x.shape, x.shape[1:])
        length, features = x.shape[1:]
        pair, odd = np.divmod(np.arange(features), 2)
        # In float64 on the host: a phase of many turns keeps nothing in float32.
        angle = np.arange(length)[:, None] / base ** (2 * pair / features)
        return x + jnp.asarray(np.where(odd, np.cos(angle), np.sin(angle)), x.dtype), None

    def backward(weights, residuals, delta, statistic=gradient):
        return delta, ()

    return Layer(init, forward, backward, "sinusoidal")


def _taken(w: jax.Array, ids: jax.Array) -> jax.Array:
    return jnp.asarray(w).at[ids].get(mode="fill", fill_value=jnp.nan)


def _shape_of_ids(shape: Any) -> tuple[int, ...]:
    """The shape of one example's ids, given as a tuple of ints or a ``jax.ShapeDtypeStruct``."""
    if isinstance(shape, FloatShape):
        raise LayerError(
            "embedding",
            f"shape {shape} is of floats, ids are integers; write {tuple(shape)} or "
            f'jax.ShapeDtypeStruct({tuple(shape)}, "int32")',
        )
    if is_shape(shape):
        return tuple(shape)
    if not isinstance(shape, jax.ShapeDtypeStruct):
        raise LayerError("embedding", f"shape is {shape}, that of one array of ids is due")
    if not jnp.issubdtype(shape.dtype, jnp.integer):
        raise LayerError("embedding", f"shape is of {shape.dtype}, ids are integers")
    return shape.shape


def _check_ids(params: Any, x: Any, vocab: int, features: int) -> None:
    if not isinstance(params, dict) or set(params) != {"w"}:
        came = sorted(params) if isinstance(params, dict) else f"a {type(params).__name__}"
        raise LayerError("embedding", f"params is {came}, a dict of ['w'] is due")
    if params["w"].shape != (vocab, features):
        raise LayerError(
            "embedding", f"w is {params['w'].shape}, (vocab, features) = {(vocab, features)} is due"
        )
    if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.integer):
        came = getattr(x, "dtype", type(x).__name__)
        raise LayerError("embedding", f"x is {came}, an array of integer ids is due")
    if x.ndim < 1:
        raise LayerError("embedding", "x is one id, a batch (B, ...) is due; use x[None]")
    if is_concrete(x):
        ids = np.asarray(x)
        bad = ids[(ids < 0) | (ids >= vocab)]
        if bad.size:
            raise LayerError("embedding", f"an id is {bad[0]}, ids lie in [0, {vocab})")


def _check_sequence(layer: str, argument: str, came: Any, shape: Any) -> None:
    if not isinstance(shape, (tuple, list)) or len(shape) != 2:
        due = "(B, T, d)" if argument == "x" else "(T, d)"
        raise LayerError(layer, f"{argument} is {came}, a sequence {due} is due")


def _check_length(came: int, length: int) -> None:
    if came > length:
        raise LayerError(
            "positional", f"x has {came} positions, p has {length}; give a larger length or cut x"
        )
