"""One set of parameters at several places of a model."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .checks import LayerError, as_layer, position
from .contraction import accumulated
from .layer import Layer
from .rows import dense
from .site import Site, gradient

Tree = Any
Path = tuple[Any, ...]


def share(model: Layer, *paths: Any) -> Layer:
    """A model that has one set of parameters at several places.

        forward     y  = f(x) with θᵢ = θ at every place i
        transport   δx = δ ∂f/∂x
        gradient    δθ = Σᵢ δθᵢ

    Params and tree are ``{"shared": θ, "model": ...}``, the second the model's own with ``()`` at
    the places.  Each site among θ is one site: a statistic sees it once, its inputs and delta
    tuples over the places, its rows those of all places one after the other, so that a norm has
    its cross terms.  Feedback weights at all places are ``weights["shared"]``.

    Args:
        model: any layer.
        *paths: two places or more in the model's params, each a tuple of indices and names (or a
            path of ``jax.tree_util``): ``(0,)`` and ``(3,)`` for ``layers[0]`` and ``layers[3]``
            of a ``serial``.  What stands there must be alike in structure, shapes and dtypes.
            The first place is the one whose ``init`` is taken.

    Raises:
        LayerError: when there is no such place, when two are not alike, or on the way back when a
            place lies inside ``repeat`` or inside a site (share the whole site).

    >>> import jax
    >>> from funcprop import affine, dense, embedding, serial, share, tanh
    >>> tied = share(serial(embedding(9, 4), dense(4, tanh), affine(9, bias=False)), (0,), (2,))
    >>> params, out_shape = tied.init(jax.random.key(0), (7,))
    >>> jax.tree.map(lambda leaf: leaf.shape, params["shared"]), out_shape
    ({'w': (9, 4)}, (7, 9))
    >>> params["model"][0], params["model"][2]
    ((), ())
    """
    model = as_layer(model, "share")
    places = tuple(_plain(path) for path in paths)
    _check_places(places)

    def whole(params: Tree) -> Tree:
        if not isinstance(params, dict) or set(params) != {"shared", "model"}:
            raise LayerError("share", "params must be {'shared': ..., 'model': ...}; see init")
        return _replaced(params["model"], places, params["shared"])

    def init(key, shape):
        with position("share"):
            params, out_shape = model.init(key, shape)
        shared = [_at(params, place) for place in places]
        _check_alike(places, shared)
        return {"shared": shared[0], "model": _replaced(params, places, ())}, out_shape

    def forward(params, x, key=None):
        params = whole(params)
        with position("share"):
            return model.forward(params, x, key)

    def backward(weights, residuals, delta, statistic=gradient):
        weights = whole(weights)

        def sweep(statistic):
            with position("share"):
                return model.backward(weights, residuals, delta, _counted(statistic))

        # A sweep in which nothing is computed tells which calls of the statistic are the places'.
        numbers = jax.eval_shape(lambda: sweep(lambda number, *_: _Number(number))[1])
        found = [_leaves(_at(numbers, place), _Number) for place in places]
        structure = _check_sites(places, found)
        shapes = {}

        def at_places(number, site, inputs, delta):
            if not any(_Number(number) in leaves for leaves, _ in found):
                return statistic(site, inputs, delta)
            shapes[number] = _shapes((inputs, delta))
            return _Pair(site, inputs, delta)

        delta_x, tree = sweep(at_places)
        pairs = [_leaves(_at(tree, place), _Pair)[0] for place in places]
        for place, own, (leaves, _) in zip(places, pairs, found, strict=True):
            for pair, number in zip(own, leaves, strict=True):
                if _shapes((pair.inputs, pair.delta)) != shapes[number.value]:
                    raise LayerError("share", f"{place} lies inside repeat; share outside of it")
        union = [
            statistic(
                _united(tuple(pair.site for pair in same)),
                tuple(pair.inputs for pair in same),
                tuple(pair.delta for pair in same),
            )
            for same in zip(*pairs, strict=True)
        ]
        shared = jax.tree.unflatten(structure, union)
        return delta_x, {"shared": shared, "model": _replaced(tree, places, ())}

    return Layer(init, forward, backward, "share", (model,), lambda parts: share(*parts, *places))


# ------------------------------------------------------------------------------- sites


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Number:
    """Which call of the statistic in the course of the sweep."""

    value: int


class _Pair(NamedTuple):
    site: Site
    inputs: Tree
    delta: Tree


@dataclasses.dataclass(frozen=True)
class _Gradient:
    """Σᵢ of the places' gradients.  A value, as a site is compared and hashed."""

    sites: tuple[Site, ...]

    def __call__(self, inputs: Tree, delta: Tree) -> Tree:
        grads = [s.gradient(x, d) for s, x, d in zip(self.sites, inputs, delta, strict=True)]
        return jax.tree.map(
            lambda *g: functools.reduce(jnp.add, accumulated(g)).astype(g[0].dtype), *grads
        )


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The places' rows, one after the other; of an embedding tied to an affine map, whose W is
    stored as the affine map's, left and right change places."""

    sites: tuple[Site, ...]

    def __call__(self, inputs: Tree, delta: Tree) -> tuple[jax.Array, jax.Array]:
        first = all(site.inputs_first for site in self.sites)
        pairs = [
            _rows(s, x, d, s.inputs_first and not first)
            for s, x, d in zip(self.sites, inputs, delta, strict=True)
        ]
        left, right = zip(*pairs, strict=True)
        left, right = (tuple(dense(a) for a in side) for side in (left, right))
        return jnp.concatenate(left, axis=1), jnp.concatenate(right, axis=1)


