"""What a crowd before the run's page costs: the page's own answers, `/metrics`, and calls on the workers' port.

Run with `python -m benchmarks.viewers [--quick] [--json FILE]`. A real coordinator with its page, in a process of its
own, holds a run with 1,000 enrolled workers (in the engine; nobody trains); a second process is the crowd: viewers that
are told of every change, a tenth of whom take nothing. This process asks, one after the other, for the page, for
`/metrics` and for the health of the workers' service over gRPC and TLS, before the crowd has come and while it is
there; each row is one kind of question. Milliseconds on the clock, the asking included.
Goals: page and `/metrics` 99 in 100 under 50 ms with the crowd, the workers' port at most a tenth slower.
"""

from __future__ import annotations

import asyncio
import http.client
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.report import Row, parse_args, print_rows, write_results

WORKERS = 1000
VIEWERS = 1000
STALLED_SHARE = 0.1
TEXT = "\n".join(f"line {number} of a text that nobody reads, but there must be one" for number in range(4000))
COLUMNS = (
    {"heading": "asked for", "shows": "{what}"},
    {"heading": "viewers", "shows": "{viewers:,}"},
    {"heading": "half within, ms", "shows": "{half_ms:.1f}"},
    {"heading": "99 of 100 within, ms", "shows": "{p99_ms:.1f}"},
    {"heading": "asked", "shows": "{asked:,}"},
)


def main() -> None:
    """Both tables."""
    args = parse_args(__doc__ or "")
    seconds, viewers = (4.0, 200) if args.quick else (30.0, VIEWERS)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    coordinator = context.Process(target=_coordinator, args=(there,))
    coordinator.start()
    rows: list[Row] = []
    try:
        page_port, port, authority = here.recv()
        ask = _Questions(page_port, port, authority)
        rows += ask.rows(0, seconds)
        crowd_here, crowd_there = context.Pipe()
        crowd = context.Process(target=_crowd, args=(crowd_there, page_port, viewers))
        crowd.start()
        crowd_here.recv()
        rows += ask.rows(viewers, seconds)
        crowd.kill()
        crowd.join()
    finally:
        coordinator.kill()
        coordinator.join()
    print_rows(rows)
    if args.json:
        write_results(args.json, rows, command="python -m benchmarks.viewers", columns=COLUMNS)


class _Questions:
    """Asks all three in turn, each as soon as the last is answered."""

    def __init__(self, page_port: int, port: int, authority: bytes) -> None:
        import grpc
        from grpc_health.v1 import health_pb2

        from protocol.tls import COORDINATOR_NAME

        self._page_port = page_port
        options = [("grpc.ssl_target_name_override", COORDINATOR_NAME)]
        channel = grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(authority), options=options)
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        body = health_pb2.HealthCheckRequest().SerializeToString()
        self._kinds: dict[str, Callable[[], object]] = {
            "the page": lambda: self._get("/"),
            "/metrics": lambda: self._get("/metrics"),
            "health, on the workers' port": lambda: check(body, timeout=60.0),
        }

    def rows(self, viewers: int, seconds: float) -> list[Row]:
        """One for each kind."""
        took_s: dict[str, list[float]] = {name: [] for name in self._kinds}
        until_s = time.perf_counter() + seconds
        while time.perf_counter() < until_s:
            for name, ask in self._kinds.items():
                began_s = time.perf_counter()
                ask()
                took_s[name].append(time.perf_counter() - began_s)
            time.sleep(0.01)
        return [
            {
                "what": name,
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


def _coordinator(pipe: Connection) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_serve(Path(folder), pipe))


async def _serve(folder: Path, pipe: Connection) -> None:
    from coordinator.edge.server import CoordinatorServer
    from coordinator.engine.rows import WorkerRecord
    from coordinator.page.address import PageAddress
    from coordinator.run.folder import init_run
    from coordinator.settings import RunSettings
    from protocol.ids import WorkerId

    (folder / "text.txt").write_text(TEXT)
    small: dict[str, Any] = {"preset": "tiny", "data": str(folder / "text.txt"), "port": 0, "sequence_length": 32}
    run = await asyncio.to_thread(init_run, folder / "run", RunSettings(**small), accept_unaudited=True)
    server = CoordinatorServer(run, page=PageAddress(port=0, chosen=True))
    port = await server.start()
    assert server._run is not None
    state = server._run.pump.engine.state
    for number in range(WORKERS):
        state.put_worker(
            WorkerRecord(
                worker=WorkerId(f"{number:064x}"),
                name=f"volunteer {number}",
                trusted=False,
                max_columns=2,
                tokens_per_s=1000.0,
                heard_at_s=state.now_s,
                present=number % 3 > 0,
            )
        )
    await asyncio.sleep(3.0)  # the first pictures with everybody
    pipe.send((int(server.page_url.rstrip("/").rsplit(":", 1)[1]), port, run.authority().cert_pem))
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
