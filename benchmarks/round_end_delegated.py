"""The way of `benchmarks.round_end` in which two trusted workers measure gains, and what its stages cost.

What the coordinator does of it is clocked stage by stage; the workers' own measuring really happens, and is clocked
apart.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

from benchmarks.sized_runs import sized_run
from benchmarks.transfer_peers import DOWN
from benchmarks.transfers import ENGINE, Movers, serve, work
from coordinator.engine.answers import GainAnswer
from coordinator.engine.commands import MeasureSubmission, ValidateVersion
from coordinator.engine.enough import EarlyStop
from coordinator.engine.events import SubmissionMeasured
from coordinator.store.ports import BlobStore
from coordinator.work.executor import Executor
from moe.layout import Layout
from protocol.ids import BlockId, Digest, WorkerId
from protocol.lease import DataRange
from simulator.processes.launcher import ProcessGroup

KINDS = 4
"""Of submissions, as far as losses go."""
CHECKED = 2
"""Of the submissions: one in eight."""
MEASURERS = 2
ROWS = DataRange(seed=7, start=64, count=64)
TOLERANCE = 1e-3
PIECE_BYTES = 100_000_000
THEIRS = "workers' measuring"
"""Stage that the coordinator takes no part in."""


@dataclass(slots=True)
class Clocked:
    """What one stage took."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    sequences: int = 0


class StageClocks:
    """By stage."""

    def __init__(self) -> None:
        self.stages: dict[str, Clocked] = {}

    @contextmanager
    def running(self, stage: str) -> Iterator[Clocked]:
        """Add what passes meanwhile."""
        clocked = self.stages.setdefault(stage, Clocked())
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        yield clocked
        clocked.wall_s += time.perf_counter() - wall_s
        clocked.cpu_s += time.process_time() - cpu_s


@dataclass(frozen=True, slots=True)
class Cached:
    """The coordinator's blocks, where a worker would have its cache."""

    blocks: BlobStore

    def path(self, digest: Digest) -> Path:
        """Of a block."""
        return Path(self.blocks.place(digest))


@dataclass(frozen=True, slots=True)
class Laid:
    """A run, as far as measuring asks for it."""

    layout: Layout


def served(folder: Path, payload_bytes: int) -> Clocked:
    """So many bytes from the real server to two workers in processes of their own: the server's share."""
    piece = min(payload_bytes // MEASURERS, PIECE_BYTES)
    group, clocked = ProcessGroup(), Clocked()
    run = sized_run(folder / "serving", piece, {**ENGINE, "replicas": MEASURERS, "min_workers": MEASURERS})
    try:
        movers = Movers(group, folder, "barnraise", serve, work, run.root, MEASURERS)
        for _ in range(max(1, round(payload_bytes / MEASURERS / piece))):
            wall_s, cpu_s = movers.move(DOWN)
            clocked.wall_s += wall_s
            clocked.cpu_s += cpu_s
    finally:
        group.stop(grace_s=0.0)
    return clocked


class Delegates(Protocol):
    """What is asked of `benchmarks.round_end.RoundEnd`."""

    folder: Path
    submissions: int
    layout: Layout
    store: Any
    versions: Any
    settings: Any
    dataset: Any
    base: Digest
    sent: list[Digest]

    def command(self, place: int, early: EarlyStop | None, *, number: int, own: bool) -> MeasureSubmission:
        """To measure one submission."""


def delegated(bench: Delegates, executor: Executor, clocks: StageClocks) -> list[SubmissionMeasured]:
    """As `coordinator.run.slow.SlowCommands` does it, and what comes back is what two workers really found."""
    from coordinator.work.measured import believed, parts_of, sequences_of, with_gains
    from worker.fetched import FetchedItem, MeasuredPart, Run
    from worker.train.measuring import LossMeasurer

    digests = _digests(bench, bench.base)
    workers = [LossMeasurer(Cached(bench.store.blocks), "cpu") for _ in range(MEASURERS)]
    gains: list[SubmissionMeasured] = []
    known: dict[tuple[LossMeasurer, int], tuple[list[float], list[float]]] = {}
    for place in range(bench.submissions):
        command = bench.command(place, None, number=1, own=False)
        command = replace(command, rows=ROWS, delegate=True, check=place < CHECKED, tolerance=TOLERANCE)
        with clocks.running("screening") as clocked:
            decoded = executor.execute(replace(command, measure_gain=False))
            sequences_NL = sequences_of(bench.dataset, command, bench.settings.sequence_length, 0)
        item = FetchedItem(
            item_id=command.command_id, run=cast(Run, Laid(bench.layout)), columns=command.lease.columns,
            codec=command.codec, digests=digests, payload=bytes(bench.store.payloads.view(command.digest)),
            sequences=sequences_NL.astype("int64"),
            parts=tuple(MeasuredPart(share=one.share, start=one.start, stop=one.stop) for one in parts_of(command)),
        )  # fmt: skip
        asked = workers if command.check else [workers[place % MEASURERS]]
        with clocks.running(THEIRS) as clocked:
            for one in asked:
                if (one, place % KINDS) not in known:  # others are the same but for a bit
                    known[one, place % KINDS] = one.measure(item)
                    clocked.sequences += 2 * len(sequences_NL)
            found = [known[one, place % KINDS] for one in asked]
        with clocks.running("screening"):
            answers = [
                GainAnswer(worker=WorkerId(f"{number:032x}"), before=tuple(before), after=tuple(after))
                for number, (before, after) in enumerate(found)
            ]
            believed_ = believed(command, answers)
            assert isinstance(decoded, SubmissionMeasured)
            assert believed_ is not None
            gains.append(with_gains(decoded, believed_, answers, at_s=0.0))
    return gains


def delegated_validation(bench: Delegates, command: ValidateVersion, clocks: StageClocks) -> None:
    """By one worker, of whom it is believed."""
    from coordinator.work.measured import sequences_of, validated
    from worker.fetched import FetchedItem, Run
    from worker.train.measuring import LossMeasurer

    settings, command = bench.settings, replace(command, delegate=True, tolerance=TOLERANCE)
    with clocks.running("validation"):
        tokens_NL = sequences_of(bench.dataset, command, settings.sequence_length, settings.heldout_limit)
    item = FetchedItem(
        item_id=command.command_id, run=cast(Run, Laid(bench.layout)), columns=(), codec="", payload=b"", parts=(),
        digests=_digests(bench, command.manifest), sequences=tokens_NL.astype("int64"),
    )  # fmt: skip
    with clocks.running(THEIRS) as clocked:
        before, _ = LossMeasurer(Cached(bench.store.blocks), "cpu").measure(item)
        clocked.sequences += len(before)
    with clocks.running("validation"):
        answer = GainAnswer(worker=WorkerId("0" * 32), before=tuple(before), after=())
        assert validated(command, [answer], at_s=0.0) is not None


def serving(bench: Delegates, command: ValidateVersion, clocks: StageClocks) -> None:
    """What two workers fetch for all this: submissions, and the step to the version from the one before."""
    submission_bytes = bench.store.payloads.stat(bench.sent[0]) or 0
    steps = bench.versions.manifest(command.manifest).deltas.values()
    step_bytes = sum(chain[0].payload_bytes for chain in steps)
    payload_bytes = (bench.submissions + CHECKED) * submission_bytes + MEASURERS * step_bytes
    clocks.stages["serving"] = served(bench.folder, payload_bytes)


def _digests(bench: Delegates, manifest: Digest) -> dict[BlockId, Digest]:
    return {block: ref.digest for block, ref in bench.versions.manifest(manifest).blocks.items()}
