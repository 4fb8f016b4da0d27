"""What is refused: a call, what its message holds, and the error where it is no LayerError.

Arrays are of NumPy and parameters are drawn where a row asks for them, as every run of the suite
imports this table.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

import funcprop as fp
from funcprop import compare, statistics
from funcprop.cases.graph import MESSAGE
from funcprop.checking import central_differences, complex_step
from funcprop.data.datasets import split
from funcprop.data.tables import DataError
from funcprop.statistics import kfac_factors, precondition_by_kfac
from tests.drawing import params_of

TABLE = []
KEY = jax.random.key(0)
SGD = optax.sgd(0.1)
CE, MSE = fp.softmax_cross_entropy(), fp.mean_squared_error


def family(rows):
    """Puts the rows of a function into the table, under its name."""
    TABLE.extend((rows.__name__, *row) for row in rows())
    return rows


def ones(*shape, dtype="float32"):
    return np.ones(shape, dtype)


def changed(array, place, value):
    """A copy with another value in one place."""
    array = array.copy()
    array[place] = value
    return array


def structs(x):
    """The shape of an example of x."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)


params = cache(params_of)


def applied(layer, shape):
    """The layer with parameters that fit an example of that shape, as a function of x."""
    return lambda x: layer.apply(params(layer, shape), x)


# ------------------------------------------------------------------------------ layers


@family
def activations():
    return [
        *(
            (partial(layer.apply, (), ones(5)), r"x has shape \(5,\), a batch")
            for layer in (fp.softmax, fp.log_softmax)
        ),
        *(
            (partial(layer.apply, (), x), f"{layer.name}: x is {message}")
            for layer in (fp.relu, fp.gelu, fp.softmax)
            for x, message in (
                (ones(2, 2, dtype="int32"), "int32, floats are due; cast it"),
                ([1.0], "a list, an array is due"),
            )
        ),
        (lambda: fp.celu(0), "alpha is 0"),
        (lambda: fp.dense(3, fp.dense(3)).init(KEY, (2,)),
         "dense: its activation dense has parameters"),
        *(
            (partial(fp.dense, features), r"features is .*, it must be a positive integer")
            for features in (0, -1, 2.0, True)
        ),
    ]  # fmt: skip


@family
def attention():
    x, q = ones(2, 3, 4), ones(2, 3, 2, 2)
    mha = fp.multi_head_attention(2)
    run = applied(mha, (3, 4))
    return [
        (lambda: fp.attention(window=0), "attention: window is 0, it must be a positive integer"),
        (lambda: fp.attention(block=1.5), "block is 1.5"),
        (lambda: fp.attention().apply((), q), r"x is no tuple \(q, k, v\)"),
        (lambda: fp.attention().apply((), (q, q)), r"x is no tuple \(q, k, v\)"),
        (lambda: fp.attention().apply((), (q, q, q[:, :2])), "k and v alike"),
        (lambda: fp.attention().apply((), (q[:, :, :1], q, q)), "heads of q a multiple"),
        (lambda: fp.attention().apply((), (q, q, x)), r"v is \(2, 3, 4\), \(B, length"),
        (lambda: fp.attention().apply((), (q, q, q.astype("bfloat16"))), "v is bfloat16; cast"),
        (lambda: fp.attention().apply((), (q, q, q, x)), r"mask is float32\[2, 3, 4\], bool\[2, 3"),
        (lambda: fp.attention().init(KEY, (3, 2, 2)), r"shape is \(3, 2, 2\), \(q, k, v\)"),
        (lambda: fp.rotary(0), "rotary: base is 0"),
        (lambda: fp.rotary().apply((), x[..., :3]), "with an even d is due"),
        (lambda: fp.rotary().init(KEY, (3,)), "with an even d is due"),
        (lambda: fp.rotary().apply((), x.astype("int32")), "rotary: x is int32"),
        (lambda: fp.multi_head_attention(0), "heads is 0"),
        (lambda: fp.multi_head_attention(4, kv_heads=3), "kv_heads is 3, a divisor of the 4"),
        (lambda: fp.multi_head_attention(4, rotary_base=-1), "base is -1"),
        (lambda: fp.multi_head_attention(3).init(KEY, (3, 4)), "a multiple of the 3 heads"),
        (lambda: mha.init(KEY, (4,)), r"x is \(4,\), a sequence \(T, n\)"),
        (lambda: run(x[0]), r"x is \(3, 4\), a sequence \(B, T, n\)"),
        (lambda: run((x, x, x)), r"the input has 3 entries, x or \(x, mask\) is due"),
        (lambda: fp.multi_head_attention(2, cross=True).apply(params(mha, (3, 4)), x),
         "1 entries, .x, memory"),
        (lambda: mha.apply({"w": 1}, x), r"params is not a dict of \['out', 'qkv'\]"),
        (lambda: run(ones(2, 3, 6)), r"multi_head_attention dense: w is \(12, 4\)"),
        (lambda: fp.swiglu(0), "swiglu: hidden is 0"),
        (lambda: fp.glu(3).init(KEY, ()), r"glu: shape is \(\)"),
        (lambda: fp.geglu(3).apply({"w": 1}, x), r"params is not a dict of \['in', 'out'\]"),
        (lambda: fp.transformer_block(2, 8, feed_forward=fp.glu(3)),
         "hidden and feed_forward are given"),
        (lambda: fp.transformer_block(2, norm=fp.layer_norm), "constructor, call it"),
        (lambda: fp.transformer_block(2).init(KEY, (3, 5)), "a multiple of the 2 heads"),
    ]  # fmt: skip


@family
def combinators():
    x = ones(4, 5)
    return [
        (lambda: fp.serial(fp.dense(3), fp.residual(fp.dense(4))).init(KEY, (5,)),
         r"layers\[1\] residual: its layer dense turns shape \(3,\) into \(4,\)"),
        (lambda: fp.repeat(fp.dense(4), 2).init(KEY, (5,)), r"repeat: its layer dense turns shape"),
        (lambda: fp.repeat(fp.dense(4), 0), r"repeat: n is 0"),
        (lambda: fp.fork(0), r"fork: n is 0"),
        (lambda: fp.repeat(fp.dense(5), 2).apply(params(fp.repeat(fp.dense(5), 3), (5,)), x),
         r"repeat: a parameter has shape \(3, 5\), \(2, \.\.\.\) is due"),
        (lambda: fp.parallel(fp.relu, fp.relu).apply(((), ()), x),
         r"parallel: x is a .*, a tuple of 2"),
        (lambda: fp.parallel(fp.relu).init(KEY, (5,)),
         r"parallel: shape is that of one array, \(5,\), a tuple of 1 is due"),
        (lambda: fp.on(2, fp.relu).apply((), (x, x)),
         r"on: x is a tuple of 2, a tuple with an entry 2"),
        (lambda: fp.on(-1, fp.relu), r"on: its entry is -1, it must be a nonnegative integer"),
        (lambda: fp.on(1.0, fp.relu), r"on: its entry is 1.0, it must be a nonnegative integer"),
        (lambda: fp.pick(-1), r"pick: its entry is -1, it must be a nonnegative integer"),
        (lambda: fp.pick(True), r"pick: its entry is True, it must be a nonnegative integer"),
        (lambda: fp.pick(), r"pick: it was given no entry"),
        (lambda: fp.pick(0, 0), r"pick: entries is \(0, 0\), each entry must be picked once"),
        (lambda: fp.pick(0, 2).apply((), (x, x)),
         r"pick: x is a tuple of 2, a tuple with an entry 2"),
        (lambda: fp.serial(fp.relu).apply((), x),
         r"serial: params has 0 entries, a tuple of 1 is due"),
        (lambda: fp.serial(fp.relu).apply(None, x), r"serial: params has NoneType"),
        (
            lambda: fp.serial(fp.relu, fp.serial(fp.relu, fp.dense(2))).apply(
                ((), ((), params(fp.dense(2), (4,)))), x
            ),
            r"layers\[1\]\.layers\[1\] dense: x has 5 features, its weights take 4",
        ),
        (lambda: fp.residual(jnp.tanh), r"residual: tanh is not a Layer"),
        (lambda: fp.residual(fp.dense(4)).apply(params(fp.dense(4), (5,)), x),
         r"its layer dense turns float32\[4, 5\] into float32\[4, 4\]"),
        (lambda: fp.dense(3).init(KEY, ()), r"dense: shape is \(\)"),
        (lambda: fp.dense(3).init(KEY, (jax.ShapeDtypeStruct((5,), "float32"),)),
         r"dense: shape is \(Shape.* one example's shape \(..., n > 0\) is due"),
        (lambda: fp.serial(fp.relu, jnp.tanh),
         r"layers\[1\]: tanh is not a Layer.*elementwise\(tanh"),
    ]  # fmt: skip


class Tensor:
    """An array of another library."""

    dtype, shape, ndim = "torch.float32", (4, 5), 2


Tensor.__module__ = "torch"


@family
def slips():
    """What every newcomer does once; each answer is short."""
    x = ones(4, 5)
    two = fp.serial(fp.dense(8), fp.dense(3))
    run = applied(two, (5,))
    return [
        (lambda: fp.relu(), r"^relu: it is a layer already; write relu without \(\)$"),
        (lambda: fp.serial(fp.flatten(), fp.dense(3)), r"^flatten: .* write flatten without"),
        (lambda: fp.relu(x), r"^relu: .* not called; write layer\.apply\(params, x\)"),
        (lambda: two(params(two, (5,)), x),
         r"^serial: .* not called; write layer\.apply\(params, x\)"),
        (lambda: fp.dense(4, 3), r"^dense: two sizes are given, 4 and 3; write dense\(3\)"),
        (lambda: fp.dense(3, "relu"), r"'relu' is not a Layer: it is a str; .* dense\(3, relu\)"),
        (lambda: fp.rnn(4, 8), "rnn: 8 is not a Layer: it is an int; .* given here but to init"),
        (lambda: fp.serial([fp.dense(3), fp.relu]), r"\[dense, relu\] is .* a list; .*\(\*layers"),
        (lambda: fp.serial(fp.relu for _ in "ab"), r"it is a generator; .* serial\(\*layers\)"),
        (lambda: fp.serial(Tensor()), r"layers\[0\]: .* is not a Layer: it is a torch.Tensor"),
        (lambda: fp.summary((4,), two), r"^summary: \(4,\) is not a Layer"),
        (lambda: fp.sites((4,), two), r"^sites: \(4,\) is not a Layer"),
        (lambda: fp.differentiable(jnp.tanh), "^differentiable: tanh is not a Layer"),
        (lambda: fp.value_and_backprop(two, fp.relu), "relu is not a Loss: it is a Layer"),
        (lambda: two.init((5,), KEY), r"^serial: key and shape are swapped; write init\(key"),
        (lambda: two.init(7, (5,)), r"^serial: key is 7, .* write jax.random.key\(7\)"),
        (lambda: two.init(None, (5,)), r"layers\[0\] dense: key is None, .* jax.random.key\(0\)"),
        (lambda: two.init(jax.random.split(KEY), (5,)), r"key is key<fry>\[2\], it must be one"),
        (lambda: two.init(KEY, 5), r"^serial: shape is 5; it must be a tuple; write \(5,\)$"),
        (lambda: two.init(KEY, x), r"shape is float32\[4, 5\]; .* of one example, x.shape\[1:\]$"),
        (lambda: two.init(KEY, (None, 5)), "must be integers; leave the batch axis out"),
        (lambda: two.init(KEY, (5.0,)), r"shape is \(5.0,\); sizes must be integers"),
        (lambda: two.init(KEY, (-1, 5)), r"sizes must not be negative"),
        (lambda: fp.relu.init(KEY, (0,)), r"relu: shape is \(0,\); .* one feature or more"),
        (lambda: jax.jit(two.init)(KEY, (5,)), "sizes must not be traced; .* out of"),
        (lambda: fp.concatenate.init(KEY, (x, x)), r"shape is float32\[4, 5\] in .* x.shape\[1:\]"),
        (lambda: fp.relu._replace(init=lambda k, s: s).init(KEY, (5, 4, 3)), "must give .params"),
        (lambda: fp.on(1, fp.dense(3)).init(KEY, ((5,), jax.ShapeDtypeStruct((5,), int))),
         "dense: shape is that of int.*, floats are due"),
        (lambda: two.apply(x), r"^serial: x is missing; write apply\(params, x\)"),
        (lambda: two.apply(x, params(two, (5,))), "^serial: params and x are swapped; write apply"),
        (lambda: fp.relu.apply(x, ()), r"^relu: x is \(\), without an array; write apply\(params"),
        (lambda: two.apply(two.init(KEY, (5,)), x), "^serial: params is what init gives, a pair"),
        (lambda: run(Tensor()), r"a torch.Tensor, .*; write np.asarray\(x\)"),
        (lambda: two.forward(params(two, (5,)), Tensor()),
         r"layers\[0\] dense: x is a torch.Tensor"),
        (lambda: fp.flatten.forward((), Tensor()), "flatten: x is a torch.Tensor"),
        (lambda: run(x.tolist()), r"x is a list, .*; write jnp.asarray\(x\)"),
        (lambda: run({"a": x}), "dense: x is a dict, an array is due"),
        (lambda: fp.dense(np.float32(3)), "features is float32.*, it must be a positive integer"),
        (lambda: fp.reshape((2, 2)), r"write reshape\(\*shape\)"),
        *(
            (
                partial(getattr, fp, name),
                f"'funcprop' has no attribute '{name}'; .*{hint}",
                AttributeError,
            )
            for name, hint in (
                ("Linear", r"dense\(features\)"),
                ("Sequential", "serial"),
                ("cross_entropy", "softmax_cross_entropy"),
                ("add", "residual"),
                ("Softmax", "it is called softmax"),
                ("Conv2d", "conv"),
            )
        ),
    ]  # fmt: skip


