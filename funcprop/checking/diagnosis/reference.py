"""What a computation would give, were one of its operations another one.

Of two functions that ought to give the same, the one that is trusted is run again with one operand
left out, counted twice or negated, and with one operation left out, for all of them; what agrees
with the other function explains it.  No derivative is taken: the functions may be anything, a
gradient or a statistic of gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from ...core.checks import is_inexact
from .rewiring import FAST, bound, in_chunks, inlined
from .spots import line_of

MOST = 2_000  # how many places are changed at most
NUMBERS = 20_000_000  # and how many numbers the results may have
SCALES = {
    "missing term": (-1.0, "is missing"),
    "counted twice": (1.0, "is counted twice"),
    "sign": (-2.0, "has the other sign"),
}
TERMS = {"add", "add_any", "sub", "concatenate"}
FACTORS = {"mul", "dot_general", "reduce_sum"}


class Other(NamedTuple):
    """A changed operation: the mistake's name, the change in words, its line, and its rank."""

    kind: str
    what: str
    line: str
    rank: int


def others(f: Callable[..., Any], args: tuple) -> tuple[list[Other], list[np.ndarray]]:
    """All changes of ``f(*args)``, and the leaves of its results, a change a row."""
    leaves, structure = jax.tree.flatten(args)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    flat = jax.make_jaxpr(inlined(lambda args: f(*args), structure, True))(*leaves)
    tries: list[tuple[tuple[int, int], float]] = []
    found: list[Other] = []
    for i, eqn in enumerate(flat.jaxpr.eqns):
        if not any(is_inexact(v.aval) for v in eqn.outvars):
            continue
        name, line = eqn.primitive.name, line_of(eqn)
        operands = [k for k, v in enumerate(eqn.invars) if is_inexact(v.aval)]
        for k in operands if name in TERMS | FACTORS else ():
            if isinstance(eqn.invars[k], Literal):
                continue
            for kind, (s, words) in SCALES.items():
                tries.append(((i, k), s))
                what = f"operand {k + 1} of {name} {words}"
                found.append(Other(kind, what, line, 3 if name in TERMS else 4))
        same = len(operands) == 1 and len(eqn.outvars) == 1
        if same and eqn.invars[operands[0]].aval.shape == eqn.outvars[0].aval.shape:
            tries.append(((i, -1), 1.0))
            found.append(Other("wrong function", f"{name} is left out", line, 3))
    size = sum(v.aval.size for v in flat.jaxpr.outvars)
    count = min(len(tries), MOST, max(1, NUMBERS // max(size, 1)))
    tries, found = tries[:count], found[:count]
    at = {key: n for n, key in enumerate(dict.fromkeys(key for key, _ in tries))}
    rows = np.zeros((count, len(at)), np.float32)
    for n, (key, s) in enumerate(tries):
        rows[n, at[key]] = s

    def run(row, *leaves):
        env = dict(zip(flat.jaxpr.constvars, flat.consts, strict=True))
        env.update(zip(flat.jaxpr.invars, leaves, strict=True))

        def read(v):
            return v.val if isinstance(v, Literal) else env[v]

        for i, eqn in enumerate(flat.jaxpr.eqns):
            values = [read(v) for v in eqn.invars]
            for k, v in enumerate(values):
                if (i, k) in at:
                    values[k] = v * (1 + row[at[i, k]]).astype(v.dtype)
            out = bound(eqn, values)
            if (i, -1) in at:
                (v,) = (v for v in values if is_inexact(v))
                out = [jnp.where(row[at[i, -1]] > 0, v.astype(out[0].dtype), out[0])]
            env.update(zip(eqn.outvars, out, strict=True))
        return [read(v) for v in flat.jaxpr.outvars]

    every = jax.jit(
        lambda rows, *leaves: in_chunks(lambda row: run(row, *leaves), rows),
        compiler_options=FAST,
    )
    return found, jax.device_get(every(rows, *leaves))
