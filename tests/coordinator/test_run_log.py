"""A coordinator's log: kept in its folder, bounded, without addresses, followed over a turn-over, and told in words."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from coordinator.run.eventlog import _TOLD
from coordinator.run.log_words import SENTENCES, in_words
from coordinator.run.run_log import LOG_FILE, LogTail, RunLog, last_lines

ROOT = Path(__file__).parents[2]


def test_the_oldest_lines_go_and_the_newest_stay_in_order(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log", file_bytes=200, kept_files=3)
    for number in range(60):
        log(None, "info", {"event": "verdict", "number": number})
    files = sorted(path.name for path in (tmp_path / "log").iterdir())
    assert files == [LOG_FILE, f"{LOG_FILE}.1", f"{LOG_FILE}.2"]
    assert all(path.stat().st_size <= 200 for path in (tmp_path / "log").iterdir())
    kept = [entry["number"] for entry in last_lines(tmp_path / "log", 1000)]
    assert kept == list(range(kept[0], 60))
    assert len(kept) > 8
    assert [entry["number"] for entry in last_lines(tmp_path / "log", 2)] == [58, 59]


def test_addresses_are_told_and_not_kept(tmp_path: Path) -> None:
    event = {"event": "call_refused", "address": "192.0.2.7", "error": "no"}
    assert RunLog(tmp_path)(None, "info", event)["address"] == "192.0.2.7"
    assert "192.0.2.7" not in (tmp_path / LOG_FILE).read_text()


def test_following_misses_nothing_over_a_turn_over_and_waits_for_whole_lines(tmp_path: Path) -> None:
    log = RunLog(tmp_path, file_bytes=150)
    log(None, "info", {"event": "before"})
    following = LogTail(tmp_path)
    seen = []
    for number in range(20):
        log(None, "info", {"event": "verdict", "number": number})
        seen += [entry["number"] for entry in following.news()]
    assert seen == list(range(20))
    with (tmp_path / LOG_FILE).open("ab") as file:
        file.write(b'{"event":"ver')
        file.flush()
        assert list(following.news()) == []
        file.write(b'dict"}\n')
    assert [entry["event"] for entry in following.news()] == ["verdict"]
    following.close()


def test_a_full_disk_and_a_torn_line_cost_a_line(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the folder would be")
    RunLog(tmp_path / "log")(None, "info", {"event": "verdict"})
    (tmp_path / LOG_FILE).write_text('{"event":"a"}\n{"event":\n[1]\n{"event":"b"}\n')
    assert [entry["event"] for entry in last_lines(tmp_path, 9)] == ["a", "b"]


def logged() -> set[str]:
    """Every event that the coordinator writes down."""
    found = {name for name, _ in _TOLD.values()}
    for path in (ROOT / "coordinator").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("_log.") and node.args:
                words = [one.value for one in ast.walk(node.args[0]) if isinstance(one, ast.Constant)]
                found |= {str(word) for word in words if isinstance(word, str)}
    return found


def test_every_event_has_a_sentence_and_every_sentence_an_event() -> None:
    assert logged() == set(SENTENCES)


def test_lines_in_words() -> None:
    line = {"event": "lease_granted", "worker": "w1", "lease_id": "r1.2", "inner_steps": 8, "level": "info"}
    assert in_words(line, {"w1": "ada"}.__getitem__) == "ada got lease r1.2: 8 steps"
    line = {"event": "worker_banned", "worker": "w1", "by": "root", "why": ""}
    assert in_words(line, {"w1": "a\x1bda"}.__getitem__) == "a da was banned by root"
    line = json.loads('{"event": "of_tomorrow", "level": "info", "round": 3, "loss": 1.23456}')
    assert in_words(line, str) == "of_tomorrow: round 3, loss 1.235"
    verdict = {"event": "verdict", "lease_id": "r1.2", "accepted": False, "reason": "too far"}
    assert in_words(verdict, str) == "refused: r1.2, too far"
