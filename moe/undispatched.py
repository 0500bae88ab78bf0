"""Experts that `transformers` does not send through its experts-function registry: a `forward` of ours in their place.

Decides how such modules compute in a shard, out of the parts of `moe.experts`. Holds always: what a module answers is
what its class would, but for the rounding of sums, and what is frozen gets no gradient. A module is given its `forward`
when its weights are attached; its class stays as it was.

How classes hold experts apart from the registry, as a family's row names it:

- `apart`: gate and up are two tensors in a module of their own, and the third one is kept the other way round; each is
  flattened to [E*I, H] by the class, and [E, I, H] here.

Shapes: T tokens, K experts a token, S rows, E experts, H hidden, I an expert's inner width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final, cast

from torch import Tensor, nn

from moe.experts import Sorted, attach_experts, dispatched, project
from moe.piecewise import FrozenMatrix

APART: Final = "apart"


def attach_undispatched(
    experts: nn.Module,
    kind: str,
    slots: list[int],
    held: int,
    weights: Mapping[str, Tensor],
    rounded: Collection[str] = (),
    frozen: Mapping[str, FrozenMatrix] = MappingProxyType({}),
) -> None:
    """As `attach_experts`, and the module's `forward` becomes that of its kind."""
    attach_experts(experts, slots, held, weights, rounded, frozen)
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


_FORWARDS: Final = {APART: _apart}
