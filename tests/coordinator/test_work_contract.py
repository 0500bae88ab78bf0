"""What every `Work` must do, over files and over the simulation's disk, on tensors and on hashes.

An implementation is one `Kind` below: how a process starts it, over which stores, and an honest submission for it.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray

from coordinator.engine import commands
from coordinator.engine.commands import (
    AggregateRound,
    CompareSubmissions,
    FindHarmful,
    MeasureSubmission,
    PublishedVersion,
    RebuildVersion,
    ReplayLease,
    SlowCommand,
    TryContributions,
    ValidateVersion,
    WriteCheckpoint,
)
from coordinator.engine.events import (
    BlockNorm,
    CheckpointWritten,
    ContributionsTried,
    Event,
    HarmfulFound,
    LeaseReplayed,
    RoundAggregated,
    SubmissionMeasured,
    VersionComparison,
    VersionRebuilt,
    VersionValidated,
)
from coordinator.engine.lease import GrantedLease
from coordinator.engine.records import command_digest, event_from_json, event_to_json
from coordinator.run.folder import RunFolder
from coordinator.store.artifacts import ArtifactStore
from coordinator.store.ports import BlobStore
from coordinator.work.port import Replay, Work
from moe.layout import Layout
from protocol.errors import LocalError
from protocol.ids import Digest, RoundNumber, Version
from protocol.lease import Lease
from protocol.submission import Blocks
from simulator.arithmetic import EVERYBODYS_ARITHMETIC
from simulator.deterministic.cheap_executor import trained_payload
from simulator.deterministic.disk import Disk, MemoryBlobs, MemoryPayloads
from simulator.deterministic.hashwork import HashWork
from simulator.deterministic.training import RealWork
from simulator.deterministic.work import Site, Spoils
from tests.coordinator.work_bench import Bench, constant, contribution, lease, payload_of

ENDS_IN: dict[type[SlowCommand], type[Event]] = {
    MeasureSubmission: SubmissionMeasured,
    AggregateRound: RoundAggregated,
    TryContributions: ContributionsTried,
    RebuildVersion: VersionRebuilt,
    ReplayLease: LeaseReplayed,
    CompareSubmissions: LeaseReplayed,
    FindHarmful: HarmfulFound,
    ValidateVersion: VersionValidated,
    WriteCheckpoint: CheckpointWritten,
}
WRITES = (AggregateRound, RebuildVersion, WriteCheckpoint)
ARITHMETIC = str(EVERYBODYS_ARITHMETIC)
LEASES = (lease(1, (0, 1)), lease(2, (1, 2)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One implementation, over stores in which version 0 was written and nothing else."""

    start: Callable[[], Work]
    """As a new process does: nothing is known but what the stores hold."""
    payloads: BlobStore
    submission: Callable[[GrantedLease], bytes]
    base_manifest: Digest
    lose_base: Callable[[], None]
    """The manifest of version 0 is gone."""
    stores: Callable[[], object]
    """All that is kept, as a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """One round's commands, on submissions that are in the store."""

    base_manifest: Digest
    sent: tuple[Digest, Digest]
    payload_bytes: int

    def aggregate(self, *weights: float) -> AggregateRound:
        """The outer step of the first submissions, by weights."""
        taken = zip(LEASES, self.sent, weights, strict=False)
        return AggregateRound(
            command_id="aggregate:r1", round=RoundNumber(1), parent_version=Version(0),
            parent_manifest=self.base_manifest, version=Version(1),
            contributions=tuple(
                contribution(number, digest, one.columns, weight=weight)
                for number, (one, digest, weight) in enumerate(taken, start=1)
            ),
            clips=(), rule="mean", outer_learning_rate=0.1, outer_momentum=0.5, seed=7, oldest_needed=Version(0),
            compared_with=(PublishedVersion(version=Version(0), manifest=self.base_manifest),), region_seed=11,
        )  # fmt: skip

    def of(self, kind: type[SlowCommand], *weights: float) -> SlowCommand:
        """The command of that kind; of both submissions, where it is of several and no weights are given."""
        step = self.aggregate(*(weights or (1.0, 1.0)))
        zero = {"version": Version(0), "manifest": self.base_manifest}
        measure = MeasureSubmission(
            command_id="measure:r1.1", lease=LEASES[0], digest=self.sent[0], payload_bytes=self.payload_bytes,
            codec="fp32", heldout_seed=7, measure_gain=True,
        )  # fmt: skip
        all_kinds = (
            measure,
            step,
            TryContributions(command_id="try:r1", attempt=step),
            RebuildVersion(
                command_id="rebuild:r1",
                round=RoundNumber(1),
                version=Version(2),
                parent_version=Version(1),
                parent_manifest=self.base_manifest,
                from_version=Version(0),
                from_manifest=self.base_manifest,
                steps=(step, dataclasses.replace(step, seed=8)),
            ),
            ReplayLease(
                command_id="replay:r1.1",
                lease=LEASES[0],
                digest=self.sent[0],
                codec="fp32",
                micro_batch=0,
                arithmetic=ARITHMETIC,
            ),
            CompareSubmissions(
                command_id="compare:r1.1",
                lease=LEASES[0],
                digest=self.sent[0],
                codec="fp32",
                again=LEASES[0],
                again_digest=self.sent[0],
                again_codec="fp32",
            ),
            FindHarmful(
                command_id="harm:r1",
                attempt=step,
                suspects=tuple(one.lease_id for one in step.contributions),
                margin=4.0,
                tolerance=0.005,
                passes=3,
            ),
            ValidateVersion(command_id="validate:v0", **zero),  # type: ignore[arg-type]
            WriteCheckpoint(command_id="checkpoint:v0", **zero),  # type: ignore[arg-type]
        )
        (found,) = (command for command in all_kinds if type(command) is kind)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Unheard(SlowCommand):
    """Of a release to come."""


