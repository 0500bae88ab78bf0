"""What a crowd before the run's page costs: the page's own answers, `/metrics`, and calls on the workers' port.

Run with `python -m benchmarks.viewers [--quick] [--json FILE]`. A real coordinator with its page, in a process of its
own, holds a drained run, to which 2,000 workers, in a second process, have enrolled over gRPC and TLS: each holds a
session and, all the time, one call that waits for a lease. A third process is the crowd: viewers that are told of every
change, a tenth of whom take nothing. This process asks, one after the other, for the page, for `/metrics` and for one
worker's heartbeat, before the crowd has come and while it is there; each row is one kind of question. Milliseconds on
the clock, the asking included.
Goals: page and `/metrics` 99 in 100 under 50 ms with the crowd, heartbeats at most a tenth slower.
"""

from __future__ import annotations

import asyncio
import http.client
import multiprocessing
import random
import secrets
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from benchmarks.report import Row, parse_args, print_rows, write_results
from protocol.identity import PrivateIdentity
from protocol.joinlink import JoinLink
from protocol.limits import PROTOCOL_VERSION, channel_options
from protocol.services import COORDINATOR_SERVICE
from protocol.signing import CallSigner
from protocol.tls import COORDINATOR_NAME
from protocol.v1 import barnraise_pb2 as pb

SESSIONS = 2000
VIEWERS = 1000
AT_ONCE = 32
"""Workers that enrol at a time."""
A_CHANNEL = 16
"""Sessions over one connection."""
POLL_S = 30.0
STALLED_SHARE = 0.1
PAUSE_S = 0.025
"""Between two of each kind of question: of one worker 50 calls a second are answered, whatever the machine could do."""
TEXT = "\n".join(f"line {number} of a text that nobody reads, but there must be one" for number in range(4000))
COLUMNS = (
    {"heading": "asked for", "shows": "{what}"},
    {"heading": "sessions that wait", "shows": "{sessions:,}"},
    {"heading": "viewers", "shows": "{viewers:,}"},
    {"heading": "half within, ms", "shows": "{half_ms:.1f}"},
    {"heading": "99 of 100 within, ms", "shows": "{p99_ms:.1f}"},
    {"heading": "asked", "shows": "{asked:,}"},
)


def main() -> None:
    """Both tables."""
    args = parse_args(__doc__ or "")
    seconds, viewers, sessions = (4.0, 200, 100) if args.quick else (30.0, VIEWERS, SESSIONS)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    coordinator = context.Process(target=_coordinator, args=(there, sessions))
    coordinator.start()
    others = [coordinator]
    rows: list[Row] = []
    try:
        page_port, port, authority, link = here.recv()
        workers_here, workers_there = context.Pipe()
        others.append(context.Process(target=_workers, args=(workers_there, authority, link, sessions)))
        others[-1].start()
        _wait_for(workers_here, others[-1])
        ask = _Questions(page_port, port, authority, link)
        rows += ask.rows(sessions, 0, seconds)
        crowd_here, crowd_there = context.Pipe()
        others.append(context.Process(target=_crowd, args=(crowd_there, page_port, viewers)))
        others[-1].start()
        _wait_for(crowd_here, others[-1])
        rows += ask.rows(sessions, viewers, seconds)
        if workers_here.poll():
            raise RuntimeError(f"workers ended meanwhile: {workers_here.recv()}")
    finally:
        for process in reversed(others):
            process.kill()
            process.join()
    print_rows(rows)
    if args.json:
        write_results(args.json, rows, command="python -m benchmarks.viewers", columns=COLUMNS)


def _wait_for(pipe: Connection, process: Any) -> None:
    """Until what the process does is under way."""
    while not pipe.poll(0.5):
        if not process.is_alive():
            raise RuntimeError(f"process {process.name} ended before it was ready; what it said stands above")
    pipe.recv()


