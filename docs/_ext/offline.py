"""Warns when a page would ask another host for anything as it is opened."""

import re
from html.parser import HTMLParser
from pathlib import Path

LOADED = {
    "script": ("src",),
    "link": ("href",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "object": ("data",),
    "embed": ("src",),
    "use": ("href", "xlink:href"),
    "image": ("href", "xlink:href"),
}
OUTSIDE = re.compile(r"^\s*(?:https?:)?//", re.IGNORECASE)
IN_STYLE = re.compile(r"(?:@import\s+|url\(\s*)[\"']?\s*((?:https?:)?//[^\"')\s]+)", re.IGNORECASE)


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []
        self._in_style = False

    def handle_starttag(self, tag, attributes):
        self._in_style = tag == "style"
        for name, value in attributes:
            if name in LOADED.get(tag, ()) and OUTSIDE.match(value or ""):
                self.found.append(f"<{tag} {name}={value}>")
            if name == "style":
                self.found += IN_STYLE.findall(value or "")

    def handle_data(self, data):
        if self._in_style:
            self.found += IN_STYLE.findall(data)

    def handle_endtag(self, tag):
        self._in_style = False


def outside_of_page(text):
    """What a page loads from other hosts, as a list of strings."""
    page = _Page()
    page.feed(text)
    page.close()
    return page.found


def outside(folder):
    """What the pages and style sheets of a folder load from other hosts, as `file: what`."""
    found = []
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix not in (".html", ".css", ".svg"):
            continue
        text = path.read_text(encoding="utf-8")
        hits = IN_STYLE.findall(text) if path.suffix == ".css" else outside_of_page(text)
        found += [f"{path.relative_to(folder)}: {hit}" for hit in hits]
    return found


def _check(app, exception):
    from sphinx.util import logging  # here, so that the tests need no Sphinx

    if exception is None and app.builder.format == "html":
        for hit in outside(app.outdir):
            logging.getLogger(__name__).warning("loads from another host: %s", hit)


def setup(app):
    app.connect("build-finished", _check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
