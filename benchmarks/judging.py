"""The judging set: faults in the code of others, each with its key, and the program that judges.

    python -m benchmarks.judging count                  what the set holds
    python -m benchmarks.judging prove [PATTERN ...]    that every fault is one, and nothing else
    python -m benchmarks.judging judge [PATTERN ...]    what the checker says of the open half

A file of the set is the code of somebody who never saw this library: a function ``f`` of arrays to
a number and a gradient ``g`` written by hand, in whatever style.  Below the line that reads
``# ---- keys`` stand the facts about it:

    STYLE     "numpy", "custom_vjp", "einsum", "loop", "scan", "pallas", "equinox" or "flax"
    ARGNUMS   by which arguments g differentiates, a tuple; g returns what jax.grad(f, ARGNUMS) does
    draw      draw(rng) -> the arguments, NumPy arrays, floats in float64
    FAULTS    a tuple of :class:`Fault`
    HARD      a tuple of :class:`Hard`: arguments at which the right gradient is hard to judge

The two halves of the set are two folders.  ``benchmarks/foreign/aside`` is read by ``count`` and
``prove`` alone, so that nothing can be fitted to it.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import importlib.util
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import table

Tree = Any
HERE = Path(__file__).parent / "foreign"
MARK = "# ---- keys"
VERDICTS = ("named", "kind alone", "kind, another line", "wrong cause", "unknown")


class Fault(NamedTuple):
    """A change to the gradient of one file, and its key.

    Attributes:
        name: unique in its file.
        old: a fragment of the gradient's source, which stands once in the file's code, and
        new: what stands there instead.  Both have the same number of lines.
        kind: what it is, a key of :data:`funcprop.checking.MISTAKES`; several words that are the
            same thing to a reader are joined by "|", the best first.
        leaves: the leaves of the gradient that it hits, blanks between them: "0 2.w".
        forward: a fragment that stands in the one line of the forward pass whose derivative is
            wrong, or "" where there is none.
        source: where the mistake was made in earnest: "owner/repository#number", or a change log
            with its version; "" for an invented one.
        dtype: in which it shows.
    """

    name: str
    old: str
    new: str
    kind: str
    leaves: str
    forward: str = ""
    source: str = ""
    dtype: str = "float32"


class Hard(NamedTuple):
    """Arguments at which a right gradient is hard to judge.

    Attributes:
        name: unique in its file.
        why: "cancellation", "ill-conditioned", "saturation", "ties", "random", "large", "16 bits",
            "tiny", "extreme" or "sizes".
        draw: as the file's own.
        dtype: "float64", "float32", "bfloat16" or "float16".
    """

    name: str
    why: str
    draw: Callable[[np.random.Generator], tuple]
    dtype: str = "float32"


class Subject(NamedTuple):
    """A file of the set: its name, its code, its keys."""

    name: str
    code: str
    keys: ModuleType

    def function(self, fault: Fault | None = None) -> tuple[Callable, Callable]:
        """(f, g), with the fault in it."""
        return _executed(self.name, self.code if fault is None else planted(self.code, fault))

    def line(self, fault: Fault) -> int:
        """The number of the line in which the fault is."""
        pairs = zip(fault.old.split("\n"), fault.new.split("\n"), strict=True)
        first = next(n for n, (old, new) in enumerate(pairs) if old != new)
        return self.code[: self.code.index(fault.old)].count("\n") + 1 + first

    def forward_line(self, fault: Fault) -> int | None:
        """The number of the line whose derivative is wrong."""
        if not fault.forward:
            return None
        return self.code[: self.code.index(fault.forward)].count("\n") + 1


def planted(code: str, fault: Fault) -> str:
    """The code with the fault in it."""
    assert code.count(fault.old) == 1, f"{fault.old!r} stands {code.count(fault.old)} times"
    assert fault.old.count("\n") == fault.new.count("\n"), "a fault leaves the lines where they are"
    return code.replace(fault.old, fault.new)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="foreign-")


@functools.lru_cache(maxsize=1000)
def _executed(name: str, code: str) -> tuple[Callable, Callable]:
    """f and g of the code, out of a file of its own, so that its lines can be quoted."""
    folder = Path(tempfile.mkdtemp(dir=_folder().name))
    path = folder / f"{name}.py"
    path.write_text(code, encoding="utf-8")
    module = _module(f"{name}_{folder.name}", path)
    return module.f, module.g


def _module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def subjects(half: str, patterns: Sequence[str] = ()) -> list[Subject]:
    """The files of "open" or "aside" whose name fits one of the patterns."""
    found = []
    for path in sorted((HERE / half).glob("*.py")):
        if not patterns or any(fnmatch.fnmatchcase(path.stem, p) for p in patterns):
            code, mark, _ = path.read_text(encoding="utf-8").partition(MARK)
            assert mark, f"{path.name} has no line {MARK!r}"
            found.append(Subject(path.stem, code, _module(f"foreign_{half}_{path.stem}", path)))
    return found


def cast(args: tuple, dtype: str) -> tuple:
    """The floats in ``dtype``, the rest as it is."""

    def one(a):
        a = jnp.asarray(a)
        return a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a

    return jax.tree.map(one, args)


# ------------------------------------------------------------------------------- the proof


def leaves_of(tree: Tree, numbers: Sequence[int]) -> dict[str, np.ndarray]:
    """The leaves of a gradient by the names that keys have: "0", "2.w"."""
    named = {}
    for number, part in zip(numbers, tree, strict=True):
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            keys = (str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
            named[".".join([str(number), *keys])] = np.asarray(leaf, np.float64)
    return named


def differing(ours: Tree, theirs: Tree, numbers: Sequence[int], room: float) -> set[str]:
    """The leaves in which two gradients differ by more than ``room`` of the largest value."""
    one, two = leaves_of(ours, numbers), leaves_of(theirs, numbers)
    if one.keys() != two.keys():
        return set(one) ^ set(two)
    largest = max((np.abs(b).max(initial=0) for b in two.values()), default=1.0)

    def off(a, b):
        if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
            return True
        scale = max(np.abs(b).max(initial=0), 1e-3 * largest)
        return bool(np.nanmax(np.abs(a - b), initial=0) > room * scale)

    return {name for name in one if off(one[name], two[name])}


def other_dtypes(found: Tree, args: tuple, numbers: Sequence[int]) -> set[str]:
    """The leaves of a gradient that have not the dtype of what they are the gradient of."""
    leaves, _ = jax.tree.flatten(tuple(args[number] for number in numbers))
    names = leaves_of(found, numbers)
    pairs = zip(names, jax.tree.leaves(found), leaves, strict=True)
    return {name for name, leaf, due in pairs if leaf.dtype != due.dtype}


def prove(subject: Subject) -> list[str]:
    """What is not as the keys say, a sentence each."""
    keys, said = subject.keys, []
    numbers = keys.ARGNUMS
    f, g = subject.function()

    def gradients(gradient, args):
        return gradient(*args)

    with jax.enable_x64(True):
        args = cast(keys.draw(np.random.default_rng(0)), "float64")
        if jnp.shape(f(*args)) != ():
            return [f"{subject.name}: f is no number"]
        theirs = jax.jit(jax.grad(f, numbers))(*args)
        own = jax.jit(g)(*args)
        if jax.tree.structure(own) != jax.tree.structure(theirs):
            return [f"{subject.name}: g does not have the structure of jax.grad(f, ARGNUMS)"]
        off = differing(own, theirs, numbers, 1e-9) or differing(
            own, _differences(f, args, numbers), numbers, 1e-4
        )
        if off:
            return [f"{subject.name}: the right gradient is wrong in {sorted(off)}"]
        value = np.asarray(f(*args))
    for fault in keys.FAULTS:
        name = f"{subject.name}: {fault.name}"
        try:
            subject.line(fault)
            if fault.forward and subject.code.count(fault.forward) != 1:
                said.append(f"{name}: {fault.forward!r} does not stand once in the code")
            f_wrong, wrong = subject.function(fault)
            room = 3e-4
            with jax.enable_x64(fault.dtype == "float64"):
                args = cast(keys.draw(np.random.default_rng(0)), fault.dtype)
                found = jax.jit(wrong)(*args)
                due = jax.jit(g)(*args)
                if fault.kind == "dtype":
                    off = other_dtypes(found, args, numbers)
                else:
                    off = differing(found, due, numbers, room)
                if off != set(fault.leaves.split()):
                    said.append(f"{name}: it hits {sorted(off)}, the key says {fault.leaves}")
            with jax.enable_x64(True):
                args = cast(keys.draw(np.random.default_rng(0)), "float64")
                if not np.allclose(f_wrong(*args), value, 1e-12, 1e-12):
                    said.append(f"{name}: it changes the forward pass")
        except Exception as error:
            said.append(f"{name}: {_sentence(error)}")
    for hard in keys.HARD:
        name = f"{subject.name}: {hard.name}"
        try:
            with jax.enable_x64(True):
                args = cast(hard.draw(np.random.default_rng(0)), hard.dtype)
                args = cast(args, "float64")
                own, theirs = jax.jit(g)(*args), jax.jit(jax.grad(f, numbers))(*args)
                off = differing(own, theirs, numbers, 1e-5)
                if off:
                    said.append(f"{name}: in float64 it differs from jax.grad's in {sorted(off)}")
            with jax.enable_x64(hard.dtype == "float64"):
                args = cast(hard.draw(np.random.default_rng(0)), hard.dtype)
                leaves = jax.tree.leaves(jax.jit(g)(*args))
                if not all(np.isfinite(np.asarray(a, np.float64)).all() for a in leaves):
                    said.append(f"{name}: the gradient is not finite in {hard.dtype}")
        except Exception as error:
            said.append(f"{name}: {_sentence(error)}")
    return said


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _differences(f: Callable, args: tuple, numbers: Sequence[int]) -> tuple:
    """Central differences, so that a rule of f's own cannot vouch for itself."""
    value, found = jax.jit(f), []
    for number in numbers:
        leaves, structure = jax.tree.flatten(args[number])
        slopes = []
        for k, leaf in enumerate(leaves):
            leaf = np.array(leaf)
            slope = np.zeros(leaf.shape)
            for index in np.ndindex(leaf.shape):
                h = 1e-6 * max(1.0, abs(leaf[index]))
                two = []
                for sign in (1, -1):
                    moved = leaf.copy()
                    moved[index] += sign * h
                    tree = jax.tree.unflatten(structure, [*leaves[:k], moved, *leaves[k + 1 :]])
                    two.append(float(value(*args[:number], tree, *args[number + 1 :])))
                slope[index] = (two[0] - two[1]) / (2 * h)
            slopes.append(slope)
        found.append(jax.tree.unflatten(structure, slopes))
    return tuple(found)


