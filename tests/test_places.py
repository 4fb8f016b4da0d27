"""Every layer of a model has one place, and all who name it give it the same name."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcprop as fp
from funcprop.checking import Report, models
from funcprop.core.places import located, walk

BLOCK = fp.residual(fp.serial(fp.layer_norm(), fp.dense(6, fp.tanh)))
MODEL = fp.serial(
    fp.bidirectional(fp.rnn(3)),
    fp.last_step,
    fp.residual(fp.dense(6, fp.tanh)),
    fp.repeat(fp.repeat(BLOCK, 2), 3),
    fp.remat(fp.cast(fp.dense(6), "float32")),
    fp.fork(2),
    fp.parallel(fp.dense(2), fp.serial(fp.dense(4), fp.dense(2))),
    fp.on(1, fp.dense(2)),
    fp.pick(0),
)
SHAPE = (5, 4)
LEAVES = [(place, layer) for place, layer in walk(MODEL) if not layer.parts]


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(0), SHAPE)[0]


def test_the_places():
    assert [place for place, _ in LEAVES] == [
        "layers[0].layers[0]",
        "layers[0].layers[1].reverse",
        "layers[1]",
        "layers[2].residual",
        "layers[3].repeat[:].repeat[:].residual.layers[0]",
        "layers[3].repeat[:].repeat[:].residual.layers[1]",
        "layers[4].remat.cast",
        "layers[5]",
        "layers[6].layers[0]",
        "layers[6].layers[1].layers[0]",
        "layers[6].layers[1].layers[1]",
        "layers[7].on",
        "layers[8]",
    ]
    assert len({place for place, _ in LEAVES}) == len(LEAVES)


def test_summary_names_them():
    rows = fp.summary(MODEL, SHAPE).rows
    assert [(row.position, row.name.split(" × ")[-1]) for row in rows] == [
        (place, layer.name) for place, layer in LEAVES
    ]


def test_errors_name_them(params):
    """Weights of a wrong size are refused by the layer that they are of, forward."""
    found = set()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if path[-1].key != "w":
            continue
        wrong = jax.tree_util.tree_map_with_path(
            lambda p, a, path=path: jnp.concatenate([a, a], -1) if p == path else a, params
        )
        with pytest.raises(fp.LayerError) as error:
            jax.eval_shape(MODEL.apply, wrong, jnp.ones((2, *SHAPE)))
        found.add((error.value.position, error.value.layer))
        assert leaf.ndim >= 2
    assert found == {(p, layer.name) for p, layer in LEAVES if layer.name in ("dense", "rnn")}


def test_errors_on_the_way_back_name_them(params):
    """So does one that a statistic raises."""
    at = fp.sites(located(MODEL), SHAPE)
    named = [s for s in jax.tree.leaves(at, is_leaf=_is_site) if _is_site(s)]
    x = jnp.ones((2, *SHAPE))

    for site in named:

        def refusing(own, inputs, delta, site=site):
            if own.name == site.name:
                raise fp.LayerError(own.name, "refused")
            return ()

        def sweep(params, refusing=refusing):
            y, residuals = located(MODEL).forward(params, x)
            return located(MODEL).backward(params, residuals, y, refusing)[1]

        with pytest.raises(fp.LayerError) as error:
            jax.eval_shape(sweep, params)
        assert error.value.position == site.name


def _is_site(leaf):
    return isinstance(leaf, fp.Site)


def test_init_names_them():
    for place, layer in walk(MODEL):
        if layer.name == "dense":
            broken = _with_init(place)
            with pytest.raises(fp.LayerError) as error:
                broken.init(jax.random.key(0), SHAPE)
            assert error.value.position == place


def _with_init(at):
    from funcprop.core.places import rebuilt

    def wrap(layer, place, inner):
        made = layer if inner is None else inner

        def init(key, shape):
            raise fp.LayerError(layer.name, "refused")

        return made._replace(init=init) if place == at and inner is None else made

    return rebuilt(MODEL, wrap)


def test_reports_and_metrics_name_them(params, monkeypatch):
    """Of a report the parts that are to be judged; the judgement itself takes a minute."""
    monkeypatch.setattr(
        models, "judged", lambda *_, title, **__: Report(title, ("manual", "jax.vjp"), (), ())
    )
    monkeypatch.setattr(models, "side_by_side", lambda *_, **__: Report("", ("", ""), (), ()))
    x, y = np.ones((3, *SHAPE), np.float32), np.ones((3, 2), np.float32)
    loss = fp.mean_squared_error
    report = fp.check_model(MODEL, params, x, y, loss, parts=True)
    places = {re.sub(r"repeat\[\d\]", "repeat[:]", part.title) for part in report.parts}
    leaves = {f"{place} {layer.name}" for place, layer in LEAVES}
    assert leaves <= places
    assert {p for p in places - leaves if not p.endswith("between its parts")} == {
        "loss mean_squared_error"
    }
    rule = fp.backpropagation(MODEL, loss)
    state = fp.init_state(rule, optax.sgd(0.1), params, jax.random.key(2))
    metrics = jax.eval_shape(fp.alignment(rule, MODEL, loss), state, (x, y))
    named = {re.sub(r"repeat\[\d\]", "repeat[:]", key) for key in metrics if "angle " in key}
    found = {re.sub(r"\['.*'\]$", "", key.removeprefix("angle ")) for key in named}
    with_parameters = {"dense", "rnn", "layer_norm"}
    assert found == {place for place, layer in LEAVES if layer.name in with_parameters}
    repeated = [key for key in metrics if "angle layers[3].repeat[2].repeat[1]" in key]
    assert len(repeated) == 2
    part = "layers[3].repeat[2].repeat[1].residual.layers[1] dense"
    assert part in {p.title for p in report.parts}
