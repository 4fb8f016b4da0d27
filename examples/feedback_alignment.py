"""Random feedback weights teach a network to make use of them.

    python examples/feedback_alignment.py

The linear task of Lillicrap 2016 (arXiv 1411.0247, figure 1): a network 30-20-10 without biases
learns a linear map T, one example a step.  Backprop carries the error to the hidden layer by W₂,
feedback alignment by a fixed random B.  At first the two errors stand at right angles; within a few
hundred examples W₁ and W₂ have turned so that the angle is 30 degrees, and the error falls as
backprop's does, here even sooner, since W₂ starts small and B does not.

x ~ N(0, 1), T ~ U(±1), W ~ U(±.01), B ~ U(±.5), rate .001 for the loss ½ ‖Wx - Tx‖²; means over 20
seeds.  The error is that of fresh examples, as a part of what answering 0 costs.  The angle is the
one between the two errors of the hidden layer, of single examples, smoothed over 50 of them.

The last line compares the losses with those of jax.grad.  Takes about half a minute on two cores.
"""

import argparse
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import funcprop as fp
from funcprop.checking import automatic

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--seeds", type=int, default=20, help="how many")
parser.add_argument("--examples", type=int, default=4000, help="how many are learnt from")
parser.add_argument("--weights", type=float, default=0.01, help="W starts uniform in ± this")
parser.add_argument("--out", type=Path, default=Path("runs/feedback_alignment.png"))
parser.add_argument("--toy", action="store_true", help="a few seconds: 3 seeds, 600 examples")
options = parser.parse_args()
if options.toy:
    options.seeds, options.examples = 3, 600


def uniform(size):
    return lambda key, shape, *rest: jax.random.uniform(key, shape, minval=-size, maxval=size)


w_init = uniform(options.weights)
model = fp.serial(fp.dense(20, bias=False, w_init=w_init), fp.dense(10, bias=False, w_init=w_init))
loss = fp.mean_squared_error  # the mean over 10 outputs: ½ Σ is 5 times that
optimizer = optax.sgd(0.001 * 5)
rules = {
    "backprop": fp.backpropagation(model, loss),
    "feedback alignment": fp.feedback_alignment(
        model, loss, feedback=lambda key, w: uniform(0.5)(key, w.shape)
    ),
}
# The gradient of W₁ is δ xᵀ, of one example: its angle is that of δ.
metrics = {name: fp.alignment(rule, model, loss) for name, rule in rules.items()}
every = 100
errors: dict[str, list] = {name: [] for name in rules}
angles, first = [], None
for seed in range(options.seeds):
    draw = np.random.default_rng(seed)
    task = draw.uniform(-1, 1, (10, 30))
    x, new = draw.normal(size=(options.examples, 30)), draw.normal(size=(1000, 30))
    (x, y), test = ((a.astype(np.float32), (a @ task.T).astype(np.float32)) for a in (x, new))
    params, _ = model.init(jax.random.key(seed), (30,))
    nothing = float(np.mean(test[1] ** 2))
    for name, rule in rules.items():
        run = {"key": jax.random.key(seed), "batch_size": 1}
        _, history = fp.fit(
            rule, optimizer, params, (x, y),
            epochs=1, every=every, validation=test, metrics=metrics[name], **run,
        )  # fmt: skip
        errors[name].append(np.array([nothing, *history["validation_loss"]]) / nothing)
        if name == "feedback alignment":
            angles.append(history["angle layers[0]"])
        elif first is None:
            _, due = fp.fit(automatic(model, loss), optimizer, params, (x, y), steps=20, **run)
            first = np.abs(np.subtract(history["loss"][:20], due["loss"])).max()
    print(
        f"seed {seed:2}  error after {min(500, options.examples)} examples  "
        + "  ".join(f"{name} {errors[name][-1][5]:.2f}" for name in rules)
    )

kernel = np.ones(50) / 50
smooth = np.array([np.convolve(a, kernel, mode="valid") for a in angles])  # [i]: i to i + 49
print(f"\nmeans over {options.seeds} seeds")
for at in (0, 300, 1000, 4000):
    if at <= options.examples:
        window = smooth[:, np.clip(at - 25, 0, smooth.shape[1] - 1)]
        print(f"  angle at {at:4} examples  {window.mean():5.1f} ± {window.std():.1f} degrees")
for name in rules:
    print(f"  error after 500 examples, {name:<18} {np.mean(errors[name], axis=0)[5]:.3f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
steps = np.arange(len(errors["backprop"][0])) * every
for name, color in zip(rules, ("black", "tab:green"), strict=True):
    curves = np.array(errors[name])
    left.plot(steps, curves.T, color=color, alpha=0.15, linewidth=0.8)
    left.plot(steps, curves.mean(0), color=color, linewidth=2, label=name)
left.set(yscale="log", xlabel="examples", ylabel="squared error / that of answering 0")
left.legend()
center = np.arange(smooth.shape[1]) + 25
right.plot(center, smooth.T, color="tab:green", alpha=0.15, linewidth=0.8)
right.plot(center, smooth.mean(0), color="tab:green", linewidth=2)
right.axhline(90, color="gray", linestyle="--", linewidth=1)
right.set(xlabel="examples", ylabel="angle between B e and W₂ᵀ e, degrees", ylim=(0, 120))
for axis in (left, right):
    axis.grid(alpha=0.3)
figure.suptitle("Feedback alignment on a linear task, 30-20-10")
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
print(f"picture: {options.out}")
print(f"first 20 losses differ from those with jax.grad by at most {first:.1e}")
