"""Workers that fetch one version over loopback TLS: the real server, client, tracker, listener and block cache.

Decides how lines are made slow: a server gives no faster than a rate, as `--share` has it; nothing else is modelled,
and nothing is trained. The coordinator is a process of its own, all workers are another one. Touches the folder that it
is given.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.sized_runs import invited, layout_of
from benchmarks.transfer_peers import tell_cpu
from coordinator.run.folder import RunFolder, init_run
from coordinator.settings import RunSettings
from moe import presets

ENGINE: dict[str, Any] = {
    "validate_every": 0,
    "heartbeat_misses": 1000.0,
    "screening": {"enabled": False},
    "inner": {"inner_steps": 2, "batch_sequences": 2, "warmup_steps": 0},
}
COLUMNS = 32
_TEXT = "def add(a, b):\n    return a + b\n\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Bytes a second that a server gives at most."""

    coordinator: float
    worker: int


def make_run(folder: Path, copies: int, expert_size: int) -> RunFolder:
    """A run whose version has a trunk of 3 MB and 32 columns of 6 KB times `expert_size`."""
    data = folder.parent / f"{folder.name}-text"
    data.mkdir()
    for number in range(64):
        (data / f"{number}.py").write_text(f"# {number}\n" + _TEXT * 200)
    before = presets._SHAPES["tiny"]
    presets._SHAPES["tiny"] = dataclasses.replace(
        before, hidden_size=256, heads=4, layers=2, experts=COLUMNS, top_k=2, expert_size=expert_size, max_positions=64
    )
    try:
        settings = RunSettings(
            preset="tiny", data=str(data), port=0, sequence_length=32, heldout_limit=4, screening_sequences=64,
            copies=copies, engine=ENGINE,
        )  # fmt: skip
        return init_run(folder, settings, accept_unaudited=True)
    finally:
        presets._SHAPES["tiny"] = before


def serve(folder: Path, bytes_per_s: float, pipe: Connection) -> None:
    """The real server, whose downloads leave at a rate, all together; until killed. Asked, it tells how much left."""
    import structlog

    from coordinator.edge.server import CoordinatorServer
    from coordinator.edge.transfers import Transfers
    from peering.pace import UplinkPace

    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())

    async def serving() -> None:
        pace, sent, download = UplinkPace(bytes_per_s), [0], Transfers.download

        async def paced(*arguments: Any) -> AsyncGenerator[bytes, None]:
            async for frame in download(*arguments):
                await pace.spend(len(frame))
                sent[0] += len(frame)
                yield frame

        Transfers.download = paced  # type: ignore[method-assign, assignment]
        server = CoordinatorServer(RunFolder.open(folder))
        pipe.send(await server.start())
        tell_cpu(pipe, lambda word: pipe.send(sent[0]) if word == "sent" else None)
        await asyncio.Event().wait()

    asyncio.run(serving())


def work(folder: Path, port: int, workers: int, sharers: int, worker_rate: int, homes: Path, pipe: Connection) -> None:
    """All workers; told to begin, each fetches the whole version. Answers with wall and processor seconds."""
    import torch

    torch.set_num_threads(1)

    async def working() -> None:
        run = RunFolder.open(folder)
        machines = [
            await _joined(run, port, homes / str(number), worker_rate if number < sharers else 0)
            for number in range(workers)
        ]
        pipe.send("ready")
        await asyncio.to_thread(pipe.recv)
        began_s, cpu_s = time.perf_counter(), time.process_time()
        await asyncio.gather(*(machine.fetch() for machine in machines))
        wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
        got_bytes = sum(machine.got_bytes for machine in machines)
        pipe.send((wall_s, cpu_s, got_bytes))
        for machine in machines:
            await machine.close()

    asyncio.run(working())


@dataclass(slots=True)
class _Machine:
    """A worker without a trainer."""

    client: Any
    fetcher: Any
    run: Any
    swarm: Any
    sharing: Any
    got_bytes: int = 0

    async def fetch(self) -> None:
        """The whole first version into the cache."""

        def on_bytes(count: int) -> None:
            self.got_bytes += count

        await self.fetcher.whole_version(0, "benchmark", self.run, on_bytes)

    async def close(self) -> None:
        """Hang up."""
        await self.swarm.close()
        if self.sharing is not None:
            await self.sharing.stop()
        await self.client.close()


async def _joined(run: RunFolder, port: int, home: Path, share_bytes_per_s: int) -> _Machine:
    from protocol.identity import PrivateIdentity
    from protocol.joinlink import JoinLink
    from protocol.limits import PROTOCOL_VERSION
    from protocol.v1 import barnraise_pb2 as pb
    from worker.background import Threads
    from worker.client import CoordinatorClient
    from worker.fetch import Fetcher
    from worker.fetched import Run
    from worker.home import Enrolment, open_home
    from worker.lease import description_from_message
    from worker.neighbours import line_to
    from worker.sharing import Sharing
    from worker.swarm import BlockSwarm
    from worker.timing import Timing

    link, identity = JoinLink.parse(invited(run, port)), PrivateIdentity.generate()
    client, ca_pem = CoordinatorClient(link, identity), run.authority().cert_pem
    client.connect(ca_pem)
    capability = pb.Capability(device="cpu", memory_bytes=64 << 30)
    reply = await client.enrol(
        pb.EnrolRequest(
            protocol_version=PROTOCOL_VERSION, public_key=identity.public_key, invite=link.invite or "", name="taker",
            capability=capability,
        )
    )  # fmt: skip
    opened = await client.open_session(capability)
    enrolment = Enrolment(
        worker_id=identity.worker_id, run_id=run.run_id, ca_pem=ca_pem.decode(), trusted=False,
        manifest_public_key_hex=reply.manifest_public_key.hex(), manifest_key_vouch_hex=reply.manifest_key_vouch.hex(),
    )  # fmt: skip
    disk = open_home(home, link.fingerprint).disk
    sharing = None
    if share_bytes_per_s:
        sharing = Sharing(disk.blocks, share_bytes_per_s, host="127.0.0.1")
        await sharing.start(enrolment)
    swarm = BlockSwarm(client, lambda holder: line_to(holder, identity), Timing(), near=link.host, sharing=sharing)
    if sharing is not None:
        assert not await swarm.announce()
    fetcher = Fetcher(client, disk, enrolment, Threads(), swarm=swarm)
    known = Run(description=description_from_message(opened.run), layout=layout_of(run))
    return _Machine(client, fetcher, known, swarm, sharing)
