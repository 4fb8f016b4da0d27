"""Where in an array the wrong entries lie, in words."""

from __future__ import annotations

import numpy as np


def pattern(wrong: np.ndarray, values: np.ndarray | None = None) -> str:
    """What the entries of a mask have in common.

    Args:
        wrong: which entries are wrong, an array of booleans.
        values: the right values, to name entries that should be 0.

    >>> import numpy as np
    >>> from funcprop.checking.diagnosis.patterns import pattern
    >>> wrong = np.zeros((3, 4), bool)
    >>> wrong[1] = True
    >>> pattern(wrong)
    'index 1 of axis 0, all of it'
    """
    wrong = np.asarray(wrong)
    count = int(wrong.sum())
    if not count:
        return ""
    if count == wrong.size:
        return "every entry" if wrong.size > 1 else ""
    where = _triangle(wrong) or _slab(wrong) or _border(wrong)
    if values is not None and not np.any(values[wrong]) and np.any(values):
        zero = f"{count} entries that are 0"
        return f"{zero}: {where}" if where else zero
    if where:
        return where
    if count == 1:
        (index,) = np.argwhere(wrong)
        return f"one entry, [{', '.join(map(str, index))}]"
    return f"{count} of {wrong.size} entries"


def _slab(wrong: np.ndarray) -> str:
    """Some indices of one axis hold all wrong entries, and few of that axis are concerned."""
    best: tuple[float, str] = (1.0, "")
    for axis, size in enumerate(wrong.shape):
        others = tuple(k for k in range(wrong.ndim) if k != axis)
        lines = wrong.any(axis=others) if others else wrong
        hit = np.flatnonzero(lines)
        if len(hit) == size:
            continue
        share = len(hit) / size
        if share < best[0]:
            whole = bool(wrong.take(hit, axis).all())
            extent = ", all of it" if whole else f", {int(wrong.sum())} entries there"
            if wrong.ndim == 1:
                extent = ""
            best = share, f"{_indices(hit, size)} of axis {axis}{extent}"
    return best[1]


def _indices(hit: np.ndarray, size: int) -> str:
    if len(hit) == 1:
        name = {0: ", the first,", size - 1: ", the last,"}.get(int(hit[0]), "") if size > 2 else ""
        return f"index {hit[0]}{name}"
    if len(hit) == hit[-1] - hit[0] + 1:
        return f"indices {hit[0]} to {hit[-1]}"
    step = set(np.diff(hit))
    if len(step) == 1 and len(hit) > 2:
        return f"every index {hit[0]} + {step.pop()} k"
    shown = ", ".join(map(str, hit[:6]))
    return f"indices {shown}{', ...' if len(hit) > 6 else ''}"


def _border(wrong: np.ndarray) -> str:
    """Only the first and last indices of the axes between the first and the last one."""
    if wrong.ndim < 3:
        return ""
    inner = tuple(
        slice(1, -1) if 0 < k < wrong.ndim - 1 else slice(None) for k in range(wrong.ndim)
    )
    edge = wrong.copy()
    edge[inner] = False
    return "" if wrong[inner].any() or not edge.any() else "the border of the inner axes"


def _triangle(wrong: np.ndarray) -> str:
    """All that is above, or below, the diagonal of the last two axes, and nothing else."""
    if wrong.ndim < 2 or min(wrong.shape[-2:]) < 2:
        return ""
    ones = np.ones(wrong.shape[-2:], bool)
    hit = wrong.any(axis=tuple(range(wrong.ndim - 2)))
    for name, triangle in (("above", np.triu(ones, 1)), ("below", np.tril(ones, -1))):
        if (hit == triangle).all():
            return f"{name} the diagonal of the last two axes"
    return ""
