"""The picture of a training run.  Needs matplotlib, which the extra ``plot`` installs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..checking.report import Report

TRAIN, TEST, GOOD, BAD, INK, FAINT = (
    "#e08214",
    "#2166ac",
    "#2166ac",
    "#c0392b",
    "#222222",
    "#8c8c8c",
)
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.color": INK,
}


def training(
    path: str | Path | BinaryIO,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    report: Report,
    last: Callable[[Any], None],
) -> None:
    """Draws a training run: loss and score, deltas and gradient by layer, and its predictions.

    Args:
        path: where to write the picture; to an open file it goes as PNG.
        title: the line on top.
        rows: what is known of each epoch, as ``metrics.jsonl`` has it.
        report: the hand-written gradient beside the automatic one.
        last: draws the predictions into a subfigure, see :func:`digits`, :func:`confusion` and
            :func:`regression`.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure: Any = Figure(figsize=(14, 7.4))
        figure.set_layout_engine("constrained", w_pad=0.09, h_pad=0.09)
        figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", parse_math=False)
        left, right = figure.subfigures(1, 2, width_ratios=[8, 5])
        (loss, score), (deltas, gradient) = left.subplots(2, 2)
        _losses(loss, rows)
        _scores(score, rows)
        _deltas(deltas, rows)
        _gradient(gradient, report)
        last(right)
        kind = None if isinstance(path, (str, Path)) else "png"
        figure.savefig(path, dpi=130, format=kind)


def alignment(path: str | Path, title: str, history: Mapping[str, Sequence[float]]) -> None:
    """Draws how a rule's estimate stood to the gradient: angles and ratios of norms, by layer.

    Args:
        path: where to write the picture.
        title: the line on top.
        history: of a training with the metrics of :func:`~funcprop.alignment`.

    Raises:
        KeyError: when the history has no angles.
        ModuleNotFoundError: without matplotlib.
    """
    import matplotlib
    from matplotlib.figure import Figure

    kinds = ["", "feedback_"] if "feedback_angle" in history else [""]
    what = {"": "the estimate and the gradient", "feedback_": "feedback and weights"}
    with matplotlib.rc_context(STYLE):
        figure: Any = Figure(figsize=(11, 3.8 * len(kinds)))
        figure.set_layout_engine("constrained")
        figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
        for kind, (angle, ratio) in zip(
            kinds, figure.subplots(len(kinds), 2, squeeze=False), strict=True
        ):
            for axes, name in ((angle, f"{kind}angle"), (ratio, f"{kind}ratio")):
                axes.plot(history[name], color=INK, label="all layers")
                layers = [key for key in history if key.startswith(f"{name}[")]
                for i, key in enumerate(layers):
                    color = matplotlib.colormaps["viridis"](i / max(1, len(layers) - 1))
                    axes.plot(history[key], color=color, lw=1, label=key[len(name) :])
                axes.set_xlabel("step")
            angle.axhline(90, color=FAINT, ls="--", lw=1)
            angle.set(title=f"Angle between {what[kind]}, degrees", ylim=(0, None))
            ratio.set(title="Ratio of their norms", yscale="log")
            angle.legend(fontsize=7)
        figure.savefig(path, dpi=130)


