"""When to stop: functions ``stop(history) -> reason`` or ``None`` for :func:`~funcprop.fit`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

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


def patience(name: str, rounds: int, *, larger: bool = False) -> Callable[[History], str | None]:
    """Stop when the best number of a list in the history is ``rounds`` entries old.

    Args:
        name: the list; of "loss" and of metrics an entry is a step.
        rounds: how many entries without a better one, at least 1.
        larger: whether larger numbers are better.

    >>> from funcprop import patience
    >>> patience("validation_loss", 2)({"validation_loss": [3.0, 1.0, 1.5, 1.2]})
    'validation_loss has not improved for 2 entries'
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, 1 or more is due")

    def stop(history):
        values = np.asarray(_named(history, name))
        best = np.argmax(values if larger else -values)
        waited = len(values) - 1 - best
        return f"{name} has not improved for {waited} entries" if waited >= rounds else None

    return stop


def not_finite(history: History) -> str | None:
    """Stop when the last loss is NaN or infinite; the reason names the first that was.

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
