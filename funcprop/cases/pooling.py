"""Pooling, and other shapes."""

from __future__ import annotations

from ..layers.pooling import avg_pool, global_avg_pool, max_pool
from ..layers.shape import concatenate, flatten, reshape, transpose
from .case import Case, apart, entries, normal

CASES: tuple[Case, ...] = (
    Case("max_pool", max_pool(2), apart(4, 4, 5, 2)),
    Case("max_pool, overlapping", max_pool((3, 2), (2, 1), "SAME"), apart(4, 5, 4, 2)),
    Case("avg_pool", avg_pool((3, 2), (2, 1), "SAME"), normal(4, 5, 4, 2), True),
    Case("global_avg_pool", global_avg_pool, normal(4, 3, 2, 3), True),
    Case("flatten", flatten, normal(4, 3, 2), True),
    Case("reshape", reshape(3, -1), normal(4, 2, 6), True),
    Case("transpose", transpose(1, 2, 0), normal(4, 3, 2, 5), True),
    Case("concatenate", concatenate, entries(normal(4, 3, 2), normal(4, 3, 1)), True),
)
