"""Evolution strategies balance a pole: CartPole, learnt from returns alone.

    python examples/evolution.py

A cart on a track is pushed to the left or to the right, fifty times a second, so that the pole on
it stays up.  The return of an episode is how many steps it lasts, 500 at most.  It has no gradient:
the policy is a small network whose larger output says which way to push.  ``evolution`` needs none.
Each step it tries pairs of policies, the parameters plus and minus some noise, in episodes that
begin alike for all of them, and adds up the noise weighted by the ranks of the returns.

The data that ``fit`` draws its batches from are the states in which episodes begin.  The left panel
is the mean return of the batch's episodes along the training, for each seed; the right one shows
the angle of the pole in 20 fresh episodes of the last seed.

The cart is written in JAX.  Where gymnasium is installed (pip install ".[examples]") each policy
also plays in its CartPole-v1, and the last line says by how much the states after each step differ,
both given the same state and push.  Takes about ten seconds a seed on two cores.
"""

import argparse
import importlib.util
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import funcprop as fp

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--pairs", type=int, default=32)
parser.add_argument("--episodes", type=int, default=8, help="of each policy at each step")
parser.add_argument("--sigma", type=float, default=0.3)
parser.add_argument("--rate", type=float, default=0.1, help="Adam's, falling to 0 by a cosine")
parser.add_argument("--out", type=Path, default=Path("runs/evolution.png"))
parser.add_argument("--toy", action="store_true", help="a few seconds: one seed, few steps")
options = parser.parse_args()
if options.toy:
    options.seeds, options.steps, options.pairs, options.episodes = [0], 12, 16, 2

# Barto, Sutton & Anderson 1983, with the numbers of CartPole-v1: metres, kilograms, seconds.
GRAVITY, CART, POLE, HALF, PUSH, DT, LIMIT = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02, 500
FAR, STEEP = 2.4, np.deg2rad(12)


def moved(state, right):
    """The state (place, speed, angle, its speed) one step later, pushed right or left."""
    _, speed, angle, turning = state
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    force = jnp.where(right, PUSH, -PUSH)
    a = (force + POLE * HALF * turning**2 * sin) / (CART + POLE)
    turn = (GRAVITY * sin - cos * a) / (HALF * (4 / 3 - POLE * cos**2 / (CART + POLE)))
    push = a - POLE * HALF * turn * cos / (CART + POLE)
    return state + DT * jnp.stack([speed, push, turning, turn])


def upright(state):
    return (jnp.abs(state[0]) <= FAR) & (jnp.abs(state[2]) <= STEEP)


policy = fp.mlp((4, 8, 2), fp.tanh)


def chosen(params, states):
    """Whether to push right, (episodes,), in states (episodes, 4)."""
    scores = policy.apply(params, states)
    return scores[:, 1] > scores[:, 0]


def played(params, starts):
    """The return of each episode, (episodes,), and all states (500, episodes, 4)."""

    def step(carry, _):
        states, up = carry
        new = jax.vmap(moved)(states, chosen(params, states))
        states = jnp.where(up[:, None], new, states)
        return (states, up & jax.vmap(upright)(states)), (up, states)

    begun = starts, jnp.ones(len(starts), bool)
    _, (up, states) = jax.lax.scan(step, begun, length=LIMIT)
    return up.sum(axis=0).astype(starts.dtype), states


def objective(params, starts, _, key):
    return -jnp.mean(played(params, starts)[0])


def starts(key, count):
    return jax.random.uniform(key, (count, 4), minval=-0.05, maxval=0.05)


def in_gymnasium(params, seed, episodes):
    """Returns in gymnasium's CartPole-v1, and how far one step there is from one here."""
    import gymnasium

    env, act, step = gymnasium.make("CartPole-v1"), jax.jit(chosen), jax.jit(moved)
    returns, gap = [], 0.0
    for episode in range(episodes):
        seen, _ = env.reset(seed=1000 * seed + episode)
        total, over = 0.0, False
        while not over:
            state = jnp.asarray(env.unwrapped.state)
            right = bool(act(params, seen[None])[0])
            seen, reward, fallen, cut, _ = env.step(int(right))
            ours = step(state, right)
            gap = max(gap, float(np.abs(ours - env.unwrapped.state).max()))
            if bool(upright(ours)) == fallen:
                raise SystemExit(f"at {ours} gymnasium says fallen is {fallen}")
            total, over = total + reward, fallen or cut
        returns.append(total)
    return returns, gap


rule = fp.evolution(objective, pairs=options.pairs, sigma=options.sigma, predict=policy.apply)
optimizer = optax.adam(optax.cosine_decay_schedule(options.rate, options.steps))
curves, fresh, theirs, gaps = {}, {}, {}, []
for seed in options.seeds:
    begun = time.perf_counter()
    draw_key, init_key, fit_key, test_key = jax.random.split(jax.random.key(seed), 4)
    params, _ = policy.init(init_key, (4,))

    def live(state, history, seed=seed, begun=begun):
        past = time.perf_counter() - begun
        line = f"seed {seed}  step {len(history['loss']):>4}  return {-history['loss'][-1]:6.1f}"
        print(f"\r{line}  {past:.0f} s", end="", flush=True)

    state, history = fp.fit(
        rule,
        optimizer,
        params,
        (starts(draw_key, 4096), None),
        key=fit_key,
        batch_size=options.episodes,
        steps=options.steps,
        every=5,
        callback=live,
    )
    curves[seed] = -np.array(history["loss"])
    returns, states = played(state.params, starts(test_key, 20))
    fresh[seed] = np.asarray(returns)
    line = f"\nseed {seed}  20 fresh episodes: mean return {fresh[seed].mean():.1f}"
    if importlib.util.find_spec("gymnasium"):
        theirs[seed], gap = in_gymnasium(state.params, seed, 2 if options.toy else 20)
        gaps.append(gap)
        line += f", {np.mean(theirs[seed]):.1f} in gymnasium"
    print(line, flush=True)

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
for seed, curve in curves.items():
    left.plot(curve, label=f"seed {seed}: {fresh[seed].mean():.0f} in fresh episodes")
left.axhline(475, ls=":", color="black", label="475, what counts as solved")
left.set(xlabel="step", ylabel="mean return", ylim=(0, 520))
left.set_title(f"{options.pairs} pairs of policies, {options.episodes} episodes each")
for episode, length in enumerate(fresh[options.seeds[-1]].astype(int)):
    seconds = DT * np.arange(1, length + 1)
    right.plot(seconds, np.rad2deg(states[:length, episode, 2]), lw=0.8)
for bound in (-12, 12):
    right.axhline(bound, ls=":", color="black", label="fallen" if bound > 0 else None)
right.set(xlabel="seconds", ylabel="angle of the pole, degrees", ylim=(-13, 13))
right.set_title(f"20 fresh episodes, seed {options.seeds[-1]}")
for axis in (left, right):
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150)
print(f"picture: {options.out}")
if gaps:
    print(f"steps in gymnasium differ by at most {max(gaps):.1e}")
else:
    print("gymnasium is not installed: the steps were not compared")
