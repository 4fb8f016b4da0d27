"""Writing text, a character at a time: a transformer beside a Kneser-Ney model.

    python examples/text_generation.py

The text is the help of Python itself, all of ``pydoc_data.topics`` one after the other: nine tenths
to learn from, the last tenth to be measured on.  Two models learn to say how probable each next
character is:

- the transformer: causal blocks with rotary positions, the table of its embedding also its last
  layer (``share``), trained by hand-written backprop.
- the 5-gram model: interpolated Kneser-Ney, counts of up to five characters in a row.

Both are measured in bits per character, -log₂ p(character | what stands before it), on every
character of the last tenth, with what stands before it given: to the 5-gram model four characters,
to the transformer half a window or more.  Help texts repeat themselves, so both numbers are lower
than they would be for fresh text; the script says how many lines of the last tenth it has seen.

The picture: bits per character as training goes on; how they fall with the context that the
transformer is given; and which characters of a passage one model expects better than the other.
Takes about eight minutes on two cores.
"""

import argparse
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import funcprop as fp
from funcprop.checking import automatic

parser = argparse.ArgumentParser(description="A character transformer beside a 5-gram model.")
parser.add_argument("--steps", type=int, default=3000, help="steps of training")
parser.add_argument("--batch", type=int, default=16, help="windows a step")
parser.add_argument("--window", type=int, default=128, help="characters the transformer sees")
parser.add_argument("--width", type=int, default=128, help="features of a character")
parser.add_argument("--blocks", type=int, default=5)
parser.add_argument("--dropout", type=float, default=0.0)
parser.add_argument("--rate", type=float, default=3e-3, help="the learning rate at its highest")
parser.add_argument("--written", type=int, default=600, help="characters to write at the end")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path("runs/text_generation.png"))
parser.add_argument("--toy", action="store_true", help="a few seconds: little text, a small model")
options = parser.parse_args()
if options.toy:
    options.steps, options.batch, options.window = 60, 8, 32
    options.width, options.blocks, options.written = 32, 2, 40

text = "".join(topics[name] for name in sorted(topics))[: 20_000 if options.toy else None]
alphabet = sorted(set(text))
ids = np.array([alphabet.index(c) for c in text], np.int32)
V, T, cut = len(alphabet), options.window, len(text) * 9 // 10
half = T // 2

# ------------------------------------------------------------------- the 5-gram model


def grams(ids, k):
    """All k characters in a row, each as one number of k digits in base V."""
    return sum(V ** (k - 1 - i) * ids[i : len(ids) - k + 1 + i].astype(np.int64) for i in range(k))


def kneser_ney(ids, order=5):
    """Per order: k-grams with their counts, contexts with (their counts, kinds after them), D."""
    tables = []
    for k in range(1, order + 1):
        # Below the highest order what counts is before how many characters a k-gram was seen.
        seen = grams(ids, k) if k == order else np.unique(grams(ids, k + 1)) % V**k
        found, counts = np.unique(seen, return_counts=True)
        contexts, first = np.unique(found // V, return_index=True)
        sums = np.add.reduceat(np.stack([counts, np.ones_like(counts)]), first, axis=1)
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        tables.append((found, counts[None], contexts, sums, once / (once + 2 * twice)))
    return tables


def looked_up(keys, values, wanted):
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[:, at], 0)


