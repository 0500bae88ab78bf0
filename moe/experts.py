"""Our entry in the experts-function registry of `transformers`: held and frozen experts side by side.

Decides how tokens meet experts in a shard. Gradients flow *through* every expert to its inputs, and *to* the held ones
only. Holds always: in slot order the held experts come first, so held and frozen weights are two slices of one tensor
and one grouped multiplication serves both; where the held weights are computed with in fp32, they *are* that slice
(same memory), and nothing is copied in a step. Where that grouped multiplication is slow, a module that `is_padded`
takes it by `moe.padded`. In another compute dtype the held slice is a cast of the fp32 weights, renewed when they
have changed (autocast leaves grouped_mm alone, so the cast is ours to make), unless they are trained in it.

Where frozen experts do not lie beside the held ones (`moe.frozen`), the tensor has the held ones alone, and products
are taken piece by piece (`moe.piecewise`).

What lies between the two projections is the module's own: its gate, clamped or interleaved, or its activation alone.
Classes whose experts `transformers` does not send through its registry get a `forward` of ours instead
(`moe.undispatched`), made of the same parts.

Shapes: T tokens, K experts a token, S = T*K, E experts, D held experts, H hidden, N and I widths of a projection.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import grouped_mm
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers.activations import SiLUActivation
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _default_apply_gate

from moe.padded import Padding
from moe.piecewise import FrozenMatrix, PiecewiseProduct

EXPERTS_IMPLEMENTATION: Final = "barnraise_frozen"
_Pads = Padding | None


def _times(x_SH: Tensor, weights_EHN: Tensor, ends_E: Tensor, pads: _Pads) -> Tensor:
    """[S, N]: each row times its expert's weights."""
    return grouped_mm(x_SH, weights_EHN, offs=ends_E) if pads is None else pads.times(x_SH, weights_EHN)


def _summed(left_SN: Tensor, right_SH: Tensor, ends_D: Tensor, pads: _Pads) -> Tensor:
    """[D, N, H]: sums of outer products by groups. Rows of frozen experts lie behind the last end and are not read."""
    if pads is not None:
        return pads.summed(left_SN, right_SH, ends_D.shape[0])
    return grouped_mm(left_SN.t(), right_SH, offs=ends_D)


class _GroupedLinear(torch.autograd.Function):
    """y_SN = x_SH · W_ENHᵀ by groups of sorted rows; of W only the first D experts, `held_DNH`, get a gradient."""

    @staticmethod
    def forward(ctx: Any, x_SH: Tensor, held_DNH: Tensor, all_ENH: Tensor, ends_E: Tensor, pads: _Pads) -> Tensor:
        ctx.save_for_backward(x_SH, all_ENH, ends_E)
        ctx.held, ctx.pads = held_DNH.shape[0], pads
        return _times(x_SH, all_ENH.transpose(-2, -1), ends_E, pads)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x_SH, all_ENH, ends_E = ctx.saved_tensors
        grad_SN = grads[0].contiguous()
        grad_x_SH = _times(grad_SN, all_ENH, ends_E, ctx.pads) if ctx.needs_input_grad[0] else None
        grad_held_DNH = None
        if ctx.needs_input_grad[1]:
            grad_held_DNH = _summed(grad_SN, x_SH, ends_E[: ctx.held], ctx.pads).to(torch.float32)
        return grad_x_SH, grad_held_DNH, None, None, None


class _GroupedTransposed(torch.autograd.Function):
    """y_SN = x_SH · W_EHN: the same, of weights that are kept the other way round."""

    @staticmethod
    def forward(ctx: Any, x_SH: Tensor, held_DHN: Tensor, all_EHN: Tensor, ends_E: Tensor, pads: _Pads) -> Tensor:
        ctx.save_for_backward(x_SH, all_EHN, ends_E)
        ctx.held, ctx.pads = held_DHN.shape[0], pads
        return _times(x_SH, all_EHN, ends_E, pads)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x_SH, all_EHN, ends_E = ctx.saved_tensors
        grad_SN = grads[0].contiguous()
        grad_x_SH = _times(grad_SN, all_EHN.mT, ends_E, ctx.pads) if ctx.needs_input_grad[0] else None
        grad_held_DHN = None
        if ctx.needs_input_grad[1]:
            grad_held_DHN = _summed(x_SH, grad_SN, ends_E[: ctx.held], ctx.pads).to(torch.float32)
        return grad_x_SH, grad_held_DHN, None, None, None


