"""The cells of a table as numbers and labels; what is neither is named by line and column."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from .columns import Columns
from .tables import (
    MISSING,
    NUMBER,
    TRUTH,
    WHOLE,
    DataError,
    Table,
    argument,
    counted,
    is_missing,
    shown,
)

Array = np.ndarray
LARGEST = 1e30  # of a number: its square, and sums of these, are far from the largest float64
LONGEST = 200  # characters of a label; more are no name of a class
TEXT_TOO = {"none", "-", "--", "."}  # what may be missing, but is a class among labels of text
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")


def values(table: Table, columns: Columns, as_text: bool = False) -> tuple[Array, Array | None]:
    """Features (n, d) float64 and labels (n,), int64, float64 or text, of the chosen columns.

    Args:
        table: the cells.
        columns: which are what.
        as_text: labels are left as they are written.

    Raises:
        DataError: for a cell that is missing, infinite, too large, or text among numbers; it is
            named by its line and column.
    """
    features, label = columns["features"], columns["label"]
    if label is None:
        return _numbers(table, features, None), None
    cells = table.columns[label]
    kind = "text" if as_text else _kind(table, label)
    if kind == "real":
        both = _numbers(table, [*features, label], label)
        return both[:, :-1], both[:, -1]
    if kind == "whole":
        return _numbers(table, features, label), np.array(list(map(int, cells)), np.int64)
    empty = [i for i, c in enumerate(cells) if is_missing(c) and c.casefold() not in TEXT_TOO]
    if empty:
        raise DataError(_no_label(table, label, empty))
    for line, cell in zip(table.lines, cells, strict=True):
        if len(cell) > LONGEST:
            raise DataError(
                f"line {line}, {table.place(label)} has {len(cell):,} characters, a label must "
                f"have {LONGEST} or fewer; take another column with --label"
            )
    return _numbers(table, features, label), np.array(cells)


def _kind(table: Table, label: int) -> str:
    """Whether a column's labels are whole numbers, real ones, or text."""
    cells = table.columns[label]
    present = [cell for cell in cells if not is_missing(cell)]
    numbers = {cell for cell in present if NUMBER.fullmatch(cell) or _is_float(cell)}
    whole = {cell for cell in numbers if WHOLE.fullmatch(cell)}
    if not numbers.issuperset(present):
        count = sum(cell in numbers for cell in present)
        if 2 * count > len(present) and (len(numbers) > 20 or whole != numbers):
            row = next(i for i, c in enumerate(cells) if not is_missing(c) and c not in numbers)
            raise DataError(
                f"line {table.lines[row]}, {table.place(label)} is {shown(cells[row])}, where "
                f"{count:,} of {len(present):,} labels are numbers; labels must be all numbers or "
                "all text"
            )
        return "text"
    for line, cell in zip(table.lines, cells, strict=True):
        if cell in whole and (len(cell) > 20 or not -(2**63) <= int(cell) < 2**63):
            raise DataError(
                f"line {line}, {table.place(label)}: the label {shown(cell)} is beyond the whole "
                "numbers of 64 bits; write it with a letter if it names a class, with a decimal "
                "point if it is a quantity"
            )
    if not whole.issuperset(cells):
        return "real"
    return "text" if any(re.fullmatch(r"[+-]?0\d+", cell) for cell in whole) else "whole"


def _is_float(cell: str) -> bool:
    return _floats([cell]) is not None


def _numbers(table: Table, places: Sequence[int], label: int | None) -> Array:
    """The cells of columns as finite numbers (n, d), or an error that names the worst of them."""
    x = np.empty((len(table.lines), len(places)))
    texts, commas = [], []
    for j, place in enumerate(places):
        cells = table.columns[place]
        found = _floats(cells)
        if found is None:
            filled = ["nan" if cell.casefold() in MISSING else cell for cell in cells]
            found = _floats(filled)
        if found is None and table.delimiter != ",":
            found = _floats([cell.replace(",", ".") for cell in filled])
            commas += [] if found is None else [place]
        if found is None:
            found = _truths(table, place, filled)
        if found is None:
            texts.append(place)
        else:
            x[:, j] = found
    if texts:
        raise DataError(_text_among_numbers(table, texts, label))
    if commas:
        _check_commas(table, places, commas)
        names = ", ".join(table.place(place) for place in commas[:5])
        more = f" and {len(commas) - 5} more" if len(commas) > 5 else ""
        table.notes.append(f"numbers have a decimal comma in {names}{more}")
    _check_finite(table, x, places, label)
    return x


