"""Slow work that is not done: results as they would look, at once. For swarms in which nothing is trained.

Decides no figure that a caller does not give; touches nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from coordinator.engine.commands import (
    AggregateRound,
    CompareSubmissions,
    FindHarmful,
    MeasureSubmission,
    RebuildVersion,
    ReplayLease,
    SlowCommand,
    ValidateVersion,
    WriteCheckpoint,
)
from coordinator.engine.events import (
    BlockNorm,
    CheckpointWritten,
    Event,
    HarmfulFound,
    LeaseReplayed,
    RoundAggregated,
    SubmissionCommitted,
    SubmissionMeasured,
    VersionComparison,
    VersionRebuilt,
    VersionValidated,
)
from coordinator.engine.lease import GrantedLease
from protocol.errors import LocalError
from protocol.ids import digest_of
from protocol.lease import Lease
from protocol.recipe import Recipe
from simulator.arithmetic import EVERYBODYS_ARITHMETIC


def canned_commit(lease: GrantedLease, at_s: float, train_s: float, *, payload_bytes: int) -> SubmissionCommitted:
    """The commit of a lease that nobody trained: bytes of its own, and losses that fell."""
    return SubmissionCommitted(
        at_s=at_s,
        worker=lease.worker,
        lease_id=lease.lease_id,
        digest=digest_of(lease.lease_id.encode()),
        payload_bytes=payload_bytes,
        codec=lease.codec,
        inner_steps_done=lease.inner_steps,
        train_loss_first=5.0,
        train_loss_last=4.0,
        train_s=train_s,
        micro_batch=1,
        arithmetic=str(EVERYBODYS_ARITHMETIC),
    )


def compared_as(command: AggregateRound, *, gain: float) -> tuple[VersionComparison, ...]:
    """What is told of a new version that is better by `gain` than all that it is to be compared with."""
    return tuple(
        VersionComparison(version=old.version, gain=gain, gain_se=0.001, loss=3.0) for old in command.compared_with
    )


def canned_result(
    command: SlowCommand,
    at_s: float,
    *,
    norm_l2: Callable[[], float] = lambda: 1.0,
    gain: Callable[[], float] = lambda: 0.05,
    distance: Callable[[Lease], float] = lambda lease: 0.0,
) -> Event:
    """The event that `command` ends in at `at_s`; `norm_l2` is asked once a block, `gain` once a submission.

    `distance` is asked once an audit, of the lease that is audited.
    Norms are those at the default learning rate, and follow the lease's.
    """
    command_id = command.command_id
    match command:
        case MeasureSubmission(lease=lease):
            rate = lease.recipe.learning_rate / Recipe().learning_rate
            norms = tuple(BlockNorm(block=block, norm_l2=norm_l2() * rate, base_l2=10.0) for block in lease.blocks)
            return SubmissionMeasured(
                at_s=at_s,
                command_id=command_id,
                lease_id=lease.lease_id,
                malformed="",
                norms=norms,
                heldout_gain=gain(),
                heldout_gain_se=0.001,
            )
        case AggregateRound():
            return RoundAggregated(
                at_s=at_s,
                command_id=command_id,
                round=command.round,
                version=command.version,
                parent_version=command.parent_version,
                manifest=digest_of(command_id.encode()),
                update_norm_l2=1.0,
                compared=compared_as(command, gain=0.01),
            )
        case FindHarmful(attempt=attempt):
            return HarmfulFound(
                at_s=at_s, command_id=command_id, round=attempt.round, harmful=(), suspected=(), passes=0
            )
        case RebuildVersion():
            return VersionRebuilt(
                at_s=at_s,
                command_id=command_id,
                version=command.version,
                parent_version=command.parent_version,
                manifest=digest_of(command_id.encode()),
                change_l2=1.0,
            )
        case ReplayLease(lease=lease):
            far = distance(lease)
            return LeaseReplayed(
                at_s=at_s,
                command_id=command_id,
                lease_id=lease.lease_id,
                auditor=None,
                trunk=far,
                columns=far,
                arithmetic=str(EVERYBODYS_ARITHMETIC),
            )
        case CompareSubmissions(lease=lease, again=again):
            far = distance(lease)
            return LeaseReplayed(
                at_s=at_s, command_id=command_id, lease_id=lease.lease_id, auditor=again.worker, trunk=far, columns=far
            )
        case ValidateVersion(version=version):
            return VersionValidated(at_s=at_s, command_id=command_id, version=version, val_loss=3.0, val_loss_se=0.01)
        case WriteCheckpoint(version=version):
            return CheckpointWritten(at_s=at_s, command_id=command_id, version=version, path="")
    raise LocalError(f"no canned result for {type(command).__name__}")
