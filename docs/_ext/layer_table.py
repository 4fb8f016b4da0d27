"""Writes `_generated/layer_table.md` out of what `funcprop check --json` finds.

The check takes some minutes and is made anew when a source file of the library is newer than
the table.  A layer that fails it fails the build.
"""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jax
from sphinx.errors import ExtensionError
from sphinx.util import logging

import funcprop
from funcprop.checking import CASES

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parents[1] / "_generated"
TARGET = FOLDER / "layer_table.md"
TITLES = {"layer": "Layers", "activation": "Activations", "loss": "Losses"}
DTYPES = ("float64", "float32", "bfloat16")
ORACLES = ("complex step", "central differences")
HEAD = """\
| case | f64 whole | f64 leaf | f32 whole | f32 leaf | bf16 whole | bf16 leaf | complex step \
| differences |
|:--|--:|--:|--:|--:|--:|--:|--:|--:|"""


def checked():
    """The results of `funcprop check`, a dict for each case and dtype.

    Two processes share the cases: most of the time goes into tracing, which one core does.
    """
    FOLDER.mkdir(exist_ok=True)
    logger.info("funcprop check, for the table of layers ...")
    running = []
    for half in range(2):
        found = FOLDER / f"check_{half}.json"
        names = [case.name for case in CASES[half::2]]
        command = [
            sys.executable,
            "-m",
            "funcprop",
            "check",
            "--json",
            str(found),
            "--only",
            *names,
        ]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen([*command, "--only", *names], text=True, **pipes)
        running.append((found, process))
    results = []
    for found, process in running:
        said, _ = process.communicate()
        if process.returncode:
            raise ExtensionError(f"funcprop check failed:\n{said}")
        results += json.loads(found.read_text(encoding="utf-8"))
    order = {case.name: number for number, case in enumerate(CASES)}
    return sorted(results, key=lambda result: order[result["name"]])


def line(name, results):
    """A line of the table, Markdown; ``results`` maps a dtype to its result."""
    cells = [f"`{name}`"]
    for dtype in DTYPES:
        cells += [f"{results[dtype][size]:.2g}" for size in ("whole_eps", "leaf_eps")]
    exact = results["float64"]
    for oracle in ORACLES:
        cells.append(f"{exact['oracle_difference']:.0e}" if exact["oracle"] == oracle else "")
    return "| " + " | ".join(cells) + " |"


def tables(results):
    """The tables of layers, activations and losses, Markdown."""
    text = []
    for kind, title in TITLES.items():
        cases = {}
        for result in results:
            if result["kind"] == kind:
                cases.setdefault(result["name"], {})[result["dtype"]] = result
        text += [f"## {title}", "", ":::{container} layer-table", HEAD]
        text += [line(name, found) for name, found in cases.items()]
        text += [":::", ""]
    with_what = f"funcprop {funcprop.__version__}, jax {version('jax')}, {jax.default_backend()}"
    return "\n".join([*text, f"Measured with {with_what}.", ""])


def up_to_date():
    """Whether the table is newer than every source file."""
    sources = [*Path(funcprop.__file__).parent.rglob("*.py"), Path(__file__)]
    newest = max(path.stat().st_mtime for path in sources)
    return TARGET.exists() and TARGET.stat().st_mtime > newest


def _write(app):
    if app.builder.format == "html" and not up_to_date():
        TARGET.write_text(tables(checked()), encoding="utf-8")


def setup(app):
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
