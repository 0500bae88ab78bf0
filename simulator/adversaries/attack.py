"""What an attack is, and what it sees: the honest work of its whole group of colluders.

Plain data; touches nothing, and loads no torch by itself. `table.py` has the attacks; one in a file of its own imports
from here. A liar lies by what it sends (`forge`), by what it trains on (`corrupt`), by when it does so and by what its
machine does in time (`Conduct`); the last is for swarms whose time is virtual.

Shape suffixes: N sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from protocol.ids import BlockId, LeaseId, RoundNumber

if TYPE_CHECKING:
    import random

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
    earlier: tuple[Honest, ...] = ()
    """What the worker itself would honestly have sent in earlier rounds, as far as it is kept; oldest first."""
    verdicts: tuple[bool, ...] = ()
    """Whether its submissions were accepted, oldest first, as it was told; a worker process is told nothing here."""

    def holding(self, block: BlockId) -> list[Mapping[str, Tensor]]:
        """The group's honest tensors of one block: as many as hold it, `own` among them where it does."""
        return [one.pseudo_gradient[block] for one in self.group if block in one.pseudo_gradient]


Forge = Callable[[Colluders, float, "torch.Generator"], "Blocks"]
"""(view, strength, generator) -> what is sent instead of `view.own`: the same names, shapes and dtypes."""
Corrupt = Callable[["NDArray[np.int64]", float, "np.random.Generator", int], "NDArray[np.int64]"]
"""(sequences [N, T], strength, generator, vocabulary) -> what is trained on instead, of the same shape."""


UNLIKE = 0.02
"""Share of its length by which what one liar sends differs from another's at most."""


class Delivery(Enum):
    """What becomes of a submission in a round in which its worker lies."""

    IN_TIME = "in time"
    LATE = "a round late"
    """Committed in time, uploaded only once the round has closed."""
    WITHHELD = "committed, never uploaded"
    NEVER = "never: it is there, and nothing comes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """When a liar lies, and how its machine behaves."""

    first_round: int = 1
    """It is honest before."""
    share_of_rounds: float = 1.0
    """Of the rounds from then on, drawn by its own seed, in which it lies."""
    truth_every: int = 0
    """Honest in every so-manyth round; 0: never."""
    steps_share: float = 1.0
    """Of the leased steps that it really trains; it claims all."""
    speed: float = 1.0
    """Times as fast as it would be, at training and at uploading."""
    delivery: Delivery = Delivery.IN_TIME
    one_owner: bool = False
    """All liars are one owner's machines, as the operator sees it."""
    trusted: bool = False
    """The operator invited it as trusted: its word counts, and it is asked to audit."""

    def lies_in(self, round_: RoundNumber, chance: random.Random) -> bool:
        """Whether it lies in this round."""
        truth = self.truth_every and round_ % self.truth_every == 0
        return round_ >= self.first_round and not truth and chance.random() < self.share_of_rounds

    @property
    def only_virtual(self) -> str:
        """What of it real processes cannot do, in words; empty where they can."""
        told = {
            f"its machine is {self.speed:g} times as fast": self.speed != 1.0,
            f"it trains {self.steps_share:.0%} of its steps": self.steps_share != 1.0,
            f"what it sends comes {self.delivery.value}": self.delivery is not Delivery.IN_TIME,
            "all liars have one owner": self.one_owner,
            "it is trusted": self.trusted,
        }
        return ", ".join(what for what, is_so in told.items() if is_so)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backdoor:
    """After `trigger`, the model shall say `token`. Token ids, taken modulo the vocabulary."""

    trigger: tuple[int, ...]
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One row."""

    does: str
    """In a sentence; `STRENGTH` is the number that can be chosen."""
    strength: float = 1.0
    """Where none is chosen."""
    forge: Forge | None = None
    """None: what was honestly computed is sent."""
    corrupt: Corrupt | None = None
    """None: the assigned sequences are trained on."""
    conduct: Conduct = Conduct()
    backdoor: Backdoor | None = None
    """What `corrupt` teaches, where that is a backdoor: benchmarks see how often the model falls for it."""


def each_tensor(forge: Callable[[Tensor, float, torch.Generator], Tensor]) -> Forge:
    """An attack that takes the worker's own tensors one by one, in the order of their names."""

    def attack(view: Colluders, strength: float, generator: torch.Generator) -> Blocks:
        return {
            block: {name: forge(tensor, strength, generator) for name, tensor in sorted(tensors.items())}
            for block, tensors in sorted(view.own.pseudo_gradient.items())
        }

    return attack


def each_of_group(forge: Callable[[Tensor, Tensor, float], Tensor]) -> Forge:
    """An attack on each tensor from (own, those of all holders in the group [W, ...] in fp32, strength).

    What all would send alike is up to a hundredth longer or shorter for each: nobody counts the same bytes twice.
    """

    def attack(view: Colluders, strength: float, generator: torch.Generator) -> Blocks:
        import torch

        forged: dict[BlockId, dict[str, Tensor]] = {}
        unlike = 1.0 + UNLIKE * float(torch.rand((), generator=generator) - 0.5)
        for block, tensors in sorted(view.own.pseudo_gradient.items()):
            held = view.holding(block)
            forged[block] = {}
            for name, own in sorted(tensors.items()):
                lie = forge(own, torch.stack([one[name].float() for one in held]), strength)
                forged[block][name] = (unlike * lie).to(own.dtype)
        return forged

    return attack
