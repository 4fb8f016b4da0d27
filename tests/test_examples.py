"""The examples run, and show what they say; first_steps does what PyTorch does.

By default two of them run whole; of the others what does not train is run, and each call of
funcprop is held against what funcprop has.
"""

import ast
import collections
import datetime
import importlib
import importlib.util
import inspect
import re
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
    "text_generation": ["--toy"],
    "translation": ["--toy", "--tasks", "dates"],
    "node_classification": ["--toy"],
    "differential_privacy": ["--toy"],
    "feedback_alignment": ["--toy"],
    "evolution": ["--toy"],
    "learning_rules": ["--toy"],
    "data_selection": ["--toy"],
    "curvature": ["--toy"],
    "batch_size": ["--toy"],
    "sequence_classification": ["--toy"],
    "image_classification": ["--toy", "--seeds", "0"],
    "why_nonlinear": ["--steps", "300"],
    "tree_logic": ["--toy"],
    "why_stored_activations": ["--depths", "4", "16", "--batch", "32", "--rounds", "3"],
    "check_kernel": [],  # these three run in test_checking_elsewhere.py
    "check_equinox": [],
    "check_nnx": [],
}


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """``run(name)``: the example's globals, and what it printed; with ``before`` those of its part
    in front of these words."""

    def run(name, before=None):
        path = EXAMPLES / f"{name}.py"
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [path.name, *SMALL_ARGUMENTS[name]])
        x64 = jax.config.jax_enable_x64
        try:
            if before is None:
                found = runpy.run_path(str(path), run_name="__main__")
            else:
                text, found = path.read_text(), {"__name__": "__main__"}
                exec(compile(text[: text.index(before)], path, "exec"), found)
        finally:
            jax.config.update("jax_enable_x64", x64)
        return found, capsys.readouterr().out

    return run


slow = pytest.mark.slow


def test_every_example_is_run_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SMALL_ARGUMENTS)


@pytest.mark.parametrize("name", [name for name, given in SMALL_ARGUMENTS.items() if given])
def test_it_takes_its_arguments(name, run, monkeypatch, capsys):
    """Its imports are there, and --help tells of all that it is given here."""
    told = [word for word in SMALL_ARGUMENTS[name] if word.startswith("--")]
    monkeypatch.setitem(SMALL_ARGUMENTS, name, ["--help"])
    with pytest.raises(SystemExit) as left:
        run(name)
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in told)


def wrong_calls(text):
    """What a program takes of funcprop that is not there, or calls with what it does not take."""
    program, known, wrong = ast.parse(text), {}, []
    for node in ast.walk(program):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "funcprop":
                    known[alias.asname or alias.name] = funcprop
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "funcprop":
            module = importlib.import_module(node.module)
            known |= {
                alias.asname or alias.name: getattr(module, alias.name) for alias in node.names
            }

    def meant(node):
        if isinstance(node, ast.Attribute):
            holder = meant(node.value)
            return None if holder is None else getattr(holder, node.attr)
        return known.get(node.id) if isinstance(node, ast.Name) else None

    for node in ast.walk(program):
        try:
            found = meant(node.func if isinstance(node, ast.Call) else node)
            if isinstance(node, ast.Call) and found is not None:
                words = [word.arg for word in node.keywords]
                if not any(isinstance(given, ast.Starred) for given in node.args) and all(words):
                    inspect.signature(found).bind(*node.args, **dict.fromkeys(words))
        except (AttributeError, TypeError) as error:
            wrong.append(f"line {node.lineno}: {error}")
    return wrong


def test_every_example_calls_what_there_is():
    for path in EXAMPLES.glob("*.py"):
        assert wrong_calls(path.read_text()) == [], path.name
    wrong = wrong_calls("import funcprop as fp\nfp.fit(1, 2, 3, 4, key=5, kye=6)\nfp.dens(3)")
    assert wrong[0] == "line 2: got an unexpected keyword argument 'kye'"
    assert wrong[1].startswith("line 3: ")


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


