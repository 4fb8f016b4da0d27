"""Data to train on: the embedded digits, a user's own file, and a split into two parts."""

from __future__ import annotations

import csv
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray
Pair = tuple[Array, Array]


class DataError(ValueError):
    """A file or data set that cannot be used; the message names it and says what is wrong."""


def digits() -> Pair:
    """1,797 handwritten digits, images of 8 × 8 pixels (Alpaydin & Kaynak 1998, UCI repository).

    Returns:
        ``(x, y)``: x (1797, 64) float32 in [0, 1], row by row; y (1797,) int32, 0 to 9.

    >>> from funcprop import datasets
    >>> x, y = datasets.digits()
    >>> x.shape, y[:5].tolist()
    ((1797, 64), [0, 1, 2, 3, 4])
    """
    with np.load(Path(__file__).with_name("data") / "digits.npz") as stored:
        return stored["images"].astype(np.float32) / 16, stored["labels"].astype(np.int32)


def split(x: Array, y: Array, test: float = 0.2, seed: int = 0) -> tuple[Pair, Pair]:
    """Two parts, drawn at random; of labels each part gets its share of every class.

    Args:
        x: (n, ...), any array.
        y: (n,), labels of integers, booleans or strings; floats are drawn without regard to their
            values.
        test: the share of the second part, between 0 and 1.
        seed: 0 to 2³² - 1; the same one gives the same parts.

    Returns:
        ``((x_train, y_train), (x_test, y_test))``, both in the order of the data.

    Raises:
        DataError: when lengths differ, ``test`` is no share, or a part would be empty.

    >>> import numpy as np
    >>> from funcprop import datasets
    >>> (_, train), (_, test) = datasets.split(np.zeros((10, 2)), np.array([0] * 5 + [1] * 5))
    >>> train.tolist(), test.tolist()
    ([0, 0, 0, 0, 1, 1, 1, 1], [0, 1])
    """
    if len(x) != len(y):
        raise DataError(f"x has {len(x)} examples, y has {len(y)}; as many are due")
    if not 0 < test < 1:
        raise DataError(f"test is {test}, a share between 0 and 1 is due")
    rows = np.arange(len(y))
    groups = [rows]
    if not np.issubdtype(y.dtype, np.floating):
        groups = [rows[y == label] for label in np.unique(y)]
    # The stream of a RandomState is frozen: a seed means the same split with any version of NumPy.
    random = np.random.RandomState(seed)
    drawn = np.zeros(len(y), bool)
    for group in groups:
        drawn[random.permutation(group)[: round(test * len(group))]] = True
    if not 0 < drawn.sum() < len(y):
        raise DataError(f"there are {len(y)} examples, too few to set a share of {test:g} apart")
    return (x[~drawn], y[~drawn]), (x[drawn], y[drawn])


def load(path: str | Path, features: int | None = None) -> tuple[Array, Array | None]:
    """Examples from a file: .npz with arrays x and y, or .csv with the label in its last column.

    Of a .csv the first line is skipped where it holds names, that is no number but in the label's
    column.

    Args:
        path: the file.
        features: how many features there are, where that is known; then a .npz without y, or a
            .csv of just that many columns, gives no labels.

    Returns:
        ``(x, y)``: x (n, d) float64, an image or the like laid out in one row; y (n,) int64,
        float64 or strings, or None.

    Raises:
        DataError: when the file cannot be read, or holds NaN, text among the features, rows of
            different lengths, no examples, or no labels where they are due.

    >>> import pathlib, tempfile
    >>> from funcprop import datasets
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "flowers.csv"
    >>> _ = path.write_text("length,width,kind\\n1.5,2,rose\\n3,4.5,lily\\n")
    >>> x, y = datasets.load(path)
    >>> x.tolist(), y.tolist()
    ([[1.5, 2.0], [3.0, 4.5]], ['rose', 'lily'])
    """
    path = Path(path)
    readers = {".npz": _read_npz, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: a .npz or .csv file is due")
    try:
        x, y = readers[path.suffix.lower()](path, features)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    if features is not None and x.shape[1] != features:
        raise DataError(f"{path}: it has {x.shape[1]} features, {features} are due")
    for name, values in (("x", x), ("y", y)):
        if values is not None and np.issubdtype(values.dtype, np.floating):
            bad = np.argwhere(~np.isfinite(values))
            if len(bad):
                place = ", ".join(map(str, bad[0]))
                what = values[tuple(bad[0])]
                raise DataError(f"{path}: {name}[{place}] is {what}; finite numbers are due")
    return x, y


# --------------------------------------------------------------------------------- npz


def _read_npz(path: Path, features: int | None) -> tuple[Array, Array | None]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in ("x", "y") if name in stored.files}
            found = ", ".join(stored.files) or "nothing"
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = "it holds Python objects" if "Object arrays" in str(error) else "it is damaged"
        raise DataError(f"{path}: {reason}; a .npz file of numbers and strings is due") from None
    if "x" not in arrays or ("y" not in arrays and features is None):
        raise DataError(f"{path}: it holds {found}; arrays x and y are due")
    x, y = arrays["x"], arrays.get("y")
    if x.ndim < 2 or 0 in x.shape or x.dtype.kind not in "buif":
        raise DataError(f"{path}: x is {x.dtype}{list(x.shape)}, numbers (n, d) are due")
    x = x.reshape(len(x), -1).astype(np.float64)
    if y is None:
        return x, None
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != (len(x),) or y.dtype.kind not in "buifU":
        raise DataError(
            f"{path}: y is {y.dtype}{list(y.shape)}, {len(x)} labels or numbers, one an example, "
            "are due"
        )
    wide = {"b": np.int64, "u": np.int64, "i": np.int64, "f": np.float64, "U": y.dtype}
    return x, y.astype(wide[y.dtype.kind])


# --------------------------------------------------------------------------------- csv


def _read_csv(path: Path, features: int | None) -> tuple[Array, Array | None]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True)
            lines = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: it is no text of commas and lines ({error})") from None
    if not lines:
        raise DataError(f"{path}: it is empty")
    columns = len(lines[0][1])
    if features is not None and columns not in (features, features + 1):
        raise DataError(
            f"{path}: it has {columns} columns; {features} features, or these and a label, are due"
        )
    labelled = columns != features
    width = columns - labelled
    if width < 1:
        raise DataError(f"{path}: it has one column; features and a label, with commas, are due")
    if all(_number(cell) is None for cell in lines[0][1][:width]):
        del lines[0]
    if not lines:
        raise DataError(f"{path}: it holds a line of names and no examples")
    x = np.empty((len(lines), width))
    for i, (line, row) in enumerate(lines):
        if len(row) != columns:
            raise DataError(f"{path}: line {line} has {len(row)} columns, {columns} are due")
        numbers = [_number(cell) for cell in row[:width]]
        if None in numbers:
            column = numbers.index(None)
            raise DataError(
                f"{path}: line {line}, column {column + 1} is {row[column]!r}, a number is due"
            )
        x[i] = numbers
        if labelled and not row[-1].strip():
            raise DataError(f"{path}: line {line} has no label")
    return x, _labels([row[-1].strip() for _, row in lines]) if labelled else None


def _number(cell: str) -> float | None:
    """The finite number that a cell holds, or None."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _labels(cells: Sequence[str]) -> Array:
    """Integers where all are, else floats where all are, else strings."""
    kinds: tuple[tuple[Any, Any], ...] = ((int, np.int64), (float, np.float64))
    for convert, dtype in kinds:
        try:
            return np.array([convert(cell) for cell in cells], dtype)
        except (ValueError, OverflowError):
            continue
    return np.array(cells)
