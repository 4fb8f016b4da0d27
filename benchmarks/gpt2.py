"""A model of the size of GPT-2 small: its gradient and a step of training, by hand and by jax.grad.

    python -m benchmarks.gpt2 [--rounds 3] [--blocks 12 --features 768 --heads 12 --vocab 50257]

Random weights, drawn as GPT-2 draws them; ids drawn evenly.  Embedding and output layer share
their matrix, as GPT-2's do: ``share`` ties them within a model, so the output is an ``affine``
layer with ``softmax_cross_entropy`` behind it; ``linear_cross_entropy``, whose matrix belongs to
the loss, cannot be tied.  The peers are ``jax.grad`` of the same forward pass in plain JAX, which
shares no code with the library, and the same with ``jax.checkpoint`` around every block, as our
blocks too keep their input only.
"""

from __future__ import annotations

import argparse
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcprop as fp
from benchmarks.timing import heading, interleaved, spread, table

Tree = Any


class Size(NamedTuple):
    """GPT-2 small, one sequence of 128 tokens."""

    blocks: int = 12
    heads: int = 12
    features: int = 768
    vocab: int = 50257
    positions: int = 1024
    batch: int = 1
    tokens: int = 128


def gpt2(size: Size) -> fp.Layer:
    block = fp.transformer_block(size.heads, causal=True, activation=fp.gelu_tanh)
    layers = fp.serial(
        fp.embedding(size.vocab, size.features),
        fp.positional(size.positions),
        fp.repeat(block, size.blocks),
        fp.layer_norm(),
        fp.affine(size.vocab, bias=False),
    )
    return fp.share(layers, (0,), (4,))


def shapes(size: Size) -> Tree:
    return jax.eval_shape(lambda key: gpt2(size).init(key, (size.tokens,))[0], jax.random.key(0))


def drawn(size: Size) -> Tree:
    """Parameters: matrices normal with standard deviation 0.02, scales 1, biases 0."""
    draw = np.random.default_rng(0)

    def leaf(path, struct):
        name = path[-1].key
        if name in ("scale", "b"):
            return jnp.full(struct.shape, float(name == "scale"), struct.dtype)
        return jnp.asarray(0.02 * draw.standard_normal(struct.shape, np.float32))

    return jax.tree_util.tree_map_with_path(leaf, shapes(size))


# -------------------------------------------------------- the same model in plain JAX


def affine(params: Tree, x: jax.Array) -> jax.Array:
    return x @ params["w"].T + params["b"]


def norm(params: Tree, x: jax.Array) -> jax.Array:
    mean = x.mean(-1, keepdims=True)
    x = (x - mean) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * params["scale"] + params["b"]


def attention(params: Tree, x: jax.Array, heads: int) -> jax.Array:
    q, k, v = jnp.split(affine(params["qkv"], x), 3, -1)
    q, k, v = (leaf.reshape(*leaf.shape[:2], heads, -1) for leaf in (q, k, v))
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
    y = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)
    return affine(params["out"], y.reshape(x.shape))


def plain_loss(
    params: Tree, ids: jax.Array, targets: jax.Array, heads: int, wrap: Any
) -> jax.Array:
    def block(x, layer):
        (first, attend), (second, (up, down)) = layer
        x = x + attention(attend, norm(first, x), heads)
        z = affine(up, norm(second, x))
        return x + affine(down, jax.nn.gelu(z, approximate=True)), None

    _, positions, blocks, last, _ = params["model"]
    w = params["shared"]["w"]
    x = w[ids] + positions["p"][: ids.shape[1]]
    x, _ = jax.lax.scan(wrap(block), x, blocks)
    log_p = jax.nn.log_softmax(norm(last, x) @ w.T)
    return -jnp.mean(jnp.take_along_axis(log_p, targets[..., None], axis=-1))


def automatic(size: Size, wrap: Any = lambda block: block) -> fp.Rule:
    """The rule that takes the gradient of ``plain_loss`` by ``jax.grad``."""

    def estimate(params, state, x, y, key):
        value, grads = jax.value_and_grad(plain_loss)(params, x, y, size.heads, wrap)
        return value, grads, state

    return fp.Rule(lambda key, params: (), estimate, lambda params, x: x)


