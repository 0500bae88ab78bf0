"""The whole swarm, small: real coordinator, real workers, a liar and dropouts; and Ctrl-C in the middle of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from coordinator.engine.config import InnerRecipe
from coordinator.store.audit_log import AuditLog
from simulator.processes.churn import byzantine_workers, churn_schedule, trusted_workers
from simulator.processes.live import PlainDisplay
from simulator.processes.options import SimulationOptions
from simulator.processes.report import SimulationReport
from simulator.processes.swarm import run_simulation

SEED = 22
"""Chosen so that one honest worker drops out in the first round, and nobody later."""


def little_swarm(out: Path, corpus: Path) -> SimulationOptions:
    return SimulationOptions(
        out=out, workers=4, rounds=2, dropout=0.3, byzantine=1, trusted=1, attack="sign-flip", seed=SEED,
        data=str(corpus), sequence_length=32, lone=True,
        inner=InnerRecipe(inner_steps=4, batch_sequences=4, learning_rate=4e-3, muon_learning_rate=0.02),
        heldout_sequences=16, heartbeat_interval_s=0.5, time_limit_s=120.0,
        engine={"audits": {"budget": 8.0}},
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> tuple[SimulationReport, Path, str]:
    out = tmp_path_factory.mktemp("swarm") / "out"
    with (out.parent / "console.txt").open("w") as file, PlainDisplay(Console(file=file, width=200)) as display:
        report = run_simulation(little_swarm(out, corpus), display)
    return report, out, (out.parent / "console.txt").read_text()


def test_the_coordinator_computes_leases_again_and_comes_to_what_was_sent(
    finished: tuple[SimulationReport, Path, str],
) -> None:
    _, out, _ = finished
    log = AuditLog.read_only(out / "work" / "run" / "audit.sqlite")
    lines = log.latest(most=100, stage="audit")
    log.close()
    assert {(line.judge, line.verdict) for line in lines} == {("coordinator", "passed")}
    assert len({line.lease for line in lines}) >= 2
    assert max(line.figure or 0.0 for line in lines) < 1e-3


def test_the_seed_makes_one_honest_worker_drop_out() -> None:
    liars = byzantine_workers(seed=SEED, workers=4, count=1)
    drops = churn_schedule(seed=SEED, workers=4, rounds=2, probability=0.3)
    first = [drop.worker for drop in drops if drop.round == 1 and drop.worker not in liars]
    assert len(first) == 1


def test_a_swarm_finishes_though_some_vanish_and_one_lies(finished: tuple[SimulationReport, Path, str]) -> None:
    report, _, console = finished
    assert (report.outcome, report.why) == ("finished", "")
    assert report.rounds_closed == 2
    assert len(report.val_loss) == 3
    assert report.val_loss[-1] < report.val_loss[0] - 0.5
    assert report.dropouts >= 1
    assert report.byzantine_accepted == 0
    assert report.byzantine_rejected >= 1
    assert report.honest_rejected == 0
    assert sum(report.submissions_rejected.values()) == report.byzantine_rejected
    assert report.leases_granted >= report.submissions_accepted + report.byzantine_rejected
    assert report.bytes_up > 0
    assert report.bytes_down > 0
    assert report.lone_val_loss is not None
    assert report.lone_val_loss < report.val_loss[0]
    assert "round 2/2 closed: held-out loss" in console


def test_one_of_the_honest_has_an_invite_that_says_trusted(finished: tuple[SimulationReport, Path, str]) -> None:
    report, _, _ = finished
    (founder,) = trusted_workers(seed=SEED, workers=4, count=1)
    assert report.trusted_workers == (f"worker-{founder}",)
    assert founder not in byzantine_workers(seed=SEED, workers=4, count=1)


def test_everything_promised_lies_in_the_folder(finished: tuple[SimulationReport, Path, str]) -> None:
    report, out, _ = finished
    assert json.loads((out / "report.json").read_text())["rounds_closed"] == 2
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "health.png").read_bytes().startswith(b"\x89PNG")
    health = json.loads((out / "health.json").read_text())
    assert health["loss"] == pytest.approx(report.val_loss[-1], rel=1e-5)  # the last version, on validation's tokens
    assert report.health is not None
    assert report.health["dead"] == len(health["dead"])
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (out / "checkpoint").iterdir()}
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    names = {line["name"] for line in lines}
    assert {"WorkerEnrolled", "GrantLease", "AnnounceVerdict", "RoundAggregated", "WorkerVanished"} <= names
    assert [line["wall_s"] for line in lines] == sorted(line["wall_s"] for line in lines)


def test_the_workers_leave_nothing_behind_but_their_logs(finished: tuple[SimulationReport, Path, str]) -> None:
    _, out, _ = finished
    assert not (out / "work" / "workers").exists()
    assert len(list((out / "work" / "logs").glob("worker-*.log"))) == 4


def children_of(pid: int) -> set[int]:
    """Every process below `pid`, through all generations."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    found, frontier = set[int](), {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier} - found
        found |= frontier
    return found


def alive(pids: set[int]) -> set[int]:
    """Those that still run."""
    return {pid for pid in pids if (Path("/proc") / str(pid)).exists() and _state(pid) not in {"Z", ""}}


def _state(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_terminals_signal_stops_everything_and_still_reports(
    tmp_path: Path, corpus: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "barnraise", "simulate", "--workers", "2", "--rounds", "500", "--inner-steps", "4",
        "--batch", "2", "--sequence-length", "32", "--data", str(corpus), "--out", str(out),
    ]  # fmt: skip
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root, start_new_session=True
    ) as process:
        assert process.stdout is not None
        told = []
        for line in process.stdout:
            told.append(line)
            if "round 1/500 closed" in line:
                break
        below = children_of(process.pid)
        started_s = time.monotonic()
        os.killpg(process.pid, number)  # as a terminal does: the whole foreground group
        told += process.stdout.readlines()
        code = process.wait(timeout=30)
        took_s = time.monotonic() - started_s
    assert code == 130, "".join(told)
    assert len(below) >= 3, "coordinator and two workers, at the least"
    while alive(below) and time.monotonic() - started_s < 10:
        os.sched_yield()  # the fork server ends just after the process that it served
    assert not alive(below)
    assert took_s < 10
    report = json.loads((out / "report.json").read_text())
    assert report["outcome"] == "interrupted"
    assert report["rounds_closed"] >= 1
    assert (out / "loss.png").exists()
    assert "did not finish" in "".join(told)