class Tally(Work):
    """Made up: a model is one number, a submission is a number in digits, both lie as blobs."""

    def __init__(self, payloads: BlobStore, blobs: BlobStore, versions: dict[int, tuple[Digest, str]]) -> None:
        self._payloads, self._blobs, self._versions = payloads, blobs, versions

    def execute(self, command: SlowCommand) -> Event:
        command_id, at_s = command.command_id, 1000.0
        match command:
            case MeasureSubmission(lease=leased):
                sent, base = self._sent(command.digest), self._model(self._versions[leased.base_version][0])
                norms = tuple(BlockNorm(block=block, norm_l2=sent, base_l2=base) for block in leased.blocks)
                return SubmissionMeasured(
                    at_s=at_s, command_id=command_id, lease_id=leased.lease_id, malformed="", norms=norms
                )
            case AggregateRound(version=version):
                manifest = self._stepped(command)
                return RoundAggregated(
                    at_s=at_s, command_id=command_id, round=command.round, version=version,
                    parent_version=command.parent_version, manifest=manifest,
                    update_norm_l2=abs(self._model(manifest) - self._model(command.parent_manifest)),
                    compared=tuple(
                        VersionComparison(
                            version=old.version, gain=self._model(old.manifest) - self._model(manifest), gain_se=0.0,
                            loss=self._model(old.manifest),
                        )
                        for old in command.compared_with
                    ),
                )  # fmt: skip
            case RebuildVersion():
                change, manifest = self._rebuilt(command)
                return VersionRebuilt(
                    at_s=at_s, command_id=command_id, version=command.version,
                    parent_version=command.parent_version, manifest=manifest, change_l2=change,
                )  # fmt: skip
            case TryContributions(attempt=attempt):
                self._model(attempt.parent_manifest)
                for one in attempt.contributions:
                    self._sent(one.digest)
                return ContributionsTried(at_s=at_s, command_id=command_id, round=attempt.round, failed=())
            case ReplayLease(lease=leased, digest=digest):
                self._model(self._versions[leased.base_version][0])
                far = abs(self._sent(digest) - _value(leased))
                return LeaseReplayed(
                    at_s=at_s,
                    command_id=command_id,
                    lease_id=leased.lease_id,
                    auditor=None,
                    trunk=far,
                    arithmetic=ARITHMETIC,
                )
            case CompareSubmissions(lease=leased, digest=digest, again=again, again_digest=again_digest):
                far = abs(self._sent(digest) - self._sent(again_digest))
                return LeaseReplayed(
                    at_s=at_s, command_id=command_id, lease_id=leased.lease_id, auditor=again.worker, trunk=far
                )
            case FindHarmful(attempt=attempt, suspects=suspects):
                self._model(attempt.parent_manifest)
                risen = [one for one in attempt.contributions if self._sent(one.digest) < 0.0]
                return HarmfulFound(
                    at_s=at_s, command_id=command_id, round=attempt.round,
                    harmful=tuple(one.lease_id for one in risen), suspected=(), passes=len(suspects),
                )  # fmt: skip
            case ValidateVersion(version=version, manifest=manifest):
                loss = self._model(manifest)
                return VersionValidated(
                    at_s=at_s, command_id=command_id, version=version, val_loss=loss, val_loss_se=0.0
                )
            case WriteCheckpoint(version=version, manifest=manifest):
                self._model(manifest)
                return CheckpointWritten(at_s=at_s, command_id=command_id, version=version, path=str(manifest))
        raise LocalError(f"no tally of {type(command).__name__}")

    def _stepped(self, command: AggregateRound) -> Digest:
        found = self._versions.get(command.version)
        if found is None or found[1] != command_digest(command):
            moved = sum(one.weight * self._sent(one.digest) for one in command.contributions)
            model = self._model(command.parent_manifest) - moved
            self._versions[command.version] = self._blobs.put(json.dumps(model).encode()), command_digest(command)
        return self._versions[command.version][0]

    def _rebuilt(self, command: RebuildVersion) -> tuple[float, Digest]:
        present, model = self._model(command.parent_manifest), self._model(command.from_manifest)
        for step in command.steps:
            model -= sum(one.weight * self._sent(one.digest) for one in step.contributions)
        manifest = self._blobs.put(json.dumps(model).encode())
        self._versions[command.version] = manifest, command_digest(command)
        return abs(present - model), manifest

    def _model(self, manifest: Digest) -> float:
        return float(json.loads(self._blobs.read(manifest)))

    def _sent(self, digest: Digest) -> float:
        return float(self._payloads.read(digest))