@family
def convolution():
    x, p = ones(2, 6, 5, 4), {"w": ones(3, 3, 4, 6), "b": ones(6)}
    return [
        (lambda: fp.conv(0, 3), "conv: features is 0"),
        (lambda: fp.conv(6, 3, groups=0), "groups is 0, it must be a positive integer"),
        (lambda: fp.conv(6, 3, groups=4), "groups is 4, a divisor of the 6 features"),
        (lambda: fp.conv(6, 3, groups=3).init(KEY, (5, 4)), "groups is 3, a divisor of the 4 chan"),
        (lambda: fp.conv(6, 3, padding="FULL"), "padding is 'FULL', one of SAME, VALID, CAUSAL"),
        (lambda: fp.conv_transpose(6, 3, padding="CAUSAL"), "one of SAME, VALID is due"),
        (lambda: fp.conv(6, 3, padding=1),
         r"padding is 1, .* for each axis a pair \(in front, behind\)"),
        (lambda: fp.conv(6, 3, padding=[(0, 0)] * 2).init(KEY, (5, 4)),
         "a pair .* for each of 1 axes"),
        (lambda: fp.conv(6, 3, padding=[(1.5, 2)]), "pair .* of nonnegative integers"),
        (lambda: fp.conv(6, 3, padding=[(0, -1)]), "pair .* of nonnegative integers"),
        (lambda: fp.conv(6, 3, stride=0).init(KEY, (5, 4)),
         "stride is 0, it must be a positive integer"),
        (lambda: fp.conv(6, (3, 3)).init(KEY, (5, 4)), r"kernel is \(3, 3\), .* 1 of them"),
        (lambda: fp.conv(6, 3, dilation=True).init(KEY, (5, 4)), "dilation is True"),
        (lambda: fp.conv(6, 3).init(KEY, (4,)), r"one example is \(4,\), \(\*sizes, channels\)"),
        (lambda: fp.conv(6, 7, padding="VALID").init(KEY, (5, 4)), r"too small .* would be \(-1,"),
        (lambda: fp.conv(6, 3).apply(p, x[..., :3]), "x has 3 channels, its weights take 4"),
        (lambda: fp.conv(6, 3).apply(p, x.astype("bfloat16")), "x is bfloat16, w is float32"),
        (lambda: fp.conv(6, 3).apply(p, x.astype("int32")), "x is int32, floats are due"),
        (lambda: fp.conv(6, 3).apply({"w": p["w"]}, x), r"params is \['w'\]"),
        (lambda: fp.conv(6, 3).apply(p | {"b": ones(5)}, x), r"b is \(5,\), \(6,\) is due"),
        (lambda: fp.conv(6, 5).apply(p, x), r"w is \(3, 3, 4, 6\), \(5, 5, channels/1, 6\)"),
    ]  # fmt: skip


@family
def embedding():
    x, w, ids = ones(2, 4, 3), ones(5, 3), ones(1, 2, dtype="int32")
    return [
        (lambda: fp.embedding(0, 3), "vocab is 0, it must be a positive integer"),
        (lambda: fp.embedding(5, 1.5), "features is 1.5"),
        (lambda: fp.embedding(5, 3).apply({"w": w}, x), "x is float32, an array of integer ids"),
        (lambda: fp.embedding(5, 3).apply({"w": w}, [1]), "x is a list, an array is due"),
        (lambda: fp.embedding(5, 3).apply({"w": w}, ids[0, 0]), r"one id, a batch .* x\[None\]"),
        (lambda: fp.embedding(6, 3).apply({"w": w}, ids), r"w is \(5, 3\), .* \(6, 3\) is due"),
        (lambda: fp.embedding(5, 3).apply({"v": w}, ids), r"params is \['v'\]"),
        (lambda: fp.embedding(5, 3).apply(w, ids), "params is a "),
        (lambda: fp.embedding(5, 3).init(KEY, jax.ShapeDtypeStruct((2,), jnp.float32)),
         r"shape \(2,\) is of floats, ids are integers"),
        (lambda: fp.positional(0), "length is 0"),
        (lambda: fp.positional(3).init(KEY, (4, 3)), "x has 4 positions, p has 3; give a larger"),
        (lambda: fp.positional(9).init(KEY, (4,)), r"shape is \(4,\), a sequence \(T, d\) is due"),
        (lambda: fp.positional(9).apply({"p": w}, x), r"p is float32\[5, 3\], float32\[9, 3\] is"),
        (lambda: fp.positional(9).apply(w, x), "params is a dict"),
        (lambda: fp.positional(3).apply({"p": w}, x), "x has 4 positions, p has 3"),
        (lambda: fp.positional(3).apply({"p": w}, ids), "x is int32, floats are due"),
        (lambda: fp.sinusoidal(0), "base is 0, it must be a finite number above 0"),
        (lambda: fp.sinusoidal().apply((), ones(2, 3)), r"x is \(2, 3\), a sequence \(B, T"),
    ]  # fmt: skip


@family
def graph():
    x, edges, mask = ones(2, 3, 4), np.zeros((2, 5, 2), np.int32), ones(2, 3, dtype=bool)
    shape = structs((x, edges))
    conv, attention = fp.graph_conv(2), fp.graph_attention(2)
    convolved, attended = applied(conv, shape), applied(attention, shape)
    passing = fp.message_passing(MESSAGE)
    with_features = fp.message_passing(MESSAGE, edge_features=True)
    return [
        (lambda: fp.graph_conv(0), "graph_conv: features is 0"),
        (lambda: convolved(x), r"input is a \w+, \(x, edges\) is due, or that with a mask"),
        (lambda: convolved((x,)), "input is a tuple of 1"),
        (lambda: convolved((x[0], edges)), r"x is \(3, 4\), nodes \(B, N > 0, d\)"),
        (lambda: convolved((x.astype("int32"), edges)), "x is int32, floats are due"),
        (lambda: convolved((x, edges[:, 0])), r"edges is int32\[2, 2\], integers \[2, E, 2\]"),
        (lambda: convolved((x, edges.astype("uint8"))), "edges is uint8"),
        (lambda: convolved((x, edges, edges)), r"mask is int32\[2, 5, 2\], bool\[2, 3\]"),
        (lambda: convolved((x, edges, mask[:, :2])), r"mask is bool\[2, 2\], bool\[2, 3\]"),
        (lambda: convolved((x, edges + 3)), r"an edge is \(3, 3\).*nodes in \[0, 3\)"),
        (lambda: attended((x, changed(edges, (1, 1, 0), -1))), r"edge is \(-1, 0\)"),
        (lambda: convolved((x[..., :3], edges)), "graph_conv: x has 3 features, its weights"),
        (lambda: conv.apply({"w": params(conv, shape)["w"]}, (x, edges)),
         r"params is \['w'\], a dict of"),
        (lambda: conv.init(KEY, (3, 4)), r"shape is \(3, 4\), a tuple .*, as \(x, edges\), is due"),
        (lambda: conv.init(KEY, structs((x, x, mask))), r"edges is float32\[1, 3, 4\]"),
        (lambda: fp.graph_attention(2, 0), "graph_attention: heads is 0"),
        (lambda: attention.apply({"w": 1}, (x, edges)), r"not a dict of \['in', 'out'\]"),
        (lambda: attention.apply(params(attention, shape) | {"out": {}}, (x, edges)),
         r"params\['out'\] is not a dict"),
        (lambda: fp.graph_attention(2, 2).apply(params(attention, shape), (x, edges)),
         r"a is \(2, 1, 2\), b is \(2,\), a \(2, 2, 2\) and b \(4,\) are due"),
        (lambda: attended((x[..., :3], edges)), "graph_attention dense: x has 3"),
        (lambda: fp.message_passing(jnp.tanh), "message_passing message: tanh is not a Layer"),
        (lambda: fp.message_passing(MESSAGE, fp.dense), "update: dense is not a Layer"),
        (lambda: fp.message_passing(MESSAGE, reduce="min"), "is 'min', 'sum', 'mean' or 'max'"),
        (lambda: fp.graph_pool(jnp.max), "graph_pool: reduce is .*'sum', 'mean' or 'max' is due"),
        (lambda: passing.apply((), (x, edges)), r"params is no pair \(message's, update's\)"),
        (lambda: with_features.apply((), (x, edges)), r"tuple of 2, \(x, edges, features\) is due"),
        (lambda: with_features.apply((), (x, edges, x)),
         r"features is \(2, 3, 4\), \(2, 5, 'f'\) are due"),
        (lambda: fp.message_passing(fp.identity).init(KEY, shape),
         r"message_passing: its message gives .* for one example, \(5, m\) is due"),
        (lambda: fp.message_passing(MESSAGE, fp.identity).init(KEY, shape),
         r"its update gives .*, \(3, m\) is due"),
        (lambda: fp.message_passing(fp.identity).apply(((), ()), (x, edges)),
         "what its message gives is a tuple"),
        (
            lambda: fp.message_passing(fp.serial(fp.pick(0), fp.flatten)).apply(
                (((), ()), ()), (x, edges)
            ),
            r"its message gives \(2, 20\), \(2, 5, 'm'\) is due",
        ),
        (lambda: passing.apply((((), {"w": x[0], "b": x[0, 0]}), ()), (x, edges)),
         r"message.layers\[1\] dense: w is"),
    ]  # fmt: skip