# -------------------------------------------------------------------------------- the judge


class Judged(NamedTuple):
    """What the checker said of one fault.

    Attributes:
        name: of the file and the fault.
        found: whether the report fails; ``None`` if the checker raised.
        placed: whether exactly the leaves of the key are reported.
        verdict: one of :data:`VERDICTS`; "" where it is not found.
        said: its first sentence.
    """

    name: str
    found: bool | None
    placed: bool
    verdict: str
    said: str


def check(pair: tuple[Callable, Callable], args: tuple, numbers: tuple[int, ...]) -> Any:
    """The report of the checker on (f, g)."""
    from funcprop import check_gradient

    return check_gradient(*pair, *args, argnums=numbers)


def judge(subject: Subject, fault: Fault, seed: int = 0) -> Judged:
    """The checker's report on a fault, held against its key."""
    name = f"{subject.name}: {fault.name}"
    numbers = subject.keys.ARGNUMS
    with jax.enable_x64(fault.dtype == "float64"):
        args = cast(subject.keys.draw(np.random.default_rng(seed)), fault.dtype)
        try:
            report = check(subject.function(fault), args, numbers)
        except Exception as error:
            return Judged(name, None, False, "", _sentence(error))
    if report.ok:
        return Judged(name, False, False, "", "")
    reported = {_key(path, numbers) for path in report.wrong}
    placed = reported == set(fault.leaves.split())
    said = report.findings[0].statement if report.findings else "; ".join(report.problems)
    return Judged(name, True, placed, verdict(subject, fault, report), said)


