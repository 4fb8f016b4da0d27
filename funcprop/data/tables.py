"""Tables of text as people have them: encoding, delimiter, comments, a line of names or none."""

from __future__ import annotations

import codecs
import csv
import io
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

# By name; of two that fit a file equally well, the first is taken: a comma may stand in a number,
# a space in a text.
DELIMITERS = {"tab": "\t", "semicolon": ";", "pipe": "|", "comma": ",", "space": " "}
MISSING = {"", "na", "n/a", "#n/a", "<na>", "nan", "nat", "null", "none", "?", "-", "--", "."}
TRUTH = [{"true": 1.0, "false": 0.0}, {"yes": 1.0, "no": 0.0}]
SAMPLE = 200  # rows from which the delimiter is found

WHOLE = re.compile(r"[+-]?\d+")
# Also with a decimal comma, or with marks between thousands: not a name, whatever it is.
NUMBER = re.compile(r"[+-]?(\d[\d.,']*|[.,]\d+)([eE][+-]?\d+)?")


class DataError(ValueError):
    """A file or data set that cannot be used; the message names it and says what is wrong."""


class Table(NamedTuple):
    """The cells of a file, without the spaces around them.

    Attributes:
        names: of the columns, or ``None`` where the file has none; at most one is empty.
        lines: the line in which each row begins, from 1.
        columns: of each column its cells.
        delimiter: what stands between two cells.
        notes: sentences about what was taken for what.
    """

    names: list[str] | None
    lines: list[int]
    columns: list[tuple[str, ...]]
    delimiter: str
    notes: list[str]

    def place(self, column: int) -> str:
        """A column in words: its number, from 1, and its name."""
        return place(self.names, column)


def read(
    path: Path,
    *,
    delimiter: str | None = None,
    header: bool | None = None,
    known: Sequence[str] = (),
) -> Table:
    """The table in a file.

    Args:
        path: a file of text in UTF-8, or in UTF-16 with a byte order mark.
        delimiter: a character; a space stands for any run of spaces and tabs.  ``None``: found.
        header: whether the first line holds names.  ``None``: found.
        known: names; a first line that holds all of them is a line of names, and one that holds
            one that is no number.

    Raises:
        DataError: when it is no table: bytes that are no text, rows of different lengths, names
            that stand twice, no rows.
    """
    text = list(io.StringIO(_text(path), newline=""))
    if text and (found := re.fullmatch(r"sep=(.)\s*", text[0])):  # Excel's own line
        text[0] = "\n"
        delimiter = delimiter or found[1]
    if delimiter is None:
        delimiter = _found(text)
    rows, empty, comments = [], [], []
    for line, row, last in _rows(text, delimiter):
        if row is None:
            comments.append(line)
        elif any(row):
            rows.append((line, row, last))
        elif row:
            empty.append(line)
    notes = [
        f"{counted(len(left), 'line')} {what}, from line {left[0]}, left out"
        for what, left in (("beginning with #", comments), ("without any value", empty))
        if left
    ]
    if not rows:
        raise DataError(f"it is empty ({'; '.join(notes)})" if notes else "it is empty")
    _check_lengths(rows, delimiter)
    cells = [row for _, row, _ in rows]
    while len(cells[0]) > 1 and not any(row[-1] for row in cells):
        cells = [row[:-1] for row in cells]
        notes.append("every line ends with a delimiter; the empty column after it is left out")
    names = None
    if header or (header is None and _is_header(cells, known, notes)):
        names = cells.pop(0)
        _check_names(names)
        rows = rows[1:]
    if not cells:
        raise DataError("it holds a line of names and no examples")
    columns = list(zip(*cells, strict=True))
    return Table(names, [line for line, _, _ in rows], columns, delimiter, notes)


def delimiter_of(text: str) -> str:
    """The delimiter that somebody asks for, by its name or as a character.

    >>> delimiter_of("semicolon"), delimiter_of("|")
    (';', '|')
    """
    found = {**DELIMITERS, "\\t": "\t"}.get(text, text)
    if len(found) != 1 or found.isalnum() or found in "\"'#.+-\r\n":
        raise ValueError(f"{text!r} must be one character or {', '.join(DELIMITERS)}")
    return found


def place(names: Sequence[str] | None, column: int) -> str:
    """A column in words: its number, from 1, and its name where it has one."""
    name = " ".join(names[column].split()) if names else ""
    return f'column {column + 1} "{name}"' if name else f"column {column + 1}"


def shown(cell: str, most: int = 40) -> str:
    """A cell in quotes, not all of a long one."""
    return repr(cell if len(cell) <= most else cell[:most] + "...")


def argument(names: Sequence[str] | None, column: int) -> str:
    """A column as an option takes it: its name in the words of a shell, or its number."""
    return shlex.quote(names[column]) if names and names[column] else str(column + 1)


def is_missing(cell: str) -> bool:
    return cell.casefold() in MISSING


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


# ------------------------------------------------------------------------------ the text


def _text(path: Path) -> str:
    content = path.read_bytes()
    encoding = "utf-8-sig"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = len(content[: error.start + 1].splitlines())
        byte, name = content[error.start], encoding.removesuffix("-sig").upper()
        raise DataError(
            f"line {line} holds the byte 0x{byte:02X}, which is no {name} text; save the file as "
            "CSV in UTF-8"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"line {line} holds a zero byte, it is no text; save the file as CSV")
    return text