@family
def mixture_of_experts():
    x, y = ones(2, 3, 4), np.array([0, 1], np.int32)
    moe, loss = fp.mixture_of_experts(3, 5), fp.auxiliary(CE, 0.1)
    run = applied(moe, (3, 4))
    pair = ones(2, 3), ones(2)
    return [
        (lambda: fp.mixture_of_experts(0, 3), "mixture_of_experts: experts is 0, it must be a pos"),
        (lambda: fp.mixture_of_experts(2, 1.5), "hidden is 1.5"),
        (lambda: fp.mixture_of_experts(2, 3, chosen=3), "chosen is 3, at most the 2 experts"),
        (lambda: fp.mixture_of_experts(2, 3, activation=jnp.tanh), "tanh is not a Layer"),
        (lambda: fp.mixture_of_experts(2, 3, activation=fp.dense(3)).init(KEY, (4,)),
         "its activation dense has parameters"),
        (lambda: moe.init(KEY, ()), r"shape is \(\), \(..., n > 0\) is due"),
        (lambda: moe.apply({"w": 1}, x), r"params is not a dict of \['down', 'router', 'up'\]"),
        (lambda: run(x.astype("int32")), "x is int32, floats are due"),
        (lambda: run(x[0, 0]), r"x is \(4,\), a batch \(B, ..., n\)"),
        (lambda: run(x[..., :3]), r"up holds float32\[3, 5, 4\], float32\[3, 5, 3\] is"),
        (lambda: run(x.astype("bfloat16")), r"bfloat16\[3, 5, 4\] is due"),
        (lambda: run((x, y, y, y)), r"x is a tuple of 4, \(x, mask\), \(x, balance\) or"),
        (lambda: run((x, y)), r"balance is int32\[2\], float32\[2\] is due"),
        (lambda: run((x, x[..., 0])), r"balance is float32\[2, 3\], .* a mask is of bool"),
        (lambda: run((x, x[..., 0], x[:, 0, 0])), r"mask is float32\[2, 3\], bool\[2, 3\]"),
        (lambda: run((x, y > 0)), r"mask is bool\[2\], bool\[2, 3\] is due"),
        (lambda: run((x, [[True] * 3] * 2)), "balance is a list, float32"),
        (lambda: moe.init(KEY, structs((x, y > 0))),
         r"shape is .*, \(..., n > 0\) is due, or that with a mask \(...\), with a balance"),
        (lambda: fp.transformer_block(2, 8, experts=moe),
         "transformer_block: hidden and experts are given, one of them is due"),
        (lambda: fp.transformer_block(2, 0), "transformer_block: hidden is 0"),
        (
            lambda: fp.transformer_block(2, feed_forward=moe).init(
                KEY, structs((x, x[..., 0] > 0))
            ),
            r"residual: entry 0 of what its layer serial gives is a tuple.* as experts=layer",
        ),
        (lambda: fp.auxiliary(fp.softmax_cross_entropy, 1.0), "constructor, call it"),
        (lambda: fp.auxiliary(loss, "1"), "coefficient is '1', a number is due"),
        (lambda: fp.auxiliary(loss, float("inf")), "coefficient is inf, a finite number"),
        (lambda: loss.apply((), pair[0]), r"x must be the pair \(prediction, target\)"),
        (lambda: loss.apply((), (pair[0], y)), "prediction is one array, a pair"),
        (lambda: loss.apply((), ((*pair, y), y)), "prediction is a tuple of 3, a pair"),
        (lambda: loss.apply((), ((pair[0], y), y)),
         r"beside the prediction is int32\[2\], float32"),
        (lambda: CE.apply((), (pair, y)),
         r"returns a tuple of 2, a loss takes one array; .* use auxiliary\(loss, coefficient\)"),
        (
            # Of examples of one token the experts' load is all that mixes them.
            lambda: jax.eval_shape(
                statistics.squared_norms(moe, fp.auxiliary(MSE, 0.1)),
                params(moe, (2,)),
                ones(4, 2),
                ones(4, 2),
            ),
            "it mixes the examples of a batch",
        ),
    ]  # fmt: skip


@family
def normalization():
    x, p = ones(2, 3, 4), {"scale": ones(4), "b": ones(4)}
    one = ones(1)
    held = {"mean": one, "variance": one}

    def given(norm, first=()):
        """Statistics put into a model that holds them already."""
        model = fp.serial(fp.relu, fp.residual(fp.frozen_norm(one, one)))
        return fp.with_statistics(model, (first, (norm,)))

    return [
        (lambda: fp.layer_norm(epsilon=0),
         "layer_norm: epsilon is 0, it must be a finite number above 0"),
        (lambda: fp.group_norm(2, epsilon=np.inf),
         "group_norm: epsilon is inf, it must be a finite number"),
        (lambda: fp.frozen_norm(one, one, epsilon=np.nan), "frozen_norm: epsilon is nan"),
        (lambda: fp.batch_norm(epsilon=True), "batch_norm: epsilon is True"),
        (lambda: fp.rms_norm(epsilon="a"), "rms_norm: epsilon is 'a'"),
        (lambda: fp.batch_norm(epsilon=-1), "epsilon is -1"),
        (lambda: fp.layer_norm().apply(p, x[..., :3]), "x has 3 features, b is (.4,.); check"),
        (lambda: fp.layer_norm().apply(p, x.astype("bfloat16")), "x is bfloat16, b is float32"),
        (lambda: fp.layer_norm().apply(p, x.astype("int32")), "x is int32, floats are due"),
        (lambda: fp.layer_norm().apply(p, x[0, 0]), r"x has shape \(4,\), .* use x\[None\]"),
        (lambda: fp.rms_norm().apply(p, x), r"params is \['b', 'scale'\], a dict of \['scale'\]"),
        (lambda: fp.layer_norm().apply(x, x), "a dict of"),
        (lambda: fp.layer_norm().init(KEY, ()), r"shape is \(\), one example's shape"),
        (lambda: fp.group_norm(0), "groups is 0, it must be a positive integer"),
        (lambda: fp.group_norm(3).init(KEY, (2, 4)), "groups is 3, a divisor of the channels"),
        (lambda: fp.group_norm(3).apply(p, x), "groups is 3, a divisor of the channels"),
        (lambda: fp.frozen_norm(1.0, one), r"mean has shape \(\), \(C,\) is expected"),
        (lambda: fp.frozen_norm([1.0], one), "mean is a list, an array is due"),
        (lambda: fp.frozen_norm(one.astype("int32"), one), "mean is int32, floats are due"),
        (lambda: fp.frozen_norm(one, -one), "1 of 1 values of variance are not finite and not neg"),
        (lambda: fp.frozen_norm(one * np.inf, one), "1 of 1 values of mean are not finite"),
        (lambda: fp.frozen_norm(one, ones(2)), r"mean has shape \(1,\), variance \(2,\)"),
        (lambda: fp.frozen_norm(one, one).apply(p, x), "its mean has 1 channels, x has 4"),
        (lambda: fp.frozen_norm(one, one).init(KEY, (4,)), "its mean has 1 channels, x has 4"),
        (lambda: given({}), r"statistics\[1\]\[0\] frozen_norm: a dict of \[\] came"),
        (lambda: given(()), r"statistics\[1\]\[0\] frozen_norm: \(\) came, a dict of"),
        (lambda: given({"mean": one}),
         r"a dict of \['mean'\] came, a dict of \['mean', 'variance'\]"),
        (lambda: given(held, held), r"statistics\[0\] is a dict .*, \(\) is expected for relu"),
        (lambda: fp.with_statistics(fp.batch_norm(), ()), r"statistics frozen_norm: \(\) came"),
        (lambda: fp.with_statistics(fp.remat(fp.batch_norm()), None), "is None, a tuple"),
        (
            lambda: fp.with_statistics(
                fp.frozen_norm(one, one), jax.tree.map(lambda a: np.tile(a, 2), held)
            ),
            r"statistics\['mean'\] has shape \(2,\), the model holds \(1,\)",
        ),
        (
            lambda: fp.with_statistics(fp.repeat(fp.batch_norm(), 2), (held,)).apply(
                {"scale": ones(2, 1), "b": ones(2, 1)}, ones(3, 1)
            ),
            r"repeat: statistics have shape \(1,\), \(2, ...\) is expected",
        ),
        (
            lambda: (
                fp.repeat(fp.frozen_norm(one, one), 2)
                .parts[0]
                .apply({"scale": one, "b": one}, ones(3, 1))
            ),
            r"frozen_norm: its mean has shape \(2, 1\).* it is a part of repeat",
        ),
        (lambda: fp.statistics_of(fp.remat(fp.batch_norm())), "batch_norm: it holds no statistics"),
        (lambda: fp.dropout(1.0), "dropout: rate is 1.0, .* at least 0 and below 1"),
        (lambda: fp.dropout(-0.1), "rate is -0.1"),
        (lambda: fp.dropout(jnp.zeros(1)), "rate is Array"),
        (lambda: fp.dropout(0.1).apply((), x.astype("int32")), "dropout: x is int32"),
        (lambda: fp.calibrate(fp.batch_norm(), p, []), "calibrate: data holds no batch"),
        (lambda: fp.calibrate(fp.batch_norm(), p, x[:0]), "a batch norm was given .* empty"),
        (lambda: fp.calibrate(fp.batch_norm(), p, x * np.inf), "values of mean are not finite"),
    ]  # fmt: skip


@family
def pooling_and_shapes():
    x = ones(2, 6, 5, 4)
    return [
        (lambda: fp.max_pool(2, padding="CAUSAL"), "padding is 'CAUSAL', one of SAME, VALID"),
        (lambda: fp.max_pool(0).apply((), x),
         "max_pool: window is 0, it must be a positive integer"),
        (lambda: fp.max_pool((2, 2, 2)).apply((), x), r"window is \(2, 2, 2\), .* 2 of them"),
        (lambda: fp.max_pool(2, -1).apply((), x), "stride is -1"),
        (lambda: fp.max_pool(7).apply((), x), r"one example is \(6, 5, 4\), too small for the wi"),
        (lambda: fp.max_pool(7).init(KEY, (6, 5, 4)), "too small"),
        (lambda: fp.max_pool(2, 1, [(2, 0), (0, 0)]).apply((), x),
         r"less than the window \(2, 2\)"),
        (lambda: fp.max_pool(2, 1, [(0, 0)]).apply((), x), r"a pair .* for each of 2 axes is due"),
        (lambda: fp.max_pool(2).apply((), x[0, 0]), r"one example is \(4,\), \(\*sizes, channels"),
        (lambda: fp.max_pool(2).init(KEY, (4,)), r"one example is \(4,\)"),
        (lambda: fp.max_pool(2).apply((), x.astype("int32")),
         "max_pool: x is int32, floats are due"),
        (lambda: fp.avg_pool(7).apply((), x), "avg_pool: .* too small"),
        (lambda: fp.avg_pool(2).apply((), x.astype("int32")), "avg_pool: x is int32"),
        (lambda: fp.global_avg_pool.apply((), x.astype("int32")), "global_avg_pool: x is int32"),
        (lambda: fp.global_avg_pool.init(KEY, (4,)), "global_avg_pool: one example"),
        (lambda: fp.global_avg_pool.apply((), x[0, 0]), "global_avg_pool: one example"),
        (lambda: fp.reshape(-1, -1), "only one entry may be -1"),
        (lambda: fp.reshape(2.0), "whole numbers are due"),
        (lambda: fp.reshape(7, -1).apply((), x), r"\(6, 5, 4\) with 120 elements, .* \(7, -1\)"),
        (lambda: fp.reshape(7).init(KEY, (2, 3)), "with 6 elements, they do not fill"),
        (lambda: fp.reshape(7).apply((), [1]), "x is a list, an array is due"),
        (lambda: fp.flatten.init(KEY, (jax.ShapeDtypeStruct((2,), float),)), "that of one array"),
        (lambda: fp.flatten.apply((), (x, x)), "x is a tuple, an array is due"),
        (lambda: fp.transpose(0, 1).apply((), x), r"axes is \(0, 1\), the numbers 0 to 2"),
        (lambda: fp.transpose(1, 2, 3).init(KEY, (2, 3, 4)), "the numbers 0 to 2"),
        (lambda: fp.transpose().apply((), None), "x is missing"),
        (lambda: fp.concatenate.apply((), x), "concatenate: x is .*, a tuple of arrays is due"),
        (lambda: fp.concatenate.init(KEY, (6, 5)), r"shape is \(6, 5\), a tuple of arrays is due"),
        (lambda: fp.concatenate.apply((), (x, x[:, :, 1:])), "in the last axis only"),
        (lambda: fp.concatenate.apply((), (x, x.astype("int32"))),
         r"float32.*, int32.*; one dtype"),
    ]  # fmt: skip


