"""Which usual mistake explains a wrong gradient."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from .mistakes import MISTAKES, Seen, factor_text, is_named, rounded, seen, turned
from .reference import others
from .report import Finding
from .rewiring import Rewired, rewired

Tree = Any
Pair = tuple[str, np.ndarray, np.ndarray]
MOST_PAIRS = 1_000
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
PLAIN = 2  # explanations of at most this rank need no other beside them


class _Explained(NamedTuple):
    rank: int
    leaves: frozenset[int]
    seen: Seen
    line: str = ""


def diagnose(
    pairs: Sequence[Pair],
    sizes: dict[str, int],
    *,
    value: Callable[[Tree], Any] | None = None,
    point: Tree = None,
    inputs: Tree = None,
    again: Callable[[Tree], Sequence[np.ndarray]] | None = None,
    reference: tuple[Callable[..., Tree], tuple] | None = None,
    tolerance: float = 1e-9,
) -> tuple[Finding, ...]:
    """The mistakes that explain the difference of two gradients, the best explanation first.

    A leaf is laid beside what signs, factors, zeros, shifts and permutations would make of the
    right one.  Where that does not explain it, the derivation itself is changed in every place,
    see :mod:`funcprop.checking.rewiring`, and the change whose effect is the difference is named.

    Args:
        pairs: (path, ours, due) of each leaf, float64.
        sizes: named sizes that a factor may come from.
        value: the function whose gradient is due, of ``point``, whose leaves are those of pairs.
        point: where it was taken, float64.
        inputs: what the gradient is computed from, a tree of float64 arrays, and
        again: the due gradient of other inputs, a list as in pairs.
        reference: the function whose result is due, and its arguments.
        tolerance: the share of a leaf's largest value that counts as rounding.

    Returns:
        Findings that together name every wrong leaf once; the last ones may be "unknown".
    """
    pairs = [(path, np.asarray(a, np.float64), np.asarray(b, np.float64)) for path, a, b in pairs]
    wrong = [i for i, (_, a, b) in enumerate(pairs) if _is_wrong(a, b, tolerance)]
    if not wrong:
        return ()
    found: list[_Explained] = []
    for i in wrong:
        _, ours, due = pairs[i]
        found += [_Explained(s.rank, frozenset([i]), s) for s in seen(ours, due, sizes, tolerance)]
    found = _joined(found) + _swapped(pairs, wrong, tolerance)
    if again is not None and not _settled(found, wrong):
        found += _turned(pairs, wrong, inputs, again, tolerance)
    if reference is not None and not _settled(found, wrong):
        found += _referred(pairs, wrong, reference, tolerance)
    finite = all(np.isfinite(a).all() for _, a, _ in pairs)
    for slopes in (False, True):
        if value is None or not finite or _settled(found, wrong):
            break
        changes = _rewired(value, point, slopes, pairs)
        if changes is None:
            break
        found += _changed(pairs, wrong, changes, sizes, tolerance)
        if not _settled(found, wrong):
            found += _looped(pairs, wrong, changes, sizes, tolerance)
        if not _settled(found, wrong):
            found += _everywhere(pairs, wrong, changes, sizes, tolerance)
        if not slopes and not _settled(found, wrong):
            found += _two_paths(pairs, wrong, changes, tolerance)
    findings = []
    left = set(wrong)
    for best in sorted(found, key=lambda e: (-len(e.leaves), e.rank)):
        if best.leaves <= left and not _better(found, best, left):
            findings.append(_finding(best, pairs))
            left -= best.leaves
    for i in sorted(left):
        _, ours, due = pairs[i]
        last = rounded(ours, due) or Seen(9, "unknown", "no usual mistake explains its values")
        findings.append(_finding(_Explained(last.rank, frozenset([i]), last), pairs))
    return tuple(findings)


def _swapped(pairs, wrong, tolerance) -> list[_Explained]:
    """The right values of several leaves, in one another's places."""
    if len(wrong) < 2:
        return []
    ours, due = (np.sort(np.concatenate([pairs[i][k].ravel() for i in wrong])) for k in (1, 2))
    if np.isnan(ours).any() or np.abs(ours - due).max() > 10 * tolerance * np.abs(due).max():
        return []
    mistake = Seen(3, "transpose", "they have the right values in one another's places")
    return [_Explained(3, frozenset(wrong), mistake)]