class _GroupedBias(torch.autograd.Function):
    """Add to each sorted row its expert's bias; the held ones' gradients are sums over their groups: no scatter."""

    @staticmethod
    def forward(
        ctx: Any, x_SN: Tensor, held_DN: Tensor, all_EN: Tensor, slots_S: Tensor, ends_E: Tensor, pads: _Pads
    ) -> Tensor:
        ctx.save_for_backward(ends_E)
        ctx.held, ctx.pads = held_DN.shape[0], pads
        return x_SN + all_EN.index_select(0, slots_S)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        (ends_E,) = ctx.saved_tensors
        grad_held_DN = None
        if ctx.needs_input_grad[1]:
            grad_SN = grads[0].contiguous()
            # Eight equal rows where one would do: on a GPU every bf16 row has to begin on a 16-byte boundary.
            ones_S8 = grad_SN.new_ones((grad_SN.shape[0], 8))
            sums_D8N = _summed(ones_S8, grad_SN, ends_E[: ctx.held], ctx.pads)
            grad_held_DN = sums_D8N[:, 0].to(torch.float32)
        return grads[0], grad_held_DN, None, None, None, None


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


class Sorted(NamedTuple):
    """Rows in the order of their experts' slots."""

    slots: Tensor
    """[S]: each row's slot, ascending."""
    ends: Tensor
    """[E] int32: where each slot's rows end."""
    pads: _Pads = None
    """How products are taken where torch's grouped one is not."""
    bounds: tuple[int, ...] = ()
    """The same where the host has them: only where frozen experts are decoded."""


def attach_experts(
    experts: nn.Module,
    slots: list[int],
    held: int,
    weights: Mapping[str, Tensor],
    rounded: Collection[str] = (),
    frozen: Mapping[str, FrozenMatrix] = MappingProxyType({}),
) -> None:
    """Give a module of experts its weights in slot order: the first `held` of them are trained.

    `weights` maps the module's own tensors, projections into the experts first, to [E, ...] in the compute dtype, or to
    [held, ...] where `frozen` has the others; `slots[e]` is where expert e lies in them. A trained parameter keeps its
    tensor's own name. Weights in fp32 are shared, not copied, and so are those that are `rounded`, since no trained bit
    is lost in the compute dtype.
    """
    plain = cast(Any, experts)  # any attribute of a module may be plain data
    plain.projections, plain.frozen, plain.slot_count = tuple(weights), dict(frozen), len(slots)
    plain.cast_at = {}
    for name, all_ENH in weights.items():
        parent, _, leaf = name.rpartition(".")
        module = experts.get_submodule(parent)
        module.register_buffer(f"{leaf}_all", all_ENH, persistent=False)
        held_DNH = all_ENH[:held] if name in rounded else all_ENH[:held].to(torch.float32)
        # where columns are cut by layers a shard may hold none here, and no optimizer is to see that
        module.register_parameter(leaf, nn.Parameter(held_DNH, requires_grad=held > 0))
    in_order = slots == list(range(len(slots)))
    slot_of = None if in_order else torch.tensor(slots, device=next(iter(weights.values())).device)
    experts.register_buffer("slot_of_expert", slot_of, persistent=False)


