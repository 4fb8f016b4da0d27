"""Attention with its projections, and the blocks of transformers."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import LayerError, as_layer, check_count, check_number, position
from ..core.combinators import on_entry, remat, residual, serial
from ..core.contraction import by_example
from ..core.layer import Layer, float_shape, is_shape
from ..core.site import gradient
from .activations import gelu
from .attention import attention
from .dense import affine, dense
from .dropout import dropout
from .initializers import he_normal
from .normalization import layer_norm
from .rotary import check_base, turned


def multi_head_attention(
    heads: int,
    *,
    cross: bool = False,
    causal: bool = False,
    window: int | None = None,
    kv_heads: int | None = None,
    head_size: int | None = None,
    rotary_base: float | None = None,
    bias: bool = True,
    block: int | None = None,
    w_init: Any = he_normal,
) -> Layer:
    """Attention of every token to the others, or to a memory (Vaswani 2017, section 3.2.2).

        forward     (q, k, v) = x Wᵀ + b       y  = attention(q, k, v) Vᵀ + c
        transport   δ V, through attention to (δq, δk, δv), then δx = (δq, δk, δv) W
        gradient    δW = Σ (δq, δk, δv)ᵀ x     δV = Σ δᵀ attention(q, k, v)

    The input is x (B, T, n), or with a mask of its real tokens (x, mask); with ``cross`` it is
    (x, memory) or (x, memory, mask), memory (B, S, m) and mask (B, S) of its real tokens, and k and
    v are made of it.  What stands beside x comes out beside y, so such layers can follow each
    other.  Parameters: "qkv", or "q" and "kv", and "out", each with W, b of :func:`affine`, the
    heads' rows in order.

    Args:
        heads: how many heads of queries.
        cross: whether x attends to a memory instead of itself.
        causal, window, block: as of :func:`attention`.
        kv_heads: heads of keys and values, a divisor of ``heads``; by default as many.
        head_size: d, the features of a head; by default n/heads.
        rotary_base: turns queries and keys as :func:`rotary` does, with this base.
        bias: whether the projections have a b.
        w_init: initialises the projections, as of :func:`affine`.

    Raises:
        LayerError: for options that make no sense, and while tracing when the input does not fit.

    >>> import jax
    >>> from funcprop import multi_head_attention
    >>> params, out_shape = multi_head_attention(4, kv_heads=2).init(jax.random.key(0), (10, 32))
    >>> params["qkv"]["w"].shape, params["out"]["w"].shape, out_shape
    ((64, 32), (32, 32), (10, 32))
    """
    name = "multi_head_attention"
    groups = heads if kv_heads is None else kv_heads
    named = (
        ("heads", heads),
        ("kv_heads", groups),
        ("head_size", 1 if head_size is None else head_size),
    )
    for label, value in named:
        check_count(name, label, value)
    if heads % groups:
        raise LayerError(name, f"kv_heads is {groups}, a divisor of the {heads} heads is due")
    if rotary_base is not None:
        rotary_base = check_base(name, rotary_base)
    mix = attention(causal=causal, window=window, block=block)

    def size_of(features):
        if head_size is None and features % heads:
            raise LayerError(
                name,
                f"x has {features} features, a multiple of the {heads} heads is due; or give "
                "head_size",
            )
        return head_size or features // heads

    @functools.cache
    def layers(features):
        """The projections by name, each with the numbers of heads in its output."""
        d = size_of(features)
        split = {"q": [heads], "kv": [groups] * 2} if cross else {"qkv": [heads, groups, groups]}
        made = {
            key: (affine(sum(counts) * d, bias=bias, w_init=w_init), counts)
            for key, counts in split.items()
        }
        return d, made, affine(features, bias=bias, w_init=w_init)

    def parts(x):
        """x, what it attends to, and the mask, if there is one."""
        alone = (x,) if not isinstance(x, tuple) else x
        if len(alone) not in ((2, 3) if cross else (1, 2)):
            due = "(x, memory) or (x, memory, mask)" if cross else "x or (x, mask)"
            raise LayerError(name, f"the input has {len(alone)} entries, {due} is due")
        return alone[0], alone[1] if cross else None, tuple(alone[1 + cross :])

    def init(key, shape):
        single = not isinstance(shape, tuple) or is_shape(shape)
        x, memory, _ = parts(shape if not single else (shape,))
        shapes = [float_shape(name, one) for one in (x, memory) if one is not None]
        if any(len(sizes) != 2 for sizes in shapes):
            raise LayerError(name, f"x is {shapes[0]}, a sequence (T, n) is due")
        d, made, out = layers(shapes[0][-1])
        keys = iter(jax.random.split(key, 3))
        given = {"qkv": shapes[0], "q": shapes[0], "kv": shapes[-1]}
        params = {
            label: layer.init(next(keys), given[label])[0] for label, (layer, _) in made.items()
        }
        params["out"] = out.init(next(keys), (*shapes[0][:-1], heads * d))[0]
        return params, shape

    def split(y, counts, d):
        def run(y):
            ends = [sum(counts[:i]) * d for i in range(len(counts) + 1)]
            parts = [y[..., a:b] for a, b in itertools.pairwise(ends)]
            return [part.reshape(*y.shape[:-1], -1, d) for part in parts]

        return by_example(run, y)

    def joined(leaves):
        """The heads of several arrays side by side, (B, T, all heads · d)."""

        def run(*leaves):
            return jnp.concatenate([leaf.reshape(*leaf.shape[:-2], -1) for leaf in leaves], axis=-1)

        return by_example(run, *leaves)

    def forward(params, x, key=None):
        first, memory, mask = parts(x)
        if getattr(first, "ndim", 0) != 3 or (memory is not None and memory.ndim != 3):
            raise LayerError(name, f"x is {jnp.shape(first)}, a sequence (B, T, n) is due")
        d, made, out = layers(first.shape[-1])
        if not isinstance(params, dict) or set(params) != {*made, "out"}:
            raise LayerError(name, f"params is not a dict of {sorted([*made, 'out'])}")
        heads_of, kept = [], {}
        with position(name):
            for label, (layer, counts) in made.items():
                y, kept[label] = layer.forward(params[label], memory if label == "kv" else first)
                heads_of += split(y, counts, d)
            q, k, v = heads_of
            if rotary_base is not None:
                q, k = turned(q, rotary_base), turned(k, rotary_base)
            mixed, kept["mix"] = mix.forward((), (q, k, v, *mask))
            y, kept["out"] = out.forward(params["out"], joined([mixed]))
        return (y, *x[1:]) if isinstance(x, tuple) else y, kept

    def backward(weights, residuals, delta, statistic=gradient):
        first = delta[0] if isinstance(delta, tuple) else delta
        d, made, out = layers(first.shape[-1])
        mixed, tree_out = out.backward(weights["out"], residuals["out"], first, statistic)
        tree = {"out": tree_out}
        (delta_mixed,) = split(mixed, [heads], d)
        delta_q, delta_k, delta_v, *_ = mix.backward((), residuals["mix"], delta_mixed)[0]
        if rotary_base is not None:
            delta_q, delta_k = (turned(leaf, rotary_base, -1.0) for leaf in (delta_q, delta_k))
        given = {"qkv": [delta_q, delta_k, delta_v], "q": [delta_q], "kv": [delta_k, delta_v]}
        deltas = {}
        for label, (layer, _) in made.items():
            deltas[label], tree[label] = layer.backward(
                weights[label], residuals[label], joined(given[label]), statistic
            )
        if not isinstance(delta, tuple):
            return deltas["qkv"], tree
        if cross:
            return (deltas["q"], delta[1] + deltas["kv"], *delta[2:]), tree
        return (deltas["qkv"], *delta[1:]), tree

    return Layer(init, forward, backward, name)


def transformer_block(
    heads: int,
    hidden: int | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    kv_heads: int | None = None,
    rotary_base: float | None = None,
    activation: Layer = gelu,
    feed_forward: Layer | None = None,
    experts: Layer | None = None,
    norm: Layer | None = None,
    dropout_rate: float = 0.0,
    recompute: bool = True,
) -> Layer:
    """A transformer's block, norms in front (Vaswani 2017; Xiong 2020, arXiv 2002.04745).

        forward     h = x + attention(norm x)      y = h + feed_forward(norm h)

    x, y (B, T, n), or (x, mask) and (y, mask) with the mask (B, T) of the real tokens.  Params and
    tree are ((norm, attention), (norm, feed forward)).  With ``experts`` the input is as of
    :func:`mixture_of_experts`, x or (x, mask), or either with the balance (B,) of blocks before at
    the end, and so is the output, (y, balance) or (y, mask, balance).  :func:`repeat`, which keeps
    the structure, takes such a block with the balance in its input: that of a block in front.

    Args:
        heads: how many heads.
        hidden: width of the feed-forward layer; by default 4 n.
        causal, window, kv_heads, rotary_base: as of :func:`multi_head_attention`.
        activation: of the feed-forward layer.
        feed_forward: a layer in its place, say ``swiglu(...)``.
        experts: or a :func:`mixture_of_experts`, which is given the mask too.
        norm: ``layer_norm()`` by default, or say ``rms_norm()``.
        dropout_rate: of what is added to x and to h, when there is a key.
        recompute: whether x and h alone are kept and the rest computed again on the way back, which
            in :func:`repeat` and in long sequences saves most of the memory.

    Raises:
        LayerError: as its parts.

    >>> import jax
    >>> from funcprop import repeat, transformer_block
    >>> blocks = repeat(transformer_block(4, causal=True), 6)
    >>> blocks.init(jax.random.key(0), (10, 32))[1]
    (10, 32)
    """
    attend = multi_head_attention(
        heads, causal=causal, window=window, kv_heads=kv_heads, rotary_base=rotary_base
    )
    return _block(
        "transformer_block",
        [attend],
        hidden,
        activation,
        feed_forward,
        norm,
        dropout_rate,
        recompute,
        experts,
    )


def decoder_block(
    heads: int,
    hidden: int | None = None,
    *,
    window: int | None = None,
    kv_heads: int | None = None,
    rotary_base: float | None = None,
    activation: Layer = gelu,
    feed_forward: Layer | None = None,
    norm: Layer | None = None,
    dropout_rate: float = 0.0,
    recompute: bool = True,
) -> Layer:
    """A decoder's block: causal attention, attention to a memory, feed-forward.

        forward     h = x + attention(norm x)      g = h + attention(norm h, memory)
                    y = g + feed_forward(norm g)

    (x, memory) or (x, memory, mask) in, (y, memory) or (y, memory, mask) out: x, y (B, T, n),
    memory (B, S, m), mask (B, S) of the memory's real tokens.  Params and tree are
    ((norm, attention), (norm, attention), (norm, feed forward)).

    Args:
        heads, hidden, kv_heads: as of :func:`transformer_block`.
        window, rotary_base: the same, of the causal attention.
        activation, feed_forward, norm, dropout_rate, recompute: as there.

    Raises:
        LayerError: as its parts.

    >>> import jax
    >>> from funcprop import decoder_block
    >>> shape = tuple(jax.ShapeDtypeStruct((length, 32), "float32") for length in (5, 9))
    >>> params, out_shape = decoder_block(4).init(jax.random.key(0), shape)
    >>> out_shape[0].shape, params[1][1]["kv"]["w"].shape
    ((5, 32), (64, 32))
    """
    attend = multi_head_attention(
        heads, causal=True, window=window, kv_heads=kv_heads, rotary_base=rotary_base
    )
    look = multi_head_attention(heads, cross=True, kv_heads=kv_heads)
    return _block(
        "decoder_block",
        [on_entry(0, attend, ""), look],
        hidden,
        activation,
        feed_forward,
        norm,
        dropout_rate,
        recompute,
    )


def _block(
    name, attends, hidden, activation, feed_forward, norm, rate, recompute, experts=None
) -> Layer:
    norm = layer_norm() if norm is None else as_layer(norm, name)
    widths = {"hidden": hidden, "feed_forward": feed_forward, "experts": experts}
    given = [label for label, value in widths.items() if value is not None]
    if len(given) > 1:
        raise LayerError(name, f"{' and '.join(given)} are given, one of them is due")
    if hidden is not None:
        check_count(name, "hidden", hidden)
    rate = check_number(name, "dropout_rate", rate, at_least=0, below=1)
    dropped = [tokens(dropout(rate))] if rate else []
    if experts is not None:
        parts = [*map(_before_balance, attends), as_layer(experts, name)]
    else:
        if feed_forward is None:
            feed_forward = _feed_forward(hidden, as_layer(activation, name))
        parts = [*attends, tokens(as_layer(feed_forward, name))]
    branches = [residual(serial(tokens(norm), part, *dropped)) for part in parts]
    return serial(*map(remat, branches) if recompute else branches)._replace(name=name)


def _before_balance(layer: Layer) -> Layer:
    """The layer on x, or on (x, mask); a balance of floats behind them passes unchanged."""

    def split(x, is_balance):
        """What the layer is given, and the balance as a tuple of one, or of none."""
        if is_shape(x) or not isinstance(x, tuple) or not is_balance(x[-1]):
            return x, ()
        return x[0] if len(x) == 2 else x[:-1], x[-1:]

    def joined(y, balance):
        return (*(y if isinstance(y, tuple) else (y,)), *balance) if balance else y

    def floats(leaf):
        return jnp.issubdtype(leaf.dtype, jnp.inexact)

    def init(key, shape):
        own, balance = split(shape, floats)
        params, out = layer.init(key, own)
        return params, joined(out, balance)

    def forward(params, x, key=None):
        own, balance = split(x, floats)
        y, residuals = layer.forward(params, own, key)
        return joined(y, balance), residuals

    def backward(weights, residuals, delta, statistic=gradient):
        own, balance = split(delta, lambda leaf: leaf is not None)
        delta_x, tree = layer.backward(weights, residuals, own, statistic)
        return joined(delta_x, balance), tree

    def rebuild(parts):
        return _before_balance(*parts)

    return Layer(init, forward, backward, layer.name, (layer,), rebuild, places=("",))


def _feed_forward(hidden: int | None, activation: Layer) -> Layer:
    """affine ∘ σ ∘ affine of width ``hidden``, back to as many features as came."""

    @functools.cache
    def layers(features):
        return serial(dense(hidden or 4 * features, activation), affine(features))

    def init(key, shape):
        shape = float_shape("feed_forward", shape)
        return layers(shape[-1]).init(key, shape)

    def forward(params, x, key=None):
        return layers(x.shape[-1]).forward(params, x, key)

    def backward(weights, residuals, delta, statistic=gradient):
        return layers(delta.shape[-1]).backward(weights, residuals, delta, statistic)

    return Layer(init, forward, backward, "feed_forward")


def tokens(layer: Layer) -> Layer:
    """The layer on x, or on entry 0 of a tuple whose other entries pass unchanged."""
    first = on_entry(0, layer, "")

    def init(key, shape):
        several = isinstance(shape, tuple) and not is_shape(shape)
        return (first if several else layer).init(key, shape)

    def forward(params, x, key=None):
        return (first if isinstance(x, tuple) else layer).forward(params, x, key)

    def backward(weights, residuals, delta, statistic=gradient):
        used = first if isinstance(delta, tuple) else layer
        return used.backward(weights, residuals, delta, statistic)

    def rebuild(parts):
        return tokens(*parts)

    return Layer(init, forward, backward, layer.name, (layer,), rebuild, places=("",))
