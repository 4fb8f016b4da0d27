"""The last layer and the loss of a large vocabulary in one, without ever holding its logits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..core import contraction
from ..core.checks import LayerError, check_count, check_features, check_number, is_inexact
from ..core.loss import Loss
from ..core.site import Site, gradient
from ..layers.initializers import lecun_normal
from .standard import Kinds, diagonal, example_sum, spread
from .targets import as_labels, check_labels, share_of, share_where, unpack

Array = jax.Array


def linear_cross_entropy(
    vocab: int, *, label_smoothing: float = 0.0, chunk: int = 1024, w_init: Any = lecun_normal
) -> Loss:
    """Cross-entropy of softmax(h Wᵀ) with labels, in chunks of the vocabulary.

        forward     z = h Wᵀ      ℓ = log Σ_v eᶻᵛ - Σ_v q_v z_v
                    q = (1 - ε) onehot(label) + ε/V
        transport   δz = δ (p - q), p = softmax(z)      δh = δz W
        gradient    δW = Σ δzᵀ h

    prediction h (B, d) with labels (B,) of integers in [0, V), or of tokens (B, ..., d) with
    (B, ...), their mean, or with (target, mask), the mean over mask.  A loss with parameters, so
    that params of :func:`~funcprop.value_and_backprop` is the pair (model's, loss's):
    W (n, c, d) holds the vocabulary's rows in n = ⌈V/chunk⌉ chunks of c = ⌈V/n⌉, zeros behind the
    last one.

    Both passes scan over the chunks, so z and δz exist for one chunk at a time.  Forward, the sum
    of exponentials goes along with its largest exponent (Milakov & Gimelshein 2018,
    arXiv 1805.02867, alg. 3); back, z is computed again.  A statistic is called once for each
    chunk, as in ``repeat``: its site's inputs are h, its delta the chunk's δz.

    Args:
        vocab: V, how many labels there are.
        label_smoothing: ε in [0, 1) (Szegedy 2016, arXiv 1512.00567, sec. 7).
        chunk: how many rows of W are multiplied at a time, at most.
        w_init: ``w_init(key, (V, d)) -> W``; by default normal with variance 1/d.

    Returns:
        A :class:`~funcprop.Loss`.  Its ``root`` has a column for every token and label, and holds
        all probabilities; its ``sample`` goes by chunks.

    Raises:
        LayerError: for shapes and dtypes that do not fit, while tracing; for labels out of [0, V)
            where their values are concrete.  Under a trace such a label gives NaN.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import linear_cross_entropy
    >>> loss = linear_cross_entropy(10, chunk=4)
    >>> h, labels = jnp.zeros((2, 3)), jnp.array([0, 9])
    >>> params, _ = loss.init(jax.random.key(0), (h[0], labels[0]))
    >>> params["w"].shape, [f"{ell:.4f}" for ell in loss.apply(params, (h, labels))]
    ((3, 4, 3), ['2.3026', '2.3026'])
    """
    name = "linear_cross_entropy"
    check_count(name, "vocab", vocab)
    check_count(name, "chunk", chunk)
    label_smoothing = check_number(name, "label_smoothing", label_smoothing, at_least=0, below=1)
    n = -(-vocab // chunk)
    size = -(-vocab // n)
    starts = range(0, n * size, size)

    def init(key, shape):
        features = getattr(shape[0], "shape", shape[0])[-1]
        check_features(name, features)
        w = jnp.pad(w_init(key, (vocab, features)), ((0, n * size - vocab), (0, 0)))
        return {"w": w.reshape(n, size, features)}, ()

    def scanned(step, carry, *by_chunk):
        return jax.lax.scan(step, carry, (jnp.array(starts, jnp.int32), *by_chunk))

    def labels_of(start):
        """The chunk's labels, and which of them are in the vocabulary."""
        own = start + jnp.arange(size, dtype=jnp.int32)
        return own, own < vocab

    def forward(params, x, key=None):
        h, labels, mask = unpack(name, x)
        _check(name, params, h, labels, mask, (n, size), vocab)
        share = share_of(name, contraction.accumulated(h), mask)
        labels = as_labels(labels, vocab)
        share = share_where((labels >= 0)[..., None], share)
        labels = jnp.maximum(labels, 0)
        if mask is not None:  # what padding holds may be NaN, and 0 · NaN is not 0
            h = jnp.where(share == 0, jnp.zeros_like(h), h)
        wide = contraction.accumulated(h)

        def step(carry, part):
            largest, total = carry
            start, w = part
            z = contraction.affine_map(wide, contraction.accumulated(w))
            z = jnp.where(labels_of(start)[1], z, -jnp.inf)
            # A shift of all exponents, which no derivative needs to see.
            top = jnp.maximum(largest, jax.lax.stop_gradient(jnp.max(z, axis=-1)))
            total = total * jnp.exp(largest - top)
            return (top, total + jnp.sum(jnp.exp(z - top[..., None]), axis=-1)), None

        zero = jnp.zeros_like(wide[..., 0])
        (largest, total), _ = scanned(step, (zero - jnp.inf, zero), params["w"])
        log_sum = (largest + jnp.log(total))[..., None]

        # Σ_v q_v z_v = h · Σ_v q_v W_v
        rows = contraction.by_example(_rows, params["w"], labels)
        due = (1 - label_smoothing) * contraction.accumulated(rows)
        if label_smoothing:
            alive = params["w"].reshape(n * size, -1)[:vocab]
            due += label_smoothing * jnp.mean(contraction.accumulated(alive), axis=0)
        losses = log_sum - jnp.sum(wide * due, axis=-1, keepdims=True)
        losses = example_sum(share, losses).astype(h.dtype)
        kinds = Kinds(False, mask is not None, h.dtype)
        return losses, (params["w"], h, labels, log_sum, share, kinds)

    def gradients(h, delta):
        return {"w": contraction.outer(delta, h)}

    def rows(h, delta):
        return h.reshape(len(h), -1, h.shape[-1]), delta.reshape(len(h), -1, size)

    site = Site(name, gradients, rows)

    def backward(weights, residuals, delta, statistic=gradient):
        w, h, labels, log_sum, share, kinds = residuals
        wide, delta = contraction.accumulated((h, delta))

        def step(delta_h, part):
            start, w, carrier = part
            own, alive = labels_of(start)
            z = contraction.affine_map(wide, contraction.accumulated(w))
            label = (labels[..., None] == own).astype(z.dtype)
            q = (1 - label_smoothing) * label + label_smoothing / vocab
            delta_z = spread(share, jnp.exp(z - log_sum) - q, delta)
            delta_z = jnp.where(alive, delta_z, 0)
            delta_h += contraction.transport(delta_z, contraction.accumulated(carrier), like=h)
            return delta_h, statistic(site, h, delta_z.astype(h.dtype))

        delta_h, tree = scanned(step, jnp.zeros_like(wide), w, weights["w"])
        return kinds.deltas(delta_h, None), tree

    def root(residuals):
        w, h, _, log_sum, share, kinds = residuals
        w, h = contraction.accumulated((w.reshape(n * size, -1)[:vocab], h))
        p = jnp.exp(contraction.affine_map(h, w) - log_sum)
        columns = diagonal(jnp.sqrt(p))  # S = Wᵀ (diag(√p) - p √pᵀ)
        columns -= jnp.sum(columns, axis=-1, keepdims=True) * p
        return (jnp.sqrt(share) * contraction.affine_map(columns, w.T)).astype(kinds.dtype)

    def sample(key, residuals):
        """Wᵀ (p - onehot(drawn)): of all labels the one with the largest z + Gumbel noise."""
        w, h, _, log_sum, share, kinds = residuals
        h = contraction.accumulated(h)

        def step(carry, part):
            mean, best, drawn = carry
            start, w, own_key = part
            w = contraction.accumulated(w)
            z = contraction.affine_map(h, w)
            z = jnp.where(labels_of(start)[1], z, -jnp.inf)
            mean += contraction.affine_map(jnp.exp(z - log_sum), w.T)
            noisy = z + jax.random.gumbel(own_key, z.shape, z.dtype)
            top = jnp.max(noisy, axis=-1, keepdims=True)
            row = contraction.by_example(_row, w, jnp.argmax(noisy, axis=-1))
            return (mean, jnp.maximum(best, top), jnp.where(top > best, row, drawn)), None

        zero = jnp.zeros_like(h)
        carry = (zero, zero[..., :1] - jnp.inf, zero)
        (mean, _, drawn), _ = scanned(step, carry, w, jax.random.split(key, n))
        return (jnp.sqrt(share) * (mean - drawn)).astype(kinds.dtype)

    return Loss(
        init,
        forward,
        backward,
        root,
        sample,
        name,
        likelihood=not label_smoothing,
        terms=lambda residuals: residuals[4],
    )


