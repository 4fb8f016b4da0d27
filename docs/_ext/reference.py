"""The API reference: equations in docstrings kept as they are, and no public name left out."""

import inspect
import re

from sphinx import addnodes
from sphinx.util import logging

import funcprop
import funcprop.checking
from funcprop import datasets

logger = logging.getLogger(__name__)


def public_names():
    """Every public name, as {"funcprop.dense": object, ...}.

    What ``funcprop.checking`` shares with ``funcprop`` is there under one name, funcprop's.
    """
    found = {}
    for module in (funcprop, funcprop.checking):
        for name, value in vars(module).items():
            known = any(value is other for other in found.values())
            if not name.startswith("_") and not inspect.ismodule(value) and not known:
                found[f"{module.__name__}.{name}"] = value
    for name, value in vars(datasets).items():
        if not name.startswith("_") and getattr(value, "__module__", "") == datasets.__name__:
            found[f"funcprop.datasets.{name}"] = value
    return found


def documented(doctree):
    """The names that a page describes with at least one word."""
    return {
        name
        for entry in doctree.findall(addnodes.desc)
        for signature in entry.findall(addnodes.desc_signature)
        for name in signature["ids"]
        if entry[-1].astext().strip()
    }


def as_restructured(lines):
    """A docstring's lines with equations as literal blocks; |z| no substitution, (*n) no emphasis.

    Equations are indented blocks that follow an empty line and a line at the margin; napoleon
    sees to the sections, whose lines follow their title at once.
    """
    marked, last, literal = [], "", False
    for i, line in enumerate(lines):
        indented = line.startswith("    ")
        after_gap = i > 0 and not lines[i - 1].strip()
        if indented and after_gap and last and not last.startswith(" ") and not literal:
            if not last.endswith("::"):
                marked += ["::", ""]
            literal = True
        if line.strip():
            literal = literal and indented
            last = line
        marked.append(
            line if literal or line.lstrip().startswith((">>>", "...")) else _escaped(line)
        )
    return marked


def _escaped(line):
    """The line with every | and every * of a shape (B, *sizes) escaped, but between ``...``."""
    return "``".join(
        re.sub(r"\||(?<=\()\*(?=\w)|(?<=, )\*(?=\w)", r"\\\g<0>", part) if i % 2 == 0 else part
        for i, part in enumerate(re.split("``", line))
    )


def _mark(app, what, name, obj, options, lines):
    lines[:] = as_restructured(lines)


def _skip_fields(app, what, name, obj, skip, options):
    # The fields of a NamedTuple are described by the class under Attributes.
    return True if type(obj).__name__ == "_tuplegetter" else None


def _check(app, env):
    there = set().union(*(documented(env.get_doctree(page)) for page in env.found_docs))
    for name in sorted(set(public_names()) - there):
        logger.warning("%s is public and has no entry with a text in the API reference", name)


def setup(app):
    app.connect("autodoc-process-docstring", _mark, priority=400)  # before napoleon's 500
    app.connect("autodoc-skip-member", _skip_fields)
    app.connect("env-get-outdated", lambda *_: ["api"])
    app.connect("env-check-consistency", _check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
