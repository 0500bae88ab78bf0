"""One row for each architecture of `transformers` 5.23 that a run can train, but for the first three (`table`).

Decides what they are made of. A new family is a row here, or one in `not_yet` that says why not. Within each part, rows
are like the one above them but for what they name.
"""

from __future__ import annotations

from typing import Any, Final

from moe.families.family import Family, PerExpert
from moe.families.keys import Key

_BIAS: Final = PerExpert(suffix=".mlp.gate.e_score_correction_bias")
_N_ROUTED: Final = {"num_experts": "n_routed_experts"}
_LOCAL: Final = {"num_experts": "num_local_experts"}


def _experts(module: str) -> tuple[PerExpert, ...]:
    """Both projections, fused, in a module of that name."""
    return (
        PerExpert(suffix=f".{module}.gate_up_proj", matrices=2),
        PerExpert(suffix=f".{module}.down_proj", matrices=1),
    )


def _router(tensor: str) -> tuple[PerExpert, ...]:
    return (PerExpert(suffix=f".{tensor}", matrices=1),)


def _by_bias(model_type: str, class_name: str, **other: Any) -> Family:
    """Sigmoid scores, a selection bias in the router, and groups: as in DeepSeek-V3 (arXiv:2412.19437)."""
    usual: dict[str, Any] = {
        "scores": "sigmoid",
        "renormalises": "norm_topk_prob",
        "balance": "none",
        "selection_bias": _BIAS,
        "groups": ("n_group", "topk_group"),
        "expert_width": "moe_intermediate_size",
        "spelt": _N_ROUTED,
    }
    return Family(model_type=model_type, class_name=class_name, **(usual | other))


