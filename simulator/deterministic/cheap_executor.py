"""The coordinator's slow work of a simulated run, on hashes: what `coordinator.work.executor.Executor` is to the pump.

Decides what an honest submission is, and which outer steps fail. Always: content that is wanted and not there ends the
simulation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from coordinator.engine.commands import (
    AggregateRound,
    CompareSubmissions,
    FindHarmful,
    Item,
    MeasureSubmission,
    PublishedVersion,
    RebuildVersion,
    Remedy,
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
    FailedAlone,
    HarmfulFound,
    LeaseReplayed,
    RoundAggregated,
    SubmissionMeasured,
    VersionComparison,
    VersionRebuilt,
    VersionValidated,
)
from coordinator.engine.records import command_digest
from coordinator.work import port
from coordinator.work.measured import agree, parts_of, sequences_of
from protocol.errors import LocalError
from protocol.ids import TRUNK, BlockId, Digest, LeaseId, WorkerId, column_block
from protocol.lease import Lease
from simulator.arithmetic import matched, rounded_apart
from simulator.deterministic.disk import Disk, StoredBlock, VersionEntry, stretched
from simulator.deterministic.measuring import hashed_losses
from simulator.deterministic.work import DISK_FULL, MissingContent, Site, Spoils, Texts

WriteVersion = Callable[[Disk, int, Mapping[BlockId, StoredBlock], str], Digest]
"""(disk, version, blocks, cause) to the manifest's digest."""


