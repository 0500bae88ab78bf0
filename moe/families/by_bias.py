"""Architectures whose routers have a selection bias, which evens the load by itself or beside a loss, one row each.

Decides what they are made of.
"""

from __future__ import annotations

from typing import Any, Final

from moe.families.family import LOCAL, N_ROUTED, Family, PerExpert, fused, router_of
from moe.families.keys import Key

_BIAS: Final = PerExpert(suffix=".mlp.gate.e_score_correction_bias")


def _by_bias(model_type: str, class_name: str, **other: Any) -> Family:
    """Sigmoid scores, a selection bias in the router, and groups: as in DeepSeek-V3 (arXiv:2412.19437)."""
    usual: dict[str, Any] = {
        "scores": "sigmoid",
        "renormalises": "norm_topk_prob",
        "balance": "none",
        "selection_bias": _BIAS,
        "groups": ("n_group", "topk_group"),
        "expert_width": "moe_intermediate_size",
        "spelt": N_ROUTED,
    }
    return Family(model_type=model_type, class_name=class_name, **(usual | other))


BY_BIAS: Final = (
    _by_bias("deepseek_v3", "DeepseekV3ForCausalLM"),
    _by_bias("deepseek_v32", "DeepseekV32ForCausalLM"),
    _by_bias("axk1", "AXK1ForCausalLM"),
    _by_bias("axk2", "AXK2ForCausalLM", micro={"gated_norm_rank": 8}),
    _by_bias("dots1", "Dots1ForCausalLM"),
    _by_bias("glm4_moe", "Glm4MoeForCausalLM"),
    _by_bias("glm4_moe_lite", "Glm4MoeLiteForCausalLM"),
    _by_bias("glm_moe_dsa", "GlmMoeDsaForCausalLM"),
    _by_bias("solar_open", "SolarOpenForCausalLM"),
    _by_bias("hy_v4", "HYV4ForCausalLM"),
    _by_bias("mimo_v2_flash", "MiMoV2FlashForCausalLM"),
    _by_bias("exaone_moe", "ExaoneMoeForCausalLM", spelt={}),
    _by_bias("beam", "BeamForCausalLM", spelt={}, micro={"mlp_layer_types": ["dense", "sparse"]}),
    _by_bias(
        "bailing_hybrid",
        "BailingHybridForCausalLM",
        spelt=LOCAL,
        micro={"layer_types": ["linear_attention", "full_attention"]},
    ),
    _by_bias(
        "kimi_linear",
        "KimiLinearForCausalLM",
        spelt=LOCAL,
        micro={"layer_types": ["linear_attention", "full_attention"], "linear_head_dim": 8, "linear_num_heads": 2},
    ),
    _by_bias("kolibri1", "Kolibri1ForCausalLM", groups=None, spelt={}),
    _by_bias(
        "nemotron_h",
        "NemotronHForCausalLM",
        experts=(
            PerExpert(suffix=".mixer.experts.up_proj", matrices=1),
            PerExpert(suffix=".mixer.experts.down_proj", matrices=1),
        ),
        router=router_of("mixer.gate.weight"),
        selection_bias=PerExpert(suffix=".mixer.gate.e_score_correction_bias"),
        without=("time_step_limit",),
        micro={
            "layers_block_type": ["linear_attention", "moe", "full_attention"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "ssm_state_size": 4,
            "chunk_size": 8,
            "moe_shared_expert_intermediate_size": 16,
        },
    ),
    _by_bias(
        "hy_v3",
        "HYV3ForCausalLM",
        renormalises=True,
        groups=None,
        selection_bias=PerExpert(suffix=".mlp.e_score_correction_bias"),
        spelt={},
    ),
    _by_bias(
        "afmoe",
        "AfmoeForCausalLM",
        router=router_of("mlp.router.gate.weight"),
        router_module=".mlp.router",
        selection_bias=PerExpert(suffix=".mlp.expert_bias"),
        renormalises=True,
        groups=None,
        spelt={},
    ),
    _by_bias(
        "lfm2_moe",
        "Lfm2MoeForCausalLM",
        experts=fused("feed_forward.experts"),
        router=router_of("feed_forward.gate.weight"),
        selection_bias=PerExpert(suffix=".feed_forward.expert_bias"),
        groups=None,
        spelt={},
        micro={"layer_types": ["conv", "full_attention"]},
    ),
    _by_bias(
        "inkling_text",
        "InklingForCausalLM",
        renormalises=True,
        groups=None,
        without=("local_layer_ids",),
        never_absent="its router's matrix has rows for shared experts beside those of the columns",
    ),
    _by_bias(
        "inkling2_text",
        "Inkling2ForCausalLM",
        scores="scoring_func",
        renormalises=True,
        groups=None,
    ),
    _by_bias(
        "dots3_note_text",
        "Dots3NoteForCausalLM",
        per_layer=(
            "num_attention_heads",
            "num_key_value_heads",
            "q_lora_rank",
            "kv_lora_rank",
            "head_dim",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "v_head_dim",
        ),
        micro={"layer_types": ["indexed_attention", "sliding_attention"], "per_layer_config": {}, "head_dim": 16},
    ),
    # Balanced by both.
    _by_bias(
        "laguna",
        "LagunaForCausalLM",
        renormalises=True,
        balance="class",
        groups=None,
        spelt={},
        own_keys={"gating": Key(kind=bool, also=("per-head", "per-element"))},
        must_be_off=("moe_apply_router_weight_on_input",),
        without=("moe_apply_router_weight_on_input",),
    ),
    _by_bias(
        "minimax_m2",
        "MiniMaxM2ForCausalLM",
        selection_bias=PerExpert(suffix=".mlp.e_score_correction_bias"),
        renormalises=True,
        balance="class",
        groups=None,
        expert_width="intermediate_size",
        spelt=LOCAL,
    ),
    _by_bias(
        "minimax_m3_vl_text",
        "MiniMaxM3VLForCausalLM",
        renormalises=True,
        balance="class",
        groups=None,
        expert_width="intermediate_size",
        spelt=LOCAL,
    ),
    _by_bias(
        "ernie4_5_moe",
        "Ernie4_5_MoeForCausalLM",
        selection_bias=PerExpert(suffix=".mlp.gate.moe_statics.e_score_correction_bias", dim=1),
        scores="softmax",
        renormalises=True,
        balance="class",
        groups=None,
        spelt={"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"},
    ),
    _by_bias(
        "deepseek_v4",
        "DeepseekV4ForCausalLM",
        scores="scoring_func",
        renormalises=True,
        balance="class",
        groups=None,
        hashed=".mlp.gate.tid2eid",
        never_absent="its first layers send each token where a table of the whole vocabulary says",
        own_keys={
            "compress_rates": Key(
                kind=int, low=1, high=1 << 16, entries=("compressed_sparse_attention", "heavily_compressed_attention")
            )
        },
        micro={
            "mlp_layer_types": ["hash_moe", "moe"],
            "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"],
            "partial_rotary_factor": 0.5,
            "o_groups": 2,
            "o_lora_rank": 8,
            "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
            "hc_mult": 2,
            "num_key_value_heads": 1,
        },
    ),
)
