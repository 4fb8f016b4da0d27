"""``funcprop check``: the library's own layers, or somebody's own code."""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import importlib.util
import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..cases import catalogue
from ..checking.functions import check_gradient
from ..checking.layers import check_layer
from ..checking.page import page
from ..checking.report import Report
from ..core.checks import LayerError
from ..core.loss import Loss
from .files import CommandError, stop_if_asked, to_json, write_file

DTYPES = ("float64", "float32", "bfloat16")


def check(args: argparse.Namespace) -> int:
    """The command; the exit code is 1 where a check fails."""
    if args.target is None:
        if args.shape is not None or args.html is not None:
            raise CommandError("--shape and --html are for a TARGET of your own")
        return _catalogue(args)
    if args.only:
        raise CommandError("--only chooses among the library's own cases, not with a TARGET")
    return _own(args)


# ------------------------------------------------------------------------- somebody's code


def _own(args: argparse.Namespace) -> int:
    """A layer, a loss or a pair (function, gradient), a report for each dtype."""
    found = _loaded(args.target)
    colour = sys.stdout is not None and sys.stdout.isatty()
    reports = []
    try:
        if callable(found) and not hasattr(found, "backward"):
            found = found()
        for dtype in args.dtype:
            report = _checked_own(found, args, dtype)
            reports.append(report)
            print(report.text(colour=colour), end="\n\n")
    except (CommandError, LayerError):
        raise
    except Exception as error:  # somebody's code may raise anything
        raise CommandError(f"{args.target} raises {type(error).__name__}: {error}") from error
    whole = Report(args.target, reports[0].names, (), (), parts=tuple(reports))
    if args.json is not None:
        write_file(args.json, to_json(whole.to_dict(), indent=1) + "\n")
    if args.html is not None:
        write_file(args.html, page(whole))
    print(f"{args.target}: {'ok' if whole.ok else 'FAILED'}")
    return 0 if whole.ok else 1


def _checked_own(found: Any, args: argparse.Namespace, dtype: str) -> Report:
    pair = isinstance(found, tuple) and len(found) == 2 and all(map(callable, found))
    if not pair and not hasattr(found, "backward"):
        raise CommandError(
            f"{args.target} is a {type(found).__name__}; a layer, a loss or a pair "
            "(function, gradient) is due"
        )
    if args.shape is None:
        due = "shapes of the arguments, say 5x4,5" if pair else "shape of one example, say 8x8x3"
        raise CommandError(f"give --shape, the {due}")
    shapes = _shapes(args.shape)
    if not pair:
        shape: Any = tuple(shapes)
        if len(shapes) == 1 and not isinstance(found, Loss):
            (struct,) = shapes
            shape = struct.shape if struct.dtype.kind == "f" else struct
        return check_layer(found, shape, dtype=dtype, title=args.target)
    numbers = tuple(i for i, s in enumerate(shapes) if s.dtype.kind == "f")
    if not numbers:
        raise CommandError(f"--shape {args.shape}: one argument at least must be of floats")
    draw = np.random.default_rng(0)
    with jax.enable_x64(dtype == "float64"):
        arguments = [
            jax.numpy.asarray(draw.normal(size=s.shape), dtype if i in numbers else s.dtype)
            for i, s in enumerate(shapes)
        ]
        argnums = numbers if _gives_several(found[1], arguments) else numbers[0]
        return check_gradient(*found, *arguments, argnums=argnums, title=f"{args.target} {dtype}")


def _gives_several(gradient: Any, arguments: list) -> bool:
    return isinstance(jax.eval_shape(gradient, *arguments), tuple)


def _loaded(target: str) -> Any:
    """What ``path/to/file.py:NAME`` or ``module:NAME`` names."""
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise CommandError(f"{target!r} is due as path/to/file.py:NAME or module:NAME")
    try:
        if place.endswith(".py"):
            path = Path(place).resolve()
            spec = importlib.util.spec_from_file_location(path.stem, path)
            if spec is None or spec.loader is None:
                raise ImportError(f"{path} is no Python file")
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(path.stem, module)
            spec.loader.exec_module(module)
        else:
            sys.path.insert(0, "")
            module = importlib.import_module(place)
    except Exception as error:  # whatever is in the file
        text = f"cannot load {place}: {type(error).__name__}: {error}"
        raise CommandError(text) from error
    try:
        return getattr(module, name)
    except AttributeError:
        names = ", ".join(n for n in vars(module) if not n.startswith("_"))
        raise CommandError(f"{place} has no {name}; it has: {names}") from None