def probabilities(tables, ids):
    """p(character | the four before it) of each character from number 4 on."""
    p = np.full(len(ids) - len(tables) + 1, 1 / V)
    for k, (found, counts, contexts, sums, discount) in enumerate(tables, 1):
        wanted = grams(ids[len(tables) - k :], k)
        (count,), (total, kinds) = (
            looked_up(found, counts, wanted),
            looked_up(contexts, sums, wanted // V),
        )
        mixed = (np.maximum(count - discount, 0) + discount * kinds * p) / np.maximum(total, 1)
        p = np.where(total > 0, mixed, p)  # after a context never seen the shorter one decides
    return p


begun = time.perf_counter()
tables = kneser_ney(ids[:cut])
gram_bits = -np.log2(probabilities(tables, ids[cut - 4 :]))
long_lines = {line.strip() for line in text[:cut].split("\n")}
lines = [line.strip() for line in text[cut:].split("\n") if len(line.strip()) >= 30]
repeated = np.mean([line in long_lines for line in lines])
print(f"{len(text):,} characters, {V} different ones; measured on the last {len(text) - cut:,}")
print(
    f"the text repeats itself: {repeated:.0%} of the long lines measured on stand in the part "
    "learnt from too, so both models get fewer bits than on fresh text"
)
print(f"5-gram model: {gram_bits.mean():.4f} bits/char ({time.perf_counter() - begun:.1f} s)")

# -------------------------------------------------------------------- the transformer

block = fp.transformer_block(
    max(1, options.width // 32),
    causal=True,
    rotary_base=10_000.0,
    norm=fp.rms_norm(),
    feed_forward=fp.swiglu(8 * options.width // 3, bias=False),
    dropout_rate=options.dropout,
    recompute=False,
)
model = fp.share(
    fp.serial(
        fp.embedding(V, options.width),
        fp.repeat(block, options.blocks),
        fp.rms_norm(),
        fp.affine(V, bias=False),
    ),
    (0,),
    (3,),
)
loss = fp.softmax_cross_entropy()
optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(
        optax.warmup_cosine_decay_schedule(
            0.0, options.rate, options.steps // 20, options.steps, options.rate / 30
        ),
        b2=0.98,
        weight_decay=0.1,
    ),
)
params_key, fit_key, write_key = jax.random.split(jax.random.key(options.seed), 3)
params, _ = model.init(params_key, jax.ShapeDtypeStruct((T,), jnp.int32))
size = sum(leaf.size for leaf in jax.tree.leaves(params))

# Windows of the part to measure on start half a window apart and count in their second half only,
# so that every character has half a window before it, the first ones from the part learnt from.
starts = np.arange(cut - 1 - half, len(ids) - 1 - half, half)
padded = np.pad(ids, (0, T))
held = np.stack([padded[start : start + T + 1] for start in starts])
second = np.arange(T) >= half
counted = second & (starts[:, None] + np.arange(T) + 1 < len(ids))
some = slice(None, None, 4)  # for the curve
validation = (held[some, :-1], (held[some, 1:], counted[some]))


def batches():
    """Windows from anywhere in the part to learn from."""
    windows = np.lib.stride_tricks.sliding_window_view(ids[:cut], T + 1)
    generator = np.random.default_rng(options.seed)
    while True:
        batch = windows[generator.integers(len(windows), size=options.batch)]
        yield batch[:, :-1], batch[:, 1:]


every = max(1, options.steps // 60)
begun = time.perf_counter()


def show(state, history):
    step = len(history["loss"])
    line = (
        f"step {step:>4}/{options.steps}  learnt from {bits(history['loss'][-every:]):.3f}  "
        f"new {bits(history['validation_loss'][-1]):.3f} bits/char  "
        f"{time.perf_counter() - begun:.0f} s"
    )
    if sys.stdout.isatty():
        print(f"\r{line}", end="\n" if step == options.steps else "", flush=True)
    elif step % (6 * every) < every or step == options.steps:
        print(line, flush=True)


def bits(nats):
    return float(np.mean(nats) / np.log(2))


def trained(rule, steps, **more):
    return fp.fit(rule, optimizer, params, batches(), key=fit_key, steps=steps, **more)


print(f"transformer: {size:,} parameters, windows of {T} characters")
by_hand = fp.backpropagation(model, loss)
state, history = trained(by_hand, options.steps, every=every, validation=validation, callback=show)


@jax.jit
def bits_of(params, window):
    log_p = jax.nn.log_softmax(model.apply(params, window[:, :-1]))
    return -jnp.take_along_axis(log_p, window[:, 1:, None], axis=-1)[..., 0] / jnp.log(2.0)


all_bits = np.concatenate(
    [bits_of(state.params, held[i : i + 64]) for i in range(0, len(held), 64)]
)
our_bits = all_bits[counted]
assert our_bits.shape == gram_bits.shape  # each of the same characters, in the same order
print(f"on all {len(our_bits):,} characters of the last tenth, bits per character:")
print(f"  transformer   {our_bits.mean():.4f}")
print(f"  5-gram model  {gram_bits.mean():.4f}")

# ------------------------------------------------------------------------ what it writes


@jax.jit
def write(params, window, keys):
    def step(window, key):
        logits = model.apply(params, window[None])[0, -1]
        c = jax.random.categorical(key, logits / 0.8).astype(window.dtype)
        return jnp.append(window[1:], c), c

    return jax.lax.scan(step, window, keys)[1]


given = ids[cut : cut + T]
keys = jax.random.split(write_key, options.written)
written = "".join(alphabet[i] for i in write(state.params, given, keys))
print("given:", "".join(alphabet[i] for i in given), "written:", written, sep="\n")

# -------------------------------------------------------------------------- the picture

figure = plt.figure(figsize=(12, 8.2), layout="constrained")
axes = figure.subplot_mosaic([["curves", "context"], ["passage", "passage"]])
blue, orange, grey = "#1f4e9c", "#c2410c", "#777777"
axis = axes["curves"]
smooth = np.convolve(history["loss"], np.full(every, 1 / every), "valid") / np.log(2)
axis.plot(np.arange(len(smooth)) + every, smooth, color=grey, lw=1, label="learnt from")
new = np.array(history["validation_loss"]) / np.log(2)
axis.plot(history["validation_step"], new, color=blue, label="new text")
axis.axhline(gram_bits.mean(), color=orange, ls="--", label=f"5-gram {gram_bits.mean():.3f}")
axis.set(xlabel="step", ylabel="bits per character", ylim=(min(1, new.min()), 4))
axis.set_title(f"transformer {our_bits.mean():.3f}, 5-gram model {gram_bits.mean():.3f}")
axis.legend()
axis = axes["context"]
axis.plot(np.arange(T) + 1, all_bits[:-2].mean(0), color=blue, label="transformer")
axis.axhline(gram_bits.mean(), color=orange, ls="--", label="5-gram, four characters")
axis.set(xscale="log", xlabel="characters given", ylabel="bits per character")
axis.set_title("what more context is worth")
axis.legend()
for axis in (axes["curves"], axes["context"]):
    axis.grid(alpha=0.3)
axis, rows, columns = axes["passage"], 7, 90
start = (len(gram_bits) // 2) % max(1, len(gram_bits) - rows * columns)
part = slice(start, start + rows * columns)
saved = (gram_bits - our_bits)[part].reshape(rows, columns)
shown = axis.imshow(saved, cmap="RdBu", vmin=-6, vmax=6, aspect="auto")
for i, c in enumerate(text[cut:][part]):
    c = "⏎" if c == "\n" else c
    axis.text(
        i % columns,
        i // columns,
        c.replace("$", r"\$"),
        ha="center",
        va="center",
        family="monospace",
        size=9,
    )
axis.set(xticks=[], yticks=[], title="new text: which model expects each character better")
figure.colorbar(shown, ax=axis, label="bits that the transformer saves", shrink=0.8)
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
plt.close(figure)
print(f"picture: {options.out}")

by_jax = trained(automatic(model, loss), min(20, options.steps))[1]["loss"]
difference = max(abs(a - b) for a, b in zip(history["loss"], by_jax, strict=False))
print(f"first {len(by_jax)} losses differ from those with jax.grad by at most {difference:.1e}")