def _weights(experts: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """Held parameter and all weights in slot order, the held slice being current."""
    held_DNH, all_ENH = experts.get_parameter(name), experts.get_buffer(f"{name}_all")
    if held_DNH.data_ptr() != all_ENH.data_ptr():
        # torch counts writes to a tensor and to its views: a batch in parts, and a layer that is recomputed, cast once
        cast_at = cast(dict[str, int], experts.cast_at)
        if cast_at.get(name) != held_DNH._version:
            with torch.no_grad():
                all_ENH[: held_DNH.shape[0]].copy_(held_DNH)
            cast_at[name] = held_DNH._version
    return held_DNH, all_ENH


def project(experts: nn.Module, name: str, x_SH: Tensor, rows: Sorted, *, transposed: bool = False) -> Tensor:
    """Sorted rows times their experts' weights: [E, N, H], or [E, H, N] where `transposed`; plus their biases."""
    held, all_weights = _weights(experts, name)
    kind: type[torch.autograd.Function] = _GroupedTransposed if transposed else _GroupedLinear
    frozen = cast(dict[str, FrozenMatrix], experts.frozen).get(name)
    if frozen is None:
        out_SN = _apply(kind, x_SH, held, all_weights, rows.ends, rows.pads)
    else:
        out_SN = _apply(PiecewiseProduct, x_SH, held, all_weights, frozen, rows.ends, rows.bounds, transposed)
    bias = f"{name}_bias"
    if bias in cast(tuple[str, ...], experts.projections):
        out_SN = _apply(_GroupedBias, out_SN, *_weights(experts, bias), rows.slots, rows.ends, rows.pads)
    return out_SN


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    return cast(Tensor, cast(Any, function).apply(*arguments))


def barnraise_frozen_experts_forward(
    self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Output_TH of the experts that the router chose; signature and meaning are those of `transformers`."""
    into, out_of = cast(tuple[str, ...], self.projections)[:2]
    transposed = bool(getattr(self, "is_transposed", False))

    def experts(x_SH: Tensor, rows: Sorted) -> Tensor:
        hidden_SN = project(self, into, x_SH, rows, transposed=transposed)
        return project(self, out_of, _between(self, hidden_SN), rows, transposed=transposed)

    return dispatched(self, experts, hidden_states, top_k_index, top_k_weights)


def dispatched(
    module: nn.Module,
    experts: Callable[[Tensor, Sorted], Tensor],
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Tensor:
    """Each token's sum, by its weights [T, K], of what `experts` makes of sorted copies of it."""
    tokens, top_k = top_k_index.shape
    all_weights = module.get_buffer(f"{cast(tuple[str, ...], module.projections)[0]}_all")
    slot_of_expert = module.slot_of_expert
    slot_S = top_k_index.reshape(-1)
    if slot_of_expert is not None:
        slot_S = cast(Tensor, slot_of_expert)[slot_S]
    slot_sorted_S, order_S = torch.sort(slot_S, stable=True)
    place_S = torch.empty_like(order_S)
    place_S[order_S] = torch.arange(order_S.shape[0], device=order_S.device)
    every_slot_E = torch.arange(cast(int, module.slot_count), device=order_S.device)
    ends_E = torch.searchsorted(slot_sorted_S, every_slot_E, right=True, out_int32=True)

    x_SH = _apply(_Dispatch, hidden_states.to(all_weights.dtype), order_S, place_S, top_k)
    pads = Padding(slot_sorted_S, ends_E) if getattr(module, "is_padded", False) and not module.frozen else None
    bounds = tuple(ends_E.tolist()) if module.frozen else ()
    out_SH = experts(x_SH, Sorted(slot_sorted_S, ends_E, pads, bounds))
    out_SH = _apply(_Permute, out_SH, place_S, order_S)
    weighted_SH = out_SH * top_k_weights.reshape(-1, 1)  # in fp32, as gates are, and added up in it
    return weighted_SH.view(tokens, top_k, -1).sum(dim=1).to(hidden_states.dtype)


def _between(experts: nn.Module, hidden_SN: Tensor) -> Tensor:
    """What the module does between its projections."""
    if not getattr(experts, "has_gate", True):
        return cast(Tensor, cast(Any, experts).act_fn(hidden_SN))
    plain_gate = getattr(type(experts), "_apply_gate", None) is _default_apply_gate
    if plain_gate and _is_silu(experts.act_fn):
        return _apply(_GatedSilu, hidden_SN)
    return cast(Tensor, cast(Any, experts)._apply_gate(hidden_SN))


def _is_silu(activation: object) -> bool:
    return isinstance(activation, nn.SiLU | SiLUActivation) or activation is nn.functional.silu


def _count_writes(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """torch counts every write to a tensor but those of its own fused optimizers: what is cast would be stale."""
    for group in optimizer.param_groups:
        torch.autograd.graph.increment_version(group["params"])


register_optimizer_step_post_hook(_count_writes)
ALL_EXPERTS_FUNCTIONS.register(EXPERTS_IMPLEMENTATION, barnraise_frozen_experts_forward)
