"""The places of a model's layers: each has one name, in errors, summaries, reports and metrics.

A layer among several is ``layers[2]``, one inside another is called by what is around it, as in
``layers[2].residual``, and inside ``repeat``, where one layer stands for all of its repetitions,
``repeat[:]``; the one repetition is ``repeat[3]``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from .layer import Layer
from .site import gradient

EACH = "[:]"


def places_of(layer: Layer) -> tuple[str, ...]:
    """What the parts of a layer are called within it; "" for one that stands in its place."""
    if layer.places or not layer.parts:
        return layer.places
    if len(layer.parts) == 1:
        return (layer.name,)
    return tuple(f"layers[{i}]" for i in range(len(layer.parts)))


def within(place: str, inner: str) -> str:
    """The place ``inner`` of a layer that is at ``place``."""
    return ".".join(filter(None, (place, inner)))


def walk(model: Layer, place: str = "") -> Iterator[tuple[str, Layer]]:
    """Every layer with its place: the model itself, and before the next part those in one."""
    yield place, model
    for inner, part in zip(places_of(model), model.parts, strict=True):
        yield from walk(part, within(place, inner))


def rebuilt(
    model: Layer, wrap: Callable[[Layer, str, Layer | None], Layer], place: str = ""
) -> Layer:
    """The model with ``wrap(layer, place, inner)`` in the place of every layer.

    ``inner`` is the layer made of parts that are wrapped already; ``None`` where it has none.
    """
    if model.rebuild is None:
        return wrap(model, place, None)
    inside = [within(place, inner) for inner in places_of(model)]
    parts = (rebuilt(part, wrap, at) for part, at in zip(model.parts, inside, strict=True))
    return wrap(model, place, model.rebuild(tuple(parts)))


def at_index(place: str, index: tuple[int, ...]) -> str:
    """The place of one repetition: its index among those of every ``repeat`` around it."""
    for i in index:
        place = place.replace(EACH, f"[{i}]", 1) if EACH in place else f"{place}[{i}]"
    return place


def located(model: Layer) -> Layer:
    """The model whose sites are called by their places."""

    def wrap(layer, place, inner):
        if inner is not None:
            return inner

        def backward(weights, residuals, delta, statistic=gradient):
            def named(site, inputs, delta):
                return statistic(dataclasses.replace(site, name=place), inputs, delta)

            return layer.backward(weights, residuals, delta, named)

        return layer._replace(backward=backward)

    return rebuilt(model, wrap)
