"""Our entry in the experts-function registry of `transformers`: held and frozen experts side by side.

Decides how tokens meet experts in a shard. Gradients flow *through* every expert to its inputs, and *to* the held ones
only. Holds always: in slot order the held experts come first, so held and frozen weights are two slices of one tensor
and one grouped multiplication serves both; where the held weights are computed with in fp32, they *are* that slice
(same memory), and nothing is copied in a step. In another compute dtype the held slice is a cast of the fp32 weights,
renewed at each forward (autocast leaves grouped_mm alone, so the cast is ours to make).

Shapes: T tokens, K experts a token, S = T*K, E experts, D held experts, H hidden, N and I widths of a projection.
"""

from __future__ import annotations

from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import grouped_mm
from transformers.activations import SiLUActivation
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

EXPERTS_IMPLEMENTATION: Final = "barnraise_frozen"


class _GroupedLinear(torch.autograd.Function):
    """y_SN = x_SH · W_ENHᵀ by groups of sorted rows; of W only the first D experts, `held_DNH`, get a gradient."""

    @staticmethod
    def forward(ctx: Any, x_SH: Tensor, held_DNH: Tensor, all_ENH: Tensor, ends_E: Tensor) -> Tensor:
        ctx.save_for_backward(x_SH, all_ENH, ends_E)
        ctx.held, ctx.held_dtype = held_DNH.shape[0], held_DNH.dtype
        return grouped_mm(x_SH, all_ENH.transpose(-2, -1), offs=ends_E)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None, None]:
        x_SH, all_ENH, ends_E = ctx.saved_tensors
        grad_SN = grads[0].contiguous()
        grad_x_SH = grouped_mm(grad_SN, all_ENH, offs=ends_E) if ctx.needs_input_grad[0] else None
        grad_held_DNH = None
        if ctx.needs_input_grad[1]:
            # Rows of frozen experts lie behind the last end and are not read.
            grad_held_DNH = grouped_mm(grad_SN.t(), x_SH, offs=ends_E[: ctx.held]).to(ctx.held_dtype)
        return grad_x_SH, grad_held_DNH, None, None


class _Dispatch(torch.autograd.Function):
    """Copy each token to its K experts' groups. The gradient is a gather and a sum: no scatter, so deterministic."""

    @staticmethod
    def forward(ctx: Any, x_TH: Tensor, order_S: Tensor, place_S: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(place_S)
        ctx.top_k = top_k
        return x_TH.index_select(0, order_S if top_k == 1 else torch.div(order_S, top_k, rounding_mode="floor"))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        (place_S,) = ctx.saved_tensors
        back_SH = grads[0].index_select(0, place_S)
        return back_SH.view(-1, ctx.top_k, back_SH.shape[-1]).sum(dim=1), None, None, None


class _Permute(torch.autograd.Function):
    """Rows in another order; `back_S` is the inverse of `order_S`."""

    @staticmethod
    def forward(ctx: Any, x_SH: Tensor, order_S: Tensor, back_S: Tensor) -> Tensor:
        ctx.save_for_backward(back_S)
        return x_SH.index_select(0, order_S)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (back_S,) = ctx.saved_tensors
        return grads[0].index_select(0, back_S), None, None


class _GatedSilu(torch.autograd.Function):
    """silu(gate) * up of concatenated halves. Backward writes both halves in place of a concatenation."""

    @staticmethod
    def forward(ctx: Any, both_SN: Tensor) -> Tensor:
        gate_SI, up_SI = both_SN.chunk(2, dim=-1)
        active_SI = nn.functional.silu(gate_SI)
        ctx.save_for_backward(both_SN, active_SI)
        return active_SI * up_SI

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        both_SN, active_SI = ctx.saved_tensors
        gate_SI, up_SI = both_SN.chunk(2, dim=-1)
        grad_SN = torch.empty_like(both_SN)
        grad_gate_SI, grad_up_SI = grad_SN.chunk(2, dim=-1)
        torch.mul(grads[0], active_SI, out=grad_up_SI)
        torch.ops.aten.silu_backward.grad_input(grads[0] * up_SI, gate_SI, grad_input=grad_gate_SI)
        return grad_SN


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    return cast(Tensor, cast(Any, function).apply(*arguments))


def attach_experts(experts: nn.Module, slots: list[int], held: int, weights: dict[str, Tensor]) -> None:
    """Give a fused experts module its weights in slot order: the first `held` of them are trained.

    `weights` maps the module's two projections, the one into the experts first, to [E, N, H] in the compute dtype;
    `slots[e]` is where expert e lies in it. The trained parameter keeps the projection's own name. Weights in fp32 are
    shared, not copied.
    """
    into, out_of = weights
    experts.projections = into, out_of  # type: ignore[assignment]  # any attribute of a module may be plain data
    for projection, all_ENH in weights.items():
        experts.register_buffer(f"{projection}_all", all_ENH, persistent=False)
        experts.register_parameter(projection, nn.Parameter(all_ENH[:held].to(torch.float32)))
    in_order = slots == list(range(len(slots)))
    slot_of = None if in_order else torch.tensor(slots, device=weights[into].device)
    experts.register_buffer("slot_of_expert", slot_of, persistent=False)


def _weights(experts: nn.Module, projection: str) -> tuple[Tensor, Tensor]:
    """Held parameter and all weights in slot order, the held slice being current."""
    held_DNH, all_ENH = experts.get_parameter(projection), experts.get_buffer(f"{projection}_all")
    if held_DNH.data_ptr() != all_ENH.data_ptr():
        with torch.no_grad():
            all_ENH[: held_DNH.shape[0]].copy_(held_DNH)
    return held_DNH, all_ENH


def barnraise_frozen_experts_forward(
    self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Output_TH of the experts that the router chose; signature and meaning are those of `transformers`."""
    tokens, top_k = top_k_index.shape
    into, out_of = cast(tuple[str, str], self.projections)
    held_up, all_up = _weights(self, into)
    held_down, all_down = _weights(self, out_of)
    slot_of_expert = self.slot_of_expert
    slot_S = top_k_index.reshape(-1)
    if slot_of_expert is not None:
        slot_S = cast(Tensor, slot_of_expert)[slot_S]
    slot_sorted_S, order_S = torch.sort(slot_S, stable=True)
    place_S = torch.empty_like(order_S)
    place_S[order_S] = torch.arange(order_S.shape[0], device=order_S.device)
    every_slot_E = torch.arange(all_up.shape[0], device=order_S.device)
    ends_E = torch.searchsorted(slot_sorted_S, every_slot_E, right=True, out_int32=True)

    x_SH = _apply(_Dispatch, hidden_states.to(all_up.dtype), order_S, place_S, top_k)
    hidden_SN = _apply(_GroupedLinear, x_SH, held_up, all_up, ends_E)
    silu = isinstance(self.act_fn, nn.SiLU | SiLUActivation)
    gated_SI = _apply(_GatedSilu, hidden_SN) if silu else cast(Any, self)._apply_gate(hidden_SN)
    out_SH = _apply(_GroupedLinear, gated_SI, held_down, all_down, ends_E)
    out_SH = _apply(_Permute, out_SH, place_S, order_S)
    weighted_SH = out_SH * top_k_weights.reshape(-1, 1).to(out_SH.dtype)
    return weighted_SH.view(tokens, top_k, -1).sum(dim=1).to(hidden_states.dtype)


ALL_EXPERTS_FUNCTIONS.register(EXPERTS_IMPLEMENTATION, barnraise_frozen_experts_forward)
