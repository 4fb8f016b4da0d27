"""The command line: ``funcprop [train]``, ``funcprop predict`` and ``funcprop check``."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, NoReturn

from ..core.checks import LayerError
from ..core.version import __version__
from ..data import data_files, tables, tasks
from ..data.datasets import DataError
from . import check as checks
from . import runs, trained
from .files import ASKED, CommandError, uninterrupted


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Files are written whole or not at all.  Where standard output is closed or nobody reads it, the
    command does its work all the same.

    Args:
        argv: the words behind ``funcprop``; by default those of the process.

    Returns:
        The exit code: 0; 1 where a check fails or the training diverges; 2 for a bad option or
        file, or where the output cannot be written; 130 when interrupted; 143 when terminated.

    >>> from funcprop.cli.main import main
    >>> main(["check", "--only", "relu", "--dtype", "float32"])
    case  kind        dtype    whole eps  leaf eps  oracle  difference  verdict
    relu  activation  float32          0         0  -                -  ok
    1 check, all ok
    0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help", "--version")):
        words = ["train", *words]
    _open_closed_numbers()
    out, err = _Stream(sys.stdout), _Stream(sys.stderr)
    shown = None if sys.stdout is None else out
    with redirect_stdout(shown), redirect_stderr(err), _stopped_by_signals(argv is None):
        try:
            code = _run(words, out)
            out.flush()
        except BrokenPipeError:  # whoever reads our output has seen enough
            return 0
        except KeyboardInterrupt as stop:
            with uninterrupted():
                terminated = isinstance(stop, _Terminated)
                line = "; ".join(["terminated" if terminated else "interrupted", *stop.args])
                print(f"funcprop {words[0]}: {line}", file=sys.stderr)
            return 143 if terminated else 130
        if out.lost is not None and not isinstance(out.lost, BrokenPipeError):
            reason = getattr(out.lost, "strerror", None) or out.lost
            print(f"funcprop {words[0]}: cannot write to standard output: {reason}", file=err)
            code = code or 2
        return code


def _run(words: list[str], out: _Stream) -> int:
    """Runs a command; what is wrong with it becomes a line and an exit code."""
    if words[0] not in ("train", "predict", "check") and os.path.isfile(words[0]):
        message = f"{words[0]} is a file; train on it with funcprop train {words[0]}"
        print(f"funcprop: {message}", file=sys.stderr)
        return 2
    try:
        args = _parser().parse_args(words)
        # A command that writes no file has nothing to do when nobody reads.
        files = (getattr(args, name, None) for name in ("out", "json", "html"))
        out.ends = args.run is not runs.train and not any(files)
        return args.run(args)
    except SystemExit as stop:  # argparse, after its line or its help
        return int(stop.code or 0)
    except (CommandError, DataError, LayerError) as error:
        print(f"funcprop {words[0]}: {' '.join(str(error).split())}", file=sys.stderr)
        return getattr(error, "code", 2)


class _Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextmanager
def _stopped_by_signals(last_command: bool) -> Iterator[None]:
    """SIGTERM stops a command as Ctrl-C does, and pressing that twice is pressing it once.

    Where it is the process's last command, what comes after the first changes nothing.
    """
    before: dict[signal.Signals, Any] = {}
    last = -math.inf

    def stop(number: int, frame: Any) -> None:
        nonlocal last
        if time.monotonic() - last > 1:  # else the first is being obeyed
            last = time.monotonic()
            ASKED.append(_Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
            raise ASKED[-1]

    def lost(unraisable: Any) -> None:
        if not any(unraisable.exc_value is asked for asked in ASKED):
            hook(unraisable)

    ASKED.clear()
    hook, sys.unraisablehook = sys.unraisablehook, lost
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):  # as under nohup
                    before[number] = handler
                    signal.signal(number, stop)
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            ends = last_command and last > -math.inf
            signal.signal(number, signal.SIG_IGN if ends else handler)


class _Stream:
    """Standard output or error; what cannot be written is lost, and ``lost`` says why."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.ends = False  # whether the command ends when nobody reads
        self.lost: Exception | None = None

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda: self.stream.flush())

    def _try(self, write: Callable[[], Any]) -> None:
        if self.stream is None or self.lost is not None:
            return
        try:
            write()
        except (OSError, ValueError) as error:  # full, closed, or not in its encoding
            self.lost = error
            if isinstance(error, OSError):  # what is still in the buffer has nowhere to go
                with suppress(OSError, AttributeError), open(os.devnull, "w") as nowhere:
                    os.dup2(nowhere.fileno(), self.stream.fileno())
            if self.ends and isinstance(error, BrokenPipeError):
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _open_closed_numbers() -> None:
    """Keeps a file of ours from being opened under the number of a closed standard stream.

    What a library prints to that number would go into the file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


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
        "file",
        nargs="?",
        metavar="FILE",
        help=f"a table of text ({_listed(data_files.TEXT)}), or .npz with arrays x and y; features "
        "are standardised. Default: the digits that come with funcprop",
    )
    add("--data", metavar="FILE", help="the same as FILE")
    add(
        "--label",
        metavar="COLUMN",
        help="what to predict: a column's name, or its number from 1, or from the end, -1 the last."
        " Default: -1",
    )
    add(
        "--drop",
        nargs="+",
        metavar="COLUMN",
        help="columns to leave out, by names or numbers",
    )
    add(
        "--task",
        choices=tasks.TASKS,
        metavar="TASK",
        help=f"{_listed(tasks.TASKS)}. Default: classification if the labels are text or booleans, "
        f"or whole numbers with at most {tasks.FEW_VALUES} distinct values or at least "
        f"{tasks.ROWS_A_VALUE} rows a value; else regression",
    )
    _table_options(parser)
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
        ("loss", runs.LOSSES, None),
        ("optimizer", runs.OPTIMIZERS, "adam"),
    ):
        add(
            f"--{name}",
            choices=choices,
            default=default,
            metavar="NAME",
            help=f"{_listed(choices)}. Default: "
            + (default or "softmax_cross_entropy, mean_squared_error in regression"),
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
        help="a table like the one of the training, its columns in any order if they have names, "
        "or .npz with an array x; with labels or without",
    )
    _table_options(parser)
    parser.add_argument("--out", metavar="FILE", help="write the predictions there")


def _table_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--delimiter",
        type=_delimiter,
        metavar="CHAR",
        help=f"between two columns: a character, or {_listed(tables.DELIMITERS)} (any run of "
        "them). Default: found",
    )
    parser.add_argument(
        "--header",
        type=_yes_or_no,
        metavar="yes|no",
        help="whether the first line holds names. Default: yes if it holds no number",
    )


def _check_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=checks.check)
    parser.add_argument(
        "target",
        nargs="?",
        metavar="TARGET",
        help="your own code in the place of the library's: path/to/file.py:NAME or module:NAME, a "
        "layer, a loss, a function without arguments that makes one, or a pair (function, "
        "gradient)",
    )
    parser.add_argument(
        "--shape",
        metavar="SHAPE",
        help="of TARGET's input: of a layer's one example without its batch axis, 8x8x3; several "
        "entries, or arguments of a function, with commas, and a dtype behind a colon: "
        "10x4,10:bool. A scalar is 1 number: scalar",
    )
    parser.add_argument(
        "--html", metavar="FILE", help="write TARGET's reports there, as one page with pictures"
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=checks.DTYPES,
        default=checks.DTYPES,
        metavar="DTYPE",
        help=f"{_listed(checks.DTYPES)}. Default: all three",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="only these cases; * stands for any text"
    )
    parser.add_argument("--json", metavar="FILE", help="write the results there too")


def _listed(words: Any) -> str:
    return ", ".join(words)


def _delimiter(text: str) -> str:
    try:
        return tables.delimiter_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} must be yes or no")
    return text == "yes"


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
