"""Carries out the engine's slow commands: measures submissions, aggregates rounds, validates and exports versions.

Decides no verdict: results are facts, as events. Touches artifacts, versions and checkpoints of one run; runs in one
thread, one command at a time, so its caches need no lock. Always: what comes of a command follows from the command and
the files that it names, never from the engine's state; repeating it is harmless, since what it writes is
content-addressed or replaced whole.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import singledispatchmethod
from pathlib import Path
from typing import TYPE_CHECKING

from aggregation.replayed import PieceBlocks, ReplayDistance
from coordinator.engine.commands import (
    AggregateRound,
    CompareSubmissions,
    FindHarmful,
    MeasureSubmission,
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
from coordinator.store.ports import BlobStore
from coordinator.store.versions import Versions, frozen_columns
from coordinator.work import harm
from coordinator.work.comparing import VersionLosses
from coordinator.work.gains import GainMeasure, WorkSettings
from coordinator.work.known_norms import KnownNorms
from coordinator.work.measured import agree, carrying, sequences_of
from coordinator.work.outer import RoundAggregator
from coordinator.work.port import Replay, Work
from coordinator.work.rebuilding import rebuild
from coordinator.work.replaying import compared, replayed
from coordinator.work.resident import MappedVersion, ResidentModel
from moe.companions import Companions
from moe.export import export_checkpoint
from moe.factors import as_products
from moe.full import mean_and_error
from moe.layout import Layout, submission_specs
from protocol.codecs import codec_named
from protocol.errors import LocalError, MalformedMessage
from protocol.ids import Digest, WorkerId
from protocol.lease import Lease
from protocol.submission import Blocks, encoded_submission

if TYPE_CHECKING:
    from coordinator.datasets import Dataset

CACHED_VERSIONS = 2
"""The round's base, and the one before it for submissions that come a round late."""


