"""What is said, and how often."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from coordinator.engine.commands import AnnounceVerdict
from coordinator.engine.events import ColumnSpan, RoundAggregated, Substitute
from coordinator.engine.reasons import Case, accepted
from coordinator.run.eventlog import EventLog
from protocol.ids import LeaseId, RoundNumber, Version, WorkerId, digest_of


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    log = EventLog(tmp_path / "events.jsonl", lambda at_s: at_s)
    yield log
    log.close()


def aggregated(number: int, *substitutes: Substitute) -> RoundAggregated:
    return RoundAggregated(
        at_s=1.0, command_id=f"aggregate:r{number}", round=RoundNumber(number), version=Version(number),
        parent_version=Version(number - 1), manifest=digest_of(b""), update_norm_l2=1.0, substitutes=substitutes,
    )  # fmt: skip


def too_few(most: int, last_column: int) -> Substitute:
    span = ColumnSpan(first=0, last=last_column)
    return Substitute(rule="trimmed_mean", in_force="mean", fewest=1, most=most, trunk=True, columns=(span,))


def said(log: EventLog, *events: RoundAggregated) -> list[tuple[str, int]]:
    with structlog.testing.capture_logs() as logs:
        for event in events:
            log.event(event)
    return [(line["event"], line["round"]) for line in logs if line["event"].startswith("rule_")]


def test_a_rule_that_has_too_few_is_said_once_and_not_again_while_it_stays_so(log: EventLog) -> None:
    with structlog.testing.capture_logs() as logs:
        log.event(aggregated(1, too_few(2, 63)))
    (line,) = [line for line in logs if line["event"] == "rule_fell_back"]
    assert (line["blocks"], line["log_level"]) == (65, "warning")
    assert "the trunk and columns 0-63 had 1 to 2 submissions each, too few for trimmed_mean" in line["told"]
    assert "more workers, or more replicas of each column, mend it" in line["told"]
    assert said(log, aggregated(2, too_few(2, 63)), aggregated(3, too_few(1, 60))) == []
    assert said(log, aggregated(4)) == [("rule_in_force_again", 4)]
    assert said(log, aggregated(5), aggregated(6, too_few(2, 63))) == [("rule_fell_back", 6)]


def test_a_rule_that_failed_is_another_thing(log: EventLog) -> None:
    failed = Substitute(
        rule="krum", in_force="median", fewest=3, most=3, trunk=False, columns=(ColumnSpan(first=2, last=2),), error="x"
    )
    assert said(log, aggregated(1, too_few(2, 3)), aggregated(2, too_few(2, 3), failed)) == [
        ("rule_fell_back", 1),
        ("rule_fell_back", 2),
    ]


def test_a_verdicts_sentence_stands_beside_its_figures(log: EventLog, tmp_path: Path) -> None:
    verdict = accepted(Case.GAIN, gain=0.05, error=0.01, doubt=0.02)
    log.command(AnnounceVerdict(worker=WorkerId("a"), lease_id=LeaseId("r1.1"), verdict=verdict), 1.0)
    (line,) = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert line["data"]["reason"] == "part of a step along it lowers held-out loss by 0.05 ± 0.01 nats a token"
    assert line["data"]["verdict"]["why"]["figures"]["gain"] == 0.05