@family
def precision():
    x = ones(16, 5)
    return [
        (lambda: fp.cast(fp.dense(3), "int32"), "dtype is int32, one of floats is due"),
        (lambda: fp.cast(jnp.tanh, "bfloat16"), "tanh is not a Layer"),
        (lambda: fp.cast(fp.tanh, "float64").apply((), x),
         "dtype is float64, which jax.enable_x64 has to allow"),
        (
            lambda: fp.cast(fp.dense(3), "bfloat16").apply(
                {"w": ones(3, 5), "b": ones(3, dtype="bfloat16")}, x
            ),
            r"params are \['bfloat16', 'float32'\], one dtype is due",
        ),
    ]  # fmt: skip


@family
def mlp():
    given = params(fp.mlp((4, 6, 3)), (4,))
    rows = [
        (lambda p: fp.init(KEY, (4,)), r"mlp: sizes is \(4,\), it must be two or more"),
        (lambda p: fp.init(KEY, (4, 0)), r"sizes is \(4, 0\)"),
        (lambda p: fp.init(KEY, (4, 2.0)), r"two or more positive integers"),
        (lambda p: fp.apply({}, ones(1, 4)), r"params must be a tuple of"),
        (lambda p: fp.apply(p, ones(2, 5)),
         r"layers\[0\] dense: x has 5 features, its weights take 4 \(w is \(6, 4\)\); check"),
        (lambda p: fp.apply(p, ones(4)), r"x has shape \(4,\), a batch .* use x\[None\]"),
        (lambda p: fp.apply(p, ones(2, 4, dtype="int32")),
         r"layers\[0\] dense: x is int32, floats"),
        (lambda p: fp.apply(p, ones(2, 4, dtype="bfloat16")),
         r"layers\[0\] dense: x is bfloat16, w is float32; cast"),
        (lambda p: fp.apply((p[0], p[0]), ones(2, 4)),
         r"layers\[1\] dense: x has 6 features, its weights take 4"),
        (lambda p: fp.apply((p[0], {"w": p[1]["w"]}), ones(2, 4)),
         r"layers\[1\] dense: params is \['w'\], a dict of \['b', 'w'\] is due"),
        (lambda p: fp.apply(p, ones(2, 4), jax.nn.relu), r"dense: .*elementwise"),
        (lambda p: fp.apply(p, ones(2, 4), fp.leaky_relu), r"call it: leaky_relu\("),
        (lambda p: fp.mlp((4, 2)).init(KEY, (5,)), r"its sizes \(4, 2\) take \(4,\)"),
        (lambda p: fp.summary(fp.mlp((4, 2)), (5,)), r"its sizes \(4, 2\) take \(4,\)"),
        (lambda p: fp.serial(fp.dense(5), fp.mlp((4, 2))).init(KEY, (3,)),
         r"layers\[1\]\.layers\[0\] mlp: shape is \(5,\)"),
        (lambda p: fp.mlp(4, 8, 3), r"mlp: sizes are given one by one; .* \(4, 8, 3"),
        (lambda p: fp.init(KEY, 4, 3), r"one by one; write a tuple, \(4, 3"),
        (lambda p: fp.init(3, (4, 2)), r"key is 3, .* write jax.random.key\(3\)"),
        (lambda p: fp.init((4, 2), KEY), r"mlp: sizes is key<fry>\[\]"),
        (lambda p: fp.apply(ones(2, 4), p), r"params is float32\[2, 4\]; .* come first"),
        (lambda p: fp.backprop(ones(2, 4), ones(2, 3), p),
         r"mlp: params is float32\[2, 4\]; .* come first"),
        (lambda p: fp.apply(fp.mlp((4, 3)), p, ones(2, 4)), "params is a Layer"),
        (lambda p: fp.backprop(p, ones(2, 4), ones(2, 3), fp.softmax_cross_entropy),
         r"softmax_cross_entropy is not a Loss: it is a constructor"),
        (lambda p: fp.backprop(p, ones(2, 4), ones(3, 3)),
         r"x and y have shapes .*one leading batch axis"),
        (lambda p: fp.backprop(p, ones(0, 4), ones(0, 3)), r"1 or more examples"),
        (lambda p: fp.backprop(p, ones(2, 4), ones(2, 1)), r"prediction is \(2, 3\)"),
    ]  # fmt: skip
    return [
        (partial(run, call, given), message)
        for call, message in rows
        for run in (lambda f, p: f(p), jax.eval_shape)
    ]  # fmt: skip


@family
def recurrent():
    x, h, shape = ones(2, 3, 4), ones(2, 5), (3, 4)
    rnn, lstm, gru = (params(layer(5), shape) for layer in (fp.rnn, fp.lstm, fp.gru))
    return [
        (lambda: fp.lstm(0), "lstm: hidden is 0, it must be a positive integer"),
        (lambda: fp.rnn(5, truncate=0), "rnn: truncate is 0, it must be a positive"),
        (lambda: fp.gru(5, chunk=1.5), r"gru: chunk is 1.5, it must be a positive"),
        (lambda: fp.rnn(5, jnp.tanh), "rnn: tanh is not a Layer"),
        (lambda: fp.rnn(5, fp.dense(3)).init(KEY, (3, 4)), "activation dense has parameters"),
        (lambda: fp.lstm(5).init(KEY, (4,)), r"lstm: shape is \(4,\), \(T, d\) is due"),
        (lambda: fp.lstm(5).apply(lstm, x[0]), r"lstm: x is \(3, 4\), sequences"),
        (lambda: fp.lstm(5).apply(lstm, x[..., :2]), r"w is \(20, 4\), \(20, 2\) is due"),
        (lambda: fp.lstm(6).apply(lstm, x), r"w is \(20, 4\), \(24, 4\) is due"),
        (lambda: fp.lstm(5).apply(lstm, x.astype("bfloat16")), "x is bfloat16, w is float32"),
        (lambda: fp.lstm(5).apply(lstm, x.astype("int32")), "lstm: x is int32, floats are due"),
        (lambda: fp.lstm(5).apply(gru, x), r"params is \['h', 'x'\], a dict of \['b', 'u'"),
        (lambda: fp.gru(5).apply(lstm, x), r"gru: params is no dict of \['h', 'x'\]"),
        (lambda: fp.gru(4).apply(gru, x), r"gru: w is \(15, 4\), \(12, 4\) is due"),
        (lambda: fp.gru(5).apply(gru, (x, x)), "gru: lengths is float32.*, integers"),
        (lambda: fp.gru(5).apply(gru, (x, np.array([1, 4]))), "gru: a length is 4, .* 3 st"),
        (lambda: fp.gru(5).apply(gru, (x, x, x)), r"3 entries, .*taken with state=True"),
        (lambda: fp.gru(5, state=True).apply(gru, x), r"1 entries, \(x, state\) or \(x, len"),
        (lambda: fp.lstm(5, state=True).apply(lstm, (x, h)),
         r"state is a \w+, a tuple of 2 float32\[2, 5\] is due"),
        (lambda: fp.gru(5, state=True).apply(gru, (x, h[:1])),
         r"state is float32\[1, 5\], float32\[2, 5\] is due"),
        (lambda: fp.rnn(5, state=True).apply(rnn, (x, h.astype("bfloat16"))),
         r"state is bfloat16\[2, 5\], float32\[2, 5\]"),
        (lambda: fp.reverse(fp.lstm), "reverse: lstm is not a Layer: it is a constructor"),
        (lambda: fp.reverse(fp.gru(5)).apply(gru, x[0]), r"reverse: x is \(3, 4\), sequences"),
        (lambda: fp.bidirectional(fp.rnn), "rnn is not a Layer: it is a constructor, call it"),
        (lambda: fp.bidirectional(fp.rnn(5)).apply(rnn, x), "bidirectional: params is no pair"),
        (lambda: fp.bidirectional(fp.rnn(5)).apply((rnn,) * 2, x[0]),
         r"layers\[0\] rnn: x is \(3, 4\), sequences"),
        (lambda: fp.bidirectional(fp.rnn(5, state=True)).apply((rnn,) * 2, (x, h)),
         "bidirectional: state is no pair"),
        (lambda: fp.from_pytorch(x[0], x[0]), r"w_ih is \(3, 4\) and w_hh \(3, 4\); \(n H, d\)"),
        (lambda: fp.from_pytorch(ones(8, 3), ones(8, 2), ones(2)),
         r"b_ih is \(2,\), \(8,\) is due"),
    ]  # fmt: skip


@family
def sequence():
    x, run = ones(3, 4, 2), partial(fp.last_step.apply, ())
    return [
        (lambda: run(x[0]), r"last_step: x is \(4, 2\), sequences"),
        (lambda: run(x[:, :0]), r"sequences \(B, T > 0, d\) are due"),
        (lambda: run(x.astype("int32")), "x is int32, floats are due"),
        (lambda: run((x, x)), "lengths is float32.*, integers"),
        (lambda: run((x, np.array([1, 2]))), r"integers \[3\] are due"),
        (lambda: run((x, [1, 2, 3])), r"lengths is \[1, 2, 3\]"),
        (lambda: run((x, np.array([1, 5, 2]))), "length is 5, .* the 4 steps"),
        (lambda: run((x, np.array([1, -1, 2]))), "a length is -1"),
        (lambda: fp.last_step.init(KEY, (4,)), r"shape is \(4,\), \(T, d\) is due"),
    ]  # fmt: skip


@family
def sharing():
    x, two = ones(3, 4), fp.serial(fp.dense(4), fp.dense(4), fp.tanh)

    def backward_of(model):
        y, residuals = model.forward(params(model, (4,)), x)
        return model.backward(params(model, (4,)), residuals, y)

    return [
        (lambda: fp.share(two, (0,)), "1 paths came, two or more"),
        (lambda: fp.share(two, 0, 1), r"a path is 0, a tuple is due, as \(0,\)"),
        (lambda: fp.share(two, (0,), (0,)), r"\(0,\) and \(0,\) overlap"),
        (lambda: fp.share(two, (0,), (0, "w")), r"\(0,\) and \(0, 'w'\) overlap"),
        (lambda: fp.share(two, (0,), (-1,)), r"\(-1,\) counts from the end"),
        (lambda: fp.share(two, (0,), (7,)).init(KEY, (4,)), r"params have no \(7,\)"),
        (lambda: fp.share(two, (2,), (0,)).init(KEY, (4,)), r"\(2,\) has no parameters"),
        (lambda: fp.share(two, (0,), (1,)).init(KEY, (5,)), r"\(1,\) has .*\(0,\) has .*alike"),
        (lambda: fp.share(two, (0,), (1,)).apply((), x), "params must be {'shared'"),
        (lambda: backward_of(fp.share(two, (0, "w"), (1, "w"))),
         r"\(0, 'w'\) lies inside the site at \(0,\); share the whole site"),
        (
            lambda: backward_of(
                fp.share(
                    fp.serial(fp.repeat(fp.dense(4), 2), fp.repeat(fp.dense(4), 2)), (0,), (1,)
                )
            ),
            r"\(0,\) lies inside repeat; share outside of it",
        ),
    ]  # fmt: skip


