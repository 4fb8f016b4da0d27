"""Data to train on: the embedded digits, a user's own file, and a split into two parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .data_files import read
from .tables import DataError as DataError

Array = np.ndarray
Pair = tuple[Array, Array]


def digits() -> Pair:
    """1,797 handwritten digits, images of 8 × 8 pixels (Alpaydin & Kaynak 1998, UCI repository).

    Returns:
        ``(x, y)``: x (1797, 64) float32 in [0, 1], row by row; y (1797,) int32, 0 to 9.

    >>> from funcprop import datasets
    >>> x, y = datasets.digits()
    >>> x.shape, y[:5].tolist()
    ((1797, 64), [0, 1, 2, 3, 4])
    """
    with np.load(Path(__file__).with_name("digits.npz")) as stored:
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
        raise DataError(f"x has {len(x)} examples, y has {len(y)}; there must be as many")
    if not 0 < test < 1:
        raise DataError(f"test is {test}, it must be a share between 0 and 1")
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
        most = max(map(len, groups))
        of = f": of {len(groups)} classes the largest has {most}" if len(groups) > 1 else ""
        raise DataError(
            f"there are {len(y)} examples, too few to set a share of {test:g} apart{of}"
        )
    return (x[~drawn], y[~drawn]), (x[drawn], y[drawn])


def load(
    path: str | Path,
    *,
    label: str | int | None = -1,
    drop: Sequence[str | int] = (),
    delimiter: str | None = None,
    header: bool | None = None,
) -> tuple[Array, Array | None]:
    """Examples from a file: .npz with arrays x and y, or a table of text, .csv, .tsv or .txt.

    Of a table every column is a feature but the label's and the dropped ones. It is in UTF-8, or in
    UTF-16 with a byte order mark. Lines that begin with # are comments. true and false, or yes and
    no, are features of 1 and 0; commas are read as decimal ones where they stand between digits and
    separate no columns.

    Args:
        path: the file.
        label: the label's column of a table, by its name or its number, from 1, or from the end, -1
            the last; None: there are no labels.
        drop: columns to leave out, by names or numbers.
        delimiter: the character between two columns, " " for any run of spaces and tabs; found
            where it is not given.
        header: whether a table's first line holds names; where it is not given it does if it holds
            no number.

    Returns:
        ``(x, y)``: x (n, d) float64, an image or the like laid out in one row; y (n,) int64,
        float64, booleans or strings, or None.

    Raises:
        DataError: when the file cannot be read, or holds missing, infinite or too large numbers,
            text among the features, rows of different lengths, or no examples.

    >>> import pathlib, tempfile
    >>> from funcprop import datasets
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "flowers.csv"
    >>> _ = path.write_text("kind;length;width\\nrose;1,5;2\\nlily;3;4,5\\n")
    >>> x, y = datasets.load(path, label="kind")
    >>> x.tolist(), y.tolist()
    ([[1.5, 2.0], [3.0, 4.5]], ['rose', 'lily'])
    """
    examples = read(path, label=label, drop=drop, delimiter=delimiter, header=header)
    return examples.x, examples.y
