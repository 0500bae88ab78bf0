"""Bugs planted on purpose, one in each place where such a system has been known to go wrong.

Decides nothing about a run: what the simulation is worth shows in how many seeds it needs to find each of them.
"""

from __future__ import annotations

from simulator.deterministic import coordinator_bugs as bugs
from simulator.deterministic import peer_bugs, trust_bugs, worker_bugs
from simulator.deterministic.planting import PlantedBug

PLANTED: tuple[PlantedBug, ...] = tuple(
    PlantedBug.of(plant)
    for plant in (
        bugs.reply_before_commit,
        bugs.journal_without_sync,
        bugs.apply_twice,
        bugs.no_compare_and_set,
        bugs.pending_forgotten,
        bugs.counted_again,
        bugs.column_leased_twice,
        bugs.owner_seated_twice,
        bugs.owner_back_from_silence,
        bugs.owner_votes_twice,
        bugs.snapshot_one_behind,
        bugs.snapshot_claims_later,
        bugs.payload_without_sync,
        bugs.payload_dropped_early,
        bugs.data_named_twice,
        bugs.base_swept_early,
        bugs.wall_clock_decides,
        bugs.gap_forgotten,
        bugs.suspend_unnoticed,
        worker_bugs.outbox_emptied_at_commit,
        worker_bugs.stale_ticket_accepted,
        worker_bugs.block_digest_unchecked,
        worker_bugs.outbox_dropped_on_a_retryable_refusal,
        worker_bugs.enrolment_retried_under_a_new_key,
        worker_bugs.old_deadline_not_cancelled,
        bugs.aggregated_for_ever,
        bugs.everybody_blamed,
        bugs.set_before_durable,
        trust_bugs.banned_on_one_word,
        trust_bugs.banned_and_still_counted,
        trust_bugs.audited_bytes_dropped,
        trust_bugs.newcomer_weighs,
        trust_bugs.rounding_taken_for_a_lie,
        trust_bugs.rollback_keeps_the_liar,
        trust_bugs.refused_on_a_workers_word,
        trust_bugs.caught_liar_believed,
        trust_bugs.measured_on_known_text,
        peer_bugs.busy_holder_blamed,
        peer_bugs.grants_not_counted,
    )
)
"""One for each place where such a bug could be: pump, journal, votes, placement, blobs, data; session, outbox, keys;
audits, bans, trust and rollback; blocks from other workers."""
