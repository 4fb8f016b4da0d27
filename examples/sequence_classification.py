"""An LSTM that reads digits row by row, and one that remembers for a hundred steps.

    python examples/sequence_classification.py

1.  Digits.  An image of 8 × 8 pixels is a sequence of 8 rows; an LSTM reads it from top to bottom
    and what it has in mind at the end is classified.  Test accuracy of three seeds, on 20 % of the
    images.
2.  Copying (Hochreiter & Schmidhuber 1997; in the form of Arjovsky 2016, arXiv 1511.06464).  Ten
    symbols out of eight are shown, then a hundred blanks, then the ten are to be said in order.
    Without a memory nothing better than guessing can be done: a loss of ln 8 = 2.08 a symbol, an
    accuracy of 1/8.  The task is the rule that makes it; training and test sequences are drawn.
    An LSTM whose forget gates start with time scales from 1 step to all of them (Tallec & Ollivier
    2018, arXiv 1804.11188) is compared with a plain recurrent layer of the same width.

The third panel is the error itself, as the backward pass carries it: the norm of δz of every step,
at the first step of training.  A statistic takes it from the sweep.  It comes from the ten last
steps and has to get to the ten first.

Takes about four minutes on two cores and writes a picture.
"""

import argparse
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import funcprop as fp
from funcprop.checking import automatic

parser = argparse.ArgumentParser(description="An LSTM on digits row by row, and on copying.")
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
parser.add_argument("--epochs", type=int, default=30, help="of the digits")
parser.add_argument("--hidden", type=int, default=128, help="features of the recurrent layers")
parser.add_argument("--blanks", type=int, default=100, help="steps to remember over")
parser.add_argument("--symbols", type=int, default=10, help="how many to remember")
parser.add_argument("--steps", type=int, default=6000, help="of training on copying")
parser.add_argument("--out", type=Path, default=Path("runs/sequence_classification.png"))
parser.add_argument("--toy", action="store_true", help="tiny sizes, for a trial of a few seconds")
options = parser.parse_args()
if options.toy:
    options.seeds, options.epochs, options.hidden = options.seeds[:1], 3, 16
    options.blanks, options.symbols, options.steps = 6, 2, 150


def live(text, last=False):
    """One line that is written anew; a plain line now and then where that is not possible."""
    if sys.stdout.isatty():
        print(f"\r{text:<79}", end="\n" if last else "", flush=True)
    elif last:
        print(text, flush=True)


# ------------------------------------------------------------------------- 1. the digits

