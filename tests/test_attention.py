"""Attention and transformers: jax.vjp of the naive form, PyTorch, masks, memory, errors, faults."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funcprop as fp
from funcprop.cases.case import entries, normal, some_tokens
from tests.drawing import covering, params_of

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)


def swept(layer, params, x, delta):
    y, residuals = layer.forward(params, x)
    return y, *layer.backward(params, residuals, delta)


def naive(q, k, v, mask=None, causal=False, window=None):
    """Attention with all heads written out; a row without keys gives 0."""
    k, v = (jnp.repeat(leaf, q.shape[2] // k.shape[2], axis=2) for leaf in (k, v))
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    t, s = jnp.arange(q.shape[1])[:, None], jnp.arange(k.shape[1])
    seen = t >= s if causal else t == t + 0 * s
    seen = seen if window is None else seen & (abs(t - s) < window)
    seen = jnp.broadcast_to(seen, scores.shape)
    if mask is not None:
        seen = seen & mask[:, None, None]
    any_key = seen.any(-1, keepdims=True)
    p = jax.nn.softmax(jnp.where(seen | ~any_key, scores, -jnp.inf))
    return jnp.einsum("bhts,bshd->bthd", jnp.where(any_key, p, 0.0), v)


MASK = np.array([[1, 0, 1, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0, 0]], bool)


OPTIONS = {
    "causal": [False, True],
    "window": [None, 1, 3],
    "groups": [1, 2],
    "masked": [False, True],
}


@pytest.mark.parametrize(("block", "queries", "keys"), [(100, 5, 7), (2, 4, 7), (4, 7, 7)])
@covering
def test_options_together(choose, block, queries, keys):
    draw, chosen = np.random.default_rng(0), choose(OPTIONS)

    def error(x, causal, window, groups, masked):
        q, k, v = x[0], x[1][:, :, :groups], x[2][:, :, :groups]
        more = x[3:] if masked else ()
        due, pullback = jax.vjp(
            lambda q, k, v: naive(q, k, v, *more, causal=causal, window=window), q, k, v
        )
        delta = jnp.cos(due)
        layer = fp.attention(causal=causal, window=window, block=block)
        y, deltas, _ = swept(layer, (), (q, k, v, *more), delta)
        assert deltas[3:] == (None,) * len(more)
        both = zip((y, *deltas[:3]), (due, *pullback(delta)), strict=True)
        return jnp.stack([abs(a - b).max() for a, b in both])

    x = [draw.normal(size=s) for s in ((2, queries, 4, 2), (2, keys, 2, 2), (2, keys, 2, 2))]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        errors = jax.jit(lambda *x: [error(x, **options) for options in chosen])
        assert np.max(errors(*x, MASK)) < 1e-13


@settings(deadline=None, derandomize=True, max_examples=3)
@given(
    batch=st.integers(1, 3),
    queries=st.integers(1, 6),
    keys=st.integers(1, 6),
    size=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_any_shape(batch, queries, keys, size, seed):
    with jax.enable_x64(True):
        draw = np.random.default_rng(seed)
        x = tuple(draw.normal(size=(batch, n, 2, size)) for n in (queries, keys, keys))

        @jax.jit
        def both(x):
            due, pullback = jax.vjp(naive, *x)
            found = [swept(fp.attention(block=block), (), x, due)[:2] for block in (2, 99)]
            return found, [(due, pullback(due))] * 2

        # A query that sees one key has a delta of rounding errors only.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), *both(x))


@pytest.mark.parametrize("block", [2, 99])
def test_what_is_masked_out_is_not_seen(block):
    """NaN in masked keys and values, rows without keys: zeros, forward and backward."""
    draw = np.random.default_rng(0)
    q, k, v = (jnp.asarray(draw.normal(size=(2, 7, 2, 3)), jnp.float32) for _ in range(3))
    bad = jnp.where(MASK[:, :, None, None], 0.0, jnp.nan)
    sweep = jax.jit(lambda x: swept(fp.attention(block=block), (), x, x[0]))
    clean = sweep((q, k, v, MASK))
    dirty = sweep((q, k + bad, v + bad, MASK))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    y, (delta_q, delta_k, delta_v, _), _ = clean
    assert not np.any([y[1], delta_q[1]])
    assert not np.any(np.asarray(delta_k)[~MASK])
    assert not np.any(np.asarray(delta_v)[~MASK])
    assert np.all(y[0] != 0)


def test_scores_may_be_huge():
    q = np.array([3e4, -3e4], np.float32).reshape(1, 2, 1, 1)
    for block in (1, 2):
        sweep = jax.jit(functools.partial(swept, fp.attention(block=block), ()))
        y, deltas, _ = sweep((q, q, q), np.ones_like(q))
        np.testing.assert_allclose(y, q)
        assert np.isfinite(deltas).all()


def test_attention_is_torch_s():
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(0)
    arrays = [draw.normal(size=(2, 6, 3, 4)).astype("float32") for _ in range(4)]
    for causal, block in itertools.product((False, True), (4, 6)):
        q, k, v = (torch.tensor(a, requires_grad=True) for a in arrays[:3])
        due = torch.nn.functional.scaled_dot_product_attention(
            *(t.transpose(1, 2) for t in (q, k, v)), is_causal=causal
        ).transpose(1, 2)
        due.backward(torch.tensor(arrays[3]))
        layer = fp.attention(causal=causal, block=block)
        y, deltas, _ = swept(layer, (), tuple(map(jnp.asarray, arrays[:3])), arrays[3])
        np.testing.assert_allclose(y, due.detach().numpy(), rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(deltas, (q, k, v), strict=True):
            np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_memory_grows_with_the_length_not_its_square():
    def temporary(length, block):
        x = (jax.ShapeDtypeStruct((1, length, 2, 16), "float32"),) * 3
        layer = fp.attention(causal=True, block=block)
        sweep = jax.jit(lambda x, delta: swept(layer, (), x, delta)).lower(x, x[0])
        return sweep.compile().memory_analysis().temp_size_in_bytes

    blocks = [temporary(n, None) for n in (1024, 4096)]
    assert blocks[1] < 2 * blocks[0]
    assert temporary(1024, 1024) > 3 * 1024**2 * 2 * 4 > 8 * blocks[0]


def test_rotary_products_depend_on_the_distance_alone():
    q, k = jax.random.normal(KEY, (2, 8))
    turned = fp.rotary(50.0).apply((), jnp.broadcast_to(jnp.stack([q, k]), (7, 2, 8))[None])[0]
    products = turned[:, 0] @ turned[:, 1].T
    for distance in range(-6, 7):
        np.testing.assert_allclose(np.ptp(np.diag(products, distance)), 0, atol=2e-5)
    angle = 3 * 50.0 ** (-2 / 8)
    due = q[2] * np.cos(angle) - q[3] * np.sin(angle)
    assert float(turned[3, 0, 2]) == pytest.approx(float(due), abs=1e-5)


def affine(p, x):
    return x @ p["w"].T + p["b"]


def plain_attention(p, x, memory=None, causal=False):
    if memory is None:
        q, k, v = jnp.split(affine(p["qkv"], x), 3, -1)
    else:
        q, (k, v) = affine(p["q"], x), jnp.split(affine(p["kv"], memory), 2, -1)
    heads = (leaf.reshape(*leaf.shape[:2], 2, -1) for leaf in (q, k, v))
    y = naive(*heads, causal=causal)
    return affine(p["out"], y.reshape(*x.shape[:2], -1))


def plain_norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["b"]


def plain_feed_forward(p, x):
    return affine(p[1], jax.nn.gelu(affine(p[0], x), approximate=False))


def test_a_block_is_what_its_equations_say():
    draw = np.random.default_rng(0)
    tokens, memory = (draw.normal(size=(2, n, 4)).astype("float32") for n in (5, 3))

    def plain(p, x):
        for norm, attend in (p[0],):
            x = x + plain_attention(attend, plain_norm(norm, x), causal=True)
        return x + plain_feed_forward(p[1][1], plain_norm(p[1][0], x))

    def plain_decoder(p, x):
        x, memory = x
        x = x + plain_attention(p[0][1], plain_norm(p[0][0], x), causal=True)
        x = x + plain_attention(p[1][1], plain_norm(p[1][0], x), memory)
        return x + plain_feed_forward(p[2][1], plain_norm(p[2][0], x)), memory

    for layer, reference, x in (
        (fp.transformer_block(2, causal=True), plain, tokens),
        (fp.decoder_block(2), plain_decoder, (tokens, memory)),
    ):
        structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), x)
        params = params_of(layer, structs if isinstance(x, tuple) else x.shape[1:])

        @jax.jit
        def both(params, x, reference=reference, layer=layer):
            y, pullback = jax.vjp(reference, params, x)
            found, delta_x, grads = swept(layer, params, x, y)
            return (found, grads, delta_x), (y, *pullback(y))

        fp.compare(*both(params, x)).assert_ok()


def test_a_block_keeps_the_inputs_of_its_branches_alone_unless_told():
    x = jnp.ones((2, 8, 16))

    def kept(recompute):
        layer = fp.transformer_block(2, recompute=recompute)
        params = params_of(layer, x.shape[1:])
        residuals = jax.eval_shape(lambda p, x: layer.forward(p, x)[1], params, x)
        sizes = sum(leaf.size for leaf in jax.tree.leaves(residuals))
        return sizes - sum(leaf.size for leaf in jax.tree.leaves(params))

    assert kept(True) == 2 * x.size
    assert kept(False) > 5 * x.size


def test_dropout_in_a_block_takes_its_key_on_the_way_back_too():
    layer = fp.repeat(fp.transformer_block(2, dropout_rate=0.5), 2)
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    params = params_of(layer, (3, 4))

    @jax.jit
    def both(params, x):
        y, residuals = layer.forward(params, x, KEY)
        due, pullback = jax.vjp(lambda p, x: layer.apply(p, x, KEY), params, x)
        delta_x, grads = layer.backward(params, residuals, y)
        return (y, grads, delta_x), (due, *pullback(y)), layer.apply(params, x)

    found, due, without = both(params, x)
    fp.compare(found, due).assert_ok()
    assert abs(found[0] - without).max() > 0.1


@pytest.mark.parametrize(
    ("name", "sigma"),
    [("glu", jax.nn.sigmoid), ("swiglu", jax.nn.silu), ("geglu", jax.nn.gelu)],
)
def test_gated_layers_are_their_equation(name, sigma):
    layer = getattr(fp, name)(5)
    params, _ = layer.init(KEY, (3,))
    x = jax.random.normal(KEY, (2, 3))
    gate, up = jnp.split(affine(params["in"], x), 2, -1)
    gate = jax.nn.gelu(gate, approximate=False) if name == "geglu" else sigma(gate)
    np.testing.assert_allclose(
        layer.apply(params, x), affine(params["out"], gate * up), rtol=1e-5, atol=1e-6
    )


SEQUENCE = normal(4, 3, 4)


def test_a_mask_of_tokens_leaves_the_masked_ones_out_of_a_block():
    layer = fp.transformer_block(2, 5)
    x, seen = entries(SEQUENCE, some_tokens(4, 3))(np.random.default_rng(0))
    run = jax.jit(functools.partial(layer.apply, params_of(layer, (3, 4))))
    x = x.astype("float32")
    y = run((x, seen))[0]
    other = run((np.where(seen[..., None], x, np.float32(7)), seen))[0]
    np.testing.assert_array_equal(np.asarray(y)[seen], np.asarray(other)[seen])
