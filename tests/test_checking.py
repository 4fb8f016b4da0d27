"""The checks themselves: they find what is wrong, and accuse no innocent."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcprop as fp
from funcprop import check_gradient, check_layer, compare
from funcprop.checking import central_differences, complex_step

A = {"w": np.array([[1.0, -2.0], [3.0, 4.0]], np.float32), "b": np.array([1.0, 2.0], np.float32)}


def changed(**leaves):
    return A | {k: np.asarray(v, np.float32) for k, v in leaves.items()}


def test_equal_trees_differ_by_nothing():
    report = compare(A, A)
    assert report.ok
    assert report.worst_leaf == report.worst_whole == 0
    assert [leaf.path for leaf in report.leaves] == ["['b']", "['w']"]
    assert all(leaf.cosine == pytest.approx(1) and leaf.angle == 0 for leaf in report.leaves)


def test_what_a_row_says():
    b = changed(w=A["w"] * np.float32(1.5))
    b["w"][1, 0] = 0
    report = compare(b, A, names=("mine", "theirs"))
    row = next(leaf for leaf in report.leaves if leaf.path == "['w']")
    eps = np.finfo(np.float32).eps
    assert row.max_eps == pytest.approx(3 / 4 / eps)
    assert row.l2_eps == pytest.approx(
        np.linalg.norm(b["w"] - A["w"]) / np.linalg.norm(A["w"]) / eps
    )
    assert row.worst_index == (1, 0)
    assert row.worst == (0.0, 3.0)
    assert row.norm_ratio == pytest.approx(np.linalg.norm(b["w"]) / np.linalg.norm(A["w"]))
    cosine = np.sum(b["w"] * A["w"]) / np.linalg.norm(A["w"]) / np.linalg.norm(b["w"])
    assert row.cosine == pytest.approx(cosine)
    assert row.angle == pytest.approx(np.degrees(np.arccos(cosine)))
    assert (row.shape, row.dtype, row.against) == ((2, 2), "float32", "theirs")
    assert not row.ok
    text = str(report)
    assert "FAILED" in text
    assert "worst at [1, 0] mine 0, theirs 3" in text
    assert max(map(len, text.splitlines())) <= 100


def test_small_angles_do_not_cancel():
    turned = changed(b=[1.0, 2.0 + 1e-5])
    row = next(leaf for leaf in compare(turned, A).leaves if leaf.path == "['b']")
    exact = np.degrees(np.arctan2(turned["b"][1].astype(float), 1) - np.arctan2(2, 1))
    assert row.angle == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize(
    ("manual", "problem"),
    [
        ({"w": A["w"]}, "is in automatic only"),
        (A | {"c": A["b"]}, "is in manual only"),
        (A | {"b": A["b"][:1]}, r"\['b'\] has shape \(1,\) in manual, \(2,\) in automatic"),
        (A | {"b": A["b"].astype(np.float16)}, r"\['b'\] is float16 in manual, float32"),
        ((A["b"], A["w"]), "has the structure"),
        (changed(b=[np.nan, 2]), "not finite: 1, 0"),
        (changed(b=[np.inf, 2]), "not finite: 1, 0"),
        (changed(b=A["b"] * (1 + 1e-4)), "FAILED"),
        (changed(w=A["w"].T), "FAILED"),
        (changed(b=[0, 0]), "FAILED"),
    ],
)
def test_what_fails(manual, problem):
    report = compare(manual, A)
    assert not report.ok
    with pytest.raises(AssertionError, match=problem):
        report.assert_ok()


def test_nan_on_both_sides_fails():
    assert not compare(changed(b=[np.nan, 1]), changed(b=[np.nan, 1])).ok


def test_zeros_equal_zeros_and_nothing_else():
    zero = changed(b=[0, 0])
    assert compare(zero, zero).ok
    assert not compare(changed(b=[1e-30, 0]), zero).ok


def test_sixteen_bits_have_bounds_of_their_own():
    b = jnp.ones(8, jnp.bfloat16)
    off = b.at[0].add(b[0] * 2**-2)
    report = compare(off, b)
    assert report.leaves[0].bound == 16
    assert report.wholes[0].bound == 4
    assert not report.ok


def test_to_dict_is_plain():
    report = compare(changed(b=[1, 3]), A)
    again = json.loads(json.dumps(report.to_dict()))
    assert again["ok"] is False
    assert {leaf["path"] for leaf in again["leaves"]} == {"['b']", "['w']"}
    assert again["leaves"][0]["worst"] == [3.0, 2.0]


def test_functions_are_jitted_and_called():
    report = compare(lambda x: 2 * x, jax.grad(lambda x: jnp.sum(x * x)), jnp.arange(3.0))
    assert report.ok


def test_integers_among_the_leaves_must_be_equal():
    one = np.array([1.0], np.float32)
    assert compare((one, 100), (one, 100)).ok
    report = compare((one, 100), (one, 101))
    assert [leaf.ok for leaf in report.leaves] == [True, False]
    assert not report.ok
    # The whole is judged by the eps of its floats.
    assert [whole.ok for whole in compare((one, 3), (1.01 * one, 3)).wholes] == [False]


def test_argnums_may_be_of_numpy():
    f, x = (lambda a, x: a * jnp.sum(x**2)), jnp.array([1.0, 2.0])
    assert fp.check_gradient(f, lambda a, x: 2 * a * x, 3.0, x, argnums=np.int64(1)).ok


def test_plot_has_a_bar_a_leaf():
    plt = pytest.importorskip("matplotlib.pyplot")
    axes = compare(changed(b=[1, 3]), A).plot()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["['b']", "['w']"]
    assert len(axes.patches) == 2
    plt.close("all")


# ----------------------------------------------------------------------------- oracles


def test_oracles_know_derivatives(x64):
    draw = np.random.default_rng(0)
    point = {"a": jnp.asarray(draw.normal(size=(2, 3))), "b": jnp.asarray(draw.normal(size=2))}

    def f(p):
        return jnp.sum(jnp.sin(p["a"]) @ jnp.exp(p["a"].T)) + jnp.prod(p["b"]) ** 2

    due = jax.grad(f)(point)
    compare(complex_step(f, point), due).assert_ok()
    slopes, rejected = central_differences(f, point)
    for found, exact in zip(jax.tree.leaves(slopes), jax.tree.leaves(due), strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-7, atol=1e-8)
    assert not any(leaf.any() for leaf in jax.tree.leaves(rejected))


@pytest.mark.parametrize("offset", [0.0, 3e-6, -7e-6])
def test_kinks_are_rejected(offset, x64):
    point = jnp.array([offset, 1.0, -1.0])
    slopes, rejected = central_differences(lambda v: jnp.sum(jnp.maximum(v, 0) * 3), point)
    np.testing.assert_array_equal(rejected, [True, False, False])
    np.testing.assert_allclose(slopes[1:], [3, 0], atol=1e-9)


# ------------------------------------------------------------------------ planted faults

DENSE = fp.dense(3, fp.tanh)


def broken(change_x=lambda d: d, change_grads=lambda g: g, layer=DENSE):
    def backward(weights, residuals, delta, statistic=fp.gradient):
        delta_x, grads = layer.backward(weights, residuals, delta, statistic)
        return change_x(delta_x), change_grads(grads)

    return layer._replace(backward=backward)


def test_an_innocent_passes():
    for dtype in ("float64", "float32", "bfloat16", "float16"):
        check_layer(broken(), (4,), dtype=dtype).assert_ok()


FAULTS = {
    "sign": broken(lambda d: -d),
    "0.1 %": broken(lambda d: d * 1.001),
    "one element": broken(lambda d: d.at[0, 0].multiply(1.3)),
    "offset": broken(lambda d: d + 1e-3),
    "batch mean": broken(change_grads=lambda g: g | {"w": g["w"] / 3}),
    "rows reversed": broken(change_grads=lambda g: g | {"w": g["w"][::-1]}),
    "bias missing": broken(change_grads=lambda g: g | {"b": g["b"] * 0}),
    "nan": broken(change_grads=lambda g: g | {"b": g["b"] * jnp.nan}),
    "leaf missing": broken(change_grads=lambda g: {"w": g["w"]}),
    "dtype": broken(lambda d: d.astype(jnp.bfloat16)),
    "rounded to bfloat16": broken(lambda d: d.astype(jnp.bfloat16).astype(d.dtype)),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_a_layer_are_found(name, dtype):
    assert not check_layer(FAULTS[name], (4,), dtype=dtype, diagnose=False).ok


def test_a_transpose_and_a_wrong_derivative_are_found():
    square = fp.dense(4, fp.identity)
    transposed = square._replace(
        backward=lambda w, r, d, s=fp.gradient: square.backward(w | {"w": w["w"].T}, r, d, s)
    )
    assert check_layer(square, (4,)).ok
    assert not check_layer(transposed, (4,), diagnose=False).ok
    wrong = fp.elementwise(jnp.tanh, lambda z: 1 - z * z)
    assert not check_layer(wrong, (4,), diagnose=False).ok


def test_an_offset_is_called_not_linear():
    report = check_layer(FAULTS["offset"], (4,), diagnose=False)
    assert any("not linear in delta" in problem for problem in report.problems)


def test_central_differences_do_not_trust_the_forward_rule():
    """A forward pass with a wrong derivative rule of its own fools jax.vjp, not differences."""

    @jax.custom_jvp
    def f(z):
        return jnp.sin(z)

    f.defjvp(lambda primals, tangents: (jnp.sin(*primals), 1.1 * jnp.cos(*primals) * tangents[0]))
    fooled = fp.elementwise(f, lambda z: 1.1 * jnp.cos(z))
    assert check_layer(fooled, (4,)).ok
    report = check_layer(fooled, (4,), dtype="float64", diagnose=False)
    assert {row.against for row in report.leaves if not row.ok} == {"central differences"}


def test_check_gradient(no_cause):
    def f(params, x):
        return jnp.mean((jnp.tanh(x @ params["w"]) + params["b"]) ** 2)

    draw = np.random.default_rng(0)
    params = {"w": jnp.asarray(draw.normal(size=(4, 2))), "b": jnp.asarray(draw.normal(size=2))}
    x = jnp.asarray(draw.normal(size=(5, 4)))

    def by_hand(params, x, wrong=1.0):
        h = jnp.tanh(x @ params["w"])
        d = 2 * (h + params["b"]) / h.size
        return {"w": x.T @ (d * (1 - h * h)) * wrong, "b": d.sum(0)}

    report = check_gradient(f, by_hand, params, x)
    report.assert_ok()
    assert {row.against for row in report.leaves} == {"jax.grad", "central differences"}
    assert not check_gradient(f, lambda p, x: by_hand(p, x, 1.001), params, x).ok
    both = jax.grad(f, (0, 1))
    check_gradient(f, lambda p, x: both(p, x), params, x, argnums=(0, 1)).assert_ok()
    check_gradient(f, lambda p, x: both(p, x)[1], params, x, argnums=1).assert_ok()
    assert not check_gradient(f, lambda p, x: -both(p, x)[1], params, x, argnums=1).ok


def test_check_gradient_of_a_custom_vjp_function_does_not_trust_it(no_cause):
    @jax.custom_vjp
    def f(x):
        return jnp.sum(x**3)

    f.defvjp(lambda x: (f(x), x), lambda x, g: (g * 2 * x**2,))
    report = check_gradient(f, lambda x: 2 * x**2, jnp.array([1.0, 2.0]))
    assert not report.ok
    assert {row.against for row in report.leaves if not row.ok} == {"central differences"}


def test_check_model(no_cause):
    model = fp.serial(fp.dense(5, fp.gelu), fp.dense(3))
    params, _ = model.init(jax.random.key(0), (4,))
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(6, 4)).astype(np.float32), draw.integers(0, 3, 6)
    loss = fp.softmax_cross_entropy()
    report = fp.check_model(model, params, x, y, loss)
    report.assert_ok()
    assert [row.path for row in report.leaves] == [
        "[0]['b']", "[0]['w']", "[1]['b']", "[1]['w']"
    ]  # fmt: skip
    wrong = fp.serial(broken(lambda d: d, lambda g: g | {"b": -g["b"]}), fp.dense(3))
    params, _ = wrong.init(jax.random.key(0), (4,))
    report = fp.check_model(wrong, params, x, y, loss, parts=False)
    failed = [row.path for row in report.leaves if not row.ok]
    assert failed == ["[0]['b']"]


def test_a_wrong_layer_without_its_cause():
    def backward(weights, residuals, delta, statistic=fp.gradient):
        delta_x, grads = right.backward(weights, residuals, delta, statistic)
        return -delta_x, grads

    right = fp.dense(3, fp.tanh)
    wrong = right._replace(backward=backward)
    report = check_layer(wrong, (4,), diagnose=False)
    assert report.wrong == ("['x']",)
    assert not report.findings
    assert check_layer(wrong, (4,)).findings[0].kind == "sign"
