"""The documentation: its snippets run, and its reference leaves no public name out."""

import doctest
import inspect
import linecache
import re
import sys
from pathlib import Path

import pytest

import funcprop
import funcprop.checking
import funcprop.statistics

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("statistics/*.md"), *DOCS.glob("learning/*.md")])
CODE_OF = re.compile(r"^```\{code-of\} (\S+) (\S+)\n(?::(\w+):\n)?", re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.])")


class Checker(doctest.OutputChecker):
    """Floats may differ by a part in a thousand: machines round differently."""

    def check_output(self, want, got, optionflags):
        if super().check_output(want, got, optionflags):
            return True
        due, came = NUMBER.findall(want), NUMBER.findall(got)
        texts = (" ".join(NUMBER.sub("#", text).split()) for text in (want, got))
        return len(set(texts)) == 1 and len(due) == len(came) and all(map(_close, due, came))


def _close(due, came):
    inexact = "." in due or "e" in due
    return due == came or (inexact and float(came) == pytest.approx(float(due), rel=1e-3))


BLOCK = re.compile(r"^```(pycon|python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text):
    """The fenced blocks of code and of text: language, content, first line, (start, end)."""
    for found in BLOCK.finditer(text):
        yield found[1], found[2], text.count("\n", 0, found.start()) + 1, found.span(2)


def run(name, text, shown=None):
    """Runs a page's blocks one after the other; returns what failed.

    A block of Python that begins with "# file.py" is that file.  ``shown(span, names)`` is called
    for each block of text, with the names that the code before it has made.
    """
    names: dict = {"__name__": name}
    said: list[str] = []
    runner = doctest.DocTestRunner(Checker(), optionflags=doctest.NORMALIZE_WHITESPACE)
    for language, code, line, span in blocks(text):
        if language == "text":
            if shown is not None:
                shown(span, names)
        elif language == "python":
            file, source = name, "\n" * line + code
            if first := re.match(r"# (\w+\.py)\n", code):
                file, source = first[1], code
                linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)
            exec(compile(source, file, "exec"), names)
        else:
            test = doctest.DocTestParser().get_doctest(code, names, name, name, line)
            runner.run(test, out=said.append, clear_globs=False)
            names = test.globs
    return "".join(said)


LONG = ("backprop", "checking", "networks", "training")


def marked(page):
    """The first pages are run by default; of the rest the examples of docstrings are."""
    long = page.stem in LONG or page.parent.name in ("learning", "statistics")
    return pytest.param(page, marks=[pytest.mark.slow] if long else [], id=page.stem)


@pytest.mark.parametrize(  # test_reports.py runs the guide to a wrong gradient
    "page", [marked(page) for page in PAGES if page.stem != "wrong_gradient"]
)
def test_snippets(page, request):
    if page.stem == "checking":  # which asks whether a gradient is right
        request.getfixturevalue("no_cause")
    failed = run(page.name, page.read_text(encoding="utf-8"))
    assert not failed, failed


def test_a_wrong_snippet_fails():
    assert not run("page", "```python\na = 1\n```\n```pycon\n>>> a + 1.0\n2.0001\n```\n")
    assert "Expected" in run("page", "```pycon\n>>> 1 + 1\n3\n```\n")
    assert "Expected" in run("page", "```pycon\n>>> 1 + 1.5\n2.6\n```\n")
    assert "NameError" in run("page", "```pycon\n>>> a\n1\n```\n")


def public_names(module):
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }


def test_every_public_name_is_in_the_reference():
    listed = set()
    module = ""
    for line in (DOCS / "api.rst").read_text(encoding="utf-8").splitlines():
        if found := re.match(r"\.\. currentmodule:: (\S+)", line):
            module = found[1]
        elif found := re.match(r"\.\. (?:autofunction|autoclass|py:data):: (\S+)", line):
            listed.add(f"{module}.{found[1].removeprefix('funcprop::')}")
    own = public_names(funcprop)
    due = {f"funcprop.{name}" for name in own}
    for name, value in public_names(funcprop.checking).items():
        if own.get(name) is not value:
            due.add(f"funcprop.checking.{name}")
    due |= {f"funcprop.statistics.{name}" for name in public_names(funcprop.statistics)}
    due |= {f"funcprop.datasets.{name}" for name in ("DataError", "digits", "load", "split")}
    assert due == listed


@pytest.mark.parametrize(
    "module",
    [funcprop, funcprop.checking, funcprop.statistics],
    ids=lambda module: module.__name__,
)
def test_every_function_and_class_has_a_docstring(module):
    bare = []
    for name, value in public_names(module).items():
        if inspect.isfunction(value) or inspect.isclass(value):
            members = vars(value).items() if inspect.isclass(value) else ()
            own = {f"{name}.{key}": member for key, member in members if not key.startswith("_")}
            for place, thing in {name: value, **own}.items():
                described = inspect.isfunction(thing) or isinstance(thing, (type, property))
                if described and not thing.__doc__:
                    bare.append(place)
    assert not bare


@pytest.fixture
def extensions(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(DOCS / "_ext"), *sys.path])


def test_the_rows_of_a_page_are_those_of_the_comparison():
    def rows(page):
        lines = page.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if re.search(r"% ± .*\| \d+\.\d\d \|$", line)]

    pages = {page.stem: rows(page) for page in PAGES if page.parent.name == "learning"}
    due = pages.pop("comparison")
    shown = [row for found in pages.values() for row in found]
    assert set(shown) == set(due)
    assert len(due) == 18


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_that_a_page_shows_is_there(page, extensions):
    from source_lines import code, equations

    for file, name, option in CODE_OF.findall(page.read_text(encoding="utf-8")):
        show = equations if option == "equations" else code
        assert show((DOCS.parent / file).read_text(encoding="utf-8"), name).strip()


def test_code_is_found_by_its_name(extensions):
    from source_lines import code, equations

    source = (
        "def f():\n    def g(x):\n        'Text.'\n        return x\n\n\n"
        'def h():\n    """Text.\n\n        a  = 1\n        bc = 2\n\n    More.\n    """\n'
        "value = (\n    1,\n)\n"
    )
    assert code(source, "f.g") == "def g(x):\n    return x\n"
    assert code(source, "value") == "value = (\n    1,\n)\n"
    assert equations(source, "h") == "a  = 1\nbc = 2\n"
    with pytest.raises(LookupError, match=r"no k of f\.k"):
        code(source, "f.k")
    with pytest.raises(LookupError, match="no indented equations"):
        equations(source, "f.g")


def test_what_a_page_loads_from_outside_is_found(extensions):
    from offline import outside_of_page

    host = "//host.example"
    loading = [
        f'<script src="https:{host}/a.js"></script>',
        f'<link rel="stylesheet" href="{host}/a.css">',
        f'<img alt="" src="http:{host}/a.png">',
        f"<style>@import url('https:{host}/a.css');</style>",
        f'<p style="background: url(https:{host}/a.png)"></p>',
    ]
    for tag in loading:
        assert len(outside_of_page(f"<html>{tag}</html>")) == 1, tag
    harmless = f'<a href="https:{host}">a link</a><script src="_static/a.js"></script>'
    assert not outside_of_page(harmless)


def test_built_pages_load_nothing_from_outside(extensions):
    from offline import outside

    built = DOCS / "_build" / "html"
    if not built.exists():
        pytest.skip("the pages are not built here")
    assert not outside(built)
