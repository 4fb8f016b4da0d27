"""Interleaved timing in one process, and the table that it ends in."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np


def interleaved(
    runs: Mapping[str, Callable[[], Any]], rounds: int, pause: float = 0.0
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Lets functions take turns, so that a slow moment of the machine falls on all of them.

    Args:
        runs: functions without arguments.  What they return is waited for within their time, leaf
            by leaf, so one that collects thousands of arrays had better not return them.
        rounds: how often each is timed, after one call that is not (it compiles).
        pause: seconds to wait before each call: the threads of other libraries go on spinning for
            a while after their work, on a CPU that the next row would need.

    Returns:
        What each function returned in its first call, and its seconds, (rounds,).
    """
    results = {name: jax.block_until_ready(run()) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(pause)
            gc.disable()
            start = time.perf_counter()
            jax.block_until_ready(runs[name]())
            seconds[name].append(time.perf_counter() - start)
            gc.enable()
    return results, {name: np.array(times) for name, times in seconds.items()}


def spread(values: np.ndarray, digits: int = 3) -> str:
    """The median and, in brackets, the quartiles."""
    low, middle, high = (
        f"{float(f'{value:.{digits}g}'):.6g}" for value in np.quantile(values, (0.25, 0.5, 0.75))
    )
    return f"{middle} [{low}, {high}]"


def heading(rounds: int) -> str:
    """What ran on what: the first line of a benchmark's output."""
    device = jax.devices()[0]
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"jax {jax.__version__}, {device.platform} ({device.device_kind}), {cpus} CPUs; "
        f"median [quartiles] of {rounds} interleaved rounds"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
