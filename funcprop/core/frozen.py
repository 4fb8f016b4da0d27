"""The statistics that a model holds as constants: read, replaced, handed on to its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from .checks import LayerError, as_layer, described, position

Tree = Any
Model = Any  # a Layer, of which only the fields are looked at here


def statistics_of(model: Model) -> Tree:
    """The means and variances that a calibrated model holds.

    A checkpoint stores them next to the parameters: they are arrays in nested tuples and dicts.
    Where leaves are stored without their structure, that of
    ``jax.eval_shape(lambda params, x: statistics_of(calibrate(model, params, x)[0]), params, x)``
    is the same; nothing is computed for it.

    Args:
        model: any layer.

    Returns:
        ``{"mean": (C,), "variance": (C,)}`` for a :func:`~funcprop.frozen_norm`, inside
        :func:`~funcprop.repeat` with an axis of size n in front; for a combinator a tuple with an
        entry for each of its parts; ``()`` for what holds no statistics, whatever its parts.

    Raises:
        LayerError: when a batch norm of the model is not calibrated.

    >>> import jax.numpy as jnp
    >>> from funcprop import dense, frozen_norm, residual, serial, statistics_of
    >>> norm = frozen_norm(jnp.array([5.0]), jnp.array([4.0]))
    >>> found = statistics_of(serial(dense(1), residual(norm)))
    >>> found[0], sorted(found[1][0])
    ((), ['mean', 'variance'])
    """
    model = as_layer(model, "statistics_of")
    for layer in depending(model):
        if layer.statistics is None:
            raise LayerError(
                layer.name, "it holds no statistics yet; take the model that calibrate returns"
            )
    return filled(model, (layer.statistics() for layer in depending(model) if layer.statistics))


def with_statistics(model: Model, statistics: Tree) -> Model:
    """The model that normalises by the given means and variances.

    The arrays may be traced, so a jitted function can take the statistics as an argument and need
    not be compiled anew for others.

    Args:
        model: with batch norms, or calibrated already: then its statistics are replaced.
        statistics: as :func:`statistics_of` returns them; lists may stand for tuples.

    Returns:
        The calibrated model; it takes the same parameters.

    Raises:
        LayerError: when the structure is not the model's, shapes are not those of the statistics
            that it holds, or a value is not finite or a variance negative.

    >>> import jax.numpy as jnp
    >>> from funcprop import batch_norm, with_statistics
    >>> frozen = with_statistics(
    ...     batch_norm(bias=False), {"mean": jnp.array([5.0]), "variance": jnp.array([4.0])}
    ... )
    >>> frozen.apply({"scale": jnp.ones(1)}, jnp.array([[7.0]])).round(3).tolist()
    [[1.0]]
    """
    model = as_layer(model, "with_statistics")
    new = given(model, statistics)
    if is_frozen(model):
        held, came = (jax.tree.leaves_with_path(statistics_of(m)) for m in (model, new))
        for (path, old), (_, leaf) in zip(held, came, strict=True):
            if jnp.shape(old) != jnp.shape(leaf):
                raise LayerError(
                    "with_statistics",
                    f"statistics{jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}, the "
                    f"model holds {jnp.shape(old)}; take those of a model of the same sizes",
                )
    return new


def needs_calibration(model: Model) -> bool:
    """Whether a layer of the model depends on the whole batch, for want of statistics."""
    return any(layer.statistics is None for layer in depending(model))


def is_frozen(model: Model) -> bool:
    """Whether the model holds statistics, and lacks none."""
    return any(True for _ in depending(model)) and not needs_calibration(model)


def depending(model: Model) -> Iterator[Model]:
    """The layers that have a form for inference, or are one, in the order of the parts."""
    # A loss, and a stranger's layer, may have neither field.
    if getattr(model, "inference", None) is not None:
        yield model
    else:
        for part in getattr(model, "parts", ()):
            yield from depending(part)


def filled(model: Model, entries: Iterator[Tree]) -> Tree:
    """The model's statistics from those of each layer, in the order of :func:`depending`."""
    if getattr(model, "inference", None) is not None:
        return next(entries)
    trees = tuple(filled(part, entries) for part in getattr(model, "parts", ()))
    return trees if any(trees) else ()


def given(model: Model, statistics: Tree, place: str = "") -> Model:
    """The model with the statistics put in, of whatever shapes."""

    if not any(True for _ in depending(model)):
        if jax.tree.leaves(statistics):
            raise _misfit(model, statistics, place, "()")
        return model
    if model.inference is not None:
        with position(f"statistics{place}"):
            return model.inference(statistics)
    parts = model.parts
    if not isinstance(statistics, (tuple, list)) or len(statistics) != len(parts):
        raise _misfit(model, statistics, place, f"a tuple of {len(parts)}")
    if model.rebuild is None:
        raise LayerError(model.name, "it lists parts but no rebuild, so none can be calibrated")
    return model.rebuild(
        tuple(
            given(part, entry, f"{place}[{i}]")
            for i, (part, entry) in enumerate(zip(parts, statistics, strict=True))
        )
    )


def _misfit(model: Model, statistics: Tree, place: str, expected: str) -> LayerError:
    return LayerError(
        "with_statistics",
        f"statistics{place} is {described(statistics)}, {expected} is expected for {model.name}; "
        "take what statistics_of returned for a model with the same layers",
    )


def handing_on(wrap: Callable[[Model], Model], layer: Model) -> Model:
    """``wrap(layer)``, whose statistics are the layer's: ``repeat`` gives each repetition its own.

    For whoever looks into a model by replacing its parts with layers of their own.
    """
    wrapped = wrap(layer)
    if not is_frozen(layer):
        return wrapped
    return wrapped._replace(
        inference=lambda statistics: handing_on(wrap, given(layer, statistics)),
        statistics=lambda: statistics_of(layer),
    )
