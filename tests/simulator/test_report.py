"""report.json has the promised keys, is plain JSON, and loss.png is a picture."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from barnraise.charts.loss import draw_loss
from coordinator.edge.pages import ROWS, PageKind
from coordinator.engine.history import RoundRecord
from coordinator.engine.reasons import Case, reason
from protocol.ids import RoundNumber, Version
from simulator.processes.report import SimulationReport
from simulator.processes.results import loss_picture

PROMISED = {
    "workers", "rounds_closed", "val_loss_first", "val_loss_last", "val_loss", "lone_val_loss", "leases_granted",
    "leases_expired", "submissions_accepted", "submissions_rejected", "byzantine_accepted", "byzantine_rejected",
    "bytes_up", "bytes_down", "coordinator_peak_bytes", "worker_peak_bytes", "wall_s", "seed", "versions",
}  # fmt: skip


def example(losses: tuple[float, ...] = (5.56, 3.2, 2.6, 2.3, 2.1)) -> SimulationReport:
    rounds = tuple(
        RoundRecord(
            round=RoundNumber(n),
            base_version=Version(n - 1),
            version=Version(n),
            opened_at_s=5.0 * n,
            closed_at_s=5.0 * n + 4.0,
            accepted=5,
            rejected=2,
            expired=n % 3,
            returned=0,
            late_used=0,
            update_norm_l2=1.0,
            val_loss=loss,
            val_loss_se=0.01,
            closed=reason(Case.ALL_RESOLVED),
        )
        for n, loss in enumerate(losses[1:], start=1)
    )
    return SimulationReport(
        outcome="finished", why="", workers=8, byzantine=2, byzantine_workers=("worker-3", "worker-6"),
        trusted_workers=(),
        attack="sign-flip", attack_strength=2.0, undefended=False, dropout=0.2, dropouts=4,
        seed=1, rounds_planned=4, rounds_closed=4,
        inner_steps=20, batch_sequences=16, sequence_length=128, val_loss=losses,
        val_loss_first=losses[0] if losses else None, val_loss_last=losses[-1] if losses else None,
        lone_val_loss=2.4, lone_margin=0.3, leases_granted=30, leases_expired=4, leases_returned=0,
        submissions_accepted=20,
        submissions_rejected={"heldout_loss_rose": 8}, byzantine_accepted=0, byzantine_rejected=8, honest_rejected=0,
        bytes_up=1, bytes_down=2, coordinator_peak_bytes=2**30, worker_peak_bytes=2**31,
        wall_s=10.0, lone_wall_s=2.0, train_wall_s=8.0, checkpoint="checkpoint",
        rounds=rounds,
        versions={"barnraise": "0.1.0"},
    )  # fmt: skip


def test_the_promised_keys_are_there(tmp_path: Path) -> None:
    path = example().write(tmp_path)
    written = json.loads(path.read_text())
    assert set(written) >= PROMISED
    assert written["byzantine_rejected"] == 8
    assert [one.name for one in tmp_path.iterdir()] == ["report.json"]


def test_a_closed_round_is_written_as_a_status_writes_it(tmp_path: Path) -> None:
    report = example((5.0, 2.5, 2.0))
    one, two = report.rounds
    report = dataclasses.replace(report, rounds=(one, dataclasses.replace(two, val_loss=math.inf)))
    first, second = json.loads(report.write(tmp_path).read_text())["rounds"]
    assert (first["round"], first["val_loss"], first["lasted_s"], first["close_reason"]) == (
        1, 2.5, 4.0, report.rounds[0].close_reason,
    )  # fmt: skip
    assert second["val_loss"] == "Infinity", "plain JSON has no number for it"
    sent = json.loads(ROWS[PageKind.ROUNDS].dump_json(report.rounds[0]))
    assert sent == first
    assert ROWS[PageKind.ROUNDS].validate_python(first) == report.rounds[0]


@pytest.mark.parametrize("losses", [(5.56, 3.2, 2.6), (5.5,), ()])
def test_the_picture_is_drawn_even_when_nothing_closed(tmp_path: Path, losses: tuple[float, ...]) -> None:
    path = tmp_path / "loss.png"
    report = dataclasses.replace(example(losses), lone_val_loss=None if not losses else 2.4)
    draw_loss(loss_picture(report), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000
