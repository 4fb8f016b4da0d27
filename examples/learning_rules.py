"""Every learning rule on the same task, backprop beside it.

    python examples/learning_rules.py

A network 64-128-64-10 of tanh learns the digits under each rule: the same data, split and shuffled
by the seed, batches of 64, no augmentation.  Equilibrium propagation takes 64-128-10, and
forward-forward gets the label as ten inputs more.  Each rule chooses its learning rate among three,
by the accuracy on a fifth of the training digits of another seed; the test digits of the five seeds
are looked at afterwards.

The table has the accuracy on the test digits, mean and standard deviation over the seeds; the angle
between the rule's estimate and the gradient in the last epoch, 0 for backprop and about 90 degrees
for a guess; and what a step takes beside one of backprop, in time and in temporary memory (with
--costs that alone is measured).  Then a convolutional network and a transformer, which reads a
digit as eight rows, learn under backprop and the rules in which other weights, or another road,
carry the error.

The last line compares the losses of backprop with those of jax.grad.  Takes about ten minutes on
two cores.
"""

import argparse
import sys
import time
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import funcprop as fp
from funcprop import datasets
from funcprop.checking import automatic

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22, 23, 24])
parser.add_argument("--only", nargs="+", help="names of rules")
parser.add_argument("--epochs", type=float, default=1.0, help="a factor on all numbers of epochs")
parser.add_argument("--out", type=Path, default=Path("runs/learning_rules.png"))
parser.add_argument("--costs", action="store_true", help="measure time and memory alone")
parser.add_argument("--toy", action="store_true", help="a few seconds: few rules and epochs")
options = parser.parse_args()
if options.toy:
    options.seeds, options.epochs = [20], 0.1
    options.only = ["backprop", "feedback alignment", "Z-IL", "forward-forward"]

model, loss = fp.mlp((64, 128, 64, 10), fp.tanh), fp.softmax_cross_entropy()
narrow = fp.mlp((64, 128, 10), fp.tanh)
labelled = fp.serial(fp.dense(128, fp.relu), fp.dense(64, fp.relu))


def decayed(rate):
    return optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(rate))


def simple(make, *rest, **more):
    """A rule that is trained with Adam."""
    return lambda rate: (make(model, loss, *rest, **more), optax.adam(rate))


# Of each: (rule and optimiser at a rate), the rates to choose from, epochs.
RULES = {
    "backprop": (simple(fp.backpropagation), (1e-3, 3e-3, 1e-2), 30),
    "feedback alignment": (simple(fp.feedback_alignment), (1e-3, 3e-3, 1e-2), 30),
    "sign symmetry": (simple(fp.sign_symmetry), (1e-3, 3e-3, 1e-2), 30),
    "Kolen-Pollack": (
        lambda rate: (fp.kolen_pollack(model, loss, decayed(rate)), decayed(rate)),
        (0.1, 0.3, 1.0),
        30,
    ),
    "weight mirror": (simple(fp.weight_mirror, rate=0.05), (1e-3, 3e-3, 1e-2), 30),
    "direct feedback": (simple(fp.direct_feedback_alignment, (64,)), (1e-3, 3e-3, 1e-2), 30),
    "indirect feedback": (simple(fp.indirect_feedback_alignment, (64,)), (1e-3, 3e-3, 1e-2), 30),
    "target projection": (
        simple(fp.direct_random_target_projection, (64,)),
        (1e-3, 3e-3, 1e-2),
        30,
    ),
    "difference targets": (
        lambda rate: (
            fp.difference_target_propagation(
                model, loss, (64,), optimizer=optax.adam(3e-3), step=0.5, noise=0.3
            ),
            optax.adam(rate),
        ),
        (1e-3, 3e-3, 1e-2),
        30,
    ),
    "predictive coding": (simple(fp.predictive_coding), (1e-3, 3e-3, 1e-2), 30),
    "fixed prediction": (simple(fp.fixed_prediction), (1e-3, 3e-3, 1e-2), 30),
    "Z-IL": (simple(fp.zil), (1e-3, 3e-3, 1e-2), 30),
    "equilibrium": (
        lambda rate: (
            fp.equilibrium_propagation(narrow, fp.mean_squared_error, beta=2.5),
            optax.adam(rate),
        ),
        (1e-3, 3e-3, 1e-2),
        30,
    ),
    "forward-forward": (
        lambda rate: (fp.forward_forward(labelled, 10), optax.adam(rate)),
        (3e-3, 1e-2, 2e-2),
        60,
    ),
    "greedy": (
        lambda rate: (fp.greedy(model, loss, (64,), optax.adam(rate)), optax.adam(rate)),
        (1e-3, 3e-3, 1e-2),
        30,
    ),
    "forward gradient, weights": (simple(fp.forward_gradient), (3e-4, 1e-3, 3e-3), 60),
    "forward gradient, activities": (
        lambda rate: (
            fp.forward_gradient(model, loss, activities=True),
            optax.adam(optax.cosine_decay_schedule(rate, 120 * 22)),
        ),
        (1e-3, 3e-3, 1e-2),
        120,
    ),
    "evolution": (simple(fp.evolution_strategies, pairs=64), (0.01, 0.02, 0.05), 10),
}
OWN_MODEL = {"equilibrium": narrow, "forward-forward": labelled}
chosen = options.only or list(RULES)