def _rows(site: Site, inputs: Tree, delta: Tree, turned: bool) -> tuple[Any, Any]:
    assert site.rows is not None
    left, right = site.rows(inputs, delta)
    return (right, left) if turned else (left, right)


def _united(sites: tuple[Site, ...]) -> Site:
    rows = _Rows(sites) if all(site.rows for site in sites) else None
    mixes, first = any(site.mixes for site in sites), all(site.inputs_first for site in sites)
    summed = all(site.summed_bias for site in sites)
    return Site("share", _Gradient(sites), rows, mixes, first, summed)


def _counted(statistic: Callable[..., Tree]) -> Callable[..., Tree]:
    count = itertools.count()
    return lambda site, inputs, delta: statistic(next(count), site, inputs, delta)


# ------------------------------------------------------------------------------- trees


def _plain(path: Any) -> Path:
    """A path as indices and names; those of ``jax.tree_util`` hold them as an attribute."""
    if not isinstance(path, (tuple, list)):
        raise LayerError("share", f"a path is {path!r}, a tuple is due, as (0,) or (2, 'w')")
    names = ("idx", "key", "name")
    keys = tuple(next((getattr(k, n) for n in names if hasattr(k, n)), k) for k in path)
    if any(isinstance(key, (int, np.integer)) and key < 0 for key in keys):
        raise LayerError("share", f"{keys} counts from the end, count from 0")
    return keys


def _at(tree: Tree, place: Path) -> Tree:
    for depth, key in enumerate(place):
        if isinstance(tree, (_Number, _Pair)):
            raise LayerError(
                "share", f"{place} lies inside the site at {place[:depth]}; share the whole site"
            )
        try:
            # A name of a NamedTuple is an attribute.
            tree = getattr(tree, key) if hasattr(tree, "_fields") else tree[key]
        except (LookupError, TypeError, AttributeError):
            raise LayerError("share", f"the model's params have no {place}") from None
    return tree


def _replaced(tree: Tree, places: tuple[Path, ...], new: Tree) -> Tree:
    for place in places:
        tree = _with(tree, place, new)
    return tree


def _with(tree: Tree, place: Path, new: Tree) -> Tree:
    if not place:
        return new
    key, inner = place[0], _with(_at(tree, place[:1]), place[1:], new)
    if hasattr(tree, "_replace"):
        return tree._replace(**{key: inner})
    if isinstance(tree, dict):
        return {**tree, key: inner}
    return type(tree)(inner if i == key else entry for i, entry in enumerate(tree))


def _leaves(tree: Tree, kind: type) -> tuple[list[Any], Any]:
    return jax.tree.flatten(tree, is_leaf=lambda leaf: isinstance(leaf, kind))


def _shapes(tree: Tree) -> list[Any]:
    return [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]


def _check_places(places: tuple[Path, ...]) -> None:
    if len(places) < 2:
        raise LayerError("share", f"{len(places)} paths came, two or more are due")
    for a, b in itertools.combinations(places, 2):
        if a[: len(b)] == b[: len(a)]:
            raise LayerError("share", f"{a} and {b} overlap, places apart are due")


def _check_alike(places: tuple[Path, ...], shared: list[Tree]) -> None:
    def described(tree):
        return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree)

    if not jax.tree.leaves(shared[0]):
        raise LayerError("share", f"{places[0]} has no parameters to share")
    for place, tree in zip(places, shared, strict=True):
        if described(tree) != described(shared[0]):
            raise LayerError(
                "share",
                f"{place} has {described(tree)}, {places[0]} has {described(shared[0])}; what is "
                "shared must be alike",
            )


def _check_sites(places: tuple[Path, ...], found: list[tuple[list[Any], Any]]) -> Any:
    structure = found[0][1]
    for place, (_, other) in zip(places, found, strict=True):
        if other != structure:
            raise LayerError("share", f"the sites of {place} are not those of {places[0]}")
    return structure
