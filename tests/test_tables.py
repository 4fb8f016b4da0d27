"""Tables as people have them: what is read, what is refused, what is said about both."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from funcprop.cli import main as cli
from funcprop.cli import pictures, runs
from funcprop.data import columns, data_files, datasets, tables, tasks
from funcprop.data.datasets import DataError

HERE = Path(__file__).parent


@pytest.fixture
def written(tmp_path):
    """Writes a file of text or bytes, and gives its path."""

    def write(content, name="data.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refused(path, message, **options):
    with pytest.raises(DataError) as caught:
        data_files.read(path, **options)
    assert re.search(message, str(caught.value)), caught.value
    assert str(caught.value).startswith(f"{path}: ")
    assert " due" not in str(caught.value)


# ------------------------------------------------------------------------------- formats

A, B = [[1, 2], [3, 4]], ["cat", "dog"]


@pytest.mark.parametrize(
    ("content", "names", "x", "y"),
    [
        ("a,b,kind\n1,2,cat\n3,4,dog\n", ["a", "b", "kind"], A, B),
        ("1,2,cat\n3,4,dog", None, A, B),
        ("a;b;kind\n1;2;cat\n3;4;dog\n", ["a", "b", "kind"], A, B),
        ("a\tb\tkind\n1\t2\tcat\n3\t4\tdog\n", ["a", "b", "kind"], A, B),
        ("sep=:\r\na:b:kind\r\n1:2:cat\r\n3:4:dog\r\n", ["a", "b", "kind"], A, B),
        ("a|b|kind\n1|2|cat\n3|4|dog\n", ["a", "b", "kind"], A, B),
        ("a  b kind\n 1 2\tcat \n3   4 dog\n", ["a", "b", "kind"], A, B),
        ("1, 2, cat \n 3 , 4, dog\n", None, A, B),
        ("a,b,kind\r1,2,cat\r3,4,dog\r", ["a", "b", "kind"], A, B),
        ("a,b,kind\r\n\r\n1,2,cat\r\n3,4,dog\r\n", ["a", "b", "kind"], A, B),
        ("\ufeffa,b,kind\n1,2,cat\n3,4,dog\n", ["a", "b", "kind"], A, B),
        ("a\tb\tkind\r\n1\t2\tcat\r\n3\t4\tdog\r\n".encode("utf-16"), ["a", "b", "kind"], A, B),
        ('"a","b","kind"\n"1","2","cat"\n"3","4","dog"\n', ["a", "b", "kind"], A, B),
        ('1,2,"a, b"\n3,4,"c\nd"\n', None, A, ["a, b", "c\nd"]),
        ('1,2,"a\n#b"\n3,4,dog\n', None, A, ["a\n#b", "dog"]),
        ('1;2;"say ""so"""\n3;4;5" pipe\n', None, A, ['say "so"', '5" pipe']),
        ("x;y\n1,5;0,25\n-2,5e1;3\n", ["x", "y"], [[1.5], [-25]], [0.25, 3]),
        ("x\ty\n0,500\t2,125\n3,125\t4,125\n", ["x", "y"], [[0.5], [3.125]], [2.125, 4.125]),
        ("1,5;rose\n2,5;lily\n", None, [[1.5], [2.5]], ["rose", "lily"]),
        ("1,5 2,5\n3,5 4,5\n", None, [[1.5], [3.5]], [2.5, 4.5]),
        ("x,y\n1,9007199254740993\n2,-5\n", ["x", "y"], [[1], [2]], [9007199254740993, -5]),
        ("x,zip\n1,00501\n2,10115\n", ["x", "zip"], [[1], [2]], ["00501", "10115"]),
        ("x,sign\n1,+\n2,-\n", ["x", "sign"], [[1], [2]], ["+", "-"]),
        (",a,kind\n0,1.5,cat\n1,2.5,dog\n", ["", "a", "kind"], [[0, 1.5], [1, 2.5]], B),
    ],
)
def test_what_is_read(written, content, names, x, y):
    found = data_files.read(written(content))
    assert found.columns["names"] == names
    assert found.x.tolist() == x
    assert found.y.tolist() == y
    assert (found.y.dtype.kind in "if") == (not isinstance(y[0], str))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", " "])
