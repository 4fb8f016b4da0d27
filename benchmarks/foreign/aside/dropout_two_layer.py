"""
Two-layer network for binary classification with inverted dropout and L2 (week 1, course 2).
Examples are columns: X has shape (n_x, m), Y has shape (1, m).
"""

import jax
import jax.numpy as jnp

KEEP_PROB = 0.8
LAMBD = 0.7


def sigmoid(z):
    return 1 / (1 + jnp.exp(-z))


def forward_propagation(X, parameters, key):
    Z1 = jnp.dot(parameters["W1"], X) + parameters["b1"]
    A1 = sigmoid(Z1)
    D1 = jax.random.bernoulli(key, KEEP_PROB, A1.shape)
    H1 = jnp.multiply(A1, D1) / KEEP_PROB
    Z2 = jnp.dot(parameters["W2"], H1) + parameters["b2"]
    A2 = sigmoid(Z2)
    cache = {"Z1": Z1, "A1": A1, "D1": D1, "H1": H1, "A2": A2}
    return A2, cache


def f(parameters, X, Y, key):
    m = X.shape[1]
    A2, _ = forward_propagation(X, parameters, key)
    logprobs = jnp.multiply(Y, jnp.log(A2)) + jnp.multiply(1 - Y, jnp.log(1 - A2))
    cross_entropy_cost = -jnp.sum(logprobs) / m
    L2_cost = jnp.sum(jnp.square(parameters["W1"])) + jnp.sum(jnp.square(parameters["W2"]))
    return cross_entropy_cost + LAMBD / (2 * m) * L2_cost


def g(parameters, X, Y, key):
    m = X.shape[1]
    A2, cache = forward_propagation(X, parameters, key)
    A1, D1, H1 = cache["A1"], cache["D1"], cache["H1"]
    W1, W2 = parameters["W1"], parameters["W2"]

    dZ2 = A2 - Y
    dW2 = 1.0 / m * jnp.dot(dZ2, H1.T) + LAMBD / m * W2
    db2 = 1.0 / m * jnp.sum(dZ2, axis=1, keepdims=True)

    dH1 = jnp.dot(W2.T, dZ2)
    dA1 = jnp.multiply(dH1, D1) / KEEP_PROB
    dZ1 = jnp.multiply(dA1, A1 * (1 - A1))
    dW1 = 1.0 / m * jnp.dot(dZ1, X.T) + LAMBD / m * W1
    db1 = 1.0 / m * jnp.sum(dZ1, axis=1, keepdims=True)

    gradients = {"W1": dW1, "b1": db1, "W2": dW2, "b2": db2}
    return (gradients,)


# ---- keys
import numpy as np  # noqa: E402

from benchmarks.judging import Fault, Hard  # noqa: E402

STYLE = "numpy"
ARGNUMS = (0,)


def draw(rng, m=11, n_x=3, n_h=6, scale=1.0, key=3):
    parameters = {
        "W1": rng.normal(size=(n_h, n_x)) * scale,
        "b1": rng.normal(size=(n_h, 1)) * scale,
        "W2": rng.normal(size=(1, n_h)) * scale,
        "b2": rng.normal(size=(1, 1)) * scale,
    }
    Y = (rng.random((1, m)) > 0.4).astype(float)
    return parameters, rng.normal(size=(n_x, m)), Y, np.array([0, key], np.uint32)


FAULTS = (
    Fault(
        "the slope of the sigmoid from its argument",
        "dZ1 = jnp.multiply(dA1, A1 * (1 - A1))",
        'dZ1 = jnp.multiply(dA1, cache["Z1"] * (1 - cache["Z1"]))',
        "wrong place",
        "0.W1 0.b1",
        "A1 = sigmoid(Z1)",
        "BoltzmannEntropy/interviews.ai#15",
    ),
    Fault(
        "four times the mean for the first bias",
        "db1 = 1.0 / m",
        "db1 = 4.0 / m",
        "factor",
        "0.b1",
        "Z1 = jnp.dot(",
        "bighuang624/Andrew-Ng-Deep-Learning-notes#10",
    ),
    Fault(
        "the bias is not summed over what it was spread to",
        "db2 = 1.0 / m * jnp.sum(dZ2, axis=1, keepdims=True)",
        "db2 = 1.0 / m * dZ2",
        "structure",
        "0.b2",
        "Z2 = jnp.dot(",
        "deeplearning4j/nd4j#2424",
    ),
    Fault(
        "the slope of tanh for that of the sigmoid",
        "dZ1 = jnp.multiply(dA1, A1 * (1 - A1))",
        "dZ1 = jnp.multiply(dA1, 1 - jnp.power(A1, 2))",
        "wrong function",
        "0.W1 0.b1",
        "A1 = sigmoid(Z1)",
    ),
    Fault(
        "the share kept is divided by once for the mask and once more",
        "dA1 = jnp.multiply(dH1, D1) / KEEP_PROB",
        "dA1 = jnp.multiply(dH1, D1 / KEEP_PROB) / KEEP_PROB",
        "counted twice|factor",
        "0.W1 0.b1",
        "H1 = jnp.multiply(A1, D1) / KEEP_PROB",
    ),
)
HARD = (
    Hard("another mask", "random", lambda rng: draw(rng, key=12345)),
    Hard("another mask in double", "random", lambda rng: draw(rng, key=99), "float64"),
    Hard("steep sigmoids", "saturation", lambda rng: draw(rng, scale=2.5)),
    Hard("as many units as examples", "sizes", lambda rng: draw(rng, m=4, n_x=4, n_h=4)),
    Hard("sixteen bits", "16 bits", draw, "bfloat16"),
)
