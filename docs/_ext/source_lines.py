"""Pieces of a source file, found by name."""

import ast
import textwrap


def find(tree, path):
    """The definition or assignment with this dotted name."""
    for name in path.split("."):
        tree = next((node for node in ast.walk(tree) if name in _names(node)), None)
        if tree is None:
            raise LookupError(f"there is no {name} of {path}")
    return tree


def code(source, path):
    """The lines of a definition, without its docstring, moved to the left."""
    node = find(ast.parse(source), path)
    lines = source.splitlines()
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
    kept = list(range(first, node.end_lineno + 1))
    if not isinstance(node, ast.Assign) and ast.get_docstring(node) is not None:
        text = node.body[0]
        kept = [number for number in kept if not text.lineno <= number <= text.end_lineno]
    return textwrap.dedent("\n".join(lines[number - 1] for number in kept)) + "\n"


def equations(source, path):
    """The indented blocks in the docstring of a definition, moved to the left."""
    text = ast.get_docstring(find(ast.parse(source), path)) or ""
    blocks = [block for block in text.split("\n\n") if block.startswith("    ")]
    if not blocks:
        raise LookupError(f"the docstring of {path} has no indented equations")
    return textwrap.dedent("\n".join(blocks)) + "\n"


def _names(node):
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    return []
