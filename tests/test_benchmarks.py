"""The benchmarks run, and their rows do the same work; no time is looked at."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def found_here(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])


@pytest.fixture
def mlp():
    from benchmarks import mlp

    return mlp


def rows(text: str) -> dict[str, list[str]]:
    """The cells of the printed tables, by the name of their row."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells if first.strip("-")}


def losses(mlp, capsys, table: str) -> dict[str, float]:
    mlp.main(["--rounds", "1", "--scale", "0.002", "--only", table])
    text = capsys.readouterr().out
    assert text.startswith("jax ")
    assert "CPUs" in text.splitlines()[0]
    return {name: float(cells[-1]) for name, cells in rows(text).items() if name}


def test_every_row_of_training_reaches_the_same_loss(mlp, capsys, monkeypatch):
    monkeypatch.setattr(mlp, "installed", lambda package: False)
    fit, tuned, loop = losses(mlp, capsys, "tiny").values()
    np.testing.assert_allclose([tuned, loop], fit, rtol=1e-5)


@pytest.mark.slow
def test_so_do_the_rows_of_other_libraries(mlp, capsys):
    found = losses(mlp, capsys, "adam")
    for name, loss in found.items():
        # scikit-learn draws its own initial weights
        rtol = 0.2 if "scikit" in name else 1e-5
        np.testing.assert_allclose(loss, found["funcprop, fit"], rtol=rtol)


def test_the_bare_gradient_takes_the_memory_of_jax_grad(mlp):
    text = mlp.gradient_table(mlp.DIGITS, batch=64, rounds=1, calls=1)
    own, same, plain = (cells[2:] for cells in rows(text).values() if cells[0][0].isdigit())
    assert own[0] == same[0]
    for other in (same, plain):
        np.testing.assert_allclose([float(n) for n in other[1:]], [float(n) for n in own[1:]], 1e-5)


@pytest.mark.slow
def test_a_small_gpt2_has_the_gradient_and_the_steps_of_plain_jax(capsys, monkeypatch):
    from benchmarks import gpt2

    rules, two = gpt2.rules, ("funcprop", "jax.grad")
    monkeypatch.setattr(gpt2, "rules", lambda size: {name: rules(size)[name] for name in two})
    sizes = {"blocks": 2, "features": 32, "heads": 4, "vocab": 50, "positions": 20, "tokens": 12}
    options = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    report = gpt2.main(["--rounds", "1", *options])
    report.assert_ok()
    assert len(report.leaves) == 16
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({row[-1] for row in cells[2:4]}) == 1  # the loss
    steps = np.array([row[-1].split() for row in cells[6:]], float)
    assert steps.shape == (2, 2)
    np.testing.assert_allclose(steps[0], steps[1], rtol=1e-5)
    assert np.all(steps[:, 1] < steps[:, 0])


@pytest.mark.slow
def test_faults_leave_the_folder_of_a_run_whole():
    # In a process of its own: it forks, which this one with its threads cannot.
    counts = {"kills": 1, "flips": 4, "terms": 0, "disks": 0, "pairs": 0}
    words = [word for name, count in counts.items() for word in (f"--{name}", str(count))]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", *words],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    header = found.pop("fault")
    assert sorted(found) == ["kill -9 at one of 30 calls", "one bit flipped"]
    for cells in found.values():
        seen = dict(zip(header, cells, strict=True))
        for kind in ("lost", "mixed", "silently other", "rubbish"):
            assert seen[kind] == "0", done.stderr
    assert found["one bit flipped"][0] == "4"


def test_the_program_of_repeat_is_as_long_for_256_layers_as_for_8():
    from benchmarks.compile_time import WAYS, lines

    assert lines(WAYS["repeat"], 8) == lines(WAYS["repeat"], 256) < 1000
    assert lines(WAYS["jax.vjp of a loop"], 64) > 6 * lines(WAYS["jax.vjp of a loop"], 8)


def test_compile_time_prints_a_table(capsys):
    from benchmarks.compile_time import WAYS, main

    main(["--rounds", "1", "--depths", "1", "2"])
    found = rows(capsys.readouterr().out)
    assert set(WAYS) <= set(found)


@pytest.mark.parametrize("family", ["dense", pytest.param("models", marks=pytest.mark.slow)])
def test_the_sides_of_a_row_do_the_same_work(capsys, family):
    from benchmarks.layers.__main__ import main

    main(["--rounds", "1", "--scale", "0.05", "--only", family])
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if " [" in line]
    norms: list[list[float]] = []
    for _, name, *cells, _, _ in lines[1:]:
        norms += [[]] if name.strip() else []
        norms[-1].append(float(cells[-1]))
    assert len(norms) >= 2
    for first, *others in norms:
        np.testing.assert_allclose(others, first, rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "count"), [("mlp", 6), pytest.param("cnn", 6, marks=pytest.mark.slow)]
)
def test_statistics_are_those_of_vmap(capsys, model, count):
    from benchmarks.statistics import main

    main(["--rounds", "1", "--scale", "0.05", "--only", model])
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if " [" in line][1:]
    norms, row = {}, ""
    for _, name, by, *cells, _, _ in lines:
        row = name.strip() or row
        norms.setdefault(row, {})[by.strip()] = float(cells[-1])
    compared = [by for by in norms.values() if "vmap(grad)" in by]
    without = 1 if model == "mlp" else 0  # the factors of K-FAC
    assert len(compared) == len(norms) - without == count
    for by in compared:
        np.testing.assert_allclose(by["funcprop"], by["vmap(grad)"], rtol=1e-4)


def test_every_rule_takes_a_step(capsys):
    from benchmarks.learning import main, rules

    few = ["feedback alignment and its angles", "direct feedback alignment", "forward-forward"]
    main(["--rounds", "1", "--scale", "0.02", "--only", *few])
    assert set(few) < set(rows(capsys.readouterr().out))
    assert len(rules(0.02)[0]) == 19


def test_the_cost_of_a_look_is_printed(capsys):
    from benchmarks import finite

    finite.main(["--rounds", "1", "--scale", "0.02"])
    found = rows(capsys.readouterr().out)
    assert list(found) == ["no look", "a look a round", "a look and a select a step"]
