"""The laws of the contract, for every layer and loss of the table of cases.

That gradients of single examples sum to the gradient is in test_statistics.
"""

import contextlib
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from funcprop import LayerError, Site, check_layer, differentiable, sites
from funcprop.cases.catalogue import ACTIVATIONS, LAYERS, LOSSES
from funcprop.checking import CASES, compare, laws
from funcprop.core.checks import delta_of, floats_of, is_inexact, with_floats
from funcprop.core.rows import dense, matrix_of, of_matrix

pytestmark = pytest.mark.usefixtures("strict")

ONE_A_LAYER = list({case.layer.name: case for case in reversed(LAYERS)}.values())


def of_cases(cases, default=ONE_A_LAYER):
    """A test of every case, those beyond ``default`` slow."""
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(case, id=case.name, marks=[pytest.mark.slow] * (case not in default))
            for case in cases
        ],
    )


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
    """params, x, y, delta of a case in float32, wherever it is called first.

    The parameters are drawn by NumPy, biases too: ``init`` of an orthogonal or truncated matrix
    takes longer than all else.
    """
    with jax.enable_x64(False):
        draw = np.random.default_rng(3)
        x = jax.tree.map(jnp.asarray, case.draw(draw))
        params = jax.tree.map(
            lambda leaf: jnp.asarray(draw.normal(size=leaf.shape) / 2, leaf.dtype),
            made(case.layer, shape_of(x))[0],
        )
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


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_numpy_s_arrays_are_arrays(case):
    """Next to what is traced, x or the parameters, the rest may be as np.load gives it."""
    params, x, _, delta = jax.device_get(drawn(case))

    def sweep(params, x, delta):
        y, residuals = case.layer.forward(params, x)
        return y, case.layer.backward(params, residuals, delta)

    due = jax.eval_shape(sweep, params, x, delta)
    assert jax.eval_shape(lambda x: sweep(params, x, delta), x) == due
    if jax.tree.leaves(params):
        assert jax.eval_shape(lambda params: sweep(params, x, delta), params) == due


IDS = jax.ShapeDtypeStruct((4, 6), np.int32)
ODD_SHAPES = [
    (), (4,), (4, 6), (2, 4, 6), (2, 3, 4, 6), (2, 2, 2, 2, 6), IDS, (IDS,), (IDS, IDS),
    ((4, 6), (4, 6)), ((4, 6), IDS), ((4, 6), ()), ((4, 6),) * 3, ((4, 6),) * 5,
    (((4, 6), (4, 6)), (6,)), ((4, 6), ((6,), (6,))), ((), (), ()),
]  # fmt: skip


@of_cases(LAYERS)
def test_a_shape_is_taken_or_refused_in_words(case):
    own = case.name == "function" or case.name.startswith("mixture_of_experts")
    for shape in () if own else ODD_SHAPES:
        with contextlib.suppress(LayerError):
            made(case.layer, shape)
    for shape in (4, "4", None, (4.0, 6), (-1, 6), (True, 6), np.ones((4, 6)), (4, (6,)), {1, 2}):
        with pytest.raises(LayerError):
            made(case.layer, shape)


NARROW = (
    "dense", "conv", "batch_norm", "attention, causal, in blocks", "lstm", "embedding", "gelu",
    "softmax_cross_entropy",
)  # fmt: skip


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(case, dtype, id=f"{case.name}-{dtype}")
        for case in CASES
        for dtype in ("float64", "bfloat16")
        if dtype == "float64" or case.name in NARROW
    ],
)
def test_backward_equals_the_pullback_of_vjp(case, dtype, monkeypatch):
    """`funcprop check`, of which the docs' table of layers is made, does so in three dtypes.

    What statistics take from a layer is looked at in ``test_the_laws``, what they take from a loss
    in test_losses.
    """
    monkeypatch.setattr(laws, "MOST_GRADIENTS", 0)
    monkeypatch.setattr(laws, "MOST_DRAWN", 0)
    x = case.draw(np.random.default_rng(7))
    params = drawn(case)[0]
    report = check_layer(case.layer, x=x, params=params, dtype=dtype, analytic=case.analytic)
    report.assert_ok()
    assert report.leaves
    oracles = {leaf.against for leaf in report.leaves} & {"complex step", "central differences"}
    assert bool(oracles) == (dtype == "float64")


