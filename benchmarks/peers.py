"""What leaves the coordinator, and how long a version takes, where workers take blocks from one another.

Run with `python -m benchmarks.peers [--quick] [--json FILE] [--loopback]`. Everybody begins at once with nothing and
wants the whole version; the coordinator gives 12.5 MB/s, a worker that shares a fifth of it. At 8, 16 and 64 workers
under virtual time (simulator/virtual/sharing.py), with liars too, beside what one line of that rate takes; with
`--loopback` at 8 and 16, with real servers, clients, listeners and block caches (peers_loopback.py), beside the same
without sharing. `copies`: versions that left the coordinator. Goal: at most 2, the run's setting, and 5 %; with 2 liars
of 8 at most 3; at 16 workers that all share at most 0.6 of the time that it takes without.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from benchmarks.peers_loopback import Rates, make_run, serve, work
from benchmarks.report import parse_args, print_rows, write_results
from moe.layout import block_tensor_specs
from protocol.codecs import FP32
from protocol.tensor_headers import payload_size
from simulator.holders import Gives
from simulator.processes.launcher import ProcessGroup
from simulator.virtual.sharing import LineRates, spread

RATES = Rates(coordinator=12.5e6, worker=2_500_000)
COPIES = 2
SHARES = (0.25, 0.5, 1.0)
VERSION = (3_000_000, *(1_312_500,) * 32)
"""Bytes of a trunk and 32 columns: 45 MB, as the prototype's."""
COLUMNS = [
    {"heading": "workers", "shows": "{workers}"},
    {"heading": "who share", "shows": "{who}"},
    {"heading": "versions that left the coordinator", "shows": "{copies:.2f}"},
    {"heading": "seconds", "shows": "{wall_s:.1f}"},
    {"heading": "of those without sharing", "shows": "{of_alone:.2f}"},
]
CPU = {"heading": "processor seconds a GB that came", "shows": "{cpu_s_gb:.1f}"}
"""Of coordinator and workers together: both ends of each byte, TLS, SHA-256 and the disk."""


def virtual_rows(sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Under virtual time: honest swarms, then eight of whom two lie."""
    rows = []
    for workers in sizes:
        # what one line of that rate takes for so many versions
        alone_s = workers * sum(VERSION) / RATES.coordinator
        for share in SHARES:
            sharers = round(workers * share)
            rows.append(_virtual(workers, [Gives.BLOCKS] * sharers, f"{sharers}", alone_s))
    alone_s = 8 * sum(VERSION) / RATES.coordinator
    lies = {
        Gives.GARBAGE: "2 give garbage",
        Gives.SILENCE: "2 give nothing and say nothing",
        Gives.REFUSALS: "2 claim all and have none",
        Gives.HALVES: "2 die in mid-block",
    }
    for lie, told in lies.items():
        rows.append(_virtual(8, [lie] * 2 + [Gives.BLOCKS] * 6, f"8, of whom {told}", alone_s))
    return rows


def _virtual(workers: int, sharing: list[Gives], who: str, alone_s: float) -> dict[str, Any]:
    gives = [*sharing, *[Gives.NOTHING] * (workers - len(sharing))]
    lines = LineRates(coordinator_up=RATES.coordinator, worker_up=RATES.worker)
    found = spread(gives, VERSION, copies=COPIES, lines=lines)
    assert all(gives[number] is not Gives.BLOCKS for number in found.blamed), "an honest holder was blamed"
    return {
        "workers": workers,
        "who": who,
        "copies": found.copies,
        "wall_s": found.wall_s,
        "of_alone": found.wall_s / alone_s,
    }


def loopback_rows(sizes: Sequence[int], expert_size: int) -> list[dict[str, Any]]:
    """Over loopback; the first of each size is the floor."""
    rows: list[dict[str, Any]] = []
    for workers in sizes:
        alone_s = None
        for share in (0.0, *SHARES):
            sharers = round(workers * share)
            row = _loopback(workers, sharers, expert_size)
            alone_s = alone_s or row["wall_s"]
            rows.append({**row, "of_alone": row["wall_s"] / alone_s})
            print_rows([rows[-1]])
    return rows


def _loopback(workers: int, sharers: int, expert_size: int) -> dict[str, Any]:
    group = ProcessGroup()
    with tempfile.TemporaryDirectory(prefix="barnraise-peers-") as name:
        folder = Path(name)
        run = make_run(folder / "run", COPIES, expert_size)
        layout = run.layout()
        version_bytes = sum(payload_size(block_tensor_specs(layout, block), FP32) for block in layout.blocks)
        try:
            server, theirs = group.pipe()
            group.start("coordinator", folder / "server.log", serve, run.root, RATES.coordinator, theirs)
            port = server.recv()
            crew, end = group.pipe()
            group.start(
                "workers", folder / "workers.log", work, run.root, port, workers, sharers, RATES.worker,
                folder / "homes", end,
            )  # fmt: skip
            assert crew.recv() == "ready"
            before_s = _asked(server, "")[-1]
            crew.send("go")
            wall_s, cpu_s, got_bytes = crew.recv()
            sent_bytes, after_s = _asked(server, "sent")
        except EOFError:
            print("\n".join(log.read_text() for log in folder.glob("*.log")))
            raise
        finally:
            group.stop(grace_s=1.0)
    assert got_bytes == workers * version_bytes
    return {
        "workers": workers,
        "who": str(sharers),
        "copies": sent_bytes / version_bytes,
        "wall_s": wall_s,
        "cpu_s_gb": (cpu_s + after_s - before_s) / (got_bytes / 1e9),
    }


def _asked(server: Any, word: str) -> list[float]:
    server.send(word)
    return [float(server.recv()) for _ in range(2 if word else 1)]


def main() -> None:
    """Measure and print."""
    args = parse_args(__doc__ or "", loopback="real servers and clients in place of virtual time")
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    if args.loopback:
        rows = loopback_rows((4,) if args.quick else (8, 16), 32 if args.quick else 64)
    else:
        rows = virtual_rows((8,) if args.quick else (8, 16, 64))
    print_rows(rows)
    if args.json is not None:
        write_results(
            args.json,
            rows,
            command=f"python -m benchmarks.peers{' --loopback' * args.loopback}",
            columns=[*COLUMNS, *([CPU] * args.loopback)],
            beside="others measured on it meanwhile" if args.loopback else "virtual time",
        )  # fmt: skip


if __name__ == "__main__":
    main()
