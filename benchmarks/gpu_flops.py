"""How many FLOPs a step of a shard is worth: what MFU is a share of.

Decides what counts: 6 FLOPs a token for each trained parameter that the token meets in a product (2 forward, 4 back:
Kaplan et al. 2020, arXiv:2001.08361), 4 for a frozen one, through which a gradient only passes, and attention, whose
causal half alone is taken (Chowdhery et al. 2022, arXiv:2204.02311, appendix B, halved). What is computed again in the
backward pass is left out, and so is what is looked up: embeddings, norms, biases. Of a token's top-k experts as many
are held as of all of them: so it is when the load is even.
"""

from __future__ import annotations

from typing import Any

from moe.layout import FP32_BYTES, Layout
from moe.optimised import MATRICES
from moe.weighing import weighed

TRAINED, FROZEN = 6, 4


def step_flops(layout: Layout, columns: int, tokens: int, length: int) -> float:
    """Of a step over `tokens` tokens in sequences of `length`, of a shard that holds so many columns."""
    values: Any = layout.config_json
    held = columns / layout.columns if layout.residency == "frozen" else 1.0
    experts = layout.top_k * _expert_parameters(layout)
    trunk = _trunk_parameters(layout)
    by_token = TRAINED * (trunk + held * experts) + FROZEN * (1.0 - held) * experts
    heads = values["num_attention_heads"]
    head_dim = values.get("head_dim") or values["hidden_size"] // heads
    attention = 6.0 * values["num_hidden_layers"] * heads * head_dim * length
    return float(tokens * (by_token + attention))


def _expert_parameters(layout: Layout) -> float:
    """Of one expert in every layer: matrices alone."""
    return sum(
        spec.payload_bytes / FP32_BYTES
        for spec in layout.column
        if layout.family.is_expert(spec.name) and len(spec.shape) > 1
    )


def _trunk_parameters(layout: Layout) -> float:
    """What every token is multiplied by: matrices, routers and the head, which may be the embeddings again."""
    trunk = list(weighed(layout, 1))[: len(layout.trunk)]
    used = sum(one.elements for one in trunk if one.group in MATRICES or one.group in ("head", "routers"))
    is_tied = all(one.group != "head" for one in trunk)
    return float(used + is_tied * layout.config_json["vocab_size"] * layout.config_json["hidden_size"])
