"""Small models of each architecture, chosen so that every special case of the layout is in one of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, OlmoeConfig, PreTrainedConfig, Qwen3MoeConfig

from moe.blocks import Blocks
from moe.config import config_from_json
from moe.families import FAMILIES, Family
from moe.families.micro import micro_values
from moe.full import initial_blocks
from moe.layout import Layout, layout
from tests.moe import made_up

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)

COMMON: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 258,
}


def _olmoe() -> PreTrainedConfig:
    return OlmoeConfig(
        **COMMON,
        intermediate_size=24,
        num_hidden_layers=2,
        num_experts=6,
        num_experts_per_tok=3,
        norm_topk_prob=True,
        clip_qkv=8.0,
    )


def _mixtral() -> PreTrainedConfig:
    return MixtralConfig(
        **COMMON,
        intermediate_size=16,
        num_hidden_layers=2,
        num_key_value_heads=2,
        num_local_experts=5,
        num_experts_per_tok=2,
    )


def _qwen3_moe() -> PreTrainedConfig:
    kind: Any = Qwen3MoeConfig  # its `head_dim` is in none of its annotations
    made: PreTrainedConfig = kind(
        **COMMON,
        intermediate_size=40,
        moe_intermediate_size=16,
        num_hidden_layers=3,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        mlp_only_layers=[1],
        tie_word_embeddings=True,
    )
    return made


BUILDERS: dict[str, Callable[[], PreTrainedConfig]] = {"olmoe": _olmoe, "mixtral": _mixtral, "qwen3_moe": _qwen3_moe}


@pytest.fixture(params=sorted(BUILDERS))
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["frozen", "absent"])
def residency(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def small_config() -> Callable[[str], PreTrainedConfig]:
    """Factory: a small configuration of an architecture. Qwen3-MoE's has a dense layer and tied embeddings."""
    return lambda architecture: BUILDERS[architecture]()


@pytest.fixture
def config(architecture: str) -> PreTrainedConfig:
    return BUILDERS[architecture]()


@pytest.fixture(params=[*FAMILIES, made_up.ROW.model_type])
def family(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Family:
    """Every row of the table, and one that is not in it."""
    made_up.tell_transformers()
    monkeypatch.setitem(FAMILIES, made_up.ROW.model_type, made_up.ROW)
    return FAMILIES[request.param]


@pytest.fixture
def values(family: Family) -> dict[str, Any]:
    """The closed configuration of the family's smallest model."""
    return micro_values(family)


@pytest.fixture
def cut(values: dict[str, Any], residency: str) -> Layout:
    """It, cut; skipped where no column can be absent."""
    config = config_from_json(values)
    if residency == "absent" and FAMILIES[config.model_type].why_not_absent(values):
        pytest.skip("a shard holds all columns or has the others frozen")
    return layout(config, residency)


@pytest.fixture
def frozen(values: dict[str, Any]) -> Layout:
    return layout(config_from_json(values), "frozen")


def fresh(cut: Layout) -> Blocks:
    """First values of all its blocks."""
    return initial_blocks(config_from_json(cut.config_json), cut, 5)


@pytest.fixture
def tokens() -> torch.Tensor:
    """Four sequences of 16 tokens and the one after."""
    return torch.randint(0, 256, (4, 17), generator=torch.Generator().manual_seed(7))
