"""The command line: ``funcprop [train]``, ``funcprop predict`` and ``funcprop check``."""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import json
import math
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from . import __version__, runs, trained
from .checking import catalogue
from .checking.layers import check_layer
from .checking.report import Report
from .datasets import DataError
from .layer import LayerError
from .trained import CommandError, writing

DTYPES = ("float64", "float32", "bfloat16")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words behind ``funcprop``; by default those of the process.

    Returns:
        The exit code: 0; 1 where a check fails or the training diverges; 2 for a bad option or
        file; 130 when interrupted.

    >>> from funcprop.cli import main
    >>> main(["check", "--only", "relu", "--dtype", "float32"])
    case  kind        dtype    whole eps  leaf eps  oracle  difference  verdict
    relu  activation  float32          0         0  -                -  ok
    1 check, all ok
    0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help", "--version")):
        words = ["train", *words]
    try:
        args = _parser().parse_args(words)
        return args.run(args)
    except SystemExit as stop:  # argparse, after its line or its help
        return int(stop.code or 0)
    except (CommandError, DataError, LayerError) as error:
        print(f"funcprop {words[0]}: {' '.join(str(error).split())}", file=sys.stderr)
        return getattr(error, "code", 2)
    except KeyboardInterrupt:
        print(f"funcprop {words[0]}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class _Parser(argparse.ArgumentParser):
    """argparse, with one line in place of its usage dump."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="funcprop",
        description="Trains networks by backpropagation written out by hand, and checks it.",
        epilog="Without a command: train, with the options of funcprop train.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"funcprop {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command", title="commands")
    _train_options(
        commands.add_parser(
            "train",
            help="train an MLP on handwritten digits, or on your own file",
            description="Trains an MLP by hand-written backpropagation, tests it on a fifth of the "
            "examples set apart, and compares its gradient with that of jax.grad.",
            allow_abbrev=False,
        )
    )
    _predict_options(
        commands.add_parser(
            "predict",
            help="apply a trained network to new data",
            description="Prints one prediction a line; where FILE has labels, how good they are "
            "goes to the standard error output.",
            allow_abbrev=False,
        )
    )
    _check_options(
        commands.add_parser(
            "check",
            help="compare every layer and loss with jax.vjp",
            description="Compares the hand-written backward pass of every layer and loss with "
            "jax.vjp, in float64 also with the complex step or central differences. The exit code "
            "is 1 if one of them fails.",
            allow_abbrev=False,
        )
    )
    return parser


def _train_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=runs.train)
    add = parser.add_argument
    add(
        "--data",
        metavar="FILE",
        help=".npz with arrays x and y, or .csv with the label in its last column; features are "
        "standardised. A target of real numbers, or of more than "
        f"{runs.FEW_VALUES} whole ones, is fitted as such where the loss is "
        f"{_listed(runs.REGRESSION)}. Default: the digits that come with funcprop",
    )
    add(
        "--sizes",
        type=_whole,
        nargs="*",
        default=[256, 128],
        metavar="N",
        help="units of each hidden layer. Default: 256 128",
    )
    for name, choices, default in (
        ("activation", trained.ACTIVATIONS, "relu"),
        ("loss", runs.LOSSES, "softmax_cross_entropy"),
        ("optimizer", runs.OPTIMIZERS, "adam"),
    ):
        add(
            f"--{name}",
            choices=choices,
            default=default,
            metavar="NAME",
            help=f"{_listed(choices)}. Default: {default}",
        )
    rates = [f"{rate:g} for {name}" for name, (_, rate) in runs.OPTIMIZERS.items()]
    add(
        "--learning-rate",
        type=_positive,
        metavar="RATE",
        help="at the start; it falls to 0 along a cosine. Of lbfgs it is a factor of the line "
        f"search's step, and stays. Default: {_listed(rates)}",
    )
    add("--epochs", type=_whole, default=40, metavar="N", help="rounds of the data. Default: 40")
    add(
        "--batch-size",
        type=_whole,
        metavar="N",
        help="examples a step. Default: 32; all of them for lbfgs",
    )
    add(
        "--seed",
        type=_seed,
        default=0,
        metavar="N",
        help="of the split into training and test part, the initialisation and the shuffling. "
        "Default: 0",
    )
    add("--out", metavar="FOLDER", help="where to write. Default: runs/ and the data's name")
    add("--quiet", action="store_true", help="no progress, only the results")


def _predict_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=trained.predict)
    parser.add_argument("folder", metavar="RUN", help="the folder that funcprop train wrote")
    parser.add_argument(
        "file",
        metavar="FILE",
        help=".npz with an array x, or .csv; with labels where there are some (y, the last column)",
    )
    parser.add_argument("--out", metavar="FILE", help="write the predictions there")


def _check_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_check)
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=DTYPES,
        default=DTYPES,
        metavar="DTYPE",
        help=f"{_listed(DTYPES)}. Default: all three",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="only these cases; * stands for any text"
    )
    parser.add_argument("--json", metavar="FILE", help="write the results there too")


def _listed(words: Any) -> str:
    return ", ".join(words)


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to 2^32 - 1")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


# -------------------------------------------------------------------------------- check


def _check(args: argparse.Namespace) -> int:
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
            difference = result["oracle_difference"]
            print(
                f"{result['name']:<{width}}  {result['kind']:<10}  {result['dtype']:<8}  "
                f"{_number(result['whole_eps']):>9}  {_number(result['leaf_eps']):>8}  "
                f"{result['oracle'] or '-':<19}  {_number(difference, '.1e'):>10}  "
                f"{'ok' if result['ok'] else f'FAILED  {problem}'}".rstrip(),
                flush=True,
            )
    failed = sum(not result["ok"] for result in results)
    total = f"{len(results)} check{'s' * (len(results) > 1)}"
    print(f"{total}, {f'{failed} failed' if failed else 'all ok'}")
    if args.json is not None:
        with writing(Path(args.json)):
            Path(args.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
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
