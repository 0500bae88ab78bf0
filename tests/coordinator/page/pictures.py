"""Pictures of runs that nobody trains: as large and as strange as a test wants them."""

from __future__ import annotations

import math
from typing import Any

from coordinator.page.view import (
    BytesMoved,
    ClosedRow,
    ColumnCell,
    ColumnHealth,
    Contributor,
    Energy,
    Headline,
    Health,
    Judged,
    LeaseBar,
    LossPoint,
    OpenReason,
    OpenRound,
    RunCard,
    RunView,
    Tone,
    WorkerRow,
)

NOW_S = 1_795_000_000.0
_DOING = ("training", "training", "training", "uploading", "checking", "accepted", "waiting", "rejected", "absent")
_HEALTHS = (ColumnHealth.WHOLE, ColumnHealth.WHOLE, ColumnHealth.COMING, ColumnHealth.SHORT, ColumnHealth.UNHELD)


def card(**changes: Any) -> RunCard:
    facts: dict[str, Any] = {
        "run_id": "run-0123456789ab",
        "name": "A barn for everybody",
        "model": "olmoe",
        "parameters": 6_919_000_000,
        "columns": 64,
        "top_k": 8,
        "residency": "frozen",
        "codec": "int4",
        "rule": "trimmed_mean",
        "data": "stdlib",
        "sequence_length": 1024,
        "replicas": 3,
        "quorum": 2,
        "open_run": True,
        "max_rounds": 400,
        "started_at_s": NOW_S - 90_000,
        "version": 41,
        "exported_version": 40,
        "release": "0.1.0",
    }
    return RunCard(**(facts | changes))


def open_round(leases: int = 12) -> OpenRound:
    states = ("accepted", "uploaded", "committed", "granted", "granted", "rejected", "granted", "expired")
    bars = []
    for number in range(leases):
        state, granted_s = states[number % len(states)], NOW_S - 180 + 5 * (number % 7)
        committed_s = None if state in ("granted", "expired") else granted_s + 90 + 4 * number % 40
        bars.append(
            LeaseBar(
                worker=f"brave-otter-{number}",
                columns=8,
                state=state,
                steps=50,
                done=20 + number if state == "granted" else 0,
                granted_at_s=granted_s,
                committed_at_s=committed_s,
                arrived_at_s=None if committed_s is None or state == "committed" else committed_s + 20,
                deadline_at_s=granted_s + 300,
            )
        )
    return OpenRound(
        number=42,
        phase="training" if leases else "gathering",
        base_version=41,
        opened_at_s=NOW_S - 190,
        closes_at_s=NOW_S + 3400 if leases else None,
        grace_until_s=None,
        accepted=2,
        refused=1,
        lost=1,
        reasons=(
            OpenReason(
                subject="columns 3, 8, 13", text="1 of 3 replicas reported, 1 lost or refused, quorum 2; 1 on the way"
            ),
            OpenReason(subject="trunk", text="5 of 11 owners reported; more than half must, 6 on the way"),
        ),
        more_reasons=0,
        leases=tuple(bars),
        more_leases=0,
    )


def workers(count: int) -> tuple[WorkerRow, ...]:
    return tuple(
        WorkerRow(
            place=number + 1,
            name=f"brave-otter-{number}",
            state=_DOING[number % len(_DOING)],
            why=f"{number % 50} of 50 steps done, {300 - number % 200} s left",
            standing="counts in full" if number % 3 else "on probation",
            connected=number % 9 != 8,
            columns=8,
            accepted=number % 40,
            refused=number % 4 == 3,
            lost=number % 5,
            tokens_per_s=1500.0 + number,
            silent_s=3.0,
        )
        for number in range(count)
    )


def losses(count: int) -> tuple[LossPoint, ...]:
    return tuple(
        LossPoint(
            version=number,
            round=number,
            tokens=number * 12_000_000,
            hours=number * 0.61,
            loss=3.1 + 7.2 * math.exp(-number / 9) + 0.05 * math.sin(number),
            standard_error=0.02,
        )
        for number in range(count)
    )


def picture(*, people: int = 40, versions: int = 42, leases: int = 12, **changes: Any) -> RunView:
    """A run in its forty-second round."""
    rows = workers(people)
    states: dict[str, int] = {}
    for row in rows:
        states[row.state] = states.get(row.state, 0) + 1
    facts: dict[str, Any] = {
        "at_s": NOW_S,
        "headline": Headline(
            tone=Tone.HEALTHY, text="Round 42 of 400 is being trained: 2 submissions accepted, 8 on the way"
        ),
        "card": card(),
        "open_round": open_round(leases),
        "closed": tuple(
            ClosedRow(
                number=number,
                version=number if number % 9 else None,
                closed_at_s=NOW_S - 200 * (42 - number),
                lasted_s=188.0 + number,
                accepted=9,
                refused=number % 3,
                lost=number % 2,
                tokens=12_000_000,
                loss=3.2 if number % 9 else None,
                why="every column has its quorum and the grace is over",
            )
            for number in range(1, 42)
        )
        if versions
        else (),
        "rounds_closed": 41 if versions else 0,
        "left_s": 359 * 213.0 if versions else None,
        "losses": losses(versions),
        "columns": tuple(
            ColumnCell(
                column=number,
                health=_HEALTHS[number % len(_HEALTHS)] if leases else ColumnHealth.UNHELD,
                leased=3 if leases else 0,
                accepted=number % 3 if leases else 0,
                coming=1 if leases else 0,
                gone=1 if leases and number % 5 == 3 else 0,
                missing=("quiet-heron-7",) if leases and number % 5 == 3 else (),
            )
            for number in range(64)
        ),
        "enrolled": people,
        "connected": sum(row.connected for row in rows),
        "worker_states": states,
        "workers": rows,
        "more_workers": 0,
        "moved": BytesMoved(
            received_bytes=81_000_000_000,
            sent_bytes=930_000_000_000,
            received_bytes_per_s=1.4e6,
            sent_bytes_per_s=9.1e6,
            calls=1_204_331,
            refused_calls=17,
        ),
        "judged": Judged(
            accepted=372,
            refused={"norm_too_large": 11, "heldout_loss_rose": 6, "late": 2},
            leases_granted=440,
            leases_expired=31,
            leases_returned=8,
            audits_passed=44,
            audits_failed=3,
            audited=True,
        )
        if versions
        else Judged(
            accepted=0, refused={}, leases_granted=0, leases_expired=0, leases_returned=0, audits_passed=0,
            audits_failed=0, audited=False,
        ),
        "energy": Energy(machine_hours=1234.5 if versions else 0.0, watts_assumed=300,
                         kwh=370.35 if versions else 0.0),
        "tokens_counted": 41 * 12_000_000 if versions else 0,
        "credit": tuple(
            Contributor(name=f"brave-otter-{number}", tokens=51_200 * (40 - number), accepted=40 - number)
            for number in range(min(people, 30))
        )
        if versions
        else (),
        "health": Health(
            stalled="",
            paused="",
            held=False,
            pending_commands=1,
            failing_commands=0,
            failed_commands=2,
            withheld_rounds=0,
            disk_free_bytes=210 << 30,
            disk_size_bytes=1 << 40,
            certificate_expires_at_s=NOW_S + 300_000_000,
            snapshot_cost_s=0.004,
        ),
    }  # fmt: skip
    return RunView(**(facts | changes))
