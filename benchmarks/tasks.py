"""Tables whose task is known, and the one that funcprop finds: ``python -m benchmarks.tasks``.

Each is written to a .csv file and read from it, as a user's own would be.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn import datasets as sklearn

from funcprop.data import data_files, tasks

CLASSIFICATION, REGRESSION = tasks.TASKS


class Found(NamedTuple):
    """A table, the task that its makers gave it, and the one that was found."""

    name: str
    rows: int
    task: str
    found: str
    why: str


def tables() -> Iterator[tuple[str, str, Any, Any]]:
    """Name, task, features and labels."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 3))
    for name in ("iris", "wine", "breast_cancer", "digits"):
        bunch = getattr(sklearn, f"load_{name}")()
        yield f"scikit-learn's {name}", CLASSIFICATION, bunch.data, bunch.target
    iris = sklearn.load_iris()
    yield "iris, labels of text", CLASSIFICATION, iris.data, iris.target_names[iris.target]
    blobs = sklearn.make_blobs(500, centers=40, random_state=0)
    yield "make_blobs, 40 kinds of 12 or 13 rows", CLASSIFICATION, *blobs
    yield "make_moons", CLASSIFICATION, *sklearn.make_moons(200, random_state=0)
    yield "booleans, true and false", CLASSIFICATION, x, np.where(x[:, 0] > 0, "true", "false")
    yield "stars from 1 to 5", CLASSIFICATION, x, np.clip(np.round(x[:, 0] + 3), 1, 5)
    diabetes = sklearn.load_diabetes()
    yield "scikit-learn's diabetes", REGRESSION, diabetes.data, diabetes.target
    yield "make_regression", REGRESSION, *sklearn.make_regression(200, 5, random_state=0)
    yield "make_friedman1", REGRESSION, *sklearn.make_friedman1(200, random_state=0)
    yield (
        "make_friedman2, in cents",
        REGRESSION,
        *_whole(sklearn.make_friedman2(200, random_state=0)),
    )
    yield "ages in years", REGRESSION, x[:300], rng.integers(18, 91, 300)
    yield "rentals an hour", REGRESSION, x, rng.poisson(np.exp(5 + x[:, 0]))
    linnerud = sklearn.load_linnerud()
    yield "scikit-learn's linnerud, waist", REGRESSION, linnerud.data, linnerud.target[:, 1]


def _whole(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    return pair[0], np.round(100 * pair[1]).astype(int)


def found() -> list[Found]:
    """What is found of each table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        for name, task, x, y in tables():
            names = [*(f"x{i + 1}" for i in range(x.shape[1])), "label"]
            lines = [[*row, label] for row, label in zip(x.tolist(), y.tolist(), strict=True)]
            text = "".join(",".join(map(str, line)) + "\n" for line in [names, *lines])
            path.write_text(text, encoding="utf-8")
            labels = data_files.read(path).y
            assert labels is not None
            rows.append(Found(name, len(y), task, *tasks.task_of(labels)))
    return rows


def main() -> None:
    cells = [("table", "rows", "task", "found", "why")]
    cells += [(f.name, f"{f.rows:,}", f.task, f.found, f.why) for f in found()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [" | ".join(map(str.ljust, row, widths)) for row in cells]
    lines.insert(1, " | ".join("-" * width for width in widths))
    print("\n".join(f"| {line} |" for line in lines))


if __name__ == "__main__":
    main()
