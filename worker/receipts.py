"""Keeps this worker's receipts in its home: asks for those that are new, and for what it missed while it was away.

Decides when they are asked for: once a session is open, and after each acceptance; beside everything else, and in vain
is no harm, since the next time brings the rest. Always: only what the run signed for this worker's own key is kept; a
file that lost its end with the machine, or is of an earlier key, is fetched anew. Touches two files in the run's home.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math

from pydantic import BaseModel, ConfigDict, ValidationError

from protocol.errors import BarnraiseError, ConfigError, MalformedMessage
from protocol.receipt_files import (
    MAX_FILE_BYTES,
    ReceiptAuthority,
    receipt_line,
    revocations_line,
)
from protocol.receipts import verified_receipt, verified_revocations
from protocol.v1 import barnraise_pb2 as pb
from worker.belongings import KEPT_FILE, RECEIPTS_FILE
from worker.home import Enrolment, RunHome
from worker.ports import Coordinator
from worker.progress import QuietReporter, Reporter
from worker.words import say

MAX_PAGE = 1024
"""Receipts in one answer: ours has 64."""
MOST_PAGES = 10_000
LAST_S = 0.5
MOST_LOSSES = 60
MOST_TOKENS = 10**18


class KeptReceipts(BaseModel):
    """What the file of receipts must hold, and where to go on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    """In hexadecimal: receipts of another are asked for anew."""
    after: int = 0
    file_bytes: int = 0
    revoked_at_s: int = 0


class ReceiptKeeper:
    """One run's."""

    def __init__(self, home: RunHome, reporter: Reporter | None = None) -> None:
        """`reporter` hears how the worker stands in the run, where that has changed."""
        self._home, self._reporter = home, reporter or QuietReporter()
        self._told: object = None
        self._key = home.identity().public_key
        self._task: asyncio.Task[None] | None = None
        self._again = False

    def look(self, client: Coordinator) -> None:
        """Ask for what is new, beside whatever else is going on."""
        if self._task is not None and not self._task.done():
            self._again = True
            return
        self._task = asyncio.create_task(self._ask(client))

    async def close(self) -> None:
        """Give what is under way a moment: the last receipt of a run comes with its end."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=LAST_S)
            self._task.cancel()

    async def _ask(self, client: Coordinator) -> None:
        with contextlib.suppress(BarnraiseError, OSError):  # the next time brings the rest
            while True:
                self._again = False
                await self.fetch(client)
                if not self._again:
                    return

    async def fetch(self, client: Coordinator) -> int:
        """Ask until there are no more; how many are new. RemoteError, StorageTrouble, OSError."""
        enrolment = self._home.enrolment()
        if enrolment is None:
            return 0
        kept, count = self._kept(enrolment), 0
        for _ in range(MOST_PAGES):
            reply = await client.list_receipts(kept.after)
            lines = self._lines(enrolment, reply, kept)
            is_last = reply.next <= kept.after or not reply.receipts
            if reply.HasField("standing"):
                self._tell(reply.standing)
            if lines:
                kept = self._append(kept, reply, lines)
                count += len(reply.receipts)
            if is_last:
                return count
        return count

    def _tell(self, standing: pb.CreditStanding) -> None:
        """Nothing depends on it; whatever a coordinator says, it is bounded."""
        losses = [round(one, 4) for one in standing.losses[-MOST_LOSSES:] if math.isfinite(one)]
        tokens, rank = min(standing.tokens, MOST_TOKENS), min(standing.rank, standing.ranked)
        said = (tokens, rank, standing.ranked, losses)
        if said != self._told:
            text = (
                say("credit", tokens=f"{tokens:,}", rank=rank, ranked=standing.ranked) if rank else say("credit.none")
            )
            self._reporter.say("credit", text, tokens=tokens, rank=rank, ranked=standing.ranked, losses=losses)
        self._told = said

    def _lines(self, enrolment: Enrolment, reply: pb.ListReceiptsReply, kept: KeptReceipts) -> list[bytes]:
        if len(reply.receipts) > MAX_PAGE:
            raise MalformedMessage(f"{len(reply.receipts)} receipts at once; at most {MAX_PAGE} are read")
        lines = []
        for one in reply.receipts:
            receipt = verified_receipt(enrolment.manifest_public_key, one.receipt_json, one.signature)
            if receipt.worker_key != self._key.hex() or receipt.run_id != enrolment.run_id:
                raise MalformedMessage("a receipt for another worker, or of another run")
            lines.append(receipt_line(one.receipt_json, one.signature))
        content, signature = reply.revocations_json, reply.revocations_signature
        if content:
            revoked = verified_revocations(enrolment.manifest_public_key, content, signature)
            if revoked.lease_ids and revoked.issued_at_s > kept.revoked_at_s:
                lines.append(revocations_line(content, signature))
        return lines

    def _append(self, kept: KeptReceipts, reply: pb.ListReceiptsReply, lines: list[bytes]) -> KeptReceipts:
        piece = b"".join(lines)
        if kept.file_bytes + len(piece) > MAX_FILE_BYTES:
            raise ConfigError(f"{RECEIPTS_FILE} would be larger than {MAX_FILE_BYTES} bytes")
        self._home.add(RECEIPTS_FILE, piece)
        revoked_at_s = kept.revoked_at_s
        if b'"revocations"' in lines[-1]:
            revoked_at_s = int(json.loads(reply.revocations_json)["issued_at_s"])
        kept = KeptReceipts(
            key=kept.key,
            after=max(kept.after, reply.next),
            file_bytes=kept.file_bytes + len(piece),
            revoked_at_s=revoked_at_s,
        )
        self._home.keep(KEPT_FILE, kept.model_dump_json().encode())
        return kept

    def _kept(self, enrolment: Enrolment) -> KeptReceipts:
        """Where to go on; from the beginning where the file is not what it should be."""
        content = self._home.kept(RECEIPTS_FILE) or b""
        with contextlib.suppress(ValidationError):
            kept = KeptReceipts.model_validate_json(self._home.kept(KEPT_FILE) or b"")
            if kept.key == self._key.hex() and 0 < kept.file_bytes <= len(content):
                if len(content) > kept.file_bytes:  # added, and the machine went down before that was noted
                    self._home.keep(RECEIPTS_FILE, content[: kept.file_bytes])
                return kept
        authority = ReceiptAuthority(
            run_id=enrolment.run_id,
            ca_pem=enrolment.ca_pem.encode(),
            manifest_key=enrolment.manifest_public_key,
            vouch=bytes.fromhex(enrolment.manifest_key_vouch_hex),
        )
        first = authority.to_line()
        self._home.keep(RECEIPTS_FILE, first)
        return KeptReceipts(key=self._key.hex(), file_bytes=len(first))
