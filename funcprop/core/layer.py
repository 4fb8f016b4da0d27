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

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from .checks import (
    LayerError,
    _check_input,
    _slip_in_apply,
    as_layer,
    described,
    is_inexact,
    is_key,
)
from .site import gradient

_Struct = jax.ShapeDtypeStruct

Tree = Any
Shape = Any
"""Shape of ONE example: a tuple of ints, or for a tuple input a tuple of jax.ShapeDtypeStruct.

For an array of ids, where the shape alone does not say its dtype, also a jax.ShapeDtypeStruct.
:func:`as_shape` makes this form of all that users write."""


class _Functions(NamedTuple):
    """The fields of a :class:`Layer`."""

    init: Callable[..., tuple[Tree, Shape]]
    forward: Callable[..., tuple[Tree, Tree]]
    backward: Callable[..., tuple[Tree, Tree]]
    name: str = ""
    parts: tuple[Layer, ...] = ()
    rebuild: Callable[[tuple[Layer, ...]], Layer] | None = None
    inference: Callable[[Tree], Layer] | None = None
    statistics: Callable[[], Tree] | None = None
    places: tuple[str, ...] = ()


class Layer(_Functions):
    """A layer: pure functions, and for a combinator the parts that it is made of.

    Attributes:
        init: ``init(key, shape) -> params, out_shape``; ``shape`` is the shape of one example,
            without the batch axis, and of several inputs a tuple of shapes.  The layer's own
            function is given it in one form, see :func:`as_shape`, and may answer in any.
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
        places: what the parts are called within it; by default several are ``layers[0]`` and so
            on, and a single one is called as the layer that it is in, ``residual``.

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

    __slots__ = ()

    def init(self, key: jax.Array | None, shape: Shape) -> tuple[Tree, Shape]:
        """Parameters, and the shape of one example of the output.

        Args:
            key: a key of ``jax.random``; ``None`` will do for layers that draw nothing.
            shape: shape of one example without its batch axis: a tuple of ints or a
                ``jax.ShapeDtypeStruct``; of several inputs a tuple of those.

        Returns:
            ``(params, out_shape)``, the latter a tuple of ints for an array of floats, a
            ``jax.ShapeDtypeStruct`` for one of integers, and a tuple of structs for several.

        Raises:
            LayerError: when key is no key, or shape is not one that the layer takes.
        """
        return initialised(self.name, self[0], key, shape)

    def apply(self, params: Tree, x: Tree = None, key: jax.Array | None = None) -> Tree:
        """The forward pass without its residuals."""
        name = self.name or "layer"
        _check_input(name, x)
        try:
            return self.forward(params, x, key)[0]
        except Exception as error:
            # Only of a call that failed: a function's parameters may look like anything.
            advice = _slip_in_apply(params, x)
            if advice is None:
                raise
            raise LayerError(name, advice) from error

    def __call__(self, *args: Any, **options: Any) -> NoReturn:
        """Raises: a layer is used by its ``init`` and ``apply``."""
        name = self.name or "layer"
        if not args and not options:
            raise LayerError(name, f"it is a layer already; write {name} without ()")
        raise LayerError(
            name,
            "it is a layer, and a layer is not called; write layer.apply(params, x) with the "
            "params of layer.init(key, shape), () where the layer has none",
        )

    def __repr__(self) -> str:
        parts = f"({', '.join(map(repr, self.parts))})" if self.parts else ""
        return (self.name or "layer") + parts


def stateless(key: jax.Array | None, shape: Shape) -> tuple[tuple[()], Shape]:
    """``init`` of a layer that has no parameters and keeps its input's shape."""
    return (), shape


def sites(model: Layer, shape: Shape) -> Tree:
    """The model's sites, as a tree shaped like its parameters; nothing is computed.

    Args:
        model: any layer.
        shape: shape of one example, as for the model's init.

    Returns:
        The parameter tree's structure with a :class:`Site` where a layer has one.

    >>> from funcprop import dense, relu, serial, sites
    >>> [site["name"] if isinstance(site, dict) else getattr(site, "name", site)
    ...  for site in sites(serial(dense(3), relu, dense(2)), (4,))]
    ['dense', (), 'dense']
    """
    model = as_layer(model, "sites")

    def sweep(key):
        params, _ = model.init(key, shape)
        y, residuals = model.forward(params, example_batch(shape), key)
        delta = jax.tree.map(lambda leaf: leaf if is_inexact(leaf) else None, y)
        return model.backward(params, residuals, delta, lambda site, inputs, delta: site)[1]

    return jax.eval_shape(sweep, jax.random.key(0))


# ---------------------------------------------------------------------------- shapes


def initialised(
    layer: str, init: Callable[..., tuple[Tree, Shape]], key: Any, shape: Any
) -> tuple[Tree, Shape]:
    """``init(key, shape)`` with its arguments and its answer checked and in their one form."""
    layer = layer or "layer"
    if is_key(shape) or (isinstance(key, (tuple, list)) and key and not is_key(key)):
        raise LayerError(layer, "key and shape are swapped; write init(key, shape)")
    if key is not None and not is_key(key):
        seed = int(key) if isinstance(key, (int, np.integer)) else 0
        raise LayerError(
            layer, f"key is {described(key)}, it must be one key; write jax.random.key({seed})"
        )
    shape = as_shape(layer, shape)
    try:
        made = init(key, shape)
    except TypeError as error:
        if key is not None:
            raise
        raise LayerError(
            layer, "key is None, its parameters are drawn with one; write jax.random.key(0)"
        ) from error
    if not isinstance(made, tuple) or len(made) != 2:
        raise LayerError(
            layer, f"its init gives {described(made)}, it must give (params, out_shape)"
        )
    params, out_shape = made[0], as_shape(layer, made[1], "out_shape")
    return params, tuple(out_shape) if is_shape(out_shape) else out_shape


