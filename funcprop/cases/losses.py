"""Losses, on (prediction, target)."""

from __future__ import annotations

from ..losses.auxiliary import auxiliary, weighted
from ..losses.standard import (
    hinge,
    huber,
    kl_divergence,
    mean_absolute_error,
    mean_squared_error,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)
from ..losses.vocabulary import linear_cross_entropy
from .case import Case, distribution, entries, labels, mask, normal, probabilities, signs

CASES: tuple[Case, ...] = (
    Case("mean_squared_error", mean_squared_error, entries(normal(4, 3), normal(4, 3)), True),
    Case("mean_absolute_error", mean_absolute_error, entries(normal(4, 3), normal(4, 3))),
    Case("huber", huber(), entries(normal(4, 3), normal(4, 3))),
    Case(
        "softmax_cross_entropy",
        softmax_cross_entropy(),
        entries(normal(4, 5), labels(4, classes=5)),
    ),
    Case(
        "softmax_cross_entropy, distributions",
        softmax_cross_entropy(),
        entries(normal(4, 5), distribution(4, 5)),
    ),
    Case(
        "softmax_cross_entropy, smoothed",
        softmax_cross_entropy(0.1),
        entries(normal(4, 5), labels(4, classes=5)),
    ),
    Case(
        "softmax_cross_entropy, masked tokens",
        softmax_cross_entropy(),
        entries(normal(4, 6, 5), (labels(4, 6, classes=5), mask(4, 6))),
    ),
    Case(
        "mean_squared_error, masked tokens",
        mean_squared_error,
        entries(normal(4, 6, 3), (normal(4, 6, 3), mask(4, 6))),
        True,
    ),
    Case(
        "sigmoid_cross_entropy", sigmoid_cross_entropy, entries(normal(4, 3), probabilities(4, 3))
    ),
    Case("kl_divergence", kl_divergence, entries(normal(4, 5), distribution(4, 5))),
    Case(
        "linear_cross_entropy, smoothed",
        linear_cross_entropy(7, label_smoothing=0.1, chunk=3),
        entries(normal(4, 5), labels(4, classes=7)),
    ),
    Case(
        "linear_cross_entropy, masked tokens",
        linear_cross_entropy(7, chunk=3),
        entries(normal(4, 3, 5), (labels(4, 3, classes=7), mask(4, 3))),
    ),
    Case("hinge", hinge, entries(normal(4, 3), signs(4, 3))),
    Case(
        "auxiliary",
        auxiliary(softmax_cross_entropy(), 0.5),
        entries((normal(4, 5), normal(4)), labels(4, classes=5)),
    ),
    Case(
        "weighted",
        weighted(softmax_cross_entropy()),
        entries(normal(4, 5), (normal(4), labels(4, classes=5))),
    ),
)