def digits(seed, shape=(64,)):
    x, y = datasets.digits()
    return datasets.split(x.reshape(len(x), *shape), y, seed=seed)


def train(rule, optimizer, start, shape, data, test, seed, epochs, metrics=None):
    """The history of a training that is evaluated after every epoch."""
    params, _ = start.init(jax.random.key(seed), shape)
    state, history = fp.fit(
        rule,
        optimizer,
        params,
        data,
        key=jax.random.key(seed),
        batch_size=64,
        epochs=max(1, round(epochs * options.epochs)),
        validation=test,
        scores={"accuracy": fp.accuracy},
        metrics=metrics,
    )
    return state, history


def tuned(setup, rates, start, shape, epochs, name):
    """The rate with the best accuracy on a fifth of another seed's training digits."""
    if options.toy:
        return rates[1]
    (x, y), _ = digits(0, shape)
    cut = len(x) // 5
    data, held = (x[cut:], y[cut:]), (x[:cut], y[:cut])
    found = {}
    for rate in rates:
        _, history = train(*setup(rate), start, shape, data, held, 0, epochs)
        found[rate] = np.mean(history["validation_accuracy"][-3:])
    best = max(found, key=found.get)
    print(f"{name:<30} " + "  ".join(f"{rate:g}: {a:.2%}" for rate, a in found.items()))
    return best


def costs(name, rule, optimizer, start):
    """A function that gives the seconds of 20 steps, and a step's temporary bytes."""
    data, _ = digits(20)
    batch = jax.tree.map(lambda leaf: leaf[:64], data)
    params, _ = start.init(jax.random.key(0), (74,) if name == "forward-forward" else (64,))
    step = fp.update_step(rule, optimizer)
    state = fp.init_state(rule, optimizer, params, jax.random.key(0))
    memory = step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes

    def run():
        nonlocal state
        begun = time.perf_counter()
        for _ in range(20):
            state, scalars = step(state, batch)
        scalars["loss"].block_until_ready()
        return time.perf_counter() - begun

    return run, memory


def multiples(steps):
    """Time and memory of a step of each rule, as multiples of those of backprop, as text.

    Each is timed beside backprop, now behind it and now in front, and the median of the pairs is
    taken.  Right before its timing each runs once more, and so finds the caches as it left them
    itself: behind a population of networks backprop took half as long again.
    """
    own_run, own_memory = steps["backprop"]
    found = {}
    for name, (run, memory) in steps.items():
        ratios = []
        for i in range(3 if options.toy else 40):
            taken = {}
            for which in (own_run, run) if i % 2 else (run, own_run):
                which()
                taken[which] = which()
            ratios.append(taken[run] / taken[own_run])
        found[name] = f"{np.median(ratios):.2f}", f"{memory / own_memory:.2f}"
    return found


if options.costs:
    steps = {
        name: costs(name, *RULES[name][0](RULES[name][1][1]), OWN_MODEL.get(name, model))
        for name in chosen
    }
    print("| rule | time a step | memory |\n|---|---|---|")
    for name, found in multiples(steps).items():
        print(f"| {name} | {' | '.join(found)} |")
    sys.exit()

results, steps = {}, {}
for name in chosen:
    setup, rates, epochs = RULES[name]
    start = OWN_MODEL.get(name, model)
    shape = (74,) if name == "forward-forward" else (64,)

    def init_as(key, given, start=start, shape=shape):
        return start.init(key, shape)

    begins = start._replace(init=init_as)
    rate = tuned(setup, rates, begins, (64,), epochs, name)
    rule, optimizer = setup(rate)
    metrics = None if name in OWN_MODEL else fp.alignment(rule, model, loss)
    curves, angles = [], []
    for seed in options.seeds:
        data, test = digits(seed)
        _, history = train(rule, optimizer, begins, (64,), data, test, seed, epochs, metrics)
        curves.append(history["validation_accuracy"])
        angles.append(history.get("angle"))
        line = f"{name:<30} seed {seed}: {curves[-1][-1]:.2%}"
        if sys.stdout.isatty():
            print(f"\r{line}", end="", flush=True)
    per_epoch = len(data[0]) // 64
    angle = None
    if metrics is not None:
        angle = np.nanmean(np.reshape(angles, (len(angles), -1, per_epoch)), axis=(0, 2))
    results[name] = (np.array(curves), angle, rate, len(history["loss"]))
    steps[name] = costs(name, rule, optimizer, start)
    final = np.array(curves)[:, -1]
    print(f"\r{name:<30} rate {rate:g}: {final.mean():.2%} ± {final.std():.2%}", flush=True)

