"""One step of each learning rule beside one of backprop.

    python -m benchmarks.learning [--rounds 9] [--only "feedback alignment" ...]

A step is the rule's estimate and an update by SGD, jitted, of an MLP 784-512-512-10 with tanh,
batch 128.  All take turns in one process; times are medians with quartiles, memory is what the
compiler reports.  Aims: at most 1.05 times backprop's time for feedback alignment, sign symmetry
and Kolen-Pollack, at most 1 for direct feedback alignment, at most 1.9 for a step that also
measures the angle between the estimate and the gradient.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

import funcprop as fp
from benchmarks.timing import heading, interleaved, spread, table

OPTIMIZER = optax.sgd(0.01)
HEADER = ("rule", "ms a step", "its time / backprop's", "temporary MiB", "its / backprop's", "aim")


def rules(scale: float) -> tuple[dict[str, tuple[fp.Layer, fp.Rule]], tuple]:
    """Each rule with its model, and a batch."""
    batch, hidden = max(2, round(128 * scale)), max(2, round(512 * scale))
    sizes = (784, hidden, hidden, 10)
    model, loss = fp.mlp(sizes, fp.tanh), fp.softmax_cross_entropy()
    hidden_only = fp.serial(fp.dense(hidden, fp.relu), fp.dense(hidden, fp.relu))
    made: dict[str, Callable[[], fp.Rule]] = {
        "backprop": lambda: fp.backpropagation(model, loss),
        "feedback alignment": lambda: fp.feedback_alignment(model, loss),
        "feedback alignment and its angles": lambda: fp.feedback_alignment(model, loss),
        "sign symmetry": lambda: fp.sign_symmetry(model, loss),
        "Kolen-Pollack": lambda: fp.kolen_pollack(model, loss, OPTIMIZER),
        "direct feedback alignment": lambda: fp.direct_feedback_alignment(model, loss, (784,)),
        "weight mirror": lambda: fp.weight_mirror(model, loss, rate=0.1),
        "direct random target projection": lambda: fp.direct_random_target_projection(
            model, loss, (784,)
        ),
        "indirect feedback alignment": lambda: fp.indirect_feedback_alignment(model, loss, (784,)),
        "forward gradient, weights": lambda: fp.forward_gradient(model, loss),
        "forward gradient, activities": lambda: fp.forward_gradient(model, loss, activities=True),
        "evolution strategies, 64 pairs": lambda: fp.evolution_strategies(model, loss, pairs=64),
        "difference target propagation": lambda: fp.difference_target_propagation(
            model, loss, (784,), optimizer=OPTIMIZER
        ),
        "predictive coding, 20 steps": lambda: fp.predictive_coding(model, loss),
        "fixed prediction, 20 steps": lambda: fp.fixed_prediction(model, loss),
        "Z-IL": lambda: fp.zil(model, loss),
        "equilibrium propagation, 30 + 10 + 10 steps": lambda: fp.equilibrium_propagation(
            model, loss
        ),
        "forward-forward": lambda: fp.forward_forward(hidden_only, 10),
        "greedy": lambda: fp.greedy(model, loss, (784,), OPTIMIZER),
    }
    x = jax.random.normal(jax.random.key(1), (batch, 784))
    y = jax.random.randint(jax.random.key(2), (batch,), 0, 10)
    own = {"forward-forward": hidden_only}
    return {name: (own.get(name, model), make()) for name, make in made.items()}, (x, y)


AIMS = {
    "feedback alignment": "1.05",
    "sign symmetry": "1.05",
    "Kolen-Pollack": "1.05",
    "direct feedback alignment": "1",
    "feedback alignment and its angles": "1.9",
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="how often each step is timed")
    parser.add_argument("--only", nargs="+", help="names of rules beside backprop")
    parser.add_argument("--scale", type=float, default=1.0, help="smaller sizes, for a trial")
    options = parser.parse_args(arguments)
    found, batch = rules(options.scale)
    names = [n for n in found if options.only is None or n in ("backprop", *options.only)]
    calls, memory = {}, {}
    for name in names:
        model, rule = found[name]
        features = 784 + 10 * (name == "forward-forward")
        params, _ = model.init(jax.random.key(0), (features,))
        state = fp.init_state(rule, OPTIMIZER, params, jax.random.key(3))
        loss = fp.softmax_cross_entropy()
        metrics = fp.alignment(rule, model, loss) if name.endswith("its angles") else None
        step = fp.update_step(rule, OPTIMIZER, metrics).lower(state, batch).compile()
        memory[name] = step.memory_analysis().temp_size_in_bytes
        calls[name] = functools.partial(_repeated, step, [state], batch, repeats(name))
    _, seconds = interleaved(calls, options.rounds)
    seconds = {name: taken / repeats(name) for name, taken in seconds.items()}
    own = seconds["backprop"]

    def line(name: str) -> tuple[str, ...]:
        ratio = "" if name == "backprop" else spread(seconds[name] / own)
        share = "" if name == "backprop" else f"{memory[name] / memory['backprop']:.3g}"
        mib = f"{memory[name] / 2**20:.3g}"
        return name, spread(seconds[name] * 1e3), ratio, mib, share, AIMS.get(name, "")

    print(heading(options.rounds))
    print()
    print(table(HEADER, [line(name) for name in names]))


def repeats(name: str) -> int:
    """How many steps are timed as one; a population takes long enough by itself."""
    return 1 if name.startswith("evolution") else 20


def _repeated(step: Callable, held: list[fp.TrainState], batch: tuple, count: int) -> Any:
    """Some steps on from the state that is held, which each of them donates."""
    for _ in range(count):
        held[0], scalars = step(held[0], batch)
    return jax.block_until_ready(scalars)


if __name__ == "__main__":
    main()
