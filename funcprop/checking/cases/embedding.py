"""Embeddings and positions."""

from __future__ import annotations

from ...layers.embedding import embedding, positional, sinusoidal
from .case import Case, labels, normal

CASES: tuple[Case, ...] = (
    Case("embedding", embedding(5, 3), labels(4, 6, classes=5), True),
    Case("positional", positional(7), normal(4, 6, 3), True, still=("p",)),
    Case("sinusoidal", sinusoidal(), normal(4, 6, 3), True),
)
