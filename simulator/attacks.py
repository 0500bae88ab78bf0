"""Every attack there is: one table, from its name to what it does. Command, reports and docs read it.

Decides what Byzantine workers send, or train on, as functions of what they see and of the random stream that they are
given; touches nothing. An attack sees what its group sees (`Colluders`), not its own lease alone. Loads no torch by
itself, so that the command can list the names.

Shape suffixes: N sequences, T tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from simulator.attack import Attack, each_tensor

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor


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
