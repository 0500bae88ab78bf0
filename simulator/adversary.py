"""What Byzantine workers do: attacks on the pseudo-gradient after honest training, or on the data before it.

Decides what is sent instead of the truth, deterministically from (seed, lease); touches no network. The worker's code
is the real one: these functions are put into the two seams that `WorkerOptions` has for them.

Shape suffixes: N sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocol.errors import ConfigError
from simulator.processes.options import ATTACKS
from simulator.seeds import derived_seed

Blocks = Mapping[str, Mapping[str, Tensor]]
"""A pseudo-gradient: block, then parameter name, then tensor."""

DEFAULT_STRENGTH: Mapping[str, float] = {
    # Twice the honest length, turned round: two such among eight leave a plain mean only a quarter of its progress,
    # and a norm check at three times the median lets them pass. Who wants to see them caught by norm asks for more.
    "sign-flip": 2.0,
    "scale": 10.0,
    "noise": 1.0,
    "label-flip": 1.0,
    "nan": 1.0,
    "free-ride": 0.01,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Adversary:
    """One Byzantine worker's behaviour."""

    attack: str
    strength: float
    seed: int
    vocab_size: int

    @classmethod
    def of(cls, *, attack: str, strength: float | None, seed: int, vocab_size: int) -> Adversary:
        """The adversary for `attack`, at its default strength where None is given."""
        if attack not in ATTACKS:
            raise ConfigError(f"unknown attack {attack!r}; known: {', '.join(ATTACKS)}")
        chosen = DEFAULT_STRENGTH[attack] if strength is None else strength
        return cls(attack=attack, strength=chosen, seed=seed, vocab_size=vocab_size)

    def on_result(self, lease_id: str, blocks: Blocks) -> dict[str, dict[str, Tensor]]:
        """What this worker submits instead of `blocks`."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.attack, lease_id))
        forge = _FORGERIES.get(self.attack, _honest)
        return {
            block: {name: forge(tensor, self.strength, generator) for name, tensor in sorted(tensors.items())}
            for block, tensors in sorted(blocks.items())
        }

    def on_batch(self, lease_id: str, tokens_NT: NDArray[np.int64]) -> NDArray[np.int64]:
        """What this worker trains on instead of its assigned sequences: only label-flip touches them.

        A share `strength` of the tokens, drawn for each lease, is mirrored within the vocabulary: token v becomes
        vocab_size - 1 - v, as in the label-flipping attack on classifiers (Biggio et al. 2012).
        """
        if self.attack != "label-flip":
            return tokens_NT
        generator = np.random.default_rng(derived_seed(self.seed, self.attack, lease_id))
        flipped_NT = generator.random(tokens_NT.shape) < self.strength
        return np.where(flipped_NT, self.vocab_size - 1 - tokens_NT, tokens_NT)


def _honest(tensor: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return tensor


def _sign_flip(tensor: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Uphill instead of downhill, `strength` times as far."""
    return tensor * -strength


def _scale(tensor: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """The right direction, `strength` times too far: what takes over a mean."""
    return tensor * strength


def _noise(tensor: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise, `strength` times as long as the honest tensor: its norm tells nothing."""
    noise = torch.randn(tensor.shape, generator=generator)
    length = torch.linalg.vector_norm(noise).clamp_min(1e-12)
    forged: Tensor = noise * (strength * torch.linalg.vector_norm(tensor.float()) / length)
    return forged.to(tensor.dtype)


def _nan(tensor: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """One value that is not a number in each tensor: enough to spoil any mean."""
    spoilt = tensor.clone()
    if spoilt.numel():
        spoilt.view(-1)[int(torch.randint(spoilt.numel(), (1,), generator=generator))] = float("nan")
    return spoilt


def _free_ride(tensor: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """No work: a breath of noise, `strength` times the honest length, so that it is not plain zeros."""
    return _noise(tensor, strength, generator)


_FORGERIES: Mapping[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "sign-flip": _sign_flip,
    "scale": _scale,
    "noise": _noise,
    "nan": _nan,
    "free-ride": _free_ride,
}
