"""Six models that people would train, by their published configurations: what `barnraise plan --all` plans for.

Decides nothing: shapes are those of each model's public config.json; what is not named there and changes no shape has
the default of its class. Nothing is loaded and nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from moe.families import family_named
from moe.families.derive import CANNOT_BUILD, config_class
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PUBLISHED: Final[Mapping[str, Mapping[str, Any]]] = {
    "OLMoE-7B": {
        "model_type": "olmoe", "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 1024,
        "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 64,
        "num_experts_per_tok": 8, "norm_topk_prob": False, "tie_word_embeddings": False,
    },
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": False,
    },
    "GPT-OSS-20B": {
        "model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880,
        "num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
        "num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128, "tie_word_embeddings": False,
    },
    "DeepSeek-V2-Lite": {
        "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944,
        "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16,
        "kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1,
        "n_group": 1, "topk_group": 1, "norm_topk_prob": False, "tie_word_embeddings": False,
    },
    "GLM-4.5-Air": {
        "model_type": "glm4_moe", "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 10944,
        "moe_intermediate_size": 1408, "num_hidden_layers": 46, "num_attention_heads": 96, "num_key_value_heads": 8,
        "head_dim": 128, "n_routed_experts": 128, "n_shared_experts": 1, "num_experts_per_tok": 8,
        "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "attention_bias": True,
        "use_qk_norm": False, "tie_word_embeddings": False,
    },
    "Mixtral-8x7B": {
        "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
        "num_experts_per_tok": 2, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""By the name that people know."""


def published(name: str) -> PreTrainedConfig:
    """The configuration of one of them."""
    return config_of(PUBLISHED[name])


def config_of(said: Mapping[str, Any]) -> PreTrainedConfig:
    """What a config.json says; ConfigError where no run can train such a model."""
    if not isinstance(said, Mapping):
        raise ConfigError("a config.json is an object")
    values = dict(said)
    family = family_named(str(values.pop("model_type", "")))
    try:
        return config_class(family.model_type)(**values)
    except CANNOT_BUILD as error:
        raise ConfigError(f"transformers cannot read this {family.model_type} configuration: {error!s:.200}") from error
