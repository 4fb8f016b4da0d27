"""The command line: training, prediction, the check, and what it says when something is wrong."""

import contextlib
import errno
import functools
import gc
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcprop import Layer, LayerError, check_model, compare, datasets
from funcprop.cases import catalogue
from funcprop.cli import check as checks
from funcprop.cli import files, run_folder, runs, trained
from funcprop.cli import main as cli
from funcprop.core import contraction
from funcprop.layers import activations

SMALL = ("--sizes", "8", "--epochs", "2", "--quiet")
DRAW = runs._draw


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C is heard by the tests and what they start, though a shell that has put them into the
    background has made them deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def running(*words):
    """A process of `python -m funcprop`, which ends with the test, however the test ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "funcprop", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


@pytest.fixture
def no_picture(monkeypatch):
    """Drawing takes a second; most tests do not look at it."""
    monkeypatch.setattr(runs, "_draw", lambda *arguments: False)


@pytest.fixture
def untrained(monkeypatch, no_picture):
    """Most tests ask what becomes of a run, however its network came about and was checked."""

    def fitted(args, model, loss, meaning, params, data, held_out, key):
        with runs._Progress(args.epochs, len(data[1]), args.quiet) as progress:
            rows = [row_of(n, args) for n in range(1, args.epochs + 1)]
            for row in rows:
                progress.show(row)
        return params, rows

    monkeypatch.setattr(runs, "_fitted", fitted)
    monkeypatch.setattr(runs, "check_model", lambda *_, title: compare(np.ones(2), np.ones(2)))


def row_of(epoch, args):
    row = {"epoch": epoch, "loss": (1 + args.seed) / epoch, "delta": [0.1]}
    return row | dict.fromkeys(("accuracy", "test_loss", "test_accuracy"), 0.5)


def flowers(path, *, labels=("rose", "lily"), n=40):
    """Two kinds that one feature tells apart, in a .csv with a line of names."""
    x = np.random.default_rng(0).normal(size=(n, 3))
    kinds = np.array(labels)[(x[:, 1] > 0).astype(int)]
    lines = [f"{a},{100 * b},5,{kind}" for (a, b, _), kind in zip(x, kinds, strict=True)]
    path.write_text("\n".join(["a,b,c,kind", *lines]) + "\n")
    return path


def curve(path, n=60, *, scale=1.0):
    x = np.random.default_rng(0).normal(size=(n, 2))
    np.savez(path, x=x, y=scale * (x[:, 0] + 3))
    return path


def failure(capsys, *words):
    """The one line that a command ends with, having said nothing else."""
    code = cli.main(words)
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return code, captured.err.strip()


# ------------------------------------------------------------------------------- train


@pytest.mark.parametrize(
    ("words", "epochs", "accuracy"),
    [
        ("--epochs 4 --batch-size 64", 4, 0.85),
        pytest.param("", 40, 0.97, marks=pytest.mark.slow),  # with its defaults
    ],
    ids=["a few epochs", "by default"],
)
def test_digits(tmp_path, capsys, words, epochs, accuracy):
    """Trains, says how, proves its gradient, writes all that down, and predicts."""
    folder = tmp_path / "deep" / "digits"
    assert cli.main([*words.split(), "--out", str(folder)]) == 0
    done = capsys.readouterr()
    assert done.err == ""
    what_is_printed(done.out, folder, epochs)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, epochs + 1))
    assert rows[-1]["test_accuracy"] >= accuracy
    assert 0 < rows[-1]["worst_leaf_eps"] <= 128
    assert f"test accuracy {100 * rows[-1]['test_accuracy']:.2f} %" in done.out
    assert rows[-1]["loss"] < rows[0]["loss"] / (10 if epochs == 40 else 2)
    assert rows[-1]["accuracy"] > rows[0]["accuracy"]
    for row in rows:
        assert len(row["delta"]) == 3
        assert min(row["delta"]) > 0
    content = (folder / "training.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 50_000
    what_is_predicted(folder, tmp_path / "new.npz", capsys, rows[-1]["test_accuracy"])


def what_is_printed(text, folder, epochs):
    lines = text.splitlines()
    assert lines[0].startswith("digits: 1,438 examples to train on, 359 to test with")
    progress = [line for line in lines if line.startswith("epoch")]
    assert len(progress) == min(epochs, 10)
    assert re.search(
        rf"{epochs}/{epochs}  loss \d\.\d+  test accuracy \d+\.\d %  [\d,]+ examples/s  0 s left",
        text,
    )
    assert "layers[2]  dense  (10,)        1,290  b (10,)  w (10, 128)" in lines
    assert any(re.match(r"total +50,826$", line) for line in lines)
    assert re.search(r"^test accuracy \d+\.\d\d % \(\d+ of 359\), test loss", text, re.M)
    assert "gradient of the first step: by hand against jax.grad: ok" in lines
    assert "FAILED" not in text
    assert lines[-1] == f"wrote training.png, metrics.jsonl, params.npz, model.json to {folder}"


def what_is_predicted(folder, path, capsys, accuracy):
    x, y = datasets.digits()
    _, (x, y) = datasets.split(x, y)
    np.savez(path, x=x, y=y)
    assert cli.main(["predict", str(folder), str(path)]) == 0
    captured = capsys.readouterr()
    predictions = np.array(captured.out.split(), int)
    assert (predictions == y).mean() == pytest.approx(accuracy, abs=1e-6)
    assert captured.err == f"accuracy {100 * accuracy:.2f} % ({(predictions == y).sum()} of 359)\n"
    # Pixels up to 16, as scikit-learn has them, are not what the network was trained on.
    np.savez(path, x=16 * x)
    assert cli.main(["predict", str(folder), str(path)]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 359
    assert captured.err.startswith("note: features reach 16, in training 1 (scaled)")


@pytest.mark.slow
def test_digits_over_five_seeds(tmp_path, no_picture):
    folders = []
    for seed in range(5):
        folders.append(tmp_path / str(seed))
        assert cli.main(["--seed", str(seed), "--quiet", "--out", str(folders[-1])]) == 0
    rows = [json.loads((f / "metrics.jsonl").read_text().splitlines()[-1]) for f in folders]
    accuracies = [row["test_accuracy"] for row in rows]
    assert len(set(accuracies)) > 1
    assert np.mean(accuracies) >= 0.97
    assert min(accuracies) >= 0.955
    assert max(row["worst_leaf_eps"] for row in rows) <= 128


def test_a_run_repeats_itself_and_replaces_what_it_wrote(tmp_path):
    out = tmp_path / "run"
    words = ["--data", str(flowers(tmp_path / "flowers.csv")), "--out", str(out), *SMALL]
    out.mkdir()
    (out / "training.png").write_text("of another run")
    (out / "notes.txt").write_text("mine")
    assert cli.main(words) == 0
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert first["training.png"].startswith(b"\x89PNG")
    assert cli.main(words) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


def test_without_matplotlib_there_is_no_picture(tmp_path, untrained, monkeypatch, capsys):
    """And an old one is not left to pass for the new."""
    out = tmp_path / "run"
    words = ["--data", str(flowers(tmp_path / "flowers.csv")), "--out", str(out), *SMALL]
    monkeypatch.setattr(runs, "_draw", lambda file, *_: file.write(b"PNG"))
    assert cli.main(words) == 0
    (out / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(before) > {"training.png", "metrics.jsonl"}
    monkeypatch.setattr(runs, "_draw", DRAW)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    capsys.readouterr()
    assert cli.main([*words, "--seed", "1"]) == 0
    captured = capsys.readouterr()
    message = "no picture, matplotlib is missing: pip install 'funcprop[plot]'\n"
    assert captured.err == message
    assert captured.out.endswith(f"wrote metrics.jsonl, params.npz, model.json to {out}\n")
    names = {path.name for path in out.iterdir()}
    assert names == {"notes.txt", "metrics.jsonl", "params.npz", "model.json"}
    assert all((out / name).read_bytes() != before[name] for name in names - {"notes.txt"})


def test_the_size_of_delta_is_that_of_each_examples_own_loss(tmp_path, no_picture):
    # One linear layer and one step: delta of an example is softmax(z) - onehot(y).
    path, out = flowers(tmp_path / "flowers.csv"), tmp_path / "run"
    words = ["--data", str(path), "--out", str(out), "--sizes", "--epochs", "1", "--quiet"]
    assert cli.main([*words, "--batch-size", "32", "--learning-rate", "1e-20"]) == 0
    model, params, meaning = trained.load(out)
    (x, y), _ = datasets.split(*datasets.load(path))
    z = model.apply(params, meaning.inputs(x))
    delta = jax.nn.softmax(z) - (y[:, None] == np.array(meaning.classes))
    found = json.loads((out / "metrics.jsonl").read_text())["delta"]
    assert found == pytest.approx([float(jnp.sqrt(jnp.mean(delta**2)))], rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "activation", "optimizer"),
    [
        pytest.param("sigmoid_cross_entropy", "celu", "lbfgs", marks=pytest.mark.slow),
        ("kl_divergence", "log_softmax", "lion"),
        pytest.param("hinge", "tanh_precise", "muon", marks=pytest.mark.slow),
        pytest.param("mean_squared_error", "leaky_relu", "momentum", marks=pytest.mark.slow),
    ],
)
def test_losses_activations_and_optimizers_by_name(
    tmp_path, no_picture, capsys, loss, activation, optimizer
):
    words = ["--loss", loss, "--activation", activation, "--optimizer", optimizer]
    path = flowers(tmp_path / "flowers.csv")
    out = tmp_path / "run"
    words += ["--data", str(path), "--out", str(out), "--sizes", "8", "--epochs", "30"]
    assert cli.main([*words, "--quiet"]) == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["worst_leaf_eps"] <= 128


@pytest.mark.parametrize("loss", runs.LOSSES)
def test_labels_become_what_the_loss_takes(loss):
    meaning = trained.Meaning(np.zeros(1), np.ones(1), 1.0, ["a", "b", "c"])
    targets = meaning.targets(np.array([2, 0]), loss)
    scores = jnp.array([[-9.0, -9.0, 9.0], [9.0, -9.0, -9.0]])
    right = runs.LOSSES[loss].apply((), (scores, targets))
    wrong = runs.LOSSES[loss].apply((), (scores[::-1], targets))
    assert right.shape == (2,)
    assert (right < wrong).all()


def test_every_activation_has_its_name():
    made = {name for name, value in vars(activations).items() if isinstance(value, Layer)}
    assert made <= set(trained.ACTIVATIONS)
    assert {"leaky_relu", "elu", "celu"} <= set(trained.ACTIVATIONS)


@pytest.mark.parametrize(
    ("y", "loss", "classes"),
    [
        (["b", "a"] * 10, "softmax_cross_entropy", ["a", "b"]),
        ([3, 7] * 10, "softmax_cross_entropy", [3, 7]),
        ([3.0, 7.0] * 10, "softmax_cross_entropy", [3, 7]),
        ([True, False] * 10, "hinge", [0, 1]),
        ([3, 7] * 10, "mean_squared_error", [3, 7]),
        (range(40), "huber", None),
        (np.arange(10) / 2, "mean_absolute_error", None),
    ],
)
def test_what_is_a_class_and_what_a_number(tmp_path, y, loss, classes):
    path = tmp_path / "data.npz"
    y = np.array(y)
    np.savez(path, x=np.arange(2.0 * len(y)).reshape(-1, 2), y=y)
    args = cli._parser().parse_args(["train", "--data", str(path), "--loss", loss])
    meaning, (_, y_train), (_, y_test) = runs._data(args)
    assert meaning.classes == classes
    if classes is None:
        targets = meaning.targets(y_train, loss)
        assert targets.shape == (len(y_train), 1)
        assert targets.mean() == pytest.approx(0, abs=1e-6)
        assert targets.std() == pytest.approx(1)
    else:
        names = np.array(classes)[np.concatenate([y_train, y_test])]
        assert sorted(names.tolist()) == sorted(y.tolist())


def test_the_seed_is_that_of_the_split_too():
    parts = []
    for words in ([], ["--seed", "0"], ["--seed", "1"]):
        _, _, (x, _) = runs._data(cli._parser().parse_args(["train", *words]))
        parts.append(x)
    assert np.array_equal(parts[0], parts[1])
    assert not np.array_equal(parts[0], parts[2])


def test_features_are_standardised_by_the_training_part(tmp_path):
    args = cli._parser().parse_args(["train", "--data", str(flowers(tmp_path / "f.csv"))])
    meaning, (x, _), (x_test, _) = runs._data(args)
    inputs = meaning.inputs(x)
    np.testing.assert_allclose(inputs.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(inputs[:, :2].std(axis=0), 1, rtol=1e-6)
    assert (inputs[:, 2] == 0).all()  # that feature is 5 everywhere
    assert np.abs(meaning.inputs(x_test)[:, 1].mean()) > 1e-3


def test_progress_is_one_line_on_a_terminal_and_plain_lines_elsewhere(monkeypatch, capsys):
    row = {"loss": 0.5, "test_accuracy": 0.25}

    def shown(epochs, live, quiet=False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: live, raising=False)
        clock = SimpleNamespace(perf_counter=itertools.count(1.0).__next__)
        monkeypatch.setattr(runs, "time", clock)
        with runs._Progress(epochs, 1000, quiet) as progress:
            for epoch in range(1, epochs + 1):
                progress.show({"epoch": epoch, **row})
        return capsys.readouterr().out

    plain = shown(25, live=False)
    assert "\r" not in plain
    assert [line.split()[1] for line in plain.splitlines()][:3] == ["2/25", "4/25", "6/25"]
    assert plain.splitlines()[-1] == (
        "epoch 25/25  loss 0.5000  test accuracy 25.0 %  1,000 examples/s  0 s left"
    )
    assert "23 s left" in plain
    live = shown(3, live=True)
    assert live.count("\n") == 1
    assert [part.split()[0] for part in live.split("\r")[1:]] == ["compiling", "epoch"] + [
        "epoch"
    ] * 2
    assert len({len(part.rstrip("\n")) for part in live.split("\r")[1:]}) == 1
    assert shown(3, live=True, quiet=True) == shown(3, live=False, quiet=True) == ""


def test_an_update_after_the_last_loss_that_diverges_says_so(tmp_path, no_picture, capsys):
    out = tmp_path / "run"
    words = ["--data", str(flowers(tmp_path / "f.csv")), "--out", str(out), "--sizes", "3"]
    words += ["--epochs", "1", "--batch-size", "32", "--optimizer", "sgd"]
    code, line = failure(capsys, *words, "--learning-rate", "3e38", "--quiet")
    assert code == 1
    assert re.match("funcprop train: stopped: .* try a smaller --learning-rate$", line), line
    assert not out.exists()


def test_a_network_that_is_not_finite_on_the_test_part_is_not_written(
    tmp_path, untrained, monkeypatch, capsys
):
    out = tmp_path / "run"
    words = ["--data", str(flowers(tmp_path / "f.csv")), "--out", str(out), *SMALL]
    fitted = runs._fitted

    def ruined(*arguments):
        params, rows = fitted(*arguments)
        return jax.tree.map(lambda leaf: leaf + jnp.nan, params), rows

    monkeypatch.setattr(runs, "_fitted", ruined)
    code, line = failure(capsys, *words)
    assert code == 1
    assert "stopped: what the trained network makes of the test part is not finite" in line
    assert not out.exists()


def test_a_training_that_diverges_says_so(tmp_path, capsys):
    path = curve(tmp_path / "curve.npz")
    words = ("--optimizer", "sgd", "--learning-rate", "1e9", "--loss", "mean_squared_error")
    code, line = failure(
        capsys,
        "--data",
        str(path),
        "--out",
        str(tmp_path),
        "--sizes",
        "3",
        "--epochs",
        "9",
        "--quiet",
        *words,
    )
    assert code == 1
    assert re.match(
        r"funcprop train: stopped: the loss is (nan|inf) at step \d+; try a smaller "
        "--learning-rate$",
        line,
    )
    assert not (tmp_path / "params.npz").exists()


def test_a_gradient_that_is_wrong_is_told(tmp_path, untrained, no_cause, monkeypatch, capsys):
    monkeypatch.setattr(runs, "check_model", functools.partial(check_model, parts=False))
    outer = contraction.outer
    monkeypatch.setattr(contraction, "outer", lambda delta, x: 1.001 * outer(delta, x))
    words = ["--data", str(flowers(tmp_path / "f.csv")), "--out", str(tmp_path / "run"), "--sizes"]
    assert cli.main(words) == 1
    assert "gradient of the first step: by hand against jax.grad: FAILED" in capsys.readouterr().out


# ----------------------------------------------------------------------------- predict


@pytest.fixture(scope="session")
def flower_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flowers")
    path = flowers(folder / "flowers.csv", n=200)
    out = folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_draw", lambda *arguments: False)
        words = ["--sizes", "16", "--quiet", "--data", str(path), "--out", str(out)]
        assert cli.main(["train", *words]) == 0
    return out


def test_predict_restores_names(flower_run, tmp_path, capsys):
    new = tmp_path / "new.csv"
    new.write_text("0,90,5\n0,-90,5\n")
    assert cli.main(["predict", str(flower_run), str(new)]) == 0
    assert capsys.readouterr() == ("lily\nrose\n", "")
    new.write_text("a,b,c,kind\n0,90,5,lily\n0,-90,5,lily\n")
    out = tmp_path / "predictions.txt"
    assert cli.main(["predict", str(flower_run), str(new), "--out", str(out)]) == 0
    assert capsys.readouterr() == ("", "accuracy 50.00 % (1 of 2)\n")
    assert out.read_text() == "lily\nrose\n"


def test_predict_knows_numbers_that_are_labels(
    flower_run, untrained, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    path = flowers(tmp_path / "flowers.csv", labels=(7, 3), n=200)
    trained_before = trained.load(flower_run)[1]  # on the same flowers, by other names
    fitted = runs._fitted
    monkeypatch.setattr(runs, "_fitted", lambda *given: (trained_before, fitted(*given)[1]))
    words = ["--sizes", "16", "--quiet", "--data", str(path), "--out", str(out)]
    assert cli.main(words) == 0
    new = tmp_path / "new.csv"
    new.write_text("0,90,5,3.0\n0,-90,5,7.0\n")
    capsys.readouterr()
    assert cli.main(["predict", str(out), str(new)]) == 0
    assert capsys.readouterr() == ("3\n7\n", "accuracy 100.00 % (2 of 2)\n")


def test_a_curve_is_fitted_and_predicted_in_its_own_units(tmp_path, capsys):
    path, out = curve(tmp_path / "curve.npz", scale=1000.0), tmp_path / "run"
    words = ["--loss", "mean_squared_error", "--sizes", "16", "--activation", "tanh", "--quiet"]
    assert cli.main([*words, "--epochs", "150", "--data", str(path), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "2 features, a number to predict" in text
    row = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["test_r2"] > 0.9
    assert f"test R² {row['test_r2']:.4f}" in text
    assert (out / "training.png").exists()
    assert cli.main(["predict", str(out), str(path)]) == 0
    captured = capsys.readouterr()
    y = np.load(path)["y"]
    found = np.array(captured.out.split(), float)
    r2 = 1 - ((found - y) ** 2).mean() / y.var()
    assert r2 > 0.9
    assert captured.err == f"R² {r2:.4f}, RMSE {np.sqrt(((found - y) ** 2).mean()):.6g}\n"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("1e39", "line 2, column 3 is 1e39; numbers must be smaller than 1e+30"),
        ("-1e308", "line 2, column 3 is -1e308; numbers must be smaller than 1e+30"),
    ],
)
def test_predict_answers_nothing_that_is_not_finite(flower_run, tmp_path, capsys, cell, message):
    new, out = tmp_path / "new.csv", tmp_path / "out.txt"
    new.write_text(f"0,90,5\n0,-90,{cell}\n")
    out.write_text("old")
    assert cli.main(["predict", str(flower_run), str(new), "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert f"funcprop predict: {new}: {message}" in captured.err
    assert captured.out == ""
    assert out.read_text() == "old"


def test_a_network_beyond_its_floats_answers_nothing(flower_run, tmp_path, monkeypatch, capsys):
    """Features of tiny units reach far, scaled; and there scores are infinite."""
    new = tmp_path / "new.csv"
    new.write_text("0,90,5\n0,-90,5\n")
    model, params, meaning = trained.load(flower_run)

    def scaled(scale, factor=1.0):
        larger = jax.tree.map(lambda leaf: factor * leaf, params)
        monkeypatch.setattr(
            trained, "load", lambda folder: (model, larger, meaning._replace(scale=scale))
        )
        assert cli.main(["predict", str(flower_run), str(new)]) == 2
        return capsys.readouterr()

    out, err = scaled(meaning.scale * 1e-40)
    assert (out, "new.csv: row 1, column 1 is 0, too large for float32 once" in err) == ("", True)
    out, err = scaled(meaning.scale, 1e30)
    assert (out, "the prediction of row 1 is not finite; are its features" in err) == ("", True)


# ------------------------------------------------------------------------------- check


def test_check_prints_a_line_each_and_writes_them(tmp_path, capsys):
    names = ["affine", "hinge", "tanh"]
    path = tmp_path / "check.json"
    assert cli.main(["check", "--only", *names, "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "9 checks, all ok"
    assert lines[1].split()[:3] == ["affine", "layer", "float64"]
    assert "complex step" in lines[1]
    assert all(line.endswith("  ok") for line in lines[1:-1])
    results = json.loads(path.read_text())
    kinds = {result["name"]: result["kind"] for result in results}
    assert kinds == {"affine": "layer", "hinge": "loss", "tanh": "activation"}
    for result in results:
        assert result["ok"]
        assert result["leaf_eps"] <= (16 if result["dtype"] == "bfloat16" else 128)
        oracle = {"hinge": "central differences"}.get(result["name"], "complex step")
        wide = result["dtype"] == "float64"
        assert result["oracle"] == (oracle if wide else None)
        assert not wide or 0 <= result["oracle_difference"] < 1e-6


def test_check_takes_every_case_unless_told(capsys, monkeypatch):
    monkeypatch.setattr(
        checks,
        "_checked",
        lambda case, dtype: (
            dict.fromkeys(("whole_eps", "leaf_eps", "oracle_difference"), 0.0)
            | {"name": case.name, "dtype": dtype, "kind": "layer", "oracle": None, "ok": True},
            "",
        ),
    )
    assert cli.main(["check"]) == 0
    assert capsys.readouterr().out.endswith(f"{3 * len(catalogue.CASES)} checks, all ok\n")
    assert cli.main(["check", "--only", "softmax_*", "--dtype", "float64"]) == 0
    assert "softmax_cross_entropy, smoothed" in capsys.readouterr().out


def broken_sign(monkeypatch):
    outer = contraction.outer
    monkeypatch.setattr(contraction, "outer", lambda delta, x: -outer(delta, x))
    return "affine"


def broken_batch_mean(monkeypatch):
    outer = contraction.outer
    monkeypatch.setattr(contraction, "outer", lambda delta, x: outer(delta, x) / len(x))
    return "affine"


def broken_transpose(monkeypatch):
    transport = contraction.transport
    monkeypatch.setattr(
        contraction, "transport", lambda delta, w, like: transport(delta, w.T, like)
    )
    return "residual"  # of a square matrix, so that shapes do not tell


def broken_derivative(monkeypatch):
    slope = activations._tanh_softplus_slope
    monkeypatch.setattr(activations, "_tanh_softplus_slope", lambda z: 1.01 * slope(z))
    return "mish"


@pytest.mark.parametrize(
    "breaks", [broken_sign, broken_batch_mean, broken_transpose, broken_derivative]
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_check_finds_what_is_broken(monkeypatch, capsys, no_cause, breaks, dtype):
    with monkeypatch.context() as patch:
        name = breaks(patch)
        assert cli.main(["check", "--only", name, "--dtype", dtype]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "FAILED" in lines[1]
    assert "jax.vjp" in lines[1]
    assert lines[-1] == "1 check, 1 failed"
    assert cli.main(["check", "--only", name, "--dtype", dtype]) == 0


def test_check_goes_on_where_a_layer_raises(monkeypatch, capsys):
    broken_transpose(monkeypatch)
    assert cli.main(["check", "--only", "affine", "relu", "--dtype", "float32"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "FAILED  TypeError: " in lines[1]
    assert lines[2].endswith("ok")
    assert lines[-1] == "2 checks, 1 failed"


# ------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--activation rely", "--activation: invalid choice: 'rely' (choose from .*relu.*"),
        ("--loss mse", "--loss: invalid choice: 'mse' .*mean_squared_error.*"),
        ("--optimizer adams", "--optimizer: invalid choice: 'adams' .*adamw.*"),
        ("--learning-rate -1", "--learning-rate: '-1' is no number above 0"),
        ("--learning-rate 0", "--learning-rate: '0' is no number above 0"),
        ("--learning-rate nan", "--learning-rate: 'nan' is no number above 0"),
        ("--learning-rate fast", "--learning-rate: 'fast' is no number above 0"),
        ("--epochs 0", "--epochs: '0' is no whole number above 0"),
        ("--epochs 1.5", "--epochs: '1.5' is no whole number above 0"),
        ("--batch-size -3", "--batch-size: '-3' is no whole number above 0"),
        ("--sizes 8 0", "--sizes: '0' is no whole number above 0"),
        ("--sizes 8,8", "--sizes: '8,8' is no whole number above 0"),
        ("--seed -1", r"--seed: '-1' is no whole number from 0 to 2\^32 - 1"),
        ("--seed 4294967296", "--seed: '4294967296' is no whole number from 0"),
        ("--colour red", "unrecognized arguments: --colour"),
        ("--epoch 3", "unrecognized arguments: --epoch"),
        ("tarin", "argument command: invalid choice: 'tarin' .*train.*predict.*check"),
        ("predict", "the following arguments are required: RUN, FILE"),
        ("check --dtype float16", "--dtype: invalid choice: 'float16' .*bfloat16"),
        ("check --only tahn", "there is no case 'tahn'; there are: affine; .*tanh"),
        ("--batch-size 2000", "--batch-size is 2000, there are 1438 examples"),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    code, line = failure(capsys, *words.split())
    assert code == 2
    assert re.search(message.replace("(", r"\("), line), line
    assert line.startswith("funcprop")


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, "", "data.csv: No such file or directory"),
        ("a,b\n1\n", "", "data.csv: line 2 has 1 column, line 1 has 2"),
        ("1,nan,0\n2,3,1\n", "", "data.csv: line 1, column 2 is 'nan', missing"),
        ("1,2,\n2,3,1\n", "", "data.csv: line 1 has no label"),
        ("1,2,a\n3,4,a\n", "", "data.csv: every label is 'a'; there must be two or more"),
        ("1,2,a\n3,4,b\n", "", "there are 2 examples, too few"),
        (
            "1,2,.5\n3,4,1\n",
            "--loss hinge",
            "data.csv: its labels are real numbers, .* use --loss mean_squ",
        ),
        ("1,2,a\n3,4,b\n" * 5, "--batch-size 9", "--batch-size is 9, there are 8 examples"),
    ],
)
def test_a_bad_file_is_one_line_and_exit_code_2(
    tmp_path, monkeypatch, capsys, content, options, message
):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "data.csv").write_text(content)
    code, line = failure(capsys, "--data", "data.csv", *options.split())
    assert code == 2
    assert re.search("funcprop train: .*" + message, line), line


def test_a_bad_folder_is_one_line_and_exit_code_2(tmp_path, capsys, no_picture):
    (tmp_path / "taken").write_text("")
    for words in (
        ["--out", str(tmp_path / "taken")],
        ["--out", str(tmp_path / "taken" / "run")],
        ["check", "--only", "relu", "--json", str(tmp_path / "taken" / "check.json")],
    ):
        code, line = failure(capsys, *words)
        assert code == 2
        assert re.search("cannot write to .*taken.*: (File exists|Not a directory)", line), line


def test_a_bad_run_is_one_line_and_exit_code_2(flower_run, tmp_path, capsys):
    new = tmp_path / "new.csv"
    new.write_text("0,1,2\n")
    copy = tmp_path / "copy"

    def fails(message, *more, folder=copy):
        code, line = failure(capsys, "predict", str(folder), str(new), *more)
        assert code == 2
        assert re.search("funcprop predict: .*" + message, line), line

    fails("nothing holds no trained network .*funcprop train --out", folder=tmp_path / "nothing")
    shutil.copytree(flower_run, copy)
    fails("cannot write to .*: Not a directory", "--out", str(new / "out.txt"))
    (copy / "params.npz").write_bytes(b"no zip")
    fails("copy: its params.npz is damaged or of another run: .* train again$")
    (copy / "params.npz").unlink()
    fails("params.npz is missing")
    shutil.copy(flower_run / "params.npz", copy)
    new.write_text("0,1\n")
    fails("new.csv: it has 2 columns; it must have 3, the features, or 4 as the training data")
    np.savez(tmp_path / "new.npz", x=np.zeros((2, 5)))
    new = tmp_path / "new.npz"
    fails("new.npz: x has 5 features, it must have 3")


def test_help_and_version(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("train", "predict", "check"))
    assert cli.main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in (*runs.LOSSES, *runs.OPTIMIZERS, *trained.ACTIVATIONS))
    assert cli.main(["--version"]) == 0
    assert re.match(r"funcprop \d+\.\d+\.\d+\n$", capsys.readouterr().out)


def test_layer_errors_are_one_line(monkeypatch, capsys):
    def train(args):
        raise LayerError("dense", "no\nway")

    monkeypatch.setattr(runs, "train", train)
    assert failure(capsys) == (2, "funcprop train: dense: no way")


def test_interrupted(tmp_path):
    with running("--epochs", "100000", "--out", tmp_path) as process:
        assert process.stdout.readline().startswith("digits")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "funcprop train: interrupted\n"


@pytest.mark.parametrize(
    ("number", "due", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_lost_in_a_callback_is_obeyed_at_the_next_epoch(
    tmp_path, untrained, monkeypatch, capsys, number, due, word
):
    show = runs._Progress.show

    def signalled(phase, info):
        gc.callbacks.remove(signalled)
        signal.raise_signal(number)

    def shown(progress, row):
        if row["epoch"] == 1:
            gc.callbacks.append(signalled)
            gc.collect()
        else:
            show(progress, row)

    monkeypatch.setattr(runs._Progress, "show", shown)
    words = ["--data", str(flowers(tmp_path / "flowers.csv")), "--out", str(tmp_path / "run")]
    code, line = failure(capsys, *words, *SMALL)
    assert (code, line) == (due, f"funcprop train: {word}")
    assert not (tmp_path / "run" / "model.json").exists()
    assert cli.main(["--version"]) == 0


def test_signals_are_those_of_before_when_a_command_has_ended(capsys):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert cli.main(["--version"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("moment", ["_draw", "_fitted", "save"])
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_signal_leaves_the_old_run_and_no_rubbish(
    tmp_path, untrained, monkeypatch, capsys, moment, number, code, word
):
    out = tmp_path / "run"
    words = ["--data", str(flowers(tmp_path / "flowers.csv")), "--out", str(out), *SMALL]
    assert cli.main(words) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()

    def stopped(*arguments, **options):
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)  # the second one of an impatient user

    if moment == "save":
        monkeypatch.setattr(run_folder, "write_durably", stopped)
    else:
        monkeypatch.setattr(runs, moment, stopped)
    assert cli.main([*words, "--seed", "1"]) == code
    assert capsys.readouterr().err == f"funcprop train: {word}\n"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flowers.csv", "run"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_at_the_worst_moment_changes_nothing(monkeypatch, capsys, number):
    def interrupted():
        signal.raise_signal(number)  # before the line that answers the first one
        return files.uninterrupted()

    monkeypatch.setattr(runs, "train", lambda args: signal.raise_signal(number))
    monkeypatch.setattr(cli, "uninterrupted", interrupted)
    code, line = failure(capsys)
    assert (code, line.split()[2]) in {(130, "interrupted"), (143, "terminated")}


def test_a_signal_after_the_run_was_written_says_so(tmp_path, untrained, monkeypatch, capsys):
    out = tmp_path / "run"
    monkeypatch.setattr(runs, "summary", lambda *arguments: signal.raise_signal(signal.SIGTERM))
    words = ["--data", str(flowers(tmp_path / "f.csv")), "--out", str(out), *SMALL]
    code, line = failure(capsys, *words)
    assert code == 143
    assert line == f"funcprop train: terminated; the run was written to {out} before"
    trained.load(out)


class Full(io.StringIO):
    """A standard output that takes a few lines."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        if len(self.getvalue()) > 10:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 0, ""),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            2,
            "funcprop train: cannot write to standard output: No space left on device\n",
        ),
        (None, 0, ""),
    ],
)
def test_a_run_is_written_whatever_becomes_of_the_output(
    tmp_path, untrained, monkeypatch, capsys, error, code, message
):
    out = tmp_path / "run"
    stream = None if error is None else Full(error)
    monkeypatch.setattr(sys, "stdout", stream)
    words = ["--data", str(flowers(tmp_path / "f.csv")), "--out", str(out), "--sizes", "8"]
    assert cli.main([*words, "--epochs", "20"]) == code
    assert capsys.readouterr().err == message
    trained.load(out)
    if stream is not None:
        assert stream.getvalue().startswith('f.csv: classification of column 4 "kind"')
        assert "epoch" not in stream.getvalue()


