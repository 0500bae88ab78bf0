"""Measuring somebody else's submission, or a version, for the coordinator: what it names is fetched and measured.

Decides that an item is sane before anything is fetched for it, and that whatever goes wrong is said rather than kept:
the coordinator then measures it elsewhere. Holds always: blocks, bytes and sequences are believed as those of a lease
are, under the manifest's signature, digests and shapes; nothing is kept of an item but blocks in the cache. Touches the
network and the block cache through what it is given.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

from protocol.codecs import codec_named
from protocol.errors import BarnraiseError, MalformedMessage
from protocol.ids import Digest
from protocol.lease import TrunkPart, trunk_part
from protocol.recipe import Recipe, breaches
from protocol.sequences import decode_sequences, max_payload_bytes
from protocol.v1 import barnraise_pb2 as pb
from worker.fetch import Fetcher
from worker.fetched import FetchedItem, MeasuredPart, Run
from worker.lease import MAX_LEASE_TOKENS, printable
from worker.ports import Background, Coordinator, Measurer
from worker.progress import Reporter
from worker.wire import SessionEnded
from worker.words import say

MAX_PARTS = 8
MAX_ERROR_CHARACTERS = 200


class Measuring:
    """Measures one item at a time."""

    def __init__(self, measurer: Measurer, background: Background, reporter: Reporter) -> None:
        self._measurer, self._background, self._reporter = measurer, background, reporter

    async def answer(self, message: pb.MeasureItem, client: Coordinator, fetcher: Fetcher, run: Run) -> None:
        """Measure what `message` names, and say what comes of it. SessionEnded where the session is over."""
        item_id = message.item_id[:64]
        request = pb.AnswerMeasureRequest(item_id=item_id)
        try:
            item = await _fetched(message, client, fetcher, run, self._background)
            before, after = await self._background.run(self._measurer.measure, item)
            request.before.extend(before)
            request.after.extend(after)
            if not all(map(math.isfinite, (*before, *after))):
                request.error = "not all losses are numbers"
        except SessionEnded:
            raise
        except (BarnraiseError, OSError, RuntimeError, MemoryError) as error:  # torch says RuntimeError of any device
            request.error = printable(str(error) or repr(error), MAX_ERROR_CHARACTERS)
        reply = await client.answer_measure(request)
        what = "unmeasured" if request.error else "measured"
        kind = "submission" if message.parts else "version"
        text = say(f"{what}.{kind}", version=message.base_version)
        text = text if reply.taken else say("measured.unheard", what=text)
        self._reporter.say("measured", text, detail=request.error)


async def _fetched(
    message: pb.MeasureItem, client: Coordinator, fetcher: Fetcher, run: Run, background: Background
) -> FetchedItem:
    item_id, columns, count = message.item_id, tuple(message.columns), message.sequences
    check_item(message, run)
    trunk = _trunk_of(message)
    size_of, expected = fetcher.handiwork.submission_bytes, 0
    if columns:
        expected = await background.run(size_of, run, columns, trunk, codec_named(message.codec).name)
    if message.payload_bytes != expected:
        raise MalformedMessage(
            f"item {item_id}: its submission has {expected} bytes, named are {message.payload_bytes}"
        )
    digests = await fetcher.whole_version(message.base_version, item_id, run, lambda _count: None)
    shape = run.sequences
    data = await client.download_measure_data(item_id, max_payload_bytes(count, shape.tokens))
    sequences_NL = decode_sequences(data, count, shape.tokens, shape.vocab_size)
    payload = b""
    if columns:
        payload = await client.download_measure_payload(item_id, expected, Digest(message.digest.hex()))
    parts = (MeasuredPart(share=part.share, start=part.start, stop=part.stop) for part in message.parts)
    return FetchedItem(
        item_id=item_id,
        run=run,
        columns=columns,
        codec=message.codec,
        digests=digests,
        payload=payload,
        sequences=sequences_NL,
        parts=tuple(parts),
        trunk=trunk,
    )


def _trunk_of(message: pb.MeasureItem) -> TrunkPart:
    told = {name: value for name in ("trunk", "lora_rank") if (value := getattr(message, name))}
    recipe = dataclasses.replace(Recipe(), **told)
    for field, expected, got in breaches(recipe):
        _require(False, field, expected, printable(str(got), 40))
    return trunk_part(recipe, message.lora_seed)


def check_item(message: pb.MeasureItem, run: Run) -> None:
    """MalformedMessage where a coordinator asks for what no item is."""
    columns, tokens = tuple(message.columns), message.sequences * run.sequences.tokens
    _require(0 < len(message.item_id) <= 64 and message.item_id.isprintable(), "item_id", "1 to 64 characters", "?")
    ascending = all(left < right for left, right in itertools.pairwise(columns))
    _require(1 <= tokens <= MAX_LEASE_TOKENS, "sequences", f"1 to {MAX_LEASE_TOKENS} tokens", tokens)
    if not message.parts:  # a version, and no submission
        for field in ("columns", "codec", "digest"):
            got = len(getattr(message, field))
            _require(got == 0, field, "none where there are no parts", got)
        return
    below = bool(columns) and ascending and columns[-1] < run.layout.columns
    _require(below, "columns", f"ascending and below {run.layout.columns}", len(columns))
    _require(len(message.digest) == 32, "digest", "32 bytes", len(message.digest))
    _require(len(message.parts) <= MAX_PARTS, "parts", f"at most {MAX_PARTS}", len(message.parts))
    for part in message.parts:
        _require(math.isfinite(part.share), "share", "a number", part.share)
        _require(
            part.start < part.stop <= message.sequences, "part", f"within {message.sequences} sequences", part.stop
        )


def _require(holds: bool, field: str, expected: str, got: Any) -> None:
    if not holds:
        raise MalformedMessage(f"the coordinator sent an item with {field} = {got}; expected {expected}")
