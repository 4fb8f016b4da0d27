"""What a layer is: a forward and a backward pass, written side by side.

    init(key, shape)                               -> params, out_shape
    forward(params, x, key=None)                   -> y, residuals
    backward(weights, residuals, delta, statistic) -> delta_x, tree

A forward pass turns ``x`` into ``y`` and keeps residuals.  A backward pass carries the error
``delta = ∂L/∂y`` back to ``delta_x = ∂L/∂x``, and wherever it meets a place that holds weights (a
:class:`Site`) it hands the site's input and its delta to a *statistic*, of which
:func:`gradient` is the default.

Five laws hold for every layer, and each is a test that every layer passes:

1.  What carries delta back is read from ``weights``, never from the residuals, so any tree shaped
    like the parameters can carry the error.
2.  ``backward`` is linear in ``delta``.
3.  A statistic is called as ``statistic(site, inputs, delta)`` inside the sweep, once per site.
4.  With ``weights = params`` and ``statistic = gradient``, ``backward`` equals the pullback of
    ``jax.vjp(layer.apply)``; per-example gradients of the delta sent sum to the gradient.
5.  Everything is pure: it can be jitted, vmapped, scanned, sharded, rematerialised, and
    differentiated again.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .contraction import Varying, matched

Tree = Any
Shape = Any
"""Shape of ONE example: a tuple of ints, or for a tuple input a tuple of jax.ShapeDtypeStruct.

For an array of ids, where the shape alone does not say its dtype, also a jax.ShapeDtypeStruct."""


class Layer(NamedTuple):
    """A layer: pure functions, and for a combinator the parts that it is made of.

    Attributes:
        init: ``init(key, shape) -> params, out_shape``; ``shape`` is the shape of one example,
            without the batch axis (for a tuple input a tuple of ``jax.ShapeDtypeStruct``).
        forward: ``forward(params, x, key=None) -> y, residuals``; ``x`` has a leading batch axis,
            ``key`` is for layers that draw random numbers, and without one they do inference.
        backward: ``backward(weights, residuals, delta, statistic=gradient) -> delta_x, tree``;
            ``delta`` has the structure of ``y``, with ``None`` at its integer and boolean leaves,
            and ``tree`` has the statistic's result where ``params`` has a site.
        name: what errors and summaries call it.
        parts: the layers a combinator is made of.
        rebuild: ``rebuild(parts) -> layer`` makes the combinator anew from other parts.
        inference: ``inference(statistics) -> layer``, of a layer whose output depends on the whole
            batch, makes its form for inference: it takes the same parameters and normalises by
            ``{"mean", "variance"}`` of the data; ``None`` where there is no difference.
        statistics: ``statistics() -> {"mean", "variance"}`` of such a form: the constants that it
            holds; ``None`` elsewhere.  See :func:`~funcprop.calibrate`.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import dense
    >>> layer = dense(3)
    >>> params, out_shape = layer.init(jax.random.key(0), (4,))
    >>> out_shape
    (3,)
    >>> y, residuals = layer.forward(params, jnp.ones((2, 4)))
    >>> delta_x, grads = layer.backward(params, residuals, jnp.ones((2, 3)))
    >>> delta_x.shape, grads["w"].shape, grads["b"].shape
    ((2, 4), (3, 4), (3,))
    """

    init: Callable[..., tuple[Tree, Shape]]
    forward: Callable[..., tuple[Tree, Tree]]
    backward: Callable[..., tuple[Tree, Tree]]
    name: str = ""
    parts: tuple[Layer, ...] = ()
    rebuild: Callable[[tuple[Layer, ...]], Layer] | None = None
    inference: Callable[[Tree], Layer] | None = None
    statistics: Callable[[], Tree] | None = None

    def apply(self, params: Tree, x: Tree, key: jax.Array | None = None) -> Tree:
        """The forward pass without its residuals."""
        return self.forward(params, x, key)[0]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Site:
    """A place that holds weights, as a statistic sees it.

    A static leaf: it passes through ``jax.eval_shape``, ``scan`` and ``jit`` as it is.

    Attributes:
        name: the layer's name.
        gradient: ``gradient(inputs, delta) -> tree`` shaped like the site's parameters; it sums
            over axis 0, so that a per-example statistic is a vmap of it.
        rows: ``rows(inputs, delta) -> left (B, R, n), right (B, R, m)``, the two factors of the
            matrix form δW = Σ rightᵀ left, (m, n), of all parameters but the bias b: one beside
            the other in the order of their names; ``None`` where a site has no such form.
        mixes: whether one example's delta depends on the other examples (batch norm).
        inputs_first: whether the parameters are stored as Wᵀ, with the axes of the inputs in
            front, as the kernel of a convolution and the table of an embedding.
        summed_bias: whether δb = Σ right, as where b is added to the product with W; in a graph
            convolution it is added later.
    """

    name: str
    gradient: Callable[[Tree, Tree], Tree]
    rows: Callable[[Tree, Tree], tuple[Any, jax.Array]] | None = None
    mixes: bool = False
    inputs_first: bool = False
    summed_bias: bool = True


def gradient(site: Site, inputs: Tree, delta: Tree) -> Tree:
    """The default statistic: the gradient of the loss by the site's parameters."""
    return site.gradient(inputs, delta)


