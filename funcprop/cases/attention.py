"""Attention, rotary positions, gated layers, and the blocks of transformers."""

from __future__ import annotations

from ..layers.attention import attention
from ..layers.gated import geglu, glu, swiglu
from ..layers.rotary import rotary
from ..layers.transformer import decoder_block, multi_head_attention, transformer_block
from .case import Case, entries, mask, normal, some_tokens

QUERIES = (normal(4, 3, 4, 2), normal(4, 5, 2, 2), normal(4, 5, 2, 2))
WITHIN = (normal(4, 5, 2, 2), normal(4, 5, 2, 2), normal(4, 5, 2, 2))

# A running maximum has no complex form, so what holds attention is not analytic.
CASES: tuple[Case, ...] = (
    Case("attention, grouped, with a mask", attention(), entries(*QUERIES, mask(4, 5))),
    Case(
        "attention, causal, in blocks", attention(causal=True, window=4, block=2), entries(*WITHIN)
    ),
    Case("rotary", rotary(), normal(4, 3, 2, 4), True),
    Case(
        "multi_head_attention",
        multi_head_attention(2, causal=True, rotary_base=100.0),
        normal(4, 3, 4),
    ),
    Case("glu", glu(3), normal(4, 2, 4), True),
    Case("swiglu", swiglu(3, bias=False), normal(4, 2, 4), True),
    Case("geglu", geglu(3), normal(4, 4)),
    Case("transformer_block", transformer_block(2, 5), entries(normal(4, 3, 4), some_tokens(4, 3))),
    Case("decoder_block", decoder_block(2, 5), entries(normal(4, 3, 4), normal(4, 2, 4))),
)
