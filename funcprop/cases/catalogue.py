"""The table of cases: every layer and loss with an input to try it on.

``funcprop check`` and the tests run over it; adding a layer to the library is adding a line to its
family's file in ``cases``.
"""

from __future__ import annotations

from . import (
    activations,
    attention,
    convolution,
    dense,
    embedding,
    graph,
    losses,
    mixture_of_experts,
    normalization,
    pooling,
    recurrent,
    ssm,
    tree,
)
from .case import Case as Case

ACTIVATIONS: tuple[Case, ...] = activations.CASES
LOSSES: tuple[Case, ...] = losses.CASES
LAYERS: tuple[Case, ...] = (
    *dense.CASES,
    *convolution.CASES,
    *pooling.CASES,
    *normalization.CASES,
    *embedding.CASES,
    *attention.CASES,
    *recurrent.CASES,
    *tree.CASES,
    *graph.CASES,
    *ssm.CASES,
    *mixture_of_experts.CASES,
)
CASES: tuple[Case, ...] = LAYERS + ACTIVATIONS + LOSSES