def test_predictions_need_an_output(flower_run, tmp_path, monkeypatch, capsys):
    new = tmp_path / "new.csv"
    new.write_text("0,90,5\n")
    monkeypatch.setattr(sys, "stdout", None)
    code, line = failure(capsys, "predict", str(flower_run), str(new))
    assert (code, line) == (2, "funcprop predict: standard output is closed; give --out FILE")
    # print() takes None for standard output.
    monkeypatch.setattr(sys, "stdout", stdout := io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)
    new.write_text("0,90,5,lily\n")
    assert cli.main(["predict", str(flower_run), str(new)]) == 0
    assert stdout.getvalue() == "lily\n"


def test_no_file_of_ours_gets_the_number_of_a_closed_stream(monkeypatch):
    opened = []
    monkeypatch.setattr(os, "fstat", lambda number: () if number == 1 else os.stat("/nowhere"))
    monkeypatch.setattr(os, "open", lambda *arguments: opened.append(arguments))
    cli._open_closed_numbers()
    monkeypatch.undo()
    assert opened == [(os.devnull, os.O_RDWR)] * 2


def test_a_result_is_printed_when_it_is_written(tmp_path, untrained, monkeypatch, capsys):
    write = run_folder.write

    def looked_at(*arguments):
        printed.append(capsys.readouterr().out)
        write(*arguments)

    printed = []
    monkeypatch.setattr(run_folder, "write", looked_at)
    words = ["--data", str(flowers(tmp_path / "f.csv")), "--out", str(tmp_path / "run"), *SMALL]
    assert cli.main(words) == 0
    (before,) = printed
    assert before.endswith("f: 32 examples to train on, 8 to test with, 3 features, 2 classes\n")
    assert "test accuracy" in capsys.readouterr().out