@pytest.mark.parametrize(
    ("dtype", "batch"),
    [
        ("float32", 8),
        ("float64", 1),
        pytest.param("float32", 1, marks=slow),
        pytest.param("float64", 8, marks=slow),
    ],
)
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


# ------------------------------------------------------------ node_classification


@slow
def test_node_classification(run):
    found, printed = run("node_classification")
    assert found["x"][0].shape == (1, 34, 34)
    assert found["x"][1].shape == (1, 2 * 78, 2)
    assert found["given"].sum() == 2
    assert len(found["right"]["GCN"]) == len(found["right"]["GAT"]) == 2
    assert min(found["right"]["GCN"]) >= 32
    assert np.mean(found["right"]["GAT"]) >= 31
    for losses in found["losses"].values():
        assert losses[-1] < 0.3 * losses[0]
    assert _is_picture(Path("runs/node_classification.png"))
    last = printed.splitlines()[-1]
    assert last.startswith("first 20 losses differ from those with jax.grad by at most ")
    assert float(last.split()[-1]) < 1e-5


@slow
def test_batch_size(run):
    found, printed = run("batch_size")
    assert len(found["measured"]) == 5
    assert all(found["scale"](whole) > 0 for _, (whole, _) in found["measured"])
    assert np.all(np.diff(found["gains"][-4:]) > 0)
    assert 0.2 < found["predicted"] / found["fitted"] < 5
    assert _is_picture(Path("runs/batch_size.png"))
    assert float(re.search(r"at most (\S+) of the largest", printed)[1]) < 1e-5


@slow
def test_curvature(run):
    found, printed = run("curvature")
    assert set(found["mean"]) == {"SGD", "Adam", "K-FAC"}
    assert found["mean"]["K-FAC"] < found["mean"]["Adam"] / 2
    assert all(losses[0][-1] < 0.5 for losses in found["curves"].values())
    for values in found["values"].values():
        assert values.shape == (10,)
        assert np.all(values[:-1] >= values[1:])
    assert _is_picture(Path("runs/curvature.png"))
    assert float(re.search(r"at most (\S+) of it", printed)[1]) < 1e-5


@slow
def test_data_selection(run):
    found, printed = run("data_selection")
    assert len(found["flips"]) == found["k"] == 134
    assert (found["y"] != found["truth"]).sum() == 134
    assert min(found["means"][name] for name in ("self-influence", "loss, summed")) > 0.8
    ((noisy, cleaned, _),) = found["accuracy"]
    assert cleaned > noisy > 0.8
    assert _is_picture(Path("runs/data_selection.png"))
    assert float(re.search(r"at most (\S+) of itself", printed)[1]) < 1e-4


def test_the_noise_of_differential_privacy_by_another_accountant(run):
    dp_accounting = pytest.importorskip("dp_accounting")
    found, _ = run("differential_privacy", before="def trained(")
    accountant = dp_accounting.rdp.RdpAccountant()
    step = dp_accounting.PoissonSampledDpEvent(0.25, dp_accounting.GaussianDpEvent(4.0))
    bound = accountant.compose(step, 40).get_epsilon(1 / found["N"])
    assert found["epsilon_of"](4.0) <= bound <= 1.3 * found["epsilon_of"](4.0)


@slow
def test_differential_privacy(run):
    pytest.importorskip("dp_accounting")
    found, printed = run("differential_privacy")
    assert list(found["accuracy"]) == [2.0, 16.0]
    assert found["epsilon_of"](found["sigma_for"](2.0)) <= 2.0
    assert np.mean(found["accuracy"][16.0]) > 0.5
    assert np.mean(found["without"]) > 0.9
    assert _is_picture(Path("runs/differential_privacy.png"))
    assert _gap_to_jax_grad(printed) < 1e-5


def _gap_to_jax_grad(printed):
    """The number of the last line that examples print."""
    words = printed.splitlines()[-1].rsplit(" ", 1)
    assert words[0] == "first 20 losses differ from those with jax.grad by at most"
    return float(words[1])


# ------------------------------------------------------------- feedback_alignment


