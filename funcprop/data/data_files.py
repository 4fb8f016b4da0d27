"""Examples from a file, a table of text or arrays of NumPy's, to train on or to predict."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import tables
from .columns import Columns, chosen, matched
from .tables import WHOLE, DataError, is_missing
from .values import LARGEST, values

Array = np.ndarray
TEXT = (".csv", ".tsv", ".tab", ".txt", ".dat", ".data")


class Examples(NamedTuple):
    """What a file holds.

    Attributes:
        x: (n, d) float64.
        y: (n,) int64, float64, bool or text; None without labels.
        columns: where x and y come from; None of a .npz.
        notes: sentences for the user about what was taken for what.
    """

    x: Array
    y: Array | None
    columns: Columns | None
    notes: list[str]

    def feature(self, place: int) -> str:
        """A feature in words."""
        if self.columns is None:
            return f"x[:, {place}]"
        return tables.place(self.columns["names"], self.columns["features"][place])

    @property
    def label(self) -> str:
        """The label in words."""
        if self.columns is None or self.columns["label"] is None:
            return "y"
        return tables.place(self.columns["names"], self.columns["label"])


def label_name(columns: Columns | None) -> str:
    """What the axis of a picture says of the label: its bare name if it has one."""
    if columns is None or columns["label"] is None:
        return "y"
    name = columns["names"][columns["label"]] if columns["names"] else ""
    return name or f"column {columns['label'] + 1}"


def read(
    path: str | Path,
    *,
    label: str | int | None = -1,
    drop: Sequence[str | int] = (),
    delimiter: str | None = None,
    header: bool | None = None,
) -> Examples:
    """The examples of a file; arguments and errors as :func:`funcprop.datasets.load` has them."""
    path = Path(path)
    with _named(path):
        if _is_text(path):
            asked = [name for name in (label, *drop) if isinstance(name, str)]
            known = [name for name in asked if not WHOLE.fullmatch(name)]
            table = tables.read(path, delimiter=delimiter, header=header, known=known)
            columns = chosen(table, label, drop)
            x, y = values(table, columns)
            return Examples(x, y, columns, table.notes)
        label_given, header_given = label not in (None, -1), header is not None
        for name, given in (
            ("label", label_given),
            ("drop", drop),
            ("delimiter", delimiter),
            ("header", header_given),
        ):
            if given:
                raise DataError(f"--{name} is for tables of text; a .npz has the arrays x and y")
        return Examples(*_npz(path, labelled=label is not None), None, [])


def read_as(
    path: str | Path,
    trained: Columns | None,
    features: int,
    *,
    as_text: bool,
    delimiter: str | None = None,
    header: bool | None = None,
) -> Examples:
    """The examples of a file like the one that a network was trained on, labels where there are.

    Args:
        path: the file.
        trained: the columns of the training data; None where that was no table: then a table has
            the features, and behind them a label or none.
        features: how many there are.
        as_text: labels of a table are left as they are written.
        delimiter, header: as in :func:`read`.
    """
    path = Path(path)
    with _named(path):
        if not _is_text(path):
            x, y = _npz(path, labelled=None)
            if x.shape[1] != features:
                raise DataError(f"x has {x.shape[1]} features, it must have {features}")
            return Examples(x, y, None, [])
        trained = trained or {
            "names": None,
            "features": list(range(features)),
            "label": features,
            "count": features + 1,
        }
        names = trained["names"] or []
        known = [names[i] for i in trained["features"] if names and names[i]]
        table = tables.read(path, delimiter=delimiter, header=header, known=known)
        columns = matched(table, trained)
        label = columns["label"]
        if label is not None and all(map(is_missing, table.columns[label])):
            table.notes.append(f"{table.place(label)} is empty, there are no labels")
            columns["label"] = None
        x, y = values(table, columns, as_text)
        return Examples(x, y, columns, table.notes)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def _is_text(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix != ".npz" and suffix not in TEXT:
        raise DataError(f"it must be a .npz file or a table of text ({', '.join(TEXT)})")
    return suffix != ".npz"


# --------------------------------------------------------------------------------- npz


def _npz(path: Path, labelled: bool | None) -> tuple[Array, Array | None]:
    """The arrays x and y; ``labelled`` None: y if it is there."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in ("x", "y") if name in stored.files}
            found = ", ".join(stored.files) or "nothing"
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = "it holds Python objects" if "Object arrays" in str(error) else "it is damaged"
        raise DataError(f"{reason}; it must be a .npz file of numbers and strings") from None
    if "x" not in arrays or ("y" not in arrays and labelled):
        raise DataError(f"it holds {found}; it must hold the arrays x and y")
    x, y = arrays["x"], None if labelled is False else arrays.get("y")
    if x.ndim < 2 or 0 in x.shape or x.dtype.kind not in "buif" or x.dtype.itemsize > 8:
        raise DataError(f"x is {x.dtype}{list(x.shape)}, it must be numbers (n, d)")
    x = x.reshape(len(x), -1).astype(np.float64)
    _check_numbers("x", x)
    if y is None:
        return x, None
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    wide = y.dtype.kind == "f" and y.dtype.itemsize > 8
    if y.shape != (len(x),) or y.dtype.kind not in "buifU" or wide:
        raise DataError(
            f"y is {y.dtype}{list(y.shape)}, it must be {len(x)} labels or numbers, one an example"
        )
    if y.dtype.kind == "u" and y.max() >= 2**63:
        place = int((y >= 2**63).argmax())
        raise DataError(f"y[{place}] is {y[place]}, beyond the whole numbers of 64 bits")
    if y.dtype.kind == "f":
        _check_numbers("y", y)
    if y.dtype.kind == "U" and (y == "").any():
        raise DataError(f"y[{(y == '').argmax()}] is empty, it must be a label")
    kinds = {"u": np.int64, "i": np.int64, "f": np.float64}
    return x, y.astype(kinds.get(y.dtype.kind, y.dtype))


def _check_numbers(name: str, array: Array) -> None:
    wrong = ~(np.abs(array) < LARGEST)  # NaN too
    if wrong.any():
        place = np.argwhere(wrong)[0]
        what = f"{name}[{', '.join(map(str, place))}] is {array[tuple(place)]}"
        raise DataError(f"{what}; numbers must be finite, and smaller than {LARGEST:g}")
