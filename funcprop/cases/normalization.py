"""Normalisation and dropout."""

from __future__ import annotations

import jax
import numpy as np

from ..core.layer import Layer
from ..layers.batch_norm import batch_norm, frozen_norm
from ..layers.dropout import dropout
from ..layers.normalization import group_norm, layer_norm, rms_norm
from .case import Case, normal


def keyed(layer: Layer) -> Layer:
    """The layer with one key at every call."""
    return layer._replace(
        forward=lambda params, x, key=None: layer.forward(params, x, jax.random.key(5))
    )


def spread_out(layer: Layer) -> Layer:
    """The norm with a scale that is not all 1."""

    def init(key, shape):
        params, out_shape = layer.init(key, shape)
        drawn = {
            name: jax.random.uniform(jax.random.fold_in(key, i), leaf.shape, minval=0.5, maxval=2)
            for i, (name, leaf) in enumerate(sorted(params.items()))
        }
        return drawn, out_shape

    return layer._replace(init=init)


MEAN, VARIANCE = np.array([0.5, -1.0], "float32"), np.array([0.25, 2.0], "float32")

CASES: tuple[Case, ...] = (
    Case("layer_norm", spread_out(layer_norm()), normal(4, 3, 5), True),
    Case("rms_norm", spread_out(rms_norm()), normal(4, 3, 5), True),
    Case("group_norm", spread_out(group_norm(2)), normal(4, 3, 2, 4), True),
    Case("batch_norm", spread_out(batch_norm()), normal(4, 3, 2), True, mixes=True),
    Case("frozen_norm", spread_out(frozen_norm(MEAN, VARIANCE)), normal(4, 3, 2), True),
    Case("dropout", dropout(0.4), normal(4, 5), True),
    Case("dropout with a key", keyed(dropout(0.4)), normal(4, 5), True),
)
