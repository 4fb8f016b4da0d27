"""The examples run, and show what they say; first_steps does what PyTorch does."""

import importlib.util
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcprop

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
SMALL_ARGUMENTS = {
    "first_steps": [],
    "image_classification": ["--toy", "--seeds", "0"],
    "why_nonlinear": ["--steps", "300"],
    "why_stored_activations": ["--depths", "4", "16", "--batch", "32", "--rounds", "3"],
}


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """``run(name)``: the example's globals, and what it printed."""

    def run(name):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *SMALL_ARGUMENTS[name]])
        x64 = jax.config.jax_enable_x64
        try:
            found = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        finally:
            jax.config.update("jax_enable_x64", x64)
        return found, capsys.readouterr().out

    return run


def test_every_example_is_run_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SMALL_ARGUMENTS)


def _is_picture(path):
    # 8 bytes of signature, then the IHDR chunk with width and height.
    header = path.read_bytes()[:24]
    width, height = (int.from_bytes(header[i : i + 4], "big") for i in (16, 20))
    return header[:8] == b"\x89PNG\r\n\x1a\n" and width > 1000 and height > 500


# -------------------------------------------------------------------- first_steps


def _step(params, x, y):
    """Loss, gradients and updated weights, as examples/first_steps.py gets them."""
    loss, grads = funcprop.backprop(params, x, y)
    optimizer = optax.sgd(0.01)
    updates, _ = optimizer.update(grads, optimizer.init(params))
    return loss, grads, optax.apply_updates(params, updates)


def _assert_same(ours, theirs):
    for name, mine, torchs in zip(("loss", "grads", "new_params"), ours, theirs, strict=True):
        bounds = {"whole_bound": 8.0, "leaf_bound": 8.0} if name == "loss" else {}
        funcprop.compare(
            mine, torchs, names=("funcprop", "PyTorch"), title=name, **bounds
        ).assert_ok()


