"""Leases whose memory is held against their plan. A new rung of the ladder is a case here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

SIZES: Final = {
    "hidden_size": 512,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_experts": 24,
    "vocab_size": 16_000,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One lease: two steps of `batch` sequences."""

    recipe: Mapping[str, Any]
    schedule: Mapping[str, Any] = field(default_factory=dict)
    """What the machine chooses, but for the micro-batch."""
    sizes: Mapping[str, int] = field(default_factory=lambda: SIZES)
    columns: int = 16
    batch: int = 4
    micro_batch: int = 2
    length: int = 128
    codec: str = "int4"


LOW: Final = {"optimizer": "muon", "masters": "bf16", "moments": "compact"}
CASES: Final[Mapping[str, Case]] = {
    "adamw": Case(recipe={"optimizer": "adamw"}),
    "muon": Case(recipe={"optimizer": "muon"}),
    "low": Case(recipe=LOW, sizes={**SIZES, "num_experts": 28}, columns=20),
    "low again": Case(recipe=LOW, schedule={"recomputed": True}, sizes={**SIZES, "num_experts": 28}, columns=20),
    "long": Case(recipe={"optimizer": "adamw"}, columns=4, micro_batch=4, batch=8, length=256),
    "long back": Case(
        recipe={"optimizer": "adamw"}, schedule={"given_back": True}, columns=4, micro_batch=4, batch=8, length=256
    ),
    "long back again": Case(
        recipe={"optimizer": "adamw"},
        schedule={"recomputed": True, "given_back": True},
        columns=8,
        micro_batch=4,
        batch=8,
        length=256,
    ),
    "in codes": Case(
        recipe={"optimizer": "adamw", "frozen_dtype": "int4"},
        schedule={"place": "device"},
        sizes={**SIZES, "num_experts": 48},
        columns=12,
    ),
    "in files": Case(
        recipe={"optimizer": "adamw", "frozen_dtype": "int4"},
        schedule={"place": "mapped"},
        sizes={**SIZES, "num_experts": 48},
        columns=12,
    ),
    "by layers": Case(recipe={"optimizer": "adamw"}, schedule={"by_layers": True}, columns=20),
    "low by layers, ternary": Case(
        recipe=LOW, schedule={"by_layers": True}, sizes={**SIZES, "num_experts": 40}, columns=32, codec="ternary"
    ),
    "low rank": Case(recipe={"optimizer": "adamw", "trunk": "lora", "lora_rank": 16}, columns=16),
}
