"""Traced functions, evaluated with a change in the place of one equation.

A place in a program is a path of steps, each the name of a primitive, the number of that equation
among those of its name, and the inner program that the path goes on in.  So it is the same place in
every dtype: casts come and go, the other equations do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal

Tree = Any
Values = list[Any]
Step = tuple[str, int, str]
Change = Callable[[Any, Values, Callable[[int], Any]], Values]
"""``change(equation, operands, inputs) -> results`` takes an equation's place.

``inputs(n)`` is input n of the program that it stands in.  An argument of the whole has ``None``
for its equation and itself as the only operand.
"""

ARGUMENT = "argument"
WHOLE = ("jit", "closed_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call")


class Program(NamedTuple):
    """A traced function: its jaxpr, names of its inputs, and the structure of its results."""

    jaxpr: Any
    consts: Sequence[Any]
    names: tuple[str, ...]
    structure: Any


def traced(f: Callable[..., Tree], args: tuple, names: Sequence[str] = ()) -> Program:
    """The program of ``f(*args)``; leaves of ``args`` that are no arrays stay as they are."""
    found, structure = jax.tree_util.tree_flatten_with_path(args)
    leaves = [leaf for _, leaf in found]
    chosen = [n for n, leaf in enumerate(leaves) if _is_array(leaf)]

    def flat(*arrays):
        filled = list(leaves)
        for n, array in zip(chosen, arrays, strict=True):
            filled[n] = array
        return f(*jax.tree.unflatten(structure, filled))

    def name(path):
        own = names[path[0].idx] if names else f"argument {path[0].idx}"
        return own + jax.tree_util.keystr(path[1:])

    closed, out = jax.make_jaxpr(flat, return_shape=True)(*(leaves[n] for n in chosen))
    words = tuple(name(found[n][0]) for n in chosen)
    return Program(closed.jaxpr, closed.consts, words, jax.tree.structure(out))


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def run(
    program: Program, args: tuple, path: tuple[Step, ...] = (), change: Change | None = None
) -> Tree:
    """What the program gives for ``args``, with ``change`` at the end of ``path``."""
    arrays = [leaf for leaf in jax.tree.leaves(args) if _is_array(leaf)]
    outs = evaluated(program.jaxpr, program.consts, arrays, path, change)
    return jax.tree.unflatten(program.structure, outs)


def steps(jaxpr: Any) -> Iterator[tuple[tuple[str, int], Any]]:
    """The equations, each with its name and its number among those of that name."""
    seen: Counter[str] = Counter()
    for eqn in jaxpr.eqns:
        seen[eqn.primitive.name] += 1
        yield (eqn.primitive.name, seen[eqn.primitive.name]), eqn


def evaluated(jaxpr, consts, args, path=(), change=None) -> Values:
    """The results of a jaxpr, with ``change`` at the end of ``path``."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    inputs = [values[v] for v in jaxpr.invars].__getitem__
    (name, number, inside), *rest = path or [("", 0, "")]
    met = not path
    if name == ARGUMENT:
        v, met = jaxpr.invars[number], True
        values[v] = _alike(change(None, [values[v]], inputs), [v.aval])[0]
    for here, eqn in steps(jaxpr):
        operands = [v.val if isinstance(v, Literal) else values[v] for v in eqn.invars]
        if here != (name, number):
            results = apply(eqn, operands)
        elif inside:
            met, results = True, _inside(eqn, operands, inside, rest, change)
        else:
            met, results = True, change(eqn, operands, inputs)
            results = _alike(results, [v.aval for v in eqn.outvars])
        values.update(zip(eqn.outvars, results, strict=True))
    if not met:
        raise LookupError(f"the program has no equation {name} {number}")
    return [v.val if isinstance(v, Literal) else values[v] for v in jaxpr.outvars]


def _alike(results: Values, due: Sequence[Any]) -> Values:
    """The results in the dtypes and shapes of those that they replace."""
    cast = [jnp.asarray(a).astype(b.dtype) for a, b in zip(results, due, strict=True)]
    return [jnp.broadcast_to(a, b.shape) for a, b in zip(cast, due, strict=True)]


def apply(eqn: Any, operands: Values, **params: Any) -> Values:
    """The results of an equation, some of its parameters replaced."""
    if eqn is None:
        return operands
    if eqn.primitive.name in WHOLE:
        return _inside(eqn, operands, "whole", (), None)
    bound = eqn.primitive.get_bind_params({**eqn.params, **params})
    with eqn.ctx.manager:
        found = eqn.primitive.bind(*operands, **bound)
    return list(found) if eqn.primitive.multiple_results else [found]


def inner(eqn: Any) -> dict[str, Any]:
    """By label the programs inside an equation in which a change can be made."""
    name, params = eqn.primitive.name, eqn.params
    if name in WHOLE:
        return {"whole": params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]}
    if name == "scan":
        return {"step": params["jaxpr"]}
    if name == "while":
        return {"body": params["body_jaxpr"]}
    if name == "cond" and not params.get("branches_platforms"):
        return {f"branch {n}": branch for n, branch in enumerate(params["branches"])}
    return {}


def called(program: Any, path=(), change=None) -> Callable[..., Values]:
    """An inner program as a function."""
    jaxpr, consts = getattr(program, "jaxpr", program), getattr(program, "consts", ())
    return lambda *args: evaluated(jaxpr, consts, args, path, change)


def _inside(eqn, operands, label, path, change) -> Values:
    """The results of an equation with a change in one of its inner programs."""
    body, params = called(inner(eqn)[label], path, change), eqn.params
    if label == "whole":
        return body(*operands)
    if label == "step":
        return scanned(eqn, operands, body)
    if label == "body":
        a = params["cond_nconsts"]
        b = a + params["body_nconsts"]
        test = called(params["cond_jaxpr"])
        return lax.while_loop(
            lambda carry: test(*operands[:a], *carry)[0],
            lambda carry: body(*operands[a:b], *carry),
            operands[b:],
        )
    branches = {name: called(branch) for name, branch in inner(eqn).items()} | {label: body}
    return lax.switch(operands[0], list(branches.values()), *operands[1:])


def scan_sizes(params: dict[str, Any]) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many are carried."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = map(len, params["ft_in"].unpack())  # since jax 0.11
    return consts, carry


def scanned(eqn: Any, operands: Values, body: Callable[..., Values]) -> Values:
    """The results of a scan with another step."""
    params = eqn.params
    a, count = scan_sizes(params)

    def step(carry, x):
        outs = body(*operands[:a], *carry, *x)
        return outs[:count], outs[count:]

    start, xs = operands[a : a + count], operands[a + count :]
    carry, ys = lax.scan(step, start, xs, length=params["length"], reverse=params["reverse"])
    return [*carry, *ys]
