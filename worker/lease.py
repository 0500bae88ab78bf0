"""What a worker was asked to compute, and about which run: the coordinator's values, checked before anyone uses them.

Decides which values are sane. A hostile or broken coordinator can at most name numbers inside these bounds; everything
else is a `MalformedMessage` that says which field, what was expected and what came. Touches nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.codecs import CODECS, FP32, codec_named
from protocol.errors import MalformedMessage
from protocol.ids import Digest, RunId
from protocol.lease import Lease, TrunkPart, blocks_of
from protocol.messages import record_of
from protocol.recipe import MAX_INNER_STEPS, Recipe, breaches
from protocol.residency import RESIDENCIES
from protocol.text import printable as text_printable

if TYPE_CHECKING:
    from protocol.v1 import barnraise_pb2 as pb

MAX_BATCH_SEQUENCES = 65_536
MAX_LEASE_TOKENS = 1 << 28  # 1 GiB of uint32 on the volunteer's disk and line
MAX_SEQUENCE_LENGTH = 1 << 17
MAX_TTL_S = 7 * 86_400.0
MAX_MODEL_JSON_CHARS = 1 << 16
MAX_BLOCK_BYTES = 1 << 36  # 64 GiB: above the trunk of any model whose layout this worker accepts
HEX_DIGITS = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedLease(Lease):
    """A lease in this worker's hands. Training it is a pure function of all but `ttl_s`."""

    ttl_s: float
    """Seconds from the reply that carried the lease to its deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDescription:
    """What stays the same for the whole run."""

    run_id: RunId
    name: str
    model_json: str
    residency: str
    codec: str
    """What leases name as a rule."""
    sequence_length: int
    dataset_digest: Digest
    max_block_bytes: int
    column_parts: int = 1
    """What is called a column is so much of an expert's: those of some layers."""
    frozen_codec: str = FP32.name
    """What columns that are not held come in as a rule."""
    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    """What leases name, as far as memory depends on it."""


def printable(text: str, limit: int = 400) -> str:
    """`text` from the network as it may be shown on a terminal: one line, no control characters, bounded."""
    cleaned = text_printable(text[: limit + 1])
    return cleaned if len(cleaned) <= limit else cleaned[:limit] + "…"


def lease_from_message(
    message: pb.Lease, *, max_columns: int, layout_columns: int, sequence_length: int
) -> ReceivedLease:
    """The lease that `message` carries, or MalformedMessage naming the first field that is out of bounds."""
    columns = tuple(message.columns)
    _require(0 < len(message.lease_id) <= 64 and message.lease_id.isprintable(), "lease_id", "1 to 64 characters", "?")
    _require(0 < len(columns) <= max_columns, "columns", f"1 to {max_columns} of them", len(columns))
    ascending = all(left < right for left, right in itertools.pairwise(columns))
    _require(ascending and columns[-1] < layout_columns, "columns", f"ascending and below {layout_columns}", columns)
    _check_counts(message, sequence_length)
    codec_named(message.codec)
    residuals = tuple(message.residuals)
    _require(all(not one or is_digest(one) for one in residuals), "residuals", "64 hexadecimal characters", "?")
    for field, expected, got in breaches(message.recipe):
        _require(False, field, expected, printable(str(got), 40))
    blocks = len(blocks_of(columns, TrunkPart(mode=message.recipe.trunk)))
    _require(len(residuals) in (0, blocks), "residuals", "none, or one a block", len(residuals))
    _check_frozen(message)
    _within(message.ttl_s, 0.0, MAX_TTL_S, "ttl_s")
    return record_of(ReceivedLease, message)


def _check_counts(message: pb.Lease, sequence_length: int) -> None:
    _within(message.inner_steps, 1, MAX_INNER_STEPS, "inner_steps")
    _within(message.batch_sequences, 1, MAX_BATCH_SEQUENCES, "batch_sequences")
    wanted = message.inner_steps * message.batch_sequences
    _require(message.data.count == wanted, "data.count", f"inner_steps x batch = {wanted}", message.data.count)
    _within(wanted * (sequence_length + 1), 1, MAX_LEASE_TOKENS, "tokens of the data range")


def _check_frozen(message: pb.Lease) -> None:
    codec, version = message.frozen.codec, message.frozen.version
    _require(codec in {"", *CODECS}, "frozen.codec", f"one of {', '.join(CODECS)}, or none", printable(codec, 40))
    _require(version <= message.base_version, "frozen.version", f"at most {message.base_version}", version)


def description_from_message(message: pb.RunDescription) -> RunDescription:
    """The run as the coordinator describes it; the model's configuration itself is checked by `moe.config`."""
    _require(0 < len(message.run_id) <= 128 and message.run_id.isprintable(), "run_id", "1 to 128 characters", "?")
    _require(message.residency in RESIDENCIES, "residency", f"one of {RESIDENCIES}", printable(message.residency, 40))
    _within(len(message.model_json), 2, MAX_MODEL_JSON_CHARS, "characters of model_json")
    _within(message.sequence_length, 1, MAX_SEQUENCE_LENGTH, "sequence_length")
    _within(message.max_block_bytes, 1, MAX_BLOCK_BYTES, "max_block_bytes")
    frozen = message.frozen_codec or FP32.name
    _require(frozen in CODECS, "frozen_codec", f"one of {', '.join(CODECS)}, or none", printable(frozen, 40))
    digest = message.dataset_digest
    _require(is_digest(digest), "dataset_digest", "64 hexadecimal characters", "?")
    return RunDescription(
        run_id=RunId(message.run_id),
        name=printable(message.name, 64),
        model_json=message.model_json,
        residency=message.residency,
        codec=printable(message.codec, 40),
        sequence_length=message.sequence_length,
        dataset_digest=Digest(digest),
        max_block_bytes=message.max_block_bytes,
        column_parts=message.column_parts or 1,
        frozen_codec=frozen,
        recipe=_described_recipe(message),
    )


def _described_recipe(message: pb.RunDescription) -> Recipe:
    names = ("optimizer", "masters", "moments", "frozen_dtype", "trunk", "lora_rank")
    told = {name: getattr(message, name) for name in names}
    found = dataclasses.replace(Recipe(), **{name: value for name, value in told.items() if value})
    for field, expected, got in breaches(found):
        _require(False, field, expected, printable(str(got), 40))
    return found


def is_digest(text: str) -> bool:
    """Whether it can name a file of ours."""
    return len(text) == 64 and set(text) <= HEX_DIGITS


def _within(value: float, low: float, high: float, field: str) -> None:
    _require(math.isfinite(value) and low <= value <= high, field, f"{low:g} to {high:g}", value)


def _require(holds: bool, field: str, expected: str, got: object) -> None:
    if not holds:
        raise MalformedMessage(f"the coordinator sent {field} = {got}; expected {expected}")
