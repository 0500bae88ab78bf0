"""What a byte costs the coordinator's processor, each way, against the same bytes over bare grpc.aio and a TLS socket.

Run with `python -m benchmarks.transfers [--quick] [--json FILE]`. Workers in processes of their own move 40 MB each at
once, down and then up; what is timed is the server's process alone: its processor seconds, and the whole on the clock.
All systems run one after the other, round after round, and each row is the best of its rounds, since others may use the
machine. `barnraise` is the real server with the real calls (signatures, offsets, limits, resumable files); only the
engine is not told that an upload is whole, so that measuring it is not counted. `over_grpc`: its processor time over
that of bare grpc.aio with TLS, SHA-256 and a sync. Goal: at most 1.3.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import structlog

from benchmarks import transfer_peers as peers
from benchmarks.report import Row, machine, parse_args, print_rows, write_json
from benchmarks.sized_runs import invited, layout_of, sized_run, submission_bytes
from benchmarks.transfer_peers import DOWN, UP, Peer, tell_cpu
from coordinator.run.folder import RunFolder
from simulator.processes.launcher import ProcessGroup

WORKERS, PAYLOAD_BYTES, ROUNDS = 8, 40_000_000, 5
ENGINE: dict[str, Any] = {
    "gather_s": 0.0,
    "validate_every": 0,
    "screening": {"enabled": False},
    "inner": {"inner_steps": 2, "batch_sequences": 2, "warmup_steps": 0},
}


def serve(folder: Path, pipe: Connection) -> None:
    """The real server, whose engine is not told that an upload is whole; until killed. Drops payloads when told."""
    from coordinator.edge.server import CoordinatorServer
    from coordinator.edge.service import WorkerService

    run = RunFolder.open(folder)

    async def not_told(*_: Any) -> None:
        pass

    def forget(_: str) -> None:
        payloads = run.artifacts().payloads
        for digest in list(payloads.digests()):
            payloads.drop(digest)

    async def serving() -> None:
        WorkerService.uploaded = not_told  # type: ignore[method-assign, assignment]
        server = CoordinatorServer(run)
        pipe.send(await server.start())
        tell_cpu(pipe, forget)
        await asyncio.Event().wait()

    asyncio.run(serving())


def work(folder: Path, port: int, pipe: Connection) -> None:
    """A worker's side of the wire: fetches the trunk and columns, delivers as much for one lease, until hung up on."""
    from protocol.ids import digest_of
    from protocol.v1 import barnraise_pb2 as pb
    from worker.client import CoordinatorClient

    run = RunFolder.open(folder)
    payload = os.urandom(submission_bytes(run))

    async def down(client: CoordinatorClient) -> None:
        from protocol.manifest import Manifest

        manifest = Manifest.from_json((await client.get_manifest(0)).manifest_json)
        for block in layout_of(run).needed_blocks(range(layout_of(run).columns)):
            ref = manifest.blocks[block]
            async for _ in client.block(ref.digest, ref.payload_bytes, 0):
                pass

    async def up(client: CoordinatorClient, lease: Any) -> None:
        named = {"lease_id": lease.lease_id, "digest": bytes.fromhex(digest_of(payload)), "payload_bytes": len(payload)}
        commit = pb.CommitSubmissionRequest(
            **named, codec=run.settings().codec, inner_steps_done=lease.inner_steps, train_s=0.1, micro_batch=1
        )
        assert (await client.commit_submission(commit)).upload_offset == 0
        reply = await client.upload(
            pb.UploadHeader(**named, offset=0), lambda start, length: payload[start : start + length], lambda _: None
        )
        assert reply.complete

    async def serving() -> None:
        client = await _joined(run, port)
        lease = (await client.acquire_lease(20.0)).lease
        pipe.send("ready")
        while True:
            try:
                way = await asyncio.to_thread(pipe.recv)
            except EOFError:
                await client.close()
                return
            await (down(client) if way == DOWN else up(client, lease))
            pipe.send(time.process_time())

    asyncio.run(serving())


