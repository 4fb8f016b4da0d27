"""Layers made of layers.

A combinator lists its ``parts`` and its ``rebuild`` makes it anew from other parts, so whoever
wants to look inside a model maps over its parts and rebuilds it (:func:`~funcprop.summary` does).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .checks import LayerError, as_layer, check_count, is_inexact, position
from .frozen import given, is_frozen, statistics_of
from .layer import Layer, as_shape, is_shape
from .site import gradient

Tree = Any


def serial(*layers: Layer) -> Layer:
    """One layer after the other; params and tree are tuples, an entry per layer.

        forward     h⁽⁰⁾ = x      h⁽ˡ⁾ = fₗ(h⁽ˡ⁻¹⁾)      y = h⁽ᴸ⁾
        transport   δ⁽ᴸ⁾ = δ      δ⁽ˡ⁻¹⁾ = δ⁽ˡ⁾ ∂fₗ/∂h⁽ˡ⁻¹⁾      δx = δ⁽⁰⁾

    Args:
        *layers: any layers, each taking what the one before it returns.

    Raises:
        LayerError: when an entry is no Layer, or a layer cannot take its input; the message names
            the layer's position, as in ``layers[2] dense: ...``.

    >>> import jax
    >>> from funcprop import dense, serial, tanh
    >>> params, out_shape = serial(dense(5), tanh, dense(2)).init(jax.random.key(0), (4,))
    >>> len(params), params[2]["w"].shape, out_shape
    (3, (2, 5), (2,))
    """
    layers = tuple(as_layer(layer, f"layers[{i}]") for i, layer in enumerate(layers))
    return _stretch(layers, 0, len(layers))


def _stretch(layers: tuple[Layer, ...], first: int, total: int) -> Layer:
    """The layers of a serial of ``total`` from ``first`` on.

    It is given the whole serial's key, draws from it what the serial draws, and names the layers'
    places in the serial.
    """
    places = [f"layers[{first + i}]" for i in range(len(layers))]

    def keys(key):
        return _split(key, total)[first : first + len(layers)]

    def init(key, shape):
        params = []
        for place, layer, part_key in zip(places, layers, keys(key), strict=True):
            with position(place):
                part, shape = layer.init(part_key, shape)
            params.append(part)
        return tuple(params), shape

    def forward(params, x, key=None):
        _check_parts("serial", params, layers)
        residuals = []
        for place, layer, part, part_key in zip(places, layers, params, keys(key), strict=True):
            with position(place):
                x, kept = layer.forward(part, x, part_key)
            residuals.append(kept)
        return x, tuple(residuals)

    def backward(weights, residuals, delta, statistic=gradient):
        trees: list[Tree] = [()] * len(layers)
        for i in reversed(range(len(layers))):
            with position(places[i]):
                delta, trees[i] = layers[i].backward(weights[i], residuals[i], delta, statistic)
        return delta, tuple(trees)

    return Layer(init, forward, backward, "serial", layers, _in_series, places=tuple(places))


def _in_series(parts: Sequence[Layer]) -> Layer:
    return serial(*parts)


class Block(NamedTuple):
    """A block of a model: a layer that is given the model's own key.

    Attributes:
        layer: it draws from the model's key what the model draws there, and its errors name the
            layers' places in the model.
        params: its parameters.
        first: the place of its first layer in the model; ``None`` where the block is all of it.
    """

    layer: Layer
    params: Tree
    first: int | None = None

    @property
    def place(self) -> str:
        """Where it is: "layers[2]", or of several layers "layers[2:5]"."""
        if self.first is None:
            return ""
        after = self.first + len(self.layer.parts)
        return (
            f"layers[{self.first}]" if after == self.first + 1 else f"layers[{self.first}:{after}]"
        )

    @property
    def names(self) -> str:
        """What its layers are called."""
        parts = (self.layer,) if self.first is None else self.layer.parts
        return ", ".join(part.name for part in parts)


def blocks(model: Layer, params: Tree) -> list[Block]:
    """A model's blocks, one after the other, each with its parameters: for rules that are local.

    Each part of a :func:`serial` that has parameters begins one, and takes the parts behind it
    that have none; those in front of the first one go to it.  Any other layer is one block.

    >>> import jax
    >>> from funcprop import dense, flatten, relu, serial
    >>> from funcprop.core.combinators import blocks, joined_blocks
    >>> model = serial(flatten, dense(3), relu, dense(2))
    >>> params, _ = model.init(jax.random.key(0), (2, 2))
    >>> found = blocks(model, params)
    >>> [(block.place, block.names) for block in found]
    [('layers[0:3]', 'flatten, dense, relu'), ('layers[3]', 'dense')]
    >>> trees = [block.params for block in found]
    >>> jax.tree.structure(joined_blocks(model, trees)) == jax.tree.structure(params)
    True
    """
    if model.rebuild is not _in_series:
        return [Block(model, params)]
    _check_parts("serial", params, model.parts)
    total = len(model.parts)
    begins = [i for i, part in enumerate(params) if jax.tree.leaves(part)]
    return [
        Block(_stretch(model.parts[a:b], a, total), tuple(params[a:b]), a)
        for a, b in itertools.pairwise([0, *begins[1:], total])
    ]


def joined_blocks(model: Layer, trees: Sequence[Tree]) -> Tree:
    """The model's tree from those of its :func:`blocks`."""
    if model.rebuild is not _in_series:
        return trees[0]
    return tuple(itertools.chain.from_iterable(trees))


