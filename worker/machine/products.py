"""Which way this device takes the products of experts faster: torch's grouped one, or padded ones (moe/padded.py).

Decides by trying both, forward and back, on a layer of a common size: torch's is one kernel only in bf16 on SM90 and
SM100, refuses cards below SM80, and elsewhere takes a product an expert. What is not faster by a tenth is not taken:
the way is a part of the arithmetic class, and two starts of one worker should agree. A CPU is not asked: there torch's
way waits for nobody. Uses the device for a fraction of a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import structlog
import torch
from torch import Tensor, nn

from moe.experts import attach_experts, barnraise_frozen_experts_forward
from moe.padded import EXPERT_PRODUCTS, GROUPED, PADDED

TOKENS, EXPERTS, HELD, CHOSEN, WIDTH = 1024, 16, 4, 4, 512
REPEATS: Final = 4
MUCH_FASTER: Final = 0.9
GROUPED_SINCE: Final = (8, 0)
"""Compute capability below which torch 2.13 refuses grouped products."""
ONE_KERNEL: Final = (9, 10)
"""Major capabilities on which they are one kernel, in bf16."""

log = structlog.get_logger()


def quickest_products(
    device: str, compute_dtype: torch.dtype | None, *, seconds_of: Callable[[str], float] | None = None
) -> str:
    """A name of `moe.padded.EXPERT_PRODUCTS`; `seconds_of` measures one, and raises what the device says of it."""
    if device.partition(":")[0] == "cpu":
        return GROUPED
    found: dict[str, float] = {}
    for way in EXPERT_PRODUCTS:
        try:
            seconds_of = seconds_of or TrialLayer(device, compute_dtype).seconds
            found[way] = seconds_of(way)
        except Exception as error:  # torch has no narrower kind for a product that a card does not have
            log.debug("experts_products_failed", way=way, detail=f"{type(error).__name__}: {error}"[:300])
    never = float("inf")
    return PADDED if found.get(PADDED, never) < MUCH_FASTER * found.get(GROUPED, never) else GROUPED


def expected_products(capability: tuple[int, int] | None, *, bf16: bool, is_gpu: bool = False) -> str:
    """In words, what `quickest_products` will find on a card that nobody has at hand; None: not one of NVIDIA's."""
    if not is_gpu:
        return GROUPED
    if capability is not None and capability < GROUPED_SINCE:
        return f"{PADDED}: torch has no other"
    if capability is not None and bf16 and capability[0] in ONE_KERNEL:
        return f"measured; {GROUPED} expected"
    return f"measured; {PADDED} expected"


class TrialLayer:
    """One layer's experts with weights of no meaning."""

    def __init__(self, device: str, compute_dtype: torch.dtype | None) -> None:
        dtype = compute_dtype or torch.float32
        self._device, self._dtype = device, dtype
        self._experts: Any = _Experts()
        weights = {
            "gate_up_proj": torch.full((EXPERTS, 2 * WIDTH, WIDTH), 0.01, device=device, dtype=dtype),
            "down_proj": torch.full((EXPERTS, WIDTH, WIDTH), 0.01, device=device, dtype=dtype),
        }
        attach_experts(self._experts, list(range(EXPERTS)), HELD, weights)
        # every expert gets some, and the first ones more
        places = torch.arange(TOKENS * CHOSEN) ** 2 // (TOKENS * CHOSEN) * EXPERTS // (TOKENS * CHOSEN)
        self._chosen_TK = places.view(CHOSEN, TOKENS).t().contiguous().to(device)

    def seconds(self, way: str) -> float:
        """Of one pass, forward and back: the least of some."""
        self._experts.is_padded = way == PADDED
        took_s = []
        for _ in range(REPEATS):
            x_TH = torch.full((TOKENS, WIDTH), 0.01, device=self._device, dtype=self._dtype, requires_grad=True)
            gates_TK = torch.full((TOKENS, CHOSEN), 0.25, device=self._device)
            started_s = self._now()
            out_TH: Tensor = barnraise_frozen_experts_forward(self._experts, x_TH, self._chosen_TK, gates_TK)
            torch.autograd.backward(out_TH.sum())
            took_s.append(self._now() - started_s)
        return min(took_s)

    def _now(self) -> float:
        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class _Experts(nn.Module):
    """With a gate of its own."""

    def _apply_gate(self, both_SN: Tensor) -> Tensor:
        gate_SI, up_SI = both_SN.chunk(2, dim=-1)
        return nn.functional.silu(gate_SI) * up_SI
