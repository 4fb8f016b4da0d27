"""The places of a forward pass where its derivation could be another one.

A forward pass is a list of primitive operations.  Found here are its paths (each use of a value
that depends on the point), its products with what their factors could be mistaken for, its
selections, and its nonlinearities: operations of one variable, element by element.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from ...core.checks import is_inexact
from .slopes import OWN, SLOPES
from .twins import Twin, twins

MOST_BEFORE = 4
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "checkpoint": "jaxpr"}
SMOOTH = {
    "tanh", "logistic", "exp", "exp2", "log", "log1p", "expm1", "erf", "erfc", "sqrt", "rsqrt",
    "integer_pow", "pow", "sin", "cos", "square", "cbrt", "div", "max", "min", "abs", "sign",
    "select_n", "clamp",
}  # fmt: skip
SQUASHING = {"tanh", "logistic", "erf", "custom_jvp_call"}
FLAT = {"stop_gradient", "sign", "floor", "ceil", "round"}
PLAIN = {"div", "rsqrt", "sqrt", "integer_pow", "pow", "square", "exp", "log", "abs", "select_n"}
ELEMENTWISE = SMOOTH | {
    "neg", "add", "sub", "mul", "convert_element_type", "copy", "stop_gradient", "add_any",
    "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "is_finite", "custom_jvp_call",
}  # fmt: skip


class Change(NamedTuple):
    """One change of the derivation.

    Attributes:
        kind: "scale" (a path counts more or less), "slope" (another derivative of a nonlinearity),
            "constant" (another constant in it), "operand" (the other factor of a product shifted,
            turned or transposed), "place" (what that factor was made of), "next" (that factor a
            step of the scan later), or the mistake that another linear map is.
        what: what is changed, in words.
        line: the line of the forward pass.
        looped: whether it is inside a scan, where it acts in every step: the gradient is then a
            polynomial of s.
    """

    kind: str
    what: str
    line: str
    looped: bool = False


class Spots:
    """Which knob sits where: (place of the operation, operand, what it does) to its number."""

    def __init__(self, slopes: bool):
        self.slopes = slopes
        self.at: dict[tuple, int] = {}
        self.changes: list[Change] = []
        self.others: dict[tuple, list[tuple[str, Any]]] = {}
        self.twins: dict[tuple, list[Twin]] = {}
        self.blocks: dict[tuple, dict[int, Block]] = {}

    def add(self, key: tuple, kind: str, what: str, eqn: Any) -> None:
        self.at[key] = len(self.changes)
        self.changes.append(Change(kind, what, line_of(eqn), len(key[0]) > 1))


def visit(
    jaxpr: Any, moving: list[bool], path: tuple, spots: Spots, after: Any = frozenset()
) -> list[bool]:
    """Finds the knobs of a jaxpr.

    ``moving`` says which inputs depend on the point, ``after`` are those that a step of a scan
    hands to the next one.
    """
    live = dict(zip(jaxpr.invars, moving, strict=True))
    uses: dict[Any, int] = {}
    for eqn in jaxpr.eqns:
        for v in eqn.invars:
            if not isinstance(v, Literal):
                uses[v] = uses.get(v, 0) + 1
    for v in jaxpr.outvars:
        if not isinstance(v, Literal):
            uses[v] = uses.get(v, 0) + 1

    def moves(v):
        return not isinstance(v, Literal) and live.get(v, False) and is_inexact(v.aval)

    before = _before(jaxpr, moves)
    for i, eqn in enumerate(jaxpr.eqns):
        place, name = (*path, i), eqn.primitive.name
        operands = [k for k, v in enumerate(eqn.invars) if moves(v)]
        for k in operands:
            if not spots.slopes and (len(operands) > 1 or uses[eqn.invars[k]] > 1):
                twin = eqn.invars.index(eqn.invars[k])
                if twin < k:  # x * x is one use of x
                    spots.at[place, k, "scale"] = spots.at[place, twin, "scale"]
                    continue
                what = f"operand {k + 1} of {name}"
                spots.add((place, k, "scale"), "scale", what, eqn)
        if name == "scan":
            for k in operands:
                if not spots.slopes and k < scan_sizes(eqn.params)[0]:
                    for word, steps in ends(eqn.params["length"]):
                        what = f"{word} of the steps of the sum alone counts"
                        spots.add((place, k, "steps", tuple(steps)), "missing term", what, eqn)
            out = _visit_scan(eqn, [moves(v) for v in eqn.invars], place, spots)
        else:
            out = [bool(operands) and name not in FLAT] * len(eqn.outvars)
            if not spots.slopes:
                _product_knobs(eqn, operands, place, spots, before, after)
        for v, m in zip(eqn.outvars, out, strict=True):
            live[v] = m
    for block in _blocks(jaxpr, live) if spots.slopes else ():
        spots.blocks.setdefault(path, {})[block.last] = block
        eqn = jaxpr.eqns[block.last]
        for n, slope in enumerate(block.names):
            spots.add(((*path, block.last), n, "slope"), "slope", slope, eqn)
        for n, literal in enumerate(block.literals):
            what = f"the constant {literal:.6g}"
            spots.add(((*path, block.last), n, "constant"), "constant", what, eqn)
    return [bool(moves(v)) for v in jaxpr.outvars]


def scan_sizes(params: dict[str, Any]) -> tuple[int, int]:
    """How many of a scan's operands are constants, and how many are carried."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = map(len, params["ft_in"].unpack())  # since jax 0.11
    return consts, carry


