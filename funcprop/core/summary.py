"""A model's layers in a table."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from .checks import as_layer
from .layer import Layer, is_shape
from .places import rebuilt


class Row(NamedTuple):
    """One line of a :func:`summary`."""

    position: str
    name: str
    out_shape: Any
    parameters: int
    parameter_shapes: Any
    constants: int = 0
    constant_shapes: Any = ()


class Summary(NamedTuple):
    """A model's layers; ``str()`` of it is a table.

    Attributes:
        rows: a :class:`Row` for each layer without parts, in the order of the model.
        parameters: how many numbers the model learns.
        constants: how many numbers it holds next to them: the statistics of a calibrated model.
    """

    rows: tuple[Row, ...]
    parameters: int
    constants: int = 0

    def __str__(self) -> str:
        cells = [("layer", "", "output", "parameters", "")]
        for row in self.rows:
            text = _shapes(row.parameter_shapes)
            if row.constants:
                text += f"  constants {_shapes(row.constant_shapes)}"
            out = row.out_shape
            out = (
                str(out) if is_shape(out) else " ".join(str(s.shape) for s in jax.tree.leaves(out))
            )
            cells.append((row.position, row.name, out, f"{row.parameters:,}", text))
        constants = f"and {self.constants:,} constants" if self.constants else ""
        cells.append(("total", "", "", f"{self.parameters:,}", constants))
        widths = [max(len(line[i]) for line in cells) for i in range(5)]
        return "\n".join(
            f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}  {e}".rstrip()
            for a, b, c, d, e in cells
        )


def _shapes(shapes: Any) -> str:
    leaves = jax.tree_util.tree_flatten_with_path(
        shapes, is_leaf=lambda leaf: isinstance(leaf, tuple)
    )[0]
    return "  ".join(f"{jax.tree_util.keystr(p, simple=True)} {s}" for p, s in leaves if s)


def summary(model: Layer, shape: Any) -> Summary:
    """The model's layers with their output shapes and parameters; nothing is computed.

    Args:
        model: any layer.
        shape: shape of one example, as for the model's init.

    Returns:
        A :class:`Summary`.  A layer inside ``repeat`` is counted as often as it is repeated.

    Raises:
        LayerError: when ``model`` is no Layer, or a layer cannot take its input.

    >>> from funcprop import mlp, summary
    >>> print(summary(mlp((10, 20, 5)), (10,)))
    layer             output  parameters
    layers[0]  dense  (20,)          220  b (20,)  w (20, 10)
    layers[1]  dense  (5,)           105  b (5,)  w (5, 20)
    total                            325
    """
    model = as_layer(model, "summary")
    rows: list[Row] = []

    def watched(layer: Layer, place: str, inner: Layer | None) -> Layer:
        made = layer if inner is None else inner

        def init(key, shape):
            first = len(rows)
            params, out_shape = made.init(key, shape)
            count = sum(leaf.size for leaf in jax.tree.leaves(params))
            if inner is None:
                held = layer.statistics() if layer.statistics is not None else ()
                shapes, constants = (
                    jax.tree.map(lambda leaf: tuple(leaf.shape), tree) for tree in (params, held)
                )
                size = sum(leaf.size for leaf in jax.tree.leaves(held))
                rows.append(Row(place, layer.name, out_shape, count, shapes, size, constants))
            within = sum(row.parameters for row in rows[first:])
            if within and count > within:  # a part that was made once and is used several times
                times = count // within
                rows[first:] = [
                    row._replace(name=f"{times} × {row.name}", parameters=times * row.parameters)
                    for row in rows[first:]
                ]
            return params, out_shape

        return made._replace(init=init)

    def whole(key):
        return rebuilt(model, watched).init(key, shape)[0]

    params = jax.eval_shape(whole, jax.random.key(0))
    return Summary(
        tuple(rows),
        sum(leaf.size for leaf in jax.tree.leaves(params)),
        sum(row.constants for row in rows),
    )
