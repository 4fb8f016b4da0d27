"""Scaled dot-product attention, whole or in blocks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..contraction import accumulated, by_example
from ..layer import Layer, LayerError, check_float, gradient, is_shape

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
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise LayerError("attention", f"{label} is {value!r}, a whole number above 0 is due")

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
        if is_shape(shape) or not hasattr(shape, "__len__") or len(shape) not in (3, 4):
            raise LayerError("attention", f"shape is {shape}, (q, k, v) or (q, k, v, mask) is due")
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
            grouped = _grouped(q, k)
            y, kept = _whole(grouped, k, v, seen) if whole else _blocks(grouped, k, v, seen, size)
            return y.reshape(q.shape).astype(q.dtype), kept

        size = size_of(q, k)
        y, kept = by_example(run, *x)
        return y, (q, k, v, mask, kept, y)

    def backward(weights, residuals, delta, statistic=gradient):
        q, k, v, mask, kept, y = residuals
        more = () if mask is None else (mask,)

        def run(delta, kept, y, q, k, v, *mask):
            seen = _Seen(allowed, mask, q.shape[1], k.shape[1])
            shape, q, delta = q.shape, _grouped(q, k), _grouped(delta, k)
            y, size = _grouped(y, k), size_of(delta, k)
            if size >= max(q.shape[1], k.shape[1]):
                deltas = _whole_backward(q, k, v, kept, y, delta, seen)
            else:
                deltas = _blocks_backward(q, k, v, kept, y, delta, seen, size)
            delta_q, *others = (leaf.astype(q.dtype) for leaf in deltas)
            return delta_q.reshape(shape), *others

        deltas = by_example(run, delta, kept, y, q, k, v, *more)
        return (*deltas, *[None] * len(more)), ()

    return Layer(init, forward, backward, "attention")


# q, y, δ are (B, T, K, G, d), k and v (B, S, K, d), P is (B, K, G, T, S); what a step from block to
# block works on has the heads in front, (B, K, G, T, d) and (B, K, S, d).  All is at least float32.


def _grouped(q: jax.Array, k: jax.Array) -> jax.Array:
    batch, time, heads, size = q.shape
    return q.reshape(batch, time, k.shape[2], heads // k.shape[2], size)


def _heads_first(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(accumulated(x), 1, -2)


def _heads_last(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, -2, 1)


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

    def scores(self, q: jax.Array, k: jax.Array, i: Any = 0, j: Any = 0) -> jax.Array:
        """S of q/√d from number i and the keys from number j on, -∞ where not seen."""
        t, s = q.shape[-2], k.shape[-2]
        scores = jnp.einsum("bkgtd,bksd->bkgts", q, k)
        if self.unrestricted and self.all_real(s):
            return scores
        rows, columns = (n + jnp.arange(m, dtype=jnp.int32) for n, m in ((i, t), (j, s)))
        seen = self.allowed(rows[:, None], columns)[None]
        if not self.all_real(s):
            seen = seen & self.real(j, s)[:, None]
        return jnp.where(seen[:, None, None], scores, -jnp.inf)

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
    q, k, v = map(_heads_first, (q, seen.only(k), seen.only(v)))
    scores = seen.scores(q / math.sqrt(q.shape[-1]), k)
    p = jnp.exp(scores - _finite(jnp.max(scores, axis=-1, keepdims=True)))
    p = p / _nonzero(jnp.sum(p, axis=-1, keepdims=True))
    return _heads_last(jnp.einsum("bkgts,bksd->bkgtd", p, v)), p


def _whole_backward(q, k, v, p, y, delta, seen):
    q, y, delta, k, v = map(_heads_first, (q, y, delta, seen.only(k), seen.only(v)))
    along = jnp.sum(delta * y, axis=-1, keepdims=True)
    return map(_heads_last, _deltas(q / math.sqrt(q.shape[-1]), k, v, p, delta, along))


def _deltas(q, k, v, p, delta, along):
    """δq, δk, δv from q/√d and D = ``along``."""
    delta_s = p * (jnp.einsum("bkgtd,bksd->bkgts", delta, v) - along)
    return (
        jnp.einsum("bkgts,bksd->bkgtd", delta_s, k) / math.sqrt(q.shape[-1]),
        jnp.einsum("bkgts,bkgtd->bksd", delta_s, q),
        jnp.einsum("bkgts,bkgtd->bksd", p, delta),
    )


def _blocks(q, k, v, seen, size):
    """y and the logarithms of the rows' sums, (B, K, G, T)."""
    time, root = q.shape[1], math.sqrt(q.shape[-1])
    q, k, v = (_padded(leaf, size) for leaf in (q, k, v))

    def step(carry, pair):
        i, j = pair
        largest, total = (_at(leaf, i, size, -1) for leaf in carry[:2])
        part_k, part_v = (_heads_first(seen.only(_at(leaf, j, size), j)) for leaf in (k, v))
        scores = seen.scores(_heads_first(_at(q, i, size)) / root, part_k, i, j)
        new = jnp.maximum(largest, jnp.max(scores, axis=-1))
        old = jnp.exp(largest - _finite(new))
        p = jnp.exp(scores - _finite(new)[..., None])
        total = total * old + jnp.sum(p, axis=-1)
        y = _heads_first(_at(carry[2], i, size)) * old[..., None]
        y = _heads_last(y + jnp.einsum("bkgts,bksd->bkgtd", p, part_v))
        parts = zip(carry, (new, total, y), (-1, -1, 1), strict=True)
        return tuple(lax.dynamic_update_slice_in_dim(c, part, i, a) for c, part, a in parts), None

    start = accumulated(jnp.zeros_like(q))
    row = _heads_first(start)[..., 0]
    (largest, total, y), _ = lax.scan(step, (row - jnp.inf, row, start), seen.pairs(size))
    total = _nonzero(total)
    y = y / _heads_last(total[..., None])
    return y[:, :time], (_finite(largest) + jnp.log(total))[..., :time]


