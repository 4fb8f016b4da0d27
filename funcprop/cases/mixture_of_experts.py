"""Mixtures of experts."""

from __future__ import annotations

import numpy as np

from ..layers.activations import silu, tanh
from ..layers.mixture_of_experts import mixture_of_experts
from .case import Case, entries, mask, normal

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
        mixes=True,
    ),
    Case(
        "mixture_of_experts, with a mask",
        mixture_of_experts(3, 4, activation=tanh),
        entries(normal(4, 5, 3), mask(4, 5)),
    ),
    Case(
        "mixture_of_experts, with a mask and a balance",
        mixture_of_experts(4, 3, chosen=1, activation=tanh),
        entries(normal(4, 3, 2), mask(4, 3), normal(4)),
    ),
    Case(
        "mixture_of_experts, examples of one token with a mask and a balance",
        mixture_of_experts(3, 4, activation=tanh),
        entries(normal(4, 3), lambda draw: np.arange(4) != 2, normal(4)),
        mixes=True,
    ),
)
