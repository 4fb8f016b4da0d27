"""When to stop: functions ``stop(history) -> reason`` or ``None`` for :func:`~funcprop.fit`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..core.checks import check_count

History = dict[str, Any]


def until(
    name: str, *, at_least: float | None = None, at_most: float | None = None
) -> Callable[[History], str | None]:
    """Stop when the last number of a list in the history has reached a target.

    Args:
        name: the list, say "validation_accuracy" or "loss".
        at_least: stop at this number or above; or
        at_most: stop at this number or below.

    >>> from funcprop import until
    >>> until("validation_accuracy", at_least=0.97)({"validation_accuracy": [0.9, 0.98]})
    'validation_accuracy reached 0.98'
    """
    if (at_least is None) == (at_most is None):
        raise ValueError("give at_least or at_most, one of the two")

    def stop(history):
        last = _named(history, name)[-1]
        reached = last >= at_least if at_least is not None else last <= at_most  # type: ignore
        return f"{name} reached {last:.6g}" if reached else None

    return stop


class Patience(NamedTuple):
    """What :func:`patience` returns; called with the history it gives a reason, or ``None``.

    Attributes:
        name, rounds, larger, best: as of :func:`patience`.
    """

    name: str
    rounds: int
    larger: bool
    best: bool

    def __call__(self, history: History) -> str | None:
        values = _named(history, self.name)
        waited = len(values) - 1 - self.best_entry(history)
        if waited < self.rounds:
            return None
        return f"{self.name} has not improved for {waited} entries"

    def best_entry(self, history: History) -> int:
        """Which entry of the list is the best, the first of equal ones; NaN is the worst."""
        values = np.asarray(_named(history, self.name), np.float64)
        values = values if self.larger else -values
        return int(np.argmax(np.where(np.isnan(values), -np.inf, values)))


def patience(name: str, rounds: int, *, larger: bool = False, best: bool = False) -> Patience:
    """Stop when the best number of a list in the history is ``rounds`` entries old.

    Args:
        name: the list; of "loss" and of metrics an entry is a step.
        rounds: how many entries without a better one, at least 1.
        larger: whether larger numbers are better; NaN is never better.
        best: whether :func:`~funcprop.fit` returns the state of the best entry, whole, in the place
            of the last one; for lists with an entry a round, as those of the validation are.  It
            does so however training ends, and the history's "best_step" is that state's step.

    >>> from funcprop import patience
    >>> patience("validation_loss", 2)({"validation_loss": [3.0, 1.0, 1.5, 1.2]})
    'validation_loss has not improved for 2 entries'
    """
    check_count("patience", "rounds", rounds)
    return Patience(name, rounds, larger, best)


def not_finite(history: History) -> str | None:
    """Stop when the last loss is NaN or infinite; the reason names the first that was.

    :func:`~funcprop.fit` always asks it.

    >>> from funcprop import not_finite
    >>> not_finite({"loss": [1.0, float("nan")]})
    'the loss is nan at step 2'
    """
    if math.isfinite(history["loss"][-1]):
        return None
    first = next(i for i, loss in enumerate(history["loss"]) if not math.isfinite(loss))
    return f"the loss is {history['loss'][first]} at step {first + 1}"


def _named(history: History, name: str) -> list[float]:
    if not history.get(name):
        known = ", ".join(sorted(history))
        raise ValueError(f"the history has no {name!r}; it has {known}")
    return history[name]
