"""A report as one HTML file that needs nothing else: tables, findings and pictures."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

import numpy as np

from .diagnosis.finding import Finding
from .report import Difference, Report

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; }
h1, h2 { line-height: 1.2; } code, td, th { font: 14px/1.4 ui-monospace, monospace; }
table { border-collapse: collapse; } td, th { padding: .2em .7em; text-align: right; }
td:first-child, th:first-child { text-align: left; } tr:nth-child(even) { background: #f4f4f4; }
.ok { color: #17692c; } .failed { color: #b3141f; font-weight: bold; }
.finding { border-left: .3em solid #b3141f; padding: .1em 1em; margin: 1em 0; }
img { max-width: 100%; } summary { cursor: pointer; }
"""
MOST_POINTS = 20_000
MOST_CELLS = 256


def write_html(report: Report, path: Any) -> Path:
    """Writes a report as a self-contained HTML file.

    It has the findings, the parts of a model with the difference of each in eps, a scatter of the
    two gradients, and a heat map of the difference in the worst leaf.

    Args:
        report: a :class:`~funcprop.Report`.
        path: the file to write.

    Returns:
        The path.

    Raises:
        ModuleNotFoundError: without matplotlib, which the extra ``plot`` installs.

    >>> import tempfile, pathlib, numpy as np
    >>> from funcprop import compare
    >>> from funcprop.checking import write_html
    >>> report = compare({"w": np.ones((2, 2))}, {"w": np.eye(2)})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     "FAILED" in write_html(report, pathlib.Path(folder, "report.html")).read_text()
    True
    """
    path = Path(path)
    path.write_text(page(report), encoding="utf-8")
    return path


def page(report: Report) -> str:
    """What :func:`write_html` writes.

    Args:
        report: a :class:`~funcprop.Report`.

    Raises:
        ModuleNotFoundError: without matplotlib, which the extra ``plot`` installs.

    >>> import numpy as np
    >>> from funcprop import compare
    >>> from funcprop.checking.page import page
    >>> "FAILED" in page(compare({"w": np.ones((2, 2))}, {"w": np.eye(2)}))
    True
    """
    body = "\n".join(_section(report, 1))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(report.title)}</title><style>{STYLE}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def _section(report: Report, level: int) -> list[str]:
    ours, theirs = map(html.escape, report.names)
    lines = [
        f"<h{level}>{html.escape(report.title)}: {_verdict(report.ok)}</h{level}>",
        f"<p>{ours} against {theirs}</p>",
    ]
    if report.parts:
        lines += ["<h2>Parts</h2>", _picture(_parts, report), _parts_table(report)]
    if not any(part.findings for part in report.parts):
        lines += map(_finding, report.findings)
    lines += [f"<p>{html.escape(text)}</p>" for text in (*report.problems, *report.notes)]
    lines.append(_table(report))
    if report.pairs and not (report.ok and level > 1):
        lines.append(_picture(_differences, report))
        lines.append(_picture(_scatter, report))
        if any(np.ndim(a) for _, a, _ in report.pairs):
            lines.append(_picture(_heat_map, report))
    for part in report.parts:
        inner = "\n".join(_section(part, 2))
        title = f"{html.escape(part.title)}: {_verdict(part.ok)}"
        opened = "" if part.ok else " open"
        lines.append(f"<details{opened}><summary>{title}</summary>{inner}</details>")
    return lines


def _verdict(ok: bool) -> str:
    return '<span class="ok">ok</span>' if ok else '<span class="failed">FAILED</span>'


def _finding(finding: Finding) -> str:
    line = f"<p>forward pass: <code>{html.escape(finding.line)}</code></p>" if finding.line else ""
    return (
        f'<div class="finding"><p><b>{html.escape(finding.kind)}</b>: '
        f"{html.escape(finding.statement)}</p>{line}<p>{html.escape(finding.advice)}</p></div>"
    )