def _fixture():
    with np.load(HERE / "fixtures" / "first_steps_torch.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def _tree(arrays, prefix, dtype=None):
    return tuple(
        {name: jnp.asarray(arrays[f"{prefix}/{layer}/{name}"], dtype) for name in ("w", "b")}
        for layer in (0, 1)
    )


def _maker():
    path = HERE / "fixtures" / "make_first_steps_torch.py"
    spec = importlib.util.spec_from_file_location("make_first_steps_torch", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_first_steps(run):
    found, printed = run("first_steps")
    assert [layer["w"].shape for layer in found["params"]] == [(20, 10), (5, 20)]
    assert found["x"].shape == (1, 10)
    assert float(found["new_loss"]) < float(found["loss"])
    assert f"{found['loss']:.4f}" in printed
    assert f"{found['new_loss']:.4f}" in printed
    # The test of the fixture below stands for the script only if both do the same.
    expected = _step(found["params"], found["x"], found["y"])
    for ours, theirs in zip(
        (found["loss"], found["grads"], found["new_params"]), expected, strict=True
    ):
        assert jax.tree.all(jax.tree.map(jnp.array_equal, ours, theirs))


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_first_steps_are_those_of_the_pytorch_fixture(dtype, batch):
    arrays = _fixture()
    at = f"{dtype}/{batch}"
    assert str(arrays["version"]).startswith("2.13")
    with jax.enable_x64(dtype == "float64"):
        x, y = (jnp.asarray(arrays[name][:batch], dtype) for name in ("x", "y"))
        ours = _step(_tree(arrays, "params", dtype), x, y)
        theirs = (
            arrays[f"{at}/loss"],
            _tree(arrays, f"{at}/grads"),
            _tree(arrays, f"{at}/new_params"),
        )
        _assert_same(ours, theirs)


def test_first_steps_are_those_of_pytorch(run):
    pytest.importorskip("torch")
    found, _ = run("first_steps")
    given = jax.tree.map(np.asarray, (found["params"], found["x"], found["y"]))
    theirs = _maker().reference(*given)
    _assert_same((found["loss"], found["grads"], found["new_params"]), theirs)


def test_the_fixture_is_what_its_script_makes():
    pytest.importorskip("torch")
    arrays, made = _fixture(), _maker().make()
    assert set(arrays) == set(made)
    for name in set(made) - {"version"}:
        assert arrays[name].dtype == made[name].dtype
        eps = np.finfo(made[name].dtype).eps
        gap = np.abs(arrays[name] - made[name]).max() / np.abs(made[name]).max()
        assert gap <= 16 * eps, name  # another machine's BLAS may add in another order


def _gap_to_jax_grad(printed):
    """The number of the last line that examples print."""
    words = printed.splitlines()[-1].rsplit(" ", 1)
    assert words[0] == "first 20 losses differ from those with jax.grad by at most"
    return float(words[1])


# ------------------------------------------------------------- image_classification


def test_image_classification(run):
    found, printed = run("image_classification")
    plain = found["losses"]["plain", 0]
    assert np.mean(plain[-5:]) < 0.6 * np.mean(plain[:5])
    assert found["accuracy"]["plain", 0] > 0.6
    assert len(found["wrong"]["plain", 0]) == round((1 - found["accuracy"]["plain", 0]) * 80)
    assert f"{found['accuracy']['shifted', 0]:.2%}" in printed

    # Nine frames of each image: the fifth holds it in the middle, the first up and to the left.
    x, y = found["parts"](0)[0]
    moved, labels = found["shifted"](x, y)
    nine = moved.reshape(9, len(x), 10, 10, 1)
    np.testing.assert_array_equal(nine[4][:, 1:9, 1:9], x)
    np.testing.assert_array_equal(nine[0][:, :8, :8], x)
    np.testing.assert_allclose(nine.sum((0, 2, 3, 4)), 9 * x.sum((1, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(labels, np.tile(y, 9))

    model, params, loss = found["frozen"], found["params"], found["loss"]

    def total(x):
        return loss.apply((), (model.apply(params, x), y[:3])).sum()

    # No digits, where blank pixels are equal: at such ties max_pool has no derivative.
    noise = np.random.default_rng(0).uniform(size=(3, 10, 10, 1)).astype("float32")
    ours = found["saliency"](model, params, noise, y[:3])
    np.testing.assert_allclose(ours, jax.grad(total)(noise), rtol=1e-4, atol=1e-6)
    assert _is_picture(Path("runs/image_classification.png"))
    assert _gap_to_jax_grad(printed) < 1e-3


# ------------------------------------------------------------------ why_nonlinear


def test_why_nonlinear(run):
    found, printed = run("why_nonlinear")
    assert found["accuracies"]["identity"] < 0.75
    assert found["accuracies"]["tanh"] > 0.98
    assert np.abs(found["deep"] - found["flat"]).max() < 1e-5 * np.abs(found["deep"]).max()
    assert f"{found['accuracies']['tanh']:.1%}" in printed
    assert _is_picture(Path("runs/why_nonlinear.png"))


# ---------------------------------------------------------- why_stored_activations


def test_why_stored_activations(run):
    found, printed = run("why_stored_activations")
    memory, seconds = found["memory"], found["seconds"]
    ways = set(found["ways"])
    assert ways == {"stored", "blocks", "from x", "perturb"}
    for name in ways - {"stored", "perturb"}:
        assert found["gaps"][16, name] < 1e-13
    assert 0 < found["gaps"][16, "perturb"] < 1e-4
    # Memory is decided when compiling, so it can be asserted; of the times only the one that is
    # far apart can.
    grown = {name: memory[16, name] / memory[4, name] for name in ways}
    assert grown["from x"] < 1.1 < grown["blocks"] < grown["stored"]
    assert memory[16, "from x"] < memory[16, "blocks"] < memory[16, "stored"]
    assert seconds[16, "perturb"] > 10 * seconds[16, "stored"]
    assert len([line for line in printed.splitlines() if line.split()[0] in ("4", "16")]) == 8
    assert _is_picture(Path("runs/why_stored_activations.png"))