def test_what_csv_writes_is_read_again(tmp_path, delimiter):
    path = tmp_path / "data.txt"
    kinds = ["rose", "white lily", "a;b", 'a "b"', "c, d", "x|y", "über", "e\nf"]
    kinds += [] if delimiter == " " else ["tab\there"]
    for seed in range(30):
        rng = np.random.default_rng(seed)
        n, d = rng.integers(2, 30), rng.integers(1, 6)
        x = rng.normal(size=(n, d)).round(rng.integers(1, 5)) * 10.0 ** rng.integers(-3, 6)
        rows = [[*row, kinds[rng.integers(len(kinds))]] for row in x.tolist()]
        encoding = ["utf-8", "utf-8-sig", "utf-16"][seed % 3]
        with path.open("w", newline="", encoding=encoding) as file:
            writer = csv.writer(
                file,
                delimiter=delimiter,
                lineterminator=["\n", "\r\n", "\r", "\n"][seed % 4],
                quoting=[csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC][seed // 2 % 2],
            )
            if seed % 5:
                writer.writerow([*(f"x {i}" for i in range(d)), "kind"])
            writer.writerows(rows)
        found = data_files.read(path)
        assert found.x.tolist() == x.tolist(), seed
        assert found.y.tolist() == [row[-1] for row in rows], seed


def test_suffixes_in_any_case_and_given_delimiters(written):
    for suffix in ("CSV", "tsv", "TXT", "dat", "data"):
        assert data_files.read(written("1,2,cat\n3,4,dog\n", f"data.{suffix}")).x.tolist() == A
    # Of two ways to read a file the given one is taken.
    path = written("1;2,3\n4;5,6\n")
    assert data_files.read(path).x.tolist() == [[1], [4]]
    assert data_files.read(path, delimiter=";").y.tolist() == [2.3, 5.6]
    refused(path, "column 1 is '1;2', it must be a number", delimiter=",")


def test_features_that_are_true_or_false(written):
    text = "smoker,paid,kind\nTrue,no,cat\nfalse,YES,dog\n"
    found = data_files.read(written(text))
    assert found.x.tolist() == [[1, 0], [0, 1]]
    assert found.notes == [
        'column 1 "smoker": true and false are read as 1 and 0',
        'column 2 "paid": yes and no are read as 1 and 0',
    ]
    assert data_files.read(written("true,no,cat\nfalse,yes,dog\n")).x.tolist() == [[1, 0], [0, 1]]
    refused(written("a,k\ntrue,x\n,y\n"), "line 3, column 1 \"a\" is '', missing")
    refused(written("a,k\ntrue,x\nno,y\n"), "line 2, column 1 \"a\" is 'true', it must be a number")


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ("# made\n#1,2\n1,2\n3,4\n", "2 lines beginning with #, from line 1, left out"),
        ("1,2\n3,4\n,\n,\n", "2 lines without any value, from line 3, left out"),
        ("1,2,\n3,4,\n", "every line ends with a delimiter; the empty column after it is left out"),
        ("x;y\n1,5;2\n3;4\n", 'numbers have a decimal comma in column 1 "x"'),
        (
            "0,1,2\n1.5,2,3\n",
            "line 1 counts the columns from 0, it is taken for names; --header no otherwise",
        ),
        (
            "0,1,2\n1,2,3\n",
            "line 1 counts the columns from 0, it is taken for numbers; --header yes otherwise",
        ),
    ],
)
def test_what_is_taken_for_what_is_said(written, content, note):
    assert data_files.read(written(content)).notes == [note]


@pytest.mark.parametrize(
    ("content", "header", "names", "rows"),
    [
        ("0,1,2\n0.5,2,3\n", None, ["0", "1", "2"], 1),
        ("0,1,2\n0.5,2,3\n", False, None, 2),
        (",0,1\n0,2,3\n", None, ["", "0", "1"], 1),
        ("0,1,2\n1,2,3\n", None, None, 2),
        ("0,1,2\n1,2,3\n", True, ["0", "1", "2"], 1),
        ("year,1990,2000\n5,1,2\n", True, ["year", "1990", "2000"], 1),
        ("1,2,cat\n", None, None, 1),
        ("1,5;2;cat\n3;4;dog\n", None, None, 2),
    ],
)
def test_names_or_none(written, content, header, names, rows):
    found = data_files.read(written(content), header=header)
    assert found.columns["names"] == names
    assert len(found.x) == rows


