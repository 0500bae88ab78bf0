"""One lease as `benchmarks.replay_noise` has it computed: honestly, after a death in the middle, and as cheats would.

Decides what each cheat does. Touches the device only.

Shapes: sequences are [N, L], L stored tokens a sequence.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from aggregation.replayed import replay_distance
from moe.layout import Layout, submission_specs
from moe.shard import build_shard
from protocol.codecs import CODECS
from protocol.lease import Lease
from protocol.submission import Blocks, decode_submission, encode_submission
from simulator.adversaries.attack import Colluders, Honest
from simulator.adversaries.data import PLANTED, planting
from simulator.adversaries.group import sparse
from worker.train.local_state import LocalState
from worker.train.replay import replay_lease
from worker.train.trainer import TrainingStopped, pseudo_gradient_of, train_shard

COMPUTE = {"fp32": None, "bf16": torch.bfloat16}
CHEATS = ("rate", "skips_tenth", "skips_half", "other_data", "backdoor", "sparse", "scale")
Sequences = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseTask:
    """One lease with all that it is computed from. Travels to another process."""

    layout: Layout
    lease: Lease
    start: Blocks
    sequences: Sequences
    compute: str
    device: str = "cpu"

    def computed(self, *, micro_batch: int = 0, threads: int = 1) -> Blocks:
        """Its pseudo-gradient."""
        return self.computed_in(micro_batch=micro_batch, threads=threads)[0]

    def computed_in(self, *, micro_batch: int = 0, threads: int = 1, wanted: str = "") -> tuple[Blocks, str]:
        """The same, in the arithmetic class `wanted` where that can be had, and the class that it was."""
        replay = replay_lease(self.layout, device=self.device, compute_dtype=COMPUTE[self.compute], threads=threads)
        return replay(self.lease, self.start, self.sequences, micro_batch, wanted)

    def restarted(self) -> Blocks:
        """The same by a worker that is killed in the middle, and goes on in another shard."""
        keeper = OneRestart(self.lease.inner_steps // 2)
        with contextlib.suppress(TrainingStopped):
            self._trained(keeper)
        torch.manual_seed(999)
        return self._trained(keeper)

    def _trained(self, keeper: OneRestart) -> Blocks:
        lease = self.lease
        shard = build_shard(
            self.layout,
            lease.columns,
            self.start,
            device=self.device,
            compute_dtype=COMPUTE[self.compute],
            seed=lease.seed,
            masters=lease.recipe.masters,
        )
        train_shard(shard, lease, self.sequences, device=self.device, keeper=keeper, on_step=keeper.on_step)
        return pseudo_gradient_of(self.start, shard)

    def cut_to(self, steps: int) -> NoiseTask:
        """The task of a worker that stops after so many steps."""
        count = steps * self.lease.batch_sequences
        data = dataclasses.replace(self.lease.data, count=count)
        lease = dataclasses.replace(self.lease, inner_steps=steps, data=data)
        return dataclasses.replace(self, lease=lease, sequences=self.sequences[:count])

    def faster(self, times: float) -> NoiseTask:
        """The task at higher rates."""
        recipe = self.lease.recipe
        recipe = dataclasses.replace(
            recipe,
            learning_rate=recipe.learning_rate * times,
            muon_learning_rate=recipe.muon_learning_rate * times,
        )
        return dataclasses.replace(self, lease=dataclasses.replace(self.lease, recipe=recipe))


class OneRestart:
    """A keeper in memory, and the death one step after it has kept something."""

    def __init__(self, after: int) -> None:
        self._after, self._done = after, 0
        self._kept: LocalState | None = None

    def load(self) -> LocalState | None:
        """What was kept."""
        return self._kept

    def due(self) -> bool:
        """Once."""
        return self._kept is None and self._done == self._after

    def save(self, state: LocalState) -> None:
        """Keep a copy: the trainer goes on with its own."""
        tensors = {name: tensor.clone() for name, tensor in state.tensors.items()}
        self._kept = dataclasses.replace(state, tensors=tensors)

    def on_step(self, done: int, _loss: float | None) -> None:
        """Die in the step after."""
        first_life = self._done < done
        self._done = done
        if first_life and done == self._after + 1:
            raise TrainingStopped("killed")


def cheats_of(task: NoiseTask, other: NoiseTask, again: Blocks, vocab_size: int) -> dict[str, Blocks]:
    """What is sent instead of `again`, by the cheat's name; `other` is a lease of other data."""
    steps, draw = task.lease.inner_steps, np.random.default_rng(task.lease.seed)
    poisoned_NL = planting(PLANTED)(task.sequences, 0.1, draw, vocab_size)
    own = Honest(
        lease_id=task.lease.lease_id, round=task.lease.round, columns=task.lease.columns, pseudo_gradient=again
    )
    return {
        "rate": task.faster(1.02).computed(),
        "skips_tenth": task.cut_to(steps - steps // 10).computed(),
        "skips_half": task.cut_to(steps // 2).computed(),
        "other_data": dataclasses.replace(task, sequences=other.sequences).computed(),
        "backdoor": dataclasses.replace(task, sequences=poisoned_NL).computed(),
        "sparse": sparse(Colluders(own=own, group=(own,)), 20.0, torch.Generator().manual_seed(task.lease.seed)),
        "scale": {block: {name: 1.05 * tensor for name, tensor in held.items()} for block, held in again.items()},
    }


def apart(task: NoiseTask, sent: Blocks, again: Blocks, codec: str) -> float:
    """The distance that an audit would find, both sides through `codec`."""
    specs, lease = submission_specs(task.layout, task.lease.columns), task.lease
    one, two = (
        decode_submission(encode_submission(blocks, CODECS[codec]), specs, CODECS[codec], lease.blocks)
        for blocks in (sent, again)
    )
    return replay_distance(one, two).largest
