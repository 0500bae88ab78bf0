"""What the stages against liars, audits left out, add to an undisturbed round's end: the same round without them.

    python -m benchmarks.defence_cost [--quick] [--json FILE]

Sixteen whole submissions of the preset, real gains, carried out by the coordinator's executor as in
`benchmarks.round_end`. `before`: a gain is measured at one share on all of the round's sequences, and no version is
compared with another. `now`: harm is measured at all that is taken, on a quarter of the sequences, and the new version
is compared with its parent before it is published. `own`: a lease's own sequences are measured, too, as in a quarter of
the rounds; `mean` is of three rounds `now` and one `own`. Each way with whole draws and with early looks, in turn, the
least of the repetitions: processor seconds of all threads, sequences through the model, and what is `added`. The first
row is the engine's: its second look and sequential tests, of a stubbed swarm of sixteen, a round. `--quick`: early
looks alone, once.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
import torch

from benchmarks.report import Cell, machine, parse_args, print_rows, write_json
from benchmarks.round_end import THREADS, RoundEnd, usual_after
from benchmarks.round_end_delegated import StageClocks
from benchmarks.stubbed_swarm import AuditedLoop, StubbedSwarm
from coordinator.engine import second_look
from coordinator.engine.commands import ValidateVersion
from coordinator.engine.enough import FEWEST_TO_PUBLISH
from coordinator.engine.history import UsualGain
from coordinator.work import gains, measured
from coordinator.work.executor import Executor

WAYS = ("before", "now", "own")
REPEATS = 3
ROUNDS = 30


@contextmanager
def as_before() -> Iterator[None]:
    """One share of a submission on all sequences, and no look at the whole of it."""
    divided, of_all = measured.SHARE_FOR_ALL, gains._Measuring.of_all
    measured.SHARE_FOR_ALL = 10**9
    gains._Measuring.of_all = lambda *_: torch.zeros(2, dtype=torch.float64)  # type: ignore[method-assign]
    try:
        yield
    finally:
        measured.SHARE_FOR_ALL = divided
        gains._Measuring.of_all = of_all  # type: ignore[method-assign]


def played(bench: RoundEnd, number: int, way: str, usual: UsualGain | None) -> tuple[float, int, UsualGain | None]:
    """One round's end: processor seconds, sequences through the model, and what gains are usual after it.

    Without `usual`, draws are whole.
    """
    executor, clocks = Executor(**bench.executor), StageClocks()
    # the parent was compared with others when it was new
    executor.losses.losses(bench.base, 1, FEWEST_TO_PUBLISH if usual else None)
    command: Any = bench.aggregation(number, whole=usual is None)
    if way == "before":
        with as_before():
            found = bench.screened(executor, clocks, number, usual, "later round" if usual else "whole draws")
        command = dataclasses.replace(command, compared_with=())
    else:
        kind = "later round" if usual else "whole draws"
        found = bench.screened(executor, clocks, number, usual, kind, own_data=way == "own")
    with clocks.running("aggregation") as clocked:
        aggregated: Any = executor.execute(command)
        clocked.sequences += sum(one.sequences for one in aggregated.compared)
    with clocks.running("validation") as clocked:
        clocked.sequences = bench.settings.heldout_limit
        executor.execute(
            ValidateVersion(command_id="validate", version=aggregated.version, manifest=aggregated.manifest)
        )
    stages = clocks.stages.values()
    return sum(one.cpu_s for one in stages), sum(one.sequences for one in stages), usual_after(found)


def rows_of(bench: RoundEnd, draws: tuple[str, ...], repeats: int) -> Iterator[dict[str, Cell]]:
    """Each way with each kind of draw, the least of its repetitions."""
    usual = played(bench, 1, "now", None)[2]
    for kind in draws:
        least: dict[str, tuple[float, float]] = {}
        for repeat in range(repeats):
            for way in WAYS:
                cpu_s, sequences, _ = played(bench, 2 + repeat, way, usual if kind == "early" else None)
                least[way] = min(least.get(way, (cpu_s, sequences)), (cpu_s, sequences))
        now, own = least["now"], least["own"]
        least["mean"] = (3 * now[0] + own[0]) / 4, (3 * now[1] + own[1]) / 4
        for way, (spent_s, passed) in least.items():
            added = spent_s / least["before"][0] - 1.0
            yield {"draws": kind, "way": way, "sequences": passed, "cpu_s": spent_s, "added": added}


def engine_row(rounds: int) -> dict[str, Cell]:
    """Processor seconds that a round's second look takes, sixteen submissions, nobody lying."""
    spent_s, whole = 0.0, second_look.look_again

    def look_again(turn: Any) -> None:
        nonlocal spent_s
        began_s = time.process_time()
        whole(turn)
        spent_s += time.process_time() - began_s

    second_look.look_again = look_again
    try:
        AuditedLoop(StubbedSwarm(seed=0, rounds=rounds, distances={"honest": [0.0]})).run()
    finally:
        second_look.look_again = whole
    return {"draws": "-", "way": "the engine's second look", "sequences": 0, "cpu_s": spent_s / rounds}


def main() -> None:
    """Measure and print."""
    args = parse_args(__doc__ or "")
    torch.set_num_threads(THREADS)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    rows: list[dict[str, Cell]] = [engine_row(ROUNDS)]
    print(rows[0], flush=True)
    with tempfile.TemporaryDirectory(prefix="barnraise-defence-cost-") as folder:
        bench = RoundEnd(Path(folder), "tiny")
        for row in rows_of(bench, *((("early",), 1) if args.quick else (("whole", "early"), REPEATS))):
            rows.append(row)
            print(row, flush=True)
    print(machine())
    print_rows(rows)
    if args.json is not None:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