def _blocks_backward(q, k, v, logs, y, delta, seen, size):
    time, keys, root = q.shape[1], k.shape[1], math.sqrt(q.shape[-1])
    along = _heads_first((accumulated(delta) * accumulated(y)).sum(-1, keepdims=True))[..., 0]
    q, k, v, delta = (_padded(leaf, size) for leaf in (q, k, v, delta))
    logs, along = (_padded(leaf, size, -1) for leaf in (logs, along))

    def step(carry, pair):
        i, j = pair
        part_q, part = (_heads_first(_at(leaf, i, size)) for leaf in (q, delta))
        part_k, part_v = (_heads_first(seen.only(_at(leaf, j, size), j)) for leaf in (k, v))
        log, mean = (_at(leaf, i, size, -1)[..., None] for leaf in (logs, along))
        part_q = part_q / root
        p = jnp.exp(seen.scores(part_q, part_k, i, j) - log)
        deltas = map(_heads_last, _deltas(part_q, part_k, part_v, p, part, mean))
        return tuple(map(_add, carry, (i, j, j), deltas)), None

    start = tuple(accumulated(jnp.zeros_like(leaf)) for leaf in (q, k, v))
    (delta_q, delta_k, delta_v), _ = lax.scan(step, start, seen.pairs(size))
    return delta_q[:, :time], delta_k[:, :keys], delta_v[:, :keys]


def _padded(x: jax.Array, size: int, axis: int = 1) -> jax.Array:
    """The axis filled up to whole blocks."""
    ends = [(0, 0)] * x.ndim
    ends[axis] = (0, -x.shape[axis] % size)
    return jnp.pad(x, ends)


def _at(x: jax.Array, start: jax.Array, size: int, axis: int = 1) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, start, size, axis)


def _add(x: jax.Array, start: jax.Array, part: jax.Array) -> jax.Array:
    new = _at(x, start, part.shape[1]) + part
    return lax.dynamic_update_slice_in_dim(x, new, start, 1)


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