DERIVED: Final = (
    # Softmax routers whose class balances them by a loss of its own.
    Family(model_type="flex_olmo", class_name="FlexOlmoForCausalLM", renormalises="norm_topk_prob"),
    Family(
        model_type="qwen2_moe",
        class_name="Qwen2MoeForCausalLM",
        renormalises="norm_topk_prob",
        expert_width="moe_intermediate_size",
    ),
    Family(
        model_type="qwen3_next",
        class_name="Qwen3NextForCausalLM",
        renormalises="norm_topk_prob",
        expert_width="moe_intermediate_size",
        micro={"layer_types": ["linear_attention", "full_attention"], "head_dim": 16},
    ),
    Family(
        model_type="qwen3_5_moe_text",
        class_name="Qwen3_5MoeForCausalLM",
        renormalises=True,
        expert_width="moe_intermediate_size",
        micro={"layer_types": ["linear_attention", "full_attention"], "head_dim": 16},
    ),
    Family(
        model_type="mellum",
        class_name="MellumForCausalLM",
        renormalises="norm_topk_prob",
        expert_width="moe_intermediate_size",
        micro={"layer_types": ["full_attention", "sliding_attention"]},
    ),
    Family(
        model_type="minimax",
        class_name="MiniMaxForCausalLM",
        renormalises=True,
        spelt=_LOCAL,
        micro={"block_size": 8},
    ),
    Family(
        model_type="jamba",
        class_name="JambaForCausalLM",
        experts=_experts("feed_forward.experts"),
        router=_router("feed_forward.router.weight"),
        renormalises=False,
        micro={"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4},
        own_keys={"mamba_dt_rank": Key(kind=int, low=1, high=1 << 16)},
    ),
    Family(
        model_type="granitemoe",
        class_name="GraniteMoeForCausalLM",
        experts=_experts("block_sparse_moe.experts"),
        router=_router("block_sparse_moe.router.weight"),
        scores="softmax of chosen",
        renormalises=True,
        spelt=_LOCAL,
    ),
    Family(
        model_type="granitemoeshared",
        class_name="GraniteMoeSharedForCausalLM",
        experts=_experts("block_sparse_moe.experts"),
        router=_router("block_sparse_moe.router.weight"),
        scores="softmax of chosen",
        renormalises=True,
        spelt=_LOCAL,
    ),
    Family(
        model_type="granitemoe_swa",
        class_name="GraniteMoeSWAForCausalLM",
        experts=_experts("block_sparse_moe.experts"),
        router=_router("block_sparse_moe.router.weight"),
        scores="softmax of chosen",
        renormalises=True,
        spelt=_LOCAL,
        own_keys={"layer_rope_theta": Key(kind=float, low=0.0, high=1e12, listed=True)},
    ),
    Family(
        model_type="granitemoehybrid",
        class_name="GraniteMoeHybridForCausalLM",
        experts=_experts("block_sparse_moe.experts"),
        router=_router("block_sparse_moe.router.weight"),
        scores="softmax of chosen",
        renormalises=True,
        spelt=_LOCAL,
        own_keys={"mamba_d_head": Key(kind=int, low=1, high=1 << 12)},
        without=("time_step_limit",),
        micro={
            "layer_types": ["linear_attention", "full_attention"],
            "mamba_n_heads": 4,
            "mamba_d_state": 4,
            "mamba_chunk_size": 8,
        },
    ),
    Family(
        model_type="gpt_oss",
        class_name="GptOssForCausalLM",
        experts=(
            *_experts("mlp.experts"),
            PerExpert(suffix=".mlp.experts.gate_up_proj_bias"),
            PerExpert(suffix=".mlp.experts.down_proj_bias"),
        ),
        transposed=True,
        router=(*_router("mlp.router.weight"), PerExpert(suffix=".mlp.router.bias")),
        scores="softmax of chosen",
        renormalises=True,
        spelt=_LOCAL,
    ),
    Family(
        model_type="flint",
        class_name="FlintForCausalLM",
        scores="sigmoid",
        renormalises="norm_topk_prob",
        expert_width="moe_intermediate_size",
        micro={"mlp_only_layers": [0]},
    ),
    # The same loss, which their classes do not have.
    Family(
        model_type="aria_text",
        class_name="AriaTextForCausalLM",
        transposed=True,
        router=_router("mlp.router.weight"),
        scores="softmax of chosen",
        renormalises=True,
        balance="ours",
        spelt={"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_topk"},
    ),
    Family(
        model_type="cohere2_moe",
        class_name="Cohere2MoeForCausalLM",
        scores="expert_selection_fn",
        renormalises="norm_topk_prob",
        balance="ours",
        without=("rms_norm_eps",),
    ),
    Family(
        model_type="hunyuan_v1_moe",
        class_name="HunYuanMoEV1ForCausalLM",
        router=_router("mlp.gate.wg.weight"),
        router_module=".mlp.gate",
        renormalises=True,
        balance="ours",
        spelt={"num_experts_per_tok": "moe_topk"},
    ),
    Family(
        model_type="deepseek_v2",
        class_name="DeepseekV2ForCausalLM",
        renormalises=False,
        balance="ours",
        groups=("n_group", "topk_group"),
        expert_width="moe_intermediate_size",
        spelt=_N_ROUTED,
        micro={"topk_method": "group_limited_greedy"},
    ),
    # Balanced by a selection bias.
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
        spelt=_LOCAL,
        micro={"layer_types": ["linear_attention", "full_attention"]},
    ),
    _by_bias(
        "kimi_linear",
        "KimiLinearForCausalLM",
        spelt=_LOCAL,
        micro={"layer_types": ["linear_attention", "full_attention"]},
    ),
    _by_bias("kolibri1", "Kolibri1ForCausalLM", groups=None, spelt={}),
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
        router=_router("mlp.router.gate.weight"),
        router_module=".mlp.router",
        selection_bias=PerExpert(suffix=".mlp.expert_bias"),
        renormalises=True,
        groups=None,
        spelt={},
    ),
    _by_bias(
        "lfm2_moe",
        "Lfm2MoeForCausalLM",
        experts=_experts("feed_forward.experts"),
        router=_router("feed_forward.gate.weight"),
        selection_bias=PerExpert(suffix=".feed_forward.expert_bias"),
        groups=None,
        spelt={},
        micro={"layer_types": ["conv", "full_attention"]},
    ),
    # Balanced by both.
    _by_bias(
        "minimax_m2",
        "MiniMaxM2ForCausalLM",
        selection_bias=PerExpert(suffix=".mlp.e_score_correction_bias"),
        renormalises=True,
        balance="class",
        groups=None,
        expert_width="intermediate_size",
        spelt=_LOCAL,
    ),
    _by_bias(
        "minimax_m3_vl_text",
        "MiniMaxM3VLForCausalLM",
        renormalises=True,
        balance="class",
        groups=None,
        expert_width="intermediate_size",
        spelt=_LOCAL,
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
)