def parallel(*layers: Layer) -> Layer:
    """Each layer applied to its own entry of a tuple; params and tree are tuples too.

        forward     yᵢ = fᵢ(xᵢ)
        transport   δxᵢ = δᵢ ∂fᵢ/∂xᵢ

    Args:
        *layers: one layer for each entry of the input.

    Raises:
        LayerError: when the input is not a tuple of that many entries.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import dense, fork, parallel, serial
    >>> two_heads = serial(fork(2), parallel(dense(3), dense(1)))
    >>> params, out_shape = two_heads.init(jax.random.key(0), (4,))
    >>> [struct.shape for struct in out_shape]
    [(3,), (1,)]
    """
    places = tuple(f"layers[{i}]" for i in range(len(layers)))
    layers = tuple(map(as_layer, layers, places))

    def init(key, shape):
        _check_tuple("parallel", "shape", shape, len(layers))
        made = []
        keys = _split(key, len(layers))
        for place, layer, entry, k in zip(places, layers, shape, keys, strict=True):
            with position(place):
                made.append(_init_entry(layer, k, entry))
        return tuple(params for params, _ in made), tuple(struct for _, struct in made)

    def forward(params, x, key=None):
        _check_tuple("parallel", "x", x, len(layers))
        _check_parts("parallel", params, layers)
        made = []
        keys = _split(key, len(layers))
        for place, layer, *own in zip(places, layers, params, x, keys, strict=True):
            with position(place):
                made.append(layer.forward(*own))
        return tuple(y for y, _ in made), tuple(kept for _, kept in made)

    def backward(weights, residuals, delta, statistic=gradient):
        made = []
        for place, layer, *own in zip(places, layers, weights, residuals, delta, strict=True):
            with position(place):
                made.append(layer.backward(*own, statistic))
        return tuple(delta_x for delta_x, _ in made), tuple(tree for _, tree in made)

    return Layer(
        init, forward, backward, "parallel", layers, lambda parts: parallel(*parts), places=places
    )


def on(i: int, layer: Layer) -> Layer:
    """A layer applied to entry i of a tuple; the other entries pass unchanged.

    Args:
        i: which entry, counted from 0.
        layer: the layer; params and tree are its own.

    Raises:
        LayerError: when i is no integer from 0 on, or the input is not a tuple, or has no entry i.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import dense, on
    >>> layer = on(0, dense(3))
    >>> shape = (jax.ShapeDtypeStruct((4,), "float32"), jax.ShapeDtypeStruct((), "int32"))
    >>> params, out_shape = layer.init(jax.random.key(0), shape)
    >>> y, length = layer.apply(params, (jnp.ones((2, 4)), jnp.array([7, 9])))
    >>> y.shape, length.tolist()
    ((2, 3), [7, 9])
    """
    return on_entry(_checked_entry("on", i), as_layer(layer, "on"), "on")


def on_entry(i: int, layer: Layer, place: str) -> Layer:
    """:func:`on`, the layer in it called ``place``; "" for one that stands in its place."""

    def init(key, shape):
        _check_tuple("on", "shape", shape, None, i)
        with position(place):
            params, struct = _init_entry(layer, key, shape[i])
        return params, _with_entry(shape, i, struct)

    def forward(params, x, key=None):
        _check_tuple("on", "x", x, None, i)
        with position(place):
            y, residuals = layer.forward(params, x[i], key)
        return _with_entry(x, i, y), residuals

    def backward(weights, residuals, delta, statistic=gradient):
        with position(place):
            delta_x, tree = layer.backward(weights, residuals, delta[i], statistic)
        return _with_entry(delta, i, delta_x), tree

    def rebuild(parts):
        return on_entry(i, parts[0], place)

    return Layer(init, forward, backward, "on", (layer,), rebuild, places=(place,))


