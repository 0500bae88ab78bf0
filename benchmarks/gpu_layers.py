"""Pieces of `benchmarks.gpu` about speed: MFU of a shard's steps, and ways to take the experts' products.

MFU is of FLOPs that count (benchmarks/gpu_flops.py), against what the maker states and against a large product that
was measured in the same minute. Ways are timed on one layer's experts, forward and back, with gradients to half of
them: `grouped` is torch's grouped_mm, `padded` moe/padded.py, `eager` a loop over experts, as model classes have one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks.gpu_rungs import told
from benchmarks.gpu_sizes import GpuShape, Size
from benchmarks.gpu_steps import Job, recipe_with, trained
from benchmarks.gpu_where import Where
from benchmarks.report import Row
from moe.experts import attach_experts, barnraise_frozen_experts_forward
from moe.padded import EXPERT_PRODUCTS, PADDED

REPEATS: Final = 5


def mfu_cases(size: Size) -> Iterator[tuple[str, Any]]:
    """Each shape and held part with AdamW; with Muon, whose iteration is no FLOP that counts, all columns only."""
    for shape in size.mfu:
        for held in shape.held:
            for optimizer in ("adamw", "muon") if held == shape.held[0] else ("adamw",):
                yield f"{shape.name}, {held} held, {optimizer}", partial(_mfu, size, shape, held, optimizer)


def _mfu(size: Size, shape: GpuShape, held: int, optimizer: str, where: Where, _folder: Any) -> Row:
    cut = shape.cut()
    job = Job(
        layout=cut,
        columns=held,
        recipe=recipe_with(optimizer=optimizer),
        batch=size.batch,
        length=size.length,
        steps=size.steps,
        recomputed=where.is_gpu and held == cut.columns,
    )
    found = trained(where, job)
    flops = found.flops / found.step_s
    product = where.product_flops(where.compute)
    return {
        **told(found, job, where),
        "held": f"{held} of {cut.columns}",
        "tflops": flops / 1e12,
        "mfu": None if where.stated_flops is None else flops / where.stated_flops,
        "of_product": flops / product,
        "product_tflops": product / 1e12,
    }


def way_cases(size: Size) -> Iterator[tuple[str, Any]]:
    """Each shape, number of tokens and dtype, each way."""
    for shape in size.mfu:
        for tokens in size.way_tokens:
            for dtype in (torch.bfloat16, torch.float32):
                for way in WAYS:
                    name = f"{shape.name}, {tokens} tokens, {str(dtype).removeprefix('torch.')}, {way}"
                    yield name, partial(_way, shape, tokens, dtype, way)


def _way(shape: GpuShape, tokens: int, dtype: torch.dtype, way: str, where: Where, _folder: Any) -> Row:
    cut = shape.cut()
    layer = _Layer(cut.config_json, dtype, where.device)
    seconds = []
    for _ in range(REPEATS + 1):
        x_TH, chosen_TK, gates_TK = layer.tokens(tokens)
        started_s = where.now()
        torch.autograd.backward(WAYS[way](layer.experts, x_TH, chosen_TK, gates_TK).sum())
        seconds.append(where.now() - started_s)
    step_s = statistics.median(seconds[1:])
    rows, parameters = tokens * cut.top_k, 3 * layer.hidden * layer.width
    flops = rows * parameters * (6 * layer.held + 4 * (layer.number - layer.held)) / layer.number / step_s
    return {
        "step_s": step_s,
        "tokens_per_s": tokens / step_s,
        "held": f"{layer.held} of {layer.number}",
        "tflops": flops / 1e12,
        "of_product": flops / where.product_flops(dtype),
    }


class _Layer:
    """One layer's experts with random weights, half of them held, and tokens whose choices are uneven."""

    def __init__(self, values: Any, dtype: torch.dtype, device: str) -> None:
        self.hidden, self.width = values["hidden_size"], values["intermediate_size"]
        self.number, self._top_k = values["num_experts"], values["num_experts_per_tok"]
        self.held = self.number // 2
        self._device, self._dtype = device, dtype
        self._generator = torch.Generator().manual_seed(0)
        self.experts: Any = _Experts()
        weights = {
            "gate_up_proj": self._random(self.number, 2 * self.width, self.hidden) * 0.02,
            "down_proj": self._random(self.number, self.hidden, self.width) * 0.02,
        }
        attach_experts(self.experts, list(range(self.number)), self.held, weights)

    def tokens(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """[T, H], [T, K] and [T, K]: the busiest expert has about twice what is its due."""
        shares = torch.linspace(1.0, 3.0, self.number)
        chosen_TK = torch.multinomial(shares.expand(count, -1), self._top_k, generator=self._generator)
        gates_TK = torch.full((count, self._top_k), 1.0 / self._top_k, device=self._device, dtype=self._dtype)
        return self._random(count, self.hidden).requires_grad_(), chosen_TK.to(self._device), gates_TK

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self._device, self._dtype)


class _Experts(nn.Module):
    """As a class of `transformers` has them."""

    def __init__(self) -> None:
        super().__init__()
        self.act_fn = nn.SiLU()

    def _apply_gate(self, both_SN: Tensor) -> Tensor:
        gate_SI, up_SI = both_SN.chunk(2, dim=-1)
        return nn.functional.silu(gate_SI) * up_SI


def _eager(experts: Any, x_TH: Tensor, chosen_TK: Tensor, gates_TK: Tensor) -> Tensor:
    """A loop over the experts that were chosen, as the model's own class has it."""
    out_TH = torch.zeros_like(x_TH)
    for expert in torch.bincount(chosen_TK.flatten()).nonzero().flatten().tolist():
        tokens, places = torch.where(chosen_TK == expert)
        is_held = expert < experts.gate_up_proj.shape[0]
        up = (experts.gate_up_proj if is_held else experts.gate_up_proj_all)[expert].to(x_TH.dtype)
        down = (experts.down_proj if is_held else experts.down_proj_all)[expert].to(x_TH.dtype)
        hidden = experts._apply_gate(nn.functional.linear(x_TH[tokens], up))
        weighted = nn.functional.linear(hidden, down) * gates_TK[tokens, places, None]
        out_TH = out_TH.index_add(0, tokens, weighted)
    return out_TH


def _ours(experts: Any, x_TH: Tensor, chosen_TK: Tensor, gates_TK: Tensor, *, way: str) -> Tensor:
    experts.is_padded = way == PADDED
    return barnraise_frozen_experts_forward(experts, x_TH, chosen_TK, gates_TK)


WAYS: Final[dict[str, Callable[[Any, Tensor, Tensor, Tensor], Tensor]]] = {
    **{way: partial(_ours, way=way) for way in EXPERT_PRODUCTS},
    "eager": _eager,
}