def files(_: Path, request: pytest.FixtureRequest) -> Kind:
    run: RunFolder = request.getfixturevalue("run")
    bench = Bench(run)

    def start() -> Work:
        executor = Bench(run).executor
        executor.replay = _replay(bench.layout)
        return executor

    return Kind(
        start=start,
        payloads=bench.store.payloads,
        submission=lambda one: payload_of(bench.layout, one.columns, constant(_value(one))),
        base_manifest=bench.base_manifest,
        lose_base=lambda: bench.store.blocks.drop(bench.base_manifest),
        stores=lambda: _contents(run.root),
    )


def cheap(_: Path, __: pytest.FixtureRequest) -> Kind:
    work, disk = HashWork(4), Disk()
    manifest = work.first_version(disk)
    base = dict(disk.manifests[manifest])

    def submission(one: GrantedLease) -> bytes:
        data = one.data
        read = work.texts.sequences(data.seed, data.start, data.count, work.sequence_length)
        return trained_payload(one, base, read, 256)

    def lose_base() -> None:
        del disk.manifests[manifest]

    return Kind(
        start=lambda: work.executor(_site(disk)),
        payloads=MemoryPayloads(disk),
        submission=submission,
        base_manifest=manifest,
        lose_base=lose_base,
        stores=lambda: _books(disk),
    )


def simulated(folder: Path, _: pytest.FixtureRequest) -> Kind:
    work, disk = RealWork(1, folder), Disk()
    manifest = work.first_version(disk)
    work.replay = _replay(work.layout)
    return Kind(
        start=lambda: work.executor(_site(disk)),
        payloads=MemoryPayloads(disk),
        submission=lambda one: payload_of(work.layout, one.columns, constant(_value(one))),
        base_manifest=manifest,
        lose_base=lambda: ArtifactStore(folder).blocks.drop(manifest),
        stores=lambda: (_books(disk), _contents(folder)),
    )