class CheapExecutor(port.Work):
    """What `coordinator.work.executor.Executor` is to the pump, on hashes."""

    def __init__(
        self, site: Site, texts: Texts, sequence_length: int, heldout_limit: int, write_version: WriteVersion
    ) -> None:
        self._site, self._disk, self._clock = site, site.disk, site.clock
        self._texts, self._sequence_length, self._write_version = texts, sequence_length, write_version
        self._heldout_limit = heldout_limit

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
            case ReplayLease(lease=lease, digest=digest):
                alike = self._is_as_leased(command_id, lease, digest)
                return self._audited(command_id, lease, None, alike, matched(command.arithmetic), at_s)
            case CompareSubmissions(lease=lease, digest=digest, again=again, again_digest=again_digest):
                sent = self._is_as_leased(command_id, lease, digest)
                answered = self._is_as_leased(command_id, again, again_digest)
                how = self._site.arithmetic(again.lease_id)
                return self._audited(command_id, lease, again.worker, sent and answered, how, at_s)
            case AggregateRound():
                return self._aggregate(command, at_s)
            case RebuildVersion():
                return self._rebuilt(command, at_s)
            case TryContributions(attempt=attempt):
                self._blocks_of(attempt.parent_manifest)
                return self._tried(command_id, attempt, at_s)
            case FindHarmful(attempt=attempt, suspects=suspects):
                self._blocks_of(attempt.parent_manifest)
                return self._found(command_id, attempt, suspects, at_s)
            case ValidateVersion(version=version, manifest=manifest):
                false = self._liars(command, self._blocks_of(manifest), b"")
                loss = 5.5 / (1 + version)
                return VersionValidated(
                    at_s=at_s, command_id=command_id, version=version, val_loss=loss, val_loss_se=0.01,
                    answers=command.answers, false=false,
                )  # fmt: skip
            case WriteCheckpoint(version=version, manifest=manifest):
                self._blocks_of(manifest)
                return CheckpointWritten(at_s=at_s, command_id=command_id, version=version, path=f"version-{version}")
        raise MissingContent(f"no such work: {command}")

    def _measure(self, command: MeasureSubmission, at_s: float) -> SubmissionMeasured:
        lease, got = command.lease, self._payload(command.digest, command.command_id)
        false: tuple[WorkerId, ...] = ()
        if command.answers:
            false = self._liars(command, self._blocks_of(self._version(lease.base_version).manifest), got)
        honest = self._is_honest(command.command_id, lease, command.digest)
        spread = got[0] / 1024  # honest norms differ a little, and grow with rate and steps
        length = 60.0 * lease.recipe.learning_rate * lease.inner_steps**0.75
        return SubmissionMeasured(
            at_s=at_s,
            command_id=command.command_id,
            lease_id=lease.lease_id,
            malformed="" if honest else "not what training this lease gives",
            norms=tuple(
                BlockNorm(block=block, norm_l2=(1.0 + spread) * length, base_l2=50.0) for block in lease.blocks
            ),
            heldout_gain=0.1 + spread / 10,
            heldout_gain_se=0.02,
            answers=command.answers if honest else (),
            false=false if honest else (),
        )

    def _liars(self, command: Item, base: Mapping[BlockId, Digest], payload: bytes) -> tuple[WorkerId, ...]:
        """Whose answers are not what comes of it here."""
        texts = cast(Any, self._texts)
        sequences_NL = sequences_of(texts, command, self._sequence_length, self._heldout_limit)
        parts = [(part.share, part.start, part.stop) for part in parts_of(command)]
        before, after = hashed_losses(base, sequences_NL, payload, parts)
        return tuple(one.worker for one in command.answers if not agree(one, before, after, command.tolerance))

    def _is_honest(self, command_id: str, lease: Lease, digest: Digest) -> bool:
        """Whether a submission is what training its lease gives."""
        got = self._payload(digest, command_id)
        if hashlib.sha256(got).hexdigest() != digest:
            raise MissingContent(f"{command_id}: the payload is not what its digest says")
        base = self._blocks_of(self._version(lease.base_version).manifest)
        data, length = lease.data, self._sequence_length
        read = self._texts.sequences(data.seed, data.start, data.count, length)
        return got == trained_payload(lease, base, read, len(got))

    def _is_as_leased(self, command_id: str, lease: Lease, digest: Digest) -> bool:
        """Whether it also is what an auditor comes to: not so of what is made to pass every other check."""
        return self._is_honest(command_id, lease, digest) and self._site.spoils(lease.lease_id) is not Spoils.REPLAY

    def _audited(
        self, command_id: str, lease: Lease, auditor: WorkerId | None, alike: bool, how: str, at_s: float
    ) -> LeaseReplayed:
        """Two honest hashes of one lease differ by its id alone, and are as far apart as rounding makes the real ones
        in two classes, `how` the auditor's; a lie is as far as can be from either."""
        far = rounded_apart(self._site.arithmetic(lease.lease_id), how, lease.inner_steps) if alike else 1.0
        return LeaseReplayed(
            at_s=at_s,
            command_id=command_id,
            lease_id=lease.lease_id,
            auditor=auditor,
            trunk=far,
            columns=far,
            arithmetic=how if auditor is None else "",
        )

    def _tried(self, command_id: str, attempt: AggregateRound, at_s: float) -> ContributionsTried:
        for one in attempt.contributions:
            self._payload(one.digest, command_id)
        spoilt = [one for one in attempt.contributions if self._site.spoils(one.lease_id) is Spoils.ALONE]
        failed = tuple(FailedAlone(lease_id=one.lease_id, error="0 / 0") for one in spoilt)
        return ContributionsTried(at_s=at_s, command_id=command_id, round=attempt.round, failed=failed)

    def _found(
        self, command_id: str, attempt: AggregateRound, suspects: tuple[LeaseId, ...], at_s: float
    ) -> HarmfulFound:
        for one in attempt.contributions:
            self._payload(one.digest, command_id)
        harmful = tuple(lease_id for lease_id in suspects if self._site.spoils(lease_id) is Spoils.MODEL)
        return HarmfulFound(
            at_s=at_s,
            command_id=command_id,
            round=attempt.round,
            harmful=harmful,
            suspected=(),
            passes=min(len(suspects), 16),
        )

    def _compared(self, command: AggregateRound) -> tuple[VersionComparison, ...]:
        """Worse by whoever spoils the model, unless the step is a short one."""
        spoilt = any(self._site.spoils(one.lease_id) is Spoils.MODEL for one in command.contributions)
        short = command.remedy is Remedy.SHORT and command.round % 2 == 0  # some rounds cannot be saved at all
        gain = -1.0 if spoilt and not short else 0.1
        return tuple(
            VersionComparison(version=self._known(old).version, gain=gain, gain_se=0.01, loss=5.0)
            for old in command.compared_with
        )

    def _known(self, old: PublishedVersion) -> PublishedVersion:
        self._blocks_of(old.manifest)
        return old

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
            manifest = self._write_version(self._disk, command.version, self._stepped(command, parent), cause)
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
            compared=self._compared(command),
        )

    def _rebuilt(self, command: RebuildVersion, at_s: float) -> VersionRebuilt:
        self._blocks_of(command.parent_manifest)
        blocks, cause = self._blocks_of(command.from_manifest), command_digest(command)
        done = self._disk.versions.get(command.version)
        if done is not None and done.cause == cause:
            manifest = done.manifest
        else:
            stored = {name: self._disk.blocks[digest] for name, digest in blocks.items()}
            for number, step in enumerate(command.steps):
                between = self._write_version(self._disk, command.version, stored, f"{cause}:{number}")
                stored = self._stepped(step, self._blocks_of(between))
            manifest = self._write_version(self._disk, command.version, stored, cause)
        return VersionRebuilt(
            at_s=at_s,
            command_id=command.command_id,
            version=command.version,
            parent_version=command.parent_version,
            manifest=manifest,
            change_l2=1.0,
        )

    def _stepped(self, command: AggregateRound, parent: Mapping[BlockId, Digest]) -> dict[BlockId, StoredBlock]:
        blocks: dict[BlockId, StoredBlock] = {}
        for name, digest in parent.items():
            holders = [
                one
                for one in command.contributions
                if (one.include_trunk if name == TRUNK else name in set(map(column_block, one.columns)))
                and name not in one.unheard
            ]
            entering = [f"{one.digest}*{one.weight:.6g}" for one in holders]
            if len(holders) > 1 and any(self._site.spoils(one.lease_id) is Spoils.TOGETHER for one in holders):
                entering = []  # a cautious step leaves the block as it was
            kept = self._disk.blocks[digest]
            cause = f"r{command.round}:" + ",".join(entering)
            blocks[name] = StoredBlock(digest, cause, kept.size_bytes) if entering else kept
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


def trained_payload(lease: Lease, base: Mapping[BlockId, Digest], sequences_NL: NDArray[Any], size_bytes: int) -> bytes:
    """The one right submission for a lease."""
    held = (TRUNK, *(column_block(column) for column in lease.columns))
    read = hashlib.sha256(sequences_NL.astype(np.uint8).tobytes()).hexdigest()
    made_of = [lease.lease_id, lease.seed, lease.inner_steps, read, *(base[block] for block in held)]
    return stretched("\x1f".join(map(str, made_of)), size_bytes)