found_costs = multiples(steps)
print("\n| rule | test accuracy | angle at the end | steps | time a step | memory |")
print("|---|---|---|---|---|---|")
for name, (curves, angle, _, count) in results.items():
    last = curves[:, -1]
    shown = "" if angle is None else f"{angle[-1]:.1f}°"
    print(
        f"| {name} | {last.mean():.2%} ± {last.std():.2%} | {shown} | {count} | "
        f"{' | '.join(found_costs[name])} |"
    )

# ---------------------------------------------------------- other architectures

convolutional = fp.serial(
    *(fp.conv(16, 3), fp.relu, fp.max_pool(2), fp.conv(32, 3), fp.relu, fp.max_pool(2)),
    *(fp.flatten, fp.dense(10)),
)
transformer = fp.serial(
    *(fp.dense(32), fp.positional(8), fp.transformer_block(4), fp.transformer_block(4)),
    *(fp.global_avg_pool, fp.dense(10)),
)
NETWORKS = {"CNN": (convolutional, (8, 8, 1), 15), "transformer": (transformer, (8, 8), 30)}


def of(network, make, *rest):
    return lambda rate: (make(network, loss, *rest), optax.adam(rate))


def pollack(network):
    def setup(rate):
        optimizer = optax.adamw(rate, weight_decay=0.1)
        return fp.kolen_pollack(network, loss, optimizer), optimizer

    return setup


others = {}
for kind, (network, shape, epochs) in {} if options.toy or options.only else NETWORKS.items():
    setups = {
        "backprop": of(network, fp.backpropagation),
        "feedback alignment": of(network, fp.feedback_alignment),
        "sign symmetry": of(network, fp.sign_symmetry),
        "Kolen-Pollack": pollack(network),
        "direct feedback": of(network, fp.direct_feedback_alignment, shape),
    }
    for name, setup in setups.items():
        rate = tuned(setup, (1e-3, 3e-3), network, shape, epochs, f"{kind}, {name}")
        rule, optimizer = setup(rate)
        last = []
        for seed in options.seeds[:3]:
            data, test = digits(seed, shape)
            _, history = train(rule, optimizer, network, shape, data, test, seed, epochs)
            last.append(history["validation_accuracy"][-1])
        others[kind, name] = np.array(last)
        print(f"{kind}, {name}: {np.mean(last):.2%}", flush=True)
if others:
    names = [name for kind, name in others if kind == "CNN"]
    print("\n| network | " + " | ".join(names) + " |\n|---" + "|---" * len(names) + "|")
    for kind in NETWORKS:
        row = [f"{others[kind, n].mean():.2%} ± {others[kind, n].std():.2%}" for n in names]
        print(f"| {kind} | " + " | ".join(row) + " |")

# ----------------------------------------------------------------------- picture

figure, (left, right) = plt.subplots(1, 2, figsize=(14, 6), layout="constrained")
colors = plt.get_cmap("tab20")(np.linspace(0, 1, 20))
for color, (name, (curves, angle, _, _)) in zip(colors, results.items(), strict=False):
    epochs = np.arange(1, curves.shape[1] + 1)
    left.plot(epochs, curves.mean(0), color=color, label=f"{name} {curves[:, -1].mean():.1%}")
    if angle is not None:
        right.plot(np.arange(1, len(angle) + 1), angle, color=color, label=name)
left.set(xlabel="epoch", ylabel="accuracy on the test digits", ylim=(0.5, 1), xscale="log")
right.set(xlabel="epoch", ylabel="angle to the gradient, degrees", xscale="log")
figure.legend(*left.get_legend_handles_labels(), fontsize=8, loc="outside right center")
for axis in (left, right):
    axis.grid(alpha=0.3)
figure.suptitle(f"Learning rules on the digits, mean of {len(options.seeds)} seeds")
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
print(f"picture: {options.out}")

data, _ = digits(options.seeds[0])
params, _ = model.init(jax.random.key(0), (64,))
first = []
for rule in (fp.backpropagation(model, loss), automatic(model, loss)):
    _, history = fp.fit(
        rule, optax.adam(3e-3), params, data, key=jax.random.key(0), batch_size=64, steps=20
    )
    first.append(np.array(history["loss"]))
gap = np.abs(first[0] - first[1]).max()
print(f"first 20 losses differ from those with jax.grad by at most {gap:.1e}")