def tally(_: Path, __: pytest.FixtureRequest) -> Kind:
    sent: dict[Digest, bytes] = {}
    models: dict[Digest, bytes] = {}
    manifest = MemoryBlobs(models).put(b"5.0")
    versions = {0: (manifest, "created")}
    return Kind(
        start=lambda: Tally(MemoryBlobs(sent), MemoryBlobs(models), versions),
        payloads=MemoryBlobs(sent),
        submission=lambda one: json.dumps(_value(one)).encode(),
        base_manifest=manifest,
        lose_base=lambda: MemoryBlobs(models).drop(manifest),
        stores=lambda: copy.deepcopy((sent, models, versions)),
    )


def _site(disk: Disk) -> Site:
    """Where all has been given up that is asked for: what is wanted and not there would end the simulation instead."""
    return Site(
        disk=disk,
        clock=lambda: 1000.0,
        is_wanted=lambda _: False,
        fails=lambda _: False,
        spoils=lambda _: Spoils.NOTHING,
        arithmetic=lambda _: ARITHMETIC,
        on_aggregated=lambda *_: None,
    )


def _replay(layout: Layout) -> Replay:
    """Training is tried elsewhere: a lease comes to what `_value` says, whoever computes it."""

    def replay(
        leased: Lease, base: Blocks, sequences_NL: NDArray[Any], micro_batch: int, wanted: str
    ) -> tuple[Blocks, str]:
        assert sequences_NL.shape[0] == leased.data.count
        assert set(leased.blocks) <= set(base)
        assert (micro_batch, wanted) == (0, ARITHMETIC)
        number = 0.25 * len(leased.columns) + 0.125 * leased.columns[0]
        blocks = {
            block: {name: torch.full_like(tensor, number) for name, tensor in base[block].items()}
            for block in leased.blocks
        }
        return blocks, wanted

    return replay


def _value(one: GrantedLease) -> float:
    return 0.25 * len(one.columns) + 0.125 * one.columns[0]


def _books(disk: Disk) -> object:
    return copy.deepcopy((disk.payloads, disk.blocks, disk.manifests, disk.versions))