def _table(report: Report) -> str:
    heads = ("leaf", "against", "shape", "dtype", "l2 eps", "max eps", "bound", "angle", "ratio")
    rows = [_row(d) for d in (*report.leaves, *report.wholes)]
    head = "".join(f"<th>{name}</th>" for name in (*heads, "where", ""))
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>" if rows else ""


def _row(d: Difference) -> str:
    cells = (
        d.path, d.against, "x".join(map(str, d.shape)) or "scalar", d.dtype, f"{d.l2_eps:.3g}",
        f"{d.max_eps:.3g}", f"{d.bound:.3g}", f"{d.angle:.2g}", f"{d.norm_ratio:.6g}", d.pattern,
    )  # fmt: skip
    inner = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells)
    return f"<tr>{inner}<td>{_verdict(d.ok)}</td></tr>"


def _parts_table(report: Report) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(part.title)}</td><td>{part.worst_leaf:.3g}</td>"
        f"<td>{_verdict(part.ok)}</td></tr>"
        for part in report.parts
    )
    return f"<table><tr><th>part</th><th>max eps</th><th></th></tr>{rows}</table>"


# -------------------------------------------------------------------------------- pictures


def _picture(draw: Any, report: Report) -> str:
    """What ``draw(axes, report)`` draws, as an image inside the page."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    words = draw(axes, report)
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=110)
    data = base64.b64encode(held.getvalue()).decode()
    return f'<p><img alt="{html.escape(words)}" src="data:image/png;base64,{data}"></p>'


def _parts(axes: Any, report: Report) -> str:
    places = np.arange(len(report.parts))
    sizes = [max(min(part.worst_leaf, 1e18), 1e-2) for part in report.parts]
    axes.figure.set_size_inches(7, 0.28 * len(places) + 1.2)
    axes.barh(places, sizes, color=["tab:blue" if p.ok else "tab:red" for p in report.parts])
    axes.set_yticks(places, [part.title for part in report.parts], fontsize=8)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("largest difference of a leaf, in eps")
    return "the largest difference in each part"


def _differences(axes: Any, report: Report) -> str:
    axes.figure.set_size_inches(7, 0.35 * len(report.leaves) + 1.2)
    report.plot(axes)
    return "the largest difference in each leaf"


def _scatter(axes: Any, report: Report) -> str:
    draw = np.random.default_rng(0)
    for path, ours, theirs in report.pairs:
        a, b = np.ravel(ours), np.ravel(theirs)
        if a.size > MOST_POINTS:
            chosen = draw.choice(a.size, MOST_POINTS, replace=False)
            a, b = a[chosen], b[chosen]
        axes.plot(b, a, ".", markersize=4, alpha=0.6, label=path)
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], color="0.6", linewidth=1, zorder=0)
    axes.set_xlabel(report.names[1])
    axes.set_ylabel(report.names[0])
    if len(report.pairs) <= 12:
        axes.legend(fontsize=8)
    return "each entry of the two gradients; on the line they are equal"


def _heat_map(axes: Any, report: Report) -> str:
    rows = {d.path: d.max_eps for d in report.leaves if d.against == report.names[1]}
    path, ours, theirs = max(
        (pair for pair in report.pairs if np.ndim(pair[1])), key=lambda p: rows.get(p[0], 0.0)
    )
    gap = ours - theirs
    gap = gap.reshape(-1, gap.shape[-1]) if gap.ndim > 1 else gap[None]
    gap = gap[:MOST_CELLS, :MOST_CELLS]
    most = float(np.nanmax(np.abs(gap), initial=0)) or 1.0
    image = axes.imshow(gap, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    axes.figure.colorbar(image, ax=axes)
    axes.set_title(f"{report.names[0]} - {report.names[1]} in {path}", fontsize=10)
    axes.set_xlabel("last axis")
    axes.set_ylabel("all other axes")
    return f"the difference in {path}"
