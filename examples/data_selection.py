"""Which labels are wrong: flips a tenth of the digits' labels and finds them again.

    python examples/data_selection.py

A network is trained on digits of which one in ten has a wrong label, and its parameters are kept
from time to time.  An example that is learnt against all others keeps pulling at them: its
*self-influence*, the squared norm of its own gradient summed over what was kept (TracIn, Pruthi
2020, arXiv 2002.08484, section 4.1), is large.  Beside it stand three scores that cost less or know
more: the example's loss in the end, its loss summed in the same way, and minus the inner product of
its gradient with those of 100 digits that are known to be right, summed too.

Each score ranks the examples.  Precision at k is how many of the first k were flipped, with k as
many as were.  Then the network is trained again without the first k by self-influence.  As with
``funcprop train`` a seed draws the split and the first weights, and here also the flips; sizes were
chosen on other seeds.

The last line compares the self-influence with that of gradients which ``jax.grad`` forms one by
one.  Takes about a quarter of a minute on two cores.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import funcprop as fp
from funcprop import datasets, statistics

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14])
parser.add_argument("--flipped", type=float, default=0.1, help="which share of the labels")
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--kept", type=int, default=15, help="how often the parameters are kept")
parser.add_argument("--hidden", type=int, default=64)
parser.add_argument("--clean", type=int, default=100, help="how many digits are known to be right")
parser.add_argument("--out", type=Path, default=Path("runs/data_selection.png"))
parser.add_argument("--toy", action="store_true", help="a few seconds: one seed, few epochs")
options = parser.parse_args()
if options.toy:
    options.seeds, options.epochs, options.kept = [10], 10, 5

model = fp.serial(fp.dense(options.hidden, fp.tanh), fp.dense(10))
loss = fp.softmax_cross_entropy()
rule, optimizer = fp.backpropagation(model, loss), optax.adam(3e-3)


@jax.jit
def losses_of(params, x, y):
    return loss.apply((), (model.apply(params, x), y))


norms = jax.jit(statistics.squared_norms(model, loss))
between = jax.jit(statistics.inner_products_between(model, loss))


@jax.jit
def formed(params, x, y):
    """Squared norms of gradients that jax.grad forms one by one."""

    def one(x, y):
        grads = jax.grad(lambda params: losses_of(params, x[None], y[None])[0])(params)
        return sum(jnp.sum(g * g) for g in jax.tree.leaves(grads))

    return jax.lax.map(lambda pair: one(*pair), (x, y))


def trained(x, y, seed):
    """The parameters that were kept, the last ones in the end."""
    kept = []
    params, _ = model.init(jax.random.key(seed), x.shape[1:])
    steps = options.epochs * (len(x) // 64)
    fp.fit(
        rule,
        optimizer,
        params,
        (x, y),
        key=jax.random.key(seed),
        batch_size=64,
        steps=steps,
        every=steps // options.kept,
        callback=lambda state, history: kept.append(jax.tree.map(np.asarray, state.params)),
    )
    return kept


def right(params, x, y):
    return float(fp.accuracy(model.apply(params, jnp.asarray(x)), jnp.asarray(y)).mean())


results, accuracy = [], []
for seed in options.seeds:
    x, y = datasets.digits()
    (x, y), test = datasets.split(x.reshape(len(x), -1), y, seed=seed)
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(x))
    known, rest = order[: options.clean], order[options.clean :]
    clean, x, truth = (x[known], y[known]), x[rest], y[rest]
    flips = draw.choice(len(x), round(options.flipped * len(x)), replace=False)
    y = truth.copy()
    y[flips] = (truth[flips] + draw.integers(1, 10, len(flips))) % 10

    kept = trained(x, y, seed)
    scores = {
        "self-influence": sum(norms(params, x, y).total for params in kept),
        "loss, summed": sum(losses_of(params, x, y) for params in kept),
        "loss in the end": losses_of(kept[-1], x, y),
        f"against {options.clean} clean digits": -sum(
            between(params, (x, y), clean).total.sum(axis=1) for params in kept
        ),
    }
    ranked = {name: np.argsort(-np.asarray(score)) for name, score in scores.items()}
    found = {name: np.isin(order, flips) for name, order in ranked.items()}
    results.append(found)
    stay = np.setdiff1d(np.arange(len(x)), ranked["self-influence"][: len(flips)])
    again = trained(x[stay], y[stay], seed)
    best = trained(x, truth, seed)
    accuracy.append([right(params[-1], *test) for params in (kept, again, best)])
    precision = {name: hits[: len(flips)].mean() for name, hits in found.items()}
    print(f"seed {seed}  " + "  ".join(f"{name} {p:.3f}" for name, p in precision.items()))

k = len(flips)
means = {name: np.mean([found[name][:k].mean() for found in results]) for name in results[0]}
print(f"\nprecision at {k} of {len(x)}, mean of {len(options.seeds)} seeds")
for name, mean in means.items():
    print(f"  {name:<26} {mean:.3f}")
names = ("as it came", "without the first ones", "with all labels right")
for name, value in zip(names, np.mean(accuracy, axis=0), strict=True):
    print(f"right of the test digits, {name:<22} {value:.2%}")

figure = plt.figure(figsize=(12, 5.5), layout="constrained")
left, shown = figure.subfigures(1, 2, width_ratios=[1, 1.2])
axis = left.subplots()
for name in results[0]:
    hits = np.mean([np.cumsum(found[name]) for found in results], axis=0)
    count = np.arange(1, len(hits) + 1)
    axis.plot(hits / k, hits / count, label=f"{name}: {means[name]:.3f}")
axis.set(xlabel="recall: part of the flipped that was found", ylabel="precision", ylim=(0, 1.02))
axis.set_title(f"precision at {k} in the legend")
axis.grid(alpha=0.3)
axis.legend()
shown.suptitle("the most self-influence: label (in red if it was flipped)")
for axis, i in zip(shown.subplots(4, 8).flat, ranked["self-influence"], strict=False):
    axis.imshow(x[i].reshape(8, 8), cmap="gray_r")
    axis.set_title(str(y[i]), color="tab:red" if y[i] != truth[i] else "black", fontsize=11)
    axis.set_axis_off()
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
print(f"picture: {options.out}")

ours, due = (sum(f(params, x, y) for params in kept) for f in (lambda *a: norms(*a).total, formed))
difference = float(jnp.max(jnp.abs(ours / due - 1)))
print(f"self-influence differs from that by jax.grad by at most {difference:.1e} of itself")
