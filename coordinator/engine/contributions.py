"""What enters aggregation: which accepted submissions, at which weight, clipped to what.

Decides, holding always: one person (a worker, or all machines of one owner) has one vote on each block of a round. A
worker's submissions of this round stand before its late ones, and before late ones of its owner's other machines where
both hold a column. Where several submissions of one person count (disjoint columns), the newest, and of these the
first, counts on the trunk, too. Weights are made of sequences that the coordinator assigned, capped against the median
and so that no owner has more than its share of the trunk's, and discounted by staleness, by what the worker is trusted
with and by audits that were called for and have not come; what has no weight has no vote. And which versions of the
model nobody needs any more by then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from coordinator.engine import audits, ballots, pacing, past, residuals, vouching
from coordinator.engine.commands import BlockClip, Contribution, ValidateVersion, WriteCheckpoint
from coordinator.engine.config import EngineConfig
from coordinator.engine.lease import GrantedLease
from coordinator.engine.phases import LIVE_STATUSES, LeaseStatus
from coordinator.engine.rows import LeaseRecord
from coordinator.engine.state import EngineState
from coordinator.engine.trust import trust_of
from protocol.ids import TRUNK, BlockId, Digest, LeaseId, Version, WorkerId, column_block


def countable(state: EngineState) -> list[LeaseRecord]:
    """Accepted submissions that have not counted yet and still may."""
    return [
        record
        for record in state.leases.values()
        if record.status is LeaseStatus.ACCEPTED
        and record.counted_in is None
        and state.staleness_of(record.lease) <= state.config.max_staleness
    ]


def was_kept_back(record: LeaseRecord) -> bool:
    """Whether its worker committed to a submission whose bytes never all came; a shadow lease costs nothing."""
    return record.status is LeaseStatus.EXPIRED and record.digest is not None and record.lease.audits is None


def share_of(state: EngineState, record: LeaseRecord) -> float:
    """How much of its weight a submission has, by what its worker is trusted with and what audits say; 0: no vote."""
    return trust_of(state.config, state.workers[record.lease.worker]).weight * audits.share_of(state, record)


def one_vote_each(state: EngineState, records: Sequence[LeaseRecord]) -> tuple[list[LeaseRecord], list[LeaseRecord]]:
    """The submissions that count, and those that newer ones of their worker, or of its owner, stand before."""
    newest: dict[WorkerId, int] = {}
    for record in records:
        worker = record.lease.worker
        newest[worker] = max(newest.get(worker, 0), record.lease.round)
    taken: set[tuple[str, int]] = set()
    superseded: set[LeaseId] = set()
    for record in sorted(records, key=lambda record: -record.lease.round):
        lease, person = record.lease, state.person_of(record.lease)
        seats = {(person, column) for column in lease.columns}
        if lease.round < newest[lease.worker] or not taken.isdisjoint(seats):
            superseded.add(lease.lease_id)
        else:
            taken |= seats
    counted = [record for record in records if record.lease.lease_id not in superseded]
    return counted, [record for record in records if record.lease.lease_id in superseded]


def contributions_of(state: EngineState, records: Sequence[LeaseRecord]) -> tuple[Contribution, ...]:
    """Weights and scales for the submissions that count, brought to the steps that they took on average."""
    config = state.config
    voters = _trunk_voters(state, records)
    weights = _capped_weights(config, records, voters)
    common_steps = pacing.common_steps([record.lease for record in records], weights)
    contributions: list[Contribution] = []
    for record, weight in zip(records, weights, strict=True):
        lease = record.lease
        assert record.digest is not None
        contributions.append(
            Contribution(
                lease_id=lease.lease_id,
                digest=record.digest,
                codec=record.codec,
                columns=lease.columns,
                base_version=lease.base_version,
                step_scale=pacing.step_scale(common_steps, lease),
                weight=weight * share_of(state, record) * config.staleness_discount ** state.staleness_of(lease),
                sequences=lease.sequences,
                worker=lease.worker,
                include_trunk=lease.lease_id in voters and TRUNK in lease.blocks,
                trunk=lease.trunk,
            )
        )
    return tuple(contributions)


def _capped_weights(config: EngineConfig, records: Sequence[LeaseRecord], voters: set[LeaseId]) -> list[float]:
    """Sequences assigned: none over `max_weight_ratio` times the median, no owner's over its share of the trunk's."""
    weights = pacing.capped_weights([record.lease.sequences for record in records], config.max_weight_ratio)
    on_trunk = zip(records, weights, strict=True)
    votes = Counter(weight for record, weight in on_trunk if record.lease.lease_id in voters)
    return ballots.limited_weights(weights, ballots.vote_limit(votes, config.max_weight_ratio, config.max_owner_share))


def _trunk_voters(state: EngineState, records: Sequence[LeaseRecord]) -> set[LeaseId]:
    """For each person one submission: the newest, and of these the first."""
    voters: dict[str, GrantedLease] = {}
    for record in records:
        known = voters.setdefault(state.person_of(record.lease), record.lease)
        if record.lease.round > known.round:
            voters[state.person_of(record.lease)] = record.lease
    return {lease.lease_id for lease in voters.values()}


def clips_of(
    state: EngineState, records: Sequence[LeaseRecord], contributions: Sequence[Contribution]
) -> tuple[BlockClip, ...]:
    """For each block that somebody returned, the median of its norms as they enter; infinite where not clipped."""
    norms: dict[BlockId, list[float]] = {}
    for record, contribution in zip(records, contributions, strict=True):
        for norm in record.norms:
            if norm.block in vouching.blocks_of(contribution):
                sent = norm.norm_l2 / residuals.norm_scale(state.config, record, norm.block)
                norms.setdefault(norm.block, []).append(sent * contribution.step_scale)
    blocks = [block for block in (TRUNK, *map(column_block, range(state.config.columns))) if block in norms]
    clip = state.config.clip_to_median
    return tuple(BlockClip(block=block, max_norm_l2=median(norms[block]) if clip else float("inf")) for block in blocks)


def payloads_behind(state: EngineState) -> set[Digest]:
    """Submissions that counted and are kept, for a rollback to take the steps again without some of them."""
    return past.submissions_of(state.past_steps)


def oldest_version_needed(state: EngineState) -> Version:
    """The oldest version that a lease, a command or a comparison may still speak of; at most the present one."""
    needed = [state.version, *(one.version for one in state.standings)]
    needed += [record.lease.base_version for record in state.leases.values() if _may_be_heard_of(state, record)]
    needed += [step.attempt.parent_version for step in state.past_steps if step.has_start]
    for command in state.pending.values():
        if isinstance(command, ValidateVersion | WriteCheckpoint):
            needed.append(command.version)
    return min(needed)


def _may_be_heard_of(state: EngineState, record: LeaseRecord) -> bool:
    """It counts, may count or be audited, or is lost to silence and may come back before its deadline."""
    if record.audit_due:
        return True
    if record.status is LeaseStatus.EXPIRED:
        return state.now_s < record.lease.deadline_s
    return record.status in LIVE_STATUSES
