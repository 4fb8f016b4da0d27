"""One forward pass and one backward sweep over a batch, called like ``jax.value_and_grad``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from .checks import (
    LayerError,
    as_layer,
    check_count,
    check_integers,
    check_sample_weight,
    floats_of,
)
from .contraction import Varying, accumulated, matched, mean_over_devices, one_by_one
from .layer import Layer
from .loss import Loss, as_loss, has_parameters
from .site import gradient

Tree = Any


def value_and_backprop(
    model: Layer, loss: Loss, statistic: Callable[..., Tree] = gradient
) -> Callable[..., tuple[jax.Array, Tree]]:
    """The mean loss of a batch and what a statistic makes of its backward sweep.

        forward     p = model(params, x)      ℓ = loss(p, y)      value = Σᵢ wᵢ ℓᵢ / Σᵢ wᵢ
        backward    ∂value/∂ℓᵢ = wᵢ / Σᵢ wᵢ  →  δ = ∂value/∂p  →  the model's backward pass

    This is the one place where a mean over examples is taken.  With the default statistic the
    tree is the gradient of the value, shaped like ``params``, and equals that of
    ``jax.value_and_grad``; under ``shard_map`` too, where value and gradient are those of the
    device's own batch and a gradient by parameters that are the same on every device is the sum
    over devices.

    Args:
        model: the model, a layer.
        loss: the loss.
        statistic: ``statistic(site, inputs, delta) -> tree``, called at every site.

    Returns:
        ``f(params, x, y, *, sample_weight=None, weights=None, key=None, microbatch=None) ->
        (value, tree)``:

        - ``params``: the model's parameters; of a loss with parameters the pair (model's, loss's).
        - ``x``, ``y``: inputs and targets, trees of arrays with a leading batch axis.
        - ``sample_weight`` (B,): what each example counts for in the mean, floats of 0 or more, by
          default 1.  The mean is over the whole batch: a micro-batch, or a shard, may have no
          weight at all.
        - ``weights``: the tree that carries the error back in place of ``params``.
        - ``key``: for layers that draw random numbers.
        - ``microbatch``: how many examples are swept at a time, a divisor of B.  The trees of the
          micro-batches are added, so it takes statistics that sum over examples, and layers that
          mix examples see a micro-batch as their batch.

    Raises:
        LayerError: while tracing, when shapes, dtypes or structures do not fit; where values are
            concrete also for labels out of range and sample weights that are negative or all 0.
            Under a trace those give NaN.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import dense, mean_squared_error, value_and_backprop
    >>> model = dense(1, w_init=jax.nn.initializers.ones)
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> step = jax.jit(value_and_backprop(model, mean_squared_error))
    >>> value, grads = step(params, jnp.array([[1.0, 2.0]]), jnp.array([[1.0]]))
    >>> float(value), grads["w"].tolist(), grads["b"].tolist()
    (4.0, [[4.0, 8.0]], [4.0])
    """
    model, loss = as_layer(model, "model"), as_loss(loss)

    def f(params, x, y, *, sample_weight=None, weights=None, key=None, microbatch=None):
        x, size = checked_batch(x, y)
        share = shares(sample_weight, size)

        def sweep(x, y, share, key):
            losses, back = forward_pass(model, loss, params, x, y, weights=weights, key=key)
            value, share = weighted_mean(losses, share, size)
            return value, back.from_losses(share, statistic)[1]

        if microbatch is None:
            value, tree = sweep(x, y, share, key)
        else:
            y = jax.tree.map(jnp.asarray, y)
            value, tree = _added_up(sweep, x, y, share, key, microbatch, size)
        return value, matched(tree, Varying.of(params)) if statistic is gradient else tree

    return f


def mean_loss(model: Layer, loss: Loss) -> Callable[..., jax.Array]:
    """``f(params, x, y, key, sample_weight=None) -> value``, the mean loss without a way back."""
    model, loss = as_layer(model, "model"), as_loss(loss)

    def f(params, x, y, key, sample_weight=None):
        x, size = checked_batch(x, y)
        losses, _ = forward_pass(model, loss, params, x, y, weights=None, key=key)
        return weighted_mean(losses, shares(sample_weight, size))[0]

    return f


class Back(NamedTuple):
    """The way back from a forward pass, for any error and any statistic.

    Attributes:
        from_losses: ``from_losses(delta, statistic) -> (delta_x, tree)`` sends ∂/∂ℓ = delta (B,)
            back; of a loss with parameters the tree is the pair (model's, loss's).
        from_prediction: ``from_prediction(delta, statistic) -> (delta_x, tree)`` sends an error of
            the prediction back; the tree is the model's.
        error: ``error(delta)`` is what the loss makes of ∂/∂ℓ = delta, the prediction's error.
        loss_residuals: for the loss's ``root`` and ``sample``.
        prediction: what the model gave.
    """

    from_losses: Callable[..., tuple[Tree, Tree]]
    from_prediction: Callable[..., tuple[Tree, Tree]]
    error: Callable[[jax.Array], Tree]
    loss_residuals: Tree
    prediction: Tree


def forward_pass(
    model: Layer, loss: Loss, params: Tree, x: Tree, y: Tree, *, weights: Tree, key: Any
) -> tuple[jax.Array, Back]:
    """Each example's own loss (B,), and the way back."""
    weights = params if weights is None else _checked_weights(params, weights)
    own, loss_own = split_params(loss, params)
    carriers, loss_carriers = split_params(loss, weights)
    prediction, residuals = model.forward(own, x, key)
    losses, loss_residuals = loss.forward(loss_own, (prediction, y))

    def from_prediction(delta, statistic):
        return model.backward(carriers, residuals, delta, statistic)

    def from_losses(delta, statistic):
        (delta, _), loss_tree = loss.backward(loss_carriers, loss_residuals, delta, statistic)
        delta_x, tree = from_prediction(delta, statistic)
        return delta_x, (tree, loss_tree) if has_parameters(loss) else tree

    def error(delta):
        return loss.backward(loss_carriers, loss_residuals, delta)[0][0]

    return losses, Back(from_losses, from_prediction, error, loss_residuals, prediction)


