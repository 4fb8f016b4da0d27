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
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from .contraction import Varying, matched

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
        output_mixes: of a site that mixes, whether one example's prediction depends on the others
            too, so that a model in evaluation gives other results for other batches.
    """

    name: str
    gradient: Callable[[Tree, Tree], Tree]
    rows: Callable[[Tree, Tree], tuple[Any, jax.Array]] | None = None
    mixes: bool = False
    inputs_first: bool = False
    summed_bias: bool = True
    output_mixes: bool = True


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


def described(value: Any) -> str:
    """What came, in a few words: never a dump of numbers or addresses."""
    if hasattr(value, "dtype") and hasattr(value, "shape") and type(value) is not _Struct:
        return f"{value.dtype}{list(value.shape)}"
    plain = (int, float, str, type(None), _Struct, Layer)
    if isinstance(value, (tuple, list)) and not isinstance(value, Layer):
        inner = ", ".join(map(described, value[:8])) + (", ..." if len(value) > 8 else "")
        inner += "," if isinstance(value, tuple) and len(value) == 1 else ""
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    if isinstance(value, dict):
        return f"a dict of {sorted(map(str, value))[:8]}"
    if isinstance(value, plain):
        return repr(value)[:80]
    named = callable(value) and hasattr(value, "__name__")
    return f"{_type_name(value)} {value.__name__}" if named else f"a {_type_name(value)}"


def _type_name(value: Any) -> str:
    """The name of its type, with that of its library where this is another one."""
    kind = type(value)
    library = kind.__module__.split(".")[0]
    known = ("builtins", "numpy", "jax", "jaxlib", "funcprop", "__main__")
    return kind.__name__ if library in known else f"{library}.{kind.__name__}"


def is_key(value: Any) -> bool:
    """Whether it is one key of ``jax.random``, of the new or the old kind."""
    if not isinstance(value, (jax.Array, np.ndarray)):
        return False
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value.shape == ()
    return value.dtype == np.uint32 and value.ndim == 1


def _check_input(layer: str, x: Any) -> None:
    """Raises unless ``x`` is an array or holds something; entries are the layer's to check."""
    if x is None or (isinstance(x, (tuple, dict)) and not x):
        came = "missing" if x is None else f"{described(x)}, without an array"
        raise LayerError(
            layer, f"x is {came}; write apply(params, x), with () for params where there are none"
        )
    if not isinstance(x, (tuple, dict)):
        check_array(layer, x)


def _slip_in_apply(params: Any, x: Any) -> str | None:
    """What is wrong with the arguments as a whole, of a call that failed."""
    order = "write apply(params, x)"
    if _has_dict(x) and not _has_dict(params) and jax.tree.leaves(params):
        return f"params and x are swapped; {order}"
    pair = isinstance(params, tuple) and type(params) is tuple and len(params) == 2
    if pair and params[1] != () and _says_shape(params[1]):
        return "params is what init gives, a pair; write params, out_shape = init(key, shape)"
    return None


def _has_dict(tree: Any) -> bool:
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, dict))
    return any(isinstance(leaf, dict) for leaf in leaves)


def _says_shape(value: Any) -> bool:
    leaves = jax.tree.leaves(value)
    return bool(leaves) and all(isinstance(v, (int, _Struct)) for v in leaves)


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

    __module__ = "funcprop"  # where users find it, and what a traceback calls it

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
    name = getattr(layer, "__name__", None) or getattr(layer, "name", None) or described(layer)
    own = getattr(layer, "__module__", None) or ""
    advice = f"it is a {_type_name(layer)}"
    if isinstance(layer, str):
        advice = f"it is a str; give the layer itself, as in dense(3, {layer})"
    elif isinstance(layer, (int, np.integer)):
        advice = "it is an int; the size of the input is not given here but to init"
    elif hasattr(layer, "__iter__") and not is_array(layer):
        advice = f"it is a {_type_name(layer)}; give layers one by one, as in serial(*layers)"
    elif callable(layer) and own.startswith("funcprop."):
        advice = f"it is a constructor, call it: {name}(...)"
    elif callable(layer) and hasattr(layer, "__name__") and not isinstance(layer, type):
        advice = (
            "it is a bare function; use the layer of that name from funcprop, or "
            f"elementwise({name}, derivative), or function({name}) to differentiate it with jax.vjp"
        )
    elif callable(layer):
        advice += "; function(lambda params, x: ...) makes a layer of what calls it"
    raise LayerError(where, f"{name} is not a Layer: {advice}")


def is_array(x: Any) -> bool:
    """Whether it is an array of NumPy or JAX, or the struct of one."""
    return isinstance(x, (jax.Array, np.ndarray, np.generic, _Struct)) or hasattr(
        x, "__jax_array__"
    )


def _no_array(x: Any, argument: str) -> str:
    """What is said of an argument that must be an array and is not."""
    advice = ""
    if isinstance(x, (list, int, float)):
        advice = f"; write jnp.asarray({argument})"
    elif hasattr(x, "dtype") or hasattr(x, "__array__"):
        advice = f"; write np.asarray({argument})"
    return f"{argument} is a {_type_name(x)}, an array is due{advice}"


def check_array(layer: str, x: Any, argument: str = "x") -> None:
    """Raises unless ``x`` is an array of NumPy or JAX."""
    if not is_array(x):
        raise LayerError(layer, _no_array(x, argument))


def check_float(layer: str, x: Any, argument: str = "x") -> None:
    """Raises unless ``x`` is an array of floats (or, for the complex step, complex numbers)."""
    check_array(layer, x, argument)
    if not is_inexact(x):
        raise LayerError(
            layer, f"{argument} is {x.dtype}, floats are due; cast it, or embed it if it holds ids"
        )


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
    """Raises unless ``value`` is a positive integer, of Python or NumPy."""
    integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not integer or value < 1:
        raise LayerError(layer, f"{argument} is {described(value)}, it must be a positive integer")


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
        ``f(params, x, key=None) -> y``, a ``jax.custom_vjp`` function.  It can be differentiated
        again, in both modes: ``jax.hessian`` and ``jax.jvp`` of ``jax.grad`` take the derivative
        of the hand-written backward pass.  As every such function it refuses forward mode by
        itself (``jax.jvp``, ``jax.jacfwd``, ``jax.linearize`` of f): use ``layer.apply`` there.

    Raises:
        LayerError: when ``layer`` is no Layer.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import dense, differentiable, tanh
    >>> layer = dense(3, tanh)
    >>> params, _ = layer.init(jax.random.key(0), (4,))
    >>> f = differentiable(layer)
    >>> jax.tree.map(jnp.shape, jax.grad(lambda p: f(p, jnp.ones((2, 4))).sum())(params))
    {'b': (3,), 'w': (3, 4)}
    """
    layer = as_layer(layer, "differentiable")

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
