"""Writing text, a character at a time: a transformer beside a Kneser-Ney model.

    python examples/text_generation.py

The text is Python's own help, all of ``pydoc_data.topics`` in the order of the names: nine tenths
to learn from, the last tenth to be measured on.  Two models say how probable each character is:

- a transformer of causal blocks with rotary positions and dropout, the table of its embedding also
  its last layer (``share``), trained by hand-written backprop;
- a 5-gram model made of counts, interpolated Kneser-Ney (Kneser & Ney 1995, Chen & Goodman 1999),
  with D = n₁/(n₁ + 2n₂) for each order, and all characters alike at the bottom.

Both are measured in bits per character, -log₂ p(character | what stands before it), on every
character of the last tenth.  Before it the 5-gram model sees four characters, the transformer half
a window or more.  The text repeats itself, so both numbers are lower than for fresh text; they are
also given for those characters alone that are in no passage seen before.

The picture shows bits per character in the course of training, and by how many characters the
transformer sees; and how many bits it saves, or loses, at each character of a passage.
Takes about six minutes on two cores.
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
parser.add_argument("--steps", type=int, default=1500, help="steps of training")
parser.add_argument("--batch", type=int, default=16, help="windows a step")
parser.add_argument("--window", type=int, default=128, help="characters the transformer sees")
parser.add_argument("--width", type=int, default=128, help="features of a character")
parser.add_argument("--blocks", type=int, default=5)
parser.add_argument("--dropout", type=float, default=0.1, help="of what a block adds")
parser.add_argument("--rate", type=float, default=5e-3, help="the learning rate at its highest")
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


def grams(ids, k):
    """All k characters in a row, each as one number, its digits in base V."""
    return sum(V ** (k - 1 - i) * ids[i : len(ids) - k + 1 + i].astype(np.int64) for i in range(k))


def kneser_ney(ids, order=5):
    """For each order the k-grams with their counts, the contexts with count and kinds, and D."""
    tables = []
    for k in range(1, order + 1):
        # Below the highest order a k-gram counts once for each character seen in front of it.
        seen = grams(ids, k) if k == order else np.unique(grams(ids, k + 1)) % V**k
        found, count = np.unique(seen, return_counts=True)
        contexts, first = np.unique(found // V, return_index=True)
        sums = np.add.reduceat([count, np.ones_like(count)], first, axis=1)
        once, twice = sum(count == 1), sum(count == 2)
        tables.append((found, count[None], contexts, sums, once / (once + 2 * twice)))
    return tables


def probabilities(tables, ids):
    """p(character | those before it) of each character from the order's on."""

    def look_up(keys, values, wanted):
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[at] == wanted, values[:, at], 0)

    p = np.full(len(ids) - len(tables) + 1, 1 / V)
    for k, (found, counts, contexts, sums, D) in enumerate(tables, 1):
        wanted = grams(ids[len(tables) - k :], k)
        [count] = look_up(found, counts, wanted)
        [total, kinds] = look_up(contexts, sums, wanted // V)
        mixed = (np.maximum(count - D, 0) + D * kinds * p) / np.maximum(total, 1)
        p = np.where(total > 0, mixed, p)  # of a context never seen the shorter one decides
    return p


begun = time.perf_counter()
tables = kneser_ney(ids[:cut])
gram_bits = -np.log2(probabilities(tables, ids[cut - len(tables) + 1 :]))
seconds = time.perf_counter() - begun
# Which characters to measure on are part of 30 in a row that stand in the text learnt from too.
known = {text[i : i + 30] for i in range(cut - 29)}
repeated = (
    np.convolve([text[i : i + 30] in known for i in range(cut, len(text) - 29)], [1] * 30) > 0
)
print(f"{len(text):,} characters, {V} kinds; to measure on the last {len(gram_bits):,}")
print(
    f"the text repeats itself: {repeated.mean():.0%} of these lie in passages of 30 and more that "
    "stand in the text learnt from too,\nso both models need fewer bits than for fresh text"
)
print(f"5-gram model: {gram_bits.mean():.4f} bits per character, made in {seconds:.1f} s")

block = fp.transformer_block(
    max(1, options.width // 32),
    causal=True,
    rotary_base=10_000.0,
    norm=fp.rms_norm(),
    feed_forward=fp.swiglu(8 * options.width // 3, bias=False),
    dropout_rate=options.dropout,
    recompute=False,
)
layers = (
    fp.embedding(V, options.width),
    fp.rms_norm(),
    fp.repeat(block, options.blocks),
    fp.rms_norm(),
    fp.affine(V, bias=False),
)
model, loss = fp.share(fp.serial(*layers), (0,), (4,)), fp.softmax_cross_entropy()
rates = optax.warmup_cosine_decay_schedule(
    0.0, options.rate, options.steps // 20, options.steps, options.rate / 30
)
optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(rates, b2=0.98, weight_decay=0.1)
)
params_key, fit_key, write_key = jax.random.split(jax.random.key(options.seed), 3)
params, _ = model.init(params_key, jax.ShapeDtypeStruct((T,), jnp.int32))

# The windows to measure on start half a window apart and count in their second half only, so that
# there is half a window before every character; before the first one it is the text learnt from.
parts = 4  # one for the curve; all have as many windows
starts = cut - 1 - T // 2 + np.arange(0, len(gram_bits), T // 2)
starts = np.pad(starts, (0, -len(starts) % parts), constant_values=len(ids))
places = starts[:, None] + np.arange(T + 1)
counted = (places[:, 1:] < len(ids)) & (np.arange(T) >= T // 2)
windows = ids[np.minimum(places, len(ids) - 1)]


@jax.jit
def bits_of(params, windows):
    log_p = jax.nn.log_softmax(model.apply(params, windows[:, :-1]))
    return -jnp.take_along_axis(log_p, windows[:, 1:, None], axis=-1)[..., 0] / jnp.log(2.0)


def batches():
    """Windows from anywhere in the part to learn from."""
    windows = np.lib.stride_tricks.sliding_window_view(ids[:cut], T + 1)
    generator = np.random.default_rng(options.seed)
    while True:
        batch = windows[generator.integers(len(windows), size=options.batch)]
        yield batch[:, :-1], batch[:, 1:]


every, curve, begun = max(1, options.steps // 60), [], time.perf_counter()


def show(state, history):
    step, learnt = len(history["loss"]), np.mean(history["loss"][-every:]) / np.log(2)
    new = bits_of(state.params, windows[::parts])[counted[::parts]].mean()
    curve.append((step, learnt, float(new)))
    line = (
        f"step {step:>4}/{options.steps}  bits per character: learnt from {learnt:.3f}  "
        f"new {new:.3f}  {time.perf_counter() - begun:.0f} s"
    )
    if sys.stdout.isatty():
        print(f"\r{line}", end="\n" if step == options.steps else "", flush=True)
    elif step % (6 * every) < every or step == options.steps:
        print(line, flush=True)


def trained(rule, steps, **more):
    return fp.fit(rule, optimizer, params, batches(), key=fit_key, steps=steps, **more)


size = sum(leaf.size for leaf in jax.tree.leaves(params))
print(f"transformer: {size:,} parameters, windows of {T} characters")
state, history = trained(fp.backpropagation(model, loss), options.steps, every=every, callback=show)
by_window = np.stack([bits_of(state.params, windows[i::parts]) for i in range(parts)], axis=1)
by_window = by_window.reshape(counted.shape)
our_bits = by_window[counted]
assert our_bits.shape == gram_bits.shape  # the same characters in the same order
print(f"bits per character   all {len(our_bits):,}   the {sum(~repeated):,} not repeated")
for name, bits in (("transformer", our_bits), ("5-gram model", gram_bits)):
    print(f"  {name:<12}  {bits.mean():13.4f}  {bits[~repeated].mean():15.4f}")


@jax.jit
def write(params, window, keys):
    def step(window, key):
        logits = model.apply(params, window[None])[0, -1]
        c = jax.random.categorical(key, logits / 0.8).astype(window.dtype)
        return jnp.append(window[1:], c), c

    return jax.lax.scan(step, window, keys)[1]


given = ids[cut : cut + T]
written = write(state.params, given, jax.random.split(write_key, options.written))
written = "".join(alphabet[i] for i in written)
print(f"---- given ----\n{text[cut : cut + T]}\n---- written ----\n{written}\n----")

figure = plt.figure(figsize=(12, 8.2), layout="constrained")
axes = figure.subplot_mosaic([["curves", "context"], ["passage", "passage"]])
blue, orange = "#1f4e9c", "#c2410c"
steps, learnt, new = zip(*curve, strict=True)
axes["curves"].plot(steps, learnt, color="#777777", label="transformer, text learnt from")
axes["curves"].plot(steps, new, color=blue, label="transformer, new text")
axes["curves"].set(
    xlabel="step",
    ylim=(0.9 * min(learnt), max(4.0, new[-1] + 1)),
    title="in the course of training",
)
by_place = by_window[starts + T < len(ids)].mean(axis=0)
edges = np.unique(np.geomspace(1, T, 20).astype(int))[:-1]  # few places at first, many later
groups = [(group.mean() + 1, by_place[group].mean()) for group in np.split(np.arange(T), edges)]
axes["context"].semilogx(*zip(*groups, strict=True), "o-", color=blue, label="transformer")
axes["context"].set(xlabel="characters that it has seen before", title="what context is worth")
for axis in (axes["curves"], axes["context"]):
    axis.axhline(gram_bits.mean(), color=orange, ls="--", label="5-gram model, new text")
    axis.set_ylabel("bits per character")
    axis.grid(alpha=0.3)
    axis.legend()
rows, columns = 8, 90
start = text.index("\n\n", cut + len(our_bits) // 5) + 2 - cut  # a paragraph's
start = min(start, len(our_bits) - rows * columns)
passage = slice(start, start + rows * columns)
saved = (gram_bits - our_bits)[passage].reshape(rows, columns)
image = axes["passage"].imshow(saved, cmap="RdBu", vmin=-8, vmax=8, aspect="auto")
for i, c in enumerate(text[cut:][passage].replace("\n", "⏎").replace("$", r"\$")):
    axes["passage"].text(i % columns, i // columns, c, ha="center", va="center", family="monospace")
axes["passage"].set(xticks=[], yticks=[], title="new text: bits that the transformer saves")
figure.colorbar(image, ax=axes["passage"], shrink=0.8)
figure.suptitle(
    f"{len(our_bits):,} new characters of Python's help: transformer {our_bits.mean():.3f} bits "
    f"per character, 5-gram Kneser-Ney {gram_bits.mean():.3f}"
)
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
plt.close(figure)
print(f"picture: {options.out}")

reference = trained(automatic(model, loss), 20)[1]["loss"]
difference = max(abs(a - b) for a, b in zip(history["loss"], reference, strict=False))
print(f"first {len(reference)} losses differ from those with jax.grad by at most {difference:.1e}")
