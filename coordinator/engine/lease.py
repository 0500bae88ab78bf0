"""A lease: one shard granted to one worker until a deadline. A pure function of what is written in it.

Holds no behaviour beyond reading its own fields. `leases.py` puts it together: columns come from `placement.py`, steps
and deadline from `pacing.py`, rates from `schedules.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.ids import TRUNK, BlockId, LeaseId, RoundNumber, Version, WorkerId, column_block


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRange:
    """Positions [start, start + count) of the training sequences, permuted by `seed`. Counts once in a run."""

    seed: int
    start: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What a worker is asked to compute, and until when."""

    lease_id: LeaseId
    round: RoundNumber
    worker: WorkerId
    base_version: Version
    columns: tuple[int, ...]
    data: DataRange
    seed: int
    inner_steps: int
    batch_sequences: int
    learning_rate: float
    router_lr_scale: float
    warmup_steps: int
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_eps: float
    clip_norm: float
    optimizer: str
    muon_learning_rate: float
    muon_momentum: float
    granted_at_s: float
    deadline_s: float
    spare: bool = False
    """Granted in mid-round because a column's quorum was at risk."""

    @property
    def sequences(self) -> int:
        """Sequences assigned by the coordinator: what the submission's weight is made of."""
        return self.inner_steps * self.batch_sequences

    @property
    def order(self) -> tuple[int, int, str]:
        """Leases sorted by this are in the order in which they were granted (see `leases.grant`: `r3.9`, `r3.10`)."""
        return self.round, len(self.lease_id), self.lease_id

    @property
    def blocks(self) -> tuple[BlockId, ...]:
        """Blocks that a submission for this lease must hold: the trunk, then its columns."""
        return (TRUNK, *(column_block(column) for column in self.columns))
