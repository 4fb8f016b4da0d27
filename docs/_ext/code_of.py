"""The directive `code-of`: a function's own lines, found by its name, so that they cannot drift.

    ```{code-of} funcprop/layers/dense.py affine.backward
    ```

shows the function `backward` inside `affine` without its docstring.  A name that is not there
fails the build.  An assignment is found by the name that it assigns to.  With the option
`:equations:` the indented equations of the docstring are shown in place of the code.
"""

from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from source_lines import code, equations
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]


class CodeOf(SphinxDirective):
    """`{code-of} file name`."""

    required_arguments = 2
    option_spec: ClassVar = {"equations": directives.flag}

    def run(self):
        file, path = self.arguments
        self.env.note_dependency(str(ROOT / file))
        show, language = (equations, "text") if "equations" in self.options else (code, "python")
        try:
            text = show((ROOT / file).read_text(encoding="utf-8"), path)
        except (LookupError, OSError) as error:
            raise self.error(f"code-of {file} {path}: {error}") from error
        block = nodes.literal_block(text, text, language=language)
        caption = nodes.caption("", "", nodes.literal(text=f"{file}  {path}"))
        return [
            nodes.container(
                "", caption, block, literal_block=True, classes=["literal-block-wrapper"]
            )
        ]


def setup(app):
    app.add_directive("code-of", CodeOf)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
