"""Training an MLP, and its gradient alone, against the same work in other libraries.

    python -m benchmarks.mlp [--rounds 9] [--only tiny sgd adam gradient]

Every table is a ratio to funcprop's row, from rounds in which all rows take turns.  All rows have
the same network, batches, optimizer, number of steps and dtype (float32); compiling is not timed.
Times belong to the machine they were taken on: nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcprop
from benchmarks.timing import heading, interleaved, spread, table

Run = Callable[[], Callable[[], Any]]
"""Trains from the start to the end, and returns a function that gives the losses of the steps."""

DIGITS = (784, 128, 10)
KEY = jax.random.key(1)


class Problem(NamedTuple):
    """What every row of a table does: one MLP, its data, and how it is trained."""

    title: str
    sizes: tuple[int, ...]
    classes: bool  # softmax cross-entropy with labels, else mean squared error
    optimizer: str
    rate: float
    batch: int
    epochs: int
    x: np.ndarray
    y: np.ndarray
    params: funcprop.mlp.Params

    @property
    def steps(self) -> int:
        return self.epochs * (len(self.x) // self.batch)

    @property
    def loss(self) -> funcprop.Loss:
        return funcprop.softmax_cross_entropy() if self.classes else funcprop.mean_squared_error

    @property
    def optax(self) -> optax.GradientTransformation:
        return {"sgd": optax.sgd, "adam": optax.adam}[self.optimizer](self.rate)


def problem(title, sizes, classes, optimizer, rate, batch, epochs, examples) -> Problem:
    """Random inputs, and targets that a random linear map makes of them."""
    random = np.random.default_rng(0)
    x = random.uniform(size=(examples, sizes[0])).astype(np.float32)
    y = (x - 0.5) @ random.normal(size=(sizes[0], sizes[-1])).astype(np.float32)
    y = np.argmax(y, axis=1).astype(np.int32) if classes else y
    params = funcprop.init(jax.random.key(0), sizes)
    return Problem(title, sizes, classes, optimizer, rate, batch, epochs, x, y, params)


def orders(task: Problem) -> np.ndarray:
    """Which examples each step takes, (steps, batch): those that ``fit`` draws, in its order.

    Every row draws its batches from the whole data while the clock runs, as ``fit`` does; the
    order itself is there before.
    """
    return np.array(_order(len(task.x), task.batch, task.epochs), np.int32)


@functools.cache
def _order(examples: int, batch: int, epochs: int) -> list[list[int]]:
    """Which examples ``fit`` takes at each step, as it reports them itself."""
    number = jnp.arange(examples, dtype=jnp.float32)[:, None]
    model = funcprop.dense(1)
    params, _ = model.init(jax.random.key(0), (1,))
    _, history = funcprop.fit(
        funcprop.backpropagation(model, funcprop.mean_squared_error),
        optax.sgd(0.0),
        params,
        (number, number),
        key=KEY,
        epochs=epochs,
        batch_size=batch,
        metrics=lambda state, drawn: {str(i): drawn[0][i, 0] for i in range(batch)},
    )
    return np.array([history[str(i)] for i in range(batch)], int).T.tolist()


# ------------------------------------------------------------------------------ the rows


def with_fit(task: Problem, **options: Any) -> Run:
    """``funcprop.fit`` as a user calls it; its time has the shuffling and the gathering in it."""
    rule = funcprop.backpropagation(funcprop.mlp(task.sizes), task.loss)
    optimizer = task.optax
    data = jnp.asarray(task.x), jnp.asarray(task.y)

    def run():
        state, history = funcprop.fit(
            rule,
            optimizer,
            task.params,
            data,
            key=KEY,
            epochs=task.epochs,
            batch_size=task.batch,
            **options,
        )
        jax.block_until_ready(state.params)
        return lambda: history["loss"]

    return run


def plain_loss(classes: bool) -> Callable[..., jax.Array]:
    """The MLP and its mean loss as JAX's users write them, W (inputs, outputs)."""

    def loss(params, x, y):
        for w, b in params[:-1]:
            x = jax.nn.relu(x @ w + b)
        w, b = params[-1]
        x = x @ w + b
        if classes:
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(x, y))
        return jnp.mean((x - y) ** 2)

    return loss


def plain_params(params: funcprop.mlp.Params) -> list[tuple[jax.Array, jax.Array]]:
    return [(jnp.array(layer["w"].T), jnp.array(layer["b"])) for layer in params]


def with_jax(task: Problem) -> Run:
    """A loop over a jitted step of ``jax.value_and_grad`` and optax.

    The step donates its state and draws its batch from the data on the device, and nothing waits
    for the device before the end.
    """
    optimizer, loss = task.optax, plain_loss(task.classes)
    x, y, rows = jax.device_put((task.x, task.y, list(orders(task))))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, x, y, drawn):
        value, grads = jax.value_and_grad(loss)(params, x[drawn], y[drawn])
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    def run():
        params = plain_params(task.params)
        opt_state = optimizer.init(params)
        losses = []
        for drawn in rows:
            params, opt_state, value = step(params, opt_state, x, y, drawn)
            losses.append(value)
        jax.block_until_ready(params)
        return lambda: losses

    return run