# ------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty$"),
        ("#a\n\n", r"it is empty \(1 line beginning with #"),
        ("a,b,c\n", "a line of names and no examples"),
        ("1\n2\n", "it has 1 column .* none of features"),
        ("a,b,c\n1,2,3\n1,2\n", r"line 3 has 2 columns, line 1 has 3; .*\(delimiter: comma\)$"),
        ("1;2;3\n\n1;2\n", r"line 3 has 2 columns, line 1 has 3; .*\(delimiter: semicolon\)$"),
        ("a,b\n1,2,3\n4,5,6\n", "line 2 has 3 columns, line 1 has 2; .* has one more"),
        ('1,2,3\n1,"2,3\n4,5,"6\n7,8,9\n', "line 2 has 2 columns.* it runs to line 3: is a quote"),
        ('1,2,3\n1,2,"3\n4,5,6\n', "line 2 opens a quote that is never closed"),
        ("a,b,b\n1,2,3\n", 'columns 2, 3 are all called "b"'),
        ("a,,,b\n1,2,3,4\n", "columns 2, 3 have no name"),
        ("1,2,caf\xe9\n".encode("latin-1"), "line 1 holds the byte 0xE9, which is no UTF-8 text"),
        ("1,2\r3,caf\xe9".encode("latin-1"), "line 2 holds the byte 0xE9"),
        ("1,2\n".encode("utf-16")[:-1], "which is no UTF-16 text; save the file as CSV in UTF-8"),
        ("1,2\n".encode("utf-16-le"), "line 1 holds a zero byte, it is no text"),
        ("a,b,k\n1,x,0\n", "line 2, column 2 \"b\" is 'x', it must be a number; .*--drop b$"),
        ("1,x,0\n", "line 1, column 2 is 'x', it must be a number; .* --drop 2$"),
        (
            "a,big town,c,k\n1,x,y,0\n",
            r"is 'x', it must be a number; .* --drop 'big town' c \(1 more column has text\)$",
        ),
        ("a,b\n1_000,1\n", "line 2, column 1 \"a\" is '1_000', it must be a number"),
        ('a,b\n"1,234.5",1\n', "is '1,234.5', it must be a number .* without marks between thou"),
        ("a;b\n1.234,5;1\n", "is '1.234,5', it must be a number .* without marks between thou"),
        ("when,b\n1.2.2020,1\n", "is '1.2.2020', it must be a number .* --drop when$"),
        ("a;b\n1 234;1\n", "is '1 234', it must be a number .* without marks between thousands"),
        ("a;b\n1,234;5,678\n", "is '1,234', which may mean 1234 or 1.234; write numbers with a"),
        (
            "a;b\n1,5;2.5\n",
            "line 2, column 1 .* is '1,5', but line 2, column 2 \"b\" is '2.5'; wri",
        ),
        ('a,b\n"1,5",2\n', "column 1 \"a\" is '1,5', it must be a number with a decimal point"),
        ("a;b\n1,5;2\nx;3\n", "line 3, column 1 \"a\" is 'x', it must be a number"),
        ("year,1990\n5,1\n", "line 1 holds the number '1990', and 'year' in column 1, .*--header"),
        ("1,,0\n", "line 1, column 2 is '', missing; 1 cell without a finite number"),
        (
            "a,b,k\n1,NA,x\n?,nan,y\n3,4,z\n",
            r'line 2, column 2 "b" is \'NA\', missing; 3 cells .* \(1 in column 1 "a", 2 in column '
            r'2 "b"\); fill them or delete the rows, or leave columns out with --drop a b',
        ),
        ("1,2,0\n1,-inf,0\n", "line 2, column 2 is '-inf', infinite; 1 cell .* finite"),
        ("1,2,0\n1,1e400,0\n", "line 2, column 2 is '1e400', infinite"),
        ("1,2,0\n1,1e200,0\n", r"line 2, column 2 is 1e200; numbers must be smaller than 1e\+30"),
        ("1,2,0.5\n1,2,-1e200\n", r"line 2, column 3 is -1e200; numbers must be smaller"),
        ("1,2,cat\n1,2,\n", r"line 2 has no label: column 3 is '' \(1 such row\)"),
        ("1,2,cat\n1,2,NaN\n", "line 2 has no label: column 3 is 'NaN'"),
        ("1,2,5\n1,2,-\n", "line 2 has no label: column 3 is '-'"),
        ("1,2,0.5\n1,2,\n1,2,?\n", r"line 2 has no label: column 3 is '' \(2 such rows\)"),
        ("1,2,0.5\n1,2,inf\n", "line 2, column 3 is 'inf', infinite"),
        ("1,0.5\n1,1.5\n1,oops\n", "line 3, column 2 is 'oops', where 2 of 3 labels are numbers"),
        ("1,9223372036854775808\n2,1\n", "line 1, column 2: the label '9223372036854775808' is b"),
        ("1,-9223372036854775809\n2,1\n", "line 1, column 2: the label '-9223372036854775809' is "),
        ("1,0.5\n2,9223372036854775808\n", "line 2, column 2: the label '9223372036854775808' "),
        (f"1,{'9' * 5000}\n2,1\n", "the label '9999.*' is beyond the whole numbers of 64 bits"),
        (f"1,{'cat ' * 60}\n2,dog\n", "line 1, column 2 has 239 characters, a label must have 200"),
    ],
)
def test_what_is_refused(written, content, message):
    refused(written(content), message)


