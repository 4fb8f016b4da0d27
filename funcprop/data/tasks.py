"""What is to be learned from labels, classes or a quantity, and what is odd about a data set."""

from __future__ import annotations

import math

import numpy as np

from .data_files import Examples
from .tables import DataError, argument, shown

Array = np.ndarray
CLASSIFICATION, REGRESSION = TASKS = ("classification", "regression")
REGRESSION_LOSSES = ("mean_squared_error", "mean_absolute_error", "huber")
FEW_VALUES = 20  # so many whole numbers are classes, however few rows there are
ROWS_A_VALUE = 10  # more are so if each has that many rows, on average


def decided(y: Array, asked: str | None = None, loss: str | None = None) -> tuple[str, str]:
    """The task that is asked for, or else found, and why.

    Raises:
        DataError: when the labels or the loss do not fit the task, or all labels are the same.

    >>> decided(np.array([1, 2, 3]), asked="regression")
    ('regression', 'whole numbers, 3 distinct values, forced by --task')
    """
    if (y == y[0]).all():
        raise DataError(f"every label is {shown(str(y[0]))}; there must be two or more")
    found, why = task_of(y)
    task = asked or found
    if task == REGRESSION and y.dtype.kind not in "if":
        raise DataError(
            f"the labels are {why}, --task regression needs numbers; take another column with "
            "--label"
        )
    if task == REGRESSION and loss is not None and loss not in REGRESSION_LOSSES:
        raise DataError(
            f"its labels are {why}, a quantity, --loss {loss} takes classes; use --loss "
            f"{' or '.join(REGRESSION_LOSSES)}, or --task classification"
        )
    return task, why if task == found else f"{why}, forced by --task"


def first_line(name: str, examples: Examples, task: str, why: str) -> str:
    """What is learned from a file, why, and how to change that."""
    columns = "" if examples.columns is None else "--label takes another column, "
    return (
        f"{name}: {task} of {examples.label} ({why}); {columns}--task {' or '.join(TASKS)} forces "
        "the task"
    )


def task_of(y: Array) -> tuple[str, str]:
    """``"classification"`` or ``"regression"``, and why.

    Classification if the labels are text or booleans, or whole numbers with at most 20 distinct
    values or at least 10 rows a value; else regression.

    >>> task_of(np.array(["rose", "lily", "rose"]))
    ('classification', 'text, 2 classes')
    >>> task_of(np.arange(30) // 5)
    ('classification', 'whole numbers, 6 distinct values')
    >>> task_of(np.arange(210) // 10)
    ('classification', 'whole numbers, 21 distinct values with 10 rows each on average')
    >>> task_of(np.arange(200))
    ('regression', 'whole numbers, 200 distinct values with 1 row each on average')
    >>> task_of(np.array([1.5, 2.0, 1.5]))
    ('regression', 'real numbers, 2 distinct values')
    """
    values = len(np.unique(y))
    if y.dtype.kind in "Ub":
        kind = "text" if y.dtype.kind == "U" else "booleans"
        return CLASSIFICATION, f"{kind}, {values} class{'es' * (values != 1)}"
    number = f"{values:,} distinct value{'s' * (values != 1)}"
    if not is_whole(y):
        return REGRESSION, f"real numbers, {number}"
    if values <= FEW_VALUES:
        return CLASSIFICATION, f"whole numbers, {number}"
    each = len(y) / values
    few = CLASSIFICATION if each >= ROWS_A_VALUE else REGRESSION
    shown = math.floor(10 * each) / 10  # 9.96 is not 10
    rows = f"{shown:g} row{'s' * (shown != 1)}"
    return few, f"whole numbers, {number} with {rows} each on average"


def is_whole(y: Array) -> bool:
    """Whether labels are whole numbers, as floats too where these hold them exactly."""
    if y.dtype.kind == "f":
        return bool(((y == np.round(y)) & (np.abs(y) <= 2**53)).all())
    return y.dtype.kind in "iu"


