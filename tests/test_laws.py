"""The laws of the contract, for every layer and loss of the table of cases."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcprop
from funcprop import LayerError, Site, check_layer, gradient, sites
from funcprop.checking import CASES, compare
from funcprop.checking.catalogue import LAYERS
from funcprop.layer import cotangent_of, delta_of, is_inexact

pytestmark = pytest.mark.usefixtures("strict")

all_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
with_parameters = pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)


def drawn(case, seed=3):
    """params, x, y, delta of a case in float32."""
    draw = np.random.default_rng(seed)
    x = jax.tree.map(jnp.asarray, case.draw(draw))
    structs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)
    params, _ = case.layer.init(
        jax.random.key(seed), structs.shape if hasattr(x, "shape") else structs
    )
    y = jax.eval_shape(case.layer.apply, params, x)
    delta = jax.tree.map(
        lambda leaf: jnp.asarray(draw.normal(size=leaf.shape)) if is_inexact(leaf) else None, y
    )
    return params, x, y, delta


def per_example(site, inputs, delta):
    """A statistic: every example's own gradient."""

    def one(inputs, delta):
        return site.gradient(*jax.tree.map(lambda leaf: leaf[None], (inputs, delta)))

    return jax.vmap(one)(inputs, delta)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@all_cases
def test_backward_equals_the_pullback_of_vjp(case, dtype):
    x = case.draw(np.random.default_rng(7))
    report = check_layer(case.layer, x=x, dtype=jnp.dtype(dtype), analytic=case.analytic)
    report.assert_ok()
    assert report.leaves
    oracles = {leaf.against for leaf in report.leaves} - {"jax.vjp"}
    assert bool(oracles) == (dtype == "float64")


@all_cases
def test_pure_and_linear_and_differentiable_again(case):
    """Laws 2 and 5: vmapped over deltas, jitted, rematerialised, and differentiated forward."""
    params, x, _, delta = drawn(case)
    other = jax.tree.map(lambda d: d[::-1] * 0.5 + 1, delta)

    def backward(params, delta):
        _, residuals = case.layer.forward(params, x)
        return case.layer.backward(params, residuals, delta)

    def reference(params, delta):
        def apply(params, floats):
            leaves, structure = jax.tree.flatten(x)
            new = iter(floats)
            return case.layer.apply(
                params,
                jax.tree.unflatten(
                    structure, [next(new) if is_inexact(leaf) else leaf for leaf in leaves]
                ),
            )

        floats = [leaf for leaf in jax.tree.leaves(x) if is_inexact(leaf)]
        y, pullback = jax.vjp(apply, params, floats)
        grads, delta_x = pullback(cotangent_of(y, delta))
        return delta_x, delta_of(grads)

    @jax.jit
    def everything(params, delta, other):
        both = jax.tree.map(lambda a, b: jnp.stack([a, b]), delta, other)
        many = jax.vmap(backward, (None, 0))(params, both)
        summed = backward(params, jax.tree.map(jnp.add, delta, other))
        again = jax.checkpoint(backward)(params, delta)
        _, second = jax.jvp(lambda p, d: backward(p, d), (params, delta), (params, other))
        _, due = jax.jvp(lambda p, d: reference(p, d), (params, delta), (params, other))
        return many, summed, again, second, due

    many, summed, again, second, due = everything(params, delta, other)
    own = jax.jit(backward)(params, delta)
    rest = jax.jit(backward)(params, other)
    close = {"rtol": 2e-5, "atol": 2e-5}
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[0], many), own, **close)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[1], many), rest, **close)
    chex.assert_trees_all_close(summed, jax.tree.map(jnp.add, own, rest), **close)
    chex.assert_trees_all_close(again, own, **close)
    chex.assert_trees_all_close(jax.tree.leaves(second), jax.tree.leaves(due), rtol=2e-4, atol=2e-4)


@with_parameters
def test_per_example_gradients_sum_to_the_gradient(case):
    params, x, _, delta = drawn(case)
    _, residuals = case.layer.forward(params, x)
    _, own = case.layer.backward(params, residuals, delta, per_example)
    _, grads = case.layer.backward(params, residuals, delta)
    # A site inside repeat has its layer axis in front, the examples behind it.
    axis = 1 if case.name.startswith("repeat") else 0
    summed = jax.tree.map(lambda leaf: leaf.sum(axis), own)
    chex.assert_trees_all_close(summed, grads, rtol=1e-4, atol=1e-5)
    assert all(leaf.shape[axis] == 4 for leaf in jax.tree.leaves(own))


