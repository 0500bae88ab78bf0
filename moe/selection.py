"""Selection biases: what is added to an expert's score when experts are chosen, and not to its gate; what moves them.

Decides how a step moves them: `bias += rate * sign(mean load - load)`, by layer, from how often each expert was chosen
in the whole batch (Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing", arXiv:2408.15664). No class of
`transformers` does that by itself, and no gradient reaches them. Holds always: counts are whole numbers and sums of
those of a batch's parts, so the move does not depend on how a batch is cut; an optimizer never sees a bias
(docs/decisions/0038). Touches the module: a hook on each layer's experts reads their choices.

Shapes: S tokens, K experts a token, E experts, L layers with a bias.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from moe.balance import times_chosen

_CHOICES = ("top_k_index", "router_indices")
"""What the argument is called, where it is given by name."""


class Choices:
    """Reads which experts each layer's tokens are sent to. Made once for a module; `take` after each pass."""

    def __init__(self, experts: Sequence[nn.Module], number: int) -> None:
        self._number = number
        self._seen: list[Tensor | None] = [None] * len(experts)
        for place, module in enumerate(experts):
            module.register_forward_pre_hook(self._hook(place), with_kwargs=True)

    def take(self) -> Tensor:
        """How often each expert was chosen in the last pass: [L, E] int64."""
        return torch.stack([times_chosen(seen, self._number) for seen in self._seen if seen is not None])

    def _hook(self, place: int) -> Any:
        def on_inputs(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._seen[place] = chosen_in(arguments, named).detach()

        return on_inputs


def chosen_in(arguments: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """The choices [S, K] among what an experts' module is called with: (tokens, choices, gates)."""
    chosen: Tensor | None = next((named[name] for name in _CHOICES if name in named), None)
    return cast(Tensor, arguments[1]) if chosen is None else chosen


def with_choices(arguments: tuple[Any, ...], named: dict[str, Any], chosen: Tensor) -> tuple[Any, dict[str, Any]]:
    """The same arguments with these choices."""
    for name in _CHOICES:
        if name in named:
            return arguments, {**named, name: chosen}
    return (arguments[0], chosen, *arguments[2:]), named


@torch.no_grad()
def move_biases(biases: Sequence[Tensor], chosen_LE: Tensor, rate: float) -> None:
    """One step of the rule, in place; each of `biases` has E values in whatever shape."""
    experts = chosen_LE.shape[-1]
    # mean - load, times E: whole numbers, so that an even load is even
    signs_LE = torch.sign(chosen_LE.sum(dim=-1, keepdim=True) - chosen_LE * experts)
    for bias, signs_E in zip(biases, signs_LE, strict=True):
        bias.add_(signs_E.to(bias.dtype).view_as(bias), alpha=rate)


def layer_of(name: str) -> int:
    """The layer that a module or tensor of this name lies in; -1 for one that lies in none."""
    found = re.search(r"\.(\d+)(\.|$)", name)
    return int(found[1]) if found else -1