def stateless(key: jax.Array | None, shape: Shape) -> tuple[tuple[()], Shape]:
    """``init`` of a layer that has no parameters and keeps its input's shape."""
    return (), shape


def sites(model: Layer, shape: Shape) -> Tree:
    """The model's sites, as a tree shaped like its parameters; nothing is computed.

    Args:
        model: any layer.
        shape: shape of one example (a tuple of ``jax.ShapeDtypeStruct`` for a tuple input, one
            ``jax.ShapeDtypeStruct`` for an array of ids).

    Returns:
        The parameter tree's structure with a :class:`Site` where a layer has one.

    >>> from funcprop import dense, relu, serial, sites
    >>> [site["name"] if isinstance(site, dict) else getattr(site, "name", site)
    ...  for site in sites(serial(dense(3), relu, dense(2)), (4,))]
    ['dense', (), 'dense']
    """

    def sweep(key):
        params, _ = model.init(key, shape)
        y, residuals = model.forward(params, example_batch(shape), key)
        delta = jax.tree.map(lambda leaf: leaf if is_inexact(leaf) else None, y)
        return model.backward(params, residuals, delta, lambda site, inputs, delta: site)[1]

    return jax.eval_shape(sweep, jax.random.key(0))


def example_batch(shape: Shape, batch: int = 1) -> Tree:
    """Zeros with a batch axis in front of ``shape``."""
    if is_shape(shape):
        return jnp.zeros((batch, *shape))
    return jax.tree.map(lambda leaf: jnp.zeros((batch, *leaf.shape), leaf.dtype), shape)


def is_shape(shape: Shape) -> bool:
    """Whether ``shape`` is that of a single array."""
    single = isinstance(shape, jax.ShapeDtypeStruct)
    return not single and all(isinstance(size, (int, np.integer)) for size in shape)


