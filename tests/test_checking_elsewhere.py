"""Gradients in other people's code, checked: Pallas kernels, Equinox and Flax NNX modules."""

import contextlib
import functools
import io
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcprop import check_gradient

EXAMPLES = Path(__file__).parents[1] / "examples"


@functools.cache
def example(name):
    """An example's globals; it is run once."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        found = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert str(found["passed"]) in printed.getvalue()
    assert printed.getvalue().rstrip().endswith(str(found["failed"]))
    assert found["passed"].ok
    assert not found["failed"].ok
    return found


def by_differences(report):
    return [row for row in report.leaves if row.against == "central differences"]


def faulted_by_differences_alone(report):
    """jax.grad believes a custom_vjp, so that differences alone can find its fault."""
    assert {row.against for row in report.leaves if not row.ok} == {"central differences"}
    assert {row.against for row in report.leaves} == {"jax.grad", "central differences"}


def test_a_kernel():
    found = example("check_kernel")
    ours = jax.jit(found["softmax_with"](found["backward_kernel"]))(found["x"])
    z = np.exp(np.asarray(found["x"], np.float64))
    np.testing.assert_allclose(ours, z / z.sum(-1, keepdims=True), rtol=1e-6)
    (told,) = found["failed"].findings
    assert (told.kind, told.leaves) == ("missing term", ("value",))
    assert "reduce_sum" in told.statement
    assert told.line.startswith("check_kernel.py:")
    assert "e / jnp.sum(e" in told.line
    for report in (found["passed"], found["failed"]):
        assert len(by_differences(report)) == 1
    # Judged by its own forward pass.
    assert found["alone"].ok
    given = found["x"], found["weights"]
    report = check_gradient(found["wrong"], jax.grad(found["wrong"]), *given)
    faulted_by_differences_alone(report)
    assert {row.against for row in report.leaves if row.ok} == {"jax.grad"}


@pytest.mark.slow
def test_a_kernel_with_another_fault():
    found = example("check_kernel")

    def turned(y, dy, dx):
        found["backward_kernel"](y, dy, dx)
        dx[...] = -dx[...]

    wrong = found["loss_with"](found["softmax_with"](turned))
    report = check_gradient(found["plain"], jax.grad(wrong), found["x"], found["weights"])
    assert [told.kind for told in report.findings] == ["sign"]


def agree(grads, due):
    for ours, theirs in zip(*map(jax.tree.leaves, (grads, due)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_equinox():
    eqx = pytest.importorskip("equinox")
    found = example("check_equinox")
    paths = {row.path for row in found["passed"].leaves}
    assert paths == {".first.weight", ".first.bias", ".last.weight", ".last.bias"}
    assert set(found["failed"].wrong) == {".first.weight", ".first.bias"}
    (told,) = found["failed"].findings
    assert told.kind == "missing term"
    assert set(told.leaves) == {".first.weight", ".first.bias"}
    assert told.line.startswith("check_equinox.py:")
    assert "jnp.mean(x**2)" in told.line
    # By filter_grad.
    module = found["Network"](found["norm_with"](found["backward"]), jax.random.key(0))
    x, y = found["x"], found["y"]
    value = eqx.filter_jit(eqx.filter_grad(lambda m: jnp.mean((jax.vmap(m)(x) - y) ** 2)))
    agree(value(module), jax.jit(jax.grad(found["right"]))(found["arrays"], x, y))


@pytest.mark.slow
def test_equinox_by_differences_alone():
    pytest.importorskip("equinox")
    found = example("check_equinox")
    given = found["arrays"], found["x"], found["y"]
    report = check_gradient(found["wrong"], jax.grad(found["wrong"]), *given)
    faulted_by_differences_alone(report)


def test_nnx():
    nnx = pytest.importorskip("flax.nnx")
    found = example("check_nnx")
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
    value = nnx.jit(nnx.grad(lambda m: jnp.mean((m(x) - y) ** 2)))
    agree(value(module), jax.jit(jax.grad(found["right"]))(found["params"], x, y))
