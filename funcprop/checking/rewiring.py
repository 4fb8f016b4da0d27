"""What a gradient would be, were one step of its derivation another one.

A forward pass is a graph of primitive operations, and its gradient a sum over the paths through
it.  A usual mistake changes one place of that graph: a path is left out or counted twice, a
derivative is taken at the wrong point, an operand is shifted by one.  Every such change enters the
gradient linearly,

    g(s) = g + s ∂g/∂s,

so one forward derivative of the automatic gradient by all the s at once tells what each change
would do, and a wrong gradient can be laid beside all of them.
"""

from __future__ import annotations

import contextlib
import linecache
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from ..layer import is_inexact
from .slopes import OWN, SLOPES

try:  # the lines of the operations, which jax keeps to itself
    from jax._src.source_info_util import user_context
except ImportError:  # an explanation without its line is one still

    def user_context(traceback):  # type: ignore[no-redef]
        return contextlib.nullcontext()


Tree = Any
MOST = 4_000  # how many changes are tried at most
MOST_BEFORE = 4
NUMBERS = 40_000_000  # and how many numbers they may hold


class Change(NamedTuple):
    """One change of the derivation.

    Attributes:
        kind: "scale" (a path counts more or less), "slope" (another derivative of a nonlinearity),
            "constant" (another constant in it), "mask" (nothing is masked), "operand" (the other
            factor of a product shifted, turned or transposed).
        what: what is changed, in words.
        line: the line of the forward pass.
        looped: whether it is inside a scan, where it acts in every step: the gradient is then a
            polynomial of s.
    """

    kind: str
    what: str
    line: str
    looped: bool = False


class Rewired(NamedTuple):
    """The gradient, and what each change adds to it.

    Attributes:
        gradient: (P,), all leaves as one vector.
        changes: a :class:`Change` a row.
        effects: (K, P), ∂gradient/∂s of each; a scale of 0 is an effect taken away once, of 2 one
            added once; the others are added once.
        at: the gradients (N, P) for N rows of s (N, K).
    """

    gradient: np.ndarray
    changes: list[Change]
    effects: np.ndarray
    at: Callable[[np.ndarray], np.ndarray]