class Executor(Work):
    """One run's executor. `execute` is called from one thread at a time."""

    def __init__(
        self,
        *,
        settings: WorkSettings,
        layout: Layout,
        payloads: BlobStore,
        versions: Versions,
        dataset: Dataset,
        companions: Companions,
        dtype: str,
        checkpoints: Path,
        clock: Callable[[], float],
        wall_clock: Callable[[], float] = time.time,
        replay: Replay | None = None,
    ) -> None:
        """`replay`: how leases are computed again; without one, `ReplayLease` fails with a sentence that says so."""
        self.replay = replay
        self._settings = settings = settings.bounded(layout)
        self._layout = layout
        self._payloads = payloads
        self._versions = versions
        self._dataset = dataset
        self._companions = companions
        self._dtype = dtype
        self._checkpoints = checkpoints
        self._clock = clock
        self._wall_clock = wall_clock
        self._norms = KnownNorms()
        self._aggregator = RoundAggregator(layout, payloads, versions, settings.sequence_length, self._norms)
        self._bases: OrderedDict[Digest, MappedVersion] = OrderedDict()
        self._gains = GainMeasure(dataset, settings)
        self._resident = ResidentModel(layout, settings.evaluation_device)
        self.losses = VersionLosses(dataset, settings, lambda manifest: self._resident.at(self._base(manifest)))

    @singledispatchmethod
    def execute(self, command: SlowCommand) -> Event:
        """See `Work`."""
        raise LocalError(f"the executor does not know {type(command).__name__}")

    @execute.register
    def _(self, command: MeasureSubmission) -> Event:
        try:
            submission = self._submission(command)
            base = self._base(self._base_manifest(command.lease))
            norms = tuple(self._block_norms(command.digest, submission, base))
        except MalformedMessage as error:
            return SubmissionMeasured(
                at_s=self._clock(),
                command_id=command.command_id,
                lease_id=command.lease.lease_id,
                malformed=str(error),
            )
        gains, false = self._gains.measured(
            command, base.manifest, lambda share: self._resident.less(base, submission if share else {}, share)
        )
        decoded = SubmissionMeasured(
            at_s=self._clock(),
            command_id=command.command_id,
            lease_id=command.lease.lease_id,
            malformed="",
            norms=norms,
            answers=command.answers,
            false=false,
        )
        return carrying(decoded, gains)

    @execute.register
    def _(self, command: AggregateRound) -> Event:
        base = self._base(command.parent_manifest)
        outcome = self._aggregator.run(command, base.blocks, created_at_s=self._wall_clock())
        # Here and nowhere else, because this thread is the only one that writes blocks.
        self._versions.keep_from(command.oldest_needed)
        return RoundAggregated(
            at_s=self._clock(),
            command_id=command.command_id,
            round=command.round,
            version=command.version,
            parent_version=command.parent_version,
            manifest=outcome.manifest,
            update_norm_l2=outcome.update_norm_l2,
            substitutes=outcome.substitutes,
            compared=self.losses.compared(command, outcome.manifest),
            frozen=frozen_columns(self._versions.manifest(outcome.manifest)),
        )

    @execute.register
    def _(self, command: RebuildVersion) -> Event:
        now_s = self._wall_clock()
        outcome = rebuild(command, self._aggregator, self._payloads, self._versions, created_at_s=now_s)
        return VersionRebuilt(
            at_s=self._clock(),
            command_id=command.command_id,
            version=command.version,
            parent_version=command.parent_version,
            manifest=outcome.manifest,
            change_l2=outcome.change_l2,
            frozen=frozen_columns(self._versions.manifest(outcome.manifest)),
        )

    @execute.register
    def _(self, command: TryContributions) -> Event:
        base = self._base(command.attempt.parent_manifest)
        failed = self._aggregator.failing_alone(command.attempt, base.blocks)
        return ContributionsTried(
            at_s=self._clock(), command_id=command.command_id, round=command.attempt.round, failed=failed
        )

    @execute.register
    def _(self, command: ReplayLease) -> Event:
        lease = command.lease
        data, length = lease.data, self._settings.sequence_length
        found, arithmetic = replayed(
            command,
            self.replay,
            layout=self._layout,
            payloads=self._payloads,
            base=self._leased_blocks(lease),
            sequences_NL=self._dataset.sequences(data.seed, data.start, data.count, length).astype("int64"),
        )
        return self._audited(command, None, found, arithmetic)

    @execute.register
    def _(self, command: CompareSubmissions) -> Event:
        try:
            found = compared(command, layout=self._layout, payloads=self._payloads)
        except MalformedMessage as error:
            return LeaseReplayed(
                at_s=self._clock(),
                command_id=command.command_id,
                lease_id=command.lease.lease_id,
                auditor=command.again.worker,
                error=str(error),
            )
        return self._audited(command, command.again.worker, found)

    def _audited(
        self,
        command: ReplayLease | CompareSubmissions,
        auditor: WorkerId | None,
        found: ReplayDistance,
        arithmetic: str = "",
    ) -> LeaseReplayed:
        return LeaseReplayed(
            at_s=self._clock(),
            command_id=command.command_id,
            lease_id=command.lease.lease_id,
            auditor=auditor,
            trunk=found.trunk,
            columns=found.columns,
            arithmetic=arithmetic,
        )

    @execute.register
    def _(self, command: FindHarmful) -> Event:
        attempt = command.attempt
        base = self._base(attempt.parent_manifest)
        before = self.losses.losses(attempt.parent_manifest, attempt.region_seed)

        def measure(group: harm.LeaseGroup) -> VersionComparison:
            model = self._resident.replaced(base, self._aggregator.candidate(attempt, base.blocks, group))
            after = self.losses.of_model(model, self.losses.drawn(attempt.region_seed))
            return harm.compared(attempt.parent_version, before, after)

        found = harm.search(command, measure)
        return HarmfulFound(
            at_s=self._clock(),
            command_id=command.command_id,
            round=attempt.round,
            harmful=found.harmful,
            suspected=found.suspected,
            passes=found.passes,
        )

    @execute.register
    def _(self, command: ValidateVersion) -> Event:
        settings = self._settings
        tokens_NL = sequences_of(self._dataset, command, settings.sequence_length, settings.heldout_limit)
        losses_N = self.losses.of_model(self._resident.at(self._base(command.manifest)), tokens_NL)
        loss, standard_error = mean_and_error(losses_N)
        false = [one.worker for one in command.answers if not agree(one, losses_N.tolist(), (), command.tolerance)]
        return VersionValidated(
            at_s=self._clock(),
            command_id=command.command_id,
            version=command.version,
            val_loss=loss,
            val_loss_se=standard_error,
            answers=command.answers,
            false=tuple(false),
        )

    @execute.register
    def _(self, command: WriteCheckpoint) -> Event:
        target = self._checkpoints / f"version-{command.version:06d}"
        blocks = self._base(command.manifest).blocks
        export_checkpoint(blocks, self._layout, target, companions=self._companions, dtype=self._dtype, replace=True)
        for old in sorted(self._checkpoints.glob("version-*"))[: -self._settings.keep_checkpoints]:
            shutil.rmtree(old, ignore_errors=True)
        return CheckpointWritten(
            at_s=self._clock(), command_id=command.command_id, version=command.version, path=str(target)
        )

    def _submission(self, command: MeasureSubmission) -> PieceBlocks:
        lease = command.lease
        specs, codec = submission_specs(self._layout, lease.columns, lease.trunk), codec_named(command.codec)
        found = encoded_submission(self._payloads.view(command.digest), specs, codec, lease.blocks)
        return {block: as_products(self._layout, lease.trunk, block, tensors) for block, tensors in found.items()}

    def _block_norms(self, payload: Digest, submission: PieceBlocks, base: MappedVersion) -> Iterator[BlockNorm]:
        """Of each block; MalformedMessage where one holds a value that is not finite."""
        for block, tensors in submission.items():
            norm_l2 = self._norms.of(payload, block, tensors)
            if not math.isfinite(norm_l2):
                raise MalformedMessage(f"block {block} holds a value that is not finite (norm {norm_l2})")
            yield BlockNorm(block=block, norm_l2=norm_l2, base_l2=base.norm_l2(block))

    def _leased_blocks(self, lease: Lease) -> Blocks:
        """What a lease is trained from: held blocks of its base version, and what stands in for the others."""
        digest = self._base_manifest(lease)
        return {**self._base(digest).blocks, **self._versions.stand_ins(self._versions.manifest(digest), lease)}

    def _base_manifest(self, lease: Lease) -> Digest:
        digest = self._versions.manifest_digest(lease.base_version)
        if digest is None:
            raise LocalError(f"lease {lease.lease_id}: base version {lease.base_version} is not kept")
        return digest

    def _base(self, manifest: Digest) -> MappedVersion:
        base = self._bases.get(manifest)
        if base is None:
            base = MappedVersion.of(self._versions, manifest, self._bases.values())
            self._bases[manifest] = base
        self._bases.move_to_end(manifest)
        while len(self._bases) > CACHED_VERSIONS:
            self._bases.popitem(last=False)
        return base
