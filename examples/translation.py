"""From words to digits: an encoder and a decoder, with attention from one to the other.

    python examples/translation.py

Two small languages, both made by rules:

- numbers: "three hundred and twelve thousand four hundred and five" is 312405, with or without
  "and", from 1 to 999,999, as many of six digits as of five, and so on where there are so many;
- dates: "the third of march nineteen eighty-four" is 1984-03-03, also as "march the third ..." and
  "march third ...", from 1500 to 2099.

The network sees characters, and nobody tells it where a word ends.  The encoder, transformer blocks
over the source, makes a memory of it.  The decoder writes the translation character by character,
each with attention to what is written and to the memory.  In training it is given the right
characters before the one to write (teacher forcing); to translate it goes on from its own, always
with the most probable one.  Measured is how many of 2,000 numbers and of 2,000 dates, none of which
training has seen in any spelling, come out right in every character.

The picture shows the training, and of one example of each task to which characters of the source
each written one listens: the size of the delta that the backward pass brings there when a 1 is sent
back from the score of the character written.  Takes about ten minutes on two cores.
"""

import argparse
import datetime
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.ticker import PercentFormatter

import funcprop as fp
from funcprop.checking import automatic

parser = argparse.ArgumentParser(description="Numbers and dates, from words to digits.")
parser.add_argument("--steps", type=int, default=2500, help="steps of training, for each task")
parser.add_argument("--batch", type=int, default=64, help="examples a step")
parser.add_argument("--width", type=int, default=64, help="features of a character")
parser.add_argument("--blocks", type=int, default=2, help="of the encoder, and of the decoder")
parser.add_argument("--rate", type=float, default=3e-3, help="the learning rate at its highest")
parser.add_argument("--held-out", type=int, default=2000, help="examples to measure on")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path("runs/translation.png"))
parser.add_argument("--toy", action="store_true", help="a few seconds: few steps, a small model")
options = parser.parse_args()
if options.toy:
    options.steps, options.batch, options.width, options.blocks = 40, 16, 16, 1
    options.held_out = 50

# ---------------------------------------------------------------------- the languages

