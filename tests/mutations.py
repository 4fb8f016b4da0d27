"""Wrong gradients of every kind that a program can have: changes of one equation of its jaxpr.

:func:`mutations` lists what can be changed in a traced backward pass, or in any function of arrays;
:func:`mutated` gives the layer with one of them made, at the same place in whatever dtypes it is
called with.  Nothing here knows how a check finds or names a fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal

from funcprop import gradient
from tests.programs import (
    ARGUMENT,
    WHOLE,
    Change,
    Program,
    Step,
    apply,
    called,
    inner,
    run,
    scan_sizes,
    scanned,
    steps,
    traced,
)

NAMES = ("weights", "residuals", "delta")
CAST = "convert_element_type"  # not the same ones in every dtype


class Mutation(NamedTuple):
    """A change that can be made.

    Attributes:
        kind: a key of :data:`KINDS`.
        path: where, as ``tests.programs`` says it.
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


class Place(NamedTuple):
    """An equation, or an argument of the whole, as the kinds of change look at it.

    Attributes:
        eqn: the equation; ``None`` for an argument.
        operands, results: what goes in and comes out, as abstract values.
        inputs: names and abstract values of the inputs of the program that it stands in.
        number: of an argument which one it is.
    """

    eqn: Any
    operands: tuple[Any, ...]
    results: tuple[Any, ...]
    inputs: tuple[tuple[str, Any], ...]
    number: int = -1

    @property
    def name(self) -> str:
        return ARGUMENT if self.eqn is None else self.eqn.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        return {} if self.eqn is None else self.eqn.params

    @property
    def floats(self) -> bool:
        """Whether all its results are floats."""
        return bool(self.results) and all(y.size and is_float(y) for y in self.results)


Changes = Iterator[tuple[str, Change]]


class Kind(NamedTuple):
    """A kind of change.

    Attributes:
        of: lists what of this kind can be done at a place, with words for it.
        anywhere: whether it can be done to any result; else it belongs to an operation.
        meanings: names of mistakes, keys of ``funcprop.checking.MISTAKES``, that say what it does.
    """

    of: Callable[[Place], Changes]
    anywhere: bool
    meanings: tuple[str, ...]


KINDS: dict[str, Kind] = {}


def kind(name: str, *meanings: str, anywhere: bool = False) -> Callable[[Any], Any]:
    """Enters a kind of change into :data:`KINDS`."""

    def entered(of):
        KINDS[name] = Kind(of, anywhere, meanings)
        return of

    return entered


def result(name: str, *meanings: str) -> Callable[[Any], Any]:
    """Enters a function of any result of floats as a kind."""

    def entered(f):
        kind(name, *meanings, anywhere=True)(
            lambda place: iter([(name, to_result(f))] if place.floats else [])
        )
        return f

    return entered


def operation(name: str, *meanings: str, of: str, changes: dict[str, Change]) -> None:
    """Enters changes of operations with results of floats, named in ``of``, as a kind."""
    kind(name, *meanings)(
        lambda place: iter(changes.items() if place.floats and place.name in of.split() else ())
    )


def is_float(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jnp.inexact)


def same(a: Any, b: Any) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def to_result(f: Callable[[Any], Any]) -> Change:
    return lambda eqn, xs, inputs: [f(y) if is_float(y) else y for y in apply(eqn, xs)]


def to_operand(n: int, f: Callable[[Any], Any]) -> Change:
    return lambda eqn, xs, inputs: apply(eqn, [*xs[:n], f(xs[n]), *xs[n + 1 :]])


def instead(f: Callable[..., Any]) -> Change:
    return lambda eqn, xs, inputs: [f(*xs)]


def with_params(**params: Any) -> Change:
    return lambda eqn, xs, inputs: apply(eqn, xs, **params)


def exchanged(values: Sequence[Any], i: int, j: int) -> list[Any]:
    order = {i: j, j: i}
    return [values[order.get(n, n)] for n in range(len(values))]


def axes(place: Place) -> Iterator[tuple[int, int]]:
    """The axes, with their sizes, of results of floats of one shape."""
    if place.floats and len({y.shape for y in place.results}) == 1:
        yield from ((n, size) for n, size in enumerate(place.results[0].shape) if size > 1)


