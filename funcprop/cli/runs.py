"""Training runs of the command line: from a file of examples to a folder with a trained network."""

from __future__ import annotations

import argparse
import io
import math
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from ..checking.models import check_model
from ..core.layer import Layer
from ..core.loss import Loss
from ..core.summary import summary
from ..core.sweep import value_and_backprop
from ..data import data_files, datasets, tasks
from ..learning.backpropagation import backpropagation
from ..multilayer_perceptron import Params, mlp
from ..training.evaluation import accuracy
from ..training.fit import fit
from ..training.stopping import History
from .files import CommandError, stop_if_asked, to_json
from .run_folder import check_writable
from .trained import ACTIVATIONS, LOSSES, Meaning, described, not_finite, save

OPTIMIZERS: dict[str, tuple[Callable[..., Any], float]] = {  # with its usual learning rate
    "adam": (optax.adam, 3e-3),
    "adamw": (optax.adamw, 3e-3),
    "sgd": (optax.sgd, 0.1),
    "momentum": (partial(optax.sgd, momentum=0.9), 0.03),
    "rmsprop": (optax.rmsprop, 1e-3),
    "adagrad": (optax.adagrad, 0.03),
    "lion": (optax.lion, 3e-4),
    "muon": (optax.contrib.muon, 0.01),
    "lbfgs": (optax.lbfgs, 1.0),
}
COMPARED = 1024  # examples of the comparison with jax.grad, at most


# -------------------------------------------------------------------------------- train


def train(args: argparse.Namespace) -> int:
    """``funcprop train``: prints how it goes and writes the run's folder."""
    if args.file is not None and args.data is not None:
        raise CommandError(f"there are two files, {args.file} and --data {args.data}; give one")
    args.data = args.data or args.file
    name = "digits" if args.data is None else Path(args.data).stem
    meaning, training, test = _data(args)
    if args.loss is None:
        args.loss = "softmax_cross_entropy" if meaning.classes else "mean_squared_error"
    folder = Path(args.out or Path("runs") / name)
    check_writable(folder)
    outputs = 1 if meaning.classes is None else len(meaning.classes)
    sizes = (len(meaning.mean), *args.sizes, outputs)
    fields = described(sizes, args.activation, args.loss, meaning)
    model, loss = mlp(sizes, ACTIVATIONS[args.activation]), LOSSES[args.loss]
    print(
        f"{name}: {len(training[1]):,} examples to train on, {len(test[1]):,} to test with, "
        f"{sizes[0]:,} features, "
        f"{'a number to predict' if meaning.classes is None else f'{outputs} classes'}",
        flush=True,
    )
    data, held_out = (
        (meaning.inputs(x, f"{name}, {part} part: "), meaning.targets(y, args.loss))
        for part, (x, y) in (("training", training), ("test", test))
    )
    init_key, fit_key = jax.random.split(jax.random.key(args.seed))
    first, _ = model.init(init_key, sizes[:1])
    params, rows = _fitted(args, model, loss, meaning, first, data, held_out, fit_key)
    prediction = jax.jit(model.apply)(params, held_out[0])
    answers = meaning.answers(prediction)
    if not_finite(prediction, answers) is not None or not math.isfinite(rows[-1]["test_loss"]):
        raise CommandError(
            "stopped: what the trained network makes of the test part is not finite; try a "
            "smaller --learning-rate",
            code=1,
        )
    result = meaning.result(test[1], answers)
    inputs, targets = (part[:COMPARED] for part in data)
    title = "gradient of the first step"
    report = check_model(model, first, inputs, targets, loss, title=title)
    rows[-1]["worst_leaf_eps"] = report.worst_leaf
    title = (
        f"{name}: {' → '.join(map(str, sizes))}, {args.activation}.  Test {result}.  "
        f"Gradient by hand within {report.worst_leaf:.2g} eps of jax.grad."
    )
    picture = io.BytesIO()
    drawn = _draw(picture, title, args, meaning, rows, report, test, answers)
    metrics = "".join(f"{to_json(row)}\n" for row in rows)
    written = save(folder, fields, params, metrics, picture.getvalue() if drawn else None)
    # Results are printed when they are on the disk: whoever reads them finds the run there.
    try:
        print(f"\n{summary(model, sizes[:1])}\n")
        print(f"test {result}, test loss {rows[-1]['test_loss']:.4g}\n")
        print(f"{report}\n")
        print(f"wrote {', '.join(written)} to {folder}", flush=True)
    except KeyboardInterrupt as stop:
        raise type(stop)(f"the run was written to {folder} before") from None
    return 0 if report.ok else 1


