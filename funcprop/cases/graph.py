"""Layers on graphs."""

from __future__ import annotations

import numpy as np

from ..core.combinators import on, serial
from ..layers.activations import tanh
from ..layers.dense import dense
from ..layers.graph import graph_conv
from ..layers.graph_attention import graph_attention
from ..layers.graph_pool import graph_pool
from ..layers.message_passing import message_passing
from ..layers.shape import concatenate
from .case import Case, Draw, apart, entries, normal, some_tokens


def edges(batch: int, count: int, nodes: int) -> Draw:
    """Edges of any two nodes; the first graph has none, the others each a padding edge."""

    def drawn(draw):
        ends = draw.integers(0, nodes, (batch, count, 2), dtype=np.int32)
        ends[0] = ends[:, -1] = -1
        return ends

    return drawn


PLAIN = (normal(4, 5, 3), edges(4, 7, 5))
MASKED = (*PLAIN, some_tokens(4, 5))
MESSAGE = serial(concatenate, dense(2, tanh))

CASES: tuple[Case, ...] = (
    Case("graph_conv", graph_conv(2), entries(*PLAIN), True),
    Case(
        "graph_conv, twice, with a mask",
        serial(graph_conv(4, bias=False), on(0, tanh), graph_conv(2)),
        entries(*MASKED),
        True,
    ),
    Case("graph_attention", graph_attention(2, heads=2), entries(*PLAIN)),
    Case(
        "graph_attention, mean of heads, with a mask",
        graph_attention(3, heads=2, concat=False),
        entries(*MASKED),
    ),
    Case("message_passing", message_passing(MESSAGE), entries(*PLAIN), True),
    Case(
        "message_passing, mean, with an update",
        message_passing(MESSAGE, serial(concatenate, dense(3)), reduce="mean"),
        entries(*MASKED),
        True,
    ),
    Case(
        "message_passing, maximum, of edge features",
        message_passing(MESSAGE, reduce="max", edge_features=True),
        entries(*PLAIN, normal(4, 7, 2), some_tokens(4, 5)),
    ),
    Case("graph_pool", graph_pool(), entries(*MASKED), True),
    Case("graph_pool, maximum", graph_pool("max"), entries(apart(4, 5, 3), *MASKED[1:])),
)
