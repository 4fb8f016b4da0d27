"""The laws of the contract, for every layer and loss of the table of cases.

That gradients of single examples sum to the gradient is in test_statistics.
"""

import contextlib
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import funcprop
from funcprop import LayerError, Site, check_layer, differentiable, gradient, sites
from funcprop.cases.catalogue import ACTIVATIONS, LAYERS
from funcprop.checking import CASES, compare
from funcprop.core.checks import cotangent_of, delta_of, is_inexact
from funcprop.core.rows import dense, matrix_of, of_matrix

pytestmark = pytest.mark.usefixtures("strict")

all_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
with_parameters = pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)


def shape_of(x):
    """The shape of one example of a batch."""
    structs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)
    return structs.shape if hasattr(x, "shape") else structs


def sites_of(case, x):
    structs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)
    ids = hasattr(x, "shape") and not is_inexact(x)
    found = jax.tree.leaves(
        sites(case.layer, structs if ids else shape_of(x)),
        is_leaf=lambda leaf: isinstance(leaf, Site),
    )
    return [site for site in found if isinstance(site, Site)]


@functools.cache
def drawn(case):
    """params, x, y, delta of a case in float32, wherever it is called first."""
    with jax.enable_x64(False):
        draw = np.random.default_rng(3)
        x = jax.tree.map(jnp.asarray, case.draw(draw))
        params, _ = case.layer.init(jax.random.key(3), shape_of(x))
        y = jax.eval_shape(case.layer.apply, params, x)
        delta = jax.tree.map(
            lambda leaf: jnp.asarray(draw.normal(size=leaf.shape)) if is_inexact(leaf) else None, y
        )
        return params, x, y, delta


def made(layer, shape):
    """Shapes of the params and the output that init gives, or the LayerError."""
    out = []

    def init(key):
        params, shape_out = layer.init(key, shape)
        out.append(shape_out)
        return params

    params = jax.eval_shape(init, jax.random.key(0))
    return params, out[0]


def sizes_of(shape, kind):
    """Structs of floats as ``kind`` (tuple or list) of ints; the others as they are."""
    if isinstance(shape, tuple):
        return kind(sizes_of(entry, kind) for entry in shape)
    return kind(shape.shape) if is_inexact(shape) else shape


@pytest.mark.parametrize("case", LAYERS + ACTIVATIONS, ids=lambda case: case.name)
def test_init_takes_shapes_in_every_form(case):
    x = case.draw(np.random.default_rng(3))
    structs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], np.float32), x)
    kept = jax.tree.map(lambda s, leaf: s if is_inexact(leaf) else s.update(dtype=leaf.dtype),
                        structs, x)  # fmt: skip
    params, out = made(case.layer, kept)
    assert type(out) is tuple or not is_inexact(out)
    for form in (sizes_of(kept, tuple), sizes_of(kept, list)):
        assert made(case.layer, form) == (params, out)


@pytest.mark.parametrize("case", LAYERS + ACTIVATIONS, ids=lambda case: case.name)
def test_numpy_s_arrays_are_arrays(case):
    x = case.draw(np.random.default_rng(3))
    x = jax.tree.map(lambda a: np.asarray(a, np.float32) if is_inexact(a) else np.asarray(a), x)
    structs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)
    shape = sizes_of(structs, tuple)
    params, _ = jax.eval_shape(lambda key: (case.layer.init(key, shape)[0], ()), jax.random.key(0))
    came = jax.eval_shape(lambda params: case.layer.apply(params, x), params)
    assert came == jax.eval_shape(case.layer.apply, params, x)