class FloatShape(tuple):
    """Sizes of an array said to hold floats; a plain tuple of sizes may stand for ids as well."""


def as_shape(layer: str, shape: Any, argument: str = "shape") -> Shape:
    """``shape`` in the one form that each layer's own ``init`` is given.

    Args:
        layer: what the error names.
        shape: a tuple or list of ints, a ``jax.ShapeDtypeStruct``, or a tuple, list or dict of
            such, nested at will.
        argument: what the error calls it.

    Returns:
        A tuple of ints for one array of floats, a ``jax.ShapeDtypeStruct`` for one of another
        dtype.  Of several arrays each is a struct: floats where it was given as ints.

    Raises:
        LayerError: for all else; the message says how to write a shape.

    >>> from funcprop.core.layer import as_shape
    >>> as_shape("dense", [4]), as_shape("dense", jax.ShapeDtypeStruct((4,), "float32"))
    ((4,), (4,))
    >>> as_shape("embedding", jax.ShapeDtypeStruct((7,), "int32"))
    ShapeDtypeStruct(shape=(7,), dtype=int32)
    >>> as_shape("parallel", ((4,), (5,)))[1]
    ShapeDtypeStruct(shape=(5,), dtype=float32)
    """

    def wrong(came: Any, advice: str) -> LayerError:
        inside = "" if came is shape else f"{described(came)} in "
        return LayerError(layer, f"{argument} is {inside}{described(shape)}; {advice}")

    def checked(sizes: Any) -> tuple[int, ...]:
        if not all(
            isinstance(size, (int, np.integer)) and not isinstance(size, bool) for size in sizes
        ):
            raise wrong(sizes, "sizes must be integers")
        if any(size < 0 for size in sizes):
            raise wrong(sizes, "sizes must not be negative")
        return tuple(map(int, sizes))

    def entry(given: Any) -> Any:
        if isinstance(given, _Struct):
            checked(given.shape)
            return given
        if isinstance(given, dict):
            return {name: entry(value) for name, value in given.items()}
        if given is None and shape is not None:
            return None
        if isinstance(given, jax.core.Tracer):
            raise wrong(
                given,
                "sizes must not be traced; keep the shape out of the arguments of jit or "
                "eval_shape, as in jax.jit(lambda key: layer.init(key, (4,))[0])",
            )
        if hasattr(given, "shape") and not isinstance(given, np.generic):
            raise wrong(given, "an array is not a shape; give that of one example, x.shape[1:]")
        if isinstance(given, (int, np.integer)) and given is shape:
            raise wrong(given, f"it must be a tuple; write ({int(given)},)")
        if not isinstance(given, (tuple, list)) or isinstance(given, Layer):
            raise wrong(given, "it must be a tuple of ints, or of several inputs' shapes")
        sizes = [isinstance(size, (int, float, np.generic)) for size in given]
        if any(sizes) and None in given:
            raise wrong(given, "sizes must be integers; leave the batch axis out")
        if all(sizes):
            return _Struct(checked(given), jnp.result_type(float))
        if any(sizes):
            raise wrong(given, "it has sizes next to shapes; write (4,) for a size alone")
        entries = [entry(value) for value in given]
        return type(given)(*entries) if hasattr(given, "_fields") else tuple(entries)

    if isinstance(shape, FloatShape):
        return shape
    found = entry(shape)
    if not isinstance(found, _Struct) or not jnp.issubdtype(found.dtype, jnp.floating):
        return found
    if found.shape and found.shape[-1] == 0:
        raise wrong(shape, "an array must have one feature or more")
    return FloatShape(checked(found.shape)) if found is shape else found.shape


def example_batch(shape: Shape, batch: int = 1) -> Tree:
    """Zeros with a batch axis in front of ``shape``."""
    if isinstance(shape, _Struct):
        return jnp.zeros((batch, *shape.shape), shape.dtype)
    shape = as_shape("example_batch", shape)
    if is_shape(shape):
        return jnp.zeros((batch, *shape))
    return jax.tree.map(lambda leaf: jnp.zeros((batch, *leaf.shape), leaf.dtype), shape)


def is_shape(shape: Shape) -> bool:
    """Whether ``shape`` is that of a single array of floats."""
    listed = isinstance(shape, (tuple, list))
    return listed and all(isinstance(size, (int, np.integer)) for size in shape)


def float_shape(layer: str, shape: Shape, due: str = "that of one array") -> tuple[int, ...]:
    """The sizes of one array of floats; an error unless ``shape`` is that of one."""
    if is_shape(shape):
        return tuple(shape)
    if isinstance(shape, _Struct) and jnp.issubdtype(shape.dtype, jnp.floating):
        return shape.shape
    if isinstance(shape, _Struct):
        raise LayerError(
            layer,
            f"shape is that of {shape.dtype}, floats are due; cast the input, or embed it if it "
            "holds ids",
        )
    raise LayerError(layer, f"shape is {shape}, {due} is due")


def shapes_of_arrays(layer: str, shape: Shape, due: str) -> tuple[Any, ...]:
    """The structs of several arrays; an error unless ``shape`` is a tuple of them."""
    if not isinstance(shape, tuple) or not all(isinstance(entry, _Struct) for entry in shape):
        raise LayerError(layer, f"shape is {shape}, {due} is due")
    return shape


# The simplest layer: y = x and δx = δ.
identity = Layer(
    stateless,
    lambda params, x, key=None: (x, None),
    lambda weights, residuals, delta, statistic=gradient: (delta, ()),
    "identity",
)
