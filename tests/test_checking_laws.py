"""What statistics take from a layer, checked: rows of sites, root and sample of a loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcprop as fp
from funcprop.core.rows import dense


def with_rows(change):
    """A dense layer whose rows are changed; its gradient is the right one."""
    right = fp.dense(3)

    def backward(weights, residuals, delta, statistic=fp.gradient):
        def other(site, inputs, delta):
            def rows(inputs, delta):
                left, factor = site.rows(inputs, delta)
                return change(dense(left), factor)

            changed = fp.Site(site.name, site.gradient, rows)
            return statistic(changed, inputs, delta)

        return right.backward(weights, residuals, delta, other)

    return right._replace(backward=backward)


ROWS = {
    "twice": (lambda left, right: (2 * left, right), "factor"),
    "another example's": (lambda left, right: (left[::-1], right), "unknown"),
    "one token stopped": (lambda left, right: (left.at[:, 1].set(0), right), "unknown"),
    "sign": (lambda left, right: (-left, right), "sign"),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_are_not_those_of_the_gradient(name):
    change, kind = ROWS[name]
    report = fp.check_layer(with_rows(change), x=np.random.default_rng(0).normal(size=(4, 3, 5)))
    assert report.wrong == ("sites[0] dense, rows of the matrix",)
    assert report.findings[0].kind == kind
    assert "single examples" in report.text()


def test_rows_whose_bias_is_another():
    report = fp.check_layer(
        with_rows(lambda left, right: (left / 2, 2 * right)), (5,), diagnose=False
    )
    assert report.wrong == ("sites[0] dense, rows of the bias",)


def test_right_rows_are_compared_too():
    report = fp.check_layer(with_rows(lambda left, right: (left, right)), (5,))
    report.assert_ok()
    assert [d.path for d in report.leaves if d.path.startswith("sites")] == [
        "sites[0] dense, rows of the bias",
        "sites[0] dense, rows of the matrix",
    ]


LOSS = fp.softmax_cross_entropy()
PREDICTIONS = (np.random.default_rng(1).normal(size=(4, 5)), np.array([0, 3, 4, 1]))


@pytest.mark.parametrize("factor", [2.0, 0.9, 0.0])
def test_a_root_that_is_not_the_hessian_s(factor):
    loss = LOSS._replace(root=lambda residuals: factor * LOSS.root(residuals))
    report = fp.check_layer(loss, x=PREDICTIONS)
    assert report.wrong == ("root, squared",)
    assert report.findings[0].kind == ("factor" if factor else "stopped")


@pytest.mark.parametrize("factor", [2**0.5, 2.0, 0.5])
def test_a_sample_that_is_not_the_hessian_s(factor):
    loss = LOSS._replace(sample=lambda key, residuals: factor * LOSS.sample(key, residuals))
    report = fp.check_layer(loss, x=PREDICTIONS, diagnose=False)
    assert report.wrong == ("sample, mean square",)


def test_what_cannot_be_checked_in_float64_is_said():
    def narrow(leaf):
        if leaf.dtype == jnp.float64:
            raise TypeError("float32 only")
        return leaf

    right = fp.dense(3)

    def rows(site):
        def found(inputs, delta):
            return jax.tree.map(narrow, site.rows(inputs, delta))

        return fp.Site(site.name, site.gradient, found)

    def backward(weights, residuals, delta, statistic=fp.gradient):
        def other(site, inputs, delta):
            return statistic(rows(site), inputs, delta)

        return right.backward(weights, residuals, delta, other)

    report = fp.check_layer(right._replace(backward=backward), (5,))
    report.assert_ok()
    assert "was not checked" in " ".join(report.notes)


def test_saturated_predictions_accuse_nobody():
    predictions, labels = PREDICTIONS
    fp.check_layer(LOSS, x=(40 * predictions, labels), dtype="float64").assert_ok()


def test_many_gradients_are_left_out():
    report = fp.check_layer(fp.dense(2_000), (2_000,))
    report.assert_ok()
    assert not [d.path for d in report.leaves if d.path.startswith("sites")]


def test_a_backward_pass_that_works_on_its_gradients_is_said():
    right = fp.dense(3)

    def backward(weights, residuals, delta, statistic=fp.gradient):
        delta_x, grads = right.backward(weights, residuals, delta, statistic)
        return delta_x, {"w": grads["w"], "b": grads["b"]}

    report = fp.check_layer(right._replace(backward=backward), (5,))
    report.assert_ok()
    assert "was not checked" in " ".join(report.notes)