def squares(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs of axes of one size."""
    for j in range(len(shape)):
        yield from ((i, j) for i in range(j) if shape[i] == shape[j] > 1)


def both(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``f`` of a float, of a complex number's two parts."""
    return lambda y: lax.complex(f(y.real), f(y.imag)) if jnp.iscomplexobj(y) else f(y)


# ------------------------------------------------------------------------------ to any result

result("negated", "sign")(lambda y: -y)
result("doubled", "factor", "counted twice")(lambda y: 2 * y)
result("halved", "factor")(lambda y: y / 2)
result("off by 1 %", "factor")(lambda y: 1.01 * y)
result("stopped", "stopped", "missing term")(jnp.zeros_like)
result("rounded to bfloat16", "low precision")(both(lambda y: y.astype("bfloat16").astype(y.dtype)))
result("clipped to [-1, 1]", "not linear", "wrong function")(both(lambda y: jnp.clip(y, -1, 1)))


@kind("scaled by a size", "factor", anywhere=True)
def _scaled(place):
    sizes = {size for x in place.operands if is_float(x) for size in x.shape if size > 2}
    for size in sorted(sizes) if place.floats else ():
        yield f"multiplied by a size of {size}", to_result(lambda y, n=size: n * y)
        yield f"divided by a size of {size}", to_result(lambda y, n=size: y / n)


def _masked(axis: int, size: int, entry: int, kept: bool) -> Change:
    """One entry of an axis stopped, or all others."""
    mask = (np.arange(size) == entry) == kept
    return to_result(
        lambda y: jnp.where(jnp.expand_dims(mask, [n for n in range(y.ndim) if n != axis]), y, 0)
    )


@kind("one entry of an axis", "stopped", "missing term", "factor", anywhere=True)
def _entry(place):
    for axis, size in axes(place):
        yield f"first entry of axis {axis} stopped", _masked(axis, size, 0, False)
        yield f"last entry of axis {axis} stopped", _masked(axis, size, size - 1, False)


@kind("only one entry of an axis", "missing term", "stopped", anywhere=True)
def _only(place):
    for axis, size in axes(place):
        yield f"only the first entry of axis {axis} kept", _masked(axis, size, 0, True)
        yield f"only the last entry of axis {axis} kept", _masked(axis, size, size - 1, True)


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
    for i, j in squares(place.results[0].shape) if place.floats and len(place.results) == 1 else ():
        yield f"axes {i} and {j} exchanged", to_result(lambda y, i=i, j=j: jnp.swapaxes(y, i, j))


# ----------------------------------------------------------------------------- to an argument


@kind("argument replaced", "wrong place", "transpose", "wrong function")
def _replaced(place):
    for n, (name, aval) in enumerate(place.inputs if place.eqn is None else ()):
        if n != place.number and same(aval, place.operands[0]):
            yield f"{name} in its place", lambda eqn, xs, inputs, n=n: [inputs(n)]


@kind("integers off by one", "off by one")
def _integers(place):
    if place.eqn is None and jnp.issubdtype(place.operands[0].dtype, jnp.integer):
        yield "one more", instead(lambda x: x + 1)
        yield "one less", instead(lambda x: x - 1)


@kind("mask ignored", "mask ignored")
def _mask(place):
    if place.eqn is None and place.operands[0].dtype == bool:
        yield "all true", instead(jnp.ones_like)
        yield "inverted", instead(jnp.logical_not)


# ----------------------------------------------------------------------------- to an operation

operation(
    "addend left out", "missing term", of="add add_any sub",
    changes={f"operand {n} left out": to_operand(n, jnp.zeros_like) for n in (0, 1)},
)  # fmt: skip
operation(
    "addend counted twice", "counted twice", "factor", of="add add_any sub",
    changes={f"operand {n} counted twice": to_operand(n, lambda x: 2 * x) for n in (0, 1)},
)  # fmt: skip
operation(
    "addend's sign", "sign", of="add add_any sub",
    changes={f"sign of operand {n}": to_operand(n, lambda x: -x) for n in (0, 1)},
)  # fmt: skip
operation(
    "operands exchanged", "sign", "transpose", "wrong function", of="div atan2 pow complex",
    changes={"operands exchanged": lambda eqn, xs, inputs: apply(eqn, xs[::-1])},
)  # fmt: skip
operation(
    "factor left out", "factor", "wrong function", "missing term", of="mul",
    changes={"operand 0 left out": instead(lambda a, b: b),
             "operand 1 left out": instead(lambda a, b: a)},
)  # fmt: skip
operation(
    "not divided", "factor", "wrong function", of="div",
    changes={"not divided": instead(lambda a, b: a)},
)  # fmt: skip
operation(
    "factor squared", "factor", "wrong function", "counted twice", of="mul div",
    changes={f"operand {n} squared": to_operand(n, lambda x: x * x) for n in (0, 1)},
)  # fmt: skip
operation(
    "taken twice", "wrong place", "wrong function",
    of="exp tanh logistic erf erfc sin cos sqrt rsqrt log1p",
    changes={"taken twice": lambda eqn, xs, inputs: apply(eqn, apply(eqn, xs))},
)  # fmt: skip


@kind("operand from elsewhere", "wrong place", "wrong function")
def _elsewhere(place):
    if place.name in ("add", "sub", "mul", "div", "dot_general", "max", "min", "exp", "tanh"):
        for n, x in enumerate(place.operands):
            for m, (name, aval) in enumerate(place.inputs):
                if is_float(x) and same(x, aval):

                    def change(eqn, xs, inputs, n=n, m=m):
                        return to_operand(n, lambda x: inputs(m))(eqn, xs, inputs)

                    yield f"{name} for operand {n}", change


@kind("constant", "factor", "wrong function", "counted twice")
def _constant(place):
    plain = place.eqn is not None and place.name not in ("select_n", "pad", *WHOLE)
    for n, v in enumerate(place.eqn.invars if plain and place.floats else ()):
        if isinstance(v, Literal) and is_float(v.aval) and np.ndim(v.val) == 0 and v.val != 0:
            word = f"{complex(v.val):.3g}" if np.iscomplexobj(v.val) else f"{float(v.val):.3g}"
            yield f"{word} doubled", to_operand(n, lambda x: 2 * x)
            yield f"{word} negated", to_operand(n, lambda x: -x)
            if abs(v.val) != 1:
                yield f"{word} replaced by 1", to_operand(n, jnp.ones_like)
            if abs(v.val) < 0.1 and place.name in ("add", "max"):
                yield f"{word} left out", to_operand(n, jnp.zeros_like)


ALIKE = (
    "tanh logistic erf sin", "sin cos", "exp expm1", "log log1p", "sqrt rsqrt", "erf erfc",
    "real imag", "max min",
)  # fmt: skip


@kind("another function of its kind", "wrong function")
def _alike(place):
    for group in (group.split() for group in ALIKE):
        for other in group if place.name in group and place.floats else ():
            if other != place.name:
                yield f"{other} for {place.name}", instead(getattr(lax, other))


PLAIN = {
    "neg", "abs", "sign", "conj", "exp", "log", "log1p", "expm1", "tanh", "logistic", "erf", "erfc",
    "sqrt", "rsqrt", "square", "integer_pow", "rev", "max", "min", "clamp", "cumsum",
}  # fmt: skip


@kind("function left out", "wrong function", "sign", "missing term")
def _function(place):
    if place.name not in PLAIN or not place.floats:
        return
    n = 1 if place.name == "clamp" else 0
    if same(place.operands[n], place.results[0]):
        yield f"{place.name} left out", lambda eqn, xs, inputs: [xs[n], *apply(eqn, xs)[1:]]


@kind("exponent", "wrong function", "factor")
def _exponent(place):
    if place.name in ("integer_pow", "square") and place.floats:
        y = place.params.get("y", 2)
        for other in (y - 1, y + 1):
            yield f"power {other} for {y}", instead(lambda x, n=other: lax.integer_pow(x, n))


@kind("operand transposed", "transpose")
def _operand_transposed(place):
    for n in (0, 1) if place.name in ("dot_general", "conv_general_dilated") else ():
        for i, j in squares(place.operands[n].shape):
            yield (
                f"axes {i} and {j} of operand {n} exchanged",
                to_operand(n, lambda x, i=i, j=j: jnp.swapaxes(x, i, j)),
            )


@kind("kernel reversed", "transpose", "off by one")
def _kernel(place):
    if place.name == "conv_general_dilated":
        for axis in place.params["dimension_numbers"].rhs_spec[2:]:
            if place.operands[1].shape[axis] > 1:
                yield (
                    f"axis {axis} of the kernel reversed",
                    to_operand(1, lambda x, a=axis: jnp.flip(x, a)),
                )


@kind("padding off by one", "off by one")
def _padding(place):
    name = {"conv_general_dilated": "padding", "pad": "padding_config"}.get(place.name, "")
    given = place.params.get(name, ()) if place.floats else ()
    for n, (lo, hi, *between) in enumerate(given):
        for word, by in (("later", 1), ("earlier", -1)):
            moved = (*given[:n], (lo + by, hi - by, *between), *given[n + 1 :])
            yield f"axis {n} padded one place {word}", with_params(**{name: moved})


@kind("start off by one", "off by one")
def _start(place):
    names = ("start_indices", "limit_indices")
    if place.name == "slice":
        for n, size in enumerate(place.operands[0].shape):
            for word, by in (("later", 1), ("earlier", -1)):
                if place.params[names[0]][n] + by >= 0 and place.params[names[1]][n] + by <= size:
                    moved = {
                        k: tuple(at + by * (m == n) for m, at in enumerate(place.params[k]))
                        for k in names
                    }
                    yield f"axis {n} cut one place {word}", with_params(**moved)
    first = {"dynamic_slice": 1, "dynamic_update_slice": 2}.get(place.name)
    for n in range(first, len(place.operands)) if first else ():
        for by in (1, -1):
            yield f"start of axis {n - first} moved by {by}", to_operand(n, lambda x, k=by: x + k)


@kind("indices off by one", "off by one")
def _indices(place):
    if place.name in ("gather", "scatter", "scatter-add", "scatter-mul"):
        yield "indices one more", to_operand(1, lambda x: x + 1)
        yield "indices one less", to_operand(1, lambda x: x - 1)


@kind("the last one kept", "missing term")
def _kept(place):
    if place.name == "scatter-add":
        names = ("indices_are_sorted", "unique_indices", "mode")
        own = {name: place.params[name] for name in names}
        numbers = place.params["dimension_numbers"]
        yield "set for add", instead(lambda x, i, u: lax.scatter(x, i, u, numbers, **own))
        yield "what was there dropped", to_operand(0, jnp.zeros_like)


@kind("over another axis", "transpose")
def _axis(place):
    own = place.params.get("axes", ()) if place.name.startswith("reduce_") else ()
    for i, j in squares(place.operands[0].shape) if own else ():
        if (i in own) != (j in own):
            new = tuple(sorted({*own} ^ {i, j}))
            yield f"over axes {new} for {tuple(own)}", with_params(axes=new)


@kind("another reduction", "factor", "wrong function")
def _reduction(place):
    if place.name in ("reduce_sum", "reduce_max", "reduce_min") and place.floats:
        own = place.params["axes"]
        count = math.prod(place.operands[0].shape[a] for a in own)
        others = {"sum": jnp.sum, "mean": jnp.mean, "max": jnp.max, "min": jnp.min}
        for word, f in others.items() if count > 1 else ():
            hard = word in ("max", "min") and jnp.iscomplexobj(place.results[0])
            if word != place.name[-3:] and not hard:
                yield f"{word} of {count}", instead(lambda x, f=f: f(x, own))


@kind("cumulated the other way", "transpose", "off by one")
def _cumulated(place):
    if place.name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"):
        yield "from the other end", with_params(reverse=not place.params["reverse"])


@kind("parts exchanged", "transpose")
def _parts(place):
    given = {"concatenate": place.operands, "stack": place.operands, "split": place.results}
    for n, x in enumerate(given.get(place.name, ())):
        for m in (m for m in range(n) if same(x, given[place.name][m])):

            def change(eqn, xs, inputs, n=n, m=m):
                if eqn.primitive.name == "split":
                    return exchanged(apply(eqn, xs), n, m)
                return apply(eqn, exchanged(xs, n, m))

            yield f"parts {m} and {n} exchanged", change


@kind("choice", "mask ignored", "wrong function", "missing term")
def _choice(place):
    if place.name == "select_n" and len(place.operands) == 3:
        yield "always the first one", instead(lambda mask, a, b: a)
        yield "always the second one", instead(lambda mask, a, b: b)
        yield "the two exchanged", lambda eqn, xs, inputs: apply(eqn, exchanged(xs, 1, 2))
    if place.name == "cond" and not place.params.get("branches_platforms"):
        n = len(place.params["branches"])
        yield "another branch", to_operand(0, lambda x: (x + 1) % n)


COMPARED = {
    "gt": "ge lt", "ge": "gt le", "lt": "le gt", "le": "lt ge", "eq": "ne le ge", "ne": "eq gt"
}  # fmt: skip


@kind("comparison", "mask ignored", "wrong function", "off by one")
def _comparison(place):
    for other in COMPARED.get(place.name, "").split():
        if place.operands[0].dtype != bool or other in ("eq", "ne"):
            yield f"{other} for {place.name}", instead(getattr(lax, other))


@kind("logic", "mask ignored", "wrong function")
def _logic(place):
    if place.name in ("and", "or", "not") and place.results[0].dtype == bool:
        if place.name == "not":
            yield "not left out", instead(lambda a: a)
            return
        other = {"and": "or", "or": "and"}[place.name]
        yield "operand 0 alone", instead(lambda a, b: a)
        yield "operand 1 alone", instead(lambda a, b: b)
        yield f"{other} for {place.name}", instead(getattr(lax, f"bitwise_{other}"))


@kind("order of axes", "transpose")
def _order(place):
    if place.name == "transpose" and place.floats:
        given, shape = place.params["permutation"], place.operands[0].shape
        back = tuple(int(n) for n in np.argsort(given))
        if back != tuple(given) and tuple(shape[n] for n in back) == place.results[0].shape:
            yield "the inverse order", with_params(permutation=back)
        if shape == place.results[0].shape:
            yield "left as they are", instead(lambda x: x)


@kind("read in another order", "transpose")
def _read(place):
    if place.name == "reshape" and place.floats:
        shape = place.results[0].shape
        if sum(size > 1 for size in place.operands[0].shape) > 1:
            yield "the first axis read fastest", instead(lambda x: x.reshape(shape, order="F"))


@kind("spread along another axis", "transpose")
def _spread(place):
    own = place.params.get("broadcast_dimensions", ()) if place.floats else ()
    shape = place.results[0].shape if place.results else ()
    for k, n in enumerate(own):
        for m in range(own[k - 1] + 1 if k else 0, own[k + 1] if k + 1 < len(own) else len(shape)):
            if m != n and shape[m] == shape[n] > 1:
                new = (*own[:k], m, *own[k + 1 :])
                yield f"along axis {m} for {n}", with_params(broadcast_dimensions=new)


@kind("numbers off by one", "off by one")
def _numbers(place):
    if place.name == "iota":
        for by in (1, -1):
            yield (
                f"from {by}",
                lambda eqn, xs, inputs, k=by: [y + y.dtype.type(k) for y in apply(eqn, xs)],
            )


@kind("scanned the other way", "transpose", "off by one")
def _direction(place):
    if place.name == "scan" and place.params["length"] > 1:
        yield "in the other direction", with_params(reverse=not place.params["reverse"])


@kind("nothing carried", "missing term")
def _carried(place):
    first, count = scan_sizes(place.params) if place.name == "scan" else (0, 0)
    for n in range(first, first + count):
        if is_float(place.operands[n]):

            def change(eqn, xs, inputs, n=n):
                step = called(eqn.params["jaxpr"])
                return scanned(eqn, xs, lambda *args: step(*args[:n], 0 * args[n], *args[n + 1 :]))

            yield f"carried value {n - first} reset at every step", change
            yield f"carried value {n - first} starts with zeros", to_operand(n, jnp.zeros_like)


@kind("a step left out", "missing term", "stopped", "off by one")
def _step(place):
    _, count = scan_sizes(place.params) if place.name == "scan" else (0, len(place.results))
    if any(map(is_float, place.results[count:])):
        for word, n in (("first", 0), ("last", -1)):

            def change(eqn, xs, inputs, n=n):
                ys = apply(eqn, xs)
                late = [y.at[n].set(0) if is_float(y) else y for y in ys[count:]]
                return [*ys[:count], *late]

            yield f"what the {word} entry gives stopped", change


# ---------------------------------------------------------------------------------- the list


def mutations(program: Program) -> list[Mutation]:
    """All that can be changed in a program, a single change each."""
    avals = [v.aval for v in program.jaxpr.invars]
    given = tuple(zip(program.names, avals, strict=True))
    found: list[Mutation] = []
    for n, (name, aval) in enumerate(given):
        found += _at(Place(None, (aval,), (aval,), given, n), ((ARGUMENT, n, ""),), name)
    return [*found, *_in(program.jaxpr, given, (), "")]


def _in(jaxpr: Any, inputs: tuple, path: tuple[Step, ...], words: str) -> Iterator[Mutation]:
    for (name, n), eqn in steps(jaxpr):
        operands, results = (tuple(v.aval for v in vs) for vs in (eqn.invars, eqn.outvars))
        here = f"{words}{name} {n}"
        if name not in (*WHOLE, CAST):
            yield from _at(Place(eqn, operands, results, inputs), (*path, (name, n, "")), here)
        for label, program in inner(eqn).items():
            jaxpr = getattr(program, "jaxpr", program)
            own = tuple((f"input {k}", v.aval) for k, v in enumerate(jaxpr.invars))
            place = f"{here}, " if label in ("whole", "step", "body") else f"{here} {label}, "
            yield from _in(jaxpr, own, (*path, (name, n, label)), place)


def _at(place: Place, path: tuple[Step, ...], words: str) -> Iterator[Mutation]:
    for name, found in KINDS.items():
        for what, change in found.of(place):
            yield Mutation(name, path, words, what, change)


def drawn(found: Sequence[Mutation], seed: int) -> list[Mutation]:
    """The mutations in the order in which a table takes them: one of each kind, then another.

    A kind that can be made in few places comes early, so that the rare ones are seen; every third
    one is a change that can be made to any result.
    """
    draw = np.random.default_rng(seed)
    by_kind: dict[str, list[Mutation]] = {}
    for mutation in found:
        by_kind.setdefault(mutation.kind, []).append(mutation)
    weights = {name: math.sqrt(len(own)) * draw.exponential() for name, own in by_kind.items()}
    ranked = []
    for name, own in by_kind.items():
        ranked += zip(draw.permutation(len(own)), [weights[name]] * len(own), own, strict=True)
    ranked.sort(key=lambda entry: entry[:2])
    common = [mutation for *_, mutation in ranked if KINDS[mutation.kind].anywhere]
    special = [mutation for *_, mutation in ranked if not KINDS[mutation.kind].anywhere]
    taken: list[Mutation] = []
    while common and special:
        taken.append((common if len(taken) % 3 == 1 else special).pop(0))
    return [*taken, *special, *common]


# ------------------------------------------------------------------------------- made


def made(program: Program, args: tuple, mutation: Mutation) -> Any:
    """What a program gives with a mutation in it."""
    return run(program, args, mutation.path, mutation.change)


def changed(f: Callable[..., Any], mutation: Mutation) -> Callable[..., Any]:
    """``f`` with a mutation made in it."""
    return lambda *args: made(traced(f, args), args, mutation)


def mutated(layer: Any, mutation: Mutation) -> Any:
    """The layer with a mutation made in its gradient; other statistics see the right pass."""

    def backward(weights, residuals, delta, statistic=gradient):
        if statistic is not gradient:
            return layer.backward(weights, residuals, delta, statistic)
        return changed(layer.backward, mutation)(weights, residuals, delta)

    return layer._replace(backward=backward)