def _visit_scan(eqn, moving, place, spots):
    body = eqn.params["jaxpr"].jaxpr
    consts, carry = scan_sizes(eqn.params)
    moving = list(moving)
    for _ in range(2):  # what moves in a carry moves it from the second step on
        scratch = Spots(spots.slopes)
        out = visit(body, moving, place, scratch)
        moving[consts : consts + carry] = [
            a or b for a, b in zip(moving[consts : consts + carry], out[:carry], strict=True)
        ]
    return visit(body, moving, place, spots, frozenset(body.invars[consts : consts + carry]))


def _product_knobs(eqn, operands, place, spots, before, after):
    """Other linear maps, and other factors of products."""
    name = eqn.primitive.name
    for k in operands:
        for n, twin in enumerate(twins(eqn, k)):
            spots.add((place, k, "twin", n), twin.kind, twin.what, eqn)
            spots.twins.setdefault((place, k), []).append(twin)
    if name not in ("mul", "dot_general", "conv_general_dilated"):
        return
    for k in operands:
        other = eqn.invars[1 - k]
        if isinstance(other, Literal) or not other.aval.shape:
            continue
        found: list[tuple[str, str, Any]] = []
        if name != "mul" or len(operands) == 1:
            few = name == "dot_general" and len(other.aval.shape) > 3
            for what, turn in _turned(other.aval.shape, few, name == "mul"):
                found.append(("operand", f"the other factor {what}", turn))
        if other in after:
            found.append(("next", "the other factor of the next step", None))
        found += [("place", "what the other factor was made of", v) for v in before(other)]
        for n, (kind, what, source) in enumerate(found):
            spots.add((place, k, n), kind, what, eqn)
            spots.others.setdefault((place, k), []).append((kind, source))


def _before(jaxpr, moves):
    """The values of one shape that a variable was made of, the nearest ones first."""
    made = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}

    def of(v):
        found: list[Any] = []
        todo = [v]
        while todo and len(found) < MOST_BEFORE:
            eqn = made.get(todo.pop(0))
            for w in eqn.invars if eqn is not None else ():
                if moves(w) and w.aval.shape == v.aval.shape and w not in found and w is not v:
                    found.append(w)
                    todo.append(w)
        return found

    return of


def _turned(
    shape: tuple[int, ...], transposed: bool = False, shifts: bool = False
) -> list[tuple[str, Callable]]:
    """What can be mistaken for an array of this shape: itself shifted, reversed, transposed.

    ``transposed`` and ``shifts`` leave the others out.
    """
    found: list[tuple[str, Callable]] = []
    for axis, size in enumerate(shape):
        if size > 1 and not transposed:
            for step in (1, -1):
                word = f"shifted by {step:+d} along axis {axis}"
                found.append((word, lambda a, axis=axis, step=step: shifted(a, step, axis)))
            found.append((f"reversed along axis {axis}", lambda a, axis=axis: jnp.flip(a, axis)))
    for a in range(0 if not shifts else len(shape), len(shape)):
        for b in range(a + 1, len(shape)):
            if shape[a] == shape[b] > 1:
                word = f"transposed in axes {a} and {b}"
                found.append((word, lambda v, a=a, b=b: jnp.swapaxes(v, a, b)))
    return found


def shifted(a: Any, step: int, axis: int) -> Any:
    """a moved by one along an axis, zeros behind it."""
    numpy = np if isinstance(a, np.ndarray) else jnp
    moved = numpy.roll(a, step, axis)
    index = [slice(None)] * a.ndim
    index[axis] = slice(0, 1) if step > 0 else slice(-1, None)
    if numpy is np:
        moved[tuple(index)] = 0
        return moved
    return moved.at[tuple(index)].set(0)


