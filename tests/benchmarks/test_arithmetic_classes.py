"""What the table of arithmetic classes says of a distance: by the engine's own rule."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.arithmetic_classes import meetings, said_of
from benchmarks.replay_noise import _lease
from simulator.arithmetic import EVERYBODYS_ARITHMETIC, OTHERS

OWN, THREADS = str(EVERYBODYS_ARITHMETIC), str(OTHERS[0])


def test_the_table_has_long_leases_bf16_and_lies() -> None:
    wanted = list(meetings(quick=False))
    assert {meeting.case.steps for meeting in wanted} == {10, 200}
    assert any(meeting.auditor_fp32 for meeting in wanted)
    assert any(meeting.lie != 1.0 for meeting in wanted)
    assert all(meeting.case.steps <= 50 for meeting in meetings(quick=True))


@pytest.mark.parametrize(
    ("steps", "distance", "auditor", "said"),
    [
        (200, 0.019, THREADS, "passed"),
        (200, 0.5, THREADS, "could not decide"),
        (200, 0.5, OWN, "not reproduced"),
        (20, 0.5, THREADS, "not reproduced"),
        (200, float("nan"), THREADS, "could not decide"),
    ],
)
def test_what_is_said(steps: int, distance: float, auditor: str, said: str) -> None:
    task: Any = SimpleNamespace(lease=_lease("muon", steps, (0,), 0))
    assert said_of(task, distance, OWN, auditor) == said
