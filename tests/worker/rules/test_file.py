"""`rules.toml` and the note of a pause: what is written, what is kept, and what a broken file does."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from protocol.errors import ConfigError
from worker.rules.file import PAUSE_FILE, PauseNote, note_pause, noted_pause, read_rules, set_rule, template
from worker.rules.model import VolunteerRules, keys


def test_the_file_without_a_rule_set_says_what_no_file_says(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    assert read_rules(path) == VolunteerRules()
    path.write_text(template())
    assert read_rules(path) == VolunteerRules()
    for key, meaning, _ in keys():
        assert f"# {meaning}\n{key.split('.')[1]} = " in template()


def test_setting_a_rule_keeps_the_rest_and_its_comments(tmp_path: Path) -> None:
    path = tmp_path / "home" / "rules.toml"
    assert set_rule(path, "when.idle_minutes", "10") == (0.0, 10.0)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.write_text(path.read_text().replace("[gpu]", "# because of the noise\n[gpu]"))
    assert set_rule(path, "when.programs", "blender") == ((), ("blender",))
    assert set_rule(path, "when.schedule", '["sat", "sun"]') == ((), ("sat", "sun"))
    assert "# because of the noise" in path.read_text()
    rules = read_rules(path)
    assert (rules.when.idle_minutes, rules.when.programs) == (10.0, ("blender",))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("when.idel", "3", "there is no rule 'when.idel'"),
        ("when", "3", "there is no rule 'when'"),
        ("when.schedule", "someday", "'someday' is no day"),
        ("when.battery", "sleep", "expected 'pause' or 'work', got 'sleep'"),
        ("disk.most", "much", "not an amount"),
        ("network.upload_rate", "1KB", "broken off"),
        ("cpu.niceness", "20", "expected at most 19, got 20"),
        ("when.idle_minutes", "nan", "expected .*, got nan"),
        ("gpu.most_watts", "much", "expected a number, got 'much'"),
        ("when.idle", "3", "did you mean when.idle_minutes"),
    ],
)
def test_what_makes_no_sense_changes_nothing(tmp_path: Path, key: str, value: str, told: str) -> None:
    path = tmp_path / "rules.toml"
    set_rule(path, "when.idle_minutes", "10")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=told):
        set_rule(path, key, value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["when = 3", "[when]\nidle = 3", "[when", "\udce9"])
def test_a_broken_file_is_told_with_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=r"rules\.toml"):
        read_rules(path)


def test_a_pause_is_noted_and_forgotten(tmp_path: Path) -> None:
    assert noted_pause(tmp_path) is None
    note_pause(tmp_path, PauseNote(until_s=5.0))
    assert noted_pause(tmp_path) == PauseNote(until_s=5.0)
    note_pause(tmp_path, PauseNote())
    assert noted_pause(tmp_path) == PauseNote()
    note_pause(tmp_path, None)
    note_pause(tmp_path, None)
    assert noted_pause(tmp_path) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"until_s": "soon"}', '{"until_s": NaN}'])
def test_a_note_that_cannot_be_read_is_a_pause_without_an_end(tmp_path: Path, content: str) -> None:
    (tmp_path / PAUSE_FILE).write_text(content)
    assert noted_pause(tmp_path) == PauseNote()
