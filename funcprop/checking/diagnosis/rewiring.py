"""What a gradient would be, were one step of its derivation another one.

A forward pass is a graph of primitive operations, and its gradient a sum over the paths through
it.  A usual mistake changes one place of that graph: a path is left out or counted twice, a
derivative is taken at the wrong point, an operand is shifted by one.  Every such change enters the
gradient linearly,

    g(s) = g + s ∂g/∂s,

so one forward derivative of the automatic gradient by all the s at once tells what each change
would do, and a wrong gradient can be laid beside all of them.  Inside a scan a change acts in
every step, and the gradient is a polynomial of s; there, and of several changes together, it is
computed as it is; so is that of another constant, which is not linear either.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from ...core.checks import is_inexact
from .slopes import SLOPES
from .spots import CALLS, Change, Spots, line_of, scan_sizes, visit

try:  # the lines of the operations, which jax keeps to itself
    from jax._src.source_info_util import user_context
except ImportError:  # an explanation without its line is one still

    def user_context(traceback):  # type: ignore[no-redef]
        return contextlib.nullcontext()


Tree = Any
MOST = 4_000  # how many changes are tried at most
NUMBERS = 40_000_000  # and how many numbers they may hold
CHUNK = 64
# What runs once and takes longer to compile than to run.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


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
    flat = jax.make_jaxpr(inlined(value, structure, openly))(*leaves)
    spots = Spots(slopes)
    visit(flat.jaxpr, [True] * len(leaves), (), spots)
    size = sum(leaf.size for leaf in leaves)
    count = min(len(spots.changes), MOST, max(1, NUMBERS // max(size, 1)))
    changes = spots.changes[:count]

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
        return g, in_chunks(along, jnp.eye(count, len(none)))

    g, effects = jax.device_get(jax.jit(all_of, compiler_options=FAST)(*leaves))

    several = jax.jit(
        lambda rows, *leaves: in_chunks(lambda row: gradient(row, *leaves), rows),
        compiler_options=FAST,
    )

    def at(rows):
        rows = np.pad(rows, ((0, 0), (0, len(spots.changes) - count)))
        return jax.device_get(several(rows, *leaves))

    return Rewired(g, changes, effects, at)


def in_chunks(f: Callable[[Any], Tree], rows: Any) -> Tree:
    """f of each row, some rows at a time, in one loop: f is compiled once."""
    count = len(rows)
    if count <= CHUNK:
        return jax.vmap(f)(rows)
    padded = jnp.pad(rows, ((0, -count % CHUNK), (0, 0)))
    found = jax.lax.map(jax.vmap(f), padded.reshape(-1, CHUNK, rows.shape[1]))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], found)


def opened(value: Callable[[Tree], jax.Array]) -> Callable[[Tree], jax.Array]:
    """``value`` without the derivative rules that functions in it bring along."""

    def of(point):
        leaves, structure = jax.tree.flatten(point)
        return inlined(value, structure, True)(*leaves)[0]

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


# ------------------------------------------------------------------------ running it

RULES = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


def inlined(value, structure, openly):
    """``value`` of the leaves, traced with the calls in it opened."""
    calls = CALLS | RULES if openly else CALLS

    def of(*leaves):
        closed = jax.make_jaxpr(lambda *leaves: value(jax.tree.unflatten(structure, leaves)))(
            *leaves
        )
        return _run(closed.jaxpr, closed.consts, leaves, (), None, None, calls)

    return of


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
            with lines_of(eqn):
                out = _run(inner, kept, values, place, spots, knobs, calls)
        elif name == "scan":
            with lines_of(eqn):
                out = _run_scan(eqn, values, place, spots, knobs, calls)
        else:
            out = bound(eqn, values)
            if spots is not None:
                out = _products(eqn, values, out, place, spots, knobs, env, after)
        if i in blocks:
            other = _other_slopes(jaxpr, blocks[i], env, out[0], place, spots, knobs)
            out = [_with_slope(out[0], env[blocks[i].z], other)]
        env.update(zip(eqn.outvars, out, strict=True))
    return [read(v) for v in jaxpr.outvars]


def bound(eqn, values, params=None):
    """An operation on other values than its own, with other parameters if they are given."""
    given = eqn.primitive.get_bind_params(eqn.params if params is None else params)
    functions, params = given if isinstance(given, tuple) else ((), given)  # before jax 0.10.2
    with lines_of(eqn):
        out = eqn.primitive.bind(*functions, *values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def lines_of(eqn):
    """Gives the operations made inside the line of this one, if it has one."""
    own = line_of(eqn)
    return user_context(eqn.source_info.traceback) if own else contextlib.nullcontext()


def _run_scan(eqn, values, place, spots, knobs, calls):
    body, params = eqn.params["jaxpr"], eqn.params
    consts, carry = scan_sizes(params)
    counted = [key for key in (spots.at if spots else ()) if key[0] == place and "steps" in key]
    numbers = [jnp.arange(params["length"])] if counted else []

    def step(held, entries, spots=spots, after=None):
        args = [*values[:consts], *held, *entries[len(numbers) :]]
        for key in counted if spots else ():
            _, k, _, steps = key
            beyond = ~jnp.isin(entries[0], np.array(steps))
            args[k] = _scaled(args[k], -knobs[spots.at[key]] * beyond)
        out = _run(body.jaxpr, body.consts, args, place, spots, knobs, calls, after)
        return out[:carry], out[carry:]

    first, entries = values[consts : consts + carry], [*numbers, *values[consts + carry :]]
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
    """The results of an operation, with other maps in its place and other factors in it."""
    for k in range(len(values)):
        held = jax.lax.stop_gradient(values)
        for n, twin in enumerate(spots.twins.get((place, k), ())):
            ghosts = [*held[:k], _phantom(values[k]), *held[k + 1 :]]
            maps = twin.of(ghosts, held[k]), twin.own(ghosts, held[k])
            gaps = jax.tree.leaves(jax.tree.map(jnp.subtract, *maps))
            knob = knobs[spots.at[place, k, "twin", n]]
            out = [y + knob * gap for y, gap in zip(out, gaps, strict=True)]
        others = spots.others.get((place, k), ())
        if others:
            own = held[1 - k]
            found = [
                jax.lax.stop_gradient(_other(kind, source, own, eqn.invars[1 - k], env, after))
                for kind, source in others
            ]
            first = spots.at[place, k, 0]
            pair: list[Any] = [None, None]
            pair[k] = _phantom(values[k])
            pair[1 - k] = _mixed(knobs[first : first + len(found)], [f - own for f in found])
            out = [out[0] + eqn.primitive.bind(*pair, **eqn.params)]
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
        inner = {v: jax.lax.stop_gradient(a) if is_inexact(a) else a for v, a in env.items()}
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
            out = bound(eqn, list(map(read, eqn.invars)))
            inner.update(zip(eqn.outvars, out, strict=True))
        return out[0]

    def slope(z, literals=None):
        return jax.jvp(lambda z: again(z, literals), (z,), (jnp.ones_like(z),))[1]

    own = slope(z)
    y = jax.lax.stop_gradient(y)
    gaps = [SLOPES[name](z, y, slope) - own for name in block.names]
    first = spots.at[place, 0, "slope"]
    found = _mixed(knobs[first : first + len(gaps)], jax.lax.stop_gradient(gaps))
    for n, value in enumerate(block.literals):
        constants = list(map(jnp.asarray, block.literals))
        constants[n] = value * (1 + knobs[spots.at[place, n, "constant"]])
        found = found + slope(z, constants) - own
    return found
