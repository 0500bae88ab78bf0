"""How far honest leases of a run lie from their replay on this machine, and which `audits.tolerance` follows.

Leases like the run's own (model, version, recipe, codec) are trained with the batch in one piece by one thread, and
again under other conditions; and twice as a cheat would. Decides the tolerance: a tenth of the nearest lie's distance,
or ten times the farthest honest one's where that is more, since nobody honest may be banned for rounding.
Always: the same run, version and arguments give the same leases. Reads the run folder and changes nothing in it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from aggregation.replayed import ReplayDistance, replay_distance
from coordinator.engine.schedules import lease_recipe, recipe_steps
from coordinator.run.folder import RunFolder
from coordinator.run.pump import load_engine
from coordinator.store.journal import Journal
from coordinator.store.versions import Versions
from moe.layout import Layout, submission_specs
from protocol.codecs import codec_named
from protocol.errors import ConfigError
from protocol.ids import LeaseId
from protocol.lease import DataRange, Lease
from protocol.submission import Blocks, decode_submission, encode_submission
from worker.train.replay import replay_lease

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from coordinator.engine.state import EngineState

MARGIN = 10.0
"""What shall lie between the farthest honest distance and the tolerance, and between that and the nearest lie."""
SMALLEST = 1e-6
"""No tolerance is below this: fp32 has seven digits."""

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What may differ between two honest machines, of what this one can imitate."""

    micro_batch: int
    """Sequences at a time; 0: the whole batch."""
    threads: int
    bf16: bool = False
    """Matrices are multiplied in bf16, as GPUs that have it do."""

    def __str__(self) -> str:
        cut = f"{self.micro_batch} at a time" if self.micro_batch else "whole batch"
        return f"{cut}, {self.threads} thread{'s' if self.threads > 1 else ''}{', bf16' if self.bf16 else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredDistance:
    """The farthest of all leases, or of a lie the nearest; relative L2 after the codec."""

    what: str
    trunk: float
    columns: float
    counts: bool
    """Whether the tolerance follows from it."""

    @property
    def largest(self) -> float:
        """What an audit compares with its tolerance."""
        return max(self.trunk, self.columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was measured, and what follows."""

    run_id: str
    version: int
    device: str
    optimizer: str
    codec: str
    inner_steps: int
    leases: int
    honest: tuple[MeasuredDistance, ...]
    lies: tuple[MeasuredDistance, ...]
    tolerance: float
    tolerance_now: float

    @property
    def farthest_honest(self) -> float:
        """Of those that count."""
        return max(one.largest for one in self.honest if one.counts)

    @property
    def nearest_lie(self) -> float:
        """The one that is hardest to see."""
        return min(one.largest for one in self.lies)

    @property
    def holds(self) -> bool:
        """Whether the tolerance tells the nearest lie from honest work at all."""
        return self.tolerance < self.nearest_lie

    def margins(self, tolerance: float) -> tuple[float, float]:
        """How many times the tolerance is above honest work, and the nearest lie above the tolerance."""
        return tolerance / max(self.farthest_honest, SMALLEST / MARGIN), self.nearest_lie / tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What is needed of a run, read once."""

    folder: RunFolder
    state: EngineState
    layout: Layout
    start: Blocks
    dataset: Any
    codec: str
    sequence_length: int

    @classmethod
    def read(cls, folder: RunFolder) -> _Run:
        journal = Journal.open(folder.journal_path, writable=False)
        try:
            state = load_engine(journal, folder.draw_secret(), only_read=True)[0].state
        finally:
            journal.close()
        layout, settings = folder.layout(), folder.settings()
        versions = Versions(folder.root / "versions", folder.artifacts().blocks, layout)
        return cls(
            folder=folder,
            state=state,
            layout=layout,
            start=versions.load_blocks(versions.manifest(state.manifest)),
            dataset=folder.dataset(),
            codec=settings.codec,
            sequence_length=settings.sequence_length,
        )

    def lease(self, number: int, steps: int | None) -> Lease:
        """As the engine would grant it now; every second one holds half of the columns."""
        config, round_ = self.state.chosen_config, self.state.round.round
        steps = steps or recipe_steps(config, round_)
        least = max(self.layout.min_columns, config.min_columns)
        held = self.layout.columns if number % 2 == 0 else max(least, self.layout.columns // 2)
        batch = config.inner.batch_sequences
        spare = self.dataset.train_sequences(self.sequence_length) - steps * batch
        if spare < 0:
            raise ConfigError(f"the data has too few sequences for {steps} steps of {batch}: lower --steps")
        return Lease(
            lease_id=LeaseId(f"calibration.{number}"),
            round=round_,
            base_version=self.state.version,
            columns=tuple(range(held)),
            data=DataRange(seed=number, start=number * steps * batch % (spare + 1), count=steps * batch),
            seed=number,
            inner_steps=steps,
            batch_sequences=batch,
            recipe=lease_recipe(config, round_, steps),
            lora_seed=number,
        )

    def sequences(self, lease: Lease) -> NDArray[np.int64]:
        data = lease.data
        rows: NDArray[np.int64] = self.dataset.sequences(data.seed, data.start, data.count, self.sequence_length)
        return rows.astype("int64")

    def coded(self, lease: Lease, blocks: Blocks) -> Blocks:
        """What the coordinator reads of it."""
        codec = codec_named(self.codec)
        specs = submission_specs(self.layout, lease.columns, lease.trunk)
        return decode_submission(encode_submission(blocks, codec), specs, codec, lease.blocks)


def calibrate(
    folder: RunFolder,
    *,
    leases: int = 4,
    steps: int | None = None,
    device: str = "cpu",
    with_bf16: bool = False,
    tell: Told = lambda _: None,
) -> Calibration:
    """Train `leases` leases of the run's latest version again and again; `steps` None: as many as the run's have.

    `with_bf16`: the tolerance shall hold between machines that multiply in bf16 and those that do not. ConfigError
    where the run's data is too small for a lease.
    """
    tell("reading the run")
    run = _Run.read(folder)
    trials = list(_trials(run.state.chosen_config.inner.batch_sequences))
    found: dict[str, list[ReplayDistance]] = {trial.what: [] for trial in trials}
    for number in range(leases):
        lease = run.lease(number, steps)
        again = _trained(run, lease, AS_REPLAYED, device)
        for done, trial in enumerate(trials, start=1):
            tell(f"lease {number + 1} of {leases}, {done} of {len(trials)}: {trial.what}")
            found[trial.what].append(replay_distance(_trained(run, trial.lie(lease), trial.conditions, device), again))
    honest = tuple(
        _farthest(trial.what, found[trial.what], counts=with_bf16 or not trial.conditions.bf16)
        for trial in trials
        if trial.lie is _none
    )
    lies = tuple(_nearest(trial.what, found[trial.what]) for trial in trials if trial.lie(lease) != lease)
    return Calibration(
        run_id=folder.run_id,
        version=run.state.version,
        device=device,
        optimizer=lease.recipe.optimizer,
        codec=run.codec,
        inner_steps=lease.inner_steps,
        leases=leases,
        honest=honest,
        lies=lies,
        tolerance=tolerance_for(max(one.largest for one in honest if one.counts), min(one.largest for one in lies)),
        tolerance_now=run.state.chosen_config.audits.tolerance,
    )


def tolerance_for(farthest_honest: float, nearest_lie: float) -> float:
    """The tolerance that follows, to two digits, rounded away from honest work.

    >>> tolerance_for(1e-6, 0.0213)
    0.0022
    >>> tolerance_for(0.01, 0.0213)
    0.1
    """
    wanted = max(MARGIN * farthest_honest, nearest_lie / MARGIN, SMALLEST)
    unit = 10.0 ** (math.floor(math.log10(wanted)) - 1)
    return float(f"{math.ceil(wanted / unit - 1e-9) * unit:.2g}")


AS_REPLAYED = Conditions(micro_batch=0, threads=1)


class _Trial(NamedTuple):
    """One more way to compute each lease."""

    what: str
    conditions: Conditions
    lie: Callable[[Lease], Lease]


def _trials(batch: int) -> Iterator[_Trial]:
    """The same once more, then other machines, then lies."""
    others = max(2, torch.get_num_threads())
    cuts = sorted({(batch + 1) // 2, max(1, batch // 3)} - {batch}, reverse=True)
    honest = [AS_REPLAYED, Conditions(micro_batch=0, threads=others)]
    honest += [Conditions(micro_batch=cut, threads=others if cut == cuts[-1] else 1) for cut in cuts]
    honest.append(Conditions(micro_batch=0, threads=1, bf16=True))
    yield from (_Trial(str(one), one, _none) for one in honest)
    yield _Trial("learning rate 2 % higher", AS_REPLAYED, _faster)
    yield _Trial("one step in ten left out", AS_REPLAYED, _shorter)


def _none(lease: Lease) -> Lease:
    return lease


def _faster(lease: Lease) -> Lease:
    recipe = lease.recipe
    faster = dataclasses.replace(
        recipe, learning_rate=1.02 * recipe.learning_rate, muon_learning_rate=1.02 * recipe.muon_learning_rate
    )
    return dataclasses.replace(lease, recipe=faster)


def _shorter(lease: Lease) -> Lease:
    steps = max(1, lease.inner_steps - max(1, lease.inner_steps // 10))
    data = dataclasses.replace(lease.data, count=steps * lease.batch_sequences)
    return dataclasses.replace(lease, inner_steps=steps, data=data)


def _trained(run: _Run, lease: Lease, conditions: Conditions, device: str) -> Blocks:
    dtype = torch.bfloat16 if conditions.bf16 else None
    replay = replay_lease(run.layout, device=device, compute_dtype=dtype, threads=conditions.threads)
    again, _ = replay(lease, run.start, run.sequences(lease), conditions.micro_batch)
    return run.coded(lease, again)


def _farthest(what: str, found: list[ReplayDistance], *, counts: bool) -> MeasuredDistance:
    return MeasuredDistance(
        what=what, trunk=max(one.trunk for one in found), columns=max(one.columns for one in found), counts=counts
    )


def _nearest(what: str, found: list[ReplayDistance]) -> MeasuredDistance:
    one = min(found, key=lambda distance: distance.largest)
    return MeasuredDistance(what=what, trunk=one.trunk, columns=one.columns, counts=True)
