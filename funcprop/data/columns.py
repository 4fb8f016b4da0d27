"""The columns of a table: which is the label, which are features, by name or number."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any, TypedDict

from .tables import WHOLE, DataError, Table, counted


class Columns(TypedDict):
    """Which columns of a table are what; kept with the network that was trained on them.

    ``names`` of all columns, or None; ``features`` and ``label``, their places from 0; ``count``,
    how many columns there are.
    """

    names: list[str] | None
    features: list[int]
    label: int | None
    count: int


def check_columns(columns: Any, features: int) -> None:
    """Raises a ``ValueError`` unless it is what :func:`chosen` gave for so many features, or None.

    >>> check_columns({"names": None, "features": [0, 2], "label": 1, "count": 3}, features=2)
    """
    if columns is None:
        return
    if not isinstance(columns, dict) or set(columns) != set(Columns.__annotations__):
        raise ValueError(f"columns must have {', '.join(Columns.__annotations__)}, or be null")
    names, count = columns["names"], columns["count"]
    if not _is_place(count, math.inf):
        raise ValueError(f"columns: count is {count!r}, it must be a number of columns")
    places = columns["features"] if isinstance(columns["features"], list) else [None]
    label = [] if columns["label"] is None else [columns["label"]]
    distinct = all(_is_place(place, count) for place in places + label) and len(
        set(places + label)
    ) == len(places + label)
    if len(places) != features or not distinct:
        raise ValueError(
            f"columns: features and label must be {features} places and one more, from 0 to "
            f"{count - 1}, each once"
        )
    right = isinstance(names, list) and len(names) == count and len(set(names)) == count
    if names is not None and not (right and all(isinstance(name, str) for name in names)):
        raise ValueError(f"columns: names must be {count} different texts, or null")


def _is_place(value: Any, end: float) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < end


def chosen(table: Table, label: str | int | None, drop: Sequence[str | int]) -> Columns:
    """The label's column and those of the features, which are all others but the dropped ones."""
    place = None if label is None else place_of(table, label, "label")
    dropped = {place_of(table, name, "drop") for name in drop}
    if place in dropped:
        assert place is not None
        raise DataError(f"{table.place(place)} is the label, it cannot be dropped")
    features = [i for i in range(len(table.columns)) if i != place and i not in dropped]
    if not features:
        raise DataError(
            f"it has {counted(len(table.columns), 'column')} (delimiter: {table.delimiter!r}) and "
            "none of features; there must be one or more besides the label"
        )
    return {
        "names": table.names,
        "features": features,
        "label": place,
        "count": len(table.columns),
    }


def place_of(table: Table, which: str | int, option: str) -> int:
    """The place of a column, from 0, given its name or its number, from 1 or negative."""
    names, count = table.names or [], len(table.columns)
    number = which if isinstance(which, int) else None
    if isinstance(which, str) and WHOLE.fullmatch(which) and len(which) < 10:
        number = int(which)
    if isinstance(which, str) and which in names:
        place = names.index(which)
        if number is not None and number not in (place + 1, place - count):
            table.notes.append(
                f"--{option} {which} is the name of column {place + 1}, not taken for a number"
            )
        return place
    if number is not None:
        if number == 0 or not -count <= number <= count:
            raise DataError(
                f"--{option} {number}: there is no such column; they are numbered from 1 to "
                f"{count}, or from the end, -1 the last"
            )
        return number - 1 if number > 0 else count + number
    if not names:
        raise DataError(
            f"--{option} {which!r}: the file has no line of names, give the number of the column "
            "(or --header yes)" + "".join(f"; {note}" for note in table.notes)
        )
    others = listed(str(which), names)
    raise DataError(f"--{option} {which!r}: there is no such column; there are {others}")


def listed(name: str, names: Sequence[str], most: int = 20) -> str:
    """Names, those that resemble ``name`` first."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    near += [other for other in names if other.casefold() == name.casefold() and other not in near]
    ordered = near + [other for other in names if other not in near and other]
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more


def matched(table: Table, trained: Columns) -> Columns:
    """Where a new table has the columns that a network was trained on.

    By name where both have names: their order may differ, others are left out with a note.  By
    position else: all columns, those without the label, or the features alone.
    """
    count, label, features = len(table.columns), trained["label"], trained["features"]
    names, what = table.names, ""
    if names is not None and trained["names"] is not None:
        wanted = [trained["names"][i] for i in features]
        missing = [name for name in wanted if name not in names]
        if missing:
            raise DataError(
                f"it has no column {missing[0] or 'without a name'!r}, a feature in training"
                + (f" (nor {counted(len(missing) - 1, 'other')})" if len(missing) > 1 else "")
                + f"; there are {listed(missing[0], names)}"
            )
        extra = [name for name in names if name not in trained["names"]]
        if extra:
            table.notes.append(f"left out, as not known from training: {listed('', extra)}")
        title = None if label is None else trained["names"][label]
        place = names.index(title) if title in names else None
        features = [names.index(name) for name in wanted]
    elif count == trained["count"]:
        place, what = label, "all"
    elif label is not None and count == trained["count"] - 1:
        place, features, what = None, [i - (i > label) for i in features], "those without the label"
    elif count == len(features):
        place, features, what = None, list(range(count)), "the features"
    else:
        least = [] if len(features) + 1 >= trained["count"] else [trained["count"] - 1]
        numbers = [*least, trained["count"]]
        raise DataError(
            f"it has {counted(count, 'column')}; it must have {len(features)}, the features, or "
            f"{' or '.join(map(str, numbers))} as the training data"
            + (" without and with the label" if least else " with the label")
        )
    if what and len(features) + (label is not None) < trained["count"]:
        table.notes.append(
            f"without names to find columns by, these {count} are taken for {what} of the "
            f"training's {trained['count']}, in its order"
        )
    return {"names": names, "features": list(features), "label": place, "count": count}