def test_feedback_alignment(run):
    found, printed = run("feedback_alignment")
    assert found["smooth"].shape == (3, 551)
    assert found["smooth"][:, 275].mean() < 40 < 65 < found["smooth"][:, 0].mean() < 100
    error = {name: np.mean(curves, axis=0)[5] for name, curves in found["errors"].items()}
    assert error["feedback alignment"] < 0.4 < 0.9 < error["backprop"] < 1.01
    assert f"error after 500 examples, backprop           {error['backprop']:.3f}" in printed
    assert _is_picture(Path("runs/feedback_alignment.png"))
    assert _gap_to_jax_grad(printed) < 1e-6


# ----------------------------------------------------------------- learning_rules


@slow
def test_learning_rules(run):
    found, printed = run("learning_rules")
    results = found["results"]
    assert list(results) == ["backprop", "feedback alignment", "Z-IL", "forward-forward"]
    for curves, _, _, steps in results.values():
        assert curves.shape[0] == 1
        assert curves[0, -1] > 0.75
        assert steps == 22 * curves.shape[1]
    np.testing.assert_allclose(results["Z-IL"][0], results["backprop"][0], atol=0.01)
    assert results["backprop"][1].max() < 0.2
    assert results["Z-IL"][1].max() < 0.2
    assert 30 < results["feedback alignment"][1][-1] < results["feedback alignment"][1][0] < 90
    assert f"{results['backprop'][0][0, -1]:.2%} ± 0.00%" in printed
    assert _is_picture(Path("runs/learning_rules.png"))
    assert _gap_to_jax_grad(printed) < 1e-5


# ---------------------------------------------------------------------- evolution


def test_the_cart_and_its_pole(run):
    found, _ = run("evolution", before="rule = fp.evolution(")
    # Pushed to the right the cart speeds up, and the pole begins to turn to the left.
    state = np.array([0.0, 0.0, 0.1, 0.0], np.float32)
    place, speed, angle, turning = found["moved"](state, True)
    assert (place, angle) == (0, np.float32(0.1))
    assert speed > 0 > turning


@slow
def test_evolution(run):
    found, printed = run("evolution")
    (curve,) = found["curves"].values()
    assert curve.shape == (12,)
    assert curve.min() >= 8
    assert found["fresh"][0].shape == (20,)
    assert found["fresh"][0].mean() > 15
    assert f"20 fresh episodes: mean return {found['fresh'][0].mean():.1f}" in printed
    assert max(found["gaps"]) < 1e-6
    assert _is_picture(Path("runs/evolution.png"))
    assert printed.splitlines()[-1].startswith("steps in gymnasium differ by at most")


# ------------------------------------------------------------- image_classification


