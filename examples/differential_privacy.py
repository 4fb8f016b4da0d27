"""What privacy costs: DP-SGD on digits, accuracy against ε.

    python examples/differential_privacy.py

A network is trained on the digits with the rule ``dp_sgd``: each step draws every example with
probability q, clips what it adds to the gradient to a norm of C, and adds noise of deviation σ C.
From q, σ and the number of steps an accountant (``dp_accounting``, pip install ".[examples]") knows
the ε for which the training is (ε, δ)-differentially private: without any one of the examples, no
set of outcomes would be more than eᵉ times as probable, but for a probability of δ = 1/N.  For each
of several ε the accountant finds the σ that 300 steps may have.

The dashed line is plain backprop, where nothing is private.  As with ``funcprop train`` a seed
draws the split, the first weights and what is drawn in training.  Rate, q and C were chosen on
validation parts (``--validate`` sets a fifth of the training part aside and tests on that);
choosing costs privacy too, which is not reckoned with here.  The right panel is what is clipped:
the norms of the examples' gradients at the beginning and at the end.

The last line compares 20 losses, all examples drawn and no noise, with those of gradients that
``jax.grad`` forms one by one, clipped.  Takes about a minute on two cores.
"""

import argparse
import time
from pathlib import Path

import dp_accounting
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import funcprop as fp
from funcprop import datasets, statistics

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epsilons", type=float, nargs="+", default=[0.5, 1, 2, 4, 8, 16])
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--rate", type=float, default=0.03, help="Adam's, falling to 0 by a cosine")
parser.add_argument("--hidden", type=int, default=64)
parser.add_argument("--sampling-rate", type=float, default=0.25, help="q")
parser.add_argument("--max-norm", type=float, default=0.5, help="C")
parser.add_argument("--validate", action="store_true", help="test on a fifth of the training part")
parser.add_argument("--out", type=Path, default=Path("runs/differential_privacy.png"))
parser.add_argument("--toy", action="store_true", help="a few seconds: one seed, two ε, few steps")
options = parser.parse_args()
if options.toy:
    options.epsilons, options.seeds, options.steps = [2.0, 16.0], [0], 40

model = fp.serial(fp.dense(options.hidden, fp.tanh), fp.dense(10))
loss = fp.softmax_cross_entropy()
q, C = options.sampling_rate, options.max_norm
optimizer = optax.adam(optax.cosine_decay_schedule(options.rate, options.steps))


def parts(seed):
    """Digits of 64 numbers with labels, to train on and to test with."""
    x, y = datasets.digits()
    train, test = datasets.split(x.reshape(len(x), -1), y, seed=seed)
    return datasets.split(*train, seed=seed) if options.validate else (train, test)


N = len(parts(options.seeds[0])[0][0])


def epsilon_of(sigma):
    """The ε of all steps, by the accountant."""
    accountant = dp_accounting.pld.PLDAccountant(value_discretization_interval=1e-3)
    step = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma))
    return accountant.compose(step, options.steps).get_epsilon(1 / N)


def sigma_for(epsilon):
    """The smallest σ that gives it, to a hundredth: ε falls with σ."""
    low, high = 0.3, 100.0
    while high / low > 1.01:
        middle = np.sqrt(low * high)
        low, high = (low, middle) if epsilon_of(middle) <= epsilon else (middle, high)
    return float(high)


def trained(rule, seed, batch, steps=options.steps):
    """Right test digits, the losses, and what was trained; ``dp_sgd`` is given all N at a time."""
    (x, y), test = parts(seed)
    params, _ = model.init(jax.random.key(seed), (64,))
    rest = {"key": jax.random.key(seed + 100), "batch_size": batch, "steps": steps, "every": steps}
    state, history = fp.fit(rule, optimizer, params, (x, y), **rest)
    right = fp.accuracy(model.apply(state.params, test[0]), jnp.asarray(test[1])).mean()
    return float(right), np.asarray(history["loss"]), (params, state.params, x, y)


def private(sigma, rate=q):
    return fp.dp_sgd(model, loss, max_norm=C, noise_multiplier=sigma, sampling_rate=rate)


def formed(params, state, x, y, key):
    """Each example's gradient by jax.grad, clipped; the mean over all."""

    def one(params, x, y):
        return loss.apply((), (model.apply(params, x[None]), y[None]))[0]

    losses, grads = jax.vmap(jax.value_and_grad(one), (None, 0, 0))(params, x, y)
    norms = jnp.sqrt(sum(jnp.sum(g.reshape(N, -1) ** 2, axis=1) for g in jax.tree.leaves(grads)))
    c = jnp.minimum(1, C / norms)
    return losses.mean(), jax.tree.map(lambda g: jnp.tensordot(c, g, 1) / N, grads), state


begun, accuracy = time.perf_counter(), {}
for epsilon in options.epsilons:
    sigma = sigma_for(epsilon)
    rule = private(sigma)
    runs = [trained(rule, seed, N) for seed in options.seeds]
    accuracy[epsilon] = [right for right, *_ in runs]
    mean, time_taken = np.mean(accuracy[epsilon]), time.perf_counter() - begun
    print(f"ε {epsilon:<5g} σ {sigma:6.2f}  right {mean:6.2%}  {time_taken:.0f} s", flush=True)
public = fp.backpropagation(model, loss)
without = [trained(public, seed, round(q * N))[0] for seed in options.seeds]
print(f"not private        right {np.mean(without):6.2%}  of {len(parts(0)[1][0])} test digits")

before, after, x, y = runs[-1][2]
norms = jax.jit(statistics.squared_norms(model, loss))
lengths = [np.sqrt(norms(params, x, y).total) for params in (before, after)]

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
means = [np.mean(accuracy[epsilon]) for epsilon in options.epsilons]
left.semilogx(options.epsilons, 100 * np.array(means), "o-", label="DP-SGD, mean of the seeds")
for epsilon in options.epsilons:
    many = np.full(len(options.seeds), epsilon)
    left.plot(many, 100 * np.array(accuracy[epsilon]), ".", color="gray", alpha=0.6)
left.axhline(100 * np.mean(without), ls="--", color="black", label="not private")
left.set(xlabel=f"ε, with δ = 1/{N}", ylabel="right of the test digits, %")
left.set_title(f"{options.steps} steps, q {q:g}, C {C:g}")
left.set_xticks(options.epsilons, [f"{epsilon:g}" for epsilon in options.epsilons])
left.minorticks_off()
bins = np.geomspace(max(1e-6, min(map(np.min, lengths))), max(map(np.max, lengths)), 50)
for label, each in zip(("before training", f"after it, ε {epsilon:g}"), lengths, strict=True):
    right.hist(np.maximum(each, bins[0]), bins, alpha=0.6, label=label)
right.axvline(C, color="black", lw=1, label="C")
right.set(xscale="log", xlabel="norm of an example's gradient", ylabel="examples")
right.set_title("what is clipped")
for axis in (left, right):
    axis.grid(alpha=0.3)
    axis.legend(loc="best" if axis is left else "upper left")
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
print(f"picture: {options.out}")

by_jax = fp.Rule(lambda key, params: (), formed, model.apply)
losses, reference = (
    trained(rule, options.seeds[0], N, steps=20)[1] for rule in (private(0.0, rate=1.0), by_jax)
)
difference = np.abs(losses - reference).max()
print(f"first 20 losses differ from those with jax.grad by at most {difference:.1e}")
