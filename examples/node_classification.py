"""Which side of a quarrel: graph convolution and graph attention on Zachary's karate club.

    python examples/node_classification.py

34 members of a club, 78 friendships; the club split in two, around the instructor (member 0) and
the officer (member 33).  Both networks learn from these two members' sides alone and tell the side
of all others.  A member's features are its own number, one-hot, so whatever is learnt of the other
32 goes along friendships.  GCN: three graph convolutions of 16, 16 and 2 features.  GAT: graph
attention with 4 heads of 8, then the mean of 4 heads of 16, then a dense layer.  The loss is the
cross-entropy of the two labelled members, the club one example of 34 tokens under a mask.

Printed is how many of the 34 each seed's network puts on their true side (two of them are those
given).  The picture shows the last hidden layer of the first seed's networks, in the plane in
which the members lie furthest apart; its second axis is stretched.  Zachary 1977, J. Anthropol.
Res. 33.  Takes about half a minute on two cores.
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import networkx
import numpy as np
import optax

import funcprop as fp
from funcprop.checking import automatic

parser = argparse.ArgumentParser(description="A GCN and a GAT on Zachary's karate club.")
parser.add_argument("--seeds", type=int, default=20, help="how many trainings of each network")
parser.add_argument("--steps", type=int, default=100, help="steps of a training")
parser.add_argument("--out", type=Path, default=Path("runs/node_classification.png"))
parser.add_argument("--toy", action="store_true", help="two seeds and fewer steps")
options = parser.parse_args()
seeds, steps = (2, 40) if options.toy else (options.seeds, options.steps)

club = networkx.karate_club_graph()
sides = np.array([club.nodes[i]["club"] == "Officer" for i in club], np.int32)
ways = np.array(club.edges, np.int32)
edges = jnp.asarray(np.concatenate([ways, ways[:, ::-1]]))[None]
given = np.isin(np.arange(len(sides)), [0, 33])
x, y = (jnp.eye(len(sides))[None], edges), (jnp.asarray(sides)[None], jnp.asarray(given)[None])
shape = tuple(jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in x)

glorot = jax.nn.initializers.glorot_uniform(in_axis=-1, out_axis=-2)
models = {
    "GCN": fp.serial(
        fp.graph_conv(16, w_init=glorot),
        fp.on(0, fp.tanh),
        fp.graph_conv(16, w_init=glorot),
        fp.on(0, fp.tanh),
        fp.graph_conv(2, w_init=glorot),
        fp.pick(0),
    ),
    "GAT": fp.serial(
        fp.graph_attention(8, heads=4, w_init=glorot),
        fp.on(0, fp.tanh),
        fp.graph_attention(16, heads=4, concat=False, w_init=glorot),
        fp.on(0, fp.tanh),
        fp.on(0, fp.dense(2, w_init=glorot)),
        fp.pick(0),
    ),
}
loss, optimizer = fp.softmax_cross_entropy(), optax.adam(0.01)


def show(text, last=False):
    """The line that is rewritten on a terminal; elsewhere the last one only."""
    if sys.stdout.isatty():
        print(f"\r{text:<79}", end="\n" if last else "", flush=True)
    elif last:
        print(text, flush=True)


right, trained, told, losses, gaps = {}, {}, {}, {}, {}
for name, model in models.items():
    by_hand, by_jax, right[name] = fp.backpropagation(model, loss), automatic(model, loss), []
    predict = jax.jit(model.apply)
    for seed in range(seeds):
        init_key, fit_key = jax.random.split(jax.random.key(seed))
        params, _ = model.init(init_key, shape)

        def report(state, history, name=name, seed=seed):
            show(
                f"{name}  seed {seed + 1}/{seeds}  step {int(state.step)}/{steps}"
                f"  loss {history['loss'][-1]:.4f}",
                last=int(state.step) == steps and seed == 0,
            )

        state, history = fp.fit(
            by_hand,
            optimizer,
            params,
            (x, y),
            key=fit_key,
            steps=steps,
            every=20,
            callback=report,
        )
        answers = np.asarray(predict(state.params, x)[0]).argmax(-1)
        right[name].append(int((answers == sides).sum()))
        if seed == 0:
            trained[name], told[name], losses[name] = state.params, answers, history["loss"]
            _, other = fp.fit(by_jax, optimizer, params, (x, y), key=fit_key, steps=20, every=20)
            gaps[name] = np.abs(np.subtract(losses[name][:20], other["loss"])).max()

for name, counts in right.items():
    show(f"{name}  right of 34, by seed: {' '.join(map(str, counts))}", last=True)
    print(f"{name}  at least {min(counts)}, in the mean {np.mean(counts):.2f} of 34")

figure, axes = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
colours = np.array(["#1f4e9c", "#c2410c"])
for axis, (name, model) in zip(axes, models.items(), strict=True):
    params = trained[name]
    hidden = np.asarray(jax.jit(fp.serial(*model.parts[:4]).apply)(params[:4], x)[0][0])
    places, sizes, _ = np.linalg.svd(hidden - hidden.mean(0), full_matrices=False)
    places = (places * sizes)[:, :2]
    wrong = told[name] != sides
    for a, b in ways:
        axis.plot(*places[[a, b]].T, color="0.82", linewidth=0.8, zorder=1)
    for side, label in enumerate(("instructor's side", "officer's side")):
        of_side = sides == side
        axis.scatter(*places[of_side].T, s=150, color=colours[side], label=label, zorder=2)
    axis.scatter(
        *places[wrong].T, s=330, facecolors="none", edgecolors="k", linewidths=1.8, zorder=3
    )
    axis.scatter(*places[given].T, s=420, marker="*", color=colours[sides[given]], zorder=3)
    for i, place in enumerate(places):
        axis.annotate(i, place, ha="center", va="center", color="w", fontsize=7, zorder=4)
    axis.set(
        title=f"{name}: {right[name][0]} of 34 right",
        xlabel="last hidden layer, first principal component",
        ylabel="second principal component",
    )
axes[0].legend(loc="best")
figure.suptitle(
    "Zachary's karate club, learnt from members 0 and 33 (stars); whom the network puts on the "
    "wrong side is ringed"
)
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
plt.close(figure)
print(f"picture: {options.out}")
print(f"first 20 losses differ from those with jax.grad by at most {max(gaps.values()):.1e}")
