"""Gradients in other people's code, checked: Pallas kernels, Equinox and Flax NNX modules."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcprop import check_gradient

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name, capsys):
    """An example's globals, and what it printed."""
    found = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert str(found["passed"]) in printed
    assert printed.rstrip().endswith(str(found["failed"]))
    assert found["passed"].ok
    assert not found["failed"].ok
    return found


def by_differences(report):
    return [row for row in report.leaves if row.against == "central differences"]


def test_a_kernel(capsys):
    found = example("check_kernel", capsys)
    due = jax.nn.softmax(found["x"])
    ours = found["softmax_with"](found["backward_kernel"])(found["x"])
    np.testing.assert_allclose(ours, due, rtol=1e-6)
    (told,) = found["failed"].findings
    assert (told.kind, told.leaves) == ("missing term", ("value",))
    assert "reduce_sum" in told.statement
    assert told.line.startswith("check_kernel.py:")
    assert "e / jnp.sum(e" in told.line
    for report in (found["passed"], found["failed"]):
        assert len(by_differences(report)) == 1


def test_a_kernel_is_judged_by_its_own_forward_pass(capsys):
    """jax.grad believes a custom_vjp, so that differences alone can find its fault."""
    found = example("check_kernel", capsys)
    assert found["alone"].ok
    given = found["x"], found["weights"]
    report = check_gradient(found["wrong"], jax.grad(found["wrong"]), *given)
    assert {row.against for row in report.leaves if not row.ok} == {"central differences"}
    assert {row.against for row in report.leaves if row.ok} == {"jax.grad"}


def test_a_kernel_with_another_fault(capsys):
    found = example("check_kernel", capsys)

    def turned(y, dy, dx):
        found["backward_kernel"](y, dy, dx)
        dx[...] = -dx[...]

    wrong = found["loss_with"](found["softmax_with"](turned))
    report = check_gradient(found["plain"], jax.grad(wrong), found["x"], found["weights"])
    assert [told.kind for told in report.findings] == ["sign"]


def test_equinox(capsys):
    pytest.importorskip("equinox")
    found = example("check_equinox", capsys)
    paths = {row.path for row in found["passed"].leaves}
    assert paths == {".first.weight", ".first.bias", ".last.weight", ".last.bias"}
    assert set(found["failed"].wrong) == {".first.weight", ".first.bias"}
    (told,) = found["failed"].findings
    assert told.kind == "missing term"
    assert set(told.leaves) == {".first.weight", ".first.bias"}
    assert told.line.startswith("check_equinox.py:")
    assert "jnp.mean(x**2)" in told.line
    given = found["arrays"], found["x"], found["y"]
    alone = check_gradient(found["wrong"], jax.grad(found["wrong"]), *given)
    assert {row.against for row in alone.leaves if not row.ok} == {"central differences"}


def test_equinox_by_filter_grad(capsys):
    eqx = pytest.importorskip("equinox")
    found = example("check_equinox", capsys)
    module = found["Network"](found["norm_with"](found["backward"]), jax.random.key(0))
    x, y = found["x"], found["y"]
    grads = eqx.filter_grad(lambda m: jnp.mean((jax.vmap(m)(x) - y) ** 2))(module)
    due = jax.grad(found["right"])(found["arrays"], x, y)
    for ours, theirs in zip(*map(jax.tree.leaves, (grads, due)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_nnx(capsys):
    nnx = pytest.importorskip("flax.nnx")
    found = example("check_nnx", capsys)
    assert len(found["passed"].leaves) == 8
    wrong = found["failed"].wrong
    assert len(wrong) == 2
    assert all(path.startswith("['first']") for path in wrong)
    (told,) = found["failed"].findings
    assert told.kind == "missing term"
    assert set(told.leaves) == set(wrong)
    assert "operand 1 of mul" in told.statement  # the z of z σ(z)
    assert "z * jax.nn.sigmoid(z)" in told.line
    module = found["Network"](found["swish_with"](found["backward"]), nnx.Rngs(0))
    x, y = found["x"], found["y"]
    grads = nnx.grad(lambda m: jnp.mean((m(x) - y) ** 2))(module)
    due = jax.grad(found["right"])(found["params"], x, y)
    for ours, theirs in zip(*map(jax.tree.leaves, (grads, due)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
