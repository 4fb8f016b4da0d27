"""The first steps: one network, one example, one step down the gradient.

    python examples/first_steps.py

The network has 10 inputs, 20 hidden units with ReLU and 5 outputs.  The loss is the mean squared
error.  Backprop gives its derivative by every weight, and gradient descent moves each weight a
hundredth of its derivative downhill: w ← w - 0.01 ∂L/∂w.
"""

import jax
import optax

import funcprop

# JAX draws random numbers from a key: the same key gives the same numbers, here and elsewhere.
params_key, x_key, y_key = jax.random.split(jax.random.key(0), 3)
params = funcprop.init(params_key, (10, 20, 5))  # a tuple of two layers, {"w": ..., "b": ...} each
x = jax.random.normal(x_key, (1, 10))  # a batch of one random input,
y = jax.random.normal(y_key, (1, 5))  # and what the network should say to it

prediction = funcprop.apply(params, x)  # forward
loss, grads = funcprop.backprop(params, x, y)  # forward again, and back with the loss's derivative

optimizer = optax.sgd(learning_rate=0.01)
updates, _ = optimizer.update(grads, optimizer.init(params))  # -0.01 ∂L/∂w
new_params = optax.apply_updates(params, updates)  # nothing is changed in place: a new tree
new_loss, _ = funcprop.backprop(new_params, x, y)

print("target          ", y[0])
print("prediction      ", prediction[0])
print(f"loss             {loss:.4f}")
for number, grad in enumerate(grads, start=1):
    for name in ("w", "b"):
        size = abs(grad[name]).max()
        print(f"layer {number}, ∂L/∂{name}    shape {grad[name].shape}, largest entry {size:.4f}")
print("prediction now  ", funcprop.apply(new_params, x)[0])
print(f"loss now         {new_loss:.4f}")
