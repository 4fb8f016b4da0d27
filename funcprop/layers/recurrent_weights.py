"""The weights of recurrent layers: how they begin, what is right about them, and PyTorch's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..core import contraction
from ..core.checks import LayerError, check_float
from ..core.rows import Beside
from ..core.site import Site

Tree = Any
GATES = {1: "rnn", 3: "gru", 4: "lstm"}


def stacked(init: Any, key: jax.Array, gates: int, shape: tuple[int, int]) -> jax.Array:
    """``init`` for every gate by itself, one below the other."""
    return jnp.concatenate([init(k, shape) for k in jax.random.split(key, gates)])


def by_chunks(gradients: Any, chunk: int | None) -> Any:
    """``gradients(inputs, delta)`` of (B, T, ...) as the sum of those of chunks of steps, for which
    nothing as large as ``delta`` has to be copied.
    """

    def summed(inputs, delta):
        time = delta.shape[1]
        if chunk is None or time <= chunk:
            return gradients(inputs, delta)

        def part(start, size):
            given = jax.tree.map(
                lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size, axis=1), (inputs, delta)
            )
            return contraction.accumulated(gradients(*given))

        starts = jnp.arange(0, time - time % chunk, chunk, dtype=jnp.int32)
        total = contraction.one_by_one(lambda start: part(start, chunk), starts)
        if time % chunk:
            total = jax.tree.map(jnp.add, total, part(time - time % chunk, time % chunk))
        return jax.tree.map(lambda leaf: leaf.astype(delta.dtype), total)

    return summed


def joint_site(name: str, chunk: int | None = None) -> Site:
    """The site of z = x Wᵀ + h Uᵀ + b over all steps, with inputs (x, h)."""

    def gradients(inputs, delta):
        both = contraction.outer(delta, jnp.concatenate(inputs, axis=-1))
        w, u = jnp.split(both, [inputs[0].shape[-1]], axis=1)
        return {"w": w, "u": u, "b": contraction.total(delta)}

    def rows(inputs, delta):
        x, h = inputs
        return Beside((h, x)), delta  # u stands before w

    return Site(name, by_chunks(gradients, chunk), rows)


def joint_map(params: Tree, x: jax.Array, h: jax.Array) -> jax.Array:
    """x Wᵀ + h Uᵀ + b, h in any dtype."""
    through_h = contraction.affine_map(h.astype(x.dtype), params["u"])
    return contraction.affine_map(x, params["w"]) + through_h + params["b"]


def joint_init(gates: int, hidden: int, w_init: Any, u_init: Any, b_init: Any) -> Any:
    """``init(key, d)`` of W (gates·H, d), U (gates·H, H) and b (gates·H,)."""

    def init(key, features):
        w_key, u_key, b_key = jax.random.split(key, 3)
        return {
            "w": w_init(w_key, (gates * hidden, features)),
            "u": stacked(u_init, u_key, gates, (hidden, hidden)),
            "b": b_init(b_key, (gates * hidden,)),
        }

    return init


def joint_check(name: str, gates: int, hidden: int) -> Any:
    rows = gates * hidden
    return lambda params, x: check_weights(
        name, params, x, {"w": (rows, x.shape[-1]), "u": (rows, hidden), "b": (rows,)}
    )


def check_weights(name: str, params: Any, x: jax.Array, due: dict[str, tuple[int, ...]]) -> None:
    """Raises unless ``params`` holds arrays of these shapes, in the dtype of x."""
    if not isinstance(params, dict) or set(params) != set(due):
        came = sorted(params) if isinstance(params, dict) else f"a {type(params).__name__}"
        raise LayerError(name, f"params is {came}, a dict of {sorted(due)} is due")
    check_float(name, x)
    for label, shape in due.items():
        leaf = params[label]
        if leaf.shape != shape:
            raise LayerError(
                name,
                f"{label} is {leaf.shape}, {shape} is due for x with {x.shape[-1]} features; "
                "check the sizes given to init",
            )
        if leaf.dtype != x.dtype:
            raise LayerError(name, f"x is {x.dtype}, {label} is {leaf.dtype}; cast one")


def sigmoid(z: jax.Array) -> jax.Array:
    """1/(1 + e⁻ᶻ) as ½ + ½ tanh ½z, which is faster."""
    return jnp.tanh(z * 0.5) * 0.5 + 0.5


def from_pytorch(w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> Tree:
    """The params of an rnn, lstm or gru from the weights of PyTorch's layer of that name.

    The numbers of rows tell which: (H, ...) is an rnn's, (3 H, ...) a gru's, (4 H, ...) an lstm's.
    The gates stand in the same order.  rnn and lstm have one bias, the sum of PyTorch's two.

    Args:
        w_ih: ``weight_ih_l0`` (gates·H, d), as an array.
        w_hh: ``weight_hh_l0`` (gates·H, H).
        b_ih, b_hh: ``bias_ih_l0`` and ``bias_hh_l0`` (gates·H,); by default zeros.

    Returns:
        Params of ``rnn(H)``, ``gru(H)`` or ``lstm(H)``.

    Raises:
        LayerError: when the shapes are none of these.

    >>> import jax.numpy as jnp
    >>> from funcprop import from_pytorch
    >>> params = from_pytorch(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8))
    >>> params["w"].shape, params["u"].shape, params["b"].tolist()[0]
    ((8, 3), (8, 2), 2.0)
    """
    w_ih, w_hh = jnp.asarray(w_ih), jnp.asarray(w_hh)
    rows, hidden = w_hh.shape if w_hh.ndim == 2 else (0, 1)
    if rows not in [gates * hidden for gates in GATES] or w_ih.ndim != 2 or len(w_ih) != rows:
        raise LayerError(
            "from_pytorch",
            f"w_ih is {w_ih.shape} and w_hh {w_hh.shape}; (n H, d) and (n H, H) are due with n 1 "
            "for an rnn, 3 for a gru, 4 for an lstm",
        )
    biases = [jnp.zeros(rows, w_ih.dtype) if b is None else jnp.asarray(b) for b in (b_ih, b_hh)]
    for label, b in zip(("b_ih", "b_hh"), biases, strict=True):
        if b.shape != (rows,):
            raise LayerError("from_pytorch", f"{label} is {b.shape}, ({rows},) is due")
    if GATES[rows // hidden] == "gru":
        return {"x": {"w": w_ih, "b": biases[0]}, "h": {"w": w_hh, "b": biases[1]}}
    return {"w": w_ih, "u": w_hh, "b": biases[0] + biases[1]}