IDS = jax.ShapeDtypeStruct((4, 6), np.int32)
ODD_SHAPES = [
    (), (4,), (4, 6), (2, 4, 6), (2, 3, 4, 6), (2, 2, 2, 2, 6), IDS, (IDS,), (IDS, IDS),
    ((4, 6), (4, 6)), ((4, 6), IDS), ((4, 6), ()), ((4, 6),) * 3, ((4, 6),) * 5,
    (((4, 6), (4, 6)), (6,)), ((4, 6), ((6,), (6,))), ((), (), ()),
]  # fmt: skip


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_a_shape_is_taken_or_refused_in_words(case):
    own = case.name == "function" or case.name.startswith("mixture_of_experts")
    for shape in () if own else ODD_SHAPES:
        with contextlib.suppress(LayerError):
            made(case.layer, shape)
    for shape in (4, "4", None, (4.0, 6), (-1, 6), (True, 6), np.ones((4, 6)), (4, (6,)), {1, 2}):
        with pytest.raises(LayerError):
            made(case.layer, shape)


@all_cases
def test_backward_equals_the_pullback_of_vjp(case):
    for dtype in ("float64", "float32", "bfloat16"):
        x = case.draw(np.random.default_rng(7))
        report = check_layer(case.layer, x=x, dtype=jnp.dtype(dtype), analytic=case.analytic)
        report.assert_ok()
        assert report.leaves
        oracles = {leaf.against for leaf in report.leaves} & {"complex step", "central differences"}
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
        own, rest = backward(params, delta), backward(params, other)
        both = jax.tree.map(lambda a, b: jnp.stack([a, b]), delta, other)
        many = jax.vmap(backward, (None, 0))(params, both)
        summed = backward(params, jax.tree.map(jnp.add, delta, other))
        again = jax.checkpoint(backward)(params, delta)
        _, second = jax.jvp(lambda p, d: backward(p, d), (params, delta), (params, other))
        _, due = jax.jvp(lambda p, d: reference(p, d), (params, delta), (params, other))
        return own, rest, many, summed, again, second, due

    own, rest, many, summed, again, second, due = everything(params, delta, other)
    close = {"rtol": 2e-5, "atol": 2e-5}
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[0], many), own, **close)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[1], many), rest, **close)
    chex.assert_trees_all_close(summed, jax.tree.map(jnp.add, own, rest), **close)
    chex.assert_trees_all_close(again, own, **close)
    chex.assert_trees_all_close(jax.tree.leaves(second), jax.tree.leaves(due), rtol=2e-4, atol=2e-4)


@with_parameters
def test_a_statistic_is_called_once_a_site(case):
    params, x, _, delta = drawn(case)
    seen = []

    def statistic(site, inputs, delta):
        assert isinstance(site, Site)
        assert site.name
        assert site.mixes is case.mixes
        assert hash(site) == hash(site)
        chex.assert_equal_shape_prefix([*jax.tree.leaves(inputs), *jax.tree.leaves(delta)], 1)
        seen.append(site)
        return gradient(site, inputs, delta)

    def sweep(delta):
        _, residuals = case.layer.forward(params, x)
        return case.layer.backward(params, residuals, delta, statistic)

    # Under jit, as a scan's body may be traced twice outside of it.
    jax.make_jaxpr(sweep)(delta)
    found = sites_of(case, x)
    assert len(seen) == len(found)
    assert set(seen) == set(found)
    assert bool(found) == bool(jax.tree.leaves(params))


@with_parameters
def test_delta_is_carried_by_the_weights_alone(case):
    """Law 1: a NaN in a matrix that carries delta is seen in delta_x, one in a bias is not."""
    params, x, _, delta = drawn(case)
    _, residuals = jax.jit(case.layer.forward)(params, x)
    transport = jax.jit(lambda w: case.layer.backward(w, residuals, delta)[0])
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    if not jax.tree.leaves(jax.eval_shape(transport, params)):
        return  # ids carry no delta
    for path, _ in paths:
        name = jax.tree_util.keystr(path)
        weights = jax.tree_util.tree_map_with_path(
            lambda p, leaf, path=path: leaf * jnp.nan if p == path else leaf, params
        )
        values = np.concatenate(
            [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(transport(weights))]
        )
        carries = not name.endswith(tuple(f"['{still}']" for still in case.still))
        assert np.isnan(values).any() == carries, name


