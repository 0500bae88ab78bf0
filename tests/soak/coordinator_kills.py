"""A real coordinator that dies again and again, and volunteers that never stop asking it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from coordinator.run.folder import RunFolder
from coordinator.store.journal import Journal
from coordinator.store.registry import Registry
from protocol.identity import PrivateIdentity
from protocol.joinlink import JoinLink
from protocol.v1 import barnraise_pb2 as pb
from simulator.processes.launcher import ProcessGroup
from tests.served import RawClient, submission_for
from tests.soak.dooms import Doom, coordinator_life
from tests.soak.history import Acknowledged, Tally, check

LIFE_LIMIT_S = 12.0
"""A doom whose event does not come within this is carried out from outside, at whatever moment it is then."""
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.DEADLINE_EXCEEDED,
         grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)  # fmt: skip


@dataclass(slots=True)
class Lives:
    """The coordinator as its volunteers see it: which life it is in, and whether it answers."""

    number: int = 0
    port: int = 0
    up: asyncio.Event = field(default_factory=asyncio.Event)
    over: bool = False


class Volunteer:
    """Takes leases, commits, uploads, and remembers what it was told is safe. Repeats whatever was not answered."""

    patience_s = 10.0
    """For an answer; then it connects anew."""

    def __init__(self, run: RunFolder, link: str, lives: Lives, acknowledged: Acknowledged, number: int) -> None:
        self._run = run
        self._link = link
        self._lives = lives
        self._told = acknowledged
        self._identity = PrivateIdentity.generate()
        self._chance = random.Random(number)
        self._client: RawClient | None = None
        self._life = 0
        self._work: tuple[pb.Lease, bytes] | None = None
        self._number = number
        self.epoch = 0
        """Of the coordinator that is spoken to, as it said."""
        self.refused: Counter[str] = Counter()

    async def run(self) -> None:
        """Until the lives are over."""
        while not self._lives.over:
            try:
                async with asyncio.timeout(self.patience_s):
                    await self._connected()
                    await self._one_lease()
            except grpc.aio.AioRpcError as error:
                if error.code() in _GONE:
                    self._life = -1  # whatever it was: a new connection, a new session, the same request again
                    await asyncio.sleep(0.03)
                    continue
                self.refused[str(error.details())[:80]] += 1
                self._work = None
            except TimeoutError:
                self._life = -1
        if self._client is not None:
            await self._client.close()

    async def _connected(self) -> None:
        await self._lives.up.wait()
        if self._client is not None and self._life == self._lives.number:
            return
        if self._client is not None:
            await self._client.close()
        link = JoinLink.parse(self._link)
        link = type(link)(host=link.host, port=self._lives.port, fingerprint=link.fingerprint, invite=link.invite)
        self._client = RawClient(link, self._run, self._identity)
        self._client.capability = pb.Capability(device="cpu", memory_bytes=8 << 30, max_columns=self._columns())
        life = self._lives.number
        await self._client.enrol()
        self.epoch = (await self._client.open()).epoch
        self._life = life

    def _columns(self) -> int:
        return 4 + (self._lives.number + self._number) % 3  # each life offers something else: CapabilityChanged

    async def _one_lease(self) -> None:
        assert self._client is not None
        client = self._client
        if self._work is None:
            reply = await client.acquire(wait_s=1.0)
            if reply.WhichOneof("outcome") != "lease":
                await asyncio.sleep(0.05)
                return
            self._told.version = max(self._told.version, reply.lease.base_version)
            if self._chance.random() < 0.15:
                request = pb.ReturnLeaseRequest(lease_id=reply.lease.lease_id, reason="changed my mind")
                await client.call("ReturnLease", request, pb.ReturnLeaseReply)
                return
            if self._chance.random() < 0.1:
                await asyncio.sleep(1.2)  # silent: its lease expires
                return
            seed = self._chance.randrange(1 << 30)
            self._work = (reply.lease, submission_for(self._run, reply.lease, seed=seed))
        lease, payload = self._work
        key = (lease.lease_id, hashlib.sha256(payload).hexdigest())
        committed = await client.commit(lease, payload, codec="bf16")
        self._told.commits.add(key)
        if committed.upload_offset < len(payload):
            uploaded = await client.upload(lease, payload, offset=committed.upload_offset)
            if not uploaded.complete:
                return
            self._told.uploads.add(key)
        elif not committed.HasField("verdict"):
            self._told.uploads.add(key)  # "there is nothing left to send" is a promise, too
        self._work = None


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a series of deaths came to."""

    kills: int
    as_planned: Counter[str]
    elsewhere: int
    """Deaths from outside, because the planned moment did not come in time."""
    history: Tally
    acknowledged: Acknowledged
    wall_s: float