def _shapes(text: str) -> list[jax.ShapeDtypeStruct]:
    """``10x4,10:bool`` as structs."""
    found = []
    for entry in text.split(","):
        sizes, _, dtype = entry.partition(":")
        try:
            shape = () if sizes == "scalar" else tuple(map(int, sizes.split("x")))
            if min(shape, default=1) < 1:
                raise ValueError
            found.append(jax.ShapeDtypeStruct(shape, np.dtype(dtype or "float32")))
        except (ValueError, TypeError):
            raise CommandError(
                f"--shape: {entry!r} is no shape; 8x8x3, scalar or 10:int32 is due"
            ) from None
    return found


# ----------------------------------------------------------------------- the library's own


def _catalogue(args: argparse.Namespace) -> int:
    """Every case in every dtype, a line each."""
    cases = catalogue.CASES
    for pattern in args.only or ():
        if not any(fnmatch.fnmatchcase(case.name, pattern) for case in cases):
            names = "; ".join(case.name for case in cases)
            raise CommandError(f"there is no case {pattern!r}; there are: {names}")
    if args.only:
        cases = tuple(c for c in cases if any(fnmatch.fnmatchcase(c.name, p) for p in args.only))
    width = max(len(case.name) for case in cases)
    print(
        f"{'case':<{width}}  {'kind':<10}  {'dtype':<8}  {'whole eps':>9}  {'leaf eps':>8}  "
        f"{'oracle':<19}  {'difference':>10}  verdict"
    )
    results = []
    # Nearly all of the time goes into compiling, which runs beside other threads.
    with ThreadPoolExecutor() as threads:
        for result, problem in threads.map(
            _checked, *zip(*itertools.product(cases, args.dtype), strict=True)
        ):
            results.append(result)
            stop_if_asked()
            difference = result["oracle_difference"]
            print(
                f"{result['name']:<{width}}  {result['kind']:<10}  {result['dtype']:<8}  "
                f"{_number(result['whole_eps']):>9}  {_number(result['leaf_eps']):>8}  "
                f"{result['oracle'] or '-':<19}  {_number(difference, '.1e'):>10}  "
                f"{'ok' if result['ok'] else f'FAILED  {problem}'}".rstrip(),
                flush=True,
            )
    if args.json is not None:
        write_file(args.json, to_json(results, indent=1) + "\n")
    failed = sum(not result["ok"] for result in results)
    total = f"{len(results)} check{'s' * (len(results) > 1)}"
    print(f"{total}, {f'{failed} failed' if failed else 'all ok'}")
    return 1 if failed else 0


def _checked(case: catalogue.Case, dtype: str) -> tuple[dict[str, Any], str]:
    """What a check found, and the first thing that is wrong."""
    kind = "layer"
    if case in catalogue.ACTIVATIONS:
        kind = "activation"
    elif case in catalogue.LOSSES:
        kind = "loss"
    result: dict[str, Any] = {"name": case.name, "kind": kind, "dtype": dtype}
    try:
        x = case.draw(np.random.default_rng(7))
        report = check_layer(case.layer, x=x, dtype=dtype, analytic=case.analytic, title=case.name)
    except Exception as error:  # a broken layer may raise anything, and the others are still due
        nothing = dict.fromkeys(("whole_eps", "leaf_eps", "oracle", "oracle_difference"))
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return {**result, **nothing, "ok": False}, line[:200]
    oracle, difference = _oracle(report)
    result |= {
        "whole_eps": report.worst_whole,
        "leaf_eps": report.worst_leaf,
        "oracle": oracle,
        "oracle_difference": difference,
        "ok": report.ok,
    }
    return result, _problem(report)


def _oracle(report: Report) -> tuple[str | None, float | None]:
    """Which oracle judged the float64 gradient, and the largest relative difference from it."""
    rows = [row for row in report.leaves if row.against in ("complex step", "central differences")]
    if not rows:
        return None, None
    eps = float(jax.numpy.finfo("float64").eps)
    return rows[0].against, max(row.max_eps for row in rows) * eps


def _problem(report: Report) -> str:
    if report.problems:
        return report.problems[0]
    bad = [row for row in (*report.leaves, *report.wholes) if not row.ok]
    return f"{bad[0].path} differs from {bad[0].against}" if bad else ""


def _number(value: float | None, form: str = ".3g") -> str:
    return "-" if value is None else format(value, form)
