"""Training, measuring and outer steps, each replaced by a hash of exactly what the real one depends on.

Decides what the simulation asks of training (`Work`), and what a submission and a block "contain". A payload is the
hash of its lease and of the base blocks it was trained from, so one that was trained from anything else, or mixed with
another's bytes, is found when it is measured. A block is named by its parent's digest and the contributions that
changed it, so descent can be followed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from coordinator.engine.commands import (
    AggregateRound,
    MeasureSubmission,
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
    FailedAlone,
    RoundAggregated,
    SubmissionMeasured,
    VersionValidated,
)
from coordinator.engine.records import command_digest
from coordinator.work import port
from moe.layout import Layout, ParamSpec, submission_specs
from protocol.codecs import codec_named
from protocol.errors import LocalError
from protocol.ids import TRUNK, BlockId, Digest, LeaseId, Version, column_block
from protocol.lease import Lease
from protocol.residency import FROZEN
from protocol.tensors import payload_size
from simulator.deterministic.disk import Disk, StoredBlock, VersionEntry

DISK_FULL = OSError(28, "No space left on device")


class MissingContent(BaseException):
    """Content that an event or command relies on is not there: never excusable, so the simulation stops.

    No `Exception`: nothing that is simulated may take it for a failure to be dealt with.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What came of a lease."""

    payload: bytes
    loss_first: float = 5.0
    loss_last: float = 4.0


class Spoils(StrEnum):
    """What a submission does to an outer step, though it passes every check."""

    NOTHING = ""
    ALONE = "alone"
    """No step can be made with it."""
    TOGETHER = "together"
    """No step can be made of a block that somebody else holds, too."""
    STUBBORN = "stubborn"
    """The same, and a cautious step fails whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a coordinator's process does its slow work."""

    disk: Disk
    clock: Callable[[], float]
    is_wanted: Callable[[SlowCommand], bool]
    fails: Callable[[SlowCommand], bool]
    spoils: Callable[[LeaseId], Spoils]
    on_aggregated: Callable[[AggregateRound, Digest], None]


class Work(Protocol):
    """What is trained, measured and stepped in a simulated run: `HashWork`, or `training.RealWork`."""

    @property
    def layout(self) -> Layout: ...  # noqa: D102
    @property
    def codec(self) -> str: ...  # noqa: D102
    @property
    def sequence_length(self) -> int: ...  # noqa: D102
    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame of an upload: a submission has a few."""

    def first_version(self, disk: Disk) -> Digest:
        """Write version 0; its manifest."""

    def executor(self, site: Site) -> port.Work:
        """The executor of a process that was just started."""

    def share_left(self, worker: int, lease: Lease, base: Mapping[BlockId, Digest]) -> float:
        """The share of the lease that this worker's disk does not hold already."""

    def trained(self, worker: int, lease: Lease, base: Mapping[BlockId, Digest]) -> Trained:
        """The submission for a lease whose time is over."""

    def interrupted(self, worker: int, lease: Lease, base: Mapping[BlockId, Digest], share: float) -> None:
        """The worker's process died when `share` of what was left was done."""


