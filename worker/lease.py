"""What a worker was asked to compute, and about which run: the coordinator's values, checked before anyone uses them.

Decides which values are sane. A hostile or broken coordinator can at most name numbers inside these bounds; everything
else is a `MalformedMessage` that says which field, what was expected and what came. Touches nothing.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.errors import MalformedMessage
from protocol.ids import TRUNK, BlockId, Digest, LeaseId, RoundNumber, RunId, Version, column_block
from protocol.text import printable as text_printable

if TYPE_CHECKING:
    from protocol.v1 import barnraise_pb2 as pb

MAX_INNER_STEPS = 100_000  # DiLoCo's longest published inner loop is 2,000; two orders above that is an attack
MAX_BATCH_SEQUENCES = 65_536
MAX_LEASE_TOKENS = 1 << 28  # 1 GiB of uint32 on the volunteer's disk and line
MAX_SEQUENCE_LENGTH = 1 << 17
MAX_TTL_S = 7 * 86_400.0
MAX_MODEL_JSON_CHARS = 1 << 16
MAX_BLOCK_BYTES = 1 << 36  # 64 GiB: above the trunk of any model whose layout this worker accepts
RESIDENCIES = ("frozen", "absent")
OPTIMIZERS = ("adamw", "muon")
"""As worker.train.optimizer.OPTIMIZERS (a test compares them); importing that would load torch."""
HEX_DIGITS = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One shard, one data range, one recipe, until a deadline. Training it is a pure function of these fields."""

    lease_id: LeaseId
    round: RoundNumber
    base_version: Version
    columns: tuple[int, ...]
    data_seed: int
    data_start: int
    data_count: int
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
    ttl_s: float
    """Seconds from the reply that carried the lease to its deadline."""

    @property
    def blocks(self) -> tuple[BlockId, ...]:
        """Blocks that the submission holds: the trunk, then the columns."""
        return (TRUNK, *(column_block(column) for column in self.columns))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDescription:
    """What stays the same for the whole run."""

    run_id: RunId
    name: str
    model_json: str
    residency: str
    codec: str
    sequence_length: int
    dataset_digest: Digest
    max_block_bytes: int


def printable(text: str, limit: int = 400) -> str:
    """`text` from the network as it may be shown on a terminal: one line, no control characters, bounded."""
    cleaned = text_printable(text[: limit + 1])
    return cleaned if len(cleaned) <= limit else cleaned[:limit] + "…"


def lease_from_message(message: pb.Lease, *, max_columns: int, layout_columns: int, sequence_length: int) -> Lease:
    """The lease that `message` carries, or MalformedMessage naming the first field that is out of bounds."""
    columns = tuple(message.columns)
    _require(0 < len(message.lease_id) <= 64 and message.lease_id.isprintable(), "lease_id", "1 to 64 characters", "?")
    _require(0 < len(columns) <= max_columns, "columns", f"1 to {max_columns} of them", len(columns))
    ascending = all(left < right for left, right in itertools.pairwise(columns))
    _require(ascending and columns[-1] < layout_columns, "columns", f"ascending and below {layout_columns}", columns)
    _check_counts(message, sequence_length)
    _check_recipe(message)
    return Lease(
        lease_id=LeaseId(message.lease_id),
        round=RoundNumber(message.round),
        base_version=Version(message.base_version),
        columns=columns,
        data_seed=message.data.seed,
        data_start=message.data.start,
        data_count=message.data.count,
        seed=message.seed,
        inner_steps=message.inner_steps,
        batch_sequences=message.batch_sequences,
        learning_rate=message.learning_rate,
        router_lr_scale=message.router_lr_scale,
        warmup_steps=message.warmup_steps,
        weight_decay=message.weight_decay,
        adam_beta1=message.adam_beta1,
        adam_beta2=message.adam_beta2,
        adam_eps=message.adam_eps,
        clip_norm=message.clip_norm,
        optimizer=message.optimizer,
        muon_learning_rate=message.muon_learning_rate,
        muon_momentum=message.muon_momentum,
        ttl_s=message.ttl_s,
    )


def _check_counts(message: pb.Lease, sequence_length: int) -> None:
    _within(message.inner_steps, 1, MAX_INNER_STEPS, "inner_steps")
    _within(message.batch_sequences, 1, MAX_BATCH_SEQUENCES, "batch_sequences")
    _within(message.warmup_steps, 0, MAX_INNER_STEPS, "warmup_steps")
    wanted = message.inner_steps * message.batch_sequences
    _require(message.data.count == wanted, "data.count", f"inner_steps x batch = {wanted}", message.data.count)
    _within(wanted * (sequence_length + 1), 1, MAX_LEASE_TOKENS, "tokens of the data range")


def _check_recipe(message: pb.Lease) -> None:
    _within(message.learning_rate, 1e-9, 1.0, "learning_rate")
    _within(message.router_lr_scale, 0.0, 100.0, "router_lr_scale")
    _within(message.weight_decay, 0.0, 10.0, "weight_decay")
    _within(message.adam_beta1, 0.0, 1.0 - 1e-9, "adam_beta1")
    _within(message.adam_beta2, 0.0, 1.0 - 1e-9, "adam_beta2")
    _within(message.adam_eps, 1e-16, 1.0, "adam_eps")
    _within(message.clip_norm, 1e-6, 1e6, "clip_norm")
    _require(message.optimizer in OPTIMIZERS, "optimizer", f"one of {OPTIMIZERS}", printable(message.optimizer, 40))
    _within(message.muon_learning_rate, 1e-9, 1.0, "muon_learning_rate")
    _within(message.muon_momentum, 0.0, 1.0 - 1e-9, "muon_momentum")
    _within(message.ttl_s, 0.0, MAX_TTL_S, "ttl_s")


def description_from_message(message: pb.RunDescription) -> RunDescription:
    """The run as the coordinator describes it; the model's configuration itself is checked by `moe.config`."""
    _require(0 < len(message.run_id) <= 128 and message.run_id.isprintable(), "run_id", "1 to 128 characters", "?")
    _require(message.residency in RESIDENCIES, "residency", f"one of {RESIDENCIES}", printable(message.residency, 40))
    _within(len(message.model_json), 2, MAX_MODEL_JSON_CHARS, "characters of model_json")
    _within(message.sequence_length, 1, MAX_SEQUENCE_LENGTH, "sequence_length")
    _within(message.max_block_bytes, 1, MAX_BLOCK_BYTES, "max_block_bytes")
    digest = message.dataset_digest
    _require(len(digest) == 64 and set(digest) <= HEX_DIGITS, "dataset_digest", "64 hexadecimal characters", "?")
    return RunDescription(
        run_id=RunId(message.run_id),
        name=printable(message.name, 64),
        model_json=message.model_json,
        residency=message.residency,
        codec=printable(message.codec, 40),
        sequence_length=message.sequence_length,
        dataset_digest=Digest(digest),
        max_block_bytes=message.max_block_bytes,
    )


def _within(value: float, low: float, high: float, field: str) -> None:
    _require(math.isfinite(value) and low <= value <= high, field, f"{low:g} to {high:g}", value)


def _require(holds: bool, field: str, expected: str, got: object) -> None:
    if not holds:
        raise MalformedMessage(f"the coordinator sent {field} = {got}; expected {expected}")
