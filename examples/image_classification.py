"""A convolutional network on handwritten digits, without and with images shifted by one pixel.

    python examples/image_classification.py

Trained twice for each seed: on 1,437 of the 1,797 digits of 8 × 8 pixels, and on nine times as
many, each of them in its place and shifted by one pixel in the eight directions.  The 360 others
are the test and are never shifted.  As with ``funcprop train`` a seed draws the split, the first
weights, the order of the examples and here also the dropout.  Sizes, rates and epochs were chosen
on validation parts (``--validate`` sets a fifth of the training part aside and tests on that).
While it trains a batch norm takes mean and variance of the batch; ``calibrate`` then freezes those
of the whole training part.

The picture has the first layer's filters, the test digits that the network gets wrong, and for one
digit of each class the saliency ∂ℓ/∂x, the derivative of its loss by its pixels: the backward pass
ends with it.  More ink where it is red makes the loss larger, where it is blue smaller.

The last line compares the first 20 losses with those of ``jax.grad`` under the same training.
Takes about FULL minutes on two cores.
"""

import argparse
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcprop as fp
from funcprop import datasets

parser = argparse.ArgumentParser(description="A convolutional network on digits of 8 × 8 pixels.")
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
parser.add_argument("--out", type=Path, default=Path("runs/image_classification.png"))
parser.add_argument("--validate", action="store_true", help="leave the test part alone")
parser.add_argument("--toy", action="store_true", help="a few seconds: few digits, small network")
options = parser.parse_args()

batch = 64
epochs = {"plain": 60, "shifted": 12}
small, large = (32, 64)
if options.toy:
    epochs, (small, large) = {"plain": 6, "shifted": 1}, (8, 16)


def block(features):
    """Batch norm takes away the mean, and with it any bias of the convolution."""
    return fp.conv(features, 3, bias=False), fp.batch_norm(), fp.relu


model = fp.serial(
    *block(small),
    *block(small),
    fp.max_pool(2),
    fp.dropout(0.25),
    *block(large),
    fp.max_pool(2),
    fp.dropout(0.25),
    fp.flatten,
    fp.dense(10),
)
loss = fp.softmax_cross_entropy()
rule = fp.backpropagation(model, loss)


def parts(seed):
    """The digits (n, 8, 8, 1) to train on and those to test with."""
    x, y = datasets.digits()
    if options.toy:
        x, y = x[:400], y[:400]
    train, test = datasets.split(x.reshape(-1, 8, 8, 1), y, seed=seed)
    return datasets.split(*train, seed=seed) if options.validate else (train, test)


def shifted(x, y):
    """Each image nine times: in its place, and moved by a pixel; what comes in is blank."""
    around = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    moved = [around[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    return np.concatenate(moved), np.tile(y, 9)


def settings(kind, seed, examples):
    """First parameters, and what goes to ``fit`` besides rule and data."""
    init_key, fit_key = jax.random.split(jax.random.key(seed))
    steps = epochs[kind] * (examples // batch)
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, steps), weight_decay=0.01)
    return optimizer, model.init(init_key, (8, 8, 1))[0], fit_key


def live_line(title, total):
    """A callback that says how far the training is: one line, or where it is no terminal some."""
    begun, live = time.perf_counter(), sys.stdout.isatty()

    def show(state, history):
        epoch = len(history["loss"]) * total[1] // total[0]
        text = f"{title}  epoch {epoch:>2}/{total[1]}  loss {np.mean(history['loss'][-20:]):.4f}"
        text += f"  {time.perf_counter() - begun:.0f} s"
        if live:
            print(f"\r{text}", end="\n" if epoch == total[1] else "", flush=True)
        elif epoch == total[1]:
            print(text, flush=True)

    return show


def answers(frozen, params, x):
    return np.asarray(jnp.argmax(jax.jit(frozen.apply)(params, x), axis=-1))


def saliency(frozen, params, x, y):
    """∂ℓ/∂x of each image's own loss."""
    prediction, residuals = frozen.forward(params, x)
    _, loss_residuals = loss.forward((), (prediction, y))
    (delta, _), _ = loss.backward((), loss_residuals, jnp.ones(len(x)))
    return frozen.backward(params, residuals, delta)[0]


begun = time.perf_counter()
accuracies, mistakes = {}, {}
for kind in epochs:
    for seed in options.seeds:
        train, test = parts(seed)
        data = shifted(*train) if kind == "shifted" else train
        optimizer, params, key = settings(kind, seed, len(data[1]))
        state, history = fp.fit(
            rule,
            optimizer,
            params,
            data,
            key=key,
            epochs=epochs[kind],
            batch_size=batch,
            callback=live_line(
                f"{kind:<7}  seed {seed}", (epochs[kind] * (len(data[1]) // batch), epochs[kind])
            ),
        )
        frozen, trained = fp.calibrate(model, state.params, [train[0]])
        found = answers(frozen, trained, test[0])
        accuracies[kind, seed] = np.mean(found == test[1])
        mistakes[kind, seed] = [
            (image, label, answer)
            for image, label, answer in zip(*test, found, strict=True)
            if label != answer
        ]