def test_images_are_shifted(run):
    found, _ = run("image_classification", before="def trained(")
    # Nine frames of each image: the fifth holds it in the middle, the first up and to the left.
    x, y = found["parts"](0)[0]
    moved, labels = found["shifted"](x, y)
    nine = moved.reshape(9, len(x), 10, 10, 1)
    np.testing.assert_array_equal(nine[4][:, 1:9, 1:9], x)
    np.testing.assert_array_equal(nine[0][:, :8, :8], x)
    np.testing.assert_allclose(nine.sum((0, 2, 3, 4)), 9 * x.sum((1, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(labels, np.tile(y, 9))


@slow
def test_image_classification(run):
    found, printed = run("image_classification")
    plain = found["losses"]["plain", 0]
    assert np.mean(plain[-5:]) < 0.6 * np.mean(plain[:5])
    assert found["accuracy"]["plain", 0] > 0.6
    assert len(found["wrong"]["plain", 0]) == round((1 - found["accuracy"]["plain", 0]) * 80)
    assert f"{found['accuracy']['shifted', 0]:.2%}" in printed

    _, y = found["parts"](0)[0]
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


@slow
def test_why_nonlinear(run):
    found, printed = run("why_nonlinear")
    assert found["accuracies"]["identity"] < 0.75
    assert found["accuracies"]["tanh"] > 0.98
    assert np.abs(found["deep"] - found["flat"]).max() < 1e-5 * np.abs(found["deep"]).max()
    assert f"{found['accuracies']['tanh']:.1%}" in printed
    assert _is_picture(Path("runs/why_nonlinear.png"))


# ---------------------------------------------------------- why_stored_activations


@slow
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


# ---------------------------------------------------------------- text_generation


def _apart_from_jax_grad(printed):
    last = printed.splitlines()[-1]
    found = re.fullmatch(r"first 20 losses differ from those with jax.grad by at most (\S+)", last)
    return float(found[1])


def _kneser_ney(ids, size, context, c):
    """The probability of c after a context of four, from dictionaries; as the equations stand."""
    grams = [tuple(ids[i : i + 5].tolist()) for i in range(len(ids) - 4)]
    for missing in range(1, 5):  # those that begin too late for five
        grams.append(tuple(ids[missing - 5 :].tolist()))
    p = 1 / size
    for k in range(1, 6):
        if k == 5:
            counts = collections.Counter(gram for gram in grams if len(gram) == 5)
        else:
            longer = {gram[: k + 1] for gram in grams if len(gram) > k}
            counts = collections.Counter(gram[1:] for gram in longer)
        once, twice = (sum(n == m for n in counts.values()) for m in (1, 2))
        discount = once / (once + 2 * twice)
        history = tuple(context[len(context) - k + 1 :])
        after = {gram[-1]: n for gram, n in counts.items() if gram[:-1] == history}
        if after:
            p = (max(after.get(c, 0) - discount, 0) + discount * len(after) * p) / sum(
                after.values()
            )
    return p


def test_the_5_gram_model(run):
    found, _ = run("text_generation", before="block = fp.transformer_block(")
    ids, cut, size = found["ids"], found["cut"], found["V"]
    # The 5-gram model is what its equations say, and its probabilities sum to 1 over the alphabet,
    # after contexts that it knows and after one that it does not.
    for context in (ids[:4], ids[cut - 4 : cut], ids[cut + 50 : cut + 54], np.array([0, 9, 0, 9])):
        after = [np.append(context, c) for c in range(size)]
        p = np.array([found["probabilities"](found["tables"], gram)[0] for gram in after])
        assert (p > 0).all()
        assert abs(p.sum() - 1) < 1e-12
        c = int(p.argmax())
        assert abs(p[c] - _kneser_ney(ids[:cut], size, context.tolist(), c)) < 1e-12


@slow
def test_text_generation(run):
    found, printed = run("text_generation")
    ids, cut, size = found["ids"], found["cut"], found["V"]
    # Both models are measured on each character of the last tenth once, in order.
    np.testing.assert_array_equal(
        found["places"][:, 1:][found["counted"]], np.arange(cut, len(ids))
    )
    assert found["our_bits"].shape == found["gram_bits"].shape == (len(ids) - cut,)
    assert f"{found['our_bits'].mean():.4f}" in printed
    assert f"{found['gram_bits'].mean():.4f}" in printed
    params, loss = found["state"].params, found["history"]["loss"]
    assert params["shared"]["w"].shape == (size, 32)
    assert params["model"][0] == params["model"][4] == ()
    assert np.mean(loss[-5:]) < loss[0] - 1
    assert found["our_bits"].mean() < np.log2(size)
    assert len(found["written"]) == 40
    assert _is_picture(Path("runs/text_generation.png"))
    assert _apart_from_jax_grad(printed) < 1e-4


# -------------------------------------------------------------------- translation


def test_the_languages_to_translate(run):
    found, _ = run("translation", before="def table(")
    cardinal, day = found["cardinal"], datetime.date
    assert cardinal(312_405) == "three hundred and twelve thousand four hundred and five"
    assert cardinal(312_405, " ") == "three hundred twelve thousand four hundred five"
    assert [cardinal(n) for n in (1, 90, 1000, 999_017)] == [
        "one",
        "ninety",
        "one thousand",
        "nine hundred and ninety-nine thousand and seventeen",
    ]
    assert [found["ordinal"](n) for n in (1, 9, 12, 20, 23, 30)] == (
        "first ninth twelfth twentieth twenty-third thirtieth".split()  # noqa: SIM905
    )
    assert [found["year_words"](n) for n in (1984, 1900, 1805, 2005, 2000, 2012)] == [
        "nineteen eighty-four",
        "nineteen hundred",
        "eighteen oh five",
        "two thousand and five",
        "two thousand",
        "twenty twelve",
    ]
    for language in ("numbers", "dates"):  # so that what is held out is learnt in no spelling
        pairs = found[language](np.random.default_rng(1))
        assert len({target for _, target in pairs}) == len({source for source, _ in pairs})
        assert len({target for _, target in pairs}) == len(pairs) > 20_000
    assert all(day.fromisoformat(target).year >= 1500 for _, target in pairs)


@slow
def test_translation(run):
    found, printed = run("translation")
    losses, *_, (words, _, sizes), _, (params, x) = found["results"]["dates"]
    given, source = x
    assert np.mean(losses[-5:]) < losses[0] - 0.5
    # Greedy decoding is a fixed point: given what it wrote, the model would write it again.
    written = found["translate"](params, x)
    before = jnp.pad(written, ((0, 0), (1, 0)))[:, : given.shape[1]]
    scores = found["model"].apply(params, (before, source))
    chosen = jnp.take_along_axis(scores, written[..., None], axis=-1)[..., 0]
    assert float(jnp.max(jnp.max(scores, axis=-1) - chosen)) < 1e-4
    # No error gets to what is no character of the source.
    assert sizes.shape == (given.shape[1], source[0].shape[1])
    assert (sizes[:, : len(words)] > 0).all()
    assert (sizes[:, len(words) :] == 0).all()
    assert _is_picture(Path("runs/translation.png"))
    assert _apart_from_jax_grad(printed) < 1e-4


# --------------------------------------------------------------------- tree_logic


def test_expressions_of_tree_logic(run):
    found, _ = run("tree_logic", before="tree = fp.serial(")
    ids, _, truth = found["tests"][10]
    assert ids.shape == truth.shape == (40, 64)
    assert truth[:, -1].mean() == 0.5
    expression = ("and", ("True",), ("not", ("xor", ("True",), ("False",))))
    assert found["flat"](expression) == (
        [2, 2, 1, 6, 3, 4],
        [[-1, -1], [-1, -1], [-1, -1], [1, 2], [3, -1], [0, 4]],
        [True, True, False, True, False, False],
    )


@slow
def test_tree_logic(run):
    found, printed = run("tree_logic")
    (losses,), (params,) = found["losses"].values(), found["final"].values()
    assert params[0][1]["gates"]["u"].shape == (48, 16)
    assert np.mean(losses[-10:]) < 0.1 * np.mean(losses[:10])
    assert found["deep"] > 0.9
    assert f"depth 5 to 10, mean of 1 seeds: {found['deep']:.2%}" in printed
    assert _is_picture(Path("runs/tree_logic.png"))
    assert float(printed.splitlines()[-1].split()[-1]) < 1e-6


# ------------------------------------------------------- sequence_classification


@slow
def test_sequence_classification(run):
    found, printed = run("sequence_classification")
    assert found["train"][0].shape == (1438, 8, 8)
    assert [len(curve) for curve in found["digit_curves"]] == [3]
    assert found["accuracies"][0] > 0.4
    x, (y, asked) = found["copy_test"]
    assert x.shape == y.shape == asked.shape == (500, 10)
    assert (x[:, :2] == y[:, -2:]).all()
    assert (x[:, 2:7] == 8).all()
    for name, curve in found["copy_curves"].items():
        assert len(curve) == 150
        assert np.mean(curve[-20:]) < 0.8 * found["baseline"] < 1.2 * np.mean(curve[:5])
        assert found["copy_accuracies"][name] > 2 / 8
    assert {norm.shape for norm in found["norms"].values()} == {(10,)}
    assert f"mean {np.mean(found['accuracies']):.2%}" in printed
    assert _is_picture(Path("runs/sequence_classification.png"))
    last = printed.splitlines()[-1]
    assert last.startswith("first 20 losses differ from those with jax.grad by at most ")
    assert float(last.split()[-1]) < 1e-5