def _floats(cells: Sequence[str]) -> list[float] | None:
    try:
        found = list(map(float, cells))
    except ValueError:
        return None
    return None if "_" in "".join(cells) else found  # Python reads 1_000


def _truths(table: Table, place: int, cells: Sequence[str]) -> list[float] | None:
    folded = [cell.casefold() for cell in cells]
    for truth in TRUTH:
        if set(folded) <= truth.keys() | {"nan"}:
            words = " and ".join(truth)
            table.notes.append(f"{table.place(place)}: {words} are read as 1 and 0")
            return [truth.get(cell, math.nan) for cell in folded]
    return None


def _check_commas(table: Table, places: Sequence[int], commas: Sequence[int]) -> None:
    """Raises unless the commas of a file stand for a decimal point, and can stand for no mark."""

    def cells(of: Sequence[int], mark: str) -> Iterator[tuple[str, str]]:
        for place in of:
            for line, cell in zip(table.lines, table.columns[place], strict=True):
                if mark in cell and not is_missing(cell):
                    yield cell, f"line {line}, {table.place(place)} is {shown(cell)}"

    advice = "write numbers with a decimal point, and without marks between thousands"
    comma, where = next(cells(commas, ","))
    for _, other in cells(places, "."):
        raise DataError(f"{where}, but {other}; {advice}")
    if all(THOUSANDS.fullmatch(cell) for cell, _ in cells(commas, ",")):
        raise DataError(
            f"{where}, which may mean {comma.replace(',', '')} or {comma.replace(',', '.')}; "
            f"{advice}"
        )


def _text_among_numbers(table: Table, texts: Sequence[int], label: int | None) -> str:
    place = texts[0]
    cells = table.columns[place]
    comma = table.delimiter != ","
    i = next(
        i
        for i, cell in enumerate(cells)
        if not is_missing(cell) and not _is_float(cell.replace(",", ".") if comma else cell)
    )
    start = f"line {table.lines[i]}, {table.place(place)} is {shown(cells[i])}, it must be a number"
    number = NUMBER.fullmatch(cells[i]) or re.fullmatch(r"[+-]?\d{1,3}([ _']\d{3})+.*", cells[i])
    if number:
        start += " with a decimal point, and without marks between thousands"
    features = [place for place in texts if place != label]
    if not features:
        return start
    names = " ".join(argument(table.names, place) for place in features)
    more = len(features) - 1
    also = (
        f" ({counted(more, 'more column')} {'has' if more == 1 else 'have'} text)" if more else ""
    )
    return f"{start}; write it so, or leave it out with --drop {names}{also}"


def _check_finite(table: Table, x: Array, places: Sequence[int], label: int | None) -> None:
    wrong = ~(np.abs(x) < LARGEST)  # NaN too
    if not wrong.any():
        return
    i, j = np.argwhere(wrong)[0]
    place = places[j]
    cell, line = table.columns[place][i], table.lines[i]
    if np.isfinite(x[i, j]):
        raise DataError(
            f"line {line}, {table.place(place)} is {cell}; numbers must be smaller than "
            f"{LARGEST:g}, use another unit"
        )
    counts = [(int((~np.isfinite(x[:, j])).sum()), place) for j, place in enumerate(places)]
    counts = [(count, place) for count, place in counts if count]
    kind = "infinite" if np.isinf(x[i, j]) else "missing"
    if place == label and len(counts) == 1 and kind == "missing":
        raise DataError(_no_label(table, place, np.flatnonzero(wrong[:, j])))
    each = [f"{count:,} in {table.place(place)}" for count, place in counts[:5]]
    each += [f"more in {counted(len(counts) - 5, 'other column')}"] if len(counts) > 5 else []
    names = " ".join(argument(table.names, place) for _, place in counts if place != label)
    drop = f", or leave columns out with --drop {names}" if names else ""
    total = sum(count for count, _ in counts)
    raise DataError(
        f"line {line}, {table.place(place)} is {shown(cell)}, {kind}; {counted(total, 'cell')} "
        f"without a finite number ({', '.join(each)}); fill {'them' if total > 1 else 'it'} or "
        f"delete the rows{drop}"
    )


def _no_label(table: Table, place: int, rows: Sequence[int] | Array) -> str:
    cell = table.columns[place][rows[0]]
    return (
        f"line {table.lines[rows[0]]} has no label: {table.place(place)} is {shown(cell)} "
        f"({counted(len(rows), 'such row')}); delete such rows, or take another column with --label"
    )
