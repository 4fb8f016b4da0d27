"""What it costs to notice a state that is not finite: once a round, or in every step.

    python -m benchmarks.finite [--rounds 15] [--scale 1]

A round of 100 steps of 784-128-10 with batch 64, as ``fit`` scans it: without a look, with the look
at its end that ``fit`` takes, and with the look and the select in every step with which ``fit``
repeats a round that went wrong.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import funcprop
from benchmarks.mlp import DIGITS, problem
from benchmarks.timing import heading, interleaved, spread, table
from funcprop.training.rounds import Step, _scan
from funcprop.training.train_state import finite


def looks(optimizer: str, rate: float, rounds: int, steps: int) -> str:
    task = problem("", DIGITS, True, optimizer, rate, 64, 1, 64 * steps)
    rule = funcprop.backpropagation(funcprop.mlp(task.sizes), task.loss)
    state = funcprop.init_state(rule, task.optax, task.params, jax.random.key(1))
    step = Step(rule, task.optax, None, None)
    arrays = jax.tree.map(jnp.asarray, ((task.x, task.y), None))
    order = np.random.default_rng(0).permutation(64 * steps).reshape(steps, 64).astype(np.int32)
    plain, looking = (step.program(_scan, steps, 1, look) for look in (False, True))
    watched = finite(state)

    def with_a_look():
        found, scalars = plain(state, arrays, order)
        assert bool((~watched | finite(found)).all())
        return found, scalars

    runs = {
        "no look": lambda: plain(state, arrays, order),
        "a look a round": with_a_look,
        "a look and a select a step": lambda: looking(state, watched, arrays, order),
    }
    _, seconds = interleaved(runs, rounds)
    rows = [
        (
            name,
            spread(seconds[name] / steps * 1e6),
            spread(seconds[name] / seconds["no look"], digits=4),
        )
        for name in runs
    ]
    title = f"784-128-10 relu, {optimizer}, batch 64, rounds of {steps} steps"
    return f"{title}\n\n{table(('', 'µs a step', 'ratio'), rows)}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finite", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="how often each row is timed")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many steps in a round")
    options = parser.parse_args(arguments)
    print(heading(options.rounds))
    for optimizer, rate in (("sgd", 0.1), ("adam", 0.001)):
        print(f"\n{looks(optimizer, rate, options.rounds, max(2, round(100 * options.scale)))}")


if __name__ == "__main__":
    main()
