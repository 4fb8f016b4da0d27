"""A tree LSTM learns what boolean expressions come to, from the value of whole expressions alone.

    python examples/tree_logic.py

An expression such as (True xor not False) and (False or True) is a tree: constants are its leaves,
operators its inner nodes, and each node's state comes from its children's.  Training shows
expressions of depth 1 to 4 with one bit for each, the value at the root; what the parts come to,
and what "and" means, it is never told.  The test asks for fresh expressions of depth 3 to 10, half
of them true.  One wrong bit may turn an answer, so those of depth 10, with 38 nodes in the mean,
ask for a network that makes no mistake anywhere.

Printed are the accuracies by depth, for each seed of the network and in the mean, and how often the
root's classifier, asked at every node of the expressions of depth 10, agrees with the node's true
value.  The picture shows the accuracies on the way there too, the losses, and one expression with
the network's belief at every node.  Takes about a minute on two cores.
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import funcprop as fp
from funcprop.checking import automatic

parser = argparse.ArgumentParser(description="A tree LSTM on nested boolean expressions.")
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
parser.add_argument("--hidden", type=int, default=16, help="features of each node's state")
parser.add_argument("--steps", type=int, default=1500)
parser.add_argument("--examples", type=int, default=8000, help="expressions to train on")
parser.add_argument("--tests", type=int, default=1000, help="expressions to test on, of each depth")
parser.add_argument("--toy", action="store_true", help="tiny sizes: a few seconds")
parser.add_argument("--out", type=Path, default=Path("runs/tree_logic.png"))
options = parser.parse_args()
if options.toy:
    options.seeds, options.steps, options.examples, options.tests = [0], 150, 1000, 40

WORDS = ("nothing", "False", "True", "not", "and", "or", "xor")
TRAINED, DEPTHS, MOST = (1, 2, 3, 4), range(3, 11), 64
SHARES = (0.05, 0.15, 0.35, 0.45)  # of the trained depths; of depth 1 there are 14 expressions only


def drawn(draw, depth):
    """An expression of exactly this depth: a constant, or an operator with its parts."""
    if depth == 0:
        return (WORDS[draw.integers(1, 3)],)
    operator = WORDS[draw.integers(3, 7)]
    parts = [drawn(draw, depth - 1)]
    if operator != "not":  # the other part is at most 3 deep, which bounds the number of nodes
        parts.insert(draw.integers(2), drawn(draw, draw.integers(min(depth, 4))))
    return (operator, *parts)


def flat(expression, first=0):
    """Its nodes, children first: ids, children and truth; their numbers begin at ``first``."""
    ids, children, truth, under = [], [], [], []
    for part in expression[1:]:
        found = flat(part, first + len(ids))
        for own, new in zip((ids, children, truth), found, strict=True):
            own += new
        under.append(first + len(ids) - 1)
    a, b = (truth[under[0] - first], truth[-1]) if under else (False, False)
    values = {"not": not b, "and": a and b, "or": a or b, "xor": a != b}
    ids.append(WORDS.index(expression[0]))
    children.append(under + [-1] * (2 - len(under)))
    truth.append(values.get(expression[0], expression[0] == "True"))
    return ids, children, truth


def collected(draw, depth, count, seen=frozenset()):
    """Expressions of one depth, false and true in turn, none of those seen."""
    found = []
    while len(found) < count:
        expression = drawn(draw, depth)
        ids, _, truth = flat(expression)
        if len(ids) <= MOST and truth[-1] == len(found) % 2 and expression not in seen:
            found.append(expression)
    return found


def arrays(expressions, nodes):
    """ids (B, N), children (B, N, 2), truth (B, N), padded in front with nodes nobody lists."""
    ids, truth = np.zeros((2, len(expressions), nodes), np.int32)
    children = np.full((len(expressions), nodes, 2), -1, np.int32)
    for row, expression in enumerate(expressions):
        found = flat(expression)
        start = nodes - len(found[0])
        under = np.array(found[1])
        ids[row, start:], truth[row, start:] = found[0], found[2]
        children[row, start:] = np.where(under < 0, -1, under + start)
    return ids, children, truth


draw = np.random.default_rng(0)
shares = zip(TRAINED, SHARES, strict=True)
training = [e for d, share in shares for e in collected(draw, d, round(share * options.examples))]
seen = frozenset(training)
tests = {depth: arrays(collected(draw, depth, options.tests, seen), MOST) for depth in DEPTHS}
ids, children, truth = arrays(training, 31)
data = (jnp.asarray(ids), jnp.asarray(children)), jnp.asarray(truth[:, -1])
print(
    f"{len(training)} expressions of depth 1 to 4 ({len(seen)} different) to train on, "
    f"{options.tests} of each depth from 3 to 10 to test with"
)

tree = fp.serial(fp.on(0, fp.embedding(len(WORDS), 8)), fp.tree_lstm(options.hidden))
model, loss = fp.serial(tree, fp.pick(0), fp.last_step, fp.dense(2)), fp.softmax_cross_entropy()
rule = fp.backpropagation(model, loss)
optimizer = optax.adam(optax.cosine_decay_schedule(0.01, options.steps))
shape = jax.ShapeDtypeStruct((31,), "int32"), jax.ShapeDtypeStruct((31, 2), "int32")


@jax.jit
def belief(params, ids, children):
    """The root's classifier at every node: the probability of True, (B, N)."""
    h, _ = tree.apply(params[0], (ids, children))
    return jax.nn.softmax(model.parts[-1].apply(params[-1], h))[..., 1]


