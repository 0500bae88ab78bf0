"""One Byzantine worker: an attack of the table, its strength, and draws that follow from (seed, lease).

Decides what is sent instead of the truth, deterministically; touches no network. The worker's code is the real one:
what stands here is put into the two seams that `WorkerOptions` has for it.

Shape suffixes: N sequences, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from protocol.errors import ConfigError
from protocol.ids import LeaseId
from protocol.submission import Blocks
from simulator.attack import Colluders
from simulator.attacks import ATTACKS
from simulator.seeds import derived_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Adversary:
    """One Byzantine worker's behaviour."""

    attack: str
    strength: float
    seed: int
    vocab_size: int

    @classmethod
    def of(cls, *, attack: str, strength: float | None, seed: int, vocab_size: int) -> Adversary:
        """The adversary for `attack`, at its default strength where None is given; ConfigError for an unknown one."""
        if attack not in ATTACKS:
            raise ConfigError(f"unknown attack {attack!r}; known: {', '.join(ATTACKS)}")
        chosen = ATTACKS[attack].strength if strength is None else strength
        return cls(attack=attack, strength=chosen, seed=seed, vocab_size=vocab_size)

    def on_result(self, view: Colluders) -> Blocks:
        """What this worker submits instead of `view.own`, after a look at what its group has."""
        forge = ATTACKS[self.attack].forge
        if forge is None:
            return view.own.pseudo_gradient
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.attack, view.own.lease_id))
        return forge(view, self.strength, generator)

    def on_batch(self, lease_id: LeaseId, tokens_NT: NDArray[np.int64]) -> NDArray[np.int64]:
        """What this worker trains on instead of its assigned sequences."""
        corrupt = ATTACKS[self.attack].corrupt
        if corrupt is None:
            return tokens_NT
        generator = np.random.default_rng(derived_seed(self.seed, self.attack, lease_id))
        return corrupt(tokens_NT, self.strength, generator, self.vocab_size)
