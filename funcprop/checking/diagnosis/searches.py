"""Which changes of the derivation explain a difference: one, one in all steps, many alike, two."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from .finding import MISTAKES
from .mistakes import Seen, factor_text, is_named, sizes_text
from .rewiring import Rewired, rewired

MOST_PAIRS = 1_000
SECANTS = 8
MOST_LEFT = 0.02  # of a difference, for a change to explain it
WORDS = (
    (0.0, "missing term", "are missing"),
    (2.0, "counted twice", "are counted twice"),
    (-1.0, "sign", "have the other sign"),
)
# Of two paths both alike, or one twice in the place of the other.
COUPLES = (
    *(((factor, factor), kind, words) for factor, kind, words in WORDS),
    ((2.0, 0.0), "counted twice", "are the first one twice"),
    ((0.0, 2.0), "counted twice", "are the second one twice"),
)


class Explained(NamedTuple):
    """Attributes: rank, as of what was seen; leaves, by number; seen; line of the forward pass."""

    rank: int
    leaves: frozenset[int]
    seen: Seen
    line: str = ""


def is_wrong(ours, due, tolerance) -> bool:
    """Whether two arrays differ; what is not finite is like nothing else."""
    if not (np.isfinite(ours).all() and np.isfinite(due).all()):
        return True
    scale = float(np.abs(due).max(initial=0)) or float(np.abs(ours).max(initial=0))
    return not bool((np.abs(ours - due) <= tolerance * scale).all())


def changes_of(value, point, slopes, pairs) -> Rewired | None:
    """The changes, if the function can be rewired and its gradient is the one that is due."""
    due = np.concatenate([b.ravel() for _, _, b in pairs])
    for opened in (True, False):
        try:
            changes = rewired(value, point, slopes, opened)
        except Exception:  # something has no derivative, or is not to be run on its own
            continue
        if not is_wrong(changes.gradient, due, 1e-8):
            return changes
    return None


def changed(pairs, wrong, changes: Rewired, sizes, tolerance) -> list[Explained]:
    """The changes of the derivation whose effect is the difference."""
    if not len(changes.effects):
        return []
    scales = [float(np.abs(b).max(initial=0)) or 1.0 for _, _, b in pairs]
    ends = np.cumsum([a.size for _, a, _ in pairs])
    parts = [slice(e - a.size, e) for e, (_, a, _) in zip(ends, pairs, strict=True)]
    gap = np.concatenate(
        [((a - b) / s).ravel() for (_, a, b), s in zip(pairs, scales, strict=True)]
    )
    finite = np.isfinite(changes.effects).all(1)
    room = np.concatenate([np.full(a.size, s) for (_, a, _), s in zip(pairs, scales, strict=True)])
    effects = np.where(finite[:, None], changes.effects, 0) / room
    everything = frozenset(range(len(pairs)))
    groups = [(everything, frozenset(wrong), 0)]
    if len(wrong) > 1:
        groups.append((frozenset(wrong), frozenset(wrong), 1))
    groups += [(frozenset([i]), frozenset([i]), 1) for i in wrong]
    found = []
    for where, leaves, extra in groups:
        entries = np.concatenate([np.arange(parts[i].start, parts[i].stop) for i in sorted(where)])
        d, v = gap[entries], effects[:, entries]
        size = float(np.linalg.norm(d))
        square = (v * v).sum(1)
        free = np.array([change.kind in ("scale", "constant") for change in changes.changes])
        c = np.where(free, v @ d / np.where(square > 0, square, 1), 1.0)
        rest = np.linalg.norm(d - c[:, None] * v, axis=1) / size
        limit = min(MOST_LEFT, max(1e-6, 1e3 * tolerance * np.sqrt(len(d)) / size))
        constant = np.array([change.kind == "constant" for change in changes.changes])
        few = len(d) < 3  # a factor fits one number always
        # The effect of another constant is a line for tiny changes only.
        near = np.flatnonzero(constant & (rest <= 0.1) & (square > 0))
        if len(near) and not few:
            c[near], rest[near] = _solved(changes, near, c[near], d, entries, room)
        elif few:
            rest[near] = np.inf
        for k in np.flatnonzero((rest <= limit) & (square > 0)):
            mistake = _named(changes.changes[k], float(c[k]), float(rest[k]), sizes)
            rank = mistake.rank + extra + (3 if few and free[k] else 0)
            found.append(Explained(rank, leaves, mistake, changes.changes[k].line))
    return found


def _solved(changes: Rewired, which, c, d, entries, scale) -> tuple[np.ndarray, np.ndarray]:
    """How much larger each of these constants has to be for the difference d, and what is left.

    The secant method on the projection of the effect on d, all constants side by side.
    """

    def effects(c):
        rows = np.zeros((len(which), len(changes.changes)))
        rows[np.arange(len(which)), which] = c
        return ((changes.at(rows) - changes.gradient) / scale)[:, entries]

    square = float(d @ d)
    before, miss_before = np.zeros(len(which)), np.full(len(which), -1.0)
    for _ in range(SECANTS):
        v = effects(c)
        miss = v @ d / square - 1
        step = miss * (c - before) / np.where(miss == miss_before, np.inf, miss - miss_before)
        before, miss_before = c, miss
        c = c - np.where(np.isfinite(step), step, 0)
    rest = np.linalg.norm(d - effects(c), axis=1) / np.sqrt(square)
    return c, np.where(np.isfinite(rest), rest, np.inf)


def looped(pairs, wrong, changes: Rewired, sizes, tolerance) -> list[Explained]:
    """Changes inside a scan, which act in all of its steps at once."""
    tries = []
    for k, change in enumerate(changes.changes):
        if change.looped and change.kind == "scale":
            tries += [(k, factor - 1) for factor in (*(f for f, _, _ in WORDS), 0.5)]
        elif change.looped and change.kind != "constant":
            tries.append((k, 1.0))
    rows = np.zeros((len(tries), len(changes.changes)))
    for row, (k, s) in zip(rows, tries, strict=True):
        row[k] = s
    found = []
    for (k, s), same in zip(tries, _alike(pairs, wrong, changes, rows, tolerance), strict=True):
        if same:
            mistake = _named(changes.changes[k], s, 0.0, sizes)
            found.append(Explained(mistake.rank, same, mistake, changes.changes[k].line))
    return found


def everywhere(pairs, wrong, changes: Rewired, sizes, tolerance) -> list[Explained]:
    """One change in all places that are alike, as the gates of a cell are."""
    alike: dict[tuple, list[int]] = {}
    for k, change in enumerate(changes.changes):
        if change.kind not in ("scale", "constant"):
            for key in ((change.kind, change.what), change):
                alike.setdefault(key, []).append(k)
    groups = [ks for ks in alike.values() if len(ks) > 1]
    rows = np.zeros((len(groups), len(changes.changes)))
    for row, ks in zip(rows, groups, strict=True):
        row[ks] = 1
    found = []
    for ks, same in zip(groups, _alike(pairs, wrong, changes, rows, tolerance), strict=True):
        if same:
            mistake = _named(changes.changes[ks[0]], 1.0, 0.0, sizes)
            text = f"{mistake.statement}, in {len(ks)} places"
            line = changes.changes[ks[0]].line
            found.append(Explained(4, same, mistake._replace(statement=text), line))
    return found


def _alike(pairs, wrong, changes: Rewired, rows, tolerance) -> list[frozenset[int]]:
    """The wrong leaves that some combinations of changes explain."""
    if not len(rows):
        return []
    ends = np.cumsum([a.size for _, a, _ in pairs])
    found = []
    for row in changes.at(rows):
        leaves = np.split(row, ends[:-1])
        found.append(
            frozenset(
                i for i in wrong if not is_wrong(pairs[i][1].ravel(), leaves[i], 1e2 * tolerance)
            )
        )
    return found


def two_paths(pairs, wrong, changes: Rewired, tolerance) -> list[Explained]:
    """Two paths left out or counted twice together, as where a mean is taken of shifted numbers."""
    paths = [k for k, change in enumerate(changes.changes) if change.kind == "scale"]
    couples = list(itertools.combinations(paths, 2))
    if len(couples) > MOST_PAIRS:
        couples = _likely(pairs, wrong, changes.effects, paths, tolerance)[:MOST_PAIRS]
    if not couples:
        return []
    rows = np.zeros((len(COUPLES), len(couples), len(changes.changes)))
    for k, couple in enumerate(couples):
        rows[:, k, list(couple)] = np.array([factors for factors, _, _ in COUPLES]) - 1
    found = []
    flat = rows.reshape(-1, rows.shape[-1])
    for n, same in enumerate(_alike(pairs, wrong, changes, flat, tolerance)):
        a, b = couples[n % len(couples)]
        factors, kind, word = COUPLES[n // len(couples)]
        if same:
            one, two = changes.changes[a], changes.changes[b]
            text = f"the terms through {one.what} and {two.what} {word}"
            line = f"{one.line}; {two.line}"
            mistake = Seen(4, kind, text, factors[0] if len(set(factors)) == 1 else None)
            found.append(Explained(4, same, mistake, line))
    return found


def _likely(pairs, wrong, effects, paths, tolerance) -> list[tuple[int, int]]:
    """The couples of paths whose effects add up to the difference of some leaf."""
    ends = np.cumsum([a.size for _, a, _ in pairs])
    found = set()
    for i in wrong:
        _, ours, due = pairs[i]
        if ours.size < 2:
            continue
        own = effects[paths, ends[i] - ours.size : ends[i]]
        gap, room = (ours - due).ravel(), 1e2 * tolerance * np.abs(due).max()
        for (a, b), _, _ in COUPLES:
            both = adding_up(gap, (a - 1) * own, (b - 1) * own, room)
            found |= {(paths[n], paths[m]) for n, m in both}
    return sorted(found)


def adding_up(gap, ones, others, room) -> list[tuple[int, int]]:
    """The (n, m), n < m, with ones[n] + others[m] = gap."""
    return [
        (n, n + 1 + int(m))
        for n, one in enumerate(ones)
        for m in np.flatnonzero((np.abs(gap - one - others[n + 1 :]) <= room).all(1))
    ]


def _named(change, c: float, rest: float, sizes) -> Seen:
    """A change as a mistake."""
    if change.kind == "scale":
        factor = 1 + c
        term = f"the term through {change.what}"
        if abs(factor) < 1e-6:
            return Seen(2, "missing term", f"{term} is missing", 0.0, rest)
        if abs(factor - 2) < 1e-6:
            return Seen(2, "counted twice", f"{term} is counted twice", 2.0, rest)
        if abs(factor + 1) < 1e-6:
            return Seen(4, "sign", f"{term} has the other sign", -1.0, rest)
        rank = 3 if is_named(factor, sizes) else 6
        text = f"{term} is {factor_text(factor)} what it must be{sizes_text(factor, sizes)}"
        return Seen(rank, "factor", text, factor, rest)
    if change.kind in ("next", "place"):
        kind = "off by one" if change.kind == "next" else "wrong place"
        return Seen(3, kind, f"in a product {change.what} was taken", None, rest)
    if change.kind == "operand":
        kind = "off by one" if "shifted" in change.what else "transpose"
        return Seen(2, kind, f"in a product {change.what} was taken", None, rest)
    if change.kind in MISTAKES:  # another linear map
        rank = 2 if change.kind in ("mask ignored", "factor") else 3
        return Seen(rank, change.kind, f"on the way back {change.what}", None, rest)
    if change.kind == "constant":
        text = f"the derivative is taken with {factor_text(1 + c)} {change.what}"
        return Seen(4, "wrong function", text, None, rest)
    place = "output" in change.what or "for y" in change.what
    kind = "wrong place" if place else "wrong function"
    text = f"the derivative of a nonlinearity is {change.what}"
    return Seen(3, kind, text, None, rest)
