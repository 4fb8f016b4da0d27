"""Sphinx configuration: `python -m sphinx -W -b html docs docs/_build/html`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from funcprop import __version__

project = "funcprop"
author = "The funcprop developers"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "code_of",
    "formulas",
    "layer_table",
    "offline",
    "reference",
]
exclude_patterns = ["_build", "_generated"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

html_math_renderer = "drawings"  # _ext/formulas.py
myst_update_mathjax = False

autodoc_preserve_defaults = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
add_module_names = False
python_maximum_signature_line_length = 88

html_theme = "sphinx_book_theme"
html_title = "funcprop"
html_static_path = ["_static"]
html_css_files = ["funcprop.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # one search button is enough, in the sidebar
    "secondary_sidebar_items": {"**": ["page-toc"], "layers": []},
}
