"""The smallest model of each family that still has all of its parts, as a closed configuration.

Decides sizes only; touches nothing. Tests build these, whole and by halves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from moe.config import config_to_json
from moe.families.derive import config_class
from moe.families.family import Family

USUAL: Final[Mapping[str, Any]] = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 24,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "max_position_embeddings": 64,
    "sliding_window": 8,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
    "router_aux_loss_coef": 0.3,
    "norm_topk_prob": True,
    "attention_bias": True,
    "clip_qkv": 8.0,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_topk": 8,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_num_heads": 4,
    "linear_head_dim": 8,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 258,
}
"""By our names; a family takes those that it has."""


def micro_values(family: Family, **changes: Any) -> dict[str, Any]:
    """The closed form of its smallest model; `changes` by our names. ConfigError where that cannot be."""
    keys = family.keys
    chosen = {**{key: value for key, value in USUAL.items() if key in keys}, **family.micro, **changes}
    if "kv_lora_rank" in keys:  # attention over a common low-rank key has as many heads of keys as of queries
        chosen["num_key_value_heads"] = chosen["num_attention_heads"]
    build = cast(Callable[..., Any], config_class(family.model_type))
    arguments: dict[str, Any] = {}
    for key, value in chosen.items():
        part, _, name = family.spelt.get(key, key).rpartition(".")
        (arguments.setdefault(part, {}) if part else arguments)[name] = value
    return config_to_json(build(**arguments))
