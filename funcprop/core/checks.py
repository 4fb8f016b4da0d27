"""LayerError, and what is asked of arrays and other arguments."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_Struct = jax.ShapeDtypeStruct

Tree = Any


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
        at = ".".join(filter(None, (place, error.position)))
        raise LayerError(error.layer, error.message, at) from None


def described(value: Any) -> str:
    """What came, in a few words: never a dump of numbers or addresses."""
    if hasattr(value, "dtype") and hasattr(value, "shape") and type(value) is not _Struct:
        return f"{value.dtype}{list(value.shape)}"
    if hasattr(value, "forward") and hasattr(value, "backward"):
        return repr(value)[:80] if not hasattr(value, "root") else f"the loss {value.name}"
    if isinstance(value, (tuple, list)):
        inner = ", ".join(map(described, value[:8])) + (", ..." if len(value) > 8 else "")
        inner += "," if isinstance(value, tuple) and len(value) == 1 else ""
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    if isinstance(value, dict):
        return f"a dict of {sorted(map(str, value))[:8]}"
    if isinstance(value, (int, float, str, type(None), _Struct)):
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


def as_layer(layer: Any, where: str) -> Any:
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


def check_integers(layer: str, argument: str, leaf: Any) -> None:
    """Raises where JAX would wrap NumPy's integers around."""
    if isinstance(leaf, np.ndarray) and np.issubdtype(leaf.dtype, np.integer) and leaf.size:
        held = np.iinfo(jax.dtypes.canonicalize_dtype(leaf.dtype))
        if leaf.max() > held.max or leaf.min() < held.min:
            beyond = leaf.max() if leaf.max() > held.max else leaf.min()
            raise LayerError(layer, f"{argument} holds {beyond}, beyond {held.dtype}")


def check_sample_weight(
    sample_weight: Any, size: int, some: bool = True, name: str = "value_and_backprop"
) -> None:
    """Raises unless it is ``None`` or (size,) weights, with ``some`` one of them above 0."""
    if sample_weight is None:
        return
    shape = jnp.shape(sample_weight)
    if shape != (size,) or not is_inexact(sample_weight):
        came = f"{jnp.result_type(sample_weight)}{list(shape)}"
        raise LayerError(name, f"sample_weight is {came}, it must be floats of shape ({size},)")
    if is_concrete(sample_weight):
        values = np.asarray(sample_weight, np.float64)
        if not (values >= 0).all() or not values.sum() < np.inf or (some and not values.any()):
            raise LayerError(
                name, "sample_weight must be finite, not negative, and not 0 everywhere"
            )


def check_features(layer: str, features: Any) -> None:
    check_count(layer, "features", features)


def check_affine(layer: str, params: Any, x: Any, features: int, bias: bool) -> None:
    """Raises unless ``params`` holds a W and b of ``features`` rows that take ``x``."""
    names = {"w", "b"} if bias else {"w"}
    if not isinstance(params, dict) or set(params) != names:
        came = sorted(params) if isinstance(params, dict) else f"a {type(params).__name__}"
        raise LayerError(layer, f"params is {came}, a dict of {sorted(names)} is due")
    check_float(layer, x)
    w = params["w"]
    if x.ndim < 2:
        raise LayerError(
            layer, f"x has shape {x.shape}, a batch (B, ..., n) is due; for one example use x[None]"
        )
    if w.ndim != 2 or w.shape[0] != features or (bias and params["b"].shape != (features,)):
        shapes = ", ".join(
            f"{name} is {params[name].shape}" for name in sorted(params, reverse=True)
        )
        raise LayerError(layer, f"{shapes}, w ({features}, n) and b ({features},) are due")
    if x.shape[-1] != w.shape[1]:
        raise LayerError(
            layer,
            f"x has {x.shape[-1]} features, its weights take {w.shape[1]} (w is {w.shape}); "
            "check the sizes given to init",
        )
    for name, leaf in sorted(params.items(), reverse=True):
        if leaf.dtype != x.dtype:
            raise LayerError(
                layer, f"x is {x.dtype}, {name} is {leaf.dtype}; cast one of them to the other"
            )