# --------------------------------------------------------------------------- measuring


def rules(size: Size) -> dict[str, fp.Rule]:
    return {
        "funcprop": fp.backpropagation(gpt2(size), fp.softmax_cross_entropy()),
        "jax.grad": automatic(size),
        "jax.grad and jax.checkpoint": automatic(size, jax.checkpoint),
    }


def batch(size: Size) -> tuple[jax.Array, jax.Array]:
    ids = np.random.default_rng(1).integers(0, size.vocab, (size.batch, size.tokens + 1), np.int32)
    return jnp.asarray(ids[:, :-1]), jnp.asarray(ids[:, 1:])


def gradients(size: Size, rounds: int) -> tuple[str, fp.Report]:
    """The table of the gradient alone, and ours against that of ``jax.grad``."""
    params, (x, y) = drawn(size), batch(size)
    compiled, lines = {}, []
    for name, rule in rules(size).items():
        start = time.perf_counter()
        estimate = jax.jit(
            lambda params, x, y, rule=rule: rule.estimate(params, (), x, y, None)[:2]
        )
        compiled[name] = estimate.lower(params, x, y).compile()
        lines.append([name, f"{time.perf_counter() - start:.3g}"])
    runs = {
        name: lambda f=f: jax.block_until_ready(f(params, x, y))[0] for name, f in compiled.items()
    }
    values, seconds = interleaved(runs, rounds)
    for line in lines:
        memory = compiled[line[0]].memory_analysis().temp_size_in_bytes
        ratio = "" if line[0] == "funcprop" else spread(seconds[line[0]] / seconds["funcprop"])
        line += [spread(seconds[line[0]]), ratio, f"{memory / 2**20:.4g}", f"{values[line[0]]:.7g}"]
    header = ("gradient", "s to compile", "s a call", "its time / ours", "temporary MiB", "loss")
    found, due = (compiled[name](params, x, y)[1] for name in ("funcprop", "jax.grad"))
    names = ("by hand", "jax.grad")
    return table(header, lines), fp.compare(found, due, names=names, title="GPT-2's gradient")


def steps(size: Size, rounds: int) -> str:
    """The table of whole steps with AdamW, each from where the last one ended."""
    data, states, compiled = batch(size), {}, {}
    losses: dict[str, list[str]] = {}
    for name, rule in rules(size).items():
        optimizer = optax.adamw(1e-4)
        states[name] = fp.init_state(rule, optimizer, drawn(size), jax.random.key(1))
        compiled[name] = fp.update_step(rule, optimizer).lower(states[name], data).compile()
        losses[name] = []

    def step(name):
        states[name], scalars = jax.block_until_ready(compiled[name](states[name], data))
        losses[name].append(f"{float(scalars['loss']):.6g}")

    runs = {name: functools.partial(step, name) for name in states}
    _, seconds = interleaved(runs, rounds)
    own = seconds["funcprop"]
    lines = [
        [
            name,
            spread(seconds[name]),
            "" if name == "funcprop" else spread(seconds[name] / own),
            f"{compiled[name].memory_analysis().temp_size_in_bytes / 2**20:.4g}",
            " ".join(losses[name]),
        ]
        for name in states
    ]
    header = ("step with AdamW", "s a step", "its time / ours", "temporary MiB", "losses")
    return table(header, lines)


def main(arguments: list[str] | None = None) -> fp.Report:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpt2", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    for name, value in Size()._asdict().items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = vars(parser.parse_args(arguments))
    rounds = options.pop("rounds")
    size = Size(**options)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes(size)))
    print(f"{heading(rounds)}\n{size}, {parameters:,} parameters\n", flush=True)
    text, report = gradients(size, rounds)
    print(text, flush=True)
    print(
        f"\nby hand against jax.grad: {'ok' if report.ok else 'FAILED'}, whole "
        f"{report.worst_whole:.3g} eps of 16, worst leaf {report.worst_leaf:.3g} eps of 128\n",
        flush=True,
    )
    print(steps(size, rounds), flush=True)
    return report


if __name__ == "__main__":
    main()
