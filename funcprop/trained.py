"""A trained network in its folder: saved, loaded, applied to new data."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import zipfile
from collections.abc import Container
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import __version__
from .checking import catalogue
from .columns import Columns, check_columns
from .data_files import read_as
from .layer import Layer
from .mlp import Params, mlp

ACTIVATIONS = {
    case.name: case.layer for case in catalogue.ACTIVATIONS if case.name != "elementwise"
}
PARAMS, MODEL = "params.npz", "model.json"


class CommandError(Exception):
    """What was typed cannot be done: one line for the user, and the exit code."""

    def __init__(self, message: str, code: int = 2):
        super().__init__(message)
        self.code = code


class Meaning(NamedTuple):
    """What a network's inputs and outputs stand for; kept beside its weights.

    Attributes:
        mean, scale: (d,) of the features; the network sees (x - mean)/scale.
        reach: the largest |(x - mean)/scale| in training.
        classes: what each output is a score of; ``None`` where the one output is a number,
        target_mean, target_scale: scaled as the features are.
        columns: of the table that it was trained on; ``None`` where that was no table.
    """

    mean: np.ndarray
    scale: np.ndarray
    reach: float
    classes: list[Any] | None
    target_mean: float = 0.0
    target_scale: float = 1.0
    columns: Columns | None = None

    def inputs(self, x: np.ndarray) -> np.ndarray:
        return ((x - self.mean) / self.scale).astype(np.float32)

    def targets(self, y: np.ndarray, loss: str) -> np.ndarray:
        """What the loss takes; ``y`` holds indices of classes, or numbers."""
        if self.classes is None:
            return ((y - self.target_mean) / self.target_scale).astype(np.float32)[:, None]
        if loss == "softmax_cross_entropy":
            return y.astype(np.int32)
        one_hot = np.eye(len(self.classes), dtype=np.float32)[y]
        return 2 * one_hot - 1 if loss == "hinge" else one_hot

    def answers(self, prediction: Any) -> np.ndarray:
        """The network's outputs as indices of classes, or numbers."""
        if self.classes is None:
            return np.asarray(prediction[:, 0], np.float64) * self.target_scale + self.target_mean
        return np.asarray(prediction).argmax(axis=-1)

    def result(self, y: np.ndarray, answers: np.ndarray) -> str:
        """How good the answers are, in words."""
        if self.classes is None:
            spread, error = float(np.var(y)), float(np.mean((answers - y) ** 2))
            r2 = f"R² {1 - error / spread:.4f}, " if spread else ""  # of one number there is none
            return f"{r2}RMSE {math.sqrt(error):.6g}"
        right = int((answers == y).sum())
        return f"accuracy {100 * right / len(y):.2f} % ({right:,} of {len(y):,})"


def folder_at(path: Path) -> Path:
    """A folder that can be written into; found out before the training, not after it."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    return path


class writing:
    """Turns what goes wrong while writing to ``path`` into a line for the user."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError):
            raise CommandError(f"cannot write to {self.path}: {error.strerror or error}") from None


def save(folder: Path, sizes, args: argparse.Namespace, meaning: Meaning, params: Params) -> None:
    arrays = {
        f"{name}{i}": np.asarray(leaf)
        for i, layer in enumerate(params, start=1)
        for name, leaf in layer.items()
    }
    np.savez(folder / PARAMS, **arrays)  # type: ignore[arg-type]
    described = {
        "funcprop": __version__,
        "sizes": sizes,
        "activation": args.activation,
        "loss": args.loss,
        **meaning._asdict(),
        "mean": meaning.mean.tolist(),
        "scale": meaning.scale.tolist(),
    }
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in described.items()]
    (folder / MODEL).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def load(folder: Path) -> tuple[Layer, Params, Meaning]:
    for name in (MODEL, PARAMS):
        if not (folder / name).is_file():
            raise CommandError(
                f"{folder} holds no trained network ({name} is missing); "
                f"funcprop train --out {folder} makes one"
            )
    try:
        described = json.loads((folder / MODEL).read_text(encoding="utf-8"))
        sizes = tuple(described["sizes"])
        fields = {name: described[name] for name in Meaning._fields}
        meaning = Meaning(**fields | {n: np.array(fields[n], float) for n in ("mean", "scale")})
        check_columns(meaning.columns, features=sizes[0])
        model = mlp(sizes, ACTIVATIONS[described["activation"]])
        with np.load(folder / PARAMS, allow_pickle=False) as arrays:
            params = tuple(
                {"w": jnp.asarray(arrays[f"w{i}"]), "b": jnp.asarray(arrays[f"b{i}"])}
                for i in range(1, len(sizes))
            )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise CommandError(f"{folder}: its {MODEL} or {PARAMS} is damaged ({error})") from None
    return model, params, meaning


# ------------------------------------------------------------------------------ predict


def predict(args: argparse.Namespace) -> int:
    """``funcprop predict``: a prediction a line."""
    model, params, meaning = load(Path(args.folder))
    classified = meaning.classes is not None
    x, y, _, notes = read_as(
        args.file,
        meaning.columns,
        len(meaning.mean),
        as_text=classified,
        delimiter=args.delimiter,
        header=args.header,
    )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    inputs = meaning.inputs(x)
    reach = float(np.abs(inputs).max())
    if reach > 10 * meaning.reach:
        print(
            f"note: features reach {reach:.3g}, in training {meaning.reach:.3g} (scaled); is "
            f"{args.file} in the units of the training data?",
            file=sys.stderr,
        )
    answers = meaning.answers(jax.jit(model.apply)(params, inputs))
    if meaning.classes is None:
        lines = [f"{number:.7g}" for number in answers]
    else:
        names = [str(name) for name in meaning.classes]
        lines = [names[i] for i in answers]
    text = "\n".join(lines) + "\n"
    if args.out is None:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        with writing(Path(args.out)):
            Path(args.out).write_text(text, encoding="utf-8")
    if y is not None:
        if classified:
            known = {name: i for i, name in enumerate(names)}
            labels, y = y, np.array([known.get(_name(label, known), -1) for label in y])
            print(meaning.result(y, answers), file=sys.stderr)
            if (y < 0).any():
                print(_unknown(labels[y < 0], len(y)), file=sys.stderr)
        elif y.dtype.kind not in "if":
            raise CommandError(f"{args.file}: its labels are {str(y[0])!r}, they must be numbers")
        else:
            print(meaning.result(y, answers), file=sys.stderr)
    return 0


def _unknown(labels: np.ndarray, of: int) -> str:
    names = sorted(map(str, set(labels.tolist())))
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return (
        f"note: {len(labels):,} of {of:,} labels are no class of the network ({shown}); they count "
        "as wrong"
    )


def _name(label: Any, known: Container[str]) -> str:
    """A label as a class is named: whole numbers without a point."""
    if isinstance(label, (bool, np.bool_)):
        return str(int(label))
    if str(label) in known:
        return str(label)
    try:
        number = float(label)
    except ValueError:
        return str(label)
    return str(int(number) if number.is_integer() else number)