def is_site(leaf):
    return isinstance(leaf, _AtSite)


class _AtSite(NamedTuple):
    """What ``test_the_laws`` takes from a site; ``rows`` in the form of the gradient's matrix."""

    gradient: Any
    rows: Any
    back: Any
    due: Any


def everything(case, seen):
    """All that the laws compare, in one program of (params, x, delta, other)."""
    layer = case.layer

    def statistic(site, inputs, delta):
        assert site.name
        assert site.mixes is case.mixes
        assert hash(site) == hash(site)
        chex.assert_equal_shape_prefix([*jax.tree.leaves(inputs), *jax.tree.leaves(delta)], 1)
        seen.append(site)
        grads = site.gradient(inputs, delta)
        if site.rows is None:
            return _AtSite(grads, (), (), ())
        left, right = (dense(side) for side in site.rows(inputs, delta))
        assert left.ndim == right.ndim == 3
        assert len(left) == len(right) == 4
        due = matrix_of(site, grads)
        back = matrix_of(site, of_matrix(site, due, grads))
        return _AtSite(grads, jnp.einsum("brm,brn->mn", right, left), back, due)

    @jax.jit
    def run(params, x, delta, other):
        def backward(params, delta):
            _, residuals = layer.forward(params, x)
            delta_x, grads = layer.backward(params, residuals, delta)
            return floats_of(delta_x), grads

        def reference(params, delta):
            def apply(params, floats):
                return floats_of(layer.apply(params, with_floats(x, floats)))

            _, pullback = jax.vjp(apply, params, floats_of(x))
            grads, delta_x = pullback(delta)
            return delta_x, delta_of(grads)

        def with_nan(n):
            leaves, structure = jax.tree.flatten(params)
            leaves = [leaf * jnp.where(n == i, jnp.nan, 1) for i, leaf in enumerate(leaves)]
            weights = jax.tree.unflatten(structure, leaves)
            delta_x, _ = layer.backward(weights, residuals, delta, lambda *_: ())
            values = [jnp.isnan(leaf).any() for leaf in jax.tree.leaves(delta_x)]
            return jnp.array(values)

        _, residuals = layer.forward(params, x)
        delta_x, sites = layer.backward(params, residuals, delta, statistic)
        tangents = params, other
        count = len(jax.tree.leaves(params))
        return {
            "own": (floats_of(delta_x), sites),
            "many": jax.vmap(backward, (None, 0))(
                params,
                jax.tree.map(lambda a, b: jnp.stack([a, b, a + b]), delta, other),
            ),
            "again": jax.jvp(jax.checkpoint(backward), (params, delta), tangents),
            "due": jax.jvp(reference, (params, delta), tangents),
            "carries": jax.vmap(with_nan)(jnp.arange(count)) if count else (),
        }

    return run


@of_cases(CASES, [*ONE_A_LAYER, *ACTIVATIONS, *LOSSES])
def test_the_laws(case):
    """In one program, so that a case is traced once.

    1. A NaN in a matrix that carries delta is seen in delta_x, one in a bias is not.
    2. ``backward`` is linear in delta, and can be vmapped over it.
    3. A statistic is called once a site; the sum of rightᵀ left of its rows is the matrix of the
       gradient of all but the biases.
    4. ``backward`` equals the pullback of ``jax.vjp``, here in float32.
    5. It can be jitted, rematerialised, and differentiated again, forward.
    """
    params, x, _, delta = drawn(case)
    delta, seen = floats_of(delta), []
    other = jax.tree.map(lambda d: np.asarray(d)[::-1] * np.float32(0.5) + 1, delta)
    found = jax.device_get(everything(case, seen)(params, x, delta, other))
    delta_x, sites = found["own"]
    own = delta_x, jax.tree.map(lambda site: site.gradient, sites, is_leaf=is_site)
    due, due_second = found["due"]
    compare(own, due, title=f"{case.name} float32").assert_ok()
    close = {"rtol": 2e-5, "atol": 2e-5}
    one, rest, summed = (jax.tree.map(lambda leaf, i=i: leaf[i], found["many"]) for i in range(3))
    chex.assert_trees_all_close(one, own, **close)
    chex.assert_trees_all_close(summed, jax.tree.map(np.add, one, rest), **close)
    again, second = found["again"]
    chex.assert_trees_all_close(again, own, **close)
    chex.assert_trees_all_close(second, due_second, rtol=2e-4, atol=2e-4)

    if case not in LAYERS:
        return
    expected = sites_of(case, x)
    assert len(seen) == len(expected)
    assert set(seen) == set(expected)
    assert bool(expected) == bool(jax.tree.leaves(params))
    for site in jax.tree.leaves(sites, is_leaf=is_site):
        if np.size(site.due):
            chex.assert_trees_all_close(
                (site.rows, site.back), (site.due,) * 2, rtol=2e-4, atol=2e-5
            )
    if jax.tree.leaves(delta_x):  # ids carry no delta
        for (path, _), nan in zip(
            jax.tree_util.tree_leaves_with_path(params), found["carries"], strict=True
        ):
            name = jax.tree_util.keystr(path)
            still = name.endswith(tuple(f"['{still}']" for still in case.still))
            assert nan.any() != still, name