def test_json_has_no_nan(tmp_path, untrained, monkeypatch, capsys):
    fitted, out = runs._fitted, tmp_path / "run"

    def one_bad_epoch(*arguments):
        params, rows = fitted(*arguments)
        return params, [{**rows[0], "loss": math.inf, "delta": [math.nan]}, *rows[1:]]

    monkeypatch.setattr(runs, "_fitted", one_bad_epoch)
    words = ["--data", str(flowers(tmp_path / "f.csv")), "--out", str(out), *SMALL]
    assert cli.main(words) == 0
    first, last = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    assert first["loss"] is None
    assert first["delta"] == [None]
    assert last["loss"] > 0
    outer, path = contraction.outer, tmp_path / "check.json"
    monkeypatch.setattr(contraction, "outer", lambda delta, x: jnp.nan * outer(delta, x))
    words = ["check", "--only", "affine", "--dtype", "float32", "--json", str(path)]
    assert cli.main(words) == 1
    assert "NaN" not in path.read_text()
    assert json.loads(path.read_text())[0]["leaf_eps"] is None


def test_a_reader_that_stops_early_is_no_error(flower_run, tmp_path):
    np.savez(tmp_path / "new.npz", x=np.zeros((2, 3)))
    with running("predict", flower_run, tmp_path / "new.npz") as process:
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == ""
