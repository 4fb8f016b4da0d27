"""Somebody's program of narrow floats, run in float64.

A float64 truth is what a check judges by, and it must be the truth of the user's own function.
Traced again with 64 bits enabled, a function may be another one: ``jax.random`` draws other
numbers, an array of float32 that was closed over or written out does not fit into a scan, a cast
to float32 rounds on.  Then the program that was traced without them is run operation by operation
with its floats in float64; the numbers that it draws stay those that it has drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from ..core.checks import is_inexact
from .diagnosis.rewiring import RULES, bound, lines_of
from .diagnosis.spots import CALLS, scan_sizes

Tree = Any
# Operations whose bits have a meaning, and those that draw.
OF_BITS = {"bitcast_convert_type", "random_bits", "random_seed", "random_wrap", "random_unwrap"}
CALLBACKS = {"pure_callback", "io_callback"}  # of the floats that they have been told
DRAWS = {"random_bits", "threefry2x32", "rng_bit_generator", "random_gamma"}


class Wide(NamedTuple):
    """A function in float64.

    Attributes:
        call: the function, of the same arguments with their floats in float64.
        own: whether it is the function itself, traced with 64 bits; else it is its narrower
            program, whose constants have been rounded to the narrower floats.
        narrow: names of the floats to which it rounds on the way all the same.
    """

    call: Callable[..., Tree]
    own: bool
    narrow: tuple[str, ...]

    @property
    def constants(self) -> float:
        """The share of a result that is rounding where nothing but constants is narrow."""
        return 1e-9 if self.own else 1e-6

    @property
    def tolerance(self) -> float:
        """The share of a result that may be rounding."""
        return 1e-4 if self.narrow else self.constants


def widened(f: Callable[..., Tree], args: tuple, x64: bool, anew: bool = True) -> Wide:
    """``f`` in float64; to be called, and its result, with 64 bits enabled.

    Args:
        f: a function of trees of arrays.
        args: where it is called in its own floats.
        x64: whether 64 bits are enabled in the process that ``f`` is from.
        anew: whether ``f`` may be traced anew; functions that are compared must all be, or none.
    """
    wide, least = cast(args, np.float64), _least(args)
    if least == 8:
        return Wide(f, True, _narrow_in(f, wide))
    if anew and _keeps(f, wide):
        return Wide(f, True, ())
    with jax.enable_x64(x64):
        traced, out = jax.make_jaxpr(f, return_shape=True)(*args)
    structure = jax.tree.structure(out)

    def call(*wide):
        given = zip(jax.tree.leaves(wide), traced.in_avals, strict=True)
        args = [leaf.astype(aval.dtype) if _is_integer(leaf) else leaf for leaf, aval in given]
        flat = _run(traced.jaxpr, traced.consts, args, least)
        return jax.tree.unflatten(structure, flat)

    return Wide(call, False, _narrow_in(call, wide))


def x64_enabled() -> bool:
    """Whether 64 bits are enabled here."""
    return jnp.result_type(float) == np.float64


def all_widened(fs: Sequence[Callable[..., Tree]], args: tuple, x64: bool) -> list[Wide]:
    """Functions of the same arguments in float64, all of them traced anew or none."""
    found = [widened(f, args, x64) for f in fs]
    if all(wide.own for wide in found):
        return found
    return [widened(f, args, x64, anew=False) for f in fs]


def _keeps(f: Callable[..., Tree], wide: tuple) -> bool:
    """Whether a function remains what it is where its arguments are of float64."""
    try:
        again = jax.make_jaxpr(f)(*wide).jaxpr
    except Exception:  # what it holds may be of float32, and anything may come of that
        return False
    special = any(eqn.primitive.name in DRAWS | CALLBACKS for eqn in _equations(again))
    return not special and not any(_roundings(again))


def cast(tree: Tree, dtype: Any) -> Tree:
    """Floats in another dtype, on the host: on the device each shape would be compiled for."""

    def of(leaf):
        if not is_inexact(leaf):
            return leaf
        with np.errstate(over="ignore"):  # what is too large for it is infinite there
            return np.asarray(leaf).astype(dtype)

    return jax.tree.map(of, tree)


def _least(args: tuple) -> int:
    """Bytes of the narrowest floats among the arguments."""
    leaves = jax.tree.leaves(args)
    return min((leaf.dtype.itemsize for leaf in leaves if is_inexact(leaf)), default=8)


def _is_integer(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.integer)


def narrow_casts(f: Callable[..., Tree], args: tuple) -> tuple[str, ...]:
    """The floats narrower than those of ``args`` to which ``f`` rounds on the way."""
    try:
        return _narrow_in(f, args, _least(args))
    except Exception:  # it cannot be traced, and what it does remains unknown
        return ()


def _narrow_in(f: Callable[..., Tree], args: tuple, least: int = 8) -> tuple[str, ...]:
    return tuple(sorted(set(_roundings(jax.make_jaxpr(f)(*args).jaxpr, least))))


# ------------------------------------------------------------------------- looking at it


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All equations, those of inner programs too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in _inner(eqn):
            yield from _equations(inner)


def _inner(eqn: Any) -> Iterator[Any]:
    for value in jax.tree.leaves(tuple(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
        if hasattr(value, "eqns"):
            yield getattr(value, "jaxpr", value)


def _roundings(jaxpr: Any, least: int = 8) -> Iterator[str]:
    """The narrower floats that are made of floats, constants aside."""
    for eqn in _equations(jaxpr):
        came = any(is_inexact(v.aval) for v in eqn.invars if not isinstance(v, Literal))
        for v in eqn.outvars:
            dtype = jnp.result_type(v.aval)
            if came and is_inexact(v.aval) and _size(dtype) < least:
                yield str(dtype)
        if eqn.primitive.name == "reduce_precision":
            bits = eqn.params["exponent_bits"], eqn.params["mantissa_bits"]
            for name in ("bfloat16", "float16", "float32"):
                info = jnp.finfo(name)
                if bits == (info.nexp, info.nmant) and info.dtype.itemsize < least:
                    yield name


def _size(dtype: Any) -> int:
    """Bytes of a real number of this dtype."""
    return dtype.itemsize // (2 if dtype.kind == "c" else 1)


# ----------------------------------------------------------------------------- running it


def _run(jaxpr: Any, consts: Any, args: Any, least: int) -> list[Any]:
    """The program with its floats of ``least`` bytes or more in float64."""

    def wide(value):
        return value if not is_inexact(value) else jnp.asarray(value, _wide(value.dtype, least))

    env: dict[Any, Any] = {}

    def read(v):
        return (
            wide(np.asarray(v.val, jnp.result_type(v.aval))) if isinstance(v, Literal) else env[v]
        )

    env.update(zip(jaxpr.constvars, map(wide, consts), strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        with lines_of(eqn):
            out = _applied(eqn, list(map(read, eqn.invars)), least)
        env.update(zip(eqn.outvars, map(wide, out), strict=True))
    return list(map(read, jaxpr.outvars))


def _applied(eqn: Any, values: list[Any], least: int) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    calls = CALLS | RULES
    if name in calls and calls[name] in params:
        return _call(params[calls[name]], least)(*values)
    if name == "scan":
        return _scan(params, values, least)
    if name == "while":
        return _while(params, values, least)
    if name == "cond":
        index, *operands = values
        branches = [_call(branch, least) for branch in params["branches"]]
        return list(jax.lax.switch(index, branches, *operands))
    if name.startswith("scatter") and hasattr(jax.lax, name.replace("-", "_")):
        # Whose own program of one update is of narrow floats.
        given = {k: v for k, v in params.items() if not k.startswith("update_")}
        numbers = given.pop("dimension_numbers")
        return [getattr(jax.lax, name.replace("-", "_"))(*values, numbers, **given)]
    if name not in OF_BITS | CALLBACKS and not any(_inner(eqn)):
        wide = {k: _wide(v, least) if isinstance(v, np.dtype) else v for k, v in params.items()}
        try:
            return bound(eqn, values, wide)
        except (TypeError, ValueError, NotImplementedError):  # it knows its own floats only
            pass
    own = [
        jnp.asarray(value, v.aval.dtype) if is_inexact(v.aval) else value
        for value, v in zip(values, eqn.invars, strict=True)
    ]
    return bound(eqn, own)


def _call(closed: Any, least: int) -> Callable[..., list[Any]]:
    jaxpr, consts = (closed.jaxpr, closed.consts) if hasattr(closed, "jaxpr") else (closed, ())
    return lambda *args: _run(jaxpr, consts, args, least)


def _scan(params: dict[str, Any], values: list[Any], least: int) -> list[Any]:
    consts, carry = scan_sizes(params)
    body = _call(params["jaxpr"], least)

    def step(held, entries):
        out = body(*values[:consts], *held, *entries)
        return out[:carry], out[carry:]

    first, entries = values[consts : consts + carry], values[consts + carry :]
    last, stacked = jax.lax.scan(
        step, first, entries, length=params["length"], reverse=params["reverse"]
    )
    return [*last, *stacked]


def _while(params: dict[str, Any], values: list[Any], least: int) -> list[Any]:
    asked, done = params["cond_nconsts"], params["body_nconsts"]
    goes_on, body = (_call(params[name], least) for name in ("cond_jaxpr", "body_jaxpr"))
    of_question, of_body, held = (
        values[:asked],
        values[asked : asked + done],
        values[asked + done :],
    )
    return list(
        jax.lax.while_loop(
            lambda held: goes_on(*of_question, *held)[0],
            lambda held: body(*of_body, *held),
            held,
        )
    )


def _wide(dtype: Any, least: int) -> Any:
    if not jnp.issubdtype(dtype, jnp.inexact) or _size(dtype) < least:
        return dtype
    return np.dtype(np.complex128 if dtype.kind == "c" else np.float64)
