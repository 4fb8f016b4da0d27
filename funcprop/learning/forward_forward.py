"""Forward-forward: every block learns to tell true labels from wrong ones by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import LayerError, as_layer, check_count, check_float, check_number
from ..core.combinators import Block, blocks, joined_blocks
from ..core.contraction import accumulated
from ..core.layer import Layer
from ..core.rule import Rule, no_state
from ..core.site import Site, gradient
from ..core.sweep import checked_batch, shares
from ..losses.targets import one_hot
from .chain import check_array, functions
from .state import own_key

Tree = Any
NAME = "forward_forward"


def forward_forward(
    model: Layer, classes: int, *, threshold: float = 1.0, slope: float = 3.0
) -> Rule:
    """A block is to be active where the label beside the input is right, quiet where it is wrong.

        goodness    gₗ = meanⱼ hₗⱼ²
        positive    p  = sigmoid(s (gₗ - θ))
        losses      ℓₗ = -log p for a true label, -log(1 - p) for a wrong one
        passed on   hₗ/‖hₗ‖ √n, the direction alone, n numbers of mean square 1
        δhₗ         = ∂ℓₗ/∂gₗ 2 hₗ/n, which goes back through block l and ends there

    Hinton 2022, arXiv 2212.13345.  The label is appended to the last axis of the input, one-hot, so
    that a model of n features takes n + ``classes``.  Wrong labels are drawn from the key, one for
    each example; without a key all of them are swept, each with its share: the tree is then the
    mean over all draws.

    A block is a part of the model with parameters and those behind it without
    (:func:`~funcprop.core.combinators.blocks`).  ``value`` is the sum over blocks of the mean ℓₗ of
    true labels and that of wrong ones.  The prediction (B, classes) is Σₗ gₗ with each label in
    turn: a forward pass a class.

    Args:
        model: the model; each block gives one array of floats.
        classes: how many labels there are, at least 2.
        threshold: θ; a goodness beyond it counts as positive, so activations must reach it.
        slope: s, above 0.

    Returns:
        A :class:`~funcprop.Rule` without state.

    Raises:
        LayerError: for options that make no sense; while tracing for layers that mix examples,
            blocks that give no single array, and labels that do not fit.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import dense, forward_forward, relu, serial
    >>> model = serial(dense(8, relu), dense(8, relu))
    >>> rule = forward_forward(model, classes=3)
    >>> params, _ = model.init(jax.random.key(0), (2 + 3,))
    >>> x, y = jnp.ones((4, 2)), jnp.array([0, 1, 2, 0])
    >>> value, grads, _ = jax.jit(rule.estimate)(params, (), x, y, jax.random.key(1))
    >>> value.shape, grads[0]["w"].shape, jax.jit(rule.predict)(params, x).shape
    ((), (8, 5), (4, 3))
    """
    model = as_layer(model, "model")
    check_count(NAME, "classes", classes)
    if classes < 2:
        raise LayerError(NAME, "classes is 1, at least 2 are due; a wrong label must exist")
    check_number(NAME, "threshold", threshold)
    check_number(NAME, "slope", slope, above=0)

    def estimate(params, state, x, y, key, sample_weight=None):
        x, size = checked_batch(x, y)
        check_float(NAME, x)
        if key is None:
            shifts = jnp.arange(1, classes, dtype=jnp.int32)[:, None]
        else:
            shifts = jax.random.randint(own_key(key), (1, size), 1, classes, jnp.int32)
        like = jnp.zeros((size, classes), x.dtype)
        true = one_hot(NAME, y, like)
        if true is y:
            came = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(y)]
            raise LayerError(NAME, f"y is {', '.join(came)}, integer labels ({size},) are due")
        wrong = (jnp.asarray(y).astype(jnp.int32) + shifts) % classes
        wrong = jax.vmap(lambda labels: one_hot(NAME, labels, like))(wrong)
        h = jnp.concatenate([_beside(x, true), *(_beside(x, labels) for labels in wrong)])
        wide = accumulated(h).dtype
        sign = jnp.where(jnp.arange(len(h)) < size, 1, -1).astype(wide)
        one = shares(sample_weight, size)
        one = jnp.full((size,), 1 / size) if one is None else one
        share = jnp.concatenate([one, *[one / len(wrong)] * len(wrong)]).astype(wide)

        value, trees = jnp.zeros((), wide), []
        found = blocks(model, params)
        for block, f in zip(found, functions(NAME, found, key), strict=True):
            with _label_appended(block, classes):
                h, back = f(h)
            check_array(NAME, block, h)
            goodness = _goodness(h)
            margin = sign * slope * (goodness - threshold)
            value += jnp.sum(share * jax.nn.softplus(-margin))
            by_goodness = -share * sign * slope * jax.nn.sigmoid(-margin)
            delta = _by_example(by_goodness, h) * 2 * accumulated(h) / (h.size // len(h))
            delta = delta.astype(h.dtype)
            trees.append(back(delta, _unmixed)[1])
            h = _direction(h)
        return value.astype(x.dtype), joined_blocks(model, trees), state

    def predict(params, x):
        x = jnp.asarray(x)

        def of_label(label):
            h = _beside(x, jnp.broadcast_to(label, (len(x), classes)))
            total = jnp.zeros(len(x), accumulated(x).dtype)
            for block in blocks(model, params):
                with _label_appended(block, classes):
                    h = block.layer.apply(block.params, h)
                check_array(NAME, block, h)
                total += _goodness(h)
                h = _direction(h)
            return total

        return jax.vmap(of_label)(jnp.eye(classes, dtype=x.dtype)).T

    return Rule(no_state, estimate, predict)


@contextmanager
def _label_appended(block: Block, classes: int) -> Iterator[None]:
    """Says of an error of the first block that its input is longer than the features."""
    try:
        yield
    except LayerError as error:
        if block.first:
            raise
        raise LayerError(
            error.layer,
            f"{error.message}; {NAME} appends the label, {classes} classes, to the features of x: "
            "init the model with so many more",
            error.position,
        ) from None


def _beside(x: jax.Array, labels: jax.Array) -> jax.Array:
    """The label as more features of every place."""
    labels = labels.reshape(len(x), *(1,) * (x.ndim - 2), -1)
    return jnp.concatenate([x, jnp.broadcast_to(labels, (*x.shape[:-1], labels.shape[-1]))], -1)


def _by_example(numbers: jax.Array, like: jax.Array) -> jax.Array:
    return numbers.reshape(-1, *(1,) * (like.ndim - 1))


def _goodness(h: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(accumulated(h)), axis=tuple(range(1, h.ndim)))


def _direction(h: jax.Array) -> jax.Array:
    # The smallest normal number keeps a block that is silent from dividing by 0.
    goodness = _goodness(h)
    norm = jnp.sqrt(goodness + jnp.finfo(goodness.dtype).tiny)
    return (accumulated(h) / _by_example(norm, h)).astype(h.dtype)


def _unmixed(site: Site, inputs: Tree, delta: Tree) -> Tree:
    if site.mixes:
        raise LayerError(
            site.name,
            f"it mixes the examples of a batch, and {NAME} has true and wrong labels in one; "
            "use layer_norm or group_norm",
        )
    return gradient(site, inputs, delta)