def _key(path: str, numbers: Sequence[int]) -> str:
    """A path of the report, "[1]['w']", as keys have it, "2.w"."""
    words = [word.strip("'\"") for word in path.strip(".[]").replace("][", "].[").split("].[")]
    words = [w.strip("'\"") for word in words for w in word.replace("].", ".").split(".")]
    if words[0].isdecimal():
        words[0] = str(numbers[int(words[0])])
    return ".".join(words)


def verdict(subject: Subject, fault: Fault, report: Any) -> str:
    """One of :data:`VERDICTS`: how the first finding stands to the key."""
    if not report.findings:
        return "unknown"
    first = report.findings[0]
    if first.kind == "unknown":
        return "unknown"
    for line, expression in getattr(first, "corrected", ()):
        if mends(subject, fault, line, expression):
            return "named"
    if first.kind not in fault.kind.split("|"):
        return "wrong cause"
    if not first.line:
        return "kind alone"
    lines = {subject.line(fault), subject.forward_line(fault)}
    quoted = {int(n) for n in _quoted(first.line, f"{subject.name}.py:")}
    return "named" if quoted & lines else "kind, another line"


def _quoted(text: str, before: str) -> Iterator[str]:
    """The numbers that follow ``before`` in a text."""
    for rest in text.split(before)[1:]:
        number = rest.split(":", 1)[0]
        if number.isdecimal():
            yield number