def rewired(
    value: Callable[[Tree], jax.Array], point: Tree, slopes: bool = False, openly: bool = True
) -> Rewired:
    """All single changes of the gradient of ``value`` at ``point``, a tree of float64 arrays.

    Args:
        value: a real function of the tree.
        point: where.
        slopes: whether derivatives of nonlinearities are what changes; else the paths, masks and
            operands of products are.
        openly: whether functions with a derivative rule of their own are opened, and their rule
            not used.
    """
    leaves, structure = jax.tree.flatten(point)
    flat = jax.make_jaxpr(_inlined(value, structure, openly))(*leaves)
    spots = _Spots(slopes)
    _visit(flat.jaxpr, [True] * len(leaves), (), spots)
    changes = spots.changes[:MOST]
    size = sum(leaf.size for leaf in leaves)
    count = min(len(changes), max(1, NUMBERS // max(size, 1)))
    changes = changes[:count]

    def gradient(knobs, *leaves):
        def of(*leaves):
            (out,) = _run(flat.jaxpr, flat.consts, leaves, (), spots, knobs)
            return out

        grads = jax.grad(of, tuple(range(len(leaves))))(*leaves)
        return jnp.concatenate([jnp.zeros(0), *(g.ravel() for g in grads)])

    def all_of(*leaves):
        none = jnp.zeros(len(spots.changes))
        g, along = jax.linearize(lambda knobs: gradient(knobs, *leaves), none)
        # A row a change: the derivative is linear, so the rows come in chunks of unit vectors.
        return g, jax.lax.map(along, jnp.eye(count, len(none)), batch_size=64)

    fast = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    g, effects = jax.device_get(jax.jit(all_of, compiler_options=fast)(*leaves))

    def at(rows):
        rows = np.pad(rows, ((0, 0), (0, len(spots.changes) - count)))
        several = jax.jit(
            lambda rows, *leaves: jax.lax.map(
                lambda row: gradient(row, *leaves), rows, batch_size=64
            ),
            compiler_options=fast,
        )
        return jax.device_get(several(rows, *leaves))

    return Rewired(g, changes, effects, at)


def opened(value: Callable[[Tree], jax.Array]) -> Callable[[Tree], jax.Array]:
    """``value`` without the derivative rules that functions in it bring along."""

    def of(point):
        leaves, structure = jax.tree.flatten(point)
        return _inlined(value, structure, True)(*leaves)

    return of


# ------------------------------------------------------------------------ what a knob does


@jax.custom_jvp
def _scaled(x, s):
    """x, whose derivative is 1 + s."""
    return x


@_scaled.defjvp
def _(primals, tangents):
    return primals[0], tangents[0] * (1 + primals[1])


@jax.custom_jvp
def _with_slope(y, z, slope):
    """y, whose derivative by z has the slope added."""
    return y


@_with_slope.defjvp
def _(primals, tangents):
    return primals[0], tangents[0] + tangents[1] * primals[2]


@jax.custom_jvp
def _phantom(x):
    """Zeros, whose derivative by x is 1."""
    return jnp.zeros_like(x)


@_phantom.defjvp
def _(primals, tangents):
    return jnp.zeros_like(primals[0]), tangents[0]


# ------------------------------------------------------------------------ where they sit

CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "checkpoint": "jaxpr"}
RULES = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
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


class _Spots:
    """Which knob sits where: (place of the operation, operand, what it does) to its number."""

    def __init__(self, slopes: bool):
        self.slopes = slopes
        self.at: dict[tuple, int] = {}
        self.changes: list[Change] = []
        self.others: dict[tuple, list[tuple[str, Any]]] = {}
        self.blocks: dict[tuple, dict[int, _Block]] = {}

    def add(self, key: tuple, kind: str, what: str, eqn: Any) -> None:
        self.at[key] = len(self.changes)
        self.changes.append(Change(kind, what, _line(eqn), len(key[0]) > 1))


def _inlined(value, structure, openly):
    """``value`` of the leaves, traced with the calls in it opened."""
    calls = CALLS | RULES if openly else CALLS

    def of(*leaves):
        closed = jax.make_jaxpr(lambda *leaves: value(jax.tree.unflatten(structure, leaves)))(
            *leaves
        )
        return _run(closed.jaxpr, closed.consts, leaves, (), None, None, calls)[0]

    return of


def _visit(
    jaxpr: Any, moving: list[bool], path: tuple, spots: _Spots, after: Any = frozenset()
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
            out = _visit_scan(eqn, [moves(v) for v in eqn.invars], place, spots)
        else:
            out = [bool(operands) and name not in FLAT] * len(eqn.outvars)
            if not spots.slopes:
                _product_knobs(eqn, operands, place, spots, _before(jaxpr, i, moves), after)
        for v, m in zip(eqn.outvars, out, strict=True):
            live[v] = m
    for block in _blocks(jaxpr, live) if spots.slopes else ():
        spots.blocks.setdefault(path, {})[block.last] = block
        eqn = jaxpr.eqns[block.last]
        for n, slope in enumerate(block.names):
            spots.add(((*path, block.last), n, "slope"), "slope", slope, eqn)
        for n, literal in enumerate(block.literals):
            what = f"the constant {_literal_text(literal)}"
            spots.add(((*path, block.last), n, "constant"), "constant", what, eqn)
    return [bool(moves(v)) for v in jaxpr.outvars]


def _visit_scan(eqn, moving, place, spots):
    body = eqn.params["jaxpr"].jaxpr
    consts, carry = eqn.params["num_consts"], eqn.params["num_carry"]
    moving = list(moving)
    for _ in range(2):  # what moves in a carry moves it from the second step on
        scratch = _Spots(spots.slopes)
        out = _visit(body, moving, place, scratch)
        moving[consts : consts + carry] = [
            a or b for a, b in zip(moving[consts : consts + carry], out[:carry], strict=True)
        ]
    return _visit(body, moving, place, spots, frozenset(body.invars[consts : consts + carry]))


def _product_knobs(eqn, operands, place, spots, before, after):
    """Changes of products and selections."""
    name = eqn.primitive.name
    if name == "select_n":
        for k in operands:
            if k:
                spots.add((place, k, "mask"), "mask", "the selection lets all of it back", eqn)
    if name == "mul" and len(operands) == 1 and eqn.invars[1 - operands[0]].aval.shape:
        spots.add((place, operands[0], "mask"), "mask", "the factor is left out", eqn)
    if name == "div" and operands == [0] and eqn.invars[1].aval.shape:
        spots.add((place, 0, "mask"), "mask", "the divisor is left out", eqn)
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


def _before(jaxpr, last, moves):
    """The values of one shape that a variable was made of, the nearest ones first."""
    made = {v: eqn for eqn in jaxpr.eqns[:last] for v in eqn.outvars}

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


class _Block(NamedTuple):
    """A nonlinearity: operations of one variable z, element by element, up to y."""

    z: Any
    last: int
    eqns: tuple[int, ...]
    literals: tuple[float, ...]
    names: tuple[str, ...]


def _blocks(jaxpr: Any, live: dict) -> list[_Block]:
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
            blocks.append(_Block(z, made[y], eqns, literals, chosen))
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


# ------------------------------------------------------------------------ running it


def _run(jaxpr, consts, args, path, spots, knobs, calls=None, after=None):
    """The jaxpr with its knobs; without spots as it is, calls opened."""
    env: dict[Any, Any] = {}

    def read(v):
        return v.val if isinstance(v, Literal) else env[v]

    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    blocks = {} if spots is None else spots.blocks.get(path, {})
    for i, eqn in enumerate(jaxpr.eqns):
        place, name = (*path, i), eqn.primitive.name
        values = [read(v) for v in eqn.invars]
        if spots is not None:
            for k in range(len(values)):
                knob = spots.at.get((place, k, "scale"))
                if knob is not None:
                    values[k] = _scaled(values[k], knobs[knob])
        if calls and name in calls and calls[name] in eqn.params:
            inner = eqn.params[calls[name]]
            inner, kept = (inner.jaxpr, inner.consts) if hasattr(inner, "jaxpr") else (inner, ())
            with _lines_of(eqn):
                out = _run(inner, kept, values, place, spots, knobs, calls)
        elif name == "scan":
            with _lines_of(eqn):
                out = _run_scan(eqn, values, place, spots, knobs, calls)
        else:
            out = _bound(eqn, values)
            if spots is not None:
                out = [_products(eqn, values, out[0], place, spots, knobs, env, after), *out[1:]]
        if i in blocks:
            other = _other_slopes(jaxpr, blocks[i], env, out[0], place, spots, knobs)
            out = [_with_slope(out[0], env[blocks[i].z], other)]
        env.update(zip(eqn.outvars, out, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _bound(eqn, values):
    """An operation on other values than its own."""
    given = eqn.primitive.get_bind_params(eqn.params)
    functions, params = given if isinstance(given, tuple) else ((), given)  # before jax 0.10.2
    with _lines_of(eqn):
        out = eqn.primitive.bind(*functions, *values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _lines_of(eqn):
    """Gives the operations made inside the line of this one, if it has one."""
    own = _line(eqn)
    return user_context(eqn.source_info.traceback) if own else contextlib.nullcontext()


def _run_scan(eqn, values, place, spots, knobs, calls):
    body, params = eqn.params["jaxpr"], eqn.params
    consts, carry = params["num_consts"], params["num_carry"]

    def step(held, entries, spots=spots, after=None):
        args = [*values[:consts], *held, *entries]
        out = _run(body.jaxpr, body.consts, args, place, spots, knobs, calls, after)
        return out[:carry], out[carry:]

    first, entries = values[consts : consts + carry], values[consts + carry :]
    how = {"length": params["length"], "reverse": params["reverse"]}
    if spots is None or not any(kind == "next" for kind, _ in _inside(spots, place)):
        last, stacked = jax.lax.scan(step, first, entries, **how)
        return [*last, *stacked]

    def record(held, entries):
        held, _ = step(held, entries, spots=None)
        return held, held

    held = body.jaxpr.invars[consts : consts + carry]
    _, nexts = jax.lax.stop_gradient(jax.lax.scan(record, first, entries, **how))
    last, stacked = jax.lax.scan(
        lambda h, e: step(h, e[0], after=dict(zip(held, e[1], strict=True))),
        first,
        (entries, nexts),
        **how,
    )
    return [*last, *stacked]


def _inside(spots, place):
    """The other factors that are tried in the operations right inside a scan."""
    return [
        other for (at, _), others in spots.others.items() if at[:-1] == place for other in others
    ]


def _products(eqn, values, out, place, spots, knobs, env, after):
    """The result of an operation, with the changes of its factors."""
    name = eqn.primitive.name
    for k in range(len(values)):
        knob = spots.at.get((place, k, "mask"))
        if knob is not None and name == "select_n":
            other = jnp.broadcast_to(values[0] != (k - 1), out.shape).astype(out.dtype)
            out = _with_slope(out, values[k], other * knobs[knob])
        elif knob is not None:
            factor = 1 / values[1] if name == "div" else values[1 - k]
            out = _with_slope(out, values[k], (1 - factor) * knobs[knob])
        others = spots.others.get((place, k), ())
        if others:
            own = jax.lax.stop_gradient(values[1 - k])
            found = [
                jax.lax.stop_gradient(_other(kind, source, own, eqn.invars[1 - k], env, after))
                for kind, source in others
            ]
            first = spots.at[place, k, 0]
            pair: list[Any] = [None, None]
            pair[k] = _phantom(values[k])
            pair[1 - k] = _mixed(knobs[first : first + len(found)], [f - own for f in found])
            out = out + eqn.primitive.bind(*pair, **eqn.params)
    return out


def _other(kind, source, own, variable, env, after):
    """What is taken in the place of the other factor of a product."""
    if kind == "operand":
        return source(own)
    return env[source] if kind == "place" else after[variable]


def _mixed(knobs, arrays):
    arrays = [jnp.where(jnp.isfinite(a), a, 0) for a in arrays]  # 0 times infinity is NaN
    return jnp.tensordot(knobs, jnp.stack(arrays), 1)


def _other_slopes(jaxpr, block, env, y, place, spots, knobs):
    """y of a nonlinearity, with the slopes that could be mistaken for its own."""
    z = jax.lax.stop_gradient(env[block.z])

    def again(z, literals=None):
        inner = {**{v: jax.lax.stop_gradient(a) for v, a in env.items() if is_inexact(a)}}
        inner = {v: inner.get(v, a) for v, a in env.items()}
        inner[block.z] = z
        swap = dict(zip(block.literals, literals, strict=True)) if literals is not None else {}

        def read(v):
            if not isinstance(v, Literal):
                return inner[v]
            if is_inexact(v.aval) and np.ndim(v.val) == 0 and float(v.val) in swap:
                return jnp.asarray(swap[float(v.val)], jnp.result_type(v.val))
            return v.val

        for i in block.eqns:
            eqn = jaxpr.eqns[i]
            out = _bound(eqn, list(map(read, eqn.invars)))
            inner.update(zip(eqn.outvars, out, strict=True))
        return out[0]

    def slope(z, literals=None):
        return jax.jvp(lambda z: again(z, literals), (z,), (jnp.ones_like(z),))[1]

    own = slope(z)
    y = jax.lax.stop_gradient(y)
    gaps = [SLOPES[name](z, y, slope) - own for name in block.names]
    point = tuple(map(jnp.asarray, block.literals))
    for n, value in enumerate(block.literals):
        along = tuple(jnp.asarray(float(k == n)) for k in range(len(point)))
        gaps.append(value * jax.jvp(lambda *c: slope(z, c), point, along)[1])
    first = spots.at[place, 0, "slope"]
    return _mixed(knobs[first : first + len(gaps)], jax.lax.stop_gradient(gaps))


# ------------------------------------------------------------------------ words


def _line(eqn: Any) -> str:
    """The innermost line of the caller's code that made an operation, as "file.py:12: code"."""
    try:
        frames = eqn.source_info.traceback.frames
    except AttributeError:
        return ""
    package = str(Path(jax.__file__).parent)
    own = str(Path(__file__).parent)
    for frame in frames:
        if not frame.file_name.startswith((package, own)):
            code = linecache.getline(frame.file_name, frame.line_num).strip()
            return f"{Path(frame.file_name).name}:{frame.line_num}: {code}" if code else ""
    return ""


def _literal_text(value: float) -> str:
    return f"{value:.6g}"
