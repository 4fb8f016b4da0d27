"""A row of the table: the same gradient by hand, by autodiff and, where installed, by PyTorch.

A row gets a line of PyTorch's by its ``torch``, here a dense layer's:

    def affine(params, x):
        import torch

        return torch.nn.functional.linear(x, params["w"], params["b"])

    layer_row("dense", fp.dense(8), plain, (4, 3), torch=by_torch(affine))

Nothing is imported or made before the row is timed, and nothing at all without PyTorch.  A
module of ``torch.nn`` with weights of its own is made in a function like the one that
:func:`by_torch` returns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import funcprop
from benchmarks.mlp import installed, version
from benchmarks.timing import interleaved, spread

Tree = Any


Torch = Callable[..., Callable[[], Any]]


class Row(NamedTuple):
    """One layer or model at one size.

    Attributes:
        name: what the table calls it.
        ours: a function of ``args``: value or output, and gradient.
        peers: the same work by ``jax.grad`` and others; the first is the plain forward as a user
            writes it.
        args: arrays and trees, the arguments of all of them.
        aim: what is aimed at, as text: "1.25 times, half the memory".
        calls: how many calls are timed as one.
        torch: PyTorch's peer (:func:`by_torch`): given ``args`` with tensors in the place of
            arrays, a function without arguments that does the work of one call and returns what
            ``ours`` does, in any layout.  Or several of them by name.
    """

    name: str
    ours: Callable[..., Any]
    peers: Mapping[str, Callable[..., Any]]
    args: tuple
    aim: str = ""
    calls: int = 1
    torch: Torch | Mapping[str, Torch] | None = None


def by_hand(layer: funcprop.Layer) -> Callable[..., Tree]:
    """``f(params, x, delta) -> y, (delta by the params, delta by x)``, by the layer's backward."""

    def run(params, x, delta):
        y, residuals = layer.forward(params, x)
        delta_x, grads = layer.backward(params, residuals, delta)
        return y, (grads, delta_x)

    return run


def by_vjp(f: Callable[..., Tree]) -> Callable[..., Tree]:
    """The same by ``jax.vjp`` of a plain function ``f(params, x) -> y``."""

    def run(params, x, delta):
        y, pullback = jax.vjp(f, params, x)
        return y, pullback(delta)

    return run


def by_torch(
    f: Callable[..., Tree], layout: Callable[..., tuple] | None = None
) -> Callable[..., Callable[[], Any]]:
    """A row's ``torch``: forward and backward of ``f(params, x) -> y``, a function of tensors.

    ``layout(params, x, delta)`` lays the three out as PyTorch has them, before the clock runs.
    """

    def make(params, x, delta):
        import torch

        if layout is not None:
            params, x, delta = layout(params, x, delta)
        tensors = [leaf for leaf in jax.tree.leaves((params, x)) if leaf.is_floating_point()]
        params, x = jax.tree.map(
            lambda leaf: leaf.requires_grad_(leaf.is_floating_point()), (params, x)
        )

        def run():
            y = [leaf for leaf in jax.tree.leaves(f(params, x)) if leaf.requires_grad]
            grads = torch.autograd.grad(y, tensors, jax.tree.leaves(delta))
            return [leaf.detach() for leaf in y], grads

        return run

    return make


def layer_row(
    name: str,
    layer: funcprop.Layer,
    plain: Callable[..., Tree] | Mapping[str, Callable[..., Tree]],
    shape: tuple[int, ...],
    *,
    aim: str = "0.97 times, its memory or an activation more",
    calls: int = 1,
    torch: Callable[..., Callable[[], Any]] | None = None,
) -> Row:
    """A row of a layer on an array (batch, ...), its gradient by parameters and input.

    ``plain`` is ``f(params, x) -> y``, or several by name.
    """
    params, _ = layer.init(jax.random.key(0), shape[1:])
    x = jax.random.normal(jax.random.key(1), shape)
    y = jax.eval_shape(layer.apply, params, x)
    delta = jax.random.normal(jax.random.key(2), y.shape)
    forms = plain if isinstance(plain, Mapping) else {"jax.vjp": plain}
    peers = {label: by_vjp(f) for label, f in forms.items()}
    return Row(name, by_hand(layer), peers, (params, x, delta), aim, calls, torch)


def lines(row: Row, rounds: int) -> list[tuple[str, ...]]:
    """The table's lines for a row: time, ratios of time and memory, and the gradient's norm."""
    functions = {"funcprop": row.ours, **row.peers}
    compiled = {name: jax.jit(f).lower(*row.args).compile() for name, f in functions.items()}
    memory = {name: c.memory_analysis().temp_size_in_bytes for name, c in compiled.items()}
    calls = {name: lambda f=f: jax.block_until_ready(f(*row.args)) for name, f in compiled.items()}
    if row.torch is not None and installed("torch"):
        named = row.torch if isinstance(row.torch, Mapping) else {_pytorch(): row.torch}
        calls |= _torch(row.args, named)

    def repeated(call):
        def run():
            for _ in range(row.calls):
                call()

        return run

    norms = {name: _norm(call()) for name, call in calls.items()}
    # The threads of PyTorch spin for a while after their work.
    pause = 0.3 if len(calls) > len(compiled) else 0.0
    _, seconds = interleaved({n: repeated(call) for n, call in calls.items()}, rounds, pause)
    own = seconds["funcprop"]

    def cells(name):
        yield row.name if name == "funcprop" else ""
        yield name
        yield spread(seconds[name] / row.calls * 1e3)
        yield "" if name == "funcprop" else spread(seconds[name] / own)
        yield f"{memory[name] / 2**20:.3g}" if name in memory else ""
        shared = name in row.peers
        yield f"{memory['funcprop'] / max(memory[name], 1):.3g}" if shared else ""
        yield f"{norms[name]:.6g}"
        yield row.aim if name == "funcprop" else ""

    return [tuple(cells(name)) for name in calls]


HEADER = ("", "by", "ms a call", "its time / ours", "temporary MiB", "ours / its", "norm", "aim")


def _torch(args: tuple, named: Mapping[str, Torch]) -> dict[str, Callable[[], Any]]:
    """PyTorch's calls, by names that say with how many threads: one, or all if that is faster."""
    import torch

    tensors = jax.tree.map(lambda leaf: torch.from_numpy(np.array(leaf)), args)

    def with_threads(work, count):
        def call():
            torch.set_num_threads(count)
            return work()

        return call

    def faster(work):
        every = {count: with_threads(work, count) for count in {1, os.cpu_count() or 1}}
        _, seconds = interleaved({str(count): call for count, call in every.items()}, rounds=5)
        count = min(every, key=lambda count: np.median(seconds[str(count)]))
        return f"{count} thread{'s' * (count > 1)}", every[count]

    calls = {}
    for label, make in named.items():
        threads, call = faster(make(*tensors))
        calls[f"{label}, {threads}"] = call
    return calls


def _pytorch() -> str:
    return f"PyTorch {version('torch')}"


def _norm(tree: Tree) -> float:
    """The l2 norm of all floats, to see that two sides do the same work."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return float(np.sqrt(sum(float(jnp.vdot(leaf, leaf).real) for leaf in floats)))