class _Questions:
    """Asks all three in turn, each as soon as the last is answered."""

    def __init__(self, page_port: int, port: int, authority: bytes, link: str) -> None:
        self._page_port = page_port
        self._loop = asyncio.new_event_loop()
        client = self._loop.run_until_complete(self._begun(link, authority, port))
        self._kinds: dict[str, Callable[[], object]] = {
            "the page": lambda: self._get("/"),
            "/metrics": lambda: self._get("/metrics"),
            "a worker's heartbeat": lambda: self._loop.run_until_complete(client.beat()),
        }

    @staticmethod
    async def _begun(link: str, authority: bytes, port: int) -> WaitingSession:
        client = WaitingSession(link, _channel(authority, port))
        await client.begin()
        return client

    def rows(self, sessions: int, viewers: int, seconds: float) -> list[Row]:
        """One for each kind."""
        took_s: dict[str, list[float]] = {name: [] for name in self._kinds}
        until_s = time.perf_counter() + seconds
        while time.perf_counter() < until_s:
            for name, ask in self._kinds.items():
                began_s = time.perf_counter()
                ask()
                took_s[name].append(time.perf_counter() - began_s)
            time.sleep(PAUSE_S)
        return [
            {
                "what": name,
                "sessions": sessions,
                "viewers": viewers,
                "half_ms": 1e3 * sorted(all_s)[len(all_s) // 2],
                "p99_ms": 1e3 * sorted(all_s)[int(0.99 * len(all_s))],
                "asked": len(all_s),
            }
            for name, all_s in took_s.items()
        ]

    def _get(self, path: str) -> bytes:
        line = http.client.HTTPConnection("127.0.0.1", self._page_port, timeout=60.0)
        line.request("GET", path)
        answer = line.getresponse()
        body = answer.read()
        line.close()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {body[:80]!r}")
        return body


class WaitingSession:
    """One worker that enrols, and then waits for a lease that never comes."""

    def __init__(self, link: str, channel: Any) -> None:
        self._link, self._channel = JoinLink.parse(link), channel
        self._identity = PrivateIdentity.generate()
        self._audience = bytes.fromhex(self._link.fingerprint)
        self._signer = CallSigner(self._identity, audience=self._audience)
        self._capability = pb.Capability(device="cpu", memory_bytes=8 << 30, max_columns=2)

    async def begin(self) -> None:
        """Enrol, and open a session."""
        who: dict[str, Any] = {"protocol_version": PROTOCOL_VERSION, "public_key": self._identity.public_key}
        request = pb.EnrolRequest(**who, invite=self._link.invite, capability=self._capability)
        await self._call("Enrol", request)
        opening = pb.OpenSessionRequest(**who, nonce=secrets.token_bytes(16), capability=self._capability)
        reply = pb.OpenSessionReply.FromString(await self._call("OpenSession", opening))
        self._signer = CallSigner(self._identity, reply.session_id, audience=self._audience)

    async def wait_for_ever(self) -> None:
        """One long poll after another; the first is cut short, since workers come over days and ask at all times."""
        wait_s = random.uniform(1.0, POLL_S)
        while True:
            await self._call("AcquireLease", pb.AcquireLeaseRequest(wait_s=wait_s), POLL_S + 60.0)
            wait_s = POLL_S

    async def beat(self) -> None:
        """One heartbeat."""
        await self._call("Heartbeat", pb.HeartbeatRequest())

    async def _call(self, name: str, request: Message, timeout_s: float = 60.0) -> bytes:
        method, body = f"/{COORDINATOR_SERVICE}/{name}", request.SerializeToString()
        asking = self._channel.unary_unary(method)
        return bytes(await asking(body, timeout=timeout_s, metadata=self._signer.metadata(method, body)))


def _channel(authority: bytes, port: int) -> Any:
    # a connection of its own each: gRPC shares one among channels that look alike
    options = [
        *channel_options(),
        ("grpc.ssl_target_name_override", COORDINATOR_NAME),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    credentials = grpc.ssl_channel_credentials(root_certificates=authority)
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options)


def _workers(pipe: Connection, authority: bytes, link: str, sessions: int) -> None:
    asyncio.run(_wait_for_leases(pipe, authority, link, sessions))


async def _wait_for_leases(pipe: Connection, authority: bytes, link: str, sessions: int) -> None:
    port, entering = JoinLink.parse(link).port, asyncio.Semaphore(AT_ONCE)
    channels = [_channel(authority, port) for _ in range(0, sessions, A_CHANNEL)]
    everybody = [WaitingSession(link, channels[number // A_CHANNEL]) for number in range(sessions)]

    async def enter(one: WaitingSession) -> None:
        async with entering:
            await one.begin()

    await asyncio.gather(*(enter(one) for one in everybody))
    waiting = [asyncio.create_task(one.wait_for_ever()) for one in everybody]
    await asyncio.sleep(3.0)
    pipe.send("here")
    try:
        await asyncio.gather(*waiting)
    except grpc.aio.AioRpcError as error:
        pipe.send(f"{error.code()}: {error.details()}")


def _coordinator(pipe: Connection, sessions: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_serve(Path(folder), pipe, sessions))


async def _serve(folder: Path, pipe: Connection, sessions: int) -> None:
    from coordinator.edge.operator_client import OperatorClient
    from coordinator.edge.server import CoordinatorServer
    from coordinator.edge.throttle import EdgeLimits, Rate, Throttle
    from coordinator.page.address import PageAddress
    from coordinator.run.folder import init_run
    from coordinator.run.inviting import InviteTerms
    from coordinator.settings import RunSettings

    (folder / "text.txt").write_text(TEXT)
    small: dict[str, Any] = {"preset": "tiny", "data": str(folder / "text.txt"), "port": 0, "sequence_length": 32}
    run = await asyncio.to_thread(init_run, folder / "run", RunSettings(**small), accept_unaudited=True)
    # everybody comes from one address here, which a quarter of all calls may
    limits = EdgeLimits(calls_at_once=2 * sessions + 64, registrations=Rate(burst=3 * sessions, per_s=1000.0))
    server = CoordinatorServer(run, throttle=Throttle(limits=limits), page=PageAddress(port=0, chosen=True))
    port = await server.start()
    await OperatorClient(run).hold("drain")
    (link,) = await OperatorClient(run).create_invites(InviteTerms(uses=sessions + 1))
    pipe.send((int(server.page_url.rstrip("/").rsplit(":", 1)[1]), port, run.authority().cert_pem, link))
    await asyncio.Event().wait()


def _crowd(pipe: Connection, page_port: int, viewers: int) -> None:
    asyncio.run(_watch(pipe, page_port, viewers))


async def _watch(pipe: Connection, page_port: int, viewers: int) -> None:
    request = b"GET /events/overview?since=0 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    everybody = []
    for number in range(viewers):
        reader, writer = await asyncio.open_connection("127.0.0.1", page_port, limit=1 << 16)
        writer.write(request)
        stalled = number < STALLED_SHARE * viewers
        everybody.append(asyncio.create_task(_take(reader, 1 if stalled else None)))
        everybody.append(asyncio.create_task(_hold(writer)))
        await asyncio.sleep(0.002)
    await asyncio.sleep(2.0)
    pipe.send("here")
    await asyncio.gather(*everybody)


async def _take(reader: asyncio.StreamReader, pieces: int | None) -> None:
    while await reader.read(1 << 16) and pieces is None:
        pass
    await asyncio.Event().wait()  # a stalled one keeps its line


async def _hold(writer: asyncio.StreamWriter) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        writer.close()


if __name__ == "__main__":
    main()
