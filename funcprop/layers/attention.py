"""Scaled dot-product attention, whole or in blocks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.checks import LayerError, check_count, check_float
from ..core.contraction import accumulated, by_example
from ..core.layer import Layer, shapes_of_arrays
from ..core.site import gradient

_BLOCK, _LONG = 256, 512


def attention(
    *, causal: bool = False, window: int | None = None, block: int | None = None
) -> Layer:
    """Attention of queries to keys, a weighted mean of values (Vaswani 2017, arXiv 1706.03762, 1).

        forward     S = q kᵀ/√d     P = softmax of S over the keys allowed      y = P v
        transport   δv = Pᵀ δ       δP = δ vᵀ      D = Σ δ ⊙ y over d
                    δS = P ⊙ (δP - D)              δq = δS k/√d      δk = δSᵀ q/√d

    The input is (q, k, v) or (q, k, v, mask), the output y and δ like q; no parameters.
    q (B, T, H, d), k (B, S, K, d), v (B, S, K, d) with H a multiple of K: query head h looks at
    head ⌊h K/H⌋ (grouped queries, Ainslie 2023, arXiv 2305.13245).  mask (B, S) is True where a
    key is real; keys and values elsewhere may hold anything, NaN too.  A query without any key
    gives 0 and takes no delta.

    Long sequences go block by block, keeping of S and P only the logarithm of each row's sum, and
    computing them again on the way back (Dao 2023, arXiv 2307.08691, algorithms 1 and 2): memory
    in proportion to T instead of T S.  Blocks that are wholly forbidden are left out.

    Args:
        causal: whether query t sees keys s ≤ t only.
        window: query t sees keys with |t - s| < window only.
        block: size of the blocks; by default 256 if there are more than 512 queries or keys.  One
            that covers them all keeps P.

    Raises:
        LayerError: while tracing, when the shapes or dtypes of q, k, v and mask do not fit.

    >>> import jax.numpy as jnp
    >>> from funcprop import attention
    >>> q, v = jnp.zeros((1, 3, 1, 2)), jnp.array([[4.0, 0.0], [0.0, 6.0], [2.0, 0.0]])
    >>> attention(causal=True).apply((), (q, q, v.reshape(1, 3, 1, 2))).reshape(3, 2).tolist()
    [[4.0, 0.0], [2.0, 3.0], [2.0, 2.0]]
    """
    for label, value in (("window", window), ("block", block)):
        if value is not None:
            check_count("attention", label, value)
    window, block = (value if value is None else int(value) for value in (window, block))

    def allowed(t, s):
        """Whether query t sees key s, for numbers or arrays of them."""
        ahead = t - s
        seen = ahead >= 0 if causal else ahead == ahead
        return seen if window is None else seen & (abs(ahead) < window)

    def size_of(q, k):
        longest = max(q.shape[1], k.shape[1])
        if block is None:
            return _BLOCK if longest > _LONG else longest
        return min(block, longest)

    def init(key, shape):
        due = "(q, k, v) or (q, k, v, mask)"
        if len(shapes_of_arrays("attention", shape, due)) not in (3, 4):
            raise LayerError("attention", f"shape is {shape}, {due} is due")
        _check([jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype) for leaf in shape])
        return (), tuple(shape[0].shape)

    def forward(params, x, key=None):
        if not isinstance(x, tuple) or len(x) not in (3, 4):
            raise LayerError("attention", "x is no tuple (q, k, v) or (q, k, v, mask)")
        _check(x)
        q, k, v = x[:3]
        mask = x[3] if len(x) == 4 else None
        whole = size_of(q, k) >= max(q.shape[1], k.shape[1])

        def run(q, k, v, *mask):
            seen = _Seen(allowed, mask, q.shape[1], k.shape[1])
            y, kept = _whole(q, k, v, seen) if whole else _blocks(q, k, v, seen, size)
            return y.astype(q.dtype), kept

        size = size_of(q, k)
        y, kept = by_example(run, *x)
        return y, (q, k, v, mask, kept, y)

    def backward(weights, residuals, delta, statistic=gradient):
        q, k, v, mask, kept, y = residuals
        more = () if mask is None else (mask,)

        def run(delta, kept, y, q, k, v, *mask):
            seen = _Seen(allowed, mask, q.shape[1], k.shape[1])
            size = size_of(q, k)
            if size >= max(q.shape[1], k.shape[1]):
                deltas = _whole_backward(q, k, v, kept, y, delta, seen)
            else:
                deltas = _blocks_backward(q, k, v, kept, y, delta, seen, size)
            return tuple(leaf.astype(q.dtype) for leaf in deltas)

        deltas = by_example(run, delta, kept, y, q, k, v, *more)
        return (*deltas, *[None] * len(more)), ()

    return Layer(init, forward, backward, "attention")


# Products have the heads in front, those of queries that look at one head of keys as further rows:
# q, y, δ (B, T, K G, d) as (B, K, G T, d), k and v (B, K, S, d), P (B, K, G T, S).  XLA multiplies
# these at once, and with G and T apart copies them first.  All is at least float32.


def _rows(x: jax.Array, groups: int = 1) -> jax.Array:
    batch, time, heads, size = x.shape
    x = accumulated(x).reshape(batch, time, heads // groups, groups, size)
    return x.transpose(0, 2, 3, 1, 4).reshape(batch, -1, groups * time, size)


def _heads(x: jax.Array, groups: int = 1) -> jax.Array:
    batch, heads, rows, size = x.shape
    x = x.reshape(batch, heads, groups, rows // groups, size)
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, rows // groups, -1, size)


def _products(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum("bkrd,bksd->bkrs", a, b)


class _Seen:
    """Which keys are seen: by the mask, and by which queries."""

    def __init__(self, allowed: Any, mask: tuple[jax.Array, ...], queries: int, keys: int):
        self.allowed, self.mask, self.queries, self.keys = allowed, mask, queries, keys
        rows, columns = np.arange(queries)[:, None], np.arange(keys)
        self.unrestricted = bool(allowed(rows, columns).all())

    def all_real(self, s: int) -> bool:
        """Whether all keys of all blocks of s are real."""
        return not self.mask and self.keys % s == 0

    def real(self, j: Any, s: int) -> jax.Array:
        """Whether the s keys from number j on are real, (B or 1, s)."""
        inside = (j + jnp.arange(s, dtype=jnp.int32) < self.keys)[None]
        if not self.mask:
            return inside
        mask = jnp.pad(self.mask[0], ((0, 0), (0, -self.keys % s)))
        return inside & lax.dynamic_slice_in_dim(mask, j, s, axis=1)

    def only(self, x: jax.Array, j: Any = 0) -> jax.Array:
        """Keys or values from number j on, 0 where they are not real."""
        s = x.shape[1]
        if not self.all_real(s):
            x = jnp.where(self.real(j, s)[:, :, None, None], x, jnp.zeros((), x.dtype))
        return accumulated(x)

    def scores(self, q: jax.Array, k: jax.Array, t: int, i: Any = 0, j: Any = 0) -> jax.Array:
        """S of rows of t queries from number i and the keys from number j on, -∞ if not seen."""
        s = k.shape[2]
        scores = _products(q, k) / math.sqrt(q.shape[-1])
        if self.unrestricted and self.all_real(s):
            return scores
        rows, columns = (n + jnp.arange(m, dtype=jnp.int32) for n, m in ((i, t), (j, s)))
        seen = self.allowed(rows[:, None], columns)[None]
        if not self.all_real(s):
            seen = seen & self.real(j, s)[:, None]
        seen = jnp.tile(seen, (1, q.shape[2] // t, 1))
        return jnp.where(seen[:, None], scores, -jnp.inf)

    def pairs(self, size: int) -> jax.Array:
        """Where the blocks of queries and of keys begin of which any sees any."""
        found = []
        for i, j in itertools.product(range(0, self.queries, size), range(0, self.keys, size)):
            rows, columns = i + np.arange(size)[:, None], j + np.arange(size)
            seen = self.allowed(rows, columns) & (columns < self.keys) & (rows < self.queries)
            if seen.any():
                found.append((i, j))
        return jnp.asarray(np.array(found, np.int32).reshape(-1, 2))


def _finite(largest: jax.Array) -> jax.Array:
    """The largest score of a row, 0 where it sees no key."""
    return jnp.where(jnp.isneginf(largest), jnp.zeros((), largest.dtype), largest)


def _nonzero(total: jax.Array) -> jax.Array:
    return jnp.where(total == 0, jnp.ones((), total.dtype), total)


def _whole(q, k, v, seen):
    """y and P."""
    groups = q.shape[2] // k.shape[2]
    scores = seen.scores(_rows(q, groups), _rows(seen.only(k)), q.shape[1])
    p = jnp.exp(scores - _finite(jnp.max(scores, axis=-1, keepdims=True)))
    p = p / _nonzero(jnp.sum(p, axis=-1, keepdims=True))
    return _heads(_mixed(p, _rows(seen.only(v))), groups), p


def _whole_backward(q, k, v, p, y, delta, seen):
    groups = q.shape[2] // k.shape[2]
    q, along, delta = (_rows(leaf, groups) for leaf in (q, _along(delta, y), delta))
    return _deltas(q, _rows(seen.only(k)), _rows(seen.only(v)), p, delta, along, groups)


def _mixed(p: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.einsum("bkrs,bksd->bkrd", p, v)


def _gathered(x: jax.Array, p: jax.Array) -> jax.Array:
    """Pᵀ x for every head of keys, (B, S, K, d): as xᵀ P, so that x is copied and P is not."""
    y = jnp.einsum("bkdr,bkrs->bkds", jnp.swapaxes(x, 2, 3), p)
    return y.transpose(0, 3, 1, 2)


def _along(delta: jax.Array, y: jax.Array) -> jax.Array:
    """D, the sum of δ ⊙ y over d: (B, T, H, 1)."""
    return jnp.sum(accumulated(delta) * accumulated(y), axis=-1, keepdims=True)


def _deltas(q, k, v, p, delta, along, groups):
    """δq, δk, δv with D = ``along``."""
    delta_s = p * (_products(delta, v) - along) / math.sqrt(q.shape[-1])
    return (
        _heads(_mixed(delta_s, k), groups),
        _gathered(q, delta_s),
        _gathered(delta, p),
    )


def _blocks(q, k, v, seen, size):
    """y and the logarithms of the rows' sums, (B, T, H, 1)."""
    time, groups = q.shape[1], q.shape[2] // k.shape[2]
    q, k, v = (_padded(leaf, size) for leaf in (q, k, v))

    def step(carry, pair):
        i, j = pair
        part_q, largest, total, y = (_rows(_at(leaf, i, size), groups) for leaf in (q, *carry))
        part_k, part_v = (_rows(seen.only(_at(leaf, j, size), j)) for leaf in (k, v))
        scores = seen.scores(part_q, part_k, size, i, j)
        new = jnp.maximum(largest, jnp.max(scores, axis=-1, keepdims=True))
        old = jnp.exp(largest - _finite(new))
        p = jnp.exp(scores - _finite(new))
        total = total * old + jnp.sum(p, axis=-1, keepdims=True)
        parts = (_heads(part, groups) for part in (new, total, y * old + _mixed(p, part_v)))
        return tuple(_put(leaf, i, part) for leaf, part in zip(carry, parts, strict=True)), None

    start = accumulated(jnp.zeros_like(q))
    row = start[..., :1]
    (largest, total, y), _ = lax.scan(step, (row - jnp.inf, row, start), seen.pairs(size))
    total = _nonzero(total)
    return (y / total)[:, :time], (_finite(largest) + jnp.log(total))[:, :time]


