"""What an attack is, and what it sees: the honest work of its whole group of colluders.

Plain data; touches nothing, and loads no torch by itself. `attacks.py` has the table; an attack in a file of its own
imports from here.

Shape suffixes: N sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.ids import BlockId, LeaseId, RoundNumber

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from protocol.submission import Blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Honest:
    """What one of the group was asked for, and what it would send if it did not lie."""

    lease_id: LeaseId
    round: RoundNumber
    columns: tuple[int, ...]
    pseudo_gradient: Blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Colluders:
    """What a group of Byzantine workers knows when one of them has to answer."""

    own: Honest
    group: tuple[Honest, ...]
    """Everybody's of the same round, by lease; `own` is one of them."""

    def holding(self, block: BlockId) -> list[Mapping[str, Tensor]]:
        """The group's honest tensors of one block: as many as hold it, `own` among them where it does."""
        return [one.pseudo_gradient[block] for one in self.group if block in one.pseudo_gradient]


Forge = Callable[[Colluders, float, "torch.Generator"], "Blocks"]
"""(view, strength, generator) -> what is sent instead of `view.own`: the same names, shapes and dtypes."""
Corrupt = Callable[["NDArray[np.int64]", float, "np.random.Generator", int], "NDArray[np.int64]"]
"""(sequences [N, T], strength, generator, vocabulary) -> what is trained on instead, of the same shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One row."""

    does: str
    """In a sentence; `STRENGTH` is the number that can be chosen."""
    strength: float
    """Where none is chosen."""
    forge: Forge | None = None
    """None: what was honestly computed is sent."""
    corrupt: Corrupt | None = None
    """None: the assigned sequences are trained on."""


def each_tensor(forge: Callable[[Tensor, float, torch.Generator], Tensor]) -> Forge:
    """An attack that takes the worker's own tensors one by one, in the order of their names."""

    def attack(view: Colluders, strength: float, generator: torch.Generator) -> Blocks:
        return {
            block: {name: forge(tensor, strength, generator) for name, tensor in sorted(tensors.items())}
            for block, tensors in sorted(view.own.pseudo_gradient.items())
        }

    return attack