def mends(subject: Subject, fault: Fault, line: int, expression: str) -> bool:
    """Whether the faulty code with ``expression`` as its line number ``line`` is right again.

    To rounding in float64, at arguments that the checker has not seen.
    """
    lines = planted(subject.code, fault).split("\n")
    indent = lines[line - 1][: len(lines[line - 1]) - len(lines[line - 1].lstrip())]
    lines[line - 1] = indent + expression.strip()
    numbers = subject.keys.ARGNUMS
    with jax.enable_x64(True):
        args = cast(subject.keys.draw(np.random.default_rng(1)), "float64")
        try:
            found = jax.jit(_executed(subject.name, "\n".join(lines))[1])(*args)
        except Exception:  # it is no code, or none that runs
            return False
        due = jax.jit(subject.function()[1])(*args)
        same = jax.tree.structure(found) == jax.tree.structure(due)
        return same and not differing(found, due, numbers, 1e-10)


def alarm(subject: Subject, hard: Hard, seed: int = 0) -> Judged:
    """The checker's report on a right gradient: ``found`` is a false alarm."""
    name = f"{subject.name}: {hard.name}, {hard.why}, {hard.dtype}"
    with jax.enable_x64(hard.dtype == "float64"):
        args = cast(hard.draw(np.random.default_rng(seed)), hard.dtype)
        try:
            report = check(subject.function(), args, subject.keys.ARGNUMS)
        except Exception as error:
            return Judged(name, None, False, "", _sentence(error))
    said = [f.statement for f in report.findings] + list(report.problems)
    return Judged(name, not report.ok, False, "", "; ".join(said)[:300])


Rows = list[Judged]
HEADER = (
    "faults", "found", "placed", *VERDICTS, "raised", "false alarms", "raised",
)  # fmt: skip


