"""The trunk of one shard: what of it is trained, how the rest is kept, and what is sent.

Decides nothing that a trunk mode does not (`moe.trunk`): what stays as it is has no gradient and, where it is large, is
kept in the dtype that products are taken in, once: a matrix with a factor beside it has no second copy. Holds always:
every tensor of the trunk is loaded with a version's values, trained or not; factors begin at 0 with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe.factors import attach_factor, fixed_factor
from moe.layout import Layout
from moe.masters import Masters, compute_from_halves
from moe.trunk import trunk_sort
from protocol.lease import TrunkPart


class HeldTrunk:
    """Made for a shard before its tensors are; `begin` once its module has them."""

    def __init__(self, layout: Layout, part: TrunkPart, masters: Masters, dtype: torch.dtype) -> None:
        """`dtype`: what products are taken in."""
        self.part, self._dtype = part, dtype
        self._names = tuple(spec.name for spec in layout.trunk)
        sort = trunk_sort(layout.config_json, part)
        self.still = frozenset(self._names) - sort.small if sort is not None else frozenset[str]()
        """What is not trained itself."""
        self._halved = self.still & sort.halved if sort is not None else frozenset[str]()
        self._factored = [name for name in self._names if sort is not None and name in sort.factored]
        self._factors: dict[str, nn.Parameter] = {}
        self.masters = replace(masters, rounded=masters.rounded - self.still, halved=masters.halved - self.still)
        """Of all that is trained."""

    def tensor(self, name: str, value: Tensor, where: torch.device) -> Tensor:
        """`value` as the module is to hold it, in memory of its own."""
        if name in self.masters.rounded:
            return self.masters.begun(name, value).to(where)
        return value.to(where, self._dtype if name in self._halved else torch.float32, copy=True)

    def begin(self, module: PreTrainedModel) -> None:
        """Take the gradients from what stays, and put factors beside what has some."""
        parameters = dict(module.named_parameters())
        for name in self.still & parameters.keys():
            parameters[name].requires_grad_(False)
        compute_from_halves(module)
        for name in self._factored:
            linear = cast(nn.Linear, module.get_submodule(name.rpartition(".")[0]))
            where = linear.weight.device
            fixed_RH = fixed_factor(self.part, name, linear.in_features, device=where, dtype=self._dtype)
            self._factors[name] = attach_factor(linear, fixed_RH)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], block: Mapping[str, Tensor]) -> None:
        """Give the module's `tensors` the values of a version's trunk."""
        for name in self._names:
            tensors[name].copy_(self.masters.begun(name, block[name]))
        for factor in self._factors.values():
            factor.zero_()

    def begun(self, name: str, value: Tensor) -> Tensor:
        """What training of what is sent under `name` began with, where a version has `value` of that tensor."""
        factor = self._factors.get(name)
        return self.masters.begun(name, value) if factor is None else torch.zeros(factor.shape)

    def sent(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a submission has of the trunk, in the layout's order: the present weights themselves."""
        held = {name: self._factors.get(name, tensors[name]) for name in self._names}
        return {
            name: tensor.detach() for name, tensor in held.items() if name not in self.still or name in self._factors
        }
