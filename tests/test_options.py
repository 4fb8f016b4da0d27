"""Options of constructors: NumPy's integers are integers, and what makes no sense is refused."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcprop as fp
from funcprop import LayerError
from funcprop import statistics as st
from funcprop.core.checks import floats_of

KEY = jax.random.key(0)


def structs(*shapes):
    return tuple(
        jax.ShapeDtypeStruct(shape, "int32" if kind == "i" else "float32") for shape, kind in shapes
    )


VECTOR, SEQUENCE, IMAGE = (4,), (5, 4), (6, 6, 4)
GRAPH = structs(((5, 4), "f"), ((3, 2), "i"))
TREE = structs(((5, 4), "f"), ((5, 2), "i"))
IDS = jax.ShapeDtypeStruct((5,), "int32")
HEADS = structs(*[((5, 2, 4), "f")] * 3)
MODEL, LOSS = fp.mlp((4, 3, 2)), fp.softmax_cross_entropy()
FEW = fp.mlp((4, 3, 2)), LOSS

# Every public constructor that takes integers: those that make sense, what else it needs, and for
# a layer the shape of an example.
LAYERS = {
    "affine": ({"features": 3}, {}, VECTOR),
    "dense": ({"features": 3}, {}, VECTOR),
    "attention": ({"window": 2, "block": 3}, {}, HEADS),
    "avg_pool": ({"window": 2, "stride": 1}, {}, IMAGE),
    "max_pool": ({"window": (2, 3), "stride": 2}, {}, IMAGE),
    "conv": (
        {"features": 4, "kernel": (3, 2), "stride": 2, "dilation": (1, 2), "groups": 2},
        {},
        IMAGE,
    ),
    "conv_transpose": (
        {"features": 4, "kernel": 3, "stride": (2, 1), "dilation": 1, "groups": 1},
        {},
        IMAGE,
    ),
    "decoder_block": (
        {"heads": 2, "hidden": 5, "window": 3, "kv_heads": 1},
        {},
        structs((SEQUENCE, "f"), ((3, 6), "f")),
    ),
    "embedding": ({"vocab": 5, "features": 3}, {}, IDS),
    "fork": ({"n": 2}, {}, VECTOR),
    "geglu": ({"hidden": 3}, {}, VECTOR),
    "glu": ({"hidden": 3}, {}, VECTOR),
    "swiglu": ({"hidden": 3}, {}, VECTOR),
    "graph_attention": ({"features": 4, "heads": 2}, {}, GRAPH),
    "graph_conv": ({"features": 3}, {}, GRAPH),
    "group_norm": ({"groups": 2}, {}, IMAGE),
    "lstm": ({"hidden": 3, "truncate": 2, "chunk": 2}, {}, SEQUENCE),
    "gru": ({"hidden": 3, "truncate": 2, "chunk": 2}, {}, SEQUENCE),
    "rnn": ({"hidden": 3, "truncate": 2, "chunk": 2}, {}, SEQUENCE),
    "mixture_of_experts": ({"experts": 3, "hidden": 5, "chosen": 2}, {}, SEQUENCE),
    "mlp": ({"sizes": (4, 3, 2)}, {}, VECTOR),
    "multi_head_attention": (
        {"heads": 4, "window": 3, "kv_heads": 2, "head_size": 6, "block": 2},
        {},
        SEQUENCE,
    ),
    "on": ({"i": 1}, {"layer": fp.dense(3)}, structs((VECTOR, "f"), (VECTOR, "f"))),
    "positional": ({"length": 7}, {}, SEQUENCE),
    "repeat": ({"n": 2}, {"layer": fp.dense(4)}, VECTOR),
    "ssm": ({"states": 3}, {}, SEQUENCE),
    "transformer_block": (
        {"heads": 2, "hidden": 5, "window": 3, "kv_heads": 1},
        {},
        SEQUENCE,
    ),
    "tree_lstm": ({"hidden": 3}, {}, TREE),
    "tree_rnn": ({"hidden": 3}, {}, TREE),
    "pick": ({"entries": (1, 0)}, {}, structs((VECTOR, "f"), (VECTOR, "f"))),
    "reshape": ({"shape": (2, -1)}, {}, VECTOR),
    "transpose": ({"axes": (1, 0)}, {}, SEQUENCE),
}
OTHERS = {
    "equilibrium_propagation": ({"steps": 2, "nudged_steps": 3}, {"model": MODEL, "loss": LOSS}),
    "evolution": ({"pairs": 4, "chunk": 2}, {"objective": len}),
    "evolution_strategies": ({"pairs": 4, "chunk": 2}, {"model": MODEL, "loss": LOSS}),
    "fixed_prediction": ({"steps": 2}, {"model": MODEL, "loss": LOSS}),
    "forward_forward": ({"classes": 3}, {"model": MODEL}),
    "forward_gradient": ({"directions": 2}, {"model": MODEL, "loss": LOSS}),
    "linear_cross_entropy": ({"vocab": 5, "chunk": 2}, {}),
    "predictive_coding": ({"steps": 2}, {"model": MODEL, "loss": LOSS}),
    "weight_mirror": ({"samples": 2}, {"model": MODEL, "loss": LOSS, "rate": 0.1}),
    "statistics.hessian_diagonal": ({"samples": 2}, {"model": MODEL, "loss": LOSS}),
    "statistics.sampled": ({"count": 2}, {}),
}
# Theirs are read where they are called, and tested there.
CALLED = {
    "backpropagation", "check_gradient", "check_layer", "evaluate", "fit", "init", "patience",
    "statistics.eigenpairs",
}  # fmt: skip


def made(name, options, others):
    make = fp
    for part in name.split("."):
        make = getattr(make, part)
    if len(options) == 1 and name in ("pick", "reshape", "transpose"):
        (entries,) = options.values()
        return make(*(entries if isinstance(entries, tuple) else (entries,)))
    return make(**options, **others)


def test_every_constructor_that_takes_integers_is_here():
    found = set()
    for prefix, module in (("", fp), ("statistics.", st)):
        for name, value in vars(module).items():
            if not name.startswith("_") and inspect.isfunction(value):
                hints = [str(p.annotation) for p in inspect.signature(value).parameters.values()]
                if any("int" in h.replace("Callable[[int, int], Layer]", "") for h in hints):
                    found.add(prefix + name)
    assert found == {*LAYERS, *OTHERS, *CALLED}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.usefixtures("strict", "x64")
def test_integers_of_numpy_make_the_same_layer(name):
    """Under the strictest rules a NumPy integer that meets an array would change its dtype."""
    options, others, shape = LAYERS[name]

    def traced(options):
        layer = made(name, options, others)

        def sweep(key):
            params, out = layer.init(key, shape)
            params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
            alone = isinstance(shape, tuple) and not any(hasattr(s, "dtype") for s in shape)
            structs = jax.ShapeDtypeStruct(shape, jnp.float32) if alone else shape
            x = jax.tree.map(lambda s: jnp.zeros((2, *s.shape), s.dtype), structs)
            y, residuals = layer.forward(params, x)
            delta = floats_of(y)
            return out, y, *layer.backward(params, residuals, delta)

        outs = []

        def arrays(key):
            out, *rest = sweep(key)
            outs.append(out)
            return rest

        return jax.eval_shape(arrays, KEY), outs

    assert traced(jax.tree.map(np.int64, options)) == traced(options)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.usefixtures("x64")
def test_integers_of_numpy_are_taken_by_rules_losses_and_statistics(name):
    options, others = OTHERS[name]
    rule, plain = (made(name, each, others) for each in (jax.tree.map(np.int64, options), options))
    if isinstance(plain, fp.Rule) and name != "evolution":

        def traced(rule):
            def estimate(key, x, y):
                params, _ = MODEL.init(key, VECTOR)
                return rule.estimate(params, rule.init(key, params), x, y, key)

            x = jnp.zeros((3, 4 - options.get("classes", 0)))  # that rule appends the label
            return jax.eval_shape(estimate, KEY, x, jnp.zeros(3, jnp.int32))

        assert traced(rule) == traced(plain)


@pytest.mark.parametrize("name", [*LAYERS, *OTHERS])
@pytest.mark.parametrize("bad", [3.0, True, "3", -2, np.float32(2), np.True_], ids=repr)
def test_what_is_no_positive_integer_is_refused(name, bad):
    options, others = (LAYERS | OTHERS)[name][:2]
    for option, value in options.items():
        values = [bad] if not isinstance(value, tuple) else [(*value[:-1], bad)]
        if isinstance(value, tuple) and name not in ("mlp", "pick", "reshape", "transpose"):
            values.append(bad)
        for each in values:
            with pytest.raises(LayerError) as raised:
                made(name, options | {option: each}, others)
            # One sentence that names the option.
            assert option in str(raised.value) or name == "pick"
            assert len(str(raised.value)) < 250


# ------------------------------------------------------------------------ rates and flags

RULES = {
    "dp_sgd": {"max_norm": 1.0, "noise_multiplier": 1.0, "sampling_rate": 0.5},
    "difference_target_propagation": {"shape": VECTOR, "optimizer": optax.sgd(0.1)},
    "equilibrium_propagation": {},
    "evolution": {},
    "evolution_strategies": {},
    "fixed_prediction": {},
    "forward_forward": {"classes": 3},
    "forward_gradient": {},
    "hebbian": {},
    "kfac": {"shape": VECTOR},
    "predictive_coding": {},
    "sign_symmetry": {},
    "weight_mirror": {"rate": 0.1},
}


def options_of(name, kind):
    parameters = inspect.signature(getattr(fp, name)).parameters.values()
    return [p.name for p in parameters if kind in str(p.annotation).split(" | ")]


def rule(name, **options):
    given = (len,) if name == "evolution" else (MODEL,)
    given += (LOSS,) * (name not in ("evolution", "forward_forward"))
    return getattr(fp, name)(*given, **(RULES[name] | options))


def test_every_rule_with_rates_or_flags_is_here():
    def takes(name):
        value = getattr(fp, name)
        rules = inspect.isfunction(value) and value.__module__.startswith("funcprop.learning")
        return rules and (options_of(name, "float") or options_of(name, "bool"))

    assert {name for name in vars(fp) if not name.startswith("_") and takes(name)} == set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_rates_and_flags_that_make_no_sense_are_refused(name):
    bad = ("0.1", True, float("nan"), float("inf"), -float("inf"), -0.5, np.float32("nan"), 1j)
    bad += (jnp.array([0.1]), np.True_, [0.1], object())
    for option in options_of(name, "float"):
        for value in (np.float32(0.5), jnp.array(0.5)):
            rule(name, **{option: value})
        for value in bad:
            if option == "threshold" and isinstance(value, float) and value == -0.5:
                continue
            with pytest.raises(LayerError, match=f"{name.replace('_strategies', '')}: {option} is"):
                rule(name, **{option: value})
        with pytest.raises(LayerError, match=f"{option} is .*Tracer"):
            jax.eval_shape(lambda v, option=option: rule(name, **{option: v}) and v, 0.5)
    for option in options_of(name, "bool"):
        for value in ("no", 0, 1.0, None):
            with pytest.raises(LayerError, match=f"{option} is .*, it must be True or False"):
                rule(name, **{option: value})
