"""Whoever joins on a terminal is asked once whether they share, and the answer stands as a rule."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from barnraise.cli import share_question
from barnraise.cli.share_question import ask_to_share
from protocol.joinlink import JoinLink
from worker.rejoin import KnownRun
from worker.rules.file import RULES_FILE, read_rules, set_rule

FINGERPRINT = hashlib.sha256(b"run").hexdigest()
LINK = str(JoinLink(host="example.org", port=7465, fingerprint=FINGERPRINT, invite="a" * 43))


class Terminal:
    """Somebody who answers these, one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
        self._answers, self.asked = list(answers), 0
        monkeypatch.setattr(share_question, "can_ask", lambda: True)
        monkeypatch.setattr("typer.prompt", self._prompt)

    def _prompt(self, *_: Any, **__: Any) -> str:
        self.asked += 1
        return self._answers.pop(0)


def shared(root: Path) -> str:
    return read_rules(root / RULES_FILE).peers.share


def test_an_answer_is_a_rule_and_one_that_makes_no_sense_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal(monkeypatch, "quickly", "1MB")
    ask_to_share(LINK, tmp_path)
    assert (shared(tmp_path), terminal.asked) == ("1MB", 2)
    told = capsys.readouterr().err
    for words in ("opens a port", "learn its address", "quickly"):
        assert words in told


def test_enter_shares_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Terminal(monkeypatch, "").asked == 0
    ask_to_share(LINK, tmp_path)
    assert not (tmp_path / RULES_FILE).exists()


def test_nobody_is_asked_who_has_answered_or_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch)
    ask_to_share(str(JoinLink(host="example.org", port=7465, fingerprint=FINGERPRINT)), tmp_path)
    ask_to_share("", tmp_path)
    ask_to_share("nonsense", tmp_path)
    known = KnownRun(fingerprint=FINGERPRINT, run_id="r", address=None)
    with monkeypatch.context() as patched:
        patched.setattr(share_question, "known_runs", lambda _root: [known])
        ask_to_share(LINK, tmp_path)
    set_rule(tmp_path / RULES_FILE, "peers.share", "1MB")
    ask_to_share(LINK, tmp_path)
    assert terminal.asked == 0


def test_where_there_is_no_terminal_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch)
    monkeypatch.setattr(share_question, "can_ask", lambda: False)
    ask_to_share(LINK, tmp_path)
    assert terminal.asked == 0