@family
def state_spaces():
    u, x = ones(2, 3, 4), ones(2, 3, 2)
    diagonal, state = fp.diagonal_recurrence(), fp.diagonal_recurrence(state=True)
    unit = fp.ssm(2)
    run, run_unit = applied(diagonal, (3, 4)), applied(unit, (3, 2))
    return [
        (lambda: fp.diagonal_recurrence(radius=(0.5, 0.5)), r"radius is \(0.5, 0.5\), two numbers"),
        (lambda: fp.diagonal_recurrence(radius=0.5), "radius is 0.5, two numbers 0 ≤ inner"),
        (lambda: fp.diagonal_recurrence(phase=7), r"phase is 7, a number in \(0, 2π\]"),
        (lambda: fp.ssm(0), "ssm: states is 0"),
        (lambda: diagonal.init(KEY, (3, 5)), "u has 5 features, 2 N are due"),
        (lambda: diagonal.init(KEY, (3,)), r"shape is \(3,\), \(T, n\) is due"),
        (lambda: state.init(KEY, (3, 4)), r"that of \(T, n\) and of a state \(2 N,\) is due"),
        (lambda: run(u.astype("int32")), "diagonal_recurrence: u is int32, floats are due"),
        (lambda: run(u[..., :3]), r"u is \(2, 3, 3\), sequences \(B, T > 0, 2 N\)"),
        (lambda: run(u[:, :0]), r"u is \(2, 0, 4\), sequences"),
        (lambda: diagonal.apply({"nu": 1}, u), r"params is not a dict of \['nu', 'theta'\]"),
        (lambda: run(x), r"nu is float32\[2\], float32\[1\] is due"),
        (lambda: run(u.astype("bfloat16")), r"nu is float32\[2\], bfloat16\[2\] is due"),
        (lambda: run((u, u[:, 0])), "a tuple of 2, one array .* due with state=False"),
        (lambda: state.apply(params(diagonal, (3, 4)), u),
         r"one array, a pair \(sequences, state\) is due with state=True"),
        (lambda: state.apply(params(diagonal, (3, 4)), (u, u)),
         r"state is float32\[2, 3, 4\], float32\[2, 4\] is due"),
        (lambda: unit.apply({"w": 1}, x), r"params is not a dict of \['in', 'out', 'rec"),
        (lambda: run_unit(x[0]), r"ssm: x is \(3, 2\), sequences \(B, T > 0, n\)"),
        (lambda: run_unit(u), r"d is float32\[2\], float32\[4\] is due, one a feature"),
        (lambda: unit.apply(params(unit, (3, 2)) | {"in": {"w": ones(2, 2)}}, x),
         r"ssm dense: w is \(2, 2\), w \(4, n\)"),
    ]  # fmt: skip


@family
def tree():
    x, children = ones(3, 6, 3), np.full((3, 6, 2), -1, np.int32)
    pair, shape = (x, children), structs((x, children))
    run = applied(fp.tree_rnn(4), shape)
    rnn, lstm = params(fp.tree_rnn(4), shape), params(fp.tree_lstm(4), shape)
    return [
        (lambda: fp.tree_rnn(0), "tree_rnn: hidden is 0, it must be a positive integer"),
        (lambda: fp.tree_lstm(2.5), "tree_lstm: hidden is 2.5"),
        (lambda: fp.tree_rnn(4, jnp.tanh), "tree_rnn: tanh is not a Layer"),
        (lambda: fp.tree_rnn(4, fp.dense(4)).init(KEY, shape), "activation dense has parameters"),
        (lambda: fp.tree_rnn(4).init(KEY, (6, 3)), r"shape is \(6, 3\), that of \(x, children\)"),
        (lambda: fp.tree_lstm(4).init(KEY, shape[:1] * 2 + shape[1:]), r"\(N, C\), is due"),
        (lambda: run(x), "tree_rnn: x is a ndarray, the pair"),
        (lambda: run((x, children, x)), "x is a tuple of 3, the pair"),
        (lambda: run((x[0], children)), r"x is \(6, 3\), nodes \(B, N > 0, d\)"),
        (lambda: run((x.astype(int), children)), "x is int64, floats are due"),
        (lambda: run((x, x)), r"children is float32\[3, 6, 3\], signed integers \[3, 6, C\]"),
        (lambda: run((x, children.astype("uint8"))), r"children is uint8\[3, 6, 2\]"),
        (lambda: run((x, children[:, 1:])), r"children is int32\[3, 5, 2\]"),
        (lambda: run((x, 7)), "children is int, signed integers"),
        (lambda: run((x, changed(children, (2, 3, 1), 3))),
         r"children\[2, 3\] has 3, a node from 0 to 2 or -1"),
        (lambda: run((x, changed(children, (2, 4, 1), -2))),
         r"children\[2, 4\] has -2.*before their parents"),
        (lambda: fp.tree_rnn(4).apply((rnn,), pair),
         r"params is a tuple, a dict of \['b', 'u', 'w'\]"),
        (lambda: run((x[..., :2], children)), r"w is \(4, 3\), \(4, 2\) is due for x with 2"),
        (lambda: run((x.astype("float16"), children)), "x is float16, w is float32; cast one"),
        (lambda: fp.tree_rnn(5).apply(rnn, pair), r"w is \(4, 3\), \(5, 3\) is due"),
        (lambda: fp.tree_lstm(4).apply(rnn, pair), r"\['b', 'u', 'w'\], a dict of \['forget', 'ga"),
        (lambda: fp.tree_lstm(4).apply(lstm | {"forget": {"w": 1}}, pair),
         r"forget: params is \['w'\]"),
        (lambda: fp.tree_lstm(5).apply(lstm, pair), r"gates: w is \(12, 3\), \(15, 3\) is due"),
    ]  # fmt: skip


# ------------------------------------------------------------------------------ losses


@family
def vocabulary():
    w, h, t = ones(3, 3, 5), ones(4, 5), np.zeros(4, np.int32)
    loss = fp.linear_cross_entropy(7, chunk=3)
    run = partial(loss.apply, {"w": w})
    return [
        (lambda: fp.linear_cross_entropy(0), "vocab is 0, it must be a positive integer"),
        (lambda: fp.linear_cross_entropy(5, chunk=0), "chunk is 0, it must be a positive integer"),
        (lambda: fp.linear_cross_entropy(5, label_smoothing=1),
         "label_smoothing is 1, it must be a finite number"),
        (lambda: loss.init(KEY, ((0,), ())), "features is 0"),
        (lambda: loss.apply((), (h, t)), "params is a tuple, a dict"),
        (lambda: loss.apply({"w": w[:2]}, (h, t)), r"w is float32\[2, 3, 5\].*\[3, 3, 5\] is due"),
        (lambda: run((h.astype("bfloat16"), t)), "prediction is bfloat16"),
        (lambda: run((h[0], t)), r"prediction is \(5,\), hidden \(B, ..., d"),
        (lambda: run((h, t[:3])), r"labels are \(3,\), \(4,\) are due"),
        (lambda: run((h, t[:, None])), r"use target\[..., 0\]"),
        (lambda: run((h, h)), "target is float32, integer labels are due"),
        (lambda: run((h, t == 0)), "target is bool, integer labels"),
        (lambda: run((h, (t, t == 0))), "a mask is for tokens"),
    ]  # fmt: skip


@family
def losses():
    p, t = ones(4, 5), np.linspace(-2, 2, 20, dtype=np.float32).reshape(4, 5)
    labels = np.array([0, 4, 2, 2], np.int32)
    one_hot = np.eye(5, dtype=np.float32)[labels]
    square = fp.function(lambda _, pt: (pt[0] - pt[1]) ** 2, fp.no_parameters, name="square")
    weighted = partial(fp.weighted(CE).apply, ())
    while_tracing = [
        (CE, p, labels[:, None], r"labels are \(4, 1\), \(4,\) are due; use target\[\.\.\., 0\]"),
        (CE, p, labels[:3], r"labels are \(3,\), \(4,\) are due"),
        (CE, p, labels.astype("float32"), r"distributions .* are due; labels must be integers"),
        (CE, p, one_hot.astype("int32"), r"distributions must be floats"),
        (CE, p, labels == 0, r"target is bool, integer labels or distributions are due"),
        (CE, p, one_hot.astype("bfloat16"), r"prediction is float32, target is bfloat16"),
        (CE, p[0], labels[0], r"prediction is \(5,\), a batch of scores"),
        (CE, p[:0], labels[:0], r"prediction has shape \(0, 5\), a batch of one example or more"),
        (CE, p, [0, 1, 2, 3], r"target is a list of 4, an array is due, or .*\(target, mask\)"),
        (CE, p[:2], [0, 1], r"target is a list of 2, an array is due, or .*jnp.asarray"),
        (fp.hinge, p[:2], [[1] * 5] * 2, r"target is a list of 2, an array is due, or .*"),
        (CE, p, 3, r"labels are \(\), \(4,\) are due"),
        (CE, p, (labels, labels == 0), r"a mask is for tokens.* use sample_weight"),
        (fp.kl_divergence, p, labels,
         r"kl_divergence: target is int32, distributions .* use jax.nn.one_hot"),
        (MSE, p[:, :1], t[:, 0], r"\(4, 1\), target is \(4,\); use target\[:, None"),
        (MSE, p[:, 0], t[:, :1], r"prediction is \(4,\), target is \(4, 1\)"),
        (MSE, p, labels, r"these look like labels; use jax.nn.one_hot"),
        (MSE, p, one_hot.astype("int32"), r"target is int32, floats are due"),
        (MSE, p, t[:, :4], r"prediction is \(4, 5\), target is \(4, 4\)"),
        (MSE, p[:, :0], t[:, :0], r"prediction is empty"),
        (fp.sigmoid_cross_entropy, p, t[0], r"target is \(5,\)"),
        (fp.huber(), p.astype("int32"), t, r"huber: prediction is int32, floats are due"),
    ]  # fmt: skip
    where_concrete = [
        (CE, changed(labels, 1, 5), r"a label is 5, labels of 5 classes lie in \[0, 5\)"),
        (CE, changed(labels, 1, -1), r"a label is -1"),
        (CE, np.array([0, 1, 2, 2**32 + 3]), r"a label is 4294967299"),
        (CE, one_hot * 2, r"a target sums to 2, a distribution is due"),
        (CE, t - 3, r"a target is -[\d.]+, a distribution is due"),
        (fp.kl_divergence, one_hot * 2, r"kl_divergence: a target sums to 2"),
        (fp.sigmoid_cross_entropy, t, r"targets lie in \[.*\], \[0, 1\] is due"),
        (fp.hinge, one_hot, r"a target is 0.0, each must be -1 or 1"),
    ]  # fmt: skip
    return [
        *(
            (partial(run, partial(loss.apply, ()), (prediction, target)), message)
            for loss, prediction, target, message in while_tracing
            for run in (lambda f, x: f(x), jax.eval_shape)
        ),
        *(
            (partial(run, loss, target), message)
            for loss, target, message in where_concrete
            for run in (
                lambda loss, y: loss.apply((), (p, y)),
                lambda loss, y: fp.value_and_backprop(fp.identity, loss)((), p, y),
            )
        ),
        (lambda: weighted((p, labels)), r"x must be \(prediction, \(w, target\)\)"),
        (lambda: weighted((p, (labels, labels))),
         r"w is int32\[4\], float32\[4\] is due; the target is \(w, target\)"),
        (lambda: weighted((p, (t[:, :1], labels))), r"w is float32\[4, 1\], float32\[4\] is due"),
        (lambda: weighted((p, ([1.0] * 4, labels))), r"w is a list, an array float32\[4\] is due"),
        (lambda: weighted((p, (np.array([0, np.nan, 1, 1], "f"), labels))),
         r"a weight is nan, each must be finite"),
        (lambda: weighted((p, (ones(4), changed(labels, 1, 9)))),
         r"softmax_cross_entropy: a label is 9"),
        *(
            (partial(fp.value_and_backprop, fp.dense(1), loss), message)
            for loss, message in (
                (lambda p, y: p - y, r"bare function; use a loss of funcprop \(mean_squared"),
                (optax.l2_loss,
                 r"l2_loss is not a Loss: it is a bare function.*function\(f, no_param"),
                (square, r"square is not a Loss: it is a Layer.*Loss\(layer.init, layer.forward"),
                (fp.softmax_cross_entropy, r"constructor, call it: softmax_cross_entropy\(\)"),
                (3, r"3 is not a Loss: it is a int"),
            )
        ),
        (lambda: MSE(p, labels), "mean_squared_error: it is a Loss already"),
        (lambda: CE(p, labels), "softmax_cross_entropy: it is a Loss already"),
        (lambda: fp.softmax_cross_entropy(1.0),
         r"label_smoothing is 1.0, .* at least 0 and below 1"),
        (lambda: fp.huber(0), "threshold is 0, it must be a finite number above 0"),
    ]  # fmt: skip