async def kill_again_and_again(run: RunFolder, work: Path, dooms: Sequence[Doom], *, volunteers: int = 3) -> Outcome:
    """One life for each doom, then check the run's whole history."""
    started_s = time.monotonic()
    journal = Journal.open(run.journal_path)
    ((_, first),) = journal.read()
    journal.close()
    ledger, lives, told = work / "ledger.jsonl", Lives(), Acknowledged()
    ledger.touch()
    group = ProcessGroup()
    tasks = [asyncio.create_task(Volunteer(run, _link(run), lives, told, n).run()) for n in range(volunteers)]
    planned: Counter[str] = Counter()
    elsewhere = 0
    try:
        for number, doom in enumerate(dooms, start=1):
            if doom.kind == "WorkerEnrolled":
                volunteer = Volunteer(run, _link(run), lives, told, 100 + number)
                tasks.append(asyncio.create_task(_for_one_life(volunteer, lives, number)))
            as_planned = await _live(group, run, work, ledger, doom, lives, number)
            planned[str(doom)] += as_planned
            elsewhere += not as_planned
            complete_ledger(run, ledger)
    finally:
        lives.over = True
        lives.up.set()
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
        group.stop(grace_s=0.0)
    history = check(run, first, ledger, told)
    return Outcome(
        kills=len(dooms), as_planned=planned, elsewhere=elsewhere, history=history, acknowledged=told,
        wall_s=time.monotonic() - started_s,
    )  # fmt: skip


async def _for_one_life(volunteer: Volunteer, lives: Lives, number: int) -> None:
    """Somebody who enrols, and is not seen again after the next death."""
    task = asyncio.create_task(volunteer.run())
    while lives.number <= number and not lives.over:
        await asyncio.sleep(0.1)
    task.cancel()


async def _live(
    group: ProcessGroup, run: RunFolder, work: Path, ledger: Path, doom: Doom, lives: Lives, number: int
) -> bool:
    """One life; whether it ended at the planned moment."""
    ours, theirs = group.pipe()
    process = group.start(f"life-{number}", work / "coordinator.log", coordinator_life, run.root, ledger, doom, theirs)
    theirs.close()
    deadline_s = time.monotonic() + LIFE_LIMIT_S
    listening = False
    while process.is_alive() and time.monotonic() < deadline_s:
        if not listening and ours.poll():
            with contextlib.suppress(EOFError):
                ours.recv()
                listening = True
                lives.number, lives.port = number, _port(run)
                lives.up.set()
        await asyncio.sleep(0.01)
    as_planned = not process.is_alive()
    process.kill()
    await asyncio.to_thread(process.join)
    assert process.exitcode == -9, f"life {number} ({doom}) ended with {process.exitcode}: see {work}/coordinator.log"
    lives.up.clear()
    ours.close()
    return as_planned


def complete_ledger(run: RunFolder, ledger: Path) -> None:
    """Add what a death from outside kept from it: committed, but the process did not live to write it down here."""
    lines = ledger.read_text("utf-8").splitlines()
    journal = Journal.open(run.journal_path, writable=False)
    snapshot = journal.latest_snapshot()
    with ledger.open("a", encoding="utf-8") as file:
        for position, record in journal.read(snapshot.position if snapshot else 1):
            if position - 2 < len(lines):  # the first event is not in the ledger, and positions begin at 1
                assert lines[position - 2] == record, f"event {position} is not the one that was committed"
            else:
                file.write(f"{record}\n")
    journal.close()


def _port(run: RunFolder) -> int:
    import json

    return int(json.loads(run.endpoint_path.read_bytes())["port"])


def _link(run: RunFolder) -> str:
    registry = Registry.open(run.registry_path)
    invite = registry.create_invite(trusted=False, expires_at_s=time.time() + 1e6)
    registry.close()
    return str(JoinLink(host="127.0.0.1", port=1, fingerprint=run.authority().fingerprint, invite=invite))
