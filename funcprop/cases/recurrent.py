"""Recurrent layers, and what reads their steps."""

from __future__ import annotations

from ..layers.activations import gelu
from ..layers.bidirectional import bidirectional, reverse
from ..layers.gru import gru
from ..layers.lstm import lstm
from ..layers.rnn import rnn
from ..layers.sequence import last_step
from .case import Case, entries, lengths, normal

STEPS = normal(4, 3, 2)
PADDED = entries(STEPS, lengths(4, longest=3))
PAIR = (normal(4, 3), normal(4, 3))
BOTH = entries(STEPS, lengths(4, longest=3), (PAIR, PAIR))

CASES: tuple[Case, ...] = (
    Case("rnn", rnn(3, gelu), STEPS),
    Case(
        "rnn, chunks",
        rnn(3, state=True, chunk=2),
        entries(STEPS, lengths(4, longest=3), normal(4, 3)),
        True,
    ),
    Case("lstm", lstm(3), STEPS, True),
    Case("lstm, chunks", lstm(3, state=True, chunk=2), entries(STEPS, PAIR), True),
    Case("gru, chunks", gru(3, chunk=2), STEPS, True),
    Case("gru", gru(3), PADDED, True),
    Case("reverse", reverse(gru(3)), PADDED, True),
    Case("bidirectional", bidirectional(lstm(3, state=True)), BOTH, True),
    Case("last_step", last_step, PADDED, True),
)
