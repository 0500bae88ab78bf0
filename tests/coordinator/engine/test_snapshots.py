"""A snapshot's text is of one moment, and what has not changed is not written again.

That it says what the state says is checked after every event of every test here (conftest).
"""

import json

import pytest

from coordinator.engine import snapshots
from coordinator.engine.snapshots import SnapshotText


def test_the_text_is_of_the_moment_at_which_it_was_asked_for(swarm):
    s = swarm()
    s.join("ada")
    then, text = json.dumps(s.engine.snapshot(), separators=(",", ":")), SnapshotText()
    pieces = text.pieces(s.engine.state)
    first = next(pieces)
    s.join("ben", "cleo")
    s.at(50.0)
    assert first + "".join(pieces) == then
    assert json.dumps(s.engine.snapshot(), separators=(",", ":")) != then


def test_records_that_are_still_there_are_not_written_again(swarm, monkeypatch: pytest.MonkeyPatch):
    s, text = swarm(), SnapshotText()
    s.enrol("ada", "ben", "cleo")
    written: list[str] = []
    honest = snapshots._text

    def noted(plain: object) -> str:
        written.append(honest(plain))
        return written[-1]

    monkeypatch.setattr(snapshots, "_text", noted)
    list(text.pieces(s.engine.state))
    assert sum('"name":' in one for one in written) == 3
    written.clear()
    s.text = SnapshotText()  # the conftest's own would be counted, too
    s.check_text = lambda: None
    s.ask("ben")
    list(text.pieces(s.engine.state))
    assert [one for one in written if '"name":' in one] == [one for one in written if '"name":"ben"' in one]
    assert any('"name":"ben"' in one for one in written)
