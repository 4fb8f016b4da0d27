"""A trained network in its folder: saved, loaded, applied to new data."""

from __future__ import annotations

import argparse
import io
import itertools
import math
import reprlib
import sys
import zipfile
import zlib
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..cases import activations
from ..core.layer import Layer
from ..core.loss import Loss
from ..core.version import __version__
from ..data.columns import Columns, check_columns
from ..data.data_files import read_as
from ..data.tasks import REGRESSION_LOSSES
from ..losses.standard import (
    hinge,
    huber,
    kl_divergence,
    mean_absolute_error,
    mean_squared_error,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)
from ..multilayer_perceptron import Params, mlp
from . import run_folder
from .files import CommandError, write_file
from .run_folder import METRICS, MODEL, PARAMS, PICTURE

ACTIVATIONS = {case.name: case.layer for case in activations.CASES if case.name != "elementwise"}
LOSSES: dict[str, Loss] = {
    "softmax_cross_entropy": softmax_cross_entropy(),
    "sigmoid_cross_entropy": sigmoid_cross_entropy,
    "kl_divergence": kl_divergence,
    "hinge": hinge,
    "mean_squared_error": mean_squared_error,
    "mean_absolute_error": mean_absolute_error,
    "huber": huber(),
}


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

    def inputs(self, x: np.ndarray, of: str = "") -> np.ndarray:
        """What the network sees; ``of`` begins the message where that fails.

        Raises:
            CommandError: for a feature that is too large for float32 once it is scaled.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            inputs = ((x - self.mean) / self.scale).astype(np.float32)
        if not np.isfinite(inputs).all():
            row, column = np.argwhere(~np.isfinite(inputs))[0]
            raise CommandError(
                f"{of}row {row + 1}, column {column + 1} is {x[row, column]:.6g}, too large for "
                "float32 once it is scaled as the training data; correct it or leave it out"
            )
        return inputs

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
            r2 = f"R² {1 - error / spread:.4f}, " if spread else ""  # not defined for one value
            return f"{r2}RMSE {math.sqrt(error):.6g}"
        right = int((answers == y).sum())
        return f"accuracy {100 * right / len(y):.2f} % ({right:,} of {len(y):,})"


# ------------------------------------------------------------------------------ model.json


def described(
    sizes: tuple[int, ...], activation: str, loss: str, meaning: Meaning
) -> dict[str, Any]:
    """What ``model.json`` says of a network.

    Raises:
        CommandError: when :func:`load` would refuse it.
    """
    fields = {
        "funcprop": __version__,
        "sizes": list(sizes),
        "activation": activation,
        "loss": loss,
        **meaning._asdict(),
        "mean": meaning.mean.tolist(),
        "scale": meaning.scale.tolist(),
    }
    if problem := _problem(fields):
        raise CommandError(f"a network of this data could not be loaded again: {problem}")
    return fields


def _is_number(value: Any, least: float = -math.inf, above: float = -math.inf) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value) and least <= value and above < value
    except OverflowError:  # a whole number beyond every float
        return False


def _are_numbers(value: Any, count: int, above: float = -math.inf) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(_is_number(item, above=above) for item in value)
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_classes(value: Any, outputs: int, loss: str) -> bool:
    if value is None:
        return outputs == 1 and loss in REGRESSION_LOSSES
    return (
        isinstance(value, list)
        and len({type(name) for name in value}) == 1
        and type(value[0]) in (str, int)
        and len(set(value)) == len(value) == outputs
    )


def _are_columns(value: Any, features: int) -> bool:
    try:
        check_columns(value, features)
    except ValueError:
        return False
    return True


# Each field of model.json: what it must be, and whether it is, given it and all fields.  A field
# may rely on those above it.
FIELDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "funcprop": ("a version", lambda v, d: isinstance(v, str) and v != ""),
    "sizes": (
        "a list of two or more whole numbers above 0",
        lambda v, d: isinstance(v, list) and len(v) > 1 and all(map(_is_count, v)),
    ),
    "activation": (
        "the name of an activation",
        lambda v, d: isinstance(v, str) and v in ACTIVATIONS,
    ),
    "loss": ("the name of a loss", lambda v, d: isinstance(v, str) and v in LOSSES),
    "mean": ("a finite number for each feature", lambda v, d: _are_numbers(v, d["sizes"][0])),
    "scale": (
        "a finite number above 0 for each feature",
        lambda v, d: _are_numbers(v, d["sizes"][0], above=0),
    ),
    "reach": ("a finite number of 0 or more", lambda v, d: _is_number(v, least=0)),
    "classes": (
        "as many different strings, or whole numbers, as there are outputs; or null for the one "
        "output of a regression",
        lambda v, d: _are_classes(v, d["sizes"][-1], d["loss"]),
    ),
    "target_mean": ("a finite number", lambda v, d: _is_number(v)),
    "target_scale": ("a finite number above 0", lambda v, d: _is_number(v, above=0)),
    "columns": (
        "null, or the names, features, label and count of the columns of a table",
        lambda v, d: _are_columns(v, d["sizes"][0]),
    ),
}


def _problem(fields: dict[str, Any]) -> str | None:
    """The first field of ``model.json`` that makes no sense, in words."""
    for name, (expected, makes_sense) in FIELDS.items():
        if name not in fields:
            return f"it has no field {name}, which must be {expected}"
        if not makes_sense(fields[name], fields):
            return f"{name} is {reprlib.repr(fields[name])}, it must be {expected}"
    return None


# ---------------------------------------------------------------------------- save and load


def save(
    folder: Path, fields: dict[str, Any], params: Params, metrics: str, picture: bytes | None
) -> list[str]:
    """Puts a run in the place of the folder's old one; see :func:`run_folder.write`.

    Args:
        folder: where to.
        fields: those of :func:`described`.
        params: of the network.
        metrics: a line an epoch.
        picture: a PNG file's content, where there is one.

    Returns:
        The names of the files.
    """
    arrays = {
        f"{name}{i}": np.asarray(leaf)
        for i, layer in enumerate(params, start=1)
        for name, leaf in layer.items()
    }
    stored = io.BytesIO()
    np.savez(stored, **arrays)  # type: ignore[arg-type]
    files = {} if picture is None else {PICTURE: picture}
    files |= {METRICS: metrics.encode(), PARAMS: stored.getvalue()}
    run_folder.write(folder, fields, files)
    return [*files, MODEL]


def load(folder: Path) -> tuple[Layer, Params, Meaning]:
    """The network of a run, its parameters, and what its inputs and outputs mean.

    Raises:
        CommandError: when the folder holds no run, or one of two runs, or a field of its
            ``model.json`` or an array of its ``params.npz`` makes no sense.
    """
    fields, files = run_folder.read(folder)
    if problem := _problem(fields):
        raise CommandError(f"{folder}: its {MODEL} is damaged: {problem}; train again")
    run_folder.check(folder, fields, files)
    model = mlp(fields["sizes"], ACTIVATIONS[fields["activation"]])
    try:
        with np.load(io.BytesIO(files[PARAMS]), allow_pickle=False) as stored:
            arrays = dict(stored)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CommandError(f"{folder}: its {PARAMS} is damaged ({error}); train again") from None
    if problem := _problem_of_params(arrays, fields["sizes"]):
        raise CommandError(f"{folder}: its {PARAMS} is damaged: {problem}; train again")
    params = tuple(
        {name: jnp.asarray(arrays[f"{name}{i}"]) for name in ("w", "b")}
        for i in range(1, len(fields["sizes"]))
    )
    known = {name: fields[name] for name in Meaning._fields}
    meaning = Meaning(**known | {n: np.array(known[n], float) for n in ("mean", "scale")})
    return model, params, meaning


def _problem_of_params(arrays: dict[str, np.ndarray], sizes: list[int]) -> str | None:
    """The first array that is not as the sizes say, in words."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (n, m) in enumerate(itertools.pairwise(sizes), start=1):
        shapes |= {f"w{i}": (m, n), f"b{i}": (m,)}
    if set(arrays) != set(shapes):
        return f"it holds {', '.join(sorted(arrays))}; it must hold {', '.join(shapes)}"
    dtypes = {"float32", str(jnp.zeros(()).dtype)}
    for name, shape in shapes.items():
        array = arrays[name]
        if array.shape != shape:
            return f"{name} has shape {array.shape}, sizes {sizes} make it {shape}"
        if str(array.dtype) not in dtypes:
            return f"{name} is {array.dtype}, it must be {' or '.join(sorted(dtypes))}"
        if not np.isfinite(array).all():
            return f"{name} must be finite, {np.sum(~np.isfinite(array))} of its numbers are not"
    return None


