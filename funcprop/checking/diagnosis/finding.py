"""What a difference looks like: a usual mistake, in words."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

Tree = Any


class Finding(NamedTuple):
    """What a difference looks like: a usual mistake that explains it.

    Attributes:
        kind: the mistake's name, a key of :data:`~funcprop.checking.MISTAKES`.
        leaves: paths of the leaves that it explains.
        statement: what was seen, one sentence.
        advice: what to do, one sentence.
        factor: by which factor a gradient or a term of it is off, where that is what is wrong.
        line: the line of the forward pass whose derivative is concerned, where it is known.
        remaining: the share of the difference that it leaves unexplained, ‖rest‖/‖difference‖.
    """

    kind: str
    leaves: tuple[str, ...]
    statement: str
    advice: str
    factor: float | None = None
    line: str = ""
    remaining: float = 0.0


# Each mistake, and what to do about it.
MISTAKES: dict[str, str] = {
    "sign": "look for a minus that was dropped or doubled, as in a subtraction or a derivative.",
    "factor": "look for a mean in the place of a sum, a constant applied twice or left out.",
    "transpose": "check the order of axes: which operand is transposed, and how slices are joined.",
    "missing term": "each use of a variable adds a term to its derivative; add the one left out.",
    "counted twice": "a path enters the sum twice; take one of the two away.",
    "wrong place": "take the derivative at the pre-activation z, or write it in y throughout.",
    "wrong function": "use the derivative of the function that the forward pass computes.",
    "off by one": "check the index, the padding and the window, and where a scan begins.",
    "mask ignored": "multiply the delta by the mask of the forward pass.",
    "low precision": "keep sums and intermediate results in the dtype of the inputs, or wider.",
    "stopped": "nothing comes back here; look for a stop_gradient, or a term never written.",
    "dtype": "return each gradient in the dtype of what it is the gradient of.",
    "structure": "return a tree with the structure and the shapes of what it is the gradient of.",
    "not finite": "avoid what overflows or is 0/0, as by a shift by the maximum, or where twice.",
    "not deterministic": "draw random numbers from the key, and keep what was drawn for the way "
    "back.",
    "not linear": "the result must be proportional to the delta that comes in; use it once.",
    "unknown": "none of the usual mistakes explains it; check the leaf's equation term by term.",
}


def pairs(a: Tree, b: Tree) -> list[tuple[str, Any, Any]]:
    paths = jax.tree_util.tree_flatten_with_path(a)[0]
    return [
        (jax.tree_util.keystr(path), ours, theirs)
        for (path, ours), theirs in zip(paths, jax.tree.leaves(b), strict=True)
    ]


def finding(kind: str, statement: str, leaves: tuple[str, ...] = ()) -> Finding:
    return Finding(kind, leaves, statement, MISTAKES[kind])


RESTLESS = "called twice with the same arguments, it gives two results"
