"""What a comparison of gradients found, as values, as text, as plain numbers and as pictures."""

from __future__ import annotations

import math
import textwrap
from typing import Any, NamedTuple

import numpy as np

from .diagnosis.finding import Finding

WIDTH = 100
NAMING = ("structure", "dtype", "not finite", "not linear", "not deterministic")
RED, GREEN, BOLD, PLAIN = "\033[31m", "\033[32m", "\033[1m", "\033[0m"


class Difference(NamedTuple):
    """One leaf of two trees.  Norms are relative to the second tree's leaf.

    Attributes:
        path: where the leaf is, or "whole" for all leaves taken as one vector.
        shape, dtype: of the first tree's leaf.
        l2_eps, max_eps: ‖a - b‖₂/‖b‖₂ and max|a - b|/max|b| in units of the dtype's eps.
        cosine, angle: between a and b; the angle in degrees.
        norm_ratio: ‖a‖₂/‖b‖₂.
        worst_index: where |a - b| is largest.
        worst: the two values there.
        non_finite: how many values of a and of b are NaN or infinite.
        bound: the bound in eps that was applied, to ``l2_eps`` for "whole", else to ``max_eps``.
        ok: whether it holds.
        against: what the second tree is.
        pattern: where in the leaf the difference is, for one that fails.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    l2_eps: float
    max_eps: float
    cosine: float
    angle: float
    norm_ratio: float
    worst_index: tuple[int, ...]
    worst: tuple[float, float]
    non_finite: tuple[int, int]
    bound: float
    ok: bool
    against: str
    pattern: str = ""


class Report(NamedTuple):
    """What a comparison found; ``print`` it.

    Attributes:
        title: what was compared.
        names: what the two sides are called, the first one ours.
        leaves: a :class:`Difference` for each leaf, and for each oracle.
        wholes: a :class:`Difference` of all leaves as one vector, for each oracle.
        problems: what else is wrong, a sentence each.
        findings: the mistakes that explain what is wrong, the best explanation first.
        notes: what is worth knowing and is not wrong, as where both sides are far from the truth.
        parts: of a model the reports of its layers, the loss's last.
        pairs: (path, ours, theirs) of each leaf, the arrays themselves.
    """

    title: str
    names: tuple[str, str]
    leaves: tuple[Difference, ...]
    wholes: tuple[Difference, ...]
    problems: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    parts: tuple[Report, ...] = ()
    pairs: tuple[tuple[str, np.ndarray, np.ndarray], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every bound holds, in every part, and there is no problem."""
        rows = all(d.ok for d in (*self.leaves, *self.wholes))
        return not self.problems and rows and all(part.ok for part in self.parts)

    @property
    def wrong(self) -> tuple[str, ...]:
        """The leaves that fail, each once; of a model with its part in front."""
        found = [d.path for d in self.leaves if not d.ok]
        found += [path for f in self.findings if f.kind in NAMING for path in f.leaves]
        inside = [f"{part.title} {path}" for part in self.parts for path in part.wrong]
        return tuple(dict.fromkeys(inside or found))

    @property
    def worst_leaf(self) -> float:
        """The largest ``max_eps`` of a leaf against the second side, in eps."""
        return max((d.max_eps for d in self.leaves if d.against == self.names[1]), default=0.0)

    @property
    def worst_whole(self) -> float:
        """``l2_eps`` of the whole tree against the second side, in eps."""
        return max((d.l2_eps for d in self.wholes if d.against == self.names[1]), default=0.0)

    def __str__(self) -> str:
        return self.text()

    def text(self, colour: bool = False) -> str:
        """The report as a table of at most 100 columns.

        Args:
            colour: whether verdicts are coloured, for a terminal.
        """
        head = f"{self.title}: {self.names[0]} against {self.names[1]}: {_verdict(self.ok)}"
        lines = _wrapped("", head)
        for part in self.parts:
            lines += [f"  {line}" for line in _wrapped("", f"{part.title}: {_verdict(part.ok)}")]
        lines += self._table()
        for part in self.parts:
            if not part.ok:
                lines += ["", part.text()]
        said = {finding.statement for finding in self.findings}
        for problem in self.problems:
            if problem not in said:
                lines += _wrapped("problem: ", problem)
        inside = any(part.findings for part in self.parts)  # they are told there
        for finding in () if inside else self.findings:
            lines += _wrapped(f"{finding.kind}: ", finding.statement)
            if finding.line:
                lines += _wrapped("    forward pass: ", finding.line)
            lines += _wrapped("    advice: ", finding.advice)
        for note in self.notes:
            lines += _wrapped("note: ", note)
        text = "\n".join(lines)
        if colour:
            text = text.replace("FAILED", f"{RED}FAILED{PLAIN}")
            text = "\n".join(
                f"{line[:-2]}{GREEN}ok{PLAIN}" if line.endswith(" ok") else line
                for line in text.split("\n")
            )
        return text

    def _table(self) -> list[str]:
        rows = (*self.leaves, *self.wholes)
        if not rows:
            return []
        width = min(max(4, *(len(d.path) for d in rows)), 28)
        dtypes = ", ".join(sorted({d.dtype for d in rows}))
        lines = []
        for against in dict.fromkeys(d.against for d in rows):
            lines.append(f"against {against}, {dtypes}")
            lines.append(
                f"  {'leaf':<{width}}  {'shape':>11}  {'l2 eps':>8}  {'max eps':>8}  {'bound':>7}"
                f"  {'angle':>7}  {'ratio':>8}"
            )
            for d in rows:
                if d.against == against:
                    lines += self._row(d, width)
        return lines

    def _row(self, d: Difference, width: int) -> list[str]:
        shape = "x".join(map(str, d.shape)) or "scalar"
        path = d.path if len(d.path) <= width else f"…{d.path[1 - width :]}"
        lines = [
            f"  {path:<{width}}  {shape:>11}  {_short(d.l2_eps):>8}  {_short(d.max_eps):>8}  "
            f"{_short(d.bound):>7}  {_short(d.angle, 2):>7}  {d.norm_ratio:>8.6g}  {_verdict(d.ok)}"
        ]
        if not d.ok and d.path != "whole":
            index = ", ".join(map(str, d.worst_index))
            worst = (
                f"at [{index}] {self.names[0]} {d.worst[0]:.9g}, {d.against} {d.worst[1]:.9g}; "
                f"not finite: {d.non_finite[0]}, {d.non_finite[1]}"
            )
            lines += _wrapped("    worst ", worst)
            if d.pattern:
                lines += _wrapped("    where ", d.pattern)
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The report as plain lists, dicts, strings and numbers, for ``json.dump``."""
        return {
            "title": self.title,
            "names": list(self.names),
            "ok": self.ok,
            "leaves": [_plain(d) for d in self.leaves],
            "whole": [_plain(d) for d in self.wholes],
            "problems": list(self.problems),
            "findings": [_plain(f) for f in self.findings],
            "notes": list(self.notes),
            "parts": [part.to_dict() for part in self.parts],
        }

    def assert_ok(self) -> None:
        """Raises AssertionError with the report as its message unless ``ok``."""
        if not self.ok:
            raise AssertionError(str(self))

    def plot(self, axes: Any = None) -> Any:
        """Bars of each leaf's difference in eps beside its bound.

        Args:
            axes: matplotlib axes; by default those of a new figure.

        Returns:
            The axes.

        Raises:
            ModuleNotFoundError: without matplotlib, which the extra ``plot`` installs.
        """
        import matplotlib.pyplot as plt

        if axes is None:
            _, axes = plt.subplots(figsize=(7, 0.35 * len(self.leaves) + 1.2), layout="constrained")
        places = np.arange(len(self.leaves))
        sizes = [max(d.max_eps, 1e-3) if math.isfinite(d.max_eps) else 1e12 for d in self.leaves]
        colours = ["tab:blue" if d.ok else "tab:red" for d in self.leaves]
        axes.barh(places, sizes, color=colours)
        axes.plot([d.bound for d in self.leaves], places, "k|", markersize=10, label="bound")
        axes.set_yticks(places, [d.path for d in self.leaves])
        axes.set_xscale("log")
        axes.invert_yaxis()
        axes.set_xlabel(f"max |{self.names[0]} - {self.names[1]}| / max, in eps")
        axes.legend()
        return axes


def _verdict(ok: bool) -> str:
    return "ok" if ok else "FAILED"


def _short(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def _wrapped(head: str, text: str) -> list[str]:
    """Lines of at most 100 columns, those behind the first one indented."""
    return textwrap.wrap(
        head + text,
        WIDTH,
        subsequent_indent="      ",
        break_on_hyphens=False,
        replace_whitespace=True,
    )


def _plain(row: Difference | Finding) -> dict[str, Any]:
    return {
        k: list(map(_number, v)) if isinstance(v, tuple) else _number(v)
        for k, v in row._asdict().items()
    }


def _number(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
