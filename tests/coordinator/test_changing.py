"""One truth about settings: the journal's, which `settings.toml` follows and never leads."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from coordinator.edge.operator_client import change_setting
from coordinator.edge.server import CoordinatorServer
from coordinator.engine.events import RunCreated
from coordinator.engine.records import event_from_json
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run import changing
from coordinator.run.backup import back_up, restore
from coordinator.run.changing import change_while_stopped, setting_rows, with_engine_settings
from coordinator.run.clock import Clocks
from coordinator.run.folder import RunFolder
from coordinator.run.opened import OpenedRun
from coordinator.setting_counts import Counts
from coordinator.settings import RunSettings
from coordinator.store.journal import Journal
from protocol.errors import ConfigError, StorageTrouble


class Killed(BaseException):
    """The process is gone."""


def text_of(run: RunFolder) -> str:
    return (run.root / "settings.toml").read_text("utf-8")


def edit(run: RunFolder, old: str, new: str) -> None:
    text = text_of(run)
    assert old in text
    (run.root / "settings.toml").write_text(text.replace(old, new), "utf-8")


def start(run: RunFolder) -> Any:
    """What a start finds; the run is closed again."""
    opened = OpenedRun.open(run, Clocks())
    opened.close()
    return opened.engine.state


def killed_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(changing, "write_private", die)


async def test_a_served_run_is_changed_and_its_file_shows_it(run: RunFolder, server: CoordinatorServer) -> None:
    edit(run, "[engine]", "[engine] # the operator's own words\n# more of them")
    change, served = await asyncio.to_thread(change_setting, run, "engine.outer_learning_rate", "0.7")
    assert served
    assert (change.key, change.before, change.value, change.from_round) == ("outer_learning_rate", 1.0, 0.7, 1)
    assert run.settings().engine["outer_learning_rate"] == 0.7
    assert "# the operator's own words" in text_of(run)
    assert "# more of them" in text_of(run)
    again, _ = await asyncio.to_thread(change_setting, run, "outer_learning_rate", "0.7")
    assert again.before == again.value == 0.7
    for key, value, words in (("codec", "fp32", "fixed"), ("quorum", "0", "quorum"), ("port", "1", "edit it in")):
        with pytest.raises(ConfigError, match=words):
            await asyncio.to_thread(change_setting, run, key, value)
    with pytest.raises(ConfigError, match="another coordinator"):
        change_while_stopped(run, "quorum", "2")
    await server.stop(0.0)
    assert start(run).config.outer_learning_rate == 0.7


def test_a_stopped_run_is_changed_and_stays_cleanly_stopped(run: RunFolder) -> None:
    start(run)
    change, served = change_setting(run, "inner.learning_rate", "2e-3")
    assert (change.value, served, change.file_trouble) == (0.002, False, "")
    assert run.settings().engine["inner"]["learning_rate"] == 0.002
    state = start(run)
    assert state.chosen_config.inner.learning_rate == 0.002
    assert [row.key for row in state.setting_changes] == ["inner.learning_rate"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('codec = "fp32"', 'codec = "bf16"', '`codec` is "bf16" there and "fp32" in the journal: it is fixed'),
        ("sequence_length = 32", "sequence_length = 16", "`sequence_length` is 16 there and 32 in the journal"),
        ("seed = 0", "seed = 1", "`seed` is 1 there and 0"),
        ('residency = "frozen"', 'residency = "absent"', "`residency`"),
        ("heldout_limit = 4", "heldout_limit = 5", "`heldout_limit`"),
        ("[engine]", "[engine]\nmax_staleness = 2", "`max_staleness` is 2 there and 1 in the journal: it is fixed"),
        ("[engine]", "[engine]\nrule = 'mean'", 'is "mean" there and "trimmed_mean" .* `barnraise .* rule mean`'),
        ("max_rounds = 2", "max_rounds = 7", "`max_rounds` is 7 there and 2 in the journal"),
    ],
)  # fmt: skip
def test_a_file_that_was_edited_is_refused_with_both_values(run: RunFolder, old: str, new: str, words: str) -> None:
    edit(run, old, new)
    with pytest.raises(ConfigError, match=words):
        start(run)
    edit(run, new, old)
    start(run)  # nothing is held open, and nothing is left


def test_a_change_that_was_edited_in_is_made_one_by_set(run: RunFolder) -> None:
    edit(run, "max_rounds = 2", "max_rounds = 7")
    change_while_stopped(run, "max_rounds", "7")
    assert start(run).config.max_rounds == 7


def test_what_is_this_machines_may_be_edited(run: RunFolder) -> None:
    edit(run, "keep_checkpoints = 3", "keep_checkpoints = 1")
    edit(run, 'name = "barnraise run"', 'name = "ours"')
    start(run)


@pytest.mark.parametrize("times", [1, 2])
def test_a_kill_between_journal_and_file_refuses_no_start(
    run: RunFolder, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_before_the_file(monkeypatch)
    for value in ("7", "9")[:times]:
        with pytest.raises(Killed):
            change_while_stopped(run, "max_rounds", value)
    monkeypatch.undo()
    assert "max_rounds = 2" in text_of(run)
    assert start(run).chosen_config.max_rounds == (7, 9)[times - 1]
    assert f"max_rounds = {(7, 9)[times - 1]}" in text_of(run)
    edit(run, f"max_rounds = {(7, 9)[times - 1]}", "max_rounds = 2")  # from here on that is an edit like any other
    with pytest.raises(ConfigError, match="`max_rounds` is 2 there"):
        start(run)


async def test_a_file_that_takes_no_writes_is_told_and_written_later(
    run: RunFolder, server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise StorageTrouble("the disk is full")

    monkeypatch.setattr(changing, "write_private", refuse)
    change, _ = await asyncio.to_thread(change_setting, run, "quorum", "2")
    assert change.file_trouble == "the disk is full"
    monkeypatch.undo()
    await asyncio.to_thread(change_setting, run, "replicas", "4")
    assert (run.settings().engine["quorum"], run.settings().engine["replicas"]) == (2, 4)


def test_a_run_that_is_older_than_the_check_takes_the_files_values_once(run: RunFolder) -> None:
    journal = Journal.open(run.journal_path)
    records = [record for _, record in journal.read()]
    journal.close()
    for path in run.root.glob("journal*"):
        path.unlink()
    older = Journal.create(run.journal_path, engine_version=ENGINE_VERSION)
    older.append([records[0].replace('"codec":"\\"fp32\\"",', "")])
    older.close()
    assert start(run).fixed_settings["codec"] == '"fp32"'
    edit(run, 'codec = "fp32"', 'codec = "bf16"')
    with pytest.raises(ConfigError, match="`codec`"):
        start(run)


def test_a_backup_that_a_change_falls_into_can_be_served(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_while_stopped(run, "max_rounds", "5")
    start(run)
    copy_to = Journal.copy_to

    def changed_meanwhile(journal: Journal, target: Path) -> None:
        change_while_stopped(run, "max_rounds", "8")
        copy_to(journal, target)

    monkeypatch.setattr(Journal, "copy_to", changed_meanwhile)
    back_up(run, tmp_path / "backup")
    monkeypatch.undo()
    restore(tmp_path / "backup", tmp_path / "restored")
    assert start(RunFolder.open(tmp_path / "restored")).chosen_config.max_rounds == 8


def test_the_list_says_what_counts_and_when(run: RunFolder) -> None:
    change_while_stopped(run, "quorum", "2")
    rows = {row.key: row for row in setting_rows(run)}
    assert (rows["quorum"].counts, rows["quorum"].value) == (Counts.ROUND, 2)
    assert (rows["codec"].counts, rows["codec"].value) == (Counts.RUN, "fp32")
    assert rows["port"].counts is Counts.MACHINE
    assert rows["max_staleness"].counts is Counts.RUN
    assert not {"columns", "run_id", "engine"} & rows.keys()


def test_comments_and_order_of_a_file_stay() -> None:
    text = '# mine\npreset = "tiny" # small\n[engine]\n# why two\nquorum = 2 # of three\n'
    text += "[engine.inner]\nfinal_inner_steps = 3\n"
    changed = with_engine_settings(text, {"quorum": 1, "inner.final_inner_steps": None, "screening.norm_history": 8})
    assert changed.startswith('# mine\npreset = "tiny" # small\n[engine]\n# why two\nquorum = 1 # of three\n')
    settings = RunSettings.from_toml(changed, "settings.toml")
    assert settings.engine == {"quorum": 1, "inner": {}, "screening": {"norm_history": 8}}
    bare = with_engine_settings('preset = "tiny"\n', {"inner.learning_rate": 0.5})
    assert RunSettings.from_toml(bare, "settings.toml").engine == {"inner": {"learning_rate": 0.5}}


def test_the_first_event_fixes_what_the_start_compares(run: RunFolder) -> None:
    journal = Journal.open(run.journal_path, writable=False)
    created = event_from_json(next(journal.read())[1])
    journal.close()
    assert isinstance(created, RunCreated)
    assert {"codec", "residency", "sequence_length", "seed", "dataset_digest", "preset"} <= created.settings.keys()
    assert not {"port", "host", "engine"} & created.settings.keys()
