"""Reports: as text, as JSON, as a page; what the guide shows; rules along training; patterns.

python -m tests.test_reports      writes the reports and the table of docs/wrong_gradient.md anew
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcprop as fp
from funcprop import Finding, Report, check_model, check_rule, compare
from funcprop.checking import MISTAKES, Diverged, replay, watch, write_html
from funcprop.checking.diagnosis.patterns import pattern
from tests.test_docs import run

KEY = jax.random.key(0)
SLOW = pytest.mark.slow

# ---------------------------------------------------------------- what the guide shows

PAGE = Path(__file__).parents[1] / "docs" / "wrong_gradient.md"
ROW = re.compile(r"^\| `([^`]+)` \| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])-?(?:\d+(?:\.\d+)?(?:e-?\d+)?|inf|nan)(?![\w.])")


def shown_and_printed(page):
    """The reports that a page shows, (start, end) of each, with what its code prints; what failed.

    A block of text shows the report that the blocks before it have made anew.
    """
    found, last = [], None

    def shown(span, names):
        nonlocal last
        if names.get("report") is not last:
            last = names["report"]
            found.append((span, last.text()))

    failed = run(PAGE.name, page, shown)
    return found, failed


def unmeasured(text):
    """A report without its measurements; the lines of the forward pass keep their numbers."""
    kept = []
    for line in text.strip().splitlines():
        words = " ".join(line.split())
        kept.append(words if words.startswith("forward pass") else NUMBER.sub("#", words))
    return kept


@pytest.mark.parametrize(
    ("end", "reports"),
    [
        ("## The derivative at the wrong place", 2),
        pytest.param("", 5, marks=SLOW),
    ],
    ids=["its beginning", "all of it"],
)
def test_the_guide_runs_and_shows_what_is_printed(end, reports):
    page = PAGE.read_text(encoding="utf-8")
    found, failed = shown_and_printed(page[: page.index(end) or None])
    assert not failed, failed
    assert len(found) == reports
    for (start, end), printed in found:
        assert unmeasured(page[start:end]) == unmeasured(printed)


def test_the_guide_names_every_mistake():
    page = PAGE.read_text(encoding="utf-8")
    rows = ROW.findall(page[page.index("## What the mistakes' names mean") :])
    assert {name: advice for name, _, advice in rows} == MISTAKES
    assert all(seen.strip() for _, seen, _ in rows)


def _rewritten(page):
    for (start, end), printed in reversed(shown_and_printed(page)[0]):
        page = f"{page[:start]}{printed}\n{page[end:]}"
    head, title, rest = page.partition("## What the mistakes' names mean")
    advice = {row[1]: MISTAKES.get(row[1], row[3]) for row in ROW.finditer(rest)}
    return head + title + ROW.sub(lambda row: f"| `{row[1]}` | {row[2]} | {advice[row[1]]} |", rest)


# ------------------------------------------------------------------------------ as text

LONG = "a_rather_long_name_of_a_block"
ONES = {LONG: {LONG: [{"w": np.ones((3, 4), np.float32)}]}}
TURNED = jax.tree.map(np.negative, ONES)


def leaf(value, size=3):
    return {"a": np.full(size, value)}


def a_finding(**changes):
    fields = {
        "kind": "not deterministic",
        "leaves": tuple(f"layers[{i}] dense ['w']" for i in range(20)),
        "statement": "many words " * 40,
        "advice": "much advice " * 40,
        "line": "file.py:12: " + "f(x) + " * 30,
    }
    return Finding(**(fields | changes))


def reports():
    """A report of each kind, the longest that it gets."""
    long = compare(TURNED, ONES)
    yield "long leaf", long
    yield "right", compare(ONES, ONES)
    yield "long names", compare(TURNED, ONES, names=("the one side " * 2, "the other side " * 2))
    yield (
        "long shape",
        compare({"a": np.ones((1024, 1, 1, 1, 16, 3))}, {"a": np.zeros((1024, 1, 1, 1, 16, 3))}),
    )
    yield "structure", compare(ONES, {"b": np.ones(2, np.float32)})
    yield "shape", compare(leaf(1.0, 3), leaf(1.0, 4))
    yield "dtype", compare(leaf(np.float32(1)), leaf(1.0))
    yield "huge", compare(leaf(-1e30), leaf(1e-30))
    yield "nan", compare(leaf(np.nan), leaf(1e-30))
    yield "inf", compare(leaf(1.0), leaf(np.inf))
    yield "scalar", compare(np.float32(2), np.float32(1))
    findings = (a_finding(), a_finding(kind="sign", line="", statement="y" * 70))
    yield "findings", long._replace(findings=findings, problems=("a problem " * 30,))
    yield "notes", compare(ONES, ONES)._replace(notes=("worth knowing " * 30,))
    named = long._replace(title="layers[2].layers[1].repeat.residual.layers[1][3] dense")
    yield "parts", Report("gradient", ("a", "b"), long.leaves, (), parts=(named, named))
    yield "empty", fp.Report("empty", ("a", "b"), (), ())


REPORTS = dict(reports())


@pytest.mark.parametrize("name", REPORTS)
def test_text_is_narrow(name):
    text = REPORTS[name].text()
    assert text == str(REPORTS[name])
    assert max(map(len, text.splitlines())) <= 100
    assert text.splitlines()[0].endswith(("ok", "FAILED"))


def test_text_says_what_was_found():
    report = REPORTS["findings"]
    text = " ".join(report.text().split())
    for due in (*report.problems, *(part for f in report.findings for part in f[2:4])):
        assert " ".join(due.split()) in text
    assert f"forward pass: {' '.join(report.findings[0].line.split())}" in text
    assert "note: worth knowing" in REPORTS["notes"].text()
    assert REPORTS["notes"].ok


def test_parts_are_listed_and_those_that_fail_are_shown():
    right, wrong = (
        REPORTS["right"]._replace(title="one"),
        REPORTS["long leaf"]._replace(title="two"),
    )
    report = Report("gradient", ("a", "b"), (), (), parts=(right, wrong))
    lines = report.text().splitlines()
    assert lines[:3] == ["gradient: a against b: FAILED", "  one: ok", "  two: FAILED"]
    assert "two: manual against automatic: FAILED" in lines
    assert "one: manual against automatic: ok" not in lines
    assert report.wrong == (f"two ['{LONG}']['{LONG}'][0]['w']",)
    assert Report("gradient", ("a", "b"), (), (), parts=(right,)).ok


def test_colour_only_where_it_is_asked_for():
    for report in REPORTS.values():
        assert "\033" not in report.text()
        coloured = report.text(colour=True)
        assert re.sub(r"\033\[\d+m", "", coloured) == report.text()
        assert coloured.count("\033[31mFAILED\033[0m") == report.text().count("FAILED")
    assert REPORTS["right"].text(colour=True).count("\033[32mok\033[0m") == 3


# ------------------------------------------------------------------------- as plain data


@pytest.mark.parametrize("name", REPORTS)
def test_to_dict_survives_json(name):
    report = REPORTS[name]
    plain = report.to_dict()
    again = json.loads(json.dumps(plain, allow_nan=False))
    assert again == plain
    assert again["ok"] is report.ok
    assert [row["path"] for row in again["leaves"]] == [row.path for row in report.leaves]
    assert [found["kind"] for found in again["findings"]] == [f.kind for f in report.findings]
    assert [part["title"] for part in again["parts"]] == [part.title for part in report.parts]


def test_to_dict_writes_what_json_has_no_number_for():
    (row,) = REPORTS["nan"].to_dict()["leaves"]
    assert (row["l2_eps"], row["worst"][0], row["non_finite"]) == ("inf", "nan", [3, 0])
    (row,) = compare(leaf(1.0), leaf(0.0)).to_dict()["leaves"]
    assert (row["norm_ratio"], row["angle"]) == ("inf", "nan")


def test_assert_ok_says_the_report():
    assert REPORTS["right"].assert_ok() is None
    with pytest.raises(AssertionError) as caught:
        REPORTS["findings"].assert_ok()
    assert str(caught.value) == REPORTS["findings"].text()


# ------------------------------------------------------------------------------- as a page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SEEN = """<script>
window.addEventListener("load", () => {
  const widths = Array.from(document.images, (image) => image.naturalWidth);
  document.body.dataset.seen = JSON.stringify(widths);
});
</script>"""


DRAWN = ("findings", "structure", "nan")  # each page takes a second


@pytest.mark.parametrize(
    "names",
    [DRAWN, pytest.param(set(REPORTS) - set(DRAWN), marks=SLOW)],
    ids=["some", "the rest"],
)
def test_page_needs_nothing_else(tmp_path, names):
    pytest.importorskip("matplotlib")
    for name in names:
        report = REPORTS[name]
        page = write_html(report, tmp_path / "report.html").read_text(encoding="utf-8")
        sources = re.findall(r"(?:src|href|action)\s*=\s*[\"']?([^\"'\s>]*)", page)
        assert all(source.startswith("data:image/png;base64,") for source in sources), name
        outside = re.sub(r"data:image/png;base64,[^\"]*", "", page)
        assert not re.search(r"https?:|url\(|@import|<script|<link|<iframe", outside), name
        assert ("FAILED" in outside) is not report.ok, name
        assert page.count("<img") == len(sources) > 0 or not report.pairs


def test_page_escapes_what_it_is_told(tmp_path):
    pytest.importorskip("matplotlib")
    nasty = "<script>alert('&')</script>"
    report = compare(leaf(1.0), leaf(2.0), title=nasty, names=(nasty, nasty))
    found = a_finding(statement=nasty, advice=nasty, line=nasty)
    report = report._replace(findings=(found,), problems=(nasty,), notes=(nasty,))
    page = write_html(report, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 8


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_page_is_seen_in_a_browser(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib import image

    wrong = REPORTS["long leaf"]._replace(title="layers[1] dense")
    report = wrong._replace(title="gradient", parts=(REPORTS["right"], wrong))
    path = write_html(report, tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    watched = tmp_path / "watched.html"
    watched.write_text(page.replace("</body>", f"{SEEN}</body>"), encoding="utf-8")

    def browse(*words):
        flags = [*QUIET, f"--user-data-dir={tmp_path / 'profile'}", *words]
        command = [CHROMIUM, *flags]
        return subprocess.run(command, capture_output=True, timeout=120, check=True).stdout

    dom = browse("--dump-dom", "--virtual-time-budget=10000", watched.as_uri()).decode("utf-8")
    (seen,) = re.findall(r'data-seen="([^"]*)"', dom)
    widths = json.loads(seen.replace("&quot;", '"'))
    assert len(widths) == page.count("<img") >= 5
    assert min(widths) > 300
    assert '<h1>gradient: <span class="failed">FAILED</span></h1>' in dom
    picture = tmp_path / "seen.png"
    browse(f"--screenshot={picture}", "--window-size=1000,1600", path.as_uri())
    pixels = image.imread(picture)[..., :3]
    assert pixels.shape[:2] == (1600, 1000)
    assert 0.01 < np.mean(pixels.min(-1) < 0.9) < 0.9  # neither blank nor one colour
    assert pixels.std() > 0.05


# ------------------------------------------------------------------- rules along training

MODEL = fp.mlp((4, 5, 3))
LOSS = fp.softmax_cross_entropy()
PARAMS, _ = MODEL.init(KEY, (4,))
X = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
Y = np.arange(12) % 3
RIGHT = fp.backpropagation(MODEL, LOSS)


class Counted(NamedTuple):
    count: jax.Array
    inner: Any


def from_step(n, rule=RIGHT, change=lambda g: -g):
    """The rule, whose estimate is changed from step n on."""

    def init(key, params):
        return Counted(jnp.zeros((), jnp.int32), rule.init(key, params))

    def estimate(params, state, x, y, key):
        value, grads, inner = rule.estimate(params, state.inner, x, y, key)
        late = state.count >= n
        grads = jax.tree.map(lambda g: jnp.where(late, change(g), g), grads)
        return value, grads, Counted(state.count + 1, inner)

    return fp.Rule(init, estimate, rule.predict)


def train(rule, callback, steps=6, every=1):
    return fp.fit(
        rule, optax.sgd(0.1), PARAMS, (X, Y), key=KEY, steps=steps, every=every, callback=callback
    )


def same_rows(one, other):
    return one.leaves == other.leaves and one.wholes == other.wholes


def test_check_rule(no_cause):
    given = (MODEL, LOSS, PARAMS, X, Y)
    report = check_rule(RIGHT, *given)
    report.assert_ok()
    assert [row.path for row in report.leaves] == [
        "[0]['b']", "[0]['w']", "[1]['b']", "[1]['w']"
    ]  # fmt: skip
    assert report.names == ("rule", "jax.grad")
    alignment = fp.feedback_alignment(MODEL, LOSS)
    symmetric = jax.tree.map(
        lambda b, w: None if b is None else w,
        alignment.init(KEY, PARAMS), PARAMS, is_leaf=lambda leaf: leaf is None,
    )  # fmt: skip
    check_rule(alignment, *given, state=symmetric).assert_ok()
    assert check_rule(alignment, *given).wrong == ("[0]['b']", "[0]['w']")


@pytest.mark.parametrize(
    ("change", "kind", "factor"),
    [
        (lambda g: 3 * g, "factor", 3.0),
        (lambda g: -g, "sign", -1.0),
        (jnp.zeros_like, "stopped", 0),
    ],
    ids=["factor", "sign", "stopped"],
)
def test_check_rule_names_what_is_wrong(change, kind, factor):
    report = check_rule(from_step(0, change=change), MODEL, LOSS, PARAMS, X, Y)
    (found,) = report.findings
    assert found.kind == kind
    assert found.factor == pytest.approx(factor)
    assert found.leaves == report.wrong
    assert len(found.leaves) == 4


def test_check_rule_does_not_pass_nan_or_another_structure(no_cause):
    report = check_rule(from_step(0, change=lambda g: g * jnp.nan), MODEL, LOSS, PARAMS, X, Y)
    assert not report.ok
    assert "not finite" in report.text()
    halved = RIGHT._replace(estimate=lambda *a: (0.0, RIGHT.estimate(*a)[1][:1], ()))
    report = check_rule(halved, MODEL, LOSS, PARAMS, X, Y)
    assert {found.kind for found in report.findings} == {"structure"}


def test_watch_lets_a_right_rule_train():
    calls = []
    callback = watch(RIGHT, MODEL, LOSS, (X, Y), batch_size=5)
    state, _ = train(RIGHT, lambda *given: (calls.append(1), callback(*given)), steps=4, every=2)
    assert int(state.step) == 4
    assert len(calls) == 2


def test_watch_stops_where_a_rule_goes_wrong(tmp_path):
    file = tmp_path / "diverged.npz"
    rule = from_step(3)
    with pytest.raises(Diverged, match=r"rule at step 3: .*FAILED") as caught:
        train(rule, watch(rule, MODEL, LOSS, (X, Y), batch_size=5, save=file))
    error = caught.value
    assert int(error.state.step) == 3
    assert len(error.batch[0]) == len(error.batch[1]) == 5
    assert error.path == file
    assert f"saved in {file}" in str(error)
    assert error.report.findings[0].kind == "sign"
    again = replay(file, rule, MODEL, LOSS)
    assert not again.ok
    assert same_rows(again, error.report)
    assert again.findings == error.report.findings
    replay(file, from_step(9), MODEL, LOSS).assert_ok()


def test_watch_without_a_file_saves_nothing(tmp_path, monkeypatch, no_cause):
    monkeypatch.chdir(tmp_path)
    rule = from_step(1)
    with pytest.raises(Diverged) as caught:
        train(rule, watch(rule, MODEL, LOSS, (X, Y)))
    assert caught.value.path is None
    assert "saved in" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_state_of_a_rule_is_replayed(tmp_path, no_cause):
    """Kolen-Pollack's NamedTuple with an optimiser's states inside, and ``None`` for biases."""
    optimizer = optax.chain(optax.add_decayed_weights(1e-3), optax.adam(1e-2))
    rule = fp.kolen_pollack(MODEL, LOSS, optimizer)  # B is not W: it is no gradient
    file = tmp_path / "diverged.npz"
    state, _ = train(rule, None, steps=3)
    with pytest.raises(Diverged) as caught:
        watch(rule, MODEL, LOSS, (X, Y), batch_size=12, save=file)(state, {})
    again = replay(file, rule, MODEL, LOSS)
    assert same_rows(again, caught.value.report)
    assert again.wrong == ("[0]['b']", "[0]['w']")
    fresh = check_rule(rule, MODEL, LOSS, state.params, *caught.value.batch)
    assert not same_rows(fresh, again)  # so the state is the one that was saved


# --------------------------------------------------------------------- a fault's place


def changed(layer, delta_x=lambda d: d, grads=lambda g: g):
    def backward(weights, residuals, delta, statistic=fp.gradient):
        dx, tree = layer.backward(weights, residuals, delta, statistic)
        return jax.tree.map(delta_x, dx), jax.tree.map(grads, tree)

    return layer._replace(backward=backward)


def forgetful(layer):
    """A residual block that loses the delta of its shortcut."""
    right = fp.residual(layer)

    def backward(weights, residuals, delta, statistic=fp.gradient):
        dx, tree = right.backward(weights, residuals, delta, statistic)
        return dx - delta, tree

    return right._replace(backward=backward, rebuild=lambda parts: forgetful(*parts))


def stale(layer):
    """The same with its ``backward`` alone replaced: made anew it is right."""
    return forgetful(layer)._replace(rebuild=fp.residual(layer).rebuild)


GOOD, HEAD = fp.dense(4, fp.sigmoid), fp.dense(3)
BAD = changed(fp.dense(4, fp.tanh), lambda d: -d)
PLACES = {
    "several at once": (
        fp.serial(
            fp.serial(GOOD, changed(GOOD, grads=lambda g: -g)),
            fp.residual(BAD),
            fp.fork(2),
            fp.parallel(GOOD, BAD),
            fp.concatenate,
            HEAD,
        ),
        changed(LOSS, lambda d: 2 * d),
        [
            "layers[0].layers[1] dense",
            "layers[1].residual dense",
            "layers[3].layers[1] dense",
            f"loss {LOSS.name}",
        ],
    ),
    "in a repeat, and in a combinator": (
        fp.serial(GOOD, fp.repeat(BAD, 2), forgetful(GOOD), HEAD),
        LOSS,
        [
            "layers[1].repeat[0] dense",
            "layers[1].repeat[1] dense",
            "layers[2] residual, between its parts",
        ],
    ),
    "in a combinator whose rebuild is right": (
        fp.serial(fp.residual(fp.serial(GOOD, stale(GOOD))), fp.repeat(stale(GOOD), 2), HEAD),
        LOSS,
        [
            "layers[0].residual.layers[1] residual",
            "layers[1].repeat[0] residual",
            "layers[1].repeat[1] residual",
        ],
    ),
    "behind one that stops": (
        fp.serial(BAD, changed(GOOD, lambda d: 0 * d), HEAD),
        LOSS,
        ["layers[0] dense", "layers[1] dense"],
    ),
}


FEW = ("several at once", "behind one that stops")


@pytest.mark.parametrize("name", [n if n in FEW else pytest.param(n, marks=SLOW) for n in PLACES])
def test_check_model_places_a_fault_and_blames_nobody_else(name):
    model, loss, due = PLACES[name]
    params, _ = model.init(KEY, (4,))
    report = check_model(model, params, X, Y, loss)
    assert not report.ok
    assert sorted(part.title for part in report.parts if not part.ok) == sorted(due)
    assert len(report.findings) == len(due)
    failed = [part.title for part in report.parts if not part.ok]
    for found, place in zip(report.findings, failed, strict=True):
        assert found.statement.startswith(f"{place}: ")
        assert all(path.startswith(f"{place} [") for path in found.leaves)


def test_check_model_takes_a_healthy_model_apart_when_asked():
    model = fp.serial(GOOD, fp.repeat(fp.residual(GOOD), 2), HEAD)
    params, _ = model.init(KEY, (4,))
    report = check_model(model, params, X, Y, LOSS, parts=True)
    report.assert_ok()
    assert len(report.parts) == 9
    wrong = fp.serial(BAD, GOOD, HEAD)  # whose gradient is right: nothing is behind BAD
    assert not check_model(wrong, params=wrong.init(KEY, (4,))[0], x=X, y=Y, loss=LOSS).parts


# ------------------------------------------------------------------------------- patterns


def mask(shape, *index):
    wrong = np.zeros(shape, bool)
    wrong[index] = True
    return wrong


BORDER = mask((2, 4, 4, 3), ...)
BORDER[:, 1:-1, 1:-1] = False


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.zeros((3, 4), bool), ""),
        (mask((3, 4), ...), "every entry"),
        (mask((), ...), ""),
        (mask((3, 4), 0), "index 0, the first, of axis 0, all of it"),
        (mask((3, 4), 2), "index 2, the last, of axis 0, all of it"),
        (mask((3, 4), 1), "index 1 of axis 0, all of it"),
        (mask((4, 5), slice(None), 2), "index 2 of axis 1, all of it"),
        (mask(6, slice(2, 5)), "indices 2 to 4 of axis 0"),
        (mask(9, slice(1, None, 3)), "every index 1 + 3 k of axis 0"),
        (mask(9, [0, 1, 5]), "indices 0, 1, 5 of axis 0"),
        (mask((4, 6), [0, 0], [1, 3]), "index 0, the first, of axis 0, 2 entries there"),
        (BORDER, "the border of the inner axes"),
        (mask((3, 3), [0, 1, 2, 0], [0, 2, 1, 1]), "4 of 9 entries"),
    ],
)
def test_patterns(wrong, words):
    assert pattern(wrong) == words


def test_pattern_of_entries_that_are_zero():
    values = np.arange(6.0).reshape(2, 3)
    values[1] = 0
    words = "3 entries that are 0: index 1 of axis 0, all of it"
    assert pattern(mask((2, 3), 1), values) == words
    assert pattern(mask((2, 3), 1), np.ones((2, 3))) == "index 1 of axis 0, all of it"


# ---------------------------------------------------------------------------- odd corners


@pytest.mark.parametrize("shape", [(4, 4), (2, 4, 4), (3, 5)])
def test_pattern_of_a_triangle(shape):
    upper = np.broadcast_to(np.triu(mask(shape[-2:], ...), 1), shape)
    assert pattern(upper) == "above the diagonal of the last two axes"
    lower = np.broadcast_to(np.tril(mask(shape[-2:], ...), -1), shape)
    assert pattern(lower) == "below the diagonal of the last two axes"


@pytest.mark.parametrize("size", [1e-200, 1e-300])
def test_gradients_whose_squares_vanish_are_compared(size):
    report = compare(leaf(3 * size), leaf(size))
    assert not report.ok
    assert [found.kind for found in report.findings] == ["factor"]


def test_a_single_array_has_a_name_where_its_shape_is_wrong():
    (problem,) = compare(np.ones(3), np.ones(4)).problems
    assert problem == "value has shape (3,) in manual, (4,) in automatic"


def test_a_file_without_its_ending_is_the_one_that_is_replayed(tmp_path, no_cause):
    rule = from_step(0)
    with pytest.raises(Diverged) as caught:
        train(rule, watch(rule, MODEL, LOSS, (X, Y), save=tmp_path / "diverged"))
    assert caught.value.path.exists()
    assert not replay(caught.value.path, rule, MODEL, LOSS).ok


def test_bfloat16_is_replayed(tmp_path, no_cause):
    params, x = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (PARAMS, jnp.asarray(X)))
    rule, file = from_step(0), tmp_path / "diverged.npz"
    state = fp.init_state(rule, optax.sgd(0.1), params, KEY)
    with pytest.raises(Diverged) as caught:
        watch(rule, MODEL, LOSS, (x, Y), save=file)(state, {})
    assert same_rows(replay(file, rule, MODEL, LOSS), caught.value.report)


def test_a_state_with_a_key_is_replayed(tmp_path, no_cause):
    def estimate(params, key, x, y, _):
        value, grads, _ = RIGHT.estimate(params, (), x, y, None)
        return value, jax.tree.map(lambda g: g * jax.random.normal(key), grads), key

    rule, file = fp.Rule(lambda key, params: key, estimate, MODEL.apply), tmp_path / "diverged.npz"
    state = fp.init_state(rule, optax.sgd(0.1), PARAMS, KEY)
    with pytest.raises(Diverged) as caught:
        watch(rule, MODEL, LOSS, (X, Y), save=file)(state, {})
    assert same_rows(replay(file, rule, MODEL, LOSS), caught.value.report)


if __name__ == "__main__":
    PAGE.write_text(_rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