def _rows(lines: Sequence[str], delimiter: str) -> Iterator[tuple[int, list[str] | None, int]]:
    """Of each row the line in which it begins, its cells (of a comment None), its last line."""
    comment = between = False

    def prepared() -> Iterator[str]:
        nonlocal comment, between
        between = True
        for line in lines:
            comment = between and "#" in line and line.lstrip().startswith("#")
            between = False
            if comment:
                yield "\n"
            else:
                yield " ".join(line.split()) + "\n" if delimiter == " " else line

    reader = csv.reader(prepared(), delimiter=delimiter, skipinitialspace=delimiter != " ")
    begin = 1
    try:
        for row in reader:
            between = True
            last = reader.line_num
            if last > begin and last == len(lines) and "".join(lines[begin - 1 :]).count('"') % 2:
                raise DataError(f"line {begin} opens a quote that is never closed")
            yield begin, None if comment else list(map(str.strip, row)), last
            begin = last + 1
    except csv.Error as error:
        raise DataError(f"line {begin} cannot be read ({error}); is a quote not closed?") from None


def _found(lines: Sequence[str]) -> str:
    """The delimiter for which most rows have as many cells, and then most cells are numbers."""

    def fit(delimiter: str) -> tuple[float, float]:
        try:
            found = (row for _, row, _ in _rows(lines, delimiter) if row)
            rows = list(islice(found, SAMPLE))
        except DataError:
            return 0, 0
        lengths = Counter(len(row) for row in rows if len(row) > 1)
        if not lengths:
            return 0, 0
        cells = [cell for row in rows[1:] or rows for cell in row]
        numbers = sum(bool(NUMBER.fullmatch(cell)) or is_missing(cell) for cell in cells)
        return lengths.most_common(1)[0][1] / len(rows), numbers / len(cells)

    fits = {delimiter: fit(delimiter) for delimiter in DELIMITERS.values()}
    best = max(fits, key=fits.__getitem__)
    return best if fits[best][0] else ","


def _check_lengths(rows: Sequence[tuple[int, list[str], int]], delimiter: str) -> None:
    first, columns = rows[0][0], len(rows[0][1])
    for line, row, last in rows:
        if len(row) == columns:
            continue
        hint = ""
        if last > line:
            hint = f"; it runs to line {last}: is a quote not closed?"
        elif all(len(other) == columns + 1 for _, other, _ in rows[1:]):
            hint = (
                "; each of the other lines has one more: end none with a delimiter, and give the "
                "column of row names a name"
            )
        between = {value: name for name, value in DELIMITERS.items()}.get(delimiter, delimiter)
        raise DataError(
            f"line {line} has {counted(len(row), 'column')}, line {first} has {columns}; all lines "
            f"must have as many (delimiter: {between}){hint}"
        )


# ------------------------------------------------------------------------------ the names


def _check_names(names: Sequence[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            places = [str(i + 1) for i, other in enumerate(names) if other == name]
            what = f'are all called "{name}"' if name else "have no name"
            raise DataError(
                f"columns {', '.join(places)} {what}; columns must have different names"
            )


def _is_header(rows: Sequence[Sequence[str]], known: Sequence[str], notes: list[str]) -> bool:
    """Whether the first row holds names: something, and no number."""
    first, body = rows[0], rows[1:]
    if known and (set(known) <= set(first) or any(_is_word(n) for n in set(known) & set(first))):
        return True
    counts = [str(i) for i in range(len(first))]
    if body and len(first) > 2 and first in (counts, ["", *counts[:-1]]):
        whole = all(WHOLE.fullmatch(cell) for row in body for cell in row)
        taken, other = ("numbers", "yes") if whole and first[0] else ("names", "no")
        notes.append(
            f"line 1 counts the columns from 0, it is taken for {taken}; --header {other} otherwise"
        )
        return taken == "names"
    values = [_is_value(cell, body, i) for i, cell in enumerate(first)]
    names = [not value and _is_word(cell) for value, cell in zip(values, first, strict=True)]
    if not any(values):
        return any(names)
    for i in range(len(first)):
        below = [row[i] for row in body if not is_missing(row[i])] if names[i] else []
        if below and all(map(NUMBER.fullmatch, below)):
            number = next(cell for cell, value in zip(first, values, strict=True) if value)
            raise DataError(
                f"line 1 holds the number {number!r}, and {shown(first[i])} in column {i + 1}, "
                "whose other cells are numbers; give --header yes if it is a line of names, else "
                "--header no"
            )
    return False


def _is_word(cell: str) -> bool:
    return not NUMBER.fullmatch(cell) and not is_missing(cell)


def _is_value(cell: str, body: Sequence[Sequence[str]], column: int) -> bool:
    """Whether a cell of the first row is a number, or true or false above cells of that kind."""
    if NUMBER.fullmatch(cell):
        return True
    return bool(body) and any(
        {cell.casefold(), body[0][column].casefold()} <= truth.keys() for truth in TRUTH
    )
