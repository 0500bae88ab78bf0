"""One round of everybody, from one version to the next, against the same bytes without us: round trip.

Run with `python -m benchmarks.round_trip [--quick] [--json FILE] [--flower PYTHON]`. Eight workers in processes of
their own each fetch a payload and deliver one as large; nobody trains. `barnraise` is everything there is, one process
for the coordinator (engine, journal, edge, aggregation, publishing the next version) and the real worker's code in the
others: TLS, signatures, digests, durable files on both sides; the model comes down whole, so that as much goes either
way. `screening on` is the same with each submission's gain measured, and that is its cost; `steps down` is what a run
does that sets nothing: a seventh of the bytes comes down, and each worker makes the next version of it. `tcp` moves the
bytes over bare sockets; `floor` over TLS, hashed on both sides, and synced by the server; `grpc.aio` is the floor over
gRPC (benchmarks/transfer_peers.py). `flower` is Flower's own processes under the interpreter PYTHON, without TLS
(benchmarks/flower_rounds.py); left out where none is given. All in one run: peers before and after ours. `round_s` is
the median round, `cpu_s` processor seconds of the server's process (of Flower's: of all that the SuperLink started) a
round, `over_floor` its `round_s` over the floor's.
Goals: at 40 MB within 2 times of the floor and a tenth of Flower's; at 4 KB under 0.15 s.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from statistics import median

import structlog

from benchmarks import transfer_peers as peers
from benchmarks.flower_rounds import flower_rounds, flower_version
from benchmarks.report import Row, machine, print_rows, write_json
from benchmarks.round_trip_swarm import AS_SET, WHOLE, play
from benchmarks.transfer_peers import BOTH, Peer
from benchmarks.transfers import Movers
from simulator.processes.launcher import ProcessGroup

WORKERS, LARGE_BYTES, SMALL_BYTES = 8, 40_000_000, 4096
CODEC = "fp32"
"""So that as much goes up as comes down."""
OURS = (
    ("barnraise", False, WHOLE),
    ("barnraise, screening on", True, WHOLE),
    ("barnraise, steps down", False, AS_SET),
)
"""Each row's name, whether submissions' gains are measured, and how the model comes down."""
FLOWER_ROUNDS = 3

Took = dict[str, list[tuple[float, float]]]
"""By system: seconds and processor seconds of each round."""


def peer_rounds(folder: Path, workers: int, payload_bytes: int, rounds: int) -> Took:
    """Of all that is not ours and needs nothing installed, round after round."""
    group, movers = ProcessGroup(), {}
    try:
        for name, tls in (("tcp", False), ("floor", True), ("grpc.aio", True)):
            place = folder / name
            place.mkdir(parents=True)
            sides = (peers.serve_grpc, peers.work_grpc) if name == "grpc.aio" else None
            server, worker = sides or (peers.serve_sockets, peers.work_sockets)
            movers[name] = Movers(group, place, name, server, worker, Peer.make(place, payload_bytes, tls=tls), workers)
        for mover in movers.values():
            mover.move(BOTH)
        took: Took = {name: [] for name in movers}
        for _ in range(rounds):
            for name, mover in movers.items():
                took[name].append(mover.move(BOTH))
        return took
    finally:
        group.stop(grace_s=0.0)


def rows_of(folder: Path, workers: int, payload_bytes: int, rounds: int, flower: Path | None) -> list[Row]:
    """All systems at one size."""
    took = peer_rounds(folder / "before", workers, payload_bytes, rounds)
    ours: dict[str, Row] = {}
    for name, screening, down in OURS:
        place = folder / name
        place.mkdir()
        played = play(place, workers, payload_bytes, rounds, screening=screening, codec=CODEC, down=down)
        ours[name] = {"payload_bytes": played.payload_bytes, "round_s": played.round_s, "cpu_s": played.cpu_s}
    for name, more in peer_rounds(folder / "after", workers, payload_bytes, rounds).items():
        took[name] += more
    rows = {name: _row(payload_bytes, times) for name, times in took.items()} | ours
    if flower is not None:
        place = folder / "flower"
        place.mkdir()
        times, cpu_s = flower_rounds(flower, place, workers, payload_bytes, FLOWER_ROUNDS)
        rows[f"flower {flower_version(flower)}"] = _row(payload_bytes, [(time_s, cpu_s) for time_s in times])
    floor_s = rows["floor"]["round_s"]
    assert isinstance(floor_s, float)
    return [
        {"system": name, "workers": workers, **row, "over_floor": float(str(row["round_s"])) / floor_s}
        for name, row in rows.items()
    ]


def _row(payload_bytes: int, times: list[tuple[float, float]]) -> Row:
    return {
        "payload_bytes": payload_bytes,
        "round_s": median(round_s for round_s, _ in times),
        "cpu_s": median(cpu_s for _, cpu_s in times),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute: smaller, same columns")
    parser.add_argument("--json", type=Path, metavar="FILE", default=None, help="write the rows to FILE, too")
    parser.add_argument("--flower", type=Path, metavar="PYTHON", default=None, help="an interpreter that has flwr")
    args = parser.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    workers, sizes = (3, ((4_000_000, 3), (SMALL_BYTES, 5))) if args.quick else (
        WORKERS, ((LARGE_BYTES, 5), (SMALL_BYTES, 40))
    )  # fmt: skip
    rows: list[Row] = []
    for payload_bytes, rounds in sizes:
        with tempfile.TemporaryDirectory(prefix="barnraise-round-trip-") as folder:
            rows += rows_of(Path(folder), workers, payload_bytes, rounds, args.flower)
    print(f"{machine()}, load {os.getloadavg()[0]:.1f}")
    if args.flower is None:
        print("no row for Flower: give --flower the path of a Python that has it (pip install flwr, in its own venv)")
    print_rows(rows)
    if args.json is not None:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