async def _joined(run: RunFolder, port: int) -> Any:
    from protocol.identity import PrivateIdentity
    from protocol.joinlink import JoinLink
    from protocol.limits import PROTOCOL_VERSION
    from protocol.v1 import barnraise_pb2 as pb
    from worker.client import CoordinatorClient

    link, identity = JoinLink.parse(invited(run, port)), PrivateIdentity.generate()
    client = CoordinatorClient(link, identity)
    client.connect(run.authority().cert_pem)
    capability = pb.Capability(device="cpu", memory_bytes=64 << 30)
    await client.enrol(
        pb.EnrolRequest(
            protocol_version=PROTOCOL_VERSION,
            public_key=identity.public_key,
            invite=link.invite or "",
            name="mover",
            capability=capability,
        )
    )
    await client.open_session(capability)
    return client


class Movers:
    """One server and its workers, all ready."""

    def __init__(
        self, group: ProcessGroup, folder: Path, name: str, server: Callable[..., None], worker: Callable[..., None],
        what: Peer | Path, workers: int,
    ) -> None:  # fmt: skip
        self._server, theirs = group.pipe()
        group.start(name, folder / "server.log", server, what, theirs)
        port = self._server.recv()
        self._workers: list[Connection] = []
        for number in range(workers):
            ours, end = group.pipe()
            group.start(f"{name}-{number}", folder / f"worker-{number}.log", worker, what, port, end)
            self._workers.append(ours)
        for pipe in self._workers:
            assert pipe.recv() == "ready"

    def move(self, way: str) -> tuple[float, float]:
        """Everybody at once: seconds on the clock, and the server's processor seconds."""
        before_s, began_s = self._cpu_s(), time.perf_counter()
        for pipe in self._workers:
            pipe.send(way)
        for pipe in self._workers:
            pipe.recv()
        return time.perf_counter() - began_s, self._cpu_s() - before_s

    def _cpu_s(self) -> float:
        self._server.send("")
        return float(self._server.recv())


def movers(group: ProcessGroup, folder: Path, workers: int, payload_bytes: int) -> dict[str, Movers]:
    """One of each system."""
    engine = {**ENGINE, "replicas": workers, "quorum": workers, "min_workers": workers}
    run = sized_run(folder / "run", payload_bytes, engine)
    sockets, grpc_aio = (folder / name for name in ("floor", "grpc"))
    for place in (sockets, grpc_aio):
        place.mkdir()
    size = submission_bytes(run)
    by_socket, by_grpc = Peer.make(sockets, size), Peer.make(grpc_aio, size)
    return {
        "floor": Movers(group, sockets, "floor", peers.serve_sockets, peers.work_sockets, by_socket, workers),
        "grpc.aio": Movers(group, grpc_aio, "grpc", peers.serve_grpc, peers.work_grpc, by_grpc, workers),
        "barnraise": Movers(group, folder, "barnraise", serve, work, run.root, workers),
    }


def main() -> None:
    """Measure and print."""
    args = parse_args(__doc__ or "")
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    workers, payload_bytes, rounds = (3, 8_000_000, 3) if args.quick else (WORKERS, PAYLOAD_BYTES, ROUNDS)
    group = ProcessGroup()
    with tempfile.TemporaryDirectory(prefix="barnraise-transfers-") as folder:
        try:
            moving = movers(group, Path(folder), workers, payload_bytes)
            took = {
                (name, way): [mover.move(way) for _ in range(1)] for way in (DOWN, UP) for name, mover in moving.items()
            }
            for _ in range(rounds):
                for (name, way), times in took.items():
                    times.append(moving[name].move(way))
        except EOFError:
            print("\n".join(log.read_text() for log in Path(folder).rglob("*.log")))
            raise
        finally:
            group.stop(grace_s=0.0)
    gigabytes = workers * payload_bytes / 1e9
    rows: list[Row] = []
    for (name, way), times in took.items():
        cpu_s = min(cpu for _, cpu in times[1:])
        bare_s = min(cpu for _, cpu in took["grpc.aio", way][1:])
        rows.append(
            {
                "way": way,
                "system": name,
                "workers": workers,
                "payload_bytes": payload_bytes,
                "cpu_s_per_gb": cpu_s / gigabytes,
                "gb_per_s": gigabytes / min(clock for clock, _ in times[1:]),
                "over_grpc": cpu_s / bare_s,
            }
        )
    print(f"{machine()}, load {os.getloadavg()[0]:.1f}")
    print_rows(rows)
    if args.json is not None:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
