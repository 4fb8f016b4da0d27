"""Dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..core.checks import check_float, check_number
from ..core.layer import Layer, stateless
from ..core.site import gradient


def dropout(rate: float) -> Layer:
    """Each element is kept with probability 1 - rate, else 0 (Srivastava 2014, JMLR 15).

        forward     y  = m ⊙ x/(1 - rate)          m a mask of zeros and ones
        transport   δx = m ⊙ δ/(1 - rate)

    x, y, δ (B, ...).  The mask is drawn from the key and kept, a byte an element; without a key
    this is inference and y = x.

    Args:
        rate: the share of elements that is dropped, in [0, 1).

    Raises:
        LayerError: when the rate is none, or x does not hold floats.

    >>> import jax, jax.numpy as jnp
    >>> from funcprop import dropout
    >>> dropout(0.5).apply((), jnp.ones((1, 6)), jax.random.key(2)).tolist()
    [[0.0, 0.0, 2.0, 0.0, 2.0, 2.0]]
    >>> dropout(0.5).apply((), jnp.ones((1, 6))).tolist()
    [[1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]
    """
    rate = check_number("dropout", "rate", rate, at_least=0, below=1)

    def thinned(x, mask):
        return jnp.where(mask, x / (1 - rate), jnp.zeros((), x.dtype))

    def forward(params, x, key=None):
        check_float("dropout", x)
        if key is None or rate == 0:
            return x, None
        mask = jax.random.bernoulli(key, 1 - rate, x.shape)
        return thinned(x, mask), mask

    def backward(weights, mask, delta, statistic=gradient):
        return delta if mask is None else thinned(delta, mask), ()

    return Layer(stateless, forward, backward, "dropout")