def is_inexact(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def floats_of(tree: Tree) -> Tree:
    """``tree`` with ``None`` at its integer and boolean leaves, as a delta has it."""
    return jax.tree.map(lambda leaf: leaf if is_inexact(leaf) else None, tree)


def with_floats(tree: Tree, floats: Tree) -> Tree:
    """``tree`` with its floats replaced; ``floats`` has ``None`` at the other leaves."""
    leaves, structure = jax.tree.flatten(tree)
    new = jax.tree.leaves(floats, is_leaf=lambda leaf: leaf is None)
    return jax.tree.unflatten(
        structure, [old if value is None else value for old, value in zip(leaves, new, strict=True)]
    )


def is_concrete(leaf: Any) -> bool:
    """Whether the values are known here, outside any trace."""
    return not isinstance(leaf, jax.core.Tracer) and getattr(leaf, "is_fully_addressable", True)


# ---------------------------------------------------------------------------- errors


class LayerError(ValueError):
    """A shape, dtype, structure or value that a layer cannot take.

    The message names the layer and where it sits in the model, the argument, what came, what was
    expected and what to do.
    """

    def __init__(self, layer: str, message: str, position: str = ""):
        self.layer, self.message, self.position = layer, message, position
        super().__init__(f"{position} {layer}: {message}".strip())


@contextmanager
def position(place: str) -> Iterator[None]:
    """Puts ``place`` (say ``layers[2]``) in front of the position that an error inside names."""
    try:
        yield
    except LayerError as error:
        inner = f".{error.position}" if error.position else ""
        raise LayerError(error.layer, error.message, place + inner) from None


def as_layer(layer: Any, where: str) -> Layer:
    """``layer`` itself if it is one, else an error that says how to make one of it."""
    if all(hasattr(layer, attribute) for attribute in ("init", "forward", "backward", "apply")):
        return layer
    name = getattr(layer, "__name__", None) or getattr(layer, "name", None) or repr(layer)
    advice = f"it is a {type(layer).__name__}"
    if callable(layer) and getattr(layer, "__module__", "").startswith("funcprop."):
        advice = f"it is a constructor, call it: {name}(...)"
    elif callable(layer):
        advice = (
            "it is a bare function; use the layer of that name from funcprop, or "
            f"elementwise({name}, derivative), or function({name}) to differentiate it with jax.vjp"
        )
    raise LayerError(where, f"{name} is not a Layer: {advice}")


def check_float(layer: str, x: Any, argument: str = "x") -> None:
    """Raises unless ``x`` is an array of floats (or, for the complex step, complex numbers)."""
    if not hasattr(x, "dtype"):
        raise LayerError(layer, f"{argument} is a {type(x).__name__}, an array is due")
    if not is_inexact(x):
        raise LayerError(
            layer, f"{argument} is {x.dtype}, floats are due; cast it, or embed it if it holds ids"
        )


def described(tree: Any) -> str:
    """What came in the place of a tuple or a dict."""
    if isinstance(tree, dict):
        return f"a dict of {sorted(map(str, tree))}"
    kind = type(tree).__name__
    return f"a {kind} of {len(tree)}" if isinstance(tree, (tuple, list)) else f"a {kind}"


def check_number(
    layer: str,
    argument: str,
    value: Any,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
) -> float:
    """``value``, a finite number within the bounds, as a float; else raises.

    It may be a number of Python or NumPy, or an array of shape () whose value is known.
    """
    scalar = getattr(value, "shape", None) == () and is_concrete(value)
    if scalar and jnp.issubdtype(value.dtype, jnp.number) and not jnp.iscomplexobj(value):
        value = value.item()
    try:
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        number = float(value) if real else math.nan
    except OverflowError:
        number = math.inf
    if math.isfinite(number) and above < number < below and at_least <= number <= at_most:
        return number
    bounds = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    given = [f"{name} {bound:g}" for name, bound in bounds.items() if math.isfinite(bound)]
    expected = f"a finite number {' and '.join(given)}".strip()
    raise LayerError(layer, f"{argument} is {value!r}, it must be {expected}")


def check_count(layer: str, argument: str, value: Any) -> None:
    """Raises unless ``value`` is a whole number above 0."""
    integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not integer or value < 1:
        raise LayerError(layer, f"{argument} is {value!r}, a whole number above 0 is due")


# ------------------------------------------------------------------- the bridge to autodiff


def cotangent_of(y: Tree, delta: Tree) -> Tree:
    """``delta`` as ``jax.vjp`` wants it: float0 zeros where ``y`` is not inexact."""
    leaves, structure = jax.tree.flatten(y)
    deltas = jax.tree.leaves(delta, is_leaf=lambda leaf: leaf is None)
    return jax.tree.unflatten(
        structure,
        [
            d if is_inexact(leaf) else np.zeros(jnp.shape(leaf), jax.dtypes.float0)
            for leaf, d in zip(leaves, deltas, strict=True)
        ],
    )


def delta_of(cotangent: Tree) -> Tree:
    """A cotangent of ``jax.vjp`` as a delta: ``None`` where it is float0."""
    return jax.tree.map(lambda c: None if c.dtype == jax.dtypes.float0 else c, cotangent)


def differentiable(layer: Layer) -> Callable[..., Tree]:
    """The layer as a function whose derivative under ``jax.grad`` is the hand-written one.

    Args:
        layer: any layer.

    Returns:
        ``f(params, x, key=None) -> y``, a ``jax.custom_vjp`` function.  As every such function it
        refuses forward mode (``jax.jvp``, ``jax.hessian``): use ``layer.apply`` for those.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import dense, differentiable, tanh
    >>> layer = dense(3, tanh)
    >>> params, _ = layer.init(jax.random.key(0), (4,))
    >>> f = differentiable(layer)
    >>> jax.tree.map(jnp.shape, jax.grad(lambda p: f(p, jnp.ones((2, 4))).sum())(params))
    {'b': (3,), 'w': (3, 4)}
    """

    @jax.custom_vjp
    def apply(params, x, key=None):
        return layer.apply(params, x, key)

    def forward(params, x, key=None):
        y, residuals = layer.forward(params, x, key)
        return y, (params, residuals, Varying.of(params), Varying.of(x))

    def backward(saved, cotangent):
        params, residuals, params_varying, x_varying = saved
        delta_x, grads = layer.backward(params, residuals, delta_of(cotangent), gradient)
        return matched(grads, params_varying), matched(delta_x, x_varying), None

    apply.defvjp(forward, backward)
    return apply
