"""The house: which rooms there are, and that imports in them point down only."""

import ast
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import funcprop

TOP = Path(funcprop.__file__).parent

# Each room and those that it may import from, itself aside.  A room below another one is named in
# full; `funcprop` stands for the file of that name at the top.
CORE = {"core"}
ROOMS = {
    "core": set(),
    "data": set(),
    "layers": CORE,
    "statistics": CORE,
    "losses": CORE | {"layers"},
    "multilayer_perceptron": CORE | {"layers", "losses"},
    "learning": CORE | {"layers", "losses", "statistics"},
    "training": CORE | {"layers", "losses", "learning"},
    "cases": CORE | {"layers", "losses", "multilayer_perceptron"},
    "checking.diagnosis": CORE,
    "checking": CORE | {"cases", "losses", "learning", "checking.diagnosis"},
    "cli": CORE
    | {"cases", "checking", "data", "layers", "learning", "losses", "multilayer_perceptron"}
    | {"training"},
}


def name_of(path: Path) -> str:
    parts = ("funcprop", *path.relative_to(TOP).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in TOP.rglob("*.py")}


def imports_of(name: str) -> set[str]:
    """The modules of this package that a module imports, anywhere in it."""
    path, found = MODULES[name], set()
    package = name.split(".")[: None if path.name == "__init__.py" else -1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                found.add(inner if inner in MODULES else module)
    return found & set(MODULES) - {name}


IMPORTS = {name: imports_of(name) for name in MODULES}


def room_of(name: str) -> str:
    inside = name.removeprefix("funcprop").removeprefix(".")
    rooms = [room for room in ROOMS if inside == room or inside.startswith(f"{room}.")]
    return max(rooms, key=len, default="")


def levels() -> int:
    """How many modules stand on one another, the first of them on none."""
    left, count = set(MODULES), 0
    while left:
        free = {name for name in left if not IMPORTS[name] & left}
        assert free, f"a cycle of imports among {sorted(left)}"
        left, count = left - free, count + 1
    return count


def test_at_the_top_are_rooms_and_three_files():
    files = {path.name for path in TOP.iterdir() if path.is_file()}
    assert files == {"__init__.py", "__main__.py", "multilayer_perceptron.py", "py.typed"}
    rooms = {path.name for path in TOP.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == {room for room in ROOMS if "." not in room} - {"multilayer_perceptron"}


def test_imports_point_down():
    wrong = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if (room := room_of(name)) and room_of(other) not in ROOMS[room] | {room}
    ]
    assert not wrong


def test_imports_have_at_most_nine_levels_and_no_cycle():
    assert levels() <= 9


def test_no_module_is_hidden_by_what_a_room_exports():
    hidden = []
    for name, path in MODULES.items():
        if path.name == "__init__.py":
            room = importlib.import_module(name)
            for module in pkgutil.iter_modules(room.__path__):
                value = getattr(room, module.name, None)
                if value is not None and not isinstance(value, ModuleType):
                    hidden.append(f"{name}.{module.name}")
    assert not hidden