def _turned(pairs, wrong, inputs, again, tolerance) -> list[_Explained]:
    """The gradient that is due where one of its inputs is moved or turned."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(inputs)

    def same_as(due, kind, text):
        same = frozenset(
            i for i in wrong if not _is_wrong(pairs[i][1], np.asarray(due[i]), 1e2 * tolerance)
        )
        return [_Explained(3, same, Seen(3, kind, text))] if same else []

    found = []
    for one, two in itertools.combinations(range(len(leaves)), 2):
        a, b = leaves[one][1], leaves[two][1]
        if np.shape(a) == np.shape(b) and np.size(a) > 1:
            values = [leaf for _, leaf in leaves]
            values[one], values[two] = b, a
            names = (jax.tree_util.keystr(leaves[k][0]) for k in (one, two))
            text = f"{' and '.join(names)} are taken for one another"
            found += same_as(again(jax.tree.unflatten(structure, values)), "transpose", text)
    for k, (path, leaf) in enumerate(leaves):
        leaf = np.asarray(leaf)
        if leaf.size < 2 or not np.issubdtype(leaf.dtype, np.floating):
            continue
        for kind, word, other in turned(leaf):
            values = [other if n == k else old for n, (_, old) in enumerate(leaves)]
            text = f"{jax.tree_util.keystr(path)} is {word} where its derivative is taken"
            found += same_as(again(jax.tree.unflatten(structure, values)), kind, text)
    return found


def _referred(pairs, wrong, reference, tolerance) -> list[_Explained]:
    """What the function that is due would give, were one of its operations another one, or two."""
    changes, results = others(*reference)
    found = []

    def add(leaves, rank, kind, text, line):
        if sum(pairs[i][1].size for i in leaves) > 1:  # one number is hit by chance
            mistake = Seen(rank, kind, f"in what is due {text}")
            found.append(_Explained(rank, frozenset(leaves), mistake, line))

    for n, change in enumerate(changes):
        same = [i for i in wrong if not _is_wrong(pairs[i][1], results[i][n], tolerance)]
        add(same, change.rank, change.kind, change.what, change.line)
    missing = [n for n, change in enumerate(changes) if change.kind == "missing term"]
    for i in wrong:
        _, ours, due = pairs[i]
        effects = (results[i][missing] - due).reshape(len(missing), -1)
        gap, room = (ours - due).ravel(), tolerance * np.abs(due).max(initial=0)
        for a, b in itertools.combinations(range(len(missing)), 2):
            if (np.abs(gap - effects[a] - effects[b]) <= room).all():
                one, two = changes[missing[a]], changes[missing[b]]
                text = f"{one.what} and {two.what}"
                add([i], 4, "missing term", text, f"{one.line}; {two.line}")
    return found


def _rewired(value, point, slopes, pairs) -> Rewired | None:
    """The changes, if the function can be rewired and its gradient is the one that is due."""
    due = np.concatenate([b.ravel() for _, _, b in pairs])
    for opened in (True, False):
        try:
            changes = rewired(value, point, slopes, opened)
        except (NotImplementedError, TypeError, ValueError):  # something has no derivative
            continue
        if np.allclose(changes.gradient, due, rtol=0, atol=1e-8 * np.abs(due).max()):
            return changes
    return None


def _is_wrong(ours, due, tolerance) -> bool:
    scale = float(np.abs(due).max(initial=0)) or float(np.abs(ours).max(initial=0))
    return not bool((np.abs(ours - due) <= tolerance * scale).all())


def _joined(found: list[_Explained]) -> list[_Explained]:
    """Leaves that show the same mistake are explained by one."""
    groups: dict[tuple, set] = {}
    for e in found:
        groups.setdefault((e.rank, e.seen.kind, e.seen.statement), set()).update(e.leaves)
    return [
        _Explained(rank, frozenset(leaves), next(e.seen for e in found if e.seen.statement == text))
        for (rank, _, text), leaves in groups.items()
    ]


def _settled(found: list[_Explained], wrong: list[int]) -> bool:
    """Whether plain mistakes of the leaves explain all of them, or one change does."""
    if any(e.leaves == set(wrong) and e.rank <= PLAIN + 1 for e in found):
        return True
    plain = [e for e in found if e.rank <= PLAIN]
    return len(wrong) <= 2 and set().union(*(e.leaves for e in plain)) == set(wrong)


def _better(found, best, left) -> bool:
    """Whether plainer explanations of the single leaves go before one of several."""
    if best.rank <= PLAIN + 1 or len(best.leaves) == 1:
        return False
    plain = [e for e in found if e.rank <= PLAIN and e.leaves <= left]
    return best.leaves <= set().union(*(e.leaves for e in plain), set())


def _changed(pairs, wrong, changes: Rewired, sizes, tolerance) -> list[_Explained]:
    """The changes of the derivation whose effect is the difference."""
    if not len(changes.effects):
        return []
    scales = [float(np.abs(b).max(initial=0)) or 1.0 for _, _, b in pairs]
    ends = np.cumsum([a.size for _, a, _ in pairs])
    parts = [slice(e - a.size, e) for e, (_, a, _) in zip(ends, pairs, strict=True)]
    gap = np.concatenate(
        [((a - b) / s).ravel() for (_, a, b), s in zip(pairs, scales, strict=True)]
    )
    effects = np.nan_to_num(changes.effects) / np.concatenate(
        [np.full(a.size, s) for (_, a, _), s in zip(pairs, scales, strict=True)]
    )
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
        limit = max(1e-6, 1e3 * tolerance * np.sqrt(len(d)) / size)
        allowed = np.array(
            [1e-3 if change.kind == "constant" else limit for change in changes.changes]
        )
        few = len(d) < 3  # a factor fits one number always
        for k in np.flatnonzero((rest <= allowed) & (square > 0)):
            mistake = _named(changes.changes[k], float(c[k]), float(rest[k]), sizes)
            rank = mistake.rank + extra + (3 if few and free[k] else 0)
            found.append(_Explained(rank, leaves, mistake, changes.changes[k].line))
    return found


def _looped(pairs, wrong, changes: Rewired, sizes, tolerance) -> list[_Explained]:
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
            found.append(_Explained(mistake.rank, same, mistake, changes.changes[k].line))
    return found


def _everywhere(pairs, wrong, changes: Rewired, sizes, tolerance) -> list[_Explained]:
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
            found.append(_Explained(4, same, mistake._replace(statement=text), line))
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
                i for i in wrong if not _is_wrong(pairs[i][1].ravel(), leaves[i], 1e2 * tolerance)
            )
        )
    return found


def _two_paths(pairs, wrong, changes: Rewired, tolerance) -> list[_Explained]:
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
            found.append(_Explained(4, same, mistake, line))
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
        for n, first in enumerate(own):
            for (a, b), _, _ in COUPLES:
                rest = gap - (a - 1) * first - (b - 1) * own[n + 1 :]
                same = np.flatnonzero((np.abs(rest) <= room).all(1))
                found |= {(paths[n], paths[n + 1 + m]) for m in same}
    return sorted(found)


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
        text = f"{term} is {factor_text(factor, sizes)} times too large"
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
        return Seen(4, "wrong function", f"{change.what} is {1 + c:.6g} times as large", None, rest)
    place = "output" in change.what or "for y" in change.what
    kind = "wrong place" if place else "wrong function"
    text = f"the derivative of a nonlinearity is {change.what}"
    return Seen(3, kind, text, None, rest)


def _finding(best: _Explained, pairs) -> Finding:
    leaves = tuple(pairs[i][0] for i in sorted(best.leaves))
    mistake = best.seen
    statement = f"{', '.join(leaves)}: {mistake.statement}"
    return Finding(
        mistake.kind,
        leaves,
        statement,
        MISTAKES[mistake.kind],
        mistake.factor,
        best.line,
        mistake.remaining,
    )
