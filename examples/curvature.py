"""K-FAC against Adam and SGD on digits, by steps and by time; the spectrum of the curvature.

    python examples/curvature.py

A network is trained on all training digits at each step, until the loss is .01.  Each optimiser's
options are chosen here, on seed 0, by the number of steps; then all are run with every seed.  K-FAC
is the rule ``kfac``, whose state holds the Kronecker factors, and ``precondition_by_kfac`` with
momentum in a chain of optax.  A step of it costs more: it solves two linear systems for each layer,
so the middle panel has the same losses by time, without the time to compile.

The right panel is what makes the difference: the largest eigenvalues of the Gauss-Newton matrix, by
Lanczos's method, before training and after it.  Where they spread over many orders of magnitude,
one rate for all directions is too large for some and too small for others.

The last line compares the product of the Gauss-Newton matrix with a random vector with that by
``jax.jvp`` and ``jax.vjp``.  Takes about a minute and a half on two cores.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import funcprop as fp
from funcprop import datasets, statistics

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
parser.add_argument("--steps", type=int, default=200, help="of Adam and SGD; K-FAC takes a quarter")
parser.add_argument("--hidden", type=int, default=64)
parser.add_argument("--target", type=float, default=0.01, help="the loss to come to")
parser.add_argument("--eigenvalues", type=int, default=60)
parser.add_argument("--out", type=Path, default=Path("runs/curvature.png"))
parser.add_argument("--toy", action="store_true", help="a few seconds: one seed, few options")
options = parser.parse_args()
if options.toy:
    options.seeds, options.steps, options.eigenvalues, options.target = [0], 80, 10, 0.05

model = fp.serial(
    fp.dense(options.hidden, fp.tanh), fp.dense(options.hidden, fp.tanh), fp.dense(10)
)
loss = fp.softmax_cross_entropy()
backprop, kfac = fp.backpropagation(model, loss), fp.kfac(model, loss, (64,), decay=0.9)


def sgd(rate):
    return backprop, optax.sgd(rate, momentum=0.9), options.steps


def adam(rate):
    return backprop, optax.adam(rate), options.steps


def by_kfac(damping, rate):
    chain = optax.chain(statistics.precondition_by_kfac(damping), optax.sgd(rate, momentum=0.9))
    return kfac, chain, options.steps // 4


grids = {
    "SGD": (sgd, [(rate,) for rate in (0.1, 0.2, 0.5, 1.0)]),
    "Adam": (adam, [(rate,) for rate in (0.01, 0.02, 0.03, 0.05)]),
    "K-FAC": (by_kfac, [(d, rate) for d in (1e-3, 3e-3, 1e-2) for rate in (0.1, 0.2, 0.3)]),
}
if options.toy:
    grids = {name: (make, grid[:1]) for name, (make, grid) in grids.items()}


def start(seed):
    x, y = datasets.digits()
    train, _ = datasets.split(x.reshape(len(x), -1), y, seed=seed)
    return model.init(jax.random.key(seed), (64,))[0], train


def run(way, seed):
    """The losses, the parameters in the end, and the seconds of a step."""
    rule, optimizer, steps = way
    params, train = start(seed)
    rest = {"key": jax.random.key(seed), "batch_size": len(train[0]), "every": steps}
    fp.fit(rule, optimizer, params, train, steps=steps, **rest)  # compiles
    begun = time.perf_counter()
    state, history = fp.fit(rule, optimizer, params, train, steps=steps, **rest)
    return np.array(history["loss"]), state.params, (time.perf_counter() - begun) / steps


def steps_to(losses):
    """How many steps it takes until the loss is the target; as many as there are if it is not."""
    below = losses <= options.target
    return int(np.argmax(below)) if below.any() else len(losses)


begun, curves, counts, seconds, last = time.perf_counter(), {}, {}, {}, {}
for name, (make, grid) in grids.items():
    ways = [(make(*chosen), chosen) for chosen in grid]
    tried = [(run(way, 0)[0], way, chosen) for way, chosen in ways] if len(ways) > 1 else []
    # Of those that come to the target in as many steps, the one whose loss is lower in the end.
    order = sorted(range(len(tried)), key=lambda i: (steps_to(tried[i][0]), tried[i][0][-1]))
    _, way, chosen = tried[order[0]] if tried else (None, *ways[0])
    runs = [run(way, seed) for seed in options.seeds]
    curves[name] = [losses for losses, *_ in runs]
    counts[name] = [steps_to(losses) for losses in curves[name]]
    seconds[name], last[name] = np.median([time_of for *_, time_of in runs]), runs[0][1]
    print(
        f"{name:<6} {chosen}: steps to {options.target:g} {counts[name]}, "
        f"{1e3 * seconds[name]:.1f} ms a step, {time.perf_counter() - begun:.0f} s",
        flush=True,
    )
mean = {name: np.mean(count) for name, count in counts.items()}
print(f"K-FAC takes {mean['K-FAC'] / mean['Adam']:.2f} of Adam's steps", end=" ")
taken = {name: mean[name] * seconds[name] for name in mean}
print(f"and {taken['K-FAC'] / taken['Adam']:.2f} of its time")

product = statistics.gauss_newton_vector_product(model, loss)
before, train = start(options.seeds[0])


@jax.jit
def spectrum(params):
    def by(vector):
        return product(params, *train, vector)

    count = options.eigenvalues
    return statistics.eigenpairs(by, params, count, 2 * count, jax.random.key(0)).values


values = {"before training": spectrum(before), "after K-FAC": spectrum(last["K-FAC"])}

figure, axes = plt.subplots(1, 3, figsize=(15, 4.8), layout="constrained")
for name, losses in curves.items():
    for i, each in enumerate(losses):
        style = {"color": f"C{list(curves).index(name)}", "alpha": 0.8}
        label = f"{name}: {mean[name]:.0f} steps, {taken[name]:.2f} s" if i == 0 else None
        steps = np.arange(len(each))
        axes[0].semilogy(steps, each, label=label, **style)
        axes[1].semilogy(steps * seconds[name], each, **style)
for axis, what in zip(axes, ("step", "seconds"), strict=False):
    axis.axhline(options.target, ls=":", color="black")
    axis.set(xlabel=what, ylabel="loss of all training digits")
axes[0].set_title("by steps")
axes[0].legend(title=f"to a loss of {options.target:g}")
axes[1].set_title("by time")
for name, each in values.items():
    axes[2].semilogy(np.arange(1, len(each) + 1), each, "o-", ms=3, label=name)
axes[2].set(xlabel="number", ylabel="eigenvalue", title="of the Gauss-Newton matrix, the largest")
axes[2].legend()
for axis in axes:
    axis.grid(alpha=0.3)
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
print(f"picture: {options.out}")


@jax.jit
def by_jax(params, vector):
    def of_prediction(p):
        return loss.apply((), (p, train[1])).mean()

    p, tangent = jax.jvp(lambda params: model.apply(params, train[0]), (params,), (vector,))
    _, bent = jax.jvp(jax.grad(of_prediction), (p,), (tangent,))
    return jax.vjp(lambda params: model.apply(params, train[0]), params)[1](bent)[0]


vector = jax.tree.map(lambda a: jax.random.normal(jax.random.key(a.size), a.shape), before)
found, due = jax.jit(product)(before, *train, vector), by_jax(before, vector)
gaps = [jnp.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (found, due)), strict=True)]
largest = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(due))
print(f"G v differs from that by jax.jvp and jax.vjp by at most {max(gaps) / largest:.1e} of it")
