"""Hebbian learning: a matrix grows along the products of its outputs and inputs."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ..core.checks import LayerError, as_layer
from ..core.combinators import Block, blocks, joined_blocks
from ..core.contraction import accumulated, total
from ..core.layer import Layer
from ..core.loss import Loss
from ..core.rule import Rule, no_state
from ..core.site import Site
from ..core.sweep import checked_batch, shares, weighted_mean
from ..statistics.statistic import AtSite, map_sites
from .backpropagation import rule_of
from .chain import check_array, functions, model_and_loss, weighted
from .state import check_flag

Tree = Any
NAME = "hebbian"


def hebbian(model: Layer, loss: Loss | None = None, *, oja: bool = False) -> Rule:
    """Hebb's rule, and Oja's: each block is sent its own output as delta, and nothing else.

        sent        δyₗ = yₗ, back through the activation: δzₗ = yₗ ⊙ σ′(zₗ)
        Hebb        tree  = -1/B Σ δzᵀ x
        Oja         tree  = -1/B (Σ δzᵀ x - Σ δz² W)      row j of W times the sum of δzⱼ²

    Hebb 1949; Oja 1982, J. Math. Biol. 15.  The tree is minus the change that the rules make, since
    an optimizer descends.  For linear layers, and for relu, δz is y itself; in general Hebb's tree
    is minus the gradient of ½ ‖yₗ‖² by the block's parameters.  A bias has the input 1.

    Nothing here is told what to do: no target, and no error.  Hebb's matrices grow without end.
    Under Oja's rule the rows of a linear layer come to rest at length 1; one row finds the first
    principal component of its inputs, and several find it too, since none hears of the others.

    A block is a part of the model with parameters and those behind it without
    (:func:`~funcprop.core.combinators.blocks`); what a pooling leaves out gets no delta.

    Args:
        model: blocks of one matrix each: dense layers, convolutions, embeddings.
        loss: what ``value`` is: the mean loss of the model's output.  By default there is none, and
            ``value`` is the mean squared output.
        oja: whether Σ δz² W is subtracted.

    Returns:
        A :class:`~funcprop.Rule` without state; of the key it uses what dropout draws.

    Raises:
        LayerError: for a loss with parameters; while tracing for blocks of another kind.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import affine, hebbian
    >>> rule = hebbian(affine(1, bias=False), oja=True)
    >>> params, x = {"w": jnp.array([[2.0, 0.0]])}, jnp.array([[1.0, 3.0]])
    >>> value, tree, _ = rule.estimate(params, (), x, jnp.zeros(1), None)
    >>> float(value), tree["w"].tolist()
    (4.0, [[6.0, -6.0]])
    """
    if loss is None:
        model = as_layer(model, "model")
    else:
        model, loss = model_and_loss(NAME, model, loss)
    check_flag(NAME, "oja", oja)

    def estimate(params, state, x, y, key, sample_weight=None):
        h, size = checked_batch(x, y)
        share = shares(sample_weight, size)
        share = jnp.full((size,), 1 / size) if share is None else share
        statistic = functools.partial(_with_squares, share)
        trees, found = [], blocks(model, params)
        for block, f in zip(found, functions(NAME, found, key), strict=True):
            h, back = f(h)
            check_array(NAME, block, h)
            _, at_site = back(h, statistic)
            _check_one_matrix(block, at_site)
            trees.append(map_sites(lambda at, own: _change(at, own, oja), at_site, block.params))
        squares = jnp.square(accumulated(h))
        own = (
            loss.apply((), (h, y))
            if loss is not None
            else (jnp.mean(squares, tuple(range(1, h.ndim))))
        )
        value, _ = weighted_mean(own, share)
        return value, joined_blocks(model, trees), state

    return rule_of(model, loss, no_state, estimate)


def _with_squares(share: jax.Array, site: Site, inputs: Tree, delta: Tree) -> AtSite:
    """Means over the batch of δzᵀ x, and of δz² where the parameters have their outputs."""
    inputs, delta = accumulated((inputs, delta))
    grads = site.gradient(inputs, weighted(share, delta))
    named = set(grads) if isinstance(grads, dict) else set()
    # A shared matrix is used at several places, and the delta of one only is its own output.
    if site.rows is None or named - {"b"} != {"w"} or site.name == "share":
        raise LayerError(
            site.name,
            f"{NAME} takes layers of one matrix, as dense, conv and embedding; leave this one out",
        )
    right = site.rows(inputs, delta)[1]
    squares = total(weighted(share, right * right))
    w = squares if site.inputs_first else squares.reshape(-1, *(1,) * (grads["w"].ndim - 1))
    return AtSite((grads, {"w": w, "b": squares}), jnp.zeros(()))


def _check_one_matrix(block: Block, found: Tree) -> None:
    """Raises where the block's delta is not that of its only matrix, as inside ``repeat``."""
    sites = [at for at in jax.tree.leaves(found, is_leaf=_is_at_site) if _is_at_site(at)]
    if len(sites) != 1 or jnp.ndim(sites[0].depth):
        raise LayerError(
            NAME,
            f"the block of {block.names} is not one matrix, whose output it gives; put its layers "
            "one by one into a serial",
            block.place,
        )


def _change(at: AtSite, part: Tree, oja: bool) -> Tree:
    grads, squares = at.piece
    if oja:
        wide = accumulated(part)
        grads = {name: grad - squares[name] * wide[name] for name, grad in grads.items()}
    return jax.tree.map(lambda grad, like: (-grad).astype(like.dtype), grads, part)


def _is_at_site(node: Any) -> bool:
    return isinstance(node, AtSite)
