"""Architectures whose routers are balanced by a loss alone, one row each.

Decides what they are made of. Within each part, rows are like the one above them but for what they name.
"""

from __future__ import annotations

from typing import Any, Final

from moe.families.family import LOCAL, N_ROUTED, Family, PerExpert, fused, router_of
from moe.families.keys import COMMON, WIDTH, Key


def _granite(model_type: str, class_name: str, **other: Any) -> Family:
    """Softmax over the chosen experts' logits, in a block of its own."""
    return Family(
        model_type=model_type,
        class_name=class_name,
        experts=fused("block_sparse_moe.experts"),
        router=router_of("block_sparse_moe.router.weight"),
        scores="softmax of chosen",
        renormalises=True,
        spelt=LOCAL,
        **other,
    )


BY_LOSS: Final = (
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
        model_type="qwen4_exp_text",
        class_name="Qwen4ExpForCausalLM",
        renormalises="norm_topk_prob",
        expert_width="moe_intermediate_size",
        # Tables of n-grams: whole numbers beyond what fp32 holds.
        must_be_off=("ple_layer_ids",),
        without=(
            "ple_layer_ids",
            "ple_embed_dim",
            "ple_conv_kernel_size",
            "ngram_size",
            "heads_per_ngram",
            "ngram_vocab_size_base",
            "make_ngram_vocab_size_divisible_by",
            "seed",
            "split_ngram_parts",
        ),
        micro={
            "layer_types": ["linear_attention", "indexed_attention"],
            "head_dim": 16,
            "hc_lowrank": 8,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 8,
            "indexer_compress_ratio": 2,
        },
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
        spelt=LOCAL,
        own_keys={"layer_types": Key(kind=str, choices=("full_attention", "linear_attention"), listed=True)},
        micro={"block_size": 8},
    ),
    Family(
        model_type="jamba",
        class_name="JambaForCausalLM",
        experts=fused("feed_forward.experts"),
        router=router_of("feed_forward.router.weight"),
        renormalises=False,
        micro={"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4},
        own_keys={"mamba_dt_rank": Key(kind=int, low=1, high=1 << 16)},
    ),
    _granite("granitemoe", "GraniteMoeForCausalLM"),
    _granite("granitemoeshared", "GraniteMoeSharedForCausalLM"),
    _granite(
        "granitemoe_swa",
        "GraniteMoeSWAForCausalLM",
        own_keys={"layer_rope_theta": Key(kind=float, low=0.0, high=1e12, listed=True)},
    ),
    _granite(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        own_keys={"mamba_d_head": Key(kind=int, low=1, high=1 << 12)},
        without=("time_step_limit",),
        micro={
            "layer_types": ["linear_attention", "full_attention"],
            "position_embedding_type": "rope",
            "mamba_n_heads": 4,
            "mamba_d_state": 4,
            "mamba_chunk_size": 8,
        },
    ),
    Family(
        model_type="gpt_oss",
        class_name="GptOssForCausalLM",
        experts=(
            *fused("mlp.experts"),
            PerExpert(suffix=".mlp.experts.gate_up_proj_bias"),
            PerExpert(suffix=".mlp.experts.down_proj_bias"),
        ),
        transposed=True,
        router=(*router_of("mlp.router.weight"), PerExpert(suffix=".mlp.router.bias")),
        scores="softmax of chosen",
        renormalises=True,
        spelt=LOCAL,
    ),
    Family(
        model_type="dbrx",
        class_name="DbrxForCausalLM",
        experts=tuple(
            PerExpert(suffix=f".ffn.experts.mlp.{name}", flat=True, matrices=1) for name in ("w1", "v1", "w2")
        ),
        undispatched="apart",
        router=router_of("ffn.router.layer.weight"),
        router_module=".ffn.router",
        renormalises=True,
        expert_width="ffn_hidden_size",
        must_be_off=("ffn_config.moe_jitter_eps",),
        spelt={
            "num_experts": "ffn_config.moe_num_experts",
            "num_experts_per_tok": "ffn_config.moe_top_k",
            "router_aux_loss_coef": "ffn_config.moe_loss_weight",
            "ffn_hidden_size": "ffn_config.ffn_hidden_size",
            "gate_norm": "ffn_config.moe_normalize_expert_weights",
            "num_key_value_heads": "attn_config.kv_n_heads",
            "clip_qkv": "attn_config.clip_qkv",
            "attn_rope_theta": "attn_config.rope_theta",
            "hidden_size": "d_model",
            "num_attention_heads": "n_heads",
            "num_hidden_layers": "n_layers",
            "max_position_embeddings": "max_seq_len",
        },
        without=("attn_config", "ffn_config"),
        own_keys={
            "router_aux_loss_coef": COMMON["router_aux_loss_coef"],
            "num_key_value_heads": COMMON["num_key_value_heads"],
            "ffn_hidden_size": WIDTH,
            "gate_norm": Key(kind=float, low=1.0, high=1.0),
            "clip_qkv": Key(kind=float, low=1e-3, high=1e6, optional=True),
            "attn_rope_theta": Key(kind=float, low=1.0, high=1e9),
        },
        micro={"attn_rope_theta": 10000.0, "ffn_hidden_size": 16},
    ),
    Family(
        model_type="flint",
        class_name="FlintForCausalLM",
        scores="sigmoid",
        renormalises="norm_topk_prob",
        expert_width="moe_intermediate_size",
        micro={"mlp_only_layers": [0], "layer_types": ["full_attention", "sliding_attention"]},
    ),
    # The same loss, which their classes do not have.
    Family(
        model_type="aria_text",
        class_name="AriaTextForCausalLM",
        transposed=True,
        router=router_of("mlp.router.weight"),
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
        router=router_of("mlp.gate.wg.weight"),
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
        spelt=N_ROUTED,
        micro={"topk_method": "group_limited_greedy"},
    ),
    Family(
        model_type="gemma4_text",
        class_name="Gemma4ForCausalLM",
        experts=fused("experts"),
        router=(*router_of("router.proj.weight"), PerExpert(suffix=".router.per_expert_scale")),
        router_module=".router",
        answers_shares=True,
        renormalises=True,
        balance="ours",
        expert_width="moe_intermediate_size",
        spelt={"num_experts_per_tok": "top_k_experts"},
        per_layer=("head_dim", "num_key_value_heads"),
        must_be_off=("use_bidirectional_attention",),
        without=("use_bidirectional_attention",),
        micro={
            "enable_moe_block": True,
            "layer_types": ["sliding_attention", "full_attention"],
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 264,
        },
    ),
)