@family
def masks():
    scores, labels = np.zeros((2, 6, 3), np.float32), np.zeros((2, 6), np.int32)
    vocabulary, weighted = fp.linear_cross_entropy(4), fp.weighted(CE)
    drawn = partial(params, vocabulary, structs((scores, labels)))

    def refused(loss, target, run):
        """One message for a mask, with jit and without it."""
        given = (ones(2), target) if loss is weighted else target
        run(loss.apply)(drawn() if loss is vocabulary else (), (scores, given))

    return [
        (partial(refused, loss, (target, mask), run), message)
        for mask, message in (
            (ones(2, 6), r"mask is float32\[2, 6\], bool\[2, 6\] is due"),
            (ones(2, 6, dtype="int32"), r"mask is int32\[2, 6\], bool\[2, 6\] is due"),
            (ones(2, 5, dtype=bool), r"mask is bool\[2, 5\], bool\[2, 6\] is due"),
            (ones(2, 6, 3, dtype=bool), r"mask is bool\[2, 6, 3\], bool\[2, 6\] is due"),
            ([[True] * 6] * 2, r"mask is a list, bool\[2, 6\] is due"),
            (True, r"mask is bool\[\], bool\[2, 6\] is due"),
        )
        for loss, target in (
            (CE, labels),
            (CE, ones(2, 6, 3) / 3),
            (MSE, ones(2, 6, 3)),
            (vocabulary, labels),
            (weighted, labels),
        )
        for run in (lambda f: f, jax.jit)
    ]  # fmt: skip


# -------------------------------------------------------------- sweeps, statistics and checks


@family
def sweep():
    model, x, y = fp.mlp((4, 6, 3), fp.tanh), ones(12, 4), np.arange(12, dtype=np.int32) % 3
    shaped = cache(lambda *sizes: params(fp.mlp(sizes), sizes[:1]))
    not_per_example = CE._replace(forward=lambda params, x, key=None: (jnp.ones(()), ()))

    def run(x=x, **options):
        return fp.value_and_backprop(model, CE)(shaped(4, 6, 3), x, y, **options)

    return [
        (lambda: run(sample_weight=ones(11)),
         r"sample_weight is float32\[11\], it must be floats of shape \(12,\)"),
        (lambda: run(sample_weight=ones(12, dtype="int32")), r"sample_weight is int32\[12\]"),
        (lambda: run(sample_weight=-ones(12)),
         r"must be finite, not negative, and not 0 everywhere"),
        (lambda: run(sample_weight=0 * ones(12)), r"not 0 everywhere"),
        (lambda: run(sample_weight=np.nan * ones(12)), r"must be finite"),
        (lambda: run(microbatch=5), r"microbatch is 5, it must divide the batch, 12"),
        (lambda: run(microbatch=0), r"microbatch is 0"),
        (lambda: run(weights=shaped(4, 6, 3)[:1]), r"weights is not shaped like params"),
        (lambda: run(weights=shaped(4, 6, 2)), r"weights is not shaped like params"),
        (lambda: fp.value_and_backprop(fp.fork(2), CE)((), x, y),
         r"returns a tuple of \d, a loss takes one array"),
        (lambda: fp.value_and_backprop(fp.identity, not_per_example)((), x, y),
         r"loss: it gave .*, it must give one number an example"),
        (lambda: run(np.full((12, 4), 2**32)), "x holds 4294967296, beyond int32"),
    ]  # fmt: skip


@family
def curvature():
    """Of a loss without root and sample, and of what else no curvature can be told."""
    model, x, y = fp.serial(fp.dense(1), fp.reshape()), ones(4, 5), ones(4)
    half = MSE._replace(root=None, sample=None, likelihood=False, name="half")
    sampled = statistics.sampled()
    rule = fp.kfac(model, half, (5,))
    mixing = fp.serial(fp.batch_norm(), fp.dense(2))

    def of(statistic, model=model, x=x, y=y, **options):
        """The statistic of shapes alone."""
        p = params(model, x.shape[1:])
        return jax.eval_shape(partial(statistic, **options), p, x, y)

    def without_factors():
        transformation = precondition_by_kfac(1.0)
        return transformation.update({"w": x}, transformation.init({"w": x}))

    return [
        (lambda: of(statistics.ggn_diagonal(model, half)),
         "half: it has no root, .* errors=empirical"),
        (lambda: of(statistics.ggn_trace(model, half)),
         r"half: it has no root.*Loss\(..., root=...\)"),
        (lambda: of(kfac_factors(model, half)), "half: it has no root"),
        (lambda: of(statistics.ggn_diagonal(model, half, sampled), key=KEY),
         "half: it has no sample"),
        (lambda: of(lambda p, x, y: rule.estimate(p, rule.init(KEY, p), x, y, KEY)),
         "has no sample"),
        (lambda: of(statistics.fisher_diagonal(model, half._replace(likelihood=True))),
         "half: it has no root"),
        (lambda: of(statistics.ggn_diagonal(model, fp.weighted(CE))), "x must be|it has no root"),
        (lambda: precondition_by_kfac(0), r"damping is 0, a number above 0"),
        (without_factors, r"no factors came; train with the rule kfac"),
        (lambda: fp.kfac(fp.dense(2), MSE, (3,), decay=1), r"decay is 1, it must be"),
        (lambda: fp.kfac(fp.dense(2), fp.linear_cross_entropy(4), (3,)),
         r"linear_cross_entropy has parameters"),
        (lambda: of(kfac_factors(mixing, MSE), mixing, ones(4, 3), ones(4, 2)),
         r"batch_norm: it mixes the examples"),
    ]  # fmt: skip


@family
def of_examples():
    x, y = np.zeros((5, 4), np.float32), np.zeros((5, 1), np.float32)
    model = fp.affine(1, bias=False)
    between = partial(
        statistics.inner_products_between(model, fp.mean_absolute_error), {"w": x[:1]}
    )
    pairs = statistics.eigenpairs
    return [
        *(
            (
                partial(statistics.clipped_gradient, max_norm),
                r"max_norm is .* a number above 0 is due",
            )
            for max_norm in (0.0, -1.0, float("nan"))
        ),
        (lambda: statistics.jacobian(fp.fork(2))((), x), "output is no array of floats"),
        (lambda: pairs(lambda v: v, ones(2), 1, 3, KEY), "count ≤ steps ≤ 2 parameters is due"),
        (lambda: pairs(lambda v: v, {"ids": np.arange(3, dtype="int32")}, 1, 1, KEY),
         r"like\['ids'\] is int32, it must be of real floats"),
        (lambda: pairs(lambda v: v[:2], ones(3), 1, 1, KEY),
         r"product gave arrays of shapes \(2,\).*like, \(3,\)"),
        (
            # Nine of each, were they counted together.
            lambda: between((x, y[:4]), (x[:4], y)),
            r"batch has x and y of shapes \[\(5, 4\), \(4, 1\)\]",
        ),
        (lambda: between((x, y), (x[:4], y)), r"other has x and y .* same number of examples"),
    ]  # fmt: skip


@family
def checks():
    a, scores = ones(3), jax.ShapeDtypeStruct((5,), np.float32)
    return [
        (lambda: compare((), ()), "compare: both sides have no leaves; floats must be there"),
        (lambda: compare({"a": None}, {"a": None}), "compare: both sides have no leaves"),
        (lambda: compare([3], [3]), r"compare: both sides have \[0\] int32\[\]; floats must be"),
        (lambda: compare(ones(0, 2), ones(0, 2)), r"value float32\[0, 2\]; floats"),
        (lambda: fp.check_layer(fp.flatten, x=np.ones((2, 3), int)),
         "flatten: its parameters and input hold no floats"),
        (lambda: fp.check_model(fp.relu, (), ones(2, 3), ones(2, 3), MSE),
         "both sides have no leaves"),
        (lambda: fp.check_gradient(lambda x: x * 2.0, lambda x: 2.0, 3),
         r"check_gradient: argument 0 is int32\[\], floats are due; cast it"),
        (lambda: fp.check_gradient(lambda x: 1.0, lambda x: (), ()),
         "check_gradient: argument 0 is no arrays"),
        (lambda: fp.check_gradient(jnp.sum, jnp.ones_like, ones(2), argnums=1),
         "argnums is 1, there are 1 arguments"),
        (lambda: fp.check_layer(fp.dense(3)), "dense: give check_layer the shape"),
        (lambda: fp.check_layer(CE, ((10,), ())), r"labels must be integers; give check_layer x="),
        (lambda: fp.check_layer(CE, (scores, scores)),
         r"a distribution is due; give check_layer x="),
        (lambda: compare(a, jnp.sum), "two trees, or two functions", TypeError),
        (lambda: compare(a, a, 1), "only with two functions", TypeError),
        (lambda: central_differences(jnp.sum, jnp.ones(2)),
         r"the point is \['float32'\], float64 is due", TypeError),
        (lambda: complex_step(jnp.sum, jnp.ones(2)), "float64 is due", TypeError),
    ]  # fmt: skip


# ------------------------------------------------------------------------------ learning


def estimated(rule, model, shape, x, y, key=None, params=None):
    """The rule's estimate of the shapes of parameters alone: nothing is computed."""
    if params is None:
        params = jax.eval_shape(lambda: model.init(KEY, shape)[0])
    return jax.eval_shape(lambda p: rule.estimate(p, rule.init(KEY, p), x, y, key), params)


def in_float64(call):
    def run():
        with jax.enable_x64(True):
            call()

    return run


