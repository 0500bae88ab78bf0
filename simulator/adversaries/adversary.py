"""One Byzantine worker: an attack, its strength, and draws that follow from (seed, lease).

Decides what is sent instead of the truth, and whether it lies in a round at all, deterministically; touches no network.
The worker's code is the real one: what stands here is put into the two seams that `WorkerOptions` has for it.

Shape suffixes: N sequences, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from protocol.ids import LeaseId, RoundNumber
from protocol.submission import Blocks
from simulator.adversaries.attack import Attack, Colluders
from simulator.adversaries.files import attack_named
from simulator.seeds import derived_seed, derived_stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Adversary:
    """One Byzantine worker's behaviour."""

    name: str
    attack: Attack
    strength: float
    seed: int
    vocab_size: int

    @classmethod
    def of(cls, *, attack: str, strength: float | None, seed: int, vocab_size: int) -> Adversary:
        """The adversary for `attack`, at its default strength where None is given; ConfigError for an unknown one."""
        row = attack_named(attack)
        chosen = row.strength if strength is None else strength
        return cls(name=attack, attack=row, strength=chosen, seed=seed, vocab_size=vocab_size)

    def lies_in(self, round_: RoundNumber) -> bool:
        """Whether it does what its attack says in this round; otherwise it is honest."""
        return self.attack.conduct.lies_in(round_, derived_stream(self.seed, self.name, "round", round_))

    def on_result(self, view: Colluders) -> Blocks:
        """What this worker submits instead of `view.own`, after a look at what its group has."""
        forge = self.attack.forge
        if forge is None or not self.lies_in(view.own.round):
            return view.own.pseudo_gradient
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.name, view.own.lease_id))
        return forge(view, self.strength, generator)

    def on_batch(self, lease_id: LeaseId, round_: RoundNumber, tokens_NT: NDArray[np.int64]) -> NDArray[np.int64]:
        """What this worker trains on instead of its assigned sequences."""
        corrupt = self.attack.corrupt
        if corrupt is None or not self.lies_in(round_):
            return tokens_NT
        generator = np.random.default_rng(derived_seed(self.seed, self.name, lease_id))
        return corrupt(tokens_NT, self.strength, generator, self.vocab_size)
