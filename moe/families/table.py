"""Every architecture that a run can train: one row each.

Decides what is supported. A new family is a row here; `tests/moe/test_families.py` runs the whole contract on each.
"""

from __future__ import annotations

from typing import Final

from moe.families.by_bias import BY_BIAS
from moe.families.by_loss import BY_LOSS
from moe.families.family import Family
from moe.families.keys import FLAG, HEAD_DIM, WIDTH, Key
from moe.families.not_yet import COMPOSITE, NOT_YET
from protocol.errors import ConfigError

_ROWS: Final = (
    Family(
        model_type="olmoe",
        class_name="OlmoeForCausalLM",
        renormalises="norm_topk_prob",
        derived=False,
        own_keys={
            "norm_topk_prob": FLAG,
            "attention_bias": FLAG,
            "clip_qkv": Key(kind=float, low=1e-3, high=1e6, optional=True),
        },
    ),
    Family(
        model_type="mixtral",
        class_name="MixtralForCausalLM",
        renormalises=True,
        derived=False,
        spelt={"num_experts": "num_local_experts"},
        own_keys={
            "head_dim": HEAD_DIM,
            "sliding_window": Key(kind=int, low=1, high=1 << 24, optional=True),
        },
    ),
    Family(
        model_type="qwen3_moe",
        class_name="Qwen3MoeForCausalLM",
        renormalises="norm_topk_prob",
        derived=False,
        must_be_off=("use_sliding_window",),
        expert_width="moe_intermediate_size",
        own_keys={
            "norm_topk_prob": FLAG,
            "attention_bias": FLAG,
            "head_dim": HEAD_DIM,
            "moe_intermediate_size": WIDTH,
            "decoder_sparse_step": Key(kind=int, low=1, high=256),
            "mlp_only_layers": Key(kind=int, low=0, high=255, many=True),
        },
    ),
)

FAMILIES: Final[dict[str, Family]] = {row.model_type: row for row in (*_ROWS, *BY_LOSS, *BY_BIAS)}
"""By the `model_type` of config.json."""


def family_named(model_type: str) -> Family:
    """The row of an architecture; ConfigError where there is none."""
    family = FAMILIES.get(model_type)
    if family is None:
        raise ConfigError(f"architecture {model_type!r:.60} is not supported: {why_not(model_type)}")
    return family


def why_not(model_type: object) -> str:
    """Why there is no row for an architecture, in words that follow its name."""
    if isinstance(model_type, str):
        if model_type in NOT_YET:
            return NOT_YET[model_type]
        if f"{model_type}_text" in FAMILIES:
            return COMPOSITE.format(text=f"{model_type}_text")
    return f"it is none of the {len(FAMILIES)} that can be trained"