def test_the_error_of_one_delimiter_is_not_that_of_another(written):
    # The delimiter is the one by which most lines are alike, whatever they hold.
    assert tables.read(written("a;1,u\nb,v\nc;3,w\n")).delimiter == ","
    refused(written("a;b;c\n1;2;3\n1;2\n4;5;6\n"), "line 3 has 2 columns, line 1 has 3")


def test_delimiters_by_name_or_character():
    assert [tables.delimiter_of(word) for word in ("tab", r"\t", "\t", "space", ";", ":")] == [
        "\t",
        "\t",
        "\t",
        " ",
        ";",
        ":",
    ]
    for word in ("colon", "ab", "", "a", "1", '"', "#", ".", "-"):
        with pytest.raises(ValueError, match="must be one character or tab, semicolon, pipe, com"):
            tables.delimiter_of(word)


# ------------------------------------------------------------------------------- columns

NAMED = "id,size,3,price\n1,2.5,4,10\n2,3.5,5,20\n"


@pytest.mark.parametrize(
    ("label", "drop", "features", "place"),
    [
        (-1, (), [0, 1, 2], 3),
        ("price", (), [0, 1, 2], 3),
        ("1", (), [1, 2, 3], 0),
        (1, (), [1, 2, 3], 0),
        ("-4", (), [1, 2, 3], 0),
        ("3", (), [0, 1, 3], 2),
        ("size", ["id", "-1"], [2], 1),
        (None, ["id"], [1, 2, 3], None),
    ],
)
def test_columns_by_name_or_number(written, label, drop, features, place):
    found = data_files.read(written(NAMED), label=label, drop=drop, header=True)
    assert found.columns["features"] == features
    assert found.columns["label"] == place
    assert (found.y is None) == (label is None)


def test_a_name_wins_over_a_number_and_that_is_said(written):
    text = "3,size,price\n1,2.5,10\n2,3.5,20\n"
    assert data_files.read(written(text), label="3", header=True).notes == [
        "--label 3 is the name of column 1, not taken for a number"
    ]
    assert data_files.read(written(text), label="2", header=True).notes == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "prise"}, "--label 'prise': there is no such column; there are price, id, size"),
        ({"label": "PRICE"}, "--label 'PRICE': there is no such column; there are price, "),
        (
            {"drop": ["id", "x"]},
            "--drop 'x': there is no such column; there are id, size, 3, price",
        ),
        ({"label": "5"}, "--label 5: there is no such column; they are numbered from 1 to 4"),
        ({"label": 0}, "--label 0: there is no such column"),
        ({"label": "-5"}, "--label -5: there is no such column"),
        ({"drop": ["price"]}, 'column 4 "price" is the label, it cannot be dropped'),
        ({"drop": ["id", "size", "3"]}, "it has 4 columns .* none of features"),
        ({"label": "price", "header": False}, "--label 'price': the file has no line of names"),
    ],
)
def test_columns_that_are_not_there(written, options, message):
    refused(written(NAMED), message, **{"header": True, **options})


