"""What it is worth to store activations: one gradient, computed in four ways.

    python examples/why_stored_activations.py

- stored: backprop; the forward pass keeps every layer's activations for the backward pass.
- blocks: backprop that keeps the input of each block of about √L layers, and runs a block's
  forward pass again when the error gets there.  One forward pass more, and memory like √L.
- from x: backprop that keeps nothing; each layer's input is computed anew from the network's
  input x.  About L/2 forward passes more.
- perturb: no backprop; each of the P parameters is moved a little, and the change of the loss is
  divided by the move.  P + 1 forward passes.

The networks have L layers of equal width with tanh.  All numbers are float64, so that one can see
that the four gradients agree.  Times are medians over all calls; the rounds take every way in turn,
once, and a fast one for 20 ms.  Memory is what the compiled program sets aside for intermediate
results, besides its arguments and its result.  Takes about a minute and writes a picture.
"""

import argparse
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.flatten_util import ravel_pytree

import funcprop
from funcprop import mean_squared_error, value_and_backprop

parser = argparse.ArgumentParser(description="One gradient, computed in four ways.")
parser.add_argument("--depths", type=int, nargs="+", default=[4, 8, 16, 32, 64], metavar="L")
parser.add_argument("--width", type=int, default=8)
parser.add_argument("--batch", type=int, default=256, help="examples in the batch")
parser.add_argument("--rounds", type=int, default=9, help="rounds of timing")
parser.add_argument("--out", type=Path, default=Path("runs/why_stored_activations.png"))
options = parser.parse_args()

jax.config.update("jax_enable_x64", True)
layer = funcprop.dense(options.width, funcprop.tanh)
small = 1e-7  # near √eps: rounding and the loss's curvature disturb the quotient least there


def stored(params, x, y):
    model = funcprop.repeat(layer, len(params["w"]))
    return value_and_backprop(model, mean_squared_error)(params, x, y)[1]


def blocks(params, x, y):
    depth = len(params["w"])
    size = next(n for n in range(int(depth**0.5), 0, -1) if depth % n == 0)
    model = funcprop.repeat(funcprop.remat(funcprop.repeat(layer, size)), depth // size)
    split = jax.tree.map(lambda leaf: leaf.reshape(depth // size, size, *leaf.shape[1:]), params)
    grads = value_and_backprop(model, mean_squared_error)(split, x, y)[1]
    return jax.tree.map(lambda leaf, like: leaf.reshape(like.shape), grads, params)


def from_x(params, x, y):
    depth = len(params["w"])

    def at(l):
        return jax.tree.map(lambda leaf: leaf[l], params)

    def up_to(l):
        return jax.lax.fori_loop(0, l, lambda k, h: layer.apply(at(k), h), x)

    def step(delta, l):
        _, residuals = layer.forward(at(l), up_to(l))
        return layer.backward(at(l), residuals, delta)

    _, residuals = mean_squared_error.forward((), (up_to(depth), y))
    (delta, _), _ = mean_squared_error.backward((), residuals, jnp.full(len(x), 1 / len(x)))
    return jax.lax.scan(step, delta, jnp.arange(depth), reverse=True)[1]


def perturb(params, x, y):
    model = funcprop.repeat(layer, len(params["w"]))
    flat, tree = ravel_pytree(params)

    def loss(flat):
        return jnp.mean(mean_squared_error.apply((), (model.apply(tree(flat), x), y)))

    first = loss(flat)

    def quotient(i):
        return (loss(flat.at[i].add(small)) - first) / small

    return tree(jax.lax.map(quotient, jnp.arange(flat.size)))


ways = {"stored": stored, "blocks": blocks, "from x": from_x, "perturb": perturb}
compiled, arguments, calls, memory, gaps = {}, {}, {}, {}, {}
for depth in options.depths:
    keys = jax.random.split(jax.random.key(depth), 3)
    params, _ = funcprop.repeat(layer, depth).init(keys[0], (options.width,))
    x, y = (jax.random.normal(key, (options.batch, options.width)) for key in keys[1:])
    arguments[depth], gradients = (params, x, y), {}
    for name, way in ways.items():
        program = compiled[depth, name] = jax.jit(way).lower(params, x, y).compile()
        gradients[name], _ = ravel_pytree(program(params, x, y))
        gap = abs(gradients[name] - gradients["stored"]).max()
        gaps[depth, name] = float(gap / abs(gradients["stored"]).max())
        memory[depth, name] = program.memory_analysis().temp_size_in_bytes
        start = time.perf_counter()
        jax.block_until_ready(program(params, x, y))
        calls[depth, name] = 1 + int(0.02 / (time.perf_counter() - start))

times = {place: [] for place in compiled}
for _ in range(options.rounds):
    for (depth, name), program in compiled.items():
        for _ in range(calls[depth, name]):
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments[depth]))
            times[depth, name].append(time.perf_counter() - start)
seconds = {place: float(np.median(found)) for place, found in times.items()}

device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
setting = f"width {options.width}, batch {options.batch}, float64, {options.rounds} rounds"
print(f"{device}; {setting}")
print("  L       P  way       calls     time ms    ratio  memory kB  ratio  gradient differs by")
for depth, name in compiled:
    t, m = seconds[depth, name], memory[depth, name]
    print(
        f"{depth:>3}  {depth * options.width * (options.width + 1):>6}  {name:<8}"
        f"{len(times[depth, name]):>7}  {1e3 * t:>10.3f}  {t / seconds[depth, 'stored']:>7.2f}"
        f"  {m / 1e3:>9.1f}  {m / memory[depth, 'stored']:>5.2f}  {gaps[depth, name]:.0e}"
    )
if not all(gap < 1e-3 for gap in gaps.values()):
    raise SystemExit("the gradients differ")

figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
colours = {"stored": "#1f4e9c", "blocks": "#2a9d8f", "from x": "#c98a0a", "perturb": "#c2410c"}
for axis, values, unit, title in (
    (axes[0], seconds, 1e-3, "median time, ms"),
    (axes[1], memory, 1e3, "memory for intermediate results, kB"),
):
    last = options.depths[-1]
    for name in ways:
        column = [values[depth, name] / unit for depth in options.depths]
        ratio = values[last, name] / values[last, "stored"]
        label = f"{name}  ×{ratio:,.0f}" if ratio > 10 else f"{name}  ×{ratio:.2f}"
        axis.loglog(options.depths, column, "o-", color=colours[name], label=label)
    axis.set_xticks(options.depths, options.depths)
    axis.minorticks_off()
    axis.set(xlabel="depth L", title=title)
    axis.grid(alpha=0.3)
    axis.legend(title=f"at L = {last}")
figure.suptitle(f"One gradient, computed in four ways\n{device}; {setting}", fontsize=11)
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
plt.close(figure)
print(f"picture: {options.out}")