def _blocks_backward(q, k, v, logs, y, delta, seen, size):
    time, keys, groups = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    of_queries = tuple(_padded(leaf, size) for leaf in (q, logs, _along(delta, y), delta))
    k, v = (_padded(leaf, size) for leaf in (k, v))

    def step(carry, pair):
        i, j = pair
        part_q, log, mean, part = (_rows(_at(leaf, i, size), groups) for leaf in of_queries)
        part_k, part_v = (_rows(seen.only(_at(leaf, j, size), j)) for leaf in (k, v))
        p = jnp.exp(seen.scores(part_q, part_k, size, i, j) - log)
        deltas = _deltas(part_q, part_k, part_v, p, part, mean, groups)
        places = zip(carry, (i, j, j), deltas, strict=True)
        return tuple(_put(leaf, n, _at(leaf, n, size) + new) for leaf, n, new in places), None

    start = tuple(accumulated(jnp.zeros_like(leaf)) for leaf in (of_queries[0], k, v))
    (delta_q, delta_k, delta_v), _ = lax.scan(step, start, seen.pairs(size))
    return delta_q[:, :time], delta_k[:, :keys], delta_v[:, :keys]


def _padded(x: jax.Array, size: int) -> jax.Array:
    """The sequence filled up to whole blocks."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, 0), (0, 0)))


def _at(x: jax.Array, start: jax.Array, size: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, start, size, 1)


def _put(x: jax.Array, start: jax.Array, part: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(x, part, start, 1)


def _check(x: Any) -> None:
    q, k, v = x[:3]
    for label, leaf in zip("qkv", (q, k, v), strict=True):
        check_float("attention", leaf, label)
        if leaf.ndim != 4:
            raise LayerError(
                "attention", f"{label} is {leaf.shape}, (B, length, heads, size of a head) is due"
            )
        if leaf.dtype != q.dtype:
            raise LayerError("attention", f"q is {q.dtype}, {label} is {leaf.dtype}; cast one")
    batch, _, heads, size = q.shape
    if k.shape != v.shape or k.shape[0] != batch or k.shape[3] != size or heads % k.shape[2]:
        raise LayerError(
            "attention",
            f"q is {q.shape}, k is {k.shape}, v is {v.shape}; k and v alike, of q's batch and size "
            "of a head, are due, and the heads of q a multiple of theirs",
        )
    if len(x) == 4:
        mask = x[3]
        if not hasattr(mask, "dtype") or mask.dtype != bool or mask.shape != k.shape[:2]:
            came = f"{mask.dtype}{list(mask.shape)}" if hasattr(mask, "dtype") else type(mask)
            raise LayerError("attention", f"mask is {came}, bool{list(k.shape[:2])} is due")