def test_lines_of_names_that_begin_like_a_comment(written):
    message = "has no line of names.*; 1 line beginning with #, from line 1, left out"
    refused(written("#id,size\n1,2\n"), message, label="size")


def test_long_cells_are_cut(written):
    refused(written(f"1,{'x' * 1000},0\n"), f"column 2 is '{'x' * 40}...', it must be a number")


def test_of_many_names_the_first_are_shown():
    names = [f"gene{i}" for i in range(1000)]
    shown = columns.listed("gene99", names)
    assert shown.startswith("gene99, ")
    assert shown.endswith(" and 980 more")


GOOD = {"names": ["a", "b", "k"], "features": [0, 1], "label": 2, "count": 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": 1}, "must have names, features, label, count, or be null"),
        ({"count": True}, "count is True"),
        ({"count": -3}, "count is -3"),
        ({"features": [0]}, "features and label must be 2 places and one more, from 0 to 2"),
        ({"features": [0, 3]}, "features and label"),
        ({"features": [0, 0]}, "features and label"),
        ({"features": "01"}, "features and label"),
        ({"label": 1}, "features and label"),
        ({"label": "k"}, "features and label"),
        ({"names": ["a", "b"]}, "names must be 3 different texts, or null"),
        ({"names": ["a", "b", "b"]}, "names must be 3 different texts"),
        ({"names": ["a", "b", 1]}, "names must be 3 different texts"),
    ],
)
def test_columns_that_were_kept_are_checked(change, message):
    for right in (None, GOOD, GOOD | {"names": None}, GOOD | {"label": None}):
        columns.check_columns(right, features=2)
    with pytest.raises(ValueError, match=message):
        columns.check_columns(GOOD | change, features=2)
    for wrong in ([], "columns", {}):
        with pytest.raises(ValueError, match="columns must have names"):
            columns.check_columns(wrong, features=2)


# --------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize(
    ("y", "task"),
    [
        (np.arange(20), "classification"),
        (np.arange(21), "regression"),
        (np.arange(210) % 21, "classification"),
        (np.arange(209) % 21, "regression"),
        (np.arange(40) % 20 + 0.0, "classification"),
        (np.arange(40) % 20 + 0.5, "regression"),
        (np.array([2.0**53, 2.0**53 + 2]), "regression"),
        (np.array([True, False]), "classification"),
        (np.array(["1", "2"]), "classification"),
    ],
)
def test_classes_or_a_quantity(y, task):
    assert tasks.task_of(y)[0] == task


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE.parent)
        from benchmarks import tasks as bench
    return bench


def test_tasks_of_known_tables(bench, capsys):
    found = bench.found()
    wrong = [row.name for row in found if row.found != row.task]
    assert wrong == ["scikit-learn's linnerud, waist"]  # 20 rows of whole numbers
    assert len(found) == 16
    assert sum(row.task == "regression" for row in found) >= 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "found", lambda: found)
        bench.main()
    assert capsys.readouterr().out in (HERE.parent / "benchmarks" / "README.md").read_text("utf-8")


def data(path, *words):
    return runs._data(cli._parser().parse_args(["train", "--data", str(path), *words]))


def table(y, rows=None):
    """A table of a feature and labels."""
    x = np.random.default_rng(0).normal(size=len(y))
    return "size,kind\n" + "".join(f"{a},{b}\n" for a, b in zip(x, y, strict=True))


