"""Experts that `transformers` does not send through its experts-function registry: a `forward` of ours in their place.

Decides how such modules compute in a shard, out of the parts of `moe.experts`. Holds always: what a module answers is
what its class would, but for the rounding of sums, and what is frozen gets no gradient. A module is given its `forward`
when its weights are attached; its class stays as it was.

Three ways in which classes of `transformers` hold experts apart from the registry, each one a name in a family's row:

- `apart`: gate and up are two tensors, and with the third one flattened to [E*I, H]; rows are chosen as usual.
- `grouped`: a linear layer of experts, called with rows that lie group by group in the order of experts.
- `every`: every expert is called on every token, scaled by its gate, in the order of experts: [E*T, H].

Shapes: T tokens, K experts a token, S rows, E experts, H hidden, I an expert's inner width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from moe.experts import Sorted, attach_experts, dispatched, permuted, project, weights_of

APART: Final = "apart"
GROUPED: Final = "grouped"
EVERY: Final = "every"


def attach_undispatched(
    experts: nn.Module, kind: str, slots: list[int], held: int, weights: Mapping[str, Tensor]
) -> None:
    """As `attach_experts`, and the module's `forward` becomes that of its kind."""
    attach_experts(experts, slots, held, weights)
    order = sorted(range(len(slots)), key=slots.__getitem__)
    device = next(iter(weights.values())).device
    experts.register_buffer("expert_of_slot", torch.tensor(order, device=device), persistent=False)
    experts.forward = partial(_FORWARDS[kind], experts)


def _apart(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Gate, up and down of [E, I, H] each: the last one is the wrong way round for `project`."""
    gate, up, down = cast(tuple[str, str, str], self.projections)

    def experts(x_SH: Tensor, rows: Sorted) -> Tensor:
        gate_SI, up_SI = project(self, gate, x_SH, rows), project(self, up, x_SH, rows)
        activation = self.get_submodule(gate.rpartition(".")[0]).activation_fn
        return project(self, down, activation(gate_SI) * up_SI, rows, transposed=True)

    flat_TH = hidden_states.reshape(-1, hidden_states.shape[-1])
    return dispatched(self, experts, flat_TH, top_k_index, top_k_weights).view(hidden_states.shape)


def _grouped(self: Any, inputs: Tensor, expert_size: list[int]) -> Tensor:
    """[E, N, H] on S rows, of which the first `expert_size[0]` are expert 0's, and so on."""
    (name,) = cast(tuple[str], self.projections)
    return _in_slot_order(self, name, inputs, torch.tensor(expert_size, device=inputs.device), transposed=False)


def _every(self: Any, hidden_states: Tensor) -> Tensor:
    """[E, H, 2I] and [E, I, H] on E*T rows."""
    into, out_of = cast(tuple[str, str], self.projections)
    experts = self.expert_of_slot.shape[0]
    flat_SH = hidden_states.reshape(-1, hidden_states.shape[-1])
    sizes_E = torch.full((experts,), flat_SH.shape[0] // experts, device=flat_SH.device)
    gate_SI, up_SI = _in_slot_order(self, into, flat_SH, sizes_E, transposed=True).chunk(2, dim=-1)
    return _in_slot_order(self, out_of, up_SI * self.act_fn(gate_SI), sizes_E, transposed=True)


def _in_slot_order(self: Any, name: str, x_SH: Tensor, sizes_E: Tensor, *, transposed: bool) -> Tensor:
    """Rows that lie in the order of experts through `project`, and back."""
    experts_S = torch.repeat_interleave(sizes_E, output_size=x_SH.shape[0])
    slots_S = experts_S if self.slot_of_expert is None else self.slot_of_expert[experts_S]
    sorted_S, order_S = torch.sort(slots_S, stable=True)
    back_S = torch.empty_like(order_S)
    back_S[order_S] = torch.arange(order_S.shape[0], device=order_S.device)
    ends_E = sizes_E[self.expert_of_slot].cumsum(0).to(torch.int32)
    _, all_weights = weights_of(self, name)
    rows_SH = permuted(x_SH.to(all_weights.dtype), order_S, back_S)
    out_SN = project(self, name, rows_SH, Sorted(sorted_S, ends_E), transposed=transposed)
    return permuted(out_SN, back_S, order_S).to(x_SH.dtype)


_FORWARDS: Final = {APART: _apart, GROUPED: _grouped, EVERY: _every}
