"""Formulas as drawings, made while the pages are built.

A formula becomes an SVG inside its page: nothing is loaded, no script runs and no font is needed
to show it.  Its LaTeX source is the drawing's label, for those who do not see it.
"""

import html
import re
from xml.etree import ElementTree

import ziafont
import ziamath
from docutils import nodes
from sphinx.util import logging

logger = logging.getLogger(__name__)

EM = 16.0
INLINE_SCALE = 1.05

ziafont.config.svg2 = False  # paths where they are used: names of symbols would clash in a page
ziafont.config.precision = 2


def drawing(latex, *, inline):
    """The SVG of a formula; a command that the renderer does not know is an error."""
    formula = ziamath.Latex(latex, size=EM * INLINE_SCALE, color="currentColor", inline=inline)
    unknown = re.findall(r">\s*(\\[A-Za-z]+)", formula.mathmlstr())
    if unknown:
        raise ValueError(f"the formula {latex!r} has {', '.join(unknown)}, which is not known")
    svg = formula.svgxml()
    width, height = float(svg.get("width")), float(svg.get("height"))
    svg.set("width", f"{width / EM:.3f}em")
    svg.set("height", f"{height / EM:.3f}em")
    svg.set("style", f"vertical-align: {formula.getyofst() / EM:.3f}em")
    svg.set("role", "img")
    svg.set("aria-label", " ".join(latex.split()))
    return ElementTree.tostring(svg, encoding="unicode")


def _drawn(node, *, inline):
    try:
        return drawing(node.astext(), inline=inline)
    except Exception as error:
        logger.warning("%s", error, location=node)
        return f"<code>{html.escape(node.astext())}</code>"


def visit_inline(translator, node):
    """Visits a formula within a line."""
    translator.body.append(f'<span class="formula">{_drawn(node, inline=True)}</span>')
    raise nodes.SkipNode


def visit_block(translator, node):
    """Visits a formula on a line of its own."""
    translator.body.append(translator.starttag(node, "div", CLASS="formula"))
    translator.body.append(_drawn(node, inline=False) + "</div>\n")
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("drawings", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