def _losses(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    _two_curves(axes, rows, "loss", "test_loss")
    axes.set(title="Loss", xlabel="epoch", yscale="log")
    axes.legend()


def _scores(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    if "test_r2" in rows[0]:
        values = _two_curves(axes, rows, "r2", "test_r2")
        axes.set(title="R², the share of variance explained", xlabel="epoch")
    else:
        values = _two_curves(axes, rows, "accuracy", "test_accuracy")
        axes.set(title="Accuracy", xlabel="epoch")
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    # From where the first tenth of the training ends: what comes before would flatten the rest.
    low = max(min(values[len(rows) // 10 :]), -1.0)
    axes.set_ylim(low - 0.25 * (1 - low) - 1e-3, 1 + 0.06 * (1 - low) + 1e-3)
    axes.legend(loc="lower right")


def _two_curves(axes, rows, train, test):
    epochs = [row["epoch"] for row in rows]
    values = []
    for name, label, colour in ((train, "training", TRAIN), (test, "test", TEST)):
        if name in rows[0]:
            curve = [row[name] for row in rows]
            axes.plot(epochs, curve, color=colour, label=label, marker=_marker(rows))
            values.append(curve)
    return [min(pair) for pair in zip(*values, strict=True)]


def _marker(rows: Sequence[Any]) -> str | None:
    return "o" if len(rows) < 3 else None  # a line of one point cannot be seen


def _deltas(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    epochs = [row["epoch"] for row in rows]
    curves = list(zip(*(row["delta"] for row in rows), strict=True))
    for i, (curve, colour) in enumerate(zip(curves, _shades(len(curves)), strict=True)):
        axes.plot(epochs, curve, color=colour, marker=_marker(rows), label=f"layer {i + 1}")
    axes.set(title="Size of δ by layer (root mean square)", xlabel="epoch", yscale="log")
    axes.legend(ncols=1 + len(curves) // 6)


def _gradient(axes: Any, report: Report) -> None:
    places = np.arange(len(report.leaves))
    bound = min(leaf.bound for leaf in report.leaves)
    sizes = [leaf.max_eps if math.isfinite(leaf.max_eps) else 1e12 for leaf in report.leaves]
    floor, ceiling = 0.01, 8 * max([bound, *sizes])
    shown = [max(size, 1.5 * floor) for size in sizes]  # a difference of 0 stands at the left
    colours = [GOOD if leaf.ok else BAD for leaf in report.leaves]
    axes.axvspan(bound, ceiling, color=BAD, alpha=0.08, linewidth=0)
    axes.axvline(bound, color=BAD, linewidth=1.2)
    axes.annotate(
        f"bound\n{bound:g} eps",
        (bound, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(-5, 0),
        textcoords="offset points",
        ha="right",
        color=BAD,
    )
    axes.hlines(places, floor, shown, color=colours, linewidth=1.2, alpha=0.5)
    axes.scatter(shown, places, color=colours, s=34, zorder=3)
    for place, size, at in zip(places, sizes, shown, strict=True):
        axes.annotate(
            f"{size:.2g}", (at, place), xytext=(7, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(places, [_leaf_name(leaf.path) for leaf in report.leaves])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set(
        title="Gradient by hand against jax.grad",
        xlabel="first step: largest difference, in eps of a leaf's largest value",
        xscale="log",
        xlim=(floor, ceiling),
        ylim=(len(places) - 0.4, -0.6),
    )


def _leaf_name(path: str) -> str:
    """``[0]['w']`` as W of layer 1."""
    layer, name = path.strip("[]'").split("]['")
    return f"{'W' if name == 'w' else name} of layer {int(layer) + 1}"


def _shades(n: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["viridis"](0.85 * i / max(n - 1, 1)) for i in range(n)]


# -------------------------------------------------------------------------- predictions


def digits(figure: Any, x: Any, labels: Any, predictions: Any) -> None:
    """Images of 8 × 8 with what was predicted, the wrong ones first."""
    rows, columns = 7, 6
    wrong = labels != predictions
    axes = figure.subplots()
    for place, i in enumerate(np.argsort(~wrong, kind="stable")[: rows * columns]):
        top, left = 11.5 * (place // columns), 10.5 * (place % columns)
        axes.imshow(
            x[i].reshape(8, 8),
            cmap="gray_r",
            vmin=0,
            vmax=1,
            interpolation="nearest",
            extent=(left, left + 8, top + 8, top),
        )
        axes.text(
            left + 4,
            top - 0.6,
            f"{predictions[i]}, is {labels[i]}" if wrong[i] else str(labels[i]),
            color=BAD if wrong[i] else INK,
            fontsize=9.5,
            fontweight="bold" if wrong[i] else "normal",
            ha="center",
        )
    axes.set(
        title=f"Test digits, the {wrong.sum()} wrong ones of {len(labels)} first",
        xlim=(-1, 10.5 * columns - 1.5),
        ylim=(11.5 * rows - 3, -3),
    )
    axes.set_axis_off()


def confusion(figure: Any, classes: Sequence[Any], labels: Any, predictions: Any) -> None:
    """How many test examples of each class were taken for which."""
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (labels, predictions), 1)
    axes = figure.subplots()
    axes.grid(visible=False)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1.15)
    axes.set(title="Test examples: class and prediction", xlabel="predicted", ylabel="class")
    if len(classes) <= 20:
        names = [str(name)[:12] for name in classes]
        turned = 90 if max(map(len, names)) > 3 else 0
        axes.set_xticks(range(len(classes)), names, rotation=turned, parse_math=False)
        axes.set_yticks(range(len(classes)), names, parse_math=False)
        for (i, j), count in np.ndenumerate(counts):
            if count:
                colour = "white" if share[i, j] > 0.6 else BAD if i != j else INK
                axes.text(j, i, str(count), ha="center", va="center", color=colour)


def regression(figure: Any, targets: Any, predictions: Any, label: str = "target") -> None:
    """Each test example's prediction over its true target, and the line where both are equal."""
    axes = figure.subplots()
    ends = [
        min(np.min(targets), np.min(predictions)),
        max(np.max(targets), np.max(predictions)),
    ]
    axes.plot(ends, ends, color=FAINT, linewidth=1, linestyle="--", label="equal")
    axes.plot(targets, predictions, "o", color=TEST, markersize=4, alpha=0.5, markeredgewidth=0)
    axes.set_title("Test examples: prediction and truth")
    axes.set_xlabel(f"true {label[:40]}", parse_math=False)  # a name may hold dollar signs
    axes.set_ylabel(f"predicted {label[:40]}", parse_math=False)
    axes.set_aspect("equal")
    axes.legend(loc="upper left")
