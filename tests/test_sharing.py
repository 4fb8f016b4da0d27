"""share: gradients, statistics with their cross terms, other weights, what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcprop as fp
from funcprop import share
from tests.drawing import params_of

pytestmark = pytest.mark.usefixtures("strict")

IDS = jnp.array([[0, 4, 4], [2, 4, 0]])
X = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
tied = share(
    fp.serial(fp.embedding(5, 4), fp.dense(4, fp.tanh), fp.affine(5, bias=False)), (0,), (2,)
)


@functools.partial(jax.jit, static_argnames=("layer", "statistic"))
def swept(layer, params, x, weights=None, statistic=fp.gradient):
    y, residuals = layer.forward(params, x)
    delta = jnp.cos(y)
    weights = params if weights is None else weights
    return y, delta, *layer.backward(weights, residuals, delta, statistic)


def test_a_tied_embedding_is_the_plain_one():
    def plain(params):
        hidden = params["model"][1]
        h = jnp.tanh(params["shared"]["w"][IDS] @ hidden["w"].T + hidden["b"])
        return h @ params["shared"]["w"].T

    @jax.jit
    def both(params):
        y, delta, _, grads = swept(tied, params, IDS)
        due, pullback = jax.vjp(plain, params)
        return (y, grads), (due, pullback(delta)[0])

    fp.compare(*both(params_of(tied, (3,)))).assert_ok()


def test_the_site_is_one_and_its_norms_have_cross_terms():
    """Per-example squared norms from the rows of both places, against each gradient's own."""
    params = params_of(tied, (3,))
    site = fp.sites(tied, jax.ShapeDtypeStruct((3,), jnp.int32))["shared"]
    assert (site.name, site.mixes) == ("share", False)

    def norms(site, inputs, delta):
        if site.rows is None or site.name != "share":
            return ()
        assert [len(part) for part in (inputs, delta)] == [2, 2]
        x, d = site.rows(inputs, delta)
        return jnp.sum((x @ x.mT) * (d @ d.mT), axis=(1, 2))

    _, delta, _, tree = swept(tied, params, IDS, statistic=norms)
    assert tree["model"] == ((), (), ())

    def one(shared, ids, delta):
        return jnp.sum(tied.apply({**params, "shared": shared}, ids[None])[0] * delta)

    each = jax.jit(jax.vmap(jax.grad(one), (None, 0, 0)))(params["shared"], IDS, delta)["w"]
    np.testing.assert_allclose(tree["shared"], jnp.sum(each**2, axis=(1, 2)), rtol=1e-5)


def test_shared_blocks_are_the_same_layers_called_twice():
    """Several sites in one place, a place deep in the model, under remat, and a share in one."""
    block = fp.serial(fp.dense(6, fp.tanh), fp.dense(4))
    parts = fp.serial(block, fp.remat(fp.serial(fp.tanh, block)), fp.dense(2))
    model = share(parts, (0,), (1, 1))

    def once(shared, rest, x):
        h = block.apply(shared, x)
        return fp.dense(2).apply(rest, block.apply(shared, jnp.tanh(h)))

    @jax.jit
    def both(params, x):
        due, pullback = jax.vjp(once, params["shared"], params["model"][2], x)
        y, delta, delta_x, tree = swept(model, params, x)
        return (y, tree["shared"], tree["model"][2], delta_x), (due, *pullback(delta))

    fp.compare(*both(params_of(model, (4,)), X)).assert_ok()

    nested = share(fp.serial(model, fp.dense(4, fp.tanh), block), (0, "shared"), (2,))
    fp.check_layer(nested, (4,)).assert_ok()


def test_other_weights_carry_the_error_at_every_place():
    model = share(fp.serial(fp.dense(4), fp.dense(4)), (0,), (1,))
    params, others = (params_of(model, (4,), seed) for seed in (0, 1))
    _, delta, delta_x, grads = jax.device_get(swept(model, params, X, weights=others))
    v = others["shared"]["w"]
    np.testing.assert_allclose(delta_x, delta @ v @ v, rtol=1e-5, atol=1e-6)
    h = X @ params["shared"]["w"].T + params["shared"]["b"]
    due = delta.T @ h + (delta @ v).T @ X
    np.testing.assert_allclose(grads["shared"]["w"], due, rtol=1e-5, atol=1e-6)


def test_a_share_can_be_repeated_and_rebuilt():
    model = share(fp.serial(fp.dense(4, fp.tanh), fp.dense(4)), (0,), (1,))
    fp.check_layer(fp.repeat(model, 3), (4,)).assert_ok()
    again = model.rebuild(model.parts)
    params = params_of(model, (4,))
    fp.compare(swept(again, params, X), swept(model, params, X)).assert_ok()
    path = jax.tree_util.tree_flatten_with_path((0.0, 0.0))[0]
    by_keys = share(model.parts[0], *(place for place, _ in path))
    fp.compare(swept(by_keys, params, X), swept(model, params, X)).assert_ok()
