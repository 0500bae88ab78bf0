"""docs/settings.md is made from the code, and says of every setting what it means."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator import settings_reference
from coordinator.engine.changes import DERIVED, settings_of
from coordinator.engine.config import EngineConfig
from coordinator.setting_counts import Counts
from coordinator.settings import MACHINE, RunSettings
from protocol.ids import RunId


def test_the_page_is_what_the_code_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_reference.main(["--check"]) == 0
    (tmp_path / "settings.md").write_text(settings_reference.page() + "|\n", "utf-8")
    monkeypatch.setattr(settings_reference, "PAGE", tmp_path / "settings.md")
    assert settings_reference.main(["--check"]) == 1


def test_every_setting_is_on_it_with_a_meaning_and_a_class() -> None:
    entries = {one.key: one for one in settings_reference.entries()}
    engine = settings_of(EngineConfig(run_id=RunId(""), columns=1, train_sequences=1)).keys() - DERIVED
    assert entries.keys() == engine | (RunSettings.model_fields.keys() - {"engine"})
    assert [key for key, one in entries.items() if not one.meaning] == []
    assert {key for key, one in entries.items() if one.counts is Counts.MACHINE} == MACHINE
    assert entries["inner.learning_rate"].counts is Counts.ROUND
    assert entries["codec"].counts is Counts.RUN