def pick(*entries: int) -> Layer:
    """Entry i of a tuple, or of several numbers a tuple of those; the others get a delta of zeros.

        forward     y   = xᵢ
        transport   δxᵢ = δ      δxⱼ = 0

    Args:
        *entries: which entry, counted from 0, or which ones, each once.

    Raises:
        LayerError: when an entry is no integer from 0 on, or the input is not a tuple, or has no
            such entry.

    >>> import jax.numpy as jnp
    >>> from funcprop import pick
    >>> x = (jnp.ones(2), jnp.array([7, 9]), jnp.zeros(2))
    >>> pick(0).apply((), x).tolist()
    [1.0, 1.0]
    >>> [leaf.tolist() for leaf in pick(0, 2).apply((), x)]
    [[1.0, 1.0], [0.0, 0.0]]
    """
    if not entries:
        raise LayerError("pick", "it was given no entry, at least one must be picked")
    entries = tuple(_checked_entry("pick", i) for i in entries)
    if len(set(entries)) < len(entries):
        raise LayerError("pick", f"entries is {entries}, each entry must be picked once")
    single = len(entries) == 1

    def picked(x):
        return x[entries[0]] if single else tuple(x[i] for i in entries)

    def init(key, shape):
        _check_tuple("pick", "shape", shape, None, max(entries))
        return (), picked(shape)

    def forward(params, x, key=None):
        _check_tuple("pick", "x", x, None, max(entries))
        floats = (leaf if is_inexact(leaf) else None for leaf in jax.tree.leaves(x))
        zeros = jax.tree.map(jnp.zeros_like, jax.tree.unflatten(jax.tree.structure(x), floats))
        for i in entries:
            zeros = _with_entry(zeros, i, ())
        return picked(x), zeros

    def backward(weights, residuals, delta, statistic=gradient):
        delta_x = residuals
        for i, own in zip(entries, (delta,) if single else delta, strict=True):
            delta_x = _with_entry(delta_x, i, own)
        return delta_x, ()

    return Layer(init, forward, backward, "pick")


def fork(n: int) -> Layer:
    """n copies of the input as a tuple.

        forward     yᵢ = x
        transport   δx = Σᵢ δᵢ

    Args:
        n: how many copies, at least 1.

    >>> import jax.numpy as jnp
    >>> from funcprop import fork
    >>> fork(2).backward((), None, (jnp.ones(3), jnp.ones(3)))[0].tolist()
    [2.0, 2.0, 2.0]
    """
    check_count("fork", "n", n)

    def init(key, shape):
        return (), (shape,) * n

    def forward(params, x, key=None):
        return (x,) * n, None

    def backward(weights, residuals, delta, statistic=gradient):
        return _sum(delta), ()

    return Layer(init, forward, backward, "fork")


def residual(layer: Layer) -> Layer:
    """A layer with a branch around it; of a tuple the entries 0 are added.

        forward     y  = x + f(x)
        transport   δx = δ + δ ∂f/∂x

    Args:
        layer: a layer that keeps its input's shape; params and tree are its own.

    Raises:
        LayerError: when the layer changes the shape of (entry 0 of) its input.

    >>> import jax
    >>> from funcprop import dense, residual
    >>> residual(dense(4)).init(jax.random.key(0), (4,))[1]
    (4,)
    """
    layer = as_layer(layer, "residual")

    def init(key, shape):
        with position("residual"):
            params, out_shape = layer.init(key, shape)
        _check_entry_0(layer, out_shape)
        before, after = map(_shape_of_entry_0, (shape, out_shape))
        if before != after:
            raise LayerError(
                "residual", f"its layer {layer.name} turns shape {before} into {after}; keep it"
            )
        return params, out_shape

    def forward(params, x, key=None):
        with position("residual"):
            y, residuals = layer.forward(params, x, key)
        _check_entry_0(layer, y)
        before, after = _entry_0(x), _entry_0(y)
        if before.shape != after.shape or before.dtype != after.dtype:
            raise LayerError(
                "residual",
                f"its layer {layer.name} turns {before.dtype}{list(before.shape)} into "
                f"{after.dtype}{list(after.shape)}; what is added must be alike",
            )
        return _add_to_entry_0(y, before), residuals

    def backward(weights, residuals, delta, statistic=gradient):
        with position("residual"):
            delta_x, tree = layer.backward(weights, residuals, delta, statistic)
        return _add_to_entry_0(delta_x, _entry_0(delta)), tree

    return Layer(init, forward, backward, "residual", (layer,), lambda parts: residual(*parts))


