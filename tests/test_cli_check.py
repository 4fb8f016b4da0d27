"""``funcprop check TARGET``: somebody's own layer, loss or gradient, and what it says to that."""

import json
import re
import subprocess
import sys

import pytest

from funcprop.cli import main as cli

SOURCE = """
import jax, jax.numpy as jnp
import funcprop as fp

layer = fp.dense(3, fp.tanh)
image = fp.conv(2, 3)
words = fp.embedding(7, 3)
loss = fp.softmax_cross_entropy()
squares = fp.mean_squared_error
number = 3


def made():
    return fp.rms_norm()


def _backward(weights, residuals, delta, statistic=fp.gradient):
    delta_x, tree = layer.backward(weights, residuals, delta, statistic)
    return -delta_x, tree


wrong = layer._replace(backward=_backward)


def f(w, x):
    return jnp.sum(jnp.sin(x @ w))


def by_w(w, x):
    return x.T @ jnp.cos(x @ w)


def by_both(w, x):
    d = jnp.cos(x @ w)
    return x.T @ d, d @ w.T


pair = f, by_w
pair_of_both = f, by_both
wrong_pair = f, lambda w, x: 2 * by_w(w, x)


def picked(w, ids):
    return jnp.sum(w[ids] ** 2)


pair_of_ids = picked, lambda w, ids: 2 * jnp.zeros_like(w).at[ids].add(w[ids])
power = lambda v: v**3, lambda v: 3 * v**2
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with somebody's code in it, the current one; its modules are forgotten after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    (tmp_path / "own_code.py").write_text(SOURCE, encoding="utf-8")
    yield tmp_path
    for name in set(sys.modules) - known:
        if name in ("own_code", "broken_code"):
            del sys.modules[name]


def said(capsys, *words):
    """The exit code and what was printed, and nothing on the other channel."""
    code = cli.main(["check", *words])
    captured = capsys.readouterr()
    assert captured.err == ""
    return code, captured.out


def failure(capsys, *words):
    """The one line that a command ends with."""
    code = cli.main(["check", *words])
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    return code, captured.err.strip()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layer", "4"),
        ("layer", "5x4"),
        ("image", "5x6x3"),
        ("made", "4"),
        ("words", "5:int32"),
        ("words", "scalar:int32"),
        ("squares", "3,3"),
        ("loss", "5,scalar:int32"),
        ("pair", "4x3,5x4"),
        ("pair_of_both", "4x3,5x4"),
        ("pair_of_ids", "4x3,6:int32"),
        ("power", "scalar"),
    ],
)
def test_what_is_right_passes(own, capsys, name, shape):
    target = f"own_code.py:{name}"
    code, text = said(capsys, target, "--shape", shape, "--dtype", "float32")
    assert code == 0, text
    lines = text.splitlines()
    assert re.match(rf"{re.escape(target)} float32: manual against jax\.\w+: ok$", lines[0])
    assert lines[-1] == f"{target}: ok"
    assert "FAILED" not in text
    assert "\033" not in text


def test_all_three_dtypes_are_checked_unless_told(own, capsys):
    code, text = said(capsys, "own_code.py:layer", "--shape", "4")
    assert code == 0
    heads = re.findall(r"^own_code.py:layer (\w+): manual", text, re.MULTILINE)
    assert heads == ["float64", "float32", "bfloat16"]
    assert "against central differences, float64" in text
    code, text = said(capsys, "own_code.py:pair", "--shape", "4x3,5x4", "--dtype", "float64")
    assert code == 0
    assert re.findall(r"^own_code.py:pair (\w+):", text, re.MULTILINE) == ["float64"]


@pytest.mark.parametrize(
    ("name", "shape", "leaf", "kind"),
    [("wrong", "4", r"\['x'\]", "sign"), ("wrong_pair", "4x3,5x4", "value", "factor")],
)
def test_what_is_wrong_fails(own, capsys, name, shape, leaf, kind):
    target = f"own_code.py:{name}"
    code, text = said(capsys, target, "--shape", shape, "--dtype", "float32")
    assert code == 1
    assert text.splitlines()[-1] == f"{target}: FAILED"
    assert re.search(rf"^  {leaf} .*FAILED$", text, re.MULTILINE)
    assert re.search(rf"^{kind}: ", text, re.MULTILINE)


def test_a_module_is_found_from_the_current_folder(own, capsys):
    code, text = said(capsys, "own_code:layer", "--shape", "4", "--dtype", "float32")
    assert code == 0
    assert text.splitlines()[-1] == "own_code:layer: ok"


def test_a_file_elsewhere_is_found(own, capsys, monkeypatch):
    (own / "folder").mkdir()
    monkeypatch.chdir(own / "folder")
    for place in ("../own_code.py", str(own / "own_code.py")):
        code, _ = said(capsys, f"{place}:layer", "--shape", "4", "--dtype", "float32")
        assert code == 0


def test_reports_are_written(own, capsys):
    pytest.importorskip("matplotlib")
    files = ("--json", "r.json", "--html", "r.html")
    dtypes = ("--dtype", "float32", "float64")
    code, _ = said(capsys, "own_code.py:wrong", "--shape", "4", *dtypes, *files)
    assert code == 1
    found = json.loads((own / "r.json").read_text(encoding="utf-8"))
    assert (found["title"], found["ok"]) == ("own_code.py:wrong", False)
    titles = [part["title"] for part in found["parts"]]
    assert titles == [f"own_code.py:wrong {dtype}" for dtype in ("float32", "float64")]
    for part in found["parts"]:
        assert [found["kind"] for found in part["findings"]] == ["sign"]
        assert {row["path"] for row in part["leaves"] if not row["ok"]} == {"['x']"}
    page = (own / "r.html").read_text(encoding="utf-8")
    assert all(title in page for title in titles)
    assert page.count('src="data:image/png;base64,') >= 3


def test_the_code_of_the_process_is_that_of_the_check(own):
    command = [sys.executable, "-m", "funcprop", "check", "own_code.py:wrong"]
    command += ["--shape", "4", "--dtype", "float32"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == "own_code.py:wrong: FAILED"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("own_code.py", "'own_code.py' is due as path/to/file.py:NAME or module:NAME"),
        ("own_code.py:", "'own_code.py:' is due as"),
        (":layer", "':layer' is due as"),
        ("nothing.py:layer", r"cannot load nothing.py: .*No such file"),
        (
            "nothing_here:layer",
            "cannot load nothing_here: ModuleNotFoundError: No module named 'nothing_here'",
        ),
        ("own_code.py:lair --shape 4", "own_code.py has no lair; it has: .*layer.*wrong_pair"),
        ("own_code.py:number", "own_code.py:number is a int; a layer, a loss or a pair"),
        ("own_code.py:layer", "give --shape, the shape of one example, say 8x8x3"),
        ("own_code.py:pair", "give --shape, the shapes of the arguments, say 5x4,5"),
        ("own_code.py:layer --shape -3x4", "--shape"),
        ("own_code.py:layer --shape 0x4", "--shape: '0x4' is no shape"),
        ("own_code.py:pair --shape 4:int32", "one argument at least must be of floats"),
        ("own_code.py:pair --shape 4,7", "own_code.py:pair raises"),
        ("own_code.py:layer --shape 4y", "--shape: '4y' is no shape; 8x8x3, scalar or 10:int32"),
        ("own_code.py:layer --shape 4:flat", "--shape: '4:flat' is no shape"),
        ("own_code.py:pair --shape 4x3,", "--shape: '' is no shape"),
        ("own_code.py:image --shape 4", r"conv: one example is \(4,\)"),
        ("own_code.py:layer --shape 4 --dtype int8", "invalid choice: 'int8'"),
        ("own_code.py:layer --shape 4 --only relu", "--only chooses among the library's own"),
        ("--shape 4", "--shape and --html are for a TARGET of your own"),
        ("--html r.html", "--shape and --html are for a TARGET of your own"),
        (
            "own_code.py:layer --shape 4 --dtype float32 --json no/such/r.json",
            "cannot write to .*r.json",
        ),
        (
            "own_code.py:layer --shape 4 --dtype float32 --html own_code.py/r.html",
            "cannot write to .*r.html",
        ),
    ],
)
def test_what_the_command_says_when_something_is_wrong(own, capsys, words, message):
    code, line = failure(capsys, *words.split())
    assert code == 2
    assert line.startswith("funcprop check: ")
    assert re.search(message, line), line