def with_nnx(task: Problem) -> Run:
    """A loop over Flax NNX's jitted train step, its graph traversal cached; otherwise the same."""
    from flax import nnx

    layers: list[Any] = []
    for layer in task.params:
        outputs, inputs = layer["w"].shape
        linear = nnx.Linear(inputs, outputs, rngs=nnx.Rngs(0))
        nnx.update(linear, {"kernel": jnp.array(layer["w"].T), "bias": jnp.array(layer["b"])})
        layers += [linear, nnx.relu]
    model = nnx.Sequential(*layers[:-1])
    optimizer = nnx.Optimizer(model, task.optax, wrt=nnx.Param)
    start = jax.tree.map(jnp.copy, nnx.state((model, optimizer)))
    all_x, all_y, rows = jax.device_put((task.x, task.y, list(orders(task))))

    @functools.partial(nnx.jit, donate_argnums=(0, 1))
    def step(model, optimizer, x, y, drawn):
        x, y = x[drawn], y[drawn]

        def loss(model):
            if task.classes:
                each = optax.softmax_cross_entropy_with_integer_labels(model(x), y)
                return jnp.mean(each)
            return jnp.mean((model(x) - y) ** 2)

        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    cached = nnx.cached_partial(step, model, optimizer)

    def run():
        nnx.update((model, optimizer), jax.tree.map(jnp.copy, start))
        losses = [cached(all_x, all_y, drawn) for drawn in rows]
        jax.block_until_ready(nnx.state(model))
        return lambda: losses

    return run


def with_torch(task: Problem, threads: int) -> Run:
    """PyTorch's usual loop, with the fused optimizer and the data in tensors beforehand."""
    import torch

    linears = [torch.nn.Linear(w.shape[1], w.shape[0]) for w in (p["w"] for p in task.params)]
    layers = [part for linear in linears for part in (linear, torch.nn.ReLU())]
    model = torch.nn.Sequential(*layers[:-1])
    loss = torch.nn.CrossEntropyLoss() if task.classes else torch.nn.MSELoss()
    make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[task.optimizer]

    x = torch.from_numpy(task.x)
    y = torch.from_numpy(task.y.astype(np.int64) if task.classes else task.y)
    rows = torch.from_numpy(orders(task))

    def run():
        torch.set_num_threads(threads)
        with torch.no_grad():
            for linear, layer in zip(linears, task.params, strict=True):
                linear.weight.copy_(torch.tensor(np.array(layer["w"])))
                linear.bias.copy_(torch.tensor(np.array(layer["b"])))
        optimizer = make(model.parameters(), lr=task.rate, fused=True)
        losses = []
        for drawn in rows:
            optimizer.zero_grad()
            value = loss(model(x[drawn]), y[drawn])
            value.backward()
            optimizer.step()
            losses.append(value.detach())
        return lambda: losses

    return run


