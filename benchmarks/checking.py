"""Checkers of hand-written gradients on planted faults, and on gradients that are right.

    python -m benchmarks.checking [--only PATTERN ...] [--limit N] [--by-hand] [--no-torch]
                                  [--innocents 1000] [--checkers PATTERN ...] [--seed N]

The faults of tests/faults.py, in float32: a small change each to the backward pass of a layer, a
loss, a plain function, a statistic or a layer inside a model.  Those by hand and the generated ones
have a row each.  Each checker gets the same numbers:

- funcprop: ``check_layer``, ``check_gradient``, ``compare`` or ``check_model``;
- ``jax.test_util.check_grads`` with order 2 and its default modes, forward and reverse; a
  ``jax.custom_vjp`` function refuses the first of them;
- the same with order 1 in reverse alone, in float32 and in float64;
- ``torch.autograd.gradcheck`` in float64, where torch is installed, around the same JAX functions.

A fault counts as placed if exactly the leaves that it hits are reported, of a model if the layer
is; gradcheck names one input, which counts if the fault hits it.  It counts as named if the first
finding's name is among those that describe it.  Then the checkers see innocent gradients: all
cases of the catalogue in four dtypes with random batches, plain functions of random shapes, the
statistics and the models.  The checkers in float64 see all of them in float64.

Last comes the open half of the judging set, gradients in the styles of other people's code, see
``benchmarks/judging.py``.

Unless XLA_FLAGS says otherwise all is compiled without LLVM's optimisations, which abort on some
programs in float16.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from benchmarks.judging import of_open_half, summary, told
from benchmarks.timing import table
from tests.fault_checks import Fault, Plain, excess, placed, plain, report
from tests.faults import BY_HAND, all_faults, innocents

HEADER = (
    "checker", "faults it takes", "found", "placed", "named", "false alarms", "in 16 bits",
    "s a check, median", "90 %",
)  # fmt: skip


class Verdict(NamedTuple):
    """What a checker says of one subject; ``None`` where it says nothing of that kind."""

    found: bool | None
    placed: bool | None = None
    named: bool | None = None
    said: str = ""
    seconds: float = float("nan")


Checker = Callable[[Fault, str, int], Verdict]
Rows = list[tuple[Fault, Verdict]]


# ---------------------------------------------------------------------------------- checkers


def by_funcprop(fault: Fault, dtype: str, seed: int) -> Verdict:
    """``report``; one that raises has neither found nor cleared anything."""
    try:
        found = report(fault, dtype, seed)
    except Exception as error:
        return Verdict(None, said=_line(error))
    kind = found.findings[0].kind if found.findings else "nothing"
    statement = found.findings[0].statement if found.findings else "; ".join(found.problems)
    where = ", ".join(found.wrong) or "no leaf"
    named = kind in fault.kinds if fault.kinds else None
    said = f"{kind} at {where}: {statement}"
    return Verdict(not found.ok, placed(fault, found), named, said)


def by_check_grads(wide: bool = False, **options: Any) -> Checker:
    """``check_grads``; what it raises counts if it is about the gradient."""

    def check(fault: Fault, dtype: str, seed: int) -> Verdict:
        dtype = "float64" if wide else dtype
        with jax.enable_x64(dtype == "float64"):
            subject = plain(fault, dtype, seed)
            if subject is None:
                return Verdict(None, said="a statistic is the gradient of no function")
            return _judged(lambda: check_grads(jax.jit(subject.f), _arrays(subject), **options))

    return check


def by_gradcheck(fault: Fault, dtype: str, seed: int) -> Verdict:
    """``gradcheck`` with a ``torch.autograd.Function`` that calls JAX by way of NumPy."""
    import torch

    with jax.enable_x64(True):
        subject = plain(fault, "float64", seed)
        if subject is None:
            return Verdict(None, said="a statistic is the gradient of no function")
        call, inputs = _in_torch(subject)
        verdict = _judged(lambda: torch.autograd.gradcheck(call, inputs))
    named = re.search(r"input (\d+)|at index (\d+)", verdict.said)
    if named is None or not verdict.found:
        return verdict._replace(placed=False)
    leaf = subject.names[int(named[1] or named[2])]
    layer = re.match(r"layers\[\d+\]", fault.position)
    hit = layer is not None and leaf.startswith(f"{layer[0]} ")
    return verdict._replace(placed=hit or leaf in fault.wrong)


def _judged(check: Callable[[], Any]) -> Verdict:
    try:
        check()
    except Exception as error:
        words = str(error)
        refused = "forward-mode" in words or "jvp" in words
        about = isinstance(error, AssertionError) or re.search(
            "(?i)jacobian|gradient|bwd|cotangent|reentrant|backward", words
        )
        return Verdict(None if refused or not about else True, said=_line(error))
    return Verdict(False)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _arrays(subject: Plain) -> tuple:
    return jax.tree.map(jnp.asarray, subject.args)


def _in_torch(subject: Plain) -> tuple[Callable[..., Any], tuple]:
    import torch

    leaves, structure = jax.tree.flatten(subject.args)
    paths = [p for p, _ in jax.tree_util.tree_leaves_with_path(subject.args)]
    forward, backward = jax.jit(subject.forward), jax.jit(subject.backward)
    y = jax.eval_shape(subject.forward, *subject.args)
    outputs = jax.tree.structure(y)

    def to_torch(leaf):
        return torch.from_numpy(np.array(leaf, np.float64))

    def args_of(tensors):
        return jax.tree.unflatten(structure, [t.detach().numpy() for t in tensors])

    class Attached(torch.autograd.Function):
        @staticmethod
        def forward(context, *tensors):
            context.save_for_backward(*tensors)
            return tuple(map(to_torch, jax.tree.leaves(forward(*args_of(tensors)))))

        @staticmethod
        def backward(context, *deltas):
            delta = jax.tree.unflatten(outputs, [d.numpy() for d in deltas])
            found = backward(args_of(context.saved_tensors), delta)
            grads = dict(jax.tree_util.tree_leaves_with_path(found))
            return tuple(to_torch(grads[p]) if p in grads else None for p in paths)

    tensors = tuple(to_torch(leaf).requires_grad_() for leaf in leaves)
    return Attached.apply, tensors


def checkers(with_torch: bool) -> dict[str, Checker]:
    """By the names that the table has."""
    found: dict[str, Checker] = {
        "funcprop": by_funcprop,
        "check_grads, its defaults, order 2": by_check_grads(order=2),
        "check_grads, reverse, order 1": by_check_grads(order=1, modes=["rev"]),
        "check_grads, reverse, order 1, float64": by_check_grads(True, order=1, modes=["rev"]),
    }
    if with_torch:
        try:
            import torch  # noqa: F401
        except ModuleNotFoundError:
            return found
        found["gradcheck, float64"] = by_gradcheck
    return found


# ---------------------------------------------------------------------------------- the runs


def timed(check: Checker, fault: Fault, dtype: str, seed: int) -> Verdict:
    fault.make()  # the changed module is read once
    start = time.perf_counter()
    verdict = check(fault, dtype, seed)
    return verdict._replace(seconds=time.perf_counter() - start)


def over_faults(check: Checker, faults: Sequence[Fault], seed: int) -> Rows:
    """One after another: their times are reported."""
    found = []
    for number, fault in enumerate(faults):
        found.append((fault, timed(check, fault, "float32", seed)))
        if number % 50 == 49:
            jax.clear_caches()
    return found


def over_innocents(check: Checker, count: int, seed: int) -> Rows:
    """In threads, as nearly all of the time goes into compiling."""

    def one(given):
        fault, dtype, seed = given
        named = fault._replace(name=f"{fault.name}, {dtype}, seed {seed}")
        return named, check(fault, dtype, seed)

    found: Rows = []
    subjects = list(innocents(count, seed))
    with ThreadPoolExecutor(2) as threads:
        for first in range(0, count, 100):
            found += threads.map(one, subjects[first : first + 100])
            jax.clear_caches()
    return found


def visible(fault: Fault, seed: int) -> bool:
    """Whether the gradient is off by more than 4 eps of float32, in a leaf that is named."""
    if fault.mutation is not None:  # only such are generated
        return True
    gaps = excess(fault, seed=seed)
    due = fault.proven or fault.wrong
    return any(gaps[path] > 4 * np.finfo(np.float32).eps for path in due)


def by_program(fault: Fault) -> bool:
    return fault.mutation is not None


def by_hand(fault: Fault) -> bool:
    return fault.mutation is None


# -------------------------------------------------------------------------------- the tables


def row(name: str, seen: Rows, alarms: Rows) -> tuple[str, ...]:
    """One line: shares of the faults that are above resolution."""
    verdicts = [verdict for _, verdict in seen]
    seconds = np.array([v.seconds for v in verdicts if v.found is not None])

    def share(attribute):
        judged = [v for f, v in seen if attribute != "named" or f.kinds]
        if all(getattr(v, attribute) is None for v in judged):
            return "-"
        count = sum(bool(v.found) and getattr(v, attribute) is True for v in judged)
        return f"{count} ({count / len(judged):.1%})"

    def wrongly(sixteen):
        ran = [
            v.found for f, v in alarms if v.found is not None and ("float16," in f.name) is sixteen
        ]
        return f"{sum(ran)} of {len(ran)}" if ran else "-"

    return (
        name,
        f"{len(seconds)} of {len(verdicts)}",
        *map(share, ("found", "placed", "named")),
        *map(wrongly, (False, True)),
        f"{np.median(seconds):.2g}" if seconds.size else "-",
        f"{np.quantile(seconds, 0.9):.2g}" if seconds.size else "-",
    )


def missed(seen: Rows, alarms: Rows) -> list[str]:
    """What went wrong, a line each."""
    lines: list[str] = []
    refused: dict[str, list[str]] = {}
    for fault, verdict in seen:
        words = [w for w, ok in zip(("placed", "named"), verdict[1:3], strict=True) if ok is False]
        if verdict.found is None:
            refused.setdefault(verdict.said, []).append(fault.name)
        elif not verdict.found:
            lines.append(f"missed: {fault.name}")
        elif words:
            due = f"{', '.join(fault.kinds[:1])} at {', '.join(fault.wrong)}"
            lines.append(f"not {' nor '.join(words)}: {fault.name} [{due}]: {verdict.said}")
    for innocent, verdict in alarms:
        if verdict.found:
            lines.append(f"false alarm: {innocent.name}: {verdict.said}")
        elif verdict.found is None:
            refused.setdefault(verdict.said, []).append(innocent.name)
    for said, names in refused.items():
        lines.append(f"not run, {len(names)} times, as {names[0]}: {said}")
    return [line if len(line) <= 400 else f"{line[:397]}..." for line in lines]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checking", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="names of faults, with *")
    parser.add_argument("--limit", type=int, help="so many faults, spread over all of them")
    parser.add_argument("--by-hand", action="store_true", help="without the generated faults")
    parser.add_argument("--no-torch", action="store_true", help="without gradcheck")
    parser.add_argument("--innocents", type=int, default=1000, help="how many are checked")
    parser.add_argument("--checkers", nargs="+", metavar="PATTERN", help="names, with *")
    parser.add_argument("--seed", type=int, default=0, help="of all draws")
    options = parser.parse_args(arguments)
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    table_of = BY_HAND if options.by_hand else all_faults()
    faults = [f for f in table_of if _matches(f.name, options.only)]
    if options.limit is not None:
        chosen = np.linspace(0, len(faults) - 1, min(options.limit, len(faults))).round()
        faults = [faults[int(n)] for n in chosen]
    warnings.filterwarnings("ignore", message=".*(overflow|invalid value).*")
    with ThreadPoolExecutor(2) as threads:
        above = dict(
            zip(
                faults, threads.map(lambda fault: visible(fault, options.seed), faults), strict=True
            )
        )
    jax.clear_caches()

    rows, notes = [], []
    for name, check in checkers(not options.no_torch).items():
        if not _matches(name, options.checkers):
            continue
        seen = over_faults(check, [f for f in faults if above[f]], options.seed)
        alarms = over_innocents(check, options.innocents, options.seed)
        for word, of in (("by hand", by_hand), ("generated", by_program)):
            if chosen := [(fault, verdict) for fault, verdict in seen if of(fault)]:
                rows.append(row(f"{name}, {word}", chosen, alarms))
        notes += ["", name, *missed(seen, alarms)]
    device = jax.devices()[0]
    print(f"jax {jax.__version__}, {device.platform} ({device.device_kind})")
    print(f"{sum(above.values())} faults above resolution, {options.innocents} innocents\n")
    print(table(HEADER, rows))
    print("\n".join(notes))
    print("\nbelow resolution")
    print("\n".join(fault.name for fault in faults if not above[fault]) or "none")
    if options.only is None and _matches("funcprop", options.checkers):
        seen, alarms = of_open_half()
        print(f"\nthe open half of the judging set\n\n{summary(seen, alarms)}\n")
        print("\n".join(told(seen, alarms)))


def _matches(name: str, patterns: list[str] | None) -> bool:
    return patterns is None or any(fnmatch.fnmatchcase(name, p) for p in patterns)


if __name__ == "__main__":
    main()
