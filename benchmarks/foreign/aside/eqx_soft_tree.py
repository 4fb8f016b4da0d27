"""Soft decision tree (Frosst & Hinton 2017), depth 3, with trainable inverse temperature.

Node k has the children 2k+1 (left) and 2k+2 (right); the leaves are numbered from left to right.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

DEPTH = 3
INNER = 2**DEPTH - 1
DECAY = 0.02


class SoftTree(eqx.Module):
    weight: jax.Array  # (INNER, features)
    bias: jax.Array  # (INNER,)
    beta: jax.Array  # ()
    leaf: jax.Array  # (INNER + 1, classes)

    def route(self, x):
        right = jax.nn.sigmoid(self.beta * (self.weight @ x + self.bias))
        reach = jnp.ones((1,), x.dtype)
        for level in range(DEPTH):
            p = right[2**level - 1 : 2 ** (level + 1) - 1]
            reach = jnp.stack([reach * (1 - p), reach * p], axis=1).reshape(-1)
        return reach

    def __call__(self, x, label):
        costs = -jax.nn.log_softmax(self.leaf)[:, label]
        return self.route(x) @ costs


def f(arrays, x, label):
    trained, rest = eqx.partition(SoftTree(**arrays), eqx.is_inexact_array)
    tree = eqx.combine(trained, rest)
    return jnp.mean(jax.vmap(tree)(x, label)) + 0.5 * DECAY * jnp.sum(tree.weight**2)


def g(arrays, x, label):
    weight, bias, beta, leaf = (arrays[k] for k in ("weight", "bias", "beta", "leaf"))
    n = x.shape[0]
    score = x @ weight.T + bias
    right = jax.nn.sigmoid(beta * score)
    # how probable each node is (from the root down) ...
    reach = [jnp.ones(n, x.dtype)]
    for k in range(INNER):
        reach += [reach[k] * (1 - right[:, k]), reach[k] * right[:, k]]
    # ... and what it costs (from the leaves up)
    cost = [None] * INNER + list(-jax.nn.log_softmax(leaf)[:, label])
    dright = [None] * INNER
    for k in reversed(range(INNER)):
        left_cost, right_cost = cost[2 * k + 1], cost[2 * k + 2]
        cost[k] = (1 - right[:, k]) * left_cost + right[:, k] * right_cost
        dright[k] = reach[k] * (right_cost - left_cost) / n
    dright = jnp.stack(dright, axis=1)
    dlogit = dright * right * (1 - right)
    dbeta = jnp.sum(dlogit * score)
    dscore = beta * dlogit
    at_leaf = jnp.stack(reach[INNER:], axis=1) / n
    onehot = jax.nn.one_hot(label, leaf.shape[1], dtype=leaf.dtype)
    dleaf = at_leaf.sum(0)[:, None] * jax.nn.softmax(leaf) - at_leaf.T @ onehot
    dweight = dscore.T @ x + DECAY * weight
    return ({"weight": dweight, "bias": dscore.sum(0), "beta": dbeta, "leaf": dleaf},)


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "equinox"
ARGNUMS = (0,)


def draw(rng, n=6, features=4, classes=3, beta=1.4, scale=1.0, leaf=1.0):
    arrays = {
        "weight": rng.normal(size=(7, features)) * scale,
        "bias": rng.normal(size=7) * 0.5,
        "beta": np.float64(beta),
        "leaf": rng.normal(size=(8, classes)) * leaf,
    }
    return arrays, rng.normal(size=(n, features)), rng.integers(0, classes, n)


def close(rng):
    arrays, x, label = draw(rng)
    arrays["leaf"][:] = arrays["leaf"][0] + 1e-3 * arrays["leaf"]
    return arrays, x, label


GATES = "0.beta 0.bias 0.weight"
FAULTS = (
    Fault(
        "the left child's cost less the right one's",
        "(right_cost - left_cost) / n",
        "(left_cost - right_cost) / n",
        "sign",
        GATES,
        "reach = jnp.stack([reach * (1 - p), reach * p]",
    ),
    Fault(
        "the children looked up as if the root were number 1",
        "cost[2 * k + 1], cost[2 * k + 2]",
        "cost[max(2 * k, k + 1)], cost[2 * k + 1]",
        "off by one",
        GATES,
        "reach = jnp.stack([reach * (1 - p), reach * p]",
    ),
    Fault(
        "weight decay differentiated without its half",
        "+ DECAY * weight",
        "+ 2 * DECAY * weight",
        "counted twice|factor",
        "0.weight",
        "+ 0.5 * DECAY * jnp.sum(",
    ),
    Fault(
        "the temperature's gradient is not summed over what it was broadcast to",
        "dbeta = jnp.sum(dlogit * score)",
        "dbeta = dlogit * score",
        "structure",
        "0.beta",
        "right = jax.nn.sigmoid(self.beta *",
        "deeplearning4j/nd4j#2424",
    ),
    Fault(
        "the leaves' probabilities are gathered in bfloat16",
        "reach[INNER:], axis=1) / n",
        "reach[INNER:], axis=1).astype(jnp.bfloat16).astype(x.dtype) / n",
        "low precision",
        "0.leaf",
        "return self.route(x) @ costs",
    ),
)
HARD = (
    Hard("hard decisions", "saturation", lambda rng: draw(rng, beta=60.0)),
    Hard("leaves almost alike", "cancellation", close, "float64"),
    Hard("one example, one feature", "sizes", lambda rng: draw(rng, n=1, features=1)),
    Hard("three thousand examples", "large", lambda rng: draw(rng, n=3000)),
    Hard("half precision", "16 bits", lambda rng: draw(rng, n=5), "bfloat16"),
)
