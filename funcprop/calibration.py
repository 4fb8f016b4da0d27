"""The form for inference of models whose layers depend on the whole batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .contraction import accumulated
from .layer import Layer, LayerError, Site, is_inexact
from .layers.batch_norm import moments

Tree = Any


def calibrate(model: Layer, params: Tree, data: Any) -> tuple[Layer, Tree]:
    """The model with every batch norm frozen at the statistics of ``data``.

    Each batch passes through the model as in training, and what every batch norm sees is taken
    together: the variance within the batches and between their means (Chan, Golub & LeVeque 1979).
    With one batch of all the data the frozen model gives what the model in training gives; with
    several it is the better the larger they are, as deeper layers see what the batches before them
    were normalised by.  Dropout does not drop, as there is no key.

    Args:
        model: any layer; batch norms may lie in any combinator but ``share``.
        params: its parameters.
        data: a list or another iterable of batches, or a single batch as the model takes it.

    Returns:
        ``(model, params)``: :func:`~funcprop.frozen_norm` in the place of each batch norm, with
        its mean and variance among the parameters.  The rest is as it was.

    Raises:
        LayerError: when ``data`` holds no batch, or a batch norm lies inside ``share``.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import batch_norm, calibrate, serial
    >>> model = serial(batch_norm())
    >>> params, _ = model.init(jax.random.key(0), (1,))
    >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [7.0]])]
    >>> frozen, params = calibrate(model, params, batches)
    >>> params[0]["mean"].tolist(), params[0]["variance"].tolist()
    ([4.0], [5.0])
    """
    if hasattr(data, "dtype") or isinstance(data, tuple):
        data = [data]
    watched = _replaced(model, _watched)

    @jax.jit
    def seen(params, x):
        y, residuals = watched.forward(params, x)
        delta = jax.tree.map(lambda leaf: jnp.zeros_like(leaf) if is_inexact(leaf) else None, y)
        return watched.backward(params, residuals, delta, _observe)[1]

    found = None
    for x in _batches(data):
        batch = seen(params, x)
        found = batch if found is None else _joined(found, batch)
    if found is None:
        raise LayerError("calibrate", "data holds no batch, at least one is due")
    if len([n for n in _nodes(found) if isinstance(n, _Moments)]) != _count(model):
        raise LayerError("calibrate", "a batch_norm lies inside share; give each place its own")

    def frozen(node, part):
        if not isinstance(node, _Moments):
            return part
        dtype = part["scale"].dtype
        variance = node.squares / node.number[..., None]
        mean = node.first + node.rest
        return part | {"mean": mean.astype(dtype), "variance": variance.astype(dtype)}

    params = jax.tree.map(frozen, found, params, is_leaf=_is_node)
    return _replaced(model, lambda layer: layer.inference), params


class _Moments(NamedTuple):
    """Of all that one batch norm has seen; with a layer axis in front inside ``repeat``.

    The mean is ``first`` + ``rest``, so that nothing of a large one is cancelled.
    """

    number: jax.Array
    first: jax.Array
    rest: jax.Array
    squares: jax.Array


@jax.tree_util.register_static
class _Other:
    """Stands for the parameters of any other layer."""


def _observe(site: Site, inputs: Tree, delta: Tree) -> Tree:
    if site is not _SITE:
        return _Other()
    x = accumulated(inputs)
    (first, rest), variance = moments(x)
    count = jnp.asarray(x.size // x.shape[-1], x.dtype)
    return _Moments(count, first, rest, variance * count)


def _joined(a: Tree, b: Tree) -> Tree:
    def join(a, b):
        if not isinstance(a, _Moments):
            return a
        count, apart = a.number + b.number, (b.first - a.first) + (b.rest - a.rest)
        part = (b.number / count)[..., None]
        between = apart**2 * a.number[..., None] * part
        return _Moments(count, a.first, a.rest + apart * part, a.squares + b.squares + between)

    return jax.tree.map(join, a, b, is_leaf=_is_node)


_SITE = Site("batch_norm", lambda inputs, delta: (), mixes=True)


def _watched(layer: Layer) -> Layer:
    """The batch norm, its site seeing x itself."""

    def forward(params, x, key=None):
        return layer.apply(params, x, key), x

    def backward(weights, x, delta, statistic=None):
        return delta, statistic(_SITE, x, delta)

    return Layer(layer.init, forward, backward, layer.name)


def _replaced(layer: Layer, new: Any) -> Layer:
    if layer.inference is not None:
        return new(layer)
    if layer.rebuild is None or not _count(layer):
        return layer
    return layer.rebuild(tuple(_replaced(part, new) for part in layer.parts))


def _count(layer: Layer) -> int:
    return int(layer.inference is not None) + sum(_count(part) for part in layer.parts)


def _batches(data: Iterable[Any]) -> Iterable[Any]:
    for batch in data:
        yield jax.tree.map(jnp.asarray, batch)


def _is_node(node: Any) -> bool:
    return isinstance(node, (_Moments, _Other))


def _nodes(tree: Tree) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=_is_node)
