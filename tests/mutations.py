"""Wrong gradients of every kind that a program can have: changes of one equation of its jaxpr.

:func:`mutations` traces a backward pass (or any function of arrays) and lists what can be changed
in it; :func:`changed` gives the function with one of them made, whatever the dtypes that it is
called with.  Nothing here knows how a check finds or names a fault.

A place in a program is a path of steps, each the name of a primitive, the number of that equation
among those of its name, and the inner program that the path goes on in.  So it is the same place in
every dtype: casts come and go, the other equations do not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal

from funcprop import gradient

Tree = Any
Step = tuple[str, int, str]
Values = list[Any]
Change = Callable[[Any, Values, Callable[[int], Any]], Values]
"""``change(equation, operands, inputs) -> results`` takes an equation's place.

``inputs(n)`` is input n of the program that it stands in; an argument of the whole has ``None`` for
its equation and itself as the only operand.
"""

ARGUMENT = "argument"
WHOLE = ("jit", "closed_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call")


class Mutation(NamedTuple):
    """A change that can be made.

    Attributes:
        kind: a key of :data:`KINDS`.
        path: where.
        place: where, in words.
        words: what is done.
        change: what takes the place of the equation there.
    """

    kind: str
    path: tuple[Step, ...]
    place: str
    words: str
    change: Change

    @property
    def name(self) -> str:
        return f"{self.place}: {self.words}"


# -------------------------------------------------------------------------------- evaluation


class Program(NamedTuple):
    """A traced function: its jaxpr, the names of its inputs and how its results are put together."""

    jaxpr: Any
    consts: Sequence[Any]
    names: tuple[str, ...]
    structure: Any


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


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

    closed, out = jax.make_jaxpr(flat, return_shape=True)(*(leaves[n] for n in chosen))
    words = []
    for n in chosen:
        first, *rest = found[n][0]
        word = names[first.idx] if names else f"argument {first.idx}"
        words.append(word + jax.tree_util.keystr(tuple(rest)))
    return Program(closed.jaxpr, closed.consts, tuple(words), jax.tree.structure(out))


def run(program: Program, args: tuple, mutation: Mutation | None = None) -> Tree:
    """What the program gives for ``args``, with a mutation made in it."""
    arrays = [leaf for leaf in jax.tree.leaves(args) if _is_array(leaf)]
    path, change = ((), None) if mutation is None else (mutation.path, mutation.change)
    outs = _evaluate(program.jaxpr, program.consts, arrays, path, change)
    return jax.tree.unflatten(program.structure, outs)


def steps(jaxpr: Any) -> Iterator[tuple[tuple[str, int], Any]]:
    """The equations with their numbers among those of one name."""
    seen: Counter[str] = Counter()
    for eqn in jaxpr.eqns:
        seen[eqn.primitive.name] += 1
        yield (eqn.primitive.name, seen[eqn.primitive.name]), eqn


def _evaluate(jaxpr, consts, args, path, change) -> Values:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    first, rest = (path[0], path[1:]) if path else (("", 0, ""), ())
    inputs = [values[v] for v in jaxpr.invars]
    if first[0] == ARGUMENT:
        n = first[1]
        values[jaxpr.invars[n]] = _as_due(change(None, [inputs[n]], inputs.__getitem__), [inputs[n]])[0]
    met = False
    for here, eqn in steps(jaxpr):
        operands = [v.val if isinstance(v, Literal) else values[v] for v in eqn.invars]
        if here != first[:2]:
            results = apply(eqn, operands)
        elif first[2]:
            met = True
            results = _inside(eqn, operands, first[2], rest, change)
        else:
            met = True
            results = _as_due(
                change(eqn, operands, inputs.__getitem__), [v.aval for v in eqn.outvars]
            )
        values.update(zip(eqn.outvars, results, strict=True))
    if path and not met and first[0] != ARGUMENT:
        raise LookupError(f"the program has no equation {first}")
    return [v.val if isinstance(v, Literal) else values[v] for v in jaxpr.outvars]


def _as_due(results: Values, due: Sequence[Any]) -> Values:
    """The results in the dtypes and shapes of those that they replace."""
    made = []
    for result, aval in zip(results, due, strict=True):
        result = result if jnp.result_type(result) == aval.dtype else result.astype(aval.dtype)
        made.append(jnp.broadcast_to(result, aval.shape))
    return made


def apply(eqn: Any, operands: Values, **params: Any) -> Values:
    """The results of an equation, some of its parameters replaced."""
    if eqn is None:
        return operands
    if eqn.primitive.name in WHOLE and not params:
        return _inside(eqn, operands, "whole", (), None)
    bound = eqn.primitive.get_bind_params({**eqn.params, **params})
    with eqn.ctx.manager:
        found = eqn.primitive.bind(*operands, **bound)
    return list(found) if eqn.primitive.multiple_results else [found]


def inner(eqn: Any) -> dict[str, tuple[Any, Sequence[Any]]]:
    """The programs inside an equation in which a change can be made, with their constants."""
    name, params = eqn.primitive.name, eqn.params
    if name in WHOLE:
        found = {"whole": params.get("jaxpr", params.get("call_jaxpr"))}
    elif name == "scan":
        found = {"step": params["jaxpr"]}
    elif name == "while":
        found = {"body": params["body_jaxpr"]}
    elif name == "cond" and not params.get("branches_platforms"):
        found = {f"branch {n}": branch for n, branch in enumerate(params["branches"])}
    else:
        found = {}
    return {
        label: (program.jaxpr, program.consts) if hasattr(program, "consts") else (program, ())
        for label, program in found.items()
    }


def _inside(eqn, operands, label, path, change) -> Values:
    """The results of an equation with a change in one of its inner programs."""
    jaxpr, consts = inner(eqn)[label]
    params = eqn.params

    def body(*args):
        return _evaluate(jaxpr, consts, args, path, change)

    if label == "whole":
        return body(*operands)
    if label == "step":
        return scanned(eqn, operands, body)
    if label == "body":
        a, b = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        test = params["cond_jaxpr"]
        return lax.while_loop(
            lambda carry: _evaluate(test.jaxpr, test.consts, [*operands[:a], *carry], (), None)[0],
            lambda carry: body(*operands[a:b], *carry),
            operands[b:],
        )
    chosen = int(label.split()[1])
    branches = [
        body if n == chosen else lambda *args, own=own: _evaluate(own.jaxpr, own.consts, args, (), None)
        for n, own in enumerate(params["branches"])
    ]
    return lax.switch(operands[0], branches, *operands[1:])


def scanned(eqn: Any, operands: Values, body: Callable[..., Values]) -> Values:
    """The results of a scan with another step."""
    params = eqn.params
    a = params["num_consts"]
    b = a + params["num_carry"]

    def step(carry, x):
        outs = body(*operands[:a], *carry, *x)
        return outs[: b - a], outs[b - a :]

    carry, ys = lax.scan(
        step, operands[a:b], operands[b:], length=params["length"], reverse=params["reverse"]
    )
    return [*carry, *ys]


# ------------------------------------------------------------------------------ what can be done


class Place(NamedTuple):
    """An equation, or an argument of the whole, as the kinds of change look at it.

    Attributes:
        eqn: the equation; ``None`` for an argument.
        operands, results: what goes in and comes out, as abstract values.
        inputs: names and abstract values of the inputs of the program that it stands in.
        before: of each operand the equation that it is the result of, or ``None``.
        input: of an argument its number.
    """

    eqn: Any
    operands: tuple[Any, ...]
    results: tuple[Any, ...]
    inputs: tuple[tuple[str, Any], ...]
    before: tuple[Any, ...] = ()
    input: int | None = None

    @property
    def name(self) -> str:
        return ARGUMENT if self.eqn is None else self.eqn.primitive.name


Kind = Callable[[Place], Iterator[tuple[str, Change]]]


class Described(NamedTuple):
    """A kind of change.

    Attributes:
        of: lists what of this kind can be done at a place.
        anywhere: whether it can be done to any result; else it belongs to an operation.
        meanings: names of mistakes (keys of ``funcprop.checking.MISTAKES``) that describe it
            wherever it is made; none where that depends on what stands around it.
    """

    of: Kind
    anywhere: bool
    meanings: tuple[str, ...]


KINDS: dict[str, Described] = {}


def kind(name: str, *meanings: str, anywhere: bool = False) -> Callable[[Kind], Kind]:
    """Enters a kind of change into :data:`KINDS`."""

    def entered(of: Kind) -> Kind:
        KINDS[name] = Described(of, anywhere, meanings)
        return of

    return entered


def is_float(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jnp.inexact)


def same(a: Any, b: Any) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def to_result(f: Callable[[Any], Any]) -> Change:
    """The results that are floats go through ``f``."""
    return lambda eqn, xs, inputs: [f(y) if is_float(y) else y for y in apply(eqn, xs)]


def to_operand(n: int, f: Callable[[Any], Any]) -> Change:
    """Operand n goes through ``f``."""
    return lambda eqn, xs, inputs: apply(eqn, [*xs[:n], f(xs[n]), *xs[n + 1 :]])


def instead(f: Callable[..., Any]) -> Change:
    """``f(*operands)`` is the result."""
    return lambda eqn, xs, inputs: [f(*xs)]


def with_params(**params: Any) -> Change:
    return lambda eqn, xs, inputs: apply(eqn, xs, **params)


def floats_at(place: Place) -> bool:
    return bool(place.results) and all(y.size and is_float(y) for y in place.results)


def axes(place: Place, least: int = 2) -> Iterator[tuple[int, int]]:
    """Axes of a result of which all have one shape, with their sizes."""
    if floats_at(place) and len({y.shape for y in place.results}) == 1:
        for axis, size in enumerate(place.results[0].shape):
            if size >= least:
                yield axis, size


def square_axes(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    for i in range(len(shape)):
        for j in range(i):
            if shape[i] == shape[j] > 1:
                yield j, i


# To any result.


def anywhere(name: str, *meanings: str) -> Callable[[Callable[[Any], Any]], Any]:
    """A kind that is one function of a result of floats."""

    def entered(f):
        def of(place):
            if floats_at(place):
                yield name, to_result(f)

        kind(name, *meanings, anywhere=True)(of)
        return f

    return entered


anywhere("negated", "sign")(lambda y: -y)
anywhere("doubled", "factor", "counted twice")(lambda y: 2 * y)
anywhere("halved", "factor")(lambda y: y / 2)
anywhere("stopped", "stopped", "missing term")(jnp.zeros_like)
anywhere("off by 1 %", "factor")(lambda y: 1.01 * y)


@anywhere("rounded to bfloat16", "low precision")
def _rounded(y):
    if jnp.iscomplexobj(y):
        return lax.complex(_rounded(y.real), _rounded(y.imag))
    return y.astype(jnp.bfloat16).astype(y.dtype)


@anywhere("clipped to [-1, 1]", "not linear", "wrong function")
def _clipped(y):
    return lax.complex(_clipped(y.real), _clipped(y.imag)) if jnp.iscomplexobj(y) else y.clip(-1, 1)


@kind("scaled by a size", "factor", anywhere=True)
def _scaled(place):
    sizes = {size for x in place.operands if is_float(x) for size in x.shape if size > 2}
    if floats_at(place):
        for size in sorted(sizes):
            yield f"multiplied by a size of {size}", to_result(lambda y, n=size: n * y)
            yield f"divided by a size of {size}", to_result(lambda y, n=size: y / n)


@kind("one entry of an axis", "stopped", "missing term", "factor", anywhere=True)
def _entry(place):
    for axis, size in axes(place):
        for word, n in (("first", 0), ("last", size - 1)):
            yield (
                f"{word} entry of axis {axis} stopped",
                to_result(lambda y, a=axis, n=n: y * (np.arange(y.shape[a]) != n).reshape(
                    [-1 if b == a else 1 for b in range(y.ndim)])),
            )


@kind("only one entry of an axis", "missing term", "stopped", anywhere=True)
def _only(place):
    for axis, size in axes(place):
        for word, n in (("first", 0), ("last", size - 1)):
            yield (
                f"all but the {word} entry of axis {axis} stopped",
                to_result(lambda y, a=axis, n=n: y * (np.arange(y.shape[a]) == n).reshape(
                    [-1 if b == a else 1 for b in range(y.ndim)])),
            )


@kind("rolled", "off by one", "transpose", anywhere=True)
def _rolled(place):
    for axis, _ in axes(place):
        yield f"rolled by one along axis {axis}", to_result(lambda y, a=axis: jnp.roll(y, 1, a))


@kind("reversed", "transpose", anywhere=True)
def _reversed(place):
    for axis, _ in axes(place):
        yield f"reversed along axis {axis}", to_result(lambda y, a=axis: jnp.flip(y, a))


@kind("transposed", "transpose", anywhere=True)
def _transposed(place):
    if len(place.results) == 1 and floats_at(place):
        for i, j in square_axes(place.results[0].shape):
            yield f"axes {i} and {j} exchanged", to_result(
                lambda y, i=i, j=j: jnp.swapaxes(y, i, j)
            )


# To an argument of the whole.


@kind("argument replaced", "wrong place", "transpose", "wrong function")
def _replaced(place):
    if place.input is not None:
        for n, (name, aval) in enumerate(place.inputs):
            if n != place.input and same(aval, place.operands[0]):
                yield f"{name} in its place", lambda eqn, xs, inputs, n=n: [inputs(n)]


@kind("integers shifted", "off by one")
def _shifted(place):
    if place.input is not None and jnp.issubdtype(place.operands[0].dtype, jnp.integer):
        yield "one more", lambda eqn, xs, inputs: [xs[0] + 1]
        yield "one less", lambda eqn, xs, inputs: [xs[0] - 1]


@kind("mask ignored", "mask ignored")
def _mask(place):
    if place.input is not None and place.operands[0].dtype == bool:
        yield "all true", lambda eqn, xs, inputs: [jnp.ones_like(xs[0])]
        yield "inverted", lambda eqn, xs, inputs: [~xs[0]]


# To an operation.


@kind("operand from elsewhere", "wrong place", "wrong function")
def _elsewhere(place):
    if place.name in ("add", "sub", "mul", "div", "dot_general", "max", "min", "exp", "tanh"):
        for n, x in enumerate(place.operands):
            for m, (name, aval) in enumerate(place.inputs):
                if is_float(x) and same(x, aval):
                    yield (
                        f"{name} for operand {n}",
                        lambda eqn, xs, inputs, n=n, m=m: apply(
                            eqn, [*xs[:n], inputs(m), *xs[n + 1 :]]
                        ),
                    )


@kind("addend left out", "missing term")
def _left_out(place):
    if place.name in ("add", "add_any", "sub") and floats_at(place):
        yield "operand 0 left out", to_operand(0, jnp.zeros_like)
        yield "operand 1 left out", to_operand(1, jnp.zeros_like)


@kind("addend counted twice", "counted twice", "factor")
def _twice(place):
    if place.name in ("add", "add_any", "sub") and floats_at(place):
        yield "operand 0 counted twice", to_operand(0, lambda x: 2 * x)
        yield "operand 1 counted twice", to_operand(1, lambda x: 2 * x)


@kind("sum for difference", "sign")
def _signs(place):
    if floats_at(place) and place.name in ("add", "add_any", "sub"):
        yield "sign of operand 1", to_operand(1, lambda x: -x)
        yield "sign of operand 0", to_operand(0, lambda x: -x)


@kind("operands exchanged", "sign", "transpose", "wrong function")
def _exchanged(place):
    if place.name in ("div", "atan2", "pow", "complex") and same(*place.operands):
        yield "operands exchanged", lambda eqn, xs, inputs: apply(eqn, xs[::-1])


@kind("factor left out", "factor", "wrong function", "missing term")
def _factor(place):
    if place.name == "mul" and floats_at(place):
        yield "operand 0 left out", instead(lambda a, b: b)
        yield "operand 1 left out", instead(lambda a, b: a)
    if place.name == "div" and floats_at(place):
        yield "not divided", instead(lambda a, b: a)


@kind("factor squared", "factor", "wrong function", "counted twice")
def _squared(place):
    if place.name in ("mul", "div") and floats_at(place):
        yield "operand 1 squared", to_operand(1, lambda x: x * x)
        yield "operand 0 squared", to_operand(0, lambda x: x * x)


@kind("constant", "factor", "wrong function", "counted twice")
def _constant(place):
    if place.eqn is None or place.name in ("select_n", "pad", *WHOLE) or not floats_at(place):
        return
    for n, v in enumerate(place.eqn.invars):
        if isinstance(v, Literal) and is_float(v.aval) and np.ndim(v.val) == 0 and v.val != 0:
            value = complex(v.val) if np.iscomplexobj(v.val) else float(v.val)
            yield f"{value:.3g} doubled", to_operand(n, lambda x: 2 * x)
            yield f"{value:.3g} negated", to_operand(n, lambda x: -x)
            if abs(value) != 1:
                yield f"{value:.3g} replaced by 1", to_operand(n, jnp.ones_like)
            if abs(value) < 0.1 and place.name in ("add", "max"):
                yield f"{value:.3g} left out", to_operand(n, jnp.zeros_like)


ALIKE = (
    ("tanh", "logistic", "erf", "sin"),
    ("sin", "cos"),
    ("exp", "expm1"),
    ("log", "log1p"),
    ("sqrt", "rsqrt"),
    ("erf", "erfc"),
    ("real", "imag"),
    ("max", "min"),
    ("floor", "ceil", "round"),
)
LIKE = {"max": lax.max, "min": lax.min, "real": lax.real, "imag": lax.imag}


@kind("another function of its kind", "wrong function")
def _alike(place):
    for group in ALIKE:
        if place.name in group and floats_at(place):
            for other in group:
                if other != place.name:
                    yield f"{other} for {place.name}", instead(
                        LIKE.get(other) or getattr(lax, other)
                    )


@kind("function left out", "wrong function", "sign", "missing term")
def _function(place):
    plain = (
        "neg", "abs", "sign", "conj", "exp", "log", "log1p", "expm1", "tanh", "logistic", "sqrt",
        "rsqrt", "square", "integer_pow", "rev", "max", "min", "clamp", "cumsum",
    )  # fmt: skip
    which = 1 if place.name == "clamp" else 0
    if place.name in plain and floats_at(place) and same(place.operands[which], place.results[0]):
        yield f"{place.name} left out", instead(lambda *xs, n=which: xs[n])


@kind("function of its result", "wrong place", "wrong function")
def _again(place):
    if place.name in ("exp", "tanh", "logistic", "erf", "sin", "cos", "sqrt", "rsqrt", "log1p"):
        yield f"{place.name} taken twice", lambda eqn, xs, inputs: apply(eqn, apply(eqn, xs))


@kind("exponent", "wrong function", "factor")
def _exponent(place):
    if place.name in ("integer_pow", "square") and floats_at(place):
        y = place.eqn.params.get("y", 2)
        for other in (y - 1, y + 1):
            yield f"power {other} for {y}", instead(lambda x, y=other: lax.integer_pow(x, y))


@kind("operand transposed", "transpose")
def _operand_transposed(place):
    if place.name in ("dot_general", "conv_general_dilated"):
        for n, x in enumerate(place.operands[:2]):
            for i, j in square_axes(x.shape):
                yield (
                    f"axes {i} and {j} of operand {n} exchanged",
                    to_operand(n, lambda x, i=i, j=j: jnp.swapaxes(x, i, j)),
                )


@kind("kernel reversed", "transpose", "off by one")
def _kernel(place):
    if place.name == "conv_general_dilated":
        kernel = place.eqn.params["dimension_numbers"].rhs_spec
        for axis in kernel[2:]:
            if place.operands[1].shape[axis] > 1:
                yield f"axis {axis} of the kernel reversed", to_operand(
                    1, lambda x, a=axis: jnp.flip(x, a)
                )


@kind("padding shifted", "off by one")
def _padding(place):
    if place.name == "conv_general_dilated":
        given = place.eqn.params["padding"]
        for n, (lo, hi) in enumerate(given):
            for word, by in (("later", 1), ("earlier", -1)):
                new = [*given[:n], (lo + by, hi - by), *given[n + 1 :]]
                yield f"axis {n} padded one place {word}", with_params(padding=tuple(new))
    if place.name == "pad" and floats_at(place):
        given = place.eqn.params["padding_config"]
        for n, (lo, hi, between) in enumerate(given):
            for word, by in (("later", 1), ("earlier", -1)):
                if place.results[0].shape[n] > 1:
                    new = [*given[:n], (lo + by, hi - by, between), *given[n + 1 :]]
                    yield f"axis {n} padded one place {word}", with_params(
                        padding_config=tuple(new)
                    )


@kind("start off by one", "off by one")
def _start(place):
    if place.name == "slice":
        params = place.eqn.params
        for n, size in enumerate(place.operands[0].shape):
            for by in (1, -1):
                if params["start_indices"][n] + by >= 0 and params["limit_indices"][n] + by <= size:
                    moved = {}
                    for name in ("start_indices", "limit_indices"):
                        moved[name] = tuple(k + by * (m == n) for m, k in enumerate(params[name]))
                    word = "later" if by > 0 else "earlier"
                    yield f"axis {n} cut one place {word}", with_params(**moved)
    if place.name in ("dynamic_slice", "dynamic_update_slice"):
        first = 1 if place.name == "dynamic_slice" else 2
        for n in range(first, len(place.operands)):
            for by in (1, -1):
                yield f"start of axis {n - first} moved by {by}", to_operand(
                    n, lambda x, by=by: x + by
                )


@kind("indices off by one", "off by one")
def _indices(place):
    if place.name in ("gather", "scatter", "scatter-add", "scatter-mul"):
        yield "indices one more", to_operand(1, lambda x: x + 1)
        yield "indices one less", to_operand(1, lambda x: x - 1)


@kind("the last one kept", "missing term")
def _kept(place):
    if place.name == "scatter-add":
        names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
        params = {name: place.eqn.params[name] for name in names}
        yield "set for add", instead(
            lambda x, i, u, p=params: lax.scatter(
                x, i, u, p["dimension_numbers"], indices_are_sorted=p["indices_are_sorted"],
                unique_indices=p["unique_indices"], mode=p["mode"],
            )
        )
        yield "what was there dropped", to_operand(0, jnp.zeros_like)


@kind("summed over another axis", "transpose", "structure")
def _axis(place):
    if place.name.startswith("reduce_") and "axes" in place.eqn.params:
        own, shape = place.eqn.params["axes"], place.operands[0].shape
        for n in own:
            for m in range(len(shape)):
                if m not in own and shape[m] == shape[n] > 1:
                    new = tuple(sorted({*own, m} - {n}))
                    yield f"over axis {m} for {n}", with_params(axes=new)


@kind("mean for sum", "factor")
def _mean(place):
    if place.name == "reduce_sum" and floats_at(place):
        count = math.prod(place.operands[0].shape[a] for a in place.eqn.params["axes"])
        if count > 1:
            yield f"mean of {count} for their sum", to_result(lambda y, n=count: y / n)


@kind("maximum for sum", "wrong function")
def _largest(place):
    if place.name in ("reduce_sum", "reduce_min") and floats_at(place):
        own = place.eqn.params["axes"]
        if not jnp.issubdtype(place.results[0].dtype, jnp.complexfloating):
            yield "the largest", instead(lambda x, own=own: jnp.max(x, own))


@kind("cumulated the other way", "transpose", "off by one")
def _cumulated(place):
    if place.name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"):
        yield "from the other end", with_params(reverse=not place.eqn.params["reverse"])


@kind("parts exchanged", "transpose")
def _parts(place):
    if place.name == "concatenate":
        for n, x in enumerate(place.operands):
            for m in range(n):
                if same(x, place.operands[m]):

                    def change(eqn, xs, inputs, n=n, m=m):
                        xs = list(xs)
                        xs[n], xs[m] = xs[m], xs[n]
                        return apply(eqn, xs)

                    yield f"operands {m} and {n} exchanged", change
    if place.name == "split":
        for n, y in enumerate(place.results):
            for m in range(n):
                if same(y, place.results[m]):

                    def change(eqn, xs, inputs, n=n, m=m):
                        ys = apply(eqn, xs)
                        ys[n], ys[m] = ys[m], ys[n]
                        return ys

                    yield f"results {m} and {n} exchanged", change


@kind("choice", "mask ignored", "wrong function", "missing term")
def _choice(place):
    if place.name == "select_n" and len(place.operands) == 3:
        yield "always the first one", instead(lambda mask, a, b: a)
        yield "always the second one", instead(lambda mask, a, b: b)
        yield "the two exchanged", lambda eqn, xs, inputs: apply(eqn, [xs[0], xs[2], xs[1]])
    if place.name == "cond" and not place.eqn.params.get("branches_platforms"):
        n = len(place.eqn.params["branches"])
        yield "another branch", to_operand(0, lambda x: (x + 1) % n)


COMPARED: dict[str, tuple[str, ...]] = {
    "gt": ("ge", "lt"), "ge": ("gt", "le"), "lt": ("le", "gt"), "le": ("lt", "ge"),
    "eq": ("ne", "le", "ge"), "ne": ("eq", "gt"),
}  # fmt: skip


@kind("comparison", "mask ignored", "wrong function", "off by one")
def _comparison(place):
    for other in COMPARED.get(place.name, ()):
        if place.operands[0].dtype != bool or other in ("eq", "ne"):
            yield f"{other} for {place.name}", instead(getattr(lax, other))


@kind("logic", "mask ignored", "wrong function")
def _logic(place):
    if place.name in ("and", "or") and place.results[0].dtype == bool:
        yield "operand 0 alone", instead(lambda a, b: a)
        yield "operand 1 alone", instead(lambda a, b: b)
        other = "or" if place.name == "and" else "and"
        yield f"{other} for {place.name}", instead(getattr(lax, f"bitwise_{other}"))
    if place.name == "not" and place.results[0].dtype == bool:
        yield "not left out", instead(lambda a: a)


@kind("order of axes", "transpose")
def _order(place):
    if place.name == "transpose" and floats_at(place):
        given = place.eqn.params["permutation"]
        back = tuple(int(n) for n in np.argsort(given))
        shape = place.operands[0].shape
        if back != given and tuple(shape[n] for n in back) == place.results[0].shape:
            yield "the inverse order", with_params(permutation=back)
        if shape == place.results[0].shape:
            yield "left as they are", instead(lambda x: x)


@kind("read in another order", "transpose")
def _read(place):
    if place.name == "reshape" and floats_at(place):
        shape = place.operands[0].shape
        if sum(size > 1 for size in shape) > 1:
            yield "the first axis read fastest", instead(
                lambda x: jnp.reshape(x, place.results[0].shape, order="F")
            )


@kind("spread along another axis", "transpose")
def _spread(place):
    if place.name == "broadcast_in_dim" and floats_at(place):
        own, shape = place.eqn.params["broadcast_dimensions"], place.results[0].shape
        for k, n in enumerate(own):
            low = own[k - 1] if k else -1
            high = own[k + 1] if k + 1 < len(own) else len(shape)
            for m in range(low + 1, high):
                if m != n and shape[m] == shape[n] > 1:
                    new = (*own[:k], m, *own[k + 1 :])
                    yield f"along axis {m} for {n}", with_params(broadcast_dimensions=new)


@kind("numbers off by one", "off by one")
def _iota(place):
    if place.name == "iota":
        yield "from 1", to_any(lambda y: y + 1)
        yield "from -1", to_any(lambda y: y - 1)


def to_any(f: Callable[[Any], Any]) -> Change:
    return lambda eqn, xs, inputs: [f(y) for y in apply(eqn, xs)]


@kind("scanned the other way", "transpose", "off by one")
def _direction(place):
    if place.name == "scan" and place.eqn.params["length"] > 1:
        yield "in the other direction", with_params(reverse=not place.eqn.params["reverse"])


@kind("nothing carried", "missing term")
def _carried(place):
    if place.name != "scan":
        return
    params = place.eqn.params
    first, count = params["num_consts"], params["num_carry"]
    for n in range(first, first + count):
        if is_float(place.operands[n]):

            def change(eqn, xs, inputs, n=n):
                own = eqn.params["jaxpr"]

                def body(*args):
                    args = [0 * x if m == n else x for m, x in enumerate(args)]
                    return _evaluate(own.jaxpr, own.consts, args, (), None)

                return scanned(eqn, xs, body)

            yield f"carried value {n - first} reset at every step", change
            yield f"carried value {n - first} starts with zeros", to_operand(n, jnp.zeros_like)


@kind("a step left out", "missing term", "stopped", "off by one")
def _step(place):
    if place.name == "scan" and place.eqn.params["length"] > 1:
        count = place.eqn.params["num_carry"]
        for word, n in (("first", 0), ("last", -1)):
            if any(map(is_float, place.results[count:])):

                def change(eqn, xs, inputs, n=n, count=count):
                    ys = apply(eqn, xs)
                    late = [y.at[n].set(0) if is_float(y) else y for y in ys[count:]]
                    return [*ys[:count], *late]

                yield f"what the {word} entry gives stopped", change


# ---------------------------------------------------------------------------------- the list


def mutations(program: Program) -> list[Mutation]:
    """All that can be changed in a program, a single change each."""
    found = []
    given = tuple((name, v.aval) for name, v in zip(program.names, program.jaxpr.invars, strict=True))
    for n, (name, aval) in enumerate(given):
        place = Place(None, (aval,), (aval,), given, (None,), n)
        found += _at(place, ((ARGUMENT, n, ""),), name)
    found += _in(program.jaxpr, given, (), "")
    return found


def _in(jaxpr: Any, inputs: tuple, path: tuple[Step, ...], words: str) -> Iterator[Mutation]:
    for (name, n), eqn in steps(jaxpr):
        operands, results = (tuple(v.aval for v in vs) for vs in (eqn.invars, eqn.outvars))
        here = f"{words}{name} {n}"
        if name not in WHOLE:
            place = Place(eqn, operands, results, inputs)
            yield from _at(place, (*path, (name, n, "")), here)
        for label, (program, _) in inner(eqn).items():
            own = tuple((f"input {k}", v.aval) for k, v in enumerate(program.invars))
            yield from _in(program, own, (*path, (name, n, label)), f"{here}, ")


def _at(place: Place, path: tuple[Step, ...], words: str) -> Iterator[Mutation]:
    for name, described in KINDS.items():
        for what, change in described.of(place):
            yield Mutation(name, path, words, what, change)


def drawn(found: Sequence[Mutation], seed: int) -> list[Mutation]:
    """The mutations in the order in which a table takes them, one of each kind before the next.

    A kind that can be made in few places comes early, so that the rare ones are seen; every third
    one is a change that can be made to any result.
    """
    draw = np.random.default_rng(seed)
    by_kind: dict[str, list[Mutation]] = {}
    for mutation in found:
        by_kind.setdefault(mutation.kind, []).append(mutation)
    order = sorted(by_kind, key=lambda name: len(by_kind[name]) * draw.exponential())
    lines: tuple[list, list] = [], []
    shuffled = {name: draw.permutation(len(by_kind[name])) for name in order}
    for turn in range(max(map(len, by_kind.values()), default=0)):
        for name in order:
            if turn < len(shuffled[name]):
                chosen = by_kind[name][shuffled[name][turn]]
                lines[KINDS[name].anywhere].append(chosen)
    special, common = lines
    taken = []
    while special or common:
        source = common if common and (not special or len(taken) % 3 == 1) else special
        taken.append(source.pop(0))
    return taken


# ---------------------------------------------------------------------------------- of layers


NAMES = ("weights", "residuals", "delta")


def changed(f: Callable[..., Tree], mutation: Mutation, names: Sequence[str] = ()) -> Any:
    """``f`` with a mutation made in it, at the same place in whatever dtypes it is called with."""

    def with_it(*args):
        return run(traced(f, args, names), args, mutation)

    return with_it


def mutated(layer: Any, mutation: Mutation) -> Any:
    """The layer with a mutation made in its gradient; other statistics see the right pass."""

    def backward(weights, residuals, delta, statistic=gradient):
        if statistic is not gradient:
            return layer.backward(weights, residuals, delta, statistic)
        return changed(layer.backward, mutation, NAMES)(weights, residuals, delta)

    return layer._replace(backward=backward)
