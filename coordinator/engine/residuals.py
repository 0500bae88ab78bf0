"""What a worker's encodings have lost so far, by block: which of it a lease names, and what becomes of it.

A codec with error feedback (Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847) adds to each encoding what
the ones before it lost. That remainder, the residual, lies with the worker; here are digests alone, of the last that a
commit named for each block. Decides, holding always: a lease names what its worker's newest commit left for a block,
or, where that submission came to nothing, what its worker has then (what it began with, and all that was computed); a
block that the worker's newest lease does not hold has none, so that a worker's row holds one digest a block; what was
lost of a `lora` trunk's factors is named for as long as the fixed ones are the same. Where a
later commit has begun with what a submission left that is refused after that, what was sent with it is lost. A norm
is brought to the common rate by the rate of whatever makes it long: after a rate has dropped, that is the residual's.
See docs/decisions/0030.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from coordinator.engine import pacing
from coordinator.engine.config import EngineConfig
from coordinator.engine.events import SubmissionCommitted
from coordinator.engine.lease import GrantedLease
from coordinator.engine.rows import LeaseRecord, WorkerRecord
from coordinator.engine.turn import Turn
from protocol.ids import TRUNK, BlockId, Digest
from protocol.lease import TrunkPart, blocks_of
from protocol.recipe import LORA_TRUNK, Recipe

NONE = Digest("")
STAYS = 0.65
"""Share of a residual's reach that is still there after one more encoding by a codec that sends every value: of values
as the normal distribution has them, after a drop of the rate to a twentieth, payloads were 0.7 to 0.4 times what this
says, of heavy-tailed and of aligned ones 0.8 to 2 times (docs/log.md, 2026-11-26)."""
STAYS_OF: Mapping[str, float] = {"top_k": 0.92}
"""The same of codecs that leave most values out."""


def named(worker: WorkerRecord, columns: tuple[int, ...], recipe: Recipe, lora_seed: int) -> tuple[Digest, ...]:
    """What a lease of `worker` says of its blocks; () where nothing is left of any."""
    stale = {TRUNK} if recipe.trunk == LORA_TRUNK and worker.residual_lora_seed != lora_seed else set[BlockId]()
    blocks = blocks_of(columns, TrunkPart(mode=recipe.trunk))
    found = tuple(NONE if block in stale else worker.residuals.get(block, NONE) for block in blocks)
    return found if any(found) else ()


def on_grant(turn: Turn, lease: GrantedLease) -> None:
    """Columns that a worker holds no more are somebody else's to train: what was left of them goes."""
    held = turn.state.workers[lease.worker].residuals
    if held:
        kept = {block: held[block] for block in lease.blocks if block in held}
        turn.state.update_worker(lease.worker, residuals=kept)


def on_commit(turn: Turn, record: LeaseRecord) -> None:
    """It is taken for granted that the submission counts, until it is known that it does not."""
    if not record.residuals_out or record.lease.audits is not None:
        return
    worker = turn.state.workers[record.lease.worker]
    goes_on = any(record.residuals_in)
    age = worker.residual_age + 1 if goes_on else 0
    stays = STAYS_OF.get(record.lease.codec, STAYS)
    carried = stays * worker.residual_reach if goes_on else 0.0
    left = dict(zip(record.lease.blocks, record.residuals_out, strict=True))
    of_trunk = stays * worker.residual_trunk_reach if record.residuals_in[0] else 0.0
    turn.state.update_worker(
        worker.worker,
        residuals={**worker.residuals, **left},
        residual_lora_seed=record.lease.lora_seed,
        residual_age=age,
        residual_reach=max(pacing.reach(record.lease), carried),
        residual_trunk_reach=max(pacing.reach(record.lease), of_trunk),
    )
    turn.state.update_lease(
        record.lease.lease_id, residual_age=age, carried_reach=carried, carried_trunk_reach=of_trunk
    )


def norm_scale(config: EngineConfig, record: LeaseRecord, block: BlockId) -> float:
    """What brings the norm of `block`, as sent, to common steps and rates: by what was computed or, longer, by what a
    residual that went in brings along."""
    went_in = dict(zip(record.lease.blocks, record.residuals_in, strict=False))
    carried = record.carried_trunk_reach if is_of_factors(record, block) else record.carried_reach
    return pacing.norm_scale(config, record.lease, carried if went_in.get(block) else 0.0)


def is_of_factors(record: LeaseRecord, block: BlockId) -> bool:
    """Whether what is sent of the block are factors, of which nothing outlives the fixed ones."""
    return block == TRUNK and record.lease.recipe.trunk == LORA_TRUNK


def on_refused_commit(turn: Turn, record: LeaseRecord, event: SubmissionCommitted) -> None:
    """None of its bytes will come, and no lease of the worker has begun after this one: it goes on from all of it."""
    state, lease = turn.state, record.lease
    newest = [own.lease.lease_id for own in state.leases_of(lease.worker)][-1] == lease.lease_id
    if event.residuals_back and lease.audits is None and newest:
        _give_back(turn, record, dict(zip(lease.blocks, event.residuals_back, strict=True)))


def on_lost(turn: Turn, record: LeaseRecord, only: Collection[BlockId] | None = None) -> None:
    """The submission, or `only` these blocks of it, came to nothing: what was sent is the worker's again.

    Unless a later commit of it went on from there.
    """
    if not record.residuals_out or record.lease.audits is not None:
        return
    worker = turn.state.workers[record.lease.worker]
    three = zip(record.lease.blocks, record.residuals_out, record.residuals_back, strict=True)
    again = {
        block: back
        for block, out, back in three
        if worker.residuals.get(block) == out and (only is None or block in only)
    }
    if again:
        _give_back(turn, record, again)


def _give_back(turn: Turn, record: LeaseRecord, back: Mapping[BlockId, Digest]) -> None:
    """All of what was computed is in it, and of what it began with, not what an encoding leaves of that."""
    worker = turn.state.workers[record.lease.worker]
    seed = record.lease.lora_seed if TRUNK in back else worker.residual_lora_seed
    stays, reach = STAYS_OF.get(record.lease.codec, STAYS), pacing.reach(record.lease)
    whole = max(reach, record.carried_reach) / stays
    of_trunk = max(reach, record.carried_trunk_reach) / stays if TRUNK in back else 0.0
    turn.state.update_worker(
        worker.worker,
        residuals={**worker.residuals, **back},
        residual_lora_seed=seed,
        residual_reach=max(worker.residual_reach, whole),
        residual_trunk_reach=max(worker.residual_trunk_reach, of_trunk),
    )
