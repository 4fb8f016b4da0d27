"""A model taken apart: what goes into each of its layers, forward and back, in one sweep."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax

from ..core.checks import cotangent_of, delta_of, floats_of, with_floats
from ..core.frozen import given, handing_on, is_frozen, statistics_of
from ..core.layer import Layer
from ..core.places import at_index, rebuilt
from ..core.site import gradient

Tree = Any


class Part(NamedTuple):
    """A layer of a model, with what it met there.

    Attributes:
        place: as errors name it, "layers[2]"; "" for the model itself.
        layer: the layer, its own parts replaced by ones that ``jax.vjp`` takes back.
        own: the layer as it stands in the model.
        params, x, delta, key: of its forward and backward pass.
        whole: whether it is made of parts, whose own backward passes it does not use.
    """

    place: str
    layer: Layer
    own: Layer
    params: Tree
    x: Tree
    delta: Tree
    key: Any
    whole: bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _Record:
    """What a layer met, and the statistics it holds; each has an axis in front for each repetition
    around it, as ``mark`` tells.
    """

    met: Tree
    statistics: Tree
    mark: Any
    inside: Tree
    number: int = dataclasses.field(metadata={"static": True})


def taken_apart(model: Layer, params: Tree, x: Tree, delta: Tree, key: Any) -> list[Part]:
    """The model's parts, innermost ones last; delta is carried by ``jax.vjp``, not by them."""
    places: list[tuple[str, Layer, Layer, bool]] = []
    watched = _watched(model, places)

    def sweep(params, floats, delta):
        _, residuals = watched.forward(params, with_floats(x, floats), key)
        return watched.backward(params, residuals, delta, gradient)[1]

    tree = jax.jit(sweep)(params, floats_of(x), delta)
    parts: list[Part] = []
    _collect(tree, places, parts)
    return sorted(parts, key=lambda part: part.place)


def _watched(model: Layer, places: list) -> Layer:
    """The model, its layers with a memory; their deltas come from ``jax.vjp``."""

    def wrap(layer, place, inner):
        if layer.name == "share":  # its places are those of the parameters, which it takes apart
            inner = None
        trusted = layer
        if inner is not None:
            trusted = layer.rebuild(tuple(map(by_vjp, layer.parts)))
        places.append((place, trusted, layer, inner is not None))
        return _remembering(layer, inner, len(places) - 1)

    return rebuilt(model, wrap)


def _remembering(layer: Layer, inner: Layer | None, number: int) -> Layer:
    def remembering(layer: Layer) -> Layer:
        held = statistics_of(layer) if is_frozen(layer) else ()
        within = given(inner, held) if inner is not None and held else inner

        def forward(params, x, key=None):
            kept = within.forward(params, x, key)[1] if within is not None else None
            return layer.apply(params, x, key), (params, x, key, kept)

        def backward(weights, residuals, delta, statistic=gradient):
            params, x, key, kept = residuals
            inside = None
            if within is not None:
                inside = within.backward(params, kept, delta, statistic)[1]
            met = {"params": params, "x": x, "delta": delta, "key": key}
            delta_x, _ = by_vjp(layer).backward(params, (params, x, key), delta)
            return delta_x, _Record(met, held, jax.numpy.zeros(()), inside, number)

        return Layer(layer.init, forward, backward, layer.name)

    return handing_on(remembering, layer)


def by_vjp(layer: Layer) -> Layer:
    """The layer with the pullback of ``jax.vjp`` as its backward pass."""
    return handing_on(_by_vjp, layer)


def _by_vjp(layer: Layer) -> Layer:
    def forward(params, x, key=None):
        return layer.apply(params, x, key), (params, x, key)

    def backward(weights, residuals, delta, statistic=gradient):
        _, x, key = residuals

        def apply(params, floats):
            return layer.apply(params, with_floats(x, floats), key)

        y, pullback = jax.vjp(apply, weights, floats_of(x))
        grads, delta_x = pullback(cotangent_of(y, delta))
        return delta_x, delta_of(grads)

    return Layer(layer.init, forward, backward, layer.name)


def _collect(tree: Tree, places: list, parts: list[Part]) -> None:
    records = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, _Record))
    for record in records:
        if not isinstance(record, _Record):
            continue
        place, trusted, own, whole = places[record.number]
        times = record.mark.shape
        for index in _indices(times):
            met, held = jax.tree.map(
                lambda leaf, index=index: leaf[index], (record.met, record.statistics)
            )
            there = trusted, own
            if held and index:  # each repetition has statistics of its own
                there = given(trusted, held), given(own, held)
            parts.append(Part(at_index(place, index), *there, **met, whole=whole))
        _collect(record.inside, places, parts)


def _indices(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for size in shape:
        found = [(*index, i) for index in found for i in range(size)]
    return found