# ------------------------------------------------------------------------------ predict


def predict(args: argparse.Namespace) -> int:
    """``funcprop predict``: a prediction a line."""
    if args.out is None and sys.stdout is None:
        raise CommandError("standard output is closed; give --out FILE")
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
    inputs = meaning.inputs(x, f"{args.file}: ")
    reach = float(np.abs(inputs).max())
    if reach > 10 * meaning.reach:
        print(
            f"note: features reach {reach:.3g}, in training {meaning.reach:.3g} (scaled); is "
            f"{args.file} in the units of the training data?",
            file=sys.stderr,
        )
    prediction = jax.jit(model.apply)(params, inputs)
    answers = meaning.answers(prediction)
    row = not_finite(prediction, answers)
    if row is not None:
        raise CommandError(
            f"{args.file}: the prediction of row {row + 1} is not finite; are its features in the "
            "units of the training data?"
        )
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
        write_file(args.out, text)
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


def not_finite(prediction: Any, answers: np.ndarray) -> int | None:
    """The first example of which an output of the network, or the answer made of it, is not finite.

    The largest of scores that are NaN would be the first class.
    """
    finite = np.isfinite(np.asarray(prediction)).all(axis=1) & np.isfinite(answers)
    return None if finite.all() else int(np.argmin(finite))


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