images, labels = fp.datasets.digits()
train, test = fp.datasets.split(images.reshape(-1, 8, 8), labels)
reader = fp.serial(fp.lstm(options.hidden), fp.last_step, fp.dense(10))
loss, batch_size = fp.softmax_cross_entropy(), 32
rate = optax.cosine_decay_schedule(4e-3, options.epochs * (len(train[1]) // batch_size))


def train_reader(rule, seed, **options_of_fit):
    init_key, fit_key = jax.random.split(jax.random.key(seed))
    params, _ = reader.init(init_key, (8, 8))
    return fp.fit(
        rule(reader, loss),
        optax.adamw(rate, weight_decay=1e-2),
        params,
        train,
        key=fit_key,
        batch_size=batch_size,
        **options_of_fit,
    )


accuracies, digit_curves = [], []
for seed in options.seeds:

    def report(state, history, seed=seed):
        epoch, found = len(history["validation_loss"]), history["validation_accuracy"][-1]
        recent = np.mean(history["loss"][-len(train[1]) // batch_size :])
        live(
            f"digits, seed {seed}: epoch {epoch:>3}  loss {recent:.4f}  test accuracy {found:.2%}",
            last=epoch in (options.epochs, 1) or epoch % 10 == 0,
        )

    _, history = train_reader(
        fp.backpropagation,
        seed,
        epochs=options.epochs,
        validation=test,
        scores={"accuracy": fp.accuracy},
        callback=report,
    )
    accuracies.append(history["validation_accuracy"][-1])
    digit_curves.append(history["validation_accuracy"])
each = ", ".join(f"{accuracy:.2%}" for accuracy in accuracies)
print(f"digits: test accuracy {each}; mean {np.mean(accuracies):.2%}\n")

# ------------------------------------------------------------------------- 2. copying

LETTERS, BLANK, GO = 8, 8, 9
length = options.blanks + 2 * options.symbols


def copies(count, seed):
    """Sequences of ids (count, length); what is to be said, and where."""
    shown = np.random.default_rng(seed).integers(0, LETTERS, (count, options.symbols), np.int32)
    x = np.full((count, length), BLANK, np.int32)
    x[:, : options.symbols], x[:, -options.symbols - 1] = shown, GO
    y, asked = np.zeros_like(x), np.zeros(x.shape, bool)
    y[:, -options.symbols :], asked[:, -options.symbols :] = shown, True
    return x, (y, asked)


def time_scales(key, shape):
    """Biases of an LSTM whose forget gates have the time scales 1 to ``length``."""
    hidden = shape[0] // 4
    forget = jnp.log(jax.random.uniform(key, (hidden,), minval=1, maxval=length - 1))
    return jnp.concatenate([-forget, forget, jnp.zeros(2 * hidden)])


def delta_norms(site, inputs, delta):
    """A statistic: the norm of the delta of each step."""
    return jnp.linalg.norm(delta, axis=(0, 2)) if delta.ndim == 3 else ()


def recalled(params, model, data):
    """How many of the symbols are said right."""
    said = np.argmax(jax.jit(model.apply)(params, data[0]), axis=-1)
    return float((said == data[1][0])[:, -options.symbols :].mean())


one_hot = fp.embedding(10, 10, w_init=lambda key, shape: jnp.eye(10))
memories = {
    "lstm, time scales 1 to T": fp.lstm(options.hidden, b_init=time_scales),
    "lstm, forget bias 1": fp.lstm(options.hidden),
    "rnn": fp.rnn(options.hidden),
}
trained = ("lstm, time scales 1 to T", "rnn")
copy_train, copy_test = copies(20 * options.steps, 1), copies(500, 2)
baseline = math.log(LETTERS)
copy_curves, copy_accuracies, norms = {}, {}, {}
for name, memory in memories.items():
    model = fp.serial(one_hot, memory, fp.dense(LETTERS))
    struct = jax.ShapeDtypeStruct((length,), jnp.int32)
    params, _ = model.init(jax.random.key(0), struct)
    first_batch = jax.tree.map(lambda leaf: leaf[:20], copy_train)
    sweep = jax.jit(fp.value_and_backprop(model, loss, delta_norms))
    norms[name] = np.asarray(sweep(params, *first_batch)[1][1])
    if name not in trained:
        continue

    def report(state, history, name=name):
        step, recent = int(state.step), np.mean(history["loss"][-200:])
        live(
            f"copying, {name}: step {step:>5}  loss {recent:.4f} (memoryless {baseline:.4f})",
            last=step == options.steps or step % 1000 == 0,
        )

    state, history = fp.fit(
        fp.backpropagation(model, loss),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(4e-3)),
        params,
        copy_train,
        key=jax.random.key(1),
        steps=options.steps,
        batch_size=20,
        every=min(200, options.steps),
        callback=report,
    )
    copy_curves[name] = history["loss"]
    copy_accuracies[name] = recalled(state.params, model, copy_test)
for name, accuracy in copy_accuracies.items():
    last = np.mean(copy_curves[name][-100:])
    print(
        f"copying {options.symbols} symbols after {options.blanks} blanks, {name}: "
        f"loss {last:.4f} (memoryless {baseline:.4f}), {accuracy:.1%} of the symbols right "
        f"(guessing {1 / LETTERS:.1%})"
    )

# ------------------------------------------------------------------------- the picture

figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
for seed, accuracy, curve in zip(options.seeds, accuracies, digit_curves, strict=True):
    epochs = range(1, len(curve) + 1)
    axes[0].plot(epochs, 100 * np.array(curve), label=f"seed {seed}: {accuracy:.2%}")
axes[0].set(xlabel="epoch", ylabel="test accuracy, %")
axes[0].set_title(f"digits row by row, mean {np.mean(accuracies):.2%}")

colours = dict(zip(memories, ("#1f4e9c", "#2a9d8f", "#c2410c"), strict=True))
window = max(1, options.steps // 60)
for name, curve in copy_curves.items():
    smooth = np.convolve(curve, np.ones(window) / window, "valid")
    label = f"{name}: {copy_accuracies[name]:.1%} right"
    axes[1].plot(window + np.arange(len(smooth)), smooth, color=colours[name], label=label)
axes[1].axhline(baseline, color="grey", ls="--", lw=1, label="without a memory")
axes[1].set(xlabel="step", ylabel="loss a symbol", ylim=(0, None))
axes[1].set_title(f"copying {options.symbols} symbols after {options.blanks} blanks")

for name, norm in norms.items():
    axes[2].semilogy(np.arange(1, length + 1), norm, color=colours[name], label=name)
for start, text in ((0, "shown"), (length - options.symbols, "said")):
    axes[2].axvspan(start + 0.5, start + options.symbols + 0.5, color="grey", alpha=0.15)
    at = start + (options.symbols + 1) / 2
    axes[2].text(at, 1.01, text, ha="center", fontsize=8, transform=axes[2].get_xaxis_transform())
axes[2].set(xlabel="step of the sequence", ylabel="norm of its δz")
axes[2].set_title("the error on its way back, before training", pad=16)
for axis in axes:
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
plt.close(figure)
print(f"picture: {options.out}")

by_hand, by_jax = (
    train_reader(rule, options.seeds[0], steps=20)[1]["loss"]
    for rule in (fp.backpropagation, automatic)
)
gap = max(abs(a - b) for a, b in zip(by_hand, by_jax, strict=True))
print(f"first 20 losses differ from those with jax.grad by at most {gap:.1e}")
