"""The last step of sequences with lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcprop as fp

X = jnp.arange(24.0).reshape(3, 4, 2)


@jax.jit
def sweep(x):
    y, residuals = fp.last_step.forward((), x)
    return y, fp.last_step.backward((), residuals, jnp.ones_like(y))[0]


def test_the_last_step_is_that_of_each_length():
    y, delta_x = sweep(X)
    np.testing.assert_array_equal(y, X[:, -1])
    np.testing.assert_array_equal(delta_x, np.broadcast_to([[0], [0], [0], [1]], X.shape))
    y, (delta_x, none) = sweep((X, jnp.array([2, 0, 4])))
    np.testing.assert_array_equal(y, [X[0, 1], [0, 0], X[2, 3]])
    assert none is None
    assert delta_x.sum() == 4
    assert (delta_x[0, 1] == 1).all()
    assert (delta_x[2, 3] == 1).all()


def test_padding_may_hold_anything_and_a_bad_length_gives_nan():
    spoilt = X.at[0, 2:].set(jnp.nan).at[1].set(jnp.nan)
    y, (delta_x, _) = sweep((spoilt, jnp.array([2, 0, 4])))
    assert np.isfinite(y).all()
    assert np.isfinite(delta_x).all()
    y, (delta_x, _) = sweep((X, jnp.array([5, 4, -1])))
    assert np.isnan(y).all(axis=1).tolist() == [True, False, True]
    assert np.isnan(delta_x).any(axis=(1, 2)).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_lengths_of_narrow_integers_fit_long_sequences(dtype):
    """300 steps are more than 8 bits count: a step's number wraps around to another's."""
    x, long, narrow = np.ones((2, 300, 1), "f"), np.array([3, 100]), np.array([3, 100], dtype)
    for due, found in zip(sweep((x, long)), sweep((x, narrow)), strict=True):
        np.testing.assert_array_equal(jax.tree.leaves(found), jax.tree.leaves(due))
    _, residuals = fp.last_step.forward((), (x, narrow))  # outside of a trace too
    delta_x = fp.last_step.backward((), residuals, jnp.ones((2, 1)))[0][0]
    assert np.argwhere(delta_x[..., 0]).tolist() == [[0, 2], [1, 99]]
