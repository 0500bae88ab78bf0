"""What a lease trains of the trunk, by the run's trunk mode: which tensors, as what, and which stay as they are.

Decides it by what a tensor is for, from a configuration alone. `trained`: all. `frozen`: nothing, routers and
selection biases included. `lora`: a matrix of a plain linear layer gets a factor of low rank that is trained in its
place; what is small (norms, biases, routers, selection biases) is trained as ever; embeddings, head and what a class
multiplies by itself stay. Holds always: what is trained is what is sent, under the tensor's own name; what stays is in
no submission, and the same in every version. Allocates nothing. See docs/decisions/0055.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from moe.config import config_from_json
from moe.families import family_named
from moe.masters import masters_of
from moe.optimised import ROUNDED, OptimiserGroups
from moe.skeleton import meta_model, own_tensors
from protocol.lease import TrunkPart
from protocol.recipe import BF16_MASTERS, FROZEN_TRUNK, LORA_TRUNK, WHOLE_TRUNK


@dataclass(frozen=True, slots=True, kw_only=True)
class TrunkSort:
    """The tensors of one model by what becomes of them, were they all trunk; not of a trunk that is trained whole."""

    rank: int
    factored: frozenset[str]
    """Matrices [N, H] in whose place a factor [N, rank] is trained and sent."""
    small: frozenset[str]
    """What is trained itself."""
    halved: frozenset[str]
    """What, not being trained, is kept in the dtype that products are taken in: large, and of plain layers alone."""

    def sent_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """What is sent of a tensor of that shape; None: nothing."""
        if name in self.factored:
            return (shape[0], self.rank)
        return shape if name in self.small else None


def trunk_sort(values: Mapping[str, Any], part: TrunkPart) -> TrunkSort | None:
    """Of the model with this closed configuration; None where all of its trunk is trained."""
    if part.mode == WHOLE_TRUNK:
        return None
    return _sorted(json.dumps(values, sort_keys=True), part.mode, part.rank)


@functools.lru_cache(maxsize=16)
def _sorted(config_text: str, mode: str, rank: int) -> TrunkSort:
    config = config_from_json(json.loads(config_text))
    model, family = meta_model(config), family_named(config.model_type)
    sorter, halved = OptimiserGroups(model, family), masters_of(model, family, BF16_MASTERS).halved
    if mode == FROZEN_TRUNK:
        return TrunkSort(rank=0, factored=frozenset(), small=frozenset(), halved=halved)
    assert mode == LORA_TRUNK
    linear = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    factored, small = set[str](), set[str]()
    parameters = dict(model.named_parameters())
    for name, tensor in own_tensors(model).items():
        if family.is_selection_bias(name):
            small.add(name)
        elif name not in parameters or not tensor.is_floating_point():
            continue  # tables, which no gradient moves
        elif (kind := sorter.kind(name, tensor)) not in ROUNDED:
            small.add(name)
        elif kind == "matrices" and name in halved & linear:
            # a factor of no lower rank than the matrix would be no smaller: that is small enough itself
            (factored if rank < min(tensor.shape) else small).add(name)
    return TrunkSort(rank=rank, factored=frozenset(factored), small=frozenset(small), halved=halved)
