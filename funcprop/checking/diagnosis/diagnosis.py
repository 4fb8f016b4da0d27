"""Which usual mistake explains a wrong gradient."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from .finding import MISTAKES, Finding, finding
from .mistakes import Seen, common, named_sizes, no_mistake, rounded, seen, turned
from .reference import others
from .searches import (
    Explained,
    adding_up,
    changed,
    changes_of,
    everywhere,
    is_wrong,
    looped,
    two_paths,
)

Tree = Any
Pair = tuple[str, np.ndarray, np.ndarray]
PLAIN = 2  # explanations of at most this rank need no other beside them


@np.errstate(all="ignore")
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
    narrow: tuple[str, ...] = (),
) -> tuple[Finding, ...]:
    """The mistakes that explain the difference of two gradients, the best explanation first.

    A leaf is laid beside what signs, factors, zeros, shifts and permutations would make of the
    right one.  Where that does not explain it, the derivation itself is changed in every place,
    see :mod:`funcprop.checking.diagnosis.rewiring`, and the change whose effect is the difference
    is named.

    Args:
        pairs: (path, ours, due) of each leaf, float64.
        sizes: named sizes that a factor may come from.
        value: the function whose gradient is due, of ``point``, whose leaves are those of pairs.
        point: where it was taken, float64.
        inputs: what the gradient is computed from, a tree of float64 arrays, and
        again: the due gradient of other inputs, a list as in pairs.
        reference: the function whose result is due, and its arguments.
        tolerance: the share of a leaf's largest value that counts as rounding.
        narrow: the names of narrower floats to which our side rounds on the way.

    Returns:
        Findings that together name every wrong leaf once; the last ones may be "unknown".
        A search that raises finds nothing.
    """
    pairs = [(path, np.asarray(a, np.float64), np.asarray(b, np.float64)) for path, a, b in pairs]
    wrong = [i for i, (_, a, b) in enumerate(pairs) if is_wrong(a, b, tolerance)]
    if not wrong:
        return ()
    found: list[Explained] = []
    for i in wrong:
        _, ours, due = pairs[i]
        found += [Explained(s.rank, frozenset([i]), s) for s in seen(ours, due, sizes, tolerance)]
    all_ours, all_due = [pairs[i][1] for i in wrong], [pairs[i][2] for i in wrong]
    everyone = common(all_ours, all_due, sizes, tolerance)
    found = [Explained(s.rank, frozenset(wrong), s) for s in everyone] + _joined(found)
    found += _swapped(pairs, wrong, tolerance)
    failed: list[str] = []
    if again is not None and not _settled(found, wrong):
        found += _tried(failed, _turned, pairs, wrong, inputs, again, tolerance)
    if reference is not None and not _settled(found, wrong):
        found += _tried(failed, _referred, pairs, wrong, reference, tolerance)
    finite = all(np.isfinite(a).all() for _, a, _ in pairs)
    for slopes in (False, True):
        if value is None or not finite or _settled(found, wrong):
            break
        changes = changes_of(value, point, slopes, pairs)
        if changes is None:
            break
        found += _tried(failed, changed, pairs, wrong, changes, sizes, tolerance)
        if not _settled(found, wrong):
            found += _tried(failed, looped, pairs, wrong, changes, sizes, tolerance)
        if not _settled(found, wrong):
            found += _tried(failed, everywhere, pairs, wrong, changes, sizes, tolerance)
        if not slopes and not _settled(found, wrong):
            found += _tried(failed, two_paths, pairs, wrong, changes, tolerance)
    findings = []
    left = set(wrong)
    for best in sorted(found, key=lambda e: (-len(e.leaves), e.rank)):
        if best.leaves <= left and not _better(found, best, left):
            findings.append(_finding(best, pairs))
            left -= best.leaves
    for i in sorted(left):
        _, ours, due = pairs[i]
        last = rounded(ours, due, narrow) or no_mistake(ours, due, tolerance)
        if failed and last.kind == "unknown":
            text = f"{last.statement}; a search for it failed: {failed[0]}"
            last = last._replace(statement=text)
        findings.append(_finding(Explained(last.rank, frozenset([i]), last), pairs))
    return tuple(findings)


def _tried(failed: list[str], search: Callable[..., list[Explained]], *args: Any) -> list:
    """What a search finds; where it meets what it cannot run the report stands without it."""
    try:
        return search(*args)
    except Exception as error:  # somebody's code is run in ways in which it never was
        failed.append(f"{type(error).__name__}: {' '.join(str(error).split())}"[:200])
        return []


def _swapped(pairs, wrong, tolerance) -> list[Explained]:
    """The right values of several leaves, in one another's places."""
    if len(wrong) < 2:
        return []
    ours, due = (np.sort(np.concatenate([pairs[i][k].ravel() for i in wrong])) for k in (1, 2))
    if is_wrong(ours, due, 10 * tolerance):
        return []
    mistake = Seen(3, "transpose", "they have the right values in one another's places")
    return [Explained(3, frozenset(wrong), mistake)]