class LeaseLike(Protocol):
    """What training depends on, by the names that both sides of the wire use."""

    @property
    def lease_id(self) -> str: ...  # noqa: D102
    @property
    def columns(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def inner_steps(self) -> int: ...  # noqa: D102


class HashWork:
    """No training at all: thousands of runs a minute."""

    codec = "fp32"
    sequence_length = 8
    frame_bytes = 128
    """Two to four frames for a submission of a few hundred bytes."""

    def __init__(self, columns: int) -> None:
        spec = (ParamSpec(name="w", shape=(2,)),)
        self.layout = Layout(
            config_json={}, residency=FROZEN, trunk=spec, column=spec, columns=columns, top_k=1, tied=()
        )

    def first_version(self, disk: Disk) -> Digest:
        """Blocks that come from nothing."""
        return _write_version(disk, 0, {name: StoredBlock(None, name) for name in self.layout.blocks}, "created")

    def executor(self, site: Site) -> CheapExecutor:
        """On hashes."""
        return CheapExecutor(site)

    def share_left(self, worker: int, lease: Lease, base: Mapping[BlockId, Digest]) -> float:
        """All of it: nothing is kept of a lease that was interrupted."""
        del worker, lease, base
        return 1.0

    def trained(self, worker: int, lease: Lease, base: Mapping[BlockId, Digest]) -> Trained:
        """The hash of what it depends on."""
        del worker
        size_bytes = payload_size(submission_specs(self.layout, lease.columns), codec_named(self.codec))
        return Trained(payload=trained_payload(lease, base, lease.data.start, size_bytes))

    def interrupted(self, worker: int, lease: Lease, base: Mapping[BlockId, Digest], share: float) -> None:
        """Nothing is left of it."""


def trained_payload(lease: LeaseLike, base: Mapping[BlockId, Digest], data_start: int, size_bytes: int) -> bytes:
    """The one right submission for a lease."""
    held = (TRUNK, *(column_block(column) for column in lease.columns))
    made_of = [lease.lease_id, lease.seed, lease.inner_steps, data_start, *(base[block] for block in held)]
    return stretched("\x1f".join(map(str, made_of)), size_bytes)


def stretched(text: str, size_bytes: int) -> bytes:
    """`size_bytes` bytes that depend on all of `text`."""
    digest = hashlib.sha256(text.encode()).digest()
    return (digest * (size_bytes // len(digest) + 1))[:size_bytes]


class CheapExecutor(port.Work):
    """What `coordinator.work.executor.Executor` is to the pump, on hashes."""

    def __init__(self, site: Site) -> None:
        self._site, self._disk, self._clock = site, site.disk, site.clock

    def execute(self, command: SlowCommand) -> Event:
        """Carry out `command`, or fail as a full disk does."""
        if self._site.fails(command):
            raise DISK_FULL
        try:
            return self._carry_out(command)
        except MissingContent as error:
            if self._site.is_wanted(command):
                raise
            raise LocalError(str(error)) from error  # given up meanwhile, and its content swept away

    def _carry_out(self, command: SlowCommand) -> Event:
        at_s, command_id = self._clock(), command.command_id
        match command:
            case MeasureSubmission():
                return self._measure(command, at_s)
            case AggregateRound():
                return self._aggregate(command, at_s)
            case TryContributions(attempt=attempt):
                self._blocks_of(attempt.parent_manifest)
                return self._tried(command_id, attempt, at_s)
            case ValidateVersion(version=version, manifest=manifest):
                self._blocks_of(manifest)
                loss = 5.5 / (1 + version)
                return VersionValidated(
                    at_s=at_s, command_id=command_id, version=version, val_loss=loss, val_loss_se=0.01
                )
            case WriteCheckpoint(version=version, manifest=manifest):
                self._blocks_of(manifest)
                return CheckpointWritten(at_s=at_s, command_id=command_id, version=version, path=f"version-{version}")
        raise MissingContent(f"no such work: {command}")

    def _measure(self, command: MeasureSubmission, at_s: float) -> SubmissionMeasured:
        lease, got = command.lease, self._payload(command.digest, f"{command.command_id}")
        if hashlib.sha256(got).hexdigest() != command.digest:
            raise MissingContent(f"{command.command_id}: the payload is not what its digest says")
        base = self._blocks_of(self._version(lease.base_version).manifest)
        honest = got == trained_payload(lease, base, lease.data.start, len(got))
        spread = got[0] / 1024  # honest norms differ a little
        return SubmissionMeasured(
            at_s=at_s,
            command_id=command.command_id,
            lease_id=lease.lease_id,
            malformed="" if honest else "not what training this lease gives",
            norms=tuple(BlockNorm(block=block, norm_l2=1.0 + spread, base_l2=50.0) for block in lease.blocks),
            heldout_gain=0.1 + spread / 10,
            heldout_gain_se=0.02,
        )

    def _tried(self, command_id: str, attempt: AggregateRound, at_s: float) -> ContributionsTried:
        for one in attempt.contributions:
            self._payload(one.digest, command_id)
        spoilt = [one for one in attempt.contributions if self._site.spoils(one.lease_id) is Spoils.ALONE]
        failed = tuple(FailedAlone(lease_id=one.lease_id, error="0 / 0") for one in spoilt)
        return ContributionsTried(at_s=at_s, command_id=command_id, round=attempt.round, failed=failed)

    def _check_whole(self, command: AggregateRound) -> None:
        """Fail as the real executor does: whole, unless the command is cautious."""
        spoils = {self._site.spoils(one.lease_id) for one in command.contributions}
        in_company = len(command.contributions) > 1
        if Spoils.STUBBORN in spoils and in_company:
            raise ZeroDivisionError("0 / 0, however cautiously")
        if not command.cautious and (Spoils.ALONE in spoils or (Spoils.TOGETHER in spoils and in_company)):
            raise ZeroDivisionError("0 / 0")

    def _aggregate(self, command: AggregateRound, at_s: float) -> RoundAggregated:
        self._check_whole(command)
        parent = self._blocks_of(command.parent_manifest)
        cause = command_digest(command)
        done = self._disk.versions.get(command.version)
        if done is not None and done.cause == cause:
            manifest = done.manifest
        else:
            manifest = _write_version(self._disk, command.version, self._stepped(command, parent), cause)
        self._site.on_aggregated(command, manifest)
        self._keep_from(command.oldest_needed)
        return RoundAggregated(
            at_s=at_s,
            command_id=command.command_id,
            round=command.round,
            version=command.version,
            parent_version=command.parent_version,
            manifest=manifest,
            update_norm_l2=1.0,
        )

    def _stepped(self, command: AggregateRound, parent: Mapping[BlockId, Digest]) -> dict[BlockId, StoredBlock]:
        blocks: dict[BlockId, StoredBlock] = {}
        for name, digest in parent.items():
            holders = [
                one
                for one in command.contributions
                if (one.include_trunk if name == TRUNK else name in set(map(column_block, one.columns)))
            ]
            entering = [f"{one.digest}*{one.weight:.6g}" for one in holders]
            if len(holders) > 1 and any(self._site.spoils(one.lease_id) is Spoils.TOGETHER for one in holders):
                entering = []  # a cautious step leaves the block as it was
            kept = self._disk.blocks[digest]
            blocks[name] = StoredBlock(digest, f"r{command.round}:" + ",".join(entering)) if entering else kept
        for one in command.contributions:
            self._payload(one.digest, command.command_id)
        return blocks

    def _payload(self, digest: Digest, wanted_by: str) -> bytes:
        content = self._disk.payloads.get(digest)
        if content is None:
            raise MissingContent(f"{wanted_by} needs payload {digest[:12]}, which is not on disk")
        return content

    def _version(self, version: int) -> VersionEntry:
        if version not in self._disk.versions:
            raise MissingContent(f"version {version} is needed and was dropped; kept: {sorted(self._disk.versions)}")
        return self._disk.versions[version]

    def _blocks_of(self, manifest: Digest) -> Mapping[BlockId, Digest]:
        if manifest not in self._disk.manifests:
            raise MissingContent(f"manifest {manifest[:12]} is needed and not on disk")
        return self._disk.manifests[manifest]

    def _keep_from(self, oldest: int) -> None:
        for version in [v for v in self._disk.versions if 0 < v < oldest]:
            entry = self._disk.versions.pop(version)
            self._disk.manifests.pop(entry.manifest, None)


def _write_version(disk: Disk, version: int, blocks: Mapping[BlockId, StoredBlock], cause: str) -> Digest:
    digests = {name: block.digest for name, block in blocks.items()}
    disk.blocks.update({block.digest: block for block in blocks.values()})
    text = "\x1f".join([str(version), cause, *(f"{name}={digest}" for name, digest in digests.items())])
    manifest = Digest(hashlib.sha256(text.encode()).hexdigest())
    disk.manifests[manifest] = digests
    disk.versions[Version(version)] = VersionEntry(manifest, cause)
    return manifest
