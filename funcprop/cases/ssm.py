"""State-space layers."""

from __future__ import annotations

from ..layers.diagonal import diagonal_recurrence
from ..layers.ssm import ssm
from .case import Case, entries, normal

# What takes the parts of a complex number apart has no complex step itself.
CASES: tuple[Case, ...] = (
    Case("diagonal_recurrence", diagonal_recurrence(), normal(4, 7, 4)),
    Case(
        "diagonal_recurrence with a state",
        diagonal_recurrence(state=True),
        entries(normal(4, 5, 4), normal(4, 4)),
    ),
    Case("diagonal_recurrence, step by step", diagonal_recurrence(parallel=False), normal(4, 3, 4)),
    Case("ssm", ssm(3), normal(4, 6, 2)),
    Case("ssm with a state", ssm(2, state=True), entries(normal(4, 3, 2), normal(4, 4))),
)
