"""Recurrent layers, and what reads their steps."""

from __future__ import annotations

from ...layers.sequence import last_step
from .case import Case, entries, lengths, normal

CASES: tuple[Case, ...] = (
    Case("last_step", last_step, entries(normal(4, 3, 2), lengths(4, longest=3)), True),
)