UNITS = (
    "- one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINALS = dict(one="first", two="second", three="third", five="fifth", eight="eighth")
ORDINALS |= dict(nine="ninth", twelve="twelfth")
MONTHS = (
    "january february march april may june july august september october november december"
).split()


def cardinal(n, link):
    """The words of a number from 1 to 999,999; ``link`` is " and " or " "."""
    for size, word in ((1000, "thousand"), (100, "hundred")):
        if n >= size:
            many, rest = divmod(n, size)
            words = f"{cardinal(many, link)} {word}"
            return f"{words}{link if rest < 100 else ' '}{cardinal(rest, link)}" if rest else words
    if n < 20:
        return UNITS[n]
    return TENS[n // 10] + (f"-{UNITS[n % 10]}" if n % 10 else "")


def ordinal(n):
    *before, last = cardinal(n, "").split("-")
    regular = f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th"
    return "-".join([*before, ORDINALS.get(last, regular)])


def date_words(day, form):
    century, rest = divmod(day.year, 100)
    year = f"{cardinal(century, '')} {cardinal(rest, '') if rest >= 10 else f'oh {UNITS[rest]}'}"
    if rest == 0:
        year = f"{cardinal(century, '')} hundred"
    if century == 20 and rest < 10:
        year = cardinal(day.year, " and ")
    return form.format(day=ordinal(day.day), month=MONTHS[day.month - 1], year=year)


def numbers(generator):
    found = np.unique((10 ** generator.uniform(0, 6, 60_000)).astype(int))
    generator.shuffle(found)
    links = generator.choice([" and ", " "], len(found))
    return [(cardinal(n, link), str(n)) for n, link in zip(found.tolist(), links, strict=True)]


def dates(generator):
    first, last = datetime.date(1500, 1, 1).toordinal(), datetime.date(2099, 12, 31).toordinal()
    found = generator.choice(np.arange(first, last + 1), 30_000, replace=False).tolist()
    forms = ["the {day} of {month} {year}", "{month} the {day} {year}", "{month} {day} {year}"]
    days = [datetime.date.fromordinal(n) for n in found]
    forms = generator.choice(forms, len(days))
    return [(date_words(d, form), d.isoformat()) for d, form in zip(days, forms, strict=True)]


START, END = "^", "$"
LETTERS, SIGNS = " -abcdefghijklmnopqrstuvwxyz", f"{START}{END}-0123456789"


def padded(texts, alphabet):
    """Ids (N, longest) and the mask of the real ones."""
    ids = np.zeros((len(texts), max(map(len, texts))), np.int32)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = [alphabet.index(c) for c in text]
    return ids, np.arange(ids.shape[1]) < np.array([len(text) for text in texts])[:, None]


def arrays(pairs, part):
    """x = (written so far, (source, its mask)) and y = (the next character, its mask)."""
    sources, targets = zip(*pairs, strict=True)
    given, _ = padded([START + target for target in targets], SIGNS)
    x, y = (given, padded(sources, LETTERS)), padded([f"{t}{END}" for t in targets], SIGNS)
    return jax.tree.map(lambda leaf: leaf[part], (x, y))


# -------------------------------------------------------------------------- the model


def settings():
    return {"rotary_base": 10_000.0, "norm": fp.rms_norm(), "recompute": False}


def table(symbols):
    return fp.embedding(len(symbols), options.width, w_init=jax.nn.initializers.normal(1.0))


# In goes (written, (source, mask)).  Each of the four lines changes one thing of it.
heads = max(1, options.width // 16)
embed = fp.on(1, fp.on(0, table(LETTERS)))
encode = fp.on(
    1,
    fp.serial(
        fp.repeat(fp.transformer_block(heads, **settings()), options.blocks),
        fp.on(0, fp.rms_norm()),
    ),
)
# (written, (memory, mask)) becomes (written, memory, mask)
side_by_side = fp.serial(
    fp.fork(3),
    fp.parallel(fp.pick(0), fp.serial(fp.pick(1), fp.pick(0)), fp.serial(fp.pick(1), fp.pick(1))),
)
decode = fp.serial(
    fp.on(0, table(SIGNS)),
    fp.repeat(fp.decoder_block(heads, **settings()), options.blocks),
    fp.pick(0),
    fp.rms_norm(),
    fp.affine(len(SIGNS)),
)
model = fp.serial(embed, encode, side_by_side, decode)
loss = fp.softmax_cross_entropy()


@jax.jit
def translate(params, x):
    """The most probable character at each place, given those that it has written before."""
    given, source = x
    before = fp.serial(*model.parts[:3])
    _, memory, mask = before.apply(params[:3], (given, source))

    def step(t, written):
        scores = decode.apply(params[3], (written[:, :-1], memory, mask))
        return written.at[:, t + 1].set(jnp.argmax(scores[:, t], axis=-1).astype(written.dtype))

    start = jnp.zeros((len(given), given.shape[1] + 1), given.dtype)
    return jax.lax.fori_loop(0, given.shape[1], step, start)[:, 1:]


def strings(ids):
    return ["".join(SIGNS[i] for i in row).split(END)[0] for row in ids.tolist()]


def same(written, truth):
    return np.array([a == b for a, b in zip(strings(written), truth, strict=False)])


@jax.jit
def listened(params, x):
    """For each written character the size of its delta at each character of the source."""
    rest = fp.serial(*model.parts[1:])
    scores, residuals = rest.forward(params[1:], embed.apply(params[0], x))
    length = scores.shape[1]
    best = jax.nn.one_hot(jnp.argmax(scores, axis=-1), len(SIGNS))

    def sent_from(place):
        delta = jnp.where((jnp.arange(length) == place)[:, None], best, 0.0)
        (_, (delta_source, _)), _ = rest.backward(params[1:], residuals, delta)
        return jnp.linalg.norm(delta_source, axis=-1)[0]

    return jax.vmap(sent_from)(jnp.arange(length))


# ----------------------------------------------------------------------- the training

optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(
        optax.warmup_cosine_decay_schedule(
            0.0, options.rate, options.steps // 20, options.steps, options.rate / 30
        ),
        b2=0.98,
        weight_decay=0.01,
    ),
)
by_hand, by_jax = fp.backpropagation(model, loss), automatic(model, loss)
every = max(1, options.steps // 25)
results = {}
for task in (numbers, dates):
    name = task.__name__
    pairs = task(np.random.default_rng(options.seed))
    (x, y), learnt = (
        arrays(pairs, part) for part in (slice(options.held_out), slice(options.held_out, None))
    )
    held_out = pairs[: options.held_out]
    truth = [target for _, target in held_out]
    params_key, fit_key = jax.random.split(jax.random.key(options.seed))
    shape = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)
    params, _ = model.init(params_key, shape)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{name}: {len(pairs) - len(truth):,} to learn from, {size:,} parameters")
    few = jax.tree.map(lambda leaf: leaf[:200], x)
    curve, begun = [], time.perf_counter()

    def show(state, history, truth=truth, few=few, curve=curve, begun=begun):
        step = len(history["loss"])
        curve.append((step, np.mean(same(translate(state.params, few), truth))))
        line = (
            f"  step {step:>4}/{options.steps}  loss {np.mean(history['loss'][-every:]):.4f}  "
            f"new ones right {curve[-1][1]:6.1%}  {time.perf_counter() - begun:.0f} s"
        )
        if sys.stdout.isatty():
            print(f"\r{line}", end="\n" if step == options.steps else "", flush=True)
        elif step % (5 * every) < every or step == options.steps:
            print(line, flush=True)

    kept = {"key": fit_key, "batch_size": options.batch}
    state, history = fp.fit(
        by_hand, optimizer, params, learnt, steps=options.steps, every=every, callback=show, **kept
    )
    if task is numbers:
        reference = fp.fit(by_jax, optimizer, params, learnt, steps=20, **kept)[1]["loss"]
    found = translate(state.params, x)
    right = same(found, truth)
    print(f"  {np.mean(right):.2%} of {len(truth):,} new {name} right in every character")
    for i in [*np.flatnonzero(right)[:3], *np.flatnonzero(~right)[:3]]:
        verdict = "right" if right[i] else f"wrong, {truth[i]} is due"
        print(f"    {held_out[i][0]} -> {strings(found[i : i + 1])[0]} ({verdict})")
    shown = max(range(min(200, len(truth))), key=lambda i: len(truth[i]) * bool(right[i]))
    one = jax.tree.map(lambda leaf: leaf[shown : shown + 1], x)
    results[name] = (
        history["loss"],
        curve,
        np.mean(right),
        held_out[shown],
        listened(state.params, one),
    )

# -------------------------------------------------------------------------- the picture

figure = plt.figure(figsize=(12, 9.5), layout="constrained")
axes = figure.subplot_mosaic([["loss", "right"], ["numbers"] * 2, ["dates"] * 2])
for (name, (losses, curve, part, pair, sizes)), colour in zip(
    results.items(), ("#1f4e9c", "#c2410c"), strict=True
):
    smooth = np.convolve(losses, np.full(every, 1 / every), "valid")
    axes["loss"].semilogy(np.arange(len(smooth)) + every, smooth, color=colour, label=name)
    axes["right"].plot(*zip(*curve, strict=True), color=colour, label=f"{name}, {part:.2%} at last")
    source, target = pair
    listened_to = np.asarray(sizes)[: len(target), : len(source)]
    listened_to /= listened_to.max(axis=1, keepdims=True)
    axes[name].imshow(listened_to, cmap="Blues", aspect="auto")
    axes[name].set_xticks(range(len(source)), source, family="monospace")
    axes[name].set_yticks(range(len(target)), target, family="monospace")
    axes[name].tick_params(length=0)
    axes[name].set_title(f"{name}: to which characters of the source each written one listens")
axes["loss"].set(xlabel="step", title="loss of what is learnt from")
axes["right"].set(xlabel="step", title="new ones right in every character", ylim=(-0.02, 1.02))
axes["right"].yaxis.set_major_formatter(PercentFormatter(1))
for axis in (axes["loss"], axes["right"]):
    axis.grid(alpha=0.3)
    axis.legend()
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
plt.close(figure)
print(f"picture: {options.out}")

difference = max(abs(a - b) for a, b in zip(results["numbers"][0], reference, strict=False))
print(f"first {len(reference)} losses differ from those with jax.grad by at most {difference:.1e}")