ON_ALL_MESHES = ("affine", "conv", "layer_norm", "embedding", "lstm", "mixture_of_experts")
ON_MESHES = [
    pytest.param(case, kinds, id=f"{case.name}-{'-'.join(kinds)}", marks=marks)
    for case in ONE_A_LAYER
    for kinds, marks in (
        (("explicit",), ()),
        (("auto", "shard_map"), [pytest.mark.slow] * (case.name not in ON_ALL_MESHES)),
    )
]


@pytest.mark.parametrize(("case", "kinds"), ON_MESHES)
def test_on_meshes(case, kinds):
    """A batch over eight devices: what one device gives, gradients the same on all of them."""
    params, x, _, delta = jax.device_get(drawn(case))
    x, delta = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), (x, delta))

    def sweep(params, x, delta):
        y, residuals = case.layer.forward(params, x)
        return y, *case.layer.backward(params, residuals, delta)

    due = jax.device_get(jax.tree.leaves(jax.jit(sweep)(params, x, delta)))
    for kind in kinds:
        if kind != "shard_map":
            found = _on_mesh(sweep, kind, params, x, delta)
        elif not case.mixes:  # each device has a batch of its own there
            found = _under_shard_map(case.layer, params, x, delta)
        compare(jax.device_get(jax.tree.leaves(found)), due, title=kind).assert_ok()


def _on_mesh(sweep, kind, params, x, delta):
    axis = AxisType.Explicit if kind == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis,))
    with jax.set_mesh(mesh):
        whole, parts = (NamedSharding(mesh, spec) for spec in (P(), P("data")))
        given = jax.device_put(params, whole), *jax.device_put((x, delta), parts)
        # As a function of its own: what was traced without the mesh may not be taken again.
        found = jax.jit(lambda *args: sweep(*args))(*given)
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(found[2]))
    return found


def _under_shard_map(layer, params, x, delta):
    layer = differentiable(layer)

    def local(params, x, delta):
        def value(params, floats):
            y = layer(params, with_floats(x, floats))
            kept = jax.tree.map(lambda d, leaf: jnp.sum(d * leaf), delta, floats_of(y))
            return jax.lax.psum(sum(jax.tree.leaves(kept)), "data"), y

        grads, y = jax.grad(value, (0, 1), has_aux=True)(params, floats_of(x))
        return y, grads[1], grads[0]

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    specs = (P("data"), P("data"), P())
    run = jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=specs)
    return jax.jit(run)(params, x, delta)


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
    draw = np.random.default_rng(4)
    others = jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(leaf.dtype), params)

    def affine(x, p, other):
        through_other = x @ other["w"].T
        return through_other + jax.lax.stop_gradient(x @ p["w"].T - through_other) + p["b"]

    def reference(x, params, others):
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

    @jax.jit
    def both(params, others, x, delta):
        _, residuals = case.layer.forward(params, x)
        _, pullback = jax.vjp(lambda x: reference(x, params, others), x)
        return case.layer.backward(others, residuals, delta), pullback(delta)[0]

    (delta_x, grads), due = both(params, others, x, delta)
    compare(delta_x, due).assert_ok()
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
