"""Submissions and versions that trusted workers measure, over the wire: what they are given, and what they answer.

Decides what can be an answer: as many losses as the item asks for, all of them numbers; anything else is as good as
none, and is measured elsewhere. Always: an item's sequences and bytes are for whoever has it, for as long as it has.
"""

from __future__ import annotations

import asyncio
import math

import structlog

from coordinator.edge.served import RunContext
from coordinator.edge.sessions import CallerSession
from coordinator.engine.answers import GainAnswer
from coordinator.engine.commands import Item, MeasureSubmission
from coordinator.work.measured import parts_of, sequences_of, sizes_of
from protocol.errors import MalformedMessage, Refused
from protocol.ids import WorkerId
from protocol.sequences import encode_sequences
from protocol.text import printable
from protocol.v1 import barnraise_pb2 as pb

MAX_ERROR_CHARACTERS = 200

_log = structlog.get_logger(__name__)


class Measures:
    """Answers AnswerMeasure, and gives out what an item is made of."""

    def __init__(self, run: RunContext) -> None:
        self._run = run

    async def answer(self, session: CallerSession, request: pb.AnswerMeasureRequest) -> pb.AnswerMeasureReply:
        """What a worker found. MalformedMessage where it is not what the item asks for: nobody asks it again."""
        delegation, worker = self._run.pump.delegation, session.worker
        command = delegation.held(worker, request.item_id)
        if command is None:
            return pb.AnswerMeasureReply(taken=False)
        before, after = tuple(request.before), tuple(request.after)
        trouble = _trouble(request, before, after, self._sizes(command))
        if trouble:
            delegation.fail(worker, request.item_id)
            _log.info("not_measured", worker=worker, item=command.command_id, reason=trouble)
        if trouble and not request.error and all(map(math.isfinite, (*before, *after))):
            raise MalformedMessage(f"item {command.command_id}: {trouble}")
        if trouble:
            return pb.AnswerMeasureReply(taken=True)
        found = GainAnswer(worker=worker, before=before, after=after)
        return pb.AnswerMeasureReply(taken=delegation.answer(found, request.item_id))

    async def sequences(self, worker: WorkerId, item_id: str) -> bytes:
        """The payload with an item's sequences."""
        command, settings = self._held(worker, item_id), self._run.settings
        found = await asyncio.to_thread(
            sequences_of, self._run.dataset, command, settings.sequence_length, settings.heldout_limit
        )
        return encode_sequences(found)

    def submission(self, worker: WorkerId, item_id: str) -> MeasureSubmission:
        """The command whose bytes an item's holder is served."""
        command = self._held(worker, item_id)
        if not isinstance(command, MeasureSubmission):
            raise Refused(f"item {printable(item_id[:64])} is a version: no submission goes with it")
        return command

    def message(self, command: Item) -> pb.MeasureItem:
        """An item for the wire."""
        sequences, _ = self._sizes(command)
        if not isinstance(command, MeasureSubmission):
            return pb.MeasureItem(item_id=command.command_id, base_version=command.version, sequences=sequences)
        lease = command.lease
        return pb.MeasureItem(
            item_id=command.command_id,
            base_version=lease.base_version,
            columns=lease.columns,
            trunk=lease.trunk.mode,
            lora_rank=lease.trunk.rank,
            lora_seed=lease.trunk.seed,
            codec=command.codec,
            digest=bytes.fromhex(command.digest),
            payload_bytes=command.payload_bytes,
            sequences=sequences,
            parts=[pb.MeasurePart(share=part.share, start=part.start, stop=part.stop) for part in parts_of(command)],
        )

    def _sizes(self, command: Item) -> tuple[int, int]:
        settings = self._run.settings
        return sizes_of(command, self._run.dataset, settings.sequence_length, settings.heldout_limit)

    def _held(self, worker: WorkerId, item_id: str) -> Item:
        command = self._run.pump.delegation.held(worker, item_id)
        if command is None:
            raise Refused(f"item {printable(item_id[:64])} is not this worker's to measure, or not any more")
        return command


def _trouble(
    request: pb.AnswerMeasureRequest, before: tuple[float, ...], after: tuple[float, ...], expected: tuple[int, int]
) -> str:
    """Why this is no answer; empty where it is."""
    if request.error:
        return printable(request.error[:MAX_ERROR_CHARACTERS])
    got = len(before), len(after)
    if got != expected:
        return f"expected {expected[0]} losses before and {expected[1]} after, got {got[0]} and {got[1]}"
    return "" if all(map(math.isfinite, (*before, *after))) else "not all losses are numbers"
