"""Evolution strategies: the gradient of a smoothed objective, from its values alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from ..core.checks import LayerError, as_layer, check_count, check_number, is_inexact
from ..core.contraction import accumulated, one_by_one
from ..core.layer import Layer
from ..core.loss import Loss
from ..core.rule import Rule, no_state, no_weights
from ..core.sweep import mean_loss
from .backpropagation import rule_of
from .state import check_flag, own_key

Tree = Any


def evolution_strategies(
    model: Layer,
    loss: Loss,
    *,
    pairs: int = 64,
    sigma: float = 0.05,
    ranks: bool = True,
    chunk: int | None = None,
    axis: str | None = None,
) -> Rule:
    """:func:`evolution` of the mean loss of a batch: no backward pass.

    Args:
        model: any layer.
        loss: any loss.
        pairs: as of :func:`evolution`, and so the others.
        sigma: σ.
        ranks: whether ranks stand in place of the losses.
        chunk: how many pairs are evaluated side by side.
        axis: over which axis of the mesh the population is split.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import evolution_strategies, mean_squared_error, mlp
    >>> model = mlp((2, 3, 1))
    >>> rule = evolution_strategies(model, mean_squared_error)
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> x, y = jnp.ones((4, 2)), jnp.ones((4, 1))
    >>> value, grads, _ = jax.jit(rule.estimate)(params, (), x, y, jax.random.key(1))
    >>> value.shape, grads[0]["w"].shape
    ((), (3, 2))
    """
    rule = _evolution(
        mean_loss(model, loss), pairs=pairs, sigma=sigma, ranks=ranks, chunk=chunk, axis=axis
    )
    return rule_of(as_layer(model, "model"), loss, rule.init, rule.estimate)


def evolution(
    objective: Callable[..., jax.Array],
    *,
    pairs: int = 64,
    sigma: float = 0.05,
    ranks: bool = True,
    chunk: int | None = None,
    axis: str | None = None,
    predict: Callable[[Tree, Tree], Tree] | None = None,
) -> Rule:
    """Evolution strategies: a step against what random changes of the parameters make worse.

        εᵢ ~ N(0, I)      fᵢ⁺ = f(θ + σ εᵢ)      fᵢ⁻ = f(θ - σ εᵢ)      i = 1 ... n
        ĝ = 1/(2 n σ) Σᵢ (r(fᵢ⁺) - r(fᵢ⁻)) εᵢ

    r(f) is the rank of a value among all 2 n, scaled to [-½, ½]; equal values share the mean of
    theirs.  So a step depends on no scale of f, and no outlier rules it.  With ``ranks=False`` r
    is f itself: then ĝ is an unbiased estimate of the gradient of E f(θ + σ ε), which is that of f
    at any σ where f is linear or quadratic, and elsewhere as σ → 0.
    Salimans 2017, arXiv 1703.03864; the ties are our own.

    The noise is drawn twice, once to evaluate and once to add up, and never kept: memory does not
    grow with n.  All members of the population see the same batch and the same key.

    Args:
        objective: ``objective(params, x, y, key) -> number``, to be minimised; it needs no
            gradient.  ``x`` and ``y`` are the batch; ``key`` is ``None`` in ``evaluate``.
        pairs: n; 2 n evaluations a step, and one for the value.
        sigma: σ, above 0, in the units of the parameters.
        ranks: whether ranks stand in place of the values.
        chunk: how many pairs are evaluated side by side, a divisor of their number (on a device);
            by default the largest up to 16.
        axis: the axis of the mesh over which the pairs are split, evenly: that of
            ``jax.set_mesh``, or of the ``jax.shard_map`` around the step.  The batch must be the
            same all along it.
        predict: the rule's ``predict``, where there is a model.

    Returns:
        A :class:`~funcprop.Rule` without state.  Its value is the objective at θ itself; without a
        key it gives that and zeros.

    Raises:
        LayerError: for options that make no sense, an objective that gives no number, and a mesh
            without the axis.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import evolution
    >>> rule = evolution(lambda params, x, y, key: jnp.sum(jnp.abs(params - x) > 1.0) * 1.0)
    >>> value, tree, _ = rule.estimate(jnp.zeros(3), (), jnp.ones(3), None, jax.random.key(0))
    >>> float(value), tree.shape
    (0.0, (3,))
    """
    if not callable(objective):
        raise LayerError("evolution", f"objective is {objective!r}, it must be a function")

    def weightless(params, x, y, key, sample_weight):
        no_weights("evolution", sample_weight, "its objective has none; weigh in the objective")
        return objective(params, x, y, key)

    rule = _evolution(weightless, pairs=pairs, sigma=sigma, ranks=ranks, chunk=chunk, axis=axis)

    def no_prediction(params, x):
        raise LayerError("evolution", "an objective has no prediction; give evolution a predict")

    return rule._replace(predict=predict or no_prediction)


def _evolution(objective, *, pairs, sigma, ranks, chunk, axis) -> Rule:
    """:func:`evolution` of ``objective(params, x, y, key, sample_weight)``."""
    check_count("evolution", "pairs", pairs)
    check_number("evolution", "sigma", sigma, above=0)
    check_flag("evolution", "ranks", ranks)
    if chunk is not None:
        check_count("evolution", "chunk", chunk)

    def value_at(params, x, y, key, sample_weight):
        value = objective(params, x, y, key, sample_weight)
        if jnp.shape(value) != () or not is_inexact(value):
            came = f"{jnp.result_type(value)}{list(jnp.shape(value))}"
            raise LayerError("evolution", f"the objective gave {came}, one number, a float, is due")
        return value

    def search(params, x, y, key, noise_key, sample_weight):
        keys = jax.random.split(noise_key, pairs)
        if axis is not None:
            devices = jax.lax.axis_size(axis)
            if pairs % devices:
                raise LayerError("evolution", f"pairs is {pairs}, a multiple of {devices} is due")
            keys = _mine(keys, axis)
        keys = keys.reshape(-1, _chunk_of(len(keys), chunk))

        def both(pair_key):
            noise = optax.tree.random_like(pair_key, params)

            def at(step):
                moved = jax.tree.map(lambda p, e: p + step * e, params, noise)
                return value_at(moved, x, y, key, sample_weight)

            return jnp.stack([at(sigma), at(-sigma)])

        values = jax.lax.map(jax.vmap(both), keys).reshape(-1, 2)
        if axis is not None:
            values = jax.lax.all_gather(values, axis, tiled=True)
        values = _centred_ranks(values) if ranks else accumulated(values)
        weights = (values[:, 0] - values[:, 1]) / (2 * pairs * sigma)
        if axis is not None:
            weights = _mine(weights, axis)

        def part(chunk):
            keys, weights = chunk
            noise = jax.vmap(lambda pair_key: optax.tree.random_like(pair_key, params))(keys)
            return jax.tree.map(
                lambda e: jnp.tensordot(weights.astype(e.dtype), e, 1), accumulated(noise)
            )

        total = one_by_one(part, (keys, weights.reshape(keys.shape)))
        if axis is not None:
            total = jax.lax.psum(total, axis)
        return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), total, params)

    def estimate(params, state, x, y, key, sample_weight=None):
        value = value_at(params, x, y, key, sample_weight)
        if key is None:
            return value, jax.tree.map(jnp.zeros_like, params), state
        run = search if axis is None else _split_over(axis, search)
        return value, run(params, x, y, key, own_key(key), sample_weight), state

    return Rule(no_state, estimate, lambda params, x: None)


def _centred_ranks(values: jax.Array) -> jax.Array:
    """Ranks scaled to [-½, ½], equal values at the mean of theirs; NaN is the worst."""
    flat = jnp.where(jnp.isnan(values), jnp.inf, values).ravel()
    ordered = jnp.sort(flat)
    below = jnp.searchsorted(ordered, flat, side="left")
    upto = jnp.searchsorted(ordered, flat, side="right")
    rank = (below + upto - 1).astype(accumulated(flat).dtype) / 2
    return (rank / (flat.size - 1) - 0.5).reshape(values.shape)


def _chunk_of(size: int, chunk: int | None) -> int:
    if chunk is None:
        return max(n for n in range(1, min(size, 16) + 1) if size % n == 0)
    if size % chunk:
        raise LayerError("evolution", f"chunk is {chunk}, a divisor of the {size} pairs is due")
    return chunk


def _mine(leaf: jax.Array, axis: str) -> jax.Array:
    """This device's part of what all of them hold."""
    share = len(leaf) // jax.lax.axis_size(axis)
    return jax.lax.dynamic_slice_in_dim(leaf, jax.lax.axis_index(axis) * share, share)


def _split_over(axis: str, search: Callable[..., Tree]) -> Callable[..., Tree]:
    """``search`` under shard_map, where it is not there yet."""
    mesh = jax.sharding.get_abstract_mesh()
    if axis in mesh.manual_axes:
        return search
    if axis not in mesh.axis_names:
        raise LayerError(
            "evolution",
            f"axis is {axis!r}, the mesh has {mesh.axis_names}; "
            "use jax.set_mesh with one that has it",
        )
    whole = PartitionSpec()
    return jax.shard_map(search, in_specs=whole, out_specs=whole, axis_names={axis})
