"""The form for inference of models whose layers depend on the whole batch."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import LayerError, as_layer, is_inexact
from ..core.contraction import accumulated, moments
from ..core.frozen import depending, filled, with_statistics
from ..core.frozen import needs_calibration as needs_calibration
from ..core.layer import Layer
from ..core.site import Site

Tree = Any


def calibrate(model: Layer, params: Tree, data: Any) -> tuple[Layer, Tree]:
    """The model with every batch norm frozen at the statistics of ``data``.

    Each batch passes through the model as in training, and what every batch norm sees is taken
    together: the variance within the batches and between their means (Chan, Golub & LeVeque 1979).
    With one batch of all the data the frozen model gives what the model in training gives; with
    several it is the better the larger they are, as deeper layers see what the batches before them
    were normalised by.  Dropout does not drop, as there is no key.

    The statistics are constants of the new model, not parameters: no optimizer moves them and no
    statistic of the gradient counts them.  :func:`~funcprop.statistics_of` gives them for a
    checkpoint, :func:`~funcprop.with_statistics` puts them back.  A model that is calibrated
    already is calibrated anew.

    The variance of n values is their sum of squares over n, as in training.  PyTorch's
    ``running_var`` is a moving average of sums over n - 1: it is n/(n - 1) times as large, n being
    the values of a channel in a batch.

    Args:
        model: any layer; batch norms may lie in any combinator that lists its parts.
        params: its parameters.
        data: a list or another iterable of batches, or a single batch as the model takes it.

    Returns:
        ``(model, params)``: :func:`~funcprop.frozen_norm` in the place of each batch norm, and the
        parameters as they came, which fit both models.

    Raises:
        LayerError: when ``data`` holds no batch, an empty one or values that are not finite, or
            when a layer mixes examples and can't be frozen, as one hidden in a layer without parts.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import batch_norm, calibrate, serial, statistics_of
    >>> model = serial(batch_norm())
    >>> params, _ = model.init(jax.random.key(0), (1,))
    >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [7.0]])]
    >>> frozen, params = calibrate(model, params, batches)
    >>> [(found["mean"].tolist(), found["variance"].tolist()) for found in statistics_of(frozen)]
    [([4.0], [5.0])]
    """
    model = as_layer(model, "calibrate")
    return with_statistics(model, observer(model)(params, data)), params


def observer(model: Layer) -> Callable[[Tree, Any], Tree]:
    """``seen(params, data)``: the statistics of :func:`calibrate`; compiled once for all calls."""
    numbers = itertools.count()
    watched = _watched(model, numbers)
    expected = next(numbers)

    @jax.jit
    def of_batch(params, x):
        y, residuals = watched.forward(params, x)
        delta = jax.tree.map(lambda leaf: jnp.zeros_like(leaf) if is_inexact(leaf) else None, y)
        tree = watched.backward(params, residuals, delta, _observe)[1]
        seen = [leaf for leaf in jax.tree.leaves(tree, is_leaf=_is_seen) if _is_seen(leaf)]
        seen.sort(key=lambda one: one.number)
        if [one.number for one in seen] != list(range(expected)):
            raise LayerError(
                "calibrate",
                f"{len(seen)} of {expected} batch norms were met, each once is expected; a layer "
                "around one must call it once and return its tree",
            )
        return [one.moments for one in seen]

    def seen(params, data):
        if hasattr(data, "dtype") or isinstance(data, tuple):
            data = [data]
        found = None
        for x in data:
            batch = of_batch(params, jax.tree.map(jnp.asarray, x))
            found = batch if found is None else _joined(found, batch)
        if found is None:
            raise LayerError("calibrate", "data holds no batch, at least one is expected")
        return filled(model, (_statistics(one) for one in found))

    return seen


class _Moments(NamedTuple):
    """Of all that one batch norm has seen; with a layer axis in front inside ``repeat``.

    The mean is ``first`` + ``rest``, so that nothing of a large one is cancelled.
    """

    number: jax.Array
    first: jax.Array
    rest: jax.Array
    squares: jax.Array

    @classmethod
    def of(cls, x: jax.Array) -> _Moments:
        if not x.size:
            raise LayerError("calibrate", f"a batch norm was given {x.shape}, which is empty")
        x = accumulated(x)
        (first, rest), variance = moments(x)
        count = jnp.asarray(x.size // x.shape[-1], x.dtype)
        return cls(count, first, rest, variance * count)


def _statistics(found: _Moments) -> Tree:
    mean, variance = found.first + found.rest, found.squares / found.number[..., None]
    return {"mean": mean, "variance": variance}


@jax.jit
def _joined(a: list[_Moments], b: list[_Moments]) -> list[_Moments]:
    def join(a, b):
        count, apart = a.number + b.number, (b.first - a.first) + (b.rest - a.rest)
        part = (b.number / count)[..., None]
        between = apart**2 * a.number[..., None] * part
        return _Moments(count, a.first, a.rest + apart * part, a.squares + b.squares + between)

    return list(map(join, a, b))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["bits"], meta_fields=["number", "dtype"]
)
@dataclasses.dataclass(frozen=True)
class _Seen:
    """What the batch norm of that number saw, as integers: :func:`~funcprop.cast` rounds floats."""

    bits: _Moments
    number: int
    dtype: Any

    @classmethod
    def of(cls, moments: _Moments, number: int) -> _Seen:
        dtype = moments.number.dtype
        bits = jax.tree.map(lambda a: a.view(f"int{8 * dtype.itemsize}"), moments)
        return cls(bits, number, dtype)

    @property
    def moments(self) -> _Moments:
        return jax.tree.map(lambda a: a.view(self.dtype), self.bits)


def _is_seen(node: Any) -> bool:
    return isinstance(node, _Seen)


_SITE = Site("batch_norm", lambda inputs, delta: (), mixes=True)


def _observe(site: Site, inputs: Tree, delta: Tree) -> Tree:
    """What batch norms saw, several of them where :func:`~funcprop.share` joins their sites."""
    seen = [leaf for leaf in jax.tree.leaves(inputs, is_leaf=_is_seen) if _is_seen(leaf)]
    if site.mixes and not seen:
        raise LayerError(
            site.name,
            "it mixes the examples of a batch and calibrate can't freeze it: a layer has to list "
            "it among its parts, and it has to have a form for inference",
        )
    return seen


def _watched(layer: Layer, numbers: Iterator[int]) -> Layer:
    """The model whose batch norms take note of what they see."""
    if not any(True for _ in depending(layer)):
        return layer
    if layer.inference is None:
        if layer.rebuild is None:
            return layer
        return layer.rebuild(tuple(_watched(part, numbers) for part in layer.parts))
    number, inference = next(numbers), layer.inference

    def forward(params, x, key=None):
        found = _Moments.of(x)
        return inference(_statistics(found)).apply(params, x, key), _Seen.of(found, number)

    def backward(weights, seen, delta, statistic=None):
        return delta, statistic(_SITE, seen, delta)

    return Layer(layer.init, forward, backward, layer.name)
