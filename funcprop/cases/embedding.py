"""Embeddings and positions, and parameters that several places share."""

from __future__ import annotations

from ..core.combinators import serial
from ..core.sharing import share
from ..layers.activations import tanh
from ..layers.dense import affine, dense
from ..layers.embedding import embedding, positional, sinusoidal
from .case import Case, labels, normal

CASES: tuple[Case, ...] = (
    Case("embedding", embedding(5, 3), labels(4, 6, classes=5), True),
    Case("positional", positional(7), normal(4, 6, 3), True, still=("p",)),
    Case("sinusoidal", sinusoidal(), normal(4, 6, 3), True),
    Case(
        "share",
        share(serial(dense(5, tanh), dense(5, tanh), dense(3)), (0,), (1,)),
        normal(4, 5),
        True,
    ),
    Case(
        "share, tied embedding",
        share(serial(embedding(5, 3), dense(3, tanh), affine(5, bias=False)), (0,), (2,)),
        labels(4, 6, classes=5),
        True,
    ),
)
