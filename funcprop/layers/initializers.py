"""How parameters begin."""

from __future__ import annotations

import jax

he_normal = jax.nn.initializers.he_normal(in_axis=-1, out_axis=-2)
zeros = jax.nn.initializers.zeros
lecun_normal = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
orthogonal = jax.nn.initializers.orthogonal()