def test_the_first_line_says_what_is_learned_and_why(written, capsys):
    change = "; --label takes another column, --task classification or regression forces the task\n"
    meaning, _, _ = data(written(table(["rose", "lily"] * 10)))
    assert meaning.classes == ["lily", "rose"]
    assert capsys.readouterr().out == (
        'data.csv: classification of column 2 "kind" (text, 2 classes)' + change
    )
    meaning, _, _ = data(written(table([3, 4, 5, 6] * 5)), "--task", "regression")
    assert meaning.classes is None
    assert capsys.readouterr().out == (
        'data.csv: regression of column 2 "kind" (whole numbers, 4 distinct values, forced by '
        "--task)" + change
    )
    meaning, _, _ = data(written(table([0.5, 1.5] * 10)), "--task", "classification")
    assert meaning.classes == [0.5, 1.5]


@pytest.mark.parametrize(
    ("y", "words", "message"),
    [
        (["a", "b"] * 5, "--task regression", "labels are text, 2 classes, --task regression ne"),
        ([0.5, 1, 2] * 5, "--loss hinge", "real numbers, .* --loss hinge takes classes; use --lo"),
        (range(0, 90, 3), "--loss hinge", "whole numbers, .* or --task classification"),
        (["a", "b", "c"], "", "no label comes twice in column 2 \"kind\", .*--label$"),
        ([1, 2, 4], "", "no label comes twice in .*--label, or --task regression for a quantity"),
        (["a", "a"], "", "every label is 'a'; there must be two or more"),
        ([0.5] * 9, "", "every label is '0.5'; there must be two or more"),
        (['"a\nb"', "c"] * 9, "", r"the label 'a\\nb' has more than one line"),
        (["a", "b"] * 2, "", "too few to set a share of 0.2 apart: of 2 classes the largest has 2"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit(written, y, words, message):
    with pytest.raises((runs.CommandError, DataError), match=message):
        data(written(table(y)), *words.split())


def test_a_loss_of_numbers_takes_classes_as_their_indicators(written):
    meaning, _, _ = data(written(table(["a", "b"] * 10)), "--loss", "mean_squared_error")
    assert meaning.classes == ["a", "b"]


def notes(out):
    return [line.removeprefix("note: ") for line in out.splitlines() if line.startswith("note: ")]


def test_a_likely_id_is_named_and_kept(written, capsys):
    rng = np.random.default_rng(0)
    order = rng.permutation(50) + 100
    text = "row id,width,kind\n" + "".join(f"{i},{rng.normal()},{i % 2}\n" for i in order)
    meaning, _, _ = data(written(text))
    assert len(meaning.mean) == 2
    assert notes(capsys.readouterr().out) == [
        'column 1 "row id" counts the rows (100 to 149); if it is only a number of the row, leave '
        "it out with --drop 'row id'"
    ]
    data(written(text), "--drop", "row id")
    assert notes(capsys.readouterr().out) == []
    data(written(text), "--label", "row id")
    assert notes(capsys.readouterr().out)[0].startswith('the label, column 1 "row id", counts the')


def test_other_oddities_are_named(written, capsys):
    lines = [f"{i * i},5,{'Rose' if i % 2 else 'rose'}" for i in range(20)]
    data(written("\n".join(["a,b,kind", *lines, "3,5,lily", "7,5,ash", "8,5,ash"]) + "\n"))
    assert notes(capsys.readouterr().out) == [
        'column 2 "b" does not vary, and can tell nothing',
        "fewer than 3 rows of ash, lily: all of them are trained on, the test has none",
        "classes 'Rose' and 'rose' differ in upper and lower case only",
    ]


def test_arrays_have_their_task_and_notes_too(tmp_path, capsys):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.arange(60.0).reshape(2, 30).T, y=np.arange(30) / 2)
    data(path)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == (
        "data.npz: regression of y (real numbers, 30 distinct values); --task classification or "
        "regression forces the task"
    )
    assert [line[:37] for line in rest] == [
        "note: x[:, 0] counts the rows (0 to 2",
        "note: x[:, 1] counts the rows (30 to ",
    ]


# ----------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def houses(tmp_path_factory):
    """A regression by the command line: the folder, its run and what was printed."""
    folder = tmp_path_factory.mktemp("houses")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    price = 1000 * (x[:, 0] - 2 * x[:, 1] + 5)
    lines = ["id;area;price;age;town"]
    for i, ((a, b), p) in enumerate(zip(x, price, strict=True)):
        lines.append(f"{i};{a:.4f};{p:.2f};{b:.4f};Ulm".replace(".", ","))
    (folder / "houses.csv").write_text("\n".join(lines) + "\n")
    words = "--label price --drop id town --sizes --epochs 60 --batch-size 8 --learning-rate .03"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_draw", lambda *arguments: False)
        out = str(folder / "run")
        words = ["train", str(folder / "houses.csv"), *words.split(), "--quiet", "--out", out]
        assert cli.main(words) == 0
    return folder


@pytest.fixture
def predicted(houses, tmp_path, capsys):
    """What ``funcprop predict`` prints for a table, on both outputs."""

    def predict(text, *words):
        path = tmp_path / "new.csv"
        path.write_text(text)
        assert cli.main(["predict", str(houses / "run"), str(path), *words]) == 0
        captured = capsys.readouterr()
        return [float(line) for line in captured.out.split()], captured.err

    return predict


def test_a_regression_reports_in_the_units_of_its_target(houses, predicted):
    row = json.loads((houses / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    text = (houses / "houses.csv").read_text()
    found, err = predicted(text)
    lines = [line.replace(",", ".").split(";") for line in text.splitlines()[1:]]
    price = np.array([float(line[2]) for line in lines])
    rmse = float(np.sqrt(np.mean((found - price) ** 2)))
    assert 1 < rmse < 300
    assert float(err.partition(", RMSE ")[2]) == pytest.approx(rmse, rel=1e-3)
    described = json.loads((houses / "run" / "model.json").read_text())
    (_, _), (x, y) = datasets.split(np.array(found), price)
    assert row["test_rmse"] == pytest.approx(np.sqrt(np.mean((x - y) ** 2)), rel=1e-3)
    assert row["test_r2"] == pytest.approx(1 - row["test_rmse"] ** 2 / np.var(y), rel=1e-3)
    assert described["loss"] == "mean_squared_error"


def test_columns_are_found_by_name_or_by_position(houses, predicted):
    named, err = predicted("age,area\n-0.5,1.5\n")
    assert err == ""
    every, err = predicted("town,price,extra,age,area\nUlm,7,3,-.5,1.5\n")
    assert "note: left out, as not known from training: extra\n" in err
    assert re.search(r"^RMSE \d+(\.\d+)?\n", err, re.M)  # of one label there is no R²
    for text, what in (
        ("7;1,5;;-0,5;Ulm\n", "these 5 are taken for all of the training's 5, in its order"),
        ("7,1.5,-.5,Ulm\n", "these 4 are taken for those without the label of the training's 5"),
        ("1.5,-.5\n", "these 2 are taken for the features of the training's 5"),
        ("area\tage\n1.5\t-.5", ""),
    ):
        other, err = predicted(text)
        assert other == named, text
        assert what in err
        assert err or not what
    assert every == named


@pytest.mark.parametrize(
    ("names", "text", "taken", "rows"),
    [
        (["0", "1", "2"], "0,1,2\n3,4,5\n", ["0", "1", "2"], 1),
        (["0", "1", "2"], "1,5,2\n3,4,5\n", None, 2),
        (["0", "1", "2"], "1,0\n3,4\n", ["1", "0"], 1),
        (["a", "1", "2"], "a,1\n3,4\n", ["a", "1"], 1),
        (["a", "b", "c"], "1,2\n3,4\n", None, 2),
    ],
)
def test_names_that_are_numbers_are_known_from_training(written, names, text, taken, rows):
    trained = {"names": names, "features": [0, 1], "label": 2, "count": 3}
    found = data_files.read_as(written(text), trained, 2, as_text=False)
    assert found.columns["names"] == taken
    assert len(found.x) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("area,agee\n1,2\n", "it has no column 'age', a feature in training; there are agee, area"),
        (
            "area,x,y\n1,2,3\n",
            "it has no column 'age', a feature in training; there are area, x, y",
        ),
        (
            "1,2,3\n",
            "it has 3 columns; it must have 2, the features, or 4 or 5 as the training data",
        ),
        ("area,age\n1,old\n", "line 2, column 2 \"age\" is 'old', it must be a number"),
        ("area,age,price\n1,2,dear\n", "its labels are 'dear', they must be numbers"),
    ],
)
def test_a_table_that_is_not_like_the_trainings(houses, tmp_path, capsys, text, message):
    path = tmp_path / "new.csv"
    path.write_text(text)
    assert cli.main(["predict", str(houses / "run"), str(path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search(message, err), err


def test_a_run_with_other_columns_is_damaged(houses, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(houses / "run", copy)
    described = json.loads((copy / "model.json").read_text())
    described["columns"]["features"] = [1, 99]
    (copy / "model.json").write_text(json.dumps(described))
    assert cli.main(["predict", str(copy), str(houses / "houses.csv")]) == 2
    err = capsys.readouterr().err
    assert "its model.json is damaged: columns is" in err


def test_labels_that_the_network_does_not_know_are_counted(written, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "_draw", lambda *arguments: False)
    text = table(["rose", "lily", "7.50", "7"] * 8)
    out = str(tmp_path / "run")
    words = ["train", "--sizes", "--epochs", "1", "--quiet", "--out", out, str(written(text))]
    assert cli.main(words) == 0
    assert json.loads((tmp_path / "run" / "model.json").read_text())["loss"].startswith("softmax")
    new = "size,kind\n1,tulip\n2,aster\n3,rose\n4,7.0\n5,7.50\n"
    capsys.readouterr()
    assert cli.main(["predict", out, str(written(new))]) == 0
    captured = capsys.readouterr()
    right = sum(map(str.__eq__, captured.out.splitlines()[2:], ["rose", "7", "7.50"]))
    assert captured.err.splitlines()[-2:] == [
        f"accuracy {20 * right}.00 % ({right} of 5)",
        "note: 2 of 5 labels are no class of the network (aster, tulip); they count as wrong",
    ]
    assert cli.main(["predict", out, str(written("size,kind\n1,\n2,\n"))]) == 0
    assert capsys.readouterr().err == 'note: column 2 "kind" is empty, there are no labels\n'


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("data.csv", "funcprop: data.csv is a file; train on it with funcprop train data.csv"),
        ("train data.csv --data data.csv", "there are two files, data.csv and --data data.csv"),
        ("--label kind", "--label is for a file of your own: funcprop train FILE"),
        ("--drop kind", "--drop is for a file of your own"),
        ("--task regression", "--task is for a file of your own"),
        ("--header no", "--header is for a file of your own"),
        ("train data.csv --header maybe", "--header: 'maybe' must be yes or no"),
        ("train data.csv --delimiter ab", "--delimiter: 'ab' must be one character or tab, semi"),
        ("train data.csv --task guess", "--task: invalid choice: 'guess' .*regression"),
        ("--epochs 1 data.csv --label x", "--label 'x': there is no such column; there are size"),
    ],
)
def test_options_of_files(written, tmp_path, monkeypatch, capsys, words, message):
    written(table([1, 2] * 9))
    monkeypatch.chdir(tmp_path)
    assert cli.main(words.split()) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search(message, err), err


def test_the_picture_of_a_regression_shows_prediction_against_truth():
    figure = Figure()
    targets, predictions = np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.0, 3.0])
    pictures.regression(figure, targets, predictions, label="price ($ of $1,000)")
    (axes,) = figure.axes
    equal, points = axes.lines
    assert points.get_xydata().tolist() == [[1, 1.5], [2, 2], [4, 3]]
    assert equal.get_xydata().tolist() == [[1, 1], [4, 4]]
    assert axes.get_xlabel() == "true price ($ of $1,000)"
    assert axes.get_ylabel() == "predicted price ($ of $1,000)"
    # No formula is looked for between two dollar signs.
    assert not axes.xaxis.label.get_parse_math()
    assert not axes.yaxis.label.get_parse_math()
    figure.savefig(io.BytesIO())


def test_names_of_classes_are_no_formulas():
    figure = Figure()
    classes, labels = ["under $10", "$10 to $20"], np.array([0, 1, 1])
    pictures.confusion(figure, classes=classes, labels=labels, predictions=labels)
    figure.savefig(io.BytesIO())
    (axes,) = figure.axes
    for name in ("x", "y"):
        texts = getattr(axes, f"get_{name}ticklabels")()
        assert [text.get_text() for text in texts] == classes
        assert not any(text.get_parse_math() for text in texts)
