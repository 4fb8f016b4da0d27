"""Mixtures of experts."""

from __future__ import annotations

from ...layers.activations import silu, tanh
from ...layers.mixture_of_experts import mixture_of_experts
from .case import Case, entries, normal

# A choice has no complex form.  Gates and choices are the router's: its weights carry delta too.
CASES: tuple[Case, ...] = (
    Case("mixture_of_experts", mixture_of_experts(3, 4, activation=tanh), normal(4, 5, 3)),
    Case(
        "mixture_of_experts, gated, with a balance",
        mixture_of_experts(4, 3, activation=silu, gated=True),
        entries(normal(4, 3, 2), normal(4)),
    ),
    Case(
        "mixture_of_experts, one of all, examples of one token",
        mixture_of_experts(3, 4, chosen=1),
        normal(4, 3),
    ),
)
