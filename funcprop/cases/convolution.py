"""Convolutions of one, two and three axes."""

from __future__ import annotations

from ..layers.convolution import conv, conv_transpose
from .case import Case, normal

# XLA's convolution takes no complex numbers, so none of them is analytic.
CASES: tuple[Case, ...] = (
    Case("conv", conv(3, 3), normal(4, 5, 4, 2)),
    Case(
        "conv, causal with groups",
        conv(4, 3, stride=2, dilation=2, padding="CAUSAL", groups=2),
        normal(4, 7, 4),
    ),
    Case("conv, depthwise", conv(2, (2, 3), groups=2), normal(4, 4, 5, 2)),
    Case("conv of three axes", conv(2, 2, stride=(1, 2, 1), bias=False), normal(4, 3, 4, 3, 2)),
    Case("conv_transpose", conv_transpose(2, 3, stride=2), normal(4, 2, 3, 2)),
)
