"""Mixed precision: a layer that computes in narrower floats than its parameters are kept in."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from .checks import LayerError, as_layer, position
from .layer import Layer
from .site import gradient

Tree = Any


def cast(layer: Layer, dtype: Any) -> Layer:
    """A layer computed in another dtype, its parameters, input and output kept in theirs.

        forward     y  = f(θ̃, x̃) in x's dtype, with ~ rounded to ``dtype``
        transport   δx = δ̃ ∂f(θ̃, x̃)/∂x̃ in x's dtype
        gradient    δθ in θ's dtype, from inputs and deltas that were rounded to ``dtype``

    With ``cast(model, "bfloat16")`` the matrix products, activations and residuals are bfloat16,
    half the memory.  The parameters and their gradient stay float32: every site's inputs and
    delta reach the statistic in θ's dtype, so that the sums over tokens and examples, and all
    that a statistic squares and adds, are float32 (Micikevicius 2018, arXiv 1710.03740, sec. 3).

    bfloat16 needs no loss scaling: it has the 8 exponent bits of float32, so a delta that is not 0
    in float32 is not flushed to 0.  float16 has 5: deltas below 6e-8 vanish, and a loss has to be
    scaled up before the sweep and the gradient down after it.

    Args:
        layer: any layer, its params of one float dtype; params and tree are its own.
        dtype: of the computation: "bfloat16", "float16", or wider ones.  Input without floats (ids)
            gives y in the parameters' dtype.

    Raises:
        LayerError: when ``dtype`` is not of floats or not enabled, or params are of several dtypes.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import cast, dense, gelu, sites
    >>> layer = cast(dense(3, gelu), "bfloat16")
    >>> params, _ = layer.init(jax.random.key(0), (4,))
    >>> y, residuals = layer.forward(params, jnp.ones((2, 4)))
    >>> params["w"].dtype.name, y.dtype.name, jax.tree.leaves(residuals)[0].dtype.name
    ('float32', 'float32', 'bfloat16')
    """
    layer = as_layer(layer, "cast")
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise LayerError("cast", f"dtype is {dtype}, one of floats is due, as bfloat16")

    def init(key, shape):
        with position("cast"):
            return layer.init(key, shape)

    def forward(params, x, key=None):
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise LayerError("cast", f"dtype is {dtype}, which jax.enable_x64 has to allow")
        with position("cast"):
            y, residuals = layer.forward(_to(dtype, params), _to(dtype, x), key)
        kept = _Dtypes.of(x)
        own = next((d for d in kept.leaves if d is not None), _dtype_of(params))
        return _to(own, y), (residuals, kept)

    def backward(weights, residuals, delta, statistic=gradient):
        residuals, kept = residuals
        own = _dtype_of(weights)

        def widened(site, inputs, delta):
            return statistic(site, _to(own, inputs), _to(own, delta))

        with position("cast"):
            delta_x, tree = layer.backward(
                _to(dtype, weights), residuals, _to(dtype, delta), widened
            )
        return kept.given_to(delta_x), tree

    return Layer(init, forward, backward, "cast", (layer,), lambda parts: cast(parts[0], dtype))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Dtypes:
    """The dtype of each leaf of a tree, ``None`` where it is not of floats."""

    leaves: tuple[Any, ...]

    @classmethod
    def of(cls, tree: Tree) -> _Dtypes:
        return cls(tuple(leaf.dtype if _floats(leaf) else None for leaf in jax.tree.leaves(tree)))

    def given_to(self, delta: Tree) -> Tree:
        leaves, structure = jax.tree.flatten(delta, is_leaf=lambda leaf: leaf is None)
        pairs = zip(leaves, self.leaves, strict=True)
        return jax.tree.unflatten(
            structure, [d if dtype is None else d.astype(dtype) for d, dtype in pairs]
        )


def _floats(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _to(dtype: Any, tree: Tree) -> Tree:
    """The floats of a tree in another dtype."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if _floats(leaf) else leaf, tree)


def _dtype_of(params: Tree) -> Any:
    found = {leaf.dtype for leaf in jax.tree.leaves(params) if _floats(leaf)}
    if len(found) > 1:
        raise LayerError("cast", f"params are {sorted(map(str, found))}, one dtype is due")
    return found.pop() if found else jnp.zeros(()).dtype
