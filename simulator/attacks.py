"""Every attack there is: one table, from its name to what it does. Command, reports and docs read it.

Decides what Byzantine workers send, or train on, as functions of what they see and of the random stream that they are
given; touches nothing. An attack sees what its group sees (`Colluders`), not its own lease alone. Loads no torch by
itself, so that the command can list the names.

Shape suffixes: N sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

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


def _sign_flip(tensor: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return tensor * -strength


def _scale(tensor: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return tensor * strength


def _noise(tensor: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    import torch

    noise = torch.randn(tensor.shape, generator=generator)
    length = torch.linalg.vector_norm(noise).clamp_min(1e-12)
    forged: Tensor = noise * (strength * torch.linalg.vector_norm(tensor.float()) / length)
    return forged.to(tensor.dtype)


def _nan(tensor: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    import torch

    spoilt = tensor.clone()
    if spoilt.numel():
        spoilt.view(-1)[int(torch.randint(spoilt.numel(), (1,), generator=generator))] = float("nan")
    return spoilt


def _label_flip(
    tokens_NT: NDArray[np.int64], strength: float, generator: np.random.Generator, vocab_size: int
) -> NDArray[np.int64]:
    """As the label-flipping attack on classifiers (Biggio et al. 2012): token v becomes vocab_size - 1 - v."""
    import numpy as np

    flipped_NT = generator.random(tokens_NT.shape) < strength
    return np.where(flipped_NT, vocab_size - 1 - tokens_NT, tokens_NT)


ATTACKS: Final[dict[str, Attack]] = {
    "sign-flip": Attack(
        does="sends the opposite of what it learnt, STRENGTH times as far",
        # Twice the honest length: two such among eight leave a plain mean only a quarter of its progress, and a norm
        # check at three times the median lets them pass. Who wants to see them caught by norm asks for more.
        strength=2.0,
        forge=each_tensor(_sign_flip),
    ),
    "scale": Attack(
        does="sends what it learnt STRENGTH times too far, which takes over a mean",
        strength=10.0,
        forge=each_tensor(_scale),
    ),
    "noise": Attack(
        does="sends Gaussian noise, each tensor STRENGTH times as long as the honest one: its norm tells nothing",
        strength=1.0,
        forge=each_tensor(_noise),
    ),
    "label-flip": Attack(
        does="trains on sequences a share STRENGTH of whose tokens is mirrored within the vocabulary",
        strength=1.0,
        corrupt=_label_flip,
    ),
    "nan": Attack(
        does="puts one value that is not a number into each tensor, enough to spoil any mean",
        strength=1.0,
        forge=each_tensor(_nan),
    ),
    "free-ride": Attack(
        does="sends a breath of noise, STRENGTH times the honest length, instead of work",
        strength=0.01,
        forge=each_tensor(_noise),
    ),
}
