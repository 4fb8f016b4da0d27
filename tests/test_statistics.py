"""Every statistic of every layer, against jax.jacrev of the batch's vector of losses."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_laws import drawn, shape_of, sites_of

import funcprop as fp
from funcprop import LayerError, Loss, statistics
from funcprop.checking.catalogue import LAYERS
from funcprop.layer import is_inexact
from funcprop.losses import no_parameters

pytestmark = pytest.mark.usefixtures("strict")

alone = pytest.mark.parametrize(
    "case", [c for c in LAYERS if not c.mixes], ids=lambda case: case.name
)
mixing = pytest.mark.parametrize("case", [c for c in LAYERS if c.mixes], ids=lambda case: case.name)


def _linear():
    """ℓᵢ = Σ target · prediction over all floats of an example's prediction."""

    def forward(params, x, key=None):
        prediction, target = x
        leaves = [leaf for leaf in jax.tree.leaves(prediction) if is_inexact(leaf)]
        terms = [
            jnp.sum(p * t, tuple(range(1, p.ndim)))
            for p, t in zip(leaves, jax.tree.leaves(target), strict=True)
        ]
        return sum(terms), (prediction, target)

    def backward(weights, residuals, delta, statistic=fp.gradient):
        prediction, target = residuals
        due = iter(jax.tree.leaves(target))
        scaled = [
            next(due) * delta.reshape(-1, *[1] * (leaf.ndim - 1)) if is_inexact(leaf) else None
            for leaf in jax.tree.leaves(prediction)
        ]
        return (jax.tree.unflatten(jax.tree.structure(prediction), scaled), None), ()

    return Loss(no_parameters, forward, backward, None, None, "linear")


linear = _linear()


def losses_of(model, loss, x, y, key=None):
    """The vector of losses as a function of the parameters."""

    def losses(params):
        own, loss_own = (params, ()) if loss.init is no_parameters else params
        return loss.apply(loss_own, (model.apply(own, x, key), y))

    return losses


def formed(model, loss, params, x, y, key=None):
    """gᵢ by jax.jacrev, and all of each in one row."""
    each = jax.jacrev(losses_of(model, loss, x, y, key))(params)
    flat = [g.reshape(len(g), -1) for g in jax.tree.leaves(each)]
    return each, jnp.concatenate(flat, axis=1)


def by_statistics(model, loss, params, x, y, max_norm, **options):
    half, other = (jax.tree.map(lambda a, s=s: a[s], (x, y)) for s in (slice(0, 3), slice(3, None)))
    both = statistics.combine(
        each=statistics.per_example_gradients,
        norms=statistics.squared_norms,
        inner=statistics.inner_products,
        moments=statistics.moments,
        mean=statistics.mean_gradient,
    )
    found = both(model, loss)(params, x, y, **options)
    found["clipped"] = statistics.clipped_gradient(max_norm)(model, loss)(params, x, y, **options)
    by_layer = statistics.clipped_gradient(max_norm, per_layer=True)
    found["by_layer"] = by_layer(model, loss)(params, x, y, **options)
    between = statistics.inner_products_between(model, loss)
    found["between"] = between(params, half, other, **options)
    return found


def by_autodiff(model, loss, params, x, y, **options):
    each, flat = formed(model, loss, params, x, y, **options)
    squared = jnp.sum(flat * flat, axis=1)
    max_norm = jnp.sqrt(jnp.median(squared))
    c = jnp.minimum(1, max_norm / jnp.sqrt(squared))
    size = len(flat)
    total = jax.tree.map(lambda g: g.mean(0), each)
    whole = jnp.sum(flat.mean(0) ** 2)
    trace = (squared.mean() - whole) * size / (size - 1)
    return max_norm, {
        "each": each,
        "norms": squared,
        "inner": flat @ flat.T,
        "between": flat[:3] @ flat[3:].T,
        "mean": total,
        "clipped": jax.tree.map(
            lambda g: jnp.mean(g * c.reshape(-1, *[1] * (g.ndim - 1)), axis=0), each
        ),
        "square": jax.tree.map(lambda g: jnp.sum(g * g, axis=0), each),
        "variance": jax.tree.map(lambda g: jnp.var(g, axis=0, ddof=1), each),
        "trace": jnp.sum(jnp.var(flat, axis=0, ddof=1)),
        "squared_norm": whole - trace / size,
    }


def compared(found, due):
    """What is found, in the shape of what is due."""
    return {
        "each": found["each"],
        "norms": found["norms"].total,
        "inner": found["inner"].total,
        "between": found["between"].total,
        "mean": found["mean"],
        "clipped": found["clipped"].gradient,
        "square": found["moments"].sum_of_squares,
        "variance": found["moments"].variance,
        "trace": found["moments"].noise_scale.trace,
        "squared_norm": found["moments"].noise_scale.squared_norm,
    }


def assert_alike(found, due, bound):
    """Each leaf to the largest of its entries."""
    chex.assert_trees_all_equal_shapes_and_dtypes(found, due)
    paths = jax.tree_util.tree_flatten_with_path(due)[0]
    for (path, b), a in zip(paths, jax.tree.leaves(found), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        scale = max(np.abs(b).max(initial=0), 1e-30)
        assert np.abs(a - b).max(initial=0) <= bound * scale, jax.tree_util.keystr(path)


@alone
def test_every_statistic_of_every_layer(case):
    params, x, _, delta = drawn(case)
    if not jax.tree.leaves(params):
        return
    target = tuple(jax.tree.leaves(delta))

    def run(params, x, target):
        max_norm, due = by_autodiff(case.layer, linear, params, x, target)
        return by_statistics(case.layer, linear, params, x, target, max_norm), due

    with jax.enable_x64(True):
        given = jax.tree.map(
            lambda a: a.astype(float) if is_inexact(a) else a, (params, x, target)
        )
        found, due = jax.device_get(jax.jit(run)(*given))
    assert_alike(compared(found, due), due, 1e-10)