def rights(params, depth):
    """At which nodes belief and truth agree, of all test expressions of this depth."""
    ids, children, truth = tests[depth]
    return (belief(params, ids, children) > 0.5) == truth


def accuracies(params):
    return np.array([rights(params, depth)[:, -1].mean() for depth in DEPTHS])


def trained(rule, seed, steps, callback=lambda state, history: None):
    init_key, key = jax.random.split(jax.random.key(seed))
    params, _ = model.init(init_key, shape)
    how = {"steps": steps, "batch_size": 128, "every": 10, "callback": callback}
    return fp.fit(rule, optimizer, params, data, key=key, **how)


def watch(state, history):
    step, live = int(state.step), sys.stdout.isatty()
    if seed == options.seeds[0] and step in (50, 70, 80, 90, 100):
        early[step] = accuracies(state.params)
    if live or step % 500 == 0:
        text = f"seed {seed}  step {step:>5}  loss {np.mean(history['loss'][-50:]):.5f}"
        print(f"\r{text}" if live else text, end="" if live else "\n", flush=True)


final, losses, results, early = {}, {}, {}, {}
for seed in options.seeds:
    state, history = trained(rule, seed, options.steps, watch)
    final[seed], losses[seed] = state.params, history["loss"]
    results[seed] = accuracies(state.params)
mean = np.mean(list(results.values()), axis=0)
deep = float(mean[2:].mean())
print("\n\nright     " + "".join(f"{f'depth {depth}':>10}" for depth in DEPTHS) + "  nodes inside")
for seed, found in results.items():
    inside = rights(final[seed], 10)[tests[10][0] > 0].mean()
    print(f"seed {seed:<5}" + "".join(f"{a:10.2%}" for a in found) + f"{inside:14.3%}")
print("mean      " + "".join(f"{a:10.2%}" for a in mean))
print(f"depth 5 to 10, mean of {len(results)} seeds: {deep:.2%}")

# ---------------------------------------------------------------------------- the picture

figure = plt.figure(figsize=(12, 9), layout="constrained")
grid = figure.add_gridspec(2, 2, height_ratios=[1, 1.35])
axis = figure.add_subplot(grid[0, 0])
axis.axvspan(2.5, 4.5, color="#dbe7f5", label="depths of training")
for step, shade in zip(early, np.linspace(0.8, 0.2, len(early)), strict=True):
    axis.plot(DEPTHS, 100 * early[step], ".-", color=str(shade), label=f"after {step} steps")
for seed in options.seeds:
    label = f"after {options.steps}, each seed" if seed == options.seeds[0] else None
    axis.plot(DEPTHS, 100 * results[seed], "o-", color="#1f4e9c", alpha=0.6, label=label)
axis.axhline(50, color="black", ls=":", lw=1)
axis.set(xlabel="depth of the expression", ylabel="right at the root, %", xlim=(2.5, 10.3))
axis.set(ylim=(45, 102), title=f"fresh expressions: {deep:.2%} right on depth 5 to 10")
axis.legend(fontsize=8, loc="lower right")

axis = figure.add_subplot(grid[0, 1])
for seed, curve in losses.items():
    axis.semilogy(curve, lw=0.8, label=f"seed {seed}")
axis.set(xlabel="step", title="loss of each batch, at the root alone")
axis.legend()

axis = figure.add_subplot(grid[1, :])
ids, children, truth = tests[10]
row = int(np.argmin(np.abs((ids > 0).sum(1) - 38)))
p = belief(final[options.seeds[0]], ids, children)[row]
places = {}


def place(n, level):
    """Leaves side by side, every other node above the middle of its children."""
    under = [place(k, level + 1) for k in children[row, n] if k >= 0]
    leaf = sum(children[row, m].max() < 0 for m in places)
    places[n] = float(np.mean(under)) if under else leaf, -level
    return places[n][0]


place(MOST - 1, 0)
colours = plt.get_cmap("coolwarm")
for n, (across, level) in places.items():
    for k in children[row, n][children[row, n] >= 0]:
        axis.plot([across, places[k][0]], [level, places[k][1]], color="#999999", lw=1, zorder=1)
    ring = colours(float(truth[row, n]))
    axis.scatter(across, level, 800, "white", edgecolors=[ring], linewidths=2, zorder=2)
    axis.scatter(across, level, 560, [colours(float(p[n]))], zorder=3)
    word = WORDS[ids[row, n]]
    axis.text(across, level, word, ha="center", va="center", size=7.5, color="white", zorder=4)
agree = sum((p[n] > 0.5) == truth[row, n] for n in places)
axis.set_title(
    "an expression of depth 10: discs are what the network believes, red for True, blue for "
    f"False, rings the truth; {agree} of {len(places)} agree"
)
axis.axis("off")
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
plt.close(figure)
print(f"picture: {options.out}")

both = (trained(r, options.seeds[0], 20)[1]["loss"] for r in (rule, automatic(model, loss)))
gap = max(abs(a - b) for a, b in zip(*both, strict=True))
print(f"first 20 losses differ from those with jax.grad by at most {gap:.1e}")