def classes_of(y: Array, label: str) -> tuple[list, Array]:
    """The classes, and each label as an index of them.

    Raises:
        DataError: when there are as many classes as labels, or a label has two lines.

    >>> classes_of(np.array([3.0, 7.0, 3.0]), "y")
    ([3, 7], array([0, 1, 0]))
    """
    values, indices = np.unique(y, return_inverse=True)
    if len(values) == len(y) > 2:
        other = "" if y.dtype.kind == "U" else ", or --task regression for a quantity"
        raise DataError(
            f"no label comes twice in {label}, so none can be learned and tested; take another "
            f"column with --label{other}"
        )
    broken = [value for value in values.tolist() if len(str(value).splitlines()) > 1]
    if broken:
        raise DataError(f"the label {shown(broken[0])} has more than one line, it must have one")
    if y.dtype.kind == "b" or is_whole(y):
        values = values.astype(np.int64)
    return values.tolist(), indices


def oddities(examples: Examples, task: str) -> list[str]:
    """Sentences about columns that count the rows, that never change, and about rare classes."""
    x, y = examples.x, examples.y
    notes = []
    for place in range(x.shape[1]):
        if counts_rows(x[:, place]):
            notes.append(_likely_id(examples, place))
    same = np.flatnonzero(is_constant(x.mean(axis=0), x.std(axis=0)))
    if len(same):
        names = ", ".join(examples.feature(place) for place in same[:5])
        more = f" and {len(same) - 5} more" if len(same) > 5 else ""
        verb = "do" if len(same) > 1 else "does"
        notes.append(f"{names}{more} {verb} not vary, and can tell nothing")
    if y is not None and y.dtype.kind in "if" and counts_rows(y):
        notes.append(
            f"the label, {examples.label}, counts the rows ({y.min():.0f} to {y.max():.0f}); if it "
            "is only a number of the row, take another column with --label"
        )
    if y is not None and task == CLASSIFICATION:
        notes += _rare(y)
    return notes


def _likely_id(examples: Examples, place: int) -> str:
    column = examples.x[:, place]
    advice = "leave it out of x"
    if examples.columns is not None:
        names, features = examples.columns["names"], examples.columns["features"]
        advice = f"leave it out with --drop {argument(names, features[place])}"
    return (
        f"{examples.feature(place)} counts the rows ({column.min():.0f} to {column.max():.0f}); if "
        f"it is only a number of the row, {advice}"
    )


def _rare(y: Array) -> list[str]:
    values, counts = np.unique(y, return_counts=True)
    notes = []
    # A part of one in five, rounded, takes nothing of 1 or 2.
    rare = values[counts < 3]
    if len(rare):
        names = ", ".join(str(value) for value in rare[:5].tolist())
        quantity = "" if y.dtype.kind in "Ub" else "; --task regression if they are a quantity"
        more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
        notes.append(
            f"fewer than 3 rows of {names}{more}: all of them are trained on, the test has none"
            f"{quantity}"
        )
    if y.dtype.kind == "U":
        folded: dict[str, str] = {}
        for value in values.tolist():
            other = folded.setdefault(value.casefold(), value)
            if other != value:
                notes.append(f"classes {other!r} and {value!r} differ in upper and lower case only")
    return notes


def counts_rows(column: Array) -> bool:
    """Whether values are distinct whole numbers in steps of 1, in any order; of 3 rows or more.

    >>> counts_rows(np.array([7, 5, 6])), counts_rows(np.array([5, 7, 9]))
    (True, False)
    """
    if len(column) < 3 or not is_whole(column) or np.ptp(column) != len(column) - 1:
        return False
    return len(np.unique(column)) == len(column)


def is_constant(mean: Array, scale: Array) -> Array:
    """Whether a feature is the same number everywhere, but for rounding."""
    return scale <= 1e-12 * np.abs(mean)