def of_open_half(patterns: Sequence[str] = ()) -> tuple[Rows, Rows]:
    """Verdicts on the faults of the open half, and on its right gradients that are hard."""

    def of(subject: Subject) -> tuple[Rows, Rows]:
        seen = [judge(subject, fault) for fault in subject.keys.FAULTS]
        return seen, [alarm(subject, hard) for hard in subject.keys.HARD]

    seen: Rows = []
    alarms: Rows = []
    files = subjects("open", patterns)
    with warnings.catch_warnings(), ThreadPoolExecutor(2) as threads:
        warnings.filterwarnings("ignore", message=".*(overflow|invalid value).*")
        for first in range(0, len(files), 8):
            some = files[first : first + 8]
            for subject, (rows, more) in zip(some, threads.map(of, some), strict=True):
                print(f"{subject.name} is judged", file=sys.stderr, flush=True)
                seen += rows
                alarms += more
            jax.clear_caches()
    return seen, alarms


def summary(seen: Rows, alarms: Rows) -> str:
    """The table: counts, and of the faults that are found the share of each verdict."""
    found = [row for row in seen if row.found]
    verdicts = Counter(row.verdict for row in found)

    def share(count: int) -> str:
        return f"{count} ({count / max(len(seen), 1):.0%})"

    cells = (
        str(len(seen)),
        share(len(found)),
        share(sum(row.placed for row in found)),
        *(share(verdicts[name]) for name in VERDICTS),
        str(sum(row.found is None for row in seen)),
        f"{sum(row.found is True for row in alarms)} of {len(alarms)}",
        str(sum(row.found is None for row in alarms)),
    )
    return table(HEADER, [cells])


def told(seen: Rows, alarms: Rows) -> list[str]:
    """A line for every fault that is not named, and for every false alarm."""
    lines = []
    for row in seen:
        if row.verdict != "named" or not row.placed:
            how = "raised" if row.found is None else row.verdict if row.found else "missed"
            lines.append(f"{how}{'' if row.placed else ', not placed'}: {row.name}: {row.said}")
    for row in alarms:
        if row.found is not False:
            how = "raised" if row.found is None else "false alarm"
            lines.append(f"{how}: {row.name}: {row.said}")
    return [line if len(line) <= 300 else f"{line[:297]}..." for line in lines]


# -------------------------------------------------------------------------------- the command


def count() -> str:
    """What the two halves hold."""
    lines = []
    for half in ("open", "aside"):
        files = subjects(half)
        faults = [fault for s in files for fault in s.keys.FAULTS]
        hard = [h for s in files for h in s.keys.HARD]
        real = sum(bool(fault.source) for fault in faults)
        lines.append(
            f"{half}: {len(files)} functions, {len(faults)} faults, {real} of them made in earnest,"
            f" {len(hard)} right gradients that are hard"
        )
        styles = Counter(s.keys.STYLE for s in files for _ in s.keys.FAULTS)
        kinds = Counter(fault.kind.split("|")[0] for fault in faults)
        whys = Counter(h.why for h in hard)
        for word, counts in (("faults by style", styles), ("by kind", kinds), ("hard", whys)):
            told = ", ".join(f"{name} {n}" for name, n in counts.most_common())
            lines.append(f"  {word}: {told}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judging", description=__doc__)
    parser.add_argument("what", choices=("count", "prove", "judge"))
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="names of files, with *")
    options = parser.parse_args(arguments)
    if options.what == "count":
        print(count())
        return 0
    if options.what == "prove":
        said = []
        for half in ("open", "aside"):
            for subject in subjects(half, options.patterns):
                said += prove(subject)
                jax.clear_caches()
        print("\n".join(said) or "all is as the keys say")
        return bool(said)
    seen, alarms = of_open_half(options.patterns)
    print("\n".join([summary(seen, alarms), "", *told(seen, alarms)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