@with_parameters
def test_a_statistic_is_called_once_a_site(case):
    params, x, _, delta = drawn(case)
    _, residuals = case.layer.forward(params, x)
    seen = []

    def statistic(site, inputs, delta):
        assert isinstance(site, Site)
        chex.assert_equal_shape_prefix([*jax.tree.leaves(inputs), *jax.tree.leaves(delta)], 1)
        seen.append(site)
        return gradient(site, inputs, delta)

    # Under jit, as a scan's body may be traced twice outside of it.
    jax.make_jaxpr(lambda d: case.layer.backward(params, residuals, d, statistic))(delta)
    structs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)
    found = sites(case.layer, structs.shape if hasattr(x, "shape") else structs)
    count = len(jax.tree.leaves(found, is_leaf=lambda leaf: isinstance(leaf, Site)))
    assert len(seen) == count > 0
    assert set(seen) == set(jax.tree.leaves(found, is_leaf=lambda leaf: isinstance(leaf, Site)))


@with_parameters
def test_delta_is_carried_by_the_weights_alone(case):
    """Law 1: a NaN in a matrix that carries delta is seen in delta_x, one in a bias is not."""
    params, x, _, delta = drawn(case)
    _, residuals = jax.jit(case.layer.forward)(params, x)
    transport = jax.jit(lambda w: case.layer.backward(w, residuals, delta)[0])
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    for path, _ in paths:
        name = jax.tree_util.keystr(path)
        weights = jax.tree_util.tree_map_with_path(
            lambda p, leaf, path=path: leaf * jnp.nan if p == path else leaf, params
        )
        values = np.concatenate(
            [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(transport(weights))]
        )
        carries = not name.endswith("['b']")
        assert np.isnan(values).any() == carries, name


@pytest.mark.parametrize(
    "case",
    [case for case in LAYERS if case.name in ("dense", "mlp", "serial", "repeat", "residual")],
    ids=lambda case: case.name,
)
def test_any_tree_can_carry_the_error(case):
    """The delta under other weights, against a network whose forward and backward weights differ.

    y = x W'ᵀ + stop(x Wᵀ - x W'ᵀ) has the value of W and the transport of W'.
    """
    params, x, _, delta = drawn(case)
    others = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), params
    )
    _, residuals = case.layer.forward(params, x)
    delta_x, grads = jax.jit(case.layer.backward)(others, residuals, delta)

    def affine(x, p, other):
        through_other = x @ other["w"].T
        return through_other + jax.lax.stop_gradient(x @ p["w"].T - through_other) + p["b"]

    def reference(x):
        if case.name == "mlp":
            hidden = jax.nn.relu(affine(x, params[0], others[0]))
            hidden = jax.nn.relu(affine(hidden, params[1], others[1]))
            return affine(hidden, params[2], others[2])
        if case.name == "serial":
            return affine(jnp.tanh(affine(x, params[0], others[0])), params[2], others[2])
        if case.name == "repeat":
            for i in range(4):
                layer, other = jax.tree.map(lambda leaf, i=i: leaf[i], (params, others))
                x = jnp.tanh(affine(x, layer, other))
            return x
        y = jnp.tanh(affine(x, params, others))
        return x + y if case.name == "residual" else y

    _, pullback = jax.vjp(reference, x)
    compare(delta_x, pullback(delta)[0]).assert_ok()
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)


@with_parameters
def test_sites_are_shaped_like_the_parameters(case):
    _, x, _, _ = drawn(case)
    structs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)
    found = sites(case.layer, structs.shape if hasattr(x, "shape") else structs)
    leaves = jax.tree.leaves(found, is_leaf=lambda leaf: isinstance(leaf, Site))
    assert leaves
    for site in leaves:
        assert site.name in ("dense", "function")
        assert site.mixes is False
        assert hash(site) == hash(site)


@pytest.mark.parametrize("case", [LAYERS[0], LAYERS[3]], ids=lambda case: case.name)
def test_rows_are_the_matrix_form_of_the_gradient(case):
    params, x, _, delta = drawn(case)
    _, residuals = case.layer.forward(params, x)

    def by_rows(site, inputs, delta):
        inputs, delta = site.rows(inputs, delta)
        assert inputs.ndim == delta.ndim == 3
        return jnp.einsum("brm,brn->mn", delta, inputs)

    _, matrix = case.layer.backward(params, residuals, delta, by_rows)
    _, grads = case.layer.backward(params, residuals, delta)
    chex.assert_trees_all_close(matrix, grads["w"], rtol=1e-5)


def test_layers_refuse_what_is_no_layer():
    with pytest.raises(LayerError, match=r"layers\[1\]: tanh is not a Layer.*elementwise\(tanh"):
        funcprop.serial(funcprop.relu, jnp.tanh)