def _rows(w: Array, labels: Array) -> Array:
    return jnp.asarray(w)[labels // w.shape[1], labels % w.shape[1]]


def _row(w: Array, labels: Array) -> Array:
    return jnp.asarray(w)[labels]


def _check(
    name: str, params: Any, h: Array, labels: Any, mask: Any, chunks: tuple[int, int], vocab: int
) -> None:
    if not isinstance(params, dict) or set(params) != {"w"}:
        came = sorted(params) if isinstance(params, dict) else f"a {type(params).__name__}"
        raise LayerError(name, f"params is {came}, a dict of ['w'] is due; see init")
    if h.ndim < 2 or h.shape[-1] == 0:
        raise LayerError(name, f"prediction is {h.shape}, hidden (B, ..., d > 0) is due")
    w, due = params["w"], (*chunks, h.shape[-1])
    if w.shape != due or w.dtype != h.dtype:
        raise LayerError(
            name,
            f"w is {w.dtype}{list(w.shape)}, prediction is {h.dtype}{list(h.shape)}; "
            f"w of {h.dtype}{list(due)} is due for {vocab} labels",
        )
    if is_inexact(labels):
        raise LayerError(
            name,
            f"target is {labels.dtype}, integer labels are due; for distributions use "
            "softmax_cross_entropy() behind an affine layer",
        )
    check_labels(name, h, labels, mask, vocab)
