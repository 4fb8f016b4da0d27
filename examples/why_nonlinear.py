"""Why a network needs a nonlinearity: two spirals, a deep linear network and a nonlinear one.

    python examples/why_nonlinear.py

Both networks have four layers, 2-32-32-32-2, the same first weights and the same training.  Without
a nonlinearity between them four layers are one: W₄(W₃(W₂(W₁x))) = (W₄W₃W₂W₁)x.  So the border
between the two classes is a straight line, however deep the network is.  With tanh between the
layers the border can bend.  Takes some seconds and writes a picture.
"""

import argparse
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.colors import LinearSegmentedColormap

import funcprop

parser = argparse.ArgumentParser(description="Two spirals, a linear and a nonlinear network.")
parser.add_argument("--steps", type=int, default=1500, help="steps of training")
parser.add_argument("--out", type=Path, default=Path("runs/why_nonlinear.png"), help="the picture")
options = parser.parse_args()


def spirals(generator, n, turns=2, noise=0.03):
    """n points on each of two spirals around the origin, half a turn apart, and their labels."""
    r = np.sqrt(generator.uniform(0.01, 1, (2, n)))  # evenly dense all along
    angle = 2 * np.pi * (turns * r + [[0], [0.5]])
    x = np.stack([r * np.cos(angle), r * np.sin(angle)], axis=-1).reshape(2 * n, 2)
    x += noise * generator.normal(size=x.shape)
    return x.astype(np.float32), np.repeat([0, 1], n)


generator = np.random.default_rng(0)
train, test = spirals(generator, 250), spirals(generator, 250)
params_key, fit_key = jax.random.split(jax.random.key(0))
optimizer = optax.adam(optax.cosine_decay_schedule(0.01, options.steps))
scores = {"accuracy": funcprop.accuracy}
trained, accuracies = {}, {}
for activation in (funcprop.identity, funcprop.tanh):
    model = funcprop.mlp((2, 32, 32, 32, 2), activation)
    rule = funcprop.backpropagation(model, funcprop.softmax_cross_entropy())
    params, _ = model.init(params_key, (2,))
    state, _ = funcprop.fit(
        rule, optimizer, params, train, key=fit_key, steps=options.steps, every=options.steps
    )
    seen, new = (
        funcprop.evaluate(rule, state.params, data, scores=scores)["accuracy"]
        for data in (train, test)
    )
    print(f"{activation.name:<8} {seen:6.1%} of the training points right, {new:6.1%} of new ones")
    trained[activation.name], accuracies[activation.name] = state.params, new

first, second, third, fourth = (np.asarray(layer["w"]) for layer in trained["identity"])
bias = funcprop.apply(trained["identity"], np.zeros((1, 2), np.float32), funcprop.identity)
deep = funcprop.apply(trained["identity"], test[0], funcprop.identity)
flat = test[0] @ (fourth @ third @ second @ first).T + bias
print(f"four linear layers or their product: {abs(deep - flat).max() / abs(deep).max():.0e} apart")

side = np.linspace(-1.25, 1.25, 300, dtype=np.float32)
grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
points = LinearSegmentedColormap.from_list("points", ["#1f4e9c", "#c2410c"])
regions = LinearSegmentedColormap.from_list("regions", ["#8fb8ea", "#f7f7f7", "#fbb182"])
figure, axes = plt.subplots(1, 2, figsize=(10, 5.5), layout="constrained")
titles = {"identity": "deep, but linear", "tanh": "as deep, with tanh"}
for axis, activation in zip(axes, (funcprop.identity, funcprop.tanh), strict=True):
    name = activation.name
    p = jax.nn.softmax(funcprop.apply(trained[name], grid, activation))[:, 1]
    p = np.asarray(p).reshape(side.size, side.size)
    axis.imshow(p, extent=(-1.25, 1.25) * 2, origin="lower", cmap=regions, vmin=0, vmax=1)
    axis.contour(side, side, p, levels=[0.5], colors="black", linewidths=1.2)
    axis.scatter(*train[0].T, c=train[1], cmap=points, s=18, edgecolors="white", linewidths=0.5)
    axis.set_title(f"{titles[name]}: {accuracies[name]:.1%} of new points right")
    axis.set(xticks=[], yticks=[])
figure.suptitle(f"Two spirals, the network 2-32-32-32-2, {options.steps} steps of backprop\n")
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
plt.close(figure)
print(f"picture: {options.out}")