@with_parameters
def test_rows_are_the_matrix_form_of_the_gradient(case):
    """The sum of rightᵀ left is the matrix of the gradient of all but the biases."""
    params, x, _, delta = drawn(case)
    if not any(site.rows for site in sites_of(case, x)):
        return

    def by_rows(site, inputs, delta):
        if site.rows is None:
            return ()
        grads = site.gradient(inputs, delta)
        left, right = (dense(side) for side in site.rows(inputs, delta))
        assert left.ndim == right.ndim == 3
        assert len(left) == len(right) == 4
        matrix, due = jnp.einsum("brm,brn->mn", right, left), matrix_of(site, grads)
        back = matrix_of(site, of_matrix(site, due, grads))
        return {"found": jnp.stack([matrix, back]), "due": jnp.stack([due, due])}

    def sweep(params, x, delta):
        _, residuals = case.layer.forward(params, x)
        return case.layer.backward(params, residuals, delta, by_rows)[1]

    leaves = jax.tree.leaves(jax.jit(sweep)(params, x, delta))  # due, found, due, found, ...
    chex.assert_trees_all_close(leaves[1::2], leaves[::2], rtol=2e-4, atol=2e-5)


ONE_A_LAYER = list({case.layer.name: case for case in reversed(LAYERS)}.values())


@pytest.mark.parametrize("case", ONE_A_LAYER, ids=lambda case: case.name)
def test_on_meshes(case):
    """A batch over eight devices: what one device gives, gradients the same on all of them."""
    params, x, _, delta = drawn(case)
    x, delta = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), (x, delta))

    def sweep(params, x, delta):
        y, residuals = case.layer.forward(params, x)
        return y, *case.layer.backward(params, residuals, delta)

    due = jax.device_get(jax.tree.leaves(jax.jit(sweep)(params, x, delta)))
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            whole, parts = (NamedSharding(mesh, spec) for spec in (P(), P("data")))
            given = jax.device_put(params, whole), *jax.device_put((x, delta), parts)
            # As a function of its own: what was traced without the mesh may not be taken again.
            found = jax.jit(lambda *args: sweep(*args))(*given)
            assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(found[2]))
        compare(jax.device_get(jax.tree.leaves(found)), due, title=str(kind)).assert_ok()
    if not case.mixes:  # under shard_map each device has a batch of its own
        found = _under_shard_map(case.layer, params, x, delta)
        compare(jax.device_get(jax.tree.leaves(found)), due, title="shard_map").assert_ok()


def _under_shard_map(layer, params, x, delta):
    layer = differentiable(layer)

    def local(params, x, delta):
        def value(params, floats):
            leaves, structure = jax.tree.flatten(x)
            new = iter(floats)
            given = [next(new) if is_inexact(leaf) else leaf for leaf in leaves]
            y = layer(params, jax.tree.unflatten(structure, given))
            kept = jax.tree.map(lambda d, leaf: jnp.sum(d * leaf), delta, _floats(y))
            return jax.lax.psum(sum(jax.tree.leaves(kept)), "data"), y

        floats = [leaf for leaf in jax.tree.leaves(x) if is_inexact(leaf)]
        grads, y = jax.grad(value, (0, 1), has_aux=True)(params, floats)
        return y, grads[1], grads[0]

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    specs = (P("data"), P("data"), P())
    run = jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=specs)
    return jax.jit(run)(params, x, delta)


def _floats(tree):
    return jax.tree.map(lambda leaf: leaf if is_inexact(leaf) else None, tree)


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


def test_layers_refuse_what_is_no_layer():
    with pytest.raises(LayerError, match=r"layers\[1\]: tanh is not a Layer.*elementwise\(tanh"):
        funcprop.serial(funcprop.relu, jnp.tanh)
