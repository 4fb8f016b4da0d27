"""How a rule's estimate stands to the gradient, along training."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import LayerError
from ..core.contraction import accumulated
from ..core.layer import Layer, sites
from ..core.loss import Loss
from ..core.places import EACH, at_index, located
from ..core.rule import Rule
from ..core.site import Site
from ..core.sweep import split_params, value_and_backprop
from ..statistics.at_site import length
from .feedback import matrices
from .state import check_state

Tree = Any


def alignment(
    rule: Rule,
    model: Layer,
    loss: Loss,
    *,
    feedback: Callable[[Tree], Tree] | None = None,
) -> Callable[[Any, Tree], dict[str, jax.Array]]:
    """Metrics of a training: the angle between the rule's estimate and the gradient.

        angle = arccos (g·ĝ / ‖g‖‖ĝ‖), in degrees      ratio = ‖ĝ‖/‖g‖

    of all parameters together and for each layer; g is backprop's gradient of the same batch, with
    the same parameters and random numbers.  Both share the forward pass with the training step,
    which is compiled with them.

    Args:
        rule: the rule that is trained with, whose prediction is what the model computes.  That of
            :func:`~funcprop.equilibrium_propagation`, a network that settles, is another function,
            and its angle says little; :func:`~funcprop.forward_forward` gives its model another
            input, and has no angle.
        model: its model.
        loss: its loss.
        feedback: ``feedback(rule_state) -> tree`` shaped like the parameters with ``None`` where
            there is no feedback; then the angle and the ratio between B and W come too.  The state
            of ``feedback_alignment`` and ``weight_mirror`` is that tree, ``lambda state: state``;
            of ``kolen_pollack`` it is ``lambda state: state.feedback``.  That of ``sign_symmetry``
            is M, which is not what carries the error: leave the argument out.

    Returns:
        ``metrics(state, batch) -> {name: number}`` for :func:`~funcprop.update_step` and
        :func:`~funcprop.fit`: "angle", "ratio", and with a layer's place behind, as in "angle
        layers[0]", "feedback_angle layers[1]", inside ``repeat`` for each repetition, "angle
        layers[0].repeat[2]".  The angle is NaN where one of the two is 0.

    Raises:
        LayerError: while tracing, when what ``feedback`` gives is not shaped like the matrices.

    >>> import jax, jax.numpy as jnp, optax
    >>> import funcprop as fp
    >>> model, loss = fp.mlp((2, 3, 1)), fp.mean_squared_error
    >>> rule = fp.feedback_alignment(model, loss)
    >>> metrics = fp.alignment(rule, model, loss, feedback=lambda state: state)
    >>> params, _ = model.init(jax.random.key(0), (2,))
    >>> _, history = fp.fit(rule, optax.sgd(0.1), params, (jnp.ones((4, 2)), jnp.ones((4, 1))),
    ...                     key=jax.random.key(1), steps=3, metrics=metrics)
    >>> len(history["angle layers[0]"]), history["angle layers[1]"][0] < 0.1
    (3, True)
    """
    sweep = value_and_backprop(model, loss)

    def metrics(state, batch):
        key = jax.random.fold_in(state.key, state.step)  # as the step itself does
        _, estimate, _ = rule.estimate(state.params, state.rule_state, *batch, key)
        try:
            _, due = sweep(state.params, *batch, key=key)
        except LayerError as error:
            raise LayerError(
                "alignment",
                f"the model itself cannot be run on the batch, for its gradient: {error}",
            ) from None
        names = _names(model, loss, batch[0], due)
        found = _compared("", names, estimate, due)
        if feedback is not None:
            b, w = feedback(state.rule_state), matrices(state.params)
            check_state("alignment", b, w, "feedback")
            found |= _compared("feedback_", names, b, w)
        return found

    return metrics


def _names(model: Layer, loss: Loss, x: Tree, params: Tree) -> Tree:
    """The parameters' tree with the name of its place at every site."""
    shape = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)
    found = sites(located(model), shape)
    paths, structure = jax.tree_util.tree_flatten_with_path(found, is_leaf=_is_site)
    count = Counter(site.name for _, site in paths if _is_site(site))
    names = [
        _Name(site.name + ("" if count[site.name] == 1 else _last_keys(path)))
        for path, site in paths
    ]
    names = jax.tree.unflatten(structure, names)
    return names if split_params(loss, params)[0] is params else (names, _Name("loss"))


@dataclasses.dataclass(frozen=True)
class _Name:
    """A leaf of the tree of places: a string would do, were it never mistaken for a sequence."""

    place: str


def _is_site(leaf: Any) -> bool:
    return isinstance(leaf, Site)


def _last_keys(path: Any) -> str:
    """Which of a layer's sites it is, as "['h']"."""
    keys = itertools.takewhile(lambda key: hasattr(key, "key"), reversed(path))
    return jax.tree_util.keystr(tuple(reversed(list(keys))))


def _compared(prefix: str, names: Tree, tree: Tree, due: Tree) -> dict[str, jax.Array]:
    places: dict[str, tuple[list, list]] = {"": ([], [])}
    sizes: dict[str, tuple[int, ...]] = {"": ()}

    def at(name, *sides):
        repeats = name.place.count(EACH)
        for leaves, whole, side in zip(
            places.setdefault(f" {name.place}", ([], [])), places[""], sides, strict=True
        ):
            for leaf in accumulated(jax.tree.leaves(side)):
                sizes[f" {name.place}"] = times = leaf.shape[:repeats]
                leaves.append(leaf.reshape(math.prod(times), -1).T)
                whole.append(leaf.reshape(-1, 1))

    jax.tree.map(at, names, tree, due, is_leaf=lambda leaf: isinstance(leaf, _Name))
    found = {}
    for place, (ours, theirs) in places.items():
        if not ours:
            continue
        a, b = length(ours), length(theirs)
        cosine = sum(jnp.sum((p / a) * (q / b), axis=0) for p, q in zip(ours, theirs, strict=True))
        angle, ratio = jnp.degrees(jnp.arccos(jnp.clip(cosine, -1, 1))), a / b
        for i, index in enumerate(np.ndindex(*sizes[place])):
            name = at_index(place, index)
            found[f"{prefix}angle{name}"], found[f"{prefix}ratio{name}"] = angle[i], ratio[i]
    return found