def _added_up(sweep, x, y, share, key, microbatch, size):
    """The sum of the sweeps over micro-batches, one after the other."""
    name = "value_and_backprop"
    check_count(name, "microbatch", microbatch)
    if size % microbatch:
        raise LayerError(name, f"microbatch is {microbatch}, it must divide the batch, {size}")
    steps = size // microbatch
    # Every steps-th example goes into one micro-batch, so that a sharded batch is split inside
    # its shards.
    x, y, share = jax.tree.map(
        lambda leaf: jnp.moveaxis(leaf.reshape(microbatch, steps, *leaf.shape[1:]), 1, 0),
        (x, y, share),
    )
    parts = (x, y, share, None if key is None else jax.random.split(key, steps))

    return one_by_one(lambda part: sweep(*part), parts)


def shares(sample_weight: Any, size: int) -> jax.Array | None:
    """wᵢ / Σᵢ wᵢ (B,), at least float32; ``None`` where all examples count alike.

    Under ``shard_map`` the sum is the mean of the devices' sums, so that the devices' values and
    gradients are parts of one mean, as they are without weights.
    """
    check_sample_weight(sample_weight, size)
    if sample_weight is None:
        return None
    wide = accumulated(jnp.asarray(sample_weight))
    total = mean_over_devices(jnp.sum(wide))
    good = jnp.all(wide >= 0) & (total > 0) & (total < jnp.inf)
    return jnp.where(good, wide / total, jnp.nan)


def weighted_mean(
    losses: jax.Array, share: jax.Array | None, size: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Σᵢ shareᵢ ℓᵢ, and ∂/∂ℓ of it, the shares in the losses' dtype; by default they are 1/size."""
    if losses.ndim != 1:
        raise LayerError("loss", f"it gave {losses.shape}, it must give one number an example (B,)")
    wide = accumulated(losses)
    if share is None:
        share = jnp.full_like(wide, 1 / (len(losses) if size is None else size))
    value = jnp.sum(share.astype(wide.dtype) * wide)
    return value.astype(losses.dtype), share.astype(losses.dtype)


def checked_batch(x: Tree, y: Tree) -> tuple[Tree, int]:
    """x as arrays, and how many examples there are."""
    x = arrays_of("value_and_backprop", x)
    return x, _batch_size(x, y)


def arrays_of(layer: str, x: Tree) -> Tree:
    """x as arrays of JAX."""
    for leaf in jax.tree.leaves(x):
        check_integers(layer, "x", leaf)
    return jax.tree.map(jnp.asarray, x)


def _batch_size(x: Tree, y: Tree) -> int:
    sizes = [jnp.shape(leaf)[:1] for leaf in jax.tree.leaves((x, y))]
    if not sizes or len(set(sizes)) > 1 or sizes[0] in ((), (0,)):
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves((x, y))]
        raise LayerError(
            "value_and_backprop",
            f"x and y have shapes {shapes}; one leading batch axis of 1 or more examples is due",
        )
    return sizes[0][0]


def _checked_weights(params: Tree, weights: Tree) -> Tree:
    try:
        chex.assert_trees_all_equal_shapes_and_dtypes(params, weights)
    except AssertionError as error:
        raise LayerError(
            "value_and_backprop",
            f"weights is not shaped like params, as a tree that carries the error must be: {error}",
        ) from None
    return weights


def models_own(loss: Loss | None, params: Tree) -> Tree:
    """The model's parameters, of a loss with parameters the first of the pair."""
    return params if loss is None else split_params(loss, params)[0]


def mixing_refused(what: str, model: Layer) -> Callable[[Tree, Tree], None]:
    """``check(params, x)``, which raises where an example's output depends on others of its batch.

    A model is traced once for each shape of params and x.
    """

    def refuse(site, inputs, delta):
        if site.mixes and site.output_mixes:
            raise LayerError(
                site.name,
                f"it mixes the examples of a batch, so that the result of {what} would depend on "
                "the size of the batch; take the model and params that calibrate(model, params, "
                "batches) returns",
            )

    @jax.jit
    def sweep(params, x):
        y, residuals = model.forward(params, x)
        model.backward(params, residuals, floats_of(y), refuse)

    def struct(leaf):
        dtype = jax.dtypes.canonicalize_dtype(jnp.result_type(leaf))
        return leaf if isinstance(leaf, jax.Array) else jax.ShapeDtypeStruct(leaf.shape, dtype)

    return lambda params, x: sweep.eval_shape(params, jax.tree.map(struct, x))


def split_params(loss: Loss, params: Tree) -> tuple[Tree, Tree]:
    """The model's parameters and the loss's."""
    if not has_parameters(loss):
        return params, ()
    if not isinstance(params, (tuple, list)) or len(params) != 2:
        raise LayerError(
            "value_and_backprop",
            f"{loss.name} has parameters, so params must be the pair (model's, loss's); "
            "a loss without any has init=no_parameters",
        )
    return params[0], params[1]