class Block(NamedTuple):
    """A nonlinearity: operations of one variable z, element by element, up to y."""

    z: Any
    last: int
    eqns: tuple[int, ...]
    literals: tuple[float, ...]
    names: tuple[str, ...]


def _blocks(jaxpr: Any, live: dict) -> list[Block]:
    root: dict[Any, Any] = {}
    uniform: set = set()  # one number in every place
    made: dict[Any, int] = {}

    def is_constant(v):
        return isinstance(v, Literal) or not live.get(v, False)

    def is_uniform(v):
        return v.aval.shape == () or v in uniform

    for i, eqn in enumerate(jaxpr.eqns):
        out = eqn.outvars[0]
        moving = [v for v in eqn.invars if not is_constant(v)]
        if not moving:
            if eqn.invars and all(map(is_uniform, eqn.invars)):
                uniform.update(eqn.outvars)
            continue
        if not all(is_uniform(v) for v in eqn.invars if is_constant(v)):
            continue
        if eqn.primitive.name not in ELEMENTWISE or len(eqn.outvars) != 1:
            continue
        if eqn.primitive.name == "custom_jvp_call" and not _is_elementwise(eqn):
            continue
        roots = {root.get(v, v) for v in moving}
        if len(roots) == 1 and all(v.aval.shape == out.aval.shape for v in moving):
            (root[out],) = roots
            made[out] = i
    blocks = []
    used: dict[Any, set] = {}
    for i, eqn in enumerate(jaxpr.eqns):
        for v in eqn.invars:
            if not isinstance(v, Literal):
                used.setdefault(v, set()).add(i)
    outputs = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    for y, z in root.items():
        inside = {made[v] for v in root if root[v] is z}
        own = jaxpr.eqns[made[y]].primitive.name
        within = used.get(y, set()) <= inside and y not in outputs
        if not is_inexact(y.aval) or (within and own not in SQUASHING):
            continue
        eqns = tuple(sorted(_needed(jaxpr, y, z, made, root)))
        names = {jaxpr.eqns[i].primitive.name for i in eqns}
        real = not any(jnp.iscomplexobj(v.aval) for v in (y, z))
        if real and (names & SMOOTH or "custom_jvp_call" in names):
            literals = tuple(
                dict.fromkeys(
                    float(v.val)
                    for i in eqns
                    for v in jaxpr.eqns[i].invars
                    if isinstance(v, Literal) and is_inexact(v.aval) and np.ndim(v.val) == 0
                )
            )
            literals = tuple(v for v in literals if v not in (0.0, 1.0, -1.0, 2.0, 0.5))
            chosen = tuple(SLOPES)[:OWN] if names & SMOOTH <= PLAIN else tuple(SLOPES)
            blocks.append(Block(z, made[y], eqns, literals, chosen))
    return blocks


def _is_elementwise(eqn) -> bool:
    inner = eqn.params["call_jaxpr"].jaxpr
    shape = eqn.outvars[0].aval.shape
    return all(
        (e.primitive.name in ELEMENTWISE or e.primitive.name in CALLS)
        and e.outvars[0].aval.shape in (shape, ())
        for e in inner.eqns
    )


def _needed(jaxpr, y, z, made, root) -> set[int]:
    todo, found = [y], set()
    while todo:
        v = todo.pop()
        if isinstance(v, Literal) or v is z or root.get(v) is not z or made[v] in found:
            continue
        found.add(made[v])
        todo.extend(jaxpr.eqns[made[v]].invars)
    return found


# ------------------------------------------------------------------------ words


def ends(size: int) -> list[tuple[str, list[int]]]:
    """The indices of an axis that are taken where its ends are mistaken: (in words, which)."""
    all_of = list(range(size))
    found = [("the first", all_of[:1]), ("the last", all_of[-1:])]
    if size > 2:
        found += [("all but the first", all_of[1:]), ("all but the last", all_of[:-1])]
    return found if size > 1 else []


def line_of(eqn: Any) -> str:
    """The innermost line of the caller's code that made an operation, as "file.py:12: code"."""
    try:
        frames = eqn.source_info.traceback.frames
    except AttributeError:
        return ""
    package = str(Path(jax.__file__).parent)
    own = str(Path(__file__).parents[1])
    for frame in frames:
        if not frame.file_name.startswith((package, own)):
            code = linecache.getline(frame.file_name, frame.line_num).strip()
            return f"{Path(frame.file_name).name}:{frame.line_num}: {code}" if code else ""
    return ""