def _turned(pairs, wrong, inputs, again, tolerance) -> list[Explained]:
    """The gradient that is due where one of its inputs is moved or turned."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(inputs)

    def same_as(due, kind, text):
        same = frozenset(
            i for i in wrong if not is_wrong(pairs[i][1], np.asarray(due[i]), 1e2 * tolerance)
        )
        return [Explained(3, same, Seen(3, kind, text))] if same else []

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


def _referred(pairs, wrong, reference, tolerance) -> list[Explained]:
    """What the function that is due would give, were one of its operations another one, or two."""
    changes, results = others(*reference)
    found = []

    def add(leaves, rank, kind, text, line):
        if sum(pairs[i][1].size for i in leaves) > 1:  # one number is hit by chance
            mistake = Seen(rank, kind, f"in what is due {text}")
            found.append(Explained(rank, frozenset(leaves), mistake, line))

    for n, change in enumerate(changes):
        same = [i for i in wrong if not is_wrong(pairs[i][1], results[i][n], tolerance)]
        add(same, change.rank, change.kind, change.what, change.line)
    missing = [n for n, change in enumerate(changes) if change.kind == "missing term"]
    for i in wrong:
        _, ours, due = pairs[i]
        effects = (results[i][missing] - due).reshape(len(missing), -1)
        gap, room = (ours - due).ravel(), tolerance * np.abs(due).max(initial=0)
        for a, b in adding_up(gap, effects, effects, room):
            one, two = changes[missing[a]], changes[missing[b]]
            text = f"{one.what} and {two.what}"
            add([i], 4, "missing term", text, f"{one.line}; {two.line}")
    return found


def _joined(found: list[Explained]) -> list[Explained]:
    """Leaves that show the same mistake are explained by one."""
    groups: dict[tuple, set] = {}
    for e in found:
        groups.setdefault((e.rank, e.seen.kind, e.seen.statement), set()).update(e.leaves)
    return [
        Explained(rank, frozenset(leaves), next(e.seen for e in found if e.seen.statement == text))
        for (rank, _, text), leaves in groups.items()
    ]


def _settled(found: list[Explained], wrong: list[int]) -> bool:
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


def _finding(best: Explained, pairs) -> Finding:
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


def with_findings(
    report: Any, compared: Sequence[Pair], trees: dict[str, Tree], **evidence: Any
) -> Any:
    """A report that fails, with the mistakes that explain it.

    Args:
        report: the report so far.
        compared: (path, ours, due) of each leaf in float64, due from the best oracle.
        trees: arrays with names, whose sizes a factor may come from.
        **evidence: as of :func:`diagnose`.
    """
    if report.ok:
        return report
    shapes = {
        f"{name}{jax.tree_util.keystr(path)}": np.shape(leaf)
        for name, tree in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    found = diagnose(compared, named_sizes(shapes), **evidence)
    wrong = report.wrong
    if not found and wrong:
        dtype, narrow = report.leaves[0].dtype, evidence.get("narrow", ())
        statement = f"{', '.join(wrong)}: right in float64, off in {dtype}"
        if narrow:
            statement += f", and rounded to {' and '.join(narrow)} on the way"
            found = (finding("low precision", statement, wrong),)
        else:
            advice = f"look for a difference of large numbers, or what {dtype} does not hold."
            found = (Finding("unknown", wrong, statement, advice),)
    return report._replace(findings=found)