def _data(args: argparse.Namespace) -> tuple[Meaning, datasets.Pair, datasets.Pair]:
    """What the data means, and its two parts with labels as indices of classes."""
    if args.data is None:
        for option in ("task", "label", "drop", "delimiter", "header"):
            if getattr(args, option) is not None:
                raise CommandError(
                    f"--{option} is for a file of your own: funcprop train FILE --{option} ..."
                )
        examples = data_files.Examples(*datasets.digits(), None, [])
    else:
        label = -1 if args.label is None else args.label
        examples = data_files.read(
            args.data,
            label=label,
            drop=args.drop or (),
            delimiter=args.delimiter,
            header=args.header,
        )
    assert examples.y is not None
    x, y = examples.x, examples.y
    classes: list[Any] | None = None
    try:
        task, why = tasks.decided(y, args.task, args.loss)
        if args.data is not None:
            print(tasks.first_line(Path(args.data).name, examples, task, why))
            for note in [*examples.notes, *tasks.oddities(examples, task)]:
                print(f"note: {note}", flush=True)
        if task == tasks.CLASSIFICATION:
            classes, y = tasks.classes_of(y, examples.label)
    except datasets.DataError as error:
        raise CommandError(f"{args.data}: {error}") from None
    if classes is None:
        y = y.astype(np.float64)
    train, test = datasets.split(x, y, seed=args.seed)

    mean, scale = np.zeros(x.shape[1]), np.ones(x.shape[1])
    if args.data is not None:
        mean, scale = train[0].mean(axis=0), train[0].std(axis=0)
        scale[tasks.is_constant(mean, scale)] = 1
    meaning = Meaning(mean, scale, 0.0, classes, columns=examples.columns)
    meaning = meaning._replace(reach=float(np.abs(meaning.inputs(train[0])).max()))
    if classes is None:
        spread = float(train[1].std()) or 1.0
        meaning = meaning._replace(target_mean=float(train[1].mean()), target_scale=spread)
    return meaning, train, test


