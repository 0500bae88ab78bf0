"""What enters aggregation: which accepted submissions, at which weight, clipped to what.

Decides, holding always: one worker has one vote on each block of a round. Its submissions of this round stand before
late ones, and where it holds two leases of one round (disjoint columns) only the first counts on the trunk. Weights
are made of sequences that the coordinator assigned, capped against the median, and discounted by staleness.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from coordinator.engine import pacing
from coordinator.engine.commands import BlockClip, Contribution
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.state import EngineState, LeaseRecord
from protocol.ids import TRUNK, BlockId, WorkerId, column_block


def countable(state: EngineState) -> list[LeaseRecord]:
    """Accepted submissions that have not counted yet and still may."""
    return [
        record
        for record in state.leases.values()
        if record.status is LeaseStatus.ACCEPTED
        and record.counted_in is None
        and state.staleness_of(record.lease) <= state.config.max_staleness
    ]


def one_vote_each(records: Sequence[LeaseRecord]) -> tuple[list[LeaseRecord], list[LeaseRecord]]:
    """The submissions that count, and those that their worker's newer ones stand before."""
    newest: dict[WorkerId, int] = {}
    for record in records:
        worker = record.lease.worker
        newest[worker] = max(newest.get(worker, 0), record.lease.round)
    counted = [record for record in records if record.lease.round == newest[record.lease.worker]]
    superseded = [record for record in records if record.lease.round < newest[record.lease.worker]]
    return counted, superseded


def contributions_of(state: EngineState, records: Sequence[LeaseRecord]) -> tuple[Contribution, ...]:
    """Weights and scales for the submissions that count, brought to the steps that they took on average."""
    config = state.config
    weights = pacing.capped_weights([record.lease.sequences for record in records], config.max_weight_ratio)
    common_steps = pacing.common_steps([record.lease for record in records], weights)
    voted: set[WorkerId] = set()
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
                weight=weight * config.staleness_discount ** state.staleness_of(lease),
                include_trunk=lease.worker not in voted,
            )
        )
        voted.add(lease.worker)
    return tuple(contributions)


def clips_of(
    state: EngineState, records: Sequence[LeaseRecord], contributions: Sequence[Contribution]
) -> tuple[BlockClip, ...]:
    """For each block that somebody returned, the median of its norms as they enter; infinite where not clipped."""
    norms: dict[BlockId, list[float]] = {}
    for record, contribution in zip(records, contributions, strict=True):
        for norm in record.norms:
            if norm.block != TRUNK or contribution.include_trunk:
                sent = norm.norm_l2 / pacing.recipe_scale(state.config, record.lease)
                norms.setdefault(norm.block, []).append(sent * contribution.step_scale)
    blocks = [block for block in (TRUNK, *map(column_block, range(state.config.columns))) if block in norms]
    clip = state.config.clip_to_median
    return tuple(BlockClip(block=block, max_norm_l2=median(norms[block]) if clip else float("inf")) for block in blocks)
