"""How large a batch is worth its price: the noise scale along training.

    python examples/batch_size.py

The simple noise scale (McCandlish 2018, arXiv 1812.06162) is the variance of the examples'
gradients over the square of their mean.  A batch far below it averages little of the noise away, so
that twice the batch is nearly worth two steps; a batch far above it repeats what is known.  The
statistic ``moments`` estimates both parts without bias, here on 256 digits at each of some points
of a training, in one sweep; the estimates of 8 such batches are averaged before they are divided.

The first panel has it along the training, over all parameters and for each layer.  The second asks
whether it is right.  From the same parameters single steps are taken with batches of several
sizes, each with the best of 30 rates, and their mean progress stands beside what the paper
predicts, a constant over 1 + noise scale/batch (eq. 2.7): with the noise scale that was measured,
and with the one that fits the progress best.

The last line compares the variances with those of gradients which ``jax.grad`` forms one by one.
Takes about half a minute on two cores.
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
parser.add_argument("--steps", type=int, default=600)
parser.add_argument("--points", type=int, default=20, help="how often the noise scale is measured")
parser.add_argument("--batch", type=int, default=32, help="of the training")
parser.add_argument("--draws", type=int, default=200, help="steps tried of each batch size")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path("runs/batch_size.png"))
parser.add_argument("--toy", action="store_true", help="a few seconds: few steps and draws")
options = parser.parse_args()
if options.toy:
    options.steps, options.points, options.draws = 60, 4, 20

model = fp.serial(fp.dense(64, fp.tanh), fp.dense(64, fp.tanh), fp.dense(10))
loss = fp.softmax_cross_entropy()
moments = statistics.moments(model, loss)
x, y = datasets.digits()
x, y = jnp.asarray(x.reshape(len(x), -1)), jnp.asarray(y)


@jax.jit
def noise(params, key):
    """trace and squared norm, of all parameters and of each layer, the mean over 8 batches."""

    def one(key):
        some = jax.random.choice(key, len(x), (256,), replace=False)
        found = moments(params, x[some], y[some])
        return found.noise_scale, found.noise_scales

    return jax.tree.map(lambda a: a.mean(0), jax.lax.map(one, jax.random.split(key, 8)))


def scale(found):
    return float(found.trace / found.squared_norm)


@jax.jit
def mean_loss(params):
    return loss.apply((), (model.apply(params, x), y)).mean()


sweep = fp.value_and_backprop(model, loss)
sizes, rates = [4, 8, 16, 32, 64, 128, 256, 512], jnp.geomspace(1e-3, 3.0, 30)


@jax.jit
def progress(params, keys, size):
    """How much one step with ``size`` examples lowers the loss of all, in the mean, by rate."""

    def one(key):
        # The first `size` of 512: the others have no weight.
        some = jax.random.choice(key, len(x), (max(sizes),))
        weight = (jnp.arange(max(sizes)) < size).astype(x.dtype)
        _, grads = sweep(params, x[some], y[some], sample_weight=weight)

        def after(rate):
            return mean_loss(jax.tree.map(lambda p, g: p - rate * g, params, grads))

        return mean_loss(params) - jax.lax.map(after, rates)

    return jax.lax.map(one, keys).mean(0)


train_key, noise_key, step_key = jax.random.split(jax.random.key(options.seed), 3)
params, _ = model.init(jax.random.key(options.seed), (64,))
points, every = [(0, params)], options.steps // options.points
_, history = fp.fit(
    fp.backpropagation(model, loss),
    optax.sgd(0.1),
    params,
    (x, y),
    key=train_key,
    batch_size=options.batch,
    steps=options.steps,
    every=every,
    callback=lambda state, history: points.append(
        (len(history["loss"]), jax.tree.map(jnp.array, state.params))
    ),
)
measured = [(step, noise(params, noise_key)) for step, params in points]
for step, (whole, layers) in measured[:: max(1, len(measured) // 6)]:
    each = ", ".join(f"{scale(layer):.0f}" for layer in layers)
    print(f"step {step:>4}  noise scale {scale(whole):7.1f} examples  (layers {each})")

middle = len(points) // 4
step, params = points[middle]
predicted = scale(measured[middle][1][0])
keys = jax.random.split(step_key, options.draws)
gains = np.array([float(progress(params, keys, size).max()) for size in sizes])
# ΔL(B) = ΔLmax/(1 + noise/B): fitted to the progress in log, ΔLmax and noise.
inverse = np.linalg.lstsq(np.stack([np.ones(len(sizes)), 1 / np.array(sizes)], 1) * gains[:, None],
                          np.ones(len(sizes)), rcond=None)[0]  # fmt: skip
fitted = inverse[1] / inverse[0]
print(f"after {step} steps: predicted {predicted:.1f}, from the progress of steps {fitted:.1f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
steps = [step for step, _ in measured]
left.semilogy(steps, [scale(whole) for _, (whole, _) in measured], "k", label="all parameters")
for i in range(3):
    left.semilogy(steps, [scale(layers[i]) for _, (_, layers) in measured], label=f"layer {i}")
left.axhline(options.batch, ls=":", color="gray", label="batch of the training")
left.set(xlabel="step", ylabel="noise scale, examples", title="along the training")
right.loglog(sizes, gains, "o", label="measured: mean of the best rate")
curve = np.geomspace(sizes[0], sizes[-1], 100)
for value, label in ((predicted, "predicted"), (fitted, "fitted")):
    right.loglog(curve, 1 / inverse[0] / (1 + value / curve), label=f"{label}: {value:.0f}")
right.set(xlabel="batch", ylabel="progress of one step", title=f"after {step} steps")
for axis in (left, right):
    axis.grid(alpha=0.3)
    axis.legend()
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
print(f"picture: {options.out}")


@jax.jit
def formed(params):
    def one(x, y):
        grads = jax.grad(lambda p: loss.apply((), (model.apply(p, x[None]), y[None]))[0])(params)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads)])

    return jnp.var(jax.vmap(one)(x[:256], y[:256]), axis=0, ddof=1)


found = moments(params, x[:256], y[:256]).variance
found, due = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(found)]), formed(params)
difference = float(jnp.abs(found - due).max() / due.max())
print(f"the variances differ from those by jax.grad by at most {difference:.1e} of the largest")