def _contents(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


KINDS = (files, simulated, cheap, tally)


@pytest.fixture(params=KINDS, ids=lambda make: make.__name__)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    folder = tmp_path / "work"
    folder.mkdir()
    made: Kind = request.param(folder, request)
    return made


@pytest.fixture
def orders(kind: Kind) -> Orders:
    contents = [kind.submission(one) for one in LEASES]
    first, second = map(kind.payloads.put, contents)
    assert first != second
    return Orders(base_manifest=kind.base_manifest, sent=(first, second), payload_bytes=len(contents[0]))


each_command = pytest.mark.parametrize("asked", ENDS_IN, ids=lambda asked: asked.__name__)


def facts(event: Event) -> Event:
    """All but when."""
    return dataclasses.replace(event, at_s=0.0)


def test_no_slow_command_is_left_out() -> None:
    known = (value for value in vars(commands).values() if isinstance(value, type))
    assert set(ENDS_IN) == {value for value in known if issubclass(value, SlowCommand) and value is not SlowCommand}


@each_command
def test_a_command_ends_in_its_kind_of_event(kind: Kind, orders: Orders, asked: type[SlowCommand]) -> None:
    command, before = orders.of(asked), kind.stores()
    event = kind.start().execute(command)
    assert type(event) is ENDS_IN[asked]
    about = command.attempt if isinstance(command, TryContributions | FindHarmful) else command
    of_both = {"round", "version", "parent_version"} & {field.name for field in dataclasses.fields(event)}
    assert {name: getattr(event, name) for name in of_both} == {name: getattr(about, name) for name in of_both}
    assert event.command_id == command.command_id  # type: ignore[attr-defined]
    assert event_from_json(event_to_json(event)) == event, "it is journalled"
    match event:
        case SubmissionMeasured():
            assert (event.lease_id, event.malformed) == (LEASES[0].lease_id, "")
            assert [norm.block for norm in event.norms] == list(LEASES[0].blocks)
        case RoundAggregated():
            assert [one.version for one in event.compared] == [Version(0)]
        case HarmfulFound():
            assert set(event.harmful + event.suspected) <= {one.lease_id for one in LEASES}
            assert event.passes <= 3
        case ContributionsTried():
            assert event.failed == ()
        case LeaseReplayed():
            assert (event.lease_id, event.trunk, event.columns, event.error) == (LEASES[0].lease_id, 0.0, 0.0, "")
            assert event.arithmetic == ("" if asked is CompareSubmissions else ARITHMETIC)
            assert event.auditor == (LEASES[0].worker if asked is CompareSubmissions else None)
    if asked not in WRITES:
        assert kind.stores() == before


@each_command
def test_the_same_command_again_changes_nothing(kind: Kind, orders: Orders, asked: type[SlowCommand]) -> None:
    command, work = orders.of(asked), kind.start()
    first, kept = work.execute(command), kind.stores()
    assert facts(work.execute(command)) == facts(first)
    assert facts(kind.start().execute(command)) == facts(first), "after a restart"
    assert kind.stores() == kept


def test_what_was_done_before_does_not_matter(kind: Kind, orders: Orders) -> None:
    """Not to one process that did all of it, nor to the next that does it the other way round."""
    asked = [orders.of(one) for one in ENDS_IN]
    alone = [facts(kind.start().execute(command)) for command in asked]
    work = kind.start()
    assert [facts(work.execute(command)) for command in asked] == alone
    work = kind.start()
    assert [facts(work.execute(command)) for command in reversed(asked)] == alone[::-1]


def test_an_outer_step_that_says_otherwise_is_another(kind: Kind, orders: Orders) -> None:
    """Of the same id, round and version, as after a round that was closed anew."""
    work, seen = kind.start(), set()
    for weights in ((1.0, 1.0), (1.0, 3.0), (1.0,)):
        event = work.execute(orders.aggregate(*weights))
        assert isinstance(event, RoundAggregated)
        seen.add(event.manifest)
    assert len(seen) == 3


@pytest.mark.parametrize(
    "asked", [MeasureSubmission, AggregateRound, TryContributions, FindHarmful, ReplayLease, CompareSubmissions]
)
def test_a_submission_that_is_gone_is_told_and_nothing_made_of_it(
    kind: Kind, orders: Orders, asked: type[SlowCommand]
) -> None:
    command, work = orders.of(asked), kind.start()
    kind.payloads.drop(orders.sent[0])
    try:
        event = work.execute(command)
    except LocalError:
        pass
    else:
        assert isinstance(event, ContributionsTried), "nobody else can say that bytes were lost"
        assert [(one.lease_id, one.lost) for one in event.failed] == [(LEASES[0].lease_id, True)]
    assert kind.payloads.put(kind.submission(LEASES[0])) == orders.sent[0]
    event = work.execute(command)
    assert type(event) is ENDS_IN[asked], "and may be asked for again"
    assert not isinstance(event, ContributionsTried) or event.failed == ()


@each_command
def test_a_version_that_is_gone_is_nobodys_fault(kind: Kind, orders: Orders, asked: type[SlowCommand]) -> None:
    if asked is CompareSubmissions:
        return  # two submissions are all that it needs
    kind.lose_base()
    before = kind.stores()
    with pytest.raises(LocalError):
        kind.start().execute(orders.of(asked))
    assert kind.stores() == before


@each_command
def test_what_a_command_does_not_name_is_not_read(kind: Kind, orders: Orders, asked: type[SlowCommand]) -> None:
    """Another's submission, and a version 1 that somebody made of it."""
    command = orders.of(asked, 1.0)
    expected = None if asked in WRITES else facts(kind.start().execute(command))
    kind.start().execute(orders.aggregate(1.0, 1.0))
    kind.payloads.drop(orders.sent[1])
    event = kind.start().execute(command)
    assert type(event) is ENDS_IN[asked]
    assert expected is None or facts(event) == expected


def test_an_unheard_command_is_refused(kind: Kind) -> None:
    before = kind.stores()
    with pytest.raises(LocalError):
        kind.start().execute(Unheard(command_id="unheard:r1"))
    assert kind.stores() == before