@family
def feedback():
    model, shape, x, y = fp.mlp((3, 6, 5, 2), fp.tanh), (3,), ones(5, 3), ones(5, 2)
    lstm = fp.serial(fp.lstm(4), fp.last_step, fp.dense(2))
    through_lstm = fp.indirect_feedback_alignment(lstm, MSE, (3, 2))
    dense = {"w": ones(2, 3), "b": ones(2)}
    grouped = fp.serial(fp.conv(2, 3, groups=2), fp.flatten, fp.dense(1))
    p = params(model, shape)
    zero = jax.tree.map(np.zeros_like, p)
    of_two = {"feedback": lambda key, w: jnp.ones(2)}
    return [
        (lambda: fp.feedback_alignment(fp.layer_norm(), MSE).init(KEY, {"scale": x, "b": x}),
         r"the model, layer_norm, has no matrices.*take back"),
        (
            in_float64(
                lambda: fp.feedback_alignment(model, MSE, **of_two).init(
                    KEY, jax.tree.map(np.float64, p)
                )
            ),
            r"feedback gave float64\[2\] for \[0\]\['w'\], float64",
        ),
        (lambda: fp.kolen_pollack(model, MSE, SGD).init(KEY, zero),
         r"the feedback of \[0\]\['w'\] is 0.*give feedback"),
        (lambda: fp.feedback_alignment(model, MSE).estimate(p, (), x, y, None),
         r"feedback_alignment: rule_state is \(\)"),
        (lambda: fp.weight_mirror(model, MSE, rate=0), "rate is 0"),
        (lambda: fp.weight_mirror(model, MSE, rate=0.1, decay=2.0),
         "decay is 2.0, it must be a finite"),
        (lambda: fp.weight_mirror(model, MSE, rate=0.1, samples=0), "samples is 0"),
        (lambda: fp.weight_mirror(model, MSE, rate=2.0),
         r"^weight_mirror: rate is 2.0, and so is the decay"),
        (
            lambda: estimated(
                *(fp.weight_mirror(grouped, MSE, rate=0.1), grouped, (3, 3, 2)),
                *(ones(5, 3, 3, 2), ones(5, 1), KEY),
            ),
            r"layers\[0\] conv: it has no matrix.*grouped.*kolen_pol",
        ),
        *(
            row
            for rule in (
                fp.direct_feedback_alignment,
                fp.direct_random_target_projection,
                fp.indirect_feedback_alignment,
            )
            for row in (
                (lambda rule=rule: rule(fp.dense(2), MSE, shape).init(KEY, dense),
                 r"model, dense, is one block.*make it a serial"),
                (partial(rule, model, fp.linear_cross_entropy(5), shape),
                 r"has parameters; put them into the model"),
                (lambda rule=rule: rule(model, MSE, shape, **of_two).init(KEY, p),
                 r"gave \(2,\) for layers\[0\], \(2, 6\) is due"),
            )
        ),
        (
            lambda: estimated(
                *(fp.direct_random_target_projection(model, CE, shape), model, shape),
                *(x, np.zeros((5, 1), int)),
            ),
            r"labels are \(5, 1\), \(5,\) are due",
        ),
        *(
            (
                lambda rule=rule: rule(
                    model, CE, shape, feedback=lambda key, shape: jnp.zeros(shape)
                ).init(KEY, p),
                rf"^{rule.__name__}: the feedback of layers\[0\] is 0, so no",
            )
            for rule in (fp.direct_feedback_alignment, fp.direct_random_target_projection)
        ),
        (lambda: through_lstm.init(KEY, params(lstm, (3, 2))),
         r"layers\[0\] lstm: indirect.*dense layers alone"),
        (lambda: through_lstm.estimate(params(lstm, (3, 2)), ones(2, 4), ones(5, 3, 2), y, None),
         r"layers\[0\] lstm: indirect.*dense layers alone"),
        (lambda: fp.feedback_alignment(CE, model),
         r"^loss: serial is not a Loss.*stands in front of the"),
    ]  # fmt: skip


@family
def rules_of_blocks():
    model, x, y = fp.mlp((4, 6, 5, 5, 3), fp.tanh), ones(5, 4), np.arange(5) % 3
    vocabulary, in_the_model = fp.linear_cross_entropy(3), "has parameters; put them into the model"
    p = params(model, (4,))
    targets = partial(fp.difference_target_propagation, shape=(4,), optimizer=SGD)

    def greedy(model, shape):
        rule = fp.greedy(model, CE, shape, SGD)
        shapes = jax.eval_shape(lambda key: model.init(key, shape)[0], KEY)
        return jax.eval_shape(rule.init, KEY, shapes)

    def hebbian(model, *shape):
        return estimated(fp.hebbian(model), model, shape, ones(2, *shape), np.zeros(2))

    def zil(model, params=None):
        return estimated(fp.zil(model, CE), model, (4,), x, y, params=params)

    ids = fp.function(
        lambda _, z: jnp.argmax(z, axis=-1),
        lambda key, shape: ((), jax.ShapeDtypeStruct((), jnp.int32)),
        name="largest",
    )
    return [
        (lambda: fp.greedy(model, vocabulary, (2,), SGD), in_the_model),
        (lambda: greedy(fp.dense(3), (2,)),
         r"greedy: the model, dense, is one block.*make it a serial"),
        (lambda: greedy(fp.serial(fp.flatten, fp.dense(3)), (2, 2)),
         r"greedy: the model, serial, is one block"),
        (
            lambda: greedy(
                fp.serial(fp.dense(3), fp.fork(2), fp.on(0, fp.dense(3)), fp.pick(0)), (2,)
            ),
            r"layers\[0:2\] greedy: .* gives a tuple, one array",
        ),
        (
            lambda: greedy(
                fp.serial(fp.dense(6), fp.reshape(3, 2), fp.dense(2), fp.reshape(2, 3)), (2,)
            ),
            r"layers\[0:2\] greedy: .* gives \(3, 2\) an example, the",
        ),
        (lambda: greedy(fp.serial(fp.relu), (2,)), r"greedy: the model, serial, is one block"),
        (lambda: fp.hebbian(fp.dense(3), vocabulary), in_the_model),
        *(
            (partial(hebbian, layer, *shape), "hebbian takes layers of one matrix, as dense")
            for layer, shape in (
                (fp.layer_norm(), (4,)),
                (fp.lstm(3), (5, 4)),
                (fp.share(fp.serial(fp.dense(4), fp.dense(4)), (0,), (1,)), (4,)),
                (fp.conv(4, 3, groups=2), (5, 5, 2)),
            )
        ),
        (lambda: hebbian(fp.serial(fp.repeat(fp.dense(4), 3)), 4),
         r"layers\[0\] hebbian: the block of repeat is not one"),
        (lambda: hebbian(fp.residual(fp.serial(fp.dense(4), fp.dense(4))), 4),
         r"^hebbian: the block of residual is not one matrix"),
        (lambda: hebbian(fp.serial(fp.dense(4), fp.fork(2)), 4),
         r"layers\[0:2\] hebbian: the block of dense, fork gives a t"),
        (lambda: fp.predictive_coding(model, CE, steps=0),
         r"predictive_coding: steps is 0, it must be a positive integer"),
        (lambda: fp.fixed_prediction(model, CE, rate=2),
         r"fixed_prediction: rate is 2, it must be a finite number above 0 and at most 1"),
        (lambda: fp.zil(model, vocabulary), r"zil: linear_cross_entropy has parameters; put them"),
        (lambda: zil(fp.dense(3)), r"zil: the model, dense, is one block.*make it a serial"),
        (lambda: zil(fp.serial(fp.dense(4), ids, fp.embedding(4, 3))),
         r"layers\[0:2\] zil: the block of dense, largest gives no"),
        (lambda: zil(model, (p[0], *p[2:])),
         r"serial: params has \d entries, a tuple of \d is due"),
        (lambda: zil(model, (*p[:-1], {"w": ones(3, 9), "b": ones(3)})),
         rf"^layers\[{len(p) - 1}\] dense: x has"),
        (lambda: targets(model, CE, step=0),
         r"propagation: step is 0, it must be a finite number above 0"),
        (lambda: targets(model, CE, noise=-1),
         r"propagation: noise is -1, it must be a finite number at least 0"),
        (lambda: targets(model, vocabulary), r"linear_cross_entropy has parameters; put them"),
        (lambda: targets(fp.dense(3), CE).init(KEY, params(fp.dense(3), (4,))),
         r"the model, dense, is one block.*make it a serial"),
    ]  # fmt: skip


@family
def forward_forward():
    model = fp.serial(fp.dense(5, fp.relu), fp.dense(6), fp.tanh, fp.dense(4))
    x, y = ones(4, 2), np.array([0, 1, 2, 0], np.int32)
    appended = r"layers\[0\] dense: x has 5 features.*appends the label, 3 classes.*so many more"

    def run(x=x, y=y, model=model, size=5):
        return estimated(fp.forward_forward(model, 3), model, (size,), x, y)

    return [
        (lambda: fp.forward_forward(model, 1), r"classes is 1, at least 2 are due"),
        (lambda: fp.forward_forward(model, 2.5), r"classes is 2.5, it must be a positive integer"),
        (lambda: fp.forward_forward(model, 3, slope=0),
         r"slope is 0, it must be a finite number above 0"),
        (lambda: run(y=ones(4)), r"y is float32\[4\], integer labels \(4,\) are due"),
        (lambda: run(y=ones(4, 3, 1, dtype="int32")),
         r"labels are \(4, 3, 1\), \(4,\) are due|integer labels"),
        (lambda: run(y=changed(y, 0, 3)), r"a label is 3, labels of 3 classes"),
        (lambda: run(x=ones(4, 3)), r"x has 6 features, its weights take 5"),
        (lambda: run(size=2), appended),
        (lambda: fp.forward_forward(model, 3).predict(params(model, (2,)), x), appended),
        (lambda: run(x=ones(4, 2, dtype="int32")), r"x is int32, floats are due"),
        (lambda: run(model=fp.serial(fp.dense(3), fp.relu, fp.batch_norm())),
         r"layers\[2\] batch_norm: it mixes the examples of a batch"),
        (lambda: run(model=fp.serial(fp.dense(3), fp.fork(2))),
         r"layers\[0:2\] forward_forward: .* a tuple, one array"),
    ]  # fmt: skip


@family
def equilibrium_propagation():
    model, rule = fp.mlp((3, 5, 4, 2)), fp.equilibrium_propagation
    return [
        (lambda: rule(fp.serial(fp.dense(3), fp.relu, fp.dense(2)), MSE),
         r"layers\[1\] relu: .*takes dense layers alone"),
        (lambda: rule(fp.conv(3, 2), MSE), r"^conv: .*takes dense layers alone"),
        (lambda: rule(model, fp.linear_cross_entropy(2)),
         "has parameters; put them into the model"),
        (lambda: rule(model, MSE, beta=0.0), r"beta is 0.0, it must be a finite number above 0"),
        (lambda: rule(model, MSE, rate=1.5),
         r"rate is 1.5, it must be a finite number above 0 and at most 1"),
        (lambda: rule(model, MSE, steps=0), r"steps is 0, it must be a positive integer"),
        (lambda: rule(model, MSE, nudged_steps=0),
         r"nudged_steps is 0, it must be a positive integer"),
        (lambda: rule(model, MSE).predict(params(model, (3,)), ones(2, 4)),
         r"layers\[0\] dense: x has 4 features"),
        (lambda: rule(model, CE, activation=fp.dense(3)),
         r"^equilibrium_propagation: activation is dense, one tha"),
        (lambda: rule(model, CE, activation=jnp.tanh),
         r"^equilibrium_propagation: activation: tanh is not a L"),
    ]  # fmt: skip


