"""Recursive layers over trees."""

from __future__ import annotations

import numpy as np

from ..layers.activations import softplus
from ..layers.tree import tree_rnn
from ..layers.tree_lstm import tree_lstm
from .case import Case, Draw, entries, normal


def trees(batch: int, nodes: int, most: int) -> Draw:
    """Children of any number up to ``most``, also shared or twice; the first example is leaves."""

    def drawn(draw):
        before = np.arange(nodes)[:, None]
        children = draw.integers(-1, np.broadcast_to(before, (batch, nodes, most)), dtype=np.int32)
        children[0], children[1:, -1, 0] = -1, nodes - 2
        return children

    return drawn


NODES = entries(normal(4, 5, 3), trees(4, 5, 2))

CASES: tuple[Case, ...] = (
    Case("tree_rnn", tree_rnn(4), NODES, True),
    Case("tree_rnn, softplus", tree_rnn(4, softplus), NODES),
    Case("tree_lstm", tree_lstm(4), NODES, True),
)