def with_sklearn(task: Problem, threads: int) -> Run:
    """scikit-learn's MLPClassifier without its penalty, from its own initial weights."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    if task.epochs != 1 or not task.classes:
        raise ValueError("one epoch of labelled batches is due")

    def run():
        model = MLPClassifier(
            hidden_layer_sizes=task.sizes[1:-1],
            solver=task.optimizer,
            learning_rate_init=task.rate,
            momentum=0.0,
            alpha=0.0,
            batch_size=task.batch,
            max_iter=1,
            shuffle=True,
            random_state=0,
        )
        with threadpool_limits(threads), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it was told to stop early
            model.fit(task.x, task.y)
        return lambda: model.loss_curve_

    return run


def fastest_threads(with_package: Callable[[Problem, int], Run], task: Problem) -> int:
    """1 or as many threads as CPUs, whichever takes 20 steps sooner."""
    few = slice(20 * task.batch)
    task = task._replace(x=task.x[few], y=task.y[few])
    runs = {str(threads): with_package(task, threads) for threads in {1, os.cpu_count() or 1}}
    _, seconds = interleaved(runs, rounds=3)
    return int(min(runs, key=lambda threads: np.median(seconds[threads])))


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def version(package: str) -> str:
    return importlib.import_module(package).__version__.split("+")[0]


# ---------------------------------------------------------------------------- the tables


def training(task: Problem, runs: dict[str, Run], rounds: int) -> str:
    """The table of one problem; the first row is the one that the others are compared with."""
    results, seconds = interleaved(runs, rounds, pause=0.3)
    own, *_ = runs
    losses = {name: float(np.mean([float(loss) for loss in r()])) for name, r in results.items()}
    rows = [
        (
            name,
            spread(seconds[name] / task.steps * 1e6),
            spread(seconds[name] / seconds[own]),
            f"{losses[name]:.7g}",
        )
        for name in runs
    ]
    header = ("", "µs a step", "ratio to fit", "mean loss")
    return f"{task.title}, {task.steps} steps\n\n{table(header, rows)}"


def tiny(rounds: int, scale: float) -> str:
    task = problem(
        "10-20-5 relu, mean squared error, SGD 0.01, batch 1",
        sizes=(10, 20, 5),
        classes=False,
        optimizer="sgd",
        rate=0.01,
        batch=1,
        epochs=max(1, round(50 * scale)),
        examples=1000,
    )
    runs = {
        "funcprop, fit": with_fit(task),
        f"funcprop, fit with every={task.steps}, unroll=4": with_fit(
            task, every=task.steps, unroll=4
        ),
        "jax.grad and optax, jitted step": with_jax(task),
    }
    if installed("torch"):
        runs[f"PyTorch {version('torch')}, 1 thread"] = with_torch(task, 1)
    return training(task, runs, rounds)


def digits(optimizer: str, rounds: int, scale: float) -> str:
    name, rate = {"sgd": ("SGD", 0.1), "adam": ("Adam", 0.001)}[optimizer]
    task = problem(
        f"784-128-10 relu, softmax cross-entropy, {name} {rate}, batch 64",
        sizes=DIGITS,
        classes=True,
        optimizer=optimizer,
        rate=rate,
        batch=64,
        epochs=1,
        examples=64 * max(1, round(500 * scale)),
    )
    runs = {
        "funcprop, fit": with_fit(task),
        "jax.grad and optax, jitted step": with_jax(task),
    }
    if installed("flax"):
        runs[f"Flax NNX {version('flax')}, cached_partial"] = with_nnx(task)
    for package, label, with_package in (
        ("torch", "PyTorch", with_torch),
        ("sklearn", "scikit-learn", with_sklearn),
    ):
        if installed(package):
            threads = fastest_threads(with_package, task)
            row = f"{label} {version(package)}, {threads} thread{'s' * (threads > 1)}"
            runs[row] = with_package(task, threads)
    return training(task, runs, rounds)


def gradient(rounds: int, scale: float) -> str:
    """Loss and gradient of a batch, without an update; both sides jitted, each call waited for."""
    tables = [
        gradient_table(sizes, batch, 10 * rounds, max(1, round(calls * scale)))
        for sizes, batch, calls in ((DIGITS, 64, 20), ((784, 512, 512, 10), 128, 5))
    ]
    return "\n\n".join(tables)


def gradient_table(sizes: tuple[int, ...], batch: int, rounds: int, calls: int) -> str:
    task = problem("", sizes, True, "sgd", 0.1, batch, 1, batch)
    model, loss = funcprop.mlp(sizes), task.loss
    x, y = jnp.asarray(task.x), jnp.asarray(task.y)

    def same_forward(params, x, y):
        return jnp.mean(loss.apply((), (model.apply(params, x), y)))

    functions = {
        "funcprop, value_and_backprop": (funcprop.value_and_backprop(model, loss), task.params),
        "jax.value_and_grad, same forward": (jax.value_and_grad(same_forward), task.params),
        "jax.value_and_grad, x @ w + b": (
            jax.value_and_grad(plain_loss(True)),
            plain_params(task.params),
        ),
    }
    jitted = {name: (jax.jit(f), params) for name, (f, params) in functions.items()}

    def repeated(f, params):
        def run():
            for _ in range(calls):
                out = jax.block_until_ready(f(params, x, y))
            return out

        return run

    runs = {name: repeated(f, params) for name, (f, params) in jitted.items()}
    results, seconds = interleaved(runs, rounds)
    own, *_ = runs
    rows = []
    for name, (f, params) in jitted.items():
        memory = f.lower(params, x, y).compile().memory_analysis()
        value, grads = results[name]
        rows.append(
            (
                name,
                spread(seconds[name] / calls * 1e6),
                spread(seconds[name] / seconds[own]),
                f"{memory.temp_size_in_bytes:,}" if memory is not None else "",
                f"{float(value):.7g}",
                f"{float(optax.tree.norm(grads)):.7g}",
            )
        )
    title = (
        f"{'-'.join(map(str, sizes))} relu, softmax cross-entropy, batch {batch}: loss and "
        f"gradient, no update, {rounds} rounds of {calls} calls"
    )
    header = ("", "µs a call", "ratio", "temporary bytes", "loss", "norm of the gradient")
    return f"{title}\n\n{table(header, rows)}"


TABLES: dict[str, Callable[[int, float], str]] = {
    "tiny": tiny,
    "sgd": functools.partial(digits, "sgd"),
    "adam": functools.partial(digits, "adam"),
    "gradient": gradient,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mlp", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="how often each row is timed")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES), metavar="TABLE")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many steps in each run")
    options = parser.parse_args(arguments)
    print(heading(options.rounds))
    for name in options.only:
        print(f"\n{TABLES[name](options.rounds, options.scale)}", flush=True)


if __name__ == "__main__":
    main()
