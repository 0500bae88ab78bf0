"""How far the inner loop has come, as data: what `trainer.py` puts down and takes up, and `lease_state.py` keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalState:
    """The inner loop between two steps: weights, moments and everything else that the next step depends on."""

    step: int
    """Steps done."""
    micro_batch: int
    recut: bool = False
    """Steps before the latest were cut otherwise."""
    train_s: float
    tensors: Mapping[str, Tensor]