def repeat(layer: Layer, n: int) -> Layer:
    """n equal layers, one after the other, scanned forward and backward.

        forward     h⁽⁰⁾ = x      h⁽ˡ⁾ = f(θₗ, h⁽ˡ⁻¹⁾)
        transport   δ⁽ˡ⁻¹⁾ = δ⁽ˡ⁾ ∂f(θₗ, h⁽ˡ⁻¹⁾)/∂h⁽ˡ⁻¹⁾

    The parameters, the statistic's results and the statistics that a calibrated layer holds are the
    layer's with an axis of size n in front.  Compile time does not grow with n.

    Args:
        layer: a layer that keeps its input's shape.
        n: how many, at least 1.

    Raises:
        LayerError: when the layer changes the shape, or params were made for another n.

    >>> import jax
    >>> from funcprop import dense, repeat, tanh
    >>> params, out_shape = repeat(dense(4, tanh), 8).init(jax.random.key(0), (4,))
    >>> params["w"].shape, out_shape
    ((8, 4, 4), (4,))
    """
    layer = as_layer(layer, "repeat")
    check_count("repeat", "n", n)
    if is_frozen(layer):
        held = statistics_of(layer)
        copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n, *leaf.shape)), held)
        layer = given(layer, copies)
    return _repeated(layer, n)


def _repeated(layer: Layer, n: int) -> Layer:
    """:func:`repeat` of a layer whose statistics, if it holds any, have the axis n in front."""
    held = statistics_of(layer) if is_frozen(layer) else ()
    place = "repeat[:]"

    def each(statistics):
        return given(layer, statistics) if held else layer

    def init(key, shape):
        out_shape = shape

        def one(part_key):
            nonlocal out_shape
            with position(place):
                params, out_shape = layer.init(part_key, shape)
            return params

        params = jax.vmap(one)(jax.random.split(key, n))
        if out_shape != shape:
            raise LayerError(
                "repeat", f"its layer {layer.name} turns shape {shape} into {out_shape}; keep it"
            )
        return params, out_shape

    def forward(params, x, key=None):
        for leaf in jax.tree.leaves(params):
            if leaf.ndim == 0 or len(leaf) != n:
                raise LayerError(
                    "repeat", f"a parameter has shape {leaf.shape}, ({n}, ...) is due; its n is {n}"
                )
        for leaf in jax.tree.leaves(held):
            if len(leaf) != n:
                raise LayerError(
                    "repeat", f"statistics have shape {leaf.shape}, ({n}, ...) is expected"
                )

        def step(x, part):
            part_params, part_key, statistics = part
            with position(place):
                y, residuals = each(statistics).forward(part_params, x, part_key)
            for old, new in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
                if old.shape != new.shape or old.dtype != new.dtype:
                    raise LayerError(
                        "repeat",
                        f"its layer {layer.name} turns {old.dtype}{list(old.shape)} into "
                        f"{new.dtype}{list(new.shape)}; what is repeated must keep its input's",
                    )
            return y, residuals

        keys = None if key is None else jax.random.split(key, n)
        return jax.lax.scan(step, x, (params, keys, held), length=n)

    def backward(weights, residuals, delta, statistic=gradient):
        def step(delta, part):
            part_weights, kept, statistics = part
            with position(place):
                return each(statistics).backward(part_weights, kept, delta, statistic)

        return jax.lax.scan(step, delta, (weights, residuals, held), length=n, reverse=True)

    def rebuild(parts):
        return _repeated(parts[0], n)

    return Layer(init, forward, backward, "repeat", (layer,), rebuild, places=(place,))