def _fitted(
    args: argparse.Namespace,
    model: Layer,
    loss: Loss,
    meaning: Meaning,
    params: Params,
    data: datasets.Pair,
    held_out: datasets.Pair,
    key: jax.Array,
) -> tuple[Params, list[dict[str, Any]]]:
    """The trained parameters, and what is known of each epoch."""
    size = len(data[1])
    if args.batch_size is not None and args.batch_size > size:
        raise CommandError(f"--batch-size is {args.batch_size}, there are {size} examples")
    batch_size = args.batch_size or (size if args.optimizer == "lbfgs" else min(32, size))
    make, usual_rate = OPTIMIZERS[args.optimizer]
    rate = args.learning_rate or usual_rate
    if args.optimizer != "lbfgs":
        rate = optax.cosine_decay_schedule(rate, args.epochs * (size // batch_size))
    optimizer, rule = make(rate), backpropagation(model, loss)

    # The statistic makes a second sweep of each step, which XLA merges with the step's own.
    sweep = value_and_backprop(model, loss, _delta_size)
    of_numbers = meaning.classes is None
    variance = float(np.var(held_out[1])) or 1.0

    def metrics(state, batch):
        found = {f"delta {i:04}": size for i, size in enumerate(sweep(state.params, *batch)[1])}
        prediction = model.apply(state.params, batch[0])
        if of_numbers:  # whose variance in the training part is 1
            return found | {"r2": 1 - jnp.mean((prediction - batch[1]) ** 2)}
        return found | {"accuracy": jnp.mean(accuracy(prediction, batch[1]))}

    def mse(prediction, target):
        return jnp.mean((prediction - target) ** 2, axis=1)

    def r2(prediction, target):
        return 1 - mse(prediction, target) / variance

    with _Progress(args.epochs, size, args.quiet) as progress:
        state, history = fit(
            rule,
            optimizer,
            params,
            data,
            key=key,
            epochs=args.epochs,
            batch_size=None if batch_size == size else batch_size,
            validation=held_out,
            scores={"r2": r2, "mse": mse} if of_numbers else {"accuracy": accuracy},
            metrics=metrics,
            callback=lambda state, history: progress.show(_row(history, -1)),
        )
    if "stopped" in history:
        raise CommandError(f"stopped: {history['stopped']}; try a smaller --learning-rate", code=1)
    rows = [_row(history, epoch) for epoch in range(args.epochs)]
    if of_numbers:
        for row, error in zip(rows, history["validation_mse"], strict=True):
            row["test_rmse"] = meaning.target_scale * math.sqrt(error)
    return state.params, rows


def _delta_size(site: Any, inputs: Any, delta: jax.Array) -> jax.Array:
    """The root mean square of a site's deltas, those of each example's own loss."""
    return len(delta) * jnp.sqrt(jnp.mean(delta**2))


def _row(history: History, epoch: int) -> dict[str, Any]:
    """What is known of an epoch: means over its steps, and the test after it."""
    tests = len(history["validation_step"])
    steps = len(history["loss"]) // tests
    epoch = epoch % tests
    score = "accuracy" if "accuracy" in history else "r2"
    deltas = sorted(name for name in history if name.startswith("delta "))

    def mean(name):
        return float(np.mean(history[name][epoch * steps : (epoch + 1) * steps]))

    return {
        "epoch": epoch + 1,
        "loss": mean("loss"),
        score: mean(score),
        "test_loss": history["validation_loss"][epoch],
        f"test_{score}": history[f"validation_{score}"][epoch],
        "delta": [mean(name) for name in deltas],
    }


class _Progress:
    """The line that says how far the training is."""

    def __init__(self, epochs: int, examples: int, quiet: bool):
        self.epochs, self.examples, self.quiet = epochs, examples, quiet
        self.live = sys.stdout is not None and sys.stdout.isatty()
        self.every = max(1, epochs // 10)
        self.begun: float | None = None
        self.shown = -math.inf

    def __enter__(self) -> _Progress:
        if self.live and not self.quiet:
            self._put("compiling")
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live and not self.quiet:
            print(flush=True)

    def show(self, row: dict[str, Any]) -> None:
        stop_if_asked()
        now, epoch = time.perf_counter(), row["epoch"]
        # The first epoch compiles: speed is measured from its end.
        self.begun = now if self.begun is None else self.begun
        due = now - self.shown > 0.1 if self.live else epoch % self.every == 0
        if self.quiet or not (due or epoch == self.epochs):
            return
        self.shown = now
        words = [
            f"epoch {epoch:>{len(str(self.epochs))}}/{self.epochs}",
            f"loss {row['loss']:.4f}",
            f"test accuracy {100 * row['test_accuracy']:.1f} %"
            if "test_accuracy" in row
            else f"test R² {row['test_r2']:.3f}",
        ]
        if epoch > 1:
            seconds = max(now - self.begun, 1e-9) / (epoch - 1)
            left = seconds * (self.epochs - epoch)
            words.append(f"{self.examples / seconds:,.0f} examples/s")
            words.append(f"{left:.0f} s left" if left < 100 else f"{left / 60:.0f} min left")
        self._put("  ".join(words))

    def _put(self, text: str) -> None:
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{text[:width]:<{width}}", end="", flush=True)
        else:
            print(text, flush=True)


def _draw(file, title, args, meaning, rows, report, test, answers) -> bool:
    """Whether there is a picture: matplotlib may be missing."""
    from . import pictures

    if args.data is None:
        last = partial(pictures.digits, x=test[0], labels=test[1], predictions=answers)
    elif meaning.classes is None:
        label = data_files.label_name(meaning.columns)
        last = partial(pictures.regression, targets=test[1], predictions=answers, label=label)
    else:
        last = partial(
            pictures.confusion, classes=meaning.classes, labels=test[1], predictions=answers
        )
    try:
        pictures.training(file, title, rows, report, last)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        print("no picture, matplotlib is missing: pip install 'funcprop[plot]'", file=sys.stderr)
        return False
    return True
