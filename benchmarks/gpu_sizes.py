"""At what sizes `benchmarks.gpu` measures: on a GPU, quickly on a CPU, and in the test suite.

Decides numbers only. Shapes are the class of the preset olmoe-7b with somebody's widths and fewer layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from moe.config import config_from_json, config_to_json
from moe.layout import Layout, layout
from moe.presets import preset


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuShape:
    """A model of the preset's class."""

    name: str
    values: Mapping[str, Any]
    """What is otherwise than in the preset."""
    held: tuple[int, ...]
    """How many columns are held, in one case each."""
    base: str = "olmoe-7b"

    def cut(self) -> Layout:
        """Its layout, the others frozen."""
        return layout(config_from_json({**config_to_json(preset(self.base)), **self.values}), "frozen")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """One of them."""

    name: str
    mfu: tuple[GpuShape, ...]
    rungs: GpuShape
    card: GpuShape
    cards_gib: tuple[float, ...]
    """Simulated cards."""
    batch: int
    length: int
    micro_batch: int
    """Of `batch`, in one pass: a card's, and what a rung cuts to."""
    steps: int
    way_tokens: tuple[int, ...]
    noise: tuple[tuple[str, int], ...]
    """Model and inner steps."""
    parity: tuple[str, ...]
    """Arguments of `benchmarks.parity_large`."""


_NARROW = GpuShape(name="1,024 wide experts, 4 layers", values={"num_hidden_layers": 4}, held=(64, 12, 4))
_WIDE = GpuShape(
    name="14,336 wide experts, 2 layers",
    values={
        "num_hidden_layers": 2,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 32000,
    },
    held=(8, 2),
)
_TINY = GpuShape(name="tiny", values={}, held=(8, 2), base="tiny")
_LITTLE: Final = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
_MICRO = GpuShape(name="micro", values=_LITTLE, held=(2,), base="tiny")
_SMALL_PARITY = ("--preset=tiny", "--workers=2", "--inner-steps=2", "--batch=2", "--sequence-length=32")

SIZES: Final[Mapping[str, Size]] = {
    "full": Size(
        name="full",
        mfu=(_NARROW, _WIDE),
        rungs=_NARROW,
        card=GpuShape(name="olmoe-7b", values={}, held=()),
        cards_gib=(12, 16, 24),
        batch=32,
        length=512,
        micro_batch=8,
        steps=5,
        way_tokens=(4096, 16384),
        noise=(("tiny", 10), ("tiny", 50), ("100m", 10)),
        parity=("--preset=100m",),
    ),
    "quick": Size(
        name="quick",
        mfu=(_TINY,),
        rungs=_TINY,
        card=_TINY,
        cards_gib=(0.01, 0.02, 0.03),
        batch=8,
        length=64,
        micro_batch=2,
        steps=3,
        way_tokens=(256,),
        noise=(("micro", 4),),
        parity=(*_SMALL_PARITY, "--tokens=1500"),
    ),
    "micro": Size(
        name="micro",
        mfu=(_MICRO,),
        rungs=_MICRO,
        card=_MICRO,
        cards_gib=(0.001, 0.01),
        batch=4,
        length=16,
        micro_batch=1,
        steps=2,
        way_tokens=(32,),
        noise=(("micro", 2),),
        parity=(*_SMALL_PARITY, "--tokens=250"),
    ),
}