@family
def sampling_rules():
    model, p = fp.mlp((3, 2)), ones(3)
    mixing = fp.serial(fp.dense(3), fp.batch_norm(), fp.dense(2))
    drawn = partial(estimated, model=None, shape=None, x=p, y=None, key=KEY, params=p)

    def linear(params, x, y, key):
        return params @ x

    return [
        (lambda: fp.forward_gradient(model, MSE, directions=0),
         "directions is 0, it must be a positive integer"),
        (lambda: fp.forward_gradient(model, fp.linear_cross_entropy(5), activities=True),
         "has parameters, which no activity stands for"),
        (
            lambda: estimated(
                *(fp.forward_gradient(mixing, MSE, activities=True), mixing, (3,)),
                *(ones(5, 3), ones(5, 2), KEY),
            ),
            r"batch_norm: it mixes.*perturb the weights",
        ),
        (lambda: fp.evolution(linear, pairs=0), "pairs is 0"),
        (lambda: fp.evolution(linear, sigma=0), "sigma is 0, it must be a finite number above 0"),
        (lambda: drawn(fp.evolution(linear, pairs=8, chunk=5)),
         "chunk is 5, a divisor of the 8 pairs is due"),
        (in_float64(lambda: drawn(fp.evolution(lambda p, x, y, key: p), params=np.ones(3))),
         r"the objective gave float64\[3\], one number, a float"),
        (lambda: fp.evolution(linear).predict(p, p), "no prediction; give evolution a predict"),
        (lambda: drawn(fp.evolution(linear, axis="people")),
         r"axis is 'people', the mesh has .*set_mesh"),
    ]  # fmt: skip


# ------------------------------------------------------------------------------ training


@family
def private_training():
    """What would break the accounting."""
    model = fp.serial(fp.dense(4, fp.tanh), fp.dense(2))
    x, y = ones(60, 3), np.arange(60) % 2
    plateau = optax.chain(SGD, optax.contrib.reduce_on_plateau())

    def rule(**options):
        given = {"max_norm": 0.3, "noise_multiplier": 0.0, "sampling_rate": 0.2} | options
        return fp.dp_sgd(model, CE, **given)

    def fit(data=(x, y), optimizer=SGD, **options):
        fp.fit(rule(), optimizer, params(model, (3,)), data, key=KEY, steps=2, **options)

    def fit_by(optimizer):
        """Of an optimizer that would look at the loss itself."""
        with jax.numpy_dtype_promotion("standard"):  # which optax needs
            fit(optimizer=optimizer)

    drawn = r"the rule draws its own batches from all examples"
    return [
        (lambda: fit(batch_size=20), f"{drawn}.*leave out batch_size"),
        (lambda: fit([(x, y)] * 2), f"{drawn}.*as the pair"),
        (lambda: fit(sample_weight=np.ones(60)), "it takes no sample_weight"),
        *(
            (partial(fit_by, optimizer), "asks for the value of the loss")
            for optimizer in (optax.lbfgs(), plateau)
        ),
        (lambda: rule(noise_multiplier=-1),
         r"noise_multiplier is -1, it must be a finite number at least 0"),
        (lambda: rule(sampling_rate=0),
         r"sampling_rate is 0, it must be a finite number above 0 and at most 1"),
        (lambda: rule(max_norm=0), r"max_norm is 0, it must be a finite number above 0"),
        (lambda: rule().estimate(params(model, (3,)), (), x, y, None), "give the step a key"),
    ]  # fmt: skip


@family
def training():
    model = fp.mlp((4, 8, 3), fp.tanh)
    rule = fp.backpropagation(model, CE)
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    y = np.argmax(x[:, :3], axis=1).astype(np.int32)
    scores = ones(2, 3, 2)
    labels = np.array([[1, 1, 1], [0, 0, 0]], np.int32)
    normed = fp.serial(fp.batch_norm(), fp.dense(5), fp.dense(3))
    private = fp.dp_sgd(model, CE, max_norm=1.0, noise_multiplier=1.0, sampling_rate=0.5)
    objective = fp.evolution(lambda params, x, y, key: jnp.mean(params[0]["w"] ** 2), pairs=2)
    p = params(model, (4,))

    def state(rule=rule, optimizer=SGD):
        return fp.init_state(rule, optimizer, p, KEY)

    def fit(data, **options):
        given = {"rule": rule, "optimizer": SGD, "params": p, "key": KEY} | options
        return fp.fit(**given, data=data)

    def once(**options):
        return fit((x, y), steps=1, **options)

    def evaluate(y=y, p=p, **options):
        return fp.evaluate(rule, p, (x, y), **options)

    def step(state, batch=(x, y)):
        return fp.update_step(rule, SGD)(state, batch)

    def stateful(params, state, x, y, key):
        value, grads, _ = rule.estimate(params, state, x, y, key)
        return value, grads, jnp.zeros(3)

    return [
        (lambda: fit((x, y)), "give epochs or steps", ValueError),
        (lambda: fit((x, y), epochs=1, steps=1), "give epochs or steps", ValueError),
        (lambda: fit((x, y), epochs=1, batch_size=31), r"batch_size is 31, 1 to 30", ValueError),
        (lambda: fit((x, y), epochs=0), "epochs is 0"),
        (lambda: fit((x, y), epochs=1.5), r"epochs is 1\.5"),
        (lambda: fit((x, y), steps=True), "steps is True"),
        (lambda: once(every=0), "every is 0"),
        (lambda: once(unroll=0), "unroll is 0"),
        (lambda: once(key=7), r"key is 7, .* jax\.random\.key\(7\)"),
        (lambda: once(key=jax.random.split(KEY)), r"key is key.*\[2\].*one key"),
        (lambda: once(sample_weight=np.ones(7)), r"sample_weight is float\d+\[7\]"),
        (lambda: once(sample_weight=-np.ones(30)), "not negative"),
        (lambda: once(sample_weight=lambda x, y: y), r"sample_weight is int32\[30\]"),
        (lambda: once(validation=x), r"validation is float32\[30, 4\]"),
        (lambda: once(validation=(x, y, y)), "validation is a tuple of 3"),
        (lambda: once(validation=(x, y + 1)), "a label is 3"),
        (lambda: fit(x, steps=1), r"data is float32\[30, 4\], it must be the pair \(x, y\)"),
        (lambda: fit({"x": x, "y": y}, steps=1), r"data is a dict of \['x', 'y'\]"),
        (lambda: fit(None, steps=1), "data is None"),
        (lambda: fit([x, y], steps=1),
         r"data is \[float32\[30, 4\], int32\[30\]\].*a list is taken for an iterable"),
        (lambda: fit((x.tolist(), y.tolist()), steps=1), r"x\[0\]\[0\] is .*numpy\.asarray"),
        (lambda: fit((x.astype(str), y), steps=1), "x holds <U"),
        (lambda: fit((x, y.astype(np.int64) + 2**40), steps=1), r"y holds \d+, beyond int32"),
        (lambda: fit((x, y, y), steps=1), r"data is a tuple of 3"),
        (lambda: fit((x, y[:5]), steps=1), r"one leading axis of examples"),
        (lambda: fit((x, y[:, None]), steps=1), r"labels are \(30, 1\), \(30,\) are due"),
        (lambda: fit((x, y + 1), steps=1), r"a label is 3, labels of 3 classes"),
        (lambda: fit((x, y.astype(np.int64) + 2**32), steps=1),
         r"y holds 429496729\d, beyond int32"),
        (lambda: fit((x[:, :3], y), steps=1), r"layers\[0\] dense: x has 3 features"),
        (lambda: fit([(x, y + 1)]), r"a label is 3"),
        (lambda: fit([]), "without batches", ValueError),
        (lambda: fit([(x, y)], epochs=2), "go with arrays", ValueError),
        (lambda: fit(iter([(x, y), x])), r"batch 1 of data is float32\[30, 4\]"),
        (lambda: fit([(x, y), (x, y.astype(np.int64) + 2**32)]),
         "batch 1 of data: y holds .* beyond int32"),
        (lambda: fit([(x, y)], sample_weight=np.ones(30)),
         "sample_weight is an array and data an iterable"),
        (lambda: fit([(x, y)], every=0), "every is 0"),
        (lambda: once(rule=model), r"rule is the layer serial; .*backpropagation\(model, loss\)"),
        (lambda: once(rule=CE), r"rule is the layer softmax_cross_entropy"),
        (lambda: once(rule=None), "rule is None, it must be a Rule"),
        (lambda: once(optimizer=optax.adam), r"optimizer is function adam.*call it: adam\(1e-3\)"),
        (lambda: once(optimizer=0.1), r"optimizer is 0\.1.*optax\.adam\(1e-3\)"),
        (lambda: once(params=model.init(KEY, (4,))), r"params\[1\]\[0\] is 3, .*params, out_shape"),
        (lambda: once(params=[1.0]), r"params\[0\] is 1\.0"),
        (lambda: once(params=None), r"params has NoneType"),
        (lambda: once(params=list(p)), "the rule's estimate is"),
        (lambda: once(params=state()._asdict()),
         "params is a dict of a TrainState's fields.*template"),
        (lambda: once(params=state(optimizer=optax.adam(0.1))),
         "opt_state is .*go on with the rule and the optimizer that the state was made with"),
        (lambda: once(rule=fp.feedback_alignment(model, CE), params=state()),
         "rule_state is .*go on with the rule"),
        (lambda: once(rule=rule._replace(estimate=stateful)),
         "the step changed its state", AssertionError),
        (lambda: once(rule=private, sample_weight=np.ones(30)),
         "dp_sgd: it takes no sample_weight, since each example must count for one"),
        (lambda: once(rule=objective, sample_weight=np.ones(30)),
         "evolution: it takes no sample_weight, its objective has none"),
        (
            lambda: jax.eval_shape(
                lambda p: fp.zil(normed, CE).estimate(p, (), x, y, None, sample_weight=np.ones(30)),
                params(normed, (4,)),
            ),
            r"layers\[0\] batch_norm: .*energy knows no sample_weight",
        ),
        (lambda: evaluate(y + 1), "a label is 3"),
        (lambda: evaluate(p=state()), r"params is a TrainState; give its params"),
        (lambda: evaluate(batch_size=0), "batch_size is 0"),
        (lambda: step(list(state())), "state is a list, it must be a TrainState"),
        (lambda: step(state(), (x, y, y)), "batch is a tuple of 3"),
        (lambda: fp.accuracy(scores, labels[:, :1]), r"labels are \(2, 1\), \(2, 3\) are due"),
        (lambda: fp.accuracy(scores, labels + 1), "a label is 2, labels of 2 classes"),
        (lambda: fp.accuracy(scores, ones(2, 3)), "labels must be integers"),
        (lambda: fp.until("b", at_most=0)({"a": [1]}),
         r"the history has no 'b'; it has a", ValueError),
        (lambda: fp.until("a"), "at_least or at_most", ValueError),
        (lambda: fp.patience("a", 0), "rounds is 0"),
    ]  # fmt: skip


@family
def data():
    def of(n_x, n_y, test=0.2):
        return split(np.zeros((n_x, 2)), np.zeros(n_y, int), test=test)

    rows = [
        (lambda: of(4, 5), "x has 4 examples, y has 5"),
        (lambda: of(5, 5, 1.0), r"test is 1\.0, it must be a share between 0 and 1"),
        (lambda: of(2, 2), "2 examples, too few to set a share of 0.2 apart"),
        (lambda: split(np.zeros((4, 2)), np.array([0, 0, 1, 1])),
         r"4 examples, too few .*: of 2 classes the largest has 2"),
    ]  # fmt: skip
    return [(*row, DataError) for row in rows]