def remat(layer: Layer) -> Layer:
    """A layer that keeps its input only and runs its forward pass again on the way back.

        forward     y = f(θ, x), keeping (θ, x)
        backward    recompute the residuals of f at (θ, x), then its own backward pass

    Inside :func:`repeat` this trades memory for time (Chen 2016, arXiv 1604.06174); by itself it
    saves nothing, since the rest of the network still holds what the layer computed.

    Args:
        layer: any layer; params and tree are its own.

    >>> import jax
    >>> from funcprop import dense, gelu, remat, repeat
    >>> block = repeat(remat(dense(4, gelu)), 8)
    >>> block.init(jax.random.key(0), (4,))[0]["b"].shape
    (8, 4)
    """
    layer = as_layer(layer, "remat")

    def init(key, shape):
        with position("remat"):
            return layer.init(key, shape)

    def forward(params, x, key=None):
        with position("remat"):
            return layer.apply(params, x, key), (params, x, key)

    def backward(weights, residuals, delta, statistic=gradient):
        # The barrier ties the recomputation to delta: XLA may not merge it with the forward pass.
        (params, x, key), delta = jax.lax.optimization_barrier((residuals, delta))
        with position("remat"):
            _, kept = layer.forward(params, x, key)
            return layer.backward(weights, kept, delta, statistic)

    return Layer(init, forward, backward, "remat", (layer,), lambda parts: remat(*parts))


# ---------------------------------------------------------------------------- helpers


def _split(key: jax.Array | None, n: int) -> Sequence[jax.Array | None]:
    return [None] * n if key is None else list(jax.random.split(key, n)) if n else []


def _sum(deltas: Sequence[Tree]) -> Tree:
    first, *others = deltas
    return jax.tree.map(lambda d, *more: sum(more, start=d), first, *others)


def _entry_0(x: Tree) -> jax.Array:
    return x[0] if isinstance(x, tuple) else x


def _check_entry_0(layer: Layer, y: Any) -> None:
    if isinstance(y, tuple) and y and isinstance(y[0], tuple):
        raise LayerError(
            "residual",
            f"entry 0 of what its layer {layer.name} gives is a tuple, an array is due; a layer "
            "that gives companions, as a mixture of experts does, takes the whole input: not by "
            "on(0, layer), and in a transformer_block as experts=layer",
        )


def _add_to_entry_0(y: Tree, x: jax.Array) -> Tree:
    return (y[0] + x, *y[1:]) if isinstance(y, tuple) else y + x


def _shape_of_entry_0(shape: Any) -> tuple[int, ...]:
    if is_shape(shape):
        return shape
    return getattr(shape[0] if isinstance(shape, tuple) else shape, "shape", ())


def _with_entry(entries: tuple, i: int, entry: Tree) -> tuple:
    return (*entries[:i], entry, *entries[i + 1 :])


def _init_entry(layer: Layer, key: jax.Array | None, struct: Any) -> tuple[Tree, Any]:
    """Params and output structs of a layer on one entry of a tuple."""
    given = as_shape(layer.name, struct)
    params, out = layer.init(key, tuple(given) if is_shape(given) else given)
    if is_shape(out):
        single = isinstance(struct, jax.ShapeDtypeStruct)
        floats = single and jnp.issubdtype(struct.dtype, jnp.floating)
        out = jax.ShapeDtypeStruct(out, struct.dtype if floats else jnp.result_type(float))
    return params, out


def _check_parts(name: str, params: Tree, layers: tuple[Layer, ...]) -> None:
    listed = isinstance(params, (tuple, list))
    if not listed or len(params) != len(layers):
        came = f"{len(params)} entries" if listed else type(params).__name__
        raise LayerError(
            name,
            f"params has {came}, a tuple of {len(layers)} is due, one for each layer; "
            "use the params that init of this model made",
        )


def _checked_entry(name: str, i: Any) -> int:
    """The number of an entry as an int; a negative one would count from the end."""
    if isinstance(i, bool) or not isinstance(i, (int, np.integer)) or i < 0:
        raise LayerError(name, f"its entry is {i!r}, it must be a nonnegative integer")
    return int(i)


def _check_tuple(name: str, argument: str, x: Any, n: int | None, i: int = 0) -> None:
    listed = isinstance(x, (tuple, list)) and not (argument == "shape" and is_shape(x))
    if not listed or (n is not None and len(x) != n) or i >= len(x):
        came = f"a tuple of {len(x)}" if listed else f"that of one array, {x}"
        if argument == "x" and not listed:
            came = f"a {type(x).__name__}"
        due = f"a tuple of {n}" if n is not None else f"a tuple with an entry {i}"
        raise LayerError(name, f"{argument} is {came}, {due} is due; fork(n) makes copies")
